"""A quantized file beside ours: what each keeps of the float weights, and the ranges of their activations."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from qlab.metrics import MISSING, cosine, metric, three_digits
from qlab.plots.layers import shorten
from qlab.plots.theme import empty, figure, name_rows, palette

if TYPE_CHECKING:
    from qlab.opened.match import ActivationRow, WeightRow

OURS, FILE = "ours, under the config", "in the file"
MOST = 40  # rows of a chart
LEAST = 12.0  # dB that the axis shows
WORSE = 1.0  # dB from which a difference is drawn in the colour of loss
ROW, ROOM = 26, 96  # pixels of a row, and of everything around


def shown_rows(rows: Sequence[WeightRow], most: int = MOST) -> list[WeightRow]:
    """The rows of the chart, in the order of the network: all of them, or those that differ most from ours."""
    found = [row for row in rows if row.sqnr_file is not None]
    if len(found) <= most:
        return found
    kept = sorted(found, key=lambda row: -_apart(row))[:most]
    return [row for row in found if row in kept]


def _apart(row: WeightRow) -> float:
    """How far the two lie apart; where ours is float, how much the file loses."""
    if row.sqnr_file is None or not math.isfinite(row.sqnr_file):
        return 0.0
    if row.sqnr_ours is None or not math.isfinite(row.sqnr_ours):
        return 1_000.0 - row.sqnr_file
    return abs(row.sqnr_file - row.sqnr_ours)


def sqnr_dots(rows: Sequence[WeightRow], dark: bool, chosen: str | None = None, most: int = MOST) -> go.Figure:
    """A row for each weight that was found: SQNR of the file's and of ours against float, joined by a line, which is
    vermilion where the file is worse by a decibel and more.

    chosen: tensor whose name is set in bold. Marks carry their tensor as customdata. Exact ones stand at the right end.
    """
    shown = shown_rows(rows, most)
    if not shown:
        return empty("No weight of this file was found in the network.", dark)
    colours, figures = palette(dark), metric("sqnr")
    finite = [v for row in shown for v in (row.sqnr_file, row.sqnr_ours) if v is not None and math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    low, high = min(low, high - LEAST), max(high, low + LEAST)  # what is nearly equal should look so
    end = high + 0.06 * (high - low)
    made = figure(dark, ROOM + ROW * len(shown), showlegend=True)
    for at, row in enumerate(shown):
        if row.sqnr_ours is not None and row.sqnr_file is not None:
            ends = [_placed(v, end, low) for v in (row.sqnr_file, row.sqnr_ours)]
            worse = ends[1] - ends[0] >= WORSE
            made.add_scatter(
                x=ends, y=[at, at], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": colours.error if worse else colours.rule, "width": 3 if worse else 2},
            )  # fmt: skip
    # Ours is drawn larger and below: where the two agree, its rim is still seen around the file's mark.
    ours = [(i, row) for i, row in enumerate(shown) if row.sqnr_ours is not None]
    for name, marks, look in (
        (OURS, [(i, row, row.sqnr_ours) for i, row in ours], {"color": colours.quantized, "size": 15}),
        (FILE, [(i, row, row.sqnr_file) for i, row in enumerate(shown)],
         {"color": colours.text, "size": 9, "symbol": "diamond"}),
    ):  # fmt: skip
        if marks:
            placed = [_placed(value, end, low) for _, _, value in marks if value is not None]
            _marks(made, name, placed, marks, look | {"line": {"color": colours.background, "width": 1}})
    rest = sum(row.sqnr_file is not None for row in rows) - len(shown)
    more = f" · {rest} more differ less" if rest else ""
    made.update_xaxes(title_text=f"{figures.axis} of the weights against float, lower is worse{more}",
                      range=[low - 0.04 * (high - low), high + 0.12 * (high - low)])  # fmt: skip
    name_rows(made, [_bold(html.escape(shorten(row.tensor), quote=False), row.tensor == chosen) for row in shown])
    made.update_layout(margin={"t": 34, "b": 48, "l": 8, "r": 16})
    return made


def _bold(text: str, yes: bool) -> str:
    return f"<b>{text}</b>" if yes else text


def _placed(value: float, end: float, low: float) -> float:
    """Infinite ones stand at the ends of the axis."""
    return value if math.isfinite(value) else end if value > 0 else low


def _marks(
    made: go.Figure, name: str, placed: Sequence[float], marks: Sequence[tuple[int, WeightRow, Any]],
    look: dict[str, Any],
) -> None:  # fmt: skip
    full = {"marker": {"opacity": 1}}  # plotly would fade what was not clicked
    made.add_scatter(
        x=placed, y=[at for at, _, _ in marks], mode="markers", name=name, marker=look, selected=full, unselected=full,
        customdata=[row.tensor for _, row, _ in marks], text=[_told(row) for _, row, _ in marks],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip


def _told(row: WeightRow) -> str:
    assert row.file is not None
    figures = metric("sqnr")
    ours = "float" if row.ours is None else f"{figures.format(row.sqnr_ours)}, {row.ours.bits} bit"
    sure = MISSING if row.cosine is None else cosine(row.cosine)
    return (
        f"<b>{html.escape(row.tensor)}</b><br>in the file: {figures.format(row.sqnr_file)}, {row.file.dtype} "
        f"{row.file.granularity}<br>ours: {ours}<br>told by {'its name' if row.how == 'name' else 'its values'}, "
        f"cosine with float {sure}"
    )


def range_bars(rows: Sequence[ActivationRow], dark: bool, most: int = MOST) -> go.Figure:
    """What the grid of each activation holds: the file's beside ours, where both have one scale."""
    shown = [row for row in rows if row.ours is not None][:most]
    if not shown:
        return empty("No activation of the file lies on a grid where ours has one too.", dark)
    colours = palette(dark)
    made = figure(dark, ROOM + 38 * len(shown), showlegend=True, barmode="group", bargap=0.35, bargroupgap=0.1)
    for name, colour, ends, scales in (
        (FILE, colours.text, [(row.file.low, row.file.high) for row in shown],
         [float(row.file.scale.flat[0]) for row in shown]),
        (OURS, colours.quantized, [row.ours[2:] for row in shown if row.ours],
         [row.ours[0] for row in shown if row.ours]),
    ):  # fmt: skip
        made.add_bar(
            orientation="h", base=[low for low, _ in ends], x=[high - low for low, high in ends],
            y=list(range(len(shown))), name=name, marker={"color": colour, "line": {"width": 0}},
            text=[f"{three_digits(low)} … {three_digits(high)}, scale {three_digits(scale)}"
                  for (low, high), scale in zip(ends, scales, strict=True)],
            textposition="none", customdata=[html.escape(row.tensor) for row in shown],
            hovertemplate=f"%{{customdata}}<br>{name}: %{{text}}<extra></extra>",
        )  # fmt: skip
    rest = sum(row.ours is not None for row in rows) - len(shown)
    made.update_xaxes(title_text="values the grid holds" + (f" · {rest} more tensors in the table" if rest else ""))
    name_rows(made, [html.escape(shorten(row.tensor), quote=False) for row in shown])
    made.update_layout(margin={"t": 34, "b": 48, "l": 8, "r": 16})
    return made
