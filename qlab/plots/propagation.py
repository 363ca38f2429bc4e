"""The error of each tensor in the order of the network: made by its own unit, and arrived from all before it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.metrics import MINUS, three_digits
from qlab.plots.bins import Bins
from qlab.plots.distribution import steps
from qlab.plots.error_measure import MEASURES, Measure, names_of
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, figure, palette

if TYPE_CHECKING:
    from qlab.analysis.propagation import Errors, Propagation, TensorError

Number = float  # beside Palette, where `float` names a colour
WIDEST = (
    60.0  # dB between the worst tensor and the top of the axis: an input is often exact, and would flatten the rest
)
MOST_NAMES = 40  # upright names under the narrowest picture
NAME, MARK_NAME = 24, 26  # characters
BLOCK = 3  # tensors from which a block of the network is worth a name of its own
NARROW = 560  # pixels of the plot on a narrow window
TALLEST = 2.5  # times the second tallest bin: from there the tallest is cut off
MOST_BARS = 400
MOST_CUT = 3  # bins that may be cut off
FULL = {"marker": {"opacity": 1}}  # a click shades its tensor; plotly would fade all others


# --- over the depth of the network ------------------------------------------------------------------------------------


def propagation_figure(found: Propagation, dark: bool, measure: str = "sqnr", chosen: str | None = None) -> go.Figure:
    """Two lines over the tensors in the order of the network: made by each unit (dashed, hollow), and arrived (solid).

    The tensors where most is made and where it shows most are marked and named. chosen: a tensor to shade. Every point
    carries its tensor as customdata. What lies beyond the axis, such as an exact tensor, is a triangle at its end.
    """
    of, colours = MEASURES[measure], palette(dark)
    values = [np.array([of.of(e) for e in side], dtype=np.float64) for side in _sides(found)]
    span = _span(np.concatenate(values), of)
    if span is None:
        return empty("No tensor has any error: everything here is exact.", dark)
    low, high = span
    names = names_of(found)
    called = [names[row.tensor] for row in found.rows]
    blocks = _blocks(called)
    ticks = _ticks(called, blocks)
    longest = max(len(text) for text in ticks.values())
    marks = _marks(found, of)
    top = 28 + 17 * len(marks)
    made = figure(dark, height=330 + top + (min(170, 7 * longest) if len(called) > 6 else 20))
    made.update_layout(margin={"t": top, "b": 8, "l": 8, "r": 12}, uirevision=measure)
    room = high - low
    bottom = low - (0.13 if blocks else 0.04) * room
    _draw_blocks(made, blocks, colours)
    tensors = [row.tensor for row in found.rows]
    if chosen in tensors:
        at = tensors.index(chosen)
        made.add_vrect(x0=at - 0.5, x1=at + 0.5, fillcolor=colours.wash("range", 0.35), line_width=0, layer="below")
    said = [_said(row, names[row.tensor], of) for row in found.rows]
    for side, label, dash, symbol in (
        (values[0], "made here: inputs in float", "dash", "circle-open"),
        (values[1], "arrived: all before it quantized", "solid", "circle"),
    ):
        hollow = symbol.removeprefix("circle")
        line = {"color": colours.quantized, "width": 1.5 if hollow else 2, "dash": dash}
        marker = {"color": colours.quantized, "size": 9 if len(tensors) <= 30 else 7}
        ends = [f"triangle-up{hollow}" if v > high else f"triangle-down{hollow}" if v < low else symbol for v in side]
        # An entry of its own for the legend, which would otherwise show the symbol of the first point.
        made.add_scatter(
            x=[None], y=[None], mode="lines+markers", name=label, line=line, marker={**marker, "symbol": symbol},
            legendgroup=label,
        )  # fmt: skip
        made.add_scatter(
            x=list(range(len(tensors))), y=np.clip(side, low, high), mode="lines+markers", name=label,
            customdata=tensors, text=said, line=line, marker={**marker, "symbol": ends}, legendgroup=label,
            showlegend=False, hovertemplate="%{text}<extra></extra>", selected=FULL, unselected=FULL,
        )  # fmt: skip
    _draw_marks(made, marks, [np.clip(v, low, high) for v in values], tensors, colours)
    made.update_layout(legend={"yref": "container", "y": 1.0, "yanchor": "top"})
    made.update_xaxes(
        tickvals=list(ticks), ticktext=[html.escape(text, quote=False) for text in ticks.values()],
        autotickangles=[0, -45, -90], tickfont={"size": 12 if len(ticks) <= 20 else 10},
        range=[-0.6, len(tensors) - 0.4], showgrid=False, zeroline=False,
    )  # fmt: skip
    made.update_yaxes(title_text=_axis(of, measure), range=[bottom, high + 0.05 * room], zeroline=False, nticks=7)
    return made


def _sides(found: Propagation) -> tuple[list[Errors], list[Errors]]:
    return [row.own for row in found.rows], [row.arrived for row in found.rows]


def _axis(of: Measure, measure: str) -> str:
    unit = {"largest": " (unit of the tensor)", "shift": " of the worst channel (σ)"}.get(measure, "")
    way = "lower is worse" if of.lowest else "higher is worse"
    return f"{of.figure.label + unit if unit else of.figure.axis}, {way}"


def _span(values: NDArray[np.float64], of: Measure) -> tuple[Number, Number] | None:
    """Lowest and highest value of the axis; None where no tensor has an error that could be drawn."""
    finite = values[np.isfinite(values)]
    if of.figure.key == "sqnr":
        if not len(finite):
            return None
        low = float(finite.min())
        high = float(finite[finite <= low + WIDEST].max())
    else:
        low, high = (float(finite.min()), float(finite.max())) if of.lowest else (0.0, float(finite.max()))
        if not of.lowest and high == 0:
            return None
    # Equal values get some room, so that a line has a place to lie in.
    return (low, high) if high > low else (low - 0.5, high + 0.5) if of.figure.key == "sqnr" else (low - 1e-6, high)


def _said(row: TensorError, name: str, of: Measure) -> str:
    lines = [f"<b>{html.escape(name, quote=False)}</b> ({row.op})"]
    if name != row.tensor:
        lines.append(f"tensor {html.escape(row.tensor, quote=False)}")
    return "<br>".join([*lines, f"made here {of.write(row.own)}", f"arrived {of.write(row.arrived)}, simulated"])


@dataclass(frozen=True)
class _Block:
    """Tensors first..last that lie in one numbered module, such as layer1.0."""

    name: str
    first: int
    last: int


def _blocks(names: Sequence[str]) -> list[_Block]:
    """Runs of tensors in one numbered module: their names can then leave it out."""
    out, at = [], 0
    for name, run in groupby(names, _block_of):
        count = len(list(run))
        if name and count >= BLOCK and 6.5 * len(name) < NARROW * count / len(names):
            out.append(_Block(name, at, at + count - 1))
        at += count
    return out


def _block_of(name: str) -> str:
    """Up to the first number in its path: "layer1.0" of "layer1.0.conv1"; "" where nothing follows it."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts[:-1]) if part.isdecimal()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def _ticks(names: Sequence[str], blocks: Sequence[_Block]) -> dict[int, str]:
    """Place -> name; of very many only some, so that each can be read."""
    within = {i: block.name for block in blocks for i in range(block.first, block.last + 1)}
    short = [name.removeprefix(f"{within[i]}.") if i in within else name for i, name in enumerate(names)]
    step = -(-len(names) // MOST_NAMES)
    return {i: shorten(name, NAME) for i, name in enumerate(short) if i % step == 0}


def _draw_blocks(made: go.Figure, blocks: Sequence[_Block], colours: Palette) -> None:
    """Every other one shaded, each with its name at the foot."""
    for number, block in enumerate(blocks):
        made.add_shape(
            type="rect", x0=block.first - 0.5, x1=block.last + 0.5, y0=0, y1=1, yref="y domain", layer="below",
            line={"width": 0}, fillcolor=colours.wash("neutral", 0.13 if number % 2 == 0 else 0.05),
        )  # fmt: skip
        made.add_annotation(
            x=block.first - 0.5, xanchor="left", xshift=2, y=0, yref="y domain", yanchor="bottom", showarrow=False,
            text=html.escape(block.name, quote=False), font={"color": colours.muted, "size": 12},
        )  # fmt: skip


def _marks(found: Propagation, of: Measure) -> list[tuple[TensorError, str, tuple[int, ...]]]:
    """The row, what to write of it, and on which lines it is ringed."""
    names = names_of(found)
    most, shown = of.worst(found, own=True), of.worst(found, own=False)

    def text(words: str, row: TensorError, figure: str) -> str:
        return f"{words}: {html.escape(shorten(names[row.tensor], MARK_NAME), quote=False)}, {figure}"

    if most is shown:
        return [(most, text("made and shows most", most, f"{of.write(most.own)} → {of.write(most.arrived)}"), (0, 1))]
    return [
        (shown, text("shows most", shown, of.write(shown.arrived)), (1,)),
        (most, text("made most", most, of.write(most.own)), (0,)),
    ]


def _draw_marks(
    made: go.Figure, marks: Sequence[tuple[TensorError, str, tuple[int, ...]]], values: Sequence[NDArray[np.float64]],
    tensors: Sequence[str], colours: Palette,
) -> None:  # fmt: skip
    """A ring on the line and, over the picture where nothing lies, its name."""
    for line, (row, text, ringed) in enumerate(marks):
        at = tensors.index(row.tensor)
        made.add_scatter(
            x=[at] * len(ringed), y=[values[i][at] for i in ringed], mode="markers", showlegend=False,
            hoverinfo="skip", name="mark",
            marker={"symbol": "circle-open", "size": 17, "color": colours.error, "line": {"width": 2.5}},
        )  # fmt: skip
        made.add_shape(
            type="line", x0=at, x1=at, y0=0, y1=1, yref="y domain", layer="below",
            line={"color": colours.wash("error", 0.7), "width": 1.2, "dash": "dot"},
        )  # fmt: skip
        left = at < len(tensors) / 2
        made.add_annotation(
            x=at, y=1, yref="y domain", yanchor="bottom", yshift=1 + 17 * line, xanchor="left" if left else "right",
            showarrow=False, text=text, font={"color": colours.error, "size": 12},
        )  # fmt: skip


# --- one tensor -------------------------------------------------------------------------------------------------------


def overlay_figure(row: TensorError, dark: bool) -> go.Figure:
    """The values of one tensor in float, filled, and as they arrive in the quantized network, as a line over them.

    A bin far above the rest, such as the zeros of a ReLU, is cut off and told.
    """
    colours, held = palette(dark), row.overlay
    sides = (
        ("float", "float", Bins(held.edges, held.float_counts.astype(np.float64))),
        ("quantized, simulated", "quantized", Bins(held.edges, held.quantized_counts.astype(np.float64))),
    )
    top, cut = _ceiling([bins for _, _, bins in sides])
    made = figure(dark, 300)
    made.update_layout(margin={"t": 28, "b": 8, "l": 8, "r": 12}, uirevision=row.tensor)
    for label, name, bins in sides:
        x, y = steps(bins, bins.counts)
        made.add_scatter(
            x=x, y=y, name=label, mode="lines",
            line={"shape": "hv", "width": 1.4 if name == "float" else 1.8, "color": getattr(colours, name)},
            fill="tozeroy" if name == "float" else None,
            fillcolor=colours.wash("float", 0.25) if name == "float" else None,
            hovertemplate="%{x:.4g}: %{y:,.0f} values in this bin<extra>" + label + "</extra>",
        )  # fmt: skip
    for line, place in enumerate(cut):
        right = place >= len(held.float_counts) / 2
        counts = [f"{label.split(',')[0]} {bins.counts[place]:,.0f}" for label, _, bins in sides]
        middle = float(held.edges[place] + held.edges[place + 1]) / 2
        made.add_annotation(
            x=middle, y=1, yref="y domain", yanchor="top", yshift=-17 * line, showarrow=False,
            xanchor="right" if right else "left", xshift=-10 if right else 10,
            font={"color": colours.muted, "size": 12}, bgcolor=colours.wash("background", 0.7),
            text=f"↑ bin at {three_digits(middle)}: {', '.join(counts)}".replace("-", MINUS),
        )  # fmt: skip
    made.update_xaxes(title_text=f"value of {html.escape(shorten(row.tensor, 40), quote=False)}", zeroline=False)
    made.update_yaxes(title_text="values per bin", range=[0, top], nticks=5, exponentformat="SI")
    return made


def _ceiling(sides: Sequence[Bins]) -> tuple[Number, list[int]]:
    """Top of the count axis, and the bins that are cut off there, left to right: few that stand far above the rest."""
    heights = np.max([bins.counts for bins in sides], axis=0)
    order = np.argsort(-heights, kind="stable")
    for few in range(1, min(MOST_CUT, len(order) - 1) + 1):
        if heights[order[few - 1]] > TALLEST * heights[order[few]] > 0:
            return 1.3 * float(heights[order[few]]), sorted(int(i) for i in order[:few])
    return 1.06 * float(heights.max()), []


def channel_shift_figure(row: TensorError, dark: bool) -> go.Figure:
    """How far the mean of each channel has moved, in standard deviations of the float values: arrived as bars, what the
    unit makes itself as hollow marks."""
    arrived, own = row.arrived.channel_shift, row.own.channel_shift
    if arrived is None or own is None:
        return empty(f"{row.tensor} has no channels.", dark)
    colours, count = palette(dark), len(arrived)
    made = figure(dark, 270, bargap=0.2)
    made.update_layout(margin={"t": 28, "b": 8, "l": 8, "r": 12}, uirevision=row.tensor)
    at = np.arange(count)
    if count <= MOST_BARS:
        made.add_bar(
            x=at, y=arrived, name="arrived", marker={"color": colours.quantized, "line": {"width": 0}},
            hovertemplate="channel %{x}: arrived %{y:.3g} σ<extra></extra>",
        )  # fmt: skip
    else:
        made.add_scatter(
            x=at, y=arrived, name="arrived", mode="lines", fill="tozeroy", fillcolor=colours.wash("quantized", 0.5),
            line={"color": colours.quantized, "width": 1, "shape": "hvh"},
            hovertemplate="channel %{x}: arrived %{y:.3g} σ<extra></extra>",
        )  # fmt: skip
    made.add_scatter(
        x=at, y=own, name="made here", mode="markers",
        marker={"symbol": "circle-open", "color": colours.text, "size": 8 if count <= 64 else 4},
        hovertemplate="channel %{x}: made here %{y:.3g} σ<extra></extra>",
    )  # fmt: skip
    made.update_xaxes(title_text=f"channel ({count:,})", range=[-0.7, count - 0.3], showgrid=False, zeroline=False)
    if count <= 24:
        made.update_xaxes(tickvals=at)
    made.update_yaxes(title_text="mean shift (σ)", zeroline=True, nticks=6, exponentformat="none")
    return made
