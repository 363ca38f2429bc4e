"""Sweep: choose what to vary, run every combination from one calibration, see the best so far."""

import streamlit as st

from qlab.ui import cache, choose, errors, frame, state, sweep_setup, sweep_view

frame.header(
    "Which configurations are worth it?",
    "Choose what to vary and run every combination; the network is calibrated once for all of them.",
    explain="A sweep evaluates many configs of one network on one data set. **Every config becomes a run** of its own, "
    "which Compare puts side by side. What is known from earlier runs is not computed again, and a sweep that was "
    "stopped can be taken up where it was. With **drop what is worse beyond chance**, configs that fall behind the "
    "best are evaluated on a part of the samples only, and say so.",
    terms=("accuracy", "interval", "agreement", "observer", "qscheme", "static", "dynamic", "weight-only", "simulated"),
    sweep=state.sweep_id(),
)  # fmt: skip

setup, found = st.container(border=True, key="sweep_setup"), st.container()
with found, errors.box():
    run = sweep_view.shown()
    if run is not None:
        sweep_view.draw(run)
    sweep_view.earlier(run)
# After the results, because a network may have to be read first.
with setup, errors.box():
    model = errors.attempt(cache.model, state.model_ref())
    if model is not None and not choose.data_fits(model):
        model = None
    sweep_setup.draw(model)
