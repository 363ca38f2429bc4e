"""Rewrites of a captured graph that keep its results and make it quantizable.

In-place ops become functional, no-ops go, attention is written out as the matmuls and the softmax it consists of,
products with a constant matrix become linear, and BatchNorm is folded into the convolution or linear before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qlab.errors import UnsupportedModel
from qlab.graph.ops import SAME_VALUES, op_type, packet_name

aten = torch.ops.aten

_IDENTITIES = (
    "dropout",
    "dropout_",
    "alpha_dropout",
    "feature_dropout",
    "detach",
    "detach_",
    "alias",
    "lift_fresh_copy",
)
_VIEWS = SAME_VALUES - {"clone", "contiguous", "roll", "flip"} | {
    "slice",
    "select",
    "narrow",
    "expand",
    "chunk",
    "split",
}


def lower(gm: fx.GraphModule) -> list[str]:
    """Apply all rewrites in place; returns a line for each BatchNorm folded ("bn1 into conv1")."""
    _make_functional(gm)
    _drop_identities(gm)
    _write_out_attention(gm)
    _constant_products_to_linear(gm)
    folded = _fold_batch_norm(gm)
    gm.graph.eliminate_dead_code()
    drop_unused_attributes(gm)
    gm.graph.lint()
    gm.recompile()
    return folded


def copy_graph(gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A copy to change, and the copy of each node. The constants are shared with the original: do not write to them."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(gm.graph, {}))
    copy = fx.GraphModule(gm, graph, class_name=f"{type(gm).__name__}Copy")
    copy_of = dict(zip(gm.graph.nodes, copy.graph.nodes, strict=True))
    for node, copied in copy_of.items():
        copied.name = node.name  # fx avoids names of Python's own, such as input, under which a placeholder is known
    return copy, copy_of


def attribute(gm: fx.GraphModule, node: Any) -> Tensor | None:
    """The constant tensor behind a get_attr node, else None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = getattr(gm, str(node.target))
    return value if isinstance(value, Tensor) else None


def add_constant(gm: fx.GraphModule, before: fx.Node, value: Tensor, like: fx.Node, name: str) -> fx.Node:
    """A new get_attr node holding `value`, named after `name` (dotted), placed before a node."""
    stem = "p_" + "".join(c if c.isalnum() else "_" for c in name)
    target, i = stem, 1
    while hasattr(gm, target):
        target, i = f"{stem}_{i}", i + 1
    gm.register_parameter(target, nn.Parameter(value.contiguous(), requires_grad=False))
    with gm.graph.inserting_before(before):
        node = gm.graph.get_attr(target)
    node.meta = {
        **{k: like.meta[k] for k in ("module_path", "module_type") if k in like.meta},
        "parameter_name": name, "shape": tuple(value.shape), "dtype": value.dtype,
    }  # fmt: skip
    return node


def _make_functional(gm: fx.GraphModule) -> None:
    """relu_ to relu, add_ to add: later uses of the overwritten tensor read the new one.

    Raises UnsupportedModel when a view is written to, because the write would have to reach the tensor under it.
    """
    position = {n: i for i, n in enumerate(gm.graph.nodes)}
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = packet_name(node)
        if not name.endswith("_") or name.startswith("_") or not node.target._schema.is_mutable:
            continue
        packet = getattr(aten, name[:-1], None)
        overload = getattr(packet, node.target._overloadname, None) if packet is not None else None
        written = node.args[0] if node.args else None
        if overload is None or not isinstance(written, fx.Node):
            raise UnsupportedModel(
                f"layer {node.meta.get('module_path') or node.name!r} changes a tensor in place with {name}, which "
                "has no functional form. Write the result to a new tensor instead."
            )
        views = [a for a in _aliases(written) if a is not written and _used_after(a, position[node], position)]
        if views:
            raise UnsupportedModel(
                f"layer {node.meta.get('module_path') or node.name!r} writes in place ({name}) to a tensor that shares "
                f"memory with {views[0].name!r}. Write the result to a new tensor: y = y + x instead of y += x."
            )
        node.target = overload
        for user in [u for u in written.users if u is not node and position.get(u, math.inf) > position[node]]:
            user.replace_input_with(written, node)


def _aliases(node: fx.Node) -> set[fx.Node]:
    """All nodes that may share memory with this one through views."""
    root = node
    while packet_name_or(root) in _VIEWS and isinstance(root.args[0], fx.Node):
        root = root.args[0]
    found, todo = {root}, [root]
    while todo:
        for user in todo.pop().users:
            if packet_name_or(user) in (*_VIEWS, "getitem") and user not in found:
                found.add(user)
                todo.append(user)
    return found


def packet_name_or(node: fx.Node) -> str:
    return packet_name(node) if node.op == "call_function" else ""


