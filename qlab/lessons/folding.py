"""BatchNorm folded into a convolution, and convolution with ReLU fused: real layers before and after."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from qlab.config import QuantSpec
from qlab.conversion import convert
from qlab.export.onnx_file import float_onnx, quantized_onnx
from qlab.graph.archive import Program, read_program
from qlab.graph.lower import attribute
from qlab.graph.ops import packet_name
from qlab.lessons.samples import sample
from qlab.preset import presets
from qlab.quant.error import sqnr
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import choose_qparams
from qlab.runtime.executed import ExecutedOp, executed
from qlab.runtime.measure import take
from qlab.runtime.session import RuntimeOptions
from qlab.samples import sample_folder

NETWORKS = {
    "conv_digits": "Convolution net", "residual_digits": "Residual net", "depthwise_digits": "Depthwise-separable net"
}  # fmt: skip
SAMPLES = 64  # on which outputs are compared and activations rounded
BATCH, PROFILED = 8, 1  # of the runs from which the executed graph is read; nothing is timed
GROWS, SHRINKS = 1.1, 0.9  # of the spread after over before; between them it stays


@dataclass(frozen=True)
class Unit:
    """A convolution, its BatchNorm and its ReLU, in the network as it was exported. layer: name of the convolution."""

    layer: str
    convolution: fx.Node
    norm: fx.Node
    relu: fx.Node


@lru_cache(maxsize=len(NETWORKS))
def _program(network: str) -> Program:
    """The network as it lies in its file, before anything is folded."""
    folder = sample_folder(network)
    assert folder is not None
    return read_program(folder / "model.pt2")


@lru_cache(maxsize=len(NETWORKS))
def units(network: str) -> Mapping[str, Unit]:
    """By layer: every convolution that a BatchNorm alone reads, which a ReLU alone reads."""
    found = {}
    for norm in _program(network).graph_module.graph.nodes:
        if norm.op != "call_function" or packet_name(norm) != "batch_norm":
            continue
        convolution, (relu, *more) = norm.args[0], norm.users
        if more or not packet_name(relu).startswith("relu") or len(convolution.users) > 1:
            continue
        layer = convolution.meta["module_path"]
        found[layer] = Unit(layer, convolution, norm, relu)
    return found


# ---- folding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The weights of a layer on a grid that all channels share, and on one for each.

    reach [C]: largest absolute value of each channel. codes [C]: how many codes of the shared grid it reaches, of
    `most`. shared, own: SQNR of the worst channel in dB, on the shared grid and on grids of their own.
    """

    reach: NDArray[np.float64]
    codes: NDArray[np.float64]
    most: int
    shared: float
    own: float

    @property
    def spread(self) -> float:
        """Reach of the widest channel over that of the narrowest."""
        return float(self.reach.max() / self.reach.min())


@dataclass(frozen=True)
class Folded:
    """A layer before and after. factor [C]: what folding multiplied the weights of each channel by."""

    before: Weights
    after: Weights
    factor: NDArray[np.float64]

    @property
    def spread(self) -> str:
        """grows, stays or shrinks."""
        change = self.after.spread / self.before.spread
        return "grows" if change > GROWS else "shrinks" if change < SHRINKS else "stays"


@lru_cache(maxsize=64)
def folded(network: str, layer: str, bits: int) -> Folded:
    """The weights of one layer in the file and after loading, on symmetric grids of so many bits."""
    unit, program = units(network)[layer], _program(network)
    before = attribute(program.graph_module, unit.convolution.args[1])
    assert before is not None
    after = sample(network).weights[f"{layer}.weight"]
    gamma, _, _, variance = (attribute(program.graph_module, node) for node in unit.norm.args[1:5])
    assert variance is not None
    epsilon: Any = unit.norm.args[7]
    factor = torch.rsqrt(variance.detach().double() + epsilon)
    if gamma is not None:
        factor = factor * gamma.detach().double()
    return Folded(_weights(before.detach(), bits), _weights(after, bits), factor.numpy())


def _weights(weight: Tensor, bits: int) -> Weights:
    shared = choose_qparams(weight, QuantSpec(bits=bits, qscheme="per_tensor_symmetric"))
    own = choose_qparams(weight, QuantSpec(bits=bits, qscheme="per_channel_symmetric"), axis=0)
    reach = weight.flatten(1).abs().amax(1).double().numpy()
    worst = [
        min(sqnr(a, b) for a, b in zip(weight, fake_quantize(weight, grid), strict=True)) for grid in (shared, own)
    ]
    return Weights(reach, reach / float(shared.scale), shared.quant_max, *worst)


@dataclass(frozen=True)
class Outputs:
    """What folding does to the outputs of the whole network. largest: output of all; folded: largest difference between
    the network before and after; rounding: between the one before in float32 and in float64."""

    largest: float
    folded: float
    rounding: float
    samples: int


@lru_cache(maxsize=len(NETWORKS))
def outputs(network: str) -> Outputs:
    of, before = sample(network), _program(network).graph_module
    inputs = of.inputs(SAMPLES)
    with torch.no_grad():
        single, after = before(*inputs), of.model(*inputs)
        double = copy.deepcopy(before).double()(*(x.double() for x in inputs))
    return Outputs(
        float(single.abs().max()),
        float((after - single).abs().max()),
        float((single.double() - double).abs().max()),
        len(inputs[0]),
    )


