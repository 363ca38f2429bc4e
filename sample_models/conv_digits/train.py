"""A plain convolution net on distorted digits. Run from the repository root."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Card, finish, options
from digits import DIGITS_SOURCE, train_digits

CARD = Card(
    name="conv_digits",
    title="Convolution net on digits",
    task="Which digit is drawn in a noisy 16x16 image, rotated, shifted, faded and partly covered by a bar?",
    architecture="Four 3x3 convolutions (12, 24, 32 and 48 channels) with BatchNorm and ReLU, max pooling after the "
    "second and third, average pooling, one linear layer.",
    source=DIGITS_SOURCE,
    input="[N, 1, 16, 16] grey image, uint8 0..255, scaled by 1/255, then mean 0.2 and std 0.2",
    notes="The model to begin with: convolution, BatchNorm and ReLU become one unit, max pooling shares its grid. 8 "
    "bits cost next to nothing; at 4 bits min_max per tensor loses many points, per channel or with mse one or two.",
)


class ConvBlock(nn.Module):
    """3x3 convolution, BatchNorm, ReLU; the size of the image stays."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1 = ConvBlock(1, 12)
        self.block2 = ConvBlock(12, 24)
        self.block3 = ConvBlock(24, 32)
        self.block4 = ConvBlock(32, 48)
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.block2(self.block1(x)))
        x = self.pool(self.block3(x))
        return self.classifier(torch.flatten(self.avgpool(self.block4(x)), 1))


def main() -> None:
    opts = options(__file__)
    model = ConvNet()
    samples = train_digits(model, opts, steps=1200)
    finish(model, samples, CARD, opts)


if __name__ == "__main__":
    main()
