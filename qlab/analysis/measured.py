"""What one of several networks does on the same samples: its own figures, and how it differs from one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from qlab.errors import DataMismatch
from qlab.evaluation import mcnemar, predict, wilson_interval
from qlab.float_side import power

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Measured:
    """One network on n samples, which are `predicted` predictions. accuracy: share of right ones with its 95 %
    interval, None without labels. agreement: share of predictions equal to float's. loss: mean cross-entropy in nats
    against the labels, without them against float's predictions. sqnr: of the output against float's, in dB.
    """

    n: int
    predicted: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    agreement: float
    loss: float
    sqnr: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON; an infinite SQNR is written "inf"."""
        return {**asdict(self), "sqnr": self.sqnr if math.isfinite(self.sqnr) else str(self.sqnr)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Measured:
        ends = d["accuracy_interval"]
        return cls(**{**d, "accuracy_interval": ends and (ends[0], ends[1]), "sqnr": float(d["sqnr"])})


@dataclass(frozen=True)
class Paired:
    """A network against the base, prediction by prediction, on those the network was measured on.

    lost: right in the base and wrong here; gained: the other way. Right is what the label says, without labels float's
    prediction. loss: mean difference, positive where it is higher here; loss_error: its standard error.
    """

    n: int
    lost: int
    gained: int
    loss: float
    loss_error: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Paired:
        return cls(**d)

    @property
    def accuracy(self) -> float:
        """Difference of the share of right predictions."""
        return (self.gained - self.lost) / self.n

    @property
    def p(self) -> float:
        """Exact McNemar test, two-sided."""
        return mcnemar(self.lost, self.gained)

    @property
    def accuracy_differs(self) -> bool:
        """Beyond chance, at 5 %."""
        return self.p < 0.05

    @property
    def loss_differs(self) -> bool:
        """Beyond chance, at 5 %: the mean difference against its standard error."""
        return abs(self.loss) > Z95 * self.loss_error


class Held:
    """What a batch is held against: float's output and predictions, and the labels where there are any.

    Raises DataMismatch (labels that are no class numbers, or not one for each prediction), NonFinite.
    """

    def __init__(self, output: Tensor, targets: Tensor | None, count: int, where: str):
        self.output, self.where, self.targets, self.count = output, where, targets, count
        self.predictions = predict(output, targets, count, where)
        self.power = power(output)
        self.labelled = targets is not None
        labels = self.predictions if targets is None else targets[:count].numpy()
        if labels.shape != self.predictions.shape:
            raise DataMismatch(
                f"the labels of {where} are {list(labels.shape)}, the model predicts {list(self.predictions.shape)}: "
                "give one class number for each prediction."
            )
        self.labels = labels
        self.base: tuple[NDArray[np.bool_], NDArray[np.float64]] | None = None


class Score:
    """Adds up what one network gives over the batches, in order. errors: squared error of the output, by sample."""

    def __init__(self) -> None:
        self.errors: list[NDArray[np.float64]] = []
        self.n = self.predicted = self.right = self.same = self.lost = self.gained = 0
        self.labelled = True
        self.loss = self.signal = self.noise = self.more = self.more_square = 0.0

    def add(self, output: Tensor, held: Held, *, base: bool = False) -> None:
        """base: later ones are compared with this output."""
        predictions = predict(output, held.targets, held.count, held.where)
        right, losses = predictions == held.labels, losses_of(output, held.labels)
        self.labelled = held.labelled
        self.n += held.count
        self.predicted += predictions.size
        self.right += int(right.sum())
        self.same += int((predictions == held.predictions).sum())
        self.loss += float(losses.sum())
        self.signal += held.power
        off = (output.double() - held.output.double()).reshape(held.count, -1)
        self.errors.append(torch.einsum("ij,ij->i", off, off).numpy())
        self.noise += float(self.errors[-1].sum())
        if base:
            held.base = right, losses
        elif held.base is not None:
            base_right, base_losses = held.base
            self.lost += int((base_right & ~right).sum())
            self.gained += int((right & ~base_right).sum())
            more = losses - base_losses
            self.more += float(more.sum())
            self.more_square += float(np.square(more).sum())

    def measured(self) -> Measured:
        accuracy = self.right / self.predicted if self.labelled else None
        interval = wilson_interval(self.right, self.predicted) if self.labelled else None
        noise, signal = self.noise, self.signal
        sqnr = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
        agreement, loss = self.same / self.predicted, self.loss / self.predicted
        return Measured(self.n, self.predicted, accuracy, interval, agreement, loss, sqnr)

    def paired(self) -> Paired:
        n = self.predicted
        mean = self.more / n
        variance = max(self.more_square / n - mean * mean, 0.0)
        return Paired(n, self.lost, self.gained, mean, math.sqrt(variance / max(n - 1, 1)))


def losses_of(output: Tensor, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cross-entropy of each prediction in nats, flat: over the class axis, or of one logit a sample.

    labels: shape of the predictions. Raises DataMismatch when one is not the number of a class.
    """
    logits, wanted = output.double(), torch.from_numpy(np.asarray(labels))
    single = logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1)
    if not single:  # classes on the last axis, or on axis 1 for [N, C, ...] with labels [N, ...]
        logits = logits if tuple(logits.shape[:-1]) == tuple(labels.shape) else logits.movedim(1, -1)
        logits = logits.reshape(-1, logits.shape[-1])
    classes = 2 if single else logits.shape[1]
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
        raise DataMismatch(
            f"a label is {wrong}, but the model tells {classes} classes apart: number the classes from 0 to "
            f"{classes - 1}, as in training."
        )
    if single:
        given = wanted.reshape(-1).double()
        return binary_cross_entropy_with_logits(logits.reshape(-1), given, reduction="none").numpy()
    return cross_entropy(logits, wanted.reshape(-1).long(), reduction="none").numpy()
