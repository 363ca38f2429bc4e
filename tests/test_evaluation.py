"""Accuracy with its interval, agreement, flips, and whether a difference is more than chance."""

import io
import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab import float_side
from qlab.errors import Cancelled, DataMismatch, InvalidConfig, NonFinite
from qlab.evaluation import Evaluation, mcnemar, wilson_interval
from qlab.float_side import Tapped
from qlab.forward import Forward
from qlab.runtime.session import at_once


class Picker(nn.Module):
    """Logits are the inputs themselves."""

    def forward(self, x):
        return x * 1.0


def one_hot(classes, n=4):
    return np.eye(n, dtype=np.float32)[np.asarray(classes)]


@pytest.fixture(scope="module")
def picker():
    return qlab.load_model(Picker().eval(), torch.randn(2, 4))


def test_accuracy_by_hand(picker):
    data = qlab.load_dataset(one_hot([0, 1, 2, 3, 0]), np.array([0, 1, 2, 0, 1]))
    result = qlab.evaluate(picker, data, batch_size=2)
    assert result.accuracy == 0.6
    assert result.n == 5
    assert list(result.predictions) == [0, 1, 2, 3, 0]
    low, high = result.accuracy_interval
    assert (low, high) == pytest.approx((0.2307, 0.8824), abs=1e-3)


@pytest.mark.parametrize(
    ("right", "n", "expected"),
    [(915, 1000, (0.8961, 0.9307)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (1, 2, (0.0945, 0.9055))],
    ids=str,
)
def test_wilson(right, n, expected):
    assert wilson_interval(right, n) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 0.0625), (10, 2, 0.038574), (6, 0, 0.03125)], ids=str
)
def test_mcnemar(lost, gained, p):
    assert mcnemar(lost, gained) == pytest.approx(p, rel=1e-4)


def test_mcnemar_is_the_binomial_test():
    stats = pytest.importorskip("scipy.stats")
    for lost, gained in [(3, 9), (40, 22), (100, 101), (1, 0)]:
        assert mcnemar(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue)


def test_compare_names_the_flips(picker):
    data = qlab.load_dataset(one_hot([0, 1, 2, 3]), np.array([0, 1, 2, 3]))
    other = qlab.load_dataset(one_hot([0, 2, 2, 3]), np.array([0, 1, 2, 3]))
    a, b = qlab.evaluate(picker, data), qlab.evaluate(picker, other)
    flips = qlab.compare(a, b, data.targets)
    assert (flips.lost, flips.gained, flips.changed, flips.lost_indices) == (1, 0, 1, (1,))
    assert flips.p == 1.0
    assert "not distinguishable" in flips.verdict
    unlabelled = qlab.compare(a, b, None)
    assert unlabelled.p is None
    assert "1 of 4 predictions changed" in unlabelled.verdict


def test_a_real_loss_is_called_one():
    n = 200
    good = Evaluation(1.0, (0.98, 1.0), None, {}, n, n, np.zeros(n, int))
    bad = Evaluation(0.9, (0.85, 0.94), None, {}, n, n, np.r_[np.ones(20, int), np.zeros(180, int)])
    assert qlab.compare(good, bad, np.zeros(n, int)).verdict.startswith("worse than float")


def test_no_labels_means_agreement_and_sqnr_only(residual):
    model, data, calib = residual
    unlabelled = qlab.load_dataset(data.evaluation.inputs[0][:300], scale=data.scale, mean=data.mean, std=data.std)
    result = qlab.evaluate(qlab.convert(model, qlab.presets["x86"], calib), unlabelled)
    assert result.accuracy is None
    assert result.accuracy_interval is None
    assert 0.9 < result.agreement <= 1
    assert set(result.sqnr) >= {"conv1", "layer3.0.conv2", "fc"}


def test_sqnr_is_that_of_the_tensors(residual):
    model, data, calib = residual
    qmodel = qlab.convert(model, qlab.presets["onnxruntime"], calib)
    part = data.evaluation.subset(range(64))
    measured = qlab.evaluate(qmodel, part).sqnr["fc"]
    (_, x, _), *_ = part.batches(64)
    with torch.no_grad():
        a, b = model(*x).double(), qmodel(*x).double()
    assert measured == pytest.approx(10 * math.log10(float((a**2).sum() / ((a - b) ** 2).sum())), abs=1e-6)


