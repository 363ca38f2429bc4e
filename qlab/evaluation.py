"""How good a model is on data, and how far a quantized one is from its float original."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.calibration import Progress
from qlab.conversion import QuantizedModel
from qlab.data import Dataset
from qlab.errors import DataMismatch, InvalidConfig, NonFinite
from qlab.forward import Forward
from qlab.graph.capture import Model
from qlab.memory import keep_freed_memory

BACKENDS = ("simulated", "integer")
SQNR_SAMPLES = 256


@dataclass(frozen=True)
class Evaluation:
    """What one model does on one data set.

    accuracy: share of right predictions in 0..1, with its 95 % Wilson interval; None without labels.
    agreement: share of predictions equal to the reference's; None without a reference.
    sqnr: layer -> signal to quantization noise of its output in dB, errors of earlier layers included.
    predictions [n] (or [n, positions]); n counts samples, predicted counts predictions.
    """

    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    agreement: float | None
    sqnr: Mapping[str, float]
    n: int
    predicted: int
    predictions: np.ndarray | None = field(repr=False)
    backend: str = "simulated"

    def first(self, samples: int, targets: np.ndarray | None) -> Evaluation:
        """The same evaluation cut to its first samples: predictions, accuracy and interval are theirs, agreement and
        SQNR, which cannot be cut, are left out.

        targets: labels of all samples or of those first ones, [n] or [n, positions]; None without labels.
        Raises DataMismatch when it holds fewer samples, no predictions, or labels of another shape.
        """
        if self.predictions is None:
            raise DataMismatch("this evaluation holds no predictions, so it cannot be cut: evaluate again.")
        if not 1 <= samples <= self.n:
            raise DataMismatch(f"this evaluation is of {self.n:,} samples: it has no first {samples:,}.")
        predictions = self.predictions[:samples]
        accuracy, interval = None, None
        if targets is not None:
            accuracy, interval = _accuracy(predictions, np.asarray(targets)[:samples], None)
        return Evaluation(accuracy, interval, None, {}, samples, predictions.size, predictions, self.backend)

    def to_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval) if self.accuracy_interval else None,
            "agreement": self.agreement,
            "sqnr": {k: _json_number(v) for k, v in self.sqnr.items()},
            "n": self.n,
            "predicted": self.predicted,
            "predictions": None if self.predictions is None else self.predictions.tolist(),
            "backend": self.backend,
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Evaluation:
        interval = d["accuracy_interval"]
        return cls(
            accuracy=d["accuracy"],
            accuracy_interval=(interval[0], interval[1]) if interval else None,
            agreement=d["agreement"],
            sqnr={k: float(v) for k, v in d["sqnr"].items()},
            n=d["n"],
            predicted=d["predicted"],
            predictions=None if d["predictions"] is None else np.asarray(d["predictions"]),
            backend=d["backend"],
        )


@dataclass(frozen=True)
class Comparison:
    """Float against quantized on the same samples.

    lost: right before, wrong after; gained: the other way; changed: predictions that differ at all.
    p: exact McNemar test, two-sided; None without labels. Indices count predictions in evaluation order.
    """

    lost: int
    gained: int
    changed: int
    n: int
    p: float | None
    lost_indices: tuple[int, ...]
    gained_indices: tuple[int, ...]
    changed_indices: tuple[int, ...]

    @property
    def significant(self) -> bool | None:
        return None if self.p is None else self.p < 0.05

    @property
    def verdict(self) -> str:
        """The paired comparison in words."""
        if self.p is None:
            return f"{self.changed} of {self.n} predictions changed; without labels nothing says which are better."
        if self.changed == 0:
            return f"every prediction is the same on {self.n:,} samples"
        if not self.significant:
            return f"not distinguishable from float on {self.n:,} samples (p = {self.p:.2g})"
        direction = "worse" if self.lost > self.gained else "better"
        p = "p < 0.0001" if self.p < 1e-4 else f"p = {self.p:.2g}"
        return f"{direction} than float, beyond chance on {self.n:,} samples ({p})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "lost": self.lost, "gained": self.gained, "changed": self.changed, "n": self.n, "p": self.p,
            "significant": self.significant, "verdict": self.verdict, "lost_indices": list(self.lost_indices),
            "gained_indices": list(self.gained_indices), "changed_indices": list(self.changed_indices),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Comparison:
        given = ((name, d[name]) for name in cls.__dataclass_fields__)
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given}
        return cls(**fields)


def evaluate(
    model_or_qmodel: Model | QuantizedModel, data: Dataset, reference: Model | Evaluation | None = None,
    batch_size: int = 64, backend: str = "simulated", progress: Progress | None = None, *,
    sqnr_samples: int = SQNR_SAMPLES, keep_going: Callable[[np.ndarray], bool] | None = None,
) -> Evaluation:  # fmt: skip
    """Run the evaluation part of the data and measure.

    reference: what agreement is measured against; a QuantizedModel is compared with its own float model unless an
    Evaluation of it is given, which saves running it again. SQNR per layer is measured on the first `sqnr_samples`.
    backend: "simulated" runs fake quantization in torch, "integer" the exported graph in ONNX Runtime; SQNR is then
    that of the layers whose output lies on a static grid. A model that was loaded without its float original has no
    SQNR, and agreement only with a `reference` that is given.
    keep_going: asked after each batch, in order, with all predictions so far; with False the evaluation ends there, and
    everything in it is of the samples seen.
    Raises DataMismatch (labels that do not fit), NonFinite (naming the first batch), InvalidConfig, and for "integer"
    UnsupportedModel naming the op that has no ONNX form.
    """
    if backend not in BACKENDS:
        raise InvalidConfig(f"backend {backend!r} is not known: use one of {', '.join(BACKENDS)}.")
    if backend == "integer" and not isinstance(model_or_qmodel, QuantizedModel):
        raise InvalidConfig("a float model has no integers to run on: convert it first, or use backend simulated.")
    part = data.evaluation
    if len(part) == 0:
        raise DataMismatch("there is no evaluation data: give at least one sample.")
    keep_freed_memory()
    forward = Forward(model_or_qmodel, part, batch_size, backend, sqnr_samples)
    model, total = forward.model, forward.batches
    quantized = isinstance(model_or_qmodel, QuantizedModel)
    if reference is None and isinstance(model_or_qmodel, QuantizedModel) and model_or_qmodel.has_float_original:
        reference = model
    other = reference if isinstance(reference, Model) and reference is not model_or_qmodel else None
    predictions: list[np.ndarray] = []
    of_reference: list[np.ndarray] = []
    stage = f"evaluate {'float' if not quantized else 'quantized' if backend == 'simulated' else 'integer'}"
    number = done = 0
    with forward.run() as batches:
        for number in range(total):
            if progress is not None:
                progress(stage, number, total)
            batch = next(batches)
            where = f"batch {number}, samples {done} to {done + batch.count - 1}"
            predictions.append(predict(batch.output, batch.targets, batch.count, where))
            if other is not None:
                known = batch.own_float is not None and other is model
                output = batch.own_float if known else other(*batch.inputs)
                of_reference.append(predict(output, batch.targets, batch.count, f"batch {number} of the reference"))
            done += batch.count
            if keep_going is not None:
                predictions = [np.concatenate(predictions)]
                if not keep_going(predictions[0]):
                    break
    if progress is not None:
        progress(stage, total, total)
    seen = np.concatenate(predictions)
    against = reference.predictions if isinstance(reference, Evaluation) else None
    if against is not None and done < len(part) == len(against):
        against = against[:done]
    elif of_reference:
        against = np.concatenate(of_reference)
    accuracy, interval = None, None
    if part.targets is not None:
        accuracy, interval = _accuracy(seen, part.targets[:done], model.n_classes)
    agreement = None
    if against is not None and against.shape == seen.shape:
        agreement = float((against == seen).mean())
    sqnr = forward.taps.sqnr(number + 1) if forward.taps else {}
    return Evaluation(accuracy, interval, agreement, sqnr, done, seen.size, seen, backend)


def compare(reference: Evaluation, other: Evaluation, targets: np.ndarray | None) -> Comparison:
    """Paired comparison of two evaluations of the same samples. Raises DataMismatch when they are not."""
    if (
        reference.predictions is None
        or other.predictions is None
        or reference.predictions.shape != other.predictions.shape
    ):
        raise DataMismatch("only evaluations of the same samples can be compared.")
    a, b = reference.predictions.ravel(), other.predictions.ravel()
    changed = np.flatnonzero(a != b)
    if targets is None:
        return Comparison(0, 0, len(changed), a.size, None, (), (), tuple(map(int, changed)))
    t = np.asarray(targets).ravel()
    lost, gained = np.flatnonzero((a == t) & (b != t)), np.flatnonzero((a != t) & (b == t))
    return Comparison(
        len(lost), len(gained), len(changed), a.size, mcnemar(len(lost), len(gained)),
        tuple(map(int, lost)), tuple(map(int, gained)), tuple(map(int, changed)),
    )  # fmt: skip


def wilson_interval(right: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % score interval of a share. Source: Wilson 1927."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p that flips this uneven come by chance. Source: McNemar 1947, binomial form."""
    n, k = lost + gained, min(lost, gained)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, 2 * tail / 2**n)


