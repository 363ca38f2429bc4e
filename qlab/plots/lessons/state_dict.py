"""A corner of a weight before a write, in what was written to, and after; and the output before and after."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.lessons.state_dict import COLUMNS, ROWS, Write
from qlab.metrics import MINUS, three_digits
from qlab.plots.theme import figure, palette

REACH = 128  # codes of either sign


def corners(write: Write, dark: bool, *, told: bool) -> go.Figure:
    """The first numbers of the first channels: state_dict() before; told: also what was written to, and state_dict()
    after; else these stay empty. Numbers that differ from before are framed. Where the write raised, there is nothing
    that was written to."""
    colours = palette(dark)
    nothing = np.full(write.before.shape, np.nan)
    written = nothing if write.written is None else write.written
    panels = [
        ("state_dict() before", write.before, ""),
        ("what was written to", written if told else nothing, "nothing: it raised" if told else "?"),
        ("state_dict() after", write.after if told else nothing, "?"),
    ]
    width, gap = 0.31, 0.035
    made = figure(dark, 214, room={"t": 30, "b": 48, "l": 48, "r": 8}, showlegend=False)
    for place, (title, values, otherwise) in enumerate(panels):
        start = place * (width + gap)
        axis = str(place + 1) if place else ""
        corner = values[:ROWS, :COLUMNS]
        made.add_heatmap(
            z=corner, zmin=-REACH, zmax=REACH, showscale=False, xgap=2, ygap=2, xaxis=f"x{axis}", yaxis=f"y{axis}",
            colorscale=[[0.0, colours.float], [0.5, colours.background], [1.0, colours.quantized]],
            text=[[_number(v) for v in row] for row in corner], hoverongaps=False,
            hovertemplate="channel %{y}, number %{x}: %{text}<extra></extra>",
        )  # fmt: skip
        _write(made, corner, axis, dark)
        made.update_layout(
            {
                f"xaxis{axis}": {
                    "domain": (start, start + width), "anchor": f"y{axis}", "showgrid": False, "ticks": "", "dtick": 1,
                    "title": {"text": "number of the channel"}, "zeroline": False,
                },
                f"yaxis{axis}": {
                    "anchor": f"x{axis}", "autorange": "reversed", "showgrid": False, "ticks": "", "dtick": 1,
                    "title": {"text": "" if place else "output channel"}, "zeroline": False,
                },
            }
        )  # fmt: skip
        made.add_annotation(
            text=title, x=start, y=1, xref="paper", yref="paper", xanchor="left", yanchor="bottom", showarrow=False,
            font={"color": colours.muted, "size": 13},
        )  # fmt: skip
        if np.isnan(corner).all():
            made.add_shape(
                type="rect", x0=-0.5, x1=COLUMNS - 0.5, y0=-0.5, y1=ROWS - 0.5, xref=f"x{axis}", yref=f"y{axis}",
                line={"color": colours.rule, "width": 1},
            )  # fmt: skip
            made.add_annotation(
                text=otherwise, x=start + width / 2, y=0.5, xref="paper", yref="paper", showarrow=False,
                font={"color": colours.muted, "size": 16},
            )  # fmt: skip
            continue
        for row, column in zip(*np.nonzero(corner != write.before[:ROWS, :COLUMNS]), strict=True):
            made.add_shape(
                type="rect", x0=column - 0.47, x1=column + 0.47, y0=row - 0.47, y1=row + 0.47, xref=f"x{axis}",
                yref=f"y{axis}", line={"color": colours.error, "width": 2},
            )  # fmt: skip
    return made


def _write(made: go.Figure, corner: NDArray[np.float64], axis: str, dark: bool) -> None:
    """The numbers in their cells, black or white by what is under them: plotly's own choice is too faint on colour."""
    rows, columns = np.nonzero(~np.isnan(corner))
    values = corner[rows, columns] / REACH
    white = np.abs(values) < 0.45 if dark else values < -0.55
    made.add_scatter(
        x=columns, y=rows, mode="text", text=[_number(v) for v in corner[rows, columns]], xaxis=f"x{axis}",
        yaxis=f"y{axis}", hoverinfo="skip", textfont={"color": np.where(white, "#FFFFFF", "#000000"), "size": 13},
    )  # fmt: skip


def outputs(before: NDArray[np.float64], after: NDArray[np.float64], dark: bool) -> go.Figure:
    """What each channel of the layer gives for one input, before the write and after it. before, after: [O]."""
    colours = palette(dark)
    made = figure(dark, 250, room={"t": 34, "b": 48, "l": 72, "r": 8}, showlegend=True)
    for values, name, colour, symbol, size in (
        (before, "output before", colours.neutral, "circle-open", 15),
        (after, "output after", colours.quantized, "diamond", 8),
    ):
        made.add_scatter(
            x=np.arange(len(values)), y=values, mode="markers", name=name,
            marker={"color": colour, "symbol": symbol, "size": size, "line": {"width": 2}},
            hovertemplate=f"channel %{{x}}, {name}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    made.update_xaxes(title_text="output channel", dtick=1, showgrid=False)
    made.update_yaxes(title_text="value for one input")
    return made


def _number(value: float) -> str:
    if np.isnan(value):
        return ""
    return (f"{value:.0f}" if value == round(value) else three_digits(value)).replace("-", MINUS)
