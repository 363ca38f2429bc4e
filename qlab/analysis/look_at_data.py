"""What is wrong with the data: unlike what the network was trained on, or calibrated unlike it is evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import fx

from qlab.analysis.fault import Fault, threshold
from qlab.analysis.reuse import Numbering, Plan
from qlab.calibration import Calibration
from qlab.data import Dataset
from qlab.forward import pad
from qlab.graph.capture import Model
from qlab.graph.lower import FOLDED_NORM, FoldedNorm
from qlab.graph.ops import op_type
from qlab.metrics import three_digits
from qlab.quant.stats import TensorStats

SAMPLES = 128
ALIVE = 0.02  # of the largest spread
WIDER = 1.5  # times the spread: as much as half a standard deviation of the mean


def data_faults(
    model: Model, data: Dataset, calib: Calibration, evaluated: Calibration | None
) -> Iterator[Fault]:  # fmt: skip
    """model: as it was loaded. evaluated: statistics of the evaluation data, gathered as those of the calibration."""
    names = [spec.name for spec in model.inputs if spec.name in calib]
    if evaluated is not None:
        unlike = [f for name in names if (f := _unlike(name, calib[name], evaluated[name])) is not None]
        yield from unlike
        if unlike:
            return
    fault = _unlike_training(model, data, names)
    if fault is not None:
        yield fault


def distance(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """How far two distributions are from each other: the shift of the mean, or the change of the spread, in standard
    deviations of the second; a spread 1.5 times as wide, or as narrow, counts as half of one."""
    if other_std <= 0:
        return 0.0 if std <= 0 and mean == other_mean else math.inf
    wider = abs(math.log(max(std, 1e-30) / other_std)) / math.log(WIDER) / 2
    return max(abs(mean - other_mean) / other_std, wider)


def _unlike(name: str, calibrated: TensorStats, evaluated: TensorStats) -> Fault | None:
    value = distance(calibrated.mean, calibrated.std, evaluated.mean, evaluated.std)
    if value < threshold("unlike_evaluation"):
        return None
    sentence = (
        f"The calibration saw {name} with mean {three_digits(calibrated.mean)} and spread "
        f"{three_digits(calibrated.std)}, "
        f"from {three_digits(calibrated.minimum)} to {three_digits(calibrated.maximum)}; the evaluation data has mean "
        f"{three_digits(evaluated.mean)} and spread {three_digits(evaluated.std)}, from "
        f"{three_digits(evaluated.minimum)} "
        f"to {three_digits(evaluated.maximum)}."
    )
    return Fault(
        "unlike_evaluation", "error", name, name, value, sentence,
        advice="Calibrate with samples drawn like those that are evaluated, and prepared with the same scale, mean "
        "and std.",
    )  # fmt: skip


def _unlike_training(model: Model, data: Dataset, inputs: list[str]) -> Fault | None:
    """Whether the first layer with a BatchNorm gives what it gave in training, channel by channel: the median of their
    distances. Source of the idea: BatchNorm as a stand-in for the training data, Nagel et al. 2019, section 4.2.1."""
    node, norm = next(
        ((n, m) for n in model.ops if len(n.args) > 1 and isinstance(m := _norm(n.args[1]), FoldedNorm)), (None, None)
    )
    if node is None or norm is None:
        return None
    mean, std = _channels_of(model, data, node)
    # A channel that BatchNorm has all but switched off says nothing of its input.
    alive = norm.std > ALIVE * norm.std.max()
    shifts = ((mean - norm.mean) / norm.std)[alive]
    ratios = (std / norm.std)[alive].clamp_min(1e-30)
    each = torch.maximum(shifts.abs(), ratios.log().abs() / math.log(WIDER) / 2)
    value = float(each.median())
    if value < threshold("unlike_training"):
        return None
    where = inputs[0] if inputs else model.names[node]
    sentence = (
        f"{norm.name}, folded into {model.names[node]}, remembers what its channels gave in training. Fed with the "
        f"calibration data they spread {three_digits(float(ratios.median()))} times as wide, and their means are off "
        f"by {three_digits(float(shifts.abs().median()))} standard deviations (medians of {int(alive.sum())} "
        f"channels): the values that reach {where} were prepared in another way than those the network was trained on."
    )
    return Fault(
        "unlike_training", "error", where, where, value, sentence,
        advice="Set scale, mean and std of the data to those of training.",
    )  # fmt: skip


def _norm(constant: object) -> FoldedNorm | None:
    return getattr(constant, "meta", {}).get(FOLDED_NORM)


def _channels_of(model: Model, data: Dataset, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel of an op's output over a few calibration samples. [C] each."""
    part = data.calibration
    size = model.fixed_batch or min(SAMPLES, len(part))
    plan = Plan(model.graph_module, Numbering().of(model.graph_module), wanted=[node])
    _, inputs, _ = part.batch(0, size)
    plan.run(pad(inputs, size) if len(inputs[0]) < size else inputs, {})
    axis = -1 if op_type(node) == "linear" else 1
    rows = plan.value(node).movedim(axis, 0).flatten(1).double()
    return rows.mean(1), rows.std(1, correction=0)
