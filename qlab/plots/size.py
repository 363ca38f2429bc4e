"""Where the bytes of a file go: one stacked bar for the quantized file, the float file under it."""

from __future__ import annotations

import math
from collections.abc import Callable

import plotly.graph_objects as go

from qlab.export.size import PARTS, FileSize
from qlab.metrics import BYTES, byte_size, percent, step_of
from qlab.plots.theme import Palette, figure, palette

QUANTIZED, FLOAT = "quantized", "float"
BARS, LINE = 148, 20  # pixels of the bars with their axis, and of a line of the legend

# Part -> what the legend calls it, and its colour: all that quantization brings is a shade of its own two colours.
_LOOK: dict[str, tuple[str, Callable[[Palette], str]]] = {
    "codes": ("weights as integers", lambda c: c.quantized),
    "waste": ("unused bits", lambda c: c.error),
    "biases": ("biases", lambda c: c.wash("quantized", 0.5)),
    "scales": ("scales", lambda c: c.range),
    "zero_points": ("zero points", lambda c: c.wash("range", 0.5)),
    "stays_float": ("stays float", lambda c: c.float),
    "graph": ("graph", lambda c: c.neutral),
}


def size_bars(size: FileSize, dark: bool) -> go.Figure:
    """The file by part, in the order of its meaning, and the float file of the same network; parts of no byte are left
    out. Sizes in the unit that suits the larger bar."""
    colours = palette(dark)
    power = step_of(max(size.total, size.float_file), 1000, len(BYTES))
    made = figure(dark, BARS, barmode="stack", showlegend=True, bargap=0.35)
    for part, (name, colour) in _LOOK.items():
        count = getattr(size, part)
        if count:
            share = percent(count / size.total)
            _bar(
                made, QUANTIZED, count, power, f"{name}, {byte_size(count)}", colour(colours), f"{share}: {PARTS[part]}"
            )
    _bar(
        made, FLOAT, size.float_file, power, f"float file, {byte_size(size.float_file)}", colours.wash("float", 0.55),
        "the whole network as float32, with its graph",
    )  # fmt: skip
    made.data[-1].showlegend = False  # its axis says what it is
    # Two entries a line, however narrow the page: left alone, plotly would scroll them inside the chart.
    room = LINE * math.ceil((len(made.data) - 1) / 2) + 8
    made.update_layout(
        height=BARS + room,
        margin={"t": room, "b": 44, "l": 8, "r": 16},
        legend={"entrywidth": 0.48, "entrywidthmode": "fraction", "traceorder": "normal"},
    )
    made.update_xaxes(title_text=f"Size of the file ({BYTES[power]})", rangemode="tozero")
    made.update_yaxes(autorange="reversed", showgrid=False, ticks="", categoryarray=[QUANTIZED, FLOAT])
    return made


def _bar(made: go.Figure, row: str, count: int, power: int, name: str, colour: str, hover: str) -> None:
    made.add_bar(
        x=[count / 1000**power],
        y=[row],
        orientation="h",
        name=name,
        marker={"color": colour, "line": {"width": 0}},
        hovertemplate=f"{name}<br>{hover}<extra></extra>",
    )
