"""LSTM and GRU as ONNX ops: float, weight-only, and ONNX Runtime's dynamically quantized LSTM.

torch orders the gates of an LSTM as input, forget, cell, output, ONNX as input, output, forget, cell; of a GRU as
reset, update, new and update, reset, hidden. ONNX has one op for a layer with both
directions; layers stand one after another.

The dynamic LSTM of ONNX Runtime equals the simulation while one thread takes the whole batch. With more threads, or a
large batch, it cuts the batch into parts and ranges the hidden state of each part by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from qlab.errors import UnsupportedModel
from qlab.export.graph_writer import INT8, UINT8, ranged_by_runtime
from qlab.export.values import Value
from qlab.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from qlab.export.products import Products

_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


@dataclass(frozen=True)
class _Layer:
    """What one op needs. parameters: for each direction the names of w_ih, w_hh and, with biases, b_ih, b_hh."""

    layer: str
    kind: str
    number: int
    directions: int
    parameters: list[list[str]]
    hidden: int


def write_recurrent(asm: Products, node: onnx.NodeProto) -> None:
    """Write all layers of one Recurrent marker. Raises UnsupportedModel for what no runtime op computes."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind, layer = given["kind"].decode(), given["layer"].decode()
    states = 2 if kind == "lstm" else 1
    x = asm.as_float(asm.value(node.input[0]), layer)
    initial = [asm.as_float(asm.value(i), layer) for i in node.input[1 : 1 + states]]
    names = list(node.input[1 + states :])
    directions, layers = given["directions"], given["layers"]
    each = len(names) // (layers * directions)
    write, sizes = asm.graph.node, asm.graph.sizes
    if given["batch_first"]:
        x = write("Transpose", [x], layer, perm=[1, 0, 2])
    finals: list[list[str]] = [[] for _ in initial]
    hidden = int(asm.given[names[1]].dims[1])
    for number in range(layers):
        first = number * directions
        parameters = [names[(first + d) * each : (first + d + 1) * each] for d in range(directions)]
        starts = [_rows(asm, s, first, directions, layer) if layers > 1 else s for s in initial]
        made = _write_layer(asm, _Layer(layer, kind, number, directions, parameters, hidden), x, starts)
        if directions == 1:
            x = write("Squeeze", [made[0], sizes([1])], layer)
        else:
            turned = write("Transpose", [made[0]], layer, perm=[0, 2, 1, 3])
            x = write("Reshape", [turned, sizes([0, 0, directions * hidden])], layer)
        for final, value in zip(finals, made[1:], strict=True):
            final.append(value)
    if given["batch_first"]:
        x = write("Transpose", [x], layer, perm=[1, 0, 2])
    asm.values[node.output[0]] = Value(x)
    for output, parts in zip(node.output[1:], finals, strict=True):
        asm.values[output] = Value(parts[0] if layers == 1 else write("Concat", parts, layer, axis=0))


def _rows(asm: Products, state: str, first: int, count: int, layer: str) -> str:
    sizes = asm.graph.sizes
    return asm.graph.node("Slice", [state, sizes([first]), sizes([first + count]), sizes([0])], layer)


def _write_layer(asm: Products, one: _Layer, x: str, starts: list[str]) -> list[str]:
    """[Y, Y_h] and for an LSTM Y_c."""
    keys = [[_key(one, d, part) for part in ("weight_ih", "weight_hh")] for d in range(one.directions)]
    quantized = [[asm.weight(k) for k in pair] for pair in keys]
    spec = asm.dynamic.get(one.layer)
    bias = asm.graph.array(f"{one.layer}.bias_l{one.number}", _biases(asm, one)) if len(one.parameters[0]) > 2 else ""
    direction: dict[str, Any] = {"direction": "bidirectional"} if one.directions == 2 else {}
    common: dict[str, Any] = {"hidden_size": one.hidden, **direction}
    outputs = [asm.graph.free(f"{one.layer}/{part}_l{one.number}") for part in ("y", "y_h", "y_c")[: 1 + len(starts)]]
    if spec is not None:
        _check_dynamic(one, spec, quantized)
        pairs = [[t for t in pair if t is not None] for pair in quantized]
        unsigned = _unsigned([t for pair in pairs for t in pair])
        w, r = (_dynamic_weight(asm, one, [pair[i] for pair in pairs], i, unsigned) for i in range(2))
        inputs = [x, w[0], r[0], bias, "", *starts, "", w[1], w[2], r[1], r[2]]
        asm.graph.node("DynamicQuantizeLSTM", inputs, one.layer, outputs=outputs, domain="com.microsoft", **common)
        return outputs
    w_float, r_float = (_float_weight(asm, one, [pair[i] for pair in quantized], i) for i in range(2))
    more: dict[str, Any] = {"linear_before_reset": 1} if one.kind == "gru" else {}
    asm.graph.node(
        one.kind.upper(), [x, w_float, r_float, bias, "", *starts], one.layer, outputs=outputs, **common, **more
    )
    return outputs


def _key(one: _Layer, direction: int, part: str) -> str:
    return f"{one.layer}.{part}_l{one.number}" + ("_reverse" if direction else "")


