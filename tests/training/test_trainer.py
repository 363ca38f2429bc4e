"""Training with fake quantization: where it starts, what it gives, that it can be repeated and resumed."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import BadUpload, Cancelled, DataMismatch, InvalidConfig, NonFinite
from qlab.training.history import History
from qlab.training.settings import Training
from qlab.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]


def mapping_of(weight=4, activation=4, weight_scheme="per_channel_symmetric", **more):
    return QConfigMapping(
        default=QConfig(
            QuantSpec(weight, weight_scheme, observer="mse", **more),
            QuantSpec(activation, "per_tensor_affine", observer="mse"),
        )
    )


@pytest.fixture(scope="module")
def digits():
    """A sample model, and data of which 64 train and 100 evaluate."""
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    few = data.subset(np.concatenate([data.calibration_index[:64], data.evaluation_index[:100]]))
    few = few.split(64, seed=0)
    return model, few, qlab.calibrate(model, few), qlab.evaluate(model, few)


def trainer(digits, mapping=None, *, checkpoint=None, **settings):
    model, data, calib, reference = digits
    settings = {"epochs": 2, "batch_size": 16, **settings}
    return Trainer(
        model, data, mapping or mapping_of(), calib, Training(**settings), checkpoint=checkpoint, reference=reference
    )


def same(a, b):
    """Bit for bit, whatever both store."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# ---- where it starts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [(4, 4), (8, 8), (2, 3)], ids=str)
@pytest.mark.parametrize("ranges", ["moving_average", "lsq"])
def test_it_starts_as_convert_has_it(digits, bits, ranges):
    model, _, calib, _ = digits
    begun = trainer(digits, mapping_of(*bits), ranges=ranges)
    assert same(begun.network.quantized(), qlab.convert(model, mapping_of(*bits), calib))


def test_training_computes_what_the_simulation_computes(digits):
    """To the last bit where sums of 4-bit products are exact in float32; biases in whole products included."""
    _, data, _, _ = digits
    begun = trainer(digits)
    begun.network.module.eval()
    _, inputs, _ = data.evaluation.batch(0, 32)
    with torch.no_grad():
        assert torch.equal(begun.network.module(*inputs), begun.network.start(*inputs))


def test_epoch_0_is_the_network_that_was_not_trained(digits):
    model, data, calib, reference = digits
    done = trainer(digits, epochs=1)
    done.run()
    untrained = qlab.evaluate(qlab.convert(model, mapping_of(), calib), data, reference)
    first = done.history.epochs[0]
    assert (first.accuracy, first.agreement, first.step) == (untrained.accuracy, untrained.agreement, 0)
    assert done.history.float_accuracy == reference.accuracy


def test_the_float_model_stays_as_it_was(digits):
    model = digits[0]
    before = {name: t.clone() for name, t in model.graph_module.state_dict().items()}
    trainer(digits, epochs=1).run()
    assert all(torch.equal(before[name], t) for name, t in model.graph_module.state_dict().items())
    assert not any(p.requires_grad for p in model.graph_module.parameters())


# ---- what it gives ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(digits):
    done = trainer(digits, mapping_of(2, 4), epochs=8, lr=0.01)
    return done, done.run()


def test_it_wins_back_what_two_bits_cost(digits, trained):
    _, data, _, reference = digits
    done, qmodel = trained
    after = qlab.evaluate(qmodel, data, reference)
    before = done.history.epochs[0]
    assert after.accuracy > before.accuracy + 0.2
    assert after.accuracy == done.history.epochs[done.history.best].accuracy
    assert done.history.losses[-4:].mean() < 0.7 * done.history.losses[:4].mean()


