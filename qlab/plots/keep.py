"""What keeping the worst layers out of a config brings, and what it costs in size."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from qlab.metrics import BYTES, metric, step_of
from qlab.plots.layers import shorten
from qlab.plots.theme import empty, figure, palette

if TYPE_CHECKING:
    from qlab.analysis.keep import Kept

Number = float


def keep_points(
    points: Sequence[Kept], float_accuracy: Number | None, dark: bool, *, selected: int | None = None
) -> go.Figure:
    """Accuracy (without labels agreement) over size with its interval as a band, a point for each number of layers that
    are kept. customdata: the number. selected: the number that is looked at."""
    if not points:
        return empty("No layer is quantized, so there is none to keep.", dark)
    colours, key = palette(dark), "accuracy" if points[0].measured.accuracy is not None else "agreement"
    shares = [p.measured.agreement if p.measured.accuracy is None else p.measured.accuracy for p in points]
    power = step_of(max(p.size for p in points), 1000, len(BYTES))
    sizes = [p.size / 1000**power for p in points]
    made = figure(dark, height=380, clickmode="event+select", margin={"t": 30, "r": 24})
    ends = [p.measured.accuracy_interval for p in points]
    if key == "accuracy":
        lows, highs = ([100 * e[i] for e in ends if e] for i in (0, 1))
        made.add_scatter(x=sizes, y=lows, mode="lines", line_width=0, hoverinfo="skip", showlegend=False)
        made.add_scatter(
            x=sizes, y=highs, mode="lines", line_width=0, fill="tonexty", fillcolor=colours.wash("quantized", 0.18),
            hoverinfo="skip", name="95 % interval",
        )  # fmt: skip
    if float_accuracy is not None and key == "accuracy":
        made.add_scatter(
            x=[min(sizes), max(sizes)], y=[100 * float_accuracy] * 2, mode="lines", hoverinfo="skip",
            line={"color": colours.float, "width": 2, "dash": "dash"},
            name=f"float {metric(key).format(float_accuracy)}",
        )  # fmt: skip
    picked = [p.count == selected for p in points]
    made.add_scatter(
        x=sizes, y=[100 * share for share in shares], mode="lines+markers+text", name="with the worst kept",
        text=_spaced(sizes, [str(p.count) for p in points]), textposition="top center",
        textfont={"color": colours.text, "size": 12}, customdata=[p.count for p in points],
        hovertext=[_point_told(p, key) for p in points], hovertemplate="%{hovertext}<extra></extra>",
        line={"color": colours.quantized, "width": 2}, cliponaxis=False,
        marker={
            "size": [15 if is_it else 10 for is_it in picked], "color": colours.quantized,
            "line": {"width": [3 if is_it else 1 for is_it in picked],
                     "color": [colours.text if is_it else colours.background for is_it in picked]},
        },
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
    )  # fmt: skip
    unit = BYTES[power]
    made.update_xaxes(title_text=f"Size of the weights ({unit}) · the numbers count the layers that are kept")
    made.update_yaxes(title_text=metric(key).axis, zeroline=False)
    return made


def _spaced(at: Sequence[Number], texts: Sequence[str]) -> list[str]:
    """Without the texts that would lie over the one before."""
    gap, last, out = 0.03 * (max(at) - min(at)), -math.inf, []
    for place, text in zip(at, texts, strict=True):
        free = place - last >= gap
        out.append(text if free else "")
        last = place if free else last
    return out


def _point_told(point: Kept, key: str) -> str:
    measured = point.measured
    share = measured.agreement if measured.accuracy is None else measured.accuracy
    ends = "" if measured.accuracy_interval is None else f" {metric(key).interval(*measured.accuracy_interval)}"
    named = [shorten(name) for name in point.layers[:4]]
    kept = ", ".join(named) + (f" and {point.count - 4} more" if point.count > 4 else "")
    return "<br>".join(
        [
            f"<b>{point.count} kept</b>" + (f": {html.escape(kept, quote=False)}" if kept else ""),
            f"{metric(key).label}: {metric(key).format(share)}{ends}",
            f"output: {metric('sqnr').format(measured.sqnr)}",
            f"{metric('size').label}: {metric('size').format(point.size)}",
        ]
    )
