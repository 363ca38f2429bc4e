"""Which layer costs how much, worst first."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go

from qlab.metrics import MINUS, Metric, metric
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, figure, name_rows, palette

if TYPE_CHECKING:
    from qlab.analysis.sensitivity import Part, Sensitivity, SensitivityRow

Measure = Literal["accuracy", "loss", "sqnr"]
Number = float  # inside Palette and beside it `float` also names a colour

MOST = 40
ROW = 26  # pixels of a layer
PART_WORDS: dict[Part, str] = {"both": "whole layer", "weight": "weights", "activation": "activations"}
BASE_WORDS = {"only": "float", "all_but": "all quantized"}


def metric_of(found: Sensitivity, measure: Measure) -> Metric:
    """How this measure is written; without labels agreement with float stands for accuracy."""
    return metric("agreement" if measure == "accuracy" and found.base.accuracy is None else measure)


def base_value(found: Sensitivity, measure: Measure, of: Literal["base", "float"] = "base") -> Number:
    at = found.base if of == "base" else found.float
    if measure == "accuracy":
        return at.agreement if at.accuracy is None else at.accuracy
    return at.loss if measure == "loss" else at.sqnr


def value_of(found: Sensitivity, row: SensitivityRow, measure: Measure) -> Number:
    """The row's figure. Of a row that has seen fewer samples than the base: the base's, moved by what the row differs
    from the base on the samples it has seen; the SQNR as it is on these."""
    if measure == "sqnr":
        return row.sqnr
    base = base_value(found, measure)
    return base + (row.against_base.accuracy if measure == "accuracy" else row.against_base.loss)


def differs(row: SensitivityRow, measure: Measure) -> bool:
    """Whether its difference from the base is beyond chance; an SQNR is a fact of the samples it was taken on."""
    if measure == "sqnr":
        return True
    return row.against_base.accuracy_differs if measure == "accuracy" else row.against_base.loss_differs


def worst_first(found: Sensitivity, measure: Measure) -> list[str]:
    """Layers by their guiltiest part under this measure, those measured on all samples first; ties go by the SQNR."""
    sign = 1 if found.mode == "only" else -1

    def guilt(row: SensitivityRow) -> tuple[Number, ...]:
        value = value_of(found, row, measure)
        return -row.n, sign * (-value if measure == "loss" else value), sign * row.sqnr

    return list(dict.fromkeys(row.layer for row in sorted(found, key=guilt)))


def sensitivity_bars(
    found: Sensitivity, measure: Measure, dark: bool, *, selected: str | None = None, most: int = MOST
) -> go.Figure:
    """A bar for each layer or its parts, from the base to what the layer makes of it; of more than `most` the worst.

    customdata: the layer. Grey: not beyond chance. Light with a rim: estimated on the first samples alone.
    """
    layers = worst_first(found, measure)
    if not layers:
        return empty("This config quantizes no layer.", dark)
    shown, colours, figures = layers[:most], palette(dark), metric_of(found, measure)
    parts = [part for part in PART_WORDS if any(row.part == part for row in found)]
    low, high, start = _reach(found, measure)
    made = figure(
        dark,
        height=96 + round(ROW * (0.55 + 0.45 * len(parts)) * max(len(shown), 4)),
        barmode="overlay",
        clickmode="event+select",
    )
    made.add_bar(
        orientation="h", base=low, x=[high - low] * len(shown), y=list(range(len(shown))), customdata=shown, width=0.96,
        marker_color=[colours.wash("neutral", 0.22 if name == selected else 0.0) for name in shown],
        marker_line_width=0, hoverinfo="none", showlegend=False,
    )  # fmt: skip
    _band(made, found, measure, colours)
    for i, part in enumerate(parts):
        rows = [row for name in shown if (row := found.row(name, part)) is not None]
        width = 0.74 / len(parts)
        made.add_bar(
            **_bars(found, rows, [shown.index(row.layer) for row in rows], measure, start, high, colours, _hatch(part)),
            offset=-0.37 + i * width, width=width * 0.94, name=PART_WORDS[part], showlegend=False,
        )  # fmt: skip
    _lines(made, found, measure, len(shown), colours)
    _legend(made, found, measure, parts, colours)
    made.update_traces(
        selector={"type": "bar"}, selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}}
    )
    more = len(layers) - len(shown)
    note = f" · {more} more layers cost less" if more else ""
    made.update_xaxes(
        title_text=f"{'Output ' if measure == 'sqnr' else ''}{figures.axis}{_reads(found, measure)}{note}",
        range=_padded(low, high),
        zeroline=False,
    )
    name_rows(made, [shorten(name) for name in shown])
    return made


def _hatch(part: str) -> str:
    return "/" if part == "activation" else ""


def _reads(found: Sensitivity, measure: Measure) -> str:
    quantity = {"accuracy": "lower", "loss": "higher", "sqnr": "lower"}[measure]
    if found.mode == "only":
        return f", with one layer quantized: {quantity} is worse"
    quantity = {"accuracy": "higher", "loss": "lower", "sqnr": "higher"}[measure]
    return f", with one layer left float: {quantity} is guiltier"


def _scaled(value: Number, measure: Measure) -> Number:
    return 100 * value if measure == "accuracy" else value


def _reach(found: Sensitivity, measure: Measure) -> tuple[Number, Number, Number]:
    """Lowest and highest figure to show, and where bars start; accuracies in percent."""
    base = base_value(found, measure)
    values = [value_of(found, row, measure) for row in found]
    if measure == "sqnr":
        known = [v for v in [*values, base] if math.isfinite(v)]
        high = max([*known, 1.0])
        if not math.isfinite(base):
            return min([0.0, *known]), high * 1.02, 0.0
        low = min([*known, base])
        room = max((high - low) * 0.05, 0.1)
        return low - room, high + room, base
    values += [base, base_value(found, measure, "float"), *_interval(found, measure)]
    low, high = _scaled(min(values), measure), _scaled(max(values), measure)
    room = max((high - low) * 0.04, 0.1 if measure == "accuracy" else 1e-3)
    return low - room, high + room, _scaled(base, measure)


def _padded(low: Number, high: Number) -> list[Number]:
    """Room for the numbers at the ends of the bars."""
    return [low - 0.16 * (high - low), high + 0.12 * (high - low)] if low else [low, high * 1.12]


def _interval(found: Sensitivity, measure: Measure) -> tuple[Number, ...]:
    ends = found.base.accuracy_interval
    return ends if measure == "accuracy" and ends is not None else ()


def _bars(
    found: Sensitivity, rows: Sequence[SensitivityRow], at: Sequence[int], measure: Measure, start: Number,
    high: Number, colours: Palette, hatch: str,
) -> dict[str, Any]:  # fmt: skip
    lengths, inks, fills, texts, told = [], [], [], [], []
    for row in rows:
        value = value_of(found, row, measure)
        end = _scaled(value, measure) if math.isfinite(value) else high
        lengths.append(end - start)
        ink = _ink(found, row, measure)
        inks.append(getattr(colours, ink))
        fills.append(getattr(colours, ink) if found.confirmed(row) else colours.wash(ink, 0.22))
        texts.append(("" if found.confirmed(row) else "≈ ") + _written(found, row, measure))
        told.append(_told(found, row, measure))
    return {
        "orientation": "h", "base": start, "x": lengths, "y": list(at), "customdata": [row.layer for row in rows],
        "marker": {
            "color": fills, "line": {"color": inks, "width": 1.2},
            "pattern": {"shape": hatch, "fgcolor": fills, "bgcolor": "rgba(0,0,0,0)", "size": 6},
        },
        "text": texts,
        "textposition": "outside", "textfont": {"color": colours.text, "size": 12}, "cliponaxis": False,
        "hovertext": told, "hovertemplate": "%{hovertext}<extra></extra>", "constraintext": "none",
    }  # fmt: skip


def _ink(found: Sensitivity, row: SensitivityRow, measure: Measure) -> str:
    """The colour by its meaning: lost, gained, or within the noise."""
    if not differs(row, measure):
        return "neutral"
    if measure == "sqnr":
        if found.mode == "only":
            return "quantized"
        return "gained" if row.sqnr > found.base.sqnr else "error"
    worse = row.against_base.accuracy < 0 if measure == "accuracy" else row.against_base.loss > 0
    return "error" if worse else "gained"


def _written(found: Sensitivity, row: SensitivityRow, measure: Measure) -> str:
    """The difference, with its sign; a single layer's SQNR as it is."""
    if measure == "sqnr":
        if found.mode == "only" or not math.isfinite(row.sqnr):
            return metric("sqnr").format(row.sqnr) if math.isfinite(row.sqnr) else "exact"
        return metric("sqnr").delta(row.sqnr - found.base.sqnr)
    paired = row.against_base
    if measure == "accuracy":
        return metric("accuracy").delta(paired.accuracy)
    return signed(paired.loss)


