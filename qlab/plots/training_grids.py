"""What training does to the grids: ranges and steps over time, weights over their grid, codes that change."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from qlab.metrics import percent, three_digits
from qlab.plots.bins import Bins, spread
from qlab.plots.distribution import steps
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, figure, palette
from qlab.plots.training import EDGE, end_of, frozen_at, through, whole_ticks

if TYPE_CHECKING:
    from qlab.training.history import GridTrace, History

FEW_CHANNELS = 6  # that get a line each
FEW_LAYERS = 5
UPPER, LOWER = (0.53, 1.0), (0.0, 0.44)  # parts of the height that range and step take
FEWEST_BINS = 60
MOST_LAYERS = 40
MOST_CODES = 64  # that are marked one by one
MIDDLE = 0.125  # of a step, on either side of the middle between two grid points
EVEN = "spread evenly, a quarter of them would"


# ---- range and step --------------------------------------------------------------------------------------------------


def grid_moves(history: History, grid: GridTrace, dark: bool) -> go.Figure:
    """Above: both ends of the range, below: the step size (scale), over the epochs. A line for each scale up to
    `FEW_CHANNELS`, else the median in a band from the least to the largest; what is frozen lies on grey."""
    colours = palette(dark)
    made = figure(dark, 470, room={"t": 34, "b": 48, "l": 84, "r": 12}, uirevision=grid.tensor, hovermode="closest")
    x = history.record_epochs
    for values, name, axis, shown in (
        (grid.high, "high", "y", True), (grid.low, "low", "y", False), (grid.scale, "scale", "y2", False),
    ):  # fmt: skip
        _lines(made, x, values, grid, name, axis, shown, colours)
    last = end_of(history)
    _frozen(made, frozen_at(history, grid), last, colours)
    made.update_xaxes(
        title_text="epochs (0: before the first step)", range=[-EDGE * last, (1 + EDGE) * last], anchor="y2",
        zeroline=False, **whole_ticks(last),
    )  # fmt: skip
    made.update_layout(
        yaxis={"domain": list(UPPER), "title": {"text": "range (value)"}, "anchor": "x", "nticks": 6},
        yaxis2={
            "domain": list(LOWER), "title": {"text": "step size (value)"}, "anchor": "x", "nticks": 5,
            "exponentformat": "power", "zeroline": False,
        },
    )  # fmt: skip
    return made


def _lines(
    made: go.Figure, x: NDArray[Any], values: NDArray[Any], grid: GridTrace, name: str, axis: str, legend: bool,
    colours: Palette,
) -> None:  # fmt: skip
    """values [R, n]."""
    dash = "solid" if grid.role == "weight" else "dash"
    line = {"color": colours.range, "width": 2, "dash": dash}
    if values.shape[1] > FEW_CHANNELS:
        low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
        made.add_scatter(
            x=np.concatenate([x, x[::-1]]), y=np.concatenate([low, high[::-1]]), yaxis=axis, mode="lines",
            fill="toself", fillcolor=colours.wash("range", 0.22), line={"width": 0}, hoverinfo="skip",
            name=f"from least to largest of {_scales(grid)}", showlegend=legend, legendgroup="band",
        )  # fmt: skip
        made.add_scatter(
            x=x, y=np.nanmedian(values, axis=1), yaxis=axis, mode="lines", line=line, name="median",
            showlegend=legend, legendgroup="median",
            hovertemplate="%{x:.2f} epochs: " + name + " %{y:.4g}<extra>median</extra>",
        )  # fmt: skip
        return
    for i in range(values.shape[1]):
        said = f"channel {int(grid.channels[i])}" if grid.count > 1 else name
        made.add_scatter(
            x=x, y=values[:, i], yaxis=axis, mode="lines", name=said, legendgroup=said,
            line={**line, "color": _shade(i, values.shape[1], colours)}, showlegend=legend and grid.count > 1,
            hovertemplate="%{x:.2f} epochs: " + name + " %{y:.4g}<extra>" + said + "</extra>",
        )  # fmt: skip


def _scales(grid: GridTrace) -> str:
    held = len(grid.channels)
    return f"{held:,} scales" if held == grid.count else f"{held:,} of {grid.count:,} scales"


def _shade(i: int, count: int, colours: Palette) -> str:
    """One colour for one line; of several a row of shades, since all of them are ranges."""
    return colours.range if count == 1 else _row_of_colours(count)[i]


def _row_of_colours(count: int) -> list[str]:
    # The middle of viridis: its ends are too near to one of the two backgrounds.
    places = [0.2 + 0.55 * i / max(count - 1, 1) for i in range(count)]
    return list(sample_colorscale("Viridis", places))


def _frozen(made: go.Figure, since: float | None, last: float, colours: Palette) -> None:
    if since is None:
        return
    made.add_shape(
        type="rect", x0=since, x1=(1 + EDGE) * last, y0=0, y1=1, yref="paper", layer="below", line={"width": 0},
        fillcolor=colours.wash("neutral", 0.14),
    )  # fmt: skip
    words = "stood still from the start" if since == 0 else "frozen"
    left = since <= 0.8 * last
    made.add_annotation(
        x=since, y=(UPPER[0] + LOWER[1]) / 2, yref="paper", yanchor="middle", text=words, showarrow=False,
        xanchor="left" if left else "right", xshift=5 if left else -5, font={"color": colours.muted, "size": 12},
    )  # fmt: skip


# ---- weights over the grid -------------------------------------------------------------------------------------------


def weights_on_grid(grid: GridTrace, row: int, dark: bool, label: str = "") -> go.Figure:
    """Weights in steps of their grid after one epoch, filled; those of the start as an outline behind.

    row: of `grid.histogram`. Grid points are marks under the bins, the parts near the middle between two of them are
    shaded; what lies beyond the grid stands in the end bins. Raises IndexError for a row there is none of.
    """
    colours = palette(dark)
    if not grid.histogram.size:
        return empty("Activations change with the data, so they have no histogram of their own here.", dark)
    made = figure(dark, 400, room={"t": 34, "b": 48, "l": 64, "r": 12}, uirevision=grid.tensor)
    _middles(made, grid, colours)
    shown = [(row, label or f"record {row}", "quantized", 0.35, 1.6)]
    if row:
        shown.append((0, "before training", "float", 0.0, 1.6))
    top = 0.0
    for which, name, colour, fill, width in shown:
        edges, counts = coarser(grid, which)
        share = 100 * counts / max(counts.sum(), 1)
        top = max(top, float(share.max()))
        x, y = steps(Bins(edges, share), share)
        made.add_scatter(
            x=x, y=y, mode="lines", name=name, line={"shape": "hv", "width": width, "color": getattr(colours, colour)},
            fill="tozeroy" if fill else None, fillcolor=colours.wash(colour, fill) if fill else None,
            hovertemplate="%{x:.2f} steps: %{y:.3g} % of the weights<extra>" + name + "</extra>",
        )  # fmt: skip
    codes = np.arange(grid.quant_min, grid.quant_max + 1)
    if len(codes) <= MOST_CODES:
        made.add_scatter(
            x=codes, y=np.zeros(len(codes)), mode="markers", name="grid points", cliponaxis=False,
            marker={"symbol": "line-ns-open", "size": 12, "color": colours.range, "line": {"width": 2}},
            hovertemplate="grid point %{x}<extra></extra>",
        )  # fmt: skip
    made.update_xaxes(
        title_text="weight (codes: steps of its grid)", range=[float(grid.edges[0]), float(grid.edges[-1])],
        zeroline=False, showgrid=False, **({"dtick": 1} if len(codes) <= 20 else {}),
    )  # fmt: skip
    made.update_yaxes(
        title_text="share of the weights in a bin (%)", range=[0, 1.06 * max(top, 1e-9)], zeroline=False, nticks=6
    )
    return made


def coarser(grid: GridTrace, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges and counts of a histogram, in bins no finer than its number of weights bears; each a part of one step."""
    counts = grid.histogram[row].astype(np.float64)
    spans = grid.quant_max - grid.quant_min + 2
    each = len(counts) // spans  # bins in a step
    most = max(FEWEST_BINS, 4 * math.sqrt(counts.sum()))
    fits = [n for n in range(1, each + 1) if each % n == 0 and spans * n <= most]
    merged = each // max(fits, default=1)
    return grid.edges[::merged], counts.reshape(-1, merged).sum(axis=1)


