"""Controls and small displays that more than one page uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.plots.theme import enlarge
from qlab.ui import presenter

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEW_FIGURES = 3  # that are set wide apart; more would wrap in a narrow window, with the same gap between the lines
_MISSING = object()


def kept(
    widget: Callable[..., Any],
    label: str,
    *args: Any,
    value: Any,
    store: Callable[[Any], None],
    key: str,
    **kwargs: Any,
) -> Any:
    """A widget whose value outlives its page: seeded from `value`, and handed to `store` when a person changes it.

        bits = widgets.kept(st.slider, "Bits", 2, 8, value=spec.bits, store=set_bits, key="dist_bits", help="...")

    `value` is the canonical one, read from `state`; when it changed elsewhere (another page, a preset, a link), the
    widget follows. Do not also pass index= or value= of the widget itself.
    """
    # Writing an equal value would make Streamlit send it back to a slider that is still being dragged.
    if st.session_state.get(key, _MISSING) != value:
        st.session_state[key] = value
    return widget(label, *args, key=key, on_change=_commit, args=(key, store), **kwargs)


def _commit(key: str, store: Callable[[Any], None]) -> None:
    store(st.session_state[key])


def into(name: str) -> Callable[[Any], None]:
    """For `store`: keeps the value in the session under this name. A control in which nothing is chosen any more, such
    as a segmented one whose choice was pressed again, leaves it as it was."""

    def store(value: Any) -> None:
        if value is not None and value != []:
            st.session_state[name] = tuple(value) if isinstance(value, list) else value

    return store


def dark() -> bool:
    """Whether this browser shows the dark theme; pass it to the functions in qlab.plots."""
    return st.context.theme.type == "dark"


def chart(figure: go.Figure, *, key: str, **kwargs: Any) -> Any:
    """A plotly figure in the full width, in the template of qlab.plots. kwargs: on_select, selection_mode."""
    if presenter.on():
        enlarge(figure, dark(), presenter.SIZE)
    # theme=None: the template of qlab.plots carries fonts and colours; Streamlit's own would paint over them.
    return st.plotly_chart(figure, key=key, width="stretch", theme=None, config={"displaylogo": False}, **kwargs)


def clicked(key: str) -> list[str]:
    """What the marks that were clicked in a chart carry as customdata; for its on_select."""
    found = [point.get("customdata") for point in st.session_state[key]["selection"]["points"]]
    return [one[0] if isinstance(one, list) else one for one in found]


def tabs(places: Mapping[str, Callable[[], object]], *, key: str) -> None:
    """A tab for each of these, by title; only the open one is drawn. A chart in a hidden one would get no width, and
    what takes long is worked out when it is looked at."""
    for place, draw in zip(st.tabs(list(places), key=key, on_change="rerun"), places.values(), strict=True):
        if place.open:
            with place:
                draw()


def figures(values: list[tuple[str, str, str | None, str]]) -> None:
    """Large figures in one row, which wraps where it is narrow: (label, value, note under it, help)."""
    with st.container(
        horizontal=True, gap="large" if len(values) <= FEW_FIGURES else "medium", vertical_alignment="top"
    ):  # fmt: skip
        for label, value, note, text in values:
            # In columns of equal width a narrow window would cut the values.
            st.metric(label, value, note, delta_color="off", delta_arrow="off", help=text, width="content")
