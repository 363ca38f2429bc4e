"""Lesson 13: a quantized weight was changed and state_dict() did not show it; what happens, and what to do instead."""

import pandas as pd
import streamlit as st

from qlab.analysis.torch_converted import Unconverted
from qlab.lessons import state_dict
from qlab.metrics import COMPUTED, MINUS, three_digits
from qlab.plots.lessons.state_dict import corners, outputs
from qlab.plots.weight_edits import change_by_channel
from qlab.ui import lesson, torch_converted, widgets

EXPLAIN = """
After `convert`, PyTorch keeps a quantized weight *packed*: in a form its integer kernels read, not as a tensor. What
`.weight()` or `state_dict()` hand out is unpacked for you at that moment. It is a copy, and writing to a copy changes
nothing behind it.
"""
KINDS = {"Linear": "Linear", "Conv2d": "Conv2d"}
HOLDS = {"new": "the new numbers", "old": "the old numbers", "error": "an error is raised"}
CHANGED = {"none": "none", "one": "one", "more": "more than one"}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "Why did state_dict() not change?",
        "I changed the quantized weights, and state_dict() shows the old ones. PyTorch has quantized a layer just now: "
        "choose a way to write to its weight, say what state_dict() will hold, and see.",
        explain=EXPLAIN,
        terms=("state_dict", "packing", "int8"),
    )
    page.part(in_pytorch)
    page.part(in_the_lab)
    page.yours(
        "inspect", "weights", "Weights",
        "The same tried on a layer of your own network, and the integers of every weight.",
        before=lambda: st.session_state.update({"weights_tabs": "In PyTorch"}),
    )  # fmt: skip


def in_pytorch(page: lesson.Lesson) -> None:
    with page.controls():
        kind = page.choice("kind", "Layer", KINDS, "Linear", help="The two kinds store their weight in different ways.")
        way = page.select("way", "Write to it by", _ways(), "weight attribute", width=400,
                          help="The line of code that is run on a freshly converted layer.")  # fmt: skip
    with st.spinner("Quantizing two layers in PyTorch and trying every way to write to them"):
        found = {name: state_dict.tried(name) for name in KINDS}[kind]
    write = found.writes[way]
    page.text(
        f"`converted` is a small network around one {kind} with the trained weight of `{state_dict.LAYERS[kind]}` of "
        f"{state_dict.NETWORK}, after prepare and convert (torch {found.facts.version})."
    )
    st.code(write.attempt.code, language="python", wrap_lines=True)
    picture = st.container()
    guess = page.predict("After these lines, what does `converted.state_dict()` hold?", HOLDS, name=f"{way}_guess")
    with picture:
        page.chart(corners(write, widgets.dark(), told=guess.open), "corners")
    if guess.open:
        guess.told(write.outcome, torch_converted.outcome(write.attempt, found.facts))
        what_came(page, found, write)
    page.section("Which ways reach it?")
    if page.toggle("all", "Show all ways", help="Lists what each of the ways came to; it gives their answers away."):
        every_way(page, found)


def _ways() -> dict[str, str]:
    return dict(torch_converted.TITLES)


def what_came(page: lesson.Lesson, found: state_dict.Tried, write: state_dict.Write) -> None:
    attempt = write.attempt
    page.chart(outputs(write.output_before, write.output_after, widgets.dark()), "outputs")
    widgets.figures(
        [
            ("Changed in what you wrote to", "–" if attempt.written is None else f"{attempt.written:,}", None,
             "Numbers that differ afterwards in that tensor."),
            ("Changed in the layer", f"{attempt.held:,}", f"of {found.facts.count:,} integers",
             "Asked from the layer anew."),
            ("state_dict()", "changed" if attempt.stored else "the same", None, "Asked for anew, all of its entries."),
            ("Output moves by", three_digits(attempt.output), "up to, on the same inputs",
             f"Largest difference; the largest output is {three_digits(found.facts.output)}."),
        ]
    )  # fmt: skip
    page.notice(
        f"The layer and state_dict() agree: {'both changed' if attempt.stored else 'neither changed'}. One can read "
        "that state_dict() keeps the weights from before quantization. "
        f"{torch_converted.holds(found.facts)}"
    )


