import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.difference import FieldDifference, config_difference, extras, summary

W, A = QuantSpec(8, "per_channel_symmetric"), QuantSpec(8)
BASE = QConfigMapping(QConfig(W, A))


def words(a: QConfigMapping, b: QConfigMapping) -> str:
    return config_difference(a, b).words


def test_equal_configs() -> None:
    found = config_difference(BASE, QConfigMapping.from_dict(BASE.to_dict()))
    assert found.equal
    assert found.words == "the configs are equal"
    assert config_difference(qlab.presets["x86"], qlab.presets["x86"]).equal


def test_the_default_field_by_field() -> None:
    other = QConfigMapping(QConfig(W.replace(bits=4), A.replace(observer="mse")))
    assert config_difference(BASE, other).rows == (
        FieldDifference("default", "weight bits", "8", "4"),
        FieldDifference("default", "activation observer", "min_max", "mse"),
    )
    assert words(BASE, other) == "weight bits 8 → 4; activation observer min_max → mse"


def test_settings_of_an_observer_count_by_what_they_mean() -> None:
    usual = BASE.replace(default=QConfig(W, A.replace(observer="percentile")))
    value = dict(qlab.quant.observers.OBSERVERS["percentile"].settings({}))["percentile"]
    given = BASE.replace(
        default=QConfig(W, A.replace(observer="percentile", observer_args={"percentile": float(value)}))
    )
    assert config_difference(usual, given).equal
    tight = BASE.replace(default=QConfig(W, A.replace(observer="percentile", observer_args={"percentile": 99.0})))
    assert words(usual, tight) == "activation observer percentile → percentile 99"
    assert words(BASE, tight) == "activation observer min_max → percentile 99"


def test_rules_for_layers_and_types() -> None:
    other = BASE.replace(
        by_name={"conv1": None, "fc": QConfig(W.replace(bits=4), A)}, by_type={"linear": QConfig(W, A)}
    )
    assert words(BASE, other) == ("type linear – → W8 A8 static; layer conv1 – → float; layer fc – → W4 A8 static")
    assert words(other, BASE) == ("type linear W8 A8 static → –; layer conv1 float → –; layer fc W4 A8 static → –")
    more = other.replace(by_name={"conv1": QConfig(W, A), "fc": QConfig(W.replace(bits=2), A)})
    assert words(other, more) == "layer conv1 float → W8 A8 static; layer fc weight bits 4 → 2"


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (QConfigMapping(), "all W8 A8 static → float"),
        (QConfigMapping(QConfig(W, mode="weight_only")), "mode static → weight-only; activation bits 8 → –"),
        (QConfigMapping(QConfig(None, A)), "weight bits 8 → –"),
        (
            QConfigMapping(QConfig(W.replace(narrow_range=True), A.replace(signed=True))),
            "weight narrow range – → yes; activation codes unsigned → signed",
        ),
        (
            QConfigMapping(QConfig(W.replace(qscheme="per_group_symmetric", group_size=32), A)),
            "weight scheme per channel symmetric → per group symmetric; weight group size – → 32",
        ),
    ],
    ids=["float", "weight-only", "float weights", "codes", "groups"],
)
def test_other_kinds(b: QConfigMapping, expected: str) -> None:
    assert words(BASE, b).startswith(expected)


def test_every_pair_of_presets_differs_unless_it_is_the_same() -> None:
    for a in qlab.presets:
        for b in qlab.presets:
            same = qlab.presets[a].to_dict() == qlab.presets[b].to_dict()
            assert config_difference(qlab.presets[a], qlab.presets[b]).equal == same


def test_summary() -> None:
    assert summary(BASE.default) == "W8 A8 static"
    assert summary(None) == "float"
    assert summary(QConfig(W.replace(bits=4), mode="weight_only")) == "W4 weight-only"


def test_what_is_no_rule_is_told_too() -> None:
    other = BASE.replace(ranges={"fc.weight": (-0.5, 0.5)}, equalize=True)
    assert words(BASE, other) == (
        "tensor fc.weight range observed → -0.5 … 0.5; equalisation of adjacent layers off → on"
    )
    assert extras(other) == ["1 range by hand", "equalised"]
    assert extras(BASE) == []
