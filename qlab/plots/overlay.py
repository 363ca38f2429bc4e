"""The same tensor in float and under several configs: where the values go, and what range each config gives them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig
from qlab.metrics import MINUS, three_digits, write
from qlab.plots.bins import Bins, Window, Zoom
from qlab.plots.distribution import (
    BOTTOM,
    CLEAR,
    GAP,
    HISTOGRAM,
    LEFT,
    MOST_TICKS,
    RIGHT,
    ROW,
    Bracket,
    steps,
)
from qlab.plots.layers import shorten
from qlab.plots.study import Ends, Study, Tensor, by_hand, dequantized_bins, study, values_of
from qlab.plots.theme import Palette, palette, template
from qlab.quant.qparams import choose_qparams

# One look a side, in the legend, the brackets and the histogram alike.
LOOKS = (("quantized", "solid"), ("range", "dash"), ("quantized", "dot"), ("range", "dashdot"))
LINE = 20  # pixels of a line of the legend
SIDE_NAME = 13  # what fits left of the brackets
TALLEST = 2.5  # times the second tallest bin: from there the tallest is a spike, and cut off


@dataclass(frozen=True)
class Side:
    """One config's view of the tensor. bins: the dequantized values; None where they cannot be known."""

    label: str
    study: Study
    bins: Bins | None

    @property
    def bracket(self) -> Bracket:
        """The range the config gives it."""
        return self.study.chosen.bracket(self.study.chosen.observer)


def side(
    label: str, tensor: Tensor, spec: QuantSpec, window: Window, axis: int = 0, ends: Ends | None = None
) -> Side:  # fmt: skip
    """The tensor, a weight or the statistics of an activation, under this spec. ends: a range set by hand. Raises what
    choose_qparams raises."""
    found = study(tensor, spec, axis)
    if ends is not None:
        found = by_hand(found, tensor, ends, axis)
    return Side(label, found, dequantized_bins(tensor, found, window, axis))


def window_of(tensor: Tensor, specs: Sequence[QuantSpec], axis: int = 0, zoom: Zoom = "auto") -> Window:
    """The part of the value axis that suits the tensor under all these specs."""
    grids = [choose_qparams(tensor, spec, axis) for spec in specs]
    ends = np.array([[float(qp.low.min()), float(qp.high.max())] for qp in grids], dtype=np.float64)
    return values_of(tensor, axis).window(ends.reshape(-1, 2), zoom)


def overlay(window: Window, float_bins: Bins, sides: Sequence[Side], dark: bool, unit: str = "value") -> go.Figure:
    """Histogram of the float values, filled, and a line over it for each side; on top a bracket a side with its SQNR.

    Where the levels of a side's grid can be told apart they stand on its bracket. unit: title of the value axis.
    Raises InvalidConfig for more sides than can be told apart.
    """
    if not 0 < len(sides) <= len(LOOKS):
        raise InvalidConfig(f"{len(sides)} configs over one histogram: choose between 1 and {len(LOOKS)}.")
    colours = palette(dark)
    brackets = ROW * len(sides)
    inner = brackets + GAP + HISTOGRAM
    top = LINE * (1 + len(sides)) + 10
    data: list[dict[str, Any]] = [_float(float_bins, colours)]
    for row, (one, (name, dash)) in enumerate(zip(sides, LOOKS, strict=False)):
        data.append(_quantized(one, colours, name, dash))
        data += _range(one, row, window, colours, name, dash)
    data.append(_worth(sides, window, colours))
    ceiling, cut = _ceiling(float_bins, sides)
    return go.Figure(
        data=data,
        layout={
            "template": template(dark),
            "height": inner + top + BOTTOM,
            "margin": {"t": top, "b": BOTTOM, "l": LEFT, "r": RIGHT},
            "uirevision": "overlay",
            "showlegend": True,
            "legend": {"orientation": "v", "traceorder": "normal"},
            "annotations": _cut_off(cut, window, colours),
            "shapes": [_end(end, colours, look) for end, look in _ends(sides, window)],
            "xaxis": {
                "range": [window.low, window.high],
                "title": {"text": unit[:1].upper() + unit[1:]},
                "zeroline": False,
                "automargin": False,
                "anchor": "y",
            },
            "yaxis": {
                "domain": [0, HISTOGRAM / inner],
                "anchor": "x",
                "range": [0, ceiling],
                "title": {"text": "values per bin"},
                "nticks": 5,
                "exponentformat": "SI",
                "automargin": False,
            },
            "yaxis2": {
                "domain": [1 - brackets / inner, 1],
                "anchor": "x",
                "range": [len(sides) - 0.45, -0.55],
                "tickvals": list(range(len(sides))),
                "ticktext": [html.escape(shorten(one.label, SIDE_NAME), quote=False) for one in sides],
                "ticklen": 10,
                "tickcolor": "rgba(0,0,0,0)",
                "showgrid": False,
                "zeroline": False,
                "fixedrange": True,
                "automargin": False,
            },
        },
    )


