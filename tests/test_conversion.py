"""Conversion: the simulation computes what the ledger says, and the integers are the truth."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.config import QSCHEMES, QConfig, QConfigMapping, QuantSpec
from qlab.errors import DataMismatch, InvalidConfig, NonFinite, NotObserved
from qlab.samples import sample_names
from tests.networks import Twice

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
A8 = QuantSpec(bits=8)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(64, 8)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    module = Small().eval()
    model = qlab.load_model(module, torch.randn(2, 3, 4, 4))
    x = np.random.default_rng(0).normal(size=(64, 3, 4, 4)).astype(np.float32)
    return module, model, qlab.calibrate(model, qlab.load_dataset(x)), torch.from_numpy(x)


def test_static_by_hand(small):
    module, model, calib, x = small
    qmodel = qlab.convert(model, QConfigMapping(default=QConfig(weight=W8, activation=A8)), calib)

    def fq(t, low, high):
        observer = torch.ao.quantization.MinMaxObserver(dtype=torch.quint8)
        observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)
        scale, zero_point = observer.calculate_qparams()
        return torch.fake_quantize_per_tensor_affine(t, float(scale), int(zero_point), 0, 255)

    def fw(w):
        observer = torch.ao.quantization.PerChannelMinMaxObserver(
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric
        )
        observer(w)
        scale, zero_point = observer.calculate_qparams()
        return torch.fake_quantize_per_channel_affine(w, scale, zero_point.int(), 0, -128, 127)

    with torch.no_grad():
        a = fq(x, calib["x"].minimum, calib["x"].maximum)
        h = torch.relu(nn.functional.conv2d(a, fw(module.conv.weight), module.conv.bias, padding=1))
        h = fq(h, calib["relu"].minimum, calib["relu"].maximum).flatten(1)
        y = nn.functional.linear(h, fw(module.fc.weight), module.fc.bias)
        y = fq(y, calib["fc"].minimum, calib["fc"].maximum)
    assert torch.equal(qmodel(x), y)


def test_dynamic_by_hand(small):
    module, model, _, x = small
    qmodel = qlab.convert(model, QConfigMapping(default=QConfig(weight=W8, activation=A8, mode="dynamic")))
    with torch.no_grad():
        h = torch.relu(module.conv(x)).flatten(1)
        a = qlab.fake_quantize(h, qlab.choose_qparams(h, A8))
        w = qmodel.weights["fc"].dequantize()
        y = nn.functional.linear(a, w, module.fc.bias)
    torch.testing.assert_close(qmodel(x), y)


def test_the_float_model_is_not_changed(small):
    _, model, calib, x = small
    before, code = model(x).clone(), model.graph_module.code
    params = {k: v.clone() for k, v in model.graph_module.state_dict().items()}
    qmodel = qlab.convert(model, qlab.presets["w4a8"], calib)
    for tensor in qmodel.weights.values():
        tensor.codes.zero_()
    qmodel(x)
    assert torch.equal(model(x), before)
    assert model.graph_module.code == code
    assert all(torch.equal(v, params[k]) for k, v in model.graph_module.state_dict().items())


def test_codes_scale_and_zero_point_are_the_truth(small):
    _, model, calib, x = small
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    weight = qmodel.weights["conv"]
    assert weight.codes.shape == (4, 3, 3, 3)
    assert weight.codes.dtype == torch.int8
    before = qmodel(x)
    weight.codes[0, 0, 0, 0] += 40
    assert not torch.equal(qmodel(x), before)
    key = next(k for k, v in qmodel.state_dict().items() if v.data_ptr() == weight.codes.data_ptr())
    assert qmodel.state_dict()[key][0, 0, 0, 0] == weight.codes[0, 0, 0, 0]
    weight.codes[0, 0, 0, 0] -= 40
    assert torch.equal(qmodel(x), before)
    weight.scale.mul_(2)
    assert not torch.equal(qmodel(x), before)


def test_no_float_copy_of_a_quantized_weight_is_kept(small):
    _, model, calib, _ = small
    floats = {
        tuple(v.shape)
        for k, v in qlab.convert(model, qlab.presets["x86"], calib).state_dict().items()
        if v.is_floating_point() and "scale" not in k
    }
    assert floats == {(4,), (8,)}


@pytest.mark.parametrize("qscheme", QSCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_every_scheme_and_width_of_weights(small, qscheme, bits):
    _, model, calib, x = small
    group = 16 if "group" in qscheme else None
    spec = QuantSpec(bits=bits, qscheme=qscheme, group_size=group)
    qmodel = qlab.convert(model, QConfigMapping(default=QConfig(weight=spec, activation=A8)), calib)
    weight = qmodel.weights["fc"]
    assert weight.codes.min() >= spec.quant_min
    assert weight.codes.max() <= spec.quant_max
    expected = {"tensor": (), "channel": (8,), "group": (8, 4)}[spec.granularity]
    assert weight.scale.shape == expected
    assert torch.isfinite(qmodel(x)).all()


@pytest.mark.parametrize("bits", [2, 4, 7, 8, 12, 16])
@pytest.mark.parametrize("observer", ["min_max", "moving_average", "percentile", "mse", "entropy"])
def test_every_observer_and_width_of_activations(small, bits, observer):
    _, model, calib, x = small
    for qscheme in ("per_tensor_affine", "per_tensor_symmetric"):
        activation = QuantSpec(bits=bits, qscheme=qscheme, observer=observer)
        qmodel = qlab.convert(model, QConfigMapping(default=QConfig(weight=W8, activation=activation)), calib)
        assert torch.isfinite(qmodel(x)).all()


def test_error_falls_as_bits_rise(residual):
    model, data, calib = residual
    part = data.evaluation.subset(range(128))
    sqnr = []
    for bits in (2, 4, 6, 8, 12):
        weight = W8.replace(bits=min(bits, 8))
        mapping = QConfigMapping(default=QConfig(weight=weight, activation=A8.replace(bits=bits)))
        sqnr.append(qlab.evaluate(qlab.convert(model, mapping, calib), part).sqnr["fc"])
    assert sqnr == sorted(sqnr)
    assert sqnr[3] - sqnr[1] > 12


def test_per_channel_activations_run_and_the_ledger_says_simulated_only(small):
    _, model, calib, x = small
    mapping = QConfigMapping(default=QConfig(weight=W8, activation=QuantSpec(qscheme="per_channel_affine")))
    qmodel = qlab.convert(model, mapping, calib)
    assert qmodel.activations["relu"].scale.shape == (4,)
    assert torch.isfinite(qmodel(x)).all()
    assert any("simulated only" in note for row in qmodel.ledger for note in row.notes)
    bad = QConfig(weight=W8, activation=QuantSpec(qscheme="per_channel_affine", observer="mse"))
    with pytest.raises(InvalidConfig, match=r"minimum|min"):
        qlab.convert(model, QConfigMapping(default=bad), calib)


def test_static_without_a_calibration_names_the_tensor(small):
    _, model, _, _ = small
    with pytest.raises(NotObserved, match="calibrate"):
        qlab.convert(model, qlab.presets["x86"])


def test_a_calibration_of_another_model_is_refused(small):
    _, model, _, x = small
    other = qlab.load_model(Small().eval(), torch.randn(2, 3, 4, 4))
    calib = qlab.calibrate(other, qlab.load_dataset(x.numpy()))
    with pytest.raises(DataMismatch, match="another model"):
        qlab.convert(model, qlab.presets["x86"], calib)


def test_a_preset_name_is_not_a_mapping(small):
    with pytest.raises(InvalidConfig, match="presets"):
        qlab.convert(small[1], "x86", small[2])


def test_dead_and_constant_tensors_have_a_scale_and_a_line():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)
            self.fc = nn.Linear(3, 2)
            with torch.no_grad():
                self.conv.weight[1].zero_()
                self.conv.bias[:] = torch.tensor([-100.0, -1.0, -100.0])

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    model = qlab.load_model(Dead().eval(), torch.randn(2, 2, 4, 4))
    x = np.random.default_rng(0).normal(size=(16, 2, 4, 4)).astype(np.float32)
    for preset in ("x86", "onnxruntime", "arm", "tensorrt", "tflite"):
        qmodel = qlab.convert(model, qlab.presets[preset], qlab.calibrate(model, qlab.load_dataset(x)))
        assert torch.isfinite(qmodel(torch.from_numpy(x))).all()
        for point in qmodel.activations.values():
            assert torch.isfinite(point.scale).all()
            assert (point.scale > 0).all()
        notes = {row.layer: " ".join(row.notes) for row in qmodel.ledger}
        assert "1 of 3 channels" in notes["conv"]
        assert "zero" in notes["relu"]


def test_a_broken_weight_is_named():
    module = Small().eval()
    with torch.no_grad():
        module.fc.weight[0, 0] = float("nan")
    model = qlab.load_model(module, torch.randn(2, 3, 4, 4))
    with pytest.raises(NonFinite, match=r"fc\.weight"):
        qlab.convert(model, qlab.presets["int8_weight_only"])


def test_a_model_without_a_quantizable_op_stays_float_and_says_so():
    class Plain(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1)

    model = qlab.load_model(Plain().eval(), torch.randn(2, 4))
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, qlab.load_dataset(x)))
    assert not any(row.quantized for row in qmodel.ledger)
    assert "cumsum" in qmodel.ledger[0].reason
    assert torch.equal(qmodel(torch.from_numpy(x)), model(torch.from_numpy(x)))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_recurrent_written_out_equals_the_op_when_the_grid_is_fine(kind, bidirectional, batch_first):
    torch.manual_seed(0)
    module = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](6, 8, 2, bidirectional=bidirectional, batch_first=batch_first)
    x = torch.randn(5, 5, 6)
    model = qlab.load_model(module.eval(), x)
    fine = QConfig(weight=W8, activation=QuantSpec(bits=16), mode="dynamic")
    qmodel = qlab.convert(model, QConfigMapping(default=fine))
    rough = qlab.convert(model, QConfigMapping(default=fine.replace(activation=A8.replace(bits=4))))
    weight_only = qlab.convert(model, QConfigMapping(default=QConfig(weight=W8, mode="weight_only")))
    expected = weight_only(x)[0]
    torch.testing.assert_close(qmodel(x)[0], expected, rtol=0, atol=2e-3)
    assert (rough(x)[0] - expected).abs().max() > 2e-3


def test_recurrent_weights_have_names_of_their_own():
    model = qlab.load_model(nn.LSTM(4, 6, 2).eval(), torch.randn(3, 2, 4))
    qmodel = qlab.convert(model, qlab.presets["int8_weight_only"])
    names = {f"weight_{a}_l{i}" for a in ("ih", "hh") for i in (0, 1)}
    assert {k.split(".")[-1] for k in qmodel.weights} == names


def test_size_counts_packed_bits(small):
    _, model, calib, _ = small
    for bits in (8, 4, 3):
        mapping = QConfigMapping(default=QConfig(weight=W8.replace(bits=bits), mode="weight_only"))
        size = qlab.convert(model, mapping, calib).size
        assert size.codes == -(-108 * bits // 8) + -(-512 * bits // 8)
        assert size.scales == 4 * (4 + 8)
        assert size.zero_points == 0
        assert size.float_rest == 4 * (4 + 8)
        assert size.float_bytes == 4 * (108 + 4 + 512 + 8)
        assert size.quantized_bytes == size.codes + size.scales + size.float_rest


def test_a_shared_weight_is_stored_once():
    model = qlab.load_model(Twice().eval(), torch.randn(2, 8))
    qmodel = qlab.convert(model, qlab.presets["int8_weight_only"])
    assert qmodel.weights["fc"] is qmodel.weights["fc@1"]
    assert qmodel.size.codes == 64


@pytest.mark.parametrize("name", sample_names())
def test_every_sample_converts_with_every_preset(name):
    model, data = qlab.load_model(name), qlab.load_dataset(name)
    calib = qlab.calibrate(model, data.calibration.subset(range(64)))
    (_, x, _), *_ = data.evaluation.subset(range(16)).batches(16)
    for preset in qlab.presets:
        qmodel = qlab.convert(model, qlab.presets[preset], calib)
        assert torch.isfinite(qmodel(*x)).all(), preset
        assert qmodel.size.quantized_bytes <= qmodel.size.float_bytes, preset


def test_the_same_spec_gives_the_same_result_bit_for_bit(residual):
    model, data, calib = residual
    (_, x, _), *_ = data.evaluation.subset(range(64)).batches(64)
    again = qlab.calibrate(model, data)
    mapping = qlab.presets["x86"]
    a, b = qlab.convert(model, mapping, calib), qlab.convert(copy.copy(model), mapping, again)
    assert torch.equal(a(*x), b(*x))


class Added(nn.Module):
    """A weight, a constant that is an input, and an activation for each kind of grid."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("shift", torch.linspace(-1, 1, 8))

    def forward(self, x):
        return torch.relu(self.fc(x)) + self.shift


