"""The ops of a network with what became of each, and how many weights share a code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.graph.causes import state_of
from qlab.graph.optypes import OP_TYPES
from qlab.graph.placement import LedgerRow
from qlab.plots.layers import shorten
from qlab.plots.theme import LIGHT, figure, palette

WIDE = 6  # ops up to which each has its name


def strip(rows: Sequence[LedgerRow], asked: str, dark: bool, *, told: bool) -> go.Figure:
    """A box for each op in order; the one that is asked for is framed. told: whether boxes have the colour of what
    became of their op, or all that of nothing known."""
    colours = palette(dark)
    fill = {
        "quantized": colours.quantized, "shared": colours.wash("quantized", 0.35), "float": colours.wash("neutral", 0.5)
    }  # fmt: skip
    states, few = [state_of(row.cause) for row in rows], len(rows) <= WIDE
    named = [i for i, row in enumerate(rows) if few or OP_TYPES[row.op].role == "weighted"]
    made = figure(dark, 156, room={"t": 30, "b": 46, "l": 8, "r": 8}, showlegend=told)
    for state, colour in fill.items() if told else [("", colours.wash("neutral", 0.12))]:
        own = [i for i, one in enumerate(states) if one == state or not told]
        if own:
            made.add_bar(
                x=own, y=[1] * len(own), width=0.82, name=state, marker={"color": colour, "line": {"width": 0}},
                text=[rows[i].op if few else "" for i in own], textposition="inside", insidetextanchor="middle",
                hovertext=[f"{rows[i].layer}: {rows[i].reason}" if told else rows[i].layer for i in own],
                hovertemplate="%{hovertext}<extra></extra>",
                textfont={"color": LIGHT.text if state == "quantized" else colours.text},
            )  # fmt: skip
    at = next(i for i, row in enumerate(rows) if row.layer == asked)
    made.add_shape(
        type="rect", x0=at - 0.46, x1=at + 0.46, y0=-0.04, y1=1.04, line={"color": colours.error, "width": 2.5}
    )
    made.update_layout(bargap=0, barmode="overlay")
    made.update_xaxes(
        tickvals=named, ticktext=[shorten(rows[i].layer, 16) for i in named], showgrid=False, ticks="", tickangle=0,
        range=[-0.6, len(rows) - 0.4],
        title_text="ops in order of computation; framed: the layer that is asked for",
    )  # fmt: skip
    made.update_yaxes(visible=False, range=[-0.06, 1.06])
    return made


def code_counts(codes: NDArray[np.int64], counts: NDArray[np.int64], dark: bool) -> go.Figure:
    """How many weights stand on each code, on a scale of powers of ten. codes, counts: [levels]."""
    colours = palette(dark)
    taken = counts > 0
    made = figure(dark, 270, room={"t": 24, "b": 48, "l": 72, "r": 8}, showlegend=False, bargap=0.05)
    made.add_bar(
        x=codes[taken], y=counts[taken], marker={"color": colours.quantized, "line": {"width": 0}},
        hovertemplate="code %{x}: %{y:,} weights<extra></extra>",
    )  # fmt: skip
    made.add_annotation(
        text=f"{int(taken.sum()):,} of {len(codes):,} codes are taken", x=1, y=1, xref="paper", yref="paper",
        xanchor="right", yanchor="bottom", showarrow=False, font={"color": colours.muted},
    )  # fmt: skip
    made.update_xaxes(title_text="code of the weight", range=[codes[0] - 1, codes[-1] + 1])
    made.update_yaxes(
        title_text="weights on it (count)", type="log", dtick=1, range=[-0.3, np.log10(counts.max()) + 0.2]
    )
    return made
