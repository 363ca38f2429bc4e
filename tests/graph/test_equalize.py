"""Equal ranges in adjacent layers, and biases moved so that means stay: the same function, a better grid."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.errors import DataMismatch, NotObserved
from qlab.graph.equalize import equalizable, equalized, network_of, with_biases

PER_TENSOR = qlab.QConfigMapping(
    default=qlab.QConfig(weight=qlab.QuantSpec(8, "per_tensor_symmetric"), activation=qlab.QuantSpec(8))
)


def captured(module, *shape):
    torch.manual_seed(0)
    return qlab.load_model(module.eval(), torch.randn(4, *shape))


def pairs_of(model):
    return [(model.names[p.first], model.names[p.second], p.spread) for p in equalizable(model)]


class Chain(nn.Module):
    """Convolution, depthwise, flatten, linear: a channel of the last convolution is four inputs of the linear."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, groups=6)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(2), nn.Linear(24, 3)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.b(torch.relu(self.a(x))))).flatten(1))


def test_the_same_function_with_equal_ranges():
    model = captured(Chain(), 2, 9, 9)
    with torch.no_grad():
        model.graph_module.get_parameter(str(model.node("a").args[1].target))[2] *= 100
    assert pairs_of(model) == [("a", "b", 1), ("b", "fc", 4)]
    x = torch.randn(5, 2, 9, 9)
    equal = equalized(model)
    assert torch.allclose(equal(x), model(x), rtol=1e-4, atol=1e-5)
    assert equal.content_hash != model.content_hash
    assert equalized(model) is equal  # made once

    def ranges(name):
        node = equal.node(name)
        return getattr(equal.graph_module, str(node.args[1].target)).detach().abs()

    of_a, of_b = ranges("a").flatten(1).amax(1), ranges("b").flatten(1).amax(1)
    of_fc = ranges("fc").reshape(3, 6, 4).amax((0, 2))
    assert torch.allclose(of_a, of_b, rtol=1e-3)  # b is depthwise: its channel i alone reads channel i of a
    assert torch.allclose(of_b, of_fc, rtol=1e-3)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        y = torch.relu(self.a(x))
        z = self.b(y) + y  # two readers
        return self.d(torch.sigmoid(self.c(z)))  # no factor passes a sigmoid


def test_what_cannot_be_scaled_stays():
    model = captured(Branches(), 6)
    assert pairs_of(model) == []
    assert equalized(model) is model


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.b(torch.relu(self.b(torch.relu(self.a(x)))))


def test_a_weight_that_is_read_twice_stays():
    assert pairs_of(captured(Shared(), 6)) == []


class Between(nn.Module):
    """Two layers and what stands between them."""

    def __init__(self, first, between, second):
        super().__init__()
        self.first, self.between, self.second = first, between, second

    def forward(self, x):
        return self.second(self.between(torch.relu(self.first(x))))