def first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def predict(output: Any, targets: Tensor | None, count: int, where: str) -> np.ndarray:
    """Class numbers from logits: over the last axis, or axis 1 for [N, C, ...] with labels [N, ...]; or a sign."""
    logits = first_tensor(output)[:count]
    if not bool(torch.isfinite(logits).all()):
        raise NonFinite(
            f"the output of the model holds NaN or Inf in {where}: "
            "look at the data and at the ranges of the last layers."
        )
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        return (logits.reshape(-1) > 0).long().numpy()
    if targets is not None and logits.ndim > 2 and targets.shape == (logits.shape[0], *logits.shape[2:]) \
            and targets.shape != logits.shape[:-1]:  # fmt: skip
        return logits.argmax(1).numpy()
    return logits.argmax(-1).numpy()


def _accuracy(
    predictions: np.ndarray, targets: np.ndarray, classes: int | None
) -> tuple[float, tuple[float, float]]:  # fmt: skip
    """Share of right predictions, with its interval. Raises DataMismatch."""
    _check_labels(predictions, targets, classes)
    right = int((predictions == targets).sum())
    return right / predictions.size, wilson_interval(right, predictions.size)


def _check_labels(predictions: np.ndarray, targets: np.ndarray, classes: int | None) -> None:
    if predictions.shape != targets.shape:
        raise DataMismatch(
            f"the labels are {list(targets.shape)}, the model predicts {list(predictions.shape)}: "
            "give one class number for each prediction."
        )
    if classes is not None and int(targets.max()) >= classes:
        raise DataMismatch(
            f"a label is {int(targets.max())}, but the model tells {classes} classes apart: number the classes from "
            f"0 to {classes - 1}, as in training."
        )


def _json_number(value: float) -> float | str:
    """JSON has no infinities: they are written as "inf" (no noise at all) and "-inf" (noise where no signal is)."""
    return value if math.isfinite(value) else str(value)
