"""`convert`: a float model, a config and a calibration become a quantized model, simulated with fake quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx, nn

from qlab.calibration import Calibration, kept_axes
from qlab.config import QConfigMapping, QuantSpec
from qlab.errors import DataMismatch, InvalidConfig, NonFinite, NotObserved
from qlab.graph.capture import ConstantGrid, Model
from qlab.graph.equalize import network_of, with_biases
from qlab.graph.integer_sums import BiasCodes, InputCodes, ProductScale, WeightCodes, sums_are_integer
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type, packet_name
from qlab.graph.optypes import OP_TYPES
from qlab.graph.placement import ActivationPoint, LedgerRow, Placement, WeightPoint, place
from qlab.graph.rewrite import Rewriter
from qlab.quant.fake_quant import fake_quantize, relu_fake_quantize
from qlab.quant.qparams import QParams, choose_qparams, fixed_qparams, with_range
from qlab.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from qlab.runtime.session import RuntimeOptions, Session


@dataclass(frozen=True)
class SizeReport:
    """Bytes of a model, by part. codes are packed at their bit width; float_bytes is the model before."""

    float_bytes: int
    codes: int
    scales: int
    zero_points: int
    float_rest: int

    @property
    def quantized_bytes(self) -> int:
        return self.codes + self.scales + self.zero_points + self.float_rest

    def to_dict(self) -> dict[str, int]:
        return {
            "float": self.float_bytes, "quantized": self.quantized_bytes, "codes": self.codes, "scales": self.scales,
            "zero_points": self.zero_points, "float_rest": self.float_rest,
        }  # fmt: skip


class FakeQuantize(nn.Module):
    """Puts an activation on its grid. scale and zero_point are buffers: writing to them changes the forward."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qparams: QParams, *, after_relu: bool = False):
        super().__init__()
        self.register_buffer("scale", qparams.scale.clone())
        self.register_buffer("zero_point", qparams.zero_point.clone())
        self.quant_min, self.quant_max, self.axis = qparams.quant_min, qparams.quant_max, qparams.axis
        self.after_relu = after_relu

    @property
    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis, None)

    def forward(self, x: Tensor) -> Tensor:
        return relu_fake_quantize(x, self.qparams) if self.after_relu else fake_quantize(x, self.qparams)

    def extra_repr(self) -> str:
        return f"[{self.quant_min}, {self.quant_max}], after_relu={self.after_relu}"


