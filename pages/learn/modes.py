"""Lesson 6: dynamic, static and weight-only. What each mode computes on integers, and what it costs."""

import streamlit as st

from qlab.lessons import modes
from qlab.metrics import metric, percent, write
from qlab.plots.lessons.modes import MODE_NAMES, costs, kernels
from qlab.preset import presets
from qlab.ui import lesson, widgets

EXPLAIN = """
Weights are known beforehand, so every mode stores them in 8 bits. The modes differ in what they do with activations.

- **Static**: a calibration found the range of each tensor ahead of time. Values can stay integers from layer to layer.
- **Dynamic**: the range is taken from the values of each call. No calibration is needed, and the result of a layer is
  float again.
- **Weight-only**: activations stay float. Codes of weights become float again before they are multiplied.
"""
AMOUNTS = {
    "none": f"next to none (under {100 * modes.NEXT_TO_NONE:.0f} %)",
    "some": "a part of them",
    "all": f"nearly all (over {100 * modes.NEARLY_ALL:.0f} %)",
}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "What does each mode compute on integers?",
        "The same network three times: dynamic, static and weight-only. Choose one, guess how many of its "
        "multiplications run on integers, and see what ONNX Runtime executed.",
        explain=EXPLAIN,
        terms=("dynamic", "static", "weight-only", "calibration", "MACs", "integer kernel"),
    )
    with page.controls():
        network = page.choice("network", "Network", modes.NETWORKS, "lstm_text", help="Shows this sample network.")
        mode = page.choice("mode", "Mode", MODE_NAMES, "dynamic", help="The mode the question and the figures are of.")
    with st.spinner("Reading the network"):
        products = modes.products(network)
    page.text(
        f"Most of the work of a network is multiplying. Below are the {len(products)} layers of this one that "
        "multiply, and three columns for what computed them in each mode."
    )
    picture = st.empty()
    guess = page.predict(
        f"Mode {MODE_NAMES[mode]}: how many of the multiplications of this network run on integers?", AMOUNTS
    )
    if not guess.open:
        with picture:
            page.chart(kernels(products, None, mode, widgets.dark()), "kernels")
        # What takes seconds is done while the question is read.
        with st.spinner("Writing the network for ONNX Runtime and running it in each mode"):
            modes.modes(network)
    else:
        answer(page, network, mode, picture, guess)
    page.yours(
        "inspect", "runtime", "Runtime",
        f"The config becomes {MODE_NAMES[mode]}, and the page shows what of it runs on integers, op by op.",
        mapping=presets[modes.PRESETS[mode]],
    )  # fmt: skip


def answer(page: lesson.Lesson, network: str, mode: str, picture, guess: lesson.Guess) -> None:
    with st.spinner("Writing the network for ONNX Runtime and running it in each mode"):
        found = modes.modes(network)
    own = found.modes[mode]
    with picture:
        page.chart(kernels(found.products, found.modes, mode, widgets.dark()), "kernels")
    guess.told(
        own.amount,
        f"Integer kernels computed {len(own.integer)} of {len(found.products)} layers, {percent(own.share)} of the "
        f"multiplications. {why(found, mode)}",
    )
    page.section("And what does it cost?")
    attempt = page.attempt
    with st.spinner("Timing the modes beside float, turn by turn"):
        timing = modes.timed(network, attempt)
    page.chart(costs(found, timing, widgets.dark()), "costs")
    figures(found, mode, timing)
    page.again(
        f"In ONNX Runtime, as exported: nothing here is simulated. Times are of calls with {timing.batch} samples "
        f"on {timing.threads} thread, {len(timing.seconds['float'])} turns; bars are quartiles."
    )
    page.notice(notice(network, found, timing))


def why(found: modes.Modes, mode: str) -> str:
    """What the ledger says of the float layer that multiplies most; else which kernel computed the largest one."""
    own = found.modes[mode]
    float_layers = [p for p in found.products if p.layer not in own.integer]
    largest = max(float_layers or found.products, key=lambda p: p.macs)
    named = f"`{largest.layer}`, the largest {'of those in float' if float_layers else 'of them'}"
    return f"Of {named}, the ledger says: {own.rows[largest.layer].reason}."


def figures(found: modes.Modes, mode: str, timing) -> None:
    own, fast = found.modes[mode], modes.speed(timing, mode)
    low, median, high = fast.ratio
    widgets.figures(
        [
            ("Mode", MODE_NAMES[mode], f"{'needs a' if own.mapping.needs_calibration else 'no'} calibration",
             "The one chosen above, and whether its ranges have to be found beforehand."),
            ("Size of the file", write("size", own.bytes), f"float {write('size', found.float_bytes)}",
             "Of the ONNX file this mode gives."),
            ("Accuracy", write("accuracy", own.evaluation.accuracy),
             f"{metric('accuracy').delta(own.evaluation.accuracy - found.reference.accuracy)} · "
             + ("beyond chance" if own.paired.significant else "not distinguishable from float"),
             f"On {own.evaluation.n:,} evaluation samples in ONNX Runtime; float has "
             f"{write('accuracy', found.reference.accuracy)}."),
            ("Speed against float", f"{median:.2f} ×", f"[{low:.2f}, {high:.2f}] · {fast.outcome}",
             "Time of the float network over that of this mode, turn by turn; noise where 1 lies in the quartiles."),
            ("Conversions", str(own.conversions), None,
             "Ops that turn float into integers or back, at input and output as well."),
        ]
    )  # fmt: skip


def notice(network: str, found: modes.Modes, timing) -> str:
    shares = {mode: percent(one.share) for mode, one in found.modes.items()}
    text = (
        f"Dynamic computes {shares['dynamic']} of this network's multiplications on integers, static "
        f"{shares['static']}, weight-only {shares['weight_only']}. "
    )
    dynamic, static = found.modes["dynamic"], found.modes["static"]
    if dynamic.amount == "none":
        row = next(row for row in dynamic.rows.values() if row.cause == "dynamic_conv")
        text += f"Dynamic passes over the convolutions: {row.reason}. "
    else:
        text += (
            "Linear and recurrent layers get integer kernels from dynamic without any calibration: one look at what "
            "they read gives its range, and many multiplications follow. "
        )
    text += f"Static needs {static.conversions} conversions between integers and float, dynamic {dynamic.conversions}. "
    best = modes.fastest(timing)
    if best is None:
        return text + "In these turns no mode was faster than float beyond noise."
    others = [MODE_NAMES[other] for other in modes.beaten(timing, best)]
    ahead = f", and ahead of {' and '.join(others)}" if others else "; the others differ from it by noise only"
    return text + f"In these turns {MODE_NAMES[best]} ran {modes.speed(timing, best).written} as fast as float{ahead}."


lesson.show("modes", draw)
