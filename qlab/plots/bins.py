"""From 65,000 buckets or a million weights to the few hundred bins a screen can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_BINS = 300  # a step line has two points a bin, and a chart should stay under 600
Zoom = Literal["auto", "bulk", "all"]


@dataclass(frozen=True)
class Bins:
    """Counts on equal bins. edges: [n + 1] ascending. counts: [n] float, what falls between two edges."""

    edges: NDArray[np.float64]
    counts: NDArray[np.float64]

    @property
    def width(self) -> float:
        return float(self.edges[1] - self.edges[0])

    def bin_of(self, value: float) -> int | None:
        """The bin this value falls in; None outside."""
        place = int(np.searchsorted(self.edges, value, side="right")) - 1
        if value == self.edges[-1]:
            place = len(self.counts) - 1
        return place if 0 <= place < len(self.counts) else None


@dataclass(frozen=True)
class Window:
    """What part of the value axis is drawn, and how finely."""

    low: float
    high: float
    bins: int

    @property
    def edges(self) -> NDArray[np.float64]:
        return np.linspace(self.low, self.high, self.bins + 1)


def spread(low: ArrayLike, high: ArrayLike, counts: ArrayLike, edges: NDArray[np.float64]) -> Bins:
    """Counts of touching or separate buckets, shared out over `edges` as if each bucket were evenly filled.

    low, high: [n] ends of each bucket, ascending and not overlapping. counts: [n].
    Putting each bucket into the bin of its middle instead gives stripes: neighbouring bins then hold 3 and 4 buckets.
    A bucket without width goes into the bin it lies in, whole.
    """
    low, high, counts = (np.asarray(a, dtype=np.float64) for a in (low, high, counts))
    out = np.zeros(len(edges) - 1)
    wide = high > low
    if wide.any():
        total = np.cumsum(counts[wide])
        ends = np.stack([low[wide], high[wide]], axis=1).ravel()
        reached = np.stack([np.concatenate([[0.0], total[:-1]]), total], axis=1).ravel()
        out += np.diff(np.interp(edges, ends, reached))
    if not wide.all():
        points, weights = low[~wide], counts[~wide]
        out += np.histogram(points, bins=edges, weights=weights)[0]
    return Bins(edges, out)


def window(
    minimum: float,
    maximum: float,
    bulk: tuple[float, float],
    ranges: NDArray[np.float64],
    zoom: Zoom = "auto",
    values: float = math.inf,
) -> Window:
    """The part of the axis to draw.

    minimum, maximum: of the values. bulk: the ends between which nearly all of them lie. ranges: [n, 2], one for each
    observer. values: how many there are; few values get few bins, because bins of one value each show nothing.
    "all" covers values and ranges, "bulk" what its name says. "auto" covers all while the bulk still fills a fifth of
    the width, and otherwise stops there: the outlier that one range reaches for would leave the rest a line.
    """
    # A symmetric grid around one-sided data is half empty; it is drawn, since that waste is what one should see.
    whole = (min(minimum, *ranges[:, 0]), max(maximum, *ranges[:, 1])) if len(ranges) else (minimum, maximum)
    core = bulk
    if zoom == "all":
        low, high = whole
    elif zoom == "bulk":
        low, high = core
    else:
        room = max(core[1] - core[0], (whole[1] - whole[0]) * 1e-6)
        centre, reach = (core[0] + core[1]) / 2, room * 2.5
        # As far as the farthest end within reach. What is cut off anyway needs a hint of emptiness and no more.
        ends = [minimum, maximum, *ranges.ravel()]
        low = min([core[0] - 0.2 * room, *(end for end in ends if end >= centre - reach)])
        high = max([core[1] + 0.2 * room, *(end for end in ends if end <= centre + reach)])
        low, high = max(low, whole[0]), min(high, whole[1])
    if not high > low:
        # A constant: a window around it, so that it has a place to be drawn at.
        room = abs(low) or 1.0
        low, high = low - room, high + room
    margin = 0.03 * (high - low)
    bins = int(min(MOST_BINS, max(40, 4 * math.sqrt(values)))) if math.isfinite(values) else MOST_BINS
    return Window(float(low - margin), float(high + margin), bins)
