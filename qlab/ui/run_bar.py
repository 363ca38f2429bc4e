"""The line above the editor: Run, how far a run is, and float against quantized as two large figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import about_duration
from qlab.ui import cache, config_editor, errors, estimate, jobs, prepared, results, say, state

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.run import Result
    from qlab.lab.store import Run


def draw(run: Run | None, result: Result | None, model: Model | None) -> None:
    """Run on the left; beside it what is known so far: float alone, how far the run is, or how it ended."""
    # One row that wraps: what does not fit beside Run moves under it.
    with st.container(horizontal=True, gap="large", vertical_alignment="center"):
        with st.container(width=190, gap="xsmall"):
            _button(run, model)
            _options()
        with errors.box():
            _state(run, result)


def _state(run: Run | None, result: Result | None) -> None:
    if run is None:
        results.before(prepared.known(state.model_ref(), state.data_ref()))
    elif result is not None:
        results.headline(run, result)
    else:
        with st.container():
            if not run.ended:
                jobs.watch(run.id, key="exp_progress")
            elif run.status == "cancelled":
                say.info("This run was stopped before it had a result. Run starts again with the settings below.")
            else:
                errors.failure(run.error or "This run ended without a result. Run it again.", run.detail)


def shown_run() -> Run | None:
    """The run that this page shows, from the link or the last press of Run; None when there is none.

    Raises InvalidConfig, once, when a link names a run that is not here.
    """
    run_id = state.run_id()
    if run_id is None:
        return None
    try:
        run = cache.store().get_run(run_id)
    except QLabError:
        state.set_run(None)
        st.query_params.pop("run", None)
        raise
    # In the address, so that a reload or a bookmark finds it again.
    if st.query_params.get("run") != run_id:
        st.query_params["run"] = run_id
    return run


def start() -> None:
    """Starts a run of the current config; the page then shows it."""
    try:
        state.set_run(jobs.submit("experiment", experiment=state.experiment()))
    except QLabError as error:
        st.session_state["exp_problem"] = error


def _button(run: Run | None, model: Model | None) -> None:
    going = run is not None and not run.ended
    expected = _expected(model)
    about = "Quantizes the network as set below and measures it on the evaluation data, in a process of its own."
    st.button(
        "Running" if going else "Run",
        key="exp_run",
        type="primary",
        width="stretch",
        disabled=going or model is None,
        on_click=start,
        help=about,
    )
    say.caption(expected)


def _expected(model: Model | None) -> str:
    """How long it will take, by the runs of this network on this data that are stored."""
    earlier = cache.store().list_runs(20, kind="experiment", status="done") if model else []
    found = model and estimate.expected_seconds(earlier, model.content_hash, _data_hash())
    if not found:
        return "no earlier run to tell the time"
    seconds, count = found
    return f"{about_duration(seconds)}, by {count} earlier run{'s' if count > 1 else ''}"


def _data_hash() -> str:
    return cache.dataset(state.data_ref()).content_hash


def _options() -> None:
    chosen = state.options()
    with st.popover("Name, batch size, seed", width="stretch", help="Settings of the run that rarely need a change."):
        config_editor.kept(
            st.text_input,
            "Name of the run",
            value=chosen.name,
            store=lambda name: state.set_options(state.options().replace(name=name or "")),
            key="exp_name",
            help="Shown in the list of runs instead of its number.",
        )
        config_editor.kept(
            st.number_input,
            "Batch size",
            1,
            4096,
            value=chosen.batch_size,
            store=lambda size: state.set_options(state.options().replace(batch_size=size)),
            key="exp_batch_size",
            step=1,
            help="Larger batches are faster and take more memory; a moving average also sees fewer batches.",
        )
        config_editor.kept(
            st.number_input,
            "Seed",
            0,
            2**31 - 1,
            value=chosen.seed,
            store=lambda seed: state.set_options(state.options().replace(seed=seed)),
            key="exp_seed",
            step=1,
            help="Fixes which samples calibrate where the data brings no split of its own.",
        )