def grids_and_codes(qmodel):
    """What convert makes; the constants that stay float are those of the float model."""
    return {k: v for k, v in qmodel.state_dict().items() if k.split(".")[-1] in ("codes", "scale", "zero_point")}


def test_writing_to_one_quantized_model_reaches_no_other_and_no_later_one():
    torch.manual_seed(0)
    model = qlab.load_model(Added().eval(), torch.randn(2, 8))
    x = torch.randn(64, 8)
    calib = qlab.calibrate(model, qlab.load_dataset(x.numpy()))
    for spec in (W8, QuantSpec(bits=4, qscheme="per_group_affine", group_size=4), QuantSpec(observer="mse")):
        mapping = QConfigMapping(default=QConfig(weight=spec, activation=A8))
        other = qlab.convert(model, mapping, calib)
        before = {k: v.clone() for k, v in grids_and_codes(other).items()}
        assert len(before) == 3 + 2 * len(other.activations)
        written = qlab.convert(model, mapping, calib)
        assert any("shift" in key for key in written.activations)
        for tensor in grids_and_codes(written).values():
            tensor.add_(1)
        for qmodel in (other, qlab.convert(model, mapping, calib)):
            after = grids_and_codes(qmodel)
            assert after.keys() == before.keys()
            assert all(torch.equal(v, before[k]) for k, v in after.items())
        assert not torch.equal(written(x), other(x))


