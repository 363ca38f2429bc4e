"""Which number of a quantized model is edited, and to what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlab.metrics import MINUS
from qlab.ui import errors, say, weights_known, widgets

if TYPE_CHECKING:
    from qlab.edits import Edit
    from qlab.ui.weights_known import Known
    from qlab.ui.weights_source import Shown

PART, OF, AT, NOTICE = "edits.part", "edits.of", "edits.at", "edits.notice"
PARTS = {"code": "Code", "scale": "Scale", "zero_point": "Zero point"}
WEIGHT = ""  # stands for the weight of the layer that is shown; every other choice is an activation


@dataclass(frozen=True)
class Place:
    """One number. tensor, part, index, of: as in Edit. at: where it stands for a person: (channel, position) of a code;
    of a grid (channel, group) per group, (channel,) per channel, () where there is one.
    """

    tensor: str
    part: str
    index: tuple[int, ...]
    of: str
    at: tuple[int, ...]

    def edit(self, value: float) -> Edit:
        """The edit that gives this number the value. Raises InvalidConfig."""
        from qlab.edits import Edit

        return Edit(self.tensor, self.part, self.index, value, self.of)


def place(shown: Shown) -> Place:
    """Draws what chooses a number, side by side, and gives it."""
    part = st.session_state.get(PART, "code")
    widgets.kept(
        st.segmented_control, "What to write", list(PARTS), value=part, store=widgets.into(PART), key="edits_part",
        format_func=PARTS.__getitem__, required=True,
        help="A code changes one weight, a scale or a zero point all weights or activations of its grid.",
    )  # fmt: skip
    name = WEIGHT if part == "code" else _tensor(shown)
    if name == WEIGHT:
        return _of_weight(shown, part)
    scale = shown.qmodel.activations[name].scale
    at = _numbers([("Channel", scale.shape[0])]) if scale.ndim else ()
    return Place(name, part, at, "activation", at)


def _tensor(shown: Shown) -> str:
    names = [WEIGHT, *shown.qmodel.activations]
    chosen = st.session_state.get(OF, WEIGHT)
    chosen = chosen if chosen in names else WEIGHT
    widgets.kept(
        st.selectbox, "Of", names, value=chosen, store=widgets.into(OF), key="edits_of", width=260,
        format_func=lambda name: f"activation {name}" if name else f"weight of {shown.layer}",
        help="Edits the grid of the weight of the layer that is shown, or that of an activation.",
    )  # fmt: skip
    return str(chosen)


def _of_weight(shown: Shown, part: str) -> Place:
    of = weights_known.known(shown)
    if part == "code":
        at = _numbers([("Channel", of.channels), ("Position", of.positions)])
        return Place(shown.layer, part, index_of(of, *at), "weight", at)
    shape = tuple(of.tensor.scale.shape)
    at = _numbers(list(zip(("Channel", "Group"), shape, strict=False)))
    return Place(shown.layer, part, at, "weight", at)


def index_of(of: Known, channel: int, position: int) -> tuple[int, ...]:
    """Where this number stands in the codes."""
    behind = [n for axis, n in enumerate(of.shape) if axis != of.axis]
    index = [int(i) for i in np.unravel_index(position, behind)] if behind else []
    return (*index[: of.axis], channel, *index[of.axis :])


def _numbers(sides: list[tuple[str, int]]) -> tuple[int, ...]:
    """One number input for each side; what was chosen in another layer stops at the end of this one."""
    kept = st.session_state.get(AT, (0, 0))
    at = tuple(min(int(i), size - 1) for i, (_, size) in zip(kept, sides, strict=False))
    for side, (label, size) in enumerate(sides):
        if size == 1:
            continue

        def store(value: int | None, side: int = side) -> None:
            if value is not None:
                now = list((*at, 0, 0)[:2])
                now[side] = int(value)
                st.session_state[AT] = tuple(now)

        widgets.kept(
            st.number_input, label, 0, size - 1, value=at[side], store=store, key=f"edits_{label}_{size}", step=1,
            width=130, help=f"Moves to another number, 0 to {size - 1:,}; the arrow keys walk.",
        )  # fmt: skip
    return at


# --- places worth a look ----------------------------------------------------------------------------------------------


def jumps(shown: Shown, found: Place) -> None:
    """Buttons that go to a number with which something can be seen; none where there is one number alone."""
    if not found.at or found.of != "weight":
        return
    of = weights_known.known(shown)
    ways: dict[str, tuple[str, Callable[[], tuple[int, ...] | None], str]]
    if found.part == "code":
        ways = {
            "the largest weight": ("edits_largest", lambda: largest(of), "Goes to the weight farthest from zero."),
            "a zero": ("edits_zero", lambda: next_zero(of, found.at), "Goes to the next code that stands for 0."),
        }
    elif found.part == "scale":
        ways = {
            "the largest scale": ("edits_widest", lambda: _extreme(of, np.argmax), "Goes to the widest grid."),
            "the smallest scale": ("edits_finest", lambda: _extreme(of, np.argmin), "Goes to the finest grid."),
        }
    else:
        return
    with st.container(horizontal=True, gap="small", vertical_alignment="center", key="edits_jumps"):
        say.caption("Go to", width="content")
        for label, (key, find, text) in ways.items():
            st.button(label, key=key, on_click=_go, args=(find,), help=text)
    if notice := st.session_state.pop(NOTICE, None):
        say.caption(notice)


def _go(find: Callable[[], tuple[int, ...] | None]) -> None:
    found = find()
    if found is None:
        st.session_state[NOTICE] = "No code of this weight stands for 0."
    else:
        st.session_state[AT] = (*found, 0)[:2]


def largest(of: Known) -> tuple[int, int]:
    """Channel and position of the weight farthest from zero."""
    from qlab.quant.cells import by_channel

    found = int(by_channel(of.tensor.dequantize().abs(), of.axis).argmax())
    return found // of.positions, found % of.positions


def next_zero(of: Known, at: tuple[int, ...]) -> tuple[int, int] | None:
    """The first weight of value 0 behind this place, else from the start; None where there is none."""
    from qlab.quant.cells import by_channel

    zeros = np.flatnonzero(by_channel(of.tensor.dequantize(), of.axis).reshape(-1).numpy() == 0)
    if not len(zeros):
        return None
    here = at[0] * of.positions + at[1] if len(at) > 1 else -1
    found = int(zeros[np.searchsorted(zeros, here, side="right") % len(zeros)])
    return found // of.positions, found % of.positions


def _extreme(of: Known, which: Callable[[Any], Any]) -> tuple[int, ...]:
    scale = of.tensor.scale.numpy()
    return tuple(int(i) for i in np.unravel_index(int(which(scale)), scale.shape))


# --- the new value ----------------------------------------------------------------------------------------------------


def value_now(shown: Shown, place: Place) -> float:
    """What stands there now, edits included."""
    from qlab.edits import buffer_of

    found: float = buffer_of(shown.qmodel, place.tensor, place.part, place.of)[place.index].item()
    return found


def differs(shown: Shown, place: Place, value: float) -> bool:
    """Whether writing this changes the number as its buffer holds it."""
    now = value_now(shown, place)
    return bool(np.float32(value) != np.float32(now)) if place.part == "scale" else value != now


def new_value(shown: Shown, place: Place) -> float | None:
    """The input of the new value, which starts as what stands there; None while it is empty."""
    from qlab.edits import limits

    low, high = limits(shown.qmodel, place.tensor, place.part, place.of)
    now = value_now(shown, place)
    key = f"edits_value_{place.part}_{place.of}_{place.tensor}_{place.index}_{hash(shown.key)}"
    if place.part == "scale":
        return st.number_input(
            "New scale", low, high, value=now, step=now / 10, format="%.6g", key=key, width=220,
            help="Stretches or shrinks the grid: every number on it is multiplied by the same factor.",
        )  # fmt: skip
    return st.number_input(
        f"New {PARTS[place.part].lower()}", int(low), int(high), value=int(now), step=1, key=key, width=220,
        help=f"A whole number of the grid, {int(low):,} to {int(high):,}.".replace("-", MINUS),
    )  # fmt: skip


def now(shown: Shown, place: Place, value: float | None) -> None:
    """What the number is and stands for, and what it would be."""
    of = weights_known.known(shown)
    standing = value_now(shown, place)
    text = f"{_words(of, place)} is **{number(standing)}**"
    if place.part != "code":
        say.markdown(f"{text}; it holds for {_reach(shown, place)}.")
        return
    zero_point, scale = grid_of_code(shown, place.tensor, place.index)
    text += f" and stands for **{number((standing - zero_point) * scale)}**"
    if of.original is not None:
        text += f" (float {number(float(of.original.detach()[place.index]))})"
    if value is not None and value != standing:
        text += f"; {number(value)} would stand for **{number((value - zero_point) * scale)}**"
    say.markdown(f"{text}.")


def _words(of: Known, place: Place) -> str:
    name = errors.escape(place.tensor)
    part = PARTS[place.part]
    if not place.at:
        return f"{part} of {'activation ' if place.of == 'activation' else ''}{name}"
    sides = ("channel", "position" if place.part == "code" else "group")
    at = ", ".join(f"{side} {i:,}" for side, i in zip(sides, place.at, strict=False))
    behind = of.names(np.array([place.at[1]])) if place.part == "code" else []
    return f"{part} of {name} at {at}" + (f" ({of.across.removeprefix('position: ')} {behind[0]})" if behind else "")


def grid_of_code(shown: Shown, layer: str, index: tuple[int, ...]) -> tuple[int, float]:
    """Zero point and scale of the code at this place, edits included."""
    from qlab.quant.cells import cells, place_of

    tensor = shown.qmodel.weights[layer]
    axis = next(point.axis for point in shown.qmodel.placement.weights if point.layer == layer)
    shape = tuple(tensor.codes.shape)
    channel, position = place_of(shape, axis, np.ravel_multi_index(index, shape))
    found = cells(tensor, axis, channel, position)
    return int(found.zero_point), float(found.scale)


def _reach(shown: Shown, place: Place) -> str:
    """How many numbers a scale or zero point is for."""
    if place.of == "activation":
        return "every number of this activation" if not place.at else "every number of this channel"
    tensor = shown.qmodel.weights[place.tensor]
    count = tensor.codes.numel() // max(tensor.scale.numel(), 1)
    return f"{count:,} of the {tensor.codes.numel():,} weights" if place.at else f"all {count:,} weights"


def number(value: float) -> str:
    """A code as a whole number, a scale with six digits."""
    return f"{value:.6g}".replace("-", MINUS)
