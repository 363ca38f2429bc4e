"""The Runs page: the table of everything that was tried, and what can be done with the runs that are chosen in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import cache, errors, history, results, run_list, state, widgets
from qlab.ui.history import Filter, History

if TYPE_CHECKING:
    from qlab.lab.store import Run

TABLE = "runs_table"
HEIGHT = 470
COLUMNS = (
    "Time",
    "Run",
    "Kind",
    "Network",
    "Config",
    "Accuracy",
    "Computed",
    "Size",
    "Status",
    "Tags",
    "Sweep",
    "Notes",
)
SWEEP_PAGE = "pages/lab/sweep.py"
FIELDS = ("kind", "status", "model", "tag", "sweep")


def draw() -> None:
    """The whole page below its heading."""
    deleted = st.session_state.get("runs.deleted", False)
    known = history.everything(deleted=deleted)
    with st.container():  # always there, so that nothing below takes another place when the bar comes and goes
        undo_bar()
    _controls(known, deleted)
    if not known.runs:
        _nothing(deleted)
        return
    shown = chosen_filter().keep(known)
    chosen = _table(known, shown)
    part = f"{len(shown):,} of {len(known.runs):,}" if len(shown) < len(known.runs) else f"{len(shown):,}"
    st.caption(
        f"{part} {'deleted ' if deleted else ''}runs, newest first; a click on a heading sorts. "
        + (f"**{len(chosen)} chosen.**" if chosen else "Choose some on the left edge of the table.")
    )
    if not shown:
        st.info("No run has all of these words and properties.")
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
    _other_rows()
    _done()
    _choose(())


def _nothing(deleted: bool) -> None:
    if deleted:
        st.info("Nothing was deleted.")
        return
    st.info(
        "Nothing was run yet. Every run is kept here with its settings and its result, also when the app is closed."
    )
    st.page_link("pages/lab/experiment.py", label="Run the first experiment")


# --- choosing ---------------------------------------------------------------------------------------------------------


def _table(known: History, shown: Sequence[Run]) -> list[Run]:
    """Draws the runs that are shown; gives those of them that are chosen."""
    place = {run.id: row for row, run in enumerate(shown)}
    rows = sorted(place[i] for i in st.session_state.get("runs.chosen", ()) if i in place)
    # The browser tells rows by number, and may do so once more when others stand there: another key is not heard.
    key = f"{TABLE}_{st.session_state.get('runs.generation', 0)}"
    # Under another filter the same run has another number.
    if st.session_state.get(key, run_list.selection([]))["selection"]["rows"] != rows:
        st.session_state[key] = run_list.selection(rows)
    ids = list(place)
    with st.container(key=TABLE):
        st.dataframe(
            run_list.table(known).loc[ids],
            key=key,
            width="stretch",
            height=run_list.height(len(shown), HEIGHT),
            hide_index=True,
            column_order=COLUMNS,
            column_config=run_list.columns(),
            placeholder="–",
            on_select=lambda: _choose(run_list.chosen(key, ids)),
            selection_mode="multi-row",
            alt="Runs that are stored",
        )
    return [shown[row] for row in rows]


def _choose(ids: Sequence[str]) -> None:
    st.session_state["runs.chosen"] = tuple(ids)


# --- doing ------------------------------------------------------------------------------------------------------------


def _actions(known: History, chosen: list[Run], deleted: bool) -> None:
    if deleted:
        st.button(
            f"Restore {_count(chosen)}", key="runs_restore", type="primary", on_click=_restore,
            args=([run.id for run in chosen],), help="Brings these runs back into all lists.",
        )  # fmt: skip
        return
    with st.container(horizontal=True, gap="small"):
        _open_button(chosen)
        _compare_button(known, chosen)
        _sweep_button(chosen)
        st.button(
            f"Delete {_count(chosen)}", key="runs_delete", on_click=_delete, args=(known, [run.id for run in chosen]),
            help="Takes these out of all lists, a sweep with its parts; Undo and Deleted runs bring them back.",
        )  # fmt: skip
    if len(chosen) == 1:
        edit(chosen[0])
    else:
        _tag_all(chosen)


def _count(runs: Sequence[Run]) -> str:
    return "this run" if len(runs) == 1 else f"{len(runs):,} runs"


def _open_button(chosen: list[Run]) -> None:
    run = chosen[0]
    fits = len(chosen) == 1 and run.kind == "experiment"
    if st.button(
        "Open", key="runs_open", type="primary", disabled=not fits,
        help="Shows the result of this run on Experiment." if fits else "Choose one experiment to see its result.",
    ):  # fmt: skip
        _done()
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
        _done()
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
        _done()
        state.set_sweep(sweep)
        st.switch_page(SWEEP_PAGE)


def edit(run: Run) -> None:
    """Name, tags and notes of one run, to be changed in place."""
    # What is stored is part of the keys: fields that were changed elsewhere begin anew.
    stored = hashlib.sha256(repr((run.name, run.tags, run.notes)).encode()).hexdigest()[:8]
    mark = f"{run.id}_{stored}"
    with st.form(f"runs_edit_{mark}"):
        st.markdown(
            f"**{errors.escape(run.name or run.id)}** · {errors.escape(results.subject(run))} · "
            f"{errors.escape(run.config or history.KINDS.get(run.kind, run.kind))}"
        )
        if run.error or run.headline.dropped:
            st.caption(errors.escape(run.error or run.headline.dropped or ""))
        left, right = st.columns([0.4, 0.6])
        left.text_input(
            "Name", run.name, key=f"runs_name_{mark}", max_chars=200, placeholder=run.id,
            help="Stands in all lists and charts instead of the number of the run.",
        )  # fmt: skip
        with left:
            _tags("Tags", run.tags, f"runs_tags_{mark}", "Words to find the run by; type new ones.")
        right.text_area(
            "Notes", run.notes, key=f"runs_notes_{mark}", height=122,
            help="What is worth knowing about this run; the search looks here too.",
        )  # fmt: skip
        st.form_submit_button(
            "Save", key=f"runs_save_{mark}", on_click=_save, args=(run.id, mark),
            help="Writes name, tags and notes into the store.",
        )  # fmt: skip


def _save(run_id: str, mark: str) -> None:
    _done()
    name, tags, notes = (st.session_state[f"runs_{what}_{mark}"] for what in ("name", "tags", "notes"))
    cache.store().annotate(run_id, name=name or "", tags=tags, notes=notes or "")


def _tags(label: str, default: Sequence[str], key: str, text: str) -> None:
    known = sorted({*history.everything().tags, *default}, key=str.casefold)
    st.multiselect(label, known, default=list(default), key=key, accept_new_options=True, placeholder="none", help=text)


def _tag_all(chosen: list[Run]) -> None:
    mark = hashlib.sha256(repr([(run.id, run.tags) for run in chosen]).encode()).hexdigest()[:12]
    with st.form(f"runs_tag_{mark}"):
        _tags(f"Tag {len(chosen):,} runs", (), f"runs_tags_{mark}", "Added to the tags each run has already.")
        st.form_submit_button(
            "Add tags", key=f"runs_add_tags_{mark}", on_click=_add_tags, args=(chosen, mark),
            help="Gives these tags to all chosen runs.",
        )  # fmt: skip


def _add_tags(chosen: list[Run], mark: str) -> None:
    _done()
    for run in chosen:
        cache.store().annotate(run.id, tags=(*run.tags, *st.session_state[f"runs_tags_{mark}"]))


# --- deleting and undoing ---------------------------------------------------------------------------------------------


def _delete(known: History, ids: Sequence[str]) -> None:
    wanted = list(dict.fromkeys([*ids, *(run.id for run in known.runs if run.parent in ids)]))
    gone = cache.store().delete_runs(wanted)
    st.session_state["runs.undo"] = gone
    _other_rows()
    st.session_state["runs.stayed"] = len(wanted) - len(gone)
    _choose(())


def undo_bar() -> None:
    """What was deleted last, with the button that brings it back; stays until something else is done."""
    gone, stayed = st.session_state.get("runs.undo", ()), st.session_state.get("runs.stayed", 0)
    if not gone and not stayed:
        return
    with st.container(horizontal=True, vertical_alignment="center", border=True, key="runs_undo_bar"):
        words = f"{len(gone):,} run{'s' if len(gone) != 1 else ''} deleted."
        if stayed:
            words += f" {stayed:,} still going: stop {'it' if stayed == 1 else 'them'} in the sidebar first."
        st.markdown(words)
        if gone:
            st.button(
                "Undo", key="runs_undo", type="primary", on_click=_restore, args=(gone,),
                help="Brings the runs that were deleted last back into all lists.",
            )  # fmt: skip


def _restore(ids: Sequence[str]) -> None:
    cache.store().restore_runs(ids)
    _other_rows()
    _done()
    _choose(())


def _other_rows() -> None:
    """The table holds other runs from now on."""
    st.session_state["runs.generation"] = st.session_state.get("runs.generation", 0) + 1


def _done() -> None:
    """Something else was done, so the last deletion is not offered to be undone any more; Deleted runs still has it."""
    for key in ("runs.undo", "runs.stayed"):
        st.session_state.pop(key, None)
