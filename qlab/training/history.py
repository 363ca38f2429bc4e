"""What happened in a training: figures by epoch, grids over time, weights over their grid. Numpy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from qlab.quant.observers import EPS

CHANNELS_KEPT = 512  # scales of one tensor that are written down; of more, as many at even distances
STILL_AFTER = 3  # records in a row without a change, after which a grid that may move has stopped moving
PREFIX = "history."
_ARRAYS = ("scale", "zero_point", "low", "high", "frozen", "flips", "histogram", "channels")


@dataclass(frozen=True)
class Epoch:
    """Figures at the end of an epoch; epoch 0 is before the first step, which is the network as convert gives it.

    step: steps taken. lr: of its last step. train_loss: mean over its batches. validation_loss: over what was held out;
    both None where there is none. accuracy (with its 95 % interval) and agreement with the float network: of the
    simulated quantized network on the evaluation samples, which training never sees. best: the best so far.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float | None
    validation_loss: float | None
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    agreement: float | None
    frozen: bool
    best: bool


@dataclass(frozen=True, eq=False)
class GridTrace:
    """One fake-quantize module over time: R records, n scales.

    tensor: name of the weight or activation; role: "weight" or "activation"; layer: key of `QuantizedModel.weights`
    or `.activations`. count: scales it has; channels [n]: which of them are here, all unless they are many.
    scale, low, high [R, n] float32 (low, high: ends of the range the grid is laid over), zero_point [R, n] int32,
    frozen [R] bool. flips [R]: share of the weight's codes that differ from the record before (0 at the first), NaN for
    activations. histogram [E, B] int32: of a weight, values in steps of the grid by epoch, over edges [B + 1] in codes,
    what lies beyond them in the end bins; [0, 0] for activations.
    """

    tensor: str
    role: str
    layer: str
    bits: int
    quant_min: int
    quant_max: int
    count: int
    channels: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    low: np.ndarray
    high: np.ndarray
    frozen: np.ndarray
    flips: np.ndarray
    histogram: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """[B + 1], in codes: from one below the lowest code to one above the highest."""
        return np.linspace(self.quant_min - 1, self.quant_max + 1, self.histogram.shape[1] + 1)

    def marks(self, record: int) -> tuple[str, ...]:
        """What is wrong with this grid at this record, in words; empty where nothing is."""
        scale = self.scale[record]
        out = []
        if not np.isfinite(scale).all():
            out.append("its scale is NaN or infinite")
        elif (scale <= EPS).all():
            out.append("its scale is zero: the smallest allowed stands in")
        elif (scale <= EPS).any():
            out.append(f"{int((scale <= EPS).sum())} of {scale.size} scales are zero: the smallest allowed stands in")
        if not self.frozen[record] and record >= STILL_AFTER:
            before = self.scale[record - STILL_AFTER : record]
            if (before == scale).all() and (
                self.zero_point[record - STILL_AFTER : record] == self.zero_point[record]
            ).all():
                out.append("stands still, though it is not frozen")
        return tuple(out)


@dataclass(frozen=True, eq=False)
class History:
    """settings: `Training.to_dict()`. samples: trained on, and held out. float_accuracy: of the float network on the
    evaluation samples; None without labels. losses [S]: of each step taken. record_steps [R]: steps taken at each
    record; record_epochs [R]: in epochs, with fractions. best: the epoch that is the result. finished: whether training
    came to its end."""

    settings: Mapping[str, Any]
    samples: tuple[int, int]
    evaluation_samples: int
    float_accuracy: float | None
    epochs: Sequence[Epoch]
    losses: np.ndarray
    record_steps: np.ndarray
    record_epochs: np.ndarray
    grids: Sequence[GridTrace]
    finished: bool

    @property
    def best(self) -> int:
        return max((e.epoch for e in self.epochs if e.best), default=0)

    def grid(self, tensor: str, role: str) -> GridTrace:
        """Raises KeyError."""
        for grid in self.grids:
            if grid.tensor == tensor and grid.role == role:
                return grid
        raise KeyError(tensor)

    def record_of(self, epoch: int) -> int:
        """The last record of this epoch."""
        return int(np.flatnonzero(self.record_epochs <= epoch)[-1])

    def write(self, path: str | Path) -> None:
        """To a .safetensors file of its own."""
        texts, arrays = self.parts()
        save_file(arrays, path, metadata=texts)

    def parts(self) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """As texts and arrays for a .safetensors file; `read` takes them back."""
        arrays = {f"{PREFIX}{name}": getattr(self, name) for name in ("losses", "record_steps", "record_epochs")}
        about = []
        for i, grid in enumerate(self.grids):
            about.append({k: v for k, v in vars(grid).items() if k not in _ARRAYS})
            arrays |= {f"{PREFIX}{i}.{name}": getattr(grid, name) for name in _ARRAYS}
        text = {
            "settings": dict(self.settings), "samples": list(self.samples), "finished": self.finished,
            "evaluation_samples": self.evaluation_samples, "float_accuracy": self.float_accuracy,
            "epochs": [asdict(e) for e in self.epochs], "grids": about,
        }  # fmt: skip
        return {"history": json.dumps(text)}, {name: np.ascontiguousarray(a) for name, a in arrays.items()}

    @classmethod
    def read(cls, path: str | Path) -> History:
        """From a file of the lab's own that holds its parts, which may hold more. Raises OSError, SafetensorError."""
        with safe_open(path, framework="numpy") as file:
            text = json.loads(file.metadata()["history"])
            held = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIX)}  # noqa: SIM118
        return cls.from_parts(text, held)

    @classmethod
    def from_parts(cls, text: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> History:
        grids = [GridTrace(**about, **_of_grid(arrays, i)) for i, about in enumerate(text["grids"])]
        known = {k: text[k] for k in ("settings", "evaluation_samples", "float_accuracy", "finished")}
        return cls(
            **known, samples=(text["samples"][0], text["samples"][1]), epochs=[Epoch(**e) for e in text["epochs"]],
            grids=grids, losses=arrays[f"{PREFIX}losses"], record_steps=arrays[f"{PREFIX}record_steps"],
            record_epochs=arrays[f"{PREFIX}record_epochs"],
        )  # fmt: skip


def _of_grid(arrays: Mapping[str, np.ndarray], number: int) -> dict[str, Any]:
    return {name: arrays[f"{PREFIX}{number}.{name}"] for name in _ARRAYS}
