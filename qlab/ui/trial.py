"""What is tried out on Distributions: tensor and spec, their controls, and the way from there into the shared config.

A draft is what was set on the page. It lasts until it is put into the config, dropped, or the config changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.config import ACTIVATION_BITS, QSCHEMES, WEIGHT_BITS, QConfigMapping, QuantSpec
from qlab.errors import QLabError
from qlab.quant.observers import OBSERVERS
from qlab.ui import errors, say, state, widgets
from qlab.ui.config_editor import observers_for, step_of, with_scheme
from qlab.ui.tensors import (
    Entry,
    ModelTensors,
    configured,
    tensors_of,
    usual,
    with_spec_everywhere,
    with_spec_here,
)

if TYPE_CHECKING:
    from qlab.graph.capture import Model

ZOOMS = {"auto": "balanced", "bulk": "bulk", "all": "all"}


# --- which tensor, and under what spec --------------------------------------------------------------------------------


def tensors(model: Model) -> ModelTensors:
    """The tensors of this model; listed once."""
    return _tensors(model.content_hash, model)


@st.cache_resource(max_entries=6, show_spinner=False)
def _tensors(content_hash: str, _model: Model) -> ModelTensors:
    return tensors_of(_model)


def chosen_entry(known: ModelTensors) -> Entry:
    """The tensor last looked at on any page, the one a link names, or a good first one."""
    for name in (state.tensor(), st.query_params.get("tensor")):
        if name in known.entries:
            return known.entries[name]
    return known.first


def draft(entry: Entry) -> QuantSpec:
    """The spec that is tried out: what was set on this page, until the config changes, else what the config has."""
    held = st.session_state.get(f"dist.draft.{entry.role}")
    mapping = state.mapping()
    if held is not None and held[0] == mapping:
        return held[1]
    return configured(mapping, entry) or usual(mapping, entry.role)


def _keep(entry: Entry, spec: QuantSpec) -> None:
    st.session_state[f"dist.draft.{entry.role}"] = (state.mapping(), spec)


def change(entry: Entry, spec: QuantSpec, **changes: Any) -> None:
    """Tries other values of the spec; what cannot be combined leaves it as it was, and the page says why."""
    if None in changes.values():  # a cleared field goes back to what holds
        return
    try:
        _keep(entry, spec.replace(**changes))
    except QLabError as refused:
        st.session_state["dist.refused"] = refused


def set_mapping(mapping: QConfigMapping) -> None:
    """Changes the config beside its specs: what is tried out here stays, and the sidebar follows."""
    before = state.mapping()
    for role in ("weight", "activation"):
        held = st.session_state.get(f"dist.draft.{role}")
        if held is not None and held[0] == before:
            st.session_state[f"dist.draft.{role}"] = (mapping, held[1])
    state.set_mapping(mapping)
    st.session_state["dist.used"] = True


def _forget_draft(entry: Entry) -> None:
    st.session_state.pop(f"dist.draft.{entry.role}", None)


# --- controls ---------------------------------------------------------------------------------------------------------


def controls(known: ModelTensors, entry: Entry, spec: QuantSpec) -> None:
    """One row: layer, which of its tensors, observer, scheme, bits; the rest folded under More."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="dist_controls"):
        _tensor_controls(known, entry)
        granularity = spec.granularity
        observers = observers_for(entry.role, granularity)
        if spec.observer not in observers:  # a config from elsewhere may ask for it; the engine says why it cannot be
            observers = [*observers, spec.observer]
        widgets.kept(
            st.selectbox,
            "Observer",
            observers,
            value=spec.observer,
            store=lambda new: change(entry, spec, observer=new, observer_args={}),
            key="dist_observer",
            width=140,
            help=f"Moves the range: {OBSERVERS[spec.observer].summary}",
        )
        schemes = [s for s in QSCHEMES if entry.role == "weight" or "group" not in s]
        widgets.kept(
            st.selectbox,
            "Scheme",
            schemes,
            value=spec.qscheme,
            store=lambda new: _set_scheme(entry, spec, new),
            key="dist_scheme",
            format_func=lambda name: name.replace("per_", "").replace("_", " · "),
            width=185,
            help="How many values share a scale, and whether zero sits in the middle of the grid (symmetric) or where "
            "the values need it (affine).",
        )
        low, high = WEIGHT_BITS if entry.role == "weight" else ACTIVATION_BITS
        widgets.kept(
            st.slider,
            "Bits",
            low,
            high,
            value=spec.bits,
            store=lambda new: change(entry, spec, bits=new),
            key=f"dist_bits_{entry.role}",
            width=105,
            help="One bit more doubles the levels and gives about 6 dB.",
        )
        # Filled when it is open: a widget in a closed popover is not there yet to take the value it is seeded with.
        more = st.popover(
            "More",
            key="dist_more",
            on_change="rerun",
            help="Codes, settings of the observer, and how the picture is drawn.",
        )
        if more.open:
            with more:
                _more(entry, spec)


def _tensor_controls(known: ModelTensors, entry: Entry) -> None:
    def choose_layer(layer: str) -> None:
        there = known.of_layer(layer)
        # Walking through the layers stays with weights, or with outputs.
        same = [e for e in there if e.what == entry.what] or [e for e in there if e.role == entry.role] or there
        _look_at(same[0].tensor)

    widgets.kept(
        st.selectbox,
        "Layer",
        known.layers,
        value=entry.layer,
        store=choose_layer,
        key="dist_layer",
        width=190,
        help="Shows another layer under the same settings; the arrow keys walk through the network.",
    )
    there = {e.what: e.tensor for e in known.of_layer(entry.layer)}
    widgets.kept(
        st.selectbox,
        "Tensor",
        list(there),
        value=entry.what,
        store=lambda what: _look_at(there[what]),
        key="dist_what",
        width=125,
        help="A weight is known as it is; an output or input was seen during calibration.",
    )