def with_uneven_channels(module, *shape):
    """Captured, with channels of very different ranges: what is scaled on a wrong axis shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value *= torch.exp(1.5 * torch.randn(len(value))).reshape(-1, *[1] * (value.ndim - 1))
    return qlab.load_model(module.eval(), torch.randn(4, *shape))


def error_of_equalising(model, *shape):
    x = torch.randn(5, *shape)
    return float((equalized(model)(x) - model(x)).abs().max() / model(x).abs().max())


@pytest.mark.parametrize(
    ("first", "between", "second", "shape"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), nn.Identity(), nn.Linear(8, 5), (3, 8, 8)),
        (nn.Conv1d(8, 8, 1), nn.Identity(), nn.Linear(8, 8), (8, 8)),
        (nn.Conv1d(3, 8, 1), nn.Flatten(0, 1), nn.Linear(8, 5), (3, 8)),
        (nn.Linear(6, 10), nn.Identity(), nn.Conv1d(10, 4, 3, padding=1), (10, 6)),
        (nn.Linear(6, 10), nn.MaxPool1d(3, 1, 1), nn.Linear(10, 4), (5, 6)),
        (nn.Linear(6, 10), nn.AvgPool1d(3, 1, 1), nn.Linear(10, 4), (5, 6)),
        (nn.Linear(6, 10), nn.AdaptiveAvgPool2d((4, 10)), nn.Linear(10, 4), (5, 3, 6)),
        (nn.Linear(6, 10), nn.Flatten(), nn.Linear(50, 4), (5, 6)),
        (nn.Conv1d(3, 8, 1), nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 32))), nn.Linear(32, 5), (3, 8)),
    ],
    ids=["conv2d to linear", "conv1d to linear", "positions as rows", "linear to conv1d", "max pool", "average pool",
         "pooled to the same size", "flattened rows", "half of the channels each"],
)  # fmt: skip
def test_channels_on_another_axis_are_not_scaled(first, between, second, shape):
    model = with_uneven_channels(Between(first, between, second), *shape)
    assert pairs_of(model) == []
    assert error_of_equalising(model, *shape) == 0


@pytest.mark.parametrize(
    ("first", "between", "second", "shape", "spread"),
    [
        (nn.Linear(6, 10), nn.Identity(), nn.Linear(10, 4), (5, 6), 1),
        (nn.Linear(6, 10), nn.Flatten(0, 1), nn.Linear(10, 4), (5, 6), 1),
        (nn.Conv1d(8, 8, 1), nn.MaxPool1d(3, 1, 1), nn.Conv1d(8, 8, 1), (8, 8), 1),
        (nn.Conv2d(3, 8, 3), nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), nn.Linear(32, 5), (3, 6, 6), 4),
        (nn.Conv2d(3, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 5), (3, 6, 6), 1),
    ],
    ids=["linear", "rows as samples", "max pool", "flatten", "one position"],
)
def test_channels_on_the_same_axis_are_scaled(first, between, second, shape, spread):
    model = with_uneven_channels(Between(first, between, second), *shape)
    assert pairs_of(model) == [("first", "second", spread)]
    assert error_of_equalising(model, *shape) < 1e-5


def test_an_empty_channel_stays_finite():
    model = captured(Chain(), 2, 9, 9)
    with torch.no_grad():
        model.graph_module.get_parameter(str(model.node("a").args[1].target))[1] = 0
    x = torch.randn(3, 2, 9, 9)
    assert torch.allclose(equalized(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_channel_that_hardly_does_anything_does_not_widen_the_activation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    with torch.no_grad():
        net[0].weight[5] *= 1e-8
        net[0].bias[5] = 0.5
    x = torch.randn(512, 16)
    model, data = qlab.load_model(net.eval(), x[:4]), qlab.load_dataset(x.numpy())
    assert torch.allclose(equalized(model)(x), model(x), rtol=1e-4, atol=1e-5)
    plain = qlab.presets["x86"]
    mapping = plain.replace(equalize=True)
    before = qlab.convert(model, plain, qlab.calibrate(model, data))
    after = qlab.convert(model, mapping, qlab.calibrate(model, data, mapping=mapping))
    assert after.activations["1"].scale <= before.activations["1"].scale
    assert qlab.evaluate(after, data, model).agreement > 0.98


def test_no_bias_gets_wider_than_twice_the_largest_of_its_layer():
    model = captured(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 6)

    def constants(of):
        return [getattr(of.graph_module, str(a.target)).detach() for a in of.node("0").args[1:3]]

    weight, bias = constants(model)
    with torch.no_grad():
        weight[:4] *= 1e-3
        bias.copy_(torch.tensor([1.0, 0.1, 0.0, -0.01, 1.0, -2.0, 0.3, 0.0]))
    equal_weight, equal_bias = constants(equalized(model))
    factor = equal_weight.abs().amax(1) / weight.abs().amax(1)
    torch.testing.assert_close(equal_bias, bias * factor)
    assert equal_bias.abs().max() <= 4.0 + 1e-6
    torch.testing.assert_close(factor[0], torch.tensor(4.0))  # as far as its bias lets it
    assert (factor[1:4] > 10).all()  # no bias, or a small one


def test_eight_bits_per_tensor_on_the_depthwise_sample():
    """The measure: at least 80 % of what int8 per tensor loses comes back."""
    model, data = qlab.load_model("depthwise_digits"), qlab.load_dataset("depthwise_digits")
    reference = qlab.evaluate(model, data)
    mapping = PER_TENSOR.replace(equalize=True)
    calib = qlab.calibrate(model, data, mapping=mapping)
    plain = qlab.evaluate(qlab.convert(model, PER_TENSOR, qlab.calibrate(model, data)), data, reference)
    better = qlab.evaluate(qlab.convert(model, mapping, calib), data, reference)
    lost = reference.accuracy - plain.accuracy
    assert lost > 0.5
    assert (better.accuracy - plain.accuracy) / lost >= 0.8
    assert better.accuracy_interval[0] < reference.accuracy
    with pytest.raises(DataMismatch, match="not of the equalised network"):
        qlab.convert(model, mapping, qlab.calibrate(model, data))


def test_biases_corrected_keep_the_means():
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    rough = qlab.QConfigMapping(default=qlab.QConfig(qlab.QuantSpec(3, "per_tensor_symmetric"), mode="weight_only"))
    mapping = rough.replace(correct_bias=True)
    calib = qlab.calibrate(model, data, mapping=mapping)
    first = next(row.layer for row in qlab.convert(model, rough).ledger if row.weight)
    inputs = data.calibration.batch(0, 512)[1]

    def shift(qmodel):
        """Mean of each channel of the first layer, over the data, against float."""
        from qlab.float_side import Tapped

        seen = {}
        nodes = {qmodel.output_nodes[first]: "q"}
        Tapped(qmodel.graph_module, nodes, seen.__setitem__).run(*inputs)
        Tapped(model.graph_module, {model.node(first): "f"}, seen.__setitem__).run(*inputs)
        return (seen["q"] - seen["f"]).detach().mean((0, 2, 3)), seen["f"].std()

    (before, _), (after, spread) = shift(qlab.convert(model, rough)), shift(qlab.convert(model, mapping, calib))
    assert before.abs().max() > 0.01 * spread
    assert after.abs().max() < 1e-5 * spread + 1e-6
    with pytest.raises(NotObserved, match="needs the mean of"):
        qlab.convert(model, mapping, qlab.calibrate(model, data))


class Rows(nn.Module):
    """A linear that reads six rows of a sample, one below the other."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 7)

    def forward(self, x):
        return self.fc(x.reshape(-1, 10))


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 7)

    def forward(self, x):
        return self.fc(x.transpose(0, 1))


