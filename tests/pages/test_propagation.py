"""The Error propagation page: what the job stored, in words and pictures, and why there may be nothing to follow."""

from __future__ import annotations

import pytest

import qlab
from qlab.analysis.diagnose import Diagnosis
from qlab.analysis.fault import Fault
from qlab.lab.analyses import DIAGNOSIS
from qlab.lab.experiment import Experiment
from qlab.lab.store import Store
from qlab.metrics import percent, write
from qlab.plots.error_measure import names_of
from qlab.preset import presets
from qlab.ui import findings, propagation
from tests.jobs_here import carry
from tests.pages.elements import charts, figures, said, texts

MODEL, PLAIN = "residual_digits", "outlier_mlp"
CUT = presets["x86"].replace(ranges={"layer1.0.relu": (0.0, 0.2)})


@pytest.fixture(scope="module", autouse=True)
def found(prepared_home):
    """What the jobs store stands in the store from here on; gives what the one about the cut range found."""
    store = Store(prepared_home)
    carry(store, "diagnose", experiment=Experiment(MODEL, MODEL, CUT))
    carry(store, "diagnose", experiment=Experiment(PLAIN, PLAIN, "float"))
    found = DIAGNOSIS.find(store, qlab.load_model(MODEL), qlab.load_dataset(MODEL), CUT)
    store.close()
    return found.propagation


@pytest.fixture
def page(open_under):
    def opened(mapping=CUT, model=MODEL, **query):
        return open_under("propagation", mapping, model, **query)

    return opened


def words(at):
    return texts(at, "markdown", "caption", "info")


def test_the_sentence_names_where_it_is_made_and_where_it_shows(page, found) -> None:
    at = page()
    assert not at.error
    names = names_of(found)
    assert found.made.tensor == "layer1.0.relu"
    assert found.shown.tensor != found.made.tensor
    assert (
        f"Most error is made in **{names['layer1.0.relu']}** ({write('sqnr', found.made.own.sqnr)} by itself); it "
        f"shows most in **{names[found.shown.tensor]}** ({write('sqnr', found.shown.arrived.sqnr)})."
    ) in words(at)
    points = [t for t in charts(at)[0]["data"] if t.get("customdata")]
    assert [t["customdata"] for t in points] == [[r.tensor for r in found.rows]] * 2
    assert "Simulated, on 256 evaluation samples" in words(at)


def test_the_worst_is_shown_first_with_its_figures(page, found) -> None:
    at = page()
    row = found.made
    shown = figures(at)
    assert shown["SQNR made here"] == write("sqnr", row.own.sqnr)
    assert shown["SQNR arrived"] == write("sqnr", row.arrived.sqnr)
    assert shown["Clipped"] == percent(row.clipped)
    assert row.clipped > 0.2
    _, values, channels = charts(at)
    assert [t["name"] for t in values["data"]] == ["float", "quantized, simulated"]
    assert "layer1.0.relu" in values["layout"]["xaxis"]["title"]["text"]
    assert "mean shift" in channels["layout"]["yaxis"]["title"]["text"]


def test_another_tensor_is_looked_at_and_shared(page, found) -> None:
    at = page()
    at.selectbox(key="prop_tensor").set_value("fc").run()
    row = found.of("fc")
    assert figures(at)["SQNR arrived"] == write("sqnr", row.arrived.sqnr)
    assert at.session_state["lab.tensor"] == "fc"
    assert any("tensor=fc" in code.value for code in at.code)
    assert at.selectbox(key="prop_tensor").value == "fc"


def test_a_link_opens_a_tensor_and_a_measure(page, found) -> None:
    at = page(tensor="layer3.0.relu", measure="shift")
    assert figures(at)["SQNR arrived"] == write("sqnr", found.of("layer3.0.relu").arrived.sqnr)
    assert "By mean shift: most error is made in" in words(at)
    at.segmented_control(key="prop_measure").set_value("sqnr").run()
    assert "Most error is made in" in words(at)


def test_the_table_holds_every_tensor_and_picks(page, found) -> None:
    at = page()
    at.session_state[propagation.TABS] = "Table"
    at.run()
    table = at.dataframe[0].value
    assert list(table["Tensor"]) == [r.tensor for r in found.rows]
    assert list(table["Made here (dB)"]) == [r.own.sqnr for r in found.rows]
    assert list(table["Arrived (dB)"]) == [r.arrived.sqnr for r in found.rows]
    assert table["Clipped (%)"][2] == pytest.approx(100 * found.rows[2].clipped)


def test_distributions_opens_at_the_tensor(page) -> None:
    at = page(tensor="layer2.0.relu")
    at.button(key="prop_open").click().run()
    assert not at.exception
    assert at.session_state["lab.tensor"] == "layer2.0.relu"
    assert at.title[0].value == "Where do the values fall?"


def test_a_config_that_quantizes_nothing_says_so_and_offers_one_that_does(page, asked) -> None:
    at = page(presets["float"], PLAIN)
    assert not at.error
    assert "Nothing is quantized under this config" in said(at.info[0])
    assert not charts(at)
    at.button(key="prop_default").click().run()
    assert at.session_state["lab.mapping"] == presets["x86"]
    assert [arguments["experiment"].resolved_mapping for _, arguments in asked] == [presets["x86"]]
    at.button(key="prop_undo").click().run()
    assert at.session_state["lab.mapping"] == presets["float"]
    assert "Nothing is quantized" in said(at.info[0])


def test_what_stops_the_config_is_told_before_all_else(page, monkeypatch) -> None:
    fault = Fault("non_finite", "error", "relu", "relu", 3, "relu holds a NaN.", advice="Clean the data.")
    monkeypatch.setattr(findings, "diagnosis", lambda model, key: Diagnosis((fault,)))
    at = page()
    assert not at.error
    assert "relu holds a NaN. Clean the data." in said(at.info[0])
    assert not [b for b in at.button if b.key == "prop_default"]
