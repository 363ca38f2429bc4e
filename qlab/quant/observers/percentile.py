"""The range that holds a given share of the values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qlab.quant.observers.base import Distribution, Floats, Grid, Observer, Param, Range


def percentile(d: Distribution, grid: Grid, percentile: float) -> Range:
    """The range that keeps `percentile` % of the values. [R] each.

    affine: (100 - percentile) / 2 % is cut on either side; symmetric: the percentile of |x|, on both sides.
    It is the smallest value that at least that share of the values does not exceed, so 100 is min_max.
    Source: ONNX Runtime PercentileCalibrater, with the exact count in place of interpolated bins.
    """
    assert d.values is not None
    share = percentile / 100.0
    if grid.symmetric:
        high = np.minimum(_quantile(np.abs(d.values), d.counts, share), np.maximum(-d.minimum, d.maximum))
        return -high, high
    order = np.argsort(d.values, axis=1, kind="stable")
    values = np.take_along_axis(d.values, order, axis=1)
    counts = None if d.counts is None else np.take_along_axis(d.counts, order, axis=1)
    cut = (1.0 - share) / 2.0
    high = _quantile(values, counts, 1.0 - cut, ascending=True)
    low = -_quantile(-values[:, ::-1], None if counts is None else counts[:, ::-1], 1.0 - cut, ascending=True)
    return np.maximum(low, d.minimum), np.minimum(high, d.maximum)


def _quantile(values: Floats, counts: NDArray[np.float64] | None, share: float, ascending: bool = False) -> Floats:
    """The smallest value with at least `share` of its row's counts at or below it. [R, n] -> [R]."""
    rows, n = values.shape
    if not ascending:
        order = np.argsort(values, axis=1, kind="stable")
        values = np.take_along_axis(values, order, axis=1)
        counts = None if counts is None else np.take_along_axis(counts, order, axis=1)
    # The hair below keeps 100 % and exact shares such as 0.5 from missing their value by a rounding of the sums.
    if counts is None:
        at = np.full(rows, int(np.ceil(share * n * (1 - 1e-12))) - 1)
    else:
        cumulative = np.cumsum(counts, axis=1)
        at = (cumulative < share * (1 - 1e-12) * cumulative[:, -1:]).sum(axis=1)
    return values[np.arange(rows), np.clip(at, 0, n - 1)]


OBSERVER = Observer(
    name="percentile",
    summary="The range that keeps a given share of the values; the rest is clipped.",
    rule=percentile,
    needs="values",
    params=(
        Param(
            "percentile",
            default=99.99,
            minimum=50.0,
            maximum=100.0,
            help="Share of the values that is kept, in percent: less clips more outliers and makes the steps finer.",
        ),
    ),
)