def _used_after(node: fx.Node, at: int, position: dict[fx.Node, int]) -> bool:
    return any(position.get(u, math.inf) > at for u in node.users)


def _drop_identities(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        name = packet_name(node)
        same_type = name in ("to", "_to_copy", "type_as") and _same_dtype(node)
        if name in _IDENTITIES or same_type:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)


def _same_dtype(node: fx.Node) -> bool:
    source = node.args[0]
    dtype = node.meta.get("dtype")
    return isinstance(source, fx.Node) and dtype is not None and source.meta.get("dtype") == dtype


def _write_out_attention(gm: fx.GraphModule) -> None:
    """softmax(q kᵀ · scale + mask) v, as PyTorch documents scaled_dot_product_attention."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or packet_name(node) != "scaled_dot_product_attention":
            continue
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        a: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        q, k, v = a["query"], a["key"], a["value"]
        if a.get("enable_gqa"):
            raise UnsupportedModel(
                f"layer {node.meta.get('module_path')!r} uses grouped-query attention (enable_gqa=True): "
                "repeat the key and value heads before the call."
            )
        q_shape, k_shape = q.meta["shape"], k.meta["shape"]
        scale = a.get("scale")
        scale = 1.0 / math.sqrt(q_shape[-1]) if scale is None else scale
        with gm.graph.inserting_before(node):

            def call(
                target: Any, args: tuple[Any, ...], shape: tuple[int, ...], part: str, dtype: Any = None
            ) -> fx.Node:
                new = gm.graph.call_function(target, args)
                new.meta = {
                    **node.meta, "shape": shape, "dtype": dtype or node.meta.get("dtype"), "part": part,  # noqa: B023
                }  # fmt: skip
                return new

            kt = call(aten.transpose.int, (k, -2, -1), (*k_shape[:-2], k_shape[-1], k_shape[-2]), "key_t")
            scores_shape = (*q_shape[:-1], k_shape[-2])
            scores = call(aten.matmul.default, (q, kt), scores_shape, "qk")
            scores = call(aten.mul.Tensor, (scores, scale), scores_shape, "scores")
            mask = a.get("attn_mask")
            if a.get("is_causal"):
                length = (q_shape[-2], k_shape[-2])
                causal = torch.ones(length, dtype=torch.bool).tril().logical_not()
                mask = _buffer(gm, node, causal, "causal_mask")
                scores = call(aten.masked_fill.Scalar, (scores, mask, -math.inf), scores_shape, "masked_scores")
            elif isinstance(mask, fx.Node):
                if mask.meta.get("dtype") == torch.bool:
                    keep = call(aten.logical_not.default, (mask,), mask.meta["shape"], "mask", torch.bool)
                    scores = call(aten.masked_fill.Scalar, (scores, keep, -math.inf), scores_shape, "masked_scores")
                else:
                    scores = call(aten.add.Tensor, (scores, mask), scores_shape, "masked_scores")
            probabilities = call(aten.softmax.int, (scores, -1), scores_shape, "softmax")
            out = call(aten.matmul.default, (probabilities, v), node.meta["shape"], "context")
        node.replace_all_uses_with(out)
        gm.graph.erase_node(node)


def _buffer(gm: fx.GraphModule, before: fx.Node, value: Tensor, stem: str) -> fx.Node:
    target, i = f"c_{stem}", 1
    while hasattr(gm, target):
        target, i = f"c_{stem}_{i}", i + 1
    gm.register_buffer(target, value)
    node = gm.graph.get_attr(target)
    node.meta = {"module_path": before.meta.get("module_path", ""), "parameter_name": target,
                 "shape": tuple(value.shape), "dtype": value.dtype}  # fmt: skip
    return node


def _constant_products_to_linear(gm: fx.GraphModule) -> None:
    """matmul(x, W), mm(x, W), addmm(b, x, W) with a constant two-axis W, also transposed, become linear(x, Wᵀ, b)."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        name = packet_name(node)
        if name in ("matmul", "mm"):
            x, w, bias = node.args[0], node.args[1], None
        elif name == "addmm" and len(node.args) == 3 and not node.kwargs:
            bias, x, w = node.args
            if attribute(gm, bias) is None:
                continue
        else:
            continue
        weight = _transposed_constant(gm, node, w)
        if weight is None:
            continue
        with gm.graph.inserting_before(node):
            args = (x, weight) if bias is None else (x, weight, bias)
            new = gm.graph.call_function(aten.linear.default, args)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        gm.graph.erase_node(node)


