"""Faults that were planted are named first, on the right tensor, and what is advised repairs them."""

from dataclasses import replace

import pytest

import qlab
from benchmarks.planted import CASES, PER_CHANNEL, Planted, fresh
from qlab.analysis.advice import combined, try_remedies
from qlab.analysis.diagnose import diagnose
from qlab.analysis.fault import KINDS, Fault, ordered
from qlab.analysis.remedy import Remedy
from qlab.config import QConfigMapping
from qlab.errors import Cancelled


@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_found_first_and_repaired(name: str) -> None:
    case: Planted = CASES[name]()
    found = diagnose(case.model, case.data, case.mapping, case.calib)
    first = found.first
    assert first is not None
    assert (first.kind, first.tensor) == (case.kind, first.tensor)
    assert first.tensor in case.where
    assert first.sentence.endswith(".")
    if not case.repairable:
        assert not first.remedies
        assert first.advice
        return
    reference = qlab.evaluate(case.model, case.data)
    tried = try_remedies(case.model, case.data, case.mapping, first.remedies, case.calib, reference=reference)
    best = tried[0]
    assert best.recovered is not None  # what was lost was beyond chance
    assert best.recovered >= 0.8
    if best.against is not None:
        assert best.beyond_chance
    assert best.evaluation.accuracy == max(t.evaluation.accuracy for t in tried)


@pytest.mark.parametrize("name", ["residual_digits", "conv_digits", "transformer_text", "lstm_text"])
def test_nothing_is_wrong_with_a_healthy_network(name: str) -> None:
    model, data = fresh(name)
    assert diagnose(model, data, qlab.presets["x86"]).faults == ()


def test_what_measures_stands_beside_what_was_found() -> None:
    model, data = fresh("outlier_mlp")
    found = diagnose(model, data, qlab.presets["tflite"])
    assert found.propagation is not None
    assert found.costs is not None
    outliers = [f for f in found.faults if f.kind == "outlier_weight"]
    assert {f.tensor for f in outliers} == {"fc1.weight", "fc2.weight"}  # as the card of the sample says
    assert all(f.severity == "note" for f in outliers)  # at 8 bits they cost nothing
    assert any(f.kind == "dead_channel" and f.layer == "fc1" for f in found.faults)


def test_a_range_of_no_tensor_is_told() -> None:
    model, data = fresh("residual_digits")
    mapping = PER_CHANNEL.replace(ranges={"layer9": (0.0, 1.0)})
    first = diagnose(model, data, mapping).first
    assert first is not None
    assert first.kind == "unmatched_rule"
    assert first.remedies[0].mapping == PER_CHANNEL


def test_a_config_that_quantizes_nothing() -> None:
    model, data = fresh("residual_digits")
    found = diagnose(model, data, QConfigMapping())
    assert found.faults == ()
    assert found.propagation is None


def test_cancelling_stops_it() -> None:
    model, data = fresh("residual_digits")

    def stop(stage: str, _done: int, _total: int) -> None:
        if stage == "follow the error":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        diagnose(model, data, PER_CHANNEL, progress=stop)


def test_errors_come_before_what_costs_and_that_before_notes() -> None:
    def fault(kind: str, severity: str, cost: float = 0.0) -> Fault:
        return Fault(kind, severity, "t", "t", 1.0, "s.", cost=cost)  # type: ignore[arg-type]

    note, small, large = (
        fault("dead_channel", "note"),
        fault("saturated", "warning", 0.1),
        fault("coarse_grid", "warning", 0.2),
    )
    rule, nan = fault("unmatched_rule", "error"), fault("non_finite", "error")
    assert ordered([note, small, rule, large, nan]) == [nan, rule, large, small, note]
    assert set(KINDS) >= {"outlier_weight", "bias_shift"}


def test_remedies_that_were_chosen_make_one_config() -> None:
    base = PER_CHANNEL.replace(by_name={"a": None}, ranges={"x": (0.0, 1.0)})
    per_layer = Remedy("", "", base.replace(by_name={"a": None, "b": None}))
    equal = Remedy("", "", base.replace(equalize=True))
    no_range = Remedy("", "", base.replace(ranges={}))
    assert base.default is not None
    wider = base.default.replace(mode="weight_only", activation=None)
    other_default = Remedy("", "", base.replace(default=wider))
    made = combined(base, [per_layer, equal, no_range, other_default])
    assert made == QConfigMapping(default=wider, by_name={"a": None, "b": None}, equalize=True)
    assert combined(base, []) == base


def test_without_labels_the_gain_is_that_of_agreement() -> None:
    case = CASES["a saturated activation"]()
    data = replace(case.data, targets=None)
    first = diagnose(case.model, data, case.mapping, case.calib).first
    assert first is not None
    best = try_remedies(case.model, data, case.mapping, first.remedies, case.calib)[0]
    assert best.beyond_chance is None
    assert best.evaluation.accuracy is None
    assert best.recovered is not None
    assert best.recovered > 0.9


def test_mean_and_std_swapped_on_a_trained_resnet(cifar) -> None:
    model, data, _ = cifar
    data = data.subset(range(256))
    right = diagnose(model, data, qlab.presets["x86"])
    assert all(fault.severity == "note" for fault in right.faults)
    wrong = diagnose(model, replace(data, mean=data.std, std=data.mean), qlab.presets["x86"]).first
    assert wrong is not None
    assert (wrong.kind, wrong.tensor) == ("unlike_training", model.inputs[0].name)