class Queries(nn.Module):
    """A linear that reads a constant, as it is or behind an op."""

    def __init__(self, between):
        super().__init__()
        self.queries, self.between = nn.Parameter(torch.rand(5, 10)), between
        self.fc = nn.Linear(10, 7)

    def forward(self, x):
        return self.fc(self.between(self.queries)) + x[:, :5, :7]


class SamplesAsPositions(nn.Module):
    """A convolution whose input has no axis for the batch."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv1d(6, 7, 1)

    def forward(self, x):
        return self.fc(x.mean(2).t()).t()


COARSE = qlab.QConfigMapping(default=qlab.QConfig(qlab.QuantSpec(3, "per_tensor_symmetric"), mode="weight_only"))
CORRECTED = COARSE.replace(correct_bias=True)


def rows_of(net):
    torch.manual_seed(0)
    module, x = net(), torch.rand(200, 6, 10)
    return qlab.load_model(module.eval(), x[:4]), qlab.load_dataset(x.numpy())


def shift_of(qmodel, model, data):
    """Mean of each channel over the calibration data against float, the largest."""
    (x,) = data.calibration.batch(0, len(data.calibration))[1]
    return float((qmodel(x) - model(x)).flatten(0, -2).mean(0).abs().max())


@pytest.mark.parametrize("batch_size", [50, 64])
@pytest.mark.parametrize(
    "net", [Rows, SequenceFirst, lambda: Queries(nn.Identity()), lambda: Queries(nn.ReLU())],
    ids=["rows of a sample", "sequence first", "constant", "computed from a constant"],
)  # fmt: skip
def test_means_are_of_the_rows_a_layer_reads(net, batch_size, tmp_path):
    model, data = rows_of(net)
    calib = qlab.calibrate(model, data, batch_size, mapping=CORRECTED)
    halves = [data.calibration.subset(range(70)), data.calibration.subset(range(70, 200))]
    merged = qlab.merge_calibrations([qlab.calibrate(model, half, batch_size, mapping=CORRECTED) for half in halves])
    calib.save(tmp_path / "c.npz")
    assert shift_of(qlab.convert(model, COARSE), model, data) > 0.01
    for known in (calib, merged, qlab.Calibration.load(tmp_path / "c.npz")):
        assert shift_of(qlab.convert(model, CORRECTED, known), model, data) < 1e-5


def test_a_convolution_without_an_axis_for_the_batch():
    model, data = rows_of(SamplesAsPositions)
    calib = qlab.calibrate(model, data, 50, mapping=CORRECTED)
    assert shift_of(qlab.convert(model, COARSE), model, data) > 0.01
    assert shift_of(qlab.convert(model, CORRECTED, calib), model, data) < 1e-5
    with pytest.raises(DataMismatch, match=r"layer 'fc' reads .* size of the batch"):
        qlab.calibrate(model, data, 64, mapping=CORRECTED)
    for other in (qlab.calibrate(model, data, 40, mapping=CORRECTED), qlab.calibrate(model, data, 50)):
        with pytest.raises(DataMismatch, match="same tensors and shapes"):
            qlab.merge_calibrations([calib, other])


@pytest.mark.parametrize("net", [Rows, SequenceFirst], ids=["rows of a sample", "sequence first"])
def test_means_of_older_files_are_read_as_what_they_are(net, tmp_path):
    """They hold the sum over axis 0 divided by the samples, and do not say so."""
    model, data = rows_of(net)
    (x,) = data.calibration.batch(0, 200)[1]
    read = x.reshape(-1, 10) if net is Rows else x.transpose(0, 1)
    sums = read.sum(0) if net is Rows else read.unflatten(1, (4, 50)).sum((0, 1))
    made = qlab.calibrate(model, data, 50, mapping=CORRECTED)
    (name,) = made.means
    older = qlab.Calibration(made._stats, made.aliases, made.model_hash, 200, {name: (sums / 200).numpy()})
    arrays = older.to_arrays()
    head = json.loads(bytes(arrays["head"]).decode())
    del head["means"]
    np.savez(tmp_path / "c.npz", **arrays | {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)})
    loaded = qlab.Calibration.load(tmp_path / "c.npz")
    assert shift_of(qlab.convert(model, CORRECTED, loaded), model, data) < 1e-5


def test_means_merge_and_survive_a_file(tmp_path):
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    mapping = qlab.QConfigMapping(correct_bias=True)
    whole = qlab.calibrate(model, data, mapping=mapping)
    part = data.calibration
    halves = [part.subset(range(256)), part.subset(range(256, 512))]
    both = qlab.merge_calibrations([qlab.calibrate(model, half, mapping=mapping) for half in halves])
    assert whole.means.keys() == both.means.keys() != set()
    for name, mean in whole.means.items():
        assert np.allclose(mean, both.means[name], rtol=1e-4, atol=1e-5)
    whole.save(tmp_path / "c.npz")
    loaded = qlab.Calibration.load(tmp_path / "c.npz")
    assert all(np.array_equal(loaded.means[name], mean) for name, mean in whole.means.items())


def test_a_layer_without_bias_gets_one_and_runs_on_integers(tmp_path):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    model = captured(net, 8)
    data = qlab.load_dataset(np.abs(np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)))
    mapping = PER_TENSOR.replace(correct_bias=True, equalize=True)
    qmodel = qlab.convert(model, mapping, qlab.calibrate(model, data, mapping=mapping))
    x = data.evaluation.batch(0, 64)[1]
    step = float(list(qmodel.activations.values())[-1].scale)
    assert (qmodel.integer_session()(*x) - qmodel(*x)).abs().max() <= 1.01 * step
    qmodel.save(tmp_path / "q.safetensors")
    again = qlab.load_quantized(tmp_path / "q.safetensors", model=model)
    assert torch.equal(again(*x), qmodel(*x))
    assert again.has_float_original
    assert torch.allclose(again.reference(*x), model(*x), atol=1e-5)
    assert torch.equal(qlab.load_quantized(tmp_path / "q.safetensors")(*x), qmodel(*x))


def test_given_amounts_are_added_to_the_outputs():
    model = captured(nn.Sequential(nn.Linear(5, 3)), 5)
    x = torch.randn(4, 5)
    moved = with_biases(model, {"0": torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)})
    assert torch.allclose(moved(x) - model(x), torch.tensor([1.0, 0.0, -2.0]).expand(4, 3), atol=1e-6)
    assert network_of(model, qlab.QConfigMapping()) is model
