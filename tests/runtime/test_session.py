"""When a session has to sum pairs of products exactly, and that it does not where no pair can leave 16 bits."""

import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.export.onnx_file import quantized_onnx
from qlab.runtime import session
from qlab.runtime.cpu import CpuFeatures
from qlab.runtime.executed import executed
from qlab.runtime.kernel_codes import open_codes
from qlab.runtime.parity import parity
from qlab.runtime.session import (
    EXACT_PAIRS,
    FLOAT_LAYERS,
    RuntimeOptions,
    largest_stored_code,
    needed_entries,
    pairs_fit,
    sensitive_entries,
)
from tests.networks import Body

W8, A8 = QuantSpec(8, "per_channel_symmetric"), QuantSpec(8)
SIGNED = "per_tensor_symmetric"

OLD = CpuFeatures("x86 without VNNI", "x86_64", avx2=True, avx512=False, avx_vnni=False, avx512_vnni=False)
NEW = CpuFeatures("x86 with VNNI", "x86_64", avx2=True, avx512=True, avx_vnni=True, avx512_vnni=True)


def mapping(weight, activation, mode="static"):
    return QConfigMapping(default=QConfig(weight=weight, activation=activation, mode=mode))


@pytest.fixture(scope="module")
def small():
    """(model, calibration) of a convolution and a linear whose 8-bit weights use the codes -127 and 127."""
    torch.manual_seed(0)
    model = qlab.load_model(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval(),
        torch.randn(2, 2, 4, 4),
    )
    return model, qlab.calibrate(model, qlab.load_dataset(torch.randn(32, 2, 4, 4).numpy()))


CASES = [
    # bits of weights, of activations, scheme of activations, largest stored code, whether pairs fit
    (8, 8, "per_tensor_affine", 255, False),
    (8, 7, "per_tensor_affine", 127, True),  # 127 * 2 * 127 = 32,258
    (8, 6, "per_tensor_affine", 63, True),
    (8, 4, "per_tensor_affine", 15, True),
    (8, 8, SIGNED, 255, False),
    (8, 6, SIGNED, 159, False),  # 31 + 128: moved up, a signed grid gains little
    (8, 2, SIGNED, 129, False),  # 129 * 2 * 127 = 32,766 fits where the lowest weight code is not used
    (7, 8, "per_tensor_affine", 255, True),  # 255 * 2 * 64 = 32,640
    (7, 16, "per_tensor_affine", 255, True),
    (8, 16, "per_tensor_affine", 255, False),
    (4, 8, SIGNED, 255, True),
]


@pytest.mark.parametrize(
    ("weight", "activation", "qscheme", "largest", "fit"), CASES, ids=[f"W{c[0]}A{c[1]}-{c[2]}" for c in CASES]
)
def test_largest_stored_code_and_whether_pairs_fit(small, weight, activation, qscheme, largest, fit):
    model, calib = small
    qmodel = qlab.convert(model, mapping(W8.replace(bits=weight), QuantSpec(activation, qscheme)), calib)
    assert largest_stored_code(qmodel) == largest
    for tensor in qmodel.weights.values():  # the codes are the truth, whatever the data made of them
        tensor.codes.reshape(-1)[0] = tensor.quant_min
    assert pairs_fit(qmodel) is fit
    assert (EXACT_PAIRS in sensitive_entries(qmodel)) is not fit


def test_codes_decide_not_bits(small):
    model, calib = small
    qmodel = qlab.convert(model, mapping(W8, QuantSpec(2, SIGNED)), calib)
    for tensor in qmodel.weights.values():
        tensor.codes.clamp_(-127, 127)
    assert pairs_fit(qmodel)  # 129 * 2 * 127 = 32,766
    qmodel.weights["0"].codes.reshape(-1)[0] = -128
    assert not pairs_fit(qmodel)
    qmodel = qlab.convert(model, mapping(W8, A8.replace(bits=6)), calib)
    next(iter(qmodel.activations.values())).zero_point.fill_(200)
    assert largest_stored_code(qmodel) == 200  # what a padded border is stored as
    assert not pairs_fit(qmodel)


