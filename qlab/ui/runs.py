"""The Runs page: the table of everything that was tried, and what can be done with the runs that are chosen in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import cache, history, run_edit, run_list, say, state, widgets
from qlab.ui import run_undo as undo
from qlab.ui.history import Filter, History

if TYPE_CHECKING:
    from qlab.lab.store import Run

TABLE = "runs_table"
HEIGHT = 470
COLUMNS = (
    "Time", "Run", "Kind", "Network", "Config", "Accuracy", "Computed", "Size", "Status", "Tags", "Sweep", "Notes",
)  # fmt: skip
SWEEP_PAGE = "pages/lab/sweep.py"
FIELDS = ("kind", "status", "model", "tag", "sweep")


def draw() -> None:
    """The whole page below its heading."""
    deleted = st.session_state.get("runs.deleted", False)
    known = history.everything(deleted=deleted)
    with st.container():  # always there, so that nothing below takes another place when the bar comes and goes
        undo.bar()
    _controls(known, deleted)
    if not known.runs:
        _nothing(deleted)
        return
    shown = chosen_filter().keep(known)
    chosen = _table(known, shown)
    part = f"{len(shown):,} of {len(known.runs):,}" if len(shown) < len(known.runs) else f"{len(shown):,}"
    say.caption(
        f"{part} {'deleted ' if deleted else ''}runs, newest first; a click on a heading sorts. "
        + (f"**{len(chosen)} chosen.**" if chosen else "Choose some on the left edge of the table.")
    )
    if not shown:
        say.info("No run has all of these words and properties.")
        st.button(
            "Show all runs", key="runs_all", on_click=_set_filter, args=(Filter(),), help="Takes all filters away."
        )
    if chosen:
        _actions(known, chosen, deleted)


def chosen_filter() -> Filter:
    return st.session_state.get("runs.filter", Filter())


def _set_filter(new: Filter) -> None:
    st.session_state["runs.filter"] = new


def _controls(known: History, deleted: bool) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        history.filters(known, chosen_filter(), _set_filter, key="runs", fields=FIELDS)
        widgets.kept(
            st.toggle,
            "Deleted runs",
            value=deleted,
            store=_show_deleted,
            key="runs_deleted",
            help="Shows what was deleted instead, to bring it back.",
        )


def _show_deleted(on: bool) -> None:
    st.session_state["runs.deleted"] = on
    undo.forget()
    undo.other_rows()


def _nothing(deleted: bool) -> None:
    if deleted:
        say.info("Nothing was deleted.")
        return
    if cache.store().count_runs(deleted=True):
        say.info("Every run was deleted. Deleted runs above shows them and brings them back.")
        return
    say.info(
        "Nothing was run yet. Every run is kept here with its settings and its result, also when the app is closed."
    )
    st.page_link("pages/lab/experiment.py", label="Run the first experiment")


# --- choosing ---------------------------------------------------------------------------------------------------------


def _table(known: History, shown: Sequence[Run]) -> list[Run]:
    """Draws the runs that are shown; gives those of them that are chosen."""
    chosen = st.session_state.get(undo.CHOSEN, ())
    # The browser tells rows by number, and may do so once more when others stand there: another key is not heard.
    key = f"{TABLE}_{undo.generation()}"
    with st.container(key=TABLE):
        run_list.pick(
            known, [run.id for run in shown], chosen, _choose,
            key=key, order=COLUMNS, most=HEIGHT, alt="Runs that are stored",
        )  # fmt: skip
    return [run for run in shown if run.id in chosen]


def _choose(ids: Sequence[str]) -> None:
    st.session_state[undo.CHOSEN] = tuple(ids)


# --- doing ------------------------------------------------------------------------------------------------------------


def _actions(known: History, chosen: list[Run], deleted: bool) -> None:
    if deleted:
        st.button(
            f"Restore {_count(chosen)}", key="runs_restore", type="primary", on_click=undo.restore,
            args=([run.id for run in chosen],), help="Brings these runs back into all lists.",
        )  # fmt: skip
        return
    with st.container(horizontal=True, gap="small"):
        _open_button(chosen)
        _compare_button(known, chosen)
        _sweep_button(chosen)
        st.button(
            f"Delete {_count(chosen)}", key="runs_delete", on_click=undo.delete,
            args=(known, [run.id for run in chosen]),
            help="Takes these out of all lists, a sweep with its parts; Undo and Deleted runs bring them back.",
        )  # fmt: skip
    if len(chosen) == 1:
        run_edit.edit(chosen[0])
    else:
        run_edit.tag_all(chosen)


def _count(runs: Sequence[Run]) -> str:
    return "this run" if len(runs) == 1 else f"{len(runs):,} runs"


def _open_button(chosen: list[Run]) -> None:
    run = chosen[0]
    fits = len(chosen) == 1 and run.kind == "experiment"
    if st.button(
        "Open", key="runs_open", type="primary", disabled=not fits,
        help="Shows the result of this run on Experiment." if fits else "Choose one experiment to see its result.",
    ):  # fmt: skip
        undo.forget()
        state.set_run(run.id)
        st.switch_page("pages/lab/experiment.py")


def _compare_button(known: History, chosen: list[Run]) -> None:
    ids = comparable(known, chosen)
    if st.button(
        f"Compare {len(ids)}" if len(ids) > 1 else "Compare", key="runs_compare", disabled=not ids,
        help="Puts these into Compare, a sweep with all its parts."
        if ids
        else "Choose finished experiments, or a sweep that has some.",
    ):  # fmt: skip
        undo.forget()
        state.set_compared(ids)
        st.switch_page("pages/lab/compare.py")


def comparable(known: History, chosen: Sequence[Run]) -> list[str]:
    """The finished experiments among these, and those of the sweeps among them."""
    found: list[str] = []
    for run in chosen:
        if run.kind == "sweep":
            found += known.parts(run.id)
        elif run.kind == "experiment" and run.status == "done":
            found.append(run.id)
    return list(dict.fromkeys(found))


def _sweep_button(chosen: list[Run]) -> None:
    sweeps = {run.id if run.kind == "sweep" else run.parent for run in chosen}
    sweep = sweeps.pop() if len(sweeps) == 1 else None
    if sweep is None or not (Path(__file__).resolve().parents[2] / SWEEP_PAGE).exists():
        return
    if st.button("Open the sweep", key="runs_open_sweep", help="Shows this sweep, or the one these runs are parts of."):
        undo.forget()
        state.set_sweep(sweep)
        st.switch_page(SWEEP_PAGE)
