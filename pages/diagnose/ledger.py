"""Ledger: what the config did to every op of the network, why, and what would change it."""

import streamlit as st

from qlab.ui import cache, change, errors, frame, ledger, state

EXPLAIN = """
**Reading the page.** Every op of the network has one line. Orange ops are quantized by the config, pale orange ones
share the grid of another op, grey ones compute on floats. What is probably not meant stands above the table: rules that
match nothing, layers with a weight that stayed float, tensors without a range.

**Trying.** Press a button and the config changes for the whole lab; Undo brings the one before back. A click on the
left edge of a line shows what can be done about that op.
"""


@st.fragment
def bench() -> None:
    change.tell_the_sidebar()
    ledger.begin()
    frame.header(
        "Why is my layer not quantized?",
        "One line for every op: quantized, sharing the grid of another op, or float, with the reason. Where something "
        "can be done about it, a button does it.",
        explain=EXPLAIN,
        terms=("ledger", "static", "dynamic", "weight-only", "grid", "per channel", "per group", "MACs"),
        **ledger.share_params(),
    )
    with errors.box():
        known = ledger.found(cache.model(state.model_ref()))
        if known is not None:
            look(known)


def look(known) -> None:
    ledger.figures(known)
    change.bar("ledger")
    ledger.findings(known)
    row = ledger.table(known, ledger.controls(known))
    if row is not None:
        ledger.details(known, row)


bench()
