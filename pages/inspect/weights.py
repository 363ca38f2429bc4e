"""Weights: the integers of a quantized layer, their scales, their error and how they are packed into bytes."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qlab.ui import (
    cache,
    change,
    distributions,
    errors,
    frame,
    state,
    torch_converted,
    weight_edits,
    weights,
    weights_bytes,
    weights_known,
    weights_source,
    weights_tabs,
    widgets,
)

EXPLAIN = """
**Reading the picture.** Each cell is one integer of the weight as it is stored. A row is an output channel; along it,
flattened, stands what lies behind that channel: input channels and the places of the kernel. What stands for exactly 0
has the colour of the page, codes below it are blue, codes above it orange.

**From integer to weight.** A code stands for (code − zero point) × scale. Point at a cell to see both, and the float
weight it was rounded from.

**Trying.** Choose a preset with fewer bits on Experiment and come back: the levels get fewer, the error grows, and two
codes or more share a byte.
"""


@st.fragment
def bench() -> None:
    change.tell_the_sidebar()
    frame.header(
        "What are the integers?",
        "Every integer of a quantized weight, what it stands for and where it is stored. Choose a layer and point at a "
        "cell.",
        explain=EXPLAIN,
        terms=("scale", "zero point", "grid", "level", "per channel", "per group", "packing", "nibble", "SQNR"),
        **weights.share_params(),
    )
    change.bar("weights")
    with errors.box():
        distributions.one_thread()
        model = cache.model(state.model_ref())
        weights.begin(model.content_hash)
        row = st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="weights_controls")
        with row:
            weights.origin(model)
        shown = weights_source.shown()
        if shown is not None and not shown.layer:
            weights.nothing(shown)
        elif shown is not None:
            look(shown, row)


def look(shown: weights_source.Shown, row: DeltaGenerator) -> None:
    of = weights_known.known(shown)
    with row:
        found = weights.controls(shown, of)
    weights.picture(shown, of, found)
    weights.figures(shown, of)
    widgets.tabs(
        {
            "Table": lambda: weights_tabs.table(of, found),
            "Scales": lambda: weights_tabs.scales(of),
            "Against float": lambda: weights_tabs.against_float(shown, of),
            "Levels": lambda: weights_tabs.levels(of),
            "Packed bytes": lambda: weights_bytes.draw(shown, of, found),
            "Edit a number": lambda: weight_edits.draw(shown),
            "In PyTorch": torch_converted.draw,
        },
        key="weights_tabs",
    )
    weights.others(shown)


bench()
