"""What goes wrong with converted weights in PyTorch, tried while one looks: the code that ran and what came out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import MINUS, three_digits
from qlab.ui import errors, say, weights_source

if TYPE_CHECKING:
    from torch import Tensor

    from qlab.analysis.torch_converted import Attempt, Stored, TorchConverted, Unconverted
    from qlab.ui.weights_source import Shown

MOST_WEIGHTS = 300_000  # of the layer that is tried; converting a larger one eight times would take long
OWN_SHAPE = (8, 16)
TITLES = {
    "float weight": "Writing to the float weight, after convert",
    "weight attribute": "Writing to .weight of the converted layer",
    "unpacked": "Writing into what .weight() gives",
    "int_repr": "Writing into the integers themselves",
    "state_dict": "Writing into the state dict",
    "load_state_dict": "Writing into the state dict and loading it again",
    "set_weight_bias": "Packing the weight anew",
}
HOLDS = {
    "integers": "the integers of the weight", "float weight": "a float weight", "grid": "grid of the activations",
    "other": "",
}  # fmt: skip


def draw() -> None:
    """Tries a layer with the weight that Weights shows, or with a small one of its own, in PyTorch and in qlab."""
    shown = weights_source.shown()
    if shown is None:  # its job is drawn instead
        return
    weight = weight_of(shown)
    try:
        found = _tried(json.dumps(shown.key) if weight is not None else "", shown.layer, weight)
    except QLabError as refused:
        errors.show(refused)
        return
    which = (
        f"with the float weight of {errors.escape(shown.layer)}"
        if weight is not None
        else f"of {OWN_SHAPE[0]} × {OWN_SHAPE[1]} drawn weights, because {errors.escape(shown.layer)} is not a linear "
        f"layer or plain convolution of at most {MOST_WEIGHTS:,} weights"
    )
    say.markdown(
        f"A `torch.nn.{found.layer}` {which} was quantized just now by `torch.ao.quantization` of torch "
        f"{found.version} (engine {found.engine}). Each block is the code that ran; under it stands what came out."
    )
    st.subheader("What does the converted module hold?", anchor=False)
    _pair(found.code, holds(found))
    _stored(found.stored)
    st.subheader("Where are the integers?", anchor=False)
    _pair(found.integers_code, integers(found))
    st.subheader("Which writes reach it?", anchor=False)
    _summary(found)
    for attempt in found.attempts:
        with st.container(border=True):
            say.markdown(f"**{TITLES[attempt.name]}**")
            _pair(attempt.code, outcome(attempt, found))
    st.subheader("And in qlab?", anchor=False)
    _pair(found.in_qlab.code, in_qlab(found.in_qlab))
    st.subheader("Why would state_dict() show the weights from before?", anchor=False)
    _pair(found.alone.code, alone(found.alone))


def weight_of(shown: Shown) -> Tensor | None:
    """The float weight of the layer that is shown, where torch has a plain layer for it and it is not too large."""
    from qlab.graph.lower import attribute
    from qlab.graph.ops import op_type

    point = next((point for point in shown.qmodel.placement.weights if point.layer == shown.layer), None)
    if point is None or not shown.qmodel.has_float_original:
        return None
    weight = attribute(shown.qmodel.reference.graph_module, point.constant)
    kind = {"linear": 2, "conv2d": 4}.get(op_type(point.node))
    if weight is None or weight.ndim != kind or weight.numel() > MOST_WEIGHTS:
        return None
    return weight.detach().float()


@st.cache_resource(max_entries=4, show_spinner="Quantizing the layer in PyTorch and trying to change it")
def _tried(key: str, layer: str, _weight: Tensor | None) -> TorchConverted:
    import torch

    from qlab.analysis.torch_converted import torch_converted

    if _weight is None:
        _weight = torch.randn(OWN_SHAPE, generator=torch.Generator().manual_seed(0))
    return torch_converted(_weight)


def _pair(code: str, words: str) -> None:
    """What ran, and under it what came out."""
    st.code(code, language="python", wrap_lines=True)
    say.markdown(words)


def _stored(stored: tuple[Stored, ...]) -> None:
    import pandas as pd

    st.dataframe(
        pd.DataFrame(
            {
                "Key of state_dict()": [one.key for one in stored],
                "Value": [one.kind for one in stored],
                "Holds": [HOLDS[one.holds] for one in stored],
            }
        ),
        key="torch_stored", hide_index=True, width="stretch",
    )  # fmt: skip


def _summary(found: TorchConverted) -> None:
    import pandas as pd

    attempts = (*found.attempts, found.in_qlab)
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(
            {
                "Way": [*(TITLES[one.name] for one in found.attempts), "qlab: writing to codes"],
                "Reaches it": [one.works for one in attempts],
                "Output": [one.output for one in attempts],
                "In the module": [one.held for one in attempts],
                "State dict": ["changed" if one.stored else "the same" for one in attempts],
                "Written": [one.written for one in attempts],
            }
        ).astype({"Written": "Int64"}),
        key="torch_ways", hide_index=True, width="stretch",
        column_config={
            "Reaches it": st.column_config.CheckboxColumn(
                width="small", help="Whether integers and state dict of the module changed."
            ),
            "Written": number(
                width="small", help="Numbers that differ in the tensor that was written to; empty where it raised."
            ),
            "In the module": number(
                width="small", help="Integers of the weight that differ when the module is asked for them anew."
            ),
            "State dict": st.column_config.TextColumn(width="small"),
            "Output": number(
                "Output moves by", width="small", format="%.4g", help="Largest difference on the same inputs."
            ),
        },
    )  # fmt: skip


# --- from facts to sentences ------------------------------------------------------------------------------------------


def holds(found: TorchConverted) -> str:
    """What is in the state dict, and what is not."""
    floats = [one.key for one in found.stored if one.holds == "float weight"]
    integers = [one for one in found.stored if one.holds == "integers"]
    lines = [f"The layer has become a `{found.module}`."]
    if floats:
        lines.append(f"Its state dict holds a float weight under `{floats[0]}`.")
    else:
        lines.append("**No float weight is left** in its state dict.")
    for one in integers:
        if one.kind.startswith("tuple"):
            lines.append(
                f"The weight is **packed**: `{one.key}` is a {one.kind}. There is no tensor under the name `weight`."
            )
        else:
            lines.append(
                f"`{one.key}` is a {one.kind}: a quantized tensor, unpacked when the state dict was asked for."
            )
    if not integers:
        lines.append("No entry holds its integers.")
    return " ".join(lines)


def integers(found: TorchConverted) -> str:
    """How the integers are read, and whether they are qlab's."""
    equal = (
        f"All {found.count:,} are the integers that qlab chooses"
        if found.same_as_qlab == found.count
        else f"{found.same_as_qlab:,} of {found.count:,} are the integers that qlab chooses"
    )
    return (
        f"`.weight` is a {found.weight_is}, to be called. It gives integers from {_number(found.low)} to "
        f"{_number(found.high)}; the first is **{_number(found.first)}**. {equal} for this weight by minimum and "
        "maximum per channel."
    )


