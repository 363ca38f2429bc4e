"""Which tensor of a file is which of the network: by name, by values, by the layer that gives it; or not at all."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import qlab
from qlab.export.onnx_file import quantized_onnx
from qlab.export.quantized_file import quantized_bytes
from qlab.opened import match, read_quantized_file
from qlab.opened.layouts import GATES, Layout, layouts
from qlab.opened.match import SURE
from qlab.opened.names import Names
from qlab.preset import presets
from tests.opened.made import TFLITE, dynamic_file, ours, sample, static_file

CONV, LSTM = "conv_digits", "lstm_text"


def matched(data, name, preset="x86"):
    return match(read_quantized_file(data), sample(name)[0], ours(name, preset))


def renamed(data):
    """Every constant and op under a name that says nothing."""
    model = onnx.load_model_from_string(data)
    names = {c.name: f"c{i}" for i, c in enumerate(model.graph.initializer)}
    for held in model.graph.initializer:
        held.name = names[held.name]
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                side[place] = names.setdefault(name, f"t{len(names)}") if name else ""
    return model.SerializeToString()


@pytest.mark.parametrize("name", [CONV, LSTM])
@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_our_own_file_is_ours_to_the_last_code(name, form):
    qmodel = ours(name, "x86")
    data = quantized_onnx(qmodel).proto.SerializeToString() if form == "onnx" else quantized_bytes(qmodel)
    found = matched(data, name)
    assert {row.how for row in found.weights} == {"name"}
    assert not found.unmatched
    for row in found.weights:
        assert row.same_codes == 1
        assert row.scale_ratio == 1
        assert row.sqnr_file == pytest.approx(row.sqnr_ours, abs=1e-4)
        assert not row.doubtful
    by_tensor = {row.tensor: row for row in found.activations}
    for key, point in qmodel.points.items():
        grid = qmodel.activations[key]
        assert by_tensor[point.tensor].scale_ratio == 1
        low = (grid.quant_min - int(grid.zero_point)) * float(grid.scale)
        assert by_tensor[point.tensor].file.low == pytest.approx(low, rel=1e-6)
        assert by_tensor[point.tensor].ours[2] == pytest.approx(low, rel=1e-6)


@pytest.mark.parametrize("kind", ["QDQ, per channel", "operators, per channel", "QDQ, per tensor"])
def test_a_file_of_onnx_runtime_by_name(kind):
    found = matched(static_file(CONV, kind), CONV)
    assert [row.how for row in found.weights] == ["name"] * 5
    assert all(row.cosine > 0.999 for row in found.weights)
    tensors = {row.tensor: row for row in found.activations}
    assert tensors["block1.relu"].how == "layer"
    assert tensors["block1.relu"].file.low == 0
    assert len(found.biases) == 5
    assert not found.unmatched


def test_sqnr_is_that_of_the_values():
    found = matched(static_file(CONV, "QDQ, per channel"), CONV)
    for row in found.weights:
        values = row.layout.apply(row.file.dequantize()).astype(np.float64)
        weight = row.float_weight.astype(np.float64)
        expected = 10 * math.log10((weight**2).sum() / ((weight - values) ** 2).sum())
        assert row.sqnr_file == pytest.approx(expected, abs=1e-9)
        norms = np.linalg.norm(weight) * np.linalg.norm(values)
        assert row.cosine == pytest.approx((weight * values).sum() / norms, abs=1e-9)


@pytest.mark.parametrize("kind", ["QDQ, per channel", "operators, per tensor", "QDQ, 4-bit weights"])
def test_without_names_the_values_tell(kind):
    with_names = matched(static_file(CONV, kind), CONV)
    without = matched(renamed(static_file(CONV, kind)), CONV)
    assert [row.how for row in without.weights] == ["values"] * 5
    assert [row.sqnr_file for row in without.weights] == [row.sqnr_file for row in with_names.weights]
    layers = {row.tensor for row in without.activations if row.how == "layer"}
    assert {"block1.relu", "block2.relu", "block3.relu", "block4.relu"} <= layers


@pytest.mark.parametrize("per_channel", [False, True])
def test_recurrent_weights_have_their_gates_in_another_order(per_channel):
    found = matched(dynamic_file(LSTM, per_channel), LSTM)
    by_tensor = {row.tensor: row for row in found.weights}
    for tensor in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        assert by_tensor[tensor].cosine > 0.999
        assert by_tensor[tensor].layout.gates == GATES["lstm"]


def test_a_tflite_file_is_told_by_its_values():
    found = matched(TFLITE["conv_digits_int8"].read_bytes(), CONV)
    assert [row.how for row in found.weights] == ["values"] * 5
    assert [row.file.name for row in found.weights] == [f"arith.constant{i}" for i in range(1, 6)]
    assert all(row.cosine > 0.999 and row.sqnr_file > 40 for row in found.weights)
    assert [row.layout.order for row in found.weights[1:4]] == [(0, 3, 1, 2)] * 3
    tensors = {row.tensor: row.file.name for row in found.activations}
    assert tensors["block1.relu"] == "conv1;relu"
    assert tensors["classifier"] == "y"
    assert {t.name for t in found.unmatched} == {"pool2", "pool3", "mean"}


def test_another_network_is_not_matched():
    found = matched(TFLITE["perceptron_int4"].read_bytes(), CONV)
    assert all(row.file is None for row in found.weights)
    assert all(row.sqnr_ours is not None for row in found.weights)
    assert {t.name for t in found.unmatched} == {"fc1.weight", "fc2.weight"}


def test_names_alone_do_not_match_an_activation_of_another_network():
    found = matched(quantized_bytes(ours(LSTM, "x86")), CONV)
    assert not found.activations
    assert "classifier" in {t.name for t in found.unmatched}


def test_another_training_is_matched_by_name_and_doubted():
    data = onnx.load_model_from_string(static_file(CONV, "QDQ, per channel"))
    chance = np.random.default_rng(0)
    for held in data.graph.initializer:
        if held.name == "p_classifier_weight_quantized":
            held.CopyFrom(numpy_helper.from_array(chance.integers(-127, 128, (10, 48)).astype(np.int8), held.name))
    found = {row.tensor: row for row in matched(data.SerializeToString(), CONV).weights}
    assert found["classifier.weight"].how == "name"
    assert found["classifier.weight"].doubtful
    assert found["classifier.weight"].cosine < SURE
    assert not found["block1.conv.weight"].doubtful
    without = {row.tensor: row for row in matched(renamed(data.SerializeToString()), CONV).weights}
    assert without["classifier.weight"].file is None


def test_equal_shapes_are_told_apart_one_to_one():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))).eval()
    model = qlab.load_model(net, torch.zeros(2, 8))
    qmodel = qlab.convert(model, presets["int4_weight_only"])
    data = renamed(quantized_onnx(qmodel).proto.SerializeToString())
    found = match(read_quantized_file(data), model, qmodel)
    assert [row.how for row in found.weights] == ["values"] * 5
    assert [row.same_codes for row in found.weights] == [1.0] * 5
    assert len({row.file.name for row in found.weights}) == 5


def test_without_a_quantized_model_of_ours():
    found = match(read_quantized_file(static_file(CONV, "QDQ, per channel")), sample(CONV)[0])
    assert all(row.ours is None and row.sqnr_ours is None and row.same_codes is None for row in found.weights)
    assert all(row.sqnr_file > 40 for row in found.weights)
    assert all(row.ours is None for row in found.activations)


def test_an_equalised_network_is_held_against_its_own_weights():
    model = qlab.load_model("depthwise_digits")
    data = qlab.load_dataset("depthwise_digits").subset(np.arange(32))
    mapping = presets["x86"].replace(equalize=True)
    qmodel = qlab.convert(model, mapping, qlab.calibrate(model, data, mapping=mapping))
    found = match(read_quantized_file(quantized_bytes(qmodel)), model, qmodel)
    for row in found.weights:
        assert row.same_codes == 1
        assert row.sqnr_file == pytest.approx(row.sqnr_ours, abs=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 0, 1, 2), (3, 2, 0, 1), (1, 0, 2, 3)])
def test_every_layout_brings_a_convolution_back(order):
    weight = np.random.default_rng(0).normal(size=(6, 4, 3, 5))
    stored = weight.transpose(np.argsort(order))
    assert any(np.array_equal(layout.apply(stored), weight) for layout in layouts(stored.shape, weight.shape, "conv2d"))


def test_layouts_that_merge_and_drop_axes():
    weight = np.random.default_rng(0).normal(size=(6, 1, 3, 5))
    depthwise = weight[:, 0].transpose(1, 2, 0)[None]  # [1, height, width, out]
    for stored in (depthwise, weight.reshape(6, 15), weight.reshape(6, 15).T):
        made = [layout.apply(stored) for layout in layouts(stored.shape, weight.shape, "conv2d")]
        assert any(np.array_equal(values, weight) for values in made)
    assert not list(layouts((6, 15), (15, 6, 2), "linear"))
    assert not list(layouts((2, 3), (5, 6), "linear"))


def test_gates_are_put_in_the_order_of_torch():
    rows = np.arange(8)[:, None]  # i o f c of two units
    lstm = Layout((0, 1), (8, 1), GATES["lstm"]).apply(rows)
    assert lstm.ravel().tolist() == [0, 1, 4, 5, 6, 7, 2, 3]
    gru = Layout((0, 1), (6, 1), GATES["gru"]).apply(rows[:6])  # z r h
    assert gru.ravel().tolist() == [2, 3, 0, 1, 4, 5]


@pytest.mark.parametrize(
    ("alias", "found"),
    [
        ("p_fc1_weight_quantized", "one"), ("fc1.weight/codes", "one"), ("fc1.weight_DequantizeLinear_Output", "one"),
        ("FC1.weight_scale", "one"), ("onnx::fc1.weight_Q4", "one"), ("fc2.weight", None), ("x.fc1.weight", None),
        ("both", None),
    ],
)  # fmt: skip
def test_names_as_other_writers_spell_them(alias, found):
    names = Names([("fc1.weight", "one"), ("both", "one"), ("both", "two")])
    assert names.find([alias]) == found


def test_a_table_of_positions_lies_on_the_grid_of_an_activation():
    name = "transformer_text"
    qmodel = ours(name, "x86")
    found = matched(quantized_onnx(qmodel).proto.SerializeToString(), name)
    (position,) = [row for row in found.activations if row.file.role == "weight"]
    assert position.tensor == "position"
    assert position.scale_ratio == 1
    assert all(row.same_codes == 1 for row in found.weights)
    assert not [t for t in found.unmatched if t.role == "weight"]
    # codes that are only reshaped between two ops are one tensor
    assert not [t.name for t in found.unmatched if t.name.endswith("/rows")]
