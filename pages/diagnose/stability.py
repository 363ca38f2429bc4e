"""Stability: calibrations drawn again and again, and whether the result or only the scales follow them."""

import streamlit as st

from qlab.ui import cache, change, errors, frame, stability, stability_tabs, state, widgets

EXPLAIN = """
**What is done.** Calibrations of growing size are drawn from the calibration data, with replacement and in any order
(the bootstrap). Each gives its own scales and a network of its own, which is measured on the same evaluation samples.

**Reading the picture.** Every mark is one drawn calibration. The dashed line is the calibration with all samples, the
band how far its figure may be off by chance alone. A size is *unsteady* where one of its draws is worse than the whole
calibration beyond chance; the samples that happened to be taken then decide what the network is worth.

**Trying.** Scales may move a lot without any harm. Where the result moves too, more samples help, or an observer such
as `percentile` or `mse`, which does not hang on the one largest value.
"""


@st.fragment
def bench() -> None:
    change.tell_the_sidebar()
    stability.begin()
    frame.header(
        "Does the result hang on the calibration sample?",
        "Calibrations are drawn again and again from the data: the picture shows what becomes of the result, and from "
        "how many samples on it no longer matters which they are.",
        explain=EXPLAIN,
        terms=("calibration", "observer", "scale", "interval", "paired comparison", "simulated"),
        **stability.share_params(),
    )
    with errors.box():
        change.bar("stab")
        found = stability.found(cache.model(state.model_ref()))
        if found is not None:
            look(found)


def look(found) -> None:
    stability.verdict(found)
    stability.advice(found)
    stability.picture(found)
    places = {
        "Which scales move?": lambda: stability_tabs.scales(found),
        "Table": lambda: stability_tabs.table(found),
    }
    widgets.tabs(places, key="stab_tabs")


bench()