def _check_dynamic(one: _Layer, spec: Any, quantized: list[list[QuantizedTensor | None]]) -> None:
    if one.kind == "gru":
        raise UnsupportedModel(
            f"layer {one.layer!r} is a GRU with activations ranged at every step, and ONNX Runtime has no such kernel: "
            "leave it float, or quantize its weights alone (mode weight_only)."
        )
    if not ranged_by_runtime(spec):
        raise UnsupportedModel(
            f"layer {one.layer!r} ranges {spec} at every step; ONNX Runtime's dynamic LSTM takes 8-bit affine "
            "activations alone: choose those, or mode weight_only."
        )
    if any(t is None or t.scale.ndim == 2 for pair in quantized for t in pair):
        raise UnsupportedModel(
            f"layer {one.layer!r} has a scale for each group of weights; ONNX Runtime's dynamic LSTM takes one for "
            "each channel at most: choose a per_channel scheme, or mode weight_only."
        )
    for which in range(2):
        points = torch.cat([t.zero_point.reshape(-1) for pair in quantized if (t := pair[which]) is not None])
        if bool((points != points[0]).any()):
            raise UnsupportedModel(
                f"layer {one.layer!r} has weights with zero points from {int(points.min())} to {int(points.max())}; "
                "ONNX Runtime's dynamic LSTM takes one for all channels: choose a symmetric or a per_tensor scheme, "
                "mode weight_only, or write one zero point into all of them."
            )


def _order(rows: torch.Tensor, one: _Layer) -> torch.Tensor:
    """The rows [gates * H, …] in ONNX's order of gates."""
    blocks = rows.reshape(len(_GATES[one.kind]), one.hidden, *rows.shape[1:])
    return blocks[list(_GATES[one.kind])].reshape(rows.shape)


def _biases(asm: Products, one: _Layer) -> np.ndarray:
    rows = []
    for names in one.parameters:
        parts = [torch.from_numpy(onnx.numpy_helper.to_array(asm.given[n]).copy()) for n in names[2:4]]
        rows.append(torch.cat([_order(p, one) for p in parts]))
    return torch.stack(rows).numpy()


def _per_row(tensor: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point, one for each row."""
    rows = tensor.codes.shape[0]
    return tensor.scale.reshape(-1).expand(rows), tensor.zero_point.reshape(-1).expand(rows)


def _unsigned(tensors: list[QuantizedTensor]) -> bool:
    """Whether the weights of a DynamicQuantizeLSTM are unsigned: all have one type, and signed ones no zero point."""
    return any(not t.signed or bool((t.zero_point != 0).any()) for t in tensors)


def _dynamic_weight(
    asm: Products, one: _Layer, tensors: list[QuantizedTensor], which: int, unsigned: bool
) -> tuple[str, str, str]:
    """Codes [directions, K, 4H], scales and zero points [directions, 4H] for DynamicQuantizeLSTM."""
    name = f"{one.layer}.{('weight_ih', 'weight_hh')[which]}_l{one.number}"
    # A signed code q lives as q + 128 behind a zero point that is 128 higher, where it cannot stay as it is.
    shifts = [128 if unsigned and t.signed else 0 for t in tensors]
    rows = [[_order(v, one) for v in _per_row(t)] for t in tensors]
    codes = torch.stack([_order(t.codes.int() + shift, one).t() for t, shift in zip(tensors, shifts, strict=True)])
    points = torch.stack([points + shift for (_, points), shift in zip(rows, shifts, strict=True)])
    kind = UINT8 if unsigned else INT8
    # 4-bit codes travel in bytes here: this op takes nothing smaller
    return (
        asm.graph.codes(f"{name}/codes", codes, kind),
        asm.graph.array(f"{name}/scale", torch.stack([r[0] for r in rows]).numpy()),
        asm.graph.codes(f"{name}/zero_point", points, kind),
    )


def _float_weight(asm: Products, one: _Layer, tensors: list[QuantizedTensor | None], which: int) -> str:
    """The weight [directions, gates * H, K] in float: dequantized in the graph where it is quantized."""
    part = ("weight_ih", "weight_hh")[which]
    parts = []
    for direction, tensor in enumerate(tensors):
        name = _key(one, direction, part)
        if tensor is None:
            given = onnx.numpy_helper.to_array(asm.given[one.parameters[direction][which]]).copy()
            parts.append(asm.graph.array(name, _order(torch.from_numpy(given), one).numpy()[None]))
            continue
        grouped_or_rows = tensor.scale.ndim > 0
        ordered = asm.keep(QuantizedTensor(
            _order(tensor.codes, one),
            _order(tensor.scale, one) if grouped_or_rows else tensor.scale,
            _order(tensor.zero_point, one) if grouped_or_rows else tensor.zero_point,
            tensor.quant_min, tensor.quant_max, tensor.axis, tensor.group_size,
        ))  # fmt: skip
        flat = asm.weight_float(ordered, name)
        parts.append(asm.graph.node("Unsqueeze", [flat, asm.graph.sizes([0])], one.layer))
    return parts[0] if len(parts) == 1 else asm.graph.node("Concat", parts, one.layer, axis=0)
