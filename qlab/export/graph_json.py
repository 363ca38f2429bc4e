"""The lowered graph of a Model as plain JSON; `graph_from_json` reads it.

    {"inputs": [{"name": "x", "dtype": "float32", "shape": [null, 64], "example": …, "minimum": …, "maximum": …}],
     "nodes": [{"constant": "p_fc_weight", "parameter": "fc.weight"},
               {"name": "linear", "op": "aten.linear.default", "args": ["x", "p_fc_weight"], "module": "fc",
                "type": "Linear"}],
     "outputs": ["linear"]}

A text stands for the node of that name where the operator takes a tensor or a number, and for itself elsewhere. A node
that has no name has that of its constant; "items" are the names of several results. Values of constants are not part of
it; those whose name begins with "p" are parameters, the others buffers.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from qlab.errors import UnsupportedModel
from qlab.graph.archive_ops import SCALAR_OPERATORS, aten_operator
from qlab.graph.archive_sizes import InputSpec
from qlab.graph.capture import Model

_SCALAR_NAMES = {function: name for name, (function, _) in SCALAR_OPERATORS.items()}


def write_graph(model: Model) -> dict[str, Any]:
    """The graph without its constants' values. Raises UnsupportedModel for a call that `read_graph` would refuse."""
    nodes: dict[fx.Node, dict[str, Any]] = {}
    outputs: list[str] = []
    for node in model.graph_module.graph.nodes:
        if node.op == "get_attr":
            nodes[node] = {"constant": node.target, "parameter": node.meta.get("parameter_name", str(node.target))}
            if node.name != node.target:
                nodes[node]["name"] = node.name
        elif node.target is operator.getitem:
            items = nodes[node.args[0]].setdefault("items", [])
            items += [None] * (node.args[1] + 1 - len(items))
            items[node.args[1]] = node.name
        elif node.op == "call_function":
            nodes[node] = _call(node)
        elif node.op == "output":
            results = node.args[0]
            outputs = [n.name for n in (results if isinstance(results, tuple | list) else [results])]
    return {"inputs": [_input(s) for s in model.inputs], "nodes": list(nodes.values()), "outputs": outputs}


def _input(spec: InputSpec) -> dict[str, Any]:
    return {
        "name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape),
        "example": list(spec.example_shape), "minimum": list(spec.minimum), "maximum": list(spec.maximum),
    }  # fmt: skip


def _call(node: fx.Node) -> dict[str, Any]:
    record: dict[str, Any] = {"name": node.name}
    if node.target in _SCALAR_NAMES:
        record |= {"op": _SCALAR_NAMES[node.target], "args": [_plain(a, node) for a in node.args]}
    elif isinstance(node.target, torch._ops.OpOverload) and listed_operator(str(node.target)) is node.target:
        record |= {"op": str(node.target), "args": [_plain(a, node) for a in node.args]}
        if node.kwargs:
            record["kwargs"] = {k: _plain(v, node) for k, v in node.kwargs.items()}
    else:
        raise UnsupportedModel(f"node {node.name!r} calls {node.target}, which a saved model cannot hold.")
    meta = {"module": "module_path", "type": "module_type", "call": "module_call", "part": "part"}
    return record | {key: node.meta[name] for key, name in meta.items() if node.meta.get(name)}


def _plain(value: Any, node: fx.Node) -> Any:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, list | tuple):
        return [_plain(v, node) for v in value]
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value).removeprefix("torch.")
    if isinstance(value, torch.device):
        return "cpu"
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UnsupportedModel(f"node {node.name!r} takes a {type(value).__name__}, which a saved model cannot hold.")


def listed_operator(op: str) -> torch._ops.OpOverload | None:
    """The operator of a name such as "aten.conv2d.default"; None: a saved graph may not call it."""
    return aten_operator(f"torch.ops.{op}")
