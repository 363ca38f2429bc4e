"""Stored runs as a table, and the earlier ones on Experiment, where a click opens one."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from qlab.lab.compared import changes_of
from qlab.ui import history, results, say, state
from qlab.ui.history import History

if TYPE_CHECKING:
    from qlab.lab.store import Run

MOST = 200
HEIGHT = 340
ON_EXPERIMENT = ("Open", "Time", "Run", "Network", "Config", "Accuracy", "Float", "Computed", "Size", "Status")


def table(of: History) -> pd.DataFrame:
    """All runs of the history, a line each, indexed by id. Shared by all sessions: do not change it."""
    return _table(of.key, of)


@st.cache_resource(max_entries=4, show_spinner=False)
def _table(key: str, _of: History) -> pd.DataFrame:
    return pd.DataFrame([_row(run, _of.by_id) for run in _of.runs], index=[run.id for run in _of.runs])


def _row(run: Run, by_id: Mapping[str, Run]) -> dict[str, Any]:
    head = run.headline
    sweep = by_id.get(run.parent or "")
    return {
        "Time": datetime.datetime.fromtimestamp(run.created),
        "Run": run.name or run.id,
        "Kind": history.KINDS.get(run.kind, run.kind),
        "Network": results.subject(run),
        "Config": _config(run),
        "Accuracy": _percent(head.accuracy),
        "Float": _percent(head.float_accuracy),
        "Agreement": _percent(head.agreement),
        "Computed": computed(run),
        "Size": None if head.size is None else head.size / 1000,
        "Samples": head.samples,
        "Status": "stopped early" if head.dropped and run.kind == "experiment" else run.status,
        "Tags": list(run.tags),
        "Notes": run.notes,
        "Sweep": "" if run.parent is None else (sweep.name or sweep.id) if sweep else run.parent,
    }


def _config(run: Run) -> str:
    """Its config; what was done beside it goes first, because the end of a long one is cut off."""
    changes = changes_of(run)
    return f"{changes} · {run.config.removesuffix(f' · {changes}')}" if changes else run.config


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def computed(run: Run) -> str:
    """What the figures of a run were computed with; empty where it has none."""
    return "" if run.headline.size is None or run.status != "done" else run.headline.computed


def columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "Open": column.TextColumn("", width=30, help="The run whose result is shown above."),
        "Time": column.DatetimeColumn(format="YYYY-MM-DD HH:mm", width=126, help="When the run was started."),
        "Run": column.TextColumn(width=130, help="Its name, or its number where none was given."),
        "Kind": column.TextColumn(width=112, help="What was done: an experiment, a sweep of many, or what they need."),
        "Network": column.TextColumn(width=116, help="The network, and the data where that is not its own."),
        "Config": column.TextColumn(
            width=146, help="Preset, or bits, scheme and observer; before it training and numbers edited by hand."
        ),
        "Accuracy": column.NumberColumn(
            width=74, format="%.1f %%", help="Right predictions of the quantized network; of a sweep, its best."
        ),
        "Float": column.NumberColumn(width=75, format="%.1f %%", help="Accuracy of the network in float."),
        "Agreement": column.NumberColumn(
            width=95, format="%.1f %%", help="Share of samples on which float and quantized network agree."
        ),
        "Computed": column.TextColumn(
            width=80, help="What the figures come from: simulated in torch, or integer kernels of ONNX Runtime."
        ),
        "Size": column.NumberColumn(width=74, format="%.1f kB", help="Bytes of the quantized model."),
        "Samples": column.NumberColumn(width=80, format="%d", help="Samples that were evaluated."),
        "Status": column.TextColumn(
            width=90, help="How it ended; stopped early: it was worse than the best of its sweep beyond chance."
        ),
        "Tags": column.ListColumn(width=110, help="Words given to the run, to find it by."),
        "Notes": column.TextColumn(width=200, help="What somebody wrote about the run."),
        "Sweep": column.TextColumn(width=110, help="The sweep the run is a part of."),
    }  # fmt: skip


def height(rows: int, most: int = HEIGHT) -> int:
    """Of a table with a heading and this many rows, in pixels."""
    return min(most, 36 * (rows + 1) + 2)


def selection(rows: Sequence[int]) -> dict[str, Any]:
    """As st.dataframe keeps which rows are chosen."""
    return {"selection": {"rows": list(rows), "columns": [], "cells": []}}


def choose(key: str, rows: Sequence[int]) -> None:
    """Makes these the chosen rows of a table that is about to be drawn."""
    if st.session_state.get(key, selection([]))["selection"]["rows"] != list(rows):
        st.session_state[key] = selection(rows)


def chosen(key: str, ids: Sequence[str]) -> list[str]:
    """What is chosen in a table of these runs; a row that the table had before is none of them."""
    return [ids[row] for row in st.session_state[key]["selection"]["rows"] if row < len(ids)]


def pick(
    of: History, ids: Sequence[str], already: Collection[str], store: Callable[[list[str]], None], *,
    key: str, order: Sequence[str], most: int, alt: str,
) -> None:  # fmt: skip
    """A table of these runs, of which several can be chosen.

    already: those that are chosen. store: gets all that are when a person changes it. order: of the columns. most:
    pixels that the table may be high.
    """
    # Under another filter the same run has another number.
    choose(key, [row for row, run_id in enumerate(ids) if run_id in already])
    st.dataframe(
        table(of).loc[list(ids)],
        key=key,
        width="stretch",
        height=height(len(ids), most),
        hide_index=True,
        column_order=order,
        column_config=columns(),
        placeholder="–",
        on_select=lambda: store(chosen(key, ids)),
        selection_mode="multi-row",
        alt=alt,
    )


def draw() -> None:
    """The stored experiments on Experiment, newest first; choosing a row opens it."""
    every = history.everything()
    runs = [run for run in every.runs if run.kind == "experiment"]
    if not runs:
        say.caption("Runs are kept here, also when the app is closed. Press Run above for the first one.")
        return
    shown = runs[:MOST]
    rows = table(every).loc[[run.id for run in shown]]
    rows.insert(0, "Open", ["●" if run.id == state.run_id() else "" for run in shown])
    key = f"exp_runs_{runs[0].id}_{len(runs)}"  # a new run moves every row, and with it what was chosen
    st.dataframe(
        rows,
        key=key,
        width="stretch",
        height=height(len(rows)),
        hide_index=True,
        column_order=ON_EXPERIMENT,
        column_config=columns(),
        placeholder="–",
        on_select=lambda: _open(key, shown),
        selection_mode="single-row",
    )
    if len(runs) > MOST:
        say.caption(f"The newest {MOST} of {len(runs):,} experiments; Runs has all of them.")
    st.page_link("pages/lab/runs.py", label="Search, name and compare runs")


def _open(key: str, runs: list[Run]) -> None:
    found = chosen(key, [run.id for run in runs])
    if found:
        state.set_run(found[0])
