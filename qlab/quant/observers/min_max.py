"""The whole range that was seen."""

from __future__ import annotations

from qlab.quant.observers.base import Distribution, Grid, Observer, Range


def min_max(d: Distribution, grid: Grid) -> Range:
    """low = minimum, high = maximum. [R] each. Source: torch.ao MinMaxObserver, PerChannelMinMaxObserver."""
    return d.minimum, d.maximum


OBSERVER = Observer(
    name="min_max",
    summary="The smallest and the largest value seen: nothing is clipped, and one outlier stretches every step.",
    rule=min_max,
    needs="range",
)