def test_a_given_float_evaluation_saves_running_it_again(residual):
    model, data, calib = residual
    reference = qlab.evaluate(model, data)
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    assert qlab.evaluate(qmodel, data, reference=reference).agreement == qlab.evaluate(qmodel, data).agreement


@pytest.mark.parametrize("backend", ["simulated", "integer"])
def test_a_second_config_does_not_run_the_float_network(residual, backend, monkeypatch):
    _, data, _ = residual
    model, part = qlab.load_model("residual_digits"), data.evaluation.subset(range(80))
    calib, ran, run = qlab.calibrate(model, data), [], float_side._run

    def counted(model, nodes, inputs):
        ran.append(len(inputs[0]))
        return run(model, nodes, inputs)

    monkeypatch.setattr(float_side, "_run", counted)
    reference = qlab.evaluate(model, part)
    found = []
    for preset in ("x86", "w4a8", "x86"):
        qmodel = qlab.convert(model, qlab.presets[preset], calib)
        found.append(qlab.evaluate(qmodel, part, reference, 32, backend, sqnr_samples=64).sqnr)
        assert sorted(ran) == [32, 32]
    assert found[0] == found[2] != found[1]


def test_sqnr_of_every_layer_as_in_float64_throughout(residual):
    model, data, calib = residual
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    part = data.evaluation.subset(range(64))
    (_, inputs, _), *_ = part.batches(64)
    kept = [{}, {}]
    ends = ({model.node(t): t for t in qmodel.outputs.values()}, {n: t for t, n in qmodel.output_nodes.items()})
    for network, nodes, values in zip((model, qmodel), ends, kept, strict=True):
        Tapped(network.graph_module, nodes, values.__setitem__).run(*inputs)
    for layer, value in qlab.evaluate(qmodel, part).sqnr.items():
        a, b = (values[qmodel.outputs[layer]].detach().double() for values in kept)
        assert value == pytest.approx(10 * math.log10(float(a.square().sum() / (a - b).square().sum())), abs=1e-6)


def test_json_round_trip(residual):
    model, data, calib = residual
    result = qlab.evaluate(qlab.convert(model, qlab.presets["x86"], calib), data.evaluation.subset(range(100)))
    again = Evaluation.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.to_dict() == result.to_dict()


def test_labels_that_do_not_fit(picker):
    data = qlab.load_dataset(np.zeros((3, 4), np.float32), np.zeros((3, 2), np.int64))
    with pytest.raises(DataMismatch, match=r"\[3, 2\]"):
        qlab.evaluate(picker, data)


def test_labels_out_of_range(picker):
    with pytest.raises(DataMismatch, match=r"label is 7.*4 classes"):
        qlab.evaluate(picker, qlab.load_dataset(np.zeros((3, 4), np.float32), np.array([0, 7, 1])))


def test_segmentation_and_sequence_outputs():
    class Pixels(nn.Module):
        def forward(self, x):
            return x * 1.0

    model = qlab.load_model(Pixels().eval(), torch.randn(2, 3, 4, 5))
    x = np.random.default_rng(0).normal(size=(6, 3, 4, 5)).astype(np.float32)
    result = qlab.evaluate(model, qlab.load_dataset(x, x.argmax(1)))
    assert result.accuracy == 1.0
    assert result.predicted == 6 * 20


def test_one_logit_is_a_yes_or_no():
    class Yes(nn.Module):
        def forward(self, x):
            return x.sum(1, keepdim=True)

    model = qlab.load_model(Yes().eval(), torch.randn(2, 3))
    x = np.array([[1, 1, 1], [-1, -1, -1]], np.float32)
    assert qlab.evaluate(model, qlab.load_dataset(x, np.array([1, 0]))).accuracy == 1.0


def test_a_fixed_batch_is_filled_up_and_cut_again():
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Picker().eval(), (torch.randn(4, 4),)), buffer)
    model = qlab.load_model(buffer.getvalue())
    classes = np.arange(10) % 4
    result = qlab.evaluate(model, qlab.load_dataset(one_hot(classes), classes))
    assert (result.accuracy, result.n) == (1.0, 10)


