"""Grids beside QuantizeLinear and DequantizeLinear, and the same arithmetic written out around a table."""

from __future__ import annotations

import onnx

from qlab.opened.file import Role
from qlab.opened.onnx_graph import MOVED, SAME, OnnxGraph, attribute
from qlab.opened.onnx_grids import Found, codes_of
from qlab.opened.onnx_values import FLOATS

BIAS_AT = {
    "Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LSTM": 3, "GRU": 3, "RNN": 3, "QLinearConv": 8, "QGemm": 6,
}  # fmt: skip


def pairs(found: Found) -> None:
    """Everything that QuantizeLinear and DequantizeLinear put on a grid."""
    for number, node in enumerate(found.graph.nodes):
        if node.op_type == "DequantizeLinear" and len(node.input) >= 2 and node.output:
            _dequantized(found, number, node)
        elif node.op_type == "QuantizeLinear" and len(node.input) >= 2 and node.output:
            _quantized(found, number, node)
        elif node.op_type == "Gather" and len(node.input) >= 2 and node.output:
            _looked_up(found, number, node)


def _blocks(node: onnx.NodeProto) -> int | None:
    return attribute(node, "block_size", 0) or None


def _zero_point(node: onnx.NodeProto) -> str:
    return node.input[2] if len(node.input) > 2 else ""


def _dequantized(found: Found, number: int, node: onnx.NodeProto) -> None:
    graph = found.graph
    given = node.input[0]
    before = graph.maker(given)
    quantized = before is not None and before.op_type == "QuantizeLinear" and len(before.input) >= 2
    if before is not None and quantized and graph.behind(before.input[0]) is not None:
        return  # a constant, which is found where it is quantized
    whole = graph.behind(given)
    codes = whole or graph.behind(given, (*MOVED, "Gather"))
    grid = found.grid(node.input[1], _zero_point(node), codes or "")
    if grid is None:
        return
    reader, position = next(graph.users(node.output[0]), (None, -1))
    if codes is None and found.moved(graph.origin(given), grid, (given, node.output[0], node.name), reader):
        return
    if codes is None:
        maker = graph.unit(given)
        found.activation(
            given, "", grid, axis=attribute(node, "axis", 1), block_size=_blocks(node), reader=reader, maker=maker,
            aliases=(node.output[0], node.name),
        )  # fmt: skip
    elif whole is None and grid.scale.size > 1:
        found.leave_out("weights that are moved between codes and scales, with one scale for each channel.")
    else:
        found.constant(
            _role(graph, reader, position, grid.bits), codes, grid, axis=attribute(node, "axis", 1),
            block_size=_blocks(node), reader=number if reader is None else reader, aliases=(node.output[0], node.name),
        )  # fmt: skip


def _role(graph: OnnxGraph, reader: int | None, position: int, bits: int) -> Role:
    is_bias = reader is not None and BIAS_AT.get(graph.nodes[reader].op_type) == position
    return "bias" if is_bias or bits == 32 else "weight"


def _quantized(found: Found, number: int, node: onnx.NodeProto) -> None:
    graph = found.graph
    grid = found.grid(node.input[1], _zero_point(node), kind=attribute(node, "output_dtype", 0) or None)
    if grid is None:
        return
    given, made = node.input[0], node.output[0]
    back = next(
        (i for i, p in graph.readers.get(made, ()) if graph.nodes[i].op_type == "DequantizeLinear" and not p), None
    )
    floats = made if back is None else graph.nodes[back].output[0] if graph.nodes[back].output else made
    reader, position = next(graph.users(floats), (None, -1))
    constant = graph.behind(given)
    if constant is not None and graph.kind(constant) in FLOATS:
        values = graph.array(constant)
        assert values is not None
        axis, block_size = attribute(node, "axis", 1), _blocks(node)
        codes = codes_of(values, grid, axis, block_size, constant)
        found.constant(
            _role(graph, reader, position, grid.bits), constant, grid, axis=axis, block_size=block_size,
            reader=reader, values=codes, aliases=(made, floats, node.name),
        )  # fmt: skip
        return
    found.activation(
        made, given, grid, axis=attribute(node, "axis", 1), block_size=_blocks(node), reader=reader,
        maker=graph.unit(given), aliases=(floats, node.name),
    )  # fmt: skip


def _looked_up(found: Found, number: int, node: onnx.NodeProto) -> None:
    """Rows of a table of codes: Gather, Cast to float, Sub of zero points, Mul with scales, as the lab writes it."""
    graph = found.graph
    codes = graph.behind(node.input[0])
    if codes is None or not graph.is_codes(codes):
        return
    zero_point, tensor = "", node.output[0]
    while True:
        users = list(graph.users(tensor))
        if len(users) != 1 or graph.nodes[users[0][0]].op_type not in ("Sub", "Mul"):
            return  # DequantizeLinear reads it, or nobody whom this knows
        step, position = graph.nodes[users[0][0]], users[0][1]
        other = step.input[1 - position] if len(step.input) == 2 and step.output else ""
        constant = graph.behind(other, (*SAME, "Unsqueeze", "Gather", "Reshape"))
        if constant is None:
            return
        if step.op_type == "Mul":
            break
        zero_point, tensor = constant, step.output[0]
    grid = found.grid(constant, zero_point, codes)
    if grid is not None:
        rows = len(graph.constants[codes].dims)
        groups = grid.scale.shape[1] if grid.scale.ndim == 2 and rows == 2 else 0
        width = graph.constants[codes].dims[1] if groups else 0
        found.constant(
            "weight", codes, grid, axis=1 if groups else 0, block_size=width // groups if groups else None,
            reader=number, aliases=(step.output[0],),
        )  # fmt: skip
