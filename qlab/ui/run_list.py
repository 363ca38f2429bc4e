"""Earlier runs: a table to look through, and a click that opens one."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from qlab.metrics import MISSING, write
from qlab.ui import cache, results, state

if TYPE_CHECKING:
    from qlab.lab.store import Run

MOST = 200
HEIGHT = 340


def draw() -> None:
    """The stored experiments, newest first; choosing a row opens it."""
    runs = cache.store().list_runs(MOST, kind="experiment")
    if not runs:
        st.caption("Runs are kept here, also when the app is closed. Press Run above for the first one.")
        return
    key = f"exp_runs_{runs[0].id}_{len(runs)}"  # a new run moves every row, and with it what was chosen
    shown = state.run_id()
    st.dataframe(
        pd.DataFrame([_row(run, run.id == shown) for run in runs]),
        key=key,
        width="stretch",
        height=min(HEIGHT, 36 * (len(runs) + 1) + 2),
        hide_index=True,
        on_select=lambda: _open(key, runs),
        selection_mode="single-row",
        column_config=_columns(),
    )
    if len(runs) == MOST:
        total = cache.store().count_runs(kind="experiment")
        st.caption(f"The newest {MOST} of {total:,} runs; `python -m qlab runs` lists all.")


def _row(run: Run, shown: bool) -> dict[str, Any]:
    head = run.headline
    return {
        "Open": "●" if shown else "",
        "Time": datetime.datetime.fromtimestamp(run.created),
        "Run": run.name or run.id,
        "Model": results.subject(run),
        "Config": run.config,
        "Accuracy": f"{write('accuracy', head.float_accuracy)} → {write('accuracy', head.accuracy)}"
        if head.accuracy is not None
        else f"{write('agreement', head.agreement)} agree"
        if head.agreement is not None
        else MISSING,
        "Size": f"{write('size', head.float_size)} → {write('size', head.size)}" if head.size is not None else MISSING,
        "Status": run.status,
    }


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "Open": column.TextColumn("", width=30, help="The run whose result is shown above."),
        "Time": column.DatetimeColumn(format="YYYY-MM-DD HH:mm", width=135, help="When the run was started."),
        "Run": column.TextColumn(width=120, help="Its name, or its number where none was given."),
        "Model": column.TextColumn(width=130, help="The network, and the data where that is not its own."),
        "Config": column.TextColumn(
            width=150, help="The preset, or bits, scheme and observer of weights and activations."
        ),
        "Accuracy": column.TextColumn(
            width=125, help="Float → quantized, simulated; without labels the share on which both agree."
        ),
        "Size": column.TextColumn(width=130, help="Bytes of the model, float → quantized."),
        "Status": column.TextColumn(width=80, help="done, running, queued, failed or cancelled."),
    }


def _open(key: str, runs: list[Run]) -> None:
    chosen = st.session_state[key].selection.rows
    if chosen:
        state.set_run(runs[chosen[0]].id)
