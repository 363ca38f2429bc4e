"""A copy of a network's graph with weights and activations put on grids, where a placement says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch import fx, nn

from qlab.config import QConfigMapping
from qlab.graph.capture import Model
from qlab.graph.ops import op_type, packet_name
from qlab.graph.placement import ActivationPoint, Placement, ProductPoint, WeightPoint
from qlab.graph.recurrent import DynamicFakeQuantize, DynamicRecurrent

W = TypeVar("W", bound=nn.Module)
A = TypeVar("A", bound=nn.Module)


class Rewriter(Generic[W, A]):
    """W, A: what stands in the copy for a weight and for the grid of an activation. The model itself is not changed."""

    def __init__(self, model: Model, mapping: QConfigMapping, placement: Placement):
        self.model, self.mapping, self.placement = model, mapping, placement
        source = model.graph_module.graph
        # Without a module, which would be written out as code once more for nothing; `run` makes it at the end.
        self.graph = fx.Graph()
        self.graph.output(self.graph.graph_copy(source, {}))
        self.copy_of: dict[fx.Node, fx.Node] = dict(zip(source.nodes, self.graph.nodes, strict=True))
        self.parts: dict[str, Any] = {
            str(n.target): getattr(model.graph_module, str(n.target)) for n in source.nodes if n.op == "get_attr"
        }
        self.at_source: dict[str, fx.Node] = {}
        self.points: dict[str, ActivationPoint] = {}

    def weight_part(self, target: str, point: WeightPoint) -> W:
        raise NotImplementedError

    def weight_call(self, target: str, constant: fx.Node) -> fx.Node:
        """The node that gives the weight. constant: its get_attr node."""
        raise NotImplementedError

    def activation_part(self, target: str, point: ActivationPoint, after_relu: bool) -> A:
        """after_relu: it takes over the ReLU in front of it."""
        raise NotImplementedError

    def put_weights(self) -> dict[str, W]:
        """Layer -> what holds its weight. A weight that several layers read on the same grid is held once."""
        shared: dict[tuple[Any, ...], tuple[str, W]] = {}
        out: dict[str, W] = {}
        for point in self.placement.weights:
            key = (point.constant.target, repr(point.spec), point.axis, self.mapping.ranges.get(point.tensor))
            if key not in shared:
                target = self._free_target("wq", point.tensor)
                shared[key] = target, self.weight_part(target, point)
                self.parts[target] = shared[key][1]
            target, tensor = shared[key]
            out[point.layer] = tensor
            node = self.copy_of[point.node]
            old = self.copy_of[point.constant]
            with self.graph.inserting_before(node):
                new = self.weight_call(target, old)
            new.meta = dict(old.meta)
            node.replace_input_with(old, new)
        return out

    def put_activations(self) -> dict[str, A]:
        """Key of a point -> what puts the activation on its grid."""
        out: dict[str, A] = {}
        for point in self.placement.activations:
            node = self.copy_of[point.node]
            fuse_relu = self._is_private_relu(node, point)
            target = self._free_target("aq", point.tensor)
            module = self.activation_part(target, point, fuse_relu)
            self.parts[target] = module
            source: fx.Node = node.args[0] if fuse_relu else node  # type: ignore[assignment]
            readers = list(node.users) if point.consumers is None else [self.copy_of[c] for c in point.consumers]
            with self.graph.inserting_after(node):
                new = self.graph.call_module(target, (source,))
            new.meta = dict(node.meta)
            for reader in readers:
                reader.replace_input_with(node, new)
            if point.consumers is None:
                self.at_source[point.tensor] = new
            key = self._free_key(out, point)
            out[key], self.points[key] = module, point
        return out

    def products(self) -> Iterator[tuple[ProductPoint, str]]:
        """Layers that integer kernels may compute, with the key of the activation they read."""
        at_edge = {(p.node, c): key for key, p in self.points.items() for c in p.consumers or ()}
        for point in self.placement.products:
            key = at_edge.get((point.node.args[0], point.node), point.grid)  # type: ignore[arg-type]
            if key is not None:
                yield point, key

    def finished(self) -> fx.GraphModule:
        """The graph with what ranges at run time put in, as a module."""
        self._dynamic()
        self.graph.eliminate_dead_code(_has_effect)
        gm = fx.GraphModule(self.parts, self.graph, f"{self.model.graph_module.__class__.__name__}Copy")
        gm.training = self.model.graph_module.training
        for target, part in self.parts.items():  # a weight that is read by its codes alone has no node of its own
            if isinstance(part, nn.Module) and target not in gm._modules:
                gm.add_submodule(target, part)
        return gm

    def _free_key(self, taken: Mapping[str, Any], point: ActivationPoint) -> str:
        if point.tensor not in taken:
            return point.tensor
        assert point.consumers is not None
        return f"{point.tensor} -> {self.model.names[point.consumers[0]]}"

    def _is_private_relu(self, node: fx.Node, point: ActivationPoint) -> bool:
        return point.consumers is None and node.op == "call_function" and packet_name(node) == "relu"

    def _dynamic(self) -> None:
        for point in self.placement.dynamic:
            node = self.copy_of[point.node]
            kind = op_type(point.node)
            if kind in ("lstm", "gru"):
                target = self._add_module("dq", point.layer, DynamicRecurrent(kind, point.spec))
                with self.graph.inserting_before(node):
                    new = self.graph.call_module(target, node.args)
                new.meta = dict(node.meta)
                node.replace_all_uses_with(new)
                self.graph.erase_node(node)
                continue
            source: fx.Node = node.args[0]  # type: ignore[assignment]
            target = self._add_module("dq", point.layer, DynamicFakeQuantize(point.spec))
            with self.graph.inserting_before(node):
                new = self.graph.call_module(target, (source,))
            new.meta = dict(source.meta)
            node.args = (new, *node.args[1:])

    def _call(self, prefix: str, name: str, module: nn.Module, *args: Any) -> fx.Node:
        return self.graph.call_module(self._add_module(prefix, name, module), args)

    def _add_module(self, prefix: str, name: str, module: nn.Module) -> str:
        target = self._free_target(prefix, name)
        self.parts[target] = module
        return target

    def _free_target(self, prefix: str, name: str) -> str:
        stem = f"{prefix}_" + "".join(c if c.isalnum() else "_" for c in name)
        target, i = stem, 1
        while target in self.parts:
            target, i = f"{stem}_{i}", i + 1
        return target


def _has_effect(node: fx.Node) -> bool:
    """Whether a node stays without a reader: what is called as a module here computes its result and does no more."""
    return node.op != "call_module" and node.is_impure()
