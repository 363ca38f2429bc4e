"""What the test of a claim measured, as bars."""

from __future__ import annotations

import plotly.graph_objects as go

from qlab.lessons.myths.claim import Bars
from qlab.plots.theme import figure, name_rows, palette

ROW = 34  # pixels of a bar
TEXT_ROOM = 0.3  # of the width, for what is written behind the bars


def claim_bars(found: Bars, dark: bool) -> go.Figure:
    """A bar for each thing measured, first on top, in the colour of its meaning, with its value behind it.

    A mark is an upright line through all bars with its name above.
    """
    colours = palette(dark)
    above = 26 if found.mark else 8
    made = figure(
        dark, 84 + above + ROW * len(found.bars), room={"t": above, "b": 48, "r": 16}, showlegend=False, bargap=0.35
    )
    made.add_bar(
        orientation="h", x=[bar.value for bar in found.bars], y=list(range(len(found.bars))),
        marker={"color": [getattr(colours, bar.ink) for bar in found.bars], "line": {"width": 0}},
        customdata=[[bar.label, bar.text] for bar in found.bars],
        hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    for row, bar in enumerate(found.bars):  # with a ground of their own, because the mark may run through them
        made.add_annotation(
            x=max(bar.value, 0.0), y=row, text=bar.text, xanchor="left", xshift=6, showarrow=False,
            font={"color": colours.text}, bgcolor=colours.wash("background", 0.85), borderpad=1,
        )  # fmt: skip
    ends = [bar.value for bar in found.bars] + ([found.mark[0]] if found.mark else [])
    high = max(*ends, 0.0) or 1.0
    if found.mark is not None:
        made.add_vline(x=found.mark[0], line={"color": colours.float, "width": 2, "dash": "dash"})
        made.add_annotation(
            x=found.mark[0], y=1.0, yref="paper", yanchor="bottom", showarrow=False, text=found.mark[1],
            font={"color": colours.float},
        )  # fmt: skip
    made.update_xaxes(title_text=found.axis, range=[min(0.0, *ends) * 1.1, high * (1 + TEXT_ROOM)])
    name_rows(made, [bar.label for bar in found.bars])
    return made
