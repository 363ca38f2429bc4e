"""What one bit costs: SQNR of a real tensor and accuracy of a real network over the number of bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch

from qlab.config import ACTIVATION_BITS, WEIGHT_BITS, QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.graph.placement import place
from qlab.lessons.samples import sample
from qlab.plots.bins import Bins
from qlab.plots.study import values_of
from qlab.quant.error import QuantError, quantization_error
from qlab.quant.qparams import QParams, choose_qparams
from qlab.quant.stats import TensorStats

SAMPLES = ("conv_digits", "residual_digits", "depthwise_digits", "outlier_mlp")
OBSERVERS = ("min_max", "mse", "percentile")
PER_BIT = 20 * math.log10(2)  # dB: a step of half the size makes half the error
FEW = 4  # widths at the lower end over which the slope at few bits is fitted
NETWORK_BITS = tuple(range(2, 9))  # weights and activations alike; weights go no further


@dataclass(frozen=True, eq=False)
class Row:
    """One observer over the widths. qparams, errors: one for each of `bits`, in its order."""

    observer: str
    bits: tuple[int, ...]
    qparams: tuple[QParams, ...]
    errors: tuple[QuantError, ...]

    @property
    def sqnr(self) -> tuple[float, ...]:
        """In dB."""
        return tuple(error.sqnr for error in self.errors)

    def at(self, bits: int) -> QuantError:
        return self.errors[self.bits.index(bits)]

    def ends(self, bits: int) -> tuple[float, float]:
        """The lowest and the highest value of the grid of this many bits."""
        qparams = self.qparams[self.bits.index(bits)]
        return float(qparams.low), float(qparams.high)

    def slope(self, widths: Sequence[int]) -> float:
        """dB per bit, fitted to these widths by least squares."""
        return float(np.polyfit(widths, [self.at(bits).sqnr for bits in widths], 1)[0])


@dataclass(frozen=True, eq=False)
class Curves:
    """A tensor under every observer. few, many: the widths over which the slopes at either end are fitted."""

    tensor: str
    weight: bool
    rows: dict[str, Row]

    @property
    def bits(self) -> tuple[int, ...]:
        return self.rows[OBSERVERS[0]].bits

    @property
    def few(self) -> tuple[int, ...]:
        return self.bits[:FEW]

    @property
    def many(self) -> tuple[int, ...]:
        return self.bits[len(self.bits) // 2 :]

    @property
    def rule(self) -> tuple[float, ...]:
        """dB: the line that gains `PER_BIT` with every bit and ends where min_max ends."""
        end = self.rows["min_max"].sqnr[-1]
        return tuple(end - PER_BIT * (self.bits[-1] - bits) for bits in self.bits)

    def meets(self, observer: str, other: str, within: float) -> int | None:
        """The fewest bits from which on two observers stay within this many dB of each other; None: they never do."""
        found = None
        for bits in reversed(self.bits):
            if abs(self.rows[observer].at(bits).sqnr - self.rows[other].at(bits).sqnr) > within:
                break
            found = bits
        return found


@cache
def tensors(name: str) -> dict[str, bool]:
    """The tensors of a sample that get a grid from their values: name to whether it is a weight. Activations first."""
    shown = sample(name)
    everything = QConfigMapping(default=QConfig(weight=QuantSpec(), activation=QuantSpec()))
    inputs = {spec.name for spec in shown.model.inputs}  # whole numbers from the start: their grid is given
    observed = [point.tensor for point in place(shown.model, everything).activations if point.kind == "observed"]
    return {t: False for t in observed if t not in inputs} | dict.fromkeys(shown.weights, True)


def source(name: str, tensor: str) -> TensorStats | torch.Tensor:
    """What ranges are chosen from: the weight itself, or what the calibration saw of an activation."""
    shown = sample(name)
    return shown.weights[tensor] if tensors(name)[tensor] else shown.calibration[tensor]


@lru_cache(maxsize=32)
def curves(name: str, tensor: str) -> Curves:
    """SQNR of one tensor at every width the lab has for it; weights symmetric, activations affine, one scale each."""
    weight, held = tensors(name)[tensor], source(name, tensor)
    low, high = WEIGHT_BITS if weight else ACTIVATION_BITS
    widths = tuple(range(low, high + 1))
    scheme = "per_tensor_symmetric" if weight else "per_tensor_affine"
    rows = {}
    for observer in OBSERVERS:
        chosen = tuple(choose_qparams(held, QuantSpec(bits, scheme, observer)) for bits in widths)
        rows[observer] = Row(observer, widths, chosen, tuple(quantization_error(held, qparams) for qparams in chosen))
    return Curves(tensor, weight, rows)


@lru_cache(maxsize=32)
def histogram(name: str, tensor: str) -> tuple[Bins, float]:
    """Where the values of a tensor lie, and the share of them that is exactly 0, which is left out of the counts."""
    values = values_of(source(name, tensor))
    low, high = min(values.minimum, 0.0), max(values.maximum, 0.0)
    zeros = values.zeros / values.count
    bins = values.bins(values.window(np.array([[low, high]]), "all"))
    counts = bins.counts.copy()
    place = bins.bin_of(0.0)
    if place is not None:
        counts[place] = max(0.0, counts[place] - values.zeros)
    return Bins(bins.edges, counts), zeros


@dataclass(frozen=True, eq=False)
class Measured:
    """A network of whole numbers of this many bits, weights and activations alike, beside float on the same samples."""

    bits: int
    evaluation: Evaluation
    comparison: Comparison


@dataclass(frozen=True, eq=False)
class Accuracies:
    """rows: by bits, ascending."""

    reference: Evaluation
    rows: tuple[Measured, ...]

    def at(self, bits: int) -> Measured:
        return next(row for row in self.rows if row.bits == bits)

    @property
    def enough(self) -> int | None:
        """The fewest bits from which on no width is told apart from float; None where even the most are."""
        found = None
        for row in reversed(self.rows):
            if row.comparison.significant:
                break
            found = row.bits
        return found


def mapping(bits: int, observer: str) -> QConfigMapping:
    """Weights per channel and activations per tensor, both of this many bits and ranged by this observer."""
    return QConfigMapping(
        default=QConfig(
            weight=QuantSpec(bits, "per_channel_symmetric", observer), activation=QuantSpec(bits, observer=observer)
        )
    )


@lru_cache(maxsize=16)
def accuracies(name: str, observer: str) -> Accuracies:
    """The accuracy at each of `NETWORK_BITS`, simulated, on all evaluation samples; two seconds or so."""
    shown = sample(name)
    rows = []
    for bits in NETWORK_BITS:
        qmodel = convert(shown.model, mapping(bits, observer), shown.calibration)
        found = evaluate(qmodel, shown.data, shown.float_evaluation, sqnr_samples=0)
        verdict = compare(shown.float_evaluation, found, shown.data.evaluation.targets)
        rows.append(Measured(bits, found, verdict))
    return Accuracies(shown.float_evaluation, tuple(rows))
