"""The float side of SQNR is run once for a batch, whatever the config, and takes no more memory than it may."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab import float_side as module
from qlab.float_side import FloatSide, float_side, power


@pytest.fixture
def model():
    torch.manual_seed(0)
    return qlab.load_model(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(2, 8))


@pytest.fixture
def ran(monkeypatch):
    """Names of the tensors asked for, one entry for each time the float network was run."""
    seen, run = [], module._run

    def counted(model, nodes, inputs):
        seen.append(sorted(nodes.values()))
        return run(model, nodes, inputs)

    monkeypatch.setattr(module, "_run", counted)
    return seen


def nodes(model, *names):
    return {model.node(name): name for name in names}


def batches(count, rows=32):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(rows, 8, generator=generator),) for _ in range(count)]


def test_a_batch_is_run_once_and_told_by_its_content(model, ran):
    side, (x, y) = FloatSide(), batches(2)
    first = side.batch(model, nodes(model, "0", "2"), x)
    assert torch.equal(first.output, model(*x))
    assert torch.equal(first.tensors["2"], model(*x))
    assert first.power["0"] == pytest.approx(float(first.tensors["0"].double().square().sum()), rel=1e-14)
    again = side.batch(model, nodes(model, "0", "2"), (x[0].clone(),))
    assert again.tensors["0"] is first.tensors["0"]
    assert ran == [["0", "2"]]
    assert torch.equal(side.batch(model, nodes(model, "0", "2"), y).output, model(*y))
    assert len(ran) == 2


def test_a_config_with_other_layers_adds_those_it_lacks(model, ran):
    side, (x,) = FloatSide(), batches(1)
    first = side.batch(model, nodes(model, "0"), x)
    both = side.batch(model, nodes(model, "0", "1"), x)
    assert ran == [["0"], ["1"]]
    assert both.tensors["0"] is first.tensors["0"]
    assert torch.equal(both.tensors["1"], torch.relu(first.tensors["0"]))
    side.batch(model, nodes(model, "1"), x)
    assert len(ran) == 2
    assert side.nbytes == 2 * 32 * 16 * 4


def test_memory_is_bounded_and_what_fits_serves_every_round(model, ran):
    size = 32 * 16 * 4
    side, given, wanted = FloatSide(2 * size + size // 2), batches(4), nodes(model, "0")
    for _ in range(3):
        side.begin()
        for x in given:
            assert torch.equal(side.batch(model, wanted, x).tensors["0"], module._run(model, wanted, x).tensors["0"])
            assert side.nbytes <= side.limit
    ran.clear()
    side.begin()
    for x in given:
        side.batch(model, wanted, x)
    assert len(ran) == 2  # two of the four are kept; with the oldest making room it would be all four
    assert side.nbytes == 2 * size


def test_other_data_take_the_room_of_data_no_longer_asked_for(model, ran):
    size = 32 * 16 * 4
    side, (a, b, c, d), wanted = FloatSide(2 * size), batches(4), nodes(model, "0")
    for pair in ((a, b), (c, d), (c, d)):
        side.begin()
        for x in pair:
            side.batch(model, wanted, x)
    assert len(ran) == 4


def test_what_does_not_fit_at_all_is_given_and_not_kept(model):
    side, (x,) = FloatSide(100), batches(1)
    assert torch.equal(side.batch(model, nodes(model, "0", "2"), x).output, model(*x))
    assert side.nbytes == 0


def test_a_view_counts_as_what_it_keeps_alive():
    class Part(nn.Module):
        def forward(self, x):
            return (x * 2.0)[:, :1] + 1.0

    model = qlab.load_model(Part().eval(), torch.randn(2, 8))
    side, (x,) = FloatSide(), batches(1)
    view = [name for name in model.names.values() if "slice" in name][-1]
    found = side.batch(model, nodes(model, view), x)
    assert found.nbytes == 32 * 8 * 4 > found.tensors[view].nbytes


def test_one_model_is_kept_and_goes_with_the_model(model):
    (x,) = batches(1)
    held = float_side(model).batch(model, nodes(model, "0"), x)
    assert float_side(model).nbytes == held.nbytes
    other = qlab.load_model(nn.Linear(8, 4).eval(), torch.randn(2, 8))
    tensor = weakref.ref(held.tensors["0"])
    del held
    float_side(other)
    gc.collect()
    assert tensor() is None
    held = float_side(other).batch(other, nodes(other, next(iter(other.names.values()))), x)
    tensor = weakref.ref(held.output)
    del held, other
    gc.collect()
    assert tensor() is None


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25], ids=str)
def test_power_is_added_up_in_float64(scale):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 200_003)).astype(np.float32)) * scale
    assert power(x) == pytest.approx(float(x.double().square().sum()), rel=1e-11)
    assert power(x.t()[::2]) == pytest.approx(float(x.t()[::2].double().square().sum()), rel=1e-11)
    constant = torch.full((1 << 20,), 0.1) * scale
    assert power(constant) == pytest.approx(float(constant[0].double() ** 2) * (1 << 20), rel=1e-11)
    assert power(torch.zeros(0)) == 0.0
