"""A number written by hand is in the simulation, the state dict, the saved file and the integer session, and alone."""

import json
import math

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.edits import Edit, apply_edits, buffer_of, limits
from qlab.errors import InvalidConfig, UnsupportedModel
from qlab.export.onnx_file import quantized_onnx
from qlab.export.quantized_file import quantized_bytes
from qlab.export.read_back import differences, read_back, state_key
from qlab.runtime.parity import parity
from qlab.runtime.session import RuntimeOptions
from tests.networks import Twice

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = RuntimeOptions(threads=1)


class Small(nn.Module):
    """A convolution, a transposed one and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.fc = nn.Linear(4 * 256, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.up(torch.relu(self.conv(x)))).flatten(1))


def of_net(net, shape, weight, activation=None, mode="static"):
    torch.manual_seed(0)
    x = torch.randn(8, *shape)
    model = qlab.load_model(net(), (x,))
    mapping = QConfigMapping(default=QConfig(weight, activation, mode))
    return model, mapping, qlab.calibrate(model, qlab.load_dataset(x.numpy())), (x,)


def of_sample(name, preset):
    model, data = qlab.load_model(name), qlab.load_dataset(name)
    inputs = next(iter(data.evaluation.batches(8)))[1]
    return model, qlab.presets[preset], qlab.calibrate(model, data.calibration.subset(range(64))), inputs


A8 = QuantSpec(8)
# name -> (what makes it, a weight and the place of one of its codes and of its scale, an activation or None)
NETWORKS = {
    "residual, per channel": (
        lambda: of_sample("residual_digits", "x86"), "layer2.0.conv1", (3, 2, 1, 0), (3,), "layer2.0.relu",
    ),
    "residual, signed activations": (
        lambda: of_sample("residual_digits", "tflite"), "layer1.0.conv2", (15, 15, 2, 2), (15,), "layer1.0.conv2",
    ),
    "linears, per tensor": (lambda: of_sample("outlier_mlp", "arm"), "fc2", (9, 100), (), "relu"),
    "int4, static": (lambda: of_sample("residual_digits", "w4a8"), "conv1", (2, 0, 1, 1), (2,), "x"),
    "int4, groups, weights alone": (lambda: of_sample("outlier_mlp", "int4_grouped"), "fc1", (43, 21), (43, 0), None),
    "int4, groups of a convolution": (
        lambda: of_sample("residual_digits", "int4_grouped"), "layer3.0.conv1", (6, 11, 2, 2), (6, 3), None,
    ),
    "dynamic": (lambda: of_sample("outlier_mlp", "dynamic"), "fc3", (9, 130), (9,), None),
    "affine, per channel": (
        lambda: of_net(Small, (3, 10, 10), QuantSpec(8, "per_channel_affine"), A8), "conv", (5, 2, 0, 1), (5,), "x",
    ),
    "transposed": (
        lambda: of_net(Small, (3, 10, 10), QuantSpec(8, "per_channel_symmetric"), A8), "up", (5, 3, 1, 0), (3,), "x",
    ),
    "embedding": (lambda: of_sample("lstm_text", "int8_weight_only"), "embedding", (5, 7), (5,), None),
    "lstm": (lambda: of_sample("lstm_text", "int8_weight_only"), "lstm.weight_hh_l0", (300, 7), (300,), None),
}  # fmt: skip
PARTS = ("code", "scale", "zero_point")
CASES = [
    (name, of, part)
    for name, (*_, activation) in NETWORKS.items()
    for of, parts in (("weight", PARTS), ("activation", PARTS[1:] if activation else ()))
    for part in parts
]


@pytest.fixture(scope="module")
def networks():
    known = {}

    def get(name):
        if name not in known:
            known[name] = NETWORKS[name][0]()
        return known[name]

    return get


def edit_of(name, of, part, qmodel):
    """An edit that changes its number, and what it was."""
    _, layer, code, scale, activation = NETWORKS[name]
    tensor = layer if of == "weight" else activation
    index = () if of == "activation" else code if part == "code" else scale
    was = buffer_of(qmodel, tensor, part, of)[index].item()
    low, high = limits(qmodel, tensor, part, of)
    far = (high - low) // 3
    value = was * 1.25 if part == "scale" else was + far if was + far <= high else was - far
    assert low <= value <= high
    return Edit(tensor, part, index, value, of), was


def places_of(edit):
    return edit.tensor, edit.part, edit.index, edit.of


def snapshot(qmodel):
    return {key: tensor.clone() for key, tensor in qmodel.state_dict().items()}


def changed(before, after):
    """key -> the places that differ."""
    assert list(before) == list(after)
    assert all(before[key].dtype == after[key].dtype for key in before)
    found = {key: (before[key] != after[key]).nonzero() for key in before}
    return {key: [tuple(i.tolist()) for i in places] for key, places in found.items() if len(places)}


def gap(qmodel, inputs):
    """How far the integer session is from the simulation: in steps of the output's grid, or in its own unit."""
    found = parity(qmodel, inputs, ONE)
    return found.output_largest, max((t.own_largest for t in found.tensors), default=0)


