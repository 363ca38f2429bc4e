"""Lesson 8: one output number on integers, step by step beside float, and what ONNX Runtime really executed."""

from dataclasses import replace

import pandas as pd
import streamlit as st

from qlab.lessons import integers
from qlab.metrics import COMPUTED, MINUS, percent, three_digits, whole, write
from qlab.plots.lessons.integers import landing
from qlab.plots.runtime import WORDS, op_times
from qlab.plots.steps import accumulator_line, window_heatmaps
from qlab.preset import presets
from qlab.ui import lesson, steps_told, widgets

EXPLAIN = """
An int8 layer multiplies the codes of its input with the codes of its weight and adds the products up in one 32-bit
integer, the *accumulator*. *Requantization* turns that sum into a code of the output: times one constant, rounded,
shifted by the zero point, cut to the codes there are. Here you follow one such number, and then ask the runtime.
"""
CLAIM = "the underlying computation is predominantly (though not exclusively) performed using floating-point arithmetic"
STEPS = ("Read the codes", "Multiply and add up", "Add the bias", "Rescale and round", "Shift and cut")
WHICH = {"largest": "the largest", "middle": "one in the middle", "below": "one far below 0"}
WHERE = {
    "arrived": "the codes that came in",
    "adding": "adding up",
    "rounding": "rounding the sum to a code",
}
NETWORKS = {"conv_digits": "Convolutions", "outlier_mlp": "Linear layers"}
CONFIGS = {"static": "static int8", "dynamic": "dynamic int8", "weight_only": "weight-only int8", "float": "float"}
SHARES = {"none": "none of them", "some": "a part of them", "all": "all of them"}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "Is inference really integer?",
        "Some say that a quantized network still computes in float. Take one output number of a real layer apart, step "
        "by step, then look at the list of what the runtime ran.",
        explain=EXPLAIN,
        terms=("int8", "accumulator", "requantization", "integer kernel", "simulated"),
    )
    page.part(by_hand)
    page.yours(
        "inspect", "steps", "One number, step by step",
        "The same for any output number of any layer, under static int8.",
        mapping=presets["x86"],
    )  # fmt: skip
    page.part(what_ran)
    # The first of these exports the network; whoever reads the first step does not wait for it later.
    with st.spinner("Opening the network in ONNX Runtime, for what comes next"):
        integers.kernel(integers.layers()[1], 0, "largest")
        integers.ran(integers.NETWORK, "static")


def by_hand(page: lesson.Lesson) -> None:
    with page.controls():
        names = integers.layers()
        layer = page.select("layer", "Layer", {name: name for name in names}, names[1], width=150,
                            help="A layer of conv_digits, whose output number is taken apart.")  # fmt: skip
        image = page.slider("image", "Image", 0, integers.IMAGES - 1, 0, width=150,
                            help="Another input image gives other numbers.")  # fmt: skip
        options = WHICH if integers.cuts(layer) else {key: WHICH[key] for key in ("largest", "middle")}
        which = page.choice("number", "Output number", options, "largest",
                            help="Which number of the layer's output is followed.")  # fmt: skip
        step = page.slider("step", "Steps uncovered", 1, len(STEPS), 1, width=170,
                           help="Uncovers one step after another, from the codes to the output.")  # fmt: skip
    one = integers.one_number(layer, image, which)
    above = st.container()
    guess = page.predict("The output is a code, so it is a little off. Where does most of its error come from?", WHERE)
    with above:
        so_far(one, step, with_float=guess.open)
        one_step(page, one, step, (layer, image, which), with_float=guess.open)
    if guess.open:
        where_the_error_is(page, one, guess)