class QuantizedModel:
    """A model quantized as its mapping says. Calling it runs the simulation in torch.

    ledger: one row per op. weights: layer -> QuantizedTensor, whose buffers are the truth the forward reads.
    activations: tensor name -> FakeQuantize. outputs: layer -> name of the tensor at the end of its unit;
    output_nodes: that tensor -> the node that gives it in the quantized graph.
    placement: the decision it was made by; points: key of `activations` -> its point there.
    unmatched: rules of the mapping that no op matched. infinite: tensor -> infinities seen in calibration.
    model: the float network that was put on grids. reference: what quantization is measured against; another one only
    where biases were corrected, which `model` has and `reference` has not. Where `has_float_original` is False, because
    a file does not hold it, both have the values of the quantized weights: nothing to measure against. float_hash: of
    the network before anything was done to it. trained: whether its weights were trained with fake quantization;
    `model` then has the trained ones, and `reference` those from before.
    """

    def __init__(
        self, model: Model, mapping: QConfigMapping, graph_module: fx.GraphModule, placement: Placement,
        weights: Mapping[str, QuantizedTensor], activations: Mapping[str, FakeQuantize], ledger: list[LedgerRow],
        output_nodes: Mapping[str, fx.Node], points: Mapping[str, ActivationPoint],
        infinite: Mapping[str, int] | None = None, float_hash: str | None = None, reference: Model | None = None,
        *, trained: bool = False,
    ):  # fmt: skip
        self.model = model
        self.trained = trained
        self.reference = reference or model
        self.mapping = mapping
        self.graph_module = graph_module
        self.ledger = tuple(ledger)
        self.weights = dict(weights)
        self.activations = dict(activations)
        self.outputs = dict(placement.outputs)
        self.output_nodes = dict(output_nodes)
        self.placement = placement
        self.points = dict(points)
        on_grids = {p.tensor for p in placement.weights} | {p.tensor for p in placement.activations}
        self.unmatched = (*placement.unmatched, *(f"range {t}" for t in mapping.ranges if t not in on_grids))
        self.infinite = dict(infinite or {})
        self.has_float_original = reference is not None or float_hash in (None, model.content_hash)
        self._float_hash = float_hash

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return self.graph_module(*inputs)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.model.inputs

    @property
    def float_hash(self) -> str:
        """Content hash of the float model this was made from."""
        return self._float_hash or self.reference.content_hash

    def save(self, path: str | Path) -> Path:
        """Write everything but the float weights to one .safetensors file; `qlab.load_quantized` reads it.

        Raises InvalidConfig (name or folder of the file, buffers that were given another shape), DataMismatch (a code
        that does not fit its bits), NonFinite (a scale that is no scale).
        """
        from qlab.export.quantized_file import save_quantized

        return save_quantized(self, path)

    def to_onnx(self, path: str | Path) -> Path:
        """Write an ONNX file with integer weights that plain runtimes execute on integers where they can.

        Raises UnsupportedModel naming the op that has no ONNX form, InvalidConfig (name or folder of the file).
        """
        from qlab.export.onnx_file import quantized_onnx, write_onnx

        return write_onnx(quantized_onnx(self), path)

    def integer_session(self, options: RuntimeOptions | None = None) -> Session:
        """This model, as it stands now, executed by ONNX Runtime: session(*inputs) -> outputs. Or UnsupportedModel."""
        from qlab.runtime.session import RuntimeOptions, integer_session

        return integer_session(self, options or RuntimeOptions())

    def state_dict(self) -> dict[str, Tensor]:
        """Every stored tensor: codes, scales, zero points, and what stays float. The tensors are the live ones."""
        return self.graph_module.state_dict()

    @property
    def size(self) -> SizeReport:
        """Bytes stored: packed codes, scales (float32), zero points, and the constants that stay float."""
        codes = scales = zero_points = 0
        for tensor in {id(t): t for t in self.weights.values()}.values():
            part = tensor.size_breakdown()
            codes, scales, zero_points = codes + part.codes, scales + part.scales, zero_points + part.zero_points
        for point in self.activations.values():
            scales += 4 * point.scale.numel()
            zero_points += point.zero_point.numel() * (1 if point.quant_max - point.quant_min < 256 else 2)
        gm = self.graph_module
        rest = [*gm._parameters.values(), *gm._buffers.values()]
        float_rest = sum(p.numel() * p.element_size() for p in rest if p is not None)
        return SizeReport(self.model.float_bytes, codes, scales, zero_points, float_rest)


def convert(model: Model, mapping: QConfigMapping, calib: Calibration | None = None) -> QuantizedModel:
    """Quantize a model; `model` itself is not changed.

    calib: may be None when no op needs a static range and no bias is corrected; for a mapping that equalises or
    corrects biases, made with `calibrate(model, data, mapping=mapping)`.
    Raises NotObserved naming the tensor when a range is needed and was not observed, DataMismatch, InvalidConfig,
    NonFinite.
    """
    if not isinstance(mapping, QConfigMapping):
        raise InvalidConfig("mapping must be a QConfigMapping; qlab.presets has some by name.")
    network = network_of(model, mapping)
    if calib is not None and calib.model_hash != network.content_hash:
        raise DataMismatch(
            "this calibration is of another model: calibrate this one."
            if network is model
            else "this calibration is not of the equalised network: calibrate(model, data, mapping=mapping) makes one."
        )
    infinite = {k: n for k, n in calib.infinite.items() if n} if calib is not None else {}
    source = FromCalibration(network, calib, mapping)
    if not mapping.correct_bias:
        return convert_from(source, network, mapping, infinite, model.content_hash, network)
    corrected = with_biases(network, bias_shifts(source, network, mapping, infinite))
    source.model = corrected
    return convert_from(source, corrected, mapping, infinite, model.content_hash, network)


