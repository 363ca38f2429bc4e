"""Ops with weights: integer constants, int32 biases, products of integers, tables of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from qlab.errors import UnsupportedModel
from qlab.export.attributes import integers, text, whole
from qlab.export.graph_writer import (
    FLOAT,
    INT4,
    INT8,
    INT32,
    RANGES,
    UINT4,
    UINT8,
    activation_container,
    container,
    ranged_by_runtime,
)  # fmt: skip
from qlab.export.grids import Grids
from qlab.export.template import Template
from qlab.export.values import Constant, OnGrid, Reshaped, Value
from qlab.quant.observers.base import EPS, Grid
from qlab.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from qlab.config import QuantSpec


class Products(Grids):
    """weights: key -> QuantizedTensor. dynamic: layer -> spec of what it ranges at every call.

    weight_layer: template value of a weight -> its layer. float_biases: layers whose bias does not fit 32 bits.
    """

    def __init__(self, template: Template, weights: Mapping[str, QuantizedTensor], dynamic: Mapping[str, QuantSpec]):
        super().__init__(template)
        self.weights, self.dynamic = weights, dynamic
        self.weight_layer: dict[str, str] = {}
        self.float_biases: list[str] = []
        self._codes: dict[tuple[int, bool], str] = {}
        self._product_of: dict[str, str] = {}  # codes -> name of the weight that multiplies them
        self._keep_alive: list[QuantizedTensor] = []  # keys of _codes are identities

    def weight(self, key: str) -> QuantizedTensor | None:
        return self.weights.get(key)

    def weight_constant(
        self, tensor: QuantizedTensor, name: str, *, integer: bool = False, transposed: bool = False,
        looked_up: bool = False,
    ) -> str:  # fmt: skip
        """The codes as a constant, shared by all who read the tensor; but for int8 each product has its own.

        ONNX Runtime rewrites int8 weights of a product to unsigned ones, and cannot do that twice to one constant.
        integer: for a kernel that multiplies integers, which has no 4-bit operands. looked_up: rows are taken of it.
        """
        kind = container(tensor.quant_min, tensor.quant_max)
        variant = (id(tensor), transposed)
        codes_name = self._codes.get(variant)
        own = kind == INT8 and not looked_up
        if codes_name is None or (own and self._product_of.get(codes_name, name) != name):
            codes = tensor.codes.t().contiguous() if transposed else tensor.codes
            if tensor.scale.ndim == 2:
                codes = codes.reshape(codes.shape[0], -1)  # blocks are taken of two axes
            codes_name = self._codes[variant] = self.graph.codes(f"{name}/codes", codes, kind)
        if own:
            self._product_of[codes_name] = name
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
        attributes: dict[str, Any] = {}
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

    def _convolution(self, node: onnx.NodeProto) -> None:
        layer = self.weight_layer.get(node.input[1], "")
        x, weight = self.value(node.input[0]), self.weight(layer)
        name = node.name.rsplit("/", 1)[0]
        integer = weight is not None and self._multiplies_integers(x, weight)
        inputs = [self.as_float(x, name)]
        if weight is None:
            inputs.append(self.as_float(self.value(node.input[1]), name))
        else:
            inputs.append(self.weight_float(self._widened(weight, x, node, 2) if integer else weight,
                                            f"{layer}.weight", integer=integer))  # fmt: skip
        if len(node.input) > 2 and node.input[2]:
            inputs.append(self._bias_value(node.input[2], x, weight if integer else None, layer, name))
        self.copy_node(node, inputs)

    def _linear(self, node: onnx.NodeProto) -> None:
        layer, shape = text(node, "layer"), integers(node, "shape")
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
        inputs = [self.as_float(flat, layer)]
        if weight is None:
            inputs.append(self.as_float(self.value(node.input[1]), layer))
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

    def keep(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """Hold on to a tensor made here, so that its identity is not given to another."""
        self._keep_alive.append(tensor)
        return tensor

    def _rows(self, x: Value, layer: str, node: onnx.NodeProto) -> Value:
        """All leading axes as one, on the codes where there are any."""
        weight = self.weight(layer)
        width = int(weight.codes.shape[1]) if weight is not None else self.given[node.input[1]].dims[1]
        sizes = self.graph.sizes([-1, width])
        if not isinstance(x, OnGrid):
            return Value(self.graph.node("Reshape", [self.as_float(x, layer), sizes], layer, output=f"{layer}/rows"))
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
        y = self.graph.node("MatMul", [self.as_float(x, layer), w], layer, output=layer)
        if bias is not None:
            y = self.graph.node("Add", [y, self.as_float(self.value(bias), layer)], layer, output=f"{layer}/biased")
        return Value(y)

    def _dynamic_linear(
        self, x: Value, weight: QuantizedTensor, spec: QuantSpec, bias: str | None, layer: str
    ) -> Value:
        """DynamicQuantizeLinear and MatMulInteger; in float where no integer product takes these codes."""
        given = self.as_float(x, layer)
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
            y = self.graph.node("Add", [y, self.as_float(self.value(bias), layer)], layer, output=f"{layer}/biased")
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
        layer, indices = text(node, "layer"), self.as_float(self.value(node.input[1]), text(node, "layer"))
        weight = self.weight(layer)
        if weight is None:
            table = self.as_float(self.value(node.input[0]), layer)
            self.values[node.output[0]] = Value(self.graph.node("Gather", [table, indices], layer, output=layer))
            return
        self.values[node.output[0]] = Value(self._quantized_rows(weight, indices, whole(node, "rank"), layer))

    def _quantized_rows(self, weight: QuantizedTensor, indices: str, rank: int, layer: str) -> str:
        """The rows asked for, gathered as codes and dequantized: (codes - zero_point) * scale."""
        write, name = self.graph.node, f"{layer}.weight"
        codes = self.weight_constant(weight, name, integer=True, looked_up=True)
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
        self._keep_alive.append(made)
        return made

    def _bias_array(self, node: onnx.NodeProto, position: int) -> np.ndarray | None:
        if len(node.input) <= position or not node.input[position]:
            return None
        value = self.value(node.input[position])
        return self.array(value.name) if isinstance(value, Constant) and value.name else None

    def _bias_value(self, given: str, x: Value, weight: QuantizedTensor | None, layer: str, name: str) -> str:
        """The bias as int32 at the scale of the products; in float where there are no integer products."""
        value = self.value(given)
        if weight is None or not isinstance(x, OnGrid) or not isinstance(value, Constant):
            return self.as_float(value, name)
        assert value.name is not None
        bias = onnx.numpy_helper.to_array(self.given[value.name])
        scales = (x.codes.qparams.scale * weight.scale).numpy().astype(np.float32)
        codes = np.rint(bias.astype(np.float64) / scales)
        if np.abs(codes).max(initial=0) >= 2**31:
            self.float_biases.append(layer)
            return self.as_float(value, name)
        scale = self.graph.array(f"{layer}.bias/scale", scales)
        made = self.graph.codes(f"{layer}.bias/codes", torch.from_numpy(codes.astype(np.int32)), INT32)
        axis: dict[str, Any] = {"axis": 0} if scales.ndim else {}
        return self.graph.node("DequantizeLinear", [made, scale], layer, output=f"{layer}.bias/dq", **axis)