def every_way(page: lesson.Lesson, found: state_dict.Tried) -> None:
    writes = found.writes
    st.table(
        pd.DataFrame(
            {
                "Way": [torch_converted.TITLES[name] for name in writes],
                "state_dict() then holds": [HOLDS[write.outcome] for write in writes.values()],
                "Output moves by": [three_digits(write.attempt.output) for write in writes.values()],
            }
        ).set_index("Way")
    )
    reach = [torch_converted.TITLES[name] for name, write in writes.items() if write.attempt.works]
    page.text(
        f"**{len(reach)} of {len(writes)}** reach the layer: {' and '.join(reach).lower()}. Both hand a whole weight "
        "back to the layer, which packs it anew."
    )
    page.text(f"**And a layer that is converted by itself?** {by_itself(found.facts.alone)}")


def by_itself(alone: Unconverted) -> str:
    """Why state_dict() may show the float weights after all."""
    if alone.before != alone.after:
        return f"It becomes a `{alone.after}`: this torch replaces it."
    text = f"It is still a `{alone.after}`: convert replaces the children of a module, and a single layer has none. "
    if alone.float_weight:
        text += (
            "It was never quantized, so its state_dict() does show the float weight from before, to the last bit, and "
            f"writing to `.weight` works: the output moves by {three_digits(alone.output)}."
        )
    return text


def in_the_lab(page: lesson.Lesson) -> None:
    page.section("The same in the lab: an Edit")
    channels, inputs = state_dict.shape()
    page.text(
        f"Here the codes are a plain tensor and the only copy of the weight. Write one code of `{state_dict.EDITED}` "
        f"of {state_dict.NETWORK}, a layer of {channels} outputs."
    )
    with page.controls("edit"):
        channel = page.slider("channel", "Output channel", 0, channels - 1, 3, width=190,
                              help="The row of the weight: which output it belongs to.")  # fmt: skip
        position = page.slider("position", "Input", 0, inputs - 1, 7, width=190,
                               help="The column of the weight: which input it is multiplied by.")  # fmt: skip
        code = page.slider("code", "New code", -128, 127, -100, width=260,
                           help="The whole number that is written there.")  # fmt: skip
    st.code(
        f'edit = qlab.Edit("{state_dict.EDITED}", "code", ({channel}, {position}), {code})\n'
        "undo = qlab.apply_edits(qmodel, [edit])",
        language="python",
        wrap_lines=True,
    )
    guess = page.predict(
        f"How many of the {channels} outputs of the layer change?", CHANGED, name="edit_guess"
    )  # fmt: skip
    if not guess.open:
        return
    found = state_dict.edited(channel, position, code)
    moved = len(found.effect.changed_channels)
    guess.told(
        "none" if not moved else "one" if moved == 1 else "more",
        f"{moved} of {channels} {'differs' if moved == 1 else 'differ'} on {found.effect.samples:,} images.",
    )
    page.chart(change_by_channel(found.effect, widgets.dark()), "edited")
    widgets.figures(
        [
            ("state_dict() before", _code(found.before), f"{found.key}", f"At [{channel}, {position}]."),
            ("state_dict() after", _code(found.after), "the edit", f"At [{channel}, {position}]."),
            ("After undo", _code(found.undone), "apply_edits(qmodel, undo)", "Undoing restores every bit."),
            (f"Other answers, {COMPUTED['simulated']}", f"{found.effect.answered:,}",
             f"of {found.effect.predicted:,} images", "Images on which the network now names another class."),
        ]
    )  # fmt: skip


def _code(code: int) -> str:
    return str(code).replace("-", MINUS)


lesson.show("state_dict", draw)