def test_the_result_is_a_quantized_model_like_any_other(digits, trained, tmp_path):
    model, data, _, reference = digits
    _, qmodel = trained
    assert qmodel.trained
    assert qmodel.has_float_original
    assert {w.bits for w in qmodel.weights.values()} == {2}
    assert any("trained" in note for row in qmodel.ledger for note in row.notes)
    simulated = qlab.evaluate(qmodel, data, reference)
    integer = qlab.evaluate(qmodel, data, reference, backend="integer")
    assert (simulated.predictions == integer.predictions).mean() >= 0.98
    path = qmodel.save(tmp_path / "trained.safetensors")
    again = qlab.load_quantized(path, model)
    assert again.trained
    assert again.has_float_original
    assert same(again, qmodel)
    alone = qlab.load_quantized(path)
    assert not alone.has_float_original
    assert same(alone, qmodel)
    # The error is that against the float network, which is not the one whose weights were trained.
    assert again.reference.content_hash == model.content_hash
    assert again.model.content_hash != model.content_hash
    assert qlab.evaluate(again, data).sqnr == pytest.approx(simulated.sqnr)


def test_another_float_model_is_refused_for_a_trained_file(trained, tmp_path):
    path = trained[1].save(tmp_path / "trained.safetensors")
    with pytest.raises(DataMismatch):
        qlab.load_quantized(path, qlab.load_model("conv_digits"))


@pytest.mark.parametrize("bits", range(2, 9))
def test_any_bits(digits, bits):
    qmodel = trainer(digits, mapping_of(bits, bits), epochs=1).run()
    for tensor in qmodel.weights.values():
        assert tensor.bits == bits
        assert tensor.codes.min() >= tensor.quant_min
        assert tensor.codes.max() <= tensor.quant_max
    assert all(g.quant_max - g.quant_min < 2**bits for g in qmodel.activations.values())


def test_groups_and_weights_alone(digits):
    spec = QuantSpec(3, "per_group_symmetric", group_size=3, observer="mse")
    # 3x3 kernels of a first layer with one channel: 9 weights behind each output channel
    mapping = QConfigMapping(by_name={"conv1": QConfig(spec, mode="weight_only")})
    done = trainer(digits, mapping, epochs=1)
    qmodel = done.run()
    assert qmodel.weights["conv1"].scale.shape == (16, 3)
    assert list(done.network.grids) == [done.network.weights["conv1"]]


@pytest.mark.parametrize("name", ["lstm_text", "transformer_text", "depthwise_digits"])
@pytest.mark.parametrize("preset", ["x86", "dynamic"])
def test_other_networks_train(name, preset):
    model, data = qlab.load_model(name), qlab.load_dataset(name)
    few = data.subset(data.calibration_index[:48]).split(32, seed=0)
    mapping = qlab.presets[preset]
    if preset == "dynamic" and name == "depthwise_digits":
        mapping = mapping.each(lambda c: c.replace(weight=c.weight.replace(bits=4)))
    calib = qlab.calibrate(model, few)
    done = Trainer(model, few, mapping, calib, Training(epochs=1, batch_size=16))
    before = {layer: done.network.master(layer).detach().clone() for layer in done.network.weights}
    done.run()
    assert all(not torch.equal(before[layer], done.network.master(layer).detach()) for layer in before)


def test_a_layer_that_is_called_twice_has_one_weight():
    from tests.networks import Twice

    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    model = qlab.load_model(Twice().eval(), x[:4])
    data = qlab.load_dataset({"x": x.numpy()}, targets=(x[:, 0] > 0).long().numpy()).split(32, seed=0)
    done = Trainer(model, data, mapping_of(), qlab.calibrate(model, data), Training(epochs=1, batch_size=16))
    qmodel = done.run()
    assert len({id(t) for t in qmodel.weights.values()}) == 1
    assert [g.role for g in done.history.grids].count("weight") == 1


# ---- ranges ----------------------------------------------------------------------------------------------------------


