"""The Sensitivity page: the ranking it finds or has made, one layer in words, changes of the config with a way back."""

from __future__ import annotations

import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.lab.experiment import Experiment
from qlab.lab.sensitivity import Question, at_8_bits, find_curve, find_sensitivity, order_of
from qlab.lab.store import Store
from qlab.metrics import write
from qlab.plots.sensitivity import worst_first
from qlab.preset import presets
from qlab.ui import keep_worst, sensitivity
from tests.jobs_here import carry
from tests.pages.elements import button, figures, said, texts

MODEL = "conv_digits"
LOW = QConfigMapping(QConfig(QuantSpec(3, "per_tensor_symmetric"), QuantSpec(4)))
QUESTIONS = {
    "only": {"curve": "float"},
    "all_but": {"mode": "all_but"},
    "parts": {"parts": ("weight", "activation")},
}


@pytest.fixture(scope="module", autouse=True)
def known(prepared_home, one_thread):
    """What the jobs store stands in the store from here on."""
    store = Store(prepared_home)
    model, data, found = qlab.load_model(MODEL), qlab.load_dataset(MODEL), {}
    for name, asked in QUESTIONS.items():
        carry(store, "sensitivity", experiment=Experiment(MODEL, MODEL, LOW), **asked)
        found[name] = find_sensitivity(store, model, data, LOW, Question(**asked))
    found["curve"] = find_curve(store, model, data, LOW, Question(curve="float"))
    yield found
    store.close()


@pytest.fixture
def page(open_under):
    def opened(mapping=LOW, **query):
        return open_under("sensitivity", mapping, MODEL, **query)

    return opened


def told(at):
    return texts(at, "markdown")


@pytest.mark.parametrize("mode", ["only", "all_but"])
def test_the_figures_are_those_that_were_measured(page, known, mode, asked) -> None:
    at, found = page(mode=mode), known[mode]
    assert not asked
    assert not at.error
    shown = figures(at)
    assert shown["Float accuracy"] == write("accuracy", found.float.accuracy)
    worst = worst_first(found, "accuracy")[0]
    assert shown["Guiltiest layer"] == worst
    guilty = {row.layer for row in found if row.against_base.p < 0.05}
    assert len(guilty) > 1
    assert shown["Beyond chance"] == f"{len(guilty)} of {len(found)} layers"
    assert ("All quantized" in shown) == (mode == "all_but")
    if mode == "all_but":
        assert shown["All quantized"] == write("accuracy", found.base.accuracy)
    row = found.row(worst)
    text = told(at)
    assert f"{row.against_base.lost} lost, {row.against_base.gained} gained" in text
    assert write("sqnr", row.sqnr) in text
    assert "Simulated, " in text
    assert list(at.dataframe[0].value["Layer"]) == worst_first(found, "accuracy")


def test_another_measure_ranks_anew_without_a_job(page, known, asked) -> None:
    at = page()
    before = at.get("plotly_chart")[0].proto.spec
    at.segmented_control(key="sens_measure").set_value("sqnr").run()
    assert not asked
    assert list(at.dataframe[0].value["Layer"]) == worst_first(known["only"], "sqnr")
    assert figures(at)["Guiltiest layer"] == known["only"].ranked()[0].layer
    assert at.get("plotly_chart")[0].proto.spec != before
    assert "Beyond chance" not in figures(at)


def test_parts_stand_apart(page, known, asked) -> None:
    at = page(parts="weight,activation", measure="sqnr")
    assert not asked
    assert set(at.dataframe[0].value["Part"]) == {"weights", "activations"}
    assert {"Weights: ", "Activations: "} <= {
        said(m)[: said(m).index(": ") + 2] for m in at.markdown if ": Quan" in said(m)
    }
    assert len(at.dataframe[0].value) == len(known["parts"])


def test_a_first_visit_starts_the_job_and_shows_nothing_of_another_config(page, asked) -> None:
    at = page(presets["x86"], mode="all_but")
    ((kind, arguments),) = asked
    assert kind == "sensitivity"
    assert arguments["experiment"].resolved_mapping == presets["x86"]
    assert (arguments["mode"], arguments["parts"], arguments["confirm"]) == ("all_but", ["both"], 8)
    assert arguments["curve"] is None
    assert not at.metric
    at.run()
    assert len(asked) == 1
    at.segmented_control(key="sens_part").set_value(["both", "weight"]).run()
    at.select_slider(key="sens_confirm").set_value("all").run()
    assert [(a["parts"], a["confirm"]) for _, a in asked[1:]] == [(["both", "weight"], 8), (["both", "weight"], None)]


