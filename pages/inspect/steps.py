"""One number, step by step: how a single output of a layer comes about on integers."""

import streamlit as st

from qlab.ui import cache, distributions, errors, frame, state, steps, steps_known, steps_told

EXPLAIN = """
**Reading the page.** Every step shows the integers that are really multiplied and added for one output number of one
layer. At the top stand four answers for the same number: computed by hand as below, given by an integer kernel,
simulated in float, and given by the float network.

**Words.** The *accumulator* is the 32-bit integer in which products are added up. An *integer kernel* is the routine of
a runtime, here ONNX Runtime, that multiplies integers instead of floats.

**Trying.** Walk along the output with the arrow keys, or press a button under the controls: a number that is cut off
shows the clamp at work, and one where kernel and simulation disagree shows a rounding that went to the other side.
"""


@st.fragment
def bench() -> None:
    frame.header(
        "How does one output number come about?",
        "The integers under one output number, their products, the sum, and every step to the output integer. Choose a "
        "layer and a place in its output.",
        explain=EXPLAIN,
        terms=("scale", "zero point", "grid", "round-off", "simulated", "fake quantization", "static"),
        **steps.share_params(),
    )
    with errors.box():
        distributions.one_thread()
        model = cache.model(state.model_ref())
        steps.begin(model.content_hash)
        found = steps_known.quantized(model)
        if found is not None:
            look(*found)


def look(qmodel, key) -> None:
    layers = steps_known.layers(key, qmodel)
    if not layers:
        steps.nothing_to_follow(qmodel)
        return
    choice, trace = steps.controls(layers, qmodel, key)
    steps.jumps(choice, trace, qmodel, key)
    known = steps_known.answers(key, choice.layer, choice.sample, choice.index, qmodel)
    steps_told.headline(known)
    steps_told.tell(known)
    steps.others(qmodel, layers)


bench()
