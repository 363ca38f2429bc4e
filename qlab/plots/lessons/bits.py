"""Signal to noise and accuracy over the number of bits, and the values the bits are spent on."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from qlab.lessons.bits import PER_BIT, Accuracies, Curves
from qlab.metrics import metric, percent
from qlab.plots.bins import Bins
from qlab.plots.distribution import steps
from qlab.plots.theme import Palette, figure, palette

DASHES = {"min_max": "solid", "mse": "dot", "percentile": "dashdot"}
MOST_GRID = 64  # grid points up to which each is drawn


def values(
    bins: Bins, zeros: float, ends: Mapping[str, tuple[float, float]], chosen: str, points: int, tensor: str, dark: bool
) -> go.Figure:
    """A histogram of a tensor, and above it the range of each observer; of the chosen one the grid, where it can be
    drawn. zeros: share of exact zeros, which are not in the counts. ends: by observer. points: of the grid."""
    colours = palette(dark)
    made = figure(dark, 300, room={"t": 8, "b": 48, "l": 84, "r": 16}, showlegend=False)
    x, y = steps(bins, bins.counts / max(bins.counts.sum(), 1e-12) * 100)
    made.add_scatter(
        x=x, y=y, mode="lines", line={"shape": "hv", "color": colours.float, "width": 1.2}, fill="tozeroy",
        fillcolor=colours.wash("float", 0.3), hovertemplate="%{x:.4g}: %{y:.3g} %<extra></extra>",
    )  # fmt: skip
    for row, (observer, (low, high)) in enumerate(ends.items()):
        mine = observer == chosen
        made.add_scatter(
            x=[low, high], y=[row, row], yaxis="y2", mode="lines+markers", name=observer,
            line={"color": colours.range if mine else colours.neutral, "width": 5 if mine else 2},
            marker={"symbol": "line-ns-open", "size": 12, "line": {"width": 2}},
            hovertemplate=f"{observer}: %{{x:.4g}}<extra></extra>",
        )  # fmt: skip
        if mine and points <= MOST_GRID:
            grid = [low + (high - low) * i / (points - 1) for i in range(points)]
            made.add_scatter(
                x=grid, y=[0] * points, mode="markers", cliponaxis=False, hoverinfo="skip",
                marker={"symbol": "line-ns-open", "size": 10, "color": colours.range, "line": {"width": 1.5}},
            )  # fmt: skip
    rest = f" (without the {percent(zeros)} of them that are exactly 0)" if zeros else ""
    made.update_xaxes(title_text=f"value of {tensor}{rest}", anchor="y", zeroline=False)
    made.update_layout(
        uirevision=tensor,
        yaxis={"domain": [0, 0.7], "title": {"text": "share of values (%)"}, "zeroline": False, "nticks": 4,
               "rangemode": "tozero"},
        yaxis2={"domain": [0.76, 1], "anchor": "x", "tickvals": list(range(len(ends))), "ticktext": list(ends),
                "range": [len(ends) - 0.4, -0.6], "showgrid": False, "ticks": "", "zeroline": False},
    )  # fmt: skip
    return made


def over_bits(found: Curves, chosen: str, dark: bool) -> go.Figure:
    """SQNR (dB) over the bits by observer, the chosen one in colour, beside the line of 6.02 dB per bit."""
    colours = palette(dark)
    made = figure(dark, 420, room={"t": 34, "b": 48, "l": 64, "r": 16}, hovermode="x unified")
    made.add_scatter(
        x=found.bits, y=found.rule, mode="lines", name=f"{PER_BIT:.2f} dB per bit",
        line={"color": colours.muted, "width": 1.5, "dash": "dash"}, hovertemplate="%{y:.1f} dB",
    )  # fmt: skip
    for observer in sorted(found.rows, key=lambda name: name == chosen):
        mine = observer == chosen
        made.add_scatter(
            x=found.bits, y=found.rows[observer].sqnr, mode="lines+markers", name=observer,
            line={"color": colours.quantized if mine else colours.neutral, "width": 3 if mine else 1.5,
                  "dash": DASHES[observer]},
            marker={"size": 7 if mine else 4}, hovertemplate="%{y:.1f} dB",
        )  # fmt: skip
    made.update_xaxes(title_text="bits", dtick=1, range=[found.bits[0] - 0.3, found.bits[-1] + 0.3], zeroline=False)
    made.update_yaxes(title_text=metric("sqnr").axis, zeroline=True)
    made.update_layout(uirevision=found.tensor)
    return made


def accuracy_over_bits(found: Accuracies, dark: bool) -> go.Figure:
    """Accuracy (%) over the bits with 95 % intervals; grey where it cannot be told from float, whose interval is a
    band."""
    colours, said = palette(dark), metric("accuracy")
    made = figure(dark, 380, room={"t": 34, "b": 48, "l": 64, "r": 16})
    reference = found.reference
    assert reference.accuracy is not None
    assert reference.accuracy_interval is not None
    low, high = reference.accuracy_interval
    ends = [found.rows[0].bits - 0.4, found.rows[-1].bits + 0.4]
    made.add_hrect(y0=100 * low, y1=100 * high, fillcolor=colours.wash("float", 0.14), line_width=0, layer="below")
    made.add_scatter(
        x=ends, y=[100 * reference.accuracy] * 2, mode="lines", line={"color": colours.float, "width": 2},
        name=f"float {said.format(reference.accuracy)} {said.interval(low, high)}", hoverinfo="skip",
    )  # fmt: skip
    for told, name, colour in ((True, "apart from float beyond chance", colours.quantized),
                               (False, "within chance of float", colours.neutral)):  # fmt: skip
        _dots(made, found, told, name, colour, colours)
    made.update_xaxes(title_text="bits of weights and activations", dtick=1, range=ends, zeroline=False)
    made.update_yaxes(title_text=f"{said.axis}, simulated", zeroline=False)
    return made


def _dots(made: go.Figure, found: Accuracies, told: bool, name: str, colour: str, colours: Palette) -> None:
    rows = [row for row in found.rows if bool(row.comparison.significant) == told]
    if not rows:
        return
    marks = [(row, row.evaluation.accuracy or 0.0, row.evaluation.accuracy_interval or (0.0, 0.0)) for row in rows]
    made.add_scatter(
        x=[row.bits for row in rows], y=[100 * value for _, value, _ in marks], mode="markers+text", name=name,
        text=[f"{100 * value:.1f}" for _, value, _ in marks], textposition="bottom center",
        textfont={"color": colours.text, "size": 12},
        marker={"size": 11, "color": colour, "symbol": "diamond"},
        error_y={"type": "data", "symmetric": False, "array": [100 * (high - value) for _, value, (_, high) in marks],
                 "arrayminus": [100 * (value - low) for _, value, (low, _) in marks], "color": colour,
                 "thickness": 2, "width": 6},
        customdata=[row.comparison.verdict for row in rows],
        hovertemplate="%{x} bits: %{y:.1f} %<br>%{customdata}<extra></extra>",
    )  # fmt: skip
