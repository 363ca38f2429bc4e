"""The error of every tensor: what its own unit makes of exact inputs, and what has arrived there from all before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from qlab.analysis.reuse import Numbering, Plan
from qlab.calibration import Progress
from qlab.conversion import FakeQuantize, QuantizedModel
from qlab.data import Dataset
from qlab.errors import DataMismatch, InvalidConfig
from qlab.float_side import Tapped, power
from qlab.forward import pad
from qlab.graph.integer_sums import InputCodes
from qlab.graph.ops import channel_axis, op_type
from qlab.memory import keep_freed_memory

SAMPLES = 256
BINS = 80
PROPAGATE = "follow the error"


@dataclass(frozen=True)
class Errors:
    """A tensor against its float self. sqnr: dB. cosine: of the angle between both. largest: |error|.

    shift: mean error over the float values' standard deviation; channel_shift [C]: the same of each channel, over the
    same standard deviation, None without a channel axis.
    """

    sqnr: float
    cosine: float
    largest: float
    shift: float
    channel_shift: NDArray[np.float64] | None

    @property
    def largest_shift(self) -> float:
        """Of a channel, by magnitude; of all values where there are no channels."""
        return abs(self.shift) if self.channel_shift is None else float(np.abs(self.channel_shift).max())


@dataclass(frozen=True)
class Overlay:
    """Counts of float and quantized values between edges [bins + 1]; what lies outside is in the outermost bins."""

    edges: NDArray[np.float64]
    float_counts: NDArray[np.int64]
    quantized_counts: NDArray[np.int64]


@dataclass(frozen=True)
class TensorError:
    """One tensor. layer, op: whose output it is; of an input, its own name and "input".

    own: with float inputs, what this unit's rounding of weights, bias and output does. arrived: in the quantized
    network. clipped: share of the float values outside the grid, None where there is none for all values. overlay:
    float and arrived.
    """

    tensor: str
    layer: str
    op: str
    own: Errors
    arrived: Errors
    clipped: float | None
    overlay: Overlay


@dataclass(frozen=True)
class Propagation(Sequence[TensorError]):
    """rows: in the order of the network. samples: of the evaluation data."""

    rows: tuple[TensorError, ...]
    samples: int

    def __getitem__(self, i: Any) -> Any:
        return self.rows[i]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def made(self) -> TensorError:
        """Where most error is made: the row of the lowest own SQNR."""
        return min(self.rows, key=lambda row: row.own.sqnr)

    @property
    def shown(self) -> TensorError:
        """Where it shows most: the row of the lowest SQNR in the quantized network."""
        return min(self.rows, key=lambda row: row.arrived.sqnr)

    def of(self, tensor: str) -> TensorError | None:
        return next((row for row in self.rows if row.tensor == tensor), None)


def propagate(
    qmodel: QuantizedModel, data: Dataset, samples: int = SAMPLES, batch_size: int = 64,
    progress: Progress | None = None,
) -> Propagation:  # fmt: skip
    """Float and simulated network side by side on the first samples of the evaluation data, tensor by tensor.

    Two figures for each tensor tell the layer where error is made from the layer where it shows. Simulated.
    Raises InvalidConfig (nothing is quantized, or the model came from a file without its float original), DataMismatch.
    """
    if not qmodel.has_float_original:
        raise InvalidConfig(
            "this model came from a file without its float weights: there is nothing to hold it against."
        )
    part = data.evaluation
    if len(part) == 0:
        raise DataMismatch("there is no evaluation data: give at least one sample.")
    watched = _watched(qmodel)
    if not watched:
        raise InvalidConfig("this config quantizes no tensor, so there is no error to follow: choose a preset.")
    keep_freed_memory()
    reference = qmodel.reference
    size = reference.fixed_batch or batch_size
    samples = min(samples, len(part))
    numbers = Numbering().of(qmodel.graph_module)
    boundaries = {numbers[w.node]: w for w in watched}
    whole = Plan(qmodel.graph_module, numbers, wanted=[w.node for w in watched])
    own = [
        _Exact(qmodel.graph_module, numbers, boundaries.keys() - {numbers[w.node]}, wanted=[w.node]) for w in watched
    ]
    sums = [_Sums(w) for w in watched]
    batches = -(-samples // size)
    float_nodes = {reference.node(w.tensor): w.tensor for w in watched}
    for number in range(batches):
        if progress is not None:
            progress(PROPAGATE, number, batches)
        first = number * size
        _, inputs, _ = part.batch(first, min(size, samples - first))
        count = len(inputs[0])
        inputs = pad(inputs, size) if reference.fixed_batch and count < size else inputs
        reference.check_inputs(inputs)
        floats: dict[str, Tensor] = {}
        with torch.no_grad():
            Tapped(reference.graph_module, float_nodes, floats.__setitem__).run(*inputs)
        known = {number: floats[w.tensor] for number, w in boundaries.items()}
        whole.run(inputs, {})
        for w, plan, total in zip(watched, own, sums, strict=True):
            plan.run(inputs, known)
            made, arrived = plan.value(w.node), whole.value(w.node)
            total.add(floats[w.tensor][:count], _first(made)[:count], _first(arrived)[:count])
    if progress is not None:
        progress(PROPAGATE, batches, batches)
    return Propagation(tuple(s.row() for s in sums), samples)


@dataclass(frozen=True)
class _Watched:
    """A tensor of the quantized graph. grid: what it is put on there, if that is known ahead."""

    node: fx.Node
    tensor: str
    layer: str
    op: str
    grid: FakeQuantize | None
    axis: int | None


def _watched(qmodel: QuantizedModel) -> list[_Watched]:
    """Outputs of units, and inputs that are put on a grid on their way into one; in the order of the graph."""
    model = qmodel.reference
    ops = {row.layer: row.op for row in qmodel.ledger}
    grid_of = {id(module): module for module in qmodel.activations.values()}
    found: dict[fx.Node, _Watched] = {}

    def grid(node: fx.Node) -> FakeQuantize | None:
        return (
            grid_of.get(id(qmodel.graph_module.get_submodule(str(node.target)))) if node.op == "call_module" else None
        )

    for layer, tensor in qmodel.outputs.items():
        node = qmodel.output_nodes[tensor]
        if node not in found:
            found[node] = _Watched(
                node, tensor, layer, ops.get(layer, ""), grid(node), channel_axis(model.node(tensor))
            )
    taken = {w.tensor for w in found.values()}
    for node in qmodel.graph_module.graph.nodes:
        module = grid(node)
        if module is None or node in found:
            continue
        point = next(p for key, p in qmodel.points.items() if qmodel.activations[key] is module)
        if point.kind == "constant" or point.tensor in taken:
            continue
        taken.add(point.tensor)
        source = model.node(point.tensor)
        op = "input" if source.op == "placeholder" else op_type(source)
        found[node] = _Watched(node, point.tensor, point.tensor, op, module, channel_axis(source))
    order = {node: i for i, node in enumerate(qmodel.graph_module.graph.nodes)}
    return sorted(found.values(), key=lambda w: order[w.node])


class _Exact(Plan):
    """Inputs are taken as they are: that a kernel wants them on a grid is the error of who made them."""

    def _call(self, node: fx.Node, at: Mapping[fx.Node, Any]) -> Any:
        if node.op == "call_module":
            module = self.gm.get_submodule(str(node.target))
            if isinstance(module, InputCodes):
                return module.in_steps(at[node.args[0]])  # type: ignore[index]
        return super()._call(node, at)


class _Against:
    """Sums of one comparison."""

    def __init__(self) -> None:
        self.noise = self.cross = self.power = self.largest = self.error = 0.0
        self.channels: Tensor | None = None

    def add(self, x: Tensor, y: Tensor, axis: int | None) -> None:
        difference = y - x
        self.noise += power(difference)
        self.power += power(y)
        self.cross += float(torch.dot(x.reshape(-1).double(), y.reshape(-1).double()))
        self.largest = max(self.largest, float(difference.abs().max()))
        self.error += float(difference.double().sum())
        if axis is not None and axis < x.ndim:
            summed = difference.movedim(axis, 0).flatten(1).double().sum(1)
            self.channels = summed if self.channels is None else self.channels + summed

    def errors(self, signal: float, spread: float, values: int) -> Errors:
        noise = self.noise
        sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
        norm = math.sqrt(signal * self.power)
        cosine = self.cross / norm if norm else 1.0 if signal == self.power else 0.0
        unit = spread or 1.0
        channels = None
        if self.channels is not None:
            channels = (self.channels / (values / len(self.channels)) / unit).numpy()
        return Errors(sqnr, cosine, self.largest, self.error / values / unit, channels)


class _Sums:
    """Adds up what is seen of one tensor."""

    def __init__(self, watched: _Watched):
        self.watched = watched
        self.own, self.arrived = _Against(), _Against()
        self.signal = self.total = 0.0
        self.values = self.outside = 0
        self.ends: tuple[float, float] | None = None
        self.counts = torch.zeros(2, BINS, dtype=torch.float64)

    def add(self, x: Tensor, made: Tensor, arrived: Tensor) -> None:
        x, made, arrived = (t.detach().float() for t in (x, made, arrived))
        self.signal += power(x)
        self.total += float(x.double().sum())
        self.values += x.numel()
        self.own.add(x, made, self.watched.axis)
        self.arrived.add(x, arrived, self.watched.axis)
        grid = self.watched.grid
        if grid is not None and not grid.scale.ndim:
            # Half a step beyond the last code still rounds to it.
            low, high, half = float(grid.qparams.low), float(grid.qparams.high), float(grid.scale) / 2
            self.outside += int(((x < low - half) | (x > high + half)).sum())
        if self.ends is None:
            low, high = min(float(x.min()), float(arrived.min())), max(float(x.max()), float(arrived.max()))
            self.ends = (low, high) if low < high else (low - 0.5, high + 0.5)
        for i, values in enumerate((x, arrived)):
            self.counts[i] += torch.histc(values.clamp(*self.ends), BINS, *self.ends)

    def row(self) -> TensorError:
        assert self.ends is not None
        mean = self.total / self.values
        spread = math.sqrt(max(self.signal / self.values - mean * mean, 0.0))
        w, counts = self.watched, self.counts.long().numpy()
        known = w.grid is not None and not w.grid.scale.ndim
        return TensorError(
            w.tensor, w.layer, w.op,
            self.own.errors(self.signal, spread, self.values), self.arrived.errors(self.signal, spread, self.values),
            self.outside / self.values if known else None,
            Overlay(np.linspace(*self.ends, BINS + 1), counts[0], counts[1]),
        )  # fmt: skip


def _first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple | list) else value
