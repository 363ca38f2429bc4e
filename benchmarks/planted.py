"""Networks in which one thing is wrong, on purpose and in a known place; in float they do what they were trained to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

import qlab
from qlab.calibration import Calibration
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.data import Dataset
from qlab.graph.archive import read_program
from qlab.graph.capture import Model, propagate_shapes
from qlab.graph.lower import attribute, lower
from qlab.graph.ops import packet_name
from qlab.samples import sample_folder

PER_TENSOR = QConfigMapping(QConfig(QuantSpec(8, "per_tensor_symmetric"), QuantSpec(8)))
PER_CHANNEL = QConfigMapping(QConfig(QuantSpec(8, "per_channel_symmetric"), QuantSpec(8)))


@dataclass(frozen=True)
class Planted:
    """kind: what has to be found first. where: the tensor it is in, under the names it goes by.

    repairable: by a change of the config, from a loss that is beyond chance.
    """

    kind: str
    where: tuple[str, ...]
    model: Model
    data: Dataset
    mapping: QConfigMapping
    calib: Calibration | None = None
    repairable: bool = True


def fresh(name: str) -> tuple[Model, Dataset]:
    return qlab.load_model(name), qlab.load_dataset(name)


def weight_of(model: Model, layer: str) -> Tensor:
    weight = attribute(model.graph_module, model.node(layer).args[1])
    assert weight is not None
    return weight


def bias_of(model: Model, layer: str) -> Tensor:
    bias = attribute(model.graph_module, model.node(layer).args[2])
    assert bias is not None
    return bias


def convolutions(model: Model) -> list[str]:
    return [layer.name for layer in model.layers if layer.op == "conv2d"]


def outlier_weight() -> Planted:
    """A weight of 1000 behind a pixel that is the same in every sample, so that the float network does what it did."""
    model, data = fresh("outlier_mlp")
    with torch.no_grad():
        for layer in ("fc1", "fc2"):  # without what the sample itself has planted
            weight = weight_of(model, layer)
            usual = float(weight.abs().flatten().topk(5).values[-1])
            weight.clamp_(-usual, usual)
        weight_of(model, "fc1")[5, 32] = 1000.0
    return Planted("outlier_weight", ("fc1.weight",), model, data, PER_TENSOR)


def dead_channel() -> Planted:
    model, data = fresh("conv_digits")
    layer = convolutions(model)[1]
    with torch.no_grad():
        weight_of(model, layer)[7] = 0
        bias_of(model, layer)[7] = 0
    behind = tuple(model.names[user] for user in model.node(layer).users)
    return Planted("dead_channel", (f"{layer}.weight", layer, *behind), model, data, PER_CHANNEL, repairable=False)


def wide_channel() -> Planted:
    """A channel times 50, and what reads it by 50: the same function, and a scale that fits one channel."""
    model, data = fresh("conv_digits")
    first, second = convolutions(model)[1:3]
    channel = int(weight_of(model, first).abs().amax((1, 2, 3)).argmax())
    with torch.no_grad():
        weight_of(model, first)[channel] *= 50
        bias_of(model, first)[channel] *= 50
        weight_of(model, second)[:, channel] /= 50
    return Planted("weight_spread", (f"{first}.weight",), model, data, PER_TENSOR)


def other_normalisation() -> Planted:
    model, data = fresh("residual_digits")
    wrong = replace(data, mean=(0.2,), std=(0.4,))  # twice the spread of training
    return Planted("unlike_training", ("x",), model, wrong, PER_CHANNEL, repairable=False)


def other_normalisation_in_calibration() -> Planted:
    model, data = fresh("residual_digits")
    calib = qlab.calibrate(model, replace(data, mean=(0.0,), std=(1.0,)))
    return Planted("unlike_evaluation", ("x",), model, data, PER_CHANNEL, calib, repairable=False)


class Normalising(nn.Module):
    """Divides each sample by its largest value: 0 / 0 for one that is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x / x.abs().amax(1, keepdim=True))))


def nan_in_the_third_batch() -> Planted:
    torch.manual_seed(0)
    model = qlab.load_model(Normalising().eval(), torch.ones(2, 8))
    x = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
    x[150] = 0
    return Planted("non_finite", ("div",), model, qlab.load_dataset(x), PER_CHANNEL, repairable=False)


def pattern_that_matches_nothing() -> Planted:
    """The depthwise layers were to have a scale for each channel; their name was misspelt."""
    model, data = fresh("depthwise_digits")
    per_channel = PER_CHANNEL.default
    mapping = PER_TENSOR.replace(by_name={"*.dephtwise": per_channel, "stem*": per_channel})
    return Planted("unmatched_rule", ("by_name *.dephtwise",), model, data, mapping)


