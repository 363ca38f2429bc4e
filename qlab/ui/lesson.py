"""What the lessons share: settings that go into the link, a prediction, what to notice, the way to one's own model.

from qlab.ui import lesson

def draw(page: lesson.Lesson) -> None:
    page.header("How does a number land on a grid?", "One sentence: what is seen and what to try.", terms=("scale",))
    page.part(rounding)
    page.yours("lab", "distributions", "Distributions", "The same on the tensors of your own model.")

def rounding(page: lesson.Lesson) -> None:
    with page.controls():
        bits = page.slider("bits", "Bits", 2, 8, 4, help="Fewer bits: fewer grid points.")
    guess = page.predict("How large can the error get?", {"half": "half a step", "whole": "a whole step"})
    if guess.open:
        ...charts and figures, computed now...
        guess.told("half", "The largest error of all values is 0.50 steps.")
        page.notice("...")

lesson.show("grid", draw)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qlab.ui import change, curriculum, distributions, errors, frame, say, state, widgets

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from qlab.config import QConfigMapping

RESERVED = frozenset({"model", "data", "run", "runs", "baseline", "sweep", "present"})  # what links say anyway


def show(slug: str, draw: Callable[[Lesson], None]) -> None:
    """Runs a lesson; a change on it reruns the lesson alone. slug: its name in `curriculum.LESSONS`."""

    @st.fragment
    def body() -> None:
        change.tell_the_sidebar()
        page = Lesson(slug)
        with errors.box():
            distributions.one_thread()
            draw(page)
        page.footer()

    body()


@dataclass(frozen=True)
class Guess:
    """A prediction. said: the option that was taken, None if it was left out. open: whether the answer is shown."""

    said: str | None
    open: bool
    options: Mapping[str, str]
    place: DeltaGenerator

    def told(self, truth: str, because: str) -> None:
        """Holds the guess against what was computed now. truth: an option; because: a sentence with its numbers."""
        if truth not in self.options:
            raise ValueError(f"{truth!r} is not among the answers {', '.join(self.options)}")
        answer = f"**{self.options[truth]}.** {because}"
        if self.said is None:
            self.place.info(f"It is: {answer}")
        elif self.said == truth:
            self.place.success(f"As you said: {answer}")
        else:
            self.place.warning(f"You said: {self.options[self.said]}. It is: {answer}")


class Lesson:
    """One lesson while it is drawn."""

    def __init__(self, slug: str) -> None:
        self.slug = slug
        self._values: dict[str, Any] = st.session_state.setdefault(f"learn.{slug}", {})
        self._raw: dict[str, str] = st.session_state.setdefault(f"learn.{slug}.link", {})
        asked = {name: text for name, text in st.query_params.to_dict().items() if name not in RESERVED}
        # The address stays as it was while settings change, so it counts once.
        if asked != st.session_state.get(f"learn.{slug}.asked", {}):
            st.session_state[f"learn.{slug}.asked"] = asked
            self._raw.update(asked)
            self._values.clear()

    # --- the page -----------------------------------------------------------------------------------------------------

    def header(self, question: str, sentence: str, *, explain: str = "", terms: tuple[str, ...] = ()) -> None:
        """Title, one to three sentences, Explain, Share (a link with the settings) and Present."""
        say.caption(f"Lesson {curriculum.number(self.slug)} · {curriculum.LESSONS[self.slug]}")
        share = {name: _written(value) for name, value in self._values.items()}
        frame.header(question, sentence, explain=explain, terms=terms, present=True, **(self._raw | share))

    def part(self, draw: Callable[..., None], *args: Any) -> None:
        """Draws one experiment of the lesson: `draw(page, *args)`. A control in it redraws it alone, so what another
        part shows must not hang on it."""

        def body() -> None:
            with errors.box():
                draw(self, *args)

        body.__qualname__ = f"{self.slug}.{draw.__qualname__}"  # by which Streamlit tells fragments apart
        st.fragment(body)()

    def section(self, title: str) -> None:
        """The title of the second or third experiment of a lesson."""
        st.subheader(title, anchor=False)

    def text(self, text: str) -> None:
        """Markdown, with the words of the glossary as links."""
        say.markdown(text)

    def controls(self, name: str = "controls") -> DeltaGenerator:
        """A row of controls, which wraps where it is narrow."""
        return st.container(
            horizontal=True, vertical_alignment="bottom", gap="medium", border=True, key=self.key(f"{name}_row")
        )

    def chart(self, figure: go.Figure, name: str, **kwargs: Any) -> Any:
        """A chart of this lesson. name: unique on the page; also that of a downloaded file."""
        return widgets.chart(figure, key=self.key(name), **kwargs)

    def notice(self, text: str, name: str = "notice") -> None:
        """A sentence that says what to look at, with numbers that were computed now. name: unique on the page."""
        with st.container(border=True, key=self.key(name)):
            say.markdown(f"**What to notice.** {text}")

    @property
    def attempt(self) -> int:
        """How often "Time again" was pressed: what is timed is timed anew for another number."""
        return st.session_state.get(f"learn.{self.slug}.attempt", 0)

    def again(self, text: str) -> None:
        """What was timed and how, with the button that times it anew."""
        with st.container(horizontal=True, vertical_alignment="center", key=self.key("again_row")):
            say.caption(text, width="stretch")
            st.button(
                "Time again", key=self.key("again"), on_click=_keep,
                args=(f"learn.{self.slug}.attempt", self.attempt + 1),
                help="Takes the times anew, for when something else kept the machine busy.",
            )  # fmt: skip

    def yours(
        self,
        section: str,
        name: str,
        title: str,
        text: str,
        *,
        mapping: QConfigMapping | None = None,
        tensor: str | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """The button that opens the same on the model, data and config in the sidebar.

        section, name: the page's file; title: what the menu calls it. mapping: a config to make the current one, with
        a way back; tensor: the tensor to look at; before: sets whatever else the page starts from.
        """
        with st.container(horizontal=True, vertical_alignment="center", key=self.key(f"yours_{name}")):
            say.markdown(f"**On your own model.** {text}", width="stretch")
            # Not in a callback: from there no page can be opened.
            if st.button(
                f"{title} with {errors.escape(state.model_ref().title)}", key=self.key(f"yours_{name}_go"),
                help="Opens that page with the model and data chosen in the sidebar; upload your own on Start.",
            ):  # fmt: skip
                if mapping is not None:
                    change.to(mapping, f"the config of the lesson “{curriculum.LESSONS[self.slug]}”")
                if tensor is not None:
                    state.set_tensor(tensor)
                if before is not None:
                    before()
                st.switch_page(curriculum.page(name, section))

    def footer(self) -> None:
        before, after = curriculum.neighbours(self.slug)
        with st.container(horizontal=True, horizontal_alignment="distribute", key=self.key("footer")):
            for slug, mark in ((before, "←"), (after, "→")):
                if slug is None:
                    st.page_link(curriculum.page(curriculum.GLOSSARY), label="Glossary")
                else:
                    label = f"{curriculum.number(slug)} · {curriculum.LESSONS[slug]}"
                    st.page_link(curriculum.page(slug), label=f"{mark} {label}" if mark == "←" else f"{label} {mark}")

    def predict(self, question: str, options: Mapping[str, str], name: str = "guess") -> Guess:
        """Asks before the answer is shown. options: key to what it says. Draw what answers it where `open` is true.

        name: of this question, where a lesson has several.
        """
        key = self.key(name)
        kept = f"learn.{self.slug}.{name}"
        with st.container(border=True, key=f"{key}_box"):
            say.markdown(f"**Before you look.** {question}")
            with st.container(horizontal=True, vertical_alignment="center"):
                said = widgets.kept(
                    st.pills, question, list(options), value=st.session_state.get(kept),
                    store=lambda option: _keep(kept, option), key=key, format_func=options.__getitem__,
                    label_visibility="collapsed", wrap=True,
                )  # fmt: skip
                opened = said is not None or st.session_state.get(f"{kept}.shown", False)
                if opened:
                    st.button("Hide the answer", key=f"{key}_hide", type="tertiary", on_click=_hide, args=(kept,),
                              help="Takes the prediction back, for the next one who tries.")  # fmt: skip
                else:
                    st.button("Show without a guess", key=f"{key}_show", type="tertiary", on_click=_keep,
                              args=(f"{kept}.shown", True), help="Shows the answer at once.")  # fmt: skip
            place = st.empty()
        return Guess(said, opened, options, place)

    # --- settings, which go into the link -----------------------------------------------------------------------------

    def slider(
        self, name: str, label: str, low: float, high: float, default: float, *, help: str, step: float | None = None,
        format: str | None = None, width: int = 260,
    ) -> Any:  # fmt: skip
        """A number from a range; a whole number if low, high and default are."""
        whole = all(isinstance(n, int) for n in (low, high, default))

        def read(text: str) -> float:
            value = (int if whole else float)(text)
            if not low <= value <= high:
                raise ValueError(text)
            return value

        if name in self._values:  # the range may hang on another setting
            self._values[name] = min(max(self._values[name], low), high)
        return self._control(
            name, default, read, st.slider, label, low, high, step=step, format=format, width=width, help=help
        )

    def choice(self, name: str, label: str, options: Mapping[str, str], default: str, *, help: str) -> str:
        """One of a few, all in view. options: key to what it says."""
        return self._one_of(
            name, label, options, default, st.segmented_control, help=help, format_func=options.__getitem__,
            required=True,
        )  # fmt: skip

    def select(
        self, name: str, label: str, options: Mapping[str, str], default: str, *, help: str, width: int = 260
    ) -> str:
        """One of many. options: key to what it says."""
        return self._one_of(
            name, label, options, default, st.selectbox, help=help, format_func=options.__getitem__, width=width
        )

    def scale(
        self, name: str, label: str, options: Sequence[Any], default: Any, *, help: str, width: int = 260,
        format_func: Callable[[Any], str] = str,
    ) -> Any:  # fmt: skip
        """One of a few values that have an order, such as 16, 32, 64."""
        texts = {_written(option): option for option in options}
        return self._control(
            name, default, texts.__getitem__, st.select_slider, label, options, help=help, width=width,
            format_func=format_func,
        )  # fmt: skip

    def toggle(self, name: str, label: str, default: bool = False, *, help: str) -> bool:
        """Something that is on or off."""
        return self._control(name, default, {"1": True, "0": False}.__getitem__, st.toggle, label, help=help)

    def set(self, name: str, value: Any) -> None:
        """Changes a setting from a button's on_click."""
        self._values[name] = value

    def key(self, name: str) -> str:
        """The key of a widget or chart of this lesson."""
        return f"learn_{self.slug}_{name}"

    def _one_of(
        self, name: str, label: str, options: Mapping[str, str], default: str, widget: Any, **kwargs: Any
    ) -> Any:
        known = {option: option for option in options}
        if self._values.get(name, default) not in known:  # what can be chosen may hang on another setting
            del self._values[name]
        return self._control(name, default, known.__getitem__, widget, label, list(options), **kwargs)

    def _control(
        self, name: str, default: Any, read: Callable[[str], Any], widget: Any, label: str, *args: Any, **kwargs: Any
    ) -> Any:
        if name in RESERVED:
            raise ValueError(f"{name!r} has a meaning of its own in links")
        if name in self._raw:
            try:
                self._values[name] = read(self._raw.pop(name))
            except (ValueError, KeyError):
                st.toast(f"The link asks for a value that “{label}” does not have; it starts as usual.")
        value = self._values.get(name, default)
        return widgets.kept(
            widget, label, *args, value=value, store=lambda v: self._values.__setitem__(name, v), key=self.key(name),
            **kwargs,
        )  # fmt: skip


def _written(value: Any) -> str:
    """A setting as a link says it."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _keep(key: str, value: Any) -> None:
    st.session_state[key] = value


def _hide(kept: str) -> None:
    for key in (kept, f"{kept}.shown"):
        st.session_state.pop(key, None)
