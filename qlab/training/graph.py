"""A network with trainable weights and grids in its graph, and the way back to a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from qlab.calibration import Calibration
from qlab.config import QConfigMapping
from qlab.conversion import QuantizedModel, convert, convert_from
from qlab.graph.capture import Model
from qlab.graph.integer_sums import sums_are_integer
from qlab.graph.lower import attribute, copy_graph
from qlab.graph.placement import ActivationPoint, WeightPoint
from qlab.graph.rewrite import Rewriter
from qlab.quant.fake_quant import quantize
from qlab.quant.qparams import QParams
from qlab.quant.tensor import QuantizedTensor
from qlab.training.grids import TrainedBias, TrainedGrid, extremes_of
from qlab.training.settings import Training

NOTE = "weights trained with fake quantization"


class TrainingNetwork:
    """A float network with fake-quantize modules in it, on the grids that convert chose.

    module: the graph; its float parameters are copies of the model's, and train. grids: TrainedGrid of each weight, by
    layer, and of each activation, by its key; the same module under several layers where they share a weight.
    start: the quantized model it begins as. reference: the float network (equalised where the mapping says so).
    """

    def __init__(self, model: Model, mapping: QConfigMapping, calib: Calibration | None, settings: Training):
        self.start = convert(model, mapping, calib)
        self.float_model, self.mapping, self.calib = model, mapping, calib
        self.network, self.reference = self.start.model, self.start.reference
        parts = _Parts(self.start, calib, settings)
        self.weights: dict[str, TrainedGrid] = parts.put_weights()
        self.activations: dict[str, TrainedGrid] = parts.put_activations()
        parts.put_biases(self.weights, self.activations)
        self.module = parts.finished()
        self.module.train()
        self._points = {p.layer: p for p in self.start.placement.weights}

    @property
    def grids(self) -> tuple[TrainedGrid, ...]:
        """Each once."""
        return tuple({id(g): g for g in (*self.weights.values(), *self.activations.values())}.values())

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimiser may change, by name: float weights, biases and normalisations."""
        return {name: p for name, p in self.module._parameters.items() if p is not None and p.is_floating_point()}

    def sizes(self) -> dict[str, Tensor]:
        """What size the numbers of each parameter usually have: root mean square, [] or along the channels of a
        quantized weight; at least a hundredth of that of the whole tensor."""
        axes = {str(p.constant.target): p.axis for p in self.start.placement.weights}
        values = {name: p.detach() for name, p in self.parameters().items()}
        usual = torch.cat([v.reshape(-1) for v in values.values()]).square().mean().sqrt()
        out = {}
        for name, value in values.items():
            whole = value.square().mean().sqrt()
            whole = torch.where(whole > 0, whole, usual)
            if name in axes:
                others = [i for i in range(value.ndim) if i != axes[name] % value.ndim]
                out[name] = torch.maximum(value.square().mean(others, keepdim=True).sqrt(), whole / 100)
            else:
                out[name] = whole
        return out

    def factors(self) -> dict[str, nn.Parameter]:
        """The learned scales, as multiples of the calibrated ones."""
        return {name: p for name, p in self.module.named_parameters() if name.endswith(".factor")}

    def tensor(self, key: str, role: str) -> str:
        """The name of the tensor behind a key of `weights` ("weight") or `activations`."""
        return self._points[key].tensor if role == "weight" else self.start.points[key].tensor

    def master(self, layer: str) -> Tensor:
        """The float weight behind a layer's codes."""
        weight: Tensor = getattr(self.module, str(self._points[layer].constant.target))
        return weight

    def codes(self, layer: str) -> Tensor:
        """The codes its weight has now."""
        return quantize(self.master(layer).detach(), self.weights[layer].qparams)

    def quantized(self) -> QuantizedModel:
        """The quantized model as of now: the trained floats on the grids as they are."""
        model = _with_constants(self.network, self.parameters())
        source = _Trained(self, model)
        return convert_from(
            source, model, self.mapping, self.start.infinite, self.start.float_hash, self.reference, trained=True
        )


