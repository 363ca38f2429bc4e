"""A quantized weight as pictures: its integers, its grids, its error and how much of the grid it uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.metrics import whole
from qlab.plots.theme import Palette, empty, figure, palette
from qlab.quant.cells import Cells
from qlab.quant.levels import Levels

MOST_NUMBERS = 384  # cells that get their code written in
MOST_NAMED = 32  # codes that each have a tick of their own, and a colour set off from the next
TALLEST, LOWEST = 500, 170  # pixels of all rows of the heatmap together
ROW = (7, 34)  # pixels of one row
HALF = 0.501  # steps; what rounding to the nearest code leaves, with room for float32
_COLOURS = 64


# --- the integers -----------------------------------------------------------------------------------------------------


def codes_heatmap(
    found: Cells, low: int, high: int, dark: bool, *, names: Sequence[str] = (), across: str = "position",
    changed: NDArray[np.bool_] | None = None,
) -> go.Figure:  # fmt: skip
    """The integers of a stretch of a weight, cells [rows, columns]; first channel on top.

    Coloured around the zero point, which has the colour of the page; channels with different ones are coloured by code
    minus zero point. low, high: ends of the grid. names: [columns] what the positions are called; across: and the axis.
    changed: [rows, columns] cells that are framed, because they were written by hand.
    """
    if not found.code.size:
        return empty("This weight holds no numbers.", dark)
    colours = palette(dark)
    zeros = np.unique(found.zero_point)
    one = len(zeros) == 1
    centre = int(zeros[0]) if one else 0
    ends = (low, high) if one else (low - int(zeros[-1]), high - int(zeros[0]))
    rows, columns = found.code.shape
    row = min(max(TALLEST / rows, ROW[0]), ROW[1])
    made = figure(dark, int(min(max(row * rows, LOWEST), TALLEST)) + 92, room={"t": 30, "b": 56, "l": 64, "r": 8})
    told = [found.position, found.code, found.dequantized, found.scale, found.zero_point]
    words = "channel %{y} · position %{customdata[0]}%{text}<br>code <b>%{customdata[1]}</b><br>"
    words += "dequantized %{customdata[2]:.5g}<br>"
    if found.original is not None:
        told.append(found.original)
        words += "float %{customdata[5]:.5g}<br>"
    words += "scale %{customdata[3]:.4g} · zero point %{customdata[4]}<extra></extra>"
    labels = [f" ({name})" if name else "" for name in names] or [""] * columns
    made.add_heatmap(
        z=found.code if one else found.code - found.zero_point,
        x=np.arange(columns),
        y=found.channel[:, 0],
        zmin=ends[0] - 0.5,
        zmax=ends[1] + 0.5,
        colorscale=_around(centre, ends, colours),
        colorbar=_codes_bar(ends, centre, "code" if one else "code − zero point", colours),
        customdata=np.stack([np.asarray(part, dtype=np.float32) for part in told], axis=-1),
        text=[labels] * rows,
        hovertemplate=words,
        xgap=1 if columns <= 64 else 0,
        ygap=1 if row > ROW[0] + 2 else 0,
    )
    if found.code.size <= MOST_NUMBERS:
        _write(made, found, ends, centre, one, dark)
    if changed is not None and changed.any():
        _frame(made, found, changed, row, colours)
    every = max(1, -(-columns // (7 if names else 12)))  # names are long
    made.update_xaxes(
        title_text=across, showgrid=False, zeroline=False, ticks="", range=[-0.5, columns - 0.5],
        tickvals=np.arange(0, columns, every),
        ticktext=[names[i] if names else str(found.position[0, i]) for i in range(0, columns, every)],
    )  # fmt: skip
    first, last = int(found.channel[0, 0]), int(found.channel[-1, 0])
    made.update_yaxes(
        title_text="output channel", showgrid=False, zeroline=False, ticks="", range=[last + 0.5, first - 0.5],
        tickvals=np.arange(first, last + 1, max(1, -(-rows // 16))), tickformat="d",
    )  # fmt: skip
    return made


def _around(centre: int, ends: tuple[int, int], colours: Palette) -> list[list[Any]]:
    """Colours from the lowest code to the highest: page at the centre, blue below and orange above it, by distance."""
    low, high = ends
    reach = max(centre - low, high - centre, 1)
    count = high - low + 1
    codes = np.arange(low, high + 1) if count <= MOST_NAMED else np.linspace(low, high, _COLOURS)
    shades = [_mixed(colours, (code - centre) / reach) for code in codes]
    if count > MOST_NAMED:
        return [[i / (len(codes) - 1), shade] for i, shade in enumerate(shades)]
    edges = np.linspace(0, 1, count + 1)
    return [[float(edge), shade] for i, shade in enumerate(shades) for edge in edges[i : i + 2]]


def _mixed(colours: Palette, share: float) -> str:
    """The page's colour, mixed with blue below 0 and with orange above it. share: -1..1."""
    full = colours.float if share < 0 else colours.quantized
    parts = [
        round(int(colours.background[i : i + 2], 16) * (1 - abs(share)) + int(full[i : i + 2], 16) * abs(share))
        for i in (1, 3, 5)
    ]
    return f"rgb({parts[0]},{parts[1]},{parts[2]})"


