"""The ways to say how far a tensor is from its float self, and what a tensor is called on a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qlab.metrics import Metric, metric, three_digits

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


def cosine_text(value: float) -> str:
    """As many digits as tell it from 1."""
    apart = 1 - value
    if abs(apart) < 5e-8:
        return "1"
    return f"{value:.{min(7, max(3, 1 - math.floor(math.log10(abs(apart)))))}f}"


MEASURES = {
    "sqnr": Measure(metric("sqnr"), lambda e: e.sqnr, True),
    "cosine": Measure(
        Metric("cosine", "Cosine", "", "up", cosine_text, "Of the angle between float and quantized; 1 is best."),
        lambda e: e.cosine, True,
    ),
    "largest": Measure(
        Metric("largest_error", "Largest error", "", "down", three_digits, "Of one value, in the tensor's own unit."),
        lambda e: e.largest, False,
    ),
    "shift": Measure(
        Metric(
            "mean_shift", "Mean shift", "σ", "down", lambda v: f"{three_digits(v)} σ",
            "Mean error of the worst channel over the standard deviation of the float values.",
        ),
        lambda e: e.largest_shift, False,
    ),
}  # fmt: skip


def names_of(found: Propagation) -> dict[str, str]:
    """Tensor -> what to call it: the layer whose output it is, where that is one tensor alone."""
    count = Counter(row.layer for row in found.rows)
    return {row.tensor: row.layer if count[row.layer] == 1 else row.tensor for row in found.rows}
