"""Pictures of what was found: the values of a tensor with its range and its outliers; what each remedy brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.metrics import metric, three_digits
from qlab.plots.bins import Bins
from qlab.plots.distribution import scaled, steps
from qlab.plots.layers import shorten
from qlab.plots.theme import empty, figure, name_rows, palette

NAME_LENGTH = 46


def values_figure(
    bins: Bins, ends: tuple[float, float] | None, marked: NDArray[np.float64], dark: bool, *, quantity: str
) -> go.Figure:  # fmt: skip
    """Values as a step line of log counts; the ends of the grid upright; what is marked as ticks on the axis.

    ends: lowest and highest value of the grid, None where there is none for all. marked: the values themselves.
    """
    colours = palette(dark)
    x, y = steps(bins, scaled(bins.counts, logarithmic=True))
    made = figure(dark, 300, showlegend=False)
    made.add_scatter(
        x=x, y=y, mode="lines", line={"color": colours.float, "width": 1.5, "shape": "hv"}, fill="tozeroy",
        fillcolor=colours.wash("float", 0.25), customdata=np.append(bins.counts, bins.counts[-1:]),
        hovertemplate="%{x:.3g}: %{customdata:,.0f} values<extra></extra>",
    )  # fmt: skip
    if ends is not None:
        for end, anchor in ((ends[0], "left"), (ends[1], "right")):
            made.add_vline(x=end, line={"color": colours.range, "width": 2})
            made.add_annotation(
                x=end, y=1.0, yref="paper", yanchor="bottom", xanchor=anchor, showarrow=False,
                text=f"grid {'from' if end == ends[0] else 'to'} {three_digits(end)}".replace("-", "−"),
                font={"color": colours.range},
            )  # fmt: skip
    if len(marked):
        made.add_scatter(
            x=marked, y=np.zeros(len(marked)), mode="markers",
            marker={"symbol": "triangle-up", "size": 12, "color": colours.error},
            hovertemplate="%{x:.4g}<extra>outlier</extra>",
        )  # fmt: skip
    made.update_xaxes(title_text=quantity)
    made.update_yaxes(title_text="log10(1 + count)", rangemode="tozero")
    made.update_layout(margin={"t": 28})
    return made


@dataclass(frozen=True)
class Attempt:
    """One remedy. value: what it gave, 0..1; significant: beyond chance, None where that is not known."""

    label: str
    value: float
    significant: bool | None


def attempt_bars(
    attempts: Sequence[Attempt], before: float | None, reference: float | None, dark: bool, key: str = "accuracy"
) -> go.Figure:  # fmt: skip
    """A bar from what the config gave before to what each remedy gives: green up, red-orange down, grey within noise.

    before, reference: of the config before and of the float network, 0..1, as upright lines.
    """
    if not attempts:
        return empty("Nothing was tried.", dark)
    figures, colours = metric(key), palette(dark)
    base = before if before is not None else 0.0
    colour = [
        colours.neutral if a.significant is False else colours.gained if a.value > base else colours.error
        for a in attempts
    ]
    made = figure(dark, height=104 + 26 * len(attempts), showlegend=False, bargap=0.35)
    made.add_bar(
        orientation="h",
        x=[100 * (a.value - base) for a in attempts],
        base=[100 * base] * len(attempts),
        y=list(range(len(attempts))),
        marker={"color": colour, "line": {"width": 0}},
        customdata=[[a.label, figures.format(a.value), figures.delta(a.value - base)] for a in attempts],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]} (%{customdata[2]})<extra></extra>",
    )
    values = [a.value for a in attempts] + [v for v in (before, reference) if v is not None]
    low, high = min(values), max(values)
    room = max(high - low, 0.02)
    for row, a in enumerate(attempts):
        made.add_annotation(
            x=100 * max(a.value, base), y=row, text=figures.format(a.value), xanchor="left", xshift=6, showarrow=False,
            font={"color": colours.text},
        )  # fmt: skip
    for value, name, words, place in (
        (before, colours.quantized, "before", "right"), (reference, colours.float, "float", "left"),
    ):  # fmt: skip
        if value is not None:
            made.add_vline(x=100 * value, line={"color": name, "width": 2, "dash": "dash"})
            made.add_annotation(
                x=100 * value, y=1.0, yref="paper", yanchor="bottom", xanchor=place, showarrow=False,
                text=f"{words} {figures.format(value)}", font={"color": name},
            )  # fmt: skip
    made.update_xaxes(
        title_text=f"{figures.axis}, simulated", range=[100 * (low - 0.15 * room), 100 * (high + 0.25 * room)]
    )
    name_rows(made, [shorten(a.label, NAME_LENGTH) for a in attempts])
    made.update_layout(margin={"t": 28})
    return made
