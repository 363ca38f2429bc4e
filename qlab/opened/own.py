"""A quantized model that the lab saved: read as it is loaded, and told in the words of the other formats."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from qlab.opened.file import FileTensor, OpCount, QuantizedFile, checked

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
    integer = Counter(row.op for row in qmodel.ledger if row.quantized and row.mode in ("static", "dynamic"))
    return tuple(OpCount(op, n, integer[op]) for op, n in counts.items())


def _weights(qmodel: QuantizedModel) -> list[FileTensor]:
    out, seen = [], set()
    for point in qmodel.placement.weights:
        tensor = qmodel.weights[point.layer]
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out.append(_weight(point.tensor, point.layer, point.node.name, tensor))
    return out


def _weight(name: str, layer: str, node: str, tensor: QuantizedTensor) -> FileTensor:
    codes, scale, points = (t.detach().numpy() for t in (tensor.codes, tensor.scale, tensor.zero_point))
    block_size = None
    if tensor.group_size is not None:  # along what lies behind an output channel, flattened
        codes, block_size = codes.swapaxes(0, tensor.axis or 0).reshape(codes.shape[tensor.axis or 0], -1), tensor.group_size
    made = checked(
        name, "weight", bits=tensor.bits, signed=tensor.signed, scale=scale, zero_point=points, codes=codes,
        axis=1 if block_size else tensor.axis, block_size=block_size, aliases=[name], reader=layer, reader_op=node,
    )  # fmt: skip
    return made


def _activations(qmodel: QuantizedModel) -> list[FileTensor]:
    return [
        _activation(qmodel.points[key].tensor, module, qmodel.points[key].node.meta.get("shape"))
        for key, module in qmodel.activations.items()
    ]


def _activation(name: str, grid: FakeQuantize, shape: tuple[int, ...] | None) -> FileTensor:
    signed = grid.quant_min < 0
    low, high = grid.quant_min, grid.quant_max
    bits = max((-low - 1).bit_length() if signed else 0, high.bit_length()) + signed
    return checked(
        name, "activation", bits=bits, signed=signed, scale=_numpy(grid.scale), zero_point=_numpy(grid.zero_point),
        shape=None if shape is None else (None, *shape[1:]), axis=grid.axis, aliases=[name], maker=name,
    )  # fmt: skip


def _numpy(tensor: Tensor):  # noqa: ANN202
    return tensor.detach().numpy()
