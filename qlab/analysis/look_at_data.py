"""What is wrong with the data: unlike what the network was trained on, or calibrated unlike it is evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qlab.analysis.fault import Fault, threshold
from qlab.calibration import Calibration
from qlab.graph.capture import Model
from qlab.graph.lower import FOLDED_NORM, FoldedNorm
from qlab.metrics import three_digits
from qlab.quant.stats import TensorStats

WIDER = 1.5  # times the spread: as much as half a standard deviation of the mean


def data_faults(model: Model, calib: Calibration, evaluated: Calibration | None) -> Iterator[Fault]:
    """evaluated: statistics of the evaluation data, gathered as those of the calibration were."""
    inputs = [n for n in model.graph_module.graph.nodes if n.op == "placeholder"]
    names = [model.names[n] for n in inputs if model.names[n] in calib]
    if evaluated is not None:
        unlike = [f for name in names if (f := _unlike(name, calib[name], evaluated[name])) is not None]
        yield from unlike
        if unlike:
            return
    fault = _unlike_training(model, calib, names)
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


def _unlike_training(model: Model, calib: Calibration, inputs: list[str]) -> Fault | None:
    """Whether the first layers with a BatchNorm give what they gave in training. Source of the idea: statistics of
    BatchNorm as a stand-in for the training data, Nagel et al. 2019, section 4.2.1."""
    for node in model.ops:
        position = node.args[1] if len(node.args) > 1 else None
        norm = getattr(position, "meta", {}).get(FOLDED_NORM)
        name = model.names[node]
        if not isinstance(norm, FoldedNorm) or name not in calib:
            continue
        mean = float(norm.mean.mean())
        std = math.sqrt(max(float((norm.std.square() + norm.mean.square()).mean()) - mean * mean, 0.0))
        seen = calib[name]
        value = distance(seen.mean, seen.std, mean, std)
        if value < threshold("unlike_training"):
            return None
        where = inputs[0] if inputs else name
        sentence = (
            f"{norm.name}, folded into {name}, saw outputs with mean {three_digits(mean)} and spread "
            f"{three_digits(std)} in "
            f"training; the calibration gives mean {three_digits(seen.mean)} and spread {three_digits(seen.std)}. The "
            "values "
            f"that reach {where} were prepared in another way than those the network was trained on."
        )
        return Fault(
            "unlike_training", "error", where, where, value, sentence,
            advice="Set scale, mean and std of the data to those of training.",
        )  # fmt: skip
    return None
