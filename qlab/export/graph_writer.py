"""Nodes and constants of an ONNX graph as they are written, with unique names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from qlab.config import QuantSpec
from qlab.quant.packing import pack

FLOAT, INT8, UINT8, INT4, UINT4 = (
    TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4,
)  # fmt: skip
INT16, UINT16, INT32 = TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32
_NUMPY: dict[int, Any] = {INT8: np.int8, UINT8: np.uint8, INT16: np.int16, UINT16: np.uint16, INT32: np.int32}
RANGES: dict[int, tuple[int, int]] = {
    INT4: (-8, 7), UINT4: (0, 15), INT8: (-128, 127), UINT8: (0, 255), INT16: (-(2**15), 2**15 - 1),
    UINT16: (0, 2**16 - 1), INT32: (-(2**31), 2**31 - 1),
}  # fmt: skip


def container(quant_min: int, quant_max: int) -> int:
    """The smallest ONNX type that holds these codes."""
    for kind, (low, high) in RANGES.items():
        if low <= quant_min and quant_max <= high:
            return kind
    raise AssertionError(f"codes {quant_min}..{quant_max} have no container")


def activation_container(quant_min: int, quant_max: int) -> tuple[int, int]:
    """The ONNX type for the codes of an activation, and what is added to each of them.

    Up to 8 bits always unsigned: on x86 the integer kernels of ONNX Runtime take nothing else. A signed code q lives
    as q + 128 behind a zero point that is 128 higher, which changes no number.
    """
    if quant_max - quant_min < 256:
        return UINT8, 128 if quant_min < 0 else 0
    return (INT16 if quant_min < 0 else UINT16), 0


def ranged_by_runtime(spec: QuantSpec) -> bool:
    """Whether the runtime's own dynamic ops range an activation as this spec says: 8 bits, affine, every level used.

    They give unsigned codes; signed ones differ by 128 in code and zero point, and in no number.
    """
    return spec.quant_max - spec.quant_min == 255 and not spec.symmetric


class GraphWriter:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.domains: set[str] = set()
        self._taken: set[str] = set()
        self._node_names: set[str] = set()

    def free(self, name: str) -> str:
        """This name, or with a number behind it when it is taken."""
        return _free(name, self._taken)

    def reserve(self, name: str) -> None:
        self._taken.add(name)

    def node(
        self, op: str, inputs: Sequence[str], layer: str, *, output: str | None = None, outputs: Sequence[str] = (),
        domain: str = "", **attributes: Any,
    ) -> str:  # fmt: skip
        """A node of this layer; gives the name of its first output."""
        names = list(outputs) or [self.free(output or f"{layer}/{op}")]
        name = _free(f"{layer}/{op}", self._node_names)
        made = helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes)
        if domain:
            self.domains.add(domain)
        self.nodes.append(made)
        return names[0]

    def array(self, name: str, value: np.ndarray) -> str:
        """A constant holding this array."""
        name = self.free(name)
        self.constants[name] = onnx.numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def scalar(self, value: float | int, kind: int) -> str:
        """A constant of no axes, shared by all who need this very value."""
        name = f"{TensorProto.DataType.Name(kind).lower()}_{value!r}"
        if name not in self.constants:
            dtype = np.float32 if kind == FLOAT else np.int64 if kind == TensorProto.INT64 else _NUMPY[kind]
            self.constants[name] = onnx.numpy_helper.from_array(np.asarray(value, dtype), name)
            self._taken.add(name)
        return name

    def sizes(self, values: Sequence[int]) -> str:
        """An int64 list, shared."""
        name = "int64_" + "_".join(map(str, values))
        if name not in self.constants:
            self.constants[name] = onnx.numpy_helper.from_array(np.asarray(values, np.int64), name)
            self._taken.add(name)
        return name

    def codes(self, name: str, codes: torch.Tensor, kind: int) -> str:
        """Integer codes as a constant of this type; two 4-bit codes share a byte, the first in the low half."""
        name = self.free(name)
        made = TensorProto(name=name, data_type=kind, dims=list(codes.shape))
        if kind in (INT4, UINT4):
            made.raw_data = pack(codes, 4, kind == INT4).numpy().tobytes()
        else:
            made.raw_data = codes.numpy().astype(_NUMPY[kind]).tobytes()
        self.constants[name] = made
        return name


def _free(name: str, taken: set[str]) -> str:
    candidate, i = name, 1
    while candidate in taken:
        candidate, i = f"{name}.{i}", i + 1
    taken.add(candidate)
    return candidate
