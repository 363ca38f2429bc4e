"""Changes of a float network before it is quantized: equal ranges in adjacent layers, biases moved by given amounts.

ReLU lets a positive factor through, so a channel may be made smaller in one layer and larger in the next without a
change of what the network computes; one scale for all channels of a weight then serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from qlab.config import QConfigMapping
from qlab.graph.capture import Model
from qlab.graph.lower import FOLDED_NORM, add_constant, attribute, copy_graph, drop_unused_attributes
from qlab.graph.ops import op_type, packet_name

EQUALIZED = "equalized"
SWEEPS = 40  # over all pairs; long chains settle slowly
SETTLED = 1e-4  # relative change of a factor
_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_THROUGH = ("relu", "max_pool", "avg_pool")  # a positive factor of a channel comes out as it went in


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second alone reads the first. spread: values of the second's input behind each channel
    (more than 1 behind a flatten)."""

    first: fx.Node
    second: fx.Node
    spread: int = 1


def network_of(model: Model, mapping: QConfigMapping) -> Model:
    """The float network this mapping quantizes: the model itself, or the same function with equalised weights."""
    return equalized(model) if mapping.equalize else model


def equalized(model: Model) -> Model:
    """The same function with the weight ranges of adjacent layers made equal, channel by channel; made once a model.

    For each channel between two layers, r1 and r2 being the largest magnitudes on both sides: the first is divided and
    the second multiplied by sqrt(r1 / r2), again over all pairs until nothing moves. Layers whose weight is read twice
    stay. The model itself where there is no pair. Source: Nagel et al. 2019, section 4.1.
    """
    known = model.derived.get(EQUALIZED)
    if known is None:
        pairs = list(equalizable(model))
        known = _equalize(model, pairs) if pairs else model
        model.derived[EQUALIZED] = known
    return known


def equalizable(model: Model) -> Iterator[Pair]:
    """The pairs of layers whose channels can be scaled against each other, in the order of the network."""
    for node in model.ops:
        if not _own_weight(model, node):
            continue
        seen, spread = node, 1
        channels = _weight(model, node).shape[0]
        while (reader := _only_reader(seen)) is not None:
            kind = op_type(reader)
            if kind in _LAYERS:
                if (
                    reader.args[0] is seen
                    and _own_weight(model, reader)
                    and _inputs(model, reader) == channels * spread
                ):
                    yield Pair(node, reader, spread)
                break
            if kind in _THROUGH:
                seen = reader
                continue
            found = _flattened(seen, reader, channels) if op_type(node) != "linear" else None
            if found is None:
                break
            seen, spread = reader, found


def with_biases(model: Model, shifts: Mapping[str, Tensor]) -> Model:
    """The network with these amounts [C] added to the biases of its layers, by layer name; a layer without one gets
    it. Every call of a layer that is called more than once has a bias of its own afterwards."""
    gm, copy_of = copy_graph(model.graph_module)
    for node in model.ops:
        name = model.names[node]
        if name not in shifts:
            continue
        copied = copy_of[node]
        given = copied.args[2] if len(copied.args) > 2 else copied.kwargs.get("bias")
        bias = attribute(gm, given)
        weight: fx.Node = copied.args[1]  # type: ignore[assignment]
        value = shifts[name] if bias is None else bias.detach().double() + shifts[name]
        like = _weight(model, node)
        made = add_constant(gm, copied, value.to(like.dtype), weight, f"{name}.bias")
        copied.args = (*copied.args[:2], made, *copied.args[3:])
        copied.kwargs = {k: v for k, v in copied.kwargs.items() if k != "bias"}
    made_model = _finished(gm, model)
    made_model.chosen = model.chosen  # the weights are the same
    return made_model