def test_one_grid_of_eight_bits_is_enough_to_need_exact_pairs(small):
    model, calib = small
    some = QConfigMapping(
        default=QConfig(weight=W8, activation=A8.replace(bits=6)),
        by_name={"3": QConfig(weight=W8, activation=A8)},
    )
    qmodel = qlab.convert(model, some, calib)
    assert largest_stored_code(qmodel) == 255
    assert EXACT_PAIRS in sensitive_entries(qmodel)


def test_ranges_taken_at_every_call_use_every_code():
    torch.manual_seed(0)
    model = qlab.load_model(Body(nn.Linear(8, 8)).eval(), torch.randn(2, 8))
    qmodel = qlab.convert(model, mapping(W8, A8.replace(bits=6), "dynamic"))
    assert largest_stored_code(qmodel) == 255
    assert EXACT_PAIRS in sensitive_entries(qmodel)
    qmodel = qlab.convert(model, mapping(W8.replace(bits=7), A8, "dynamic"))
    assert EXACT_PAIRS not in sensitive_entries(qmodel)


def test_the_entry_is_set_where_cpu_and_codes_ask_for_it(small, monkeypatch):
    model, calib = small
    eight, six = (qlab.convert(model, mapping(W8, A8.replace(bits=b)), calib) for b in (8, 6))
    monkeypatch.setattr(session, "cpu_features", lambda: OLD)
    assert RuntimeOptions().for_model(eight).entries[EXACT_PAIRS] == "1"
    assert EXACT_PAIRS in needed_entries(eight)
    assert EXACT_PAIRS not in RuntimeOptions().for_model(six).entries
    assert needed_entries(six) == {}
    monkeypatch.setattr(session, "cpu_features", lambda: NEW)
    assert needed_entries(eight) == {}
    assert EXACT_PAIRS in sensitive_entries(eight)  # of results that another CPU may give


def test_cifar_with_six_bit_activations_is_a_step_away_at_most_without_exact_pairs(cifar):
    model, train, test = cifar
    qmodel = qlab.convert(model, mapping(W8, A8.replace(bits=6)), qlab.calibrate(model, train))
    assert EXACT_PAIRS not in RuntimeOptions().for_model(qmodel).entries
    inputs = next(iter(test.evaluation.batches(128)))[1]
    found = parity(qmodel, inputs)
    assert all(t.own_largest <= 1 for t in found.tensors)
    assert found.output_in_steps
    assert found.output_largest <= 1.001
    codes = open_codes(qmodel)(*inputs)
    assert max(int(c.max()) for c in codes.values()) == 63
    assert min(int(c.min()) for c in codes.values()) == 0


def test_a_layer_that_the_config_keeps_float_is_float_between_quantized_ones():
    model, data = qlab.load_model("conv_digits"), qlab.load_dataset("conv_digits")
    some = qlab.presets["x86"].replace(by_name={"block2.conv": None})
    qmodel = qlab.convert(model, some, qlab.calibrate(model, data))
    assert FLOAT_LAYERS in needed_entries(qmodel)
    inputs = tuple(next(iter(data.evaluation.batches(32)))[1])
    feed = {spec.name: x.numpy() for spec, x in zip(model.inputs, inputs, strict=True)}

    def kinds(options: RuntimeOptions) -> set[str]:
        ran = executed(quantized_onnx(qmodel).proto, feed, options.for_model(qmodel), 1)
        return {op.kind for op in ran.of_layer("block2.conv")}

    assert "integer" in kinds(RuntimeOptions(as_simulated=False))  # why the entry is there
    assert "integer" not in kinds(RuntimeOptions())
    assert max(tensor.own_largest for tensor in parity(qmodel, inputs).tensors) <= 1
    whole = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, data))
    assert FLOAT_LAYERS not in needed_entries(whole)
