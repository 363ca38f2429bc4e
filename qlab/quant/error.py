"""What a choice of qparams does to a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.errors import DataMismatch, InvalidConfig, NonFinite
from qlab.quant.fake_quant import _broadcast
from qlab.quant.qparams import QParams
from qlab.quant.stats import TensorStats

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class QuantError:
    """Energies are sums of squares over the values (for statistics: over all values, estimated from the sampled).

    signal = sum x², noise = sum (x - x')² = roundoff + clip, sqnr = 10 log10(signal / noise) dB, inf when exact.
    roundoff: from values whose code lies within the range; clip: from those beyond it. clipped_share: the part of the
    values that are beyond; clipped_energy_share: the part of the signal they carry.
    levels_used: different codes that occur, of `levels`.
    """

    signal: float
    roundoff: float
    clip: float
    clipped_share: float
    clipped_energy_share: float
    levels_used: int
    levels: int

    @property
    def noise(self) -> float:
        return self.roundoff + self.clip

    @property
    def sqnr(self) -> float:
        return _decibel(self.signal, self.noise)


@dataclass(frozen=True)
class ErrorByValue:
    """Error energy over the value axis: edges [bins + 1]; count, roundoff and clip [bins] of the values in each bin."""

    edges: Doubles
    count: NDArray[Any]
    roundoff: NDArray[Any]
    clip: NDArray[Any]


def quantization_error(stats_or_tensor: TensorStats | torch.Tensor, qp: QParams) -> QuantError:
    """The error of quantize-dequantize with qp. A tensor is measured; statistics are taken from their histogram.

    In the histogram values are taken as spread evenly within a bucket (1,024 an octave), so a tensor of a few values
    that the grid hits exactly shows a small error rather than none, and levels_used may count codes between them.
    Raises InvalidConfig for per-channel qparams with statistics, which do not know channels apart; NonFinite.
    """
    parts = _parts(stats_or_tensor, qp)
    signal, roundoff, clip = float(parts.energy.sum()), float(parts.roundoff.sum()), float(parts.clip.sum())
    total = float(parts.count.sum())
    return QuantError(
        signal=signal,
        roundoff=roundoff,
        clip=clip,
        clipped_share=float(parts.clipped.sum()) / total,
        clipped_energy_share=float(parts.clipped_energy.sum()) / signal if signal else 0.0,
        levels_used=_levels_used(parts, qp),
        levels=qp.levels,
    )


def error_by_value(stats_or_tensor: TensorStats | torch.Tensor, qp: QParams, bins: int = 100) -> ErrorByValue:
    """Where on the value axis the error arises: `bins` equal bins from the smallest to the largest value."""
    parts = _parts(stats_or_tensor, qp)
    middle = (parts.lower + parts.upper) / 2
    low, high = float(parts.lower.min()), float(parts.upper.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    at = np.clip(((middle - low) * (bins / (high - low))).astype(np.int64), 0, bins - 1)
    count, roundoff, clip = (np.bincount(at, w, bins) for w in (parts.count, parts.roundoff, parts.clip))
    return ErrorByValue(edges, count, roundoff, clip)


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    """10 log10(sum reference² / sum (reference - other)²) dB; inf when equal. Raises DataMismatch, NonFinite."""
    if reference.shape != other.shape:
        raise DataMismatch(f"shapes {list(reference.shape)} and {list(other.shape)} cannot be compared.")
    # Squares of float32 are summed in float64: a long float32 sum loses the small noise of a good quantization.
    signal = float(reference.detach().double().square().sum())
    noise = float((reference.detach().double() - other.detach().double()).square().sum())
    if not math.isfinite(signal) or not math.isfinite(noise):
        raise NonFinite("a tensor that is compared holds NaN or Inf.")
    return _decibel(signal, noise)


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


@dataclass(frozen=True)
class _Parts:
    """Per value or bucket, flat: where it lies, how many values, energy, and what quantization does. Codes centred."""

    lower: Any
    upper: Any
    count: Doubles
    energy: Doubles
    roundoff: Doubles
    clip: Doubles
    clipped: Doubles
    clipped_energy: Doubles
    first_code: Doubles
    last_code: Doubles


def _parts(stats_or_tensor: TensorStats | torch.Tensor, qp: QParams) -> _Parts:
    if isinstance(stats_or_tensor, TensorStats):
        return _parts_of_histogram(stats_or_tensor, qp)
    return _parts_of_tensor(stats_or_tensor.detach(), qp)


def _parts_of_tensor(x: torch.Tensor, qp: QParams) -> _Parts:
    if not x.numel():
        raise DataMismatch(f"an empty tensor, shape {list(x.shape)}, has no quantization error.")
    scale, zero_point, shape = _broadcast(x, qp)
    x = x.to(torch.float32).reshape(shape)
    low, high = (qp.quant_min - zero_point).to(torch.float32), (qp.quant_max - zero_point).to(torch.float32)
    code = torch.round(x * scale.reciprocal())
    kept = torch.clamp(code, low, high)
    clipped = (code != kept).reshape(-1).numpy()
    noise = (x - kept * scale).reshape(-1).numpy().astype(np.float64) ** 2
    values = x.reshape(-1).numpy().astype(np.float64)
    energy = values * values
    if not np.isfinite(energy.sum()):
        raise NonFinite("the tensor holds NaN or Inf: its quantization error is not a number.")
    absolute = (kept + zero_point).reshape(-1).numpy()
    return _Parts(
        values,
        values,
        np.ones(len(values)),
        energy,
        np.where(clipped, 0.0, noise),
        np.where(clipped, noise, 0.0),
        clipped.astype(np.float64),
        np.where(clipped, energy, 0.0),
        absolute,
        absolute,
    )


def _parts_of_histogram(stats: TensorStats, qp: QParams) -> _Parts:
    """Integrals over each bucket in closed form; see observers/noise.py for G."""
    if qp.scale.ndim:
        raise InvalidConfig(
            f"{stats.name}: statistics do not know the values of one channel from another's; "
            "measure per-channel qparams on the tensor itself."
        )
    d = stats.distribution("tensor")
    assert d.values is not None
    assert d.counts is not None
    assert d.widths is not None
    values, widths, count = d.values[0].astype(np.float64), d.widths[0].astype(np.float64), d.counts[0]
    lower, upper = values - widths / 2, values + widths / 2
    scale, zero_point = float(qp.scale), int(qp.zero_point)
    low, high = float(qp.quant_min - zero_point), float(qp.quant_max - zero_point)
    u0, u1 = lower / scale, upper / scale
    point = widths <= 1e-5 * np.abs(values)

    def antiderivative(u: Doubles) -> Doubles:
        k = np.clip(np.rint(u), low, high)
        d = u - k
        return k / 12 + d * d * d / 3

    span = np.where(point, 1.0, u1 - u0)
    mean = (antiderivative(u1) - antiderivative(u0)) / span
    at = u0[point]
    mean[point] = (at - np.clip(np.rint(at), low, high)) ** 2
    weight = count * scale * scale
    energy = count * (lower * lower + lower * upper + upper * upper) / 3
    rounding, inside, kept_energy = mean.copy(), np.ones(len(mean)), energy.copy()
    # Few buckets reach beyond the grid: of these, the part whose codes still round into it.
    cut = (u0 < low - 0.5) | (u1 > high + 0.5)
    if cut.any():
        v0, v1 = u0[cut], u1[cut]
        c0, c1 = np.clip(v0, low - 0.5, high + 0.5), np.clip(v1, low - 0.5, high + 0.5)
        inside[cut] = np.where(point[cut], 0.0, (c1 - c0) / span[cut])
        rounding[cut] = np.where(point[cut], 0.0, (antiderivative(c1) - antiderivative(c0)) / span[cut])
        cubes = (c1 * c1 * c1 - c0 * c0 * c0) / (3 * span[cut])
        kept_energy[cut] = np.where(point[cut], 0.0, count[cut] * cubes * scale * scale)
    return _Parts(
        lower,
        upper,
        count,
        energy,
        np.maximum(weight * rounding, 0.0),
        np.maximum(weight * (mean - rounding), 0.0),
        count * (1.0 - inside),
        np.clip(energy - kept_energy, 0.0, energy),
        np.clip(np.rint(u0), low, high) + zero_point,
        np.clip(np.rint(u1), low, high) + zero_point,
    )


def _levels_used(parts: _Parts, qp: QParams) -> int:
    """Codes hit by at least one value. Of a bucket wider than a step every code counts as hit."""
    first = (parts.first_code - qp.quant_min).astype(np.int64)
    if parts.first_code is parts.last_code:
        return int(np.count_nonzero(np.bincount(first)))
    last = (parts.last_code - qp.quant_min).astype(np.int64)
    opened = np.bincount(first, minlength=qp.levels + 1) - np.bincount(last + 1, minlength=qp.levels + 1)
    return min(int(np.count_nonzero(np.cumsum(opened)[:-1])), math.ceil(float(parts.count.sum())))