def _middles(made: go.Figure, grid: GridTrace, colours: Palette) -> None:
    if grid.quant_max - grid.quant_min >= MOST_CODES:
        return
    for code in range(grid.quant_min, grid.quant_max):
        made.add_vrect(
            x0=code + 0.5 - MIDDLE, x1=code + 0.5 + MIDDLE, fillcolor=colours.wash("neutral", 0.16), line_width=0,
            layer="below",
        )  # fmt: skip


def near_the_middle(grid: GridTrace, row: int) -> float | None:
    """Share 0..1 of the weights that lie within `MIDDLE` of a step of the middle between two grid points, as far as the
    bins tell: each counts as evenly filled. None where bins are too wide for that, or there are none."""
    counts = grid.histogram[row] if grid.histogram.size else np.zeros(0)
    if not counts.sum() or grid.edges[1] - grid.edges[0] > 2 * MIDDLE:
        return None
    middles = np.arange(grid.quant_min, grid.quant_max) + 0.5
    ends = np.stack([middles - MIDDLE, middles + MIDDLE], axis=1).ravel()
    inside = spread(grid.edges[:-1], grid.edges[1:], counts, ends).counts[::2]
    return float(inside.sum() / counts.sum())


# ---- flips -----------------------------------------------------------------------------------------------------------


