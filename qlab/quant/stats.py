"""What one pass over the data keeps of a tensor: ranges, moments and a histogram that merge exactly.

The collector reads torch tensors; everything it leaves behind is numpy and knows nothing of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qlab.errors import DataMismatch, InvalidConfig, NonFinite, NotObserved
from qlab.quant.observers.base import Distribution, Floats

if TYPE_CHECKING:
    import torch

OCTAVES = 32
PER_OCTAVE = 1024
SIDE = OCTAVES * PER_OCTAVE
SAMPLES_PER_BATCH = 16_384
LARGE = 2.0**50
PENDING = 65_536  # bucket numbers kept until they are worth one pass over all the buckets

_SHIFT = 13  # mantissa bits below a bucket: 23 - log2(PER_OCTAVE)
_MAGNITUDE = np.int32(0x7FFFFFFF)


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts by the leading bits of the float32 pattern: sign, 32 octaves, 1,024 buckets an octave.

    counts [65,536] int64: the first half is for x >= 0, the second for x < 0, each by rising magnitude. Bucket i of a
    half holds the values whose pattern without its last 13 bits is i + (top_exponent - 31) * 1,024; smaller ones fall
    into bucket 0, which stands for zero. top_exponent is the biased exponent (31..254) of the largest magnitude.
    Buckets are found by truncation, so a larger top exponent only moves them: merging is exact in any order.
    """

    top_exponent: int
    counts: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Histogram:
        return cls(OCTAVES - 1, np.zeros(2 * SIDE, np.int64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.top_exponent == other.top_exponent and np.array_equal(self.counts, other.counts)

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both. Commutative and associative, exactly."""
        top = max(self.top_exponent, other.top_exponent)
        return Histogram(top, self.rebased(top).counts + other.rebased(top).counts)

    def rebased(self, top_exponent: int) -> Histogram:
        """The same values with a larger top exponent; what falls off the lower end counts as zero."""
        if top_exponent == self.top_exponent:
            return self
        counts = self.counts.copy()
        _shift_down(counts, top_exponent - self.top_exponent)
        return Histogram(top_exponent, counts)

    def buckets(self) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Lower and upper edges (float32, ascending) of the nonempty buckets, and their counts; zero is 0..0."""
        index = np.flatnonzero(self.counts)
        positive, negative = index[index < SIDE], index[index >= SIDE] - SIDE
        order = np.concatenate([negative[::-1] + SIDE, positive])
        magnitude = order % SIDE
        key = ((magnitude + (self.top_exponent - OCTAVES + 1) * PER_OCTAVE) << _SHIFT).astype(np.int32)
        inner = key.view(np.float32)
        # The pattern after the last finite one is infinity; it is the edge of a bucket, not a value.
        outer = np.minimum((key + np.int32(1 << _SHIFT)).view(np.float32), np.finfo(np.float32).max)
        zero = magnitude == 0
        inner, outer = np.where(zero, np.float32(0), inner), np.where(zero, np.float32(0), outer)
        below = order >= SIDE
        counts = self.counts[order]
        lower, upper = np.where(below, -outer, inner), np.where(below, -inner, outer)
        if self.counts[0] and self.counts[SIDE]:  # small negative and small positive values: one bucket of zero
            at = int(np.flatnonzero(zero)[0])
            counts[at + 1] += counts[at]
            lower, upper, counts = (np.delete(a, at) for a in (lower, upper, counts))
        return lower, upper, counts

    def nonzero(self) -> tuple[Floats, NDArray[np.int64]]:
        """Centres (float32, ascending) of the nonempty buckets and their counts; the bucket of zero is 0.0."""
        lower, upper, counts = self.buckets()
        return lower + (upper - lower) / np.float32(2), counts


def _shift_down(counts: NDArray[np.int64], octaves: int) -> None:
    """Move the buckets of both signs down in place; the ones that leave fall into the bucket of zero."""
    drop = min(octaves * PER_OCTAVE, SIDE - 1)
    for side in (counts[:SIDE], counts[SIDE:]):
        lost = int(side[: drop + 1].sum())
        if octaves >= OCTAVES:
            lost = int(side.sum())
        side[: SIDE - drop] = side[drop:].copy()
        side[SIDE - drop :] = 0
        side[0] = lost
        if octaves >= OCTAVES:
            side[1:] = 0


@dataclass(frozen=True, eq=False)
class TensorStats:
    """What is known of one tensor, over all batches seen.

    count            finite values seen; infinite: infinities seen and left out
    sampled          values in the histogram and the moments; at most 16,384 of each batch
    zeros            exact zeros among the sampled
    batch_index [B]  int64, ascending: index of the first sample of each batch
    batch_minimum, batch_maximum [B] float32: exact, over every finite value
    batch_total, batch_total_square [B] float64: sum of x and of x² over the sampled values
    channel_axis, channel_minimum [C], channel_maximum [C]: exact, or None
    """

    name: str
    count: int
    sampled: int
    zeros: int
    infinite: int
    batch_index: NDArray[np.int64]
    batch_minimum: Floats
    batch_maximum: Floats
    batch_total: NDArray[np.float64]
    batch_total_square: NDArray[np.float64]
    histogram: Histogram
    channel_axis: int | None = None
    channel_minimum: Floats | None = None
    channel_maximum: Floats | None = None

    @property
    def batches(self) -> int:
        return len(self.batch_index)

    @property
    def minimum(self) -> float:
        """The smallest finite value, exact. Raises NotObserved."""
        self._require_values()
        return float(self.batch_minimum.min())

    @property
    def maximum(self) -> float:
        """The largest finite value, exact. Raises NotObserved."""
        self._require_values()
        return float(self.batch_maximum.max())

    @property
    def total(self) -> float:
        """Sum of the sampled values; rounded once, so the order of the batches does not matter."""
        return math.fsum(self.batch_total)

    @property
    def total_square(self) -> float:
        """Sum of the squares of the sampled values."""
        return math.fsum(self.batch_total_square)

    @property
    def mean(self) -> float:
        """Mean of the sampled values. Raises NotObserved."""
        self._require_values()
        return self.total / self.sampled

    @property
    def std(self) -> float:
        """Standard deviation of the sampled values (divided by their number). Raises NotObserved."""
        return math.sqrt(max(self.total_square / self.sampled - self.mean**2, 0.0)) if self.sampled else self.mean

    def _require_values(self) -> None:
        if not self.count:
            raise NotObserved(
                f"{self.name}: no finite value was seen, so it has no range. Calibrate with data that reaches it."
            )

    def merge(self, other: TensorStats) -> TensorStats:
        """Both together: exactly what one pass over all the batches gives, in any order.

        Batches are sorted by batch_index, stably: of two with the same index, self's comes first.
        Raises DataMismatch when the tensors have different names or channels.
        """
        if self.name != other.name:
            raise DataMismatch(f"statistics of {self.name} and of {other.name} cannot be merged: not the same tensor.")
        low, high, axis = self.channel_minimum, self.channel_maximum, self.channel_axis
        # A side that has seen nothing yet knows no channels and agrees with any.
        if low is None or not self.batches:
            if not self.batches:
                low, high, axis = other.channel_minimum, other.channel_maximum, other.channel_axis
            elif other.channel_minimum is not None and other.batches:
                raise DataMismatch(f"{self.name}: one side has channels, the other has none.")
        elif other.batches:
            if other.channel_minimum is None or other.channel_maximum is None or high is None:
                raise DataMismatch(f"{self.name}: one side has channels, the other has none.")
            if axis != other.channel_axis or len(low) != len(other.channel_minimum):
                raise DataMismatch(
                    f"{self.name}: {len(low)} channels on axis {axis} and {len(other.channel_minimum)} on axis "
                    f"{other.channel_axis} do not fit together."
                )
            low, high = np.minimum(low, other.channel_minimum), np.maximum(high, other.channel_maximum)
        index = np.concatenate([self.batch_index, other.batch_index])
        order = np.argsort(index, kind="stable")
        both = {
            key: np.concatenate([getattr(self, key), getattr(other, key)])[order]
            for key in ("batch_minimum", "batch_maximum", "batch_total", "batch_total_square")
        }
        return TensorStats(
            name=self.name,
            count=self.count + other.count,
            sampled=self.sampled + other.sampled,
            zeros=self.zeros + other.zeros,
            infinite=self.infinite + other.infinite,
            batch_index=index[order],
            **both,
            histogram=self.histogram.merge(other.histogram),
            channel_axis=axis,
            channel_minimum=low,
            channel_maximum=high,
        )

    def distribution(self, granularity: Literal["tensor", "channel"] = "tensor", values: bool = True) -> Distribution:
        """What an observer may look at. "tensor": one row; "channel": C rows of which only the range is known.

        The values of a row are the nonempty buckets, cut to the exact range, with their counts times count / sampled.
        The exact minimum and maximum stand apart with count 1 each; when values were left out of the sample, those of
        every batch do, so that no outlier goes unnoticed. values=False leaves them out where only the range is needed.
        Raises NotObserved; InvalidConfig for channels that were not collected.
        """
        self._require_values()
        if granularity == "channel":
            if self.channel_minimum is None or self.channel_maximum is None:
                raise InvalidConfig(f"{self.name} has no channel axis: choose a per_tensor scheme.")
            if not np.all(self.channel_minimum <= self.channel_maximum):
                raise NotObserved(f"{self.name}: a channel never held a finite value, so it has no range.")
            return Distribution(self.channel_minimum, self.channel_maximum)
        if granularity != "tensor":
            raise InvalidConfig(f"{self.name} is an activation: its scales are per tensor or per channel.")
        if values:
            return self._distribution
        return Distribution(
            np.array([self.minimum], np.float32),
            np.array([self.maximum], np.float32),
            batch_minimum=self.batch_minimum,
            batch_maximum=self.batch_maximum,
        )

    @cached_property
    def _distribution(self) -> Distribution:
        low, high = np.float32(self.minimum), np.float32(self.maximum)
        lower, upper, bucket_counts = self.histogram.buckets()
        lower, upper = np.clip(lower, low, high), np.clip(upper, low, high)
        widths = upper - lower
        points = lower + widths / np.float32(2)
        counts: NDArray[np.float64] = bucket_counts.astype(np.float64) * (self.count / self.sampled)
        # The extremes are known exactly, and where a range is cut it matters where in their bucket they lie.
        if low < high:
            extremes = np.concatenate([self.batch_minimum, self.batch_maximum])
            if self.sampled == self.count:
                extremes = np.array([low, high])
                for end in (0, -1):  # they are in the counts already
                    counts[end] -= 1.0
            points = np.concatenate([points, extremes])
            counts = np.concatenate([counts, np.ones(len(extremes))])
            widths = np.concatenate([widths, np.zeros(len(extremes), np.float32)])
            order = np.argsort(points, kind="stable")
            order = order[counts[order] > 0]
            points, counts, widths = points[order], counts[order], widths[order]
        return replace(self.distribution(values=False), values=points[None], counts=counts[None], widths=widths[None])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays that hold everything, the histogram sparse; for files, without pickle."""
        index = np.flatnonzero(self.histogram.counts)
        out: dict[str, NDArray[Any]] = {
            "name": np.frombuffer(self.name.encode(), np.uint8),
            "scalars": np.array(
                [self.count, self.sampled, self.zeros, self.infinite, self.histogram.top_exponent], np.int64
            ),
            "batch_index": self.batch_index,
            "batch_minimum": self.batch_minimum,
            "batch_maximum": self.batch_maximum,
            "batch_total": self.batch_total,
            "batch_total_square": self.batch_total_square,
            "bucket_index": index.astype(np.int32),
            "bucket_count": self.histogram.counts[index],
        }
        if self.channel_minimum is not None and self.channel_maximum is not None:
            out["channel_axis"] = np.array([self.channel_axis], np.int64)
            out["channel_minimum"] = self.channel_minimum
            out["channel_maximum"] = self.channel_maximum
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> TensorStats:
        """The inverse of to_arrays. Raises DataMismatch when the arrays do not fit together."""
        try:
            count, sampled, zeros, infinite, top = (int(v) for v in arrays["scalars"])
            index, bucket_count = np.asarray(arrays["bucket_index"]), np.asarray(arrays["bucket_count"], np.int64)
            batch_index = np.asarray(arrays["batch_index"], np.int64)
            batches: dict[str, Any] = {
                key: np.asarray(arrays[key], dtype)
                for key, dtype in (
                    ("batch_minimum", np.float32),
                    ("batch_maximum", np.float32),
                    ("batch_total", np.float64),
                    ("batch_total_square", np.float64),
                )
            }
            name = np.asarray(arrays["name"], np.uint8).tobytes().decode()
        except (KeyError, ValueError) as error:
            raise DataMismatch("saved statistics are incomplete.", detail=repr(error)) from error
        fits = index.shape == bucket_count.shape and index.ndim == 1 and OCTAVES - 1 <= top <= 254
        fits = fits and (not index.size or (index.min() >= 0 and index.max() < 2 * SIDE and bucket_count.min() >= 0))
        fits = fits and int(bucket_count.sum()) == sampled and min(count, zeros, infinite) >= 0
        fits = fits and batch_index.ndim == 1 and all(a.shape == batch_index.shape for a in batches.values())
        if not fits:
            raise DataMismatch(f"saved statistics of {name} contradict themselves.")
        counts = np.zeros(2 * SIDE, np.int64)
        counts[index] = bucket_count
        channels: dict[str, Any] = {}
        if "channel_minimum" in arrays:
            channels = {
                "channel_axis": int(np.asarray(arrays["channel_axis"]).item()),
                "channel_minimum": np.asarray(arrays["channel_minimum"], np.float32),
                "channel_maximum": np.asarray(arrays["channel_maximum"], np.float32),
            }
        return cls(
            name, count, sampled, zeros, infinite, batch_index, **batches, histogram=Histogram(top, counts), **channels
        )


@dataclass(frozen=True, eq=False)
class Glimpse:
    """What one batch of a tensor adds to its statistics. sample: the values for the histogram, flat."""

    batch_index: int
    count: int
    infinite: int
    low: float
    high: float
    channel_low: Floats | None
    channel_high: Floats | None
    sample: Floats

    def rectified(self) -> Glimpse:
        """The same for relu(x): exact, because a ReLU keeps the order of values. Not for a batch with infinities."""
        zero = np.float32(0)
        return replace(
            self,
            low=max(self.low, 0.0),
            high=max(self.high, 0.0),
            channel_low=None if self.channel_low is None else np.maximum(self.channel_low, zero),
            channel_high=None if self.channel_high is None else np.maximum(self.channel_high, zero),
            sample=np.maximum(self.sample, zero),
        )


class StatsCollector:
    """Collects TensorStats of one tensor, batch by batch. Memory does not grow with the batches (40 bytes each).

    channel_axis: also keep the range of each channel. samples_per_batch: at most so many values of a batch enter the
    histogram, taken at a stride that shares no factor with the sizes, so that every channel and pixel has its turn.
    allow_infinite: count infinities and leave them out (attention masks) instead of raising.
    """

    def __init__(
        self,
        name: str,
        channel_axis: int | None = None,
        samples_per_batch: int = SAMPLES_PER_BATCH,
        allow_infinite: bool = False,
    ) -> None:
        self.name = name
        self.channel_axis = channel_axis
        self.samples_per_batch = samples_per_batch
        self.allow_infinite = allow_infinite
        self._counts: NDArray[np.int64] | None = None  # never written to, so that finish() need not copy it
        self._pending: list[NDArray[np.uint16]] = []
        self._pending_size = 0
        self._top = OCTAVES - 1
        self._count = self._sampled = self._zeros = self._infinite = 0
        self._batches: list[tuple[int, float, float, float, float]] = []
        self._low: Floats | None = None
        self._high: Floats | None = None

    def update(self, tensor: torch.Tensor, batch_index: int) -> None:
        """Count a batch. batch_index: index of its first sample, which orders the batches.

        Raises NonFinite (NaN, or Inf unless allowed), DataMismatch (empty, not floating point, other channels).
        """
        self.add(self.look(tensor, batch_index))

    def look(self, tensor: torch.Tensor, batch_index: int) -> Glimpse:
        """What a batch of this tensor will add, without adding it. Raises as `update`."""
        if not tensor.is_floating_point():
            raise DataMismatch(f"{self.name} is {tensor.dtype}: only floating-point tensors have statistics.")
        if not tensor.numel():
            raise DataMismatch(f"{self.name}: batch {batch_index} is empty, shape {list(tensor.shape)}.")
        held = tensor.detach().float().contiguous()
        x: Floats = held.numpy()
        infinite = 0
        low, high, channel_low, channel_high = self._extremes(held)
        if not math.isfinite(low) or not math.isfinite(high):
            infinite = int(np.isinf(x).sum())
            if math.isnan(low) or math.isnan(high):
                raise NonFinite(
                    f"{self.name}: NaN in the batch that begins with sample {batch_index}. "
                    "Look at the data and at the layers before.",
                    tensor=self.name, first_sample=batch_index,
                )  # fmt: skip
            if not self.allow_infinite:
                raise NonFinite(
                    f"{self.name}: {infinite} infinite values in the batch that begins with sample {batch_index}.",
                    tensor=self.name, first_sample=batch_index,
                )  # fmt: skip
            finite = np.isfinite(x)
            if self.channel_axis is not None:  # what has no finite value keeps an empty range, inf..-inf
                channel_low = self._extremes(held.masked_fill(held == -math.inf, math.inf))[2]
                channel_high = self._extremes(held.masked_fill(held == math.inf, -math.inf))[3]
            x = x[finite]
            if x.size:
                low, high = float(x.min()), float(x.max())
        sample = self._sample(x, batch_index, tuple(tensor.shape))
        return Glimpse(batch_index, x.size, infinite, low, high, channel_low, channel_high, sample)

    def add(self, seen: Glimpse) -> None:
        """Count what was looked at. Raises DataMismatch for another number of channels."""
        self._infinite += seen.infinite
        self._update_channels(seen.channel_low, seen.channel_high, seen.batch_index)
        if not seen.count:
            return
        self._count += seen.count
        magnitude = max(-seen.low, seen.high)
        self._raise_top(magnitude)
        total, square = self._count_sample(seen.sample, magnitude)
        self._batches.append((seen.batch_index, seen.low, seen.high, total, square))

    def _extremes(self, x: torch.Tensor) -> tuple[float, float, Floats | None, Floats | None]:
        if self.channel_axis is None:
            return float(x.amin()), float(x.amax()), None, None
        axis = self._axis(x.ndim)
        outer, channels = math.prod(x.shape[:axis]), x.shape[axis]
        view = x.reshape(outer, channels, -1)
        # amin and amax over the last axis are vectorised and threaded; aminmax with a dimension takes 15 times as long
        if view.shape[2] > 1:
            lows, highs = view.amin(2).numpy().min(0), view.amax(2).numpy().max(0)
        else:
            lows, highs = view[:, :, 0].amin(0).numpy(), view[:, :, 0].amax(0).numpy()
        return float(lows.min()), float(highs.max()), lows, highs

    def _axis(self, ndim: int) -> int:
        assert self.channel_axis is not None
        if not -ndim <= self.channel_axis < ndim:
            raise DataMismatch(f"{self.name} has {ndim} dimensions: there is no axis {self.channel_axis}.")
        return self.channel_axis % ndim

    def _update_channels(self, low: Floats | None, high: Floats | None, batch_index: int) -> None:
        if low is None or high is None:
            return
        if self._low is None or self._high is None:
            self._low, self._high = low.copy(), high.copy()
            return
        if len(low) != len(self._low):
            raise DataMismatch(f"{self.name}: batch {batch_index} has {len(low)} channels, before it {len(self._low)}.")
        np.minimum(self._low, low, out=self._low)
        np.maximum(self._high, high, out=self._high)

    def _sample(self, x: Floats, batch_index: int, shape: tuple[int, ...]) -> Floats:
        flat = x.reshape(-1)
        if flat.size <= self.samples_per_batch:
            return flat
        stride = -(-flat.size // self.samples_per_batch)
        while math.gcd(stride, math.prod(shape)) > 1:
            stride += 1
        # Another offset in another batch; it follows from the index, so the same data gives the same sample.
        return np.ascontiguousarray(flat[batch_index % stride :: stride])

    def _raise_top(self, magnitude: float) -> None:
        # From the exact extremes, not from the sample: the top must not depend on which values were drawn.
        exponent = int(np.float32(magnitude).view(np.int32)) >> 23
        if exponent > self._top:
            self._count_pending()
            if self._counts is not None:
                self._counts = self._counts.copy()
                _shift_down(self._counts, exponent - self._top)
            self._top = exponent

    def _count_sample(self, sample: Floats, magnitude: float) -> tuple[float, float]:
        bits = sample.view(np.int32)
        index = bits & _MAGNITUDE
        self._zeros += int(index.size - np.count_nonzero(index))  # of integers: five times as fast
        index >>= _SHIFT
        index -= np.int32((self._top - OCTAVES + 1) * PER_OCTAVE)
        np.maximum(index, 0, out=index)
        sign = bits >> 31
        sign &= SIDE
        index += sign
        self._pending.append(index.astype(np.uint16))
        self._pending_size += sample.size
        if self._pending_size >= PENDING:
            self._count_pending()
        self._sampled += sample.size
        # float32 sums are pairwise and good to six digits; where a square could overflow, double precision
        wide = sample if magnitude < LARGE else sample.astype(np.float64)
        return float(wide.sum()), float(np.square(wide).sum())

    def _count_pending(self) -> None:
        if self._pending:
            more = np.bincount(np.concatenate(self._pending), minlength=2 * SIDE)
            self._counts = more if self._counts is None else self._counts + more
            self._pending, self._pending_size = [], 0

    def finish(self) -> TensorStats:
        """What has been seen so far; the collector can go on."""
        self._count_pending()
        order = sorted(range(len(self._batches)), key=lambda i: self._batches[i][0])
        columns = list(zip(*(self._batches[i] for i in order), strict=True)) or [()] * 5
        return TensorStats(
            name=self.name,
            count=self._count,
            sampled=self._sampled,
            zeros=self._zeros,
            infinite=self._infinite,
            batch_index=np.array(columns[0], np.int64),
            batch_minimum=np.array(columns[1], np.float32),
            batch_maximum=np.array(columns[2], np.float32),
            batch_total=np.array(columns[3], np.float64),
            batch_total_square=np.array(columns[4], np.float64),
            histogram=Histogram(self._top, np.zeros(2 * SIDE, np.int64) if self._counts is None else self._counts),
            channel_axis=None if self._low is None else self.channel_axis,
            channel_minimum=None if self._low is None else self._low.copy(),
            channel_maximum=None if self._high is None else self._high.copy(),
        )


def stats_of(tensor: torch.Tensor, name: str = "tensor", channel_axis: int | None = None) -> TensorStats:
    """Statistics of a constant tensor, every value counted. Raises as StatsCollector.update."""
    collector = StatsCollector(name, channel_axis, samples_per_batch=max(tensor.numel(), 1))
    collector.update(tensor, 0)
    return collector.finish()
