"""The ONNX files: every sample with every preset, executed by plain ONNX Runtime in a process without the lab."""

import importlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig, UnsupportedModel
from qlab.export import markers
from qlab.export.onnx_file import float_onnx, quantized_onnx
from qlab.export.template import Template, export_template, keep_template, template
from qlab.runtime.executed import executed
from qlab.runtime.parity import parity
from qlab.runtime.session import RuntimeOptions, float_session, open_session

SAMPLES = ("conv_digits", "depthwise_digits", "lstm_text", "outlier_mlp", "residual_digits", "transformer_text")
W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
U8 = QuantSpec(bits=8)
SYMMETRIC = QuantSpec(bits=8, qscheme="per_tensor_symmetric")
IN_GROUPS = QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=2)


@pytest.fixture(scope="module")
def samples():
    """name -> (model, some evaluation inputs, calibration)."""
    found = {}
    for name in SAMPLES:
        model, data = qlab.load_model(name), qlab.load_dataset(name)
        inputs = next(iter(data.evaluation.batches(64)))[1]
        found[name] = (model, inputs, qlab.calibrate(model, data))
    return found


@pytest.fixture(scope="module")
def outside(samples, tmp_path_factory):
    """(sample, preset) -> (what a process without the lab got from the file, the file)."""
    folder = tmp_path_factory.mktemp("files")
    for name, (model, inputs, calib) in samples.items():
        np.savez(folder / f"{name}.npz", **{s.name: x.numpy() for s, x in zip(model.inputs, inputs, strict=True)})
        for preset, mapping in qlab.presets.items():
            qlab.convert(model, mapping, calib).to_onnx(folder / f"{name}.{preset}.onnx")
    script = """
import sys, pathlib, numpy as np, onnxruntime
assert "qlab" not in sys.modules
folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.onnx")):
    name = path.name.split(".")[0]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, dict(np.load(folder / f"{name}.npz")))
    np.save(path.with_suffix(".npy"), outputs[0])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-I", "-c", script, str(folder)], check=True)
    return folder


CASES = [(name, preset) for name in SAMPLES for preset in qlab.presets]


@pytest.mark.parametrize(("name", "preset"), CASES, ids=[f"{n}-{p}" for n, p in CASES])
def test_every_sample_exports_and_runs_outside(samples, outside, name, preset):
    model, inputs, calib = samples[name]
    path = outside / f"{name}.{preset}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    given, qmodel = np.load(path.with_suffix(".npy")), qlab.convert(model, qlab.presets[preset], calib)
    simulated = qmodel(*inputs).numpy()
    assert given.shape == simulated.shape
    if preset in ("float", "int8_weight_only", "int4_weight_only", "int4_grouped"):
        np.testing.assert_allclose(given, simulated, atol=2e-4)
        return
    assert (given.argmax(-1) == simulated.argmax(-1)).mean() >= 0.96
    error = np.abs(given - simulated).max()
    spread = simulated.max() - simulated.min()
    assert error <= 0.05 * spread, f"{error} of {spread}"


@pytest.mark.parametrize("name", SAMPLES)
def test_every_op_is_off_by_a_rounding_at_most(samples, name):
    model, inputs, calib = samples[name]
    # the runtime's LSTM ranges each thread's share of a batch by itself, so one thread takes a small one
    few, options = (8, RuntimeOptions(1)) if name == "lstm_text" else (64, RuntimeOptions(2))
    found = parity(qlab.convert(model, qlab.presets["x86"], calib), tuple(x[:few] for x in inputs), options)
    assert found.tensors
    for tensor in found.tensors:
        assert tensor.own_largest <= 1, tensor
        # One sum that many samples share may lie halfway: CPUs differ in the last bit of its mean.
        assert tensor.own_differing - tensor.own_halves <= 0.001 * tensor.count, tensor
        assert tensor.own_halves <= 0.01 * tensor.count, tensor


@pytest.mark.parametrize("preset", ["x86", "arm", "tflite", "onnxruntime", "tensorrt", "w4a8"])
def test_static_convolutions_and_linears_run_on_integers(samples, preset):
    for name in ("conv_digits", "depthwise_digits", "residual_digits", "outlier_mlp", "transformer_text"):
        model, inputs, calib = samples[name]
        qmodel = qlab.convert(model, qlab.presets[preset], calib)
        ran = executed(quantized_onnx(qmodel).proto, {model.inputs[0].name: inputs[0].numpy()}, runs=2)
        layers = [r.layer for r in qmodel.ledger if r.op in ("conv2d", "linear")]
        for layer in layers:
            kinds = {o.op: o.kind for o in ran.of_layer(layer)}
            assert {"QLinearConv", "QGemm"} & set(kinds), (name, layer, kinds)
            assert "float" not in kinds.values(), (name, layer, kinds)


def test_cifar_is_integer_from_end_to_end(cifar):
    model, train, test = cifar
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, train))
    inputs = next(iter(test.evaluation.batches(64)))[1]
    ran = executed(quantized_onnx(qmodel).proto, {model.inputs[0].name: inputs[0].numpy()}, runs=1)
    assert sum(o.op == "QLinearConv" for o in ran.ops) == sum(layer.op == "conv2d" for layer in model.layers)
    assert not [o for o in ran.ops if o.kind == "float"]
    assert [o.op for o in ran.boundaries] == ["QuantizeLinear", "DequantizeLinear"]


def test_cifar_accuracy_on_integers(cifar):
    model, train, test = cifar
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, train))
    simulated = qlab.evaluate(qmodel, test)
    integer = qlab.evaluate(qmodel, test, reference=simulated, backend="integer")
    assert integer.backend == "integer"
    assert integer.agreement >= 0.995
    assert integer.accuracy >= 0.905
    layers = set(integer.sqnr) & set(simulated.sqnr)
    assert layers
    assert all(abs(integer.sqnr[k] - simulated.sqnr[k]) < 0.5 for k in layers)


@pytest.mark.parametrize("preset", ["x86", "x86_avx2", "arm", "tflite", "onnxruntime", "tensorrt"])
def test_cifar_outputs_are_a_step_away_at_most(cifar, preset):
    model, train, test = cifar
    qmodel = qlab.convert(model, qlab.presets[preset], qlab.calibrate(model, train))
    steps = parity(qmodel, next(iter(test.evaluation.batches(512)))[1])
    assert steps.output_in_steps
    assert steps.output_largest <= 1.001
    assert max(t.own_largest for t in steps.tensors) <= 1


@pytest.mark.parametrize("name", ["conv_digits", "depthwise_digits", "residual_digits", "outlier_mlp"])
@pytest.mark.parametrize("preset", ["x86", "tflite", "w4a8"])
def test_products_round_as_the_kernels_do(samples, name, preset):
    """Not one code of a convolution or linear differs where both start from the same input."""
    model, inputs, calib = samples[name]
    qmodel = qlab.convert(model, qlab.presets[preset], calib)
    products = {qmodel.outputs[r.layer] for r in qmodel.ledger if r.op in ("conv2d", "linear")}
    found = [t for t in parity(qmodel, inputs).tensors if t.tensor in products]
    assert len(found) == len(products)
    assert [t.own_differing for t in found] == [0] * len(found)


@pytest.mark.parametrize(
    ("preset", "bar"), [("x86", 0.29), ("int8_weight_only", 0.29), ("w4a8", 0.17), ("int4_weight_only", 0.17)]
)
def test_cifar_file_size(cifar, preset, bar):
    model, train, _ = cifar
    qmodel = qlab.convert(model, qlab.presets[preset], qlab.calibrate(model, train))
    assert quantized_onnx(qmodel).proto.ByteSize() <= bar * float_onnx(model).proto.ByteSize()


# ---- what is inside ------------------------------------------------------------------------------------------------


def test_weights_are_stored_as_integers_with_their_own_bits(samples):
    model, _, calib = samples["residual_digits"]
    for bits, kind, size in (
        (8, onnx.TensorProto.INT8, 1.0),
        (4, onnx.TensorProto.INT4, 0.5),
        (3, onnx.TensorProto.INT4, 0.5),
    ):
        mapping = QConfigMapping(default=QConfig(weight=W8.replace(bits=bits), activation=U8))
        qmodel = qlab.convert(model, mapping, calib)
        constants = {c.name: c for c in quantized_onnx(qmodel).proto.graph.initializer}
        for layer, weight in qmodel.weights.items():
            held = constants[f"{layer}.weight/codes"]
            assert held.data_type == kind
            assert len(held.raw_data) == -(-weight.codes.numel() * size // 1)
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(held).astype(int), weight.codes.numpy())


def test_the_file_names_its_config(samples, tmp_path):
    model, _, calib = samples["conv_digits"]
    qmodel = qlab.convert(model, qlab.presets["w4a8"], calib)
    path = qmodel.to_onnx(tmp_path / "m.onnx")
    about = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert QConfigMapping.from_dict(json.loads(about["qlab.config"])) == qlab.presets["w4a8"]
    assert about["qlab.model_hash"] == model.content_hash
    assert not list(tmp_path.glob("*.partial"))


def test_an_edit_of_codes_scales_and_grids_is_in_the_next_file(samples):
    model, inputs, calib = samples["outlier_mlp"]
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    before = qmodel.integer_session()(*inputs)
    layer = list(qmodel.weights)[-1]
    qmodel.weights[layer].codes[0] = 0
    qmodel.weights[layer].scale[1] *= 2
    next(iter(qmodel.activations.values())).scale *= 1.5
    after = qmodel.integer_session()(*inputs)
    assert not torch.equal(before, after)
    step = float(list(qmodel.activations.values())[-1].scale)
    assert float((after - qmodel(*inputs)).abs().max()) <= 2.01 * step


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 9, 12, 16])
@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_tensor_symmetric"])
def test_activations_of_any_bits_keep_their_own_range(samples, bits, qscheme):
    model, inputs, calib = samples["conv_digits"]
    for signed in (True, False):
        spec = QuantSpec(bits=bits, qscheme=qscheme, signed=signed)
        qmodel = qlab.convert(model, QConfigMapping(default=QConfig(weight=W8, activation=spec)), calib)
        found = parity(qmodel, inputs)
        assert max(t.own_largest for t in found.tensors) <= 1
        assembled = quantized_onnx(qmodel, codes_as_outputs=True)
        runtime = open_session(assembled.proto, RuntimeOptions(2).for_model(qmodel))
        given = dict(
            zip([o.name for o in runtime.get_outputs()], runtime.run(None, {"x": inputs[0].numpy()}), strict=True)
        )
        for codes in assembled.codes.values():
            held = given[codes.name].astype(np.int64) - codes.shift
            assert codes.qparams.quant_min <= held.min() and held.max() <= codes.qparams.quant_max  # noqa: PT018


# ---- ops on their own ----------------------------------------------------------------------------------------------


_CAPTURED = {}


def _captured(key, module, inputs):
    """One export serves every config of a network: the module is made from the same seed each time."""
    if key not in _CAPTURED:
        _CAPTURED[key] = qlab.load_model(module.eval(), inputs)
    return _CAPTURED[key]


def _run(module, inputs, mapping, key=None):
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    model = _captured(key or str(module), module, inputs)
    data = qlab.load_dataset(tuple(x.numpy() for x in inputs) if len(inputs) > 1 else inputs[0].numpy())
    needs = mapping.default is not None and mapping.default.mode == "static"
    qmodel = qlab.convert(model, mapping, qlab.calibrate(model, data) if needs else None)
    proto = quantized_onnx(qmodel).proto
    onnx.checker.check_model(proto, full_check=True)
    return qmodel, qmodel.integer_session(RuntimeOptions(2))(*inputs), qmodel(*inputs), proto


STATIC = QConfigMapping(default=QConfig(weight=W8, activation=U8))
DYNAMIC = QConfigMapping(default=QConfig(weight=W8, activation=U8, mode="dynamic"))


class Tail(nn.Module):
    """A convolution and what may follow it."""

    def __init__(self, act):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 8, 3, padding=1), act, nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "act",
    [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Identity(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(),
     nn.LeakyReLU(), nn.ELU(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.ZeroPad2d(1), nn.PixelShuffle(1)],
    ids=lambda a: type(a).__name__,
)  # fmt: skip
@pytest.mark.parametrize("activation", [U8, U8.replace(signed=True), SYMMETRIC, QuantSpec(bits=5)],
                         ids=["uint8", "int8", "int8sym", "uint5"])  # fmt: skip
def test_ops_after_a_convolution(act, activation):
    torch.manual_seed(0)
    mapping = QConfigMapping(default=QConfig(weight=W8, activation=activation))
    qmodel, integer, simulated, _ = _run(Tail(act), torch.randn(32, 3, 8, 8), mapping)
    step = float(qmodel.activations["fc"].scale)
    assert float((integer - simulated).abs().max()) <= 2.01 * step
    assert float(((integer - simulated).abs() > 0.5 * step).float().mean()) < 0.02


@pytest.mark.parametrize("weight", [
    W8, QuantSpec(bits=8, qscheme="per_tensor_symmetric"), QuantSpec(bits=8, qscheme="per_channel_affine"),
    QuantSpec(bits=8, qscheme="per_tensor_affine"), QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=4),
    QuantSpec(bits=4, qscheme="per_group_affine", group_size=4), W8.replace(bits=2), W8.replace(narrow_range=True),
], ids=lambda s: f"{s.bits}-{s.qscheme}")  # fmt: skip
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
@pytest.mark.parametrize("shape", [(16, 8), (16, 5, 8), (16, 2, 3, 8)], ids=["2d", "3d", "4d"])
def test_linear_with_every_weight_scheme(weight, mode, shape):
    torch.manual_seed(1)
    config = QConfig(weight=weight, activation=None if mode == "weight_only" else U8, mode=mode)
    qmodel, integer, simulated, _ = _run(
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)),
        torch.randn(shape), QConfigMapping(default=config), key=f"linear {shape}",
    )  # fmt: skip
    step = float(qmodel.activations["2"].scale) if mode == "static" else 1e-4 if mode == "weight_only" else 0.02
    assert float((integer - simulated).abs().max()) <= 1.01 * step


@pytest.mark.parametrize("spec", [U8, U8.replace(signed=True), QuantSpec(bits=8, qscheme="per_tensor_symmetric"),
                                  QuantSpec(bits=4), QuantSpec(bits=16)], ids=str)  # fmt: skip
def test_dynamic_ranges_of_every_kind(spec):
    torch.manual_seed(2)
    mapping = QConfigMapping(default=QConfig(weight=W8, activation=spec, mode="dynamic"))
    _, integer, simulated, _ = _run(nn.Linear(16, 6), torch.randn(64, 16), mapping)
    # a tie may round the other way, by one code of the input
    assert float((integer - simulated).abs().max()) <= 8 / (2**spec.bits - 1)


CONVOLUTIONS = {
    "grouped": nn.Conv2d(4, 8, 3, groups=2), "strided": nn.Conv2d(4, 6, 3, stride=2),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2),
    "same": nn.Conv2d(4, 6, 3, padding="same"), "no bias": nn.Conv2d(4, 6, 3, bias=False),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("weight", [W8, QuantSpec(bits=4, qscheme="per_tensor_affine")], ids=str)
def test_convolutions(kind, weight):
    torch.manual_seed(3)
    mapping = QConfigMapping(default=QConfig(weight=weight, activation=U8))
    qmodel, integer, simulated, _ = _run(
        nn.Sequential(CONVOLUTIONS[kind], nn.ReLU()), torch.randn(16, 4, 9, 9), mapping
    )
    step = float(list(qmodel.activations.values())[-1].scale)
    assert float((integer - simulated).abs().max()) <= 1.01 * step


def test_conv1d_and_sequences():
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8 * 8, 3))
    qmodel, integer, simulated, _ = _run(net, torch.randn(16, 4, 16), STATIC)
    step = float(qmodel.activations["4"].scale)
    assert float((integer - simulated).abs().max()) <= 1.01 * step


class Both(nn.Module):
    def __init__(self, kind, **how):
        super().__init__()
        self.rnn, self.fc = getattr(nn, kind)(6, 10, **how), nn.Linear(20 if how.get("bidirectional") else 10, 3)

    def forward(self, x):
        return self.fc(self.rnn(x)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    "how",
    [{}, {"batch_first": True}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"bias": False}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["float", "weight_only", "grouped", "dynamic"])
def test_recurrent_layers(kind, how, mode):
    torch.manual_seed(5)
    mapping = {
        "float": QConfigMapping(), "dynamic": DYNAMIC,
        "weight_only": QConfigMapping(default=QConfig(weight=W8, mode="weight_only")),
        "grouped": QConfigMapping(default=QConfig(weight=IN_GROUPS, mode="weight_only")),
    }[mode]  # fmt: skip
    x = torch.randn(7, 5, 6)
    if (kind, mode) == ("GRU", "dynamic"):
        with pytest.raises(UnsupportedModel, match="'rnn' is a GRU"):
            _run(Both(kind, **how), x, mapping)
        return
    _, integer, simulated, proto = _run(Both(kind, **how), x, mapping)
    assert ("DynamicQuantizeLSTM" in {n.op_type for n in proto.graph.node}) == (mode == "dynamic")
    torch.testing.assert_close(integer, simulated, atol=2e-2 if mode == "dynamic" else 1e-5, rtol=0)


def test_dead_channels_with_a_large_bias():
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with torch.no_grad():
        net[0].weight[1] = 0
        net[0].bias[1] = 1000.0
    qmodel, integer, simulated, _ = _run(net, torch.randn(8, 3, 6, 6), STATIC, key="dead")
    assert float(integer[:, 1].min()) > 990
    step = float(list(qmodel.activations.values())[-1].scale)
    assert float((integer - simulated).abs().max()) <= 1.01 * step


def test_a_bias_beyond_32_bits_is_added_in_float():
    torch.manual_seed(7)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with torch.no_grad():
        net[0].weight[1] *= 1e-7
        net[0].bias[1] = 1000.0
    qmodel, integer, simulated, _ = _run(net, torch.randn(8, 3, 6, 6), STATIC, key="beyond")
    assert quantized_onnx(qmodel).float_biases == ("0",)
    step = float(list(qmodel.activations.values())[-1].scale)
    assert float((integer - simulated).abs().max()) <= 1.01 * step


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)

    def forward(self, x, y):
        z = torch.cat([self.a(x), self.b(y)], 1)
        return z, torch.relu(z) * 0.5


def test_several_inputs_and_outputs():
    torch.manual_seed(8)
    _, integer, simulated, proto = _run(TwoInputs(), (torch.randn(8, 4), torch.randn(8, 3)), STATIC)
    assert [o.name for o in proto.graph.output] == ["output_0", "output_1"]
    for i, s in zip(integer, simulated, strict=True):
        torch.testing.assert_close(i, s, atol=0.1, rtol=0)


# ---- the template --------------------------------------------------------------------------------------------------


def test_a_second_config_is_patched_to_what_a_fresh_export_gives(samples):
    model, _, calib = samples["conv_digits"]
    first = template(model)
    patched = quantized_onnx(qlab.convert(model, qlab.presets["tensorrt"], calib)).proto
    assert template(model) is first
    keep_template(model, export_template(model))
    fresh = quantized_onnx(qlab.convert(model, qlab.presets["tensorrt"], calib)).proto
    assert patched.SerializeToString() == fresh.SerializeToString()


def test_a_template_outlives_its_process_as_bytes(samples):
    model, inputs, _ = samples["conv_digits"]
    before = float_session(model)(*inputs)
    keep_template(model, Template.from_bytes(template(model).to_bytes(), model.content_hash))
    assert torch.equal(float_session(model)(*inputs), before)
    with pytest.raises(UnsupportedModel, match="another model"):
        keep_template(samples["outlier_mlp"][0], template(model))


def test_what_onnx_cannot_say_is_refused_by_name():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.expit(torch.nanmedian(x, 1)[0])

    model = qlab.load_model(Odd().eval(), torch.randn(4, 5))
    with pytest.raises(UnsupportedModel, match=r"cannot be written as ONNX.*nanmedian"):
        float_session(model)


def test_names_of_files_are_checked(samples, tmp_path):
    model = samples["conv_digits"][0]
    qmodel = qlab.convert(model, qlab.presets["dynamic"])
    with pytest.raises(InvalidConfig, match=r"does not end in \.onnx"):
        qmodel.to_onnx(tmp_path / "model.bin")
    with pytest.raises(InvalidConfig, match="no folder"):
        qmodel.to_onnx(tmp_path / "nowhere" / "model.onnx")


def test_the_module_of_the_markers_can_be_loaded_anew() -> None:
    before = markers.translations()
    again = importlib.reload(markers).translations()
    assert list(again) == list(before)
    assert export_template(qlab.load_model("outlier_mlp")).proto.graph.node
