"""Runs as points of the chart of accuracy over cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from qlab.plots.pareto import Cost, Point

if TYPE_CHECKING:
    from qlab.lab.compared import Line

Measure = Literal["accuracy", "agreement"]
NOWHERE = (math.nan, math.nan)  # an interval that is not known


def measure_of(lines: Iterable[Line]) -> Measure:
    """Accuracy where any run has one; without labels agreement with float."""
    return "accuracy" if any(line.accuracy is not None for line in lines) else "agreement"


def points_of(lines: Sequence[Line], cost: Cost, titles: Mapping[str, str] | None = None) -> list[Point]:
    """A point for each run; what is missing is not a number and left out by the chart, which counts it.

    titles: run -> what it is called, where that is not its own title.
    """
    measure = measure_of(lines)
    return [_point(line, cost, measure, (titles or {}).get(line.id, line.title)) for line in lines]


def _point(line: Line, cost: Cost, measure: Measure, title: str) -> Point:
    labelled = measure == "accuracy"
    return Point(
        line.id,
        title,
        _number(line.size if cost == "size" else line.latency),
        _number(line.accuracy if labelled else line.agreement),
        _number(line.low if labelled else None),
        _number(line.high if labelled else None),
        backend=line.backend or "simulated",
        detail=line.config,
        dropped=line.dropped is not None,
    )


def float_point_of(
    lines: Sequence[Line], spent: float | None, interval: tuple[float, float] | None = None
) -> Point | None:
    """The float network these runs came from; None unless all came from one with the same accuracy.

    spent: its bytes or seconds, None where that is not known. interval: of its accuracy.
    """
    known = {line.float_accuracy for line in lines if line.float_accuracy is not None}
    if len(known) != 1 or measure_of(lines) != "accuracy":
        return None
    return Point("float", "float", _number(spent), _number(known.pop()), *(interval or NOWHERE))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
