"""Error propagation: what each unit of the network adds to the error, and what has arrived there from all before."""

import streamlit as st

from qlab.ui import cache, change, errors, findings, frame, propagation, state, widgets

EXPLAIN = """
**Reading the picture.** Every point is a tensor, in the order of the network. The dashed line is what its own unit does
to exact inputs: rounding its weight, its bias and its output. The solid line is what has arrived there in the whole
quantized network. Where the dashed line falls, error is made; where only the solid one is low, it comes from before.

**Units.** SQNR and cosine compare all values of a tensor. The largest error is in the tensor's own unit, so it cannot
be compared between tensors. The mean shift counts in standard deviations (σ) of the float values.

**Trying.** Click the lowest hollow point and look at its values: a cut range piles them up at its end, a coarse grid
leaves a comb. Change that layer on Distributions or Findings and come back.
"""


@st.fragment
def bench() -> None:
    change.tell_the_sidebar()
    propagation.begin()
    frame.header(
        "Where is the error made, and where does it show?",
        "Two figures for every tensor: the error its own unit makes of exact inputs, and the error that has arrived "
        "in the quantized network. Click a point to see its values.",
        explain=EXPLAIN,
        terms=("SQNR", "simulated", "clipping", "grid", "evaluation"),
        **propagation.share_params(),
    )
    with errors.box():
        change.bar("prop")
        found = findings.diagnosis(cache.model(state.model_ref()), key="prop")
        if found is not None and found.propagation is None:
            propagation.nothing(found)
        elif found is not None:
            look(found.propagation)


def look(found) -> None:
    row = propagation.chosen(found)
    propagation.controls(found, row)
    propagation.picture(found, row)
    places = {"This tensor": lambda: propagation.one(found, row), "Table": lambda: propagation.table(found, row)}
    widgets.tabs(places, key=propagation.TABS)


bench()
