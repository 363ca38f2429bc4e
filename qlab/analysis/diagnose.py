"""What is wrong with a network under a config, worst first: every kind of evidence, held together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from qlab.analysis.advice import advised
from qlab.analysis.fault import Fault, ordered
from qlab.analysis.look_at_activations import activation_faults
from qlab.analysis.look_at_data import data_faults
from qlab.analysis.look_at_errors import error_faults
from qlab.analysis.look_at_weights import weight_faults
from qlab.analysis.propagation import Propagation, propagate
from qlab.analysis.sensitivity import Sensitivity, sensitivity
from qlab.analysis.unmatched import closest, has_tensor
from qlab.analysis.unseen import unseen
from qlab.calibration import Calibration, Progress, calibrate
from qlab.config import QConfigMapping
from qlab.conversion import QuantizedModel, convert
from qlab.data import Dataset
from qlab.errors import InvalidConfig, NonFinite
from qlab.float_side import Tapped
from qlab.forward import pad
from qlab.graph.capture import Model
from qlab.graph.equalize import network_of
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type
from qlab.graph.optypes import OP_TYPES
from qlab.graph.placement import place

COMPARED_SAMPLES = 512  # of the evaluation data, whose statistics are held against the calibration's
# A fault costs something where its part of the layer alone leaves the output less than this many dB; or where it makes
# so much of all the noise, and the output is not nearly exact.
COSTLY, SHARE, EXACT = 25.0, 0.2, 35.0
COARSE_NAMED = 3  # layers; at few bits all are coarse, and the costliest say it
TOO_LARGE = "Its values are too large for float32: scale the data, or look for weights that have grown without bound."
ROUNDED_TO_ZERO = (
    "Keep float what it divides by, or takes the root or logarithm of: on a grid, small values become exactly zero."
)
COMPARE_DATA, LOOK = "compare the data", "look at weights and ranges"


@dataclass(frozen=True)
class Diagnosis:
    """faults: worst first. propagation, costs: the measurements behind; None where the config could not be carried out,
    or quantizes nothing."""

    faults: tuple[Fault, ...]
    propagation: Propagation | None = None
    costs: Sensitivity | None = None

    @property
    def first(self) -> Fault | None:
        return self.faults[0] if self.faults else None


def diagnose(
    model: Model, data: Dataset, mapping: QConfigMapping, calib: Calibration | None = None, *, batch_size: int = 64,
    progress: Progress | None = None,
) -> Diagnosis:  # fmt: skip
    """Look for everything that is known to go wrong. What stops the config from being carried out is found, not raised.

    calib: for this mapping; made from the calibration data where it is None. Simulated.
    Raises InvalidConfig for a config that cannot be, DataMismatch for data that does not fit.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    if broken := tuple(_broken_constants(model)):
        return Diagnosis(broken)
    network = network_of(model, mapping)
    if calib is None:
        try:
            calib = calibrate(model, data, batch_size, progress, mapping=mapping)
        except NonFinite as error:
            return Diagnosis((_non_finite(error, network, "calibration"),))
    found: list[Fault] = []
    tell(COMPARE_DATA, 0, 1)
    evaluated = None
    samples = min(COMPARED_SAMPLES, len(data.evaluation))
    if data.has_split and samples >= (model.fixed_batch or 1):
        part = data.evaluation.subset(range(samples))
        try:
            evaluated = calibrate(network, part, batch_size)
        except NonFinite as error:
            return Diagnosis((_non_finite(error, network, "evaluation"),))
    found += data_faults(model, data, calib, evaluated)
    tell(LOOK, 0, 1)
    placement = place(network, mapping, calib.infinite)
    found += _unobserved(network, mapping, calib)
    if any(f.kind == "never_observed" for f in found):
        found += _unmatched(placement.unmatched, network)
        return Diagnosis(advised(ordered(found), model, mapping, calib))
    try:
        qmodel = convert(model, mapping, calib)
    except NonFinite as error:  # a range beyond float32; what is no number was found before
        return Diagnosis((*found, Fault("non_finite", "error", "", "", 0, str(error), advice=TOO_LARGE)))
    found += _unmatched(qmodel.unmatched, network)
    found += [*weight_faults(qmodel), *activation_faults(qmodel, calib)]
    try:
        propagation = propagate(qmodel, data, batch_size=batch_size, progress=progress)
        costs = sensitivity(
            model, data, mapping, calib, parts=("weight", "activation", "both"), batch_size=batch_size, confirm=0,
            progress=progress,
        )  # fmt: skip
    except InvalidConfig:
        if qmodel.weights or qmodel.activations:
            raise
        return Diagnosis(advised(ordered(found), model, mapping, calib))  # nothing is quantized
    except NonFinite as error:
        found.append(_non_finite_when_quantized(error, qmodel, data, batch_size))
        return Diagnosis(advised(ordered(found), model, mapping, calib))
    found += error_faults(propagation)
    return Diagnosis(advised(ordered(_priced(found, qmodel, costs)), model, mapping, calib), propagation, costs)