def so_far(one: integers.OneNumber, step: int, *, with_float: bool) -> None:
    """The number after each step so far: the integers, what they stand for, and the float network beside them."""
    s = one.steps
    x = (int(s.inputs.flat[one.largest]) - s.input_zero_point) * s.input_scale
    w = (int(s.weights.flat[one.largest]) - s.weight_zero_point) * s.weight_scale
    total = one.float_sum + one.float_bias
    rows = [
        (f"{s.products.size:,} pairs, the heaviest {s.inputs.flat[one.largest]} and {s.weights.flat[one.largest]}",
         f"{x:.4f} × {w:.4f}", f"{one.float_input:.4f} × {one.float_weight:.4f}"),
        (f"sum of {s.products.size:,} products: {s.accumulator:,}", f"{s.accumulator * one.unit:.4f}",
         f"{one.float_sum:.4f}"),
        (f"with bias: {one.total:,}", f"{one.total * one.unit:.4f}", f"{total:.4f}"),
        (f"{s.scaled:.3f}, rounded {s.rounded:,}", f"{s.rounded * s.output_scale:.4f}", f"{total:.4f}"),
        (f"code {s.code}", f"{s.value:.4f}", f"{one.float_value:.4f}"),
    ][:step]  # fmt: skip
    shown = pd.DataFrame(
        {
            "Step": [f"{i} · {name}" for i, name in enumerate(STEPS[:step], 1)],
            "On integers": [row[0].replace("-", MINUS) for row in rows],
            "That stands for": [row[1].replace("-", MINUS) for row in rows],
        }
    )
    if with_float:
        shown["Float network"] = [row[2].replace("-", MINUS) for row in rows]
    st.table(shown.set_index("Step"))  # which wraps, where a dataframe would hide its last column


