"""Text on a page: Streamlit's own, with the words of the glossary as links."""

from __future__ import annotations

from typing import Any

import streamlit as st

from qlab.ui.glossary import linked


def markdown(text: str, **kwargs: Any) -> None:
    st.markdown(linked(text), **kwargs)


def caption(text: str, **kwargs: Any) -> None:
    st.caption(linked(text), **kwargs)


def info(text: str, **kwargs: Any) -> None:
    st.info(linked(text), **kwargs)


def success(text: str, **kwargs: Any) -> None:
    st.success(linked(text), **kwargs)


def warning(text: str, **kwargs: Any) -> None:
    st.warning(linked(text), **kwargs)
