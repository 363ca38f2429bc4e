"""Which kernel computed each layer's products under each mode, and what the modes cost side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from qlab.lessons.modes import InMode, Modes, Product, speed
from qlab.metrics import byte_size, large_count, three_digits
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, figure, name_rows, palette
from qlab.runtime.latency import Timing

LOW, TALL = 20, 32  # pixels of a row, where they are many and few
MANY = 8
MODE_NAMES = {"dynamic": "dynamic", "static": "static", "weight_only": "weight-only"}


def kernels(products: Sequence[Product], modes: Mapping[str, InMode] | None, chosen: str, dark: bool) -> go.Figure:
    """A row for each layer that multiplies: how much, and what computed it in each mode.

    modes: None draws the question: the cells stay open. chosen: the mode that is framed.
    """
    colours, rows = palette(dark), list(range(len(products)))
    row = TALL if len(products) <= MANY else LOW
    made = figure(
        dark, 108 + row * len(products), room={"t": 56, "b": 48, "r": 16}, showlegend=modes is not None, bargap=0.25,
        barmode="overlay",
    )  # fmt: skip
    made.add_bar(
        orientation="h", x=[p.macs for p in products], y=rows, marker={"color": colours.float, "line": {"width": 0}},
        hovertext=[f"{p.layer}, {p.op}: {large_count(p.macs)} multiplications" for p in products],
        hovertemplate="%{hovertext}<extra></extra>", showlegend=False,
    )  # fmt: skip
    name_rows(made, [shorten(p.layer, 26) for p in products])
    made.update_xaxes(
        title_text="multiplications for one sample", domain=[0, 0.52], rangemode="tozero", nticks=5, tickformat="~s"
    )
    made.update_layout(
        legend={"y": 1, "yref": "container", "yanchor": "top"},
        xaxis2={
            "domain": [0.56, 1], "side": "top", "tickvals": list(range(len(MODE_NAMES))), "range": [-0.5, 2.5],
            "ticktext": [f"<b>{n}</b>" if m == chosen else n for m, n in MODE_NAMES.items()], "ticks": "",
            "showgrid": False, "zeroline": False, "tickfont": {"color": colours.text}, "anchor": "y",
        },
    )  # fmt: skip
    _cells(made, products, modes, colours)
    place = list(MODE_NAMES).index(chosen)
    made.add_shape(
        type="rect", xref="x2", yref="y", x0=place - 0.48, x1=place + 0.48, y0=-0.6, y1=len(products) - 0.4,
        line={"color": colours.text, "width": 1.5}, layer="above",
    )  # fmt: skip
    return made


def _cells(made: go.Figure, products: Sequence[Product], modes: Mapping[str, InMode] | None, colours: Palette) -> None:
    cell: dict[str, Any] = {"orientation": "h", "xaxis": "x2", "yaxis": "y", "width": 0.86}
    every = [(place, row) for place in range(len(MODE_NAMES)) for row in range(len(products))]
    if modes is None:
        made.add_bar(
            x=[0.9] * len(every), base=[place - 0.45 for place, _ in every], y=[row for _, row in every],
            marker={"color": colours.wash("neutral", 0.16), "line": {"width": 0}}, text=["?"] * len(every),
            textposition="inside", insidetextanchor="middle", textfont={"color": colours.muted}, textangle=0,
            hoverinfo="skip", showlegend=False, **cell,
        )  # fmt: skip
        return
    for integer, name, colour in ((True, "integer kernel", colours.gained), (False, "float kernel", colours.neutral)):
        own = [
            (list(MODE_NAMES).index(mode), row, mode, product)
            for mode, ran in modes.items()
            for row, product in enumerate(products)
            if (product.layer in ran.integer) is integer
        ]
        made.add_bar(
            x=[0.9] * len(own), base=[place - 0.45 for place, *_ in own], y=[row for _, row, *_ in own], name=name,
            marker={"color": colour, "line": {"width": 0}},
            hovertext=[
                f"{product.layer}, {MODE_NAMES[mode]}<br>{name}: {', '.join(modes[mode].kernels(product.layer))}"
                for _, _, mode, product in own
            ],
            hovertemplate="%{hovertext}<extra></extra>", **cell,
        )  # fmt: skip


def costs(found: Modes, timing: Timing, dark: bool) -> go.Figure:
    """Float and the three modes: size of the file, accuracy with its interval, speed with quartiles of the turns."""
    colours = palette(dark)
    names = ["float", *MODE_NAMES.values()]
    looks = [colours.float, *[colours.quantized] * len(MODE_NAMES)]
    made = figure(dark, 250, room={"t": 30, "b": 48, "r": 24}, showlegend=False, bargap=0.45)
    panels = {"": (0, 0.28), "2": (0.36, 0.64), "3": (0.72, 1)}
    for axis, domain in panels.items():
        made.update_layout({f"xaxis{axis}": {"domain": list(domain), "nticks": 5}})
    rows = list(range(len(names)))
    sizes = [found.float_bytes, *(one.bytes for one in found.modes.values())]
    made.add_bar(
        orientation="h", x=[size / 1000 for size in sizes], y=rows, marker={"color": looks, "line": {"width": 0}},
        hovertext=[byte_size(size) for size in sizes], hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip
    accuracies = [found.reference, *(one.evaluation for one in found.modes.values())]
    _dots(
        made, "2", [(100 * e.accuracy_interval[0], 100 * e.accuracy, 100 * e.accuracy_interval[1])
                    for e in accuracies if e.accuracy is not None and e.accuracy_interval is not None],
        looks, "%",
    )  # fmt: skip
    _dots(made, "3", [(1.0, 1.0, 1.0), *(speed(timing, mode).ratio for mode in found.modes)], looks, "×")
    made.add_vline(x=1, line={"color": colours.float, "dash": "dot", "width": 1}, xref="x3", yref="y")
    name_rows(made, names)
    for axis, title in (("", "file (kB)"), ("2", "accuracy (%), 95 % interval"), ("3", "speed, float = 1 (×)")):
        made.update_layout({f"xaxis{axis}": {"title": {"text": title}}})
    made.update_layout(xaxis={"rangemode": "tozero"})
    return made


def _dots(
    made: go.Figure, axis: str, values: Sequence[tuple[float, float, float]], looks: Sequence[str], unit: str
) -> None:
    for row, ((low, middle, high), colour) in enumerate(zip(values, looks, strict=True)):
        made.add_scatter(
            x=[middle], y=[row], xaxis=f"x{axis}", yaxis="y", mode="markers",
            marker={"size": 11, "color": colour, "symbol": "diamond" if row else "circle"},
            error_x={"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low],
                     "color": colour, "thickness": 2, "width": 5},
            hovertext=[f"{three_digits(middle)} {unit} [{three_digits(low)}, {three_digits(high)}]"],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
