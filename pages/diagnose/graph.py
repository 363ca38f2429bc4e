"""Graph: the network as boxes and lines, what is on integers, and where values are converted."""

import streamlit as st

from qlab.ui import cache, errors, frame, graph, state, widgets

EXPLAIN = """
**Reading the picture.** Values run from top to bottom. Orange boxes are quantized, pale orange ones share the grid of
another op, grey ones compute on floats. Orange lines carry values on a grid, blue ones floats; a diamond is a
conversion. Thin lines stay inside one kernel: what they carry is never rounded to a grid. A box with ▸ is a module.

**Trying.** Click a module to open it, an op or a line to see its grid. Exclude a layer on Experiment and come back: two
diamonds more. Colour by SQNR shows where the noise is; it says whether a run measured it or the calibration estimates.
"""


@st.fragment
def bench() -> None:
    graph.begin()
    frame.header(
        "How does the network hang together?",
        "Its ops and the tensors between them, under the current config: what runs on integers, and where values are "
        "converted. Click a module to open it, an op or a line to look at it.",
        explain=EXPLAIN,
        terms=("grid", "scale", "zero point", "SQNR", "static", "dynamic", "ledger"),
        **graph.share_params(),
    )
    with errors.box():
        known = graph.found(cache.model(state.model_ref()))
        if known is not None:
            look(known)


def look(known) -> None:
    graph.controls(known)
    widgets.tabs({"Picture": lambda: graph.picture(known), "Table": lambda: graph.table(known)}, key="graph_tabs")


bench()
