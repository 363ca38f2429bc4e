"""Accuracy as dots with their intervals on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from qlab.metrics import metric
from qlab.plots.theme import empty, figure, name_rows, palette


@dataclass(frozen=True)
class Dot:
    """One measured share, 0..1, with the ends of its 95 % interval. `kind` gives the colour."""

    label: str
    value: float
    low: float
    high: float
    kind: Literal["float", "quantized"] = "quantized"


def accuracy_dots(dots: Sequence[Dot], dark: bool, key: str = "accuracy") -> go.Figure:
    """A row for each dot, first on top; the first float one's interval runs through all rows as a band.

    The axis is cut to what the intervals need: a dot's place matters, not its distance from 0.
    """
    if not dots:
        return empty("Nothing has been measured yet.", dark, height=120)
    figures, colours = metric(key), palette(dark)
    made = figure(dark, 68 + 38 * len(dots), room={"t": 8, "b": 48, "r": 16}, showlegend=False)
    reference = next((dot for dot in dots if dot.kind == "float"), None)
    if reference is not None:
        made.add_vrect(
            x0=100 * reference.low,
            x1=100 * reference.high,
            fillcolor=colours.wash("float", 0.12),
            line_width=0,
            layer="below",
        )
    for row, dot in enumerate(dots):
        colour = getattr(colours, dot.kind)
        written = f"{figures.format(dot.value)} {figures.interval(dot.low, dot.high)}"
        made.add_scatter(
            x=[100 * dot.value],
            y=[row],
            mode="markers",
            marker={"size": 13, "color": colour, "symbol": "circle" if dot.kind == "float" else "diamond"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * (dot.high - dot.value)],
                "arrayminus": [100 * (dot.value - dot.low)],
                "color": colour,
                "thickness": 2,
                "width": 6,
            },
            hovertemplate=f"{dot.label}<br>{written}<extra></extra>",
        )
        made.add_annotation(
            x=100 * dot.high,
            y=row,
            text=f"<b>{figures.format(dot.value)}</b>",
            xanchor="left",
            xshift=10,
            showarrow=False,
            font={"color": colours.text},
        )
    low, high = min(dot.low for dot in dots), max(dot.high for dot in dots)
    room = max(high - low, 0.01)
    # what is written right of the last dot needs about a sixth of the width
    made.update_xaxes(
        title_text=f"{figures.axis}, with its 95 % interval",
        range=[100 * (low - 0.08 * room), 100 * (high + 0.22 * room)],
    )
    name_rows(made, [dot.label for dot in dots])
    return made