def _priced(found: list[Fault], qmodel: QuantizedModel, costs: Sensitivity) -> list[Fault]:
    """With what each costs; what costs nothing is a note, and of one tensor each kind is told once."""
    noise: dict[tuple[str, str], float] = {(row.layer, row.part): 10 ** (-row.sqnr / 10) for row in costs}
    total = sum(value for (_, part), value in noise.items() if part == "both")
    weights = {p.tensor for p in qmodel.placement.weights}
    readers: dict[str, list[str]] = {}
    for point in qmodel.placement.activations:
        for consumer in point.consumers or ():
            readers.setdefault(point.tensor, []).append(qmodel.model.names[consumer])
    out: dict[tuple[str, str], Fault] = {}
    for fault in found:
        if fault.severity == "warning":
            of_weight = fault.tensor in weights or fault.kind == "bias_shift"
            layers = readers.get(fault.layer, [fault.layer])
            own = "both" if fault.kind == "coarse_grid" else "weight" if of_weight else "activation"
            parts = (own, "both")
            cost = max((next((noise[la, p] for p in parts if (la, p) in noise), 0.0) for la in layers), default=0.0)
            sqnr = -10 * math.log10(cost) if cost else math.inf
            costly = sqnr < COSTLY or (sqnr < EXACT and cost >= SHARE * total)
            fault = replace(fault, cost=cost, severity="warning" if costly else "note")
            if fault.kind == "activation_spread" and not costly:
                continue  # channels differ in every network; it is worth a word where it costs something
        key = fault.kind, fault.tensor
        if key not in out or fault.value > out[key].value:
            out[key] = fault
    # A tensor that something particular is wrong with is not also told to be coarse.
    told = {f.layer for f in out.values() if f.severity == "warning" and f.kind != "coarse_grid"}
    coarse = [f for f in out.values() if f.kind == "coarse_grid" and f.severity == "warning" and f.layer not in told]
    worst = sorted(coarse, key=lambda f: -f.cost)[:COARSE_NAMED]
    return [f for f in out.values() if f.kind != "coarse_grid"] + worst


def _broken_constants(model: Model) -> Iterator[Fault]:
    """Weights and biases with NaN or Inf, other constants with NaN: an attention mask may hold infinities."""
    seen: set[object] = set()
    for node in model.ops:
        for constant in node.all_input_nodes:
            value = attribute(model.graph_module, constant)
            if value is None or not value.is_floating_point() or constant.target in seen:
                continue
            seen.add(constant.target)
            learned = OP_TYPES[op_type(node)].role in ("weighted", "lookup", "recurrent")
            bad = int((~torch.isfinite(value) if learned else torch.isnan(value)).sum())
            if not bad:
                continue
            layer, name = model.names[node], constant.meta.get("parameter_name", constant.name)
            sentence = (
                f"{bad:,} of the {value.numel():,} values of {name}, which {layer} reads, "
                f"{'is' if bad == 1 else 'are'} NaN{' or Inf' if learned else ''}: the network is broken before "
                "anything is quantized."
            )
            advice = "The weights themselves are broken: export the network again, from a checkpoint that is sound."
            yield Fault("non_finite", "error", name, layer, 0, sentence, advice=advice)


