"""A hunt through a network that was quantized badly: what each tool of the engine says of it, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from qlab.analysis.advice import try_remedies
from qlab.analysis.diagnose import COSTLY, Diagnosis, diagnose
from qlab.analysis.propagation import Propagation, TensorError, propagate
from qlab.analysis.sensitivity import Sensitivity, sensitivity
from qlab.calibration import Calibration, calibrate
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import QuantizedModel, convert
from qlab.data import Dataset
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.graph.capture import Model
from qlab.lessons.samples import Sample, sample
from qlab.preset import presets
from qlab.quant.stats import TensorStats

SAMPLES = 128  # of the evaluation data, which the tools of steps 3 to 5 look at
TRIED_SAMPLES = 512  # of the evaluation data, on which remedies are tried
FEW = 2  # samples of the careless calibration
CUT = 0.03  # of the largest value seen, where the range by hand ends
MOST = 0.99  # of the weights, whose codes are counted
Culprit = Literal["outlier", "channels", "cut", "calibration", "data", "coarse", "nothing"]


@dataclass(frozen=True)
class Case:
    """What a person is told, and what was done to it. story: the complaint.

    calibrated: the samples the calibration saw. mean, std: of the preprocessing, None as in training. cut: a tensor
    whose range was set by hand to `CUT` of its largest value.
    """

    title: str
    story: str
    network: str
    mapping: QConfigMapping
    calibrated: Literal["all", "darkest", "one class"] = "all"
    mean: float | None = None
    std: float | None = None
    cut: str | None = None


def _per_tensor(bits: int) -> QConfigMapping:
    return QConfigMapping(default=QConfig(QuantSpec(bits, "per_tensor_symmetric"), QuantSpec(8)))


CASES: Mapping[str, Case] = {
    "1": Case(
        "1 · linear layers, 4 bits",
        "Three linear layers read a digit from 64 grey values. Weights have 4 bits per tensor, activations 8. “In "
        "float it was fine. Quantized, it guesses.”",
        "outlier_mlp", _per_tensor(4),
    ),
    "2": Case(
        "2 · depthwise network, 8 bits",
        "A small network with depthwise convolutions, as phones run them, in 8 bits per tensor. “It is 8 bits. 8 bits "
        "are always enough, are they not?”",
        "depthwise_digits", presets["arm"],
    ),
    "3": Case(
        "3 · residual network, 8 bits",
        "A residual network, weights in 8 bits per channel. “Since we quantized it and moved it to the new program, it "
        "is wrong more often. Quantization must be to blame.”",
        "residual_digits", presets["onnxruntime"], mean=0.2, std=0.4,
    ),
    "4": Case(
        "4 · convolution network, 8 bits",
        "Four convolutions, weights in 8 bits per channel, activations from minimum to maximum. “Others get this "
        "network into 8 bits without a loss. We do not.”",
        "conv_digits", presets["onnxruntime"], calibrated="darkest",
    ),
    "5": Case(
        "5 · residual network, 8 bits, tuned",
        "A residual network in 8 bits per channel. “It was good last week. Then several people worked on the config.”",
        "residual_digits", presets["onnxruntime"], cut="layer2.0.relu@1",
    ),
    "6": Case(
        "6 · residual network, a lazy calibration",
        "A residual network in 8 bits per channel. “The calibration saw images of a single digit. No wonder that the "
        "accuracy is another one now.”",
        "residual_digits", presets["onnxruntime"], calibrated="one class",
    ),
    "7": Case(
        "7 · residual network, 3 bits",
        "A residual network, weights in 3 bits per tensor. “It should become as small as it can.”",
        "residual_digits", _per_tensor(3),
    ),
}  # fmt: skip
# A kind of fault that `diagnose` names -> who did it.
_CULPRITS: Mapping[str, Culprit] = {
    "outlier_weight": "outlier", "wasted_range": "outlier",
    "weight_spread": "channels", "norm_spread": "channels", "activation_spread": "channels",
    "saturated": "cut", "unlike_evaluation": "calibration", "unlike_training": "data",
    "bias_shift": "coarse", "coarse_grid": "coarse",
}  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """The case as it was handed over. data: with its preprocessing; few: the same with `SAMPLES` to evaluate on."""

    case: Case
    model: Model
    data: Dataset
    few: Dataset
    mapping: QConfigMapping
    calibration: Calibration
    quantized: QuantizedModel


@lru_cache(maxsize=len(CASES))
def broken(key: str) -> Broken:
    """Builds a case from its sample network. key: of CASES."""
    case = CASES[key]
    made: Sample = sample(case.network)
    data = made.data
    if case.mean is not None and case.std is not None:
        data = replace(data, mean=(case.mean,), std=(case.std,))
    calibration = calibrate(made.model, data.calibration.subset(_calibrated(case, data.calibration)))
    mapping = case.mapping
    if case.cut is not None:
        mapping = mapping.replace(ranges={case.cut: (0.0, CUT * calibration[case.cut].maximum)})
    quantized = convert(made.model, mapping, calibration)
    return Broken(case, made.model, data, _evaluated_on(data, SAMPLES), mapping, calibration, quantized)


def _calibrated(case: Case, part: Dataset) -> np.ndarray:
    if case.calibrated == "one class":
        assert part.targets is not None
        return np.flatnonzero(part.targets == 1)
    if case.calibrated == "darkest":
        return np.argsort(part.inputs[0].reshape(len(part), -1).mean(1), kind="stable")[:FEW]
    return np.arange(len(part))


def _evaluated_on(data: Dataset, samples: int) -> Dataset:
    """The same calibration part, and the first samples of the evaluation part."""
    assert data.calibration_index is not None
    assert data.evaluation_index is not None
    count, evaluated = len(data.calibration_index), data.evaluation_index[:samples]
    chosen = data.subset(np.concatenate([data.calibration_index, evaluated]))
    return replace(
        chosen, calibration_index=np.arange(count), evaluation_index=np.arange(count, count + len(evaluated))
    )


@dataclass(frozen=True)
class Accuracy:
    """float: on the data of the case; quantized: the same, simulated; promised: float on data as in training.

    quantization: float against quantized; preparation: promised against float; all on the same samples.
    """

    float: Evaluation
    quantized: Evaluation
    promised: Evaluation
    quantization: Comparison
    preparation: Comparison


@lru_cache(maxsize=len(CASES))
def accuracy(key: str) -> Accuracy:
    """Steps 1 and 2: what float and quantized network do on all evaluation samples."""
    found = broken(key)
    promised = sample(found.case.network).float_evaluation
    here = promised if found.case.mean is None else evaluate(found.model, found.data)
    quantized = evaluate(found.quantized, found.data, here, sqnr_samples=0)
    targets = found.data.evaluation.targets
    return Accuracy(
        here, quantized, promised, compare(here, quantized, targets), compare(promised, here, targets)
    )  # fmt: skip


@lru_cache(maxsize=len(CASES))
def layers(key: str) -> Sensitivity:
    """Step 3: each layer alone quantized, its weight alone and its activations alone, on `SAMPLES` samples."""
    found = broken(key)
    return sensitivity(
        found.model, found.few, found.mapping, found.calibration, parts=("both", "weight", "activation")
    )  # fmt: skip


@lru_cache(maxsize=len(CASES))
def errors(key: str) -> Propagation:
    """Step 3: where the error is made, and where it shows, on `SAMPLES` samples."""
    found = broken(key)
    return propagate(found.quantized, found.few, SAMPLES)


@dataclass(frozen=True)
class Suspect:
    """The tensor to look at: of the guiltiest layer its weight, or the tensor in which most error is made.

    held: the float weight, or what the calibration knows of the activation. spec: its grid; axis: of
    its channels. ends: lowest and highest
    value of the grid, None where each channel has one. spread: widest channel over the median one, None without
    channels. tail: share of the range that the largest thousandth of the values takes. levels: codes that 99 % of the
    weights share, of how many there are; None of an activation. row: the error of an activation, None of a weight.
    """

    layer: str
    part: str
    tensor: str
    held: torch.Tensor | TensorStats
    spec: QuantSpec
    axis: int
    ends: tuple[float, float] | None
    spread: float | None
    tail: float
    levels: tuple[int, int] | None
    row: TensorError | None


@lru_cache(maxsize=len(CASES))
def suspect(key: str) -> Suspect:
    """Step 4: which tensor of the guiltiest layer, by which of its parts costs more when it alone is quantized."""
    found, rows = broken(key), layers(key)
    layer = rows.ranked()[0].layer
    weight, activation = (rows.row(layer, part) for part in ("weight", "activation"))
    point = next((p for p in found.quantized.placement.weights if p.layer == layer), None)
    if weight is not None and point is not None and (activation is None or weight.sqnr <= activation.sqnr):
        return _weight(found, layer, point.tensor, point.axis, point.spec)
    return _activation(found, layer, errors(key).made)


def _weight(found: Broken, layer: str, tensor: str, axis: int, spec: QuantSpec) -> Suspect:
    values = sample(found.case.network).weights[tensor]
    quantized = next(q for name, q in found.quantized.weights.items() if tensor in (name, f"{name}.weight"))
    size = values.abs()
    order = size.flatten().argsort()
    codes = quantized.codes.flatten()[order[: int(MOST * len(order))]]
    widest = size.movedim(axis, 0).flatten(1).amax(1)
    ends = None
    if spec.granularity == "tensor":
        ends = float(quantized.qparams.low), float(quantized.qparams.high)
    return Suspect(
        layer, "weight", tensor, values, spec, axis, ends, float(widest.max() / widest.median().clamp(min=1e-12)),
        1 - float(size.flatten()[order[int(0.999 * (len(order) - 1))]] / size.max()),
        (len(codes.unique()), quantized.qparams.levels), None,
    )  # fmt: skip


def _activation(found: Broken, layer: str, row: TensorError) -> Suspect:
    held = found.calibration[row.tensor]
    point = next(p for p in found.quantized.placement.activations if p.tensor == row.tensor)
    ends = found.mapping.ranges.get(row.tensor)
    if ends is None:
        qparams = found.calibration.qparams(row.tensor, point.spec)
        ends = float(qparams.low), float(qparams.high)
    spread = None
    if held.channel_minimum is not None and held.channel_maximum is not None:
        reach = np.maximum(np.abs(held.channel_minimum), np.abs(held.channel_maximum))
        spread = float(reach.max() / max(np.median(reach), 1e-12))
    d = held.distribution("tensor")
    assert d.values is not None
    assert d.counts is not None
    size = np.abs(d.values[0])
    order = np.argsort(size)
    reached = np.cumsum(d.counts[0][order])
    bulk = size[order][np.searchsorted(reached, 0.999 * reached[-1])]
    tail = 1 - float(bulk / max(size.max(), 1e-12))
    return Suspect(layer, "activation", row.tensor, held, point.spec, 0, ends, spread, tail, None, row)


@lru_cache(maxsize=len(CASES))
def diagnosis(key: str) -> Diagnosis:
    """Step 5: everything the engine finds, worst first."""
    found = broken(key)
    return diagnose(found.model, found.few, found.mapping, found.calibration)


def culprit(key: str) -> Culprit:
    """Who did it: nothing, where neither quantization nor the data cost more than chance; else what the first fault
    is about."""
    measured = accuracy(key)
    if not measured.quantization.significant and not measured.preparation.significant:
        return "nothing"
    first = diagnosis(key).first
    assert first is not None, "an accuracy that fell beyond chance has a cause that is found"
    return _CULPRITS[first.kind]


def guilty(key: str) -> bool:
    """Whether any layer, alone quantized, leaves the output less than `COSTLY` dB."""
    return layers(key).ranked()[0].sqnr < COSTLY


@dataclass(frozen=True)
class Cure:
    """Something that was tried. against: before and after, on the same samples."""

    title: str
    sentence: str
    evaluation: Evaluation
    against: Comparison

    @property
    def accuracy(self) -> float:
        assert self.evaluation.accuracy is not None
        return self.evaluation.accuracy


@dataclass(frozen=True)
class Cures:
    """tried: best first; none where nothing has to be cured. before, float: accuracies on the same `samples`."""

    tried: tuple[Cure, ...]
    before: float
    float: float
    samples: int


@lru_cache(maxsize=len(CASES))
def cures(key: str) -> Cures:
    """Step 6: remedies of the first fault that has any, and where data or calibration are to blame their cure; on the
    first `TRIED_SAMPLES` of the evaluation part, simulated."""
    found, who = broken(key), culprit(key)
    part = _evaluated_on(found.data, TRIED_SAMPLES)
    targets = part.evaluation.targets
    before = accuracy(key).quantized.first(TRIED_SAMPLES, targets)
    promised = accuracy(key).promised.first(TRIED_SAMPLES, targets)
    tried: list[Cure] = []
    if who in ("data", "calibration"):
        tried.append(_data_cure(found, who, before))
    if who not in ("data", "nothing"):
        first = next((fault for fault in diagnosis(key).faults if fault.remedies), None)
        remedies = () if first is None else first.remedies
        for one in try_remedies(
            found.model, part, found.mapping, remedies, found.calibration, reference=promised
        ):  # fmt: skip
            if one.evaluation is not None and one.against is not None:
                tried.append(Cure(one.remedy.title, one.remedy.sentence, one.evaluation, one.against))
    assert before.accuracy is not None
    assert promised.accuracy is not None
    ranked = sorted(tried, key=lambda cure: -cure.accuracy)
    return Cures(tuple(ranked), before.accuracy, promised.accuracy, before.n)


def _data_cure(found: Broken, who: Culprit, before: Evaluation) -> Cure:
    """The same config with data prepared, or ranges calibrated, as they should have been."""
    made = sample(found.case.network)
    if who == "data":
        title, sentence = (
            "Prepare the data as in training",
            "The mean and the spread that the network was trained with.",
        )
        data, calibration = made.data, made.calibration
    else:
        count = len(found.data.calibration)
        title = f"Calibrate on all {count:,} samples"
        sentence = f"Ranges from {count:,} mixed samples instead of {found.calibration.samples}."
        data, calibration = found.data, calibrate(found.model, found.data)
    part = _evaluated_on(data, TRIED_SAMPLES)
    after = evaluate(convert(found.model, found.mapping, calibration), part, sqnr_samples=0)
    return Cure(title, sentence, after, compare(before, after, part.evaluation.targets))
