"""One output element of one layer, step by step: what an integer kernel computes beside what the simulation says.

The arithmetic is that of ONNX Runtime's QLinearConv and QGemm: products and their sum in integers, the bias as int32
at the scale of the products, one float32 multiplier for each output channel, rounding half to even. The simulation
multiplies and rounds in the same way in float; where the two differ, other integers reached the layer, or a bias that
does not fit 32 bits was added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from qlab.conversion import FakeQuantize, QuantizedModel
from qlab.errors import InvalidConfig
from qlab.graph.integer_sums import InputCodes
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type, packet_name
from qlab.graph.optypes import OP_TYPES
from qlab.quant.fake_quant import quantize
from qlab.quant.tensor import QuantizedTensor

INT32 = 2**31
LAYER_TYPES = ("linear", "conv1d", "conv2d", "conv3d")


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A convolution or linear with integer weights, its input and its output each on one grid known beforehand.

    input_node, node, end: what enters the layer, its op, and what its unit gives behind a fused ReLU, in the quantized
    graph. bias: float [O] or None.
    stride, padding (before the first element), dilation: one for each spatial axis, so () for a linear.
    limits: what a fused ReLU, ReLU6 or clamp leaves, in values.
    """

    name: str
    op: str
    input_node: fx.Node
    node: fx.Node
    end: fx.Node
    weight: QuantizedTensor
    bias: Tensor | None
    source: FakeQuantize
    target: FakeQuantize
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    limits: tuple[float, float]

    @property
    def product_scales(self) -> NDArray[np.float32]:
        """[O] scale of a product: that of the input times that of the weight."""
        scales = self.weight.scale.expand(self.weight.shape[0]).numpy().astype(np.float32)
        return np.float32(self.source.scale.item()) * scales

    @property
    def multipliers(self) -> NDArray[np.float32]:
        """[O] from accumulator to steps of the output grid."""
        return self.product_scales / np.float32(self.target.scale.item())

    @property
    def bias_codes(self) -> NDArray[np.int64] | None:
        """[O] the bias in units of a product; beyond int32 where the products of a channel are that small."""
        if self.bias is None:
            return None
        return np.rint(self.bias.detach().numpy().astype(np.float64) / self.product_scales).astype(np.int64)

    def windows(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What the weights meet at some output positions, in the order ONNX Runtime multiplies: channels last.

        x: input [N, C, *spatial], or [..., K] of a linear. positions: [P, 1 + spatial axes], sample and place; [P, 1],
        the row, for a linear. Returns values [P, *kernel, C] (0 in the padding) and whether they lie inside
        [P, *kernel].
        """
        last = x.movedim(1, -1) if self.stride else x.reshape(-1, x.shape[-1])
        axes = len(self.stride)
        count = len(positions)
        index = [positions[:, 0].reshape(count, *[1] * axes)]
        inside = torch.ones((count, *[1] * axes), dtype=torch.bool)
        for axis, size in enumerate(self.weight.shape[2:]):
            at = positions[:, 1 + axis, None] * self.stride[axis] - self.padding[axis]
            at = at + torch.arange(size) * self.dilation[axis]
            at = at.reshape(count, *[1] * axis, size, *[1] * (axes - 1 - axis))
            inside = inside & (at >= 0) & (at < last.shape[1 + axis])
            index.append(at.clamp(0, last.shape[1 + axis] - 1))
        return last[tuple(index)] * inside[..., None], inside


@dataclass(frozen=True, eq=False)
class Steps:
    """How one output element comes about. Arrays have the shape of a channel's weights: [C, *kernel], [K] of a linear.

    inputs, weights: integer codes; padded: where the input is padding, which holds the zero point.
    products = (inputs - input_zero_point) * (weights - weight_zero_point); accumulator: their sum; order: the flat
    indices of the products in the order in which a kernel adds them up.
    bias: its integer; None without a bias, and where it does not fit int32: bias_value is then added in float.
    scaled = (accumulator + bias) * multiplier; rounded half to even; low, high: the codes that are left by the grid and
    by a fused ReLU; code = clamp(rounded + output_zero_point, low, high).
    simulated: the same element of the fake-quantized graph; float_value: of the float model, None where a file of codes
    did not hold it.
    channel: the output channel; channels: the input channels it reads; places: the input coordinates of the window, one
    array for each spatial axis, outside the input where it is padded.
    """

    layer: str
    op: str
    index: tuple[int, ...]
    inputs: NDArray[np.int64]
    padded: NDArray[np.bool_]
    weights: NDArray[np.int64]
    products: NDArray[np.int64]
    order: NDArray[np.int64]
    input_scale: float
    input_zero_point: int
    input_range: tuple[int, int]
    weight_scale: float
    weight_zero_point: int
    weight_range: tuple[int, int]
    accumulator: int
    bias: int | None
    bias_value: float
    multiplier: float
    scaled: float
    rounded: int
    output_scale: float
    output_zero_point: int
    low: int
    high: int
    code: int
    simulated: float
    simulated_code: int
    float_value: float | None
    channel: int
    channels: tuple[int, ...]
    places: tuple[NDArray[np.int64], ...]

    @property
    def value(self) -> float:
        """What the output integer stands for."""
        return (self.code - self.output_zero_point) * self.output_scale

    @property
    def difference(self) -> int:
        """Output integer minus that of the simulation, in steps of the output grid."""
        return self.code - self.simulated_code

    @property
    def clamped(self) -> bool:
        return self.rounded + self.output_zero_point != self.code

    @property
    def overflows(self) -> bool:
        """Whether the accumulator with its bias leaves int32; a kernel would wrap around."""
        total = self.accumulator + (self.bias or 0)
        return not -INT32 <= total < INT32

    @property
    def running(self) -> NDArray[np.int64]:
        """The accumulator after each product, in order; ends at `accumulator`."""
        return np.cumsum(self.products.ravel()[self.order])


@dataclass(frozen=True, eq=False)
class Trace:
    """What goes into one layer and comes out of it, in the quantized and in the float model, for some inputs.

    float_value: None where the float original is not known.
    """

    layer: IntegerLayer
    entering: Tensor
    simulated: Tensor
    float_value: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the output an index points into."""
        return tuple(self.simulated.shape)

    def explain(self, index: tuple[int, ...]) -> Steps:
        """The steps of the element at this index of the output. Raises InvalidConfig for an index outside."""
        at = tuple(int(i) for i in index)
        if len(at) != len(self.shape) or any(not 0 <= i < n for i, n in zip(at, self.shape, strict=True)):
            raise InvalidConfig(
                f"there is no element {list(at)} in the output of {self.layer.name!r}, which is {list(self.shape)}: "
                "give one whole number for each axis, counted from 0."
            )
        layer, weight, source, target = self.layer, self.layer.weight, self.layer.source, self.layer.target
        channel = at[1] if layer.stride else at[-1]
        row = int(np.ravel_multi_index(at[:-1], self.shape[:-1]))
        place = (at[0], *at[2:]) if layer.stride else (row,)
        values, inside = layer.windows(self.entering, torch.tensor([place]))
        per_group = weight.shape[1]
        first = channel // (weight.shape[0] // layer.groups) * per_group
        codes = quantize(values[0], source.qparams).movedim(-1, 0)[first : first + per_group].long().numpy()
        padded = np.broadcast_to(~inside[0].numpy(), codes.shape)
        weights = weight.codes[channel].long().numpy()
        w_zero = int(weight.zero_point.expand(weight.shape[0])[channel])
        x_zero, y_zero = int(source.zero_point), int(target.zero_point)
        products = (codes - x_zero) * (weights - w_zero)
        accumulator = int(products.sum())
        y_scale, multiplier = np.float32(target.scale.item()), layer.multipliers[channel]
        bias_value = 0.0 if layer.bias is None else float(layer.bias[channel])
        all_codes = layer.bias_codes
        bias = None if all_codes is None else int(all_codes[channel])
        if bias is not None and not -INT32 <= bias < INT32:
            bias = None
        scaled = np.float32(accumulator + (bias or 0)) * multiplier
        if bias is None:
            scaled = scaled + np.float32(bias_value) / y_scale
        rounded = int(np.rint(scaled))
        low, high = _code_limits(target, layer.limits)
        simulated = self.simulated[at]
        sizes = weights.shape[1:] if layer.stride else ()
        geometry = zip(place[1:], sizes, layer.stride, layer.padding, layer.dilation, strict=True)
        return Steps(
            layer=layer.name, op=layer.op, index=at,
            inputs=codes, padded=padded, weights=weights, products=products, order=_order(products.shape),
            input_scale=float(source.scale), input_zero_point=x_zero,
            input_range=(source.quant_min, source.quant_max),
            weight_scale=float(weight.scale.expand(weight.shape[0])[channel]), weight_zero_point=w_zero,
            weight_range=(weight.quant_min, weight.quant_max),
            accumulator=accumulator, bias=bias, bias_value=bias_value,
            multiplier=float(multiplier), scaled=float(scaled), rounded=rounded,
            output_scale=float(y_scale), output_zero_point=y_zero, low=low, high=high,
            code=min(max(rounded + y_zero, low), high),
            simulated=float(simulated), simulated_code=int(quantize(simulated, target.qparams)),
            float_value=None if self.float_value is None else float(self.float_value[at]),
            channel=channel, channels=tuple(range(first, first + per_group)),
            places=tuple(start * s - p + np.arange(n) * d for start, n, s, p, d in geometry),
        )  # fmt: skip


def explainable_layers(qmodel: QuantizedModel) -> list[str]:
    """The layers whose elements `explain_element` takes apart, in order."""
    found = (_find(qmodel, row.layer) for row in qmodel.ledger if row.op in LAYER_TYPES)
    return [layer.name for layer in found if isinstance(layer, IntegerLayer)]


def integer_layer(qmodel: QuantizedModel, layer: str) -> IntegerLayer:
    """The layer with all that an integer kernel needs. Raises InvalidConfig that says why it has no such thing."""
    found = _find(qmodel, layer)
    if isinstance(found, IntegerLayer):
        return found
    raise InvalidConfig(f"layer {layer!r} has no integers to follow: {found}")


def trace_layer(qmodel: QuantizedModel, layer: str, inputs: tuple[Tensor, ...]) -> Trace:
    """Run both models once and keep what one layer saw, to explain many of its elements. Raises as explain_element."""
    found = integer_layer(qmodel, layer)
    qmodel.model.check_inputs(inputs)
    kept: dict[fx.Node, Tensor] = {}
    truth = qmodel.reference.node(qmodel.outputs[layer])
    run_tapped(qmodel.graph_module, {found.input_node, found.end}, kept.__setitem__, inputs)
    if qmodel.has_float_original:
        run_tapped(qmodel.reference.graph_module, {truth}, kept.__setitem__, inputs)
    return Trace(found, kept[found.input_node], kept[found.end], kept.get(truth))


def explain_element(
    qmodel: QuantizedModel, layer: str, inputs: tuple[Tensor, ...], index: tuple[int, ...]
) -> Steps:  # fmt: skip
    """How the element at `index` of a layer's output (behind its fused ReLU) comes about on integers.

    Raises InvalidConfig for a layer without integers (it says why) and for an index outside, DataMismatch for inputs
    that do not fit the model.
    """
    return trace_layer(qmodel, layer, inputs).explain(index)


def run_tapped(
    gm: fx.GraphModule, nodes: set[fx.Node], see: Callable[[fx.Node, Tensor], object], inputs: tuple[Tensor, ...]
) -> None:
    """Run the graph and show the values of some nodes as they are made."""

    class Tapped(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in nodes:
                see(n, result)
            return result

    with torch.no_grad():
        Tapped(gm).run(*inputs)


def _find(qmodel: QuantizedModel, layer: str) -> IntegerLayer | str:
    """The layer, or why it is none that runs on integers."""
    row = next((r for r in qmodel.ledger if r.layer == layer), None)
    if row is None:
        return f"the model has no such layer; those that have are {', '.join(explainable_layers(qmodel)) or 'none'}."
    if row.op not in LAYER_TYPES:
        return f"it is {row.op}; only linear and convolution layers are taken apart."
    if not row.quantized:
        return f"it stays float ({row.reason})."
    if row.mode == "dynamic":
        return "it is dynamic, so its input has no grid before the call. Choose a static config for it."
    if row.mode == "weight_only":
        return "only its weight is quantized, so it computes in float. Choose a static config for it."
    if row.weight is None:
        return "its weight stays float. Give its config a weight spec."
    weight = qmodel.weights[layer]
    if weight.scale.ndim == 2:
        return "its weight has a scale for each group, so that no one accumulator holds the sum. Choose per channel."
    point = next(p for p in qmodel.placement.weights if p.layer == layer)
    # the copy of the graph keeps the names of its nodes
    node = next(n for n in qmodel.graph_module.graph.nodes if n.name == point.node.name)
    given = _arguments(node)
    end = qmodel.output_nodes[qmodel.outputs[layer]]
    entering, leaving = _values(qmodel.graph_module, given["input"], node)
    source, target = _grid(qmodel.graph_module, entering), _grid(qmodel.graph_module, end)
    if source is None or target is None:
        return f"its {'input' if source is None else 'output'} lies on no grid."
    if source.scale.ndim or target.scale.ndim:
        return "its activations have a scale for each channel, which no integer kernel runs. Choose per tensor."
    limits = _limits(leaving, end, target)
    if limits is None:
        return "the clamp that is part of it has limits known only at run time."
    axes = weight.codes.ndim - 2
    stride, dilation = (_per_axis(given[k], axes) if axes else () for k in ("stride", "dilation"))
    padding = _padding(given.get("padding", 0), weight.shape[2:], dilation)
    bias = point.node.args[2] if len(point.node.args) > 2 else point.node.kwargs.get("bias")
    constant = attribute(qmodel.model.graph_module, bias)
    if bias is not None and constant is None:
        return "its bias is computed at run time, not a constant."
    return IntegerLayer(
        layer, row.op, entering, node, end, weight, constant, source, target, stride, padding, dilation,
        int(given.get("groups", 1)), limits,
    )  # fmt: skip


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    given.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    return given | dict(node.kwargs)


def _values(gm: fx.GraphModule, source: fx.Node, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """What enters and what leaves an op as values, where it computes on codes itself."""
    if source.op == "call_module" and isinstance(gm.get_submodule(str(source.target)), InputCodes):
        (scaled,) = node.users
        return source.args[0], scaled  # type: ignore[return-value]
    return source, node


def _grid(gm: fx.GraphModule, node: fx.Node) -> FakeQuantize | None:
    """The grid the values of a node lie on: its own, or that of what an op that keeps values was given."""
    while node.op == "call_function" and OP_TYPES[op_type(node)].role == "passthrough":
        before = node.args[0]
        if not isinstance(before, fx.Node):
            return None
        node = before
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, FakeQuantize) else None


def _limits(node: fx.Node, end: fx.Node, target: FakeQuantize) -> tuple[float, float] | None:
    """Lowest and highest value that the activation fused between a layer and its output grid leaves."""
    between = end.args[0]
    assert isinstance(between, fx.Node)
    if between is node:
        return (0.0, math.inf) if target.after_relu else (-math.inf, math.inf)
    name, given = packet_name(between), _arguments(between)
    if name == "relu":
        return 0.0, math.inf
    if name == "relu6":
        return 0.0, 6.0
    low, high = given.get("min", given.get("min_val")), given.get("max", given.get("max_val"))
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        return None
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _code_limits(target: FakeQuantize, limits: tuple[float, float]) -> tuple[int, int]:
    """The codes left by the grid and the fused activation. Rounding keeps order, so limits may be taken after it."""
    low, high = (
        target.quant_min if value == -math.inf
        else target.quant_max if value == math.inf
        else int(quantize(torch.tensor(value), target.qparams))
        for value in limits
    )  # fmt: skip
    return low, high


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * axes if len(values) == 1 else values))


def _padding(value: Any, kernel: Any, dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Elements before the first one, for each axis; "same" puts the odd one behind."""
    if value == "valid":
        return (0,) * len(dilation)
    if value == "same":
        return tuple(d * (int(k) - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    return _per_axis(value, len(dilation)) if dilation else ()


def _order(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Flat indices of [C, *kernel] products in the order [*kernel, C]."""
    places = np.arange(math.prod(shape)).reshape(shape)
    return np.moveaxis(places, 0, -1).ravel()
