"""The ways to say how far a tensor is from its float self, and what a tensor is called on a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlab.metrics import Metric, metric

if TYPE_CHECKING:
    from qlab.analysis.propagation import Errors, Propagation, TensorError


@dataclass(frozen=True)
class Measure:
    """One way to say how far a tensor is off. of: its value; lowest: whether the lowest is the worst."""

    figure: Metric
    of: Callable[[Errors], float]
    lowest: bool

    def worst(self, found: Propagation, own: bool) -> TensorError:
        """The row where most is made, or where it shows most."""
        pick = min if self.lowest else max
        return pick(found.rows, key=lambda row: self.of(row.own if own else row.arrived))

    def write(self, errors: Errors) -> str:
        return self.figure.format(self.of(errors))


MEASURES = {
    "sqnr": Measure(metric("sqnr"), lambda e: e.sqnr, True),
    "cosine": Measure(metric("cosine"), lambda e: e.cosine, True),
    "largest": Measure(metric("largest_error"), lambda e: e.largest, False),
    "shift": Measure(metric("mean_shift"), lambda e: e.largest_shift, False),
}


def names_of(found: Propagation) -> dict[str, str]:
    """Tensor -> what to call it: the layer whose output it is, where that is one tensor alone."""
    count = Counter(row.layer for row in found.rows)
    return {row.tensor: row.layer if count[row.layer] == 1 else row.tensor for row in found.rows}
