"""Compare: accuracy over cost, the runs as rows with paired verdicts, two of them in detail, layer by layer."""

from functools import partial

import streamlit as st

from qlab.ui import (
    compare,
    compare_chart,
    compare_empty,
    compare_layers,
    compare_pick,
    compare_share,
    compare_table,
    compare_two,
    errors,
    frame,
    widgets,
)

EXPLAIN = """
**The chart** puts accuracy over cost. The stepped line is the Pareto front: no run on it is beaten in both. Bars are
95 % intervals; blue is float. A click on a point picks its run.

**The verdict** compares predictions one by one on the same samples, which tells far smaller differences from chance
than two intervals that overlap. Simulated figures and those of integer kernels carry their names everywhere.
"""


@st.fragment(key=compare.PAGE)
def page() -> None:
    """Everything on the page, so that a change reruns this alone and the link under Share stays right."""
    shown = errors.attempt(compare.load)
    with errors.box():
        frame.header(
            "Which configuration should it be?",
            "Accuracy against size or time; pick a point, choose a baseline, and see whether a difference is more than "
            "chance.",
            explain=EXPLAIN,
            terms=("accuracy", "interval", "Pareto front", "baseline", "paired comparison", "agreement", "SQNR",
                   "simulated"),
            runs=",".join(shown.ids) or None if shown else None,
            baseline=shown.baseline.id if shown and shown.baseline else None,
        )  # fmt: skip
    if shown is not None:
        with errors.box():
            compare.keep_in_address(shown)
            if shown.history.runs:
                compare_pick.draw(shown)
        with errors.box():
            (look if shown.runs else compare_empty.draw)(shown)


def look(shown: compare.Compared) -> None:
    with errors.box():
        compare_chart.draw(shown)
    with errors.box():
        compare_chart.picked(shown)
    parts = {"Table": compare_table, "Two configs": compare_two, "Layers": compare_layers, "Share": compare_share}

    def draw(part) -> None:
        with errors.box():
            part.draw(shown)

    widgets.tabs({title: partial(draw, part) for title, part in parts.items()}, key="compare_tabs")


page()
