"""What quantization does to each layer, worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping

import plotly.graph_objects as go

from qlab.metrics import metric
from qlab.plots.theme import empty, figure, name_rows, palette

NAME_LENGTH = 34


def sqnr_bars(sqnr: Mapping[str, float], dark: bool, most: int = 40) -> go.Figure:
    """A bar for each layer, lowest SQNR on top; of more than `most` layers, the worst.

    sqnr: layer name to dB. Infinite (nothing was lost) is written as such and stands last; NaN (no signal at all, such
    as a layer that is always 0) is left out of the bars and named under them.
    """
    undefined = [name for name, value in sqnr.items() if math.isnan(value)]
    ranked = sorted(((value, name) for name, value in sqnr.items() if not math.isnan(value)), key=lambda pair: pair[0])
    if not ranked:
        return empty("No layer was quantized, so there is no noise to show.", dark)
    figures, colours = metric("sqnr"), palette(dark)
    shown = ranked[:most]
    finite = [value for value, _ in shown if math.isfinite(value)]
    longest = max([*finite, 1.0])
    lengths = [value if math.isfinite(value) else longest for value, _ in shown]
    note = []
    if len(ranked) > len(shown):
        note.append(f"{len(ranked) - len(shown)} more layers lie above {figures.format(shown[-1][0])}")
    if undefined:
        note.append(f"without signal: {', '.join(map(shorten, undefined[:3]))}{' …' if len(undefined) > 3 else ''}")
    made = figure(dark, height=70 + 24 * len(shown) + 18 * bool(note), showlegend=False, bargap=0.3)
    made.add_bar(
        orientation="h",
        x=lengths,
        y=list(range(len(shown))),
        customdata=[name for _, name in shown],
        marker={
            "color": [
                colours.quantized if math.isfinite(value) else colours.wash("neutral", 0.35) for value, _ in shown
            ],
            "line": {"width": 0},
        },
        text=[figures.format(value) if math.isfinite(value) else "exact" for value, _ in shown],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{customdata}<br>%{text}<extra></extra>",
    )
    title = f"{figures.axis}, lower is worse" + (f" · {'; '.join(note)}" if note else "")
    made.update_xaxes(title_text=title, range=[min(0.0, *lengths) * 1.15, max(longest, *lengths) * 1.12])
    name_rows(made, [shorten(name) for _, name in shown])
    return made


def shorten(name: str, length: int = NAME_LENGTH) -> str:
    """The name with its middle left out: the start says which block, the end which op."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"
