"""Take it with you: the quantized network as files, the experiment as a spec and as scripts."""

import streamlit as st

from qlab.ui import cache, errors, export, export_text, frame, state

EXPLAIN = """
**ONNX** is a format that many runtimes read. The file holds integer weights and the grids of the activations; a runtime
puts integer kernels in their place where it has them. **.safetensors** is a plain container of arrays: this one holds
the quantized model as the lab has it. The **spec** names model, data and config, so that the same run can be repeated.

**The bar** shows where the bytes of the ONNX file go: the weights as integers, what their containers waste, biases,
scales and zero points, what stays float, and the graph itself.
"""

frame.header(
    "How do I take it with me?",
    "The quantized network as files and the experiment as text: all of it works without this app.",
    explain=EXPLAIN,
    terms=("scale", "zero point", "grid", "per channel", "per group", "weight-only", "dynamic"),
)
top, found = st.container(), None
model = errors.attempt(cache.model, state.model_ref())
if model is not None:
    with top, errors.box():
        found = export.files(model)
        if found is not None:
            export.headline(found)
            export.cards(found, model)
    with errors.box():
        st.subheader("As text", anchor=False)
        export_text.draw(model, found is not None)
