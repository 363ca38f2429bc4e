"""What a failure looks like on a page: one red box, the technical part folded, the rest of the page still working."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import streamlit as st

from qlab.errors import QLabError

P = ParamSpec("P")
T = TypeVar("T")

LOG = logging.getLogger("qlab.ui")


@contextmanager
def box() -> Iterator[None]:
    """Runs a part of a page; a failure becomes one red box and the code after the `with` goes on.

        with errors.box():
            model = cache.model(state.model_ref())
            ...

    A QLabError shows its message, with its detail folded. Anything else is a fault of the lab: it says so, folds the
    traceback and writes it to the log. Streamlit's own control flow (st.rerun, st.stop) passes through.
    Use it as a decorator too: `@errors.box()`.
    """
    try:
        yield
    except QLabError as error:
        show(error)
    except Exception as error:
        # The one place where everything is caught: a traceback on a page helps nobody who uses it. The log keeps it.
        LOG.exception("the lab itself went wrong")
        show(error)


def attempt(load: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """What `load` gives, or a red box and None: for what several parts of a page need, so that one failure is one box.

    model = errors.attempt(cache.model, state.model_ref())
    """
    with box():
        return load(*args, **kwargs)
    return None


def show(error: Exception) -> None:
    """Draws the box for an error that was caught elsewhere, for example one that a job brought back."""
    if isinstance(error, QLabError):
        message, detail = str(error), error.detail
    else:
        message = (
            "Something in the lab itself went wrong here. The rest of the page still works; choosing another model, "
            "data set or setting often avoids it. The details below help whoever repairs it."
        )
        detail = "".join(traceback.format_exception(error))
    failure(message, detail)


def failure(message: str, detail: str | None = None) -> None:
    """A red box with a message and, folded, what only a developer needs."""
    # Some messages end in lines of Python that repair what is wrong, after an empty line.
    words, _, code = message.partition("\n\n")
    st.error(escape(words))
    if code:
        st.code(code, language="python", wrap_lines=True)
    if detail:
        with st.expander("Technical details"):
            st.code(detail, language=None)


def escape(text: str) -> str:
    """Text from outside (file names, messages) so that Markdown shows it as it is."""
    for character in "\\`*_[]<>$~#:":
        text = text.replace(character, "\\" + character)
    return text