@pytest.mark.parametrize(("name", "of", "part"), CASES, ids=[" ".join(case) for case in CASES])
def test_an_edit_is_everywhere_and_alone(networks, tmp_path, name, of, part):
    model, mapping, calib, inputs = networks(name)
    qmodel = qlab.convert(model, mapping, calib)
    before, output, steps = snapshot(qmodel), qmodel(*inputs), gap(qmodel, inputs)
    edit, was = edit_of(name, of, part, qmodel)
    held = float(torch.tensor(edit.value)) if part == "scale" else edit.value
    undo = apply_edits(qmodel, [edit])

    # in the buffers and the state dict, and nowhere else
    assert buffer_of(qmodel, edit.tensor, part, of)[edit.index].item() == held
    key = state_key(qmodel, edit)
    assert changed(before, qmodel.state_dict()) == {key: [edit.index]}
    assert qmodel.state_dict()[key][edit.index].item() == held
    # in the simulation
    simulated = qmodel(*inputs)
    assert not torch.equal(simulated, output)
    # in the saved file
    loaded = qlab.load_quantized(qmodel.save(tmp_path / "edited.safetensors"))
    assert changed(qmodel.state_dict(), loaded.state_dict()) == {}
    assert changed(before, loaded.state_dict()) == {key: [edit.index]}
    assert torch.equal(loaded(*inputs), simulated)
    # in the ONNX file, in one number of one constant beside those that follow from it
    found = read_back(qmodel, edit, was)
    assert found.saved == held
    assert found.held is not None
    assert (found.held.places, found.held.after) == (1, pytest.approx(held + found.moved, rel=0, abs=0))
    assert found.held.before == pytest.approx(was + found.moved, rel=0, abs=0)
    if part == "code":
        assert found.onnx == (found.held,)
        assert found.moved == 0
    # in the integer session, as close to the simulation as before
    largest, own = gap(qmodel, inputs)
    assert largest <= max(steps[0], 1 + 1e-3 if mapping.default.mode == "static" else 1e-4)
    assert own <= max(steps[1], 1)
    # and undone to the last bit
    (redo,) = apply_edits(qmodel, undo)
    assert (redo.tensor, redo.part, redo.index, redo.of, redo.value) == (*places_of(edit), held)
    assert changed(before, qmodel.state_dict()) == {}
    assert torch.equal(qmodel(*inputs), output)


def test_an_untouched_network_has_equal_files(networks):
    model, mapping, calib, _ = networks("linears, per tensor")
    one, two = (quantized_onnx(qlab.convert(model, mapping, calib)).proto.SerializeToString() for _ in range(2))
    assert list(differences(one, two)) == []
    qmodel = qlab.convert(model, mapping, calib)
    data = quantized_bytes(qmodel)
    apply_edits(
        qmodel, apply_edits(qmodel, [Edit("fc2", "code", (0, 0), 100), Edit("relu", "scale", (), 0.5, "activation")])
    )
    assert quantized_bytes(qmodel) == data


def test_the_code_is_where_the_file_says_it_is(networks):
    """Read from the ONNX file without the lab's own words for it."""
    model, mapping, calib, _ = networks("residual, per channel")
    qmodel = qlab.convert(model, mapping, calib)
    apply_edits(qmodel, [Edit("conv1", "code", (7, 0, 2, 1), -117)])
    graph = onnx.load_from_string(quantized_onnx(qmodel).proto.SerializeToString()).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    holding = [n for n, c in constants.items() if c.dtype == "int8" and c.shape == tuple(qmodel.weights["conv1"].shape)]
    assert any((constants[n] == qmodel.weights["conv1"].codes.numpy()).all() for n in holding)
    assert constants["conv1.weight/codes"][7, 0, 2, 1] == -117


