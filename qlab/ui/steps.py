"""Which output number is taken apart: layer, sample, and a place in the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlab.ui import cache, errors, say, state, steps_known, widgets
from qlab.ui.converted import Key

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.runtime.steps import Trace

NO_GRIDS = {
    "dynamic": "This config is **dynamic**: the input of a layer gets its grid from the values of the very call, so "
    "there are no integers known beforehand that could be followed.",
    "weight_only": "This config is **weight-only**: the weights are stored as integers, but every product is computed "
    "in float, so no integer sum comes about.",
    "float": "With this config every layer stays **float**, so there are no integers to follow.",
}


@dataclass(frozen=True)
class Choice:
    """The element that is looked at. index: into the layer's output, its first axis included."""

    layer: str
    sample: int
    index: tuple[int, ...]


def begin(model_hash: str) -> None:
    """Takes layer, sample and place from the link on the first visit; another model starts anew."""
    if st.session_state.get("steps.of") == model_hash:
        return
    first = "steps.of" not in st.session_state
    asked = {name: st.query_params.get(name, "") if first else "" for name in ("layer", "sample", "at")}
    st.session_state["steps.of"] = model_hash
    st.session_state["steps.layer"] = asked["layer"]
    st.session_state["steps.sample"] = int(asked["sample"]) if asked["sample"].isdecimal() else 0
    parts = asked["at"].split(".")
    st.session_state["steps.index"] = tuple(map(int, parts)) if all(p.isdecimal() for p in parts) else None


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same element."""
    index = st.session_state.get("steps.index")
    return {
        "layer": st.session_state.get("steps.layer") or None,
        "sample": str(st.session_state["steps.sample"]) if "steps.sample" in st.session_state else None,
        "at": ".".join(map(str, index)) if index else None,
    }


def controls(layers: list[str], qmodel: QuantizedModel, key: Key) -> tuple[Choice, Trace]:
    """One row: layer, sample, and one number for each axis of the output."""
    count = len(cache.dataset(state.data_ref()).evaluation)
    layer = st.session_state["steps.layer"]
    layer = layer if layer in layers else layers[0]
    sample = min(st.session_state["steps.sample"], count - 1)
    trace = steps_known.trace(key, layer, sample, qmodel)
    index = st.session_state["steps.index"]
    if not index or len(index) != len(trace.shape) or any(i >= n for i, n in zip(index, trace.shape, strict=True)):
        index = telling(trace)
    st.session_state.update({"steps.layer": layer, "steps.sample": sample, "steps.index": index})
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="steps_controls"):
        widgets.kept(
            st.selectbox, "Layer", layers, value=layer, store=_set_layer, key="steps_layer", width=230,
            help="Takes a number of another layer apart; those that multiply integers are listed.",
        )  # fmt: skip
        widgets.kept(
            st.number_input, "Sample", 0, count - 1, value=sample, store=_set_sample, key="steps_sample", step=1,
            width=110, help=f"Shows another input, 0 to {count - 1:,} of the evaluation data.",
        )  # fmt: skip
        for axis, (name, size) in enumerate(zip(axis_names(trace), trace.shape, strict=True)):
            # The batch holds one sample; rows are there only where the network merged another axis into the batch.
            if axis == 0 and (trace.layer.stride or size == (qmodel.model.fixed_batch or 1)):
                continue
            _axis_control(name, axis, size, index)
    return Choice(layer, sample, index), trace


def _axis_control(name: str, axis: int, size: int, index: tuple[int, ...]) -> None:
    def store(at: int | None) -> None:
        if at is not None:
            st.session_state["steps.index"] = (*index[:axis], int(at), *index[axis + 1 :])

    if size == 1:
        return
    widgets.kept(
        st.number_input, name, 0, size - 1, value=index[axis], store=store, key=f"steps_axis_{axis}_{size}", step=1,
        width=110, help=f"Moves to another output number, 0 to {size - 1:,}; the arrow keys walk.",
    )  # fmt: skip


def _set_sample(sample: int | None) -> None:
    if sample is not None:
        st.session_state["steps.sample"] = int(sample)


def _set_layer(layer: str) -> None:
    # A place in one layer says nothing in another.
    st.session_state.update({"steps.layer": layer, "steps.index": None})


def axis_names(trace: Trace) -> list[str]:
    """What the axes of the output are called, the first one included."""
    if trace.layer.stride:
        spatial = {1: ["Position"], 2: ["Row", "Column"], 3: ["Plane", "Row", "Column"]}
        return ["Sample", "Channel", *spatial[len(trace.layer.stride)]]
    between = len(trace.shape) - 2
    return ["Row", *(["Position"] if between == 1 else [f"Axis {i + 1}" for i in range(between)]), "Feature"]


# --- places worth a look ----------------------------------------------------------------------------------------------


def telling(trace: Trace) -> tuple[int, ...]:
    """The largest value that is not clamped: every step then does something."""
    target = trace.layer.target
    scale = float(target.scale)
    top = (target.quant_max - int(target.zero_point)) * scale
    values = trace.simulated
    return _place(values.where(values < top - scale / 2, values.min()), trace)


def _place(values: Any, trace: Trace) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(values.argmax()), trace.shape))


def jumps(choice: Choice, trace: Trace, qmodel: QuantizedModel, key: Key) -> None:
    """Buttons that look for a number on which one of the steps can be seen at work."""

    def large() -> None:
        st.session_state["steps.index"] = telling(trace)

    def clamped() -> None:
        found = steps_known.cut_off(key, choice.layer, choice.sample, qmodel)
        _go(choice.sample, found, "In this layer and sample no number was found that is cut off.")

    def disagreeing() -> None:
        sample, index = steps_known.disagreement(key, choice.layer, qmodel) or (choice.sample, None)
        _go(
            sample,
            index,
            f"In the first {steps_known.SEARCHED} samples kernel and simulation agree on all of this layer.",
        )

    with st.container(horizontal=True, gap="small", vertical_alignment="center", key="steps_jumps"):
        say.caption("Show", width="content")
        st.button("a large number", on_click=large, key="steps_large",
                  help="Goes to the largest number of this layer and sample that is not cut off.")  # fmt: skip
        st.button("one that is cut off", on_click=clamped, key="steps_clamped",
                  help="Goes to a number that the clamp moves far: below a ReLU, or beyond the grid.")  # fmt: skip
        st.button("one where kernel and simulation differ", on_click=disagreeing, key="steps_disagree",
                  disabled=not steps_known.kernel_ready(qmodel.model),
                  help=f"Looks through the first {steps_known.SEARCHED} samples for the largest difference in this "
                  "layer.")  # fmt: skip
    if notice := st.session_state.pop("steps.notice", None):
        say.caption(notice)


def _go(sample: int, index: tuple[int, ...] | None, otherwise: str) -> None:
    if index is None:
        st.session_state["steps.notice"] = otherwise
    else:
        st.session_state.update({"steps.sample": sample, "steps.index": index})


def others(qmodel: QuantizedModel, layers: list[str]) -> None:
    """Convolution and linear layers that have no integers to follow, and why."""
    why = steps_known.reasons(qmodel, layers)
    other = "other " if layers else ""
    if why:
        with st.expander(
            f"Why {len(why)} {other}{'layers have' if len(why) > 1 else 'layer has'} no integers to follow"
        ):
            say.markdown("\n".join(f"- `{layer}`: {errors.escape(reason)}" for layer, reason in why))


def nothing_to_follow(qmodel: QuantizedModel) -> None:
    """Why there is no integer sum under this config, and a way to one."""
    default = state.mapping().default
    mode = "float" if default is None else default.mode
    say.info(NO_GRIDS.get(mode, "With this config no layer of this network multiplies integers on known grids."))
    if st.button(
        f"Switch to the config {state.DEFAULT_PRESET}", key="steps_x86", type="primary",
        help="Makes the static 8-bit preset the current config, on every page.",
    ):  # fmt: skip
        state.set_preset(state.DEFAULT_PRESET)
        st.rerun()  # of the whole page: the sidebar names the config
    others(qmodel, [])
