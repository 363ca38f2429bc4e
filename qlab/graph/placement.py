"""Which tensors are quantized: one function decides, and writes a ledger line for every op.

Rules, in the order they are asked:
- the op's config comes from the mapping (exact name, pattern, type, default); None leaves it float;
- a weight must be a constant float tensor; groups must divide it;
- static: the op's activation inputs and its output lie on grids. An output is quantized where it is made; an input that
  no static op has put on a grid is quantized on the edge into the op that needs it;
- dynamic: linear and recurrent ops range their input at every call; other ops stay float (embedding: weight alone);
- weight_only: the weight alone;
- a conv, linear, add, mul or matmul takes a ReLU that is its only reader into its unit, and is observed behind it;
- relu, max-pool and shape-only ops share the grid of their input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.capture import Model
from qlab.graph.causes import ON_INTEGERS, Cause
from qlab.graph.lower import attribute
from qlab.graph.ops import activation_inputs, channel_axis, is_float, op_type, packet_name, weight_argument
from qlab.graph.optypes import OP_TYPES


@dataclass(frozen=True)
class WeightPoint:
    """One constant tensor that becomes integer codes: where it is read, its name, spec and channel axis."""

    node: fx.Node
    constant: fx.Node
    tensor: str
    layer: str
    spec: QuantSpec
    axis: int


@dataclass(frozen=True)
class ActivationPoint:
    """One activation that is put on a grid.

    consumers: the ops that read the quantized value, or None when every reader does (quantized where it is made).
    kind: observed (range from the calibration), fixed (range known from the op), constant (range of that constant).
    """

    node: fx.Node
    tensor: str
    spec: QuantSpec
    kind: Literal["observed", "fixed", "constant"]
    consumers: tuple[fx.Node, ...] | None
    axis: int | None


@dataclass(frozen=True)
class ProductPoint:
    """A convolution or linear that integer kernels compute where the bits of its input and weight allow.

    weight: key of the layer's weight. grid: tensor on whose grid the input lies; None: it is put on one on its edge.
    bias: the constant, or None.
    """

    node: fx.Node
    weight: str
    grid: str | None
    bias: fx.Node | None


@dataclass(frozen=True)
class DynamicPoint:
    """An op whose activations are ranged at every call."""

    node: fx.Node
    layer: str
    spec: QuantSpec


@dataclass(frozen=True)
class LedgerRow:
    """What happened to one op, and why: in a sentence (`reason`), and in a word of qlab.graph.causes (`cause`)."""

    layer: str
    op: str
    quantized: bool
    cause: Cause
    reason: str
    rule: str
    mode: str | None = None
    weight: QuantSpec | None = None
    activation: QuantSpec | None = None
    output: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer, "op": self.op, "quantized": self.quantized, "cause": self.cause, "reason": self.reason,
            "rule": self.rule, "mode": self.mode, "weight": str(self.weight) if self.weight else None,
            "activation": str(self.activation) if self.activation else None,
            "output": self.output, "notes": list(self.notes),
        }  # fmt: skip


@dataclass
class Placement:
    weights: list[WeightPoint] = field(default_factory=list)
    activations: list[ActivationPoint] = field(default_factory=list)
    dynamic: list[DynamicPoint] = field(default_factory=list)
    products: list[ProductPoint] = field(default_factory=list)
    ledger: list[LedgerRow] = field(default_factory=list)
    outputs: dict[str, str] = field(default_factory=dict)
    """Layer of a quantized unit -> name of the tensor at its end."""
    unmatched: tuple[str, ...] = ()
    """Name patterns and types of the mapping that no op matched."""


# What a CPU runtime multiplies in integers; transposed convolutions it does not.
_INTEGER_KERNELS = ("conv1d", "conv2d", "conv3d", "linear")
_RELU_LIKE = ("relu", "relu6", "clamp")
_FUSES_RELU = frozenset(
    {
        "add",
        "mul",
        "matmul",
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    }
)


def place(model: Model, mapping: QConfigMapping, infinite: Mapping[str, int] | None = None) -> Placement:
    """Decide for every op of the model.

    infinite: tensor name -> number of infinities seen in calibration; such tensors (attention masks) stay float.
    """
    return _Placer(model, mapping, infinite or {}).run()


class _Placer:
    def __init__(self, model: Model, mapping: QConfigMapping, infinite: Mapping[str, int]):
        self.model = model
        self.gm = model.graph_module
        self.mapping = mapping
        self.infinite = infinite
        self.out = Placement()
        self.on_grid: dict[fx.Node, str] = {}  # node -> tensor whose grid its values lie on
        self.edges: dict[tuple[fx.Node, QuantSpec], list[fx.Node]] = {}
        self.inside: dict[fx.Node, fx.Node] = {}  # fused follower -> anchor
        self.rules: set[str] = set()

    def run(self) -> Placement:
        for node in self.gm.graph.nodes:
            if node.op != "call_function":
                continue
            kind = op_type(node)
            if node not in self.model.names:  # gives several tensors, or a number
                source = node.args[0] if node.args else None
                if OP_TYPES[kind].role == "passthrough" and source in self.on_grid:
                    self.on_grid[node] = self.on_grid[source]
                continue
            layer = self.model.names[node]
            resolved = self.mapping.resolve(layer, kind)
            self.rules.add(resolved.rule)
            if node in self.inside:
                self._follow(node, layer, kind)
                continue
            if not is_float(node) and kind not in ("lstm", "gru"):
                if OP_TYPES[kind].role != "passthrough":
                    why = "works on whole numbers or truth values; nothing to quantize"
                    self._float(node, layer, kind, "integer_values", why, "-")
                continue
            role = OP_TYPES[kind].role
            if role == "passthrough":
                self._passthrough(node, layer, kind)
            elif role == "float":
                name = kind if kind != "other" else packet_name(node)
                self._float(node, layer, kind, "unsupported", f"{name} is not among the ops the lab quantizes", "-")
            elif resolved.qconfig is None:
                if resolved.rule == "default":
                    why = "no rule names it and the default is float"
                    self._float(node, layer, kind, "default_float", why, resolved.rule)
                else:
                    self._float(node, layer, kind, "excluded", f"excluded by {resolved.rule}", resolved.rule)
            else:
                getattr(self, f"_{role}")(node, layer, kind, resolved.qconfig, resolved.rule)
        self._emit_edges()
        self.out.unmatched = self._unmatched()
        return self.out

    # one method per role

    def _weighted(self, node: fx.Node, layer: str, kind: str, config: QConfig, rule: str) -> None:
        position = weight_argument(node)
        assert position is not None
        constant = node.args[position.position]
        weight = attribute(self.gm, constant)
        if weight is None:
            why = "its weight is computed at run time, not a constant"
            return self._float(node, layer, kind, "weight_computed", why, rule)
        if not weight.is_floating_point():
            return self._float(node, layer, kind, "weight_not_float", f"its weight is {weight.dtype}, not float", rule)
        if config.mode == "dynamic" and kind != "linear":
            why = "dynamic mode quantizes linear, LSTM, GRU and embedding; convolutions want static ranges"
            return self._float(node, layer, kind, "dynamic_conv", why, rule)
        problem = _group_problem(config.weight, weight, position.axis)
        if problem:
            return self._float(node, layer, kind, "group_size", problem, rule)
        if config.mode == "static" and not is_float(self._source(node)):
            return self._float(node, layer, kind, "integer_input", "its input is not a float tensor", rule)
        if config.weight is not None:
            self._weight(node, constant, f"{layer}.weight", layer, config.weight, position.axis)  # type: ignore[arg-type]
        if config.mode == "static":
            if config.weight is not None and kind in _INTEGER_KERNELS:
                self._product(node, layer)
            self._static(node, layer, kind, config, rule)
        elif config.mode == "dynamic":
            assert config.activation is not None
            self.out.dynamic.append(DynamicPoint(node, layer, config.activation))
            self._line(node, layer, kind, "quantized", "weight quantized; input ranged at every call", rule, config)
            self._mark_output(node, layer)
        else:
            self._line(node, layer, kind, "quantized", "weight quantized; activations stay float", rule, config)
            self._mark_output(node, layer)

    def _compute(self, node: fx.Node, layer: str, kind: str, config: QConfig, rule: str) -> None:
        if config.mode != "static":
            why = f"has no weight, and mode {config.mode} leaves its activations float"
            return self._float(node, layer, kind, "no_weight", why, rule)
        if not activation_inputs(node):
            return self._float(node, layer, kind, "integer_input", "has no float activation input", rule)
        if any(self._infinite(n) for n in (node, *activation_inputs(node))):
            why = "holds infinities (an attention mask), which no grid can represent"
            return self._float(node, layer, kind, "infinite", why, rule)
        self._static(node, layer, kind, config, rule)

    def _fixed(self, node: fx.Node, layer: str, kind: str, config: QConfig, rule: str) -> None:
        if config.mode != "static":
            why = f"has no weight, and mode {config.mode} leaves its activations float"
            return self._float(node, layer, kind, "no_weight", why, rule)
        self._static(node, layer, kind, config, rule)

    def _lookup(self, node: fx.Node, layer: str, kind: str, config: QConfig, rule: str) -> None:
        constant = node.args[0]
        weight = attribute(self.gm, constant)
        if weight is None:
            return self._float(node, layer, kind, "weight_computed", "its table is not a constant", rule)
        if config.weight is None:
            return self._float(node, layer, kind, "activations_only", "its config quantizes activations only", rule)
        problem = _group_problem(config.weight, weight, 0)
        if problem:
            return self._float(node, layer, kind, "group_size", problem, rule)
        self._weight(node, constant, f"{layer}.weight", layer, config.weight, 0)  # type: ignore[arg-type]
        self._line(
            node, layer, kind, "quantized", "table quantized; a row is dequantized when it is read", rule, config
        )
        self._mark_output(node, layer)

    def _recurrent(self, node: fx.Node, layer: str, kind: str, config: QConfig, rule: str) -> None:
        if packet_name(node) in ("lstm", "gru") and getattr(node.target, "_overloadname", "") != "input":
            why = "takes packed sequences, which the lab does not quantize"
            return self._float(node, layer, kind, "packed", why, rule)
        if config.weight is None:
            return self._float(node, layer, kind, "activations_only", "its config quantizes activations only", rule)
        position = 2
        for constant in node.args[position]:  # type: ignore[union-attr]
            weight = attribute(self.gm, constant)
            if weight is None or weight.ndim != 2 or not weight.is_floating_point():
                continue
            problem = _group_problem(config.weight, weight, 0)
            if problem:
                return self._float(node, layer, kind, "group_size", problem, rule)
        for constant in node.args[position]:  # type: ignore[union-attr]
            weight = attribute(self.gm, constant)
            if weight is not None and weight.ndim == 2:
                name = constant.meta.get("parameter_name", constant.name).rsplit(".", 1)[-1]  # type: ignore[union-attr]
                self._weight(node, constant, f"{layer}.{name}", f"{layer}.{name}", config.weight, 0)  # type: ignore[arg-type]
        if config.mode == "weight_only":
            reason = "weights quantized; activations stay float"
        else:
            assert config.activation is not None
            spec = config.activation.replace(qscheme="per_tensor_affine", observer="min_max", observer_args={})
            self.out.dynamic.append(DynamicPoint(node, layer, spec))
            reason = "weights quantized; input and state ranged at every step"
            if config.mode == "static":
                reason += " (no integer kernel takes static ranges here)"
        self._line(node, layer, kind, "quantized", reason, rule, config)
        self._mark_output(node, layer)

    def _passthrough(self, node: fx.Node, layer: str, kind: str) -> None:
        sources = [n for n in node.all_input_nodes if is_float(n) or n in self.on_grid]
        source = sources[0] if sources else None
        if source is not None and source in self.on_grid:
            self.on_grid[node] = self.on_grid[source]
            grid = self.on_grid[source]
            self._line(node, layer, kind, "shared", f"shares the grid of {grid}", "-", output=grid)
        else:
            why = "its input is float, and it computes nothing on integers"
            self._float(node, layer, kind, "float_input", why, "-")

    # the pieces they share

    def _static(self, node: fx.Node, layer: str, kind: str, config: QConfig, rule: str) -> None:
        spec = config.activation
        assert spec is not None
        for source in activation_inputs(node):
            if source not in self.on_grid and not self._infinite(source):
                self.edges.setdefault((source, spec), []).append(node)
        end = self._fuse(node, kind)
        name = self.model.names[end]
        fixed = OP_TYPES[kind].role == "fixed"
        point_spec = spec.replace(qscheme="per_tensor_affine", observer="min_max", observer_args={}) if fixed else spec
        self.out.activations.append(
            ActivationPoint(end, name, point_spec, "fixed" if fixed else "observed", None, channel_axis(end))
        )
        self.on_grid[end] = name
        reason = (
            "weight and output quantized" if config.weight and OP_TYPES[kind].role == "weighted" else "output quantized"
        )
        if fixed:
            reason += " on the fixed grid of its function"
        if end is not node:
            reason += f", together with {name}"
        notes = ("per-channel activations: no integer kernel runs this, the result is simulated only",) \
            if spec.granularity == "channel" else ()  # fmt: skip
        self._line(node, layer, kind, "quantized", reason, rule, config, output=name, notes=notes)
        self.out.outputs[layer] = name

    def _fuse(self, node: fx.Node, kind: str) -> fx.Node:
        """The last node of the unit that starts here."""
        end = node
        if kind == "matmul":
            follower = _only_user(end)
            if follower is not None and op_type(follower) == "mul" and len(activation_inputs(follower)) == 1 \
                    and not isinstance(follower.args[1], fx.Node):  # fmt: skip
                self.inside[follower] = node
                end = follower
        follower = _only_user(end)
        if kind in _FUSES_RELU and follower is not None and op_type(follower) in _RELU_LIKE:
            self.inside[follower] = node
            end = follower
        return end

    def _follow(self, node: fx.Node, layer: str, kind: str) -> None:
        anchor = self.model.names[self.inside[node]]
        self._line(node, layer, kind, "fused", f"part of the unit of {anchor}", "-", output=self.on_grid.get(node))

    def _weight(self, node: fx.Node, constant: fx.Node, tensor: str, layer: str, spec: QuantSpec, axis: int) -> None:
        self.out.weights.append(WeightPoint(node, constant, tensor, layer, spec, axis))

    def _product(self, node: fx.Node, layer: str) -> None:
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if bias is not None and attribute(self.gm, bias) is None:
            return
        grid = self.on_grid.get(self._source(node))
        self.out.products.append(ProductPoint(node, layer, grid, bias))  # type: ignore[arg-type]

    def _mark_output(self, node: fx.Node, layer: str) -> None:
        end = node
        if op_type(node) in ("lstm", "gru"):  # the sequence, or of what is read the first: hidden state, cell
            end = min(node.users, key=lambda u: u.args[1], default=node)  # type: ignore[arg-type, return-value]
        self.out.outputs[layer] = self.model.names.get(end, layer)

    def _float(self, node: fx.Node, layer: str, kind: str, cause: Cause, reason: str, rule: str) -> None:
        self._line(node, layer, kind, cause, reason, rule)

    def _line(
        self, node: fx.Node, layer: str, kind: str, cause: Cause, reason: str, rule: str,
        config: QConfig | None = None, output: str | None = None, notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        has_weight = OP_TYPES[kind].role in ("weighted", "lookup", "recurrent")
        weight = config.weight if config and has_weight else None
        activation = config.activation if config and OP_TYPES[kind].role != "lookup" else None
        mode = config.mode if config else None
        row = LedgerRow(
            layer, kind, cause in ON_INTEGERS, cause, reason, rule, mode, weight, activation, output, notes
        )  # fmt: skip
        self.out.ledger.append(row)

    def _emit_edges(self) -> None:
        for (source, spec), consumers in self.edges.items():
            constant = source.op == "get_attr"
            name = (
                source.meta.get("parameter_name", source.name)
                if constant
                else self.model.names.get(source, source.name)
            )
            self.out.activations.append(
                ActivationPoint(
                    source, name, spec, "constant" if constant else "observed", tuple(consumers), channel_axis(source)
                )
            )

    def _source(self, node: fx.Node) -> fx.Node:
        first = node.args[0]
        assert isinstance(first, fx.Node)
        return first

    def _infinite(self, node: fx.Node) -> bool:
        return bool(self.infinite.get(self.model.names.get(node, ""), 0))

    def _unmatched(self) -> tuple[str, ...]:
        layers = [(self.model.names[n], op_type(n)) for n in self.model.ops]
        missing = [f"by_type {t}" for t in self.mapping.by_type if not any(k == t for _, k in layers)]
        for pattern in self.mapping.by_name:
            only = QConfigMapping(by_name={pattern: None})
            if not any(only.resolve(layer, kind).rule != "default" for layer, kind in layers):
                missing.append(f"by_name {pattern}")
        return tuple(missing)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _group_problem(spec: QuantSpec | None, weight: Any, axis: int) -> str | None:
    """Why this weight cannot be quantized in groups, or None."""
    if spec is None or spec.group_size is None:
        return None
    per_channel = weight.numel() // weight.shape[axis]
    if per_channel % spec.group_size:
        return f"its {per_channel} weights per channel do not divide into groups of {spec.group_size}"
    return None
