"""Weights read back by two formulas, and what groups cost and give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from qlab.lessons.few_bits import Cost, Held
from qlab.metrics import metric
from qlab.plots.theme import figure, palette

MOST = 400  # weights that are drawn, at even distances
DASHES = {2: "dot", 3: "dash", 4: "solid"}


def read_back(found: Held, dark: bool) -> go.Figure:
    """What both formulas make of the codes, over the float weight; the diagonal is where they should lie."""
    colours = palette(dark)
    made = figure(dark, 380, room={"t": 36, "b": 48, "l": 72, "r": 16})
    floats = found.floats.reshape(-1)
    chosen = np.unique(np.linspace(0, len(floats) - 1, MOST).astype(int))
    ends = [float(floats[chosen].min()), float(floats[chosen].max())]
    made.add_scatter(
        x=ends, y=ends, mode="lines", name="the float weight itself", hoverinfo="skip",
        line={"color": colours.float, "width": 1.5},
    )  # fmt: skip
    for values, name, colour, symbol in (
        (found.wrong, "code × scale + zero point", colours.error, "x"),
        (found.right, "(code − zero point) × scale", colours.quantized, "circle"),
    ):
        made.add_scatter(
            x=floats[chosen], y=values.reshape(-1)[chosen], mode="markers", name=name,
            marker={"color": colour, "size": 5, "symbol": symbol, "opacity": 0.7},
            hovertemplate="float %{x:.4g}, read %{y:.4g}<extra>" + name + "</extra>",
        )  # fmt: skip
    made.update_xaxes(title_text=f"float weight of {found.name}", zeroline=False)
    made.update_yaxes(title_text="weight read from its code", zeroline=True)
    return made


def groups(rows: Sequence[Cost], bits: int, each: str, dark: bool) -> go.Figure:
    """SQNR (dB) over the bits each weight costs, scales included: a line for each width, a point for each size."""
    colours = palette(dark)
    made = figure(dark, 420, room={"t": 36, "b": 48, "l": 64, "r": 24})
    for width in sorted({row.bits for row in rows}):
        line = [row for row in rows if row.bits == width]
        mine = width == bits
        made.add_scatter(
            x=[row.per_weight for row in line], y=[row.sqnr for row in line], mode="lines+markers+text",
            name=f"{width}-bit codes",
            text=[row.each if mine else "" for row in line], textposition="bottom right",
            textfont={"color": colours.muted, "size": 11}, customdata=[_said(row) for row in line],
            line={"color": colours.quantized if mine else colours.neutral, "width": 2.5 if mine else 1.5,
                  "dash": DASHES[width]},
            marker={"size": [14 if mine and row.each == each else 7 for row in line]},
            hovertemplate="%{customdata}<br>%{x:.2f} bits a weight, %{y:.1f} dB<extra></extra>",
        )  # fmt: skip
    made.update_xaxes(title_text="stored bits for each weight: code, scales and zero points", zeroline=False)
    made.update_yaxes(title_text=f"{metric('sqnr').axis} of the weight", zeroline=False)
    return made


def _said(row: Cost) -> str:
    each = f"{row.each} weights" if row.each.isdecimal() else row.each
    return f"{row.bits} bits, a scale for each {each}"
