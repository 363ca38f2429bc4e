"""Weights of channels under one scale or many: SQNR by channel and by how far one of them sticks out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.lessons.granularity import FACTORS, GRANULARITIES, Shared
from qlab.metrics import metric
from qlab.plots.theme import Palette, figure, palette

SYMBOLS = {"tensor": "circle", "channel": "diamond", "group": "triangle-up"}


def by_channel(every: Mapping[str, Shared], channel: int, dark: bool) -> go.Figure:
    """SQNR of each channel under each granularity; the scaled channel stands on a band."""
    colours = palette(dark)
    made = figure(dark, 290, room={"t": 34, "b": 48, "l": 64, "r": 16}, showlegend=True)
    for name in GRANULARITIES:
        heights = every[name].sqnr
        made.add_scatter(
            x=np.arange(len(heights)), y=np.where(np.isfinite(heights), heights, np.nan), mode="markers",
            name=f"per {name}", marker={"size": 8, "symbol": SYMBOLS[name], "color": _colour(name, colours)},
            hovertemplate=f"channel %{{x}}, per {name}: %{{y:.1f}} dB<extra></extra>",
        )  # fmt: skip
    made.add_vrect(
        x0=channel - 0.5, x1=channel + 0.5, fillcolor=colours.wash("range", 0.35), line_width=0, layer="below"
    )
    count = len(every[GRANULARITIES[0]].sqnr)
    made.update_xaxes(title_text=f"channel ({count})", range=[-0.7, count - 0.3], showgrid=False, zeroline=False)
    made.update_yaxes(title_text=metric("sqnr").axis, rangemode="tozero")
    return made


def by_factor(lines: Mapping[str, NDArray[np.float64]], factor: int, dark: bool) -> go.Figure:
    """SQNR of the other channels over the factor by which one was scaled, for each granularity."""
    colours = palette(dark)
    made = figure(dark, 290, room={"t": 34, "b": 48, "l": 64, "r": 16}, showlegend=True)
    for name, heights in lines.items():
        colour = _colour(name, colours)
        made.add_scatter(
            x=FACTORS, y=heights, mode="lines+markers", name=f"per {name}", line={"color": colour, "width": 2.5},
            marker={"size": 8, "symbol": SYMBOLS[name]},
            hovertemplate=f"one channel × %{{x}}, per {name}: %{{y:.1f}} dB<extra></extra>",
        )  # fmt: skip
    made.add_vline(x=factor, line={"color": colours.range, "width": 6}, opacity=0.35, layer="below")
    made.update_xaxes(
        title_text="factor on one channel", type="log", tickvals=FACTORS, ticktext=[f"× {n}" for n in FACTORS],
        showgrid=False,
    )  # fmt: skip
    made.update_yaxes(title_text="SQNR of the others (dB)", rangemode="tozero")
    return made


def _colour(granularity: str, colours: Palette) -> str:
    return {"tensor": colours.neutral, "channel": colours.quantized, "group": colours.float}[granularity]
