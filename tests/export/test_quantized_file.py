"""A quantized model saved to one file and loaded again: the same bits, without the float model."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

import qlab
from qlab.config import QConfigMapping
from qlab.errors import DataMismatch, InvalidConfig, NonFinite
from qlab.export.quantized_file import quantized_bytes
from qlab.samples import sample_names
from tests.export.saved_networks import A8, NETWORKS, W8, every, network

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


def assert_equal_models(loaded, saved, inputs):
    ours, theirs = loaded(*inputs), saved(*inputs)
    for a, b in zip(*(o if isinstance(o, tuple) else (o,) for o in (ours, theirs)), strict=True):
        assert torch.equal(a, b)
    state, expected = loaded.state_dict(), saved.state_dict()
    assert list(state) == list(expected)
    for key in expected:
        assert state[key].dtype == expected[key].dtype
        assert torch.equal(state[key], expected[key]), key
    for what in ("ledger", "unmatched", "outputs", "size", "mapping", "infinite", "name", "inputs", "float_hash"):
        assert getattr(loaded, what) == getattr(saved, what), what
    for what in ("weights", "activations", "points", "output_nodes"):
        assert list(getattr(loaded, what)) == list(getattr(saved, what)), what
    assert loaded.graph_module.code == saved.graph_module.code
    assert [(x.name, x.op, x.macs, x.weight_shape, x.output_shape) for x in loaded.model.layers] == [
        (x.name, x.op, x.macs, x.weight_shape, x.output_shape) for x in saved.model.layers
    ]


@pytest.fixture(scope="session")
def samples():
    """name -> (model, calibration, 16 evaluation inputs, data); each sample is calibrated once."""
    known = {}

    def get(name):
        if name not in known:
            model, data = qlab.load_model(name), qlab.load_dataset(name)
            (_, x, _), *_ = data.evaluation.subset(range(16)).batches(16)
            known[name] = model, qlab.calibrate(model, data.calibration.subset(range(64))), x, data
        return known[name]

    return get


@pytest.mark.parametrize("preset", qlab.presets)
@pytest.mark.parametrize("name", sample_names())
def test_every_sample_with_every_preset(samples, tmp_path, name, preset):
    model, calib, x, _ = samples(name)
    qmodel = qlab.convert(model, qlab.presets[preset], calib)
    loaded = qlab.load_quantized(qmodel.save(tmp_path / "model.safetensors"))
    assert_equal_models(loaded, qmodel, x)
    assert loaded.has_float_original == (preset == "float")


def edited(samples, name, preset):
    model, calib, x, _ = samples(name)
    qmodel = qlab.convert(model, qlab.presets[preset], calib)
    before = qmodel(*x).clone()
    return qmodel, x, before


@pytest.mark.parametrize("preset", ["x86", "w4a8", "arm"])
def test_edits_of_the_buffers_survive(samples, preset):
    qmodel, x, before = edited(samples, "residual_digits", preset)
    first, second, *_ = qmodel.weights.values()
    first.codes[0] = 3
    second.scale.mul_(1.5)
    second.zero_point.fill_(-5)
    point = qmodel.activations["relu"]
    point.scale.mul_(0.7)
    point.zero_point.fill_(9)
    loaded = qlab.load_quantized(quantized_bytes(qmodel))
    assert not torch.equal(qmodel(*x), before)
    assert_equal_models(loaded, qmodel, x)


def test_buffers_replaced_as_a_whole_survive(samples):
    qmodel, x, before = edited(samples, "outlier_mlp", "x86")
    tensor = qmodel.weights["fc1"]
    tensor.codes = tensor.codes.flip(0).to(torch.int32)
    tensor.zero_point = tensor.zero_point.long() + 300
    qmodel.activations["relu"].zero_point = torch.tensor(-70_000, dtype=torch.int32)
    loaded = qlab.load_quantized(quantized_bytes(qmodel))
    assert not torch.equal(qmodel(*x), before)
    assert torch.equal(loaded(*x), qmodel(*x))
    assert loaded.weights["fc1"].codes.dtype == torch.int8


# --- networks of every shape ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_shape(name):
    model, qmodel, inputs = network(name)
    data = quantized_bytes(qmodel)
    loaded = qlab.load_quantized(data)
    assert_equal_models(loaded, qmodel, inputs)
    assert loaded.has_float_original == (name == "shared weight, one float")  # then its values are in the file
    again = qlab.load_quantized(data, model)
    assert again.has_float_original
    assert_equal_models(again, qmodel, inputs)
    assert again.model.content_hash == model.content_hash
    assert again.model.graph_module.code == model.graph_module.code
    assert list(again.model.names.values()) == list(model.names.values())
    assert quantized_bytes(loaded) == data == quantized_bytes(again)


# --- what the file holds ----------------------------------------------------------------------------------------------


def stored(data, kind):
    return sum(e["data"].__len__() for n, e in safetensors.deserialize(data) if n.endswith(kind))


@pytest.mark.parametrize(("preset", "bits", "share"), [("int8_weight_only", 8, 0.32), ("int4_weight_only", 4, 0.20)])
def test_the_file_is_as_small_as_its_codes(samples, preset, bits, share):
    model, calib, _, _ = samples("residual_digits")
    qmodel = qlab.convert(model, qlab.presets[preset], calib)
    data = quantized_bytes(qmodel)
    weights = sum(t.codes.numel() for t in qmodel.weights.values())
    assert stored(data, ".codes") == weights * bits // 8
    assert stored(data, ".scale") == qmodel.size.scales
    assert stored(data, ".zero_point") == 0
    assert stored(data, "bias") == qmodel.size.float_rest
    header = int.from_bytes(data[:8], "little") + 8
    assert len(data) == header + qmodel.size.quantized_bytes
    assert len(data) / model.float_bytes < share


def test_any_reader_of_safetensors_opens_it(samples, tmp_path):
    qmodel, *_ = edited(samples, "residual_digits", "w4a8")
    path = qmodel.save(tmp_path / "m.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
        codes = file.get_tensor("wq_fc_weight.codes")
        assert torch.equal(codes, qmodel.weights["fc"].packed())
        assert file.get_tensor("aq_layer1_0_conv2.zero_point").dtype == torch.uint8
    assert (about["format"], about["version"], about["qlab"]) == ("qlab-quantized", "1", qlab.__version__)
    assert about["torch"] == str(torch.__version__)
    assert json.loads(about["mapping"]) == qmodel.mapping.to_dict()
    assert json.loads(about["model"])["name"] == "residual_digits"
    assert json.loads(about["model"])["content_hash"] == qmodel.model.content_hash
    assert path.read_bytes()[8:].startswith(b'{"__metadata__":{"format":"qlab-quantized","version":"1"')
    assert b"pickle" not in path.read_bytes()


def test_a_process_without_the_float_model_opens_it(tmp_path):
    _, qmodel, inputs = network("images")
    qmodel.save(tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", inputs[0].numpy())
    code = (
        "import sys, numpy as np, torch, qlab\n"
        "q = qlab.load_quantized('m.safetensors')\n"
        "np.save('y.npy', q(torch.from_numpy(np.load('x.npy'))).numpy())\n"
        "print(q.has_float_original, q.float_hash)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", qmodel.model.content_hash]
    assert np.array_equal(np.load(tmp_path / "y.npy"), qmodel(*inputs).numpy())


# --- the float original -----------------------------------------------------------------------------------------------


def test_nothing_is_compared_with_a_model_that_is_not_the_original(samples):
    model, calib, _, data = samples("residual_digits")
    part = data.evaluation.subset(range(64))
    qmodel = qlab.convert(model, qlab.presets["w4a8"], calib)
    expected = qlab.evaluate(qmodel, part)
    file = quantized_bytes(qmodel)
    alone = qlab.evaluate(qlab.load_quantized(file), part)
    assert (alone.accuracy, alone.agreement, alone.sqnr) == (expected.accuracy, None, {})
    given = qlab.evaluate(qlab.load_quantized(file), part, reference=model)
    assert (given.agreement, given.sqnr) == (expected.agreement, {})
    attached = qlab.evaluate(qlab.load_quantized(file, model), part)
    assert (attached.agreement, attached.sqnr) == (expected.agreement, expected.sqnr)


def test_the_values_of_the_codes_stand_for_the_weights(samples):
    qmodel, x, _ = edited(samples, "residual_digits", "int8_weight_only")
    loaded = qlab.load_quantized(quantized_bytes(qmodel))
    assert torch.equal(loaded.model(*x), qmodel(*x))  # activations are float, so it is the same network
    assert loaded.model.content_hash != qmodel.model.content_hash == loaded.float_hash


def test_another_model_is_not_attached(samples):
    qmodel, *_ = edited(samples, "residual_digits", "x86")
    with pytest.raises(DataMismatch, match=r"another float model than 'conv_digits'.*'residual_digits'"):
        qlab.load_quantized(quantized_bytes(qmodel), samples("conv_digits")[0])


def test_a_bias_written_to_before_saving_is_kept_beside_the_original():
    model, qmodel, inputs = network("shared weight")
    qmodel.graph_module.p_fc_bias = nn.Parameter(qmodel.graph_module.p_fc_bias + 1, requires_grad=False)
    loaded = qlab.load_quantized(quantized_bytes(qmodel), model)
    assert torch.equal(loaded(*inputs), qmodel(*inputs))
    assert torch.equal(loaded.model(*inputs), model(*inputs))


# --- what is not saved ------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    _, qmodel, inputs = network("shared weight")
    path = qmodel.save(tmp_path / "m.safetensors")
    before = path.read_bytes()
    qmodel.weights["fc"].scale[0] = 0
    with pytest.raises(NonFinite, match=r"'fc\.weight'.*above 0"):
        qmodel.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert qlab.load_quantized(path)(*inputs).isfinite().all()


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda q: q.weights["fc"].codes.fill_(8), DataMismatch, r"'fc\.weight': codes 8\.\.8 do not fit 4 bits"),
        (lambda q: setattr(q.weights["fc"], "codes", torch.zeros(8, 8)), InvalidConfig, "whole numbers of shape"),
        (lambda q: setattr(q.weights["fc"], "codes", torch.zeros(4, dtype=torch.int8)), InvalidConfig, r"\[8, 8\]"),
        (lambda q: setattr(q.weights["fc"], "scale", torch.ones(8).double()), InvalidConfig, "scales float32"),
        (lambda q: setattr(q.activations["relu"], "scale", torch.ones(8)), InvalidConfig, "'relu' has scales"),
        (lambda q: q.activations["relu"].scale.fill_(float("nan")), NonFinite, "activation 'relu'"),
        (lambda q: setattr(q.activations["relu"], "zero_point", torch.tensor(0.5)), InvalidConfig, "whole numbers"),
        (lambda q: q.weights.update(fc=copy.deepcopy(q.weights["fc"])), InvalidConfig, "not the object the forward"),
    ],
    ids=["code too large", "float codes", "codes of another shape", "float64 scale", "scales of another shape", "NaN",
         "fractional zero point", "another object"],
)  # fmt: skip
def test_what_cannot_be_saved_is_named(spoil, error, match):
    model, _, inputs = network("shared weight")
    calib = qlab.calibrate(model, qlab.load_dataset(inputs[0].numpy()))
    qmodel = qlab.convert(model, every(W8.replace(bits=4), A8), calib)
    spoil(qmodel)
    with pytest.raises(error, match=match):
        quantized_bytes(qmodel)


def test_names_and_folders_that_cannot_be_written_to(tmp_path):
    _, qmodel, _ = network("shared weight")
    with pytest.raises(InvalidConfig, match=r"does not end in \.safetensors"):
        qmodel.save(tmp_path / "m.pt2")
    with pytest.raises(InvalidConfig, match="no folder"):
        qmodel.save(tmp_path / "nowhere" / "m.safetensors")


def test_a_mapping_too_long_to_resolve_is_not_saved():
    _, qmodel, _ = network("shared weight")
    qmodel.mapping = QConfigMapping(by_name={f"layer{i}": None for i in range(2_000_000)})
    with pytest.raises(InvalidConfig, match="use patterns"):
        quantized_bytes(qmodel)
