"""What is measured on: the CIFAR-10 ResNet-20 beside the project, or a sample model where that is absent."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import qlab
from qlab.data import Dataset
from qlab.graph.capture import Model

CIFAR = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "cifar10"
HOW = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Row:
    """One line of the table. met: None where there is no bar."""

    what: str
    value: str
    bar: str
    met: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Case:
    name: str
    model: Model
    calibration: Dataset
    evaluation: Dataset
    archive: Path

    def batches(self, data: Dataset) -> list[tuple[torch.Tensor, ...]]:
        return [inputs for _, inputs, _ in data.batches(64)]


def load_case() -> Case:
    if CIFAR.exists():
        archive = CIFAR / "resnet20.pt2"
        return Case(
            "ResNet-20, CIFAR-10",
            qlab.load_model(archive),
            qlab.load_dataset(CIFAR / "train1024.npz", **HOW),
            qlab.load_dataset(CIFAR / "test1000.npz", **HOW),
            archive,
        )
    return load_sample()


def load_sample() -> Case:
    """A trained network that comes with the project."""
    from qlab.samples import SAMPLES

    data = qlab.load_dataset("residual_digits")
    archive = SAMPLES / "residual_digits" / "model.pt2"
    return Case("sample residual_digits", qlab.load_model(archive), data.calibration, data.evaluation, archive)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(work: Callable[[], object], over: Callable[[], object], repeats: int = 7) -> tuple[float, float, float]:
    """Median of work / over, taken turn by turn so that drift cancels; and both medians in seconds."""
    work(), over()
    pairs = [(seconds(work), seconds(over)) for _ in range(repeats)]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )
