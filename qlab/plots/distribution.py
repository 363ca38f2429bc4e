"""Where the values of one tensor fall, what range each observer gives it, and where the error is made.

One figure with one value axis: brackets on top, the histogram, the grid under it, and the error by value. They share
the axis, so zooming into one zooms into all, and a bracket stands exactly over the values it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.metrics import three_digits, write
from qlab.plots.bins import Bins, Window
from qlab.plots.theme import Palette, palette, template

# Heights in pixels. The figure is as tall as its parts, so brackets keep their distance whatever their number.
ROW, HISTOGRAM, STRIP, ERROR, GAP, BOTTOM = 25, 228, 20, 90, 12, 48
LEFT, RIGHT = 104, 84
DRAWN_WIDTH = 750  # the usual width of the value axis: charts learn theirs in the browser only
TELL_APART = 4.0  # pixels between two grid ticks that can still be told apart
CLEAR = "\u00a0" * 4  # before a text right of the picture, for the arrows that end there
MOST_TICKS = DRAWN_WIDTH / TELL_APART


@dataclass(frozen=True)
class Bracket:
    """The range an observer gives: the ends of its grid, and what it is worth."""

    observer: str
    low: float
    high: float
    sqnr: float | None
    chosen: bool = False


@dataclass(frozen=True)
class Clipped:
    """Shares 0..1 of the values outside the chosen range."""

    below: float
    above: float

    @property
    def share(self) -> float:
        return self.below + self.above


@dataclass(frozen=True)
class ErrorByValue:
    """Squared error by value, on the bins of the picture. round_off, clip: [n]; below, above: made by values that lie
    left and right of the picture. All in the same unit."""

    edges: NDArray[np.float64]
    round_off: NDArray[np.float64]
    clip: NDArray[np.float64]
    below: float = 0.0
    above: float = 0.0


@dataclass(frozen=True)
class Grid:
    """The chosen grid. levels: ascending values; used: which of them at least one value lands on.

    None in place of a Grid: there is no one grid, as with a scale for each channel.
    """

    levels: NDArray[np.float64]
    used: NDArray[np.bool_] | None = None

    @property
    def step(self) -> float:
        return float(self.levels[1] - self.levels[0])


def distribution_figure(
    bins: Bins,
    window: Window,
    brackets: Sequence[Bracket],
    clipped: Clipped,
    error: ErrorByValue | None,
    grid: Grid | None,
    *,
    dark: bool,
    quantity: str = "Value",
    zeros: float = 0.0,
    values: float | None = None,
    logarithmic: bool = False,
    dequantized: Bins | None = None,
    no_grid: str = "each channel has a grid of its own",
    no_error: str = "the error of this tensor is not known",
    revision: str = "",
) -> go.Figure:
    """The picture. Exactly one bracket is chosen.

    error: None where it cannot be known, grid: None where there is more than one; no_error and no_grid say why.
    zeros, values: how many values are exactly 0, and how many there are; a spike of zeros is cut off and labelled, so
    that the rest keeps its shape. dequantized: the same values after quantization, drawn over the float ones.
    revision: what plotly keys zoom and hidden traces by.
    """
    colours = palette(dark)
    rows = len(brackets)
    heights = [ROW * rows, HISTOGRAM, STRIP, ERROR]
    top = 28 if dequantized is not None else 6
    inner = sum(heights) + GAP * (len(heights) - 1)
    domains, used = [], 0
    for height in heights:
        domains.append([1 - (used + height) / inner, 1 - used / inner])
        used += height + GAP
    sheet = _Sheet()
    sheet.axes(
        xaxis={
            "range": [window.low, window.high],
            "title": {"text": quantity},
            "showgrid": True,
            "zeroline": False,
            "anchor": "y4",
            # margins are given: finding them out would draw everything twice
            "automargin": False,
        }
    )
    for name, domain in zip(("yaxis2", "yaxis", "yaxis3", "yaxis4"), domains, strict=True):
        sheet.axes(**{name: {"domain": [max(0.0, domain[0]), domain[1]], "anchor": "x", "automargin": False}})
    chosen = next(b for b in brackets if b.chosen)
    _histogram(sheet, bins, colours, zeros, values, logarithmic, dequantized)
    _brackets(sheet, brackets, window, colours)
    _clipping(sheet, window, chosen, clipped, colours)
    _strip(sheet, grid, chosen, window, colours, no_grid)
    _error(sheet, error, no_error, colours)
    return go.Figure(
        data=sheet.data,
        layout={
            "template": template(dark),
            "height": inner + top + BOTTOM,
            "margin": {"t": top, "b": BOTTOM, "l": LEFT, "r": RIGHT},
            "uirevision": revision,
            "showlegend": dequantized is not None,
            "annotations": sheet.annotations,
            "shapes": sheet.shapes,
            **sheet.layout,
        },
    )


class _Sheet:
    """The figure to be, as plain dicts: adding to a Figure piece by piece checks the whole each time, for 60 ms."""

    def __init__(self) -> None:
        self.data: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.shapes: list[dict[str, Any]] = []
        self.layout: dict[str, dict[str, Any]] = {}

    def scatter(self, **trace: Any) -> None:
        self.data.append({"type": "scatter", **trace})

    def note(self, **annotation: Any) -> None:
        self.annotations.append({"showarrow": False, **annotation})

    def shape(self, **shape: Any) -> None:
        self.shapes.append(shape)

    def axes(self, **axes: dict[str, Any]) -> None:
        for name, values in axes.items():
            self.layout[name] = self.layout.get(name, {}) | values


def steps(bins: Bins, heights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A step line over the bins: n + 1 points with line_shape "hv", the last one repeated to close the last bin."""
    return bins.edges, np.append(heights, heights[-1])


def scaled(counts: NDArray[np.float64], logarithmic: bool) -> NDArray[np.float64]:
    """Heights to draw: the counts, or log10(1 + count), which keeps an empty bin at 0 where a log axis has no place."""
    return np.log10(1 + counts) if logarithmic else counts


def ceiling(bins: Bins, logarithmic: bool, zeros: float) -> tuple[float, float | None]:
    """Top of the count axis, and the height of the spike of zeros that is cut off there (None: nothing is cut)."""
    heights = scaled(bins.counts, logarithmic)
    top = float(heights.max(initial=0.0))
    place = bins.bin_of(0.0)
    if logarithmic or not zeros or place is None:
        return max(top, 1e-12) * 1.06, None
    rest = np.delete(heights, place)
    second = float(rest.max(initial=0.0))
    # The zeros stand for themselves: what the bin holds beside them may still be the tallest of the rest.
    second = max(second, float(heights[place]) - zeros)
    if second > 0 and float(heights[place]) > 2.5 * second:
        return second * 1.25, float(heights[place])
    return max(top, 1e-12) * 1.06, None


def _histogram(
    sheet: _Sheet,
    bins: Bins,
    colours: Palette,
    zeros: float,
    values: float | None,
    logarithmic: bool,
    dequantized: Bins | None,
) -> None:
    x, y = steps(bins, scaled(bins.counts, logarithmic))
    sheet.scatter(
        x=x,
        y=y,
        customdata=np.append(bins.counts, bins.counts[-1]),
        name="float",
        mode="lines",
        line={"shape": "hv", "width": 1.4, "color": colours.float},
        fill="tozeroy",
        fillcolor=colours.wash("float", 0.28),
        hovertemplate="%{x:.4g}: %{customdata:,.0f} values in this bin<extra></extra>",
    )
    if dequantized is not None:
        x, y = steps(dequantized, scaled(dequantized.counts, logarithmic))
        sheet.scatter(
            x=x,
            y=y,
            name="quantized, spread over one grid step",
            mode="lines",
            line={"shape": "hv", "width": 1.6, "color": colours.quantized},
            hoverinfo="skip",
        )
    top, spike = ceiling(bins, logarithmic, zeros)
    sheet.axes(
        yaxis={
            "range": [0, top],
            "title": {"text": "values per bin"},
            "nticks": 5,
            "zeroline": True,
            "exponentformat": "SI",
        }
    )
    if logarithmic:
        decades = np.arange(0, math.ceil(top) + 1)
        sheet.axes(
            yaxis={
                "tickvals": [0, *np.log10(1 + 10.0**decades)],
                "ticktext": ["0", *(f"{10 ** int(d):,}" if d < 4 else f"1e{int(d)}" for d in decades)],
            }
        )
    if spike is not None:
        share = f" ({write('clipped', zeros / values)} of all)" if values else ""
        sheet.note(
            x=0,
            y=1,
            xref="x",
            yref="y domain",
            text=f"↑ {zeros:,.0f} exact zeros{share}",
            xanchor="left",
            yanchor="top",
            xshift=8,
            font={"color": colours.muted, "size": 12},
        )


def _brackets(sheet: _Sheet, brackets: Sequence[Bracket], window: Window, colours: Palette) -> None:
    """One row for each observer: its name left, its range as a bracket, its SQNR right. Rows cannot overlap."""
    for row, bracket in enumerate(brackets):
        colour = colours.range if bracket.chosen else colours.neutral
        low, high = max(bracket.low, window.low), min(bracket.high, window.high)
        cut = (bracket.low < window.low, bracket.high > window.high)
        # A range that lies wholly outside what is drawn still shows at the edge it lies behind.
        low, high = min(low, window.high), max(high, window.low)
        symbols = ["triangle-left" if cut[0] else "line-ns-open", "triangle-right" if cut[1] else "line-ns-open"]
        sheet.scatter(
            x=[low, high],
            y=[row, row],
            yaxis="y2",
            name=bracket.observer,
            customdata=[bracket.observer] * 2,
            meta={"low": bracket.low, "high": bracket.high, "chosen": bracket.chosen},
            mode="lines+markers",
            cliponaxis=False,
            showlegend=False,
            line={"color": colour, "width": 4 if bracket.chosen else 2},
            marker={
                "symbol": symbols,
                "size": [9 if cut[0] else 13, 9 if cut[1] else 13],
                "color": colour,
                "line": {"width": 3 if bracket.chosen else 2, "color": colour},
            },
            hovertemplate=f"{bracket.observer}: {three_digits(bracket.low)} … {three_digits(bracket.high)}, "
            f"{write('sqnr', bracket.sqnr)}<extra></extra>",
        )
        for is_cut, end, place, anchor in (
            (cut[0], bracket.low, window.low, "left"),
            (cut[1], bracket.high, window.high, "right"),
        ):
            if is_cut:
                sheet.note(
                    x=place,
                    y=row,
                    yref="y2",
                    text=three_digits(end).replace("-", "−"),
                    xanchor=anchor,
                    xshift=10 if anchor == "left" else -10,
                    yshift=8,
                    font={"size": 10, "color": colours.muted},
                )
    # One trace for all texts and one for all lines: a trace costs the browser about as much as all it holds.
    worth = [write("sqnr", bracket.sqnr) for bracket in brackets]
    sheet.scatter(
        x=[window.high] * len(brackets),
        y=list(range(len(brackets))),
        yaxis="y2",
        mode="text",
        name="SQNR",
        text=[
            f"<b>{CLEAR}{text}</b>" if b.chosen else f"{CLEAR}{text}" for b, text in zip(brackets, worth, strict=True)
        ],
        textposition="middle right",
        textfont={"size": 12, "color": [colours.text if b.chosen else colours.muted for b in brackets]},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )
    for chosen in (False, True):
        ends = [
            end for b in brackets if b.chosen == chosen for end in (b.low, b.high) if window.low < end < window.high
        ]
        sheet.scatter(
            x=[x for end in ends for x in (end, end, None)],
            y=[0, 1, None] * len(ends),
            yaxis="y5",
            mode="lines",
            name="ends of the range" if chosen else "ends of the others",
            showlegend=False,
            hoverinfo="skip",
            line={"color": colours.range, "width": 1.6}
            if chosen
            else {"color": colours.wash("neutral", 0.35), "width": 1, "dash": "dot"},
        )
    # The lines from the brackets down through all panels have a height of their own, from 0 to 1.
    sheet.axes(
        yaxis5={"domain": [0, 1], "range": [0, 1], "overlaying": "y", "visible": False, "fixedrange": True},
        yaxis2={
            "range": [len(brackets) - 0.45, -0.55],
            "tickvals": list(range(len(brackets))),
            "ticktext": [f"<b>{b.observer}</b>" if b.chosen else b.observer for b in brackets],
            # unseen ticks keep the names clear of the arrows that stand in for what is cut off
            "ticklen": 10,
            "tickcolor": "rgba(0,0,0,0)",
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        },
    )


def _clipping(sheet: _Sheet, window: Window, chosen: Bracket, clipped: Clipped, colours: Palette) -> None:
    """What lies outside the chosen range: shaded, with its share. Nothing is shaded where nothing is clipped."""
    for share, low, high, side in (
        (clipped.below, window.low, min(chosen.low, window.high), "below"),
        (clipped.above, max(chosen.high, window.low), window.high, "above"),
    ):
        if share <= 0 or high <= low:
            continue
        # Named, so that what was shaded can be read from the figure again.
        sheet.shape(
            type="rect",
            name=f"clipped {side}",
            x0=low,
            x1=high,
            y0=0,
            y1=1,
            yref="y domain",
            fillcolor=colours.wash("error", 0.16),
            line_width=0,
            layer="below",
        )
        narrow = high - low < 0.13 * (window.high - window.low)
        # In a narrow strip the label would be cut at the edge of the chart: there it stands inside the range.
        anchor = "left" if narrow == (side == "below") else "right"
        sheet.note(
            x=high if side == "below" else low,
            y=0.86,
            yref="y domain",
            text=f"<b>{write('clipped', share)}</b> clipped",
            xanchor=anchor,
            xshift=4 if anchor == "left" else -4,
            font={"color": colours.error, "size": 13},
        )


