"""What edited numbers do to a layer, channel by channel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from qlab.metrics import three_digits
from qlab.plots.theme import empty, figure, palette

if TYPE_CHECKING:
    from qlab.analysis.edited import EditEffect

MOST_CHANNELS = 2_000


def change_by_channel(found: EditEffect, dark: bool) -> go.Figure:
    """A bar for each channel: the largest change of one of its numbers. The line is one step of the output's grid.

    Of more than MOST_CHANNELS channels those that changed most are shown, in their order.
    """
    if not len(found.changed_channels):
        return empty("No channel of this output changes on these samples.", dark, 160)
    colours, count = palette(dark), len(found.channels)
    shown = np.arange(count) if count <= MOST_CHANNELS else np.sort(np.argsort(-found.channels)[:MOST_CHANNELS])
    values = found.channels[shown]
    made = figure(
        dark, 260, room={"t": 28, "b": 48, "l": 72, "r": 12}, showlegend=found.step is not None,
        bargap=0.2 if len(shown) < 200 else 0,
    )  # fmt: skip
    made.add_bar(
        x=shown, y=values, name="largest change", marker={"color": colours.error, "line": {"width": 0}},
        showlegend=found.step is not None,
        text=[three_digits(v) for v in values], textposition="none",
        hovertemplate="channel %{x}<br>changed by up to %{text}<extra></extra>",
    )  # fmt: skip
    if found.step is not None:
        ends = [-0.5, max(count - 0.5, 0.5)]
        made.add_scatter(
            x=ends, y=[found.step] * 2, mode="lines", hoverinfo="skip", name="one step of its grid",
            line={"color": colours.range, "width": 2, "dash": "dash"},
        )  # fmt: skip
    top = max(float(values.max()), found.step or 0.0)
    left = "" if len(shown) == count else f", the {len(shown):,} that change most of {count:,}"
    made.update_xaxes(title_text=f"channel of the output{left}", range=[-0.5, count - 0.5], tickformat="d")
    made.update_yaxes(title_text="largest change (value)", rangemode="tozero", range=[0, 1.08 * top], nticks=5)
    if count <= 12:
        made.update_xaxes(dtick=1)
    assert math.isfinite(top)
    return made
