"""Values of the graph that is being written: float names on demand, codes on grids.

The base of the assembler: it knows the template's constants, the values so far, and how a tensor is put on a grid.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch

from qlab.export.attributes import text
from qlab.export.graph_writer import FLOAT, RANGES, UINT8, GraphWriter, activation_container
from qlab.export.markers import DOMAIN
from qlab.export.template import Template
from qlab.export.values import Clamped, Codes, Constant, OnGrid, Reshaped, Scaled, Value, Waiting
from qlab.quant.fake_quant import quantize
from qlab.quant.qparams import QParams


class Grids:
    """graph: what is written so far. given: the template's constants. values: template name -> what stands for it."""

    def __init__(self, template: Template):
        self.template = template
        self.graph = GraphWriter()
        self.values: dict[str, Value] = {}
        self.given = {c.name: c for c in template.proto.graph.initializer}
        # what a template's own op gives is called as the tensor it is
        self.names = {
            n.input[0]: text(n, "name") for n in template.proto.graph.node if n.domain == DOMAIN and n.op_type == "Tap"
        }

    def value(self, name: str) -> Value:
        if name not in self.values:
            self.values[name] = Constant(name)  # an initializer of the template, taken over when it is used
        return self.values[name]

    def as_float(self, value: Value, layer: str) -> str:
        """The name of the float value; written now if nobody has read it yet."""
        if isinstance(value, Constant) and value.name in self.given and value.name not in self.graph.constants:
            assert value.name is not None
            self.graph.constants[value.name] = self.given[value.name]
            self.graph.reserve(value.name)
        if value.name is None:
            value.name = self._write_float(value, layer)
        return value.name

    def _write_float(self, value: Value, layer: str) -> str:
        if isinstance(value, OnGrid):
            c = value.codes
            axis: dict[str, Any] = (
                {} if c.qparams.axis is None or not c.qparams.scale.ndim else {"axis": c.qparams.axis}
            )
            inputs = [c.name, c.scale, c.zero_point]
            return self.graph.node("DequantizeLinear", inputs, value.tensor, output=f"{value.tensor}/dq", **axis)
        assert isinstance(value, Waiting)
        base = self.as_float(value.base, layer)
        layer = base.split("/")[0]  # it belongs to what it is computed from, not to who reads it first
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
        x = self.as_float(value, layer)
        if factor != 1.0:
            scale = self.graph.array(f"{tensor}/own_scale", np.asarray(float(qparams.scale) / factor, np.float32))
        if kind != UINT8 and bounds != held:
            # no runtime clamps 16-bit integers: the same bounds before quantization
            own, zero = float(qparams.scale) / factor, int(qparams.zero_point)
            limits = [self.graph.scalar(float(np.float32((b - zero) * own)), FLOAT) for b in bounds]
            x = self.graph.node("Clip", [x, *limits], layer, output=f"{tensor}/clamped")
            held = bounds
        axis: dict[str, Any] = {"axis": qparams.axis} if qparams.scale.ndim else {}
        inputs = [x, scale, grid.zero_point]
        return self.graph.node("QuantizeLinear", inputs, layer, output=f"{tensor}/codes", **axis), held

    @staticmethod
    def _code(bound: float, qparams: QParams, factor: float) -> int:
        """The code of a bound, far outside the range where there is none."""
        if math.isinf(bound):
            return int(math.copysign(2**40, bound))
        inverse = np.float32(1) / np.float32(float(qparams.scale) / factor)
        return int(np.rint(np.float32(bound) * inverse)) + int(qparams.zero_point)

    def constant_on_grid(self, value: Constant, qparams: QParams, tensor: str) -> OnGrid:
        """A constant quantized now: the file holds its codes."""
        assert value.name is not None
        given = torch.from_numpy(onnx.numpy_helper.to_array(self.given[value.name]).copy())
        grid = self._grid(qparams, tensor)
        codes = quantize(given, qparams).to(torch.int32) + grid.shift
        return OnGrid(None, replace(grid, name=self.graph.codes(f"{tensor}/codes", codes, grid.kind)), tensor)

    def array(self, name: str) -> np.ndarray | None:
        """The value of an initializer of the template."""
        return onnx.numpy_helper.to_array(self.given[name]) if name in self.given else None

    def copy_node(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        layer = node.name.rsplit("/", 1)[0]
        outputs = [self.graph.free(self.names.get(o, f"{layer}/{node.op_type}")) if o else "" for o in node.output]
        self.graph.node(node.op_type, inputs, layer, outputs=outputs, domain=node.domain)
        self.graph.nodes[-1].attribute.extend(node.attribute)
        for given, made in zip(node.output, outputs, strict=True):
            self.values[given] = Value(made)
