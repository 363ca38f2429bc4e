"""Accuracy over what it costs: runs with their intervals, the front of those that no other beats, float beside them."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

from qlab.errors import InvalidConfig
from qlab.metrics import BYTES, metric, step_of
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, palette, template

Cost = Literal["size", "latency"]
Number = float  # inside Palette and beside it `float` also names a colour

HEIGHT = 440
FEW = 60  # up to so many points each shows its interval; above, the front and the selected alone
NAMED = 4  # of the selected, so many carry their label in the chart
LOG_FROM = 20.0  # largest over smallest cost from which equal ratios, not differences, take equal room
FILLED = 0.3  # the runs have to fill this share of the width, or float is told at the edge instead of shown
TITLES = {"size": "Size", "latency": "Latency of one call in ONNX Runtime"}
# Backend -> what the legend calls it, symbol, colour.
LOOK = {"simulated": ("simulated", "diamond", "quantized"), "integer": ("integer kernels", "circle", "gained")}


@dataclass(frozen=True)
class Point:
    """One run. cost: bytes or seconds. accuracy, low, high: shares 0..1 with the ends of the 95 % interval, NaN where
    there is none. backend: "simulated" or "integer". detail: the config in words. dropped: stopped before all samples.
    """

    id: str
    label: str
    cost: Number
    accuracy: Number
    low: Number
    high: Number
    backend: str = "simulated"
    detail: str = ""
    dropped: bool = False

    def __post_init__(self) -> None:
        if self.backend not in LOOK:
            raise InvalidConfig(f"{self.label}: backend {self.backend!r} is not known; use one of {', '.join(LOOK)}.")

    @property
    def drawable(self) -> bool:
        return math.isfinite(self.cost) and math.isfinite(self.accuracy)


def pareto_front(points: Sequence[tuple[Number, Number]]) -> list[int]:
    """Indices of the (cost, accuracy) that no other beats, by ascending cost.

    One beats another that is in neither way better and in one way worse. Of equal points the first is taken; NaN is
    never in the front.
    """
    known = [i for i, (cost, accuracy) in enumerate(points) if not (math.isnan(cost) or math.isnan(accuracy))]
    front: list[int] = []
    best = -math.inf
    for i in sorted(known, key=lambda i: (points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def pareto(
    points: Sequence[Point],
    cost: Cost,
    dark: bool,
    *,
    float_point: Point | None = None,
    selected: Sequence[str] = (),
    key: str = "accuracy",
) -> go.Figure:
    """A mark for each run, its id as customdata. Runs without cost or accuracy are left out and counted.

    float_point: a dashed line, and a mark where its cost is known. selected: ids drawn with a rim and their label.
    key: the metric of the vertical axis. Dropped runs are grey and never in the front.
    """
    shown = [p for p in points if p.drawable]
    if not shown:
        return empty(f"None of these runs has both {_needed(cost, key, 'and')} yet.", dark, HEIGHT)
    colours, scale = palette(dark), _scale(shown, float_point, cost)
    candidates = [p for p in shown if not p.dropped]
    front = [candidates[i] for i in pareto_front([(p.cost, p.accuracy) for p in candidates])]
    best, picked = {p.id for p in front}, set(selected)
    wide = {p.id for p in shown} if len(shown) <= FEW else best | picked
    low, high = _vertical(shown, wide, float_point)
    told = {p.id: _told(p, cost, key, p.id in best) for p in shown}
    data: list[dict[str, Any]] = []
    # What was evaluated in full lies over what was not, and the selected over all.
    for dropped in (True, False):
        for backend, (name, *_) in LOOK.items():
            group = [p for p in shown if p.backend == backend and p.dropped == dropped]
            if group:
                rest = [p for p in group if p.id not in picked]
                trace = _marks(rest, told, wide, scale, colours, 11 if len(shown) <= FEW else 8)
                data.append({**trace, "name": f"{name}, stopped early" if dropped else name})
                if not rest:
                    # Its only marks are among the selected; the entry in the legend stays.
                    data[-1] |= {"x": [None], "y": [None], **_look(group[0], colours)}
    if front:
        # Among few marks the line runs behind them; a crowd would hide it.
        data.insert(0 if len(shown) <= FEW else len(data), _front(front, scale, colours))
    if float_point is not None:
        data += _reference(float_point, cost, key, scale, colours)
    chosen = [p for p in shown if p.id in picked]
    if chosen:
        trace = _marks(chosen, told, wide, scale, colours, 14)
        trace["marker"] |= {"opacity": 1.0, "line": {"color": colours.text, "width": 2.5}}
        data.append({**trace, "name": "selected", "showlegend": False})
    without = len(points) - len(shown)
    note = f" · {without} without {_needed(cost, key, 'or')} left out" if without else ""
    return go.Figure(
        data=data,
        layout={
            "template": template(dark),
            "height": HEIGHT,
            "margin": {"t": 36, "r": 20, "b": 8, "l": 8},
            "uirevision": "pareto",
            "annotations": [_name(p, scale, colours) for p in chosen[:NAMED]],
            "xaxis": {
                "title": {"text": f"{TITLES[cost]} ({scale.unit}){note}"},
                "type": "log" if scale.log else "linear",
                "range": [scale.place(scale.low), scale.place(scale.high)],
                "zeroline": False,
                # Another cost or unit is another axis: a zoom into the one means nothing on the other.
                "uirevision": f"{cost} {scale.unit} {scale.log}",
            },
            "yaxis": {
                "title": {"text": f"{metric(key).axis}, with 95 % intervals"},
                "range": [low, high],
                "zeroline": False,
                "uirevision": key,
            },
        },
    )


@dataclass(frozen=True)
class _Scale:
    """The horizontal axis. low, high: its ends in units; factor: units in one byte or second."""

    factor: Number
    unit: str
    log: bool
    low: Number
    high: Number

    def of(self, cost: Number) -> Number:
        return cost * self.factor

    def place(self, value: Number) -> Number:
        """Where the value stands, as ranges and annotations of plotly count."""
        return math.log10(value) if self.log else value


def _scale(shown: Sequence[Point], float_point: Point | None, cost: Cost) -> _Scale:
    costs = [p.cost for p in shown]
    least, most = min(costs), max(costs)
    if float_point is not None and math.isfinite(float_point.cost):
        ends = min(least, float_point.cost), max(most, float_point.cost)
        # Four times as far away, float would leave the runs a narrow stripe.
        if most == least or _reach(least, most) >= FILLED * _reach(*ends):
            least, most = ends
    factor, unit = _unit(most, cost)
    least, most = least * factor, most * factor
    log = least > 0 and most / least >= LOG_FROM
    if log:
        room = (most / least) ** 0.06
        return _Scale(factor, unit, True, least / room, most * room)
    room = 0.06 * (most - least) or 0.2 * abs(most) or 1.0
    return _Scale(factor, unit, False, least - room, most + room)


def _reach(least: Number, most: Number) -> Number:
    """How wide the range is on the axis it will get."""
    return math.log(most / least) if least > 0 and most / least >= LOG_FROM else most - least


def _unit(most: Number, cost: Cost) -> tuple[Number, str]:
    if cost == "size":
        power = step_of(most, 1000, len(BYTES))
        return 1.0 / 1000**power, BYTES[power]
    return next(((f, unit) for f, unit in ((1.0, "s"), (1e3, "ms")) if most * f >= 1), (1e6, "µs"))


def _vertical(shown: Sequence[Point], wide: set[str], float_point: Point | None) -> tuple[Number, Number]:
    """Ends of the vertical axis in percent: all marks and the intervals that are drawn."""
    ends = [p.accuracy for p in shown]
    ends += [end for p in shown if p.id in wide for end in (p.low, p.high)]
    if float_point is not None:
        ends.append(float_point.accuracy)
    ends = [100 * end for end in ends if math.isfinite(end)]
    room = max(0.06 * (max(ends) - min(ends)), 0.2)
    return min(ends) - room, max(ends) + room


def _front(front: Sequence[Point], scale: _Scale, colours: Palette) -> dict[str, Any]:
    y = [100 * p.accuracy for p in front]
    return {
        "type": "scatter",
        "name": "Pareto front",
        # To the right the last one stays the best: nothing dearer is better.
        "x": [*(scale.of(p.cost) for p in front), scale.high],
        "y": [*y, y[-1]],
        "mode": "lines",
        "line": {"shape": "hv", "width": 1.5, "color": colours.muted},
        "legendrank": 1,
        "hoverinfo": "skip",
    }


def _marks(
    group: Sequence[Point], told: Mapping[str, str], wide: set[str], scale: _Scale, colours: Palette, size: int
) -> dict[str, Any]:
    """One trace of runs; those in `wide` with their interval."""
    looks = [_look(p, colours)["marker"] for p in group]
    reach = [p.id in wide and math.isfinite(p.low) and math.isfinite(p.high) for p in group]
    opacity = 1.0 if size > 8 else 0.8
    faint = bool(group) and group[0].dropped
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [scale.of(p.cost) for p in group],
        "y": [100 * p.accuracy for p in group],
        "customdata": [p.id for p in group],
        "text": [told[p.id] for p in group],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "symbol": [look["symbol"] for look in looks],
            "color": [look["color"] for look in looks],
            "size": size,
            "opacity": opacity,
            "line": {"color": colours.background, "width": 0.5},
        },
        # A click is answered by `selected`; plotly's own way, to fade all others, would grey runs that are not dropped.
        "selected": {"marker": {"opacity": opacity}},
        "unselected": {"marker": {"opacity": opacity}},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [100 * (p.high - p.accuracy) if r else 0.0 for p, r in zip(group, reach, strict=True)],
            "arrayminus": [100 * (p.accuracy - p.low) if r else 0.0 for p, r in zip(group, reach, strict=True)],
            "color": colours.wash("neutral", 0.35 if faint else 0.9),
            "thickness": 1,
            "width": 0,
        },
    }


def _look(point: Point, colours: Palette) -> dict[str, Any]:
    _, symbol, colour = LOOK[point.backend]
    return {
        "marker": {
            "symbol": symbol,
            "color": colours.wash("neutral", 0.5) if point.dropped else getattr(colours, colour),
        }
    }


def _reference(point: Point, cost: Cost, key: str, scale: _Scale, colours: Palette) -> list[dict[str, Any]]:
    """The dashed line of float across the chart, and its mark: at the edge, as an arrow, where its cost lies beyond."""
    if not math.isfinite(point.accuracy):
        return []
    y, x = 100 * point.accuracy, scale.of(point.cost)
    text = _told(point, cost, key, False, "float")
    line = {
        "type": "scatter",
        "name": "float",
        "legendgroup": "float",
        "x": [scale.low, scale.high],
        "y": [y, y],
        "mode": "lines",
        "line": {"color": colours.float, "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
        "showlegend": not math.isfinite(x),
    }
    if not math.isfinite(x):
        return [line]
    beyond = x > scale.high or x < scale.low
    symbol = "square" if not beyond else "triangle-right" if x > scale.high else "triangle-left"
    mark = {
        "type": "scatter",
        "name": "float" + (f", {metric(cost).format(point.cost)}" if beyond else ""),
        "legendgroup": "float",
        "x": [min(max(x, scale.low), scale.high)],
        "y": [y],
        "customdata": [point.id],
        "text": [text],
        "hovertemplate": "%{text}<extra></extra>",
        "mode": "markers",
        "cliponaxis": False,
        "marker": {"symbol": symbol, "size": 12, "color": colours.float},
        "unselected": {"marker": {"opacity": 1.0}},
    }
    return [line, mark]


def _name(point: Point, scale: _Scale, colours: Palette) -> dict[str, Any]:
    place, low, high = (scale.place(v) for v in (scale.of(point.cost), scale.low, scale.high))
    left = place > (low + high) / 2
    return {
        "x": place,
        "y": 100 * point.accuracy,
        "text": f"<b>{html.escape(shorten(point.label), quote=False)}</b>",
        "showarrow": False,
        "xanchor": "right" if left else "left",
        "xshift": -14 if left else 14,
        "bgcolor": colours.wash("background", 0.75),
        "font": {"color": colours.text, "size": 12},
    }


def _told(point: Point, cost: Cost, key: str, front: bool, backend: str = "") -> str:
    """What hovering says. Labels are free text, and plotly takes tags for markup."""
    figures = metric(key)
    ends = f" {figures.interval(point.low, point.high)}" if math.isfinite(point.low + point.high) else ""
    said = [
        f"<b>{html.escape(point.label, quote=False)}</b>",
        *(html.escape(line, quote=False) for line in textwrap.wrap(point.detail, 64)),
        f"{figures.label}, {backend or LOOK[point.backend][0]}: {figures.format(point.accuracy)}{ends}",
        f"{metric(cost).label}: {metric(cost).format(point.cost)}",
    ]
    if point.dropped:
        said.append("stopped early: not all samples were evaluated")
    if front:
        said.append("on the Pareto front")
    return "<br>".join(said)


def _needed(cost: Cost, key: str, link: str) -> str:
    return f"{metric(key).label.lower()} {link} {metric(cost).label.lower()}"