def test_a_click_chooses_the_layer(page, known, monkeypatch) -> None:
    at = page()
    other = worst_first(known["only"], "accuracy")[2]
    assert f"**{other}**" not in told(at)
    at.session_state[sensitivity.LAYER] = other
    at.run()
    assert f"**{other}** (" in told(at)
    # what a click hands over
    state = {sensitivity.CHART: {"selection": {"points": [{"customdata": other}, {"customdata": "nowhere"}]}}}
    monkeypatch.setattr(sensitivity.st, "session_state", state)
    sensitivity._clicked(known["only"])
    assert state[sensitivity.LAYER] == other


def test_a_layer_is_kept_float_and_back(page, known, asked) -> None:
    at = page()
    worst = worst_first(known["only"], "accuracy")[0]
    button(at, f"Keep {worst} float").click().run()
    mapping = at.session_state["lab.mapping"]
    assert mapping == LOW.replace(by_name={worst: None})
    assert asked[-1][1]["experiment"].resolved_mapping == mapping  # the new config is measured at once
    at.button(key="sens_undo").click().run()
    assert at.session_state["lab.mapping"] == LOW
    assert figures(at)


def test_a_layer_gets_8_bits_where_it_has_fewer(page, known, asked) -> None:
    at = page()
    worst = worst_first(known["only"], "accuracy")[0]
    button(at, f"Give {worst} 8 bits").click().run()
    assert at.session_state["lab.mapping"] == LOW.replace(by_name={worst: at_8_bits(LOW.default)})


def test_its_values_open_on_distributions(page, known) -> None:
    at = page()
    worst = worst_first(known["only"], "accuracy")[0]
    at.button(key="sens_values").click().run()
    assert not at.exception
    assert at.session_state["lab.tensor"] == worst
    assert at.title[0].value == "Where do the values fall?"


def test_the_curve_and_its_config(page, known, asked) -> None:
    at = page()
    at.session_state["sens_tabs"] = "Keep the worst"
    at.run()
    assert not asked
    points = known["curve"]
    assert points[1].layers == (order_of(known["only"])[0],)
    assert f"**1 of {len(known['only'])} layers left float**: {points[1].layers[0]}" in told(at)
    assert write("size", points[1].size) in told(at)
    at.session_state[keep_worst.POINT] = points[2].count
    at.run()
    at.button(key="sens_use").click().run()
    assert at.session_state["lab.mapping"] == points[2].mapping
    assert asked[-1][1]["experiment"].resolved_mapping == points[2].mapping


def test_the_curve_is_measured_when_it_is_looked_at(page, asked) -> None:
    at = page(mode="all_but")
    assert not asked
    at.session_state["sens_tabs"] = "Keep the worst"
    at.run()
    assert [a["curve"] for _, a in asked] == ["float"]
    at.segmented_control(key="sens_keep").set_value("8 bits").run()
    assert asked[-1][1]["curve"] == "8 bits"


def test_8_bits_of_8_are_refused_in_words(page, known, monkeypatch, asked) -> None:
    monkeypatch.setattr(sensitivity, "measured", lambda _model: known["only"])
    at = page(presets["x86"])
    at.session_state["sens_tabs"] = "Keep the worst"
    at.session_state[sensitivity.KEEP] = "8 bits"
    at.run()
    assert "8 bits already" in at.error[0].value
    assert not [b for b in at.button if "8 bits" in b.label]


def test_a_link_opens_the_same_and_nonsense_the_default(page, known) -> None:
    layer = worst_first(known["all_but"], "loss")[1]
    at = page(mode="all_but", measure="loss", layer=layer)
    assert f"**{layer}** (" in told(at)
    assert at.segmented_control(key="sens_measure").value == "loss"
    at = page(mode="none", measure="speed", parts="bias")
    assert at.segmented_control(key="sens_mode").value == "only"
    assert at.segmented_control(key="sens_part").value == ["both"]