def flips(history: History, dark: bool) -> go.Figure:
    """Share of each weight's codes (%) that changed from one record to the next: a line each for up to `FEW_LAYERS`
    layers, else a row each, in the order of the network; of more than `MOST_LAYERS` those that change most."""
    grids = [grid for grid in history.grids if grid.role == "weight"]
    if not grids or len(history.record_epochs) < 2:
        return empty("No step has been taken yet, so no code has changed.", dark)
    if len(grids) <= FEW_LAYERS:
        return _flip_lines(history, grids, dark)
    return _flip_rows(history, grids, dark)


def _flip_lines(history: History, grids: Sequence[GridTrace], dark: bool) -> go.Figure:
    made = figure(dark, 380, room={"t": 40, "b": 48, "l": 64, "r": 12}, uirevision="flips", hovermode="closest")
    looks = zip(grids, _row_of_colours(len(grids)), ("solid", "dash", "dot", "dashdot", "longdash"), strict=False)
    for grid, colour, dash in looks:
        name = html.escape(shorten(grid.tensor), quote=False)
        made.add_scatter(
            x=history.record_epochs[1:], y=100 * grid.flips[1:], mode="lines", name=name,
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate="%{x:.2f} epochs: %{y:.3g} % of the codes<extra>" + name + "</extra>",
        )  # fmt: skip
    _epochs_axis(made, history)
    _frozen_line(made, history, palette(dark), above=False)
    made.update_yaxes(title_text="codes that changed since the record before (%)", rangemode="tozero", nticks=6)
    return made


def _flip_rows(history: History, grids: Sequence[GridTrace], dark: bool) -> go.Figure:
    most = sorted(range(len(grids)), key=lambda i: -float(grids[i].flips[1:].sum()))[:MOST_LAYERS]
    shown = [grids[i] for i in sorted(most)]
    colours = palette(dark)
    made = figure(dark, 110 + 20 * len(shown), uirevision="flips")
    made.add_heatmap(
        # One edge more than columns: a column reaches from one record to the next.
        x=history.record_epochs, y=list(range(len(shown))), z=np.stack([100 * grid.flips[1:] for grid in shown]),
        colorscale="Viridis", zmin=0, customdata=[[grid.tensor] * (len(history.record_epochs) - 1) for grid in shown],
        colorbar={"ticksuffix": " %", "tickfont": {"color": colours.muted}, "thickness": 12, "outlinewidth": 0},
        hovertemplate="%{customdata}<br>%{x:.2f} epochs: %{z:.3g} % of the codes<extra></extra>", ygap=1,
    )  # fmt: skip
    left = len(grids) - len(shown)
    made.update_yaxes(
        tickvals=list(range(len(shown))), range=[len(shown) - 0.5, -0.5], showgrid=False, ticks="", zeroline=False,
        ticktext=[html.escape(shorten(grid.tensor), quote=False) for grid in shown],
        title_text=f"left out: {left} with fewer changes" if left else None,
    )  # fmt: skip
    _epochs_axis(made, history)
    _frozen_line(made, history, colours, above=True)
    made.update_layout(margin={"t": 26, "b": 8, "l": 8, "r": 12})
    return made


def _epochs_axis(made: go.Figure, history: History) -> None:
    last = end_of(history)
    made.update_xaxes(title_text="epochs", range=[0, last], zeroline=False, **whole_ticks(last))


def _frozen_line(made: go.Figure, history: History, colours: Palette, *, above: bool) -> None:
    """above: over the picture, where no legend stands."""
    since = frozen_at(history)
    if since is None:
        return
    through(made, since, colours.range, "dash")
    right = since > 0.8 * end_of(history)
    made.add_annotation(
        x=since, y=1, yref="paper", yanchor="bottom" if above else "top", text="ranges frozen", showarrow=False,
        xanchor="right" if right else "left", xshift=0 if above else -5 if right else 5,
        font={"color": colours.muted, "size": 12}, bgcolor=colours.wash("background", 0.8),
    )  # fmt: skip


# ---- in words --------------------------------------------------------------------------------------------------------


def middle_words(grid: GridTrace, row: int) -> str:
    """How many weights lie near the middle between two grid points, now and before training."""
    now, before = near_the_middle(grid, row), near_the_middle(grid, 0)
    if now is None or before is None:
        return "The bins of this weight are wider than the parts between its grid points, so no share is told."
    then = f", {percent(before)} before training" if row else ""
    return f"**{percent(now)}** of the weights lie near the middle between two grid points{then}; {EVEN}."


def scale_words(grid: GridTrace, record: int) -> str:
    """Its scale at a record; of several their median with both ends."""
    scale = grid.scale[record]
    if scale.size == 1:
        return three_digits(float(scale[0]))
    low, high = (three_digits(float(v)) for v in (np.min(scale), np.max(scale)))
    return f"{three_digits(float(np.median(scale)))} ({low} … {high})"
