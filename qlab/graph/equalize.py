"""Changes of a float network before it is quantized: equal ranges in adjacent layers, biases moved by given amounts.

ReLU lets a positive factor through, so a channel may be made smaller in one layer and larger in the next without a
change of what the network computes; one scale for all channels of a weight then serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from qlab.config import QConfigMapping
from qlab.graph.capture import Model
from qlab.graph.lower import FOLDED_NORM, add_constant, attribute, copy_graph, drop_unused_attributes
from qlab.graph.ops import op_type, packet_name

EQUALIZED = "equalized"
SWEEPS = 40  # over all pairs; long chains settle slowly
WIDER = 2  # times the largest bias of a layer is as far as equalising takes any of its biases
SETTLED = 1e-4  # relative change of a factor
_LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
_POOLS = ("max_pool", "avg_pool")
_THROUGH = ("relu", *_POOLS)  # a positive factor of a channel comes out as it went in


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
    the second multiplied by sqrt(r1 / r2), again over all pairs until nothing moves, as far as the biases of the first
    let it. Layers whose weight is read twice stay. The model itself where there is no pair.
    Source: Nagel et al. 2019, section 4.1.
    """
    known = model.derived.get(EQUALIZED)
    if known is None:
        pairs = list(equalizable(model))
        known = _equalize(model, pairs) if pairs else model
        model.derived[EQUALIZED] = known
    return known


def equalizable(model: Model) -> Iterator[Pair]:
    """The pairs of layers whose channels can be scaled against each other, in the order of the network.

    The axis that holds the channels is followed from the first to the second, which has to read them there.
    """
    for node in model.ops:
        if not _own_weight(model, node):
            continue
        seen, spread, axis = node, 1, _channel_axis(node, node)
        channels = _weight(model, node).shape[0]
        while (reader := _only_reader(seen)) is not None and reader.args[0] is seen:
            kind = op_type(reader)
            if kind in _LAYERS:
                same_axis = axis == _channel_axis(reader, seen)
                if same_axis and _own_weight(model, reader) and _inputs(model, reader) == channels * spread:
                    yield Pair(node, reader, spread)
                break
            if kind in _POOLS and axis >= _first_pooled(reader, seen):
                break  # it mixes the channels
            if kind not in _THROUGH:
                behind = _flattened(seen, reader, axis)
                if behind is None:
                    break
                spread, axis = spread * behind, len(reader.meta["shape"]) - 1
            seen = reader


def with_biases(model: Model, shifts: Mapping[str, Tensor]) -> Model:
    """The network with these amounts [C] added to the biases of its layers, by layer name; a layer without one gets
    it. Every call of a layer that is called more than once has a bias of its own afterwards."""
    gm, copy_of = copy_graph(model.graph_module)
    for node in model.ops:
        name = model.names[node]
        if name not in shifts:
            continue
        copied = copy_of[node]
        bias = attribute(gm, _bias(copied))
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
    lowest = {pair: _smallest_factor(attribute(gm, _bias(copy_of[pair.first]))) for pair in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            first, second = _ranges(weights[pair.first], weights[pair.second], pair)
            usable = (first > 0) & (second > 0)
            factor = torch.where(usable, (first / second.clamp_min(1e-300)).sqrt(), 1.0)
            factor = torch.maximum(factor, lowest[pair] / factors[pair])
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
        _replace(gm, copy_of[node].args[1], weight.to(_weight(model, node).dtype))
        bias = attribute(gm, _bias(copy_of[node]))
        if bias is not None and node in total:
            _replace(gm, _bias(copy_of[node]), (bias.detach().double() / total[node]).to(bias.dtype))
    return _finished(gm, model)


def _smallest_factor(bias: Tensor | None) -> Tensor:
    """What each channel may be divided by at least, [C]: by less, and its bias would pass `WIDER` times the largest of
    the layer and widen the activation for a channel that hardly does anything. 0 where there is no bias.

    Source: Nagel et al. 2019, section 4.1.3, on biases that equalising makes high.
    """
    if bias is None or not bool(bias.any()):
        return torch.zeros((), dtype=torch.float64)
    size = bias.detach().double().abs()
    return size / (WIDER * size.max())


def _bias(node: fx.Node) -> Argument:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


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
    constants = [c for c in (node.args[1], _bias(node)) if isinstance(c, fx.Node)]
    read = [n for n in model.graph_module.graph.nodes if n.op == "get_attr"]
    return all(
        attribute(model.graph_module, c) is not None and sum(len(n.users) for n in read if n.target == c.target) == 1
        for c in constants
    )


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op == "call_function" else None


def _channel_axis(layer: fx.Node, tensor: fx.Node) -> int:
    """The axis of a layer's input or output that holds its channels: the last of a linear, in front of the positions
    of a convolution."""
    kind, last = op_type(layer), len(tensor.meta["shape"]) - 1
    return last if kind == "linear" else last - int(kind[-2])  # conv2d has 2 axes of positions


def _first_pooled(node: fx.Node, source: fx.Node) -> int:
    """The first axis that a pooling op works on; all behind it are pooled, too."""
    name = packet_name(node)
    return 2 if name == "mean" else len(source.meta["shape"]) - int(name[-2])


def _flattened(source: fx.Node, node: fx.Node, axis: int) -> int | None:
    """Values behind each channel where a reshape makes the last axis of all from the axis of the channels on; None for
    any other op."""
    before, after = source.meta["shape"], node.meta.get("shape")
    flat = packet_name(node) in ("flatten", "reshape", "view", "_unsafe_view", "squeeze")
    if not flat or not after or after[-1] != math.prod(before[axis:]):
        return None
    return math.prod(before[axis + 1 :])


def _replace(gm: fx.GraphModule, constant: Argument, value: Tensor) -> None:
    assert isinstance(constant, fx.Node)
    setattr(gm, str(constant.target), nn.Parameter(value.contiguous(), requires_grad=False))
    constant.meta.pop(FOLDED_NORM, None)  # it speaks of the weight as it was


def _finished(gm: fx.GraphModule, model: Model) -> Model:
    gm.graph.eliminate_dead_code()
    drop_unused_attributes(gm)
    gm.recompile()
    return Model(gm, model.inputs, model.name, model.folded)
