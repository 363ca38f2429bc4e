"""A quantized model that the lab saved: read as it is loaded, and told in the words of the other formats."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from qlab.graph.ops import op_type
from qlab.opened.file import FileTensor, Near, OpCount, QuantizedFile, checked

if TYPE_CHECKING:
    from torch import Tensor

    from qlab.conversion import FakeQuantize, QuantizedModel
    from qlab.quant.tensor import QuantizedTensor


def read_own(data: bytes, name: str) -> QuantizedFile:
    """Raises BadUpload, UnsafeFile."""
    from qlab.export.quantized_load import load_quantized
    from qlab.export.tensor_file import unpack_file

    qmodel = load_quantized(data)
    texts, _ = unpack_file(data)
    return QuantizedFile(
        name, "qlab", f"qlab {texts['qlab']}", f"version {texts['version']}", len(data), _ops(qmodel),
        (*_weights(qmodel), *_activations(qmodel)),
    )  # fmt: skip


def _ops(qmodel: QuantizedModel) -> tuple[OpCount, ...]:
    """Weight-only ops hold integers and compute in float."""
    counts = Counter(row.op for row in qmodel.ledger)
    integer = Counter(row.op for row in qmodel.ledger if row.quantized and row.mode != "weight_only")
    return tuple(OpCount(op, n, integer[op]) for op, n in counts.items())


def _weights(qmodel: QuantizedModel) -> list[FileTensor]:
    out, seen = [], set()
    for point in qmodel.placement.weights:
        tensor = qmodel.weights[point.layer]
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out.append(_weight(point.tensor, qmodel.model.names[point.node], op_type(point.node), tensor))
    return out


def _weight(name: str, layer: str, op: str, tensor: QuantizedTensor) -> FileTensor:
    codes, axis = _numpy(tensor.codes), tensor.axis
    if tensor.group_size is not None:  # groups run along what lies behind an output channel, flattened
        codes, axis = codes.reshape(codes.shape[0], -1), 1
    return checked(
        name, "weight", bits=tensor.bits, signed=tensor.signed, scale=_numpy(tensor.scale),
        zero_point=_numpy(tensor.zero_point), codes=codes, axis=axis, block_size=tensor.group_size, aliases=[name],
        near=Near(layer, op),
    )  # fmt: skip


def _activations(qmodel: QuantizedModel) -> list[FileTensor]:
    return [
        _activation(point.tensor, qmodel.activations[key], point.node.meta.get("shape"))
        for key, point in qmodel.points.items()
    ]


def _activation(name: str, grid: FakeQuantize, shape: tuple[int, ...] | None) -> FileTensor:
    signed = grid.quant_min < 0
    low, high = grid.quant_min, grid.quant_max
    bits = max((-low - 1).bit_length() if signed else 0, high.bit_length()) + signed
    return checked(
        name, "activation", bits=bits, signed=signed, scale=_numpy(grid.scale), zero_point=_numpy(grid.zero_point),
        shape=None if shape is None else (None, *shape[1:]), axis=grid.axis, aliases=[name],
        near=Near(maker=name),
    )  # fmt: skip


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().numpy()
