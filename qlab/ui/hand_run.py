"""The accuracy with a range set by hand: measured by a run, and held against float and the observer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import COMPUTED, metric, write
from qlab.ui import by_hand, cache, compare, errors, jobs, results, say, state, widgets
from qlab.ui.tensors import configured

if TYPE_CHECKING:
    from qlab.lab.experiment import Experiment
    from qlab.lab.run import Result
    from qlab.lab.store import Run
    from qlab.plots.study import Ends
    from qlab.ui.tensors import Entry

STARTED = "dist.hand.runs"  # hash of the experiment -> the run that was started for it here


def experiment(entry: Entry, ends: Ends | None) -> Experiment:
    """The current config with this range for the tensor, or with none."""
    ranges = {name: held for name, held in state.mapping().ranges.items() if name != entry.tensor}
    name = state.options().name
    if ends is not None:
        ranges[entry.tensor] = ends
        name = name or f"{entry.tensor} {by_hand.span(ends)}"
    return state.experiment().replace(mapping=state.mapping().replace(ranges=ranges), name=name)


def button(entry: Entry, ends: Ends, blocked: str | None) -> None:
    """Starts the run."""
    asked = experiment(entry, ends)
    run = _of(asked)
    st.button(
        "Measuring" if run is not None and not run.ended else "Measure accuracy",
        key="dist_hand_measure",
        type="primary",
        disabled=blocked is not None or (run is not None and run.status in ("queued", "running", "done")),
        on_click=_start,
        args=(asked,),
        help=blocked or "Runs the current config with this range on the evaluation data, in a process of its own.",
    )


def _start(asked: Experiment) -> None:
    try:
        run = jobs.submit("experiment", experiment=asked)
    except QLabError as refused:
        st.session_state["dist.refused"] = refused
        return
    st.session_state.setdefault(STARTED, {})[asked.spec_hash] = run
    st.session_state["dist.used"] = True  # the sidebar shows the job


def _of(asked: Experiment) -> Run | None:
    """The run of this experiment: the one started here, else one that is in the store with a result."""
    run_id = st.session_state.get(STARTED, {}).get(asked.spec_hash)
    if run_id is not None:
        return cache.store().get_run(run_id)
    return _stored(asked)


def _stored(asked: Experiment) -> Run | None:
    """The newest finished run that computed the same, evaluated in full; a simulated one first."""
    from qlab.evaluation import SQNR_SAMPLES
    from qlab.lab.experiment import BACKENDS
    from qlab.lab.run import content_key

    model, data, store = cache.model(state.model_ref()), cache.dataset(state.data_ref()), cache.store()
    # Runs of a sweep name the number of samples that SQNR is measured on, which is no part of the accuracy.
    ways = [asked.replace(backend=b, sqnr_samples=samples) for b in BACKENDS for samples in (None, SQNR_SAMPLES)]
    keys = [content_key(model, data, way) for way in ways]
    found = store.known(keys)  # one question, because this is asked at every move of an end
    runs = (
        run
        for key in keys
        if key in found
        for run in store.list_runs(10, kind="experiment", status="done", content_key=key)
    )
    return next((run for run in runs if run.headline.dropped is None), None)


def panel(entry: Entry, ends: Ends | None) -> None:
    """How far the run is, or what it found; nothing before one was asked for."""
    if ends is None or by_hand.idle(entry) is not None:
        return
    run, spec = _of(experiment(entry, ends)), configured(state.mapping(), entry)
    if run is None or spec is None:
        return
    observer = spec.observer  # of the config, which is what was measured, whatever is tried on the page
    with st.container(border=True, key="dist_hand_found"):
        if not run.ended:
            jobs.watch(run.id, key="dist_hand_progress")
        elif run.status == "cancelled":
            say.info("This run was stopped before it had a result. Measure accuracy starts it again.")
        elif run.status == "failed":
            errors.failure(run.error or "The run ended without a result.", run.detail)
        else:
            plain = experiment(entry, None)
            without = _of(plain)
            found(run, without if without is not None and without.status == "done" else None, observer)
            if without is None or without.status != "done":
                _without(plain, without)


def _without(plain: Experiment, run: Run | None) -> None:
    """The way to the figure of the same config without the range."""
    if run is not None and not run.ended:
        jobs.watch(run.id, key="dist_hand_without_progress")
        return
    if run is not None and run.status == "failed":
        errors.failure(run.error or "The run ended without a result.", run.detail)
    st.button(
        "Measure without it, too",
        key="dist_hand_without",
        on_click=_start,
        args=(plain,),
        help="Runs the same config with the observer's range for this tensor, so that the two can be compared.",
    )


def found(run: Run, without: Run | None, observer: str) -> None:
    """Float, this range and the observer's side by side, and the paired verdicts in words."""
    result = results.result_of(run)
    other = None if without is None else results.result_of(without)
    figures = [] if result.reference.accuracy is None else [_figure("Float", result, "reference")]
    if other is not None:
        figures.append(_figure(f"By {observer}", other, "quantized"))
    figures.append(_figure("By hand", result, "quantized"))
    widgets.figures(figures)
    if result.quantized.accuracy is None:
        say.markdown(results.UNLABELLED)
    else:
        results.verdict(result)
    if without is None or other is None:
        return
    from qlab.lab.compared import against

    compare.tell(against(compare.comparison(run, without), f"the range of {observer}"))
    if other.quantized.backend != result.quantized.backend:
        say.caption(
            f"By {observer} it was computed {COMPUTED[other.quantized.backend]}, by hand "
            f"{COMPUTED[result.quantized.backend]}: a part of the difference may come from that."
        )


def _figure(label: str, result: Result, which: str) -> tuple[str, str, str | None, str]:
    """Accuracy with its interval and how it was computed; agreement with float where there are no labels.

    which: "reference" or "quantized".
    """
    evaluation = getattr(result, which)
    words = COMPUTED[evaluation.backend] if which == "quantized" else ""
    text = results.HELP[evaluation.backend] if which == "quantized" else results.ACCURACY_HELP
    if evaluation.accuracy is None or evaluation.accuracy_interval is None:
        return f"{label}, agreement", write("agreement", evaluation.agreement), words, metric("agreement").help
    interval = f"{metric('accuracy').interval(*evaluation.accuracy_interval)} %"
    return ", ".join(part for part in (label, words) if part), write("accuracy", evaluation.accuracy), interval, text
