"""Presenter mode: large type and no sidebar, for showing a page to a room."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

SIZE = 1.35  # of the letters in charts, beside those of the page
_ON, _LINK = "lab.presenting", "present"


def on() -> bool:
    return st.session_state.get(_ON, False)


def begin() -> None:
    """Takes the wish of a link (?present=1) on the first run of a session, and gives the page its look."""
    if _ON not in st.session_state:
        st.session_state[_ON] = st.query_params.get(_LINK) == "1"
    if on():
        st.html(Path(__file__).with_name("presenter.css"))


def share() -> dict[str, str | None]:
    """What a link has to say of it."""
    return {_LINK: "1" if on() else None}


def switch() -> None:
    """The way in and out."""
    label = "Stop presenting" if on() else "Present"
    if st.button(label, key="frame_present", help="Large type without the sidebar, for showing it to a room."):
        st.session_state[_ON] = not on()
        # The whole page, not the fragment alone: its style stands outside.
        st.rerun()