def _equalize(model: Model, pairs: list[Pair]) -> Model:
    gm, copy_of = copy_graph(model.graph_module)
    weights = {p: _weight(model, p).detach().double() for pair in pairs for p in (pair.first, pair.second)}
    factors = {pair: torch.ones(len(weights[pair.first]), dtype=torch.float64) for pair in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            first, second = _ranges(weights[pair.first], weights[pair.second], pair)
            usable = (first > 0) & (second > 0)
            factor = torch.where(usable, (first / second.clamp_min(1e-300)).sqrt(), 1.0)
            weights[pair.first] = weights[pair.first] / _shaped(factor, weights[pair.first])
            weights[pair.second] = _scale_inputs(weights[pair.second], factor, pair)
            factors[pair] = factors[pair] * factor
            moved = max(moved, float((factor - 1).abs().max()))
        if moved < SETTLED:
            break
    total: dict[fx.Node, Tensor] = {}
    for pair, factor in factors.items():
        total[pair.first] = total.get(pair.first, torch.ones_like(factor)) * factor
    for node, weight in weights.items():
        constant = copy_of[node].args[1]
        assert isinstance(constant, fx.Node)
        original = _weight(model, node)
        _replace(gm, constant, weight.to(original.dtype))
        bias = attribute(gm, copy_of[node].args[2] if len(copy_of[node].args) > 2 else copy_of[node].kwargs.get("bias"))
        if bias is not None and node in total:
            like: fx.Node = copy_of[node].args[2] if len(copy_of[node].args) > 2 else copy_of[node].kwargs["bias"]  # type: ignore[assignment]
            _replace(gm, like, (bias.detach().double() / total[node]).to(bias.dtype))
    return _finished(gm, model)


def _ranges(first: Tensor, second: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """Largest magnitude of each channel: of what makes it, and of what reads it. [C] each."""
    return first.abs().flatten(1).amax(1), _by_input(second, pair).abs().amax((1, 3, 4)).reshape(-1)


def _by_input(second: Tensor, pair: Pair) -> Tensor:
    """The weight as [groups, outputs of a group, channels of a group, spread, kernel]."""
    groups = _groups(pair.second)
    return second.reshape(groups, second.shape[0] // groups, second.shape[1] // pair.spread, pair.spread, -1)


def _scale_inputs(second: Tensor, factor: Tensor, pair: Pair) -> Tensor:
    shaped = _by_input(second, pair)
    return (shaped * factor.reshape(shaped.shape[0], 1, shaped.shape[2], 1, 1)).reshape(second.shape)


def _shaped(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.reshape(-1, *([1] * (weight.ndim - 1)))


def _groups(node: fx.Node) -> int:
    if op_type(node) == "linear":
        return 1
    return int(node.args[6]) if len(node.args) > 6 else int(node.kwargs.get("groups", 1))  # type: ignore[arg-type]


def _inputs(model: Model, node: fx.Node) -> int:
    return _weight(model, node).shape[1] * _groups(node)


def _weight(model: Model, node: fx.Node) -> Tensor:
    weight = attribute(model.graph_module, node.args[1])
    assert weight is not None
    return weight


def _own_weight(model: Model, node: fx.Node) -> bool:
    """Whether this is a layer with constants that no other op reads: they can be changed for it alone."""
    if op_type(node) not in _LAYERS:
        return False
    weight = attribute(model.graph_module, node.args[1])
    if weight is None or not weight.is_floating_point():
        return False
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    constants = [c for c in (node.args[1], bias) if isinstance(c, fx.Node)]
    read = [n for n in model.graph_module.graph.nodes if n.op == "get_attr"]
    return all(
        attribute(model.graph_module, c) is not None and sum(len(n.users) for n in read if n.target == c.target) == 1
        for c in constants
    )


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op == "call_function" else None


def _flattened(source: fx.Node, node: fx.Node, channels: int) -> int | None:
    """Values behind each channel where a reshape flattens [N, C, …] to [N, C * n]; None for any other op."""
    before, after = source.meta.get("shape"), node.meta.get("shape")
    flat = packet_name(node) in ("flatten", "reshape", "view", "_unsafe_view", "squeeze")
    if not flat or before is None or after is None or len(after) != 2 or len(before) < 3 or before[1] != channels:
        return None
    return after[1] // channels if after[0] == before[0] and after[1] % channels == 0 else None


def _replace(gm: fx.GraphModule, constant: fx.Node, value: Tensor) -> None:
    setattr(gm, str(constant.target), nn.Parameter(value.contiguous(), requires_grad=False))
    constant.meta.pop(FOLDED_NORM, None)  # it speaks of the weight as it was


def _finished(gm: fx.GraphModule, model: Model) -> Model:
    gm.graph.eliminate_dead_code()
    drop_unused_attributes(gm)
    gm.recompile()
    return Model(gm, model.inputs, model.name, model.folded)
