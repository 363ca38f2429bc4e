"""From a range to scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig, NonFinite, NotObserved
from qlab.quant.observers import EPS, OBSERVERS, Distribution, Grid
from qlab.quant.stats import TensorStats, stats_of

# Up to here a tensor's values are looked at one by one; larger ones as a histogram of all of them.
EXACT_VALUES = 16_384


@dataclass(frozen=True, eq=False)
class QParams:
    """q = clamp(round(x / scale) + zero_point, quant_min, quant_max);  x' = (q - zero_point) * scale.

    scale float32 (> 0) and zero_point int32: [] per tensor, [C] per channel, [C, K // group_size] per group, where K is
    the number of values behind one channel. axis: the channel dimension, None per tensor.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    quant_min: int
    quant_max: int
    axis: int | None = None
    group_size: int | None = None

    @property
    def levels(self) -> int:
        return self.quant_max - self.quant_min + 1

    @property
    def low(self) -> torch.Tensor:
        """The smallest representable value, shaped like scale."""
        return (self.quant_min - self.zero_point) * self.scale

    @property
    def high(self) -> torch.Tensor:
        """The largest representable value, shaped like scale."""
        return (self.quant_max - self.zero_point) * self.scale

    @property
    def nbytes(self) -> int:
        """Memory held, with what Python adds to two tensors."""
        return self.scale.nbytes + self.zero_point.nbytes + 1024

    @property
    def at_floor(self) -> torch.Tensor:
        """Where the scale is the smallest allowed one (float32 eps), the range being zero or nearly so. Bool."""
        return self.scale <= float(EPS)


def range_to_qparams(
    low: torch.Tensor, high: torch.Tensor, quant_min: int, quant_max: int, symmetric: bool, signed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (float32) and zero point (int32) of the ranges [low, high], any shape; bit for bit torch.ao's.

    See Grid.scale_zero_point for the formulas. An unsigned symmetric grid has its zero at 128 for 0..255 (32,768 for
    0..65,535) and at the middle rounded down for every other range.
    """
    grid = Grid(quant_min, quant_max, symmetric, signed)
    scale, zero_point = grid.scale_zero_point(_numpy(torch.as_tensor(low)), _numpy(torch.as_tensor(high)))
    return torch.from_numpy(np.asarray(scale)), torch.from_numpy(np.asarray(zero_point))


def degenerate_rows(low: Any, high: Any) -> np.ndarray:
    """Rows that held a single value, a dead channel for example: their scale says nothing. [R] -> bool [R]."""
    return np.asarray(low) == np.asarray(high)


def choose_qparams(stats_or_tensor: TensorStats | torch.Tensor, spec: QuantSpec, axis: int = 0) -> QParams:
    """Scale and zero point of a tensor with these statistics, or of this constant tensor.

    scale: [] per tensor, [C] per channel, [C, K // group_size] per group; float32, > 0, finite.
    axis: the channel dimension of a tensor; statistics know their own.
    Raises NotObserved if it never held a value, NonFinite for NaN, Inf or a range beyond float32, InvalidConfig if the
    scheme does not fit. Source: Jacob et al. 2018, eq. 1.
    """
    d, shape, axis_used = _distribution(stats_or_tensor, spec, axis)
    return _observe(d, shape, axis_used, spec, spec.observer, spec.observer_args, _name(stats_or_tensor))


def observer_ranges(stats_or_tensor: TensorStats | torch.Tensor, spec: QuantSpec, axis: int = 0) -> dict[str, QParams]:
    """QParams by every observer that applies to this tensor and scheme, in the order of the registry.

    The spec's observer_args go to the spec's observer; the others take their defaults. Left out are observers that need
    values where only ranges are known, and the average over batches where there are none. Raises as choose_qparams.
    """
    out = {}
    for name, observer in OBSERVERS.items():
        if observer.needs == "batches" and (isinstance(stats_or_tensor, torch.Tensor) or spec.granularity != "tensor"):
            continue
        candidate = spec.replace(observer=name, observer_args=spec.observer_args if name == spec.observer else {})
        if observer.needs == "values" and isinstance(stats_or_tensor, TensorStats) and spec.granularity != "tensor":
            continue
        out[name] = choose_qparams(stats_or_tensor, candidate, axis)
    return out


def dynamic_qparams(x: torch.Tensor, spec: QuantSpec) -> QParams:
    """Per-tensor qparams from this call's own minimum and maximum. Raises NotObserved if empty, NonFinite."""
    if not x.numel():
        raise NotObserved(f"a dynamic range is needed of an empty tensor, shape {list(x.shape)}.")
    low, high = (np.float32(v.item()) for v in torch.aminmax(x.detach()))
    # (high - low) may overflow where both are finite; then the scale has no float32 either.
    with np.errstate(over="ignore"):
        finite = np.isfinite(high - low) and np.isfinite(low)
    if not finite:
        raise NonFinite(f"a dynamic range is needed of values from {low} to {high}.")
    scale, zero_point = Grid(spec.quant_min, spec.quant_max, spec.symmetric, spec.signed).scale_zero_point(low, high)
    return QParams(
        torch.tensor(float(scale)), torch.tensor(int(zero_point), dtype=torch.int32), spec.quant_min, spec.quant_max
    )


def with_range(qp: QParams, spec: QuantSpec, low: float, high: float) -> QParams:
    """The grid laid over low..high; with several scales, each of their ranges cut to it. Raises NonFinite."""
    grid = Grid(spec.quant_min, spec.quant_max, spec.symmetric, spec.signed)
    lows, highs = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if several := qp.scale.ndim > 0:
        # A symmetric grid with one more code below zero was laid over less than it reaches to.
        reach = _numpy(qp.scale) * np.float32(grid.steps / 2)
        own = (-reach, reach) if spec.symmetric else (_numpy(qp.low), _numpy(qp.high))
        lows, highs = np.maximum(own[0], lows), np.minimum(own[1], highs)
    scale, zero_point = grid.scale_zero_point(lows, highs)
    if several:  # what is not cut stays to the last bit
        whole = (lows == own[0]) & (highs == own[1])
        scale = np.where(whole, _numpy(qp.scale), scale)
        zero_point = np.where(whole, qp.zero_point.numpy(), zero_point)
    if not np.all(np.isfinite(scale)):
        raise NonFinite(f"the range {low:g} to {high:g} is too wide for a float32 scale.")
    return replace(qp, scale=torch.from_numpy(np.asarray(scale)), zero_point=torch.from_numpy(np.asarray(zero_point)))


# Output range of ops that have one whatever goes in: (span, share of the codes below zero).
_FIXED = {"sigmoid": (1.0, 0.0), "softmax": (1.0, 0.0), "tanh": (2.0, 0.5)}


def fixed_qparams(op_type: str, spec: QuantSpec) -> QParams:
    """Per-tensor qparams of sigmoid and softmax (0..1) and of tanh (-1..1), known without data.

    scale = span / 2^bits, a power of two; zero_point = quant_min for 0..1 and the middle for -1..1, also for a
    symmetric spec, because the op leaves half of a symmetric grid unused. Raises InvalidConfig for another op.
    Source: torch.ao.quantization default_fixed_qparams_range_0to1, _neg1to1.
    """
    if op_type not in _FIXED:
        raise InvalidConfig(f"{op_type} has no fixed range: those that have are {', '.join(_FIXED)}.")
    span, below = _FIXED[op_type]
    zero_point = (spec.quant_min + spec.quant_max + 1) // 2 if below else spec.quant_min
    return QParams(
        torch.tensor(span / 2**spec.bits), torch.tensor(zero_point, dtype=torch.int32), spec.quant_min, spec.quant_max
    )


def _name(stats_or_tensor: TensorStats | torch.Tensor) -> str:
    return stats_or_tensor.name if isinstance(stats_or_tensor, TensorStats) else "the tensor"


def _numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().to(torch.float32).cpu().numpy()


def _observe(
    d: Distribution,
    shape: tuple[int, ...],
    axis: int | None,
    spec: QuantSpec,
    observer_name: str,
    args: Any,
    name: str,
) -> QParams:
    observer = OBSERVERS[observer_name]
    if observer.needs == "values" and d.values is None:
        raise InvalidConfig(
            f"{name}: per-channel activations know only their minimum and maximum, which {observer_name} cannot use: "
            "choose min_max or a per_tensor scheme."
        )
    if observer.needs == "batches" and d.values is None and d.batch_minimum is None:
        raise InvalidConfig(
            f"{name}: per-channel activations know only their minimum and maximum over all batches, "
            "which leaves nothing to average: choose min_max or a per_tensor scheme."
        )
    grid = Grid(spec.quant_min, spec.quant_max, spec.symmetric, spec.signed)
    low, high = observer.rule(d, grid, **observer.settings(args))
    scale, zero_point = grid.scale_zero_point(low, high)
    if not np.all(np.isfinite(scale)):
        raise NonFinite(f"{name}: its range, {d.minimum.min()} to {d.maximum.max()}, is too wide for a float32 scale.")
    return QParams(
        torch.from_numpy(scale.reshape(shape)),
        torch.from_numpy(zero_point.reshape(shape)),
        spec.quant_min,
        spec.quant_max,
        axis,
        spec.group_size,
    )


def _distribution(
    stats_or_tensor: TensorStats | torch.Tensor, spec: QuantSpec, axis: int
) -> tuple[Distribution, tuple[int, ...], int | None]:
    """The rows an observer looks at, the shape of the scale they become, and the channel axis."""
    if isinstance(stats_or_tensor, TensorStats):
        stats = stats_or_tensor
        if spec.granularity == "group":
            raise InvalidConfig(f"{stats.name} is an activation: groups are for weights, choose a per_tensor scheme.")
        d = stats.distribution(spec.granularity, values=OBSERVERS[spec.observer].needs == "values")
        if spec.granularity == "channel":
            return d, (len(d.minimum),), stats.channel_axis
        return d, (), None
    x = stats_or_tensor.detach()
    if not x.numel():
        raise NotObserved(f"a range is needed of an empty tensor, shape {list(x.shape)}.")
    if spec.granularity == "tensor":
        if x.numel() > EXACT_VALUES:
            d = stats_of(x, "the tensor").distribution("tensor", values=OBSERVERS[spec.observer].needs == "values")
            return d, (), None
        return _rows(x.reshape(1, -1)), (), None
    if not -x.ndim <= axis < x.ndim:
        raise InvalidConfig(f"the tensor has {x.ndim} dimensions: there is no axis {axis}.")
    axis %= x.ndim
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    if spec.granularity == "channel":
        return _rows(rows), (len(rows),), axis
    assert spec.group_size is not None
    behind = rows.shape[1]
    if behind % spec.group_size:
        fitting = [g for g in range(2, behind + 1) if behind % g == 0]
        raise InvalidConfig(
            f"a channel has {behind} values, which do not divide into groups of {spec.group_size}: "
            f"group sizes that fit are {', '.join(map(str, fitting)) or 'none'}."
        )
    return _rows(rows.reshape(-1, spec.group_size)), (len(rows), behind // spec.group_size), axis


def _rows(rows: torch.Tensor) -> Distribution:
    rows = rows.to(torch.float32)
    low, high = rows.amin(1), rows.amax(1)
    if not bool(torch.isfinite(low).all()) or not bool(torch.isfinite(high).all()):
        raise NonFinite("the tensor holds NaN or Inf: it cannot be quantized.")
    return Distribution(_numpy(low), _numpy(high), _numpy(rows))
