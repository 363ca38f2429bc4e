"""The charts of a report: accuracy over cost, accuracy with its intervals, and where the noise is made."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qlab.export.report_page import Chart, plain
from qlab.export.report_rows import Row
from qlab.plots.layers import shorten

if TYPE_CHECKING:
    from qlab.lab.store import Run, Store
    from qlab.plots.accuracy import Dot
    from qlab.plots.pareto import Cost

MOST_DOTS = 40  # rows of dots that one still looks through
MOST_COLUMNS = 12  # of a heatmap: more cannot be read


def both(make: Callable[[bool], Any], label: str, caption: str = "") -> Chart:
    """make: dark -> figure. label, caption: plain text."""
    return Chart(make(False), make(True), label, plain(caption))


def cost_charts(store: Store, rows: Sequence[Row], baseline: Run | None) -> dict[Cost, Chart]:
    """Accuracy over size, and over latency where any run was timed; agreement with float where there are no labels."""
    from qlab.lab.compared import float_latency
    from qlab.plots.pareto import pareto
    from qlab.plots.run_points import float_point_of, measure_of, points_of

    lines = [row.line for row in rows]
    key = measure_of(lines)
    names = {row.run.id: row.title for row in rows}
    first = next((row for row in rows if row.result is not None), None)
    marked = () if baseline is None else (baseline.id,)
    # The float network of several is no one point.
    one = len({row.network for row in rows if row.result is not None}) == 1
    out: dict[Cost, Chart] = {}
    costs: list[Cost] = ["size", "latency"]
    for cost in costs:
        points = points_of(lines, cost, names)
        count = sum(point.drawable for point in points)
        if cost == "latency" and not count:
            continue
        beside = None
        if one and first is not None and first.result is not None:
            spent = first.line.float_size if cost == "size" else float_latency(store, list(names))
            beside = float_point_of(lines, spent, first.result.reference.accuracy_interval)
        draw = partial(pareto, points, cost, float_point=beside, selected=marked, key=key)
        words = "Diamonds are simulated, circles were computed by integer kernels of ONNX Runtime."
        if cost == "latency":
            words += " Times are those of integer kernels, whatever the accuracy was computed with."
        out[cost] = both(draw, f"{key.capitalize()} over {cost} of {count} runs", words)
    return out


def accuracy_chart(rows: Sequence[Row]) -> Chart | None:
    """A dot with its interval for float and for each run, of many the best; None without labels."""
    from qlab.plots.accuracy import accuracy_dots
    from qlab.plots.theme import palette

    measured = [row for row in rows if row.line.accuracy is not None]
    if not measured:
        return None
    kept = {row.run.id for row in sorted(measured, key=lambda row: (row.is_baseline, row.line.worth))[-MOST_DOTS:]}
    drawn = [row for row in measured if row.run.id in kept]
    floats = _float_dots(measured)
    dots = [*floats, *map(_dot, drawn)]
    words = "The band is the interval of float. Two intervals that overlap may still differ: the table holds the runs "
    words += "against each other sample by sample."
    if len(drawn) < len(measured):
        words = f"The best {len(drawn)} of {len(measured)} runs. {words}"
    # One trace a dot, in their order. The symbols are those of the chart over cost.
    integer = [i for i, row in enumerate(drawn, len(floats)) if row.line.backend == "integer"]

    def make(dark: bool) -> Any:
        figure = accuracy_dots(dots, dark)
        green = {
            "marker": {"symbol": "circle", "color": palette(dark).gained},
            "error_x": {"color": palette(dark).gained},
        }
        for i in integer:
            figure.data[i].update(green)
        return figure

    return both(make, f"Accuracy of {len(dots)} networks with intervals", words)


def _dot(row: Row) -> Dot:
    from qlab.plots.accuracy import Dot

    line = row.line
    assert line.accuracy is not None
    words = f"{shorten(row.title)} · {row.computed}{', stopped early' if line.dropped else ''}"
    low, high = (line.accuracy if end is None else end for end in (line.low, line.high))
    return Dot(_safe(words), line.accuracy, low, high)


def _float_dots(rows: Sequence[Row]) -> list[Dot]:
    """One for each network and data among the runs."""
    from qlab.plots.accuracy import Dot

    first = {row.network: row for row in reversed(rows) if row.result is not None}
    dots = []
    for row in reversed(first.values()):
        reference = row.result.reference if row.result else None
        if reference is not None and reference.accuracy is not None and reference.accuracy_interval is not None:
            name = "float" if len(first) == 1 else f"float · {shorten(row.line.model)} on {shorten(row.line.data)}"
            dots.append(Dot(_safe(name), reference.accuracy, *reference.accuracy_interval, kind="float"))
    return dots


def _safe(name: str) -> str:
    """Free text for a chart that takes tags for markup and %{…} for a place to fill in."""
    return html.escape(name, quote=False).replace("%{", "&#37;{")


def layer_charts(rows: Sequence[Row]) -> dict[str, Chart]:
    """Name of the network -> SQNR of its layers under each of its runs, the best ones where there are many."""
    from qlab.lab.compared import layers_by_run
    from qlab.plots.heatmap import sqnr_heatmap

    out: dict[str, Chart] = {}
    for network in dict.fromkeys(row.network for row in rows):
        mine = [row for row in rows if row.network == network and row.result is not None and row.result.quantized.sqnr]
        kept = {row.run.id for row in sorted(mine, key=lambda row: (row.is_baseline, row.line.worth))[-MOST_COLUMNS:]}
        shown = [row for row in mine if row.run.id in kept]
        if not shown:
            continue
        layers, matrix = layers_by_run([row.result for row in shown if row.result is not None])
        names = [f"{row.title} · {row.line.backend}" for row in shown]
        words = (
            "With the errors of earlier layers: where it turns dark, the damage begins. 6 dB less is twice the error."
        )
        if len(shown) < len(mine):
            words = f"The best {len(shown)} of {len(mine)} runs. {words}"
        title = f"{shown[0].line.model} on {shown[0].line.data}"
        while title in out:  # two files may have one name
            title += "′"
        draw = partial(sqnr_heatmap, layers, names, matrix)
        out[title] = both(draw, f"SQNR of {len(layers)} layers under {len(shown)} runs", words)
    return out