def _float(bins: Bins, colours: Palette) -> dict[str, Any]:
    x, y = steps(bins, bins.counts)
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": "float",
        "mode": "lines",
        "line": {"shape": "hv", "width": 1.4, "color": colours.float},
        "fill": "tozeroy",
        "fillcolor": colours.wash("float", 0.2),
        "hovertemplate": "%{x:.4g}: %{y:,.0f} values in this bin<extra>float</extra>",
    }


def _quantized(one: Side, colours: Palette, name: str, dash: str) -> dict[str, Any]:
    """The line of a side. Without its values it is empty, and the legend says why."""
    label = html.escape(shorten(one.label, 40), quote=False)
    if one.bins is None:
        x: Any = [None]
        y: Any = [None]
        said = "only ranges are known of each channel, not values"
    else:
        x, y = steps(one.bins, one.bins.counts)
        said = "each level spread over its step" if one.study.grid is not None else "a grid for each channel"
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "name": f"{label} · {said}",
        "mode": "lines",
        "line": {"shape": "hv", "width": 1.7, "color": getattr(colours, name), "dash": dash},
        "hoverinfo": "skip",
        "legendgroup": one.label,
    }


def _range(one: Side, row: int, window: Window, colours: Palette, name: str, dash: str) -> list[dict[str, Any]]:
    """The bracket of a side, and its levels where they can be told apart."""
    bracket, colour = one.bracket, getattr(colours, name)
    low, high = (min(max(end, window.low), window.high) for end in (bracket.low, bracket.high))
    cut = (bracket.low < window.low, bracket.high > window.high)
    ends = (f"{three_digits(bracket.low)} … {three_digits(bracket.high)}").replace("-", MINUS)
    said = [
        f"<b>{html.escape(one.label, quote=False)}</b>",
        f"{one.study.spec.bits} bit, {one.study.spec.qscheme.replace('_', ' ')}, {bracket.observer}",
        f"range {ends}, {write('sqnr', bracket.sqnr)}",
    ]
    if bracket.sqnr is not None:
        said.append(f"{write('clipped', one.study.clipped.share)} of the values clipped")
    made = [
        {
            "type": "scatter",
            "x": [low, high],
            "y": [row, row],
            "yaxis": "y2",
            "name": one.label,
            "meta": {"low": bracket.low, "high": bracket.high},
            "mode": "lines+markers",
            "cliponaxis": False,
            "showlegend": False,
            "line": {"color": colour, "width": 3, "dash": dash},
            "marker": {
                "symbol": [
                    "triangle-left" if cut[0] else "line-ns-open",
                    "triangle-right" if cut[1] else "line-ns-open",
                ],
                "size": [9 if c else 15 for c in cut],
                "color": colour,
                "line": {"width": 3, "color": colour},
            },
            "text": ["<br>".join(said)] * 2,
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]
    grid = one.study.grid
    if grid is not None:
        seen = grid.levels[(grid.levels > low) & (grid.levels < high)]
        if 0 < len(seen) <= MOST_TICKS * (high - low) / (window.high - window.low):
            made.append(
                {
                    "type": "scatter",
                    "x": seen,
                    "y": np.full(len(seen), row),
                    "yaxis": "y2",
                    "name": "levels",
                    "mode": "markers",
                    "showlegend": False,
                    "marker": {"symbol": "line-ns-open", "size": 9, "line": {"width": 1.4}, "color": colour},
                    "hovertemplate": "level %{x:.4g}<extra></extra>",
                }
            )
    return made


def _worth(sides: Sequence[Side], window: Window, colours: Palette) -> dict[str, Any]:
    """The SQNR right of each bracket."""
    return {
        "type": "scatter",
        "x": [window.high] * len(sides),
        "y": list(range(len(sides))),
        "yaxis": "y2",
        "mode": "text",
        "name": "SQNR",
        "text": [f"<b>{CLEAR}{write('sqnr', one.bracket.sqnr)}</b>" for one in sides],
        "textposition": "middle right",
        "textfont": {"size": 12, "color": colours.text},
        "cliponaxis": False,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _ends(sides: Sequence[Side], window: Window) -> list[tuple[float, tuple[str, str]]]:
    """The ends of the ranges that lie in the picture, with the look of their side."""
    return [
        (end, look)
        for one, look in zip(sides, LOOKS, strict=False)
        for end in (one.bracket.low, one.bracket.high)
        if window.low < end < window.high
    ]


def _end(end: float, colours: Palette, look: tuple[str, str]) -> dict[str, Any]:
    name, dash = look
    line = {"color": colours.wash(name, 0.7), "width": 1.2, "dash": dash}
    return {"type": "line", "x0": end, "x1": end, "y0": 0, "y1": 1, "yref": "y domain", "line": line, "layer": "below"}


def _ceiling(float_bins: Bins, sides: Sequence[Side]) -> tuple[float, list[tuple[float, str]]]:
    """Top of the count axis; place and words of each line that is cut off there.

    One bin far above the rest, such as exact zeros, would leave the rest flat; so would the few levels of coarse grids.
    """
    drawn = [("float", float_bins, None)] + [(o.label, o.bins, o.study) for o in sides if o.bins is not None]
    ranked = np.sort(float_bins.counts)
    spike = len(ranked) > 1 and ranked[-1] > TALLEST * ranked[-2] > 0
    usual = float(ranked[-2 if spike else -1])
    reach = max(float(bins.counts.max()) for _, bins, _ in drawn)
    if reach <= TALLEST * usual or usual == 0:
        return 1.06 * max(reach, 1e-12), []
    top, cut = 1.3 * usual, []
    for label, bins, found in drawn:
        most = int(bins.counts.argmax())
        if bins.counts[most] <= top:
            continue
        place, count, what = float(bins.edges[most] + bins.edges[most + 1]) / 2, bins.counts[most], "in the bin at"
        if bins.bin_of(0.0) == most:
            place = 0.0
        if found is not None and found.grid is not None and found.level_counts is not None:
            # What is spread over a step is one level: its height in a bin is nothing anyone would look for.
            level = int(found.level_counts.argmax())
            place, count, what = float(found.grid.levels[level]), found.level_counts[level], "on the level"
        name = html.escape(shorten(label, 28), quote=False)
        cut.append((place, f"↑ {name}: {count:,.0f} {what} {three_digits(place).replace('-', MINUS)}"))
    return top, cut


def _cut_off(cut: Sequence[tuple[float, str]], window: Window, colours: Palette) -> list[dict[str, Any]]:
    """Beside the first line that leaves the picture: how far each of them would go."""
    if not cut:
        return []
    place = cut[0][0]
    left = place > (window.low + window.high) / 2
    return [
        {
            "x": place,
            "y": 1,
            "xref": "x",
            "yref": "y domain",
            "text": "<br>".join(text for _, text in cut),
            "align": "right" if left else "left",
            "xanchor": "right" if left else "left",
            "yanchor": "top",
            "xshift": -10 if left else 10,
            "showarrow": False,
            "bgcolor": colours.wash("background", 0.7),
            "font": {"color": colours.muted, "size": 12},
        }
    ]
