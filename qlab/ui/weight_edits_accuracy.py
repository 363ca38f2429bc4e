"""What edited numbers do to the accuracy: measured by runs on the whole evaluation data, with and without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import COMPUTED, metric, write
from qlab.ui import cache, compare, errors, jobs, results, say, state, widgets

if TYPE_CHECKING:
    from qlab.lab.experiment import Experiment
    from qlab.lab.store import Run
    from qlab.ui.weights_source import Shown

STARTED, REFUSED = "edits.runs", "edits.refused"  # hash of an experiment -> the run that was started for it here


def experiments(shown: Shown) -> tuple[Experiment, Experiment]:
    """The experiment with the edits and the one without them: of the current config, or of the run that trained."""
    from qlab.lab.experiment import Experiment

    if shown.origin:
        run = cache.store().get_run(shown.origin)
        plain, config = Experiment.from_dict(run.spec), run.config
    else:
        plain, config = state.experiment(), state.config_label()
    edits, before = (*plain.edits, *shown.edits), _count(len(plain.edits))
    name = (plain.name or config).removesuffix(f", {before}").removesuffix(f" · {before}")
    return plain.replace(edits=edits, name=f"{name}, {_count(len(edits))}"), plain


def _count(edits: int) -> str:
    return f"{edits} number{'s' if edits > 1 else ''} edited"


def draw(shown: Shown) -> None:
    """The button that measures, how far it is, and what came out."""
    say.markdown("**What this does to the accuracy**")
    edited, plain = experiments(shown)
    # What was trained has been measured by the run that trained it.
    origin = cache.store().get_run(shown.origin) if shown.origin else None
    runs = [_of(edited, origin), origin or _of(plain)]
    if refused := st.session_state.pop(REFUSED, None):
        errors.show(refused)
    going = [run for run in runs if run is not None and not run.ended]
    done = all(run is not None and run.status == "done" for run in runs)
    if not done:
        st.button(
            "Measuring" if going else "Measure the accuracy", key="edits_measure", type="primary",
            disabled=bool(going), on_click=_start,
            args=((edited,) if origin else (edited, plain), origin),
            help="Runs the model with and without the edits on the whole evaluation data, each in a job of its own; "
            "what was measured before is taken from the store.",
        )  # fmt: skip
    for number, run in enumerate(runs):
        if run is not None and not run.ended:
            jobs.watch(run.id, key=f"edits_progress_{number}")
        elif run is not None and run.status == "failed":
            errors.failure(run.error or "The run ended without a result.", run.detail)
        elif run is not None and run.status == "cancelled":
            say.info("A run was stopped before it had a result. Measure the accuracy starts it again.")
    with_edits, without = runs
    if done and with_edits is not None and without is not None:
        _found(with_edits, without)


def _start(both: tuple[Experiment, ...], origin: Run | None) -> None:
    started = st.session_state.setdefault(STARTED, {})
    for asked in both:
        run = _of(asked, origin)
        if run is not None and run.status in ("queued", "running", "done"):
            continue
        try:
            started[asked.spec_hash] = jobs.submit("experiment", experiment=asked)
        except QLabError as refused:
            st.session_state[REFUSED] = refused
            return


def _of(asked: Experiment, origin: Run | None = None) -> Run | None:
    """The run of this experiment: the one started here, else one that is in the store with a result.

    origin: the run that trained what is edited, on data that need not be what is open.
    """
    run_id = st.session_state.get(STARTED, {}).get(asked.spec_hash)
    if run_id is not None:
        return cache.store().get_run(run_id)
    from qlab.lab.run import content_key_of

    store, model = cache.store(), cache.model(state.model_ref())
    data_hash = (origin and origin.data_hash) or cache.dataset(state.data_ref()).content_hash
    key = content_key_of(model.content_hash, data_hash, model.fixed_batch or asked.batch_size, asked)
    runs = store.list_runs(10, kind="experiment", status="done", content_key=key)
    return next((run for run in runs if run.headline.dropped is None), None)


def _found(run: Run, without: Run) -> None:
    """Three figures side by side, and the paired verdicts in words."""
    from qlab.lab.compared import against

    edited, plain = results.result_of(run), results.result_of(without)
    widgets.figures(
        [
            _figure("Float", edited.reference, None),
            _figure("Without the edits", plain.quantized, plain.quantized.backend),
            _figure("With the edits", edited.quantized, edited.quantized.backend),
        ]
    )
    compare.tell(against(compare.comparison(run, without), "the model without the edits"))
    n = edited.quantized.n
    say.caption(f"On all {n:,} evaluation samples, {COMPUTED[edited.quantized.backend]}; both runs stand on Runs.")


def _figure(label: str, found: object, backend: str | None) -> tuple[str, str, str | None, str]:
    """Accuracy with its interval; without labels the agreement with the float network."""
    from qlab.evaluation import Evaluation

    assert isinstance(found, Evaluation)
    text = results.ACCURACY_HELP if backend is None else results.HELP[backend]
    if found.accuracy is None or found.accuracy_interval is None:
        return f"{label}, agreement", write("agreement", found.agreement), None, metric("agreement").help
    interval = f"{metric('accuracy').interval(*found.accuracy_interval)} %"
    return label, write("accuracy", found.accuracy), interval, text
