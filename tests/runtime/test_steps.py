"""One element taken apart: by hand in the small, against exact integer sums, and against the simulation in samples."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import DataMismatch, InvalidConfig
from qlab.runtime.steps import explain_element, explainable_layers, integer_layer, trace_layer
from tests.networks import Body, Twice

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
U8 = QuantSpec(bits=8)


def quantized(x, *body, weight=W8, activation=U8, mode="static"):
    model = qlab.load_model(Body(nn.Sequential(*body)).eval(), x)
    calib = qlab.calibrate(model, qlab.load_dataset(x.numpy()))
    config = QConfig(weight=weight, activation=None if mode == "weight_only" else activation, mode=mode)
    return qlab.convert(model, QConfigMapping(default=config), calib)


def set_grid(grid, scale, zero_point):
    grid.scale.fill_(scale)
    grid.zero_point.fill_(zero_point)


def by_hand(bias, output_scale, *behind):
    """Linear of 3 inputs on hand-made grids: input scale 0.5, zero point 3; weights 2, -1, 4 of scale 0.25."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([bias, 0.0]))
    x = torch.tensor([[1.0, -0.5, 2.0], [-3.0, 3.0, 0.0]])
    qmodel = quantized(x, layer, *behind)
    set_grid(qmodel.activations["x"], 0.5, 3)
    set_grid(qmodel.activations[qmodel.outputs["body.0"]], output_scale, 10)
    weight = qmodel.weights["body.0"]
    weight.codes.copy_(torch.tensor([[2, -1, 4], [-2, 1, -4]]))
    weight.scale.fill_(0.25)
    return qmodel, torch.tensor([[1.0, -0.5, 2.0]])


def test_linear_by_hand():
    qmodel, x = by_hand(0.3, 0.75)
    steps = explain_element(qmodel, "body.0", (x,), (0, 0))
    assert steps.inputs.tolist() == [5, 2, 7]
    assert steps.weights.tolist() == [2, -1, 4]
    assert steps.products.tolist() == [4, 1, 16]
    assert steps.running.tolist() == [4, 5, 21]
    assert (steps.accumulator, steps.bias) == (21, 2)  # 0.3 / 0.125 = 2.4
    assert steps.bias_value == pytest.approx(0.3)
    assert steps.multiplier == pytest.approx(0.5 * 0.25 / 0.75)
    assert steps.scaled == pytest.approx(23 / 6)
    assert (steps.rounded, steps.code, steps.value) == (4, 14, 3.0)
    assert (steps.low, steps.high, steps.clamped) == (0, 255, False)
    assert (steps.simulated, steps.simulated_code, steps.difference) == (3.0, 14, 0)
    assert (steps.input_scale, steps.input_zero_point, steps.input_range) == (0.5, 3, (0, 255))
    assert (steps.weight_scale, steps.weight_zero_point, steps.weight_range) == (0.25, 0, (-128, 127))
    assert (steps.output_scale, steps.output_zero_point) == (0.75, 10)
    assert not steps.padded.any()
    assert (steps.channel, steps.channels, steps.places) == (0, (0, 1, 2), ())


def test_halves_round_to_even():
    qmodel, x = by_hand(0.0, 0.25)  # multiplier 0.5
    even = explain_element(qmodel, "body.0", (x,), (0, 0))
    assert (even.scaled, even.rounded) == (10.5, 10)
    odd = explain_element(qmodel, "body.0", (x + torch.tensor([[0.0, -1.0, 0.0]]),), (0, 0))
    assert (odd.accumulator, odd.scaled, odd.rounded) == (23, 11.5, 12)


@pytest.mark.parametrize(
    ("behind", "channel", "limits", "code"),
    [
        pytest.param((), 1, (0, 255), 0, id="below the grid"),
        pytest.param((nn.ReLU(),), 1, (10, 255), 10, id="below a ReLU"),
        pytest.param((nn.ReLU(),), 0, (10, 255), 220, id="kept by a ReLU"),
        pytest.param((nn.ReLU6(),), 0, (10, 255), 255, id="ReLU6 above the grid"),
        pytest.param((nn.Hardtanh(-0.05, 1.0),), 1, (5, 110), 5, id="a clamp"),
    ],
)
def test_what_a_fused_activation_leaves(behind, channel, limits, code):
    qmodel, x = by_hand(0.0, 0.0125 if not any(isinstance(m, nn.Hardtanh) for m in behind) else 0.01, *behind)
    steps = explain_element(qmodel, "body.0", (x,), (0, channel))
    assert (steps.low, steps.high) == limits
    assert steps.code == code
    assert steps.clamped == (code != 220)
    assert steps.difference == 0