class _Parts(Rewriter[TrainedGrid, TrainedGrid]):
    def __init__(self, start: QuantizedModel, calib: Calibration | None, settings: Training):
        super().__init__(start.model, start.mapping, start.placement)
        self.start, self.calib, self.settings = start, calib, settings
        self.keys = {id(point): key for key, point in start.points.items()}
        for target, part in self.parts.items():
            if isinstance(part, nn.Parameter):
                self.parts[target] = nn.Parameter(part.detach().clone(), requires_grad=part.is_floating_point())

    def weight_part(self, target: str, point: WeightPoint) -> TrainedGrid:
        weight = attribute(self.model.graph_module, point.constant)
        assert weight is not None
        qparams = self.start.weights[point.layer].qparams
        return self._grid(qparams, point, extremes_of(weight.detach().float(), qparams), batched=False)

    def weight_call(self, target: str, constant: fx.Node) -> fx.Node:
        return self.graph.call_module(target, (constant,))

    def activation_part(self, target: str, point: ActivationPoint, after_relu: bool) -> TrainedGrid:
        qparams = self.start.activations[self.keys[id(point)]].qparams
        grid = self._grid(qparams, point, self._usual(point, qparams), batched=True, after_relu=after_relu)
        if point.kind != "observed":  # a constant, or the fixed range of a function
            grid.freeze()
        return grid

    def put_biases(self, weights: Mapping[str, TrainedGrid], activations: Mapping[str, TrainedGrid]) -> None:
        """Biases in whole products, as integer kernels add them: at few bits their rounding is no longer small."""
        for point, key in self.products():
            grid, weight = activations[key], weights[point.weight]
            if point.bias is None or not sums_are_integer(grid, weight):
                continue
            node, bias = self.copy_of[point.node], self.copy_of[point.bias]
            with self.graph.inserting_before(node):
                rounded = self._call("bc", point.weight, TrainedBias(grid, weight), bias)
            rounded.meta = dict(bias.meta)
            node.replace_input_with(bias, rounded)

    def _grid(
        self, qparams: QParams, point: WeightPoint | ActivationPoint, extremes: tuple[Tensor, Tensor], **more: bool
    ) -> TrainedGrid:
        grid = TrainedGrid(
            qparams, point.spec, extremes, ranges=self.settings.ranges,
            averaging_constant=self.settings.averaging_constant, **more,
        )  # fmt: skip
        if point.tensor in self.mapping.ranges:  # set by hand: it stays
            grid.freeze()
        return grid

    def _usual(self, point: ActivationPoint, qparams: QParams) -> tuple[Tensor, Tensor]:
        """Extremes of a usual batch: the mean over those of the calibration, where they are known."""
        if point.kind != "observed" or self.calib is None:
            return qparams.low, qparams.high
        stats = self.calib[point.tensor]
        if qparams.scale.ndim:
            assert stats.channel_minimum is not None
            assert stats.channel_maximum is not None
            return torch.from_numpy(stats.channel_minimum), torch.from_numpy(stats.channel_maximum)
        low, high = stats.batch_minimum.clip(max=0), stats.batch_maximum.clip(min=0)
        if point.spec.symmetric:
            high = np.maximum(-low, high)
            low = -high
        return torch.tensor(float(low.mean())), torch.tensor(float(high.mean()))


class _Trained:
    """Codes and grids as they stand in a training network."""

    def __init__(self, network: TrainingNetwork, model: Model):
        self.network, self.model = network, model
        weighted = {p.layer for p in network.start.placement.weights}
        self.notes: dict[str, list[str]] = {layer: [NOTE] for layer in weighted}

    def weight(self, target: str, point: WeightPoint) -> QuantizedTensor:
        return QuantizedTensor.from_float(
            self.network.master(point.layer).detach(), self.network.weights[point.layer].qparams
        )

    def activation(self, target: str, point: ActivationPoint) -> QParams:
        # Both graphs are rewritten in the same order, so that the parts carry the same names.
        grid: TrainedGrid = getattr(self.network.module, target)
        return grid.qparams


def _with_constants(model: Model, values: Mapping[str, Any]) -> Model:
    """The same network with these constants, copied."""
    gm, _ = copy_graph(model.graph_module)
    for name, value in values.items():
        gm._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
    return Model(gm, model.inputs, model.name, model.folded)
