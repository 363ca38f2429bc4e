"""Experiment: set a configuration, see what it will give, run it, read the result."""

import streamlit as st

from qlab.ui import (
    cache,
    config_editor,
    config_extras,
    errors,
    estimate,
    frame,
    overrides,
    results,
    run_bar,
    run_list,
    state,
)

frame.header(
    "What does this configuration cost?",
    "Change a setting and see at once what it does to size and noise; press Run to measure what it does to accuracy.",
    explain="**Left** is the config every layer gets, **right** what it will give, from the calibration alone. A run "
    "then measures the quantized network on the evaluation data. Its figures are **simulated**: they show what "
    "integers would compute, not how fast.",
    terms=(
        "accuracy", "interval", "agreement", "static", "dynamic", "weight-only", "observer", "qscheme", "per channel",
        "per group", "scale", "zero point", "grid", "SQNR", "simulated", "fake quantization", "ledger",
    ),
    run=state.run_id(),
)  # fmt: skip

presets, bar = st.container(), st.container(border=True, key="exp_bar")
# A row that wraps: on a narrow screen what it gives moves under the settings.
with st.container(horizontal=True, gap="medium"):
    settings = st.container(width=520, border=True, key="exp_settings")
    gives = st.container(border=True, key="exp_gives")
rules, found, earlier = st.container(), st.container(), st.container()

# The settings need no model, so they are there to be read while a large one is still being loaded.
with presets, errors.box():
    config_editor.preset_chips()
with settings, errors.box():
    config_editor.config_card()
    beside = st.container()

run = result = model = None
with bar, errors.box():
    run = run_bar.shown_run()
    result = results.result_of(run) if run is not None and run.status == "done" else None
with gives, errors.box():
    model = cache.model(state.model_ref())
with beside, errors.box():
    config_extras.switches(model)
with bar, errors.box():
    run_bar.draw(run, result, model)
with rules, errors.box():
    st.subheader("Which layers are treated differently?", anchor=False)
    overrides.table(None if model is None else [(layer.name, layer.op) for layer in model.layers])
    config_extras.ranges(model)
with found, errors.box():
    if run is not None:
        results.draw(run, result)
with earlier, errors.box():
    st.subheader("Earlier runs", anchor=False)
    run_list.draw()
# Last, because a new network has to be calibrated first.
with gives, errors.box():
    estimate.panel(model)
