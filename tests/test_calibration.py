"""One pass that collects everything, merges exactly, and names what is wrong."""

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.errors import Cancelled, DataMismatch, NonFinite, NotObserved


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(64, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return qlab.load_model(Small().eval(), torch.randn(2, 3, 4, 4))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(50, 3, 4, 4)).astype(np.float32)


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        left, right = a[name].to_arrays(), b[name].to_arrays()
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=f"{name} {key}")


def test_statistics_are_those_of_the_tensors(small, images):
    calib = qlab.calibrate(small, qlab.load_dataset(images), batch_size=16)
    with torch.no_grad():
        x = torch.from_numpy(images)
        relu = torch.relu(nn.functional.conv2d(x, *_constants(small, "conv"), padding=1))
    stats = calib["relu"]
    assert stats.batches == 4
    assert stats.count == relu.numel()
    assert stats.minimum == float(relu.min())
    assert stats.maximum == pytest.approx(float(relu.max()), rel=1e-6)
    np.testing.assert_allclose(stats.channel_maximum, relu.amax((0, 2, 3)), rtol=1e-6)
    assert stats.zeros == int((relu == 0).sum())
    assert calib["x"].mean == pytest.approx(images.mean(), abs=1e-6)


def _constants(model, layer):
    node = model.node(layer)
    return [model.graph_module.get_parameter(a.target) for a in node.args[1:3]]


def test_a_view_is_found_under_both_names_and_stored_once(small, images):
    calib = qlab.calibrate(small, qlab.load_dataset(images))
    assert calib.aliases == {"flatten": "relu"}
    assert calib["flatten"] is calib["relu"]
    assert set(calib) == {"x", "conv", "relu", "flatten", "fc"}


def test_halves_merge_to_the_whole_in_any_order(small, images):
    data = qlab.load_dataset(images)
    whole = qlab.calibrate(small, data, batch_size=10)
    a = qlab.calibrate(small, data.subset(range(20)), batch_size=10)
    b = qlab.calibrate(small, data.subset(range(20, 50)), batch_size=10)
    same(qlab.merge_calibrations([a, b]), whole)
    same(qlab.merge_calibrations([b, a]), whole)
    assert qlab.merge_calibrations([b, a]).samples == 50


def test_calibrations_of_other_models_do_not_merge(small, images):
    other = qlab.load_model(Small().eval(), torch.randn(2, 3, 4, 4))
    data = qlab.load_dataset(images)
    with pytest.raises(DataMismatch, match="different models"):
        qlab.merge_calibrations([qlab.calibrate(small, data), qlab.calibrate(other, data)])
    with pytest.raises(DataMismatch, match="no calibration"):
        qlab.merge_calibrations([])


def test_save_and_load(small, images, tmp_path):
    calib = qlab.calibrate(small, qlab.load_dataset(images))
    calib.save(tmp_path / "c.npz")
    again = qlab.Calibration.load(tmp_path / "c.npz")
    same(calib, again)
    again.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()
    assert (again.samples, again.model_hash, again.aliases) == (50, small.content_hash, calib.aliases)


def test_an_unknown_tensor_is_named(small, images):
    with pytest.raises(NotObserved, match="layer9"):
        qlab.calibrate(small, qlab.load_dataset(images))["layer9"]


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["NaN", "Inf"])
def test_broken_data_is_named_at_the_door(images, bad):
    broken = images.copy()
    broken[7, 0, 0, 0] = bad
    with pytest.raises(NonFinite, match="7"):
        qlab.load_dataset(broken)


def test_nan_inside_the_network_names_tensor_and_batch(images):
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x.flatten(1) + 3.2).sum(1, keepdim=True)

    model = qlab.load_model(Log().eval(), torch.rand(2, 3, 4, 4))
    quiet = np.abs(images)
    quiet[33, 1] = -5.0
    with pytest.raises(NonFinite, match=r"log.*sample 32"):
        qlab.calibrate(model, qlab.load_dataset(quiet), batch_size=16)


def test_minus_infinity_on_its_way_into_a_softmax_is_counted_and_left_out():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    model = qlab.load_model(Causal().eval(), torch.randn(2, 5, 8))
    data = qlab.load_dataset(np.random.default_rng(0).normal(size=(9, 5, 8)).astype(np.float32))
    calib = qlab.calibrate(model, data)
    assert list(calib.infinite.values()) == [9 * 10]
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    assert torch.isfinite(qmodel(torch.randn(3, 5, 8))).all()


def test_progress_counts_batches_and_may_stop(small, images):
    seen = []
    qlab.calibrate(small, qlab.load_dataset(images), 16, lambda *a: seen.append(a))
    assert seen == [("calibrate", i, 4) for i in range(5)]

    def stop(stage, done, total):
        if done == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        qlab.calibrate(small, qlab.load_dataset(images), 16, stop)


def test_one_sample_is_enough_and_none_is_not(small, images):
    assert qlab.calibrate(small, qlab.load_dataset(images[:1])).samples == 1
    with pytest.raises(DataMismatch):
        qlab.calibrate(small, qlab.load_dataset(images).subset([]))


def test_wrong_shape_is_told(small):
    with pytest.raises(DataMismatch, match=r"\[10, 3, 4, 5\]"):
        qlab.calibrate(small, qlab.load_dataset(np.zeros((10, 3, 4, 5), np.float32)))


def test_a_fixed_batch_takes_whole_batches_only(images):
    import io

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Small().eval(), (torch.randn(8, 3, 4, 4),)), buffer)
    model = qlab.load_model(buffer.getvalue())
    calib = qlab.calibrate(model, qlab.load_dataset(images))
    assert calib.samples == 48
    with pytest.raises(DataMismatch, match="exactly 8"):
        qlab.calibrate(model, qlab.load_dataset(images[:5]))


def test_memory_does_not_grow_with_the_batches(small):
    """What a calibration keeps for each further batch is a few numbers a tensor."""
    data = qlab.load_dataset(np.random.default_rng(0).normal(size=(400, 3, 4, 4)).astype(np.float32))

    def kept(samples):
        stats = qlab.calibrate(small, data.subset(range(samples)), batch_size=4)["relu"]
        arrays = {k: v for k, v in stats.to_arrays().items() if k.startswith("batch_")}
        return sum(a.nbytes for a in arrays.values()) / stats.batches

    assert kept(400) == kept(40) <= 64