def test_padding_holds_the_zero_point():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 4) + 0.5
    qmodel = quantized(x, nn.Conv2d(2, 3, 3, padding=1, stride=2))
    steps = explain_element(qmodel, "body.0", (x,), (1, 2, 0, 1))
    zero = int(qmodel.activations["x"].zero_point)
    assert zero != 0
    assert [place.tolist() for place in steps.places] == [[-1, 0, 1], [1, 2, 3]]
    assert steps.padded[:, 0].all()
    assert not steps.padded[:, 1:].any()
    assert (steps.inputs[:, 0] == zero).all()
    assert (steps.products[:, 0] == 0).all()
    codes = qlab.quantize(x, qmodel.activations["x"].qparams).long().numpy()
    assert np.array_equal(steps.inputs[:, 1:], codes[1, :, 0:2, 1:4])


def test_products_add_up_in_the_order_of_the_kernel():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 3)
    steps = explain_element(quantized(x, nn.Conv2d(2, 1, 2)), "body.0", (x,), (0, 0, 1, 0))
    expected = np.cumsum([steps.products[c, i, j] for i in range(2) for j in range(2) for c in range(2)])
    assert np.array_equal(steps.running, expected)
    assert steps.running[-1] == steps.accumulator == steps.products.sum()


SHAPES = [
    pytest.param(nn.Conv2d(3, 4, 3), (3, 6, 5), id="plain"),
    pytest.param(nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5), id="grouped and padded"),
    pytest.param(nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5), id="depthwise"),
    pytest.param(nn.Conv2d(4, 8, 3, groups=4, bias=False), (4, 5, 5), id="depthwise, two out for each"),
    pytest.param(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 7, 5), id="strided"),
    pytest.param(nn.Conv2d(2, 3, 3, padding=2, dilation=2), (2, 6, 6), id="dilated"),
    pytest.param(nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 5, 5), id="same, even kernel"),
    pytest.param(nn.Conv2d(2, 3, 2, padding="valid"), (2, 4, 4), id="valid"),
    pytest.param(nn.Conv1d(3, 4, 5, padding=2, stride=2), (3, 9), id="one axis"),
    pytest.param(nn.Conv3d(2, 3, 2), (2, 3, 4, 3), id="three axes"),
    pytest.param(nn.Linear(7, 4), (7,), id="rows"),
    pytest.param(nn.Linear(7, 4), (5, 7), id="a sequence"),
]
WEIGHTS = [
    pytest.param(W8, id="per channel"),
    pytest.param(QuantSpec(bits=8, qscheme="per_tensor_affine"), id="per tensor with zero point"),
    pytest.param(QuantSpec(bits=4, qscheme="per_channel_affine"), id="4 bits per channel with zero points"),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("layer", "shape"), SHAPES)
def test_accumulators_are_the_exact_sums(layer, shape, weight):
    """Every element, against a convolution of the integers in float64, which is exact."""
    torch.manual_seed(1)
    x = torch.randn(2, *shape) + 0.4
    qmodel = quantized(x, layer, weight=weight)
    grid, tensor = qmodel.activations["x"].qparams, qmodel.weights["body.0"]
    entering = (qlab.quantize(x, grid).long() - grid.zero_point).double()
    zero = tensor.zero_point.reshape(-1, *[1] * (tensor.codes.ndim - 1))
    w = (tensor.codes.long() - zero).double()
    if isinstance(layer, nn.Linear):
        exact = F.linear(entering, w)
    else:
        op = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(shape) - 1]
        exact = op(
            entering, w, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
        )
    trace = trace_layer(qmodel, "body.0", (x,))
    assert trace.shape == tuple(exact.shape)
    truth = qmodel.model(x)
    for index in np.ndindex(*trace.shape):
        steps = trace.explain(index)
        assert steps.accumulator == int(exact[index])
        assert abs(steps.difference) <= 1
        assert steps.float_value == float(truth[index])


@pytest.mark.parametrize("preset", ["onnxruntime", "tflite"])
@pytest.mark.parametrize("sample", ["residual_digits", "depthwise_digits", "transformer_text", "outlier_mlp"])
def test_integers_agree_with_the_simulation(sample, preset):
    model, data = qlab.load_model(sample), qlab.load_dataset(sample)
    qmodel = qlab.convert(model, qlab.presets[preset], qlab.calibrate(model, data))
    _, inputs, _ = next(iter(data.evaluation.batches(4)))
    r = np.random.default_rng(0)
    layers = explainable_layers(qmodel)
    assert set(layers) == {name for name in qmodel.weights if name != "embedding"}
    differences = Counter()
    for layer in layers:
        trace = trace_layer(qmodel, layer, inputs)
        for _ in range(40):
            index = tuple(int(r.integers(n)) for n in trace.shape)
            steps = trace.explain(index)
            differences[steps.difference] += 1
            assert not steps.overflows
            assert steps.value == pytest.approx(steps.simulated, abs=1.01 * steps.output_scale)
    assert set(differences) <= {-1, 0, 1}
    assert differences[0] > 0.99 * differences.total()


