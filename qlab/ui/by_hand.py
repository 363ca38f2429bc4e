"""A range that is set by hand on Distributions: which tensors can have one, what it is, and its way into the config.

It lasts until it is put into the config or taken off; a range that the config has already is what the page starts with.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import streamlit as st

from qlab.config import QuantSpec
from qlab.errors import QLabError
from qlab.metrics import MINUS, three_digits
from qlab.ui import state, trial
from qlab.ui.tensors import Entry, config_of, configured

if TYPE_CHECKING:
    from qlab.plots.study import Ends, Study, Tensor

HELD, NOTE, TURN = "dist.hand", "dist.hand.note", "dist.hand.turn"
HOLDS_ZERO = "A range has to hold zero, because zero lies on every grid: the end stops at 0."
LIKE_ZERO = "A range needs a length: at least one end has to lie away from zero."


# --- which range ------------------------------------------------------------------------------------------------------


def begin() -> None:
    """Takes the range from the link (?tensor=…&low=…&high=…) on the first visit."""
    if HELD in st.session_state:
        return
    st.session_state[HELD] = {}
    name, asked = st.query_params.get("tensor"), [st.query_params.get(end) for end in ("low", "high")]
    if name is None or asked == [None, None]:
        return
    ends = _numbers(asked)
    found = None if ends is None else holding_zero(*ends)
    if found is None:
        st.session_state["lab.notice"] = "The link names no range: it needs a low end and a high end, as numbers."
    else:
        _held()[_key(name)] = found


def _numbers(texts: list[str | None]) -> Ends | None:
    try:
        low, high = sorted(float(text or "") for text in texts)
    except ValueError:
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same tensor and range."""
    name = state.tensor() or st.query_params.get("tensor")
    found = None if name is None else ends_of(name)
    low, high = (None, None) if found is None else (f"{end:.6g}" for end in found)
    return {"tensor": name, "low": low, "high": high}


def ends_of(tensor: str) -> Ends | None:
    """The range that was set here, else the one of the config; None: the observer's."""
    held = _held()
    return held[_key(tensor)] if _key(tensor) in held else state.mapping().ranges.get(tensor)


def ends_for(entry: Entry, spec: QuantSpec) -> Ends | None:
    """The range that is looked at; None also where this tensor can have none."""
    return ends_of(entry.tensor) if refusal(entry, spec) is None else None


def _held() -> dict[tuple[str, str], Ends | None]:
    """(model, tensor) -> what was set on this page; None: taken off here."""
    return st.session_state.setdefault(HELD, {})


def _key(tensor: str) -> tuple[str, str]:
    return state.model_ref().source, tensor


def refusal(entry: Entry, spec: QuantSpec) -> str | None:
    """Why this tensor has no range that could be set, in a sentence; None where it has one."""
    if entry.role == "weight":
        return None
    config = config_of(state.mapping(), entry)
    if entry.fixed:
        return f"The output of {entry.fixed} has a range that is known without data: there is none to set by hand."
    if config is not None and config.mode == "dynamic":
        return "The config is dynamic: this range is taken anew at every call, so there is none to set by hand."
    if spec.granularity != "tensor":
        return "Of an activation the calibration keeps only the range of each channel: a range by hand needs one "\
            "scale for all, a tensor scheme."  # fmt: skip
    return None


def idle(entry: Entry) -> str | None:
    """Why the config would not use a range of this tensor; None where it does."""
    if configured(state.mapping(), entry) is None:
        return "The config leaves this tensor float, so a range changes nothing there: use a spec in the config first."
    return None


# --- setting it: pure, and tested as such -----------------------------------------------------------------------------


def holding_zero(low: float, high: float) -> Ends | None:
    """The range with its ends stopped at zero; None where nothing is left of it."""
    low, high = min(low, 0.0), max(high, 0.0)
    return None if low == high else (low, high)


def fitted(asked: Ends, before: Ends, spec: QuantSpec) -> Ends | None:
    """What a range becomes on this grid: it holds zero, and a symmetric one reaches as far on both sides.

    before: what it was, which tells the end that was moved. None where nothing is left.
    """
    found = holding_zero(*asked)
    if found is None or not spec.symmetric:
        return found
    low_moved, high_moved = asked[0] != before[0], asked[1] != before[1]
    reach = max(-found[0], found[1]) if low_moved == high_moved else -found[0] if low_moved else found[1]
    return (-reach, reach) if reach > 0 else None


# --- setting it: what the controls call -------------------------------------------------------------------------------


def set_ends(entry: Entry, spec: QuantSpec, asked: Ends, before: Ends) -> None:
    """Makes these the ends; what cannot be is said and, where it can, stopped at zero."""
    st.session_state[TURN] = st.session_state.get(TURN, 0) + 1
    found = fitted(asked, before, spec)
    if found is None:
        st.session_state[NOTE] = LIKE_ZERO
        return
    if asked[0] > 0 or asked[1] < 0:
        st.session_state[NOTE] = HOLDS_ZERO
    # A first tensor that was never chosen is chosen by that, so that a link names it.
    state.set_tensor(entry.tensor)
    _held()[_key(entry.tensor)] = found


def take_off(entry: Entry) -> None:
    """Back to the observer on this page; the config keeps what it has."""
    _held()[_key(entry.tensor)] = None


def keep(entry: Entry, ends: Ends) -> None:
    """Puts the range into the config."""
    mapping = state.mapping()
    _change_config(entry, {**mapping.ranges, entry.tensor: ends})


def remove(entry: Entry) -> None:
    """Takes the range off, in the config as well."""
    ranges = dict(state.mapping().ranges)
    if ranges.pop(entry.tensor, None) is None:
        _held().pop(_key(entry.tensor), None)
    else:
        _change_config(entry, ranges)


def _change_config(entry: Entry, ranges: dict[str, Ends]) -> None:
    try:
        trial.set_mapping(state.mapping().replace(ranges=ranges))
    except QLabError as refused:
        st.session_state["dist.refused"] = refused
        return
    _held().pop(_key(entry.tensor), None)


# --- the numbers ------------------------------------------------------------------------------------------------------


@st.cache_resource(max_entries=64, show_spinner=False)
def studied(
    key: str, spec: str, channel: int | None, ends: Ends, _found: Study, _tensor: Tensor, _axis: int
) -> Study:  # fmt: skip
    """The study of what every observer gives, with this range as the chosen one. key, spec: as for `_found`."""
    from qlab.plots.study import by_hand

    return by_hand(_found, _tensor, ends, _axis, channel)


def span(ends: Ends) -> str:
    return " … ".join(three_digits(end) for end in ends).replace("-", MINUS)
