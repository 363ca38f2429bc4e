"""Digits for the sample models: the 8x8 images of scikit-learn, distorted until telling them apart is work."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import N_CALIBRATION, N_EVALUATION, Options, Samples, train
from torch import Tensor, nn
from torch.nn import functional as F

DIGITS_SOURCE = (
    "Optical Recognition of Handwritten Digits (UCI, E. Alpaydin and C. Kaynak, 1998), CC BY 4.0, the 1,797 images of "
    "8x8 pixels that come with scikit-learn"
)
CANVAS = 16


def digit_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images [1197, 1, 8, 8] in 0..1, train labels, test images [600, 1, 8, 8], test labels."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    parts = train_test_split(images, digits.target, test_size=600, random_state=0, stratify=digits.target)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    return train_x, train_y, test_x, test_y


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draws each digit rotated, sheared, scaled and shifted on a larger canvas, then fades, occludes and adds noise.

    images: [N, 1, 8, 8] in 0..1; returns uint8 [N, 1, 16, 16] in 0..255.
    """
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, shear = uniform(-0.5, 0.5), uniform(-0.35, 0.35)
    size_x, size_y = uniform(0.6, 0.95), uniform(0.6, 0.95)
    # affine_grid maps the canvas to the image, so a digit of size s needs the factor 1 / s.
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos / size_x, (sin + shear) / size_x, uniform(-0.35, 0.35)], dim=1),
        torch.stack([-sin / size_y, cos / size_y, uniform(-0.35, 0.35)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [n, 1, CANVAS, CANVAS], align_corners=False)
    canvas = F.grid_sample(images, grid, align_corners=False)

    # A bar of random position and grey covers part of the digit.
    position, grey = torch.randint(0, CANVAS - 1, (n, 1, 1, 1), generator=generator), uniform(0.0, 0.8).view(n, 1, 1, 1)
    lines = torch.arange(CANVAS)
    bar = (lines >= position) & (lines < position + 2)
    upright = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    canvas = torch.where(torch.where(upright, bar, bar.transpose(2, 3)), grey, canvas)

    contrast, ground = uniform(0.35, 0.9).view(n, 1, 1, 1), uniform(0.0, 0.15).view(n, 1, 1, 1)
    noise = torch.randn(canvas.shape, generator=generator) * 0.06
    return ((canvas * contrast + ground + noise).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Preparation:
    """How a digit becomes raw data (`draw`: [N, 1, 8, 8] in 0..1 to uint8) and raw data what the network sees."""

    draw: Callable[[Tensor, torch.Generator], Tensor]
    scale: float
    mean: Tensor
    std: Tensor

    def applied(self, raw: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (raw.ndim - 2)
        return (raw.float() * self.scale - self.mean.view(shape)) / self.std.view(shape)


IMAGES = Preparation(distort, 1 / 255, torch.tensor([0.2]), torch.tensor([0.2]))


def digit_samples(preparation: Preparation, quick: bool) -> Samples:
    """Calibration from distorted training digits, evaluation from distorted held-out ones, several of each."""
    train_x, train_y, test_x, test_y = digit_split()
    generator = torch.Generator().manual_seed(1)
    n_calibration, n_evaluation = (64, 128) if quick else (N_CALIBRATION, N_EVALUATION)
    chosen = torch.randperm(len(train_x), generator=generator)[:n_calibration]
    repeated = torch.arange(n_evaluation) % len(test_x)
    draw = preparation.draw
    return Samples(
        x=torch.cat([draw(train_x[chosen], generator), draw(test_x[repeated], generator)]).numpy(),
        y=torch.cat([train_y[chosen], test_y[repeated]]).numpy().astype(np.int64),
        calibration_index=np.arange(n_calibration),
        evaluation_index=np.arange(n_calibration, n_calibration + n_evaluation),
        class_names=[str(digit) for digit in range(10)],
        scale=preparation.scale,
        mean=preparation.mean.numpy(),
        std=preparation.std.numpy(),
    )


def train_digits(
    model: nn.Module, opts: Options, steps: int, learning_rate: float = 4e-3, preparation: Preparation = IMAGES
) -> Samples:
    """Trains on digits distorted anew in every step; returns the samples to store."""
    train_x, train_y, _, _ = digit_split()
    generator = torch.Generator().manual_seed(2)

    def batch() -> tuple[Tensor, Tensor]:
        index = torch.randint(0, len(train_x), (128,), generator=generator)
        return preparation.applied(preparation.draw(train_x[index], generator)), train_y[index]

    train(model, batch, 4 if opts.quick else steps, learning_rate)
    return digit_samples(preparation, opts.quick)
