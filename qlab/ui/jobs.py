"""Running jobs on a page: start one, watch it, stop it. The store knows everything, so a reload loses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from qlab.metrics import about_duration
from qlab.ui import cache, errors, say

if TYPE_CHECKING:
    from qlab.lab.store import Run

KINDS = {
    "prepare": "Calibrating",
    "experiment": "Experiment on",
    "sweep": "Sweep of",
    "latency": "Timing",
    "export": "Writing the files of",
    "runtime": "Running on integers:",
    "sensitivity": "Ranking the layers of",
    "diagnose": "Looking for what is wrong with",
    "advice": "Trying remedies for",
    "stability": "Drawing calibrations of",
}
EVERY = 0.6  # seconds between two looks at a running job


def submit(kind: str, **arguments: Any) -> str:
    """Starts a job in a worker process and gives the id of its run, which is in the store before it begins."""
    return cache.runner().submit(kind, **arguments)


def watch(run_id: str, *, key: str) -> Run | None:
    """Draws a job that is going on: stage, share, time left and Cancel; gives the run once it has ended.

        run = jobs.watch(run_id, key="exp_progress")
        if run is not None: ...          # status "done", "failed" or "cancelled"; run.result, run.error, run.detail

    The bar moves by itself, and the whole page runs again when the job ends.
    """
    run = cache.store().get_run(run_id)
    if run.ended:
        return run
    st.fragment(_bar, run_every=EVERY)(run_id, key)
    return None


def _bar(run_id: str, key: str) -> None:
    run = cache.store().get_run(run_id)
    if run.ended:
        st.rerun()
    bar(run, key=key)


def bar(run: Run, *, key: str) -> None:
    """Draws how far a run is, once, with Cancel."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(_share(run), text=f"**{errors.escape(_label(run))}**  \n{_stage(run)}")
        _stop_button(run, "Cancel", f"{key}_stop", width="content")


def panel() -> None:
    """The running jobs of the lab for the sidebar; nothing when nothing runs."""
    if open_runs():
        # run_every only while something runs: a timer that never ends would keep an idle browser busy.
        st.fragment(_panel, run_every=EVERY)()


def _panel() -> None:
    runs = open_runs()
    before = st.session_state.get("jobs_seen", ())
    st.session_state["jobs_seen"] = tuple(run.id for run in runs)
    if set(before) - {run.id for run in runs}:
        # One has ended: the page may have been waiting for it.
        st.rerun()
    say.caption("Running")
    for run in runs:
        with st.container(border=True, key=f"job_{run.id}"):
            st.progress(_share(run), text=f"**{errors.escape(_label(run))}**  \n{_stage(run)}")
            _stop_button(run, "Stop", f"jobs_stop_{run.id}", width="stretch")


def open_runs() -> list[Run]:
    """The runs that are queued or running, the oldest first; parts of a sweep are shown by the sweep."""
    from qlab.lab.store import OPEN

    return cache.store().list_runs(status=OPEN, parts=False)[::-1]


def _stop_button(run: Run, label: str, key: str, *, width: Literal["content", "stretch"]) -> None:
    st.button(
        "Stopping" if run.cancel_requested else label,
        key=key,
        disabled=run.cancel_requested,
        on_click=_cancel,
        args=(run.id,),
        help="Ends this job; what other jobs do and what is stored stays.",
        width=width,
    )


def _cancel(run_id: str) -> None:
    cache.runner().cancel(run_id)


def _share(run: Run) -> float:
    # st.progress refuses what is outside 0..1 by a rounding error.
    return min(max(float(run.share), 0.0), 1.0)


def _stage(run: Run) -> str:
    if run.status == "queued":
        return "waiting for a free worker"
    steps = f", {run.done} of {run.total}" if run.total else ""
    left = f" · {about_duration(run.seconds_left)} left" if run.seconds_left is not None else ""
    return f"{run.stage or 'starting'}{steps}{left}"


def _label(run: Run) -> str:
    what = "Training on" if run.kind == "experiment" and run.spec.get("training") else KINDS.get(run.kind, run.kind)
    return run.name or (f"{what} {run.model}" if run.model else what)
