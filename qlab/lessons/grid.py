"""One number on a grid: where it lands, how far off, and what a grid that misses zero does to real zeros."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.config import QuantSpec
from qlab.lessons.samples import sample
from qlab.quant.fake_quant import dequantize, quantize
from qlab.quant.qparams import QParams, choose_qparams

RANGES = {"centred": (-1.0, 1.0), "relu": (0.0, 6.0), "shifted": (-0.7, 2.9)}
SAMPLE, TENSOR = "conv_digits", "block1.relu"  # its ReLU gives the zeros of the second experiment
MOST = 2_001  # values of the range that are tried


@dataclass(frozen=True)
class Landing:
    """A float value and the grid point it is moved to. error = back - value; in_steps: its size in scales."""

    value: float
    code: int
    back: float
    error: float
    in_steps: float
    clipped: bool


@dataclass(frozen=True)
class OnGrid:
    """A grid over a range, one value on it, and the worst of many values inside.

    points [levels]: the values of all codes. largest: the largest error inside the range, in scales.
    """

    qparams: QParams
    points: NDArray[np.float64]
    codes: NDArray[np.int64]
    landing: Landing
    largest: float

    @property
    def scale(self) -> float:
        return float(self.qparams.scale)

    @property
    def zero_point(self) -> int:
        return int(self.qparams.zero_point)


def on_grid(value: float, low: float, high: float, bits: int) -> OnGrid:
    """Where one value lands on the affine grid of this many bits over a range. Source: Jacob et al. 2018, eq. 1."""
    qparams = choose_qparams(torch.tensor([low, high]), QuantSpec(bits=bits, qscheme="per_tensor_affine"))
    codes = torch.arange(qparams.quant_min, qparams.quant_max + 1, dtype=torch.int32)
    points = dequantize(codes, qparams).double().numpy()
    scale = float(qparams.scale)
    code = quantize(torch.tensor([value]), qparams)
    back = float(dequantize(code, qparams))
    outside = value < points[0] - scale / 2 or value > points[-1] + scale / 2
    landing = Landing(value, int(code), back, back - value, abs(back - value) / scale, outside)
    tried = torch.linspace(float(points[0]), float(points[-1]), MOST)
    largest = float((dequantize(quantize(tried, qparams), qparams) - tried).abs().max()) / scale
    return OnGrid(qparams, points, codes.numpy().astype(np.int64), landing, largest)


@dataclass(frozen=True)
class Zeros:
    """The zeros a ReLU really gives, on two grids of the same bits.

    share: of the values that are exactly 0. moved: what the grid that starts at the smallest value makes of 0; kept:
    what the engine's grid makes of it. sum_moved, sum_kept: what all zeros of one sample add up to on each.
    """

    share: float
    each: int
    scale: float
    moved: float
    kept: float

    @property
    def sum_moved(self) -> float:
        return self.each * self.moved

    @property
    def sum_kept(self) -> float:
        return self.each * self.kept


@lru_cache(maxsize=64)
def zeros(low: float, bits: int) -> Zeros:
    """What becomes of a ReLU's zeros if the grid begins at `low` (≤ 0) instead of holding zero exactly."""
    values = sample(SAMPLE).values(TENSOR)
    high = float(values.max())
    scale = (high - low) / (2**bits - 1)
    moved = low + round((0.0 - low) / scale) * scale
    qparams = choose_qparams(torch.tensor([low, high]), QuantSpec(bits=bits, qscheme="per_tensor_affine"))
    kept = float(dequantize(quantize(torch.zeros(1), qparams), qparams))
    none = int((values == 0).sum())
    return Zeros(none / values.numel(), none // len(values), scale, moved, kept)
