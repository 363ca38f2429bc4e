"""One output number of a layer on integers beside the float network, and what ONNX Runtime ran of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from qlab.conversion import QuantizedModel, convert
from qlab.lessons.samples import sample
from qlab.preset import presets
from qlab.quant.fake_quant import quantize
from qlab.runtime.executed import Executed, Kind, executed
from qlab.runtime.kernel_codes import CodeSession, KernelTrace, kernel_trace, open_codes
from qlab.runtime.session import AS_SIMULATED
from qlab.runtime.steps import Steps, Trace, explainable_layers, run_tapped, trace_layer

if TYPE_CHECKING:
    from qlab.runtime.steps import IntegerLayer

NETWORK, STATIC = "conv_digits", "onnxruntime"  # what the first experiment takes apart, and its config
MODES = {"static": STATIC, "dynamic": "dynamic", "weight_only": "int8_weight_only", "float": "float"}  # -> preset
IMAGES = 32  # of the evaluation part: to choose from, and in one call that is timed
TRIED = 60  # numbers on an end of the grid of which the one that was cut off most is taken


@dataclass(frozen=True)
class Errors:
    """Where the error of one output number is made, in steps of the output grid, before anything is cut off.

    arrived: the exact sum on integers against the sum in the float network: rounded inputs, weights and bias, and what
    the layers before had rounded. adding: the accumulator against the sum of what its integers stand for, in float64.
    rounding: the code against the exact sum.
    """

    arrived: float
    adding: float
    rounding: float

    @property
    def largest(self) -> str:
        """Name of the field that is largest."""
        return max(("arrived", "adding", "rounding"), key=lambda name: getattr(self, name))


@dataclass(frozen=True, eq=False)
class OneNumber:
    """One output number of one layer. steps: on integers; the sums are those of the float network.

    largest: flat place of the largest product; float_input, float_weight: what the float network multiplies there.
    float_sum: of all its products; float_bias: what it adds; float_value: behind the activation.
    """

    steps: Steps
    largest: int
    float_input: float
    float_weight: float
    float_sum: float
    float_bias: float
    float_value: float

    @property
    def unit(self) -> float:
        """What 1 in the accumulator stands for."""
        return self.steps.input_scale * self.steps.weight_scale

    @property
    def total(self) -> int:
        """Accumulator with its bias."""
        return self.steps.accumulator + (self.steps.bias or 0)

    @property
    def errors(self) -> Errors:
        s = self.steps
        x = (s.inputs - s.input_zero_point) * np.float64(s.input_scale)
        w = (s.weights - s.weight_zero_point) * np.float64(s.weight_scale)
        before = self.total * self.unit + (s.bias_value if s.bias is None else 0.0)
        return Errors(
            arrived=abs(before - (self.float_sum + self.float_bias)) / s.output_scale,
            adding=abs(s.accumulator * self.unit - float((x * w).sum())) / s.output_scale,
            rounding=abs(s.rounded * s.output_scale - before) / s.output_scale,
        )


@dataclass(frozen=True)
class Kernel:
    """What ONNX Runtime's kernel gave. code: of the number; by_hand: the steps from the kernel's own input codes.

    differing, count: codes of the whole layer for this image that are not the simulated ones, of how many.
    """

    code: int
    by_hand: int
    differing: int
    count: int


@dataclass(frozen=True)
class Ran:
    """A network under one config in ONNX Runtime, op by op. macs: layer -> (multiplications, kind of the kernel)."""

    executed: Executed
    macs: Mapping[str, tuple[int, Kind]]
    images: int

    def share(self, kind: Kind) -> float:
        """Share of the multiplications computed by kernels of this kind, 0..1."""
        total = sum(count for count, _ in self.macs.values())
        return sum(count for count, own in self.macs.values() if own == kind) / total

    def count(self, kind: Kind) -> int:
        """How many ops were of this kind."""
        return sum(op.kind == kind for op in self.executed.ops)


def layers() -> list[str]:
    """The layers of the network whose numbers can be taken apart, in order."""
    return explainable_layers(_static())


@lru_cache(maxsize=64)
def trace(layer: str, image: int) -> Trace:
    """What enters and leaves this layer for one image of the evaluation part."""
    return trace_layer(_static(), layer, _image(image))


def cuts(layer: str) -> bool:
    """Whether a ReLU of this layer cuts numbers off below."""
    return trace(layer, 0).layer.limits[0] == 0.0


def place(layer: str, image: int, which: str) -> tuple[int, ...]:
    """Index of a number to look at: the "largest" that is not cut off, one in the "middle", or one far "below" 0."""
    seen = trace(layer, image)
    values, target = seen.simulated, seen.layer.target
    codes = quantize(values, target.qparams)
    if which == "below":
        ends = (codes == codes.min()).nonzero().tolist()
        tried = [tuple(ends[i]) for i in np.unique(np.linspace(0, len(ends) - 1, TRIED).astype(int))]
        return max(tried, key=lambda at: _moved(seen.explain(at)))
    inside = (codes > codes.min()) & (codes < target.quant_max)
    order = values[inside].argsort()
    found = inside.nonzero()[order[-1 if which == "largest" else len(order) // 2]]
    return tuple(int(i) for i in found)


def _moved(steps: Steps) -> int:
    return abs(steps.rounded + steps.output_zero_point - steps.code)


@lru_cache(maxsize=256)
def one_number(layer: str, image: int, which: str) -> OneNumber:
    """The number of this layer and image that `place` chooses, on integers and in float."""
    seen, at = trace(layer, image), place(layer, image, which)
    steps, found = seen.explain(at), seen.layer
    spot = (at[0], *at[2:]) if found.stride else at[:1]
    values, _ = found.windows(_float_input(found, image), torch.tensor([spot]))
    first = steps.channels[0]
    window = values[0].movedim(-1, 0)[first : first + found.weight.shape[1]].double()
    weight = sample(NETWORK).weights[f"{layer}.weight"][steps.channel].double()
    products = window * weight
    largest = int(abs(steps.products).argmax())
    assert seen.float_value is not None  # the samples have their float original
    return OneNumber(
        steps=steps, largest=largest,
        float_input=float(window.flatten()[largest]), float_weight=float(weight.flatten()[largest]),
        float_sum=float(products.sum()), float_bias=steps.bias_value, float_value=float(seen.float_value[at]),
    )  # fmt: skip


@lru_cache(maxsize=64)
def kernel(layer: str, image: int, which: str) -> Kernel:
    """The same number from ONNX Runtime; the first call exports the network, which takes seconds."""
    at, found = place(layer, image, which), _in_runtime(layer, image)
    steps = found.trace.explain(at)
    return Kernel(int(found.codes[at]), steps.code, len(found.differing), found.codes.numel())


@lru_cache(maxsize=8)
def ran(network: str, mode: str) -> Ran:
    """A sample network under one config of MODES in ONNX Runtime, on IMAGES inputs at once, with the options that keep
    the results those of the simulation. The first call for a network exports it, which takes seconds."""
    from qlab.export.onnx_file import quantized_onnx

    of = sample(network)
    qmodel = convert(of.model, presets[MODES[mode]], of.calibration)
    _, inputs, _ = next(iter(of.data.evaluation.batches(IMAGES)))
    feed = {spec.name: x.numpy() for spec, x in zip(qmodel.inputs, inputs, strict=True)}
    found = executed(quantized_onnx(qmodel).proto, feed, AS_SIMULATED.for_model(qmodel))
    macs = {one.name: (one.macs, _kind(found, one.name)) for one in of.model.layers if one.macs}
    return Ran(found, macs, IMAGES)


def _kind(found: Executed, layer: str) -> Kind:
    return "integer" if any(op.kind == "integer" for op in found.of_layer(layer)) else "float"


@lru_cache(maxsize=1)
def _static() -> QuantizedModel:
    of = sample(NETWORK)
    return convert(of.model, presets[STATIC], of.calibration)


def _image(image: int) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(x) for x in sample(NETWORK).data.evaluation.example(image))


def _float_input(layer: IntegerLayer, image: int) -> Tensor:
    """What enters the layer in the float network."""
    model = sample(NETWORK).model
    kept: dict[fx.Node, Any] = {}
    source = model.node(layer.name).args[0]
    assert isinstance(source, fx.Node)
    run_tapped(model.graph_module, {source}, kept.__setitem__, _image(image))
    found: Tensor = kept[source]
    return found


@lru_cache(maxsize=1)
def _codes() -> CodeSession:
    return open_codes(_static())


@lru_cache(maxsize=64)
def _in_runtime(layer: str, image: int) -> KernelTrace:
    x = _image(image)
    return kernel_trace(_static(), layer, x, _codes()(*x), trace(layer, image))
