"""Compare before there is anything to compare: three presets as a first small sweep."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from qlab.preset import presets
from qlab.ui import compare, errors, jobs, say, state
from qlab.ui.compare import Compared

FIRST = ("x86", "arm", "w4a8")
SWEEP_PAGE = "pages/lab/sweep.py"


def draw(shown: Compared) -> None:
    """Why there is nothing, and the buttons that change that; the progress of a sweep that was started here."""
    if problem := st.session_state.pop("compare.problem", None):
        errors.show(problem)
    going = st.session_state.get("compare.sweep")
    run = jobs.watch(going, key="compare_sweep") if going is not None else None
    if going is not None and run is None:
        say.caption("The runs appear here when all three are done.")
        return
    if run is not None and run.status == "failed":
        errors.failure(run.error or "The sweep ended without a result.", run.detail)
    if shown.chosen and not shown.missing:
        say.info("No run is compared: choose some above.")
        return
    what = f"{state.model_ref().title} on {state.data_ref().title}"
    if shown.chosen:
        say.info("None of the runs that were asked for is here: they were deleted, or belong to another machine.")
    elif shown.history.runs:
        say.info(
            errors.escape(f"There is no finished experiment of {what} yet. Runs of other networks can be chosen above.")
        )
    else:
        say.info(errors.escape(f"There is no finished experiment yet, of {what} or anything else."))
    titles = ", ".join(presets.about(name).title for name in FIRST)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Run three presets", key="compare_first", type="primary", on_click=_start,
            help=f"Runs {titles} as a small sweep: one calibration, then each on integer kernels.",
        )  # fmt: skip
        if (Path(__file__).resolve().parents[2] / SWEEP_PAGE).exists():
            st.page_link(SWEEP_PAGE, label="Set up a sweep")


def _start() -> None:
    from qlab.errors import QLabError
    from qlab.lab.sweep import Sweep

    data, options = state.data_ref(), state.options()
    try:
        sweep = Sweep.of(
            state.model_ref().source, state.data_table(data), list(FIRST), batch_size=options.batch_size,
            calibration_samples=data.calibration_samples, seed=options.seed, name="three presets",
        )  # fmt: skip
        st.session_state["compare.sweep"] = jobs.submit("sweep", sweep=sweep)
        state.set_compared(None)
    except QLabError as error:
        st.session_state["compare.problem"] = error
    compare.refresh()
