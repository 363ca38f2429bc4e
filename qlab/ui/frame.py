"""The frame every page stands in: title row, sidebar with model, data, config and running jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qlab.ui import chart_files, curriculum, errors, facts, glossary, jobs, library, presenter, say, state, widgets
from qlab.ui.library import DataRef, ModelRef

Ref = TypeVar("Ref", ModelRef, DataRef)
STYLE = Path(__file__).with_name("page.css")


def header(
    title: str,
    sentence: str,
    *,
    explain: str = "",
    terms: tuple[str, ...] = (),
    present: bool = False,
    **share: str | None,
) -> None:
    """The top of a page: a question as title, one sentence what is seen and what to try, Explain and Share.

        frame.header("Where do the values fall?", "Every observer's range at once; click one to use it.",
                     explain="How to read the picture ...", terms=("observer", "scale"), tensor=state.tensor())

    explain: Markdown. terms: words of qlab.ui.glossary that this page uses, explained in the popover.
    present: offers presenter mode; where it is on, every page offers the way out.
    share: query parameters that reopen this view, beside model and data, which are always in the link.
    """
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.title(title, anchor=False)
        with st.popover("Explain", help="Shows what the words and pictures on this page mean."):
            st.markdown("\n\n".join(part for part in (glossary.linked(explain), glossary.explain(*terms)) if part))
        # Redrawn when it is opened: a part of the page that was redrawn alone may have changed what the link says.
        with st.popover(
            "Share", key="frame_share", on_change="rerun",
            help="Shows a link that opens this page with the same model, data and choices.",
        ):  # fmt: skip
            say.caption("This link opens the page as it is now, in any browser on this machine.")
            st.code(link(**(presenter.share() | share)), language=None, wrap_lines=True)
        if present or presenter.on():
            presenter.switch()
    say.markdown(sentence)
    if notice := state.take_notice():
        say.info(errors.escape(notice))


def link(**params: str | None) -> str:
    """The address of the current page with its state."""
    here = urlsplit(st.context.url or "")
    return urlunsplit((here.scheme, here.netloc, here.path, urlencode(state.link_params(**params)), ""))


def run(pages: dict[str, list[st.Page]]) -> str:
    """Draws the sidebar, runs the page that was asked for, then fills in what only the page could load.

    pages: menu section -> its pages; the first one is the start page. Returns the section of the page.
    """
    # The menu is drawn here and not by Streamlit because what is being looked at (model, data, config) comes first.
    page = st.navigation(pages, position="hidden")
    with errors.box():
        state.begin()
        presenter.begin()
    st.html(STYLE)
    with st.sidebar:
        st.markdown("**qlab** · quantization laboratory")
        places: Sequence[DeltaGenerator] = ()
        with errors.box():
            places = _choices()
        for section, entries in pages.items():
            with _section(section, open=page in entries):
                for entry in entries:
                    st.page_link(entry, width="stretch")
        running = st.container()
    with errors.box():
        page.run()
    # After the page: by now it has loaded the model and the data and may have started a job.
    with errors.box():
        model, data = state.model_ref(), state.data_ref()
        for place, subjects in zip(places, ((model, (model, data)), (data,)), strict=False):
            place.caption(facts.of(*subjects))
    with running, errors.box():
        jobs.panel()
    chart_files.offer()
    return next(section for section, entries in pages.items() if page in entries)


def _section(title: str, *, open: bool) -> DeltaGenerator:
    """A part of the menu. The lessons are many, so they are folded while none of them is open."""
    if title == curriculum.SECTION:
        return st.expander(title, expanded=open)
    place = st.container(gap="xsmall")
    place.caption(title)
    return place


def _choices() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Model, data and config; returns the two places for the figures under the first two."""
    model = _choice(
        "Model",
        library.models(),
        state.model_ref(),
        state.set_model,
        key="frame_model",
        text="Every page shows this network; choosing a sample also chooses its data.",
    )
    data = _choice(
        "Data",
        library.data_sets(),
        state.data_ref(),
        state.set_data,
        key="frame_data",
        text="Part of this data calibrates the ranges, the rest measures the accuracy.",
    )
    say.markdown(
        f"Config **{errors.escape(state.config_label())}**", help="The configuration that Experiment runs next."
    )
    return model, data


def _choice(
    label: str, refs: Sequence[Ref], current: Ref, choose: Callable[[Ref], None], *, key: str, text: str
) -> DeltaGenerator:
    # The one in use stands for its entry: it may carry another preprocessing than the list knows.
    by_source = {ref.source: ref for ref in refs} | {current.source: current}
    titles = Counter(ref.title for ref in by_source.values())

    def title(source: str) -> str:
        ref = by_source[source]
        # Two uploads may have one name; the hash of the content tells them apart.
        return ref.title if titles[ref.title] == 1 else f"{ref.title} ({source.removeprefix('sha256:')[:6]})"

    widgets.kept(
        st.selectbox,
        label,
        list(by_source),
        value=current.source,
        store=lambda source: choose(by_source[source]),
        key=key,
        format_func=title,
        help=text,
    )
    return st.empty()
