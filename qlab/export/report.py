"""A comparison of runs as one HTML file that opens anywhere."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import qlab
from qlab.export.report_charts import accuracy_chart, cost_charts, layer_charts
from qlab.export.report_page import Chart, page, place, plain, text
from qlab.export.report_rows import Row, rows_of, with_baseline
from qlab.export.report_tables import accuracy, figures, settings, when
from qlab.lab.compared import FLOAT, titles
from qlab.metrics import write

if TYPE_CHECKING:
    from qlab.lab.store import Run, Store


def comparison_report(
    store: Store, runs: Sequence[Run], baseline: Run | None = None, *, title: str = "", made: float | None = None
) -> bytes:
    """UTF-8 of an HTML file of about 2 MB that loads nothing from anywhere.

    baseline: what every run is held against, None for the float network each came from; it need not be among the runs.
    made: when, in seconds since 1970; None is now. Runs without a result are listed with the reason.
    Raises InvalidConfig when there is no run, one stands twice, or one is no experiment.
    """
    rows = rows_of(store, runs, baseline)
    than = FLOAT if baseline is None else titles(with_baseline(runs, baseline))[baseline.id]
    title = title or (f"Comparison of {len(rows)} runs" if len(rows) > 1 else f"Report on {rows[0].title}")
    charts: dict[str, Chart] = {}

    def put(name: str, chart: Chart) -> str:
        charts[name] = chart
        return place(name, chart)

    parts = [_head(title, rows, than, time.time() if made is None else made), _runs(rows, than)]
    for cost, chart in cost_charts(store, rows, baseline).items():
        parts.append(f"<h2>What does a smaller {cost} cost?</h2>" if cost == "size" else "<h2>And in time?</h2>")
        parts.append(put(f"over-{cost}", chart))
    dots = accuracy_chart(rows)
    parts.append("<h2>How sure are these figures?</h2>")
    parts.append(
        put("accuracy", dots) if dots else "<p>The data have no labels, so there is no accuracy to be sure of.</p>"
    )
    layers = layer_charts(rows)
    parts.append("<h2>Where is the noise made?</h2>")
    parts += [] if layers else ["<p>No run has the SQNR of its layers.</p>"]
    for number, (network, chart) in enumerate(layers.items()):
        parts += [f"<h3>{text(network)}</h3>"] if len(layers) > 1 else []
        parts.append(put(f"layers-{number}", chart))
    parts += [_settings(rows, than), _specs(rows), _versions(rows)]
    return page(title, "\n".join(parts), charts)


# ---- head ------------------------------------------------------------------------------------------------------------


def _head(title: str, rows: Sequence[Row], than: str, made: float) -> str:
    known = [row for row in rows if row.result is not None]
    # By content: the same data may have two names. Of runs without a result the names are all there is.
    names = {row.network: row for row in reversed(known)} or {(row.line.model, row.line.data): row for row in rows}
    of = [f"{text(row.line.model)} on {text(row.line.data)}" for row in reversed(names.values())]
    samples = {row.line.samples for row in known}
    if len(of) == 1 and len(samples) == 1:
        of = [f"{of[0]}, {plain(write('samples', *samples))} samples"]
    found = []
    measured = [row for row in rows if row.line.accuracy is not None and not row.line.dropped]
    if measured:
        best = max(measured, key=lambda row: row.line.worth)
        share = accuracy(best.line.accuracy, best.line.low, best.line.high)
        found.append(f"Most accurate: {text(best.title)}, {share}, {plain(best.computed)}.")
    for row in known[:1] if len(of) == 1 else ():
        reference = row.result.reference  # type: ignore[union-attr]
        if reference.accuracy is not None:
            share = accuracy(reference.accuracy, *(reference.accuracy_interval or (None, None)))
            found.append(f"Float: {share}, {plain(write('size', row.line.float_size))}.")
    equal = [row for row in measured if row.held.tone in ("noise", "better") and row.line.size is not None]
    if equal:
        least = min(equal, key=lambda row: (row.line.size, -row.line.worth[2]))
        found.append(
            f"Smallest that is not worse than {text(than)} beyond chance: {text(least.title)}, "
            f"{plain(write('size', least.line.size))}."
        )
    return (
        f'<header><h1>{text(title)}</h1><p class="quiet">Made {plain(when(made))} with qlab {plain(qlab.__version__)}.'
        f" Runs of {'; '.join(of)}.</p>" + "".join(f"<p>{words}</p>" for words in found) + "</header>"
    )


def _runs(rows: Sequence[Row], than: str) -> str:
    return (
        f'<h2>Which runs?</h2><p class="quiet">Held against {text(than)}, sample by sample. What lies inside the noise '
        "is grey: chance alone would flip that unevenly in more than 5 of 100 cases (McNemar's test). A click on a "
        f"heading sorts.</p>{figures(rows)}"
    )


# ---- below the charts ------------------------------------------------------------------------------------------------


def _settings(rows: Sequence[Row], than: str) -> str:
    return f'<h2>What was set?</h2><p class="quiet">The baseline is {text(than)}.</p>{settings(rows)}'


def _specs(rows: Sequence[Row]) -> str:
    body = "".join(
        f'<details><summary>{text(row.title)} <span class="quiet">run {plain(row.run.id)}, '
        f"started {plain(when(row.line.created))}</span></summary>"
        f"<pre>{plain(json.dumps(row.spec, indent=2, ensure_ascii=False))}</pre></details>"
        for row in rows
    )
    return (
        '<h2>How to repeat it</h2><p class="quiet">What every run was asked for, as JSON. Saved as a file, '
        f"<code>python -m qlab run spec.json</code> carries it out again.</p>{body}"
    )


def _versions(rows: Sequence[Row]) -> str:
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in rows:
        if row.result is not None:
            groups.setdefault(tuple(row.result.versions.items()), []).append(row.title)
    body = "".join(
        f'<tr><th scope="row">{text("all runs" if len(groups) == 1 else ", ".join(names))}</th>'
        f"<td>{text(', '.join(f'{name} {value}' for name, value in versions))}</td></tr>"
        for versions, names in groups.items()
    )
    return (
        "<h2>What it was measured with</h2>"
        f'<div class="wide"><table><tbody>{body}'
        f'<tr><th scope="row">this report</th><td>{text(_here())}</td></tr></tbody></table></div>'
    )


def _here() -> str:
    """What the report was made with, and on."""
    import plotly

    from qlab.runtime.cpu import cpu_features

    cpu = cpu_features()
    return (
        f"qlab {qlab.__version__}, plotly {plotly.__version__}, python {platform.python_version()}, "
        f"{cpu.name or cpu.architecture}, {os.cpu_count()} cores, {platform.system()}"
    )
