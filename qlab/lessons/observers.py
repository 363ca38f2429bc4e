"""Outliers and the range of each observer; ranges from few samples, held against all the data they never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.calibration import calibrate
from qlab.config import QuantSpec
from qlab.lessons.samples import sample
from qlab.plots.bins import Window
from qlab.plots.distribution import ErrorByValue
from qlab.plots.study import Study, Values, error_in, study, values_of
from qlab.quant.error import QuantError, quantization_error
from qlab.quant.qparams import QParams, choose_qparams
from qlab.quant.stats import TensorStats

OBSERVERS = ("min_max", "percentile", "mse", "entropy")  # the average over batches has no batches to average here
PERCENTILE = 99.9  # of the percentile observer, until another is chosen
BITS = range(2, 9)

SAMPLE, WEIGHT = "conv_digits", "block3.conv.weight"
SPREAD = 0.15  # the outliers do not all lie at one value


@dataclass(frozen=True)
class Ranged:
    """What one observer makes of the values. error: of all values; ordinary: of those that are not outliers."""

    observer: str
    qparams: QParams
    error: QuantError
    ordinary: QuantError

    @property
    def low(self) -> float:
        return float(self.qparams.low)

    @property
    def high(self) -> float:
        return float(self.qparams.high)


@dataclass(frozen=True)
class Tail:
    """Real weights, some of which were moved far out. values [n] float32; the first `outliers` of them are those.

    deviation: the standard deviation of the weights as they were.
    """

    values: torch.Tensor
    outliers: int
    deviation: float

    @property
    def ordinary(self) -> torch.Tensor:
        return self.values[self.outliers :]


@lru_cache(maxsize=32)
def tail(outliers: int, distance: float) -> Tail:
    """Weights of the sample network, the first `outliers` moved to about ± distance standard deviations, in turns."""
    values = sample(SAMPLE).weights[WEIGHT].flatten().clone()
    deviation = float(values.std())
    if outliers:
        sides = torch.tensor([1.0, -1.0]).repeat(outliers)[:outliers]
        near = 1 - SPREAD * torch.linspace(0, 1, outliers)
        values[:outliers] = sides * near * distance * deviation
    return Tail(values, outliers, deviation)


def spec(observer: str, bits: int, percentile: float = PERCENTILE) -> QuantSpec:
    """An affine grid for the whole tensor, ranged by this observer."""
    args = {"percentile": percentile} if observer == "percentile" else {}
    return QuantSpec(bits=bits, qscheme="per_tensor_affine", observer=observer, observer_args=args)


@lru_cache(maxsize=256)
def ranged(outliers: int, distance: float, bits: int, percentile: float = PERCENTILE) -> Mapping[str, Ranged]:
    """Every observer on the same values, by name."""
    found = tail(outliers, distance)
    out = {}
    for name in OBSERVERS:
        qparams = choose_qparams(found.values, spec(name, bits, percentile))
        parts = (quantization_error(part, qparams) for part in (found.values, found.ordinary))
        out[name] = Ranged(name, qparams, *parts)
    return out


@dataclass(frozen=True)
class Looked:
    """What the picture of one observer needs: the study of the values under it, the values, and where the error is."""

    study: Study
    values: Values
    window: Window
    error: ErrorByValue


@lru_cache(maxsize=128)
def looked(observer: str, outliers: int, distance: float, bits: int, percentile: float = PERCENTILE) -> Looked:
    """The values under this observer, for `plots.distribution`; drawn to the farthest of them."""
    values = tail(outliers, distance).values
    found = study(values, spec(observer, bits, percentile))
    shown = values_of(values)
    seen = shown.window(found.ranges, "all")
    return Looked(found, shown, seen, error_in(values, found, seen))


# --- how much data a calibration needs --------------------------------------------------------------------------------

TENSORS = {"classifier": "output of the network", "block4.relu": "last ReLU", "block1.relu": "first ReLU"}
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
DRAWS = 4
FEW_BITS = 8


@dataclass(frozen=True)
class Reach:
    """Ranges of one observer by how many samples it saw. low, high, clipped, sqnr [len(COUNTS)].

    clipped: share 0..1 of the evaluation part's values that the grid clips; sqnr: of that part, in dB.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    clipped: NDArray[np.float64]
    sqnr: NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """A tensor calibrated on more and more samples. minimum, maximum: of the evaluation part."""

    by_observer: Mapping[str, Reach]
    minimum: float
    maximum: float
    evaluation: int


@lru_cache(maxsize=1)
def _evaluated() -> Mapping[str, TensorStats]:
    """Statistics of the evaluation part, which no range here was taken from."""
    found = sample(SAMPLE)
    seen = calibrate(found.model, found.data.evaluation, batch_size=250)
    return {name: seen[name] for name in TENSORS}


@lru_cache(maxsize=DRAWS)
def _grown(draw: int) -> Mapping[str, tuple[TensorStats, ...]]:
    """Tensor -> its statistics over the first 1, 2, 4, … samples of the calibration part in a shuffled order.

    Each step merges what came new, which gives exactly what one calibration over all of them would give.
    """
    found = sample(SAMPLE)
    part = found.data.calibration
    order = np.random.default_rng(draw).permutation(len(part))
    steps: dict[str, list[TensorStats]] = {name: [] for name in TENSORS}
    done = 0
    for count in COUNTS:
        new = calibrate(found.model, part.subset(order[done:count]))
        for name, grown in steps.items():
            grown.append(grown[-1].merge(new[name]) if grown else new[name])
        done = count
    return {name: tuple(grown) for name, grown in steps.items()}


@lru_cache(maxsize=len(TENSORS) * DRAWS)
def learned(tensor: str, draw: int) -> Learned:
    """The ranges of all observers for a tensor of the sample network. draw: 1 to DRAWS, which samples come first."""
    unseen = _evaluated()[tensor]
    by_observer = {}
    for name in OBSERVERS:
        grids = [choose_qparams(stats, spec(name, FEW_BITS)) for stats in _grown(draw)[tensor]]
        errors = [quantization_error(unseen, qparams) for qparams in grids]
        by_observer[name] = Reach(
            np.array([float(qparams.low) for qparams in grids]), np.array([float(qparams.high) for qparams in grids]),
            np.array([error.clipped_share for error in errors]), np.array([error.sqnr for error in errors]),
        )  # fmt: skip
    return Learned(by_observer, unseen.minimum, unseen.maximum, len(sample(SAMPLE).data.evaluation))


def prepare() -> None:
    """All calibrations at once, so that another tensor or draw answers quickly: two seconds the first time."""
    _evaluated()
    for draw in range(1, DRAWS + 1):
        _grown(draw)


@lru_cache(maxsize=len(TENSORS))
def clipped_early(tensor: str) -> tuple[float, ...]:
    """Share 0..1 of the unseen values that min_max clips after one sample, for each draw."""
    unseen = _evaluated()[tensor]
    first = (_grown(draw)[tensor][0] for draw in range(1, DRAWS + 1))
    return tuple(
        quantization_error(unseen, choose_qparams(stats, spec("min_max", FEW_BITS))).clipped_share for stats in first
    )
