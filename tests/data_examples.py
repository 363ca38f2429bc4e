"""Data sets and input specs that the tests of data share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qlab.data import Dataset, load_dataset

ROOT = Path(__file__).resolve().parent.parent
CIFAR = ROOT.parent / "shared" / "data" / "cifar10"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(10) % 3


def dataset(x=IMAGES, y=LABELS, **options) -> Dataset:
    return load_dataset(x, y, **options)


def together(data: Dataset, batch_size: int = 3) -> list[torch.Tensor]:
    """All inputs, put together from batches."""
    return [torch.cat(parts) for parts in zip(*(inputs for _, inputs, _ in data.batches(batch_size)), strict=True)]


@dataclass(frozen=True)
class Spec:
    """What check_against reads of an InputSpec."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    minimum: tuple[int, ...] | None = None
    maximum: tuple[int | None, ...] | None = None
