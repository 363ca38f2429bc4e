"""Where the noise is made: SQNR of every layer under every run that is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import COMPUTED
from qlab.ui import cache, errors, results, say, widgets
from qlab.ui.compare import Compared

if TYPE_CHECKING:
    from qlab.lab.store import Run

MOST = 12  # columns that can still be read


def draw(shown: Compared) -> None:
    from qlab.plots.heatmap import sqnr_heatmap

    runs, words = chosen(shown)
    backends = {run.headline.computed for run in runs}
    # With what the figures come from, where they differ: simulated noise is not shown as that of kernels.
    names = [shown.title(run) + (f" · {run.headline.computed}" if len(backends) > 1 else "") for run in runs]
    layers, matrix = _matrix(tuple(run.id for run in runs), str(cache.store().home), runs)
    say.caption(errors.escape(words))
    widgets.chart(
        sqnr_heatmap(layers, names, matrix, widgets.dark()),
        key="compare_heatmap",
        alt=f"SQNR of {len(layers)} layers under {len(runs)} runs",
    )


def chosen(shown: Compared) -> tuple[list[Run], str]:
    """The runs of the network that is looked at, the best where there are too many, and words on that."""
    mine = shown.of_network(shown.picked)
    words = []
    if left := len(shown.runs) - len(mine):
        words.append(f"{left} run{'s' if left > 1 else ''} of other networks {'are' if left > 1 else 'is'} left out")
    if len(mine) > MOST:
        best = {run.id for run in sorted(mine, key=lambda run: shown.lines[run.id].worth, reverse=True)[:MOST]}
        beside = "" if shown.picked.id in best else " and the one that is picked"
        words.append(f"the best {MOST} of {len(mine)}{beside} are shown")
        mine = [run for run in mine if run.id in best or run.id == shown.picked.id]
    backends = {run.headline.computed for run in mine}
    measured = COMPUTED[backends.pop()] if len(backends) == 1 else "simulated or on integer kernels, as named"
    first = f"Measured on evaluation samples, {measured}, with the errors of earlier layers: dark is where it is lost"
    return mine, "; ".join([first, *words]) + "."


@st.cache_resource(max_entries=8, show_spinner="Reading the layers")
def _matrix(ids: tuple[str, ...], _home: str, _runs: list[Run]) -> tuple[list[str], Any]:
    from qlab.lab.compared import layers_by_run

    return layers_by_run([results.result_of(run) for run in _runs])
