"""The small grey figures under the model and the data in the sidebar, for what some page has loaded already.

The sidebar must not wait for a model to be read, so `cache` notes the figures here when it has read one.
"""

from __future__ import annotations

import streamlit as st

from qlab.ui.library import DataRef, ModelRef

Subject = ModelRef | DataRef | tuple[ModelRef, DataRef]


@st.cache_resource(show_spinner=False)
def _noted() -> dict[Subject, str]:
    return {}


def note(subject: Subject, text: str) -> None:
    """A figure of a model, of data, or of the two together."""
    _noted()[subject] = text


def of(*subjects: Subject) -> str:
    """Their figures, or a blank line of the same height, so that nothing jumps when they come."""
    return " · ".join(text for subject in subjects if (text := _noted().get(subject))) or "\u00a0"
