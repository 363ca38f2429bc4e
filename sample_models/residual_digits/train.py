"""A small residual network on distorted digits. Run from the repository root."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Card, finish, options
from digits import DIGITS_SOURCE, train_digits

CARD = Card(
    name="residual_digits",
    title="Residual network on digits",
    task="Which digit is drawn in a noisy 16x16 image, rotated, shifted, faded and partly covered by a bar?",
    architecture="A 3x3 convolution and three residual blocks (16, 32 and 48 channels; two convolutions with BatchNorm "
    "each, 1x1 shortcut convolutions with stride 2), average pooling, one linear layer.",
    source=DIGITS_SOURCE,
    input="[N, 1, 16, 16] grey image, uint8 0..255, scaled by 1/255, then mean 0.2 and std 0.2",
    notes="BatchNorm folds away, and each input of an addition has a scale of its own. A well-behaved network: 8 and 6 "
    "bits cost next to nothing, 4 bits one or two points, 3 bits per tensor many more than 3 bits per channel.",
)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; [N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or channels_in != channels:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + shortcut)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2))
        self.layer3 = nn.Sequential(Block(32, 48, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def main() -> None:
    opts = options(__file__)
    model = ResidualNet()
    samples = train_digits(model, opts, steps=1200)
    finish(model, samples, CARD, opts)


if __name__ == "__main__":
    main()