def tensor_never_observed() -> Planted:
    model, data = fresh("residual_digits")
    calib = qlab.calibrate(model, data)
    missing = "layer2.0.relu"
    stats = {name: stats for name, stats in calib._stats.items() if name != missing}
    calib = Calibration(stats, calib.aliases, calib.model_hash, calib.samples)
    return Planted("never_observed", (missing,), model, data, PER_CHANNEL, calib)


def batch_norm_with_huge_variance_ratio() -> Planted:
    """One channel reaches a depthwise layer a hundredth as large, so that its BatchNorm saw a ten thousandth of the
    variance and makes it up again."""
    program = read_program(sample_folder("depthwise_digits") / "model.pt2")
    gm = program.graph_module

    def constant(node: object) -> Tensor:
        value = attribute(gm, node)
        assert value is not None
        return value

    convs = [n for n in gm.graph.nodes if n.op == "call_function" and packet_name(n) == "conv2d"]
    norms = [n for n in gm.graph.nodes if n.op == "call_function" and packet_name(n) == "batch_norm"]
    with torch.no_grad():
        for i, conv in enumerate(convs):
            weight = constant(conv.args[1])
            if weight.shape[1] != 1 or i == 0:
                continue
            # The sample has two channels of this kind in every depthwise layer, made by weights: undo them.
            ranges = weight.abs().amax((1, 2, 3))
            far = ranges > 8 * ranges.median()
            weight[far] /= 64
            for argument in (1, 2):
                constant(norms[i - 1].args[argument])[far] *= 64
        chosen = next(i for i, conv in enumerate(convs) if i > 2 and constant(conv.args[1]).shape[1] == 1)
        before, after = norms[chosen - 1], norms[chosen]
        gain, eps, factor = constant(after.args[1]), float(after.args[7]), 100.0
        channel = int((constant(convs[chosen].args[1]).abs().amax((1, 2, 3)) * gain.abs()).argmax())
        for argument in (1, 2):
            constant(before.args[argument])[channel] /= factor
        mean, variance = constant(after.args[3]), constant(after.args[4])
        small = variance[channel] / factor**2
        gain[channel] *= torch.sqrt((small + eps) / (variance[channel] + eps)) * factor  # eps counts for more now
        mean[channel] /= factor
        variance[channel] = small
    folded = lower(gm)
    propagate_shapes(gm, program.inputs)
    model = Model(gm, program.inputs, "depthwise_digits", folded)
    layer = model.names[convs[chosen]]
    return Planted("norm_spread", (f"{layer}.weight",), model, qlab.load_dataset("depthwise_digits"), PER_TENSOR)


def saturated_activation() -> Planted:
    """A range for one layer's output that ends where most of its values begin."""
    model, data = fresh("residual_digits")
    calib = qlab.calibrate(model, data)
    tensor = "layer2.0.relu@1"
    mapping = PER_CHANNEL.replace(ranges={tensor: (0.0, 0.03 * calib[tensor].maximum)})
    return Planted("saturated", (tensor,), model, data, mapping, calib)


def bias_shift() -> Planted:
    """Weights of the last layer that all round the same way, down for some classes and up for the others."""
    model, data = fresh("residual_digits")
    calib = qlab.calibrate(model, data, mapping=QConfigMapping(correct_bias=True))
    weight, bias = weight_of(model, "fc"), bias_of(model, "fc")
    mean = torch.from_numpy(calib.means[model.names[model.node("fc").args[0]]])
    with torch.no_grad():
        step = float(weight.abs().max()) / 7
        towards = torch.where(torch.arange(10) % 2 == 0, 0.45, -0.45)[:, None]
        inner = weight.abs() < weight.abs().max() - step
        moved = torch.where(inner, (torch.round(weight / step) + towards) * step, weight)
        bias -= (moved - weight) @ mean  # in float the means stay, and with them the predictions
        weight.copy_(moved)
    coarse = QConfig(QuantSpec(4, "per_tensor_symmetric", narrow_range=True), QuantSpec(8))
    return Planted("bias_shift", ("fc",), model, data, PER_CHANNEL.replace(by_name={"fc": coarse}))


CASES: dict[str, Callable[[], Planted]] = {
    "an outlier weight of 1000": outlier_weight,
    "a dead channel": dead_channel,
    "a channel times 50": wide_channel,
    "another normalisation": other_normalisation,
    "another normalisation in the calibration": other_normalisation_in_calibration,
    "NaN in the third batch": nan_in_the_third_batch,
    "a pattern that matches nothing": pattern_that_matches_nothing,
    "a tensor never observed": tensor_never_observed,
    "a BatchNorm with a huge variance ratio": batch_norm_with_huge_variance_ratio,
    "a saturated activation": saturated_activation,
    "a bias shift": bias_shift,
}
