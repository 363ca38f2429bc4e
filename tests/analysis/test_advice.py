"""Remedies change something and say what; those that fail are told; several make one config without losing any."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qlab
from qlab.analysis.advice import remedies, try_remedies
from qlab.analysis.diagnose import diagnose
from qlab.analysis.fault import Fault
from qlab.analysis.remedy import Remedy, combined, conflicts
from qlab.analysis.stored import from_json, to_json
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import Cancelled, InvalidConfig
from qlab.graph.capture import Model

W3, A3 = QuantSpec(3, "per_tensor_symmetric"), QuantSpec(3)
COARSE = QConfigMapping(QConfig(W3, A3))
WEIGHTS = QConfig(QuantSpec(8, "per_channel_symmetric"), QuantSpec(8))


class Sum(nn.Module):
    """Two linears, an add and a pooling, so that there are ops without weights, and one reads what another gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pool = nn.Linear(8, 8), nn.Linear(8, 8), nn.AdaptiveAvgPool1d(4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        return self.pool((hidden + self.b(hidden)).unsqueeze(1)).squeeze(1)


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mlp():
    torch.manual_seed(0)
    x = values(256, 8)
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return qlab.load_model(network, x[:4]), qlab.load_dataset(x.numpy())


@pytest.fixture(scope="module")
def added():
    torch.manual_seed(0)
    x = values(256, 8)
    return qlab.load_model(Sum().eval(), x[:4]), qlab.load_dataset(x.numpy())


def advised(case, mapping: QConfigMapping, kind: str, tensor: str, layer: str = "") -> dict[str, Remedy]:
    """Title to remedy of a fault of this kind."""
    model, data = case
    calib = qlab.calibrate(model, data, mapping=mapping)
    fault = Fault(kind, "warning", tensor, layer or tensor, 1.0, "s.")
    return {remedy.title: remedy for remedy in remedies(fault, model, mapping, calib)}


def converted(case, mapping: QConfigMapping):
    model, data = case
    return qlab.convert(model, mapping, qlab.calibrate(model, data, mapping=mapping))


# --- what is offered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [QuantSpec(4, "per_tensor_symmetric"), QuantSpec(8, "per_channel_symmetric")])
def test_every_remedy_changes_what_comes_out(added, weight) -> None:
    mapping = QConfigMapping(QConfig(weight, A3))
    x = values(64, 8)
    before = converted(added, mapping)(x)
    found = [f for f in diagnose(*added, mapping).faults if f.remedies]
    assert {"add", "pool", "x"} & {f.tensor for f in found}
    for fault in found:
        assert len({r.title for r in fault.remedies}) == len(fault.remedies)
        for remedy in fault.remedies:
            assert not torch.equal(converted(added, remedy.mapping)(x), before), (fault.tensor, remedy.title)


@pytest.mark.parametrize("kind", ["bias_shift", "coarse_grid"])
@pytest.mark.parametrize("tensor", ["pool", "add", "x"])
def test_without_a_weight_none_is_offered_for_one(added, kind, tensor) -> None:
    titles = advised(added, COARSE, kind, tensor)
    assert titles
    assert not [t for t in titles if "weight" in t or "channel" in t or "biases" in t]


def test_titles_tell_the_weight_from_the_output(added) -> None:
    titles = advised(added, COARSE, "coarse_grid", "relu", "a")
    assert {"Range the weight of a by mse", "Range the output of a by mse"} <= titles.keys()
    assert {"8 bits for the weight of a", "8 bits for the output of a", "Scale a per channel"} <= titles.keys()


def test_more_bits_for_all_reaches_what_rules_name(mlp) -> None:
    config = COARSE.default
    mapping = COARSE.replace(by_type={"linear": config}, by_name={"2": config, "9*": None})
    remedy = advised(mlp, mapping, "coarse_grid", "1", "0")["8 bits for all activations"]
    assert {a.quant_max for a in converted(mlp, remedy.mapping).activations.values()} == {255}
    assert remedy.mapping.by_name["9*"] is None


def test_what_else_gets_more_bits_is_said(mlp) -> None:
    remedy = advised(mlp, COARSE, "coarse_grid", "input")["8 bits for input, read by 0"]
    changed = {k: a.quant_max for k, a in converted(mlp, remedy.mapping).activations.items()}
    assert changed == {"input": 255, "1": 255, "2": 7}
    assert "1 gets the same" in remedy.sentence
    last = advised(mlp, COARSE, "coarse_grid", "2")["8 bits for the output of 2"]
    assert "The others stay as they are" in last.sentence


def test_no_clip_where_there_is_nothing_to_cut() -> None:
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    network[0].weight.data = torch.eye(16)
    x = values(128, 16)
    case = qlab.load_model(network, x[:4]), qlab.load_dataset(x.numpy())
    titles = advised(case, QConfigMapping(QConfig(W3, A3)), "outlier_weight", "0.weight", "0")
    assert "Keep 0 float" in titles
    assert not [t for t in titles if t.startswith("Clip")]
    network[0].weight.data.zero_()
    zero = qlab.load_model(network, x[:4]), case[1]
    assert not [t for t in advised(zero, COARSE, "outlier_weight", "0.weight", "0") if t.startswith("Clip")]


def test_weights_of_a_recurrent_layer() -> None:
    case = qlab.load_model("lstm_text"), qlab.load_dataset("lstm_text")
    layer = next(x.name for x in case[0].layers if x.op == "lstm")
    titles = advised(case, COARSE, "weight_spread", f"{layer}.weight_ih_l0", f"{layer}.weight_ih_l0")
    assert {f"Scale {layer} per channel", f"Keep {layer} float"} <= titles.keys()
    assert "Correct the biases" not in advised(case, COARSE, "bias_shift", layer)
    assert "Correct the biases" in advised(case, COARSE, "bias_shift", "classifier")


# --- kept float -------------------------------------------------------------------------------------------------------


def cut(mapping: QConfigMapping) -> QConfigMapping:
    assert mapping.default is not None
    percentile = QuantSpec(observer="percentile", observer_args={"percentile": 80.0})
    return mapping.replace(default=mapping.default.replace(activation=percentile))


def test_an_activation_is_off_its_grid_when_it_is_kept_float(mlp) -> None:
    mapping = cut(QConfigMapping(WEIGHTS))
    found = {f.tensor: f for f in diagnose(*mlp, mapping).faults if f.kind == "saturated"}
    assert found.keys() == {"input", "1", "2"}
    for tensor, fault in found.items():
        kept = next(r for r in fault.remedies if r.title.startswith("Keep"))
        assert tensor not in converted(mlp, kept.mapping).activations
        assert f"{tensor} is on no grid then" in kept.sentence
    assert [r.title for r in found["1"].remedies][-1] == "Keep 0 and 2 float"  # 2 would put it on a grid again


def test_keeping_a_view_float_takes_it_off_every_grid(added) -> None:
    kept = next(r for t, r in advised(added, COARSE, "saturated", "add").items() if t.startswith("Keep"))
    assert kept.title == "Keep add and pool float"
    assert not {"add", "unsqueeze"} & converted(added, kept.mapping).activations.keys()


def test_what_still_reads_the_output_on_a_grid_is_said(mlp) -> None:
    first = advised(mlp, COARSE, "weight_spread", "0.weight", "0")["Keep 0 float"]
    assert "Its weight is not rounded" in first.sentence
    assert "2 reads it on a grid" in first.sentence
    assert "1" in converted(mlp, first.mapping).activations
    last = advised(mlp, COARSE, "weight_spread", "2.weight", "2")["Keep 2 float"]
    assert "on a grid" not in last.sentence


# --- tried ------------------------------------------------------------------------------------------------------------


def test_what_channels_cannot_have_is_not_offered(mlp) -> None:
    mapping = QConfigMapping(QConfig(QuantSpec(3, "per_channel_symmetric"), QuantSpec(3, "per_channel_affine")))
    found = [r for f in diagnose(*mlp, mapping).faults for r in f.remedies]
    assert found
    assert not [r.title for r in found if "mse" in r.title and "weight" not in r.title]
    assert not [t.problem for t in try_remedies(*mlp, mapping, found) if t.problem]


def test_a_remedy_that_cannot_be_carried_out_is_told(mlp) -> None:
    mapping = QConfigMapping(WEIGHTS)
    good = Remedy("float", "", QConfigMapping(WEIGHTS, by_name={"0": None}))
    bad = Remedy("mse", "", QConfigMapping(WEIGHTS.replace(activation=QuantSpec(8, "per_channel_affine", "mse"))))
    tried = try_remedies(*mlp, mapping, [bad, good])
    assert [t.remedy for t in tried] == [good, bad]
    assert not tried[0].problem
    assert "per-channel activations know only their minimum and maximum" in tried[1].problem
    assert (tried[1].evaluation, tried[1].gain, tried[1].size) == (None, None, None)
    assert tried[1].beyond_chance is None
    assert from_json(type(tried[1]), to_json(tried[1])).problem == tried[1].problem


def test_trying_stops_when_it_is_cancelled(mlp) -> None:
    def stop(_stage: str, done: int, _total: int) -> None:
        if done:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        try_remedies(*mlp, QConfigMapping(WEIGHTS), [Remedy("same", "", COARSE)], progress=stop)


# --- several as one ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offered():
    """A network, and what is offered for it at 3 bits: title to remedy."""
    model, data = qlab.load_model("conv_digits"), qlab.load_dataset("conv_digits")
    return model, {r.title: r for f in diagnose(model, data, COARSE).faults for r in f.remedies}


def together(offered: tuple[Model, dict[str, Remedy]], *titles: str) -> tuple[QConfigMapping, list[str]]:
    model, known = offered
    chosen = [known[title] for title in titles]
    mapping, against = combined(COARSE, chosen, model), conflicts(COARSE, chosen, model)
    assert combined(COARSE, chosen[::-1], model) == mapping or against
    return mapping, against


def test_two_fields_of_one_layer_are_both_changed(offered) -> None:
    layer = "block3.conv"
    made, against = together(offered, f"8 bits for the weight of {layer}", f"Scale {layer} per channel")
    config = made.by_name[layer]
    assert config is not None
    assert config.weight == QuantSpec(8, "per_channel_symmetric")
    assert config.activation == A3
    assert made.default == COARSE.default
    assert not against
    made, against = together(
        offered, f"8 bits for the weight of {layer}", f"8 bits for the output of {layer}", f"Scale {layer} per channel"
    )
    assert made.by_name == {layer: QConfig(QuantSpec(8, "per_channel_symmetric"), QuantSpec(8))}
    assert not against


def test_two_changes_of_the_default_are_both_made(offered) -> None:
    made, against = together(offered, "Scale all weights per channel", "8 bits for all activations")
    assert made == QConfigMapping(QConfig(QuantSpec(3, "per_channel_symmetric"), QuantSpec(8)))
    assert not against


def test_what_is_for_all_reaches_a_layer_that_another_remedy_names(offered) -> None:
    made, against = together(offered, "8 bits for the weight of block3.conv", "Scale all weights per channel")
    config = made.by_name["block3.conv"]
    assert config is not None
    assert config.weight == QuantSpec(8, "per_channel_symmetric")
    assert not against


def test_float_comes_before_any_spec_and_the_conflict_is_told(offered) -> None:
    made, against = together(offered, "Keep block3.conv float", "8 bits for all activations")
    assert made.by_name == {"block3.conv": None}
    assert not against
    titles = ("Keep block3.conv float", "8 bits for the weight of block3.conv")
    for chosen in (titles, titles[::-1]):
        made, against = together(offered, *chosen)
        assert made.by_name == {"block3.conv": None}
        assert len(against) == 1
        assert all(title in against[0] for title in titles)


def test_the_same_field_set_twice_is_told() -> None:
    base = QConfigMapping(WEIGHTS)
    spec = WEIGHTS.activation
    assert spec is not None

    def ranged(observer: str) -> Remedy:
        return Remedy(
            observer, "", base.replace(by_name={"a": WEIGHTS.replace(activation=spec.replace(observer=observer))})
        )

    chosen = [ranged("mse"), ranged("percentile")]
    made = combined(base, chosen).by_name["a"]
    assert made is not None
    assert made.activation is not None
    assert made.activation.observer == "percentile"
    told = conflicts(base, chosen)
    assert told == ["“percentile” and “mse” set the observer of the activations of a differently: the first counts."]
    low, high = (Remedy(str(end), "", base.replace(ranges={"x": (0.0, end)})) for end in (1.0, 2.0))
    assert combined(base, [low, high]).ranges == {"x": (0.0, 2.0)}
    assert "the range of x" in conflicts(base, [low, high])[0]
    assert conflicts(base, [low, low]) == []


def test_a_range_on_what_another_remedy_keeps_float_is_told(offered) -> None:
    model, _ = offered
    clip = Remedy("Clip", "", COARSE.replace(ranges={"block3.conv.weight": (-0.5, 0.5)}))
    kept = Remedy("Keep", "", COARSE.replace(by_name={"block3.conv": None}))
    told = conflicts(COARSE, [clip, kept], model)
    assert told == ["“Clip” does nothing beside the others: block3.conv.weight is on no grid then."]
    assert conflicts(COARSE, [clip], model) == []


def test_rules_by_type_need_the_network(mlp) -> None:
    model, _ = mlp
    linear = QConfig(QuantSpec(4, "per_tensor_symmetric"), QuantSpec(4))
    base = QConfigMapping(None, by_type={"linear": linear})
    more = Remedy("more", "", base.replace(by_name={"0": linear.replace(activation=QuantSpec(8))}))
    scaled = linear.replace(weight=QuantSpec(4, "per_channel_symmetric"))
    wide = Remedy("wide", "", base.replace(by_name={"0": scaled}))
    made = combined(base, [more, wide], model)
    assert made == base.replace(by_name={"0": scaled.replace(activation=QuantSpec(8))})
    with pytest.raises(InvalidConfig, match="give the model"):
        combined(base, [more, wide])


def test_one_remedy_is_its_config(offered) -> None:
    model, known = offered
    for remedy in known.values():
        assert combined(COARSE, [remedy], model) == remedy.mapping
        assert conflicts(COARSE, [remedy], model) == []