def signed(loss: Number) -> str:
    """A difference of losses, in ten-thousandths of a nat; what is less is 0."""
    text = f"{loss:+.4f}"
    return "0" if text in ("+0.0000", "-0.0000") else text.replace("-", MINUS)


def _told(found: Sensitivity, row: SensitivityRow, measure: Measure) -> str:
    figures, value = metric_of(found, measure), value_of(found, row, measure)
    lines = [
        f"<b>{html.escape(row.layer, quote=False)}</b> ({html.escape(row.op, quote=False)}), {PART_WORDS[row.part]}",
        f"{figures.label}: {figures.format(value)}" + ("" if found.confirmed(row) else ", estimated"),
        f"output: {metric('sqnr').format(row.sqnr)} · {row.n:,} samples",
    ]
    if measure != "sqnr":
        lines.append(
            f"{row.against_base.lost} predictions lost, {row.against_base.gained} gained"
            + ("" if differs(row, measure) else ": within the noise")
        )
    return "<br>".join(lines)


def _band(made: go.Figure, found: Sensitivity, measure: Measure, colours: Palette) -> None:
    if ends := _interval(found, measure):
        low, high = (_scaled(end, measure) for end in ends)
        made.add_vrect(low, high, fillcolor=colours.wash("neutral", 0.13), line_width=0, layer="below")