# ---- fusing ----------------------------------------------------------------------------------------------------------

ONCE, TWICE, EACH = "at the end of the unit", "after convolution and after ReLU", "after each of the three"


@dataclass(frozen=True)
class Rounded:
    """SQNR in dB of what a ReLU gives, by where values were put on a grid on the way there; simulated."""

    sqnr: Mapping[str, float]

    @property
    def lost(self) -> float:
        """dB that rounding between convolution and ReLU costs."""
        return self.sqnr[ONCE] - self.sqnr[TWICE]


@lru_cache(maxsize=64)
def rounded(network: str, layer: str, bits: int) -> Rounded:
    """Activations of a unit on affine grids over their own minimum and maximum; its weights stay float, so that
    rounding of activations is all there is."""
    unit = units(network)[layer]
    spec = QuantSpec(bits=bits, qscheme="per_tensor_affine")
    convolution, norm, relu = _values(network, unit)

    def on_grid(values: Tensor, like: Tensor) -> Tensor:
        """On the grid that the float values of this place give."""
        return fake_quantize(values, choose_qparams(like, spec))

    def normed(values: Tensor) -> Tensor:
        args = [attribute(_program(network).graph_module, a) if isinstance(a, fx.Node) else a for a in unit.norm.args]
        result: Tensor = unit.norm.target(values, *args[1:], **unit.norm.kwargs)  # type: ignore[operator]
        return result

    with torch.no_grad():
        ways = {
            ONCE: relu,
            TWICE: on_grid(norm, norm).relu(),
            EACH: on_grid(normed(on_grid(convolution, convolution)), norm).relu(),
        }
        return Rounded({name: sqnr(relu, on_grid(values, relu)) for name, values in ways.items()})


@lru_cache(maxsize=16)
def _unit_values(network: str, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    unit = units(network)[layer]
    reader = _Reader(_program(network).graph_module, (unit.convolution, unit.norm, unit.relu))
    with torch.no_grad():
        reader.run(*sample(network).inputs(SAMPLES))
    return reader.found[unit.convolution], reader.found[unit.norm], reader.found[unit.relu]


def _values(network: str, unit: Unit) -> tuple[Tensor, Tensor, Tensor]:
    """What convolution, BatchNorm and ReLU give for the first samples: [SAMPLES, C, H, W] each."""
    return _unit_values(network, unit.layer)


class _Reader(fx.Interpreter):
    """Runs a graph and keeps what some nodes gave."""

    def __init__(self, graph_module: fx.GraphModule, wanted: tuple[fx.Node, ...]) -> None:
        super().__init__(graph_module)
        self._wanted = wanted
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self.found[n] = value
        return value


@dataclass(frozen=True)
class Passes:
    """How a unit is computed. ops: by name, in order; written: bytes that these write for one sample."""

    ops: tuple[str, ...]
    written: float


@dataclass(frozen=True)
class Kernels:
    """A unit as the file has it, op by op in float, and as ONNX Runtime executed it in float and on integers.

    network: the same of the whole network: how many ops it has, without those that only move values.
    """

    in_file: Passes
    in_float: Passes
    on_integers: Passes
    network: tuple[int, int, int]


def kernels(network: str, layer: str) -> Kernels:
    """What remains of a unit's three ops; the first call for a network exports it, which takes seconds."""
    unit = units(network)[layer]
    elements = math.prod(_values(network, unit)[2].shape[1:])
    in_float, on_integers = _ran(network)
    nodes = [n for n in _program(network).graph_module.graph.nodes if n.op == "call_function"]
    written = tuple(packet_name(node) for node in (unit.convolution, unit.norm, unit.relu))
    counts = [sum(op.kind not in ("move", "shape") for op in ops) for ops in (in_float, on_integers)]
    return Kernels(
        Passes(written, 4.0 * elements * len(written)),
        _passes(in_float, layer),
        _passes(on_integers, layer),
        (sum(packet_name(n) not in _MOVES for n in nodes), *counts),  # type: ignore[arg-type]
    )


_MOVES = ("flatten", "view", "reshape", "permute", "transpose")
_BYTES = {"float": 4, "int8": 1, "uint8": 1, "int32": 4}


def _passes(ran: tuple[ExecutedOp, ...], layer: str) -> Passes:
    own = [op for op in ran if op.layer == layer and op.kind in ("integer", "float", "convert")]
    return Passes(tuple(op.op for op in own), sum(math.prod(op.shape) / BATCH * _BYTES[op.writes[0]] for op in own))


@lru_cache(maxsize=len(NETWORKS))
def _ran(network: str) -> tuple[tuple[ExecutedOp, ...], tuple[ExecutedOp, ...]]:
    """The ops that ONNX Runtime executed: of the float network, and under the preset x86."""
    of = sample(network)
    feed = {s.name: x.numpy() for s, x in zip(of.model.inputs, take(of.model, of.data, BATCH), strict=True)}
    quantized = convert(of.model, presets["x86"], of.calibration)
    one = RuntimeOptions(1)
    return (
        executed(float_onnx(of.model).proto, feed, one, PROFILED).ops,
        executed(quantized_onnx(quantized).proto, feed, one.for_model(quantized), PROFILED).ops,
    )