def test_ranges_freeze_after_their_share_of_the_steps(digits):
    done = trainer(digits, epochs=4, freeze_after=0.5)
    done.run()
    history = done.history
    moving = [g for g in history.grids if g.role == "activation"]
    half = history.record_of(2)
    for grid in moving:
        assert not grid.frozen[half]
        assert grid.frozen[half + 1 :].all()
        assert (grid.scale[half + 1 :] == grid.scale[half + 1]).all()
    assert any((g.scale[half] != g.scale[0]).any() for g in moving)
    assert [e.frozen for e in history.epochs] == [False, False, False, True, True]


def test_a_range_set_by_hand_stays(digits):
    mapping = mapping_of().replace(ranges={"conv1.weight": (-0.5, 0.5)})
    done = trainer(digits, mapping, epochs=1, ranges="lsq")
    before = done.network.weights["conv1"].scale.clone()
    done.run()
    assert torch.equal(done.network.weights["conv1"].scale, before)


def test_learned_steps_move_by_their_gradient(digits):
    done = trainer(digits, epochs=2, ranges="lsq")
    done.run()
    moved = [g.scale[-1] / g.scale[0] for g in done.history.grids]
    assert max(float(abs(m - 1).max()) for m in moved) > 0.001
    assert all((m > 0).all() for m in moved)


def test_the_largest_weights_of_channels_go_on_learning(digits):
    """A symmetric grid puts a positive extreme half a step beyond its last code, on the very end of the range."""
    mapping = mapping_of().each(lambda c: c.replace(weight=c.weight.replace(observer="min_max")))
    done = trainer(digits, mapping, epochs=1, mixing=0.0)
    done.prepare()
    done.step(0, next(done.batches()))
    still = [
        bool(((done.network.master(layer).grad == 0) & (done.network.master(layer).detach() != 0)).any())
        for layer in ("conv1", "fc")
    ]
    assert still == [False, False]


def test_a_nearly_dead_channel_stays_out_of_the_way():
    """Folded BatchNorm leaves channels of which the bias alone is left: their range must not run away."""
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(6, 8)
    with torch.no_grad():
        layer.weight[:4] *= 1e-12
        layer.bias[:4] = torch.tensor([0.05, 0.1, 0.2, 0.3])
    model = qlab.load_model(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3)).eval(), x[:4])
    data = qlab.load_dataset({"x": x.numpy()}).split(48, seed=0)
    done = Trainer(model, data, mapping_of(), qlab.calibrate(model, data), Training(epochs=20, batch_size=16, lr=0.01))
    done.run()
    assert float(done.network.weights["0"].scale[:4].max()) < 0.01
    assert done.history.epochs[-1].agreement >= 0.85


def test_a_range_keeps_its_place_where_batches_straddle_zero():
    """One outlier below zero among inputs above it: most batches have no negative extreme at all."""
    x = torch.rand(192, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    x[100, 2] = -3.8
    model = qlab.load_model(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), x[:4])
    data = qlab.load_dataset({"x": x.numpy()})
    mapping = QConfigMapping(default=QConfig(QuantSpec(8, "per_channel_symmetric"), QuantSpec(8)))
    done = Trainer(model, data, mapping, qlab.calibrate(model, data, 8), Training(epochs=3, batch_size=8, mixing=0.0))
    first = min(done.network.activations.values(), key=lambda grid: float(grid.low))  # of the input
    before = float(first.low)
    done.run()
    assert before == pytest.approx(-3.8, abs=0.05)
    assert 0.3 < float(first.low) / before < 2.0


