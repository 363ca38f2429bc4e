"""Calibration and float accuracy of the current model and data: looked up in the store, or computed by a job.

Every page needs them, so the first visit starts the job; whoever comes later, reloads or restarts the app finds what it
stored. Another config needs no new job: neither depends on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import metric
from qlab.plots.accuracy import Dot, accuracy_dots
from qlab.ui import cache, derived, facts, say, state, widgets
from qlab.ui.library import DataRef, ModelRef

if TYPE_CHECKING:
    from qlab.calibration import Calibration
    from qlab.evaluation import Evaluation
    from qlab.lab.run import Prepared

KIND = "prepare"
WORDS = derived.Words(
    stopped="The calibration was stopped, so the ranges and the float accuracy are not known yet.",
    no_result="The calibration ended without a result.",
    again="Calibrate again",
    help="Runs the calibration part and the evaluation part of the data through the float network.",
)


def known(model: ModelRef, data: DataRef) -> Prepared | None:
    """Calibration and float evaluation if they are in the store; computes nothing. Shared: do not change it."""
    found = cache.prepared(model, data)
    if found is not None:
        facts.note((model, data), f"{accuracy_text(found.float_evaluation)} in float")
    return found


def require(*, key: str) -> Prepared | None:
    """What `known` gives for the current model and data; starts the job that makes it where it is missing.

        found = prepared.require(key="dist")
        if found is not None: found.calibration, found.float_evaluation

    While the job is going, its progress is drawn here and None is given; the page runs again when it ends. A job that
    failed or was stopped is told, with a button to try again. Call it for data that fits the model.
    """
    model, data = state.model_ref(), state.data_ref()
    mine = (model, data, state.options().batch_size, state.options().seed, repr(state.mapping().preparation))
    return derived.require(KIND, _arguments(model, data), lambda: known(model, data), WORDS, mine=mine, key=key)


def calibration(*, key: str) -> Calibration | None:
    """The calibration of the current model and data, or None while it is being made; see `require`."""
    found = require(key=key)
    return found.calibration if found else None


def accuracy(*, key: str) -> None:
    """The float accuracy with its interval as a figure and on an axis; its progress while it is measured."""
    found = require(key=key)
    if found is None:
        return
    measured = found.float_evaluation
    if measured.accuracy is None or measured.accuracy_interval is None:
        say.info(
            "This data has no labels, so there is no accuracy. Experiment then measures on how many samples float and "
            "quantized network agree."
        )
        return
    low, high = measured.accuracy_interval
    with st.container(horizontal=True, vertical_alignment="center"):
        st.metric(
            "Float accuracy",
            metric("accuracy").format(measured.accuracy),
            f"{metric('accuracy').interval(low, high)} on {measured.n:,}",
            delta_color="off",
            delta_arrow="off",
            help="Share of right predictions on the evaluation samples, with the range that holds the true value with "
            "95 % confidence.",
            width="content",
        )
        made = accuracy_dots([Dot("float", measured.accuracy, low, high, "float")], widgets.dark())
        # With a single line plotly finds no room of its own for the axis title under the numbers.
        made.update_layout(height=124, margin={"b": 48})
        widgets.chart(made, key=f"{key}_dots")


def accuracy_text(evaluation: Evaluation) -> str:
    """97.8 %, or that there are no labels."""
    return "no labels" if evaluation.accuracy is None else metric("accuracy").format(evaluation.accuracy)


def _arguments(model: ModelRef, data: DataRef) -> dict[str, object]:
    chosen, preparation = state.options(), state.mapping().preparation
    return {
        "model": model.source,
        "data": state.data_table(data),
        "batch_size": chosen.batch_size,
        "calibration_samples": data.calibration_samples,
        "seed": chosen.seed,
        "mapping": preparation,
    }