def one_step(
    page: lesson.Lesson, one: integers.OneNumber, step: int, key: tuple[str, int, str], *, with_float: bool
) -> None:  # fmt: skip
    """The step that was uncovered last, with its numbers and its picture."""
    s, dark = one.steps, widgets.dark()
    page.section(f"{step} · {STEPS[step - 1]}")
    told = steps_told.lines(s)
    if step == 1:
        channel = s.channels[one.largest // (s.inputs.size // len(s.channels))] if s.places else None
        over = f", input channel {channel} of {len(s.channels)}" if channel is not None else ""
        page.text(
            f"Output number {list(s.index)} of `{s.layer}` reads {s.products.size:,} codes and as many codes of its "
            f"weight. Shown{over}: the codes, and what each pair gives once its zero points are taken off."
        )
        page.chart(window_heatmaps(s, dark, channel), "window")
    elif step in (2, 3):
        if step == 2:
            reach = max(abs(int(s.running.min())), abs(int(s.running.max())))
            page.text(
                f"All {s.products.size:,} products are whole numbers, and so is their sum: the accumulator. Nothing is "
                f"rounded here. At its largest it needs {reach.bit_length() + 1} of its 32 bits."
            )
        else:
            formula(*told[0])
        page.chart(accumulator_line(s if step == 3 else replace(s, bias=None), dark), "accumulator")
    else:
        for line in told[1:3] if step == 4 else told[3:]:
            formula(*line)
        if step == 5:
            ran_as(page, one, key)
        page.chart(landing(one, dark, with_float=with_float), "landing")


def formula(title: str, words: str, numbers: str) -> None:
    with st.container(horizontal=True, gap="medium", vertical_alignment="center"):
        st.markdown(f"**{title}**  \n{words}", width=430)
        st.code(numbers, language=None, wrap_lines=True, width="stretch")


def ran_as(page: lesson.Lesson, one: integers.OneNumber, key: tuple[str, int, str]) -> None:
    with st.spinner("Opening the network in ONNX Runtime"):
        found = integers.kernel(*key)
    same = "the same as by hand" if found.code == found.by_hand else f"by hand it is {found.by_hand}"
    page.text(
        f"Computed {COMPUTED['integer']} of ONNX Runtime: code **{found.code}**, {same}. Simulated: "
        f"{one.steps.simulated_code}. Of all {found.count:,} numbers of this layer and image, {found.differing:,} "
        f"differ between kernel and simulation."
    )


def where_the_error_is(page: lesson.Lesson, one: integers.OneNumber, guess: lesson.Guess) -> None:
    errors = one.errors
    parts = {name: getattr(errors, name) for name in WHERE}
    guess.told(
        errors.largest,
        f"In steps of the output: {three_digits(errors.arrived)} came in with the codes, "
        f"{_tiny(errors.adding)} from adding up, {three_digits(errors.rounding)} from rounding the sum.",
    )
    titles = ("Came in with the codes", "From adding up", "From rounding the sum")
    notes = ("inputs, weights and the layers before", "whole numbers add up exactly", "half a step at most")
    widgets.figures(
        [
            (title, f"{_tiny(part)} steps", note, f"Error from {WHERE[name]}; one step is the output scale.")
            for (name, part), title, note in zip(parts.items(), titles, notes, strict=True)
        ]
    )
    page.notice(
        f"From the {one.steps.products.size:,} codes to the sum {one.total:,} there are only whole numbers. One float "
        f"takes part: the multiplier {three_digits(one.steps.multiplier)} of this output channel, used once, after "
        f"{one.steps.products.size:,} whole-number products."
    )


def what_ran(page: lesson.Lesson) -> None:
    page.section("What did the runtime execute?")
    page.text(
        f"About static int8 in PyTorch one can read: “{CLAIM}”. A runtime can be asked: ONNX Runtime writes down the "
        "graph it really executes, with the types that each op takes and gives."
    )
    with page.controls("ran"):
        network = page.choice("network", "Network", NETWORKS, "conv_digits",
                              help="conv_digits has convolutions, outlier_mlp linear layers alone.")  # fmt: skip
        mode = page.choice("config", "Config", CONFIGS, "static",
                           help="What is quantized, and when activations get their range.")  # fmt: skip
    guess = page.predict(
        "How many of the network's multiplications run on integer kernels under this config?", SHARES, name="ran_guess"
    )
    if not guess.open:
        return
    with st.spinner("Running the network in ONNX Runtime, op by op"):
        found = integers.ran(network, mode)
    share, ran = found.share("integer"), found.executed
    guess.told(
        "all" if share == 1 else "some" if share else "none",
        f"{percent(share)} of the MACs of {network} under {CONFIGS[mode]}, {found.count('integer')} ops; "
        f"{found.count('float')} ops computed in float.",
    )
    widgets.figures(
        [
            ("MACs on integer kernels", percent(share), None, "Multiplications of one sample, layer by layer."),
            ("Time in integer kernels", percent(ran.share("integer")), None, "Of one call, measured here."),
            ("Time in float kernels", percent(ran.share("float")), None, "Of one call, measured here."),
            ("Conversions", str(found.count("convert")), f"{percent(ran.share('convert'))} of the time",
             "Ops that turn float into integers or back."),
            ("One call", write("latency", ran.seconds), f"{found.images} inputs, sum of the ops",
             "Medians of the profiled runs, added up."),
        ]
    )  # fmt: skip
    page.chart(op_times(ran, widgets.dark(), by_layer=False), "ops")
    types(page, found)
    page.notice(verdict(found, CONFIGS[mode]), name="second_notice")
    page.yours(
        "inspect", "runtime", "Runtime", "What your own network runs on integers under static int8, op by op.",
        mapping=presets["x86"],
    )  # fmt: skip


def types(page: lesson.Lesson, found: integers.Ran) -> None:
    with st.expander("What each op takes and gives"):
        ops = found.executed.ops
        st.dataframe(
            pd.DataFrame(
                {
                    "Op": [op.op for op in ops],
                    "Of": [op.layer for op in ops],
                    "Takes": [", ".join(dict.fromkeys(op.reads)) for op in ops],
                    "Gives": [", ".join(op.writes) for op in ops],
                    "Kind": [WORDS[op.kind] for op in ops],
                }
            ),
            key=page.key("types"), hide_index=True, width="stretch",
        )  # fmt: skip
        st.caption(
            "An integer kernel that takes float as well takes its scales: a constant for each tensor or channel."
        )


def verdict(found: integers.Ran, config: str) -> str:
    """Whether the sentence holds for what ran."""
    in_float = found.share("float")
    holds = "holds" if in_float > 0.5 else "does not hold"
    return (
        f"For {config} in ONNX Runtime the sentence **{holds}**: {percent(in_float)} of the multiplications were "
        f"computed in float, {percent(1 - in_float)} on integers. {whole(found.count('convert'))} ops convert between "
        "the two. What kind of quantization it is decides: stored in integers is not the same as computed on integers."
    )


def _tiny(steps: float) -> str:
    """Of a step; what is only the last bits of float64 is nothing."""
    return "0" if steps < 1e-9 else three_digits(steps)


lesson.show("integers", draw)