def test_several_edits_are_written_in_order_and_undone_in_reverse(networks):
    model, mapping, calib, _ = networks("linears, per tensor")
    qmodel = qlab.convert(model, mapping, calib)
    before = snapshot(qmodel)
    first = int(before[state_key(qmodel, Edit("fc1", "code", (2, 3), 0))][2, 3])
    undo = apply_edits(qmodel, [Edit("fc1", "code", (2, 3), value) for value in (5, 6, 7)])
    assert qmodel.weights["fc1"].codes[2, 3] == 7
    assert [edit.value for edit in undo] == [6, 5, first]
    apply_edits(qmodel, undo)
    assert changed(before, qmodel.state_dict()) == {}


def test_a_shared_weight_is_edited_in_all_its_layers():
    torch.manual_seed(1)
    x = torch.randn(16, 8)
    model = qlab.load_model(Twice(), (x,))
    mapping = QConfigMapping(default=QConfig(QuantSpec(8, "per_channel_symmetric"), A8))
    qmodel = qlab.convert(model, mapping, qlab.calibrate(model, qlab.load_dataset(x.numpy())))
    apply_edits(qmodel, [Edit("fc@1", "code", (1, 1), 99)])
    assert qmodel.weights["fc"].codes[1, 1] == 99
    found = read_back(qmodel, Edit("fc", "code", (1, 1), 99), 3)
    assert [(d.places, d.after) for d in found.onnx] == [(1, 99.0)] * len(found.onnx)
    assert gap(qmodel, (x,))[0] <= 1


def test_a_weight_and_an_activation_of_one_name_are_told_apart(networks):
    model, mapping, calib, _ = networks("residual, per channel")
    qmodel = qlab.convert(model, mapping, calib)
    name = "layer1.0.conv2"
    assert name in qmodel.weights
    assert name in qmodel.activations
    weight = qmodel.weights[name].scale.clone()
    apply_edits(qmodel, [Edit(name, "scale", (), 0.25, "activation")])
    assert float(qmodel.activations[name].scale) == 0.25
    assert torch.equal(qmodel.weights[name].scale, weight)


def test_zero_points_of_a_dynamic_lstm():
    """Its kernel knows one zero point for all channels, and for signed codes none."""
    model, mapping, calib, inputs = of_sample("lstm_text", "arm")
    inputs = tuple(x[:8] for x in inputs)
    qmodel = qlab.convert(model, mapping, calib)
    apply_edits(qmodel, [Edit("lstm.weight_ih_l0", "zero_point", (), 11)])
    step = float(qmodel.activations["classifier"].scale)
    assert float((qmodel.integer_session(ONE)(*inputs) - qmodel(*inputs)).abs().max()) <= 1.001 * step
    qmodel = qlab.convert(model, qlab.presets["x86"], calib)
    apply_edits(qmodel, [Edit("lstm.weight_hh_l0", "zero_point", (9,), 11)])
    with pytest.raises(UnsupportedModel, match="zero points from 0 to 11"):
        qmodel.integer_session(ONE)
    found = read_back(qmodel, Edit("lstm.weight_hh_l0", "zero_point", (9,), 11), 0)
    assert (found.saved, found.held, found.onnx) == (11, None, ())
    assert "zero points from 0 to 11" in found.refused


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grouped(networks):
    model, mapping, calib, _ = networks("int4, groups, weights alone")
    return qlab.convert(model, mapping, calib)


