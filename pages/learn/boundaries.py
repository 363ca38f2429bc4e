"""Lesson 9: a network of which only some layers are quantized, and the conversions that this brings."""

from functools import partial

import streamlit as st

from qlab.lessons import boundaries
from qlab.metrics import duration, percent
from qlab.plots.lessons.boundaries import chain, speeds
from qlab.ui import cache, change, errors, lesson, state, widgets

EXPLAIN = """
A layer on integers reads codes and gives codes; a layer in float reads and gives floats. Where one follows the other,
values are converted: *QuantizeLinear* turns floats into codes, *DequantizeLinear* codes into floats. Each is one more
pass over the values. The input and the output of this network are float.
"""
MOST = 6
COUNTS = {"0": "none", "2": "two", "4": "four", "6": "six or more"}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "What does it cost to quantize half a network?",
        "Choose which layers compute on integers. Guess how often values have to be converted, and see what ONNX "
        "Runtime executed and whether it was faster than float.",
        explain=EXPLAIN,
        terms=("boundary", "integer kernel", "static", "ledger"),
    )
    with st.spinner("Reading the network"):
        layers = boundaries.layers()
    with page.controls("patterns"):
        for name, pattern in boundaries.patterns().items():
            st.button(
                name.capitalize(), key=page.key(f"pattern_{name.replace(' ', '_')}"),
                on_click=partial(choose, page, pattern), help=f"Quantizes {name} of the layers below.",
            )  # fmt: skip
    with page.controls():
        start = boundaries.patterns()["every second"]
        chosen = tuple(
            page.toggle(f"layer{i}", layer, start[i], help="On: this layer computes on integers. Off: it stays float.")
            for i, layer in enumerate(layers)
        )
        defaults = page.toggle(
            "defaults", "runtime's defaults",
            help="On: the file is opened as anyone would. Off: the runtime is told to compute what the config says.",
        )  # fmt: skip
    picture = st.empty()
    guess = page.predict(
        f"{sum(chosen)} of the {len(layers)} layers are to be quantized. How many conversions between integers and "
        "float does the runtime execute?", COUNTS,
    )  # fmt: skip
    if guess.open:
        answer(page, layers, chosen, defaults, picture, guess)
    else:
        with picture:
            page.chart(chain(layers, chosen, None, widgets.dark()), "chain")
        with st.spinner("Writing the network for ONNX Runtime"):
            boundaries.ran(chosen, defaults)  # seconds the first time, while the question is read
    page.yours(
        "inspect", "runtime", "Runtime",
        "The config becomes one that keeps every second layer with weights float; the tab Boundaries says where "
        "values are converted, and which op asks for it.",
        before=every_second,
    )  # fmt: skip


def choose(page: lesson.Lesson, pattern: boundaries.Chosen) -> None:
    for i, on in enumerate(pattern):
        page.set(f"layer{i}", on)


def answer(page: lesson.Lesson, layers, chosen, defaults: bool, picture, guess: lesson.Guess) -> None:
    with st.spinner("Writing the network for ONNX Runtime and running it"):
        found = boundaries.ran(chosen, defaults)
    with picture:
        page.chart(chain(layers, chosen, found, widgets.dark()), "chain")
    count = len(found.crossings)
    guess.told(
        str(min(count + count % 2, MOST)),
        f"The runtime executed {count}: the side changes {found.changes} times on the way from the input to the output."
        + by_itself(found),
    )
    lines = [
        f"- `{c.op.op}` ({duration(c.op.seconds)}): {errors.escape(c.cause)}" for _, c in found.crossed()
    ]  # fmt: skip
    st.markdown("\n".join(lines) if lines else "Nothing is converted: all layers are float.")
    page.section("And is it faster than float?")
    attempt = page.attempt
    with st.spinner("Timing patterns beside float, turn by turn"):
        patterns, own = boundaries.timed_patterns(attempt, defaults), boundaries.timed(chosen, attempt, defaults)
    conversions = {name: len(boundaries.ran(p, defaults).crossings) for name, p in boundaries.patterns().items()}
    page.chart(speeds(own, patterns, conversions, count, widgets.dark()), "speeds")
    page.again(
        f"Calls with {boundaries.BATCH} samples on {boundaries.THREADS} thread, each beside the float network in the "
        f"same turns ({own.turns} for your choice). Grey: noise. The pattern “none” is the float network again, so "
        "that one sees what noise looks like."
    )
    widgets.figures(
        [
            ("Speed of your choice", own.written, own.outcome,
             "Time of the float network over that of your choice, turn by turn: median and quartiles."),
            ("Conversions", str(count), f"{percent(found.share)} of the time of all ops",
             "What the runtime executed, those at input and output among them."),
            ("Layers on integers", f"{len(found.integer)} of {len(layers)}", f"{sum(chosen)} were asked for",
             "Convolutions and linear layers whose products an integer kernel computed."),
        ]
    )  # fmt: skip
    page.notice(notice(found, own, patterns, conversions))


def by_itself(found: boundaries.Ran) -> str:
    if not found.taken:
        return ""
    named = " and ".join(f"`{name}`" for name in found.taken)
    return (
        f" The config keeps {named} float, but between two layers on integers the runtime quantized the weights by "
        "itself, as it does unless it is told not to. What was asked for and what ran are two things."
    )


def notice(found: boundaries.Ran, own, patterns, conversions) -> str:
    text = (
        f"{len(found.crossings)} conversions take {percent(found.share)} of the time of all ops of this network, and "
        f"moving values into another layout takes {percent(found.moved)}. "
        "Layers next to each other share two of them, so one long stretch on integers needs fewer than many short "
        f"ones: all layers need {conversions['all']}, every second one {conversions['every second']}. "
    )
    whole, half = patterns["all"], patterns["every second"]
    text += f"In these turns all layers on integers ran {whole.written} as fast as float ({whole.outcome}), "
    text += f"every second one {half.written} ({half.outcome}). "
    if own.outcome == "noise":
        return text + "Your choice differs from float by noise only."
    return text + f"Your choice is {own.outcome} than float beyond noise."


def every_second() -> None:
    """Makes the config one that quantizes every second layer of the user's model."""
    model = cache.model(state.model_ref())
    names = frozenset(boundaries.weighted(model)[::2])
    change.to(boundaries.config(model, names), "every second layer float, as in the lesson “Boundaries”")


lesson.show("boundaries", draw)