def test_nan_output_is_named():
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt(x)

    model = qlab.load_model(Root().eval(), torch.rand(2, 4))
    with pytest.raises(NonFinite, match="batch 1"):
        qlab.evaluate(model, qlab.load_dataset(np.array([[1.0] * 4] * 3 + [[-1.0] * 4], np.float32)), batch_size=2)


def test_unknown_backend(residual):
    with pytest.raises(InvalidConfig, match="simulated"):
        qlab.evaluate(residual[0], residual[1], backend="magic")


def test_integer_evaluation_is_that_of_the_runtime_and_says_so(residual):
    model, data = residual[:2]
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, data))
    simulated, integer = (qlab.evaluate(qmodel, data, backend=b) for b in ("simulated", "integer"))
    assert (simulated.backend, integer.backend) == ("simulated", "integer")
    session = qmodel.integer_session()
    by_hand = np.concatenate([session(*x).argmax(1).numpy() for _, x, _ in data.evaluation.batches(64)])
    np.testing.assert_array_equal(integer.predictions, by_hand)
    assert (integer.predictions == simulated.predictions).mean() >= 0.995
    assert set(integer.sqnr) <= set(simulated.sqnr)
    assert all(integer.sqnr[k] == pytest.approx(simulated.sqnr[k], abs=0.2) for k in integer.sqnr)
    assert len(integer.sqnr) >= 5
    assert type(integer).from_dict(integer.to_dict()).backend == "integer"


@pytest.mark.parametrize("name", ["conv_digits", "lstm_text", "transformer_text"])
def test_batches_side_by_side_give_what_they_give_one_by_one(name):
    """The runtime's LSTM ranges each thread's share of a batch by itself; everything else is free of threads."""
    model, data = qlab.load_model(name), qlab.load_dataset(name)
    part = data.evaluation.subset(range(150))
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, data.calibration.subset(range(64))))
    session = qmodel.integer_session()
    assert session.options.threads is None
    outputs = [session(*x) for _, x, _ in part.batches(16)]
    with_taps, without = (
        qlab.evaluate(qmodel, part, batch_size=16, backend="integer", sqnr_samples=n) for n in (40, 0)
    )
    for result in (with_taps, without):
        np.testing.assert_array_equal(result.predictions, torch.cat(outputs).argmax(-1).numpy())
    again = qlab.evaluate(qmodel, part, batch_size=16, backend="integer", sqnr_samples=40)
    assert again.to_dict() == with_taps.to_dict()
    forward = Forward(qmodel, part, 16, "integer", 0)
    with forward.run() as batches:
        for batch, output in zip(batches, outputs, strict=True):
            assert torch.equal(batch.output, output)


def test_so_many_batches_at_once_as_torch_has_threads(residual):
    qmodel = qlab.convert(residual[0], qlab.presets["x86"], residual[2])
    for threads, batches, expected in [(1, 9, (1, 1)), (4, 9, (4, 1)), (4, 3, (3, 2)), (4, 1, (1, 4))]:
        torch.set_num_threads(threads)
        parallel, options = at_once(qmodel, batches)
        assert (parallel, options.threads) == expected


def test_cancelling_on_integers_leaves_nothing_behind(residual):
    model, data, calib = residual
    qmodel, told = qlab.convert(model, qlab.presets["x86"], calib), []

    def progress(stage, done, total):
        told.append((stage, done, total))
        if done == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        qlab.evaluate(qmodel, data.evaluation, None, 16, "integer", progress)
    total = -(-len(data.evaluation) // 16)
    assert told == [("evaluate integer", n, total) for n in range(4)]
    assert not [t for t in threading.enumerate() if t.name.startswith("batch")]


def test_a_fixed_batch_on_integers():
    torch.manual_seed(0)
    buffer, module = io.BytesIO(), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    torch.export.save(torch.export.export(module, (torch.randn(4, 4),)), buffer)
    model = qlab.load_model(buffer.getvalue())
    data = qlab.load_dataset(np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32))
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, data))
    for count in (10, 3):
        part = data.subset(range(count))
        simulated, integer = (qlab.evaluate(qmodel, part, backend=b) for b in ("simulated", "integer"))
        assert (integer.n, integer.predicted) == (count, count)
        np.testing.assert_array_equal(integer.predictions, simulated.predictions)