def test_grids_are_chosen_once_for_each_tensor_and_spec(small, monkeypatch):
    _, model, calib, x = small
    chosen = []

    def choose(what, spec, axis=0):
        chosen.append((getattr(what, "name", None) or tuple(what.shape), spec))
        return qlab.choose_qparams(what, spec, axis)

    monkeypatch.setattr(qlab.conversion, "choose_qparams", choose)
    monkeypatch.setattr(qlab.calibration, "choose_qparams", choose)

    def convert(weight, activation):
        chosen.clear()
        return qlab.convert(model, QConfigMapping(default=QConfig(weight=weight, activation=activation)), calib)

    percentile = [A8.replace(observer="percentile", observer_args={"percentile": p}) for p in (99.0, 98.0)]
    weight = W8.replace(bits=5, observer="mse")
    first = convert(weight, percentile[0])
    assert len(chosen) == len(first.weights) + len(first.activations)
    again = convert(weight, percentile[0])
    assert chosen == []
    assert torch.equal(again(x), first(x))
    other = convert(weight, percentile[1])  # equal but for the observer's settings, which the hash leaves out
    assert len(chosen) == len(other.activations)
    assert not torch.equal(other.activations["relu"].scale, first.activations["relu"].scale)
    convert(weight.replace(bits=6), percentile[0])
    assert sorted(c[0] for c in chosen) == sorted(tuple(w.shape) for w in first.weights.values())