def _look_at(tensor: str) -> None:
    state.set_tensor(tensor)
    st.session_state["dist.channel"] = None


def _set_scheme(entry: Entry, spec: QuantSpec, scheme: str) -> None:
    _keep(entry, with_scheme(spec, entry.role, scheme))


def _more(entry: Entry, spec: QuantSpec) -> None:
    say.markdown(f"**Codes** · {spec.quant_min:,} … {spec.quant_max:,}")
    widgets.kept(
        st.segmented_control,
        "Signed",
        (True, False),
        value=spec.signed,
        required=True,
        store=lambda new: change(entry, spec, signed=new),
        key="dist_signed",
        format_func=lambda on: "signed" if on else "unsigned",
        help="Which integers the codes are; on an affine grid the picture stays the same.",
    )
    widgets.kept(
        st.toggle,
        "Narrow range",
        value=spec.narrow_range,
        store=lambda new: change(entry, spec, narrow_range=new),
        key="dist_narrow",
        help="Leaves out the lowest code, so that a signed grid has as many levels below zero as above.",
    )
    if spec.granularity == "group":
        widgets.kept(
            st.number_input,
            "Weights in a group",
            2,
            4096,
            value=spec.group_size,
            step=1,
            store=lambda new: change(entry, spec, group_size=new),
            key="dist_group",
            help="Smaller groups follow the weights more closely and need more scales.",
        )
    observer = OBSERVERS[spec.observer]
    for param in observer.params:
        number: type[int] | type[float] = int if param.kind == "int" else float

        def set_param(new: float | None, name: str = param.name) -> None:
            if new is not None:
                change(entry, spec, observer_args={**spec.observer_args, name: new})

        widgets.kept(
            st.number_input,
            f"{observer.name}: {param.name.replace('_', ' ')}",
            number(param.minimum),
            number(param.maximum),
            value=number(observer.settings(spec.observer_args)[param.name]),
            step=step_of(param),
            format="%d" if number is int else "%g",
            store=set_param,
            key=f"dist_param_{observer.name}_{param.name}",
            help=param.help,
        )
    say.markdown("**Picture**")
    view = st.session_state
    widgets.kept(
        st.segmented_control,
        "Show",
        list(ZOOMS),
        value=view.get("dist.zoom", "auto"),
        required=True,
        store=lambda new: view.__setitem__("dist.zoom", new),
        key="dist_zoom",
        format_func=ZOOMS.__getitem__,
        help="Balanced shows the ranges as far as the bulk of the values stays visible; bulk and all go to the ends.",
    )
    widgets.kept(
        st.toggle,
        "Logarithmic count",
        value=view.get("dist.log", False),
        store=lambda new: view.__setitem__("dist.log", new),
        key="dist_log",
        help="Makes single values in the tails visible beside the thousands in the middle.",
    )
    widgets.kept(
        st.toggle,
        "Quantized values over the float ones",
        value=view.get("dist.overlay", False),
        store=lambda new: view.__setitem__("dist.overlay", new),
        key="dist_overlay",
        help="Draws what is left of the distribution after quantization.",
    )


# --- from the draft to the config -------------------------------------------------------------------------------------


def config_line(entry: Entry, spec: QuantSpec, about: str) -> None:
    """What is looked at; on the right, whether the config has this spec, and the way to put it there."""
    held = configured(state.mapping(), entry)
    line = st.container(horizontal=True, vertical_alignment="center")
    line.markdown(about, width="stretch")
    # Always a popover, so that nothing below it moves when the spec leaves the config or comes back to it.
    same = held == spec
    label = "As the config has it" if same else "Use this in the config"
    with line.popover(label, type="secondary" if same else "primary", width=235, disabled=same, key="dist_use"):
        say.caption(f"Tried here: `{spec}`  \nIn the config: `{held or 'float'}`")
        kinds = "weights" if entry.role == "weight" else "activations"
        # Through a callback, which runs before the page does: nothing on it shows the old config once more.
        st.button(
            f"For all {kinds}",
            key="dist_use_all",
            width="stretch",
            on_click=_use,
            args=(entry, spec, False),
            help=f"Experiment will then run every quantized layer's {kinds} with it; layers kept float stay float.",
        )
        st.button(
            f"For {entry.owner or 'this layer'} alone",
            key="dist_use_here",
            width="stretch",
            disabled=entry.owner is None,
            on_click=_use,
            args=(entry, spec, True),
            help="Adds a rule for this layer."
            if entry.owner
            else "Several layers read this tensor and each has a config: set it for all activations.",
        )
        st.button(
            "Back to the config",
            key="dist_back",
            width="stretch",
            on_click=_forget_draft,
            args=(entry,),
            help="Drops what was tried here.",
        )


def _use(entry: Entry, spec: QuantSpec, here: bool) -> None:
    try:
        change = (
            with_spec_here(state.mapping(), entry, spec)
            if here
            else with_spec_everywhere(state.mapping(), entry.role, spec)
        )
    except QLabError as refused:
        st.session_state["dist.refused"] = refused
        return
    state.set_mapping(change)
    st.session_state["dist.used"] = True


def take_result_of_use() -> None:
    """After a press of "Use this": the reason why it cannot be, or a run of the whole page, for the sidebar."""
    if refused := st.session_state.pop("dist.refused", None):
        errors.show(refused)
    if st.session_state.pop("dist.used", False):
        st.rerun()