def _strip(sheet: _Sheet, grid: Grid | None, chosen: Bracket, window: Window, colours: Palette, no_grid: str) -> None:
    """The grid as ticks where they can be told apart, else as a band."""
    low, high = max(chosen.low, window.low), min(chosen.high, window.high)
    if grid is not None:
        seen = (grid.levels >= window.low) & (grid.levels <= window.high)
        if seen.sum() <= MOST_TICKS * min(1.0, max(high - low, 0.0) / (window.high - window.low)) + 1:
            for used in (True, False):
                mask = seen & ((grid.used if used else ~grid.used) if grid.used is not None else used)
                if mask.any():
                    sheet.scatter(
                        x=grid.levels[mask],
                        y=np.full(int(mask.sum()), 0.5),
                        yaxis="y3",
                        mode="markers",
                        name="grid" if used else "grid, unused",
                        showlegend=False,
                        marker={
                            "symbol": "line-ns-open",
                            "size": 16 if used else 7,
                            "line": {"width": 1.6 if used else 1.2},
                            "color": colours.range if used else colours.neutral,
                        },
                        hovertemplate="level %{x:.4g}" + ("" if used else ", no value lands here") + "<extra></extra>",
                    )
            high = low
    # Drawn even when it is empty: plotly leaves out an axis without a trace, and what refers to it lands elsewhere.
    band = [low, high, high, low] if high > low else [None]
    sheet.scatter(
        x=band,
        y=[0.15, 0.15, 0.85, 0.85][: len(band)],
        yaxis="y3",
        mode="lines",
        name="grid band",
        showlegend=False,
        hoverinfo="skip",
        line={"width": 0},
        fill="toself",
        fillcolor=colours.wash("range", 0.55 if grid is not None else 0.25),
    )
    if grid is None:
        sheet.note(
            x=0.5,
            xref="x domain",
            y=0.5,
            yref="y3",
            text=no_grid,
            font={"size": 12, "color": colours.text},
        )
    else:
        _beside(sheet, 0.5, "y3", f"{len(grid.levels):,} levels", colours.muted)
    sheet.axes(
        yaxis3={
            "range": [0, 1],
            "tickvals": [0.5],
            "ticktext": ["grid"],
            "ticks": "",
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
        }
    )


def _error(sheet: _Sheet, error: ErrorByValue | None, no_error: str, colours: Palette) -> None:
    """Share of the squared error that the values of each bin make: round-off inside the range, clip outside."""
    if error is None:
        # The empty trace keeps the panel: plotly leaves out an axis that nothing is drawn on.
        sheet.scatter(x=[None], y=[None], yaxis="y4", showlegend=False)
        sheet.axes(yaxis4={"title": {"text": "error, %"}, "range": [0, 1], "showticklabels": False})
        _note(sheet, 0.5, "center", no_error, colours.muted)
        return
    total = float(error.round_off.sum() + error.clip.sum()) + error.below + error.above
    bins = Bins(error.edges, error.round_off)
    for values, name, label in ((error.round_off, "range", "round-off"), (error.clip, "error", "clip")):
        x, y = steps(bins, 100 * values / total if total > 0 else values)
        sheet.scatter(
            x=x,
            y=y,
            yaxis="y4",
            mode="lines",
            name=label,
            showlegend=False,
            line={"shape": "hv", "width": 1.2, "color": getattr(colours, name)},
            fill="tozeroy",
            fillcolor=colours.wash(name, 0.35),
            hovertemplate="%{x:.4g}: %{y:.2f} % of the squared error, " + label + "<extra></extra>",
        )
    tallest = 100 * float(np.maximum(error.round_off, error.clip).max()) / total if total > 0 else 0.0
    sheet.axes(yaxis4={"title": {"text": "error, %"}, "nticks": 3, "zeroline": True, "range": [0, 1.12 * tallest or 1]})
    if total <= 0:
        _note(sheet, 0.5, "center", "no error: every value lies on the grid", colours.muted)
    # Without this, an outlier that makes nearly all of the error would be missing from the picture and nobody told.
    for beyond, place, anchor, text in (
        (error.below, 0.0, "left", "← {} of the error lies left of the picture"),
        (error.above, 1.0, "right", "{} of the error lies right of the picture →"),
    ):
        if total > 0 and beyond / total >= 0.0005:
            _note(sheet, place, anchor, text.format(write("clip_error", beyond / total)), colours.error)


def _note(sheet: _Sheet, x: float, anchor: str, text: str, colour: str) -> None:
    sheet.note(
        x=x,
        xref="x domain",
        y=0.97,
        yref="y4 domain",
        yanchor="top",
        xanchor=anchor,
        text=text,
        font={"color": colour, "size": 12},
    )


def _beside(sheet: _Sheet, y: float, axis: str, text: str, colour: str) -> None:
    """Text in the right margin."""
    sheet.note(
        x=1,
        xref="paper",
        xanchor="left",
        xshift=10,
        y=y,
        yref=axis,
        text=text,
        font={"size": 12, "color": colour},
    )
