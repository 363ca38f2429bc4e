"""Runtime: what ONNX Runtime executed, op by op, how fast, and whether it is what was simulated."""

from functools import partial

import streamlit as st

from qlab.ui import cache, errors, frame, runtime, runtime_tabs, state, widgets

EXPLAIN = """
**Reading the page.** The network was written as an ONNX file, and ONNX Runtime ran it on this machine. The runtime
rewrites a file before it runs it; the picture shows the graph it really executed, with the time of each op. Green ops
compute on integers, grey ones in float, red-orange ones convert between the two.

**Words.** An *integer kernel* is the routine that multiplies integers instead of floats. A *conversion* turns float
values into integers or back. A *step* is the distance of two neighbouring integers of a tensor. *Simulated* figures
come from float arithmetic with rounding, *integer* figures from the kernels themselves.

**Trying.** Another batch size or number of threads is measured at once. Change the config on Experiment and come back:
with `dynamic` the products are on integers and everything else is float; `int4_weight_only` multiplies nothing on
integers.
"""


@st.fragment
def bench() -> None:
    runtime.begin()
    frame.header(
        "What really ran on integers?",
        "The graph ONNX Runtime executed on this machine, op by op with its times, and how far its numbers are from "
        "the simulated ones. Change the batch or the config and see what moves.",
        explain=EXPLAIN,
        terms=("simulated", "static", "dynamic", "weight-only", "scale", "ledger", "agreement", "interval"),
        **runtime.share_params(),
    )
    with errors.box():
        model = cache.model(state.model_ref())
        bar, job = st.container(), st.container()
        with job:
            report = runtime.measured(model)
        with bar:
            runtime.controls(model, report)
        if report is not None:
            look(report)


def look(report) -> None:
    if report.times is None:
        runtime_tabs.blocked(report)
        return
    runtime.headline(report)
    runtime.findings(report)
    runtime_tabs.picture(report)
    tabs = {
        "Op by op": runtime_tabs.ops,
        "Boundaries": runtime_tabs.crossings,
        "Simulated against integer": runtime_tabs.compared,
        "Accumulator headroom": runtime_tabs.room,
        "Latency": runtime_tabs.latency,
        "Size": runtime_tabs.size,
        "This machine": runtime_tabs.machine,
    }
    widgets.tabs({title: partial(draw, report) for title, draw in tabs.items()}, key="runtime_tabs")


bench()