def test_a_dead_channel_has_a_bias_beyond_32_bits():
    """Its weights are all zero, so that its scale is the smallest there is; the bias is then added in float."""
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.bias[1] = 1.5
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    qmodel = quantized(x, layer)
    steps = explain_element(qmodel, "body.0", (x,), (0, 1))
    assert (steps.accumulator, steps.bias, steps.bias_value) == (0, None, 1.5)
    assert steps.code == steps.simulated_code
    assert steps.value == pytest.approx(1.5, abs=steps.output_scale)


def test_an_accumulator_beyond_32_bits_is_told():
    qmodel, x = by_hand(0.0, 0.75)
    steps = explain_element(qmodel, "body.0", (x,), (0, 0))
    assert not replace(steps, accumulator=2**31 - 1, bias=None).overflows
    assert replace(steps, accumulator=2**31 - 1, bias=1).overflows
    assert not replace(steps, accumulator=-(2**31), bias=0).overflows


def test_a_model_read_from_a_file_of_codes_has_no_float_value(tmp_path):
    qmodel, x = by_hand(0.3, 0.75)
    read = qlab.load_quantized(qmodel.save(tmp_path / "by_hand.safetensors"))
    assert not read.has_float_original
    before, after = (explain_element(m, "body.0", (x,), (0, 0)) for m in (qmodel, read))
    assert before.float_value == float(qmodel.model(x)[0, 0])
    assert after.float_value is None
    assert (after.code, after.accumulator) == (before.code, before.accumulator)


def test_a_layer_called_again_is_a_layer_of_its_own():
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    model = qlab.load_model(Twice(4).eval(), x)
    calib = qlab.calibrate(model, qlab.load_dataset(x.numpy()))
    qmodel = qlab.convert(model, QConfigMapping(default=QConfig(weight=W8, activation=U8)), calib)
    assert explainable_layers(qmodel) == ["fc", "fc@1"]
    first, second = (trace_layer(qmodel, name, (x,)) for name in ("fc", "fc@1"))
    assert first.layer.limits[0] == 0
    assert torch.equal(second.simulated, qmodel(x))
    assert torch.equal(second.entering, first.simulated)


def test_an_input_behind_a_pooling_keeps_its_grid():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 6, 6)
    qmodel = quantized(x, nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    assert explainable_layers(qmodel) == ["body.0", "body.4"]
    assert integer_layer(qmodel, "body.4").source is qmodel.activations["body.1"]
    assert explain_element(qmodel, "body.4", (x,), (3, 2)).difference == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        pytest.param({"mode": "dynamic"}, "dynamic", id="dynamic"),
        pytest.param({"mode": "weight_only"}, "only its weight", id="weight only"),
        pytest.param({"weight": None}, "weight stays float", id="float weight"),
        pytest.param({"activation": QuantSpec(qscheme="per_channel_affine")}, "each channel", id="per channel"),
        pytest.param(
            {"weight": QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=2)}, "each group", id="groups"
        ),
    ],
)
def test_layers_without_integers_say_why(options, why):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    qmodel = quantized(x, nn.Linear(4, 2), nn.Softplus(), **options)
    assert explainable_layers(qmodel) == []
    with pytest.raises(InvalidConfig, match=why):
        explain_element(qmodel, "body.0", (x,), (0, 0))


def test_a_float_layer_and_other_ops_say_why():
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    model = qlab.load_model(Body(nn.Sequential(nn.Linear(4, 2), nn.GELU(), nn.Linear(2, 2))).eval(), x)
    mapping = QConfigMapping(default=QConfig(weight=W8, activation=U8), by_name={"body.0": None})
    qmodel = qlab.convert(model, mapping, qlab.calibrate(model, qlab.load_dataset(x.numpy())))
    assert explainable_layers(qmodel) == ["body.2"]
    with pytest.raises(InvalidConfig, match="excluded by by_name"):
        explain_element(qmodel, "body.0", (x,), (0, 0))
    with pytest.raises(InvalidConfig, match="it is gelu"):
        explain_element(qmodel, "body.1", (x,), (0, 0))
    with pytest.raises(InvalidConfig, match=r"no such layer; those that have are body\.2"):
        explain_element(qmodel, "head", (x,), (0, 0))


def test_an_index_outside_and_inputs_that_do_not_fit():
    qmodel, x = by_hand(0.0, 0.75)
    for index in ((0,), (0, 2), (1, 0), (0, -1), (0, 0, 0)):
        with pytest.raises(InvalidConfig, match=r"which is \[1, 2\]"):
            explain_element(qmodel, "body.0", (x,), index)
    with pytest.raises(DataMismatch):
        explain_element(qmodel, "body.0", (torch.zeros(1, 5),), (0, 0))
