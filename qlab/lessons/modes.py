"""One network in three modes: which products ran on integers, and what each mode costs in accuracy, bytes and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from qlab.config import QConfigMapping
from qlab.conversion import QuantizedModel, convert
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.export.onnx_file import quantized_onnx
from qlab.export.size import file_size
from qlab.lessons import turns
from qlab.lessons.samples import sample
from qlab.preset import presets
from qlab.runtime.executed import Executed, executed
from qlab.runtime.latency import Timing, time_calls
from qlab.runtime.measure import call_of, take
from qlab.runtime.report import FLOAT
from qlab.runtime.session import RuntimeOptions, Session, float_session, integer_session

if TYPE_CHECKING:
    from qlab.graph.placement import LedgerRow

NETWORKS = {"lstm_text": "LSTM", "transformer_text": "Transformer", "conv_digits": "Convolution net"}
PRESETS = {"dynamic": "dynamic", "static": "x86", "weight_only": "int8_weight_only"}  # mode -> preset
BATCH, THREADS = 32, 1  # of the calls that run and are timed
PROFILED = 5  # runs from which the executed graph is read
BUDGET = 1.0  # seconds of one measurement
NEARLY_ALL, NEXT_TO_NONE = 0.95, 0.05


@dataclass(frozen=True)
class Product:
    """A layer that multiplies. macs: of one sample."""

    layer: str
    op: str
    macs: int


@dataclass(frozen=True)
class InMode:
    """A network in one mode, as ONNX Runtime ran it.

    integer: the layers with products that an integer kernel computed. share: of all multiplications, that these make,
    0..1. conversions: ops between integers and float. bytes: of the ONNX file. evaluation: in ONNX Runtime, on the
    evaluation part; paired: with float, sample by sample. rows: the ledger, by layer.
    """

    mapping: QConfigMapping
    integer: frozenset[str]
    share: float
    conversions: int
    bytes: int
    evaluation: Evaluation
    paired: Comparison
    rows: Mapping[str, LedgerRow]
    session: Session
    ran: Executed

    @property
    def amount(self) -> str:
        """none, some or all of the multiplications."""
        return "all" if self.share >= NEARLY_ALL else "none" if self.share < NEXT_TO_NONE else "some"

    def kernels(self, layer: str) -> tuple[str, ...]:
        """The ops that computed a layer, by ONNX Runtime's names."""
        return tuple(dict.fromkeys(o.op for o in self.ran.of_layer(layer) if o.kind in ("integer", "float")))


@dataclass(frozen=True)
class Modes:
    """modes: by name, in the order of PRESETS. float_bytes: of the ONNX file of the float network."""

    products: tuple[Product, ...]
    modes: Mapping[str, InMode]
    reference: Evaluation
    float_bytes: int
    float_session: Session


def products(network: str) -> tuple[Product, ...]:
    """The layers of a sample network that multiply, in order."""
    return tuple(Product(layer.name, layer.op, layer.macs) for layer in sample(network).model.layers if layer.macs)


@lru_cache(maxsize=len(NETWORKS))
def modes(network: str) -> Modes:
    """The network in all modes, run in ONNX Runtime; the first call exports it, which takes seconds."""
    of = sample(network)
    found = products(network)
    reference = float_session(of.model, RuntimeOptions(THREADS))
    made = {mode: _in_mode(network, found, presets[preset]) for mode, preset in PRESETS.items()}
    return Modes(found, made, of.float_evaluation, file_size(convert(of.model, QConfigMapping())).float_file, reference)


def _in_mode(network: str, found: tuple[Product, ...], mapping: QConfigMapping) -> InMode:
    of = sample(network)
    quantized = convert(of.model, mapping, of.calibration)
    ran = _executed(quantized, network)
    integer = frozenset(p.layer for p in found if any(o.kind == "integer" for o in ran.of_layer(p.layer)))
    evaluation = evaluate(quantized, of.data, of.float_evaluation, backend="integer", sqnr_samples=0)
    return InMode(
        mapping,
        integer,
        sum(p.macs for p in found if p.layer in integer) / sum(p.macs for p in found),
        len(ran.boundaries),
        file_size(quantized).total,
        evaluation,
        compare(of.float_evaluation, evaluation, of.data.evaluation.targets),
        {row.layer: row for row in quantized.ledger},
        integer_session(quantized, RuntimeOptions(THREADS)),
        ran,
    )


def _executed(quantized: QuantizedModel, network: str) -> Executed:
    of = sample(network)
    feed = {s.name: x.numpy() for s, x in zip(of.model.inputs, take(of.model, of.data, BATCH), strict=True)}
    options = RuntimeOptions(THREADS).for_model(quantized)
    return executed(quantized_onnx(quantized).proto, feed, options, PROFILED)


@lru_cache(maxsize=16)
def timed(network: str, attempt: int) -> Timing:
    """Calls of the float network and of each mode, turn by turn. attempt: another number measures anew."""
    of, found = sample(network), modes(network)
    inputs = take(of.model, of.data, BATCH)
    sessions = {FLOAT: found.float_session, **{mode: one.session for mode, one in found.modes.items()}}
    return time_calls(
        {name: call_of(one, inputs) for name, one in sessions.items()},
        BATCH,
        THREADS,
        budget=BUDGET,
        least=turns.ENOUGH,
    )


def speed(timing: Timing, mode: str, against: str = FLOAT) -> turns.Speed:
    """Of a mode against float or another mode, from the same turns."""
    return turns.speed(timing, mode, against)


def fastest(timing: Timing) -> str | None:
    """The mode that is furthest ahead of float, None where none is beyond noise."""
    ahead = {mode: speed(timing, mode) for mode in PRESETS}
    ahead = {mode: found for mode, found in ahead.items() if found.outcome == "faster"}
    return max(ahead, key=lambda mode: ahead[mode].ratio[1]) if ahead else None


def beaten(timing: Timing, mode: str) -> tuple[str, ...]:
    """The modes that a mode is faster than beyond noise: where their speeds against float lie apart as well, because
    sessions that run the same kernels may differ by where their memory lies."""
    low = speed(timing, mode).ratio[0]
    return tuple(
        other
        for other in PRESETS
        if other != mode and speed(timing, mode, other).outcome == "faster" and low > speed(timing, other).ratio[2]
    )
