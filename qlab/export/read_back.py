"""Where a number of a quantized model stands: its key in `state_dict()`, what the saved file holds, and the ONNX file.

Everything here reads: from the bytes of the file a person would get, with the reader that person would use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from qlab.edits import Edit, apply_edits, buffer_of
from qlab.errors import InvalidConfig, UnsupportedModel
from qlab.export.assemble import assemble
from qlab.export.quantized_file import quantized_bytes
from qlab.export.quantized_load import load_quantized
from qlab.export.template import template

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel

# As `assemble` calls its constants; a number stands behind a name that was taken. Biases are not what a person edits.
_NAMES = {
    part: re.compile(rf"(?<!\.bias)/{word}(\.\d+)?$")
    for part, word in (("code", "codes"), ("scale", "scale"), ("zero_point", "zero_point"))
}
_ZERO_POINT = _NAMES["zero_point"]
_MOVED = 128  # a signed code that lives as an unsigned one, and its zero point, are so much higher


@dataclass(frozen=True)
class Difference:
    """A constant in which two ONNX files differ. kind: its ONNX type in the second. places: how many of its numbers.

    index, before, after: the first of them; before is None where the first file has no such constant, after where the
    second has none, and index is () then.
    """

    constant: str
    kind: str
    places: int
    index: tuple[int, ...]
    before: float | None
    after: float | None


@dataclass(frozen=True)
class ReadBack:
    """One number as the two files hold it.

    saved: in the .safetensors file, as `load_quantized` reads it; bytes: size of that file. onnx: the constants of the
    integer session's file that differ from a file in which this number alone has the value `was`. held: the one of them
    that is the number itself, None where none is. moved: what the file adds to it, 0 or 128. refused: why there is no
    such file, None where there is one.
    """

    edit: Edit
    was: float
    saved: float
    bytes: int
    onnx: tuple[Difference, ...]
    held: Difference | None
    moved: int
    refused: str | None = None


def state_key(qmodel: QuantizedModel, edit: Edit) -> str:
    """The key of `qmodel.state_dict()` under which the buffer of this edit stands. Raises InvalidConfig."""
    buffer = buffer_of(qmodel, edit.tensor, edit.part, edit.of)
    for key, tensor in qmodel.state_dict().items():
        if tensor.data_ptr() == buffer.data_ptr() and tensor.shape == buffer.shape and tensor.dtype == buffer.dtype:
            return key
    raise InvalidConfig(f"The {edit.part} of {edit.tensor!r} is not among the stored tensors: convert the model again.")


def read_back(qmodel: QuantizedModel, edit: Edit, was: float) -> ReadBack:
    """Write both files in memory and read this number from them. qmodel is not changed.

    was: what the number was before the edit. The first call for a network exports it, which takes seconds. Raises what
    saving raises.
    """
    data = quantized_bytes(qmodel)
    loaded = load_quantized(data)
    saved = buffer_of(loaded, edit.tensor, edit.part, edit.of)[edit.index].item()
    apply_edits(loaded, [Edit(edit.tensor, edit.part, edit.index, was, edit.of)])
    try:
        exported = template(qmodel.model)  # of both: they are one network, and exporting takes seconds
        before, after = (assemble(exported, one).proto.SerializeToString() for one in (loaded, qmodel))
    except UnsupportedModel as error:
        return ReadBack(edit, was, saved, len(data), (), None, 0, str(error))
    found = tuple(differences(before, after))
    held, moved = _held(found, edit)
    return ReadBack(edit, was, saved, len(data), found, held, moved)


def differences(before: bytes, after: bytes) -> Iterator[Difference]:
    """The constants in which two ONNX files differ, in the order of the second; empty for equal ones."""
    old, new = _constants(before), _constants(after)
    for name in dict.fromkeys([*new, *old]):
        a, b = _either(name, old, new), _either(name, new, old)
        if a is None or b is None or a.shape != b.shape:
            given = b if b is not None else a
            assert given is not None
            yield Difference(name, str(given.dtype), given.size, (), None, None)
            continue
        places = np.argwhere(np.asarray(a != b))
        if len(places):
            index = tuple(int(i) for i in places[0])
            yield Difference(name, str(b.dtype), len(places), index, float(a[index]), float(b[index]))


def _constants(file: bytes) -> dict[str, NDArray[np.generic]]:
    graph = onnx.load_from_string(file).graph
    return {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}


def _either(
    name: str, here: Mapping[str, NDArray[np.generic]], there: Mapping[str, NDArray[np.generic]]
) -> NDArray[np.generic] | None:
    """A constant of a file. Zero points that a file leaves out are zeros, which is what ONNX says they are."""
    if name in here or not _ZERO_POINT.search(name):
        return here.get(name)
    return np.zeros_like(there[name])


def _held(found: tuple[Difference, ...], edit: Edit) -> tuple[Difference | None, int]:
    """The constant that is the number itself, and what the file adds to it. Scales are compared as float32."""
    value = float(np.float32(edit.value)) if edit.part == "scale" else edit.value
    named = _NAMES[edit.part]
    for moved in (0,) if edit.part == "scale" else (0, _MOVED):
        for one in found:
            if one.after == value + moved and named.search(one.constant):
                return one, moved
    return None, 0