def _codes_bar(ends: tuple[int, int], centre: int, title: str, colours: Palette) -> dict[str, Any]:
    """The colour scale, with codes as its ticks."""
    ticks = _code_ticks(*ends, centre, most=17)
    return {
        "tickvals": ticks, "ticktext": [whole(tick).replace("-", "−") for tick in ticks],
        "tickfont": {"color": colours.muted}, "title": {"text": title, "font": {"color": colours.muted}},
        "thickness": 14, "outlinewidth": 0, "len": 1, "lenmode": "fraction",
    }  # fmt: skip


def _code_ticks(low: int, high: int, centre: int, most: int) -> list[int]:
    """Codes for an axis: all of them, or both ends and what lies between at even distances from the centre."""
    if high - low < most:
        return list(range(low, high + 1))
    step = 2 ** int(np.ceil(np.log2((high - low) / (most // 2))))
    inner = [code for code in range(centre - 64 * step, high, step) if low + step / 2 <= code <= high - step / 2]
    return [low, *inner, high]


def _write(made: go.Figure, found: Cells, ends: tuple[int, int], centre: int, one: bool, dark: bool) -> None:
    """The codes in their cells, black or white by what is under them: plotly's own choice is too faint on orange."""
    rows, columns = np.indices(found.code.shape)
    values = (found.code if one else found.code - found.zero_point).ravel()
    reach = max(centre - ends[0], ends[1] - centre, 1)
    # White on the page's black, and on the deep blue of a light page; black on all that is bright.
    white = np.abs(values - centre) / reach < 0.45 if dark else (centre - values) / reach > 0.55
    made.add_scatter(
        x=columns.ravel(),
        y=found.channel[:, 0][rows.ravel()],
        mode="text",
        text=[str(code).replace("-", "−") for code in found.code.ravel()],
        textfont={
            "size": 11,
            "color": np.where(white, "#FFFFFF", "#000000").tolist(),
        },
        hoverinfo="skip",
        showlegend=False,
    )


def _frame(made: go.Figure, found: Cells, changed: NDArray[np.bool_], row: float, colours: Palette) -> None:
    rows, columns = np.nonzero(changed)
    made.add_scatter(
        x=columns,
        y=found.channel[rows, 0],
        mode="markers",
        marker={
            "symbol": "square-open", "size": max(row - 4, 8), "color": colours.error, "line": {"width": 2.5},
        },
        name="written by hand",
        hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip


# --- scales -----------------------------------------------------------------------------------------------------------


def scale_chart(scale: NDArray[Any], zero_point: NDArray[Any], dark: bool, first: int = 0) -> go.Figure:
    """Scale of each channel, [n]; below it the zero point, where any is not 0. first: number of the first channel."""
    if not len(scale):
        return empty("This weight has no channels.", dark)
    colours = palette(dark)
    channel = np.arange(first, first + len(scale))
    shifted = bool((zero_point != 0).any())
    made = figure(dark, 420 if shifted else 300, room={"t": 12, "b": 48, "l": 72, "r": 16}, showlegend=False)
    size = 8 if len(scale) <= 64 else 5
    made.add_scatter(
        x=channel, y=scale, mode="markers", marker={"color": colours.range, "size": size}, name="scale",
        hovertemplate="channel %{x}: scale %{y:.5g}<extra></extra>",
    )  # fmt: skip
    made.update_layout(yaxis={"title_text": "scale (per code)", "rangemode": "tozero"})
    if shifted:
        made.add_scatter(
            x=channel, y=zero_point, mode="markers", yaxis="y2", marker={"color": colours.quantized, "size": size},
            name="zero point", hovertemplate="channel %{x}: zero point %{y:d}<extra></extra>",
        )  # fmt: skip
        made.update_layout(
            yaxis={"domain": [0.46, 1.0]}, xaxis={"anchor": "y2"},
            yaxis2={"domain": [0.0, 0.38], "anchor": "x", "title_text": "zero point (code)", "nticks": 5},
        )  # fmt: skip
    room = 0.02 * len(scale) + 0.5
    made.update_xaxes(
        title_text="output channel", range=[channel[0] - room, channel[-1] + room], showgrid=False, zeroline=False,
        tickformat="d",
    )  # fmt: skip
    return made


def group_chart(
    scale: NDArray[Any], zero_point: NDArray[Any], dark: bool, *, first_channel: int = 0, first_group: int = 0
) -> go.Figure:  # fmt: skip
    """Scale of each group, [channels, groups], as colour; the zero point under the mouse."""
    if not scale.size:
        return empty("This weight has no groups.", dark)
    colours = palette(dark)
    rows, columns = scale.shape
    made = figure(dark, int(min(max(14 * rows, 160), 420)) + 64, room={"t": 8, "b": 52, "l": 64, "r": 8})
    made.add_heatmap(
        z=scale,
        x=np.arange(first_group, first_group + columns),
        y=np.arange(first_channel, first_channel + rows),
        customdata=zero_point,
        colorscale="Viridis",
        colorbar={
            "title": {"text": "scale", "font": {"color": colours.muted}}, "tickfont": {"color": colours.muted},
            "thickness": 14, "outlinewidth": 0, "tickformat": ".2g",
        },
        hovertemplate="channel %{y}, group %{x}: scale %{z:.5g}, zero point %{customdata}<extra></extra>",
        xgap=1,
        ygap=1 if rows <= 48 else 0,
    )  # fmt: skip
    plain: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "tickformat": "d"}
    every = max(1, -(-columns // 16))  # plotly itself would put ticks between two groups
    made.update_xaxes(
        title_text="group along the channel", tickvals=np.arange(first_group, first_group + columns, every), **plain
    )
    made.update_yaxes(title_text="output channel", autorange="reversed", **plain)
    return made


# --- the error --------------------------------------------------------------------------------------------------------


def far(found: Cells) -> NDArray[np.bool_]:
    """Which numbers are more than half a step from their float original: rounding alone never is."""
    assert found.error is not None
    return np.abs(found.error) > HALF * found.scale


def against_float(found: Cells, dark: bool) -> go.Figure:
    """What each code stands for over the float it came from; what lies further than half a step off is vermilion.

    found: with originals, flat. Exact values lie on the line.
    """
    if not found.code.size:
        return empty("This weight holds no numbers.", dark)
    assert found.original is not None
    made = _error_figure(dark)
    colours = palette(dark)
    ends = [float(min(found.original.min(), found.dequantized.min()))]
    ends.append(float(max(found.original.max(), found.dequantized.max())))
    made.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": colours.float, "width": 1}, name="exact", hoverinfo="skip"
    )
    _points(made, found, found.original, found.dequantized, colours)
    made.update_xaxes(title_text="float original (weight)", zeroline=False)
    made.update_yaxes(title_text="dequantized (weight)", zeroline=False)
    return made


def error_by_code(found: Cells, low: int, high: int, dark: bool) -> go.Figure:
    """Error of each number in steps of its scale over its code; rounding stays between the lines at half a step."""
    if not found.code.size:
        return empty("This weight holds no numbers.", dark)
    assert found.error is not None
    made = _error_figure(dark)
    colours = palette(dark)
    for half in (-0.5, 0.5):
        made.add_hline(y=half, line={"color": colours.range, "width": 1, "dash": "dash"})
    _points(made, found, found.code, found.error / found.scale, colours)
    ticks = _code_ticks(low, high, 0 if low < 0 else low, 33)
    made.update_xaxes(title_text="code", range=[low - 0.8, high + 0.8], tickvals=ticks, showgrid=False, zeroline=False)
    made.update_yaxes(title_text="error (steps of the scale)")
    return made


def _error_figure(dark: bool) -> go.Figure:
    return figure(dark, 400, room={"t": 30, "b": 48, "l": 72, "r": 16}, showlegend=True)


def _points(made: go.Figure, found: Cells, x: NDArray[Any], y: NDArray[Any], colours: Palette) -> None:
    assert found.original is not None
    off = far(found)
    told = np.stack([found.channel, found.position, found.code, found.original, found.dequantized], axis=-1)
    for mask, name, colour in (
        (~off, "within half a step", colours.quantized), (off, "further off", colours.error),
    ):  # fmt: skip
        if not mask.any():
            continue
        made.add_scatter(
            x=x[mask],
            y=y[mask],
            mode="markers",
            marker={"color": colour, "size": 4, "opacity": 0.7},
            name=f"{name} ({int(mask.sum()):,})",
            customdata=told[mask],
            hovertemplate="channel %{customdata[0]:d} · position %{customdata[1]:d}<br>code %{customdata[2]:d}<br>"
            "float %{customdata[3]:.5g} · dequantized %{customdata[4]:.5g}<extra></extra>",
        )


# --- levels -----------------------------------------------------------------------------------------------------------


def levels_chart(levels: Levels, dark: bool, logarithmic: bool = False) -> go.Figure:
    """How often each level of the grid occurs; the levels that no code takes are marked on the axis in vermilion."""
    if not levels.count.any():
        return empty("This weight holds no numbers.", dark)
    colours = palette(dark)
    made = figure(
        dark, 360, room={"t": 30, "b": 48, "l": 72, "r": 16}, bargap=0.15, showlegend=bool(len(levels.unused))
    )
    # Below the smallest bar of either axis: a mark at 0 has no place on a logarithmic one.
    floor = 0.5 if logarithmic else 0
    made.add_bar(
        x=levels.codes, y=levels.count, marker={"color": colours.quantized, "line": {"width": 0}}, name="used",
        hovertemplate="code %{x}: %{y:,} weights<extra></extra>",
    )  # fmt: skip
    if len(levels.unused):
        made.add_scatter(
            x=levels.unused, y=np.full(len(levels.unused), floor), mode="markers", cliponaxis=False,
            marker={"symbol": "x", "color": colours.error, "size": 9 if len(levels.codes) <= MOST_NAMED else 6},
            name=f"unused ({len(levels.unused):,})", hovertemplate="code %{x}: unused<extra></extra>",
        )  # fmt: skip
    low, high = int(levels.codes[0]), int(levels.codes[-1])
    made.update_xaxes(
        title_text="code", range=[low - 0.8, high + 0.8], tickvals=_code_ticks(low, high, 0 if low < 0 else low, 33),
        showgrid=False, zeroline=False,
    )  # fmt: skip
    top = int(levels.count.max())
    made.update_yaxes(
        title_text="weights", type="log" if logarithmic else "linear", nticks=6,
        range=[np.log10(floor), np.log10(top * 1.3)] if logarithmic else [0, top * 1.08],
    )  # fmt: skip
    return made


def used_by_channel(used: NDArray[Any], levels: int, numbers: int, dark: bool, first: int = 0) -> go.Figure:
    """How many levels each channel uses, [n], under the line of the most it could: all levels of the grid, or the
    `numbers` it has where they are fewer. first: the first channel."""
    if not len(used):
        return empty("This weight has no channels.", dark)
    colours = palette(dark)
    channel = np.arange(first, first + len(used))
    made = figure(dark, 280, room={"t": 24, "b": 48, "l": 72, "r": 16}, showlegend=False)
    most, words = min((levels, f"{levels:,} levels of the grid"), (numbers, f"{numbers:,} weights in a channel"))
    made.add_hline(
        y=most, line={"color": colours.range, "width": 1.5, "dash": "dash"},
        annotation={"text": words, "font": {"color": colours.range}},
        annotation_position="top left",
    )  # fmt: skip
    made.add_scatter(
        x=channel, y=used, mode="markers",
        marker={"color": colours.quantized, "size": 8 if len(used) <= 64 else 5},
        hovertemplate="channel %{x}: %{y} levels<extra></extra>",
    )  # fmt: skip
    room = 0.02 * len(used) + 0.5
    made.update_xaxes(
        title_text="output channel", range=[channel[0] - room, channel[-1] + room], showgrid=False, zeroline=False,
        tickformat="d",
    )  # fmt: skip
    made.update_yaxes(title_text="levels used", range=[0, most * 1.2], nticks=6, tickformat="d")
    return made
