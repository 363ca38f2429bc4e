"""Name, tags and notes of stored runs, to be changed in place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import cache, errors, history, results, say
from qlab.ui import run_undo as undo

if TYPE_CHECKING:
    from qlab.lab.store import Run


def edit(run: Run) -> None:
    """Name, tags and notes of one run, to be changed in place."""
    # What is stored is part of the keys: fields that were changed elsewhere begin anew.
    stored = hashlib.sha256(repr((run.name, run.tags, run.notes)).encode()).hexdigest()[:8]
    mark = f"{run.id}_{stored}"
    with st.form(f"runs_edit_{mark}"):
        say.markdown(
            f"**{errors.escape(run.name or run.id)}** · {errors.escape(results.subject(run))} · "
            f"{errors.escape(run.config or history.KINDS.get(run.kind, run.kind))}"
        )
        if run.error or run.headline.dropped:
            say.caption(errors.escape(run.error or run.headline.dropped or ""))
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
    undo.forget()
    name, tags, notes = (st.session_state[f"runs_{what}_{mark}"] for what in ("name", "tags", "notes"))
    cache.store().annotate(run_id, name=name or "", tags=tags, notes=notes or "")


def _tags(label: str, default: Sequence[str], key: str, text: str) -> None:
    known = sorted({*history.everything().tags, *default}, key=str.casefold)
    st.multiselect(label, known, default=list(default), key=key, accept_new_options=True, placeholder="none", help=text)


def tag_all(chosen: list[Run]) -> None:
    mark = hashlib.sha256(repr([(run.id, run.tags) for run in chosen]).encode()).hexdigest()[:12]
    with st.form(f"runs_tag_{mark}"):
        _tags(f"Tag {len(chosen):,} runs", (), f"runs_tags_{mark}", "Added to the tags each run has already.")
        st.form_submit_button(
            "Add tags", key=f"runs_add_tags_{mark}", on_click=_add_tags, args=(chosen, mark),
            help="Gives these tags to all chosen runs.",
        )  # fmt: skip


def _add_tags(chosen: list[Run], mark: str) -> None:
    undo.forget()
    for run in chosen:
        cache.store().annotate(run.id, tags=(*run.tags, *st.session_state[f"runs_tags_{mark}"]))