# ---- repeatable, resumable -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"ranges": "lsq", "optimizer": "sgd", "lr": 0.01}], ids=["adam", "sgd, lsq"])
def test_the_same_call_gives_the_same_bits(digits, settings):
    one, two = trainer(digits, **settings), trainer(digits, **settings)
    assert same(one.run(), two.run())
    assert (one.history.losses == two.history.losses).all()
    assert not same(one.run(), trainer(digits, seed=1, **settings).run())


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"ranges": "lsq", "optimizer": "sgd", "validation": 0.25},
        {"freeze_after": 0.2, "patience": 2, "validation": 0.25},
    ],
    ids=["adam", "sgd, lsq, held out", "frozen, patience"],
)  # fmt: skip
def test_a_cancelled_training_goes_on_to_the_same_end(digits, tmp_path, settings):
    path = tmp_path / "training.safetensors"
    whole = trainer(digits, epochs=3, **settings)
    expected = whole.run()

    def stop(stage, done, total):
        if stage == "train" and done == whole.steps_per_epoch + 1:
            raise Cancelled("The run was stopped.")

    with pytest.raises(Cancelled):
        trainer(digits, epochs=3, checkpoint=path, **settings).run(stop)
    assert History.read(path).epochs[-1].epoch == 1
    steps = []
    resumed = trainer(digits, epochs=3, checkpoint=path, **settings)
    result = resumed.run(lambda stage, done, total: steps.append(done) if stage == "train" else None)
    assert steps[0] == whole.steps_per_epoch  # the first epoch was not done again
    assert same(result, expected)
    assert resumed.history.epochs == whole.history.epochs
    assert (resumed.history.losses == whole.history.losses).all()
    for ours, theirs in zip(resumed.history.grids, whole.history.grids, strict=True):
        assert np.array_equal(ours.flips, theirs.flips, equal_nan=True)
        assert np.array_equal(ours.histogram, theirs.histogram)
        assert np.array_equal(ours.scale, theirs.scale)


def test_a_finished_training_is_not_done_again(digits, tmp_path):
    path = tmp_path / "training.safetensors"
    expected = trainer(digits, checkpoint=path).run()
    again = trainer(digits, checkpoint=path)

    def stop(stage, done, total):
        assert done == total

    assert same(again.run(stop), expected)
    assert again.history.finished


def test_a_checkpoint_of_another_training_is_refused(digits, tmp_path):
    path = tmp_path / "training.safetensors"
    trainer(digits, checkpoint=path, epochs=1).run()
    with pytest.raises(InvalidConfig, match=path.name):
        trainer(digits, checkpoint=path, epochs=2)


def test_a_checkpoint_of_another_calibration_is_refused(digits, tmp_path):
    """It may give the same grids and still other ranges later."""
    model, data, _, reference = digits
    path, settings = tmp_path / "training.safetensors", Training(epochs=1, batch_size=16)
    mapping = qlab.presets["onnxruntime"]
    calibs = [qlab.calibrate(model, data, size) for size in (64, 16)]
    Trainer(model, data, mapping, calibs[0], settings, checkpoint=path, reference=reference).run()
    with pytest.raises(InvalidConfig, match=path.name):
        Trainer(model, data, mapping, calibs[1], settings, checkpoint=path, reference=reference)


def test_a_damaged_checkpoint_is_told(digits, tmp_path):
    path = tmp_path / "training.safetensors"
    trainer(digits, checkpoint=path, epochs=1).run()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BadUpload, match="damaged"):
        trainer(digits, checkpoint=path, epochs=1)


KILLED = """
import sys, torch, numpy as np, qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
torch.set_num_threads(1)
model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
few = data.subset(np.concatenate([data.calibration_index[:64], data.evaluation_index[:20]])).split(40, seed=0)
mapping = QConfigMapping(default=QConfig(
    QuantSpec(3, "per_channel_symmetric", observer="mse"), QuantSpec(4, "per_tensor_affine", observer="mse")))
qmodel = qlab.train_qat(model, few, mapping, qlab.calibrate(model, few), epochs=int(sys.argv[3]), batch_size=8,
                        checkpoint=sys.argv[1] or None, progress=lambda s, d, t: print(s, d, flush=True))
qmodel.save(sys.argv[2])
"""


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    """kill -9 in the middle of an epoch, after a checkpoint; the file of the result is the same to the last byte."""
    checkpoint, script = tmp_path / "training.safetensors", tmp_path / "train.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    epochs = "12"

    def command(point, result):
        return [sys.executable, str(script), str(point), str(tmp_path / result), epochs]

    whole = subprocess.Popen(command("", "whole.safetensors"), env=environment, stdout=subprocess.DEVNULL)
    with subprocess.Popen(
        command(checkpoint, "killed.safetensors"), env=environment, stdout=subprocess.PIPE, text=True
    ) as killed:
        for line in killed.stdout:
            if line.startswith("train ") and int(line.split()[1]) >= 13:
                break
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.safetensors").exists()
    reached = History.read(checkpoint)
    assert not reached.finished
    assert 0 < reached.epochs[-1].epoch < int(epochs)
    resumed = subprocess.run(
        command(checkpoint, "resumed.safetensors"), env=environment, capture_output=True, text=True, check=True
    )
    assert f"train {reached.epochs[-1].step}\n" in resumed.stdout
    assert "train 0\n" not in resumed.stdout
    assert whole.wait() == 0
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "resumed.safetensors").read_bytes()


