"""What the distribution picture shows of one tensor, computed by the engine: no model runs here.

A tensor is either a constant (a weight) or the statistics of a calibration (an activation). Where a scheme gives a
scale to each channel, one channel can be looked at on its own; of statistics only the ranges of the channels are known.
A range that was set by hand stands beside those of the observers, and is then the chosen one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig
from qlab.plots.bins import Bins, Window, Zoom, spread, window
from qlab.plots.channels import Channels
from qlab.plots.distribution import Bracket, Clipped, ErrorByValue, Grid
from qlab.quant.error import QuantError, error_by_value, quantization_error
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import QParams, choose_qparams, observer_ranges, with_range
from qlab.quant.stats import TensorStats

Doubles = NDArray[np.float64]
Tensor = torch.Tensor | TensorStats

Ends = tuple[float, float]

BY_HAND = "by hand"  # stands in the place of an observer's name
BULK = 0.001  # share of the values that "the bulk" leaves out on either side
# error_by_value counts on equal bins over the whole axis; this many at most keep a far outlier from taking the memory.
FINEST_ERROR_BINS = 200_000


@dataclass(frozen=True)
class Line:
    """What one observer gives for what is looked at. scale, zero_point, low, high: [scales], one or many.

    error: None where it cannot be known (statistics under a scale for each channel).
    """

    observer: str
    scale: Doubles
    zero_point: NDArray[np.int64]
    low: Doubles
    high: Doubles
    error: QuantError | None

    @property
    def sqnr(self) -> float | None:
        return None if self.error is None else self.error.sqnr

    def bracket(self, chosen: str) -> Bracket:
        return Bracket(self.observer, float(self.low.min()), float(self.high.max()), self.sqnr, self.observer == chosen)


@dataclass(frozen=True)
class Study:
    """Everything about one tensor, or one channel of it, under one spec. lines: by observer, in registry order.

    grid and level_counts [levels]: None where there is more than one grid. qparams: of what is chosen, for the whole
    tensor. ends: the range that was set by hand; None where the spec's observer gives it.
    """

    spec: QuantSpec
    lines: Mapping[str, Line]
    clipped: Clipped
    grid: Grid | None
    level_counts: Doubles | None
    qparams: QParams
    ends: Ends | None = None

    @property
    def chosen(self) -> Line:
        return self.lines[self.spec.observer if self.ends is None else BY_HAND]

    @property
    def observed(self) -> Line:
        """What the spec's observer gives."""
        return self.lines[self.spec.observer]

    @property
    def brackets(self) -> list[Bracket]:
        return [line.bracket(self.chosen.observer) for line in self.lines.values()]

    @property
    def ranges(self) -> Doubles:
        """[observers, 2]. Without that set by hand: a picture fitted to it would move under the hand that drags."""
        return np.array([[b.low, b.high] for b in self.brackets if b.observer != BY_HAND])


@dataclass(frozen=True)
class Values:
    """The values that are looked at, as ascending buckets; single values have no width.

    zeros: how many are exactly 0, count: how many there are. exact: each value is known, so all counts are whole.
    """

    lower: Doubles
    upper: Doubles
    counts: Doubles
    zeros: float
    exact: bool

    @property
    def count(self) -> float:
        return float(self.counts.sum())

    @property
    def minimum(self) -> float:
        return float(self.lower[0])

    @property
    def maximum(self) -> float:
        return float(self.upper[-1])

    @property
    def bulk(self) -> tuple[float, float]:
        """The ends between which all but a thousandth of the values lies, on either side."""
        reached = np.cumsum(self.counts)
        reached /= reached[-1]
        first, last = (int(np.searchsorted(reached, share)) for share in (BULK, 1 - BULK))
        return float(self.lower[first]), float(self.upper[min(last, len(reached) - 1)])

    def window(self, ranges: Doubles, zoom: Zoom = "auto") -> Window:
        # How finely to draw follows from how many values make the shape: a spike of zeros is one value, many times.
        return window(self.minimum, self.maximum, self.bulk, ranges, zoom, max(self.count - self.zeros, 1.0))

    def bins(self, seen: Window) -> Bins:
        return spread(self.lower, self.upper, self.counts, seen.edges)


def channel_axis(tensor: Tensor, axis: int = 0) -> int | None:
    """The axis of the channels: the one given for a constant, its own for statistics; None where there is none."""
    if isinstance(tensor, TensorStats):
        return tensor.channel_axis
    return axis if tensor.ndim > 1 else None


def values_of(tensor: Tensor, axis: int = 0, channel: int | None = None) -> Values:
    """The values of the tensor, or of one channel of a constant. Raises InvalidConfig for a channel of statistics."""
    if isinstance(tensor, TensorStats):
        if channel is not None:
            raise InvalidConfig(f"{tensor.name}: a calibration keeps the range of each channel, not its values.")
        d = tensor.distribution("tensor")
        assert d.values is not None
        assert d.counts is not None
        assert d.widths is not None
        middle, half = d.values[0].astype(np.float64), d.widths[0].astype(np.float64) / 2
        zeros = tensor.zeros * (tensor.count / tensor.sampled)
        return Values(middle - half, middle + half, d.counts[0], zeros, exact=False)
    x = tensor.detach() if channel is None else tensor.detach().select(axis, channel)
    values, counts = np.unique(_flat(x.to(torch.float32)), return_counts=True)
    zeros = float(counts[values == 0].sum())
    return Values(values, values, counts.astype(np.float64), zeros, exact=True)


