"""Channels of a layer before and after folding, and what rounding inside a unit costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from qlab.lessons.folding import Folded
from qlab.metrics import metric, three_digits, write
from qlab.plots.theme import figure, name_rows, palette

MOST_LABELS = 24
TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def channels(found: Folded, open: bool, dark: bool) -> go.Figure:
    """For each channel how many codes of the grid that all share its largest weight reaches, narrowest after folding
    first; before folding and, where open, after it."""
    colours = palette(dark)
    count, order = len(found.factor), np.argsort(found.after.codes if open else found.before.codes, kind="stable")
    places = np.arange(count)
    made = figure(dark, 360, room={"t": 44, "b": 48, "l": 64, "r": 16}, showlegend=True)
    before, after = found.before.codes[order], found.after.codes[order]
    if open:
        gap = np.full(count, np.nan)
        made.add_scatter(
            x=np.repeat(places, 3), y=np.stack([before, after, gap], axis=1).ravel(), mode="lines",
            line={"color": colours.wash("neutral", 0.5), "width": 1.5}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    shown = [("before folding", before, found.before.reach[order], colours.float, "circle")]
    if open:
        shown.append(("after folding", after, found.after.reach[order], colours.quantized, "diamond"))
    for name, codes, reach, colour, symbol in shown:
        made.add_scatter(
            x=places, y=codes, mode="markers", name=name, marker={"color": colour, "size": 9, "symbol": symbol},
            hovertext=[
                f"channel {c} {name}: up to {three_digits(r)}, {three_digits(k)} codes"
                for c, r, k in zip(order, reach, codes, strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    made.add_scatter(
        x=[-0.7, count - 0.3], y=[found.before.most] * 2, mode="lines", hoverinfo="skip",
        line={"color": colours.range, "width": 2.5},
        name=f"a grid of its own: all {found.before.most} codes on each side",
    )  # fmt: skip
    lowest = float(min(found.before.codes.min(), found.after.codes.min() if open else np.inf))
    made.update_yaxes(
        type="log", title_text="codes the largest weight reaches (log)",
        range=[np.log10(min(lowest * 0.7, found.before.most / 3)), np.log10(found.before.most * 1.25)],
        tickvals=TICKS,
    )  # fmt: skip
    step = max(1, -(-count // MOST_LABELS))
    made.update_xaxes(
        title_text=f"channel, narrowest first ({count:,})", range=[-0.7, count - 0.3], showgrid=False, zeroline=False,
        tickvals=places[::step], ticktext=[str(channel) for channel in order[::step]],
    )  # fmt: skip
    return made


def ways(sqnr: Mapping[str, float], dark: bool) -> go.Figure:
    """A bar for each place to round at: SQNR of what the ReLU gives."""
    colours, names = palette(dark), list(sqnr)
    made = figure(dark, 88 + 34 * len(names), room={"t": 8, "b": 48, "r": 16}, showlegend=False, bargap=0.35)
    made.add_bar(
        orientation="h", x=list(sqnr.values()), y=list(range(len(names))),
        marker={"color": [colours.quantized, *[colours.wash("quantized", 0.55)] * (len(names) - 1)],
                "line": {"width": 0}},
        text=[write("sqnr", value) for value in sqnr.values()], textposition="outside", cliponaxis=False,
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    name_rows(made, names)
    made.update_xaxes(
        title_text=f"{metric('sqnr').axis} of what the ReLU gives, simulated", range=[0, max(sqnr.values()) * 1.18]
    )
    return made
