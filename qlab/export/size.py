"""Where the bytes of an exported file go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import onnx

from qlab.export.onnx_file import float_onnx, quantized_onnx

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel

PARTS: Mapping[str, str] = {
    "codes": "the weights as integers, at the bits they need",
    "waste": "what the file's containers take beyond that, 3-bit codes in 4 bits for example",
    "scales": "one 32-bit number for each tensor, channel or group",
    "zero_points": "the code of zero, one beside each scale",
    "biases": "32-bit integers at the scale of the products",
    "stays_float": "constants that stay float",
    "graph": "names and ops",
}


@dataclass(frozen=True)
class FileSize:
    """Bytes of an ONNX file by part; layers has them for each layer that holds any.

    float_file: bytes of the file of the float network.
    """

    codes: int
    waste: int
    scales: int
    zero_points: int
    biases: int
    stays_float: int
    graph: int
    float_file: int
    layers: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)

    @property
    def ratio(self) -> float:
        """Of the quantized file to the float one."""
        return self.total / self.float_file

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> FileSize:
        return cls(**d)


def file_size(qmodel: QuantizedModel) -> FileSize:
    """Of the file `to_onnx` writes, to the byte. Raises UnsupportedModel."""
    proto = quantized_onnx(qmodel).proto
    layers: dict[str, dict[str, int]] = {}
    known = {row.layer for row in qmodel.ledger} | {s.name for s in qmodel.model.inputs}
    readers = {name: node.name.split("/")[0] for node in reversed(proto.graph.node) for name in node.input}
    for constant in proto.graph.initializer:
        stem, named, what = constant.name.partition("/")
        layer = _layer(stem if named else readers.get(stem, stem), known)
        part = _part(stem, what, constant.data_type)
        own = layers.setdefault(layer, {})
        own[part] = own.get(part, 0) + len(constant.raw_data)
    ideal: Counter[str] = Counter()
    for key, count in _ideal(qmodel).items():
        ideal[_layer(key, known)] += count
    for layer, own in layers.items():
        if "codes" in own and layer in ideal:
            own["waste"] = max(own["codes"] - ideal[layer], 0)
            own["codes"] -= own["waste"]
    totals = {part: sum(own.get(part, 0) for own in layers.values()) for part in PARTS if part != "graph"}
    totals["graph"] = proto.ByteSize() - sum(totals.values())
    return FileSize(**totals, float_file=float_onnx(qmodel.model).proto.ByteSize(), layers=layers)


def _layer(name: str, known: Collection[str]) -> str:
    """The layer, or the input, that something of this name belongs to: 'fc' of 'fc.weight'."""
    owner = name
    while owner not in known and "." in owner:
        owner = owner.rpartition(".")[0]
    return owner if owner in known else name


def _part(stem: str, what: str, data_type: int) -> str:
    """Part of a constant, by the names `assemble` gives."""
    what = what.split(".")[0]
    if stem.endswith(".bias"):
        return {"codes": "biases", "scale": "scales"}.get(what, "stays_float")
    parts = {"codes": "codes", "scale": "scales", "own_scale": "scales", "zero_point": "zero_points"}
    return parts.get(what, "graph" if data_type == onnx.TensorProto.INT64 else "stays_float")


def _ideal(qmodel: QuantizedModel) -> dict[str, int]:
    """Bytes the codes need at their bits, by layer; a weight that two layers share counts for the first."""
    out: dict[str, int] = {}
    seen: set[int] = set()
    for key, tensor in qmodel.weights.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out[key] = -(-tensor.codes.numel() * tensor.bits // 8)
    return out
