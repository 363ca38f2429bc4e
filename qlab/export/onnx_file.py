"""A quantized model, or a float one, as an ONNX file: what `QuantizedModel.to_onnx` writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qlab.errors import InvalidConfig
from qlab.export.assemble import Assembled, assemble
from qlab.export.template import template

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model


def quantized_onnx(qmodel: QuantizedModel, *, codes_as_outputs: bool = False) -> Assembled:
    """The ONNX graph of the model as it stands now: codes, scales and zero points are read afresh.

    The first call for a model exports it, which takes seconds; later ones, with any config, milliseconds.
    Raises UnsupportedModel naming the op that has no ONNX form.
    """
    return assemble(template(qmodel.model), qmodel, codes_as_outputs=codes_as_outputs)


def float_onnx(model: Model) -> Assembled:
    """The float network as ONNX, from the same export. Raises UnsupportedModel."""
    return assemble(template(model), None)


def write_onnx(assembled: Assembled, path: str | Path) -> Path:
    """Write the file; one that is there is replaced at once or not at all. Raises InvalidConfig."""
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise InvalidConfig(f"{path.name!r} does not end in .onnx: name the file so that runtimes know it.")
    if not path.parent.is_dir():
        raise InvalidConfig(f"there is no folder {str(path.parent)!r} to write {path.name!r} to: make it first.")
    beside = path.with_name(path.name + ".partial")
    beside.write_bytes(assembled.proto.SerializeToString())
    beside.replace(path)
    return path
