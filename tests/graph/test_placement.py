"""Placement: which tensors lie on grids, and a ledger line for every op that says why or why not."""

from typing import get_args

import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.causes import CAUSES, ON_INTEGERS, Cause, state_of
from qlab.graph.placement import place
from tests.networks import Twice

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
A8 = QuantSpec(bits=8)
STATIC = QConfig(weight=W8, activation=A8)
DYNAMIC = QConfig(weight=W8, activation=A8, mode="dynamic")
WEIGHT_ONLY = QConfig(weight=W8, mode="weight_only")


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(16, 2)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x) + x)
        return self.fc(self.pool(x).flatten(1))


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 3)

    def forward(self, tokens):
        x = self.norm(self.lstm(self.embedding(tokens))[0])
        attention = torch.softmax(x @ x.transpose(1, 2), -1) @ x
        y = torch.nn.functional.gelu(self.up(torch.cat([x, attention], -1)[..., :8]))
        return self.down(y * torch.sigmoid(y)).mean(1)


@pytest.fixture(scope="module")
def residual():
    return qlab.load_model(Residual().eval(), torch.randn(2, 3, 4, 4))


@pytest.fixture(scope="module")
def everything():
    return qlab.load_model(Everything().eval(), torch.zeros(2, 5, dtype=torch.int64))


def rows(placement):
    return {r.layer: r for r in placement.ledger}


def points(placement):
    return {
        (p.tensor, None if p.consumers is None else tuple(c.name for c in p.consumers)) for p in placement.activations
    }


def test_static_units_are_observed_at_their_end(residual):
    placed = place(residual, QConfigMapping(default=STATIC))
    assert points(placed) == {("x", ("conv2d",)), ("relu", None), ("conv2", None), ("relu@1", None), ("fc", None)}
    assert [w.tensor for w in placed.weights] == ["conv1.weight", "conv2.weight", "fc.weight"]
    assert placed.outputs == {"conv1": "relu", "conv2": "conv2", "add": "relu@1", "fc": "fc"}


def test_every_op_has_one_ledger_line_with_a_reason(residual, everything):
    for model in (residual, everything):
        for name in qlab.presets:
            placed = place(model, qlab.presets[name])
            assert [r.layer for r in placed.ledger] == [layer.name for layer in model.layers]
            assert all(r.reason and r.rule for r in placed.ledger)


def test_ops_that_share_a_grid_say_whose(residual):
    r = rows(place(residual, QConfigMapping(default=STATIC)))
    assert r["relu"].reason == "part of the unit of conv1"
    assert r["pool"].reason == "shares the grid of relu@1"
    assert r["flatten"].quantized


def test_a_float_layer_gets_and_gives_float(residual):
    placed = place(residual, QConfigMapping(default=STATIC, by_name={"conv2": None}))
    r = rows(placed)
    assert not r["conv2"].quantized
    assert r["conv2"].reason == "excluded by by_name conv2"
    # the add needs conv2's output on a grid: quantized on that edge alone
    assert ("conv2", ("add",)) in points(placed)


def test_all_float_when_nothing_is_asked(residual):
    placed = place(residual, QConfigMapping())
    assert not placed.activations
    assert not placed.weights
    assert not any(r.quantized for r in placed.ledger)


def test_rules_that_match_nothing_are_told(residual):
    mapping = QConfigMapping(default=STATIC, by_name={"layer9.*": None, "conv?": STATIC}, by_type={"lstm": None})
    assert place(residual, mapping).unmatched == ("by_type lstm", "by_name layer9.*")


def test_dynamic_takes_linear_and_recurrent(residual, everything):
    r = rows(place(residual, QConfigMapping(default=DYNAMIC)))
    assert r["fc"].quantized
    assert not r["conv1"].quantized
    assert "convolutions" in r["conv1"].reason
    placed = place(everything, QConfigMapping(default=DYNAMIC))
    assert {p.layer for p in placed.dynamic} == {"lstm", "up", "down"}
    assert not placed.activations
    assert rows(placed)["embedding"].quantized


def test_weight_only_touches_no_activation(everything):
    placed = place(everything, QConfigMapping(default=WEIGHT_ONLY))
    assert not placed.activations
    assert not placed.dynamic
    assert {w.layer for w in placed.weights} == {"embedding", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "up", "down"}


def test_static_puts_softmax_and_sigmoid_on_fixed_grids(everything):
    placed = place(everything, QConfigMapping(default=STATIC))
    kinds = {p.tensor: p.kind for p in placed.activations}
    assert kinds["softmax"] == "fixed"
    assert kinds["sigmoid"] == "fixed"
    assert kinds["matmul"] == "observed"
    r = rows(placed)
    assert "every step" in r["lstm"].reason
    assert not r["norm"].quantized
    assert "layer_norm" in r["norm"].reason


def test_infinite_tensors_stay_float(everything):
    placed = place(everything, QConfigMapping(default=STATIC), infinite={"matmul": 7})
    assert not rows(placed)["matmul"].quantized
    assert "infinities" in rows(placed)["matmul"].reason
    assert "matmul" not in {p.tensor for p in placed.activations}


def test_groups_that_do_not_divide_leave_the_layer_float(residual):
    config = QConfig(weight=QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=32), mode="weight_only")
    r = rows(place(residual, QConfigMapping(default=config)))
    assert r["conv1"].reason == "its 27 weights per channel do not divide into groups of 32"


def test_a_computed_weight_is_not_a_weight():
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return nn.functional.linear(x, torch.tanh(self.a))

    model = qlab.load_model(Hyper().eval(), torch.randn(2, 4))
    r = rows(place(model, QConfigMapping(default=STATIC)))
    assert r["linear"].reason == "its weight is computed at run time, not a constant"


