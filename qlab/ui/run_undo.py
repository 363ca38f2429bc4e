"""Deleting stored runs, and the way back: a bar with Undo that stays until something else is done."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from qlab.ui import cache, say
from qlab.ui.history import History

CHOSEN = "runs.chosen"  # ids of the runs that are chosen in the table
GONE, STAYED, GENERATION = "runs.undo", "runs.stayed", "runs.generation"


def delete(known: History, ids: Sequence[str]) -> None:
    """Takes these runs out of the lists, a sweep with its parts."""
    wanted = list(dict.fromkeys([*ids, *(run.id for run in known.runs if run.parent in ids)]))
    gone = cache.store().delete_runs(wanted)
    st.session_state[GONE], st.session_state[STAYED] = gone, len(wanted) - len(gone)
    other_rows()


def restore(ids: Sequence[str]) -> None:
    cache.store().restore_runs(ids)
    forget()
    other_rows()


def bar() -> None:
    """What was deleted last, with the button that brings it back."""
    gone, stayed = st.session_state.get(GONE, ()), st.session_state.get(STAYED, 0)
    if not gone and not stayed:
        return
    with st.container(horizontal=True, vertical_alignment="center", border=True, key="runs_undo_bar"):
        words = f"{len(gone):,} run{'s' if len(gone) != 1 else ''} deleted."
        if stayed:
            words += f" {stayed:,} still going: stop {'it' if stayed == 1 else 'them'} in the sidebar first."
        say.markdown(words)
        if gone:
            st.button(
                "Undo", key="runs_undo", type="primary", on_click=restore, args=(gone,),
                help="Brings the runs that were deleted last back into all lists.",
            )  # fmt: skip


def forget() -> None:
    """Something else was done, so the last deletion is not offered to be undone any more; Deleted runs still has it."""
    for key in (GONE, STAYED):
        st.session_state.pop(key, None)


def other_rows() -> None:
    """The table holds other runs from now on, and none of them is chosen."""
    st.session_state[GENERATION] = generation() + 1
    st.session_state[CHOSEN] = ()


def generation() -> int:
    return st.session_state.get(GENERATION, 0)
