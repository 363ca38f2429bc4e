"""The float network as ONNX, exported once: markers stand where a config may put a grid.

`torch.onnx.export` takes seconds and depends on the graph alone. What a config decides (which tensors lie on grids,
codes, scales, zero points) is put in afterwards by `assemble`, in milliseconds. The markers are nodes of the domain
"qlab", which `qlab.export.markers` names.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import fx

from qlab.errors import UnsupportedModel
from qlab.export import markers
from qlab.export.markers import DOMAIN
from qlab.graph.capture import Model
from qlab.graph.lower import attribute, copy_graph
from qlab.graph.ops import activation_inputs, is_float, op_type, packet_name
from qlab.graph.optypes import OP_TYPES
from qlab.memory import settled

OPSET = 21  # the first with 4-bit types and scales for blocks
_CONVOLUTIONS = tuple(name for name in OP_TYPES if name.startswith("conv"))


@dataclass(frozen=True)
class Template:
    """The marked network. proto is shared by every config: it is never changed."""

    proto: onnx.ModelProto
    model_hash: str

    def to_bytes(self) -> bytes:
        return bytes(self.proto.SerializeToString())

    @classmethod
    def from_bytes(cls, content: bytes, model_hash: str) -> Template:
        """What `to_bytes` gave; only for files the lab wrote itself."""
        return cls(onnx.ModelProto.FromString(content), model_hash)


_templates: weakref.WeakKeyDictionary[Model, Template] = weakref.WeakKeyDictionary()


def template(model: Model) -> Template:
    """The template of this model; exported at the first call and kept as long as the model.

    Raises UnsupportedModel naming the op when torch.onnx has no translation for it.
    """
    if model not in _templates:
        _templates[model] = export_template(model)
    return _templates[model]


def has_own_template(model: Model) -> bool:
    """Whether `template` has it at hand."""
    return model in _templates


def keep_template(model: Model, found: Template) -> None:
    """Use this one, exported earlier or elsewhere, for the model. Raises UnsupportedModel if it is of another model."""
    if found.model_hash != model.content_hash:
        raise UnsupportedModel("this exported graph is of another model: export it again.")
    _templates[model] = found


def export_template(model: Model) -> Template:
    """Export now, whatever is kept. Raises UnsupportedModel."""
    marked = _mark(model)
    inputs = tuple(torch.zeros(s.example_shape, dtype=s.dtype) for s in model.inputs)
    free = tuple({i: torch.export.Dim.DYNAMIC for i, size in enumerate(s.shape) if size is None} for s in model.inputs)
    with _quiet(), settled():
        try:
            program = torch.export.export(marked, inputs, dynamic_shapes=free)
            exported = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, verbose=False,
                custom_translation_table=markers.translations(),
            )  # fmt: skip
        except Exception as error:  # the exporter raises whatever its translations raise
            raise UnsupportedModel(_reason(error), detail=str(error)) from error
    assert exported is not None
    proto = exported.model_proto
    _tidy(proto, [s.name for s in model.inputs])
    return Template(proto, model.content_hash)


def _reason(error: Exception) -> str:
    text = str(error)
    missing = [
        line for line in text.splitlines() if "No decompositions registered" in line or "No ONNX function" in line
    ]
    why = (missing or [line for line in text.splitlines() if line.strip()] or [type(error).__name__])[0]
    return (
        f"This network cannot be written as ONNX: {why.strip().rstrip('.')}. "
        "Simulated results are not touched by that; replace the op if integer execution is needed."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs about packages that are not there and about its own deprecations.

    It also notes where in the source each node was made, of which there is none here; that takes a quarter of its time.
    """
    logger = logging.getLogger("torch.onnx")
    level, traces = logger.level, fx.config.do_not_emit_stack_traces
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        fx.config.do_not_emit_stack_traces = True
        try:
            yield
        finally:
            logger.setLevel(level)
            fx.config.do_not_emit_stack_traces = traces


# ---- putting them in -------------------------------------------------------------------------------------------------


def _mark(model: Model) -> fx.GraphModule:
    gm, copy_of = copy_graph(model.graph_module)
    for node in list(model.graph_module.graph.nodes):
        _Marker(model, gm, copy_of).mark(node)
    gm.graph.lint()
    gm.recompile()
    return gm