def test_known_grids_are_those_of_a_first_conversion(residual):
    model, data, calib = residual
    (_, x, _), *_ = data.evaluation.subset(range(16)).batches(16)
    for preset in qlab.presets:
        known = qlab.convert(model, qlab.presets[preset], calib)
        known = qlab.convert(model, qlab.presets[preset], calib)
        fresh = qlab.convert(qlab.load_model("residual_digits"), qlab.presets[preset], copy_of(calib))
        assert known.state_dict().keys() == fresh.state_dict().keys()
        assert all(torch.equal(v, known.state_dict()[k]) for k, v in fresh.state_dict().items()), preset
        assert torch.equal(known(*x), fresh(*x)), preset
        assert known.ledger == fresh.ledger, preset


def copy_of(calib):
    """With nothing chosen yet."""
    return qlab.Calibration(dict(calib._stats), calib.aliases, calib.model_hash, calib.samples)


def test_a_range_by_hand_is_the_grid():
    model = qlab.load_model("residual_digits")
    data = qlab.load_dataset("residual_digits")
    calib = qlab.calibrate(model, data)
    per_tensor = qlab.QuantSpec(8, "per_tensor_affine")
    plain = qlab.QConfigMapping(qlab.QConfig(per_tensor, qlab.QuantSpec(8)))
    layer = next(row.layer for row in qlab.convert(model, plain, calib).ledger if row.weight)
    output = qlab.convert(model, plain, calib).outputs[layer]
    mapping = plain.replace(ranges={f"{layer}.weight": (-0.25, 0.5), output: (0.0, 1.5), "nowhere": (0.0, 1.0)})
    qmodel = qlab.convert(model, mapping, calib)
    weight, activation = qmodel.weights[layer].qparams, qmodel.activations[output].qparams
    assert float(weight.scale) == pytest.approx(0.75 / 255)
    assert float(activation.high) == pytest.approx(1.5)
    assert float(activation.low) == 0
    assert qmodel.unmatched == ("range nowhere",)
    notes = {row.layer: row.notes for row in qmodel.ledger}
    assert any("set by hand" in note for note in notes[layer])
    other = next(name for name in qmodel.activations if name != output)
    assert torch.equal(qmodel.activations[other].scale, qlab.convert(model, plain, calib).activations[other].scale)