def test_a_batch_holds_a_sample(picker):
    for size in (0, -4):
        with pytest.raises(DataMismatch, match="at least 1"):
            qlab.evaluate(picker, qlab.load_dataset(one_hot([0, 1])), batch_size=size)


def test_a_float_model_has_no_integers(residual):
    with pytest.raises(InvalidConfig, match="convert"):
        qlab.evaluate(residual[0], residual[1], backend="integer")


@pytest.mark.parametrize("backend", ["simulated", "integer"])
def test_it_ends_where_it_is_told_to_and_measures_what_it_saw(residual, backend):
    model, data, calib = residual
    qmodel, part = qlab.convert(model, qlab.presets["x86"], calib), data.evaluation
    whole = qlab.evaluate(qmodel, part, backend=backend)
    given = []

    def keep_going(predictions):
        given.append(predictions)
        return len(predictions) < 48

    result = qlab.evaluate(qmodel, part, batch_size=16, backend=backend, keep_going=keep_going)
    assert [len(g) for g in given] == [16, 32, 48]
    assert all(np.array_equal(g, whole.predictions[: len(g)]) for g in given)
    assert (result.n, result.predicted, result.backend) == (48, 48, backend)
    right = int((whole.predictions[:48] == part.targets[:48]).sum())
    assert (result.accuracy, result.accuracy_interval) == (right / 48, wilson_interval(right, 48))
    assert result.agreement == (result.predictions == qlab.evaluate(model, part.subset(range(48))).predictions).mean()
    # Of the samples seen, though more batches may have been on their way.
    assert result.sqnr == qlab.evaluate(qmodel, part.subset(range(48)), batch_size=16, backend=backend).sqnr
    reference = qlab.evaluate(model, part)
    again = qlab.evaluate(qmodel, part, reference, 16, backend, keep_going=lambda predictions: len(predictions) < 48)
    assert again.to_dict() == result.to_dict()


def test_it_goes_on_to_the_end_where_nobody_ends_it(residual):
    model, data, calib = residual
    part = data.evaluation.subset(range(50))
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    asked = []
    result = qlab.evaluate(qmodel, part, batch_size=16, keep_going=lambda p: asked.append(len(p)) or True)
    assert asked == [16, 32, 48, 50]
    assert result.to_dict() == qlab.evaluate(qmodel, part, batch_size=16).to_dict()


def test_the_first_samples_of_an_evaluation(residual):
    model, data, calib = residual
    part = data.evaluation
    whole = qlab.evaluate(qlab.convert(model, qlab.presets["x86"], calib), part)
    cut, own = whole.first(40, part.targets), qlab.evaluate(model, part.subset(range(40)))
    np.testing.assert_array_equal(cut.predictions, whole.predictions[:40])
    right = int((whole.predictions[:40] == part.targets[:40]).sum())
    assert (cut.accuracy, cut.accuracy_interval) == (right / 40, wilson_interval(right, 40))
    assert (cut.n, cut.predicted, cut.agreement, cut.sqnr, cut.backend) == (40, 40, None, {}, "simulated")
    assert qlab.compare(own, cut, part.targets[:40]).n == 40
    assert (whole.first(40, None).accuracy, whole.first(40, None).accuracy_interval) == (None, None)
    assert whole.first(40, part.targets[:40]).to_dict() == cut.to_dict()
    for samples in (0, whole.n + 1):
        with pytest.raises(DataMismatch, match=f"no first {samples:,}"):
            whole.first(samples, part.targets)
    with pytest.raises(DataMismatch, match="no predictions"):
        replace(whole, predictions=None).first(40, part.targets)


def test_the_first_samples_count_samples_where_each_has_several_predictions():
    predictions = np.arange(12).reshape(4, 3)
    whole = Evaluation(1.0, (0.7, 1.0), None, {}, 4, 12, predictions)
    cut = whole.first(2, np.where(predictions == 1, 0, predictions))
    assert (cut.n, cut.predicted, cut.accuracy) == (2, 6, 5 / 6)


def test_cifar_x86_keeps_the_accuracy(cifar):
    model, train, test = cifar
    reference = qlab.evaluate(model, test)
    assert reference.accuracy == 0.915
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, train))
    result = qlab.evaluate(qmodel, test, reference=reference)
    assert result.accuracy >= 0.909
    assert result.agreement >= 0.98
