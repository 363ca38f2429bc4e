"""An ONNX graph as it is looked through: who makes a tensor, who reads it, and which constant stands behind it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto

from qlab.errors import BadUpload, UnsafeFile
from qlab.opened.file import Budget, clean
from qlab.opened.onnx_values import WHOLE, array_of

MAX_NODES = 200_000
MAX_STEPS = 8  # through which a constant is followed
SAME = ("Identity", "Cast")
MOVED = (*SAME, "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")  # the same values in another shape or order
RELU_LIKE = ("Relu", "Clip", "Relu6")


class OnnxGraph:
    """nodes by number; a node without a name is called #number. budget: values that may still be unpacked."""

    def __init__(self, graph: onnx.GraphProto, budget: Budget):
        self.graph, self.budget = graph, budget
        self.nodes = list(graph.node)
        if len(self.nodes) > MAX_NODES:
            raise BadUpload(f"The graph has {len(self.nodes):,} operators; at most {MAX_NODES:,} are read.")
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.constants |= {node.output[0]: value for node in self.nodes if (value := _constant(node)) is not None}
        self.made_by = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[tuple[int, int]]] = {}
        for i, node in enumerate(self.nodes):
            for position, name in enumerate(node.input):
                if name:
                    self.readers.setdefault(name, []).append((i, position))
        self._arrays: dict[str, NDArray[Any] | None] = {}

    def check_external(self) -> None:
        """Raises UnsafeFile where a constant lies in another file."""
        for name, tensor in self.constants.items():
            if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
                raise UnsafeFile(
                    f"Constant {clean(name)!r} lies in another file, which is not opened. Save the model as one file: "
                    "onnx.save(model, path, save_as_external_data=False)."
                )

    def name(self, number: int) -> str:
        return self.nodes[number].name or f"#{number}"

    def array(self, name: str) -> NDArray[Any] | None:
        """The values of a constant; None for what is none, or of a type without numbers. Raises BadUpload."""
        if name not in self.constants:
            return None
        if name not in self._arrays:
            self._arrays[name] = array_of(self.constants[name], self.budget)
        return self._arrays[name]

    def kind(self, name: str) -> int:
        """The type of a constant."""
        return self.constants[name].data_type

    def is_codes(self, name: str) -> bool:
        return name in self.constants and self.kind(name) in WHOLE

    def behind(self, name: str, through: tuple[str, ...] = SAME) -> str | None:
        """The constant whose values these are, followed back through such ops; None for what is computed."""
        for _ in range(MAX_STEPS):
            if name in self.constants:
                return name
            node = self.maker(name)
            if node is None or node.op_type not in through or not node.input:
                return None
            name = node.input[0]
        return None

    def origin(self, name: str) -> str | None:
        """The tensor that is moved into this one; None where it is computed in another way."""
        moved = name
        for _ in range(MAX_STEPS):
            node = self.maker(moved)
            if node is None or node.op_type not in MOVED or node.op_type == "Cast" or not node.input:
                break
            moved = node.input[0]
        return moved if moved != name else None

    def maker(self, name: str) -> onnx.NodeProto | None:
        return self.nodes[self.made_by[name]] if name in self.made_by else None

    def unit(self, name: str) -> int | None:
        """The op that a tensor comes from: what stands before QuantizeLinear, and before a ReLU that is its only
        reader; None for an input of the network."""
        number = self.made_by.get(name)
        if number is not None and self.nodes[number].op_type == "QuantizeLinear" and self.nodes[number].input:
            name = self.nodes[number].input[0]
            number = self.made_by.get(name)
        if number is None or self.nodes[number].op_type not in RELU_LIKE or not self.nodes[number].input:
            return number
        before = self.nodes[number].input[0]
        alone = before in self.made_by and len(self.readers.get(before, ())) == 1
        maker = self.nodes[self.made_by[before]] if alone else None
        quantizes = maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear")
        return self.made_by[before] if alone and not quantizes else number

    def users(self, name: str, through: tuple[str, ...] = MOVED) -> Iterator[tuple[int, int]]:
        """(op, position) of who reads these values, behind ops that only move them."""
        waiting, seen = [name], {name}
        while waiting:
            for number, position in self.readers.get(waiting.pop(), ()):
                node = self.nodes[number]
                if node.op_type in through and position == 0 and node.output:
                    if node.output[0] not in seen:
                        seen.add(node.output[0])
                        waiting.append(node.output[0])
                else:
                    yield number, position

    @cached_property
    def sizes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes the file states for tensors; free sizes are None."""
        out: dict[str, tuple[int | None, ...]] = {}
        for info in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            if info.type.HasField("tensor_type") and info.type.tensor_type.HasField("shape"):
                dims = info.type.tensor_type.shape.dim
                out[info.name] = tuple(
                    d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims
                )
        return out


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """A whole-number attribute."""
    return next((a.i for a in node.attribute if a.name == name and a.type == AttributeProto.INT), default)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or not node.output:
        return None
    return next((a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR), None)
