"""Quantized files: what is in a file that was made here or elsewhere, and how its weights compare with ours."""

from functools import partial

import streamlit as st

from qlab.ui import cache, errors, files, files_known, files_tabs, frame, state, widgets

EXPLAIN = """
**What is done.** The file is read and nothing of it is run: its weights as integers, the scale and zero point of each
tensor, and its operators. Each weight of the network that is open is then looked for in it, by its name, or, where
names did not survive, by the values that fit it best.

**Reading the picture.** A row is one weight. The orange mark is ours under the current config, the diamond that of the
file, both against the same float weight; a red-orange line says that the file keeps less. Marks on top of each other
are the same quality.

**Trying.** Open a file that another tool made of the same network: ONNX Runtime, a TFLite converter, or this lab under
another config. Then change the config until ours is as good.
"""


@st.fragment
def bench() -> None:
    files.begin()
    frame.header(
        "What is inside this quantized file?",
        "Weights, grids and operators of a quantized ONNX or TFLite file or of one of the lab's own, each weight "
        "beside ours. Open a file of yours, or look at an example.",
        explain=EXPLAIN,
        terms=("scale", "zero point", "grid", "level", "per channel", "per group", "SQNR", "dynamic", "weight-only"),
        **files.share_params(),
    )
    with errors.box():
        model = cache.model(state.model_ref())
        source = files.choose()
        mine = files_known.ours(model)
        shown = files.opened(source, model, mine)
        if shown is not None:
            look(*shown, model, mine)


def look(file, known_by, model, mine) -> None:
    found = files_known.matched(file, known_by, model, mine)
    files.headline(file, found, model)
    files.told(file, found, model)
    files.picture(found)
    tabs = {
        "Layer by layer": partial(files_tabs.layers, found),
        "Activations": partial(files_tabs.activations, found),
        "One tensor": partial(files_tabs.one, file, found),
        "All tensors": partial(files_tabs.tensors, file),
        "Operators": partial(files_tabs.operators, file),
        "Not matched": partial(files_tabs.unmatched, found),
    }
    widgets.tabs(tabs, key="files_tabs")


bench()
