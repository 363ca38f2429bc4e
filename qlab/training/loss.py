"""What training makes smaller: the distance to the labels, and to what the float network says."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from qlab.errors import DataMismatch
from qlab.graph.capture import Model
from qlab.graph.ops import op_type, packet_name


class Loss:
    """share: of the part that asks for the float network's output; 1 without labels.

    Class scores lie on the last axis, or on axis 1 for [N, C, ...] with labels [N, ...]; a single score decides between
    two classes by its sign. Where the network ends in a softmax, its probabilities are taken as such.
    """

    def __init__(self, model: Model, labelled: bool, share: float):
        self.share = share if labelled else 1.0
        self.ends_in = _last_op(model)
        self.classes = model.n_classes is not None or labelled

    def __call__(self, output: Tensor, targets: Tensor | None, teacher: Tensor | None) -> Tensor:
        """Mean over the predictions, []. Raises DataMismatch when the labels do not fit the output."""
        parts = []
        if self.share < 1:
            assert targets is not None
            parts.append((1 - self.share) * self._to_labels(output, targets))
        if self.share > 0:
            assert teacher is not None
            parts.append(self.share * self.to_teacher(output, teacher, targets))
        return sum(parts[1:], start=parts[0])

    def _to_labels(self, output: Tensor, targets: Tensor) -> Tensor:
        if _is_sign(output):
            return F.binary_cross_entropy_with_logits(output.reshape(-1), targets.reshape(-1).to(output.dtype))
        axis = _class_axis(output, targets)
        scores = self._log_probabilities(output, axis).movedim(axis, -1)
        if scores.shape[:-1] != targets.shape:
            raise DataMismatch(
                f"the labels are {list(targets.shape)}, the model predicts {list(scores.shape[:-1])}: give one class "
                "number for each prediction, or train with distillation 1."
            )
        return F.nll_loss(scores.reshape(-1, scores.shape[-1]), targets.reshape(-1))

    def to_teacher(self, output: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """Cross entropy with the float network's probabilities; of what are no classes, the squared error relative to
        what the float network's output varies by. targets: for their shape alone, which tells where classes lie.
        Source: Hinton et al. 2015."""
        if not self.classes:
            return ((output - teacher) ** 2).mean() / teacher.var(correction=0).clamp(min=1e-12)
        if _is_sign(output):
            return F.binary_cross_entropy_with_logits(output.reshape(-1), torch.sigmoid(teacher.reshape(-1)))
        axis = _class_axis(output, targets)
        wanted = self._log_probabilities(teacher, axis).exp()
        return -(wanted * self._log_probabilities(output, axis)).sum(axis).mean()

    def _log_probabilities(self, output: Tensor, axis: int) -> Tensor:
        if self.ends_in == "log_softmax":
            return output
        if self.ends_in == "softmax":
            return output.clamp(min=1e-12).log()
        return torch.log_softmax(output, axis)


def _is_sign(output: Tensor) -> bool:
    return output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)


def _class_axis(output: Tensor, targets: Tensor | None) -> int:
    """As `qlab.evaluation.predict` takes it."""
    if targets is not None and output.ndim > 2 and output.shape[1:-1] != targets.shape[1:] == output.shape[2:]:
        return 1
    return output.ndim - 1


def _last_op(model: Model) -> str:
    output = model.graph_module.graph.output_node().args[0]
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, fx.Node) or first.op != "call_function":
        return ""
    return packet_name(first) if packet_name(first) == "log_softmax" else op_type(first)
