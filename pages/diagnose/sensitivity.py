"""Sensitivity: which layer costs how much, and what keeping the worst out of the config brings."""

import streamlit as st

from qlab.ui import cache, change, errors, frame, keep_worst, sensitivity, sensitivity_layer, state, widgets

EXPLAIN = """
**Reading the picture.** One bar for each layer, the guiltiest on top. With *only this*, one layer is quantized and all
others are float: the bar goes from float to what that layer leaves of it. With *all but this*, one layer is float and
all others are quantized: the bar goes from all quantized to what sparing that layer brings.

**Grey** bars differ from the base by no more than chance would make them differ, on the same samples. **Light** bars
with a rim are estimated from the first samples, as many as it takes for their order to hold; the worst are then
measured on all. The grey band is the 95 % interval of the base's accuracy. Weights are solid, activations hatched
where both are shown.

**Trying.** Press both *weights* and *activations* to see which of the two it is. Click a bar and keep its layer float,
or open *Keep the worst* to see how many layers it takes, and what that costs in size. All figures are simulated.
"""


@st.fragment
def bench() -> None:
    change.tell_the_sidebar()
    sensitivity.begin()
    frame.header(
        "Which layer is guilty?",
        "The network is measured once for each layer with that layer alone quantized, or alone left float. Click the "
        "worst one and spare it.",
        explain=EXPLAIN,
        terms=("SQNR", "paired comparison", "interval", "agreement", "simulated", "weight-only", "dynamic"),
        **sensitivity.share_params(),
    )
    with errors.box():
        model = cache.model(state.model_ref())
        sensitivity.controls()
        change.bar("sens")
        found = sensitivity.measured(model)
        if found is not None:
            look(model, found)


def look(model, found) -> None:
    sensitivity.headline(found)
    sensitivity_layer.details(found)
    sensitivity.picture(found)
    places = {
        "Table": lambda: sensitivity_layer.table(found),
        "Keep the worst": lambda: keep_worst.tab(model, found),
    }
    widgets.tabs(places, key="sens_tabs")


bench()
