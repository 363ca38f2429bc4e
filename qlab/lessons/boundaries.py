"""A network of which some layers are quantized: what ONNX Runtime executes, where it converts, how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from qlab.config import QConfig, QConfigMapping
from qlab.conversion import QuantizedModel, convert
from qlab.export.onnx_file import quantized_onnx
from qlab.graph.capture import Model
from qlab.graph.optypes import OP_TYPES
from qlab.lessons import turns
from qlab.lessons.samples import sample
from qlab.preset import presets
from qlab.runtime.boundaries import Boundary, boundaries
from qlab.runtime.executed import Executed, executed
from qlab.runtime.latency import Timing, time_calls
from qlab.runtime.measure import call_of, take
from qlab.runtime.report import FLOAT
from qlab.runtime.session import RuntimeOptions, Session, float_session, integer_session

NETWORK = "conv_digits"
BATCH, THREADS = 32, 1
PROFILED = 10  # runs of which the time of each op is the median
BUDGET, BUDGET_ALL = 0.5, 1.5  # seconds of a measurement of one choice, and of all patterns together

Chosen = tuple[bool, ...]  # of each layer with weights, whether it is quantized


@cache
def layers() -> tuple[str, ...]:
    """The layers with weights, in order."""
    return weighted(sample(NETWORK).model)


def weighted(model: Model) -> tuple[str, ...]:
    """The convolutions and linear layers of any network, in order; recurrent ones too."""
    roles = ("weighted", "recurrent")
    return tuple(layer.name for layer in model.layers if OP_TYPES[layer.op].role in roles and layer.weight_shape)


def patterns() -> Mapping[str, Chosen]:
    """Choices by what to call them."""
    count = len(layers())
    return {
        "none": (False,) * count,
        "first half": tuple(i < count // 2 for i in range(count)),
        "every second": tuple(i % 2 == 0 for i in range(count)),
        "all but one": tuple(i != count // 2 for i in range(count)),
        "all": (True,) * count,
    }


def config(model: Model, quantized: frozenset[str]) -> QConfigMapping:
    """Quantizes these layers as the preset x86 does, and each op without weights as the layer before it that has."""
    qconfig: QConfig | None = presets["x86"].default
    known, on = set(weighted(model)), False
    rules: dict[str, QConfig | None] = {}
    for layer in model.layers:
        if layer.name in known:
            on = layer.name in quantized
        if not on:
            rules[layer.name] = None
    return QConfigMapping(default=qconfig, by_name=rules)


@dataclass(frozen=True)
class Ran:
    """A choice as ONNX Runtime executed it. quantized: names of the layers that were to be."""

    quantized: frozenset[str]
    ran: Executed
    crossings: tuple[Boundary, ...]
    session: Session

    @property
    def integer(self) -> frozenset[str]:
        """The layers with weights that an integer kernel computed."""
        return frozenset(name for name in layers() if any(op.kind == "integer" for op in self.ran.of_layer(name)))

    @property
    def taken(self) -> tuple[str, ...]:
        """The layers that the config keeps float and the runtime put on integers of its own accord."""
        return tuple(name for name in layers() if name in self.integer and name not in self.quantized)

    @property
    def changes(self) -> int:
        """How often the side changes on the way from the float input through the layers to the float output."""
        sides = [False, *(name in self.integer for name in layers()), False]
        return sum(a != b for a, b in pairwise(sides))

    @property
    def share(self) -> float:
        """Of the time of all ops, what the conversions take, 0..1."""
        return self.ran.share("convert")

    @property
    def moved(self) -> float:
        """Of the time of all ops, what is spent on moving values into another layout, 0..1."""
        return self.ran.share("move")

    def crossed(self) -> tuple[tuple[int, Boundary], ...]:
        """Each conversion with the number of the layer with weights before which it stands; the last is the output."""
        order = {op.name: place for place, op in enumerate(self.ran.ops)}
        starts = [min(order[op.name] for op in self.ran.of_layer(name) if op.kind != "convert") for name in layers()]
        return tuple((sum(start < order[c.op.name] for start in starts), c) for c in self.crossings)


@lru_cache(maxsize=64)
def ran(chosen: Chosen, defaults: bool) -> Ran:
    """The network with these layers quantized, executed. The first call exports it, which takes seconds.

    defaults: opened as anyone would, not so that it computes what the config says.
    """
    of = sample(NETWORK)
    quantized = frozenset(name for name, on in zip(layers(), chosen, strict=True) if on)
    made: QuantizedModel = convert(of.model, config(of.model, quantized), of.calibration)
    feed = {s.name: x.numpy() for s, x in zip(of.model.inputs, take(of.model, of.data, BATCH), strict=True)}
    options = RuntimeOptions(THREADS, as_simulated=not defaults)
    executed_ops = executed(quantized_onnx(made).proto, feed, options.for_model(made), PROFILED)
    reasons = {row.layer: row.reason for row in made.ledger if not row.quantized}
    crossings = boundaries(executed_ops, [s.name for s in of.model.inputs], reasons)
    return Ran(quantized, executed_ops, crossings, integer_session(made, options))


@cache
def _float() -> Session:
    return float_session(sample(NETWORK).model, RuntimeOptions(THREADS))


@lru_cache(maxsize=64)
def timed(chosen: Chosen, attempt: int, defaults: bool) -> turns.Speed:
    """Speed of a choice against the float network, turn by turn. attempt: another number measures anew.

    A choice that is one of the patterns is timed with them.
    """
    for name, pattern in patterns().items():
        if chosen == pattern:
            return timed_patterns(attempt, defaults)[name]
    return turns.speed(_time({"chosen": ran(chosen, defaults).session}, BUDGET), "chosen", FLOAT)


@lru_cache(maxsize=4)
def timed_patterns(attempt: int, defaults: bool) -> Mapping[str, turns.Speed]:
    """Speed of each pattern against float, all in the same turns."""
    found = {name: ran(chosen, defaults) for name, chosen in patterns().items()}
    timing = _time({name: one.session for name, one in found.items()}, BUDGET_ALL)
    return {name: turns.speed(timing, name, FLOAT) for name in found}


def _time(sessions: Mapping[str, Session], budget: float) -> Timing:
    of = sample(NETWORK)
    inputs = take(of.model, of.data, BATCH)
    calls = {name: call_of(one, inputs) for name, one in {FLOAT: _float(), **sessions}.items()}
    return time_calls(calls, BATCH, THREADS, budget=budget, least=turns.ENOUGH)
