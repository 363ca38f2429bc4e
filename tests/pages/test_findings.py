"""The Findings page: what is wrong in words and numbers of the engine, remedies that change the config, and trials."""

from __future__ import annotations

import pytest

import qlab
from qlab.analysis.advice import try_remedies
from qlab.analysis.remedy import Remedy
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.lab import analyses
from qlab.lab.experiment import Experiment
from qlab.lab.store import Store
from qlab.preset import presets
from qlab.ui.findings import table_key
from tests.jobs_here import carry
from tests.pages.elements import array, button, charts

MODEL = "outlier_mlp"
A8, PER_CHANNEL = QuantSpec(8), QuantSpec(8, "per_channel_affine", observer="mse")
ROUGH = QConfigMapping(QConfig(QuantSpec(4, "per_tensor_symmetric"), A8))


@pytest.fixture
def page(open_under, home):
    def opened(mapping: QConfigMapping, *kinds: str, model: str = MODEL):
        """After these jobs have run for this config."""
        store = Store()
        for kind in kinds:
            carry(store, kind, experiment=Experiment(model, model, mapping))
        store.close()
        return open_under("findings", mapping, model)

    return opened


@pytest.fixture(scope="module")
def found():
    return qlab.diagnose(qlab.load_model(MODEL), qlab.load_dataset(MODEL), ROUGH)


def test_what_the_engine_found_is_told_worst_first(page, found, read) -> None:
    at = page(ROUGH, "diagnose")
    assert not at.error
    table = at.dataframe[0].value
    assert list(table["Where"]) == [f.tensor for f in found.faults]
    assert list(table["What"]) == [f.title for f in found.faults]
    assert list(table["Remedies"]) == [len(f.remedies) for f in found.faults]
    assert found.first.kind == "outlier_weight"
    assert found.first.tensor in read(at, "warning")
    said = read(at, "markdown").replace("\\", "")
    assert found.first.sentence in said
    labels = [b.label.replace("\\", "") for b in at.button]
    assert all(remedy.title in labels for remedy in found.first.remedies)
    chart = charts(at)[0]
    values = qlab.load_model(MODEL)
    weight = values.graph_module.get_parameter(str(values.node(found.first.layer).args[1].target))
    marks = next(t for t in chart["data"] if t.get("mode") == "markers")
    assert float(weight.abs().max()) in [pytest.approx(abs(x)) for x in array(marks["x"])]


def test_a_remedy_is_pressed_and_taken_back(page, found) -> None:
    at = page(ROUGH, "diagnose")
    remedy = found.first.remedies[0]
    next(b for b in at.button if b.label.replace("\\", "") == remedy.title).click().run()
    assert at.session_state["lab.mapping"] == remedy.mapping
    button(at, "Undo").click().run()
    assert at.session_state["lab.mapping"] == ROUGH


def test_trials_are_shown_and_those_that_are_chosen_make_a_config(page, found, read) -> None:
    at = page(ROUGH, "diagnose", "advice")
    store = Store()
    model, data = qlab.load_model(MODEL), qlab.load_dataset(MODEL)
    attempts = analyses.ADVICE.find(store, model, data, ROUGH)
    store.close()
    table = at.dataframe[1].value
    assert list(table["Remedy"]) == [t.remedy.title for t in attempts.tried]
    best = attempts.tried[0]
    assert best.recovered is not None
    assert best.recovered > 0.8
    assert best.remedy.title.split(".")[0] in read(at, "caption").replace("\\", "")
    assert button(at, "Choose rows to apply").disabled
    key = table_key("findings_tried", [t.remedy.title for t in attempts.tried])
    at.session_state[key] = {"selection": {"rows": [0, 1], "columns": [], "cells": []}}
    at.run()
    button(at, "Apply: 2 remedies").click().run()
    expected = qlab.combined(ROUGH, [t.remedy for t in attempts.tried[:2]])
    assert at.session_state["lab.mapping"] == expected


def test_what_cannot_be_tried_and_what_cannot_be_had_both_ways_is_told(page, home, read) -> None:
    three, five = (
        Remedy(f"fc1 at {bits} bits", "Sets its bits.", ROUGH.replace(by_name={"fc1": QConfig(QuantSpec(bits), A8)}))
        for bits in (3, 5)
    )
    no_config = Remedy("All by mse", "Cannot be.", QConfigMapping(QConfig(QuantSpec(8), PER_CHANNEL)))
    model, data = qlab.load_model(MODEL), qlab.load_dataset(MODEL)
    attempts = analyses.Attempts(try_remedies(model, data, ROUGH, [three, five, no_config]))
    store = Store(home)
    analyses.ADVICE.keep(store, model, data, ROUGH, attempts)
    store.close()
    at = page(ROUGH, "diagnose")
    told = read(at, "warning").replace("\\", "")
    assert "All by mse could not be tried: " in told
    assert "per-channel activations" in told
    table = at.dataframe[1].value
    assert sorted(table["Remedy"]) == [three.title, five.title]
    key = table_key("findings_tried", list(table["Remedy"]))
    at.session_state[key] = {"selection": {"rows": [0, 1], "columns": [], "cells": []}}
    at.run()
    assert "the bits of" in read(at, "warning").replace("\\", "")


def test_nothing_wrong_is_said(page, read) -> None:
    at = page(presets["x86"], "diagnose", model="residual_digits")
    assert "Nothing is wrong" in read(at, "success")
    assert "outlier_mlp" in read(at, "caption")
    assert not at.dataframe


def test_a_config_without_grids_has_no_faults(page, read) -> None:
    at = page(QConfigMapping(), "diagnose", model="residual_digits")
    assert "Nothing is quantized" in read(at, "success")


def test_the_first_visit_starts_the_search(open_under) -> None:
    open_under("findings", ROUGH, MODEL)
    kinds = [run.kind for run in Store().list_runs()]
    assert "diagnose" in kinds
