"""Lesson 14: a badly quantized network, and the tools of the lab one after another, until the cause is found."""

from dataclasses import replace

import numpy as np
import streamlit as st

from qlab.evaluation import Evaluation
from qlab.lessons import hunt
from qlab.lessons.hunt_told import CULPRITS, told, told_in_the_end, what_it_teaches
from qlab.plots.accuracy import Dot, accuracy_dots
from qlab.plots.channels import channel_figure
from qlab.plots.findings import Attempt, attempt_bars, values_figure
from qlab.plots.propagation import overlay_figure, propagation_figure
from qlab.plots.sensitivity import sensitivity_bars
from qlab.plots.study import channels_of, values_of
from qlab.ui import errors, lesson, widgets

EXPLAIN = """
**The order matters.** First whether anything is broken at all, and whether float works. Then where: which layer, which
tensor. Only then what, and what helps. Who starts with a remedy repairs something that was not broken.

**Every step is a real tool** of the lab, run on this case when its step is opened. All accuracies of quantized networks
here are simulated.
"""
STEPS = {"1": "1 Loss", "2": "2 Float", "3": "3 Layer", "4": "4 Tensor", "5": "5 Fault", "6": "6 Cure"}
QUESTIONS = {
    1: "Is it really broken?", 2: "Does float work on this data?", 3: "Which layer?", 4: "Which tensor, and why?",
    5: "What does the lab find?", 6: "What helps?",
}  # fmt: skip
WAITING = {
    1: "Running float and quantized network …", 2: "Running the float network …",
    3: f"Quantizing each layer alone, on {hunt.SAMPLES} samples …", 4: "Looking at the tensor …",
    5: "Looking at weights, ranges, data and errors …", 6: f"Trying remedies on {hunt.TRIED_SAMPLES} samples …",
}  # fmt: skip
EVIDENCE = 3  # steps that come before the guess
TOOLS = {"sensitivity": "One layer alone", "propagation": "Made here, arrived here"}
VIEWS = {"values": "Values", "channels": "Channels"}
BADGES = {"error": ":red-badge[error]", "warning": ":orange-badge[costs much]", "note": ":gray-badge[costs little]"}
FINDINGS, MOST_LAYERS = 4, 12  # that are shown
LAST, REACHED = "learn.hunt.last", "learn.hunt.reached"


def draw(page: lesson.Lesson) -> None:
    page.header(
        "What went wrong in this network?",
        "Somebody quantized a network and is not happy with it. Choose a case and find the cause, one step at a time, "
        "with the tools that the lab has for your own networks.",
        explain=EXPLAIN,
        terms=("SQNR", "paired comparison", "calibration", "outlier", "clipping", "per channel", "simulated"),
    )
    with page.controls():
        key = page.select(
            "case", "Case", {key: case.title for key, case in hunt.CASES.items()}, "1", width=290,
            help="Another network, in which another thing may be wrong.",
        )  # fmt: skip
        if st.session_state.get(LAST, key) != key:
            page.set("step", "1")
        st.session_state[LAST] = key
        step = int(page.choice("step", "Step", STEPS, "1", help="Opens this step; earlier ones stay in the list."))
    page.text(hunt.CASES[key].story)
    reached = st.session_state.setdefault(REACHED, {})
    reached[key] = max(step, reached.get(key, 1))
    evidence = st.container(border=True, key=page.key("evidence"))
    if step == EVIDENCE:
        picture(page, key, step)
    asked = step >= EVIDENCE
    guess = page.predict("Who did it, by the evidence so far?", CULPRITS, name=f"guess_{key}") if asked else None
    seen = reached[key] if guess is not None and guess.open else min(step, EVIDENCE)
    with evidence, st.spinner(WAITING[step]):
        lines = [f"{number}. *{QUESTIONS[number]}* {told(key, number)}" for number in range(1, seen + 1)]
        page.text("\n".join(["**Evidence so far**", "", *lines]))
    if guess is not None and guess.open:
        if seen >= 5:
            guess.told(hunt.culprit(key), errors.escape(told_in_the_end(key)))
        else:
            guess.place.info("Noted. Step 4 shows the tensor, step 5 says what it is.")
    if step < EVIDENCE or (step > EVIDENCE and guess is not None and guess.open):
        picture(page, key, step)
    if step < len(STEPS) and (guess is None or guess.open):
        st.button(
            f"Next: {QUESTIONS[step + 1]}", key=page.key("next"), type="primary", on_click=page.set,
            args=("step", str(step + 1)), help="Opens the next step and runs its tool.",
        )  # fmt: skip
    if guess is not None and guess.open and step == len(STEPS):
        page.notice(what_it_teaches(key))
    own(page, step)


