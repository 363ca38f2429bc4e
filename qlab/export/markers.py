"""The marks in the exported graph, as ops of torch that the exporter writes as nodes of the domain "qlab".

    Tap(x) {name}                        the tensor of that name
    Edge(x) {source, consumer}           the tensor on its way into one op
    Weight(w), Bias(b) {layer}           constants of a convolution
    Linear(x, w, b?) {layer, shape}      shape: of the output, -1 for a free size
    Embedding(w, i) {layer, rank}        rank: of the indices
    Recurrent(x, h, c?, parameters…) {layer, kind, layers, directions, batch_first, biases}
    Clamp(x) {low?, high?}               relu and its family
    Scale(x) {factor}                    a product with a number

None of them is left in a file that is written. `torch.onnx.ops.symbolic` would do without ops of our own, but carries
the shape of every mark through the graph as values, which makes an export slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnxscript
import torch
from onnx.defs import OpSchema
from torch import Tensor

DOMAIN = "qlab"
_INT, _INTS, _FLOAT, _TEXT = (getattr(OpSchema.AttrType, kind) for kind in ("INT", "INTS", "FLOAT", "STRING"))
_TYPES = ["tensor(float)", "tensor(int64)", "tensor(int32)"]
_translations: dict[Callable[..., Any], Callable[..., Any]] = {}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: op of torch -> what writes its node."""
    return dict(_translations)


# ---- what makes one --------------------------------------------------------------------------------------------------


def _node(op_type: str, outputs: int = 1, **attributes: Any) -> onnxscript.values.Op:
    """A kind of node that takes any inputs; attributes: their types, each may be missing."""
    inputs = OpSchema.FormalParameter(
        "inputs", "I", param_option=OpSchema.FormalParameterOption.Variadic, is_homogeneous=False
    )
    schema = OpSchema(
        op_type, DOMAIN, 1, inputs=[inputs],
        outputs=[OpSchema.FormalParameter(f"output_{i}", "O") for i in range(outputs)],
        type_constraints=[("I", _TYPES, ""), ("O", _TYPES, "")],
        attributes=[OpSchema.Attribute(key, kind, required=False) for key, kind in attributes.items()],
    )  # fmt: skip
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), op_type, schema)


def _mark(name: str, schema: str, shapes: Callable[..., Any], write: Callable[..., Any]) -> Any:
    """An op of torch that only ever stands in a graph. shapes: what it gives; write: makes its node."""
    known = getattr(torch.ops, DOMAIN)
    if not hasattr(known, name):  # torch has one register, and a module may be loaded anew, as Streamlit does
        torch.library.define(f"{DOMAIN}::{name}", schema)
        torch.library.register_fake(f"{DOMAIN}::{name}", shapes)
    op = getattr(known, name).default
    _translations[op] = write
    return op


def _same(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


# ---- tensors ---------------------------------------------------------------------------------------------------------

_tap, _edge = _node("Tap", name=_TEXT), _node("Edge", source=_TEXT, consumer=_TEXT)
_weight, _bias = _node("Weight", layer=_TEXT), _node("Bias", layer=_TEXT)

tap = _mark("tap", "(Tensor x, str name) -> Tensor", _same, lambda x, name: _tap(x, name=name))
edge = _mark(
    "edge", "(Tensor x, str source, str consumer) -> Tensor", _same,
    lambda x, source, consumer: _edge(x, source=source, consumer=consumer),
)  # fmt: skip
weight = _mark("weight", "(Tensor w, str layer) -> Tensor", _same, lambda w, layer: _weight(w, layer=layer))
bias = _mark("bias", "(Tensor b, str layer) -> Tensor", _same, lambda b, layer: _bias(b, layer=layer))

# ---- ops -------------------------------------------------------------------------------------------------------------

_linear, _embedding = _node("Linear", layer=_TEXT, shape=_INTS), _node("Embedding", layer=_TEXT, rank=_INT)
_clamp, _scale = _node("Clamp", low=_FLOAT, high=_FLOAT), _node("Scale", factor=_FLOAT)


def _linear_shape(x: Tensor, w: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _write_linear(x: Any, w: Any, b: Any, layer: str, shape: Sequence[int]) -> Any:
    inputs = (x, w) if b is None else (x, w, b)
    return _linear(*inputs, layer=layer, shape=list(shape))


def _embedding_shape(w: Tensor, indices: Tensor, *_: Any) -> Tensor:
    return w.new_empty((*indices.shape, w.shape[1]))


linear = _mark(
    "linear", "(Tensor x, Tensor w, Tensor? b, str layer, int[] shape) -> Tensor", _linear_shape, _write_linear
)
embedding = _mark(
    "embedding", "(Tensor w, Tensor indices, str layer, int rank) -> Tensor", _embedding_shape,
    lambda w, indices, layer, rank: _embedding(w, indices, layer=layer, rank=rank),
)  # fmt: skip
clamp = _mark(
    "clamp", "(Tensor x, float? low, float? high) -> Tensor", _same,
    lambda x, low, high: _clamp(x, low=low, high=high),
)  # fmt: skip
scale = _mark("scale", "(Tensor x, float factor) -> Tensor", _same, lambda x, factor: _scale(x, factor=factor))

# ---- recurrent layers ------------------------------------------------------------------------------------------------


def _recurrent_shapes(
    x: Tensor, states: Sequence[Tensor], _parameters: Sequence[Tensor], _kind: str, _layer: str, _layers: int,
    directions: int, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    hidden = states[0].shape[-1]
    return x.new_empty((x.shape[0], x.shape[1], hidden * directions)), *(torch.empty_like(s) for s in states)


def _recurrent(outputs: int) -> Any:
    """With the states after it: two outputs for a GRU, three for an LSTM."""
    node = _node(
        "Recurrent", outputs, layer=_TEXT, kind=_TEXT, layers=_INT, directions=_INT, batch_first=_INT, biases=_INT
    )

    def write(
        x: Any, states: Sequence[Any], parameters: Sequence[Any], kind: str, layer: str, layers: int, directions: int,
        batch_first: bool, biases: bool,
    ) -> Any:  # fmt: skip
        return node(
            x, *states, *parameters, layer=layer, kind=kind, layers=layers, directions=directions,
            batch_first=int(batch_first), biases=int(biases),
        )  # fmt: skip

    schema = (
        "(Tensor x, Tensor[] states, Tensor[] parameters, str kind, str layer, int layers, int directions, "
        f"bool batch_first, bool biases) -> ({', '.join(['Tensor'] * outputs)})"
    )
    return _mark(f"recurrent_{outputs}", schema, _recurrent_shapes, write)


gru, lstm = _recurrent(2), _recurrent(3)