def _non_finite(error: NonFinite, network: Model, where: str) -> Fault:
    tensor = error.tensor or ""
    if any(spec.name == tensor for spec in network.inputs):
        advice = "Clean the data: find the samples that hold NaN or Inf and leave them out."
    elif error.first_sample is not None:
        advice = (
            f"Look at the samples from {error.first_sample} on: {tensor} is the first tensor that is no number for "
            "them, so what computes it divides by zero, takes the root or the logarithm of a negative number, or "
            "overflows."
        )
    else:
        advice = TOO_LARGE
    first = float(error.first_sample or 0)
    sentence = f"In the {where} data: {error}" if tensor else str(error)
    return Fault("non_finite", "error", tensor, tensor, first, sentence, advice=advice)


def _non_finite_when_quantized(error: NonFinite, qmodel: QuantizedModel, data: Dataset, batch_size: int) -> Fault:
    """Float gives numbers and the quantized network does not. The tensor is named where the first batch shows it."""
    size = qmodel.model.fixed_batch or min(batch_size, len(data.evaluation))
    _, inputs, _ = data.evaluation.batch(0, size)
    first: list[str] = []

    def look(name: str, value: torch.Tensor) -> None:
        # Infinities of masks do not count.
        if not first and value.is_floating_point():
            bad = torch.isnan(value) if name in qmodel.infinite else ~torch.isfinite(value)
            first.extend([name] if bool(bad.any()) else [])

    names = {node.name: name for node, name in qmodel.model.names.items()}
    taps = {node: names[node.name] for node in qmodel.graph_module.graph.nodes if node.name in names}
    with torch.no_grad():
        Tapped(qmodel.graph_module, taps, look).run(*(pad(inputs, size) if len(inputs[0]) < size else inputs))
    tensor = first[0] if first else None
    if tensor is None:
        return Fault("non_finite", "error", "", "", 0, f"Quantized, {error}", advice=ROUNDED_TO_ZERO)
    sentence = (
        f"In float every value is a number; quantized, {tensor} is the first tensor that holds NaN or Inf, in the "
        "first batch of the evaluation data."
    )
    return Fault("non_finite", "error", tensor, tensor, 0, sentence, advice=ROUNDED_TO_ZERO)


def _unobserved(network: Model, mapping: QConfigMapping, calib: Calibration) -> Iterator[Fault]:
    for one in unseen(network, place(network, mapping, calib.infinite), calib):
        if one.zeros:
            continue  # look_at_activations says it
        sentence = (
            f"{one.tensor} needs a range for {', '.join(one.layers)}, and the calibration of {calib.samples:,} "
            "samples holds nothing of it."
        )
        advice = "Calibrate with data that reaches it."
        yield Fault("never_observed", "error", one.tensor, one.layers[0], 0, sentence, advice=advice)


def _unmatched(rules: Iterable[str], network: Model) -> Iterator[Fault]:
    for rule in rules:
        by, _, pattern = rule.partition(" ")
        if by == "range" and has_tensor(pattern, network):
            sentence = f"{pattern} is on no grid under this config, so the range that was set for it does nothing."
            yield Fault("unused_range", "note", pattern, pattern, 0, sentence)
            continue
        near = closest(pattern, network)
        sentence = f"The rule for {rule.replace('by_name', 'layer name').replace('by_type', 'op type')} matches nothing"
        sentence += f"; there is {', '.join(near)}." if near else "."
        yield Fault("unmatched_rule", "error", rule, near[0] if near else "", 0, sentence)
