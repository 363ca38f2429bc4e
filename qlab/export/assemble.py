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
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

import qlab
from qlab.export.attributes import number, text
from qlab.export.graph_writer import (
    UINT8,
)  # fmt: skip
from qlab.export.markers import DOMAIN
from qlab.export.products import Products
from qlab.export.recurrent import write_recurrent
from qlab.export.template import Template
from qlab.export.values import Clamped, Codes, Constant, OnGrid, Reshaped, Scaled, Value
from qlab.graph.optypes import OP_TYPES
from qlab.quant.qparams import QParams

if TYPE_CHECKING:
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


def without_codes(assembled: Assembled) -> onnx.ModelProto:
    """The graph as it would be without its codes as outputs, which add no op to it."""
    made = onnx.ModelProto()
    made.CopyFrom(assembled.proto)
    outputs = made.graph.output
    del outputs[len(outputs) - len(assembled.codes) :]
    return made


class _Assembler(Products):
    def __init__(self, template: Template, qmodel: QuantizedModel | None):
        dynamic = {p.layer: p.spec for p in qmodel.placement.dynamic} if qmodel is not None else {}
        super().__init__(template, qmodel.weights if qmodel is not None else {}, dynamic)
        self.qmodel = qmodel
        self.codes: dict[str, Codes] = {}
        self.edges: dict[str, OnGrid] = {}
        self.at_source: dict[str, str] = {}
        self.at_edge: dict[tuple[str, str], str] = {}
        self.shares: dict[str, str] = {}
        if qmodel is not None:
            self._read_placement(qmodel)

    def _read_placement(self, qmodel: QuantizedModel) -> None:
        names = qmodel.model.names
        for key, point in qmodel.points.items():
            if point.consumers is None:
                self.at_source[point.tensor] = key
            else:
                self.at_edge.update({(point.tensor, names[c]): key for c in point.consumers})
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

    def _tap(self, node: onnx.NodeProto) -> None:
        name, value = text(node, "name"), self.value(node.input[0])
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
        key = self.at_edge.get((text(node, "source"), text(node, "consumer")))
        if key is not None:
            if key not in self.edges:
                self.edges[key] = self._record(key, self._quantized_edge(value, key))
            value = self.edges[key]
        self.values[node.output[0]] = value

    def _quantized_edge(self, value: Value, key: str) -> OnGrid:
        if isinstance(value, Constant):
            return self.constant_on_grid(value, self._qparams(key), key)
        return self.on_grid(value, self._qparams(key), key, key)

    def _record(self, key: str, value: OnGrid) -> OnGrid:
        self.codes[key] = value.codes
        return value

    def _qparams(self, key: str) -> QParams:
        assert self.qmodel is not None
        return self.qmodel.activations[key].qparams

    def _weight(self, node: onnx.NodeProto) -> None:
        self.weight_layer[node.output[0]] = text(node, "layer")
        self.values[node.output[0]] = self.value(node.input[0])

    def _bias(self, node: onnx.NodeProto) -> None:
        self.values[node.output[0]] = self.value(node.input[0])

    def _clamp(self, node: onnx.NodeProto) -> None:
        low, high = number(node, "low", -math.inf), number(node, "high", math.inf)
        self.values[node.output[0]] = Clamped(None, self.value(node.input[0]), low, high)

    def _scale(self, node: onnx.NodeProto) -> None:
        self.values[node.output[0]] = Scaled(None, self.value(node.input[0]), number(node, "factor", 1.0))

    def _recurrent(self, node: onnx.NodeProto) -> None:
        write_recurrent(self, node)

    def _copy(self, node: onnx.NodeProto) -> None:
        layer = node.name.rsplit("/", 1)[0]
        first = self.value(node.input[0]) if node.input and node.input[0] else None
        if isinstance(first, OnGrid) and self._moves(node, first):
            self._move(node, first, layer)
        elif node.op_type == "ReduceMean" and self._is_spatial(node) and isinstance(first, OnGrid):
            # integer kernels know the pooling op, not the mean
            pooled = Value(self.graph.node("GlobalAveragePool", [self.as_float(first, layer)], layer, output=layer))
            keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
            self.values[node.output[0]] = pooled if keeps else Reshaped(None, pooled, [0, -1])
        else:
            self.copy_node(node, [self.as_float(self.value(i), layer) if i else "" for i in node.input])

    def _moves(self, node: onnx.NodeProto, value: OnGrid) -> bool:
        """Whether the op only moves values about, so that it can move 8-bit codes instead."""
        if node.domain or node.op_type not in _MOVES or value.codes.kind != UINT8 or value.codes.qparams.scale.ndim:
            return False
        if node.op_type != "Pad":
            return True
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        fill = self.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        return mode != b"constant" or (fill is not None and not fill.any())

    def _move(self, node: onnx.NodeProto, value: OnGrid, layer: str) -> None:
        c = value.codes
        others = [self.as_float(self.value(i), layer) if i else "" for i in node.input[1:]]
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
        axes = self.array(node.input[1]) if len(node.input) > 1 else None
        return axes is not None and sorted(axes.tolist()) in ([2, 3], [-2, -1])

    def _output(self, given: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """The output under the name it shall have."""
        wanted = self.graph.free(given.doc_string)
        inner = self.as_float(self.value(given.name), wanted)
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
