"""Start: which network and which data; what they are, and how accurate the network is before anything is quantized."""

import streamlit as st

from qlab.ui import cache, cards, choose, errors, frame, prepared, say, state

frame.header(
    "Which network, on which data?",
    "Pick a sample or bring your own. The lab checks the data against the network and measures how accurate it is in "
    "float: the mark every quantized version is held against.",
    explain="The lab works on a network that is already trained. One part of the data **calibrates**: it passes "
    "through the network once, and every range on the other pages comes from what was seen then. The other part "
    "**evaluates**.",
    terms=("accuracy", "interval", "calibration", "evaluation", "preprocessing", "MACs", "batch norm"),
)

samples, own = st.tabs(["Sample networks", "Your own network or data"], key="start_source")
with samples:
    figures = choose.sample_cards()
with own:
    choose.upload()

st.subheader(choose.title(state.model_ref()), anchor=False)
model = errors.attempt(cache.model, state.model_ref())
data = errors.attempt(cache.dataset, state.data_ref())
with st.container(horizontal=True, vertical_alignment="center", gap="large"):
    mark, sizes = st.container(width=440), st.container()
network, data_side = st.columns(2, gap="large")
if model is not None:
    with sizes, errors.box():
        cards.size_figures(model)
    with network, errors.box():
        choose.about(state.model_ref())
if data is not None:
    with data_side, errors.box():
        cards.data_facts(data)
        cards.examples(data, key="start_examples")
        choose.preprocessing(data)
    with network, errors.box():
        fits = model is not None and cards.checks(choose.findings(model, data))
        cards.classes(data, key="start_classes")
    with mark, errors.box():
        if fits:
            prepared.accuracy(key="start")
        else:
            say.info(
                "The float accuracy is measured once the data fits the network: the checks below say what is amiss."
            )
if model is not None:
    with errors.box():
        cards.layer_table(model, key="start_layers")

# Last, because it reads every sample network: the figures on their cards.
with errors.box():
    choose.fill_figures(figures)
