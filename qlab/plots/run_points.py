"""Runs as points of the chart of accuracy over cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlab.plots.pareto import Cost, Point

if TYPE_CHECKING:
    from qlab.lab.compared import Line


def points_of(lines: Sequence[Line], cost: Cost) -> list[Point]:
    """Those of them that have a result and this cost."""
    return [point for line in lines if (point := _point(line, cost)) is not None]


def _point(line: Line, cost: Cost) -> Point | None:
    spent = line.size if cost == "size" else line.latency
    right = line.accuracy if line.accuracy is not None else line.agreement
    if spent is None or right is None or line.backend is None:
        return None
    low, high = (math.nan if end is None else end for end in (line.low, line.high))
    return Point(
        line.id, line.title, float(spent), right, low, high, line.backend, detail=line.config,
        dropped=line.dropped is not None,
    )  # fmt: skip


def by_agreement(lines: Sequence[Line]) -> bool:
    """Whether there are no labels, so that agreement with float is what can be drawn."""
    return bool(lines) and all(line.accuracy is None for line in lines)


def float_point_of(lines: Sequence[Line], samples: int | None = None, latency: float | None = None) -> Point | None:
    """The float network these runs came from: over its size, or over its latency where that is given.

    None unless all came from one with the same accuracy. samples: predictions behind it, for its interval.
    """
    from qlab.evaluation import wilson_interval

    known = {(line.float_accuracy, line.float_size) for line in lines if line.float_accuracy is not None}
    if len(known) != 1:
        return None
    ((accuracy, size),) = known
    assert accuracy is not None
    low, high = wilson_interval(round(accuracy * samples), samples) if samples else (math.nan, math.nan)
    spent = latency if latency is not None else size
    return None if spent is None else Point("float", "float", float(spent), accuracy, low, high)