def outcome(attempt: Attempt, found: TorchConverted) -> str:
    """What an attempt came to: the facts, and what follows from them."""
    if attempt.error is not None:
        return f"It raised `{attempt.error}`. {_unmoved(attempt)}"
    written = f"{attempt.written:,} number{'s' * (attempt.written != 1)} of the tensor that was written to changed."
    if attempt.works:
        return (
            f"**It reaches the module.** {written} {attempt.held:,} of the module's integers differ, the state dict "
            f"differs, and the output moves by up to **{three_digits(attempt.output)}** (its largest value is "
            f"{three_digits(found.output)})."
        )
    what = "a tensor that the converted module does not read" if attempt.name == "float weight" else "a copy"
    why = f" What was written to is {what}." if attempt.written and not attempt.held and not attempt.stored else ""
    return f"{written} {_unmoved(attempt)}{why}"


def _unmoved(attempt: Attempt) -> str:
    stored = "differs" if attempt.stored else "is the same"
    held = (
        f"{attempt.held:,} of the module's integers differ" if attempt.held else "Of the module's integers none differs"
    )
    output = (
        "the difference of the output is **0**"
        if attempt.output == 0
        else f"the output moves by up to **{three_digits(attempt.output)}**"
    )
    return f"{held}, the state dict {stored}, and {output}."


def in_qlab(attempt: Attempt) -> str:
    """The same number written in qlab."""
    if attempt.works:
        return (
            "The codes are a plain buffer and the only copy of the weight. "
            f"{attempt.written:,} number was written, {attempt.held:,} differs in the model, `state_dict()` differs, "
            f"and the output moves by up to **{three_digits(attempt.output)}**."
        )
    return f"The write did not reach the model: {_unmoved(attempt)}"


def alone(found: Unconverted) -> str:
    """What becomes of a layer that is converted by itself, which is what the question is usually asked about."""
    kind = found.before.rsplit(".", 1)[-1]
    if found.before != found.after:
        return f"Handed over by itself, the layer became a `{found.after}`: here convert does replace it."
    text = (
        f"A layer handed over **by itself** is still a `{found.after}`: `convert` replaces the children of a module, "
        "and a single layer has none to replace. It was never quantized"
    )
    if found.float_weight:
        text += (
            f", so its state dict ({', '.join(f'`{key}`' for key in found.keys)}) holds the float weight from before, "
            "to the last bit"
        )
    text += "."
    if found.output:
        moved = three_digits(found.output)
        text += f" Writing to that weight moves the output by up to **{moved}**, as in any float layer."
    return f"{text} Put the {kind} into a module, with stubs around it, and it becomes what the first block shows."


def _number(value: int) -> str:
    return f"{value:,}".replace("-", MINUS)
