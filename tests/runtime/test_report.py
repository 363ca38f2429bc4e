"""The report on an integer run: that it says what the parts measured, survives JSON, and why integer may be slower."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfigMapping
from qlab.errors import UnsupportedModel
from qlab.evaluation import compare, evaluate
from qlab.export.size import file_size
from qlab.preset import presets
from qlab.runtime import measure
from qlab.runtime.boundaries import boundaries
from qlab.runtime.executed import Executed, ExecutedOp
from qlab.runtime.latency import Timing
from qlab.runtime.measure import batch_of, blocked_report, runtime_report, take
from qlab.runtime.parity import parity
from qlab.runtime.report import DEFAULTS, FLOAT, INTEGER, TORCH, RuntimeReport, Times
from qlab.runtime.session import FLOAT_BLOCKS, RuntimeOptions, needed_entries
from qlab.runtime.why import doubt, speed, why_not_faster
from tests.networks import Body

BATCH = 8


@pytest.fixture(scope="module")
def qmodel(residual):
    model, _, calibration = residual
    return qlab.convert(model, presets["x86"], calibration)


@pytest.fixture(scope="module")
def few(residual):
    """100 evaluation samples."""
    return residual[1].evaluation.subset(slice(0, 100))


@pytest.fixture(scope="module")
def stages():
    return []


@pytest.fixture(scope="module")
def report(qmodel, few, stages):
    return runtime_report(qmodel, few, BATCH, 1, lambda *at: stages.append(at), budget=0.2)


def test_it_survives_json_and_keeps_everything(report):
    again = RuntimeReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert again.times.executed.ops[3].shape == report.times.executed.ops[3].shape


def test_numbers_are_those_of_the_parts(report, qmodel, few):
    inputs = take(qmodel.model, few, measure.SAMPLES)
    numbers = report.numbers
    assert numbers.parity == parity(qmodel, inputs)
    assert numbers.size == file_size(qmodel)
    assert [row.layer for row in numbers.headroom] == [p.layer for p, _ in report.kernels(report.times.executed)]
    of = numbers.accuracies
    simulated, integer = evaluate(qmodel, few), evaluate(qmodel, few, backend="integer")
    assert (of.simulated.backend, of.integer.backend) == ("simulated", "integer")
    assert of.simulated.accuracy == simulated.accuracy
    assert (of.integer.accuracy, of.integer.accuracy_interval) == (integer.accuracy, integer.accuracy_interval)
    paired = compare(simulated, integer, few.evaluation.targets)
    assert of.integer_to_simulated.changed == paired.changed
    assert of.reference.accuracy == evaluate(qmodel.model, few).accuracy


def test_times_are_of_the_batch_asked_for_and_of_one(report):
    times = report.times
    assert [t.batch for t in times.timings] == [1, BATCH]
    assert {FLOAT, INTEGER} <= set(times.timing.seconds)
    assert [(t.batch, set(t.seconds)) for t in times.torch] == [(n, {FLOAT, TORCH}) for n in (1, BATCH)]
    assert {o.shape[0] for o in times.executed.ops} == {BATCH}
    assert {o.kind for o in times.reference.ops} <= {"float", "move", "shape"}
    assert all(kind == "integer" for _, kind in report.kernels(times.executed))
    assert all(kind == "float" for _, kind in report.kernels(times.reference))
    assert 0 <= times.busy <= 1


def test_defaults_are_measured_where_they_compute_something_else(report, qmodel, few, residual):
    saturates = bool(report.machine.cpu.saturates_pairs)
    assert (report.numbers.defaults is not None) == saturates
    assert (report.times.defaults is not None) == saturates
    assert (DEFAULTS in report.times.timing.seconds) == saturates
    if saturates:
        inputs = take(qmodel.model, few, measure.SAMPLES)
        assert report.numbers.defaults == parity(qmodel, inputs, RuntimeOptions(as_simulated=False))
        assert report.numbers.defaults.output_largest > report.numbers.parity.output_largest
    model, _, calibration = residual
    # codes of 7 bits cannot leave 16 bits in pairs, and a float model has nothing to trade
    assert needed_entries(qlab.convert(model, presets["x86_avx2"], calibration)) == {}
    assert needed_entries(qlab.convert(model, QConfigMapping())) == {}
    assert needed_entries(qlab.convert(model, presets["int8_weight_only"])) == {}


@pytest.mark.parametrize("preset", ["int8_weight_only", "int4_weight_only", "int4_grouped"])
def test_products_with_blocks_need_their_entry_whatever_the_layout_of_scales(preset):
    torch.manual_seed(0)
    model = qlab.load_model(Body(nn.Linear(64, 32)), torch.zeros(2, 3, 64))
    qmodel = qlab.convert(model, presets[preset])
    assert list(needed_entries(qmodel)) == [FLOAT_BLOCKS]
    x = (torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)),)
    kept, plain = parity(qmodel, x), parity(qmodel, x, RuntimeOptions(as_simulated=False))
    assert plain.output_largest > 100 * kept.output_largest


def test_progress_tells_each_stage_and_may_stop_it(stages, qmodel, few):
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == [
        measure.COMPARE, measure.ROOM, measure.SIMULATE, measure.INTEGERS, measure.PROFILE, measure.TIME,
    ]  # fmt: skip
    timed = [done for stage, done, _ in stages if stage == measure.TIME]
    assert timed == sorted(timed)
    assert timed[-1] == 400

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        runtime_report(qmodel, few, BATCH, 2, stop)


def test_known_numbers_are_not_measured_again(report, qmodel, few, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "measure_numbers", refuse)
    before = torch.get_num_threads()
    assert before != 1
    again = runtime_report(qmodel, few, 1, 1, numbers=report.numbers, budget=0.05)
    assert again.numbers is report.numbers
    assert [t.batch for t in again.times.timings] == [1]
    assert again.threads == again.times.timing.threads == 1
    assert torch.get_num_threads() == before


def test_an_op_without_an_onnx_form_is_said_not_raised(qmodel, few, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise UnsupportedModel("no ONNX form for x.", detail="aten::x")

    monkeypatch.setattr(measure, "quantized_onnx", refuse)
    found = runtime_report(qmodel, few, BATCH, 2, numbers=None)
    assert (found.blocked, found.detail, found.numbers, found.times) == ("no ONNX form for x.", "aten::x", None, None)
    assert RuntimeReport.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.plan
    assert why_not_faster(found) == ()
    assert found == blocked_report(qmodel, BATCH, 2, UnsupportedModel("no ONNX form for x.", detail="aten::x"))


def test_a_fixed_batch_is_kept_and_few_samples_are_repeated(residual):
    class Net(nn.Module):
        def forward(self, x):
            return x.reshape(4, -1).relu()

    model, data, _ = residual
    three = data.evaluation.subset(slice(0, 3))
    fixed = qlab.load_model(Net(), torch.zeros(4, 1, 16, 16))
    assert (fixed.fixed_batch, batch_of(fixed, 9)) == (4, 4)
    assert len(take(fixed, three, 9)[0]) == 4
    (x,) = take(model, three, 7)
    assert np.array_equal(x[3:6], x[:3])
    assert len(x) == 7


# ---- rules, on made-up times -----------------------------------------------------------------------------------------


def with_times(report, floats, integers, defaults=None, ops=None, reference=None, busy=0.0):
    seconds = {FLOAT: floats, INTEGER: integers}
    if defaults:
        seconds[DEFAULTS] = defaults
    ran = Executed(tuple(ops), 1) if ops else report.times.executed
    other = Executed(tuple(reference), 1) if reference else report.times.reference
    return replace(report, times=Times(ran, None, other, (Timing(BATCH, 2, seconds),), (), busy))


def op(name, kind, microseconds, *, op="Conv", inputs=("a",), outputs=("b",), reads=("float",), writes=("float",)):
    layer = name.split("/")[0]
    return ExecutedOp(name, op, layer, kind, microseconds * 1e-6, reads, writes, (1,), inputs, outputs)


@pytest.mark.parametrize(
    ("floats", "integers", "outcome", "words"),
    [
        pytest.param((2.0,) * 5, (1.0,) * 5, "faster", "2.00 times faster than float", id="faster"),
        pytest.param((1.0,) * 5, (4.0,) * 5, "slower", "4.00 times slower than float", id="slower"),
        pytest.param((1.0, 1.0, 1.0, 1.2, 0.8), (1.0, 1.1, 0.9, 1.0, 1.0), "noise", "not distinguishable", id="noise"),
    ],
)
def test_inside_the_quartiles_is_noise(report, floats, integers, outcome, words):
    found = speed(with_times(report, floats, integers).times.timing)
    assert found.outcome == outcome
    assert words in found.verdict


def test_reasons_name_what_costs_the_time(report):
    ops = [
        op("x/QuantizeLinear", "convert", 100, op="QuantizeLinear"),
        op("conv1/Conv", "integer", 400, op="QLinearConv"),
        op("norm/LayerNormalization", "float", 500, op="LayerNormalization"),
    ]
    made = with_times(report, (1.0,) * 5, (2.0,) * 5, (1.5,) * 5, ops, [op("conv1/Conv", "float", 100)])
    text = " ".join(why_not_faster(made))
    assert "50.0 % of the time goes to 1 op that stayed float: norm (LayerNormalization, 500 µs)" in text
    assert "10.0 % of the time goes to 1 conversion " in text
    assert "400 µs, against 100 µs in float for the same 1 layer" in text
    assert "1.33 times faster" in text
    assert why_not_faster(with_times(report, (2.0,) * 5, (1.0,) * 5, None, ops)) == ()


def test_small_ops_and_weight_only_are_told(report):
    many = [op(f"l{i}/Add", "integer", 5) for i in range(20)]
    assert "The ops are small: 20 of 20" in " ".join(
        why_not_faster(with_times(report, (1.0,) * 5, (2.0,) * 5, ops=many))
    )
    plan = tuple(replace(p, mode="weight_only") for p in report.plan if p.role == "weighted")
    opened = [op("conv1.weight/Dequantize", "convert", 300, op="DequantizeLinear"), op("conv1/Conv", "float", 700)]
    (text,) = why_not_faster(replace(with_times(report, (1.0,) * 5, (2.0,) * 5, ops=opened), plan=plan))
    assert "weight-only" in text
    assert "30.0 %" in text


def test_times_of_a_busy_machine_are_doubted(report):
    ops = [op("conv1/Conv", "integer", 1000, op="QLinearConv")]

    def made(floats, integers, busy=0.0):
        return with_times(report, (floats,) * 5, (integers,) * 5, None, ops, ops, busy).times

    assert doubt(made(1.1e-3, 1.2e-3)) is None
    assert "Other programs took 50.0 %" in doubt(made(1.1e-3, 1.2e-3, 0.5))
    assert "the integer network took 3.00 ms, its ops 1.00 ms" in doubt(made(1.1e-3, 3e-3))
    assert "the float network took 3.00 ms" in doubt(made(3e-3, 1.2e-3))


# ---- boundaries ------------------------------------------------------------------------------------------------------


def test_boundaries_look_through_moves_and_name_the_op_that_asks(report):
    convert = {"op": "QuantizeLinear", "writes": ("uint8",)}
    ops = [
        op("x/QuantizeLinear", "convert", 1, inputs=("x",), outputs=("x/codes",), **convert),
        op("Transpose", "move", 1, op="Transpose", inputs=("x/codes",), outputs=("t",)),
        op("conv1/Conv", "integer", 5, op="QLinearConv", inputs=("t",), outputs=("conv1/codes",)),
        op("conv1/Dequantize", "convert", 1, op="DequantizeLinear", inputs=("conv1/codes",), outputs=("conv1",)),
        op("norm/LayerNormalization", "float", 5, op="LayerNormalization", inputs=("conv1",), outputs=("norm",)),
        op("norm/QuantizeLinear", "convert", 1, inputs=("norm",), outputs=("norm/codes",), **convert),
        op("w.weight/DequantizeLinear", "convert", 1, op="DequantizeLinear", inputs=("w",), outputs=("w/dq",)),
        op("fc/Gemm", "integer", 5, op="QGemm", inputs=("norm/codes",), outputs=("fc/codes",)),
        op("fc/Dequantize", "convert", 1, op="DequantizeLinear", inputs=("fc/codes",), outputs=("output",)),
    ]
    found = boundaries(Executed(tuple(ops), 1), ("x",), {"norm": "not quantized here"})
    assert [b.cause for b in found] == [
        "the network's input comes as float",
        "LayerNormalization of norm computes in float: not quantized here",
        "LayerNormalization of norm computes in float: not quantized here",
        "a constant stored as integers, turned into float at every call",
        "the network's output leaves as float",
    ]
    assert [o.layer for o in found[0].after] == ["conv1"]
    assert found[1].before.layer == "conv1"
    assert len(report.times.executed.boundaries) == 2  # of a real network, its input and its output


def test_an_op_of_the_float_graph_carries_the_layer_it_came_from(report):
    """ReLU belongs to what it is computed from, also where the runtime took it into a convolution."""
    convolutions = [o.layer for o in report.times.reference.ops if o.op == "Conv"]
    assert sorted(convolutions) == sorted(p.layer for p in report.plan if p.op == "conv2d")


def test_times_wait_for_a_machine_that_gets_quiet_and_not_for_ever(monkeypatch):
    seen = iter([90.0, 60.0, 3.0, 80.0])
    monkeypatch.setattr(measure.psutil, "cpu_percent", lambda interval: next(seen))
    assert measure.wait_for_quiet() == pytest.approx(0.03)
    looks = []
    monkeypatch.setattr(measure.psutil, "cpu_percent", lambda interval: looks.append(interval) or 90.0)
    assert measure.wait_for_quiet() == pytest.approx(0.9)
    assert sum(looks) == 2
