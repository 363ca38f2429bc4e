"""One number of a quantized model written by hand: a code, a scale or a zero point.

The buffers of a QuantizedModel are the only copy of its integers, so a number written here is what the simulation
computes with, what `state_dict()` and the saved file hold, and what the integer session is opened with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.errors import InvalidConfig

if TYPE_CHECKING:
    from torch import Tensor

    from qlab.conversion import FakeQuantize, QuantizedModel
    from qlab.quant.tensor import QuantizedTensor

PARTS = ("code", "scale", "zero_point")
KINDS = ("weight", "activation")
_BUFFERS = {"code": "codes", "scale": "scale", "zero_point": "zero_point"}
_FIELDS = ("tensor", "part", "index", "value", "of")
_MOST_NAMES = 4
_MOST_LETTERS = 80
_FLOAT32 = np.finfo(np.float32)


@dataclass(frozen=True)
class Edit:
    """One number of a quantized model, written by hand.

    tensor: key of `qmodel.weights` (a layer), or of `qmodel.activations` where `of` is "activation"; a weight and an
    activation may share their name, so the name alone does not tell. part: "code" | "scale" | "zero_point"; activations
    have no stored codes. index: place in that buffer, counted from 0 in each of its dimensions; () where there is one
    scale for the whole tensor. value: whole for a code and a zero point, above 0 for a scale, which is held as float32.
    Raises InvalidConfig.
    """

    tensor: str
    part: str
    index: tuple[int, ...]
    value: float
    of: str = "weight"

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, str) or not self.tensor:
            raise InvalidConfig(f"An edit names a tensor; found {_short(self.tensor)}.")
        where = f"The edit of {_short(self.tensor)}"
        if self.part not in PARTS:
            raise InvalidConfig(f"{where} has the part {_short(self.part)}: use one of {', '.join(PARTS)}.")
        if self.of not in KINDS:
            raise InvalidConfig(f"{where} is of {_short(self.of)}: use one of {', '.join(KINDS)}.")
        if self.of == "activation" and self.part == "code":
            raise InvalidConfig(
                f"{where} writes a code, and codes of an activation are not stored: edit its scale or zero_point."
            )
        if not isinstance(self.index, tuple | list) or not all(_is_whole(i) and i >= 0 for i in self.index):
            raise InvalidConfig(f"{where} has the index {_short(self.index)}: give whole numbers from 0 up, or none.")
        object.__setattr__(self, "index", tuple(self.index))
        object.__setattr__(self, "value", _value(self.part, self.value, where))

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `of` is written where it is an activation."""
        more = {} if self.of == "weight" else {"of": self.of}
        return {"tensor": self.tensor, "part": self.part, "index": list(self.index), "value": self.value} | more

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Edit:
        """An edit from JSON, of which any field may be anything. Raises InvalidConfig."""
        if not isinstance(d, Mapping):
            raise InvalidConfig(f"An edit is a table of names and values; found {type(d).__name__}.")
        unknown, missing = [key for key in d if key not in _FIELDS], [key for key in _FIELDS[:4] if key not in d]
        if unknown:
            raise InvalidConfig(f"An edit has no field {_short(unknown[0])}: it has {', '.join(_FIELDS)}.")
        if missing:
            raise InvalidConfig(f"The edit lacks {', '.join(missing)}.")
        return cls(**d)


def apply_edits(qmodel: QuantizedModel, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Write them into the buffers of qmodel, in place and in order; gives what undoes them, in the order to apply.

    All are checked before the first is written. Layers that share a weight share its buffers: an edit of one is an edit
    of all of them. Undoing restores every bit. Raises InvalidConfig naming tensor, index and what is allowed.
    """
    places = [_checked(qmodel, edit) for edit in edits]
    standing: dict[tuple[int, tuple[int, ...]], float] = {}
    undo = []
    for edit, buffer in zip(edits, places, strict=True):
        place = id(buffer), edit.index
        undo.append(Edit(edit.tensor, edit.part, edit.index, standing.get(place, buffer[edit.index].item()), edit.of))
        standing[place] = edit.value
    for edit, buffer in zip(edits, places, strict=True):
        buffer.detach()[edit.index] = edit.value
    return tuple(reversed(undo))


def buffer_of(qmodel: QuantizedModel, tensor: str, part: str, of: str = "weight") -> Tensor:
    """The live buffer an edit of this tensor and part writes to. Raises InvalidConfig for a tensor it does not have."""
    buffer: Tensor = getattr(_grid(qmodel, tensor, of), _BUFFERS[part])
    return buffer


def limits(qmodel: QuantizedModel, tensor: str, part: str, of: str = "weight") -> tuple[float, float]:
    """Smallest and largest value an edit of this tensor and part may write. Raises InvalidConfig.

    Codes and zero points stay on the grid, so that zero stays representable. A scale is small enough for the whole grid
    to be finite in float32, and large enough for 1 / scale to be.
    """
    grid = _grid(qmodel, tensor, of)
    if part == "scale":
        return float(_FLOAT32.tiny), float(_FLOAT32.max) / (grid.quant_max - grid.quant_min)
    return grid.quant_min, grid.quant_max


def _grid(qmodel: QuantizedModel, tensor: str, of: str) -> QuantizedTensor | FakeQuantize:
    known: Mapping[str, QuantizedTensor | FakeQuantize] = qmodel.weights if of == "weight" else qmodel.activations
    if tensor not in known:
        raise InvalidConfig(
            f"{_short(tensor)} is no quantized {of} of this model, which has {_few(known)}: name one of them."
        )
    return known[tensor]


def _checked(qmodel: QuantizedModel, edit: Edit) -> Tensor:
    """The buffer an edit writes to."""
    buffer = buffer_of(qmodel, edit.tensor, edit.part, edit.of)
    where = f"The {edit.part.replace('_', ' ')} of {edit.of} {_short(edit.tensor)}"
    shape = list(buffer.shape)
    if len(edit.index) != len(shape) or any(i >= n for i, n in zip(edit.index, shape, strict=True)):
        wanted = f"one index of each dimension, below {shape}" if shape else "(), there is one for the whole tensor"
        raise InvalidConfig(f"{where} has no index {edit.index}: give {wanted}.")
    low, high = limits(qmodel, edit.tensor, edit.part, edit.of)
    if not low <= edit.value <= high:
        raise InvalidConfig(f"{where} at {edit.index} cannot be {edit.value:g}: it may be {low:g} to {high:g}.")
    return buffer


def _value(part: str, value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidConfig(f"{where} has the value {_short(value)}: give a number.")
    if part == "scale":
        # As the buffer holds it: what float32 rounds to 0 or to infinity is no scale.
        held = float(value) if abs(value) <= float(_FLOAT32.max) else math.inf
        if not (math.isfinite(held) and np.float32(held) > 0):
            raise InvalidConfig(f"{where} has the scale {_short(value)}: give a finite float32 number above 0.")
        return held
    if not math.isfinite(value) or value != int(value):
        raise InvalidConfig(f"{where} has the {part} {_short(value)}: give a whole number.")
    return int(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _few(names: Iterable[str]) -> str:
    every = list(names)
    told = ", ".join(_short(name) for name in every[:_MOST_NAMES])
    return (told + (f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else "")) or "none"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes out
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}…"
