"""The tensors of a model that can be looked at: weights, and the activations that quantization puts on grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import UnsupportedModel
from qlab.preset import presets

if TYPE_CHECKING:
    from torch import Tensor

    from qlab.graph.capture import Model

Role = Literal["weight", "activation"]
ENOUGH_FOR_A_SHAPE = 1000


@dataclass(frozen=True)
class Entry:
    """One tensor. layer: under what a person finds it; what: which of the layer's tensors it is.

    owner: the layer whose config decides about it, op: its type; None where more than one layer does.
    axis: the channel dimension. fixed: the op whose output has a range that is known without data.
    """

    tensor: str
    layer: str
    what: str
    role: Role
    owner: str | None
    op: str
    axis: int | None
    fixed: str | None = None


@dataclass(frozen=True)
class ModelTensors:
    """entries: by tensor name, in the order of the graph. weights: the constants of the entries that are weights."""

    entries: dict[str, Entry]
    weights: dict[str, Tensor]

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(entry.layer for entry in self.entries.values()))

    def of_layer(self, layer: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.layer == layer]

    @property
    def first(self) -> Entry:
        """What to show first: a weight, because it needs no calibration, with enough values to have a shape."""
        weights = [self.entries[name] for name in self.weights]
        large = [entry for entry in weights if self.weights[entry.tensor].numel() >= ENOUGH_FOR_A_SHAPE]
        return next(iter([*large, *weights, *self.entries.values()]))


def tensors_of(model: Model) -> ModelTensors:
    """Every tensor in the order of the graph: a layer's weights, then its output.

    Asked is where everything could be quantized, so the list does not change with the config.
    Raises UnsupportedModel when there is nothing to quantize.
    """
    from qlab.graph.lower import attribute
    from qlab.graph.ops import op_type
    from qlab.graph.placement import place

    everything = QConfigMapping(default=QConfig(weight=QuantSpec(), activation=QuantSpec()))
    placement = place(model, everything)
    layer_of_output = {tensor: layer for layer, tensor in placement.outputs.items()}
    order = {node: i for i, node in enumerate(model.graph_module.graph.nodes)}
    names = {name: node for node, name in model.names.items()}
    found: dict[str, tuple[int, Entry]] = {}
    weights: dict[str, Tensor] = {}
    for point in placement.weights:
        layer = model.names[point.node]
        what = point.tensor.removeprefix(f"{layer}.")
        entry = Entry(point.tensor, layer, what, "weight", layer, op_type(point.node), point.axis)
        constant = attribute(model.graph_module, point.constant)
        assert constant is not None
        weights.setdefault(point.tensor, constant.detach())
        found.setdefault(point.tensor, (order[point.node], entry))
    for seen in placement.activations:
        if seen.kind == "constant":
            continue
        readers = seen.consumers
        layer = layer_of_output.get(seen.tensor, seen.tensor)
        # An input has no layer of its own: it is quantized for the op that reads it, by that op's config.
        owner = layer if readers is None else model.names[readers[0]] if len(readers) == 1 else None
        decides = model.node(owner) if owner is not None else None
        entry = Entry(
            seen.tensor,
            layer,
            "input" if seen.node.op == "placeholder" else "output",
            "activation",
            owner,
            "" if decides is None else op_type(decides),
            seen.axis,
            op_type(seen.node) if seen.kind == "fixed" else None,
        )
        # After the weights of its layer, although the unit ends at a later node.
        found.setdefault(seen.tensor, (order[names.get(layer, seen.node)], entry))
    if not found:
        raise UnsupportedModel(
            "this model has no tensor that can be quantized: no layer with a weight and no arithmetic the lab knows. "
            "Choose another model, or see on the Start page what its ops are."
        )
    ranked = sorted(found.values(), key=lambda pair: (pair[0], pair[1].role == "activation"))
    return ModelTensors({entry.tensor: entry for _, entry in ranked}, weights)


def configured(mapping: QConfigMapping, entry: Entry) -> QuantSpec | None:
    """What the config does to this tensor; None: it stays float."""
    config = config_of(mapping, entry)
    return None if config is None else getattr(config, entry.role)


def config_of(mapping: QConfigMapping, entry: Entry) -> QConfig | None:
    return mapping.resolve(entry.owner, entry.op).qconfig if entry.owner is not None else mapping.default


def usual(mapping: QConfigMapping, role: Role) -> QuantSpec:
    """A spec to start from where the config leaves a tensor float: the default's, else that of the preset x86."""
    for config in (mapping.default, presets["x86"].default):
        spec = None if config is None else getattr(config, role)
        if spec is not None:
            return spec
    raise AssertionError("the preset x86 quantizes weights and activations")


def with_spec_everywhere(mapping: QConfigMapping, role: Role, spec: QuantSpec) -> QConfigMapping:
    """The config with this spec for all weights or all activations, in the default and in every rule that has one.

    Rules that keep layers float stay. Raises InvalidConfig where the mode does not take it.
    """

    def changed(config: QConfig) -> QConfig:
        return config.replace(**{role: spec}) if getattr(config, role) is not None else config

    default = mapping.default or presets["x86"].default
    assert default is not None
    return mapping.each(changed).replace(default=default.replace(**{role: spec}))


def with_spec_here(mapping: QConfigMapping, entry: Entry, spec: QuantSpec) -> QConfigMapping:
    """The config with this spec for the layer of this tensor alone.

    Raises InvalidConfig where the mode does not take it.
    """
    assert entry.owner is not None
    config = config_of(mapping, entry) or presets["x86"].default
    assert config is not None
    return mapping.replace(by_name={**mapping.by_name, entry.owner: config.replace(**{entry.role: spec})})