def study(tensor: Tensor, spec: QuantSpec, axis: int = 0, channel: int | None = None) -> Study:
    """What every observer gives for this tensor and scheme, and what the spec's own does to it.

    axis: the channel dimension of a constant. channel: look at this channel, under the scale that the scheme gives it.
    Raises what choose_qparams raises.
    """
    every = observer_ranges(tensor, spec, axis)
    if spec.observer not in every:
        # The engine's own words on why this observer cannot be had here.
        every[spec.observer] = choose_qparams(tensor, spec, axis)
    part, cut = _part(tensor, axis, channel)
    lines = {name: _line(name, part, cut(qp)) for name, qp in every.items()}
    return _study(spec, lines, lines[spec.observer], part, cut(every[spec.observer]), every[spec.observer], None)


def by_hand(found: Study, tensor: Tensor, ends: Ends, axis: int = 0, channel: int | None = None) -> Study:
    """The study with a range that was set by hand as the chosen one, and last of the lines.

    found: of the same tensor and channel, without such a range. With several scales, the range of each is cut to ends.
    Raises NonFinite for a range too wide for float32.
    """
    part, cut = _part(tensor, axis, channel)
    whole = with_range(found.qparams, found.spec, *ends)
    qp = cut(whole)
    line = _line(BY_HAND, part, qp)
    return _study(found.spec, {**found.lines, BY_HAND: line}, line, part, qp, whole, ends)


def _study(
    spec: QuantSpec, lines: Mapping[str, Line], chosen: Line, part: Tensor, qp: QParams, whole: QParams,
    ends: Ends | None,
) -> Study:  # fmt: skip
    counts = _level_counts(part, qp)
    grid = None
    if counts is not None:
        levels = (np.arange(qp.quant_min, qp.quant_max + 1, dtype=np.float64) - int(qp.zero_point)) * float(qp.scale)
        grid = Grid(levels, counts > 0)
    return Study(spec, lines, _clipped(part, qp, chosen.error), grid, counts, whole, ends)


def error_in(tensor: Tensor, found: Study, seen: Window, axis: int = 0, channel: int | None = None) -> ErrorByValue:
    """The squared error of what is chosen on the bins of the picture, and what lies outside of it."""
    part, cut = _part(tensor, axis, channel)
    qp = cut(found.qparams)
    extent = _extent(part)
    share = max((seen.high - seen.low) / max(extent, 1e-30), 1e-12)
    fine = error_by_value(part, qp, bins=int(np.clip(4 * seen.bins / share, 1, FINEST_ERROR_BINS)))
    lower, upper = fine.edges[:-1], fine.edges[1:]
    ends = np.array([min(lower[0], seen.low) - 1.0, *seen.edges, max(upper[-1], seen.high) + 1.0])
    roundoff, clip = (spread(lower, upper, energy, ends).counts for energy in (fine.roundoff, fine.clip))
    return ErrorByValue(
        seen.edges, roundoff[1:-1], clip[1:-1], below=float(roundoff[0] + clip[0]), above=float(roundoff[-1] + clip[-1])
    )


def dequantized_bins(
    tensor: Tensor, found: Study, seen: Window, axis: int = 0, channel: int | None = None
) -> Bins | None:
    """The values after quantization, on the bins of the picture; None where they cannot be known.

    On one grid each level's values are spread over its step, so that the line can be compared with the float one.
    """
    if found.grid is not None and found.level_counts is not None:
        half = found.grid.step / 2
        return spread(found.grid.levels - half, found.grid.levels + half, found.level_counts, seen.edges)
    if isinstance(tensor, TensorStats):
        return None
    part, cut = _part(tensor, axis, channel)
    assert isinstance(part, torch.Tensor)
    values = fake_quantize(part, cut(found.qparams)).numpy().ravel()
    return Bins(seen.edges, np.histogram(values, seen.edges)[0].astype(np.float64))


def channels_of(tensor: Tensor, spec: QuantSpec, axis: int = 0, ends: Ends | None = None) -> Channels | None:
    """The ranges of the channels, and for a constant what the scheme does to each; None without channels.

    ends: a range that was set by hand.
    """
    if isinstance(tensor, TensorStats):
        if tensor.channel_minimum is None or tensor.channel_maximum is None:
            return None
        low, high = tensor.channel_minimum.astype(np.float64), tensor.channel_maximum.astype(np.float64)
        return Channels(low, high, sharing=spec.granularity == "tensor")
    if channel_axis(tensor, axis) is None:
        return None
    rows = tensor.detach().to(torch.float32).movedim(axis, 0).flatten(1).numpy().astype(np.float64)
    own = None
    qp = choose_qparams(tensor, spec, axis)
    if spec.granularity == "tensor":
        alone = spec.replace(qscheme=spec.qscheme.replace("tensor", "channel"))
        own = _row_sqnr(tensor, rows, choose_qparams(tensor, alone, axis), axis)
    return Channels(
        rows.min(axis=1),
        rows.max(axis=1),
        _row_sqnr(tensor, rows, qp if ends is None else with_range(qp, spec, *ends), axis),
        own,
        sharing=own is not None,
    )


