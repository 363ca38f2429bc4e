"""Which layer costs how much: one layer quantized and all others float, or one float and all others quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qlab.analysis.reuse import Numbering, Plan, Values, lasting
from qlab.calibration import Calibration, Progress
from qlab.config import QConfig, QConfigMapping
from qlab.conversion import QuantizedModel, convert
from qlab.data import Dataset
from qlab.errors import DataMismatch, InvalidConfig
from qlab.evaluation import first_tensor, predict, wilson_interval
from qlab.float_side import power
from qlab.forward import pad
from qlab.graph.capture import Model
from qlab.memory import keep_freed_memory

Mode = Literal["only", "all_but"]
Part = Literal["both", "weight", "activation"]
MODES: tuple[Mode, ...] = ("only", "all_but")
PARTS: tuple[Part, ...] = ("both", "weight", "activation")
PROXY_SAMPLES = 128
SENSITIVITY = "sensitivity"


@dataclass(frozen=True)
class Measured:
    """One variant on n samples. accuracy: share of right predictions with its 95 % interval, None without labels.

    agreement: share of predictions equal to float's. loss: mean cross-entropy against the labels, without them against
    float's predictions. sqnr: of the network's output against float's, in dB.
    """

    n: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    agreement: float
    loss: float
    sqnr: float


@dataclass(frozen=True)
class SensitivityRow:
    """What quantizing one layer costs, or sparing it brings. part: what of the layer. weights: how many it has."""

    layer: str
    op: str
    part: Part
    weights: int
    measured: Measured

    @property
    def accuracy(self) -> float | None:
        return self.measured.accuracy

    @property
    def loss(self) -> float:
        return self.measured.loss

    @property
    def sqnr(self) -> float:
        return self.measured.sqnr

    @property
    def n(self) -> int:
        return self.measured.n


@dataclass(frozen=True)
class Sensitivity(Sequence[SensitivityRow]):
    """rows: in the order of the network. base: float for "only", all quantized for "all_but"; float: the network as it
    was. All measured on the samples of `base.n`, rows that were not confirmed on fewer."""

    mode: Mode
    rows: tuple[SensitivityRow, ...]
    base: Measured
    float: Measured

    def __getitem__(self, i: Any) -> Any:
        return self.rows[i]

    def __len__(self) -> int:
        return len(self.rows)

    def ranked(self, part: Part = "both") -> list[SensitivityRow]:
        """Guiltiest first, by the output's SQNR: lowest where the layer alone is quantized, highest where it is spared.
        Those seen on all samples come before those that were not confirmed."""
        sign = 1 if self.mode == "only" else -1
        rows = [row for row in self.rows if row.part == part]
        return sorted(rows, key=lambda row: (-row.n, sign * row.sqnr))


@dataclass(frozen=True)
class _Variant:
    layer: str
    part: Part
    plan: Plan


def sensitivity(
    model: Model, data: Dataset, mapping: QConfigMapping, calib: Calibration | None = None, mode: Mode = "only", *,
    parts: Sequence[Part] = ("both",), batch_size: int = 64, confirm: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:  # fmt: skip
    """Quantize each layer alone ("only"), or leave each alone float ("all_but"), and measure on the evaluation data.

    parts: the whole layer, its weight, its activations. confirm: rank all layers on the first 128 samples and measure
    only so many of the worst on all; None measures all of them on all. Simulated, with the numbers that
    `evaluate(convert(...))` gives: what a variant computes like the base is taken from there.
    Source of the method: HAWQ-style per-layer analysis as in AIMET QuantAnalyzer, Siddegowda et al. 2022.
    Raises InvalidConfig (nothing is quantized, unknown mode), DataMismatch, and what `convert` raises.
    """
    if mode not in MODES or any(part not in PARTS for part in parts):
        raise InvalidConfig(f"mode is one of {', '.join(MODES)} and a part one of {', '.join(PARTS)}.")
    whole = convert(model, mapping, calib)
    ops = {row.layer: row.op for row in whole.ledger if row.quantized and row.mode is not None}
    if not ops:
        raise InvalidConfig("this config quantizes no layer, so none can be sensitive: choose a preset.")
    wanted = [(layer, part) for layer in ops for part in parts if _alone(whole, layer, part, mode) is not None]
    run = _Run(model, whole, data, mode, batch_size, progress)
    count = len(data.evaluation)
    proxy = confirm is not None and confirm < len(wanted) and count > PROXY_SAMPLES
    first = PROXY_SAMPLES if proxy else count
    rounds = [(first, len(wanted))] + ([(count, confirm)] if proxy and confirm else [])
    run.total = sum(-(-samples // run.size) * variants for samples, variants in rounds)
    made = [_Variant(layer, part, run.plan(_alone(whole, layer, part, mode), calib)) for layer, part in wanted]
    found = run.measure(made, first)
    rows = {
        (v.layer, v.part): SensitivityRow(v.layer, ops[v.layer], v.part, _weights(whole, v.layer), m)
        for v, m in zip(made, found.variants, strict=True)
    }
    if proxy and confirm:
        ranked = sorted(made, key=lambda v: (1 if mode == "only" else -1) * rows[v.layer, v.part].sqnr)
        worst = ranked[:confirm]
        found = run.measure(worst, count)
        for v, m in zip(worst, found.variants, strict=True):
            rows[v.layer, v.part] = replace(rows[v.layer, v.part], measured=m)
    return Sensitivity(mode, tuple(rows.values()), found.base, found.float)


def _alone(whole: QuantizedModel, layer: str, part: Part, mode: Mode) -> QConfigMapping | None:
    """The config in which this part of this layer is the exception; None where there is no such thing."""
    op = next(row.op for row in whole.ledger if row.layer == layer)
    config = whole.mapping.resolve(layer, op).qconfig
    assert config is not None
    touched, rest = _without(config, part), _only(config, part)
    if part != "both" and (rest is None or (part == "weight" and not _weights(whole, layer))):
        return None
    if mode == "only":
        return whole.mapping.replace(default=None, by_type={}, by_name={layer: rest})
    return whole.mapping.replace(by_name={**whole.mapping.by_name, layer: touched})


def _only(config: QConfig, part: Part) -> QConfig | None:
    """The config with this part alone quantized."""
    if part == "both":
        return config
    if part == "weight":
        return None if config.weight is None else QConfig(config.weight, mode="weight_only")
    return QConfig(activation=config.activation) if config.mode == "static" else None


def _without(config: QConfig, part: Part) -> QConfig | None:
    """The config with this part float."""
    return None if part == "both" else _only(config, "activation" if part == "weight" else "weight")


def _weights(whole: QuantizedModel, layer: str) -> int:
    own = (tensor for name, tensor in whole.weights.items() if name == layer or name.startswith(f"{layer}."))
    return sum(tensor.codes.numel() for tensor in own)


@dataclass
class _Found:
    base: Measured
    float: Measured
    variants: list[Measured]


class _Run:
    """A base, and variants of it, over the same batches."""

    def __init__(
        self, model: Model, whole: QuantizedModel, data: Dataset, mode: Mode, batch_size: int, progress: Progress | None
    ):  # fmt: skip
        self.given, self.whole, self.mode, self.part, self.progress = model, whole, mode, data.evaluation, progress
        if len(self.part) == 0:
            raise DataMismatch("there is no evaluation data: give at least one sample.")
        self.model = whole.reference
        self.size = self.model.fixed_batch or batch_size
        self.total = self.done = 0
        self.numbering = Numbering()
        self.base = self.model.graph_module if mode == "only" else whole.graph_module
        self.numbers = self.numbering.of(self.base)
        self.known = lasting(self.base, self.numbers)
        keep_freed_memory()

    def plan(self, mapping: QConfigMapping | None, calib: Calibration | None) -> Plan:
        assert mapping is not None
        gm = convert(self.given, mapping, calib).graph_module
        return Plan(gm, self.numbering.of(gm), self.known)

    def measure(self, variants: Sequence[_Variant], samples: int) -> _Found:
        base_plan = Plan(self.base, self.numbers)
        same = self.mode == "only"
        float_plan = base_plan if same else Plan(self.model.graph_module, self.numbering.of(self.model.graph_module))
        read = frozenset().union(*(v.plan.taken for v in variants)) & self.known
        of_base, of_float = _Score(), _Score()
        scores = [_Score() for _ in variants]
        for number in range(-(-samples // self.size)):
            first = number * self.size
            _, inputs, targets = self.part.batch(first, min(self.size, samples - first))
            count = len(inputs[0])
            inputs = pad(inputs, self.size) if self.model.fixed_batch and count < self.size else inputs
            self.model.check_inputs(inputs)
            where = f"batch {number}"
            known: Values = base_plan.run(inputs, {}, read)
            base_output = first_tensor(base_plan.result())[:count].clone()
            if same:
                output = base_output
            else:
                float_plan.run(inputs, {})
                output = first_tensor(float_plan.result())[:count]
            right = _Right(output, targets, count, where)
            of_float.add(output, right)
            of_base.add(base_output, right)
            for variant, score in zip(variants, scores, strict=True):
                self._tell()
                variant.plan.run(inputs, known)
                score.add(first_tensor(variant.plan.result())[:count], right)
        return _Found(of_base.measured(), of_float.measured(), [s.measured() for s in scores])

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(SENSITIVITY, self.done, self.total)
        self.done += 1


class _Right:
    """What a batch is held against: float's output and predictions, and the labels where there are any."""

    def __init__(self, output: Tensor, targets: Tensor | None, count: int, where: str):
        self.output, self.where, self.targets, self.count = output, where, targets, count
        self.predictions = predict(output, targets, count, where)
        self.labels = None if targets is None else targets[:count].numpy()
        self.power = power(output)