def _transposed_constant(gm: fx.GraphModule, node: fx.Node, w: Any) -> fx.Node | None:
    if isinstance(w, fx.Node) and packet_name_or(w) in ("t", "transpose", "numpy_T"):
        under = attribute(gm, w.args[0])
        if under is not None and under.ndim == 2:
            return w.args[0]  # type: ignore[return-value]
    value, source = _constant_value(gm, w)
    if value is not None and source is not None and value.ndim == 2 and value.is_floating_point():
        return add_constant(gm, node, value.detach().t(), source, source.meta.get("parameter_name", str(source.target)))
    return None


def _constant_value(gm: fx.GraphModule, node: Any) -> tuple[Tensor | None, fx.Node | None]:
    """The value of a constant that reached this node through shape-only ops, and the get_attr node it comes from."""
    direct = attribute(gm, node)
    if direct is not None:
        return direct, node
    if not isinstance(node, fx.Node) or op_type(node) != "reshape" or len(node.all_input_nodes) != 1:
        return None, None
    value, source = _constant_value(gm, node.args[0])
    if value is None or not callable(node.target):
        return None, None
    return node.target(value.detach(), *node.args[1:], **node.kwargs), source


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """What a folded BatchNorm says of the layer that took it up. factor [C]: each channel's weights were multiplied by
    it. mean, std [C]: of the layer's outputs over the training data, as the learned shift and scale have it."""

    name: str
    factor: Tensor
    mean: Tensor
    std: Tensor


FOLDED_NORM = "folded_norm"  # key of a weight's meta

_FOLDABLE = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")


def _fold_batch_norm(gm: fx.GraphModule) -> list[str]:
    """w' = w · g / sqrt(var + eps), b' = (b - mean) · g / sqrt(var + eps) + beta; computed in float64.

    Source: Jacob et al. 2018, section 3.2.
    """
    folded = []
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or packet_name(node) != "batch_norm":
            continue
        conv = node.args[0]
        if not isinstance(conv, fx.Node) or conv.op != "call_function" or len(conv.users) != 1:
            continue
        kind = op_type(conv)
        if kind not in _FOLDABLE or (kind == "linear" and len(conv.meta.get("shape") or ()) != 2):
            continue
        gamma, beta, mean, var = (attribute(gm, a) for a in node.args[1:5])
        weight = attribute(gm, conv.args[1])
        bias_node = conv.args[2] if len(conv.args) > 2 else None
        bias = attribute(gm, bias_node)
        if mean is None or var is None or weight is None or (bias_node is not None and bias is None):
            continue
        eps = float(node.args[7])
        factor = (1.0 if gamma is None else gamma.detach().double()) / torch.sqrt(var.detach().double() + eps)
        w64 = weight.detach().double()
        groups = _groups(conv, kind)
        if kind.startswith("conv_transpose"):
            # [in, out / groups, ...]: the channels of one group lie on axis 1, the groups along axis 0
            per_group = factor.reshape(groups, 1, -1)
            shaped = per_group.expand(groups, w64.shape[0] // groups, -1).reshape(w64.shape[0], w64.shape[1])
            w64 = w64 * shaped.reshape(*w64.shape[:2], *([1] * (w64.ndim - 2)))
        else:
            w64 = w64 * factor.reshape(-1, *([1] * (w64.ndim - 1)))
        b64 = (0.0 if bias is None else bias.detach().double()) - mean.detach().double()
        b64 = b64 * factor + (0.0 if beta is None else beta.detach().double())
        w_node: fx.Node = conv.args[1]  # type: ignore[assignment]
        w_name = w_node.meta.get("parameter_name", str(w_node.target))
        b_name = w_name.removesuffix("weight") + "bias"
        new_weight = add_constant(gm, conv, w64.to(weight.dtype), w_node, w_name)
        new_bias = add_constant(gm, conv, b64.to(weight.dtype), w_node, b_name)
        gain = torch.ones_like(factor) if gamma is None else gamma.detach().double()
        centre = torch.zeros_like(factor) if beta is None else beta.detach().double()
        name = str(node.meta.get("module_path") or node.name)
        new_weight.meta[FOLDED_NORM] = FoldedNorm(name, factor, centre, gain.abs())
        conv.args = (conv.args[0], new_weight, new_bias, *conv.args[3:])
        folded.append(f"{node.meta.get('module_path') or node.name} into {conv.meta.get('module_path') or conv.name}")
        node.replace_all_uses_with(conv)
        gm.graph.erase_node(node)
    return folded


def _groups(conv: fx.Node, kind: str) -> int:
    if kind == "linear":
        return 1
    return int(conv.args[6]) if len(conv.args) > 6 else int(conv.kwargs.get("groups", 1))  # type: ignore[arg-type]


def drop_unused_attributes(gm: fx.GraphModule) -> None:
    """Forgets constants that no node reads."""
    used = {str(n.target) for n in gm.graph.nodes if n.op == "get_attr"}
    for store in (gm._parameters, gm._buffers):
        for name in [n for n in store if n not in used]:
            del store[name]
