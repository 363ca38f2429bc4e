"""How full the accumulators of each layer are: the 32 bits of a sum, and the 16 bits that pairs of products pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from qlab.metrics import percent, whole
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, figure, name_rows, palette
from qlab.runtime.headroom import Headroom, Pairs

GAP = 0.05  # between the two panels, as a share of the width
SEEN, POSSIBLE = "seen on the samples", "possible by the weights"


def headroom_bars(rows: Sequence[Headroom], dark: bool, most: int = 40) -> go.Figure:
    """Two bars for each layer, in the order of the network: share of int32 (log axis), and share of int16 of its pairs.

    A wide pale bar is what the weights allow, the narrow one in it what the samples had; past the line, pairs saturate.
    Of more than `most` layers, those that fill their pairs and sums most.
    """
    if not rows:
        return empty("No layer adds integer products, so no accumulator can fill up.", dark)
    colours = palette(dark)
    ranked = sorted(range(len(rows)), key=lambda i: _fullness(rows[i]), reverse=True)
    shown = [rows[i] for i in sorted(ranked[:most])]
    made = figure(dark, height=140 + 26 * len(shown), bargap=0.25, barmode="overlay")
    _sums(made, shown, colours)
    _pairs(made, shown, colours)
    left = len(rows) - len(shown)
    made.update_layout(
        xaxis={"domain": [0, 0.5 - GAP / 2]},
        xaxis2={"domain": [0.5 + GAP / 2, 1], "anchor": "y"},
        legend={"yref": "container", "y": 1, "yanchor": "top"},  # above the names of the two lines
        margin={"t": 58, "r": 24},
    )
    name_rows(made, [shorten(row.layer) for row in shown])
    made.update_yaxes(title_text=f"{left} layers with more room left out" if left else None)
    return made


def _sums(made: go.Figure, rows: Sequence[Headroom], colours: Palette) -> None:
    """An accumulator that stays 0 has no place on a log axis: it gets no bar, and its hover says so."""
    for name, shares, values, colour, width in (
        (POSSIBLE, [r.possible_share for r in rows], [r.possible for r in rows], colours.wash("quantized", 0.35), 0.75),
        (SEEN, [r.seen_share for r in rows], [r.seen for r in rows], colours.quantized, 0.4),
    ):
        hover = [
            f"{row.layer}: {whole(value)} of 2³¹ {name}, {percent(share)}<br>{whole(row.products)} products"
            for row, value, share in zip(rows, values, shares, strict=True)
        ]
        x = [share * 100 if share else None for share in shares]
        _bars(made, "x", x, range(len(rows)), name, colour, width, hover)
    filled = [share * 100 for row in rows for share in (row.seen_share, row.possible_share) if share]
    low, high = _powers(min(filled, default=1e-4)), _powers(max(filled, default=100.0))
    # a step beyond the limit at least, so that its line is seen
    range_ = [low, max(high + 1, 2.15)]
    made.update_xaxes(
        type="log",
        autorange=False,
        range=range_,
        tickvals=[10.0**power for power in range(low, math.floor(range_[1]) + 1)],
        ticktext=[f"{10.0**power:.12f}".rstrip("0").rstrip(".") for power in range(low, math.floor(range_[1]) + 1)],
        title_text="largest sum<br>share of int32 (%, log scale)",
    )
    _limit(made, "x", colours)


def _pairs(made: go.Figure, rows: Sequence[Headroom], colours: Palette) -> None:
    with_pairs = [(i, row, row.pairs) for i, row in enumerate(rows) if row.pairs is not None]
    places = [i for i, _, _ in with_pairs]
    for name, ends, colour, width in (
        (POSSIBLE, [p.possible_share for _, _, p in with_pairs], [colours.wash("quantized", 0.35)] * len(places), 0.75),
        (SEEN, [p.seen_share for _, _, p in with_pairs], [_colour(p, colours) for _, _, p in with_pairs], 0.4),
    ):
        hover = [
            f"{row.layer}: {percent(end)} of int16 {name}<br>7-bit weights: {row.verdict}"
            for (_, row, _), end in zip(with_pairs, ends, strict=True)
        ]
        _bars(made, "x2", [end * 100 for end in ends], places, name, colour, width, hover)
    # An empty trace, because the colour of single bars has no entry in the legend of its own.
    if any(p.saturated for _, _, p in with_pairs):
        made.add_bar(
            x=[None], y=[None], xaxis="x2", name="seen to saturate", marker={"color": colours.error}, orientation="h"
        )
    for i, row in enumerate(rows):
        if row.pairs is None:
            made.add_annotation(
                x=0, y=i, xref="x2", yref="y", text="no pairs", hovertext=row.verdict, showarrow=False,
                xanchor="left", xshift=4, font={"color": colours.muted, "size": 12},
            )  # fmt: skip
    longest = max([p.possible_share * 100 for _, _, p in with_pairs], default=0.0)
    made.update_layout(
        xaxis2={
            "title_text": "largest pair of products<br>share of int16 (%)",
            "range": [0, max(110.0, longest * 1.05)],
            "zeroline": False,
        }
    )
    _limit(made, "x2", colours)


def _bars(
    made: go.Figure, axis: str, x: Sequence[float | None], y: Iterable[int], name: str, colour: str | list[str],
    width: float, hover: Sequence[str],
) -> None:  # fmt: skip
    """In one panel; both share the legend of the left one."""
    made.add_bar(
        orientation="h",
        x=x,
        y=list(y),
        xaxis=axis,
        width=width,
        name=name,
        legendgroup=name,
        showlegend=axis == "x",
        marker={"color": colour, "line": {"width": 0}},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _limit(made: go.Figure, axis: str, colours: Palette) -> None:
    """The line at 100 %, over the whole height."""
    made.add_shape(
        type="line", x0=100, x1=100, y0=0, y1=1, xref=axis, yref="paper", line={"color": colours.error, "dash": "dash"}
    )
    made.add_annotation(
        x=2 if axis == "x" else 100,  # a log axis takes the exponent
        y=1, xref=axis, yref="paper", text="overflows" if axis == "x" else "saturates", showarrow=False,
        yanchor="bottom", xanchor="right", font={"color": colours.error, "size": 12},
    )  # fmt: skip


def _colour(pairs: Pairs, colours: Palette) -> str:
    return colours.error if pairs.saturated > 0 else colours.quantized


def _fullness(row: Headroom) -> float:
    return max(row.possible_share, row.pairs.seen_share if row.pairs is not None else 0.0)


def _powers(value: float) -> int:
    """The power of ten at or below."""
    return math.floor(math.log10(value))
