"""What training makes smaller."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab.errors import DataMismatch
from qlab.training.loss import Loss
from qlab.training.samples import Samples


def network(*layers, x=None):
    return qlab.load_model(nn.Sequential(*layers).eval(), torch.randn(4, 6) if x is None else x)


@pytest.fixture(scope="module")
def scores():
    return network(nn.Linear(6, 5))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_labels_are_torchs_cross_entropy(scores):
    out, labels = draw(4, 5), torch.tensor([0, 4, 2, 2])
    assert torch.allclose(Loss(scores, True, 0.0)(out, labels, None), F.cross_entropy(out, labels))


def test_teacher_is_torchs_cross_entropy_with_probabilities(scores):
    out, teacher = draw(4, 5), draw(4, 5, seed=1)
    wanted = F.cross_entropy(out, teacher.softmax(1))
    assert torch.allclose(Loss(scores, True, 1.0)(out, None, teacher), wanted)


def test_shares_add_up(scores):
    out, labels, teacher = draw(4, 5), torch.tensor([0, 4, 2, 2]), draw(4, 5, seed=1)
    parts = [Loss(scores, True, share)(out, labels, teacher) for share in (0.0, 1.0)]
    assert torch.allclose(Loss(scores, True, 0.25)(out, labels, teacher), 0.75 * parts[0] + 0.25 * parts[1])


def test_without_labels_the_float_network_is_asked(scores):
    assert Loss(scores, False, 0.0).share == 1.0


def test_a_single_score_decides_by_its_sign():
    out, labels = draw(4, 1), torch.tensor([0, 1, 1, 0])
    wanted = F.binary_cross_entropy_with_logits(out[:, 0], labels.float())
    assert torch.allclose(Loss(network(nn.Linear(6, 1)), True, 0.0)(out, labels, None), wanted)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)], ids=["softmax", "log_softmax"])
def test_probabilities_are_taken_as_such(last):
    out, labels = draw(4, 5), torch.tensor([0, 4, 2, 2])
    model = network(nn.Linear(6, 5), last)
    assert torch.allclose(Loss(model, True, 0.0)(last(out), labels, None), F.cross_entropy(out, labels), atol=1e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_labels_for_each_position(axis):
    """Scores [N, C, T] as in segmentation, or [N, T, C] as in tagging."""
    out, labels = draw(2, 5, 7) if axis == 1 else draw(2, 7, 5), torch.arange(14).reshape(2, 7) % 5
    wanted = F.cross_entropy(out if axis == 1 else out.movedim(2, 1), labels)
    assert torch.allclose(Loss(network(nn.Linear(6, 5)), True, 0.0)(out, labels, None), wanted)


def test_what_are_no_classes_is_compared_by_value():
    model = network(nn.Conv1d(3, 4, 1), x=torch.randn(4, 3, 6))
    out, teacher = draw(4, 4, 6), draw(4, 4, 6, seed=1)
    wanted = ((out - teacher) ** 2).mean() / teacher.var(correction=0)
    assert torch.allclose(Loss(model, False, 1.0)(out, None, teacher), wanted)


def test_labels_that_do_not_fit_are_told(scores):
    with pytest.raises(DataMismatch, match="labels"):
        Loss(scores, True, 0.0)(draw(4, 5), torch.zeros(4, 3, dtype=torch.long), None)


def test_mixtures_are_labelled_by_the_float_network(scores):
    import numpy as np

    x, labels = draw(6, 6), torch.tensor([0, 4, 2, 2, 1, 3])
    samples = Samples((x,), labels, scores(x)).mixed(2, np.random.default_rng(0), scores)
    assert torch.equal(samples.inputs[0][2:], x[2:])
    assert not torch.equal(samples.inputs[0][:2], x[:2])
    assert torch.equal(samples.to_mixtures, scores(samples.inputs[0][:2]))
    loss, out = Loss(scores, True, 0.5), draw(6, 5)
    wanted = (
        loss.to_teacher(out[:2], samples.to_mixtures, labels) * 2 / 6 + loss(out[2:], labels[2:], scores(x)[2:]) * 4 / 6
    )
    assert torch.allclose(samples.loss(loss, out), wanted)


def test_hints_are_the_noise_of_inner_tensors():
    """Relative to the signal, of each tensor that is put on a grid where it is made."""
    from qlab.config import QConfig, QConfigMapping, QuantSpec
    from qlab.training.graph import TrainingNetwork
    from qlab.training.hints import Hints
    from qlab.training.settings import Training

    x = draw(32, 6)
    model = network(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    data = qlab.load_dataset({"x": x.numpy()}).split(16, seed=0)
    mapping = QConfigMapping(default=QConfig(QuantSpec(3, "per_channel_symmetric"), QuantSpec(3)))
    calib = qlab.calibrate(model, data)
    made = TrainingNetwork(model, mapping, calib, Training())
    hints = Hints(made)
    assert hints.keys == ["1", "2"]  # the ReLU at the end of the first unit, and the output
    wanted = hints.wanted((x,))
    hidden = torch.relu(
        model.graph_module.get_parameter("p_0_weight") @ x.T + model.graph_module.get_parameter("p_0_bias")[:, None]
    ).T
    assert torch.allclose(wanted[0], hidden, atol=1e-6)
    assert torch.allclose(wanted[1], model(x), atol=1e-6)
    out = made.module(x)
    with torch.no_grad():
        both, hidden_alone = hints.distance(wanted), hints.distance([wanted[0], out])
    assert hints.distance(wanted).requires_grad
    noise = (out.detach() - wanted[1]).square().sum() / wanted[1].square().sum()
    assert torch.allclose(both - hidden_alone, noise / 2)
    assert hidden_alone > 0
