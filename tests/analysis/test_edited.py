"""What an edit does to a layer and to the answers: against differences taken by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import qlab
from qlab.analysis.edited import edit_effect, output_of
from qlab.edits import Edit, apply_edits
from qlab.errors import InvalidConfig, NonFinite

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def mlp():
    model, data = qlab.load_model("outlier_mlp"), qlab.load_dataset("outlier_mlp")
    return model, data, qlab.calibrate(model, data)


def batches(data, count=40, size=16):
    return [(inputs, targets) for _, inputs, targets in data.evaluation.subset(range(count)).batches(size)]


def pair(model, calib, edits, preset="x86"):
    original, edited = (qlab.convert(model, qlab.presets[preset], calib) for _ in range(2))
    apply_edits(edited, edits)
    return original, edited


def test_the_last_layer_by_hand(mlp):
    model, data, calib = mlp
    original, edited = pair(model, calib, [Edit("fc3", "code", (4, k), 127) for k in range(30)])
    found = edit_effect(original, edited, "fc3", batches(data))
    inputs = torch.cat([x for (x,), _ in batches(data)])
    before, after = original(inputs).double(), edited(inputs).double()
    change = (after - before).abs()
    assert found.tensor == output_of(original, "fc3")
    assert (found.samples, found.values, found.predicted) == (40, before.numel(), 40)
    assert found.changed == int((change > 0).sum()) > 0
    assert found.largest == found.output == float(change.max())
    np.testing.assert_array_equal(found.channels, change.amax(0).numpy())
    assert found.changed_channels.tolist() == [4]
    assert found.sqnr == pytest.approx(10 * math.log10(float(before.square().sum() / change.square().sum())))
    assert found.answered == int((before.argmax(1) != after.argmax(1)).sum()) > 0
    assert found.step == float(original.activations[found.tensor].scale)


@pytest.mark.parametrize(
    ("preset", "layer", "index", "channel"),
    [("x86", "layer2.0.conv1", (3, 2, 1, 0), 3), ("int8_weight_only", "layer1.0.conv2", (7, 2, 1, 0), 7)],
)
def test_an_edit_changes_its_channel_alone(residual, preset, layer, index, channel):
    model, data, calib = residual
    original, edited = pair(model, calib, [Edit(layer, "code", index, 127)], preset)
    found = edit_effect(original, edited, layer, batches(data))
    assert found.changed_channels.tolist() == [channel]
    assert len(found.channels) == original.weights[layer].shape[0]
    assert (found.step is None) == (preset == "int8_weight_only")
    assert math.isfinite(found.sqnr)


def test_nothing_edited_is_nothing_changed(mlp):
    model, data, calib = mlp
    original, edited = pair(model, calib, [])
    found = edit_effect(original, edited, "fc1", batches(data))
    assert (found.changed, found.largest, found.answered, found.output) == (0, 0, 0, 0)
    assert found.sqnr == math.inf
    assert not len(found.changed_channels)


def test_an_edit_of_a_layer_behind_does_not_reach_one_before(mlp):
    model, data, calib = mlp
    original, edited = pair(model, calib, [Edit("fc3", "code", (4, 3), 127)])
    found = edit_effect(original, edited, "fc1", batches(data))
    assert found.changed == 0
    assert found.output > 0


def test_weights_of_a_recurrent_layer():
    model, data = qlab.load_model("lstm_text"), qlab.load_dataset("lstm_text")
    calib = qlab.calibrate(model, data.calibration.subset(range(32)))
    original, edited = pair(model, calib, [Edit("lstm.weight_hh_l0", "scale", (5,), 0.5)])
    found = edit_effect(original, edited, "lstm.weight_hh_l0", batches(data, 8, 4))
    assert len(found.channels) == 112
    assert found.changed > 0
    assert (found.samples, found.predicted) == (8, 8)


def test_what_overflows_is_told(mlp):
    model, _, calib = mlp
    edits = [Edit("fc1", "scale", (c,), 1e36) for c in range(4)]
    original, edited = pair(model, calib, edits, "int8_weight_only")
    with pytest.raises(NonFinite, match="write a smaller scale"):
        edit_effect(original, edited, "fc1", [((1e4 * torch.ones(2, 64),), None)])


def test_refused(mlp):
    model, data, calib = mlp
    original, edited = pair(model, calib, [])
    with pytest.raises(InvalidConfig, match="'relu' is no quantized weight"):
        edit_effect(original, edited, "relu", batches(data))
    with pytest.raises(InvalidConfig, match="at least one batch"):
        edit_effect(original, edited, "fc1", [])
