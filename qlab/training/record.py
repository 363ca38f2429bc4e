"""Writes down what happens while a network trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.training.graph import TrainingNetwork
from qlab.training.grids import TrainedGrid
from qlab.training.history import CHANNELS_KEPT, Epoch, GridTrace, History

RECORDS_PER_EPOCH = 4
BINS = 256  # of a weight's histogram over its grid, about


@dataclass
class _Track:
    """One grid while it is being written down; what `GridTrace` holds, as lists."""

    tensor: str
    role: str
    layer: str
    grid: TrainedGrid
    channels: np.ndarray
    scale: list[np.ndarray] = field(default_factory=list)
    zero_point: list[np.ndarray] = field(default_factory=list)
    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    frozen: list[bool] = field(default_factory=list)
    flips: list[float] = field(default_factory=list)
    histogram: list[np.ndarray] = field(default_factory=list)


class Recorder:
    """known: what was written down up to a checkpoint, to go on from."""

    def __init__(
        self, network: TrainingNetwork, settings: Mapping[str, Any], samples: tuple[int, int], evaluation_samples: int,
        float_accuracy: float | None, known: History | None = None,
    ):  # fmt: skip
        self.network = network
        self.about = (dict(settings), samples, evaluation_samples, float_accuracy)
        self.epochs: list[Epoch] = list(known.epochs) if known else []
        self.losses: list[float] = known.losses.tolist() if known else []
        self.record_steps: list[int] = known.record_steps.tolist() if known else []
        self.record_epochs: list[float] = known.record_epochs.tolist() if known else []
        self.tracks = _tracks(network)
        if known is not None:
            for track, trace in zip(self.tracks, known.grids, strict=True):
                for name in ("scale", "zero_point", "low", "high", "frozen", "flips", "histogram"):
                    setattr(track, name, list(getattr(trace, name)))
        self._codes: dict[str, Tensor] = {}
        self._remember()

    def record(self, step: int, epoch: float) -> None:
        """The grids as they stand after this many steps, at this time in epochs."""
        self.record_steps.append(step)
        self.record_epochs.append(epoch)
        before = self._codes
        self._remember()
        for track in self.tracks:
            low, high = track.grid.ends
            now = {"scale": track.grid.scale, "zero_point": track.grid.zero_point, "low": low, "high": high}
            for name, values in now.items():
                getattr(track, name).append(values.detach().reshape(-1)[track.channels].numpy().copy())
            track.frozen.append(bool(track.grid.frozen))
            if track.role == "weight":
                track.flips.append(float((before[track.layer] != self._codes[track.layer]).float().mean()))
            else:
                track.flips.append(float("nan"))

    def end_epoch(self, row: Epoch) -> None:
        """After the record of its last step."""
        self.epochs.append(row)
        for track in self.tracks:
            if track.role == "weight":
                track.histogram.append(_histogram(self.network.master(track.layer), track.grid))

    def history(self, finished: bool) -> History:
        settings, samples, evaluation_samples, float_accuracy = self.about
        return History(
            settings, samples, evaluation_samples, float_accuracy, tuple(self.epochs),
            np.array(self.losses, np.float64), np.array(self.record_steps, np.int64),
            np.array(self.record_epochs, np.float64), tuple(_trace(t) for t in self.tracks), finished,
        )  # fmt: skip

    def _remember(self) -> None:
        self._codes = {t.layer: self.network.codes(t.layer) for t in self.tracks if t.role == "weight"}


def _tracks(network: TrainingNetwork) -> list[_Track]:
    out, seen = [], set()
    for role, grids in (("weight", network.weights), ("activation", network.activations)):
        for key, grid in grids.items():
            if id(grid) in seen:  # a weight that several layers share
                continue
            seen.add(id(grid))
            count = grid.scale.numel()
            channels = np.unique(np.linspace(0, count - 1, min(count, CHANNELS_KEPT)).round().astype(np.int64))
            out.append(_Track(network.tensor(key, role), role, key, grid, channels))
    return out


def _histogram(weight: Tensor, grid: TrainedGrid) -> np.ndarray:
    """Counts over positions on the grid, in codes, from one below the lowest to one above the highest; what lies beyond
    in the end bins. [B] int32."""
    spans = grid.quant_max - grid.quant_min + 2
    position = grid.positions(weight.detach()).reshape(-1) - (grid.quant_min - 1)
    bins = spans * max(2, BINS // spans)
    index = (position * (bins / spans)).floor().clamp(0, bins - 1).long()
    return torch.bincount(index, minlength=bins).numpy().astype(np.int32)


def _trace(track: _Track) -> GridTrace:
    def stack(values: list[np.ndarray], dtype: Any) -> np.ndarray:
        return np.array(values, dtype).reshape(len(values), -1 if values else 0)

    grid = track.grid
    return GridTrace(
        tensor=track.tensor, role=track.role, layer=track.layer, bits=grid.spec.bits, quant_min=grid.quant_min,
        quant_max=grid.quant_max, count=grid.scale.numel(), channels=track.channels,
        scale=stack(track.scale, np.float32), zero_point=stack(track.zero_point, np.int32),
        low=stack(track.low, np.float32), high=stack(track.high, np.float32), frozen=np.array(track.frozen, bool),
        flips=np.array(track.flips, np.float64),
        histogram=stack(track.histogram, np.int32) if track.histogram else np.zeros((0, 0), np.int32),
    )  # fmt: skip
