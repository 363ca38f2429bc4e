"""Two grids under one histogram, and the terms of an integer product."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from qlab.lessons.schemes import Scheme, Schemes, Sums
from qlab.metrics import MINUS, percent, write
from qlab.plots.distribution import ceiling, steps
from qlab.plots.theme import Palette, figure, name_rows, palette

MOST_TICKS = 80  # codes up to which each is drawn on its own


def two_grids(found: Schemes, dark: bool, told: bool) -> go.Figure:
    """The values as a histogram, the affine and the symmetric grid as strips under it, on the same axis.

    told: codes that no value takes are grey, and the SQNR of each grid stands beside it.
    """
    colours = palette(dark)
    made = figure(
        dark, 400, room={"t": 34, "b": 52, "l": 92, "r": 92}, showlegend=told, legend={"traceorder": "normal"}
    )
    x, y = steps(found.bins, found.bins.counts)
    made.add_scatter(
        x=x, y=y, mode="lines", name="values", line={"shape": "hv", "width": 1.4, "color": colours.float},
        fill="tozeroy", fillcolor=colours.wash("float", 0.28), hovertemplate="%{x:.3g}: %{y:,} values<extra></extra>",
    )  # fmt: skip
    top, spike = ceiling(found.bins, False, found.zeros)
    if spike is not None:
        made.add_annotation(
            x=0, y=top, yanchor="top", xanchor="left", xshift=8, showarrow=False, font={"color": colours.muted},
            text=f"↑ {found.zeros:,} exact zeros ({percent(found.zeros / found.count)})",
        )  # fmt: skip
    for name, scheme, axis in (("affine", found.affine, "y2"), ("symmetric", found.symmetric, "y3")):
        _strip(made, name, scheme, axis, colours, told)
    low, high = float(found.bins.edges[0]), float(found.bins.edges[-1])
    room = 0.02 * (high - low)
    made.update_layout(
        yaxis={"domain": [0.44, 1], "range": [0, top], "title": {"text": "values per bin"}, "nticks": 4,
               "exponentformat": "SI"},
        yaxis2=_rows("affine", 0.22), yaxis3=_rows("symmetric", 0.0),
        xaxis={"title": {"text": "value"}, "range": [low - room, high + room], "anchor": "y3", "zeroline": False,
               "showgrid": False},
    )  # fmt: skip
    # Over the histogram alone: below it would strike out the codes that stand at 0.
    made.add_shape(type="line", x0=0, x1=0, y0=0, y1=1, yref="y domain", line={"color": colours.muted, "dash": "dot"})
    return made


def _rows(name: str, bottom: float) -> dict[str, object]:
    return {
        "domain": [bottom, bottom + 0.16], "range": [-1.4, 0.9], "tickvals": [0], "ticktext": [name], "ticks": "",
        "showgrid": False, "zeroline": False, "anchor": "x",
    }  # fmt: skip


def _strip(made: go.Figure, name: str, scheme: Scheme, axis: str, colours: Palette, told: bool) -> None:
    points, used = scheme.points, scheme.used
    if scheme.levels <= MOST_TICKS:
        kinds = [(True, used), (False, ~used)] if told else [(True, np.ones(len(points), bool))]
        for taken, mask in kinds:
            made.add_scatter(
                x=points[mask], y=[0] * int(mask.sum()), yaxis=axis, mode="markers",
                showlegend=told and (axis == "y2") == taken, legendgroup=f"{taken}",
                name="codes that values take" if taken else "codes no value takes",
                marker={"symbol": "line-ns-open", "size": 18 if taken else 9, "line": {"width": 1.8},
                        "color": colours.range if taken else colours.neutral},
                customdata=scheme.codes[mask], hovertemplate="code %{customdata}: %{x:.4g}<extra></extra>",
            )  # fmt: skip
    else:
        _bands(made, scheme, axis, colours, told)
    codes = {int(scheme.codes[0]): points[0], int(scheme.codes[-1]): points[-1]}
    near = 0.06 * (points[-1] - points[0])
    if min(abs(points[0]), abs(points[-1])) > near:
        codes[scheme.zero_point] = 0.0
    made.add_scatter(
        x=list(codes.values()), y=[-0.95] * len(codes), yaxis=axis, mode="text", showlegend=False, hoverinfo="skip",
        text=[str(code).replace("-", MINUS) for code in codes], cliponaxis=False,
        textfont={"size": 11, "color": colours.muted},
    )  # fmt: skip
    if told:
        made.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=12, y=0, yref=axis, showarrow=False,
            text=f"<b>{write('sqnr', scheme.error.sqnr)}</b>", font={"color": colours.text},
        )  # fmt: skip


def _bands(made: go.Figure, scheme: Scheme, axis: str, colours: Palette, told: bool) -> None:
    """Too many codes to tell apart: a band from the first to the last that is taken, and a grey one for the rest."""
    taken = np.flatnonzero(scheme.used) if told else np.array([0, len(scheme.points) - 1])
    ends = scheme.points[taken[0]], scheme.points[taken[-1]]
    parts = [(False, scheme.points[0], ends[0]), (False, ends[1], scheme.points[-1]), (True, *ends)]
    for number, (inside, low, high) in enumerate(parts):
        made.add_scatter(
            x=[low, high, high, low], y=[-0.6, -0.6, 0.6, 0.6], yaxis=axis, mode="lines", line={"width": 0},
            fill="toself", fillcolor=colours.wash("range", 0.6) if inside else colours.wash("neutral", 0.3),
            hoverinfo="skip", showlegend=told and number == (2 if axis == "y2" else 0), legendgroup=f"{inside}",
            name="codes that values take" if inside else "codes no value takes",
        )  # fmt: skip


def terms(found: Sums, dark: bool) -> go.Figure:
    """The four sums that make one output element, as bars, and their total."""
    colours = palette(dark)
    rows = [
        ("Σ qx·qw", found.products, colours.gained, "for every input"),
        ("− zw · Σ qx", found.weight_zero, colours.error, "for every input"),
        ("− zx · Σ qw", found.input_zero, colours.neutral, "once, ahead"),
        (f"+ {found.K} · zx · zw", found.both, colours.neutral, "once, ahead"),
        ("sum", found.total, colours.quantized, "what counts"),
    ]
    made = figure(dark, 300, room={"t": 8, "b": 48, "r": 8}, showlegend=False, bargap=0.35)
    made.add_bar(
        x=[value for _, value, _, _ in rows], y=list(range(len(rows))), orientation="h",
        marker={"color": [colour for _, _, colour, _ in rows]}, textposition="outside", cliponaxis=False,
        text=[f"{value:,}".replace("-", MINUS) for _, value, _, _ in rows], hoverinfo="skip",
    )  # fmt: skip
    most = max(abs(value) for _, value, _, _ in rows) or 1
    name_rows(made, [f"{label}<br>{when if value else 'not needed'}" for label, value, _, when in rows])
    made.update_xaxes(title_text="integer, in steps of scale of x · scale of w", range=[-1.3 * most, 1.3 * most])
    return made