def bias_shifts(
    source: FromCalibration, network: Model, mapping: QConfigMapping, infinite: Mapping[str, int]
) -> dict[str, Tensor]:
    """Layer -> what to add to its bias [C] so that rounding its weights leaves the mean of each channel as it was.

    A layer is linear, so the mean of what rounding adds is the layer with the rounding errors as weights, applied to
    the mean of its input. Source: Nagel et al. 2019, section 4.2, with the mean taken from the calibration.
    """
    shifts: dict[str, Tensor] = {}
    for point in place(network, mapping, infinite).weights:
        kind = op_type(point.node)
        if OP_TYPES[kind].role != "weighted":
            continue
        mean = _mean_input(source.calib, network, point.node, point.layer)
        weight = attribute(network.graph_module, point.constant)
        assert weight is not None
        error = source.weight("", point).dequantize() - weight.detach().float()
        args = [mean, error, None, *point.node.args[3:]] if len(point.node.args) > 3 else [mean, error]
        with torch.no_grad():
            added = point.node.target(*args, **{k: v for k, v in point.node.kwargs.items() if k != "bias"})  # type: ignore[operator]
        axis = added.ndim - 1 if kind == "linear" else 1
        shifts[point.layer] = -added.double().movedim(axis, 0).flatten(1).mean(1)
    return shifts


def _mean_input(calib: Calibration | None, network: Model, node: fx.Node, layer: str) -> Tensor:
    """The mean of what a layer reads, with an axis for the batch, float32. Raises NotObserved."""
    read, kept = node.args[0], kept_axes(node)
    assert isinstance(read, fx.Node)
    mean = attribute(network.graph_module, read)
    if mean is None:
        name = network.names.get(read, read.name)
        if calib is None or name not in calib.means or calib.means[name].ndim < kept:
            raise NotObserved(
                f"correcting the bias of {layer!r} needs the mean of {name!r}, which this calibration has not: "
                "calibrate(model, data, mapping=mapping) keeps it."
            )
        mean = torch.from_numpy(calib.means[name])
    mean = mean.detach().float()
    return mean.reshape(-1, *mean.shape[mean.ndim - kept :]).mean(0, keepdim=True)


class GridSource(Protocol):
    """Where codes and grids come from: chosen now, or read from a file. target: name of the module they become.

    notes: layer -> lines for its row of the ledger.
    """

    notes: dict[str, list[str]]

    def weight(self, target: str, point: WeightPoint) -> QuantizedTensor: ...

    def activation(self, target: str, point: ActivationPoint) -> QParams: ...


def convert_from(
    source: GridSource, model: Model, mapping: QConfigMapping, infinite: Mapping[str, int],
    float_hash: str | None = None, reference: Model | None = None, *, trained: bool = False,
) -> QuantizedModel:  # fmt: skip
    """Quantize as the mapping places it, with codes and grids of this source. Raises what the source raises."""
    converter = _Converter(model, mapping, place(model, mapping, infinite), source)
    return converter.run(infinite, float_hash, reference, trained)


class FromCalibration:
    """Weights by their values, activations by their statistics; ranges that were set by hand come first."""

    def __init__(self, model: Model, calib: Calibration | None, mapping: QConfigMapping):
        self.model, self.calib, self.ranges = model, calib, mapping.ranges
        self.notes: dict[str, list[str]] = {}

    def weight(self, target: str, point: WeightPoint) -> QuantizedTensor:
        weight = attribute(self.model.graph_module, point.constant)
        assert weight is not None
        weight = weight.detach().float()

        def choose() -> ConstantGrid:
            if not bool(torch.isfinite(weight).all()):
                raise NonFinite(f"weight {point.tensor!r} holds NaN or Inf: the model is broken before quantization.")
            empty = int((weight.transpose(0, point.axis).reshape(weight.shape[point.axis], -1) == 0).all(1).sum())
            return ConstantGrid(choose_qparams(weight, point.spec, axis=point.axis), empty)

        grid = self.model.chosen.get((point.constant.target, point.spec, point.axis), choose)
        if grid.empty:
            self._note(
                point.layer,
                f"{grid.empty} of {weight.shape[point.axis]} channels of {point.tensor} are all zero: "
                "their scale is the smallest allowed",
            )
        return QuantizedTensor.from_float(weight, self._by_hand(point.tensor, point.layer, point.spec, grid.qparams))

    def _by_hand(self, tensor: str, layer: str, spec: QuantSpec, observed: QParams) -> QParams:
        ends = self.ranges.get(tensor)
        if ends is None:
            return observed
        self._note(layer, f"the range of {tensor} was set by hand: {ends[0]:.4g} to {ends[1]:.4g}")
        return with_range(observed, spec, *ends)

    def _note(self, layer: str, line: str) -> None:
        """Once, however often the grid of this layer is asked for."""
        lines = self.notes.setdefault(layer, [])
        if line not in lines:
            lines.append(line)

    def activation(self, target: str, point: ActivationPoint) -> QParams:
        return self._by_hand(point.tensor, point.tensor, point.spec, self._observed(point))

    def _observed(self, point: ActivationPoint) -> QParams:
        if point.kind == "fixed":
            return fixed_qparams(op_type(point.node), point.spec)
        if point.kind == "constant":
            value, axis = attribute(self.model.graph_module, point.node), point.axis or 0
            assert value is not None
            floats, key = value.detach().float(), (point.node.target, point.spec, axis, "as an input")
            return self.model.chosen.get(
                key, lambda: ConstantGrid(choose_qparams(floats, point.spec, axis=axis), 0)
            ).qparams
        if self.calib is None:
            raise NotObserved(
                f"tensor {point.tensor!r} needs a static range and was never observed: calibrate the model first."
            )
        stats = self.calib[point.tensor]
        qparams = self.calib.qparams(point.tensor, point.spec)
        if stats.minimum == stats.maximum == 0:
            self._note(point.tensor, "every value seen in calibration is zero: the scale is the smallest allowed")
        elif stats.minimum == stats.maximum:
            self._note(point.tensor, f"every value seen in calibration is {stats.minimum:.3g}")
        return replace(qparams, axis=point.axis) if qparams.scale.ndim else qparams


