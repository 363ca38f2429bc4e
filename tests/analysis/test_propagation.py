"""The error each unit makes by itself, and what arrives at it."""

import math

import numpy as np
import pytest
import torch

import qlab
from qlab.analysis.propagation import propagate
from qlab.errors import InvalidConfig
from qlab.float_side import Tapped

CASES = [
    ("residual_digits", "x86"), ("transformer_text", "x86"), ("lstm_text", "dynamic"), ("depthwise_digits", "tflite"),
    ("residual_digits", "int4_weight_only"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_what_has_arrived_is_what_an_evaluation_measures(name: str, preset: str) -> None:
    model, data = qlab.load_model(name), qlab.load_dataset(name)
    qmodel = qlab.convert(model, qlab.presets[preset], qlab.calibrate(model, data))
    found = propagate(qmodel, data)
    evaluated = qlab.evaluate(qmodel, data).sqnr
    of_layer = {row.layer: row for row in found}
    shared = [layer for layer in evaluated if layer in of_layer]
    assert len(shared) > 2
    for layer in shared:
        assert of_layer[layer].arrived.sqnr == pytest.approx(evaluated[layer], abs=1e-4)


def test_alone_means_with_float_inputs() -> None:
    """By hand for one layer: exact inputs, its weights rounded, its ReLU, its grid."""
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, data))
    row = next(r for r in propagate(qmodel, data, samples=64).rows if r.layer == "layer2.0.conv1")
    inputs = data.evaluation.batch(0, 64)[1]
    seen: dict[str, torch.Tensor] = {}
    node = model.node("layer2.0.conv1")
    read = model.names[node.args[0]]
    nodes = {model.node(read): "in", model.node(row.tensor): "out"}
    with torch.no_grad():
        Tapped(model.graph_module, nodes, seen.__setitem__).run(*inputs)
        bias = getattr(model.graph_module, str(node.args[2].target))
        y = node.target(seen["in"], qmodel.weights["layer2.0.conv1"].dequantize(), bias, *node.args[3:])
        y = qlab.fake_quantize(torch.relu(y), qmodel.activations[row.tensor].qparams)
    assert row.own.sqnr == pytest.approx(qlab.sqnr(seen["out"], y), abs=0.05)  # but for ties of the rounding
    assert row.own.largest == pytest.approx(float((y - seen["out"]).abs().max()), rel=0.02)
    spread = float(seen["out"].double().std(correction=0))
    shift = (y - seen["out"]).double().mean((0, 2, 3)) / spread
    assert np.allclose(row.own.channel_shift, shift, atol=1e-4)
    cosine = torch.cosine_similarity(seen["out"].flatten().double(), y.flatten().double(), 0)
    assert row.own.cosine == pytest.approx(float(cosine), abs=1e-5)


def test_where_it_is_made_and_where_it_shows() -> None:
    """A range that cuts one tensor off: made there, and nowhere behind it."""
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    calib = qlab.calibrate(model, data)
    tensor = "layer1.0.relu"
    cut = qlab.presets["x86"].replace(ranges={tensor: (0.0, 0.05 * calib[tensor].maximum)})
    found = propagate(qlab.convert(model, cut, calib), data)
    assert found.made.tensor == tensor
    rows = {row.tensor: row for row in found}
    position = [row.tensor for row in found].index(tensor)
    before = found.rows[:position]
    assert all(row.arrived.sqnr > 30 for row in before)
    behind = rows["layer1.0.conv2"]
    assert behind.own.sqnr > 30
    assert behind.arrived.sqnr < 15
    assert rows[tensor].clipped > 0.2


def test_counts_and_order() -> None:
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, data))
    found = propagate(qmodel, data, samples=100)
    assert found.samples == 100
    order = {node: i for i, node in enumerate(model.graph_module.graph.nodes)}
    places = [order[model.node(row.tensor)] for row in found]
    assert places == sorted(places)
    shape = model.node("fc").meta["shape"]
    row = found.of("fc")
    assert row.overlay.float_counts.sum() == row.overlay.quantized_counts.sum() == 100 * math.prod(shape[1:])
    assert found.of("nowhere") is None


def test_nothing_to_follow() -> None:
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    with pytest.raises(InvalidConfig, match="quantizes no tensor"):
        propagate(qlab.convert(model, qlab.QConfigMapping()), data)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
@pytest.mark.parametrize("preset", ["x86", "dynamic"])
def test_of_a_recurrent_layer_only_the_last_state_may_be_read(kind, preset) -> None:
    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = kind(6, 8, batch_first=True), torch.nn.Linear(8, 3)

        def forward(self, x):
            state = self.recurrent(x)[1]
            return self.head((state[0] if isinstance(state, tuple) else state)[-1])

    torch.manual_seed(0)
    model, data = qlab.load_model(Last().eval(), torch.randn(4, 5, 6)), qlab.load_dataset(torch.randn(60, 5, 6).numpy())
    qmodel = qlab.convert(model, qlab.presets[preset], qlab.calibrate(model, data))
    found = propagate(qmodel, data)
    row = found.of("recurrent.hidden")
    assert row is not None
    assert row.layer == "recurrent"
    assert 10 < row.arrived.sqnr < 80
    assert qlab.evaluate(qmodel, data).sqnr["recurrent"] == pytest.approx(row.arrived.sqnr, abs=1e-4)