# ---- the best epoch --------------------------------------------------------------------------------------------------


def test_the_best_epoch_on_what_was_held_out_is_the_result(digits):
    done = trainer(digits, validation=0.25, epochs=3, lr=0.05)
    done.run()
    losses = [e.validation_loss for e in done.history.epochs]
    assert done.history.best == int(np.argmin(losses))
    assert done.history.samples == (48, 16)


def test_training_ends_when_nothing_gets_better(digits):
    done = trainer(digits, mapping_of(8, 8), validation=0.25, epochs=20, lr=1.0, patience=2)
    try:
        done.run()
    except NonFinite:
        pytest.skip("diverged before it could stop")
    assert len(done.history.epochs) - 1 == done.history.best + 2


def test_without_samples_held_out_the_last_epoch_is_the_result(digits):
    done = trainer(digits, epochs=2)
    done.run()
    assert done.history.best == 2
    assert all(e.validation_loss is None for e in done.history.epochs)


# ---- what cannot be trained ------------------------------------------------------------------------------------------


def test_a_config_that_quantizes_nothing_is_refused(digits):
    with pytest.raises(InvalidConfig, match="quantizes nothing"):
        trainer(digits, QConfigMapping())


def test_divergence_is_told_with_the_learning_rate():
    x = torch.randn(64, 3, 6, generator=torch.Generator().manual_seed(0))
    model = qlab.load_model(nn.Sequential(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)).eval(), x[:4])
    data = qlab.load_dataset({"x": x.numpy()}).split(32, seed=0)
    settings = Training(optimizer="sgd", lr=10.0, epochs=20, batch_size=4)
    with pytest.raises(NonFinite, match="learning rate"):
        Trainer(model, data, qlab.presets["int8_weight_only"], None, settings).run()


def test_settings_are_given_one_way(digits):
    model, data, calib, _ = digits
    with pytest.raises(InvalidConfig, match="not both"):
        qlab.train_qat(model, data, mapping_of(), calib, training=Training(), epochs=3)


def test_a_network_for_one_batch_size_trains_on_whole_batches():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(model, (x[:8],))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    fixed = qlab.load_model(buffer.getvalue())
    assert fixed.fixed_batch == 8
    data = qlab.load_dataset({"x": x.numpy()}, targets=np.arange(50) % 3).split(20, seed=0)
    done = Trainer(fixed, data, mapping_of(), qlab.calibrate(fixed, data), Training(epochs=1, batch_size=32))
    done.run()
    assert done.steps_per_epoch == 2
    few, calib = data.split(12, seed=0), qlab.calibrate(fixed, data)
    held = Training(epochs=1, validation=0.2)  # 4 of 20, fewer than the network takes at once
    some = Trainer(fixed, data, mapping_of(), qlab.calibrate(fixed, data), held)
    some.run()
    assert all(e.validation_loss is not None for e in some.history.epochs)
    with pytest.raises(DataMismatch, match="8 samples at once"):
        Trainer(fixed, few, mapping_of(), calib, Training(validation=0.5))
