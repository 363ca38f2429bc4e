"""Fake quantization as a staircase, with the slope it has and the slope that training takes for it."""

from __future__ import annotations

import plotly.graph_objects as go

from qlab.lessons.straight_through import Staircase, Step
from qlab.plots.theme import figure, palette

UPPER, LOWER = (0.44, 1.0), (0.0, 0.3)  # parts of the height that the function and its slopes take


def staircase(found: Staircase, weight: Step, slopes: bool, dark: bool) -> go.Figure:
    """Above, what fake quantization makes of each value, and the weight that is looked at; below, with slopes, the
    true slope and the one autograd is given. What is clipped is shaded; jumps of the true slope are left out."""
    colours = palette(dark)
    made = figure(
        dark, 500 if slopes else 300, room={"t": 84 if slopes else 36, "b": 48, "l": 64, "r": 16}, showlegend=True,
        uirevision="staircase",
    )  # fmt: skip
    made.add_scatter(
        x=found.x, y=found.x, mode="lines", name="without rounding", hoverinfo="skip",
        line={"color": colours.float, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    made.add_scatter(
        x=found.x, y=found.y, mode="lines", name="after fake quantization",
        line={"color": colours.quantized, "width": 2.5, "shape": "hv"},
        hovertemplate="%{x:.3f} becomes %{y:.3f}<extra></extra>",
    )  # fmt: skip
    made.add_scatter(
        x=[weight.value], y=[weight.back], mode="markers", name="the weight",
        marker={"color": colours.quantized, "size": 14, "line": {"color": colours.text, "width": 1.5}},
        hovertemplate="weight %{x:.3f}, after the grid %{y:.3f}<extra></extra>",
    )  # fmt: skip
    if slopes:
        for values, name, colour, width in (
            (found.through, "slope that training takes", colours.text, 2.5),
            ([slope if slope == 0 else None for slope in found.true], "true slope, where it has one", colours.error, 4),
        ):
            made.add_scatter(
                x=found.x, y=values, yaxis="y2", mode="lines", name=name, line={"color": colour, "width": width},
                hovertemplate="%{x:.3f}: %{y:.2f}<extra>" + name + "</extra>",
            )  # fmt: skip
        made.add_scatter(
            x=[weight.value, weight.value], y=[weight.true, weight.through], yaxis="y2", mode="markers",
            showlegend=False, hoverinfo="skip",
            marker={"color": [colours.error, colours.background], "size": 11,
                    "line": {"color": colours.text, "width": 1.5}},
        )  # fmt: skip
    low, high = found.kept
    first, last = float(found.x[0]), float(found.x[-1])
    for begin, end in ((first, low), (high, last)):
        made.add_vrect(x0=begin, x1=end, fillcolor=colours.wash("error", 0.1), line_width=0, layer="below")
    made.update_xaxes(title_text="weight before rounding (shaded: clipped)", range=[first, last], zeroline=False,
                      anchor="y2" if slopes else "y")  # fmt: skip
    made.update_layout(
        yaxis={"domain": list(UPPER) if slopes else [0, 1], "title": {"text": "weight after rounding"}, "nticks": 6},
    )
    if slopes:
        made.update_layout(
            yaxis2={"domain": list(LOWER), "title": {"text": "slope"}, "range": [-0.25, 1.3], "tickvals": [0, 1],
                    "anchor": "x", "zeroline": False},
        )  # fmt: skip
    return made
