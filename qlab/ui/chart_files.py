"""Two buttons above every chart: download it as PNG or as SVG."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from streamlit.components.v2.types import ComponentRenderer


def offer() -> None:
    """Once on each page. Plotly's own button knows one format and draws no background, so that what was drawn for a
    dark page could not be read on a white slide."""
    _component()(key="frame_chart_files", height=1)


@cache
def _component() -> ComponentRenderer:
    return st.components.v2.component("chart_files", js=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"))
