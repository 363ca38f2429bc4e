"""A value on its way to the nearest grid point."""

from __future__ import annotations

import plotly.graph_objects as go

from qlab.lessons.grid import OnGrid
from qlab.metrics import MINUS, three_digits
from qlab.plots.theme import figure, palette

MOST_CODES = 33  # grid points up to which each has its code written under it


def number_line(found: OnGrid, dark: bool) -> go.Figure:
    """The grid as points on a line, the float value above it, the point it lands on below, and the error between."""
    colours = palette(dark)
    landing, points = found.landing, found.points
    made = figure(dark, 300, room={"t": 36, "b": 48, "l": 8, "r": 8}, showlegend=True, uirevision="grid")
    made.add_scatter(
        x=points, y=[0] * len(points), mode="markers" if len(points) > MOST_CODES else "markers+text",
        marker={"color": colours.range, "size": 9 if len(points) <= MOST_CODES else 5, "symbol": "line-ns-open",
                "line": {"width": 2}},
        text=[str(code) for code in found.codes], textposition="bottom center",
        textfont={"color": colours.muted, "size": 11}, customdata=found.codes, name="grid, with codes",
        hovertemplate="code %{customdata}: %{x:.4g}<extra></extra>",
    )  # fmt: skip
    made.add_scatter(
        x=[landing.value, landing.back], y=[1, 1], mode="lines", line={"color": colours.error, "width": 5},
        name="error", hoverinfo="skip",
    )  # fmt: skip
    made.add_scatter(
        x=[landing.back, landing.back], y=[1, 0], mode="lines", line={"color": colours.quantized, "dash": "dot"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for at, height, colour, name in (
        (landing.value, 1, colours.float, "float value"),
        (landing.back, 0, colours.quantized, "value after the grid"),
    ):
        made.add_scatter(
            x=[at], y=[height], mode="markers", marker={"color": colour, "size": 14}, name=name,
            hovertemplate=f"{name}: %{{x:.4g}}<extra></extra>",
        )  # fmt: skip
    made.add_annotation(
        x=(landing.value + landing.back) / 2, y=1, yshift=20, showarrow=False, font={"color": colours.error},
        text=f"{three_digits(landing.error)} = {three_digits(landing.in_steps)} steps".replace("-", MINUS),
    )  # fmt: skip
    room = max(points[-1] - points[0], 1e-9) * 0.06
    ends = (min(points[0], landing.value) - room, max(points[-1], landing.value) + room)
    for low, high in ((ends[0], points[0] - found.scale / 2), (points[-1] + found.scale / 2, ends[1])):
        if high > low:
            made.add_vrect(x0=low, x1=high, fillcolor=colours.wash("error", 0.12), line_width=0, layer="below")
    made.update_xaxes(title_text="value (shaded: beyond the range, clipped to its end)", range=ends)
    made.update_yaxes(visible=False, range=[-0.6, 1.5])
    return made
