"""A config put into the template: quantized weights, grids, integer arithmetic. Milliseconds, no torch.onnx.

Every tensor on a grid exists as codes; QuantizeLinear and DequantizeLinear stand around the ops, and ONNX Runtime fuses
them into integer kernels. Codes that need fewer bits than their container are clamped as integers, so that no range
widens. What a runtime does with the file is not claimed here: `qlab.runtime` looks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper

import qlab
from qlab.errors import UnsupportedModel
from qlab.export.graph_writer import (
    FLOAT, INT4, INT8, INT32, RANGES, UINT4, UINT8, GraphWriter, activation_container, container, ranged_by_runtime,
)  # fmt: skip
from qlab.export.recurrent import write_recurrent
from qlab.export.template import DOMAIN, Template
from qlab.export.values import Clamped, Codes, Constant, OnGrid, Reshaped, Scaled, Value, Waiting
from qlab.graph.optypes import OP_TYPES
from qlab.quant.fake_quant import quantize
from qlab.quant.observers.base import EPS, Grid
from qlab.quant.qparams import QParams
from qlab.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from qlab.config import QuantSpec
    from qlab.conversion import QuantizedModel

_NAMED_OPSETS = {"com.microsoft": 1}
# Ops whose output holds values of their first input and no others (zero apart, which Pad puts in).
_MOVES = frozenset(
    "Reshape Transpose Slice Squeeze Unsqueeze Flatten Expand Gather Split Pad DepthToSpace SpaceToDepth Tile MaxPool "
    "Identity".split()
)


@dataclass(frozen=True)
class Assembled:
    """The finished graph. codes: tensor name -> the ONNX value that holds its codes, and their grid."""

    proto: onnx.ModelProto
    codes: Mapping[str, Codes]
    float_biases: tuple[str, ...]
    """Layers whose bias does not fit 32 bits at the scale of its products, so that it is added in float."""


def assemble(template: Template, qmodel: QuantizedModel | None, *, codes_as_outputs: bool = False) -> Assembled:
    """The network with this config, or in float (None).

    codes_as_outputs: the codes of every activation on a grid become outputs behind the network's own.
    Raises UnsupportedModel naming the layer that has no ONNX form under its config.
    """
    return _Assembler(template, qmodel).run(codes_as_outputs)


class _Assembler:
    def __init__(self, template: Template, qmodel: QuantizedModel | None):
        self.template, self.qmodel = template, qmodel
        self.graph = GraphWriter()
        self.values: dict[str, Value] = {}
        self.given = {c.name: c for c in template.proto.graph.initializer}
        self.float_biases: list[str] = []
        self.codes: dict[str, Codes] = {}
        self.edges: dict[str, OnGrid] = {}
        self.weight_codes: dict[tuple[int, bool], str] = {}
        self.keep_alive: list[QuantizedTensor] = []  # keys of weight_codes are identities
        self.weight_layer: dict[str, str] = {}
        self.bias_layer: dict[str, str] = {}
        # what a template's own op gives is called as the tensor it is
        self.names = {
            n.input[0]: _text(n, "name") for n in template.proto.graph.node if n.domain == DOMAIN and n.op_type == "Tap"
        }
        self.at_source: dict[str, str] = {}
        self.at_edge: dict[tuple[str, str], str] = {}
        self.shares: dict[str, str] = {}
        self.dynamic: dict[str, QuantSpec] = {}
        if qmodel is not None:
            self._read_placement(qmodel)

    def _read_placement(self, qmodel: QuantizedModel) -> None:
        names = qmodel.model.names
        for key, point in qmodel.points.items():
            if point.consumers is None:
                self.at_source[point.tensor] = key
            else:
                self.at_edge.update({(point.tensor, names[c]): key for c in point.consumers})
        self.dynamic = {point.layer: point.spec for point in qmodel.placement.dynamic}
        for row in qmodel.ledger:
            if row.quantized and row.output is not None and OP_TYPES[row.op].role == "passthrough":
                self.shares[row.layer] = row.output

    def run(self, codes_as_outputs: bool) -> Assembled:
        source = self.template.proto.graph
        for value in source.input:
            self.graph.reserve(value.name)
            self.values[value.name] = Value(value.name)
        for node in source.node:
            if node.domain == DOMAIN:
                getattr(self, f"_{node.op_type.lower()}")(node)
            elif node.op_type in ("Conv", "ConvTranspose"):
                self._convolution(node)
            else:
                self._copy(node)
        outputs = [self._output(v) for v in source.output]
        if codes_as_outputs:
            outputs += [helper.make_tensor_value_info(c.name, c.kind, None) for c in self.codes.values()]
        return Assembled(self._model(outputs), self.codes, tuple(self.float_biases))

    # ---- values --------------------------------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        if name not in self.values:
            self.values[name] = Constant(name)  # an initializer of the template, taken over when it is used
        return self.values[name]

    def float(self, value: Value, layer: str) -> str:
        """The name of the float value; written now if nobody has read it yet."""
        if isinstance(value, Constant) and value.name in self.given and value.name not in self.graph.constants:
            self.graph.constants[value.name] = self.given[value.name]
            self.graph.reserve(value.name)
        if value.name is None:
            value.name = self._write_float(value, layer)
        return value.name

    def _write_float(self, value: Value, layer: str) -> str:
        if isinstance(value, OnGrid):
            c = value.codes
            axis = {} if c.qparams.axis is None or not c.qparams.scale.ndim else {"axis": c.qparams.axis}
            inputs = [c.name, c.scale, c.zero_point]
            return self.graph.node("DequantizeLinear", inputs, value.tensor, output=f"{value.tensor}/dq", **axis)
        assert isinstance(value, Waiting)
        base = self.float(value.base, layer)
        if isinstance(value, Scaled):
            return self.graph.node("Mul", [base, self.graph.scalar(value.factor, FLOAT)], layer)
        if isinstance(value, Reshaped):
            return self.graph.node("Reshape", [base, self.graph.sizes(value.shape)], layer)
        if (value.low, value.high) == (0, math.inf):
            return self.graph.node("Relu", [base], layer)
        bounds = ["" if math.isinf(b) else self.graph.scalar(b, FLOAT) for b in (value.low, value.high)]
        return self.graph.node("Clip", [base, *bounds] if bounds[1] else [base, bounds[0]], layer)

    def on_grid(self, value: Value, qparams: QParams, tensor: str, layer: str) -> OnGrid:
        """The value quantized. Waiting ops become part of it where quantizing commutes with them."""
        grid = self._grid(qparams, tensor)
        low, high, factor = qparams.quant_min, qparams.quant_max, 1.0
        shapes: list[list[int]] = []
        if not qparams.scale.ndim:
            while isinstance(value, Waiting):
                if isinstance(value, Clamped):
                    low = max(low, self._code(value.low, qparams, factor))
                    high = min(high, self._code(value.high, qparams, factor))
                elif isinstance(value, Scaled):
                    if value.factor <= 0:
                        break
                    factor *= value.factor
                else:
                    shapes.append(value.shape)
                value = value.base
        if isinstance(value, OnGrid) and value.codes.same_grid(qparams) and factor == 1.0:
            name, held = value.codes.name, (qparams.quant_min, qparams.quant_max)
        else:
            name, held = self._write_codes(value, grid, factor, (low, high), tensor, layer)
        if (low, high) != held:
            bounds = [self.graph.scalar(b + grid.shift, grid.kind) for b in (low, high)]
            name = self.graph.node("Clip", [name, *bounds], layer, output=f"{tensor}/clamped")
        for shape in reversed(shapes):
            name = self.graph.node("Reshape", [name, self.graph.sizes(shape)], layer, output=f"{tensor}/codes")
        return OnGrid(None, replace(grid, name=name), tensor)

    def _grid(self, qparams: QParams, tensor: str) -> Codes:
        """Scale and zero point as constants; the codes have no name yet."""
        kind, shift = activation_container(qparams.quant_min, qparams.quant_max)
        scale = self.graph.array(f"{tensor}/scale", qparams.scale.numpy())
        zero_point = self.graph.codes(f"{tensor}/zero_point", qparams.zero_point + shift, kind)
        return Codes("", scale, zero_point, qparams, kind, shift)

    def _write_codes(
        self, value: Value, grid: Codes, factor: float, bounds: tuple[int, int], tensor: str, layer: str
    ) -> tuple[str, tuple[int, int]]:
        """QuantizeLinear, and the range its codes are within (without the shift)."""
        qparams, kind, scale = grid.qparams, grid.kind, grid.scale
        held = (RANGES[kind][0] - grid.shift, RANGES[kind][1] - grid.shift)
        x = self.float(value, layer)
        if factor != 1.0:
            scale = self.graph.array(f"{tensor}/own_scale", np.float32(float(qparams.scale) / factor))
        if kind != UINT8 and bounds != held:
            # no runtime clamps 16-bit integers: the same bounds before quantization
            own, zero = float(qparams.scale) / factor, int(qparams.zero_point)
            limits = [self.graph.scalar(float(np.float32((b - zero) * own)), FLOAT) for b in bounds]
            x = self.graph.node("Clip", [x, *limits], layer, output=f"{tensor}/clamped")
            held = bounds
        axis = {"axis": qparams.axis} if qparams.scale.ndim else {}
        inputs = [x, scale, grid.zero_point]
        return self.graph.node("QuantizeLinear", inputs, layer, output=f"{tensor}/codes", **axis), held

    @staticmethod
    def _code(bound: float, qparams: QParams, factor: float) -> int:
        """The code of a bound, far outside the range where there is none."""
        if math.isinf(bound):
            return int(math.copysign(2**40, bound))
        inverse = np.float32(1) / np.float32(float(qparams.scale) / factor)
        return int(np.rint(np.float32(bound) * inverse)) + int(qparams.zero_point)

    # ---- markers -------------------------------------------------------------------------------------------------------

    def _tap(self, node: onnx.NodeProto) -> None:
        name, value = _text(node, "name"), self.value(node.input[0])
        key = self.at_source.get(name)
        if key is not None:
            value = self._record(key, self.on_grid(value, self._qparams(key), key, name))
        elif name in self.shares:
            grid = self.codes.get(self.shares[name])
            if grid is not None:
                value = self.on_grid(value, grid.qparams, name, name)
        self.values[node.output[0]] = value

    def _edge(self, node: onnx.NodeProto) -> None:
        value = self.value(node.input[0])
        key = self.at_edge.get((_text(node, "source"), _text(node, "consumer")))
        if key is not None:
            if key not in self.edges:
                self.edges[key] = self._record(key, self._quantized_edge(value, key))
            value = self.edges[key]
        self.values[node.output[0]] = value

    def _quantized_edge(self, value: Value, key: str) -> OnGrid:
        qparams = self._qparams(key)
        if not isinstance(value, Constant):
            return self.on_grid(value, qparams, key, key)
        assert value.name is not None
        given = torch.from_numpy(onnx.numpy_helper.to_array(self.given[value.name]).copy())
        grid = self._grid(qparams, key)
        codes = quantize(given, qparams).to(torch.int32) + grid.shift
        return OnGrid(None, replace(grid, name=self.graph.codes(f"{key}/codes", codes, grid.kind)), key)

    def _record(self, key: str, value: OnGrid) -> OnGrid:
        self.codes[key] = value.codes
        return value

    def _qparams(self, key: str) -> QParams:
        assert self.qmodel is not None
        return self.qmodel.activations[key].qparams

    def _weight(self, node: onnx.NodeProto) -> None:
        self.weight_layer[node.output[0]] = _text(node, "layer")
        self.values[node.output[0]] = self.value(node.input[0])

    def _bias(self, node: onnx.NodeProto) -> None:
        self.values[node.output[0]] = self.value(node.input[0])

    def _clamp(self, node: onnx.NodeProto) -> None:
        low, high = _number(node, "low", -math.inf), _number(node, "high", math.inf)
        self.values[node.output[0]] = Clamped(None, self.value(node.input[0]), low, high)

    def _scale(self, node: onnx.NodeProto) -> None:
        self.values[node.output[0]] = Scaled(None, self.value(node.input[0]), _number(node, "factor", 1.0))

    def _recurrent(self, node: onnx.NodeProto) -> None:
        write_recurrent(self, node)

    # ---- weights -------------------------------------------------------------------------------------------------------

    def weight(self, key: str) -> QuantizedTensor | None:
        return self.qmodel.weights.get(key) if self.qmodel is not None else None

    def weight_constant(
        self, tensor: QuantizedTensor, name: str, *, integer: bool = False, transposed: bool = False,
    ) -> str:  # fmt: skip
        """The codes as a constant. integer: for a kernel that multiplies integers, which has no 4-bit operands."""
        kind = container(tensor.quant_min, tensor.quant_max)
        variant = (id(tensor), transposed)
        if variant not in self.weight_codes:
            codes = tensor.codes.t().contiguous() if transposed else tensor.codes
            if tensor.scale.ndim == 2:
                codes = codes.reshape(codes.shape[0], -1)  # blocks are taken of two axes
            self.weight_codes[variant] = self.graph.codes(f"{name}/codes", codes, kind)
        codes_name = self.weight_codes[variant]
        if integer and kind in (INT4, UINT4):
            # constant folding does this once, when the file is loaded: 4 bits in the file, 8 in the kernel
            wide = INT8 if kind == INT4 else UINT8
            return self.graph.node("Cast", [codes_name], name, output=f"{name}/wide", to=wide)
        return codes_name

    def weight_float(
        self, tensor: QuantizedTensor, name: str, *, integer: bool = False, transposed: bool = False,
    ) -> str:  # fmt: skip
        """The dequantized weight as a float value, [.., K, N] when transposed."""
        kind = container(tensor.quant_min, tensor.quant_max)
        codes = self.weight_constant(tensor, name, integer=integer, transposed=transposed)
        if integer and kind in (INT4, UINT4):
            kind = INT8 if kind == INT4 else UINT8
        scale, zero_point, axis = tensor.scale, tensor.zero_point, tensor.axis or 0
        attributes: dict[str, int] = {}
        if scale.ndim == 1:
            attributes["axis"] = tensor.codes.ndim - 1 - axis if transposed else axis
        elif scale.ndim == 2:
            return self._grouped(tensor, codes, kind, name, transposed)
        # zero points that are all 0 are written too: ONNX Runtime's rewrite to unsigned weights expects them
        inputs = [codes, self.graph.array(f"{name}/scale", scale.numpy())]
        inputs.append(self.graph.codes(f"{name}/zero_point", zero_point, kind))
        return self.graph.node("DequantizeLinear", inputs, name, output=f"{name}/dq", **attributes)

    def _grouped(self, tensor: QuantizedTensor, codes: str, kind: int, name: str, transposed: bool) -> str:
        """Scales for blocks of a row: DequantizeLinear takes them for two axes, so larger weights are flattened."""
        flat = tensor.codes.ndim > 2
        turn = transposed and not flat
        scale, zero_point = (t.t().contiguous() if turn else t for t in (tensor.scale, tensor.zero_point))
        inputs = [codes, self.graph.array(f"{name}/scale", scale.numpy())]
        if kind in (UINT8, UINT4) or bool((zero_point != 0).any()):
            inputs.append(self.graph.codes(f"{name}/zero_point", zero_point, kind))
        made = self.graph.node(
            "DequantizeLinear", inputs, name, output=f"{name}/dq", axis=0 if turn else 1,
            block_size=tensor.group_size,
        )  # fmt: skip
        if flat:
            made = self.graph.node("Reshape", [made, self.graph.sizes(list(tensor.codes.shape))], name)
        return made

    # ---- ops with weights ----------------------------------------------------------------------------------------------

    def _convolution(self, node: onnx.NodeProto) -> None:
        layer = self.weight_layer.get(node.input[1], "")
        x, weight = self.value(node.input[0]), self.weight(layer)
        name = node.name.rsplit("/", 1)[0]
        integer = weight is not None and self._multiplies_integers(x, weight)
        inputs = [self.float(x, name)]
        if weight is None:
            inputs.append(self.float(self.value(node.input[1]), name))
        else:
            inputs.append(self.weight_float(self._widened(weight, x, node, 2) if integer else weight,
                                            f"{layer}.weight", integer=integer))  # fmt: skip
        if len(node.input) > 2 and node.input[2]:
            inputs.append(self._bias_value(node.input[2], x, weight if integer else None, layer, name))
        self._write_copy(node, inputs)

    def _linear(self, node: onnx.NodeProto) -> None:
        layer, shape = _text(node, "layer"), _integers(node, "shape")
        x, weight, spec = self.value(node.input[0]), self.weight(layer), self.dynamic.get(layer)
        bias = node.input[2] if len(node.input) > 2 else None
        if spec is not None and weight is not None:
            self.values[node.output[0]] = self._dynamic_linear(x, weight, spec, bias, layer)
            return
        integer = weight is not None and self._multiplies_integers(x, weight)
        if not integer and len(shape) != 2:
            self.values[node.output[0]] = self._float_linear(x, weight, node.input[1], bias, layer)
            return
        flat = x if len(shape) == 2 else self._rows(x, layer, node)
        inputs = [self.float(flat, layer)]
        if weight is None:
            inputs.append(self.float(self.value(node.input[1]), layer))
        else:
            widened = self._widened(weight, x, node, 2) if integer else weight
            inputs.append(self.weight_float(widened, f"{layer}.weight", integer=integer))
        if bias is not None:
            inputs.append(self._bias_value(bias, x, weight if integer else None, layer, layer))
        if weight is not None and not integer and weight.scale.ndim == 2:
            # the runtime's kernel for blocks of weights reads them as [K, N]
            self.values[node.output[0]] = self._float_linear(x, weight, node.input[1], bias, layer)
            return
        made = self.graph.node("Gemm", inputs, layer, output=layer, transB=1)
        self.values[node.output[0]] = Value(made) if len(shape) == 2 else Reshaped(None, Value(made), shape)

    def _rows(self, x: Value, layer: str, node: onnx.NodeProto) -> Value:
        """All leading axes as one, on the codes where there are any."""
        weight = self.weight(layer)
        width = int(weight.codes.shape[1]) if weight is not None else self.given[node.input[1]].dims[1]
        sizes = self.graph.sizes([-1, width])
        if not isinstance(x, OnGrid):
            return Value(self.graph.node("Reshape", [self.float(x, layer), sizes], layer, output=f"{layer}/rows"))
        rows = self.graph.node("Reshape", [x.codes.name, sizes], layer, output=f"{layer}/rows")
        return OnGrid(None, replace(x.codes, name=rows), f"{layer}/rows")

    def _float_linear(
        self, x: Value, weight: QuantizedTensor | None, given: str, bias: str | None, layer: str
    ) -> Value:
        if weight is not None:
            w = self.weight_float(weight, f"{layer}.weight", transposed=True)
        else:
            w = f"{layer}.weight/transposed"
            if w not in self.graph.constants:
                w = self.graph.array(w, onnx.numpy_helper.to_array(self.given[given]).T)
        y = self.graph.node("MatMul", [self.float(x, layer), w], layer, output=layer)
        if bias is not None:
            y = self.graph.node("Add", [y, self.float(self.value(bias), layer)], layer, output=f"{layer}/biased")
        return Value(y)

    def _dynamic_linear(
        self, x: Value, weight: QuantizedTensor, spec: QuantSpec, bias: str | None, layer: str
    ) -> Value:
        """DynamicQuantizeLinear and MatMulInteger; in float where no integer product takes these codes."""
        given = self.float(x, layer)
        if spec.bits > 8 or weight.scale.ndim == 2:
            codes, scale, zero_point = self._range_now(given, spec, layer)
            put = self.graph.node("DequantizeLinear", [codes, scale, zero_point], layer, output=f"{layer}/input")
            return self._float_linear(Value(put), weight, "", bias, layer)
        codes, scale, zero_point = self._range_now(given, spec, layer)
        w = self.weight_constant(weight, f"{layer}.weight", integer=True, transposed=True)
        kind = UINT8 if weight.quant_min >= 0 else INT8
        inputs = [codes, w, zero_point]
        if kind == UINT8 or bool((weight.zero_point != 0).any()):
            inputs.append(self.graph.codes(f"{layer}.weight/zero_point", weight.zero_point, kind))
        total = self.graph.node("MatMulInteger", inputs, layer, output=f"{layer}/accumulator")
        total = self.graph.node("Cast", [total], layer, output=f"{layer}/accumulator_float", to=FLOAT)
        w_scale = self.graph.array(f"{layer}.weight/scale", weight.scale.numpy())
        both = self.graph.node("Mul", [scale, w_scale], layer, output=f"{layer}/scales")
        y = self.graph.node("Mul", [total, both], layer, output=layer)
        if bias is not None:
            y = self.graph.node("Add", [y, self.float(self.value(bias), layer)], layer, output=f"{layer}/biased")
        return Value(y)

    def _range_now(self, x: str, spec: QuantSpec, layer: str) -> tuple[str, str, str]:
        """Codes, scale and zero point of a tensor ranged when it comes. The formulas of dynamic_qparams."""
        outputs = [self.graph.free(f"{layer}/input{part}") for part in ("", "_scale", "_zero_point")]
        if ranged_by_runtime(spec):
            self.graph.node("DynamicQuantizeLinear", [x], layer, outputs=outputs)
            return outputs[0], outputs[1], outputs[2]
        write, number = self.graph.node, self.graph.scalar
        kind, shift = activation_container(spec.quant_min, spec.quant_max)
        zero = number(0.0, FLOAT)
        low = write("Min", [write("ReduceMin", [x], layer, keepdims=0), zero], layer)
        high = write("Max", [write("ReduceMax", [x], layer, keepdims=0), zero], layer)
        steps = spec.quant_max - spec.quant_min
        if spec.symmetric:
            largest = write("Max", [write("Neg", [low], layer), high], layer)
            raw = write("Div", [largest, number(steps / 2, FLOAT)], layer)
            scale = write("Max", [raw, number(float(EPS), FLOAT)], layer)
            middle = Grid(spec.quant_min, spec.quant_max, True, spec.signed).symmetric_zero_point
            zero_point = number(int(middle) + shift, kind)
        else:
            raw = write("Div", [write("Sub", [high, low], layer), number(float(steps), FLOAT)], layer)
            scale = write("Max", [raw, number(float(EPS), FLOAT)], layer)
            below = write("Round", [write("Div", [low, scale], layer)], layer)
            point = write("Sub", [number(float(spec.quant_min), FLOAT), below], layer)
            bounds = [number(float(b), FLOAT) for b in (spec.quant_min, spec.quant_max)]
            point = write("Add", [write("Clip", [point, *bounds], layer), number(float(shift), FLOAT)], layer)
            zero_point = write("Cast", [point], layer, to=kind)
        codes = write("QuantizeLinear", [x, scale, zero_point], layer)
        bounds = [number(b + shift, kind) for b in (spec.quant_min, spec.quant_max)]
        if (spec.quant_min + shift, spec.quant_max + shift) != RANGES[kind]:
            if kind != UINT8:
                raise UnsupportedModel(
                    f"layer {layer!r} ranges {spec.bits} bits at every call, and no runtime clamps 16-bit integers: "
                    "use 8 or 16 bits for dynamic activations."
                )
            codes = write("Clip", [codes, *bounds], layer)
        return codes, scale, zero_point

    def _embedding(self, node: onnx.NodeProto) -> None:
        layer, indices = _text(node, "layer"), self.float(self.value(node.input[1]), _text(node, "layer"))
        weight = self.weight(layer)
        if weight is None:
            table = self.float(self.value(node.input[0]), layer)
            self.values[node.output[0]] = Value(self.graph.node("Gather", [table, indices], layer, output=layer))
            return
        self.values[node.output[0]] = Value(self._quantized_rows(weight, indices, _whole(node, "rank"), layer))

    def _quantized_rows(self, weight: QuantizedTensor, indices: str, rank: int, layer: str) -> str:
        """The rows asked for, gathered as codes and dequantized: (codes - zero_point) * scale."""
        write, name = self.graph.node, f"{layer}.weight"
        codes = self.weight_constant(weight, name, integer=True)
        rows = write("Gather", [codes, indices], layer, output=f"{layer}/codes")
        scale: str = self.graph.array(f"{name}/scale", weight.scale.numpy())
        shifted = weight.quant_min >= 0 or bool((weight.zero_point != 0).any())
        values = write("Cast", [rows], layer, to=FLOAT)
        grouped = weight.scale.ndim == 2
        last = self.graph.sizes([-1])
        same = [0] * rank  # 0 keeps a size
        if grouped:
            values = write("Reshape", [values, self.graph.sizes([*same, weight.scale.shape[1], -1])], layer)

        def behind(constant: str) -> str:
            if not weight.scale.ndim:
                return constant
            return write("Unsqueeze", [write("Gather", [constant, indices], layer), last], layer)

        if shifted:
            points = self.graph.array(f"{name}/zero_point", weight.zero_point.numpy().astype(np.float32))
            values = write("Sub", [values, behind(points)], layer)
        out = write("Mul", [values, behind(scale)], layer, output=layer)
        if grouped:
            out = write("Reshape", [out, self.graph.sizes([*same, weight.codes.shape[1]])], layer)
        return out

    # ---- integer products ----------------------------------------------------------------------------------------------

    @staticmethod
    def _multiplies_integers(x: Value, weight: QuantizedTensor) -> bool:
        """Whether integer kernels take these operands: 8-bit codes, one grid for the input, none per group."""
        if not isinstance(x, OnGrid) or x.codes.qparams.scale.ndim or weight.scale.ndim == 2:
            return False
        return x.codes.kind == UINT8

    def _widened(self, weight: QuantizedTensor, x: Value, node: onnx.NodeProto, position: int) -> QuantizedTensor:
        """Channels whose codes are all zero get a scale at which the bias fits 32 bits; their products stay zero."""
        bias = self._bias_array(node, position)
        assert isinstance(x, OnGrid)
        if bias is None or weight.scale.ndim != 1 or (weight.axis or 0) != 0:
            return weight
        empty = (weight.codes.reshape(len(bias), -1) == weight.zero_point.reshape(-1, 1)).all(1)
        needed = torch.from_numpy(np.abs(bias)) / (float(x.codes.qparams.scale) * 2.0**30)
        if not bool((empty & (needed > weight.scale)).any()):
            return weight
        scale = torch.where(empty, torch.maximum(weight.scale, needed), weight.scale)
        made = QuantizedTensor(weight.codes, scale, weight.zero_point, weight.quant_min, weight.quant_max, weight.axis)
        self.keep_alive.append(made)
        return made

    def _bias_array(self, node: onnx.NodeProto, position: int) -> np.ndarray | None:
        if len(node.input) <= position or not node.input[position]:
            return None
        value = self.value(node.input[position])
        return self._constant(value.name) if isinstance(value, Constant) and value.name else None

    def _bias_value(self, given: str, x: Value, weight: QuantizedTensor | None, layer: str, name: str) -> str:
        """The bias as int32 at the scale of the products; in float where there are no integer products."""
        value = self.value(given)
        if weight is None or not isinstance(x, OnGrid) or not isinstance(value, Constant):
            return self.float(value, name)
        assert value.name is not None
        bias = onnx.numpy_helper.to_array(self.given[value.name])
        scales = (x.codes.qparams.scale * weight.scale).numpy().astype(np.float32)
        codes = np.rint(bias.astype(np.float64) / scales)
        if np.abs(codes).max(initial=0) >= 2**31:
            self.float_biases.append(layer)
            return self.float(value, name)
        scale = self.graph.array(f"{layer}.bias/scale", scales)
        made = self.graph.codes(f"{layer}.bias/codes", torch.from_numpy(codes.astype(np.int32)), INT32)
        axis = {"axis": 0} if scales.ndim else {}
        return self.graph.node("DequantizeLinear", [made, scale], layer, output=f"{layer}.bias/dq", **axis)

    # ---- everything else -----------------------------------------------------------------------------------------------

    def _copy(self, node: onnx.NodeProto) -> None:
        layer = node.name.rsplit("/", 1)[0]
        first = self.value(node.input[0]) if node.input and node.input[0] else None
        if isinstance(first, OnGrid) and self._moves(node, first):
            self._move(node, first, layer)
        elif node.op_type == "ReduceMean" and self._is_spatial(node) and isinstance(first, OnGrid):
            # integer kernels know the pooling op, not the mean
            pooled = Value(self.graph.node("GlobalAveragePool", [self.float(first, layer)], layer, output=layer))
            keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
            self.values[node.output[0]] = pooled if keeps else Reshaped(None, pooled, [0, -1])
        else:
            self._write_copy(node, [self.float(self.value(i), layer) if i else "" for i in node.input])

    def _moves(self, node: onnx.NodeProto, value: OnGrid) -> bool:
        """Whether the op only moves values about, so that it can move 8-bit codes instead."""
        if node.domain or node.op_type not in _MOVES or value.codes.kind != UINT8 or value.codes.qparams.scale.ndim:
            return False
        if node.op_type != "Pad":
            return True
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        fill = self._constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        return mode != b"constant" or (fill is not None and not fill.any())

    def _move(self, node: onnx.NodeProto, value: OnGrid, layer: str) -> None:
        c = value.codes
        others = [self.float(self.value(i), layer) if i else "" for i in node.input[1:]]
        if node.op_type == "Pad":
            zero = self.graph.scalar(int(c.qparams.zero_point) + c.shift, c.kind)
            others = [others[0], zero, *others[2:]]
        tensors = [self.names.get(o, f"{layer}/{node.op_type}") for o in node.output]
        outputs = [self.graph.free(f"{tensor}/codes") for tensor in tensors]
        self.graph.node(node.op_type, [c.name, *others], layer, outputs=outputs)
        self.graph.nodes[-1].attribute.extend(node.attribute)
        for given, name, tensor in zip(node.output, outputs, tensors, strict=True):
            self.values[given] = OnGrid(None, replace(c, name=name), tensor)

    def _is_spatial(self, node: onnx.NodeProto) -> bool:
        axes = self._constant(node.input[1]) if len(node.input) > 1 else None
        return axes is not None and sorted(axes.tolist()) in ([2, 3], [-2, -1])

    def _constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer of the template."""
        return onnx.numpy_helper.to_array(self.given[name]) if name in self.given else None

    def _write_copy(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        layer = node.name.rsplit("/", 1)[0]
        outputs = [self.graph.free(self.names.get(o, f"{layer}/{node.op_type}")) if o else "" for o in node.output]
        self.graph.node(node.op_type, inputs, layer, outputs=outputs, domain=node.domain)
        self.graph.nodes[-1].attribute.extend(node.attribute)
        for given, made in zip(node.output, outputs, strict=True):
            self.values[given] = Value(made)

    def _output(self, given: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """The output under the name it shall have."""
        wanted = self.graph.free(given.doc_string)
        inner = self.float(self.value(given.name), wanted)
        made = next((n for n in self.graph.nodes if inner in n.output), None)
        taken = any(n.op_type == "Identity" and inner in n.input for n in self.graph.nodes)
        if made is None or taken:
            self.graph.node("Identity", [inner], wanted, outputs=[wanted])
        else:
            for node in self.graph.nodes:
                node.input[:] = [wanted if i == inner else i for i in node.input]
                node.output[:] = [wanted if o == inner else o for o in node.output]
            for value in self.values.values():
                if value.name == inner:
                    value.name = wanted
        out = onnx.ValueInfoProto()
        out.CopyFrom(given)
        out.name, out.doc_string = wanted, ""
        return out

    def _model(self, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        source = self.template.proto
        nodes = _needed(self.graph.nodes, [o.name for o in outputs])
        used = {i for n in nodes for i in n.input}
        constants = [c for name, c in self.graph.constants.items() if name in used]
        model = self.qmodel.model if self.qmodel is not None else None
        graph = helper.make_graph(
            nodes, model.name if model else "network", list(source.graph.input), outputs, constants
        )
        domains = {n.domain for n in nodes if n.domain}
        imports = [helper.make_opsetid("", _opset(source))]
        imports += [helper.make_opsetid(d, _NAMED_OPSETS[d]) for d in sorted(domains)]
        made = helper.make_model(
            graph, opset_imports=imports, producer_name="qlab", producer_version=qlab.__version__,
            ir_version=source.ir_version,
        )  # fmt: skip
        if self.qmodel is not None:
            about = {
                "qlab.model": self.qmodel.model.name,
                "qlab.model_hash": self.qmodel.model.content_hash,
                "qlab.config": json.dumps(self.qmodel.mapping.to_dict()),
            }
            helper.set_model_props(made, about)
        return made


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes the outputs depend on, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(i for i in node.input if i)
            for attribute in node.attribute:
                wanted.update(i for n in attribute.g.node for i in n.input)
    return kept[::-1]


def _opset(proto: onnx.ModelProto) -> int:
    return next(i.version for i in proto.opset_import if not i.domain)


def _find(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)


def _text(node: onnx.NodeProto, name: str) -> str:
    found = _find(node, name)
    return found.s.decode() if found is not None else ""


def _number(node: onnx.NodeProto, name: str, missing: float) -> float:
    found = _find(node, name)
    return missing if found is None else float(found.f)


def _whole(node: onnx.NodeProto, name: str) -> int:
    found = _find(node, name)
    assert found is not None
    return int(found.i)


def _integers(node: onnx.NodeProto, name: str) -> list[int]:
    found = _find(node, name)
    return [] if found is None else list(found.ints)