@pytest.fixture(scope="module")
def static(networks):
    model, mapping, calib, _ = networks("residual, per channel")
    return qlab.convert(model, mapping, calib)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Edit("nowhere", "code", (0, 0), 0), "'nowhere' is no quantized weight of this model, which has 'conv1', "),
        (Edit("nowhere", "scale", (), 1, "activation"), "no quantized activation of this model, which has 'relu'"),
        (Edit("conv1", "code", (0, 0, 3, 0), 0), r"no index \(0, 0, 3, 0\): give one index of each dimension, below"),
        (Edit("conv1", "code", (0,), 0), r"no index \(0,\)"),
        (Edit("conv1", "scale", (), 1), r"no index \(\): give one index of each dimension, below \[16\]"),
        (Edit("x", "scale", (0,), 1, "activation"), r"give \(\), there is one for the whole tensor"),
        (Edit("conv1", "code", (0, 0, 0, 0), 128), "cannot be 128: it may be -128 to 127"),
        (Edit("conv1", "zero_point", (0,), -129), "cannot be -129: it may be -128 to 127"),
        (Edit("x", "zero_point", (), 256, "activation"), "cannot be 256: it may be 0 to 255"),
        (Edit("conv1", "scale", (0,), 1e-40), "cannot be 1e-40"),
        (Edit("conv1", "scale", (0,), 3e38), "cannot be 3e"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refused_for_this_model_and_nothing_is_written(static, edit, said):
    before = snapshot(static)
    with pytest.raises(InvalidConfig, match=said):
        apply_edits(static, [Edit("conv1", "code", (0, 0, 0, 0), 1), edit])
    assert changed(before, static.state_dict()) == {}


def test_four_bits_end_where_they_end(grouped):
    assert limits(grouped, "fc1", "code") == (grouped.weights["fc1"].quant_min, grouped.weights["fc1"].quant_max)
    with pytest.raises(InvalidConfig, match=r"it may be -[78] to 7"):
        apply_edits(grouped, [Edit("fc1", "code", (0, 0), 8)])


GOOD = {"tensor": "fc", "part": "code", "index": [1, 2], "value": 7}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensor": ""}, "names a tensor"), ({"tensor": 3}, "names a tensor; found 3"),
        ({"part": "bias"}, "use one of code, scale, zero_point"), ({"part": []}, "has the part"),
        ({"of": "bias"}, "use one of weight, activation"), ({"of": "activation"}, "are not stored"),
        ({"index": 3}, "has the index 3"), ({"index": [-1]}, "whole numbers from 0 up"), ({"index": [True]}, "index"),
        ({"index": [1.0]}, "index"), ({"index": "12"}, "index"), ({"value": 1.5}, "whole number"),
        ({"value": math.nan}, "whole number"), ({"value": math.inf}, "whole number"), ({"value": "7"}, "a number"),
        ({"value": True}, "a number"), ({"value": None}, "a number"), ({"value": [7]}, "a number"),
        ({"part": "scale", "value": 0}, "above 0"), ({"part": "scale", "value": -0.1}, "above 0"),
        ({"part": "scale", "value": math.nan}, "above 0"), ({"part": "scale", "value": 1e-60}, "above 0"),
        ({"part": "scale", "value": 1e39}, "above 0"), ({"part": "scale", "value": 10**400}, "above 0"),
        ({"part": "zero_point", "value": 0.5}, "whole number"), ({"more": 1}, "no field 'more'"),
    ],
    ids=str,
)  # fmt: skip
def test_json_of_which_any_field_may_be_anything(change, said):
    with pytest.raises(InvalidConfig, match=said):
        Edit.from_dict(GOOD | change)


@pytest.mark.parametrize("given", [None, [], "edit", 3, {}, {"tensor": "fc"}], ids=str)
def test_what_is_no_edit(given):
    with pytest.raises(InvalidConfig):
        Edit.from_dict(given)


def test_huge_values_are_told_shortly():
    with pytest.raises(InvalidConfig) as caught:
        Edit.from_dict(GOOD | {"tensor": "x" * 10_000, "part": "y" * 10_000})
    assert len(str(caught.value)) < 400
    with pytest.raises(InvalidConfig, match="too long to show"):
        Edit.from_dict(GOOD | {"part": "scale", "value": 10**5000})


@given(
    st.text(min_size=1), st.sampled_from(("weight", "activation")), st.lists(st.integers(0, 2**40), max_size=4),
    st.one_of(
        st.tuples(st.just("scale"), st.floats(1e-30, 1e30)),
        st.tuples(st.sampled_from(("code", "zero_point")), st.integers(-(2**31), 2**31)),
    ),
)  # fmt: skip
@settings(max_examples=60)
def test_json_and_back(tensor, of, index, what):
    part, value = what
    edit = Edit(tensor, part, tuple(index), value, "weight" if part == "code" else of)
    assert Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit
    assert hash(Edit.from_dict(edit.to_dict())) == hash(edit)


def test_whole_numbers_are_whole_in_json():
    assert json.dumps(Edit("fc", "code", (1, 2), 7.0).to_dict()) == json.dumps(GOOD)
