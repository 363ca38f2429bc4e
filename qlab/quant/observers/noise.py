"""The squared error of quantize-dequantize over a distribution: exact for values, in closed form for histogram buckets.

With u = x / scale and the centred code k(u) = clip(round(u), quant_min - zero_point, quant_max - zero_point), a value
costs scale² (u - k)². A bucket spread evenly over u0..u1 costs scale² (G(u1) - G(u0)) / (u1 - u0), where

    G(u) = k / 12 + (u - k)³ / 3

is an antiderivative of (u - k(u))²: every whole step adds 1/12, and the cube continues it within a step and beyond the
ends of the grid. One point for each bucket would do for coarse grids, but where a step is finer than a bucket it
returns chance, and a search for the smallest error finds the luckiest chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.quant.observers.base import Distribution, Floats, Grid

# Elements in one pass: two float32 buffers of this size stay in a second-level cache.
BLOCK = 1 << 15

# A bucket this much narrower than its value is a point: the difference of two cubes would be rounding noise in float32.
NARROW = np.float32(2.0**-13)


@dataclass(frozen=True)
class Sample:
    """A distribution cut into exact values and evenly filled buckets.

    points [R, n], point_counts [R, n] | None (each counts once).
    edges [m + 1] ascending and bucket_counts [m] of one row, empty for several; buckets touch, gaps have count 0.
    """

    points: Floats
    point_counts: NDArray[Any] | None
    edges: Floats
    bucket_counts: NDArray[Any]

    @classmethod
    def of(cls, d: Distribution) -> Sample:
        """Of a distribution that has values."""
        assert d.values is not None
        if d.widths is None:
            return cls(d.values, d.counts, np.empty(0, np.float32), np.empty(0))
        # Buckets come from a histogram, which is one row; a mask over several rows would not leave a rectangle.
        assert len(d.values) == 1
        assert d.counts is not None
        values, counts, widths = d.values[0], d.counts[0], d.widths[0]
        wide = widths > NARROW * np.abs(values)
        points = ~wide & (values != 0)  # zero lies on every grid: no error, no work
        half = widths[wide] / 2
        edges, bucket_counts = _touching(values[wide] - half, values[wide] + half, counts[wide])
        return cls(values[points][None], counts[points][None], edges, bucket_counts)

    def rows(self, part: slice) -> Sample:
        counts = None if self.point_counts is None else self.point_counts[part]
        return Sample(self.points[part], counts, self.edges, self.bucket_counts)

    @property
    def size(self) -> int:
        """Numbers looked at for one row and one candidate."""
        return self.points.shape[1] + len(self.edges)

    def coarser(self, fine: float) -> Sample:
        """Neighbouring buckets joined to at least `fine` / 8 wide and, further out, to 64 an octave.

        fine: the smallest step of interest. A step then spans eight or more buckets near zero; further out, where a
        bucket may span several steps, its error is the mean over them, which the buckets being joined would add up to.
        """
        if len(self.bucket_counts) < 512:
            return self
        middle = (self.edges[:-1] + self.edges[1:]) / 2
        # The bit pattern of a float32 without its last 17 bits names the octave and a 64th of it.
        outer = (middle.view(np.int32) >> 17).astype(np.int64)
        inner = np.abs(middle) < 8 * fine
        key = np.where(inner, np.floor(middle * (8 / max(fine, 1e-37))).astype(np.int64), outer + (1 << 40))
        start = np.concatenate([[0], np.flatnonzero(key[1:] != key[:-1]) + 1])
        counts = np.add.reduceat(self.bucket_counts, start)
        return Sample(self.points, self.point_counts, self.edges[np.append(start, len(self.edges) - 1)], counts)

    # A value 10^13 steps away overflows the cube. A grid that far off is no candidate: its error is infinite.
    @np.errstate(over="ignore", invalid="ignore")
    def squared_error(
        self, scale: NDArray[Any], zero_point: NDArray[Any], grid: Grid, dtype: Any = np.float32
    ) -> NDArray[np.float64]:
        """Sum of (x - x')² for K candidates in each row. scale, zero_point [K, R] -> [K, R]."""
        out = np.zeros(scale.shape, np.float64)
        inverse = (1.0 / scale.astype(np.float64)).astype(dtype)[:, :, None]
        low = (grid.quant_min - zero_point).astype(dtype)[:, :, None]
        high = (grid.quant_max - zero_point).astype(dtype)[:, :, None]
        if self.points.shape[1]:
            points = self.points.astype(dtype, copy=False)
            weights = None if self.point_counts is None else self.point_counts.astype(dtype, copy=False)
            for part in _chunks(len(scale), points.size):
                u = points * inverse[part]
                u -= _centred_code(u, low[part], high[part])
                if weights is None:
                    out[part] += np.einsum("krn,krn->kr", u, u)
                else:
                    u *= u
                    out[part] += np.einsum("krn,rn->kr", u, weights)
        if len(self.bucket_counts):
            edges = self.edges.astype(dtype, copy=False)
            # Per unit of x, so that it is the same for every candidate: the scale in du comes back below ...
            density = (self.bucket_counts / np.diff(self.edges.astype(np.float64))).astype(dtype)
            for part in _chunks(len(scale), len(edges)):
                u = edges * inverse[part, 0]
                k = _centred_code(u, low[part, 0], high[part, 0])
                u -= k
                cube = u * u
                cube *= u
                cube *= dtype(1 / 3)
                k *= dtype(1 / 12)
                cube += k
                # einsum, not @: the BLAS threads of a product this small wait for each other longer than it takes.
                gained = cube[:, 1:] - cube[:, :-1]
                out[part, 0] += np.einsum("km,m->k", gained, density) * scale[part, 0]
        out *= np.square(scale, dtype=np.float64)  # ... and the two in the square
        out[~np.isfinite(out)] = np.inf
        return out

    def least_squares_scale(self, scale: NDArray[Any], zero_point: NDArray[Any], grid: Grid) -> NDArray[Any]:
        """The scale that fits the codes which `scale` gives: sum x k / sum k². [R] -> [R]; buckets count as points.

        One step of Lloyd's iteration: it can only lower the error as long as the codes stay.
        """
        x, counts = self._as_points()
        low, high = (grid.quant_min - zero_point)[:, None], (grid.quant_max - zero_point)[:, None]
        k = _centred_code(x / scale[:, None].astype(np.float32), low, high)
        weighted = k if counts is None else k * counts
        above, below = np.einsum("rn,rn->r", x, weighted), np.einsum("rn,rn->r", k, weighted)
        usable = (above > 0) & (below > 0)
        return np.where(usable, above / np.where(usable, below, 1.0), scale)

    def mean_square(self) -> NDArray[np.float64]:
        """Mean of x², zeros left out where they are known apart. [R]."""
        x, counts = self._as_points()
        if counts is None:
            return np.square(x, dtype=np.float64).mean(axis=1)
        energy = np.einsum("rn,rn,rn->r", counts, x, x, dtype=np.float64)
        return energy / np.maximum(counts.sum(axis=1), 1.0)

    def _as_points(self) -> tuple[Floats, NDArray[Any] | None]:
        if not len(self.bucket_counts):
            return self.points, self.point_counts
        assert self.point_counts is not None
        middle = (self.edges[:-1] + self.edges[1:]) / 2
        x = np.concatenate([self.points, middle[None]], axis=1)
        return x, np.concatenate([self.point_counts, self.bucket_counts[None]], axis=1)


def _touching(lower: Floats, upper: Floats, counts: NDArray[Any]) -> tuple[Floats, NDArray[Any]]:
    """Edges and counts with the gaps between buckets filled by empty ones. Each edge is then looked at once."""
    if not len(counts):
        return np.empty(0, np.float32), np.empty(0)
    # An edge computed from centre and width may be off by a rounding: that is no gap.
    gap = np.flatnonzero(lower[1:] - upper[:-1] > NARROW * np.abs(lower[1:]))
    edges = np.insert(np.append(lower, upper[-1]), gap + 1, upper[gap])
    # Zero in the middle of a bucket pair is kept apart by its own gap, so edges rise strictly.
    return edges, np.insert(counts, gap + 1, 0.0)


def _centred_code(u: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    k = np.rint(u)
    np.maximum(k, low, out=k, casting="same_kind")
    np.minimum(k, high, out=k, casting="same_kind")
    return k


def _chunks(candidates: int, size: int) -> list[slice]:
    step = max(1, BLOCK // max(size, 1))
    return [slice(i, i + step) for i in range(0, candidates, step)]
