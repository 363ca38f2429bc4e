"""A depthwise-separable net on distorted digits, with a few channels rescaled. Run from the repository root.

The rescaling keeps the function. A pointwise convolution with BatchNorm and ReLU feeds a depthwise convolution, which
handles each channel alone; so for any s > 0

    depthwise(w_c, relu(y_c)) = depthwise(w_c * s, relu(y_c / s)),

and with s a power of two this holds to the bit. It is what training leaves behind in MobileNets: a channel that is
almost dead gets a large factor from the BatchNorm behind it, and that factor ends up in the folded depthwise weight.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Card, finish, logits, options, prepared
from digits import DIGITS_SOURCE, train_digits

SPREAD = 64.0
RESCALED_PER_LAYER = 2

CARD = Card(
    name="depthwise_digits",
    title="Depthwise-separable net on digits",
    task="Which digit is drawn in a noisy 16x16 image, rotated, shifted, faded and partly covered by a bar?",
    architecture="A 3x3 convolution and four depthwise-separable blocks (24 to 96 channels, BatchNorm and ReLU after "
    "every convolution, as in MobileNet), average pooling, one linear layer.",
    source=DIGITS_SOURCE,
    input="[N, 1, 16, 16] grey image, uint8 0..255, scaled by 1/255, then mean 0.2 and std 0.2",
    notes="8 bits per tensor break this network: after folding, the largest weight of one depthwise channel is a "
    "hundred times that of another, and one scale cannot serve both. Per channel at 8 bits costs next to nothing.",
    planted="After training, in each depthwise convolution the 2 channels that matter least to the output have their "
    "weights multiplied by 64, and the BatchNorm that feeds them is divided by 64. ReLU passes the factor through, so "
    "the network computes exactly what was trained; training alone leaves a milder spread.",
)


class Separable(nn.Module):
    """Depthwise 3x3, then pointwise 1x1; [N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels_in, channels_in, 3, stride=stride, padding=1, groups=channels_in, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.depthwise(x)))
        return self.relu(self.bn2(self.pointwise(x)))


class DepthwiseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.block1 = Separable(24, 48, 1)
        self.block2 = Separable(48, 64, 2)
        self.block3 = Separable(64, 64, 1)
        self.block4 = Separable(64, 96, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(self.stem(x)))))
        return self.classifier(torch.flatten(self.avgpool(x), 1))


@torch.no_grad()
def least_important(model: nn.Module, depthwise: nn.Conv2d, x: Tensor, count: int) -> Tensor:
    """The channels whose removal moves the output least, in mean square over x."""
    reference = logits(model, x)
    moved = torch.zeros(depthwise.out_channels)
    for channel in range(depthwise.out_channels):
        kept = depthwise.weight[channel].clone()
        depthwise.weight[channel] = 0
        moved[channel] = (logits(model, x) - reference).square().mean()
        depthwise.weight[channel] = kept
    return moved.argsort()[:count]


@torch.no_grad()
def rescale(feeding: nn.BatchNorm2d, depthwise: nn.Conv2d, channels: Tensor, factor: float) -> None:
    """Moves the factor from the feeding BatchNorm into the depthwise weights of these channels."""
    feeding.weight[channels] /= factor
    feeding.bias[channels] /= factor
    depthwise.weight[channels] *= factor


def main() -> None:
    opts = options(__file__)
    model = DepthwiseNet()
    samples = train_digits(model, opts, steps=1600)

    x = prepared(samples, samples.calibration_index[:128])
    before = logits(model, x)
    feeding = model.stem[1]
    for block in (model.block1, model.block2, model.block3, model.block4):
        channels = least_important(model, block.depthwise, x, RESCALED_PER_LAYER)
        rescale(feeding, block.depthwise, channels, SPREAD)
        feeding = block.bn2
    if not torch.equal(logits(model, x), before):
        raise SystemExit("the rescaling changed the output")
    finish(model, samples, CARD, opts)


if __name__ == "__main__":
    main()