def test_a_range_by_hand_is_of_one_call_of_a_layer_that_is_called_twice(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    model = qlab.load_model(Twice().eval(), x[:2])
    calib = qlab.calibrate(model, qlab.load_dataset(x.numpy()))
    plain = QConfigMapping(default=QConfig(QuantSpec(qscheme="per_tensor_symmetric"), A8))
    observed = qlab.convert(model, plain, calib).weights["fc"].scale
    for cut, other in (("fc", "fc@1"), ("fc@1", "fc")):
        mapping = plain.replace(ranges={f"{cut}.weight": (-0.1, 0.1)})
        qmodel = qlab.convert(model, mapping, calib)
        assert float(qmodel.weights[cut].scale) == pytest.approx(0.2 / 255)
        assert torch.equal(qmodel.weights[other].scale, observed)
        assert {row.layer for row in qmodel.ledger if row.notes} == {cut}
        assert qmodel.unmatched == ()
        step = float(qmodel.activations["fc@1"].scale)
        assert (qmodel.integer_session()(x) - qmodel(x)).abs().max() <= 1.01 * step
        qmodel.save(tmp_path / "q.safetensors")
        for loaded in (qlab.load_quantized(tmp_path / "q.safetensors", given) for given in (None, model)):
            assert torch.equal(loaded(x), qmodel(x))
            assert loaded.ledger == qmodel.ledger
    both = plain.replace(ranges={"fc.weight": (-0.1, 0.1), "fc@1.weight": (-0.1, 0.1)})
    same = qlab.convert(model, both, calib).weights
    assert same["fc"] is same["fc@1"]


def test_correcting_biases_writes_each_note_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6))
    with torch.no_grad():
        net[0].weight[2] = 0
    x = torch.randn(64, 8)
    model = qlab.load_model(net.eval(), x[:2])
    mapping = QConfigMapping(default=QConfig(W8, mode="weight_only"), ranges={"0.weight": (-0.1, 0.1)})
    mapping = mapping.replace(correct_bias=True)
    (row,) = qlab.convert(model, mapping, qlab.calibrate(model, qlab.load_dataset(x.numpy()), mapping=mapping)).ledger
    assert len(row.notes) == len(set(row.notes)) == 2


def test_a_slice_may_be_the_example():
    torch.manual_seed(0)
    x, module = torch.randn(20, 3, 12), nn.Sequential(nn.Linear(8, 4)).eval()
    for example in (x[4:8, 0, :8], x[:1, 0, :8], x[:4, 0, ::2].repeat(1, 2)[:, :8], x.transpose(0, 2)[:8, 0].t()[4:]):
        model = qlab.load_model(module, example)
        assert torch.equal(model(x[:, 1, :8]), module(x[:, 1, :8]))


@pytest.mark.parametrize("bits", [8, 2])
def test_a_range_by_hand_cuts_each_channel(bits):
    model = qlab.load_model("residual_digits")
    mapping = qlab.QConfigMapping(qlab.QConfig(qlab.QuantSpec(bits, "per_channel_symmetric"), mode="weight_only"))
    layer = next(row.layer for row in qlab.convert(model, mapping).ledger if row.weight)
    before = qlab.convert(model, mapping).weights[layer].qparams
    half = (2**bits - 1) / 2
    limit = float(before.scale.median()) * half
    after = qlab.convert(model, mapping.replace(ranges={f"{layer}.weight": (-limit, limit)})).weights[layer].qparams
    wide = before.scale * half > limit
    assert wide.any()
    assert not wide.all()
    torch.testing.assert_close(after.scale[wide], torch.full((int(wide.sum()),), limit / half))
    assert torch.equal(after.scale[~wide], before.scale[~wide])