def test_a_layer_called_twice_has_two_lines_and_one_table():
    model = qlab.load_model(Twice(4).eval(), torch.randn(2, 4))
    placed = place(model, QConfigMapping(default=STATIC))
    assert [r.layer for r in placed.ledger] == ["fc", "relu", "fc@1"]
    assert len({w.constant.target for w in placed.weights}) == 1
    assert rows(place(model, QConfigMapping(default=STATIC, by_name={"fc@1": None})))["fc"].quantized


# --- the cause of every line ------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Weights that are no constant floats, values that are no floats, and a mask."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("codes", torch.ones(4, 4, dtype=torch.int64))
        self.fc = nn.Linear(4, 4)

    def forward(self, x, tokens):
        counted = nn.functional.linear(tokens, self.codes)
        x = nn.functional.linear(self.fc(x), torch.tanh(self.mix))
        one_hot = nn.functional.embedding(tokens, torch.sigmoid(self.mix))
        return x / 2 + one_hot.sum(1) + counted + tokens * 0.5


@pytest.fixture(scope="module")
def odd():
    return qlab.load_model(Odd().eval(), (torch.randn(2, 4), torch.zeros(2, 4, dtype=torch.int64)))


GROUPS = QConfig(weight=QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=32), mode="weight_only")
ACTIVATIONS = QConfig(activation=A8)


@pytest.mark.parametrize(
    ("network", "mapping", "infinite", "layer", "cause"),
    [
        ("residual", QConfigMapping(default=STATIC), {}, "conv1", "quantized"),
        ("residual", QConfigMapping(default=STATIC), {}, "relu", "fused"),
        ("residual", QConfigMapping(default=STATIC), {}, "pool", "shared"),
        ("residual", QConfigMapping(default=STATIC, by_name={"conv2": None}), {}, "conv2", "excluded"),
        ("residual", QConfigMapping(default=STATIC, by_type={"linear": None}), {}, "fc", "excluded"),
        ("residual", QConfigMapping(by_type={"conv2d": STATIC}), {}, "fc", "default_float"),
        ("residual", QConfigMapping(default=DYNAMIC), {}, "conv1", "dynamic_conv"),
        ("residual", QConfigMapping(default=DYNAMIC), {}, "fc", "quantized"),
        ("residual", QConfigMapping(default=DYNAMIC), {}, "add", "no_weight"),
        ("residual", QConfigMapping(default=WEIGHT_ONLY), {}, "add", "no_weight"),
        ("residual", QConfigMapping(default=WEIGHT_ONLY), {}, "pool", "float_input"),
        ("residual", QConfigMapping(default=GROUPS), {}, "conv1", "group_size"),
        ("everything", QConfigMapping(default=GROUPS), {}, "embedding", "group_size"),
        ("everything", QConfigMapping(default=GROUPS), {}, "lstm", "group_size"),
        ("everything", QConfigMapping(default=ACTIVATIONS), {}, "embedding", "activations_only"),
        ("everything", QConfigMapping(default=ACTIVATIONS), {}, "lstm", "activations_only"),
        ("everything", QConfigMapping(default=DYNAMIC), {}, "lstm", "quantized"),
        ("everything", QConfigMapping(default=WEIGHT_ONLY), {}, "softmax", "no_weight"),
        ("everything", QConfigMapping(default=STATIC), {"matmul": 7}, "matmul", "infinite"),
        ("everything", QConfigMapping(default=STATIC), {}, "norm", "unsupported"),
        ("odd", QConfigMapping(default=STATIC), {}, "linear@1", "weight_computed"),
        ("odd", QConfigMapping(default=STATIC), {}, "embedding", "weight_computed"),
        ("odd", QConfigMapping(default=STATIC), {}, "linear", "integer_values"),
        ("odd", QConfigMapping(default=STATIC), {}, "mul", "integer_input"),
        ("odd", QConfigMapping(default=STATIC), {}, "div", "unsupported"),
    ],
)
def test_every_line_says_its_cause(network, mapping, infinite, layer, cause, request):
    row = rows(place(request.getfixturevalue(network), mapping, infinite))[layer]
    assert row.cause == cause
    assert row.quantized == (cause in ON_INTEGERS)
    assert row.to_dict()["cause"] == cause


def test_a_weight_of_integers_is_told():
    model = qlab.load_model(Twice(4).eval(), torch.randn(2, 4))
    constant = model.node("fc").args[1]
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    setattr(model.graph_module, constant.target, weight)
    row = rows(place(model, QConfigMapping(default=STATIC)))["fc"]
    assert (row.cause, row.reason) == ("weight_not_float", "its weight is torch.int8, not float")


def test_packed_sequences_are_told():
    model = qlab.load_model(Everything().eval(), torch.zeros(2, 5, dtype=torch.int64))
    model.node("lstm").target = torch.ops.aten.lstm.data
    assert rows(place(model, QConfigMapping(default=STATIC)))["lstm"].cause == "packed"


def test_every_cause_has_a_meaning_and_a_test():
    assert set(get_args(Cause)) == set(CAUSES)
    marks = test_every_line_says_its_cause.pytestmark[0].args[1]
    assert {cause for *_, cause in marks} | {"weight_not_float", "packed"} == set(CAUSES)
    assert {cause: state_of(cause) for cause in ON_INTEGERS} == {
        "quantized": "quantized", "fused": "shared", "shared": "shared"
    }  # fmt: skip
    assert {state_of(cause) for cause in set(CAUSES) - ON_INTEGERS} == {"float"}
