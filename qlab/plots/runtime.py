"""What ran: the time of each op, codes that differ from the simulation, and latencies side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from qlab.metrics import duration, percent, whole
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, figure, name_rows, palette
from qlab.runtime.executed import Executed, ExecutedOp, Kind
from qlab.runtime.latency import Timing
from qlab.runtime.parity import Parity
from qlab.runtime.report import DEFAULTS, FLOAT, INTEGER, TORCH

ROW = 18  # pixels
FAR = 6  # times the others
TALL = 20  # rows that are seen at once
WORDS: Mapping[Kind, str] = {
    "integer": "integer kernel",
    "float": "float kernel",
    "convert": "conversion",
    "move": "moves values",
    "shape": "works out sizes",
}


@dataclass(frozen=True)
class _Bar:
    """One row: a layer or an op. parts: seconds by kind; about: lines of the hover."""

    name: str
    parts: Mapping[Kind, float]
    about: str


def op_times(ran: Executed, dark: bool, *, by_layer: bool) -> go.Figure:
    """A bar for each op, or for each layer, in order of execution; length is time, colour what kind of op it is."""
    if not ran.ops:
        return empty("The runtime executed no op.", dark)
    bars = (
        _layers(ran)
        if by_layer
        else [_Bar(f"{shorten(o.layer, 24)} · {o.op}", {o.kind: o.seconds}, _about(o)) for o in ran.ops]
    )
    colours, unit, scale = palette(dark), *_unit(max(sum(b.parts.values()) for b in bars))
    tall = len(bars) > TALL
    height = 74 + 34 * tall + ROW * len(bars)
    # Tall ones are scrolled: legend and axis stay at the end that is seen first.
    made = figure(
        dark, height, room={"t": 96 if tall else 30, "b": 12 if tall else 44, "r": 16}, barmode="stack", bargap=0.25,
        showlegend=True,
    )  # fmt: skip
    for kind, words in WORDS.items():
        if not any(kind in b.parts for b in bars):
            continue
        made.add_bar(
            orientation="h",
            x=[b.parts.get(kind, 0.0) * scale for b in bars],
            y=list(range(len(bars))),
            name=f"{words}, {percent(ran.share(kind))} of the time",
            marker={"color": _colour(kind, colours), "line": {"width": 0}},
            hovertext=[b.about for b in bars],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    made.update_layout(
        legend={"traceorder": "normal"} | ({"yref": "container", "y": 1, "yanchor": "top"} if tall else {}),
    )
    made.update_xaxes(title_text=f"time of one call ({unit})", rangemode="tozero", side="top" if tall else "bottom")
    name_rows(made, [b.name for b in bars])
    return made


def _layers(ran: Executed) -> list[_Bar]:
    """Ops of one layer together, at the place of its first."""
    groups: dict[str, list[ExecutedOp]] = {}
    for op in ran.ops:
        groups.setdefault(op.layer, []).append(op)
    return [
        _Bar(
            shorten(layer),
            {kind: sum(o.seconds for o in ops if o.kind == kind) for kind in dict.fromkeys(o.kind for o in ops)},
            f"{layer}<br>" + "<br>".join(f"{o.op}: {duration(o.seconds)}, {WORDS[o.kind]}" for o in ops[:12]),
        )
        for layer, ops in groups.items()
    ]


def _about(op: ExecutedOp) -> str:
    types = f"{', '.join(dict.fromkeys(op.reads))} → {', '.join(dict.fromkeys(op.writes))}"
    return f"{op.layer}<br>{op.op}, {WORDS[op.kind]}<br>{duration(op.seconds)}<br>{types}<br>{list(op.shape)}"


def _colour(kind: Kind, colours: Palette) -> str:
    return {
        "integer": colours.gained,
        "float": colours.neutral,
        "convert": colours.error,
        "move": colours.wash("neutral", 0.4),
        "shape": colours.wash("range", 0.5),
    }[kind]


def _unit(longest: float) -> tuple[str, float]:
    return ("ms", 1e3) if longest >= 2e-3 else ("µs", 1e6)


def differing_codes(parity: Parity, dark: bool) -> go.Figure:
    """Tensor by tensor in order of computation: codes of the integer kernels that differ from the simulated ones, as
    they arrive, and those that the op itself makes of equal input."""
    rows = parity.tensors
    if not rows:
        return empty("No tensor lies on a grid known beforehand, so there are no codes to compare.", dark)
    colours, places = palette(dark), list(range(len(rows)))
    made = figure(dark, 300, showlegend=True, margin={"t": 30})
    for name, counts, steps, colour in (
        ("arrived", [r.differing for r in rows], [r.largest for r in rows], colours.wash("quantized", 0.55)),
        ("made by this op", [r.own_differing for r in rows], [r.own_largest for r in rows], colours.gained),
    ):
        made.add_bar(
            x=places,
            y=[n / r.count * 1e6 for n, r in zip(counts, rows, strict=True)],
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            hovertext=[
                f"{r.tensor}<br>{name}: {whole(n)} of {whole(r.count)} codes differ"
                + (f",<br>by {most} step{'s' if most != 1 else ''} at most" if n else "")
                for r, n, most in zip(rows, counts, steps, strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    made.update_layout(barmode="overlay", bargap=0.15)
    every = max(1, len(rows) // 16)
    made.update_xaxes(
        tickvals=places[::every], ticktext=[shorten(r.tensor, 18) for r in rows[::every]], tickangle=-40,
        range=[-0.6, len(rows) - 0.4], showgrid=False, ticks="",
    )  # fmt: skip
    made.update_yaxes(title_text="differing codes (per million)", rangemode="tozero")
    if not any(r.differing or r.own_differing for r in rows):
        made.update_yaxes(range=[0, 1])
    return made


def latencies(timings: Sequence[Timing], torch: Sequence[Timing], dark: bool) -> go.Figure:
    """For each batch size a box for each network: quartiles of the turns, and the turns themselves as dots.

    torch: of the same batch sizes, with float in torch.
    """
    colours = palette(dark)
    seconds = [{**t.seconds, TORCH: own.seconds[TORCH]} for t, own in zip(timings, torch, strict=True)]
    medians = [{name: statistics.median(times) for name, times in of.items()} for of in seconds]
    names = [n for n in (FLOAT, INTEGER, DEFAULTS, TORCH) if n in seconds[0]]
    if any(of[TORCH] > FAR * max(m for n, m in of.items() if n != TORCH) for of in medians):
        names.remove(TORCH)  # it would press all others against the axis; the table has it
    look = {
        FLOAT: colours.neutral, INTEGER: colours.gained, DEFAULTS: colours.wash("gained", 0.5), TORCH: colours.float
    }  # fmt: skip
    made = figure(dark, 60 + 36 * len(names), showlegend=False, margin={"t": 26, "b": 44})
    width = 1 / len(timings)
    for i, timing in enumerate(timings):
        axis = "" if i == 0 else str(i + 1)
        unit, scale = _unit(max(medians[i][n] for n in names))
        for name in names:
            made.add_box(
                orientation="h",
                x=[s * scale for s in seconds[i][name]],
                y=[name] * len(seconds[i][name]),
                xaxis=f"x{axis}",
                yaxis=f"y{axis}",
                name=name,
                boxpoints="all",
                jitter=0.4,
                pointpos=0,
                marker={"color": look[name], "size": 3, "opacity": 0.45},
                line={"color": look[name], "width": 1.5},
                hoverinfo="x",
                hoverlabel={"namelength": 0},
            )
        # a pause of the machine would squeeze all others into one line
        far = 1.6 * max(statistics.quantiles(seconds[i][n], n=4)[2] for n in names)
        longest = min(far, max(max(seconds[i][n]) for n in names) * 1.05)
        made.update_layout(
            {
                f"xaxis{axis}": {
                    "domain": [i * width + (0.02 if i else 0), (i + 1) * width - 0.02],
                    "title": {"text": f"one call ({unit})"},
                    "range": [0, longest * scale],
                    "anchor": f"y{axis}",
                },
                f"yaxis{axis}": {
                    "categoryorder": "array", "categoryarray": names[::-1], "showgrid": False, "ticks": "",
                    "anchor": f"x{axis}", "showticklabels": i == 0,
                },
            }
        )  # fmt: skip
        made.add_annotation(
            text=f"batch of {timing.batch}", x=i * width + (0.02 if i else 0), y=1, xref="paper", yref="paper",
            showarrow=False, xanchor="left", yanchor="bottom", font={"color": colours.muted},
        )  # fmt: skip
    return made
