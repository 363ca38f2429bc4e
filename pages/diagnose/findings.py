"""Findings: what is wrong with the network under the current config, in words and pictures, and what helps."""

import streamlit as st

from qlab.ui import cache, change, errors, findings, frame, state

EXPLAIN = """
**Reading the page.** The lab looks at weights, ranges, data, rules and errors, and lists what is wrong, worst first.
*Costs much* means: with this part alone quantized, the network's output suffers. *Costs little* is worth knowing
and changes hardly anything at these bits.

**Trying.** Pick a line to see the picture. Every button under *What may help* changes the config of the lab, and Undo
brings it back. *Try all* measures every remedy on the evaluation data; choose the ones that helped and apply them.
"""


@st.fragment
def bench() -> None:
    change.tell_the_sidebar()
    frame.header(
        "What is wrong here, and what helps?",
        "Outliers, channels that suffer, wasted and cut ranges, dead channels, shifted means, data that does not fit: "
        "named, shown, and repaired.",
        explain=EXPLAIN,
        terms=("calibration", "clipping", "grid", "per channel", "SQNR", "simulated", "paired comparison"),
        finding=st.session_state.get(findings.PICKED),
    )
    with errors.box():
        change.bar("findings")
        model = cache.model(state.model_ref())
        found = findings.diagnosis(model, key="findings")
        if found is not None:
            look(model, found)


def look(model, found) -> None:
    findings.summary(found)
    fault = findings.table(found)
    if fault is not None:
        findings.details(model, found, fault)
        findings.advice(model, found)


bench()