def _lines(made: go.Figure, found: Sensitivity, measure: Measure, rows: int, colours: Palette) -> None:
    """Float, and all quantized where that is the base, with their figures in the legend."""
    figures = metric_of(found, measure)
    wanted: list[tuple[Literal["base", "float"], str, str]] = [("float", "float", "dash")]
    if found.mode == "all_but":
        wanted.append(("base", "quantized", "solid"))
    for of, colour, dash in wanted:
        value = base_value(found, measure, of)
        if not math.isfinite(value):
            continue
        name = "float" if of == "float" else BASE_WORDS["all_but"]
        made.add_scatter(
            x=[_scaled(value, measure)] * 2, y=[-0.6, rows - 0.4], mode="lines", hoverinfo="skip",
            line={"color": getattr(colours, colour), "width": 2, "dash": dash}, name=f"{name} {figures.format(value)}",
        )  # fmt: skip


def _legend(made: go.Figure, found: Sensitivity, measure: Measure, parts: Sequence[Part], colours: Palette) -> None:
    """What the looks of the bars mean, as far as they occur."""
    rows = list(found)

    def entry(name: str, **marker: Any) -> None:
        made.add_bar(x=[None], y=[None], name=name, marker=marker, orientation="h")

    words = {
        "error": "worse, beyond chance" if measure != "sqnr" else "worse",
        "gained": "better, beyond chance" if measure != "sqnr" else "better",
        "neutral": "within the noise", "quantized": "",
    }  # fmt: skip
    for ink, name in words.items():
        if name and any(_ink(found, row, measure) == ink for row in rows):
            entry(name, color=getattr(colours, ink))
    if len(parts) > 1:
        for part in parts:
            entry(
                PART_WORDS[part], color=colours.muted,
                pattern={"shape": _hatch(part), "fgcolor": colours.muted, "bgcolor": "rgba(0,0,0,0)", "size": 6},
            )  # fmt: skip
    looked = [row for row in rows if not found.confirmed(row)]
    if looked:
        entry(
            f"estimated from {looked[0].n:,} samples", color=colours.wash("neutral", 0.22),
            line={"color": colours.neutral, "width": 1.2},
        )  # fmt: skip
    if ends := _interval(found, measure):
        entry(f"95 % interval {metric('accuracy').interval(*ends)}", color=colours.wash("neutral", 0.25))