class _Converter(Rewriter[QuantizedTensor, FakeQuantize]):
    def __init__(self, model: Model, mapping: QConfigMapping, placement: Placement, grids: GridSource):
        super().__init__(model, mapping, placement)
        self.grids = grids

    def run(
        self, infinite: Mapping[str, int], float_hash: str | None, reference: Model | None, trained: bool
    ) -> QuantizedModel:
        weights = self.put_weights()
        activations = self.put_activations()
        self._products(weights, activations)
        gm = self.finished()
        ledger = [replace(r, notes=(*r.notes, *self.grids.notes.get(r.layer, ()))) for r in self.placement.ledger]
        ends = set(self.placement.outputs.values())
        output_nodes = {t: self.at_source.get(t, self.copy_of[self.model.node(t)]) for t in ends}
        return QuantizedModel(
            self.model, self.mapping, gm, self.placement, weights, activations, ledger, output_nodes, self.points,
            infinite, float_hash, reference, trained=trained,
        )  # fmt: skip

    def weight_part(self, target: str, point: WeightPoint) -> QuantizedTensor:
        return self.grids.weight(target, point)

    def weight_call(self, target: str, constant: fx.Node) -> fx.Node:
        return self.graph.call_module(target)

    def activation_part(self, target: str, point: ActivationPoint, after_relu: bool) -> FakeQuantize:
        return FakeQuantize(self.grids.activation(target, point), after_relu=after_relu)

    def _products(self, weights: Mapping[str, QuantizedTensor], activations: Mapping[str, FakeQuantize]) -> None:
        for point, key in self.products():
            if not sums_are_integer(activations[key], weights[point.weight]):
                continue
            grid, weight, node = activations[key], weights[point.weight], self.copy_of[point.node]
            channels = -1 if op_type(point.node) == "linear" else 1
            scale = ProductScale(grid, weight, channels, self._next_grid(node))
            with self.graph.inserting_before(node):
                x = self._call("xc", point.weight, InputCodes(grid), node.args[0])
                w = self._call("wc", point.weight, WeightCodes(weight))
                b = (
                    self._call("bc", point.weight, BiasCodes(grid, weight), self.copy_of[point.bias])
                    if point.bias
                    else None
                )
            with self.graph.inserting_after(node):
                y = self._call("ps", point.weight, scale)
            y.meta = dict(node.meta)
            node.replace_all_uses_with(y)
            y.args = (node,)
            node.args = (x, w, *([b] if len(node.args) > 2 else []), *node.args[3:])
            node.kwargs = {k: b if k == "bias" else v for k, v in node.kwargs.items()}
            self.copy_of[point.node] = y

    def _next_grid(self, node: fx.Node) -> FakeQuantize | None:
        """The one grid, of one scale, that the output of a product is put on, at once or behind a fused activation."""
        for _ in range(2):
            readers = [user for user in node.users if user.users]  # a ReLU that its grid took over has none left
            if len(readers) != 1:
                return None
            (node,) = readers
            if node.op == "call_module":
                found = self.parts[str(node.target)]
                return found if isinstance(found, FakeQuantize) and not found.scale.ndim else None
            if node.op != "call_function" or packet_name(node) not in ("relu", "relu6", "clamp", "hardtanh"):
                return None
        return None
