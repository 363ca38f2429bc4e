"""The end of the way of one output number: float, exact sum on integers, and the code it becomes."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go

from qlab.lessons.integers import OneNumber
from qlab.metrics import MINUS
from qlab.plots.theme import figure, palette

MOST_CODES = 24  # in view, up to which each is named on the axis


def landing(one: OneNumber, dark: bool, *, with_float: bool) -> go.Figure:
    """The sum in steps of the output grid, above the codes it may become. with_float: also that of the float network.

    Left of the codes that a ReLU leaves, and beyond the grid, the line is shaded.
    """
    colours, s = palette(dark), one.steps
    zero, scale = s.output_zero_point, s.output_scale
    exact = s.scaled + zero
    marks = [
        ("sum on integers, rescaled", exact, 1.0, colours.gained, "circle"),
        ("the code it becomes", float(s.code), 0.0, colours.quantized, "diamond"),
    ]
    if with_float:
        marks.insert(
            0, ("float network", (one.float_sum + one.float_bias) / scale + zero, 2.0, colours.float, "circle")
        )
    places = [at for _, at, *_ in marks]
    low, high = math.floor(min(places)) - 3, math.ceil(max(places)) + 3
    made = figure(dark, 250, room={"t": 34, "b": 48, "l": 8, "r": 8}, showlegend=True)
    codes = np.arange(low, high + 1)
    made.add_scatter(
        x=codes, y=[0] * len(codes), mode="markers", showlegend=False, hoverinfo="skip",
        marker={"color": colours.range, "size": 12, "symbol": "line-ns-open", "line": {"width": 2}},
    )  # fmt: skip
    made.add_scatter(
        x=[exact, exact, s.code], y=[1, 0.25, 0], mode="lines", line={"color": colours.quantized, "dash": "dot"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for name, at, height, colour, symbol in marks:
        made.add_scatter(
            x=[at], y=[height], mode="markers+text", marker={"color": colour, "size": 14, "symbol": symbol}, name=name,
            text=[f"{at:.2f}".replace("-", MINUS) if at != s.code else f"{s.code}".replace("-", MINUS)],
            textposition="top center" if height else "bottom center", textfont={"color": colour},
            hovertemplate=f"{name}: %{{x:.3f}}<extra></extra>",
        )  # fmt: skip
    for left, right in ((low, s.low - 0.5), (s.high + 0.5, high)):
        if right > left:
            made.add_vrect(x0=left, x1=right, fillcolor=colours.wash("error", 0.1), line_width=0, layer="below")
    every = max(1, math.ceil(len(codes) / MOST_CODES))
    made.update_xaxes(
        title_text=f"output code (one step = {scale:.3g}; shaded: no such code, cut off)",
        tickvals=codes[::every], ticktext=[str(c).replace("-", MINUS) for c in codes[::every]], range=[low, high],
    )  # fmt: skip
    made.update_yaxes(visible=False, range=[-0.7, 2.7 if with_float else 1.8])
    return made
