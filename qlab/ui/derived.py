"""What a job computes once and the store keeps: looked up, or made by a job whose progress the page shows.

The first visit starts the job; whoever comes later, reloads or restarts the app finds what it stored.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

import streamlit as st

from qlab.ui import cache, errors, jobs, say

T = TypeVar("T")


@dataclass(frozen=True)
class Words:
    """What a page says of a job that did not come to an end, and of the button that starts it again."""

    stopped: str
    no_result: str
    again: str
    help: str


def require(
    kind: str, arguments: dict[str, object], find: Callable[[], T | None], words: Words, *, mine: Hashable, key: str
) -> T | None:
    """What `find` finds in the store; starts the job of this kind where it finds nothing.

    mine: what the result depends on; a job is started once for it. While the job is going, its progress is drawn here
    and None is given; the page runs again when it ends. A job that failed or was stopped is told, with a button to try
    again.
    """
    found = find()
    if found is not None:
        return found
    started: dict[Hashable, str] = st.session_state.setdefault(f"lab.{kind}", {})
    run_id = started.get(mine) or _going_on(kind, arguments) or jobs.submit(kind, **arguments)
    started[mine] = run_id
    run = jobs.watch(run_id, key=f"{key}_{kind}")
    if run is None:
        return None
    found = find()
    if found is not None:
        return found
    if run.status == "cancelled":
        say.info(words.stopped)
    else:
        errors.failure(run.error or words.no_result, run.detail)
    st.button(words.again, key=f"{key}_again", on_click=started.__delitem__, args=(mine,), help=words.help)
    return None


def _going_on(kind: str, arguments: dict[str, object]) -> str | None:
    """The run of another browser that is making the same thing."""
    from qlab.lab.tasks import KINDS

    spec = KINDS[kind].describe(cache.store(), arguments).spec
    return next((run.id for run in jobs.open_runs() if run.kind == kind and run.spec == spec), None)