@dataclass
class _Marker:
    model: Model
    gm: fx.GraphModule
    copy_of: dict[fx.Node, fx.Node]

    def mark(self, node: fx.Node) -> None:
        name = self.model.names.get(node)
        if node.op == "call_function" and name is not None:
            self._edges(node, name)
            self._layer(node, name)
        if name is not None and is_float(node):
            self._behind(self.copy_of[node], markers.tap, name)

    def _edges(self, node: fx.Node, name: str) -> None:
        if OP_TYPES[op_type(node)].role not in ("weighted", "compute", "fixed"):
            return
        copy = self.copy_of[node]
        for source in dict.fromkeys(activation_inputs(node)):
            current = self._current(node, copy, source)
            where = self.model.names.get(source) or source.meta.get("parameter_name", source.name)
            with self.gm.graph.inserting_before(copy):
                new = self.gm.graph.call_function(markers.edge, (current, where, name))
            copy.replace_input_with(current, new)

    def _current(self, node: fx.Node, copy: fx.Node, source: fx.Node) -> fx.Node:
        """What the copy reads where the original reads `source`: the marker behind the copy of it, by now."""
        flat, copied = _flatten(node), _flatten(copy)
        return copied[flat.index(source)]

    def _layer(self, node: fx.Node, name: str) -> None:
        kind, copy = op_type(node), self.copy_of[node]
        if kind in _CONVOLUTIONS:
            self._convolution(node, name)
        elif kind == "linear":
            bias = copy.args[2] if len(copy.args) > 2 else copy.kwargs.get("bias")
            self._replace(node, markers.linear, (copy.args[0], copy.args[1], bias, name, self._sizes(node)))
        elif kind == "embedding":
            rank = len(node.meta["shape"]) - 1
            self._replace(node, markers.embedding, (copy.args[0], copy.args[1], name, rank))
        elif kind in ("lstm", "gru") and getattr(node.target, "_overloadname", "") == "input":
            self._recurrent(node, name, kind)
        elif kind in ("relu", "relu6", "clamp"):
            low, high = clamp_bounds(node)
            if low is not None and high is not None:
                bounds = (bound if math.isfinite(bound) else None for bound in (low, high))
                self._replace(node, markers.clamp, (copy.args[0], *bounds))
        elif packet_name(node) == "mul" and isinstance(node.args[1], (int, float)) and is_float(node):
            self._replace(node, markers.scale, (copy.args[0], float(node.args[1])))

    def _convolution(self, node: fx.Node, name: str) -> None:
        copy = self.copy_of[node]
        for position, marker in ((1, markers.weight), (2, markers.bias)):
            given = copy.args[position] if len(copy.args) > position else None
            if attribute(self.gm, given) is None:
                continue
            with self.gm.graph.inserting_before(copy):
                new = self.gm.graph.call_function(marker, (given, name))
            copy.args = (*copy.args[:position], new, *copy.args[position + 1 :])

    def _recurrent(self, node: fx.Node, name: str, kind: str) -> None:
        x, states, parameters, biases, layers, _dropout, _train, both, batch_first = self.copy_of[node].args
        states = [states] if isinstance(states, fx.Node) else list(states)  # type: ignore[arg-type]
        directions = 2 if both else 1
        settings = (kind, name, layers, directions, batch_first, biases)
        self._replace(node, getattr(markers, kind), (x, states, list(parameters), *settings))  # type: ignore[arg-type]

    def _sizes(self, node: fx.Node) -> list[int]:
        """The sizes of the output; -1 where a size is free, which the batch axis always may be."""
        shape = node.meta["shape"]
        fixed = self.model.fixed_batch is not None
        return [int(s) if i or fixed else -1 for i, s in enumerate(shape)]

    def _replace(self, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
        copy = self.copy_of[node]
        with self.gm.graph.inserting_before(copy):
            new = self.gm.graph.call_function(target, args)
        new.meta = dict(copy.meta)
        copy.replace_all_uses_with(new)
        self.gm.graph.erase_node(copy)
        self.copy_of[node] = new

    def _behind(self, copy: fx.Node, target: Any, *args: Any) -> None:
        with self.gm.graph.inserting_after(copy):
            new = self.gm.graph.call_function(target, (copy, *args))
        copy.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def clamp_bounds(node: fx.Node) -> tuple[float | None, float | None]:
    """The bounds of relu, relu6, hardtanh and clamp as numbers, infinite where there is none; None: not a number."""
    name = packet_name(node)
    fixed = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
    if name in fixed:
        return fixed[name]
    defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    keys = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    given = [node.args[i + 1] if len(node.args) > i + 1 else node.kwargs.get(keys[i], defaults[i]) for i in range(2)]
    bounds = [infinite if v is None else v for v, infinite in zip(given, (-math.inf, math.inf), strict=True)]
    low, high = (float(v) if isinstance(v, (int, float)) else None for v in bounds)
    return low, high


def _flatten(node: fx.Node) -> list[Any]:
    out: list[Any] = []
    for value in (*node.args, *node.kwargs.values()):
        out += list(value) if isinstance(value, (list, tuple)) else [value]
    return out


# ---- what the exporter gave ------------------------------------------------------------------------------------------


def _tidy(proto: onnx.ModelProto, input_names: list[str]) -> None:
    """Leave out the exporter's notes, name inputs and outputs, and name each node after the layer it belongs to."""
    graph = proto.graph
    del proto.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.doc_string = ""
    renamed = {given.name: wanted for given, wanted in zip(graph.input, input_names, strict=True)}
    names = ["output"] if len(graph.output) == 1 else [f"output_{i}" for i in range(len(graph.output))]
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
        node.input[:] = [renamed.get(i, i) for i in node.input]
    for given in graph.input:
        given.name = renamed[given.name]
    _name_free_sizes(graph)
    made_by = {output: node for node in graph.node for output in node.output}
    owner: dict[str, str] = {}
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type in ("Tap", "Linear", "Embedding", "Recurrent"):
            _claim(node, _attribute(node, "name") or _attribute(node, "layer"), made_by, owner)
    for position, node in enumerate(graph.node):
        if node.domain != DOMAIN:
            node.name = f"{owner.get(node.output[0], '')}/{node.op_type}_{position}"
    # outputs keep the exporter's value names inside; `assemble` gives them these
    for value, wanted in zip(graph.output, names, strict=True):
        value.doc_string = wanted


def _claim(node: onnx.NodeProto, layer: str, made_by: dict[str, onnx.NodeProto], owner: dict[str, str]) -> None:
    """What stands between this marker and the ones before it belongs to its layer."""
    todo = list(node.input)
    while todo:
        source = made_by.get(todo.pop())
        if source is None or source.domain == DOMAIN or source.output[0] in owner:
            continue
        owner[source.output[0]] = layer
        todo += source.input


def _attribute(node: onnx.NodeProto, name: str) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == name), "")


def _name_free_sizes(graph: onnx.GraphProto) -> None:
    """batch for the free first size of the inputs; the exporter's names say nothing."""
    for value in (*graph.input, *graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_param:
                size.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"
