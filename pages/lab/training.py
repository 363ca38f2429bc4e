"""Training: weights that learn with the grid in their way, watched as they do."""

import streamlit as st

from qlab.ui import cache, change, choose, errors, frame, state, training, training_controls, training_view

EXPLAIN = """
**What is done.** Post-training quantization (PTQ) rounds finished weights. Here the weights go on learning while every
forward pass rounds them to their grid, so that they settle where rounding hurts least. The start is the network that
the current config gives; the result is a quantized network with the same bits and other codes.

**Reading the picture.** Above, the accuracy after every epoch, between the line of the float network and that of PTQ.
Below, the loss. The star is the epoch that is the result: the last one, or the one with the least loss on samples that
are held out, where you ask for that. The evaluation samples are measured and decide nothing.

**Trying.** Few bits cost most and win back most. Where the loss jumps, a lower learning rate helps; where accuracy on
the evaluation samples falls while the training loss goes on falling, fewer epochs or more distillation do.
"""


@st.fragment
def bench() -> None:
    change.tell_the_sidebar()
    training.begin()
    frame.header(
        "What does training with fake quantization win back?",
        "The weights go on learning with the grid in their way. Choose few bits, press Train, and watch accuracy, "
        "ranges and codes change epoch by epoch.",
        explain=EXPLAIN,
        terms=(
            "QAT", "fake quantization", "straight-through estimator", "LSQ", "distillation", "flip", "grid", "scale",
            "zero point", "calibration", "evaluation", "interval", "paired comparison", "simulated",
        ),
        **training.share_params(),
    )  # fmt: skip
    with errors.box():
        change.bar("train")
        model = cache.model(state.model_ref())
        if choose.data_fits(model):
            with st.container(border=True, key="train_settings"):
                training_controls.row(model)
                training_controls.config()
            training_view.draw(model)


bench()
