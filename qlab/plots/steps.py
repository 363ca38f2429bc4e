"""One output element as pictures: the integers that meet, their products, and the accumulator as it adds them up."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.errors import InvalidConfig
from qlab.metrics import MINUS, three_digits, whole
from qlab.plots.theme import Palette, figure, palette
from qlab.runtime.steps import Steps

MOST_NUMBERS = 512  # cells of a panel that still get their number written in
COLUMNS, COLUMNS_BARE = 16, 64  # of a linear's row, which goes on in the next line; with numbers in it and without
SIDE_BY_SIDE = 7  # columns of a panel up to which its numbers can be read beside two others
MOST_POINTS = 2_000
_AROUND = 66  # pixels between two panels below each other: the ticks of one, the title of the next


@dataclass(frozen=True)
class _Panel:
    """values: [lines, columns] float, NaN where the last line is filled up. zero: what has the colour of the page.

    padded: where a cell is padding. names: of the cells, for the mouse.
    """

    title: str
    values: NDArray[np.float64]
    zero: int
    padded: NDArray[np.bool_]
    names: NDArray[np.object_]


def window_heatmaps(steps: Steps, dark: bool, channel: int | None = None) -> go.Figure:
    """Input integers, weight integers and their products with their numbers, side by side; wide ones below each other.

    Colours are relative to the zero point: what is worth exactly 0 has the colour of the page. A number in brackets is
    padding. channel: of a convolution, the input channel shown; None sums the products over all channels and shows
    nothing else, as integers of different channels have no common sum. A linear shows its whole row.
    Raises InvalidConfig for a channel the element does not read.
    """
    colours = palette(dark)
    panels = _panels(steps, channel)
    lines, width = panels[0].values.shape
    stacked = width > SIDE_BY_SIDE
    each = lines * (30 if lines * width <= MOST_NUMBERS else 9)
    count = len(panels) if stacked else 1
    drawn = count * each + (count - 1) * _AROUND
    made = figure(dark, drawn + 78, room={"t": 30, "b": 48, "l": 56, "r": 8})
    gap = _AROUND / drawn if stacked else 0.06
    size = (1 - gap * (len(panels) - 1)) / len(panels)
    for place, panel in enumerate(panels):
        start = place * (size + gap)
        end = min(start + size, 1.0)
        _draw(
            made, place, panel, ((0.0, 1.0), (1 - end, 1 - start)) if stacked else ((start, end), (0.0, 1.0)), colours
        )
    _name_axes(made, steps, len(panels), lines, width, stacked)
    return made


def accumulator_line(steps: Steps, dark: bool) -> go.Figure:
    """The accumulator after each product, in the order of the kernel, then with its bias.

    Where they lie in view, two lines mark between which sums the output is not clamped.
    """
    colours = palette(dark)
    sums = np.concatenate([[0], steps.running])
    at = np.arange(len(sums))
    kept = np.unique(np.linspace(0, len(sums) - 1, min(len(sums), MOST_POINTS)).round().astype(int))
    made = figure(dark, 320, room={"t": 30, "b": 48, "l": 72, "r": 24}, showlegend=True)
    made.add_scatter(
        x=at[kept],
        y=sums[kept],
        mode="lines+markers" if len(sums) <= 80 else "lines",
        line={"color": colours.quantized, "width": 2, "shape": "hv"},
        marker={"size": 4},
        name="sum of products",
        hovertemplate="after %{x} products: %{y:,}<extra></extra>",
    )
    end = steps.accumulator + (steps.bias or 0)
    if steps.bias is not None:
        made.add_scatter(
            x=[at[-1], at[-1]],
            y=[steps.accumulator, end],
            mode="lines",
            line={"color": colours.float, "width": 2},
            name=f"bias {whole(steps.bias)}".replace("-", MINUS),
            hovertemplate="with bias: %{y:,}<extra></extra>",
        )
    made.add_scatter(
        x=[at[-1]],
        y=[end],
        mode="markers+text",
        marker={"color": colours.error if steps.overflows else colours.gained, "size": 10},
        text=[whole(end).replace("-", MINUS)],
        textposition="top left",
        name="accumulator" if not steps.overflows else "accumulator, beyond int32",
        hovertemplate="accumulator: %{y:,}<extra></extra>",
    )
    low, high = min(0, int(sums.min()), end), max(0, int(sums.max()), end)
    room = max(high - low, 1)
    seen = (low - 0.15 * room, high + 0.15 * room)
    _clamps(made, steps, seen, room, colours)
    made.update_xaxes(title_text=f"products added (of {len(sums) - 1:,})", range=[-0.02 * len(sums), 1.03 * len(sums)])
    made.update_yaxes(title_text=f"accumulator (unit: {three_digits(steps.input_scale * steps.weight_scale)})")
    return made


def _clamps(made: go.Figure, steps: Steps, seen: tuple[float, float], room: float, colours: Palette) -> None:
    """Lines at the sums that give the lowest and the highest output code, and the range of the axis."""
    ends = [((code - steps.output_zero_point) / steps.multiplier, code) for code in (steps.low, steps.high)]
    inside = [(at, code) for at, code in ends if seen[0] - room / 2 <= at <= seen[1] + room / 2]
    for at, code in inside:
        made.add_hline(
            y=at,
            line={"color": colours.range, "width": 1.5, "dash": "dash"},
            annotation={"text": f"output code {code}", "font": {"color": colours.range}},
            annotation_position="top left",
        )
    reach = [at for at, _ in inside]
    made.update_yaxes(range=[min([seen[0], *(at - 0.05 * room for at in reach)]), max([seen[1], *reach]) + 0.08 * room])


def _panels(steps: Steps, channel: int | None) -> list[_Panel]:
    inputs, weights, products, padded = steps.inputs, steps.weights, steps.products, steps.padded
    if steps.places:
        if channel is None and len(steps.channels) > 1:
            return [_panel(steps, "Products, summed over the input channels", products.sum(0), 0, padded[0])]
        which = 0 if channel is None else _channel_place(steps, channel)
        inputs, weights, products, padded = (a[which] for a in (inputs, weights, products, padded))
    nowhere = np.zeros_like(padded)
    return [
        _panel(steps, f"Input, zero point {steps.input_zero_point}", inputs, steps.input_zero_point, padded),
        _panel(steps, f"Weight, zero point {steps.weight_zero_point}", weights, steps.weight_zero_point, nowhere),
        _panel(steps, "Products", products, 0, padded),
    ]


def _channel_place(steps: Steps, channel: int) -> int:
    if channel not in steps.channels:
        raise InvalidConfig(
            f"output channel {steps.channel} of {steps.layer!r} does not read input channel {channel}: "
            f"choose one of {steps.channels[0]} to {steps.channels[-1]}."
        )
    return steps.channels.index(channel)


def _panel(
    steps: Steps, title: str, values: NDArray[np.int64], zero: int, padded: NDArray[np.bool_]
) -> _Panel:  # fmt: skip
    """As lines: of a convolution, one for each row of the kernel; of a linear, pieces of its row."""
    if steps.places:
        width = values.shape[-1]
        names = [f"input position {', '.join(map(str, at))}" for at in _combinations(steps.places)]
    else:
        width = min(len(values), COLUMNS if len(values) <= MOST_NUMBERS else COLUMNS_BARE)
        names = [f"input {i}" for i in range(len(values))]
    missing = -values.size % width
    flat = np.concatenate([values.ravel().astype(np.float64), np.full(missing, np.nan)])
    holes = np.concatenate([padded.ravel(), np.zeros(missing, dtype=bool)])
    words = np.array(names + [""] * missing, dtype=object)
    flat, holes, words = (a.reshape(-1, width) for a in (flat, holes, words))
    return _Panel(title, flat, zero, holes, words)


def _draw(
    made: go.Figure, place: int, panel: _Panel, domain: tuple[tuple[float, float], tuple[float, float]],
    colours: Palette,
) -> None:  # fmt: skip
    reach = float(np.nanmax(np.abs(panel.values - panel.zero))) or 1.0
    axis = str(place + 1) if place else ""
    made.add_heatmap(
        z=panel.values,
        zmin=panel.zero - reach,
        zmax=panel.zero + reach,
        colorscale=[[0.0, colours.float], [0.5, colours.background], [1.0, colours.quantized]],
        showscale=False,
        xgap=1,
        ygap=1,
        text=np.vectorize(_number, otypes=[object])(panel.values, panel.padded),
        texttemplate="%{text}" if panel.values.size <= MOST_NUMBERS else None,
        customdata=panel.names,
        hovertemplate="%{customdata}: %{text}<extra></extra>",
        hoverongaps=False,
        xaxis=f"x{axis}",
        yaxis=f"y{axis}",
    )
    plain: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": ""}
    made.update_layout(
        {
            f"xaxis{axis}": {**plain, "domain": domain[0], "anchor": f"y{axis}"},
            f"yaxis{axis}": {**plain, "domain": domain[1], "anchor": f"x{axis}", "autorange": "reversed"},
        }
    )
    made.add_annotation(
        text=panel.title, x=domain[0][0], y=domain[1][1], xref="paper", yref="paper", xanchor="left", yanchor="bottom",
        showarrow=False, font={"color": colours.muted, "size": 13},
    )  # fmt: skip


def _number(value: float, padded: bool) -> str:
    if np.isnan(value):
        return ""
    text = f"{value:,.0f}".replace("-", MINUS)
    return f"({text})" if padded else text


def _name_axes(made: go.Figure, steps: Steps, count: int, lines: int, width: int, stacked: bool) -> None:
    """Where in the input a cell lies, negative in the padding before it."""
    if not steps.places:
        across, down = "input, counted from the first of its line", "first input"
        columns, rows = [f"+{i}" for i in range(width)], [str(i * width) for i in range(lines)]
    else:
        across = "input column" if len(steps.places) > 1 else "input position"
        down = ("", "input row", "input plane, row")[len(steps.places) - 1]
        columns = [str(at) for at in steps.places[-1]]
        rows = [", ".join(map(str, at)) for at in _combinations(steps.places[:-1])]
    every = max(1, width // 16)
    made.update_xaxes(tickvals=list(range(0, width, every)), ticktext=[t.replace("-", MINUS) for t in columns[::every]])
    made.update_yaxes(tickvals=list(range(lines)), ticktext=[t.replace("-", MINUS) for t in rows])
    for place in range(count):
        axis = str(place + 1) if place else ""
        made.update_layout(
            {
                f"xaxis{axis}": {"title_text": across if not stacked or place == count - 1 else None},
                f"yaxis{axis}": {"title_text": (down or None) if stacked or place == 0 else None},
            }
        )


def _combinations(axes: tuple[NDArray[np.int64], ...]) -> list[tuple[int, ...]]:
    """One place for each combination of the axes, the last one fastest; without axes, the one empty place."""
    return list(itertools.product(*([int(at) for at in axis] for axis in axes)))
