"""A change of the shared config by a press on a page, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import errors, say, state

if TYPE_CHECKING:
    from qlab.analysis.remedy import Remedy
    from qlab.config import QConfigMapping

_DONE, _CHANGED = "change.done", "change.changed"


def to(mapping: QConfigMapping, title: str) -> None:
    """Makes this the current config; `undo` brings back the one before. For a button's on_click."""
    st.session_state.setdefault(_DONE, []).append((title, state.mapping(), mapping))
    _set(mapping)


def press(remedy: Remedy) -> None:
    to(remedy.mapping, remedy.title)


def undo() -> None:
    _, before, _ = st.session_state[_DONE].pop()
    _set(before)


def _set(mapping: QConfigMapping) -> None:
    state.set_mapping(mapping)
    st.session_state[_CHANGED] = True


def tell_the_sidebar() -> None:
    """Runs the whole page once more after a press: the sidebar, which names the config, is no part of its fragment.
    First thing in a page's fragment."""
    if st.session_state.pop(_CHANGED, False):
        st.rerun()


def bar(key: str) -> None:
    """What was pressed last, with the button that takes it back; gone once the config was changed elsewhere."""
    done = st.session_state.get(_DONE, [])
    if done and done[-1][2] != state.mapping():
        done.clear()
    if not done:
        return
    with st.container(horizontal=True, vertical_alignment="center", border=True, key=f"{key}_bar"):
        say.markdown(
            f"Done: {errors.escape(done[-1][0])}. The config is now **{errors.escape(state.config_label())}**."
        )
        st.button(
            "Undo", key=f"{key}_undo", type="primary", on_click=undo, help="Brings back the config before this change."
        )


def buttons(remedies: Sequence[Remedy], key: str) -> None:
    """A button for each remedy; what it does and costs is its help."""
    with st.container(horizontal=True, gap="small"):
        for i, remedy in enumerate(remedies):
            st.button(
                errors.escape(remedy.title), key=f"{key}_{i}", on_click=press, args=(remedy,),
                help=errors.escape(remedy.sentence),
            )  # fmt: skip
