"""What a config does beside its rules: equal weight ranges in adjacent layers, corrected biases, ranges set by hand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from qlab.config import QConfigMapping
from qlab.difference import SWITCHES
from qlab.errors import QLabError
from qlab.ui import config_editor, errors, overrides, say, state

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.plots.study import Ends

VERSION = "exp_ranges_version"
TITLES = {"equalize": "Equalise adjacent layers", "correct_bias": "Correct biases"}
HELP = {
    "equalize": "Scales the channels between two layers so that both get weights of equal range, which helps weights "
    "that share one scale; the float network computes the same.",
    "correct_bias": "Takes the mean shift that rounded weights cause out of the biases, which helps most at few bits; "
    "the calibration then also keeps the mean of what each layer reads.",
}
NO_PAIR = "This network has no two layers that could be equalised, because none reads another alone, directly or "\
    "through ReLU or pooling: nothing changes."  # fmt: skip
PER_CHANNEL = "Every weight here has more than one scale, which serves unequal channels already: expect little."
NO_WEIGHTS = "No weight is quantized, so no bias has a shift to correct: nothing changes."


# --- what can be said of it: pure, and tested as such -----------------------------------------------------------------


def remarks(mapping: QConfigMapping, pairs: int | None) -> list[str]:
    """What a switch that is on does not do, or to how much. pairs: of layers that can be equalised; None: not known."""
    weights = [rule.weight for rule in mapping.rules if rule is not None and rule.weight is not None]
    said = []
    if mapping.equalize and pairs == 0:
        said.append(NO_PAIR)
    elif mapping.equalize and pairs is not None:
        said.append(f"{pairs} pair{'s' if pairs > 1 else ''} of layers can be equalised.")
        if weights and all(weight.granularity != "tensor" for weight in weights):
            said[-1] += f" {PER_CHANNEL}"
    if mapping.correct_bias and not weights:
        said.append(NO_WEIGHTS)
    return said


def edited(ranges: Mapping[str, Ends], edits: Mapping[str, Any]) -> dict[str, Ends]:
    """The ranges after what a person did in the table, as st.data_editor reports it; a cleared cell changes nothing."""
    names = list(ranges)
    gone = {names[int(row)] for row in edits.get("deleted_rows", ())}
    out = {name: ends for name, ends in ranges.items() if name not in gone}
    for row, cells in edits.get("edited_rows", {}).items():
        name = names[int(row)]
        if name in out:
            low, high = (cells.get(end) for end in ("low", "high"))
            out[name] = (out[name][0] if low is None else low, out[name][1] if high is None else high)
    return out


# --- drawing ----------------------------------------------------------------------------------------------------------


def switches(model: Model | None) -> None:
    """The two switches, and what they do to this network; None: it could not be read."""
    mapping = state.mapping()
    with st.container(horizontal=True, gap="medium"):
        for name in SWITCHES:
            config_editor.kept(
                st.toggle,
                TITLES[name],
                value=getattr(mapping, name),
                store=partial(_switch, name),
                key=f"exp_{name}",
                help=HELP[name],
            )
    for words in remarks(mapping, None if model is None else _pairs(model.content_hash, model)):
        say.caption(words)


def _switch(name: str, on: bool) -> None:
    state.set_mapping(state.mapping().replace(**{name: on}))


@st.cache_resource(max_entries=16, show_spinner=False)
def _pairs(content_hash: str, _model: Model) -> int:
    from qlab.graph.equalize import equalizable

    return len(list(equalizable(_model)))


def ranges(model: Model | None) -> None:
    """The ranges set by hand as a table: ends can be changed, rows deleted. Nothing where there is none."""
    held = state.mapping().ranges
    if problem := st.session_state.pop("exp_ranges_problem", None):
        errors.show(problem)
    if not held:
        return
    say.markdown("**Ranges set by hand**", help="The grid of these tensors is laid over this range, whatever the "
                "observer says. Distributions sets one by dragging over the picture.")  # fmt: skip
    rows = [(name, low, high) for name, (low, high) in held.items()]
    # Edits are told relative to what the table was given, so each change starts another one.
    key = f"exp_ranges_{st.session_state.get(VERSION, 0)}"
    st.data_editor(
        pd.DataFrame(rows, columns=["tensor", "low", "high"]),
        key=key,
        num_rows="delete",
        hide_index=True,
        width="stretch",
        on_change=_edit,
        args=(key,),
        column_config={
            "tensor": st.column_config.TextColumn("Tensor", disabled=True, width="medium"),
            "low": st.column_config.NumberColumn(
                "Low", format="%.6g", required=True, help="Zero or below; values below it are clipped."
            ),
            "high": st.column_config.NumberColumn(
                "High", format="%.6g", required=True, help="Zero or above; values above it are clipped."
            ),
        },
    )
    if model is not None and (unknown := [name for name in held if name not in _tensors(model)]):
        say.warning(
            f"This network has no tensor {errors.escape(overrides.some(unknown))} that could lie on a grid: "
            f"{'these ranges do' if len(unknown) > 1 else 'this range does'} nothing. Select the row and delete it."
        )


def _tensors(model: Model) -> Mapping[str, Any]:
    from qlab.ui import trial

    return trial.tensors(model).entries


def _edit(key: str) -> None:
    st.session_state[VERSION] = st.session_state.get(VERSION, 0) + 1
    mapping = state.mapping()
    try:
        state.set_mapping(mapping.replace(ranges=edited(mapping.ranges, st.session_state[key])))
    except QLabError as refused:
        st.session_state["exp_ranges_problem"] = refused
