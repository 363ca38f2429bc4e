"""Grids that are inputs of operators on integers: those of ONNX, and those ONNX Runtime adds to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from qlab.opened.onnx_graph import OnnxGraph, attribute
from qlab.opened.onnx_grids import Found, Grid
from qlab.opened.onnx_values import WHOLE, unpacked

Three = tuple[int, int, int]


@dataclass(frozen=True)
class Form:
    """Where an operator takes what. inputs: positions of (codes, scale, zero point); the second is the weight.

    output: (scale, zero point) of what it gives. axis: of a weight with several scales.
    """

    inputs: tuple[Three, ...]
    output: tuple[int, int] | None = None
    bias: int | None = None
    axis: int = -1


_ONE = Form(((0, 1, 2),), (3, 4))
_TWO = Form(((0, 1, 2), (3, 4, 5)), (6, 7))
FORMS = {
    "QLinearConv": Form(((0, 1, 2), (3, 4, 5)), (6, 7), bias=8, axis=0),
    "QLinearMatMul": _TWO,
    "QGemm": Form(((0, 1, 2), (3, 4, 5)), (7, 8), bias=6),
    "QLinearAdd": _TWO, "QLinearMul": _TWO,
    "QLinearSigmoid": _ONE, "QLinearLeakyRelu": _ONE, "QLinearSoftmax": _ONE, "QLinearGlobalAveragePool": _ONE,
    "QLinearAveragePool": _ONE, "QLinearReduceMean": _ONE,
    "QLinearWhere": Form(((1, 2, 3), (4, 5, 6)), (7, 8)),
    "QAttention": Form(((0, 3, 6), (1, 4, 7))),
    "MatMulIntegerToFloat": Form(((1, 3, 5),)),
    "DynamicQuantizeMatMul": Form(((1, 2, 3),)),
}  # fmt: skip
SUMS = {"ConvInteger": 0, "MatMulInteger": -1}  # the scale comes behind them; axis of the scales of the weight
INTEGER_OPS = frozenset((*FORMS, *SUMS, "QLinearConcat", "DynamicQuantizeLSTM"))
GIVE_CODES = frozenset(("QLinearConcat", *(op for op, form in FORMS.items() if form.output)))  # the others give floats


def operators(found: Found) -> None:
    for number, node in enumerate(found.graph.nodes):
        op = node.op_type
        if op in FORMS:
            _by_form(found, number, node, FORMS[op])
        elif op == "QLinearConcat":
            inputs = tuple((i, i + 1, i + 2) for i in range(2, len(node.input) - 2, 3))
            _by_form(found, number, node, Form(inputs, (0, 1)))
        elif op in SUMS:
            _sums(found, number, node, SUMS[op])
        elif op == "DynamicQuantizeLSTM":
            _lstm(found, number, node)
        elif op == "MatMulNBits":
            _matmul_nbits(found, number, node)
        elif op == "GatherBlockQuantized":
            _gather_blocks(found, number, node)


def _at(node: onnx.NodeProto, position: int) -> str:
    return node.input[position] if position < len(node.input) else ""


def _by_form(found: Found, number: int, node: onnx.NodeProto, form: Form) -> None:
    grids = []
    for position, scale, zero_point in form.inputs:
        codes = _at(node, position)
        if codes and _at(node, scale):
            grids.append(_operand(found, number, node, codes, (_at(node, scale), _at(node, zero_point)), form.axis))
    if form.output is not None and node.output and _at(node, form.output[0]):
        grid = found.grid(_at(node, form.output[0]), _at(node, form.output[1]))
        if grid is not None:
            reader = next((i for i, _ in found.graph.users(node.output[0])), None)
            found.activation(node.output[0], "", grid, reader=reader, maker=number, aliases=(node.name,))
    bias = _at(node, form.bias) if form.bias is not None else ""
    if bias and len(grids) == 2 and grids[0] is not None and grids[1] is not None:
        _bias(found, number, bias, grids[0], grids[1])


def _operand(
    found: Found, number: int, node: onnx.NodeProto, codes: str, grid_names: tuple[str, str], axis: int
) -> Grid | None:  # fmt: skip
    graph = found.graph
    constant = graph.behind(codes)
    grid = found.grid(*grid_names, constant or "")
    if grid is None:
        return None
    if constant is None:
        found.activation(codes, "", grid, reader=number, maker=graph.unit(codes))
    else:
        if node.op_type == "QGemm":
            axis = 0 if attribute(node, "transB", 0) else 1
        found.constant("weight", constant, grid, axis=axis, reader=number)
    return grid


def _bias(found: Found, number: int, name: str, given: Grid, weight: Grid) -> None:
    """A bias counts in products: its scale is that of the input times that of the weight."""
    constant = found.graph.behind(name)
    if constant is None or not found.graph.is_codes(constant) or given.scale.size != 1:
        return
    bits, signed = WHOLE[found.graph.kind(constant)]
    scale = given.scale.reshape(()).astype(np.float32) * weight.scale.astype(np.float32)
    found.constant("bias", constant, Grid(scale, None, bits, signed, ("", "")), axis=0, reader=number)


def _sums(found: Found, number: int, node: onnx.NodeProto, axis: int) -> None:
    """Products of codes; what they are multiplied with afterwards holds the scale of the weight."""
    graph = found.graph
    codes = graph.behind(_at(node, 1))
    if codes is None or not graph.is_codes(codes) or not node.output:
        return
    scale = _scale_behind(graph, node.output[0])
    if scale is None:
        return found.leave_out("weights whose scale was not found behind the operator that multiplies them.")
    grid = found.grid(scale, _at(node, 3), codes)
    if grid is not None:
        squeezed = grid.scale.reshape(-1) if grid.scale.size == max(grid.scale.shape, default=1) else grid.scale
        found.constant("weight", codes, replace(grid, scale=squeezed), axis=axis, reader=number)


def _scale_behind(graph: OnnxGraph, sums: str) -> str | None:
    """The constant among the factors of the first Mul behind; the other factor is the scale of the input."""
    for number, position in graph.users(sums):
        node = graph.nodes[number]
        if node.op_type != "Mul" or len(node.input) != 2:
            continue
        other = node.input[1 - position]
        factors = graph.maker(other)
        names = [other, *(factors.input if factors is not None and factors.op_type == "Mul" else ())]
        return next((c for name in names if (c := graph.behind(name)) is not None), None)
    return None


def _lstm(found: Found, number: int, node: onnx.NodeProto) -> None:
    """W [D, I, 4H] and R [D, H, 4H] with scales [D] or [D, 4H]: a tensor for each direction D."""
    for position, scale, zero_point in ((1, 8, 9), (2, 10, 11)):
        codes = found.graph.behind(_at(node, position))
        if codes is None or not _at(node, scale):
            continue
        grid = found.grid(_at(node, scale), _at(node, zero_point), codes)
        values = found.graph.array(codes)
        if grid is None or values is None or values.ndim != 3:
            continue
        ways = values.shape[0]
        if not grid.scale.ndim or len(grid.scale) != ways:
            found.leave_out("recurrent weights without a scale for each direction.")
            continue
        for way in range(ways):
            points = grid.zero_point
            one = replace(
                grid, scale=grid.scale[way], zero_point=points[way] if points is not None and points.ndim else points
            )
            found.constant(
                "weight", codes, one, axis=1, reader=number, values=values[way], part=f"[{way}]" if ways > 1 else "",
                aliases=(codes,) if ways == 1 else (),
            )  # fmt: skip


def _matmul_nbits(found: Found, number: int, node: onnx.NodeProto) -> None:
    """B [N, blocks, bytes] holds the weight as [N, K], packed; scales [N, blocks]; zero points packed, or the middle.

    Source: ONNX Runtime, docs/ContribOperators.md.
    """
    graph = found.graph
    rows, columns = attribute(node, "N", 0), attribute(node, "K", 0)
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 0)
    constant, scales = graph.behind(_at(node, 1)), graph.behind(_at(node, 2))
    if constant is None or scales is None or bits not in (2, 4, 8) or block < 1 or rows < 1 or columns < 1:
        return found.leave_out("MatMulNBits whose weight is not a constant of 2, 4 or 8 bits.")
    packed, scale = graph.array(constant), graph.array(scales)
    blocks, each = -(-columns // block), -(-block * bits // 8)
    if packed is None or scale is None or packed.dtype != np.uint8 or packed.size != rows * blocks * each:
        return found.leave_out("MatMulNBits whose bytes do not fit its sizes.")
    if scale.size != rows * blocks:
        return found.leave_out("MatMulNBits whose scales do not fit its sizes.")
    graph.budget.take(packed.size * 8 // bits, f"Constant {constant[:80]!r}")
    codes = _codes(packed.reshape(-1), bits).reshape(rows, blocks * each * 8 // bits)[:, :columns]
    points = np.full((rows, blocks), 1 << bits - 1)
    given = _at(node, 3)
    if given:
        held = graph.behind(given)
        stored = graph.array(held) if held is not None else None
        row = -(-blocks * bits // 8)
        if stored is None or stored.dtype != np.uint8 or stored.size != rows * row:
            return found.leave_out("MatMulNBits whose zero points are no packed constant.")
        points = _codes(stored.reshape(-1), bits).reshape(rows, row * 8 // bits)[:, :blocks]
    grid = Grid(scale.reshape(rows, blocks), points, bits, False, (scales, scales, given))
    found.constant(
        "weight", constant, grid, axis=1, block_size=block, reader=number, values=codes, aliases=(node.name,)
    )


def _codes(data: np.ndarray, bits: int) -> np.ndarray:
    return data if bits == 8 else unpacked(data, bits, False, data.size * 8 // bits)


def _gather_blocks(found: Found, number: int, node: onnx.NodeProto) -> None:
    """A table of 4-bit codes with scales in blocks."""
    graph = found.graph
    constant = graph.behind(_at(node, 0))
    if constant is None or not _at(node, 2) or len(graph.constants[constant].dims) == 0:
        return found.leave_out("GatherBlockQuantized whose table is not a constant.")
    grid = found.grid(_at(node, 2), _at(node, 3), constant)
    if grid is None or grid.bits == 8:
        return None if grid is None else found.leave_out("GatherBlockQuantized with packed bytes.")
    found.constant(
        "weight", constant, grid, axis=attribute(node, "quantize_axis", 1),
        block_size=max(1, attribute(node, "block_size", 128)), reader=number,
    )  # fmt: skip
    return None