def picture(page: lesson.Lesson, key: str, step: int) -> None:
    page.section(QUESTIONS[step])
    with st.spinner(WAITING[step]):
        told(key, step)  # computes what is drawn
    (quantized, prepared, which_layer, which_tensor, findings, remedy)[step - 1](page, key)


def quantized(page: lesson.Lesson, key: str) -> None:
    found = hunt.accuracy(key)
    dots = [dot("float", found.float, "float"), dot("quantized, simulated", found.quantized, "quantized")]
    page.chart(accuracy_dots(dots, widgets.dark()), "accuracy")


def prepared(page: lesson.Lesson, key: str) -> None:
    found = hunt.accuracy(key)
    dots = [dot("float, when it was made", found.promised, "float"), dot("float, in this case", found.float, "float")]
    page.chart(accuracy_dots(dots, widgets.dark()), "float")


def dot(label: str, evaluation: Evaluation, kind: str) -> Dot:
    return Dot(label, evaluation.accuracy, *evaluation.accuracy_interval, kind=kind)


def which_layer(page: lesson.Lesson, key: str) -> None:
    tool = page.choice("tool", "Tool", TOOLS, "sensitivity", help="Two views of the same network and config.")
    if tool == "propagation":
        page.chart(propagation_figure(hunt.errors(key), widgets.dark()), "propagation")
        return
    found = hunt.layers(key)
    whole = replace(found, rows=tuple(row for row in found.rows if row.part == "both"))
    page.chart(sensitivity_bars(whole, "sqnr", widgets.dark(), most=MOST_LAYERS), "layers")


def which_tensor(page: lesson.Lesson, key: str) -> None:
    found, dark = hunt.suspect(key), widgets.dark()
    view = page.choice("view", "Show", VIEWS, "values", help="All values of the tensor, or the range of each channel.")
    if view == "channels":
        made = channel_figure(
            channels_of(found.held, found.spec, found.axis), dark=dark, shared=found.ends, ranked=True,
            quantity=f"value of {found.tensor}", revision=found.tensor,
        )  # fmt: skip
    elif found.row is not None:
        made = overlay_figure(found.row, dark)
    else:
        values = values_of(found.held)
        window = values.window(np.array([found.ends]) if found.ends else np.empty((0, 2)), "all")
        made = values_figure(
            values.bins(window), found.ends, np.empty(0), dark, quantity=f"value of {found.tensor}"
        )  # fmt: skip
    page.chart(made, f"tensor_{view}")


def findings(page: lesson.Lesson, key: str) -> None:
    faults = hunt.diagnosis(key).faults
    if not faults:
        page.text("Nothing is wrong that the lab knows of.")
    for fault in faults[:FINDINGS]:
        page.text(f"- {BADGES[fault.severity]} **{fault.title}** {errors.escape(fault.sentence)}")
    if len(faults) > FINDINGS:
        st.caption(f"and {len(faults) - FINDINGS} more, which cost less")


def remedy(page: lesson.Lesson, key: str) -> None:
    found = hunt.cures(key)
    if not found.tried:
        page.text("Nothing was tried: there is no loss to win back.")
        return
    tried = [Attempt(cure.title, cure.accuracy, cure.against.significant) for cure in found.tried]
    page.chart(attempt_bars(tried, found.before, found.float, widgets.dark()), "remedies")


def own(page: lesson.Lesson, step: int) -> None:
    """The same tool on the user's model."""
    section, name, title, text = {
        1: ("lab", "experiment", "Experiment", "Float against quantized, with the paired verdict."),
        2: ("diagnose", "findings", "Findings", "Whether your data is like that of training, where the network tells."),
        3: ("diagnose", "sensitivity", "Sensitivity", "Each layer alone quantized, or alone spared."),
        4: ("lab", "distributions", "Distributions", "Values, channels and grid of each tensor."),
        5: ("diagnose", "findings", "Findings", "Everything that is wrong, worst first."),
        6: ("diagnose", "findings", "Findings", "Remedies as buttons, and all of them tried."),
    }[step]
    page.yours(section, name, title, text)


lesson.show("hunt", draw)
