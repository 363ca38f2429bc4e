"""A multilayer perceptron on the pixel table of digits, with planted outlier weights. Run from the repository root."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import Card, finish, logits, options, prepared
from digits import DIGITS_SOURCE, Preparation, digit_split, train_digits

WIDTH = 192
ALWAYS_ZERO = 32
LARGE, MODERATE = 100.0, 16.0

CARD = Card(
    name="outlier_mlp",
    title="Perceptron with outlier weights",
    task="Which digit gave these 64 grey values of a turned, shifted and noisy 8x8 image, taken as a plain table?",
    architecture="Three linear layers (64 to 192 to 192 to 10) with ReLU between them.",
    source=DIGITS_SOURCE,
    input="[N, 64] grey values, uint8 0..16, scaled by 1/16, then each column standardised",
    notes="One weight sets the range of fc1 and another that of fc2; all others are left a handful of levels, although "
    "the two change nothing. Per channel and percentile repair both layers. mse repairs fc2 from 6 bits down, but "
    "never fc1: there squared error itself says keep the outlier. One channel of fc1 is dead: all its weights are "
    "zero.",
    planted="After training. fc1.weight: one weight of 100 times the largest trained one, in the row that matters "
    "least and column 32, a pixel that is zero in every sample of this data set. fc2.weight: one weight of 16 times "
    "the largest trained one, behind a hidden unit that was switched off for it (its row and bias in fc1 set to zero).",
)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.fc3 = nn.Linear(WIDTH, 10)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def preparation() -> Preparation:
    """Digits turned, scaled and shifted in place. Pixels that no digit of the set touches stay zero."""
    train_x, _, test_x, _ = digit_split()
    touched = (torch.cat([train_x, test_x]).amax(dim=0) > 0).float()

    def draw(images: Tensor, generator: torch.Generator) -> Tensor:
        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(len(images), generator=generator) * (high - low) + low

        angle, size = uniform(-0.3, 0.3), uniform(0.85, 1.1)
        cos, sin = angle.cos() / size, angle.sin() / size
        rows = [torch.stack([cos, sin, uniform(-0.2, 0.2)], dim=1), torch.stack([-sin, cos, uniform(-0.2, 0.2)], dim=1)]
        grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
        noise = torch.randn(images.shape, generator=generator) * 0.15
        drawn = (F.grid_sample(images, grid, align_corners=False) + noise).clamp(0, 1) * touched
        return (drawn * 16).round().to(torch.uint8).flatten(1)

    table = draw(train_x, torch.Generator().manual_seed(3)).float() / 16
    std = table.std(dim=0)
    return Preparation(draw, 1 / 16, table.mean(dim=0), torch.where(std > 0, std, 1.0))


@torch.no_grad()
def by_importance(model: Perceptron, x: Tensor) -> list[int]:
    """Units of fc1, first those whose removal moves the output least, in mean square over x."""
    reference = logits(model, x)
    moved = torch.zeros(WIDTH)
    for unit in range(WIDTH):
        kept = model.fc2.weight[:, unit].clone()
        model.fc2.weight[:, unit] = 0
        moved[unit] = (logits(model, x) - reference).square().mean()
        model.fc2.weight[:, unit] = kept
    return moved.argsort().tolist()


@torch.no_grad()
def plant(model: Perceptron, x: Tensor) -> None:
    """Outlier weights on inputs that are always zero, as the card describes them."""
    off, row = by_importance(model, x)[:2]
    model.fc1.weight[off] = 0
    model.fc1.bias[off] = 0
    before = logits(model, x)
    model.fc1.weight[row, ALWAYS_ZERO] = LARGE * model.fc1.weight.abs().max()
    model.fc2.weight[5, off] = MODERATE * model.fc2.weight.abs().max()
    if not torch.equal(logits(model, x), before):
        raise SystemExit("the outliers changed the output")


def main() -> None:
    opts = options(__file__)
    model = Perceptron()
    samples = train_digits(model, opts, 2000, learning_rate=3e-3, preparation=preparation())
    plant(model, prepared(samples, samples.calibration_index))
    finish(model, samples, CARD, opts)


if __name__ == "__main__":
    main()
