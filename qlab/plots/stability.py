"""Calibrations drawn again and again: what becomes of the result with the number of samples, and of each scale."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.analysis.stability import STEADY
from qlab.evaluation import wilson_interval
from qlab.metrics import metric, percent, three_digits
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, figure, name_rows, palette

if TYPE_CHECKING:
    from qlab.analysis.stability import Draw, Spread, Stability

APART = 0.2  # decades over which the draws of one size are spread, so that equal ones lie side by side
MOST_BARS = 20
FULL = {"marker": {"opacity": 1}}  # plotly would fade what was not clicked


def draws_figure(found: Stability, dark: bool) -> go.Figure:
    """A mark for each drawn calibration over its samples (log), red-orange where it is worse beyond chance.

    The whole calibration is a line with the 95 % interval that its figure has on so many samples; under each size
    stands whether it is steady. Without labels the marks are agreements, and the line is what counts as steady.
    """
    colours, sizes = palette(dark), found.sizes
    if not sizes:
        return empty("No calibration was drawn.", dark)
    figures = metric("accuracy")
    made = figure(dark, 390)
    ends = [sizes[0] / 10**APART, sizes[-1] * 10**APART]
    line = found.whole if found.labelled else STEADY
    seen = [line, *(draw.figure for draw in found.draws)]
    if found.labelled:
        low, high = wilson_interval(round(found.whole * found.evaluated), found.evaluated)
        seen += [low, high]
        made.add_scatter(
            x=[*ends, *ends[::-1]], y=[100 * low, 100 * low, 100 * high, 100 * high], mode="lines", fill="toself",
            fillcolor=colours.wash("range", 0.16), line={"width": 0}, hoverinfo="skip",
            name=f"its 95 % interval {figures.interval(low, high)}", legendrank=1001,
        )  # fmt: skip
    made.add_scatter(
        x=ends, y=[100 * line] * 2, mode="lines", line={"color": colours.range, "width": 2, "dash": "dash"},
        hoverinfo="skip",
        name=f"{'whole calibration' if found.labelled else 'steady from'} {figures.format(line)}",
    )  # fmt: skip
    for worse, label, name, symbol in (
        (False, "a drawn calibration", "quantized", "circle"),
        (True, "worse beyond chance" if found.labelled else "names other classes", "error", "diamond"),
    ):
        marks = [(at, draw) for at, draw in _placed(found) if found.worse(draw) == worse]
        if marks:
            made.add_scatter(
                x=[at for at, _ in marks], y=[100 * draw.figure for _, draw in marks], mode="markers", name=label,
                marker={"color": colours.wash(name, 0.85), "size": 11, "symbol": symbol,
                        "line": {"color": colours.background, "width": 1}},
                text=[_said(draw, found) for _, draw in marks], hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
    room = max(max(seen) - min(seen), 0.01)
    _sizes(made, sizes, [_verdict(found, size, colours) for size in sizes], ends)
    title = "Accuracy (%)" if found.labelled else "Same class as the whole calibration (%)"
    made.update_yaxes(
        title_text=f"{title}, simulated", nticks=7, zeroline=False,
        range=[100 * (min(seen) - 0.08 * room), 100 * (max(seen) + 0.08 * room)],
    )  # fmt: skip
    made.update_layout(margin={"t": 34, "b": 8, "l": 8, "r": 12})
    return made


def _placed(found: Stability) -> list[tuple[float, Draw]]:
    return [
        pair for size in found.sizes for pair in zip(_beside(size, len(found.at(size))), found.at(size), strict=True)
    ]


def _beside(size: int, count: int) -> NDArray[np.float64]:
    """Places around a size on a log axis."""
    return size * 10 ** (APART * ((np.arange(count) + 0.5) / count - 0.5))


def _said(draw: Draw, found: Stability) -> str:
    lines = [f"{draw.samples:,} samples, simulated"]
    if draw.accuracy is not None:
        lines.append(f"accuracy {metric('accuracy').format(draw.accuracy)}")
    lines.append(f"same class as the whole calibration for {percent(draw.agreement)}")
    if draw.p is not None:
        lines.append(f"p = {three_digits(draw.p)} against it")
    return "<br>".join(lines)


def _verdict(found: Stability, size: int, colours: Palette) -> str:
    if found.steady(size):
        return f"{size:,}<br>✓ steady"
    return f"{size:,}<br><span style='color:{colours.error}'>✗ unsteady</span>"


def _sizes(made: go.Figure, sizes: Sequence[int], texts: Sequence[str], ends: Sequence[float]) -> None:
    made.update_xaxes(
        type="log", tickvals=list(sizes), ticktext=list(texts), range=[float(np.log10(end)) for end in ends],
        title_text="calibration samples drawn (log)", zeroline=False, tickangle=0,
    )  # fmt: skip


def spread_bars(found: Stability, samples: int, dark: bool, chosen: str | None = None) -> go.Figure:
    """How far the scale of each tensor moves between the draws of this size, the most unsteady first.

    Standard deviation over mean. Each bar carries its tensor as customdata. chosen: drawn full, the others paler.
    """
    ranked = ranking(found, samples)
    if not ranked:
        return empty("No tensor has one scale that comes from the calibration.", dark)
    colours, shown = palette(dark), ranked[:MOST_BARS]
    if chosen in [s.tensor for s in ranked[MOST_BARS:]]:
        shown = [*shown[:-1], next(s for s in ranked if s.tensor == chosen)]
    values = [spread.relative(samples) for spread in shown]
    rest = len(ranked) - len(shown)
    made = figure(dark, height=66 + 23 * len(shown), showlegend=False, bargap=0.3)
    made.add_bar(
        orientation="h", x=[100 * v for v in values], y=list(range(len(shown))), customdata=[s.tensor for s in shown],
        marker={"color": [colours.wash("range", 1 if s.tensor == chosen else 0.55) for s in shown],
                "line": {"width": 0}},
        text=[percent(v) for v in values], textposition="outside", cliponaxis=False,
        hovertemplate="%{customdata}<br>%{text} of its scale<extra></extra>", selected=FULL, unselected=FULL,
    )  # fmt: skip
    more = f" · {rest} more move less" if rest else ""
    made.update_xaxes(
        title_text=f"standard deviation of the scale (% of its mean){more}", range=[0, 116 * max([*values, 0.001])]
    )
    name_rows(made, [html.escape(shorten(s.tensor), quote=False) for s in shown])
    return made


def ranking(found: Stability, samples: int) -> list[Spread]:
    """The most unsteady at this size first."""
    return sorted(found.spreads, key=lambda spread: -spread.relative(samples))


def scales_figure(spread: Spread, dark: bool) -> go.Figure:
    """The scale that each draw gave one tensor over the samples drawn (log), and the one of the whole calibration."""
    colours, sizes = palette(dark), sorted(spread.scales)
    made = figure(dark, 300)
    ends = [sizes[0] / 10**APART, sizes[-1] * 10**APART]
    made.add_scatter(
        x=ends, y=[spread.whole] * 2, mode="lines", line={"color": colours.range, "width": 2, "dash": "dash"},
        name=f"whole calibration {three_digits(spread.whole)}", hoverinfo="skip",
    )  # fmt: skip
    at = np.concatenate([_beside(size, len(spread.scales[size])) for size in sizes])
    scales = np.concatenate([spread.scales[size] for size in sizes])
    made.add_scatter(
        x=at, y=scales, mode="markers", name="a drawn calibration",
        marker={"color": colours.wash("range", 0.85), "size": 10, "line": {"color": colours.background, "width": 1}},
        text=[f"{size:,} samples: scale {three_digits(v)}" for size in sizes for v in spread.scales[size]],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    _sizes(made, sizes, [f"{size:,}<br>± {percent(spread.relative(size))}" for size in sizes], ends)
    low, high = min(spread.whole, *scales), max(spread.whole, *scales)
    room = max(high - low, 0.02 * abs(high))
    made.update_yaxes(title_text="scale", nticks=6, range=[low - 0.1 * room, high + 0.1 * room], zeroline=False)
    made.update_layout(margin={"t": 30, "b": 8, "l": 8, "r": 12}, uirevision=spread.tensor)
    return made
