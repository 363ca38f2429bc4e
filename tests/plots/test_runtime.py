"""The charts of what ran, drawn from what the engine measured."""

import pytest
import torch

import qlab
from qlab.export.onnx_file import quantized_onnx
from qlab.plots.runtime import differing_codes, latencies, op_times
from qlab.runtime.executed import Executed, executed
from qlab.runtime.latency import Timing
from qlab.runtime.parity import Parity, parity
from qlab.runtime.session import RuntimeOptions


@pytest.fixture(scope="module")
def ran():
    model, data = qlab.load_model("conv_digits"), qlab.load_dataset("conv_digits")
    qmodel = qlab.convert(model, qlab.presets["x86"], qlab.calibrate(model, data))
    inputs = next(iter(data.evaluation.batches(8)))[1]
    feed = {model.inputs[0].name: inputs[0].numpy()}
    return executed(quantized_onnx(qmodel).proto, feed, runs=5), parity(qmodel, inputs, RuntimeOptions())


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("by_layer", [False, True])
def test_bars_add_up_to_the_time_of_the_graph(ran, dark, by_layer):
    made = op_times(ran[0], dark, by_layer=by_layer)
    total = sum(sum(trace.x) for trace in made.data)
    scale = 1e6 if "µs" in made.layout.xaxis.title.text else 1e3
    assert total == pytest.approx(ran[0].seconds * scale, rel=1e-6)
    rows = len(made.layout.yaxis.ticktext)
    assert rows == (len({o.layer for o in ran[0].ops}) if by_layer else len(ran[0].ops))
    assert made.layout.height >= 16 * rows
    names = " ".join(trace.name for trace in made.data)
    assert "integer kernel" in names
    assert "float kernel" not in names


def test_no_ops_say_so():
    assert "no op" in op_times(Executed((), 1), False, by_layer=False).layout.annotations[0].text


@pytest.mark.parametrize("dark", [False, True])
def test_differing_codes_are_those_of_the_parity(ran, dark):
    found = ran[1]
    made = differing_codes(found, dark)
    assert list(made.data[0].y) == [t.differing / t.count * 1e6 for t in found.tensors]
    assert list(made.data[1].y) == [t.own_differing / t.count * 1e6 for t in found.tensors]
    assert found.tensors[0].tensor in made.data[0].hovertext[0]
    none = Parity((), 0.0, False, None, None, 8)
    assert "no codes" in differing_codes(none, dark).layout.annotations[0].text


def test_latencies_have_a_panel_for_each_batch_and_a_box_for_each_network():
    torch.manual_seed(0)
    turns = {name: tuple(torch.rand(20).add(1).mul(4e-3).tolist()) for name in ("float", "integer", "float in torch")}
    slow = {**turns, "integer": (*turns["integer"], 5.0)}
    made = latencies([Timing(1, 2, turns), Timing(16, 2, slow)], False)
    assert len(made.data) == 6
    assert [a.text for a in made.layout.annotations] == ["batch of 1", "batch of 16"]
    assert list(made.layout.yaxis.categoryarray) == ["float in torch", "integer", "float"]
    assert made.layout.xaxis2.range[1] < 20  # a pause of the machine does not squeeze the rest
    assert "ms" in made.layout.xaxis.title.text