class _Score:
    """Adds up what one network gives over the batches."""

    def __init__(self) -> None:
        self.n = self.predicted = self.right = self.same = 0
        self.labelled = True
        self.loss = self.signal = self.noise = 0.0

    def add(self, output: Tensor, held: _Right) -> None:
        predictions = predict(output, held.targets, held.count, held.where)
        labels = held.labels if held.labels is not None else held.predictions
        self.labelled = held.labels is not None
        self.n += held.count
        self.predicted += predictions.size
        self.same += int((predictions == held.predictions).sum())
        if self.labelled and labels.shape == predictions.shape:
            self.right += int((predictions == labels).sum())
        self.loss += _loss(output, torch.from_numpy(np.asarray(labels)), predictions.shape)
        self.signal += held.power
        self.noise += power(output - held.output)

    def measured(self) -> Measured:
        accuracy = self.right / self.predicted if self.labelled else None
        interval = wilson_interval(self.right, self.predicted) if self.labelled else None
        noise, signal = self.noise, self.signal
        sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
        return Measured(self.n, accuracy, interval, self.same / self.predicted, self.loss / self.predicted, sqnr)


def _loss(output: Tensor, labels: Tensor, shape: tuple[int, ...]) -> float:
    """Summed cross-entropy in nats: over the class axis, or of one logit a sample."""
    logits = output.double()
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        given = labels.reshape(-1).double()
        return float(torch.nn.functional.binary_cross_entropy_with_logits(logits.reshape(-1), given, reduction="sum"))
    if tuple(logits.shape[:-1]) == tuple(shape):
        logits = logits.reshape(-1, logits.shape[-1])
    else:  # classes on axis 1
        logits = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    return float(cross_entropy(logits, labels.reshape(-1).long(), reduction="sum"))
