"""The layers of a network in a row, on integers or in float, the conversions between them, and the speed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from qlab.lessons.boundaries import Ran
from qlab.lessons.turns import Speed
from qlab.metrics import duration
from qlab.plots.layers import shorten
from qlab.plots.theme import figure, name_rows, palette

HALF = 0.34  # of a box's width


def chain(layers: Sequence[str], quantized: Sequence[bool], found: Ran | None, dark: bool) -> go.Figure:
    """A box for each layer with weights between input and output. found: None draws what was asked for, else what ran
    with the conversions between the boxes."""
    colours, ends = palette(dark), ["input", *layers, "output"]
    made = figure(dark, 226, room={"t": 40, "b": 8, "l": 8, "r": 8}, showlegend=True)
    made.add_scatter(
        x=[0, len(ends) - 1], y=[0, 0], mode="lines", line={"color": colours.rule, "width": 4}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
    if found is None:
        kinds = [("to be quantized", colours.quantized, list(quantized)),
                 ("to stay float", colours.float, [not on for on in quantized])]  # fmt: skip
    else:
        on = [name in found.integer for name in layers]
        kinds = [("integer kernel", colours.gained, on), ("float kernel", colours.neutral, [not one for one in on])]
    for name, colour, mine in kinds:
        _boxes(made, [i + 1 for i, one in enumerate(mine) if one], name, colour)
    for place, name in enumerate(ends):
        taken = found is not None and name in found.taken
        colour = colours.text if 0 < place < len(ends) - 1 else colours.muted
        text = shorten(name, 14).replace(".", ".<br>") + ("<br><i>by the runtime<br>itself</i>" if taken else "")
        made.add_annotation(x=place, y=-0.62, text=text, showarrow=False, yanchor="top", font={"color": colour})
    if found is not None:
        crossed = found.crossed()
        made.add_scatter(
            x=[place + 0.5 for place, _ in crossed], y=[0] * len(crossed), mode="markers", name="conversion",
            marker={"color": colours.error, "size": 15, "symbol": "diamond"},
            hovertext=[f"{c.op.op}, {duration(c.op.seconds)}<br>{c.cause}" for _, c in crossed],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    made.update_xaxes(visible=False, range=[-0.6, len(ends) - 0.4])
    made.update_yaxes(visible=False, range=[-2.0, 0.75])
    return made


def _boxes(made: go.Figure, places: Sequence[int], name: str, colour: str) -> None:
    """Filled rectangles of one colour, as one trace with one entry in the legend."""
    x: list[float | None] = []
    y: list[float | None] = []
    for place in places:
        x += [place - HALF, place + HALF, place + HALF, place - HALF, place - HALF, None]
        y += [-0.5, -0.5, 0.5, 0.5, -0.5, None]
    made.add_scatter(
        x=x or [None], y=y or [None], mode="lines", fill="toself", fillcolor=colour, line={"color": colour, "width": 0},
        name=name, hoverinfo="skip",
    )  # fmt: skip


def speeds(
    own: Speed, patterns: Mapping[str, Speed], conversions: Mapping[str, int], own_conversions: int, dark: bool
) -> go.Figure:
    """A row for the choice and for each pattern: speed with the quartiles of the turns; what is noise is grey."""
    colours = palette(dark)
    rows = [("your choice", own, own_conversions), *((n, s, conversions[n]) for n, s in patterns.items())]
    made = figure(dark, 80 + 34 * len(rows), room={"t": 8, "b": 48, "r": 120}, showlegend=False)
    made.add_vline(x=1, line={"color": colours.float, "dash": "dot", "width": 1.5})
    looks = {"faster": colours.gained, "slower": colours.error, "noise": colours.neutral}
    for row, (name, speed, count) in enumerate(rows):
        low, median, high = speed.ratio
        made.add_scatter(
            x=[median], y=[row], mode="markers",
            marker={"size": 14 if row == 0 else 10, "color": looks[speed.outcome], "symbol": "diamond"},
            error_x={"type": "data", "symmetric": False, "array": [high - median], "arrayminus": [median - low],
                     "color": looks[speed.outcome], "thickness": 2, "width": 5},
            hovertext=[f"{name}: {speed.written}, {speed.outcome}"], hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
        made.add_annotation(
            x=1.01, xref="paper", y=row, xanchor="left", showarrow=False, font={"color": colours.muted},
            text=f"{count} conversion{'' if count == 1 else 's'}",
        )  # fmt: skip
    name_rows(made, [name if row else f"<b>{name}</b>" for row, (name, _, _) in enumerate(rows)])
    made.update_xaxes(title_text="speed, float = 1 (×), with the quartiles of the turns", nticks=6)
    return made