def _row_sqnr(tensor: torch.Tensor, rows: Doubles, qp: QParams, axis: int) -> Doubles:
    """[C] dB; infinite for a channel without error."""
    after = fake_quantize(tensor.detach(), qp).movedim(axis, 0).flatten(1).numpy().astype(np.float64)
    signal, noise = np.square(rows).sum(axis=1), np.square(rows - after).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise == 0, np.inf, 10 * np.log10(signal / noise))


def _part(tensor: Tensor, axis: int, channel: int | None) -> tuple[Tensor, Callable[[QParams], QParams]]:
    """What is looked at, and how qparams of the whole are cut down to it."""
    if channel is None:
        return tensor, lambda qp: qp
    if isinstance(tensor, TensorStats):
        raise InvalidConfig(f"{tensor.name}: a calibration keeps the range of each channel, not its values.")

    def cut(qp: QParams) -> QParams:
        if qp.scale.ndim == 0:
            return qp
        if qp.scale.ndim == 1:
            return replace(qp, scale=qp.scale[channel], zero_point=qp.zero_point[channel], axis=None)
        keep = slice(channel, channel + 1)
        return replace(qp, scale=qp.scale[keep], zero_point=qp.zero_point[keep], axis=0)

    # Kept as one row, so that the groups of a channel find the axis they belong to.
    return tensor.detach().select(axis, channel).unsqueeze(0), cut


def _line(name: str, part: Tensor, qp: QParams) -> Line:
    known = isinstance(part, torch.Tensor) or qp.scale.ndim == 0
    return Line(
        name,
        scale=_flat(qp.scale),
        zero_point=_flat(qp.zero_point).astype(np.int64),
        low=_flat(qp.low),
        high=_flat(qp.high),
        error=quantization_error(part, qp) if known else None,
    )


def _flat(t: torch.Tensor) -> Doubles:
    """[scales], also for a single one."""
    return t.numpy().astype(np.float64).reshape(-1)


def _rows(part: torch.Tensor, qp: QParams) -> Doubles:
    """The values with one row for each scale: [scales, n]."""
    x = part.detach().to(torch.float32)
    if qp.scale.ndim == 1:
        x = x.movedim(qp.axis or 0, 0)
    return x.reshape(qp.scale.numel(), -1).numpy().astype(np.float64)


def _clipped(part: Tensor, qp: QParams, error: QuantError | None) -> Clipped:
    """The engine's clipped share, told apart by side: what rounds to a code beyond the ends."""
    if error is None or error.clipped_share == 0:
        return Clipped(0.0, 0.0)
    low, high, half = (_flat(t)[:, None] for t in (qp.low, qp.high, qp.scale / 2))
    if isinstance(part, TensorStats):
        values = values_of(part)
        first, last = float((low - half).item()), float((high + half).item())
        ends = np.array([min(values.minimum, first) - 1, first, last, max(values.maximum, last) + 1])
        below, _, above = spread(values.lower, values.upper, values.counts, ends).counts
    else:
        rows = _rows(part, qp)
        below, above = float((rows < low - half).sum()), float((rows > high + half).sum())
    # Half a step is a tie that rounding sends either way: the total is the engine's, only the sides are counted here.
    both = below + above
    return (
        Clipped(error.clipped_share * below / both, error.clipped_share * above / both) if both else Clipped(0.0, 0.0)
    )


def _level_counts(part: Tensor, qp: QParams) -> Doubles | None:
    """How many values each level takes, [levels]; None where there is more than one grid."""
    if qp.scale.ndim:
        return None
    scale, zero_point = float(qp.scale), int(qp.zero_point)
    if isinstance(part, torch.Tensor):
        codes = torch.round(part.detach().to(torch.float32) * qp.scale.reciprocal()) + zero_point
        codes = codes.clamp(qp.quant_min, qp.quant_max).to(torch.int64) - qp.quant_min
        return torch.bincount(codes.ravel(), minlength=qp.levels).numpy().astype(np.float64)
    values = values_of(part)
    edges = (np.arange(qp.quant_min, qp.quant_max + 2, dtype=np.float64) - 0.5 - zero_point) * scale
    # The first and the last level take all that lies beyond them.
    edges[0], edges[-1] = min(edges[0], values.minimum - scale), max(edges[-1], values.maximum + scale)
    return spread(values.lower, values.upper, values.counts, edges).counts


def _extent(part: Tensor) -> float:
    if isinstance(part, TensorStats):
        return part.maximum - part.minimum
    low, high = torch.aminmax(part.detach())
    return float(high) - float(low)
