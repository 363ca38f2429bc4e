"""The Stability page: it draws when it is asked to, finds what was drawn, and offers a way out where it is unsteady."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qlab
from qlab.analysis.stability import Draw
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.lab.analyses import STABILITY
from qlab.lab.experiment import Experiment
from qlab.lab.store import Store
from qlab.metrics import percent, write
from qlab.preset import presets
from qlab.ui import stability
from tests.jobs_here import carry
from tests.pages.elements import charts, figures, said, texts

MODEL, PRESET = "outlier_mlp", "onnxruntime"


@pytest.fixture(scope="module", autouse=True)
def found(prepared_home):
    """What the job stores stands in the store from here on."""
    store = Store(prepared_home)
    carry(store, "stability", experiment=Experiment(MODEL, MODEL, PRESET))
    found = STABILITY.find(store, qlab.load_model(MODEL), qlab.load_dataset(MODEL), presets[PRESET])
    store.close()
    return found


@pytest.fixture
def page(open_under):
    def opened(mapping=presets[PRESET], **query):
        at = open_under("stability", mapping, MODEL, **query)
        assert not at.error
        return at

    return opened


@pytest.fixture
def unsteady(found, monkeypatch):
    """The same calibrations, one of which gave a far worse network at every size."""
    bad = tuple(Draw(size, found.whole - 0.3, 0.6, 1e-9) for size in found.sizes)
    worse = replace(found, draws=tuple(sorted((*found.draws, *bad), key=lambda d: d.samples)))
    monkeypatch.setattr(stability, "known", lambda model: worse)
    return worse


def words(at):
    return texts(at, "success", "warning", "info", "markdown", "caption")


def test_the_verdict_and_the_figures_are_those_of_the_result(page, found) -> None:
    assert found.enough is not None
    at = page()
    assert said(at.success[0]) == (
        f"From **{found.enough:,} samples** on, no drawn calibration is worse than all 512 beyond chance."
    )
    shown = figures(at)
    assert shown["Enough"] == str(found.enough)
    assert shown["Whole calibration"] == write("accuracy", found.whole)
    largest = found.sizes[-1]
    first = max(found.spreads, key=lambda s: s.relative(largest))
    assert shown["Most unsteady scale"] == f"± {percent(first.relative(largest))}"
    picture, bars, scales = charts(at)
    assert len(next(t for t in picture["data"] if t["name"] == "a drawn calibration")["x"]) == len(found.draws)
    assert bars["data"][0]["customdata"][0] == first.tensor
    assert f"**{first.tensor}**: the scale that each draw gives it" in words(at)
    assert scales["data"][1]["name"] == "a drawn calibration"
    assert "Simulated, on 512 evaluation samples" in words(at)
    assert not [b for b in at.button if b.key.startswith("stab_do")]


def test_nothing_is_drawn_before_a_person_asks(page, asked) -> None:
    at = page(presets["tflite"])
    assert not asked
    assert not charts(at)
    assert "512 calibration samples" in words(at)
    assert "That takes" in words(at)
    at.button(key="stab_draw").click().run()
    ((kind, arguments),) = asked
    assert kind == "stability"
    assert arguments["experiment"].resolved_mapping == presets["tflite"]
    assert not [b for b in at.button if b.key == "stab_draw"]
    at.run()
    assert len(asked) == 1


def test_what_another_browser_started_is_shown_and_not_started_again(page, asked) -> None:
    at = page(presets["tflite"])
    at.button(key="stab_draw").click().run()
    again = page(presets["tflite"])
    assert len(asked) == 1
    assert not [b for b in again.button if b.key == "stab_draw"]


@pytest.mark.parametrize(
    ("preset", "why"), [("dynamic", "dynamic"), ("int8_weight_only", "weight-only"), ("float", "quantizes nothing")]
)
def test_where_no_range_comes_from_the_data_it_says_so(page, asked, preset, why) -> None:
    at = page(presets[preset])
    assert "No range of this config comes from the calibration data" in said(at.info[0])
    assert why in said(at.info[0])
    assert not charts(at)
    assert not asked
    at.button(key="stab_default").click().run()
    assert at.session_state["lab.mapping"] == presets["x86"]
    assert at.button(key="stab_draw")


def test_an_unsteady_result_warns_and_offers_another_observer(page, unsteady) -> None:
    at = page()
    assert said(at.warning[0]) == unsteady.warning
    assert figures(at)["Enough"] == "none of these"
    assert len(next(t for t in charts(at)[0]["data"] if t["name"] == "worse beyond chance")["x"]) == len(unsteady.sizes)
    labels = [b.label for b in at.button if b.key.startswith("stab_do")]
    assert labels == ["Range activations by percentile", "Range activations by mse"]
    at.button(key="stab_do_0").click().run()
    mapping = at.session_state["lab.mapping"]
    assert mapping.default.activation.observer == "percentile"
    assert mapping.default.weight == presets[PRESET].default.weight
    at.button(key="stab_undo").click().run()
    assert at.session_state["lab.mapping"] == presets[PRESET]


def test_a_remedy_changes_the_observer_and_nothing_else() -> None:
    wide = QuantSpec(16, "per_tensor_affine", signed=True)
    channels = QuantSpec(8, "per_channel_symmetric")
    mapping = QConfigMapping(
        default=QConfig(QuantSpec(8), QuantSpec(8)),
        by_name={"fc1": QConfig(QuantSpec(8), wide), "fc2": None, "fc3": QConfig(QuantSpec(8), channels)},
    )
    percentile, mse = stability.remedies(mapping)
    assert percentile.mapping.default.activation.observer == "percentile"
    assert mse.mapping.by_name["fc1"].activation == wide.replace(observer="mse")
    assert mse.mapping.by_name["fc2"] is None
    assert mse.mapping.by_name["fc3"] == mapping.by_name["fc3"]
    assert [r.title for r in stability.remedies(mse.mapping)] == ["Range activations by percentile"]


def test_another_size_and_tensor_can_be_looked_at(page, found) -> None:
    size = found.sizes[0]
    at = page()
    at.segmented_control(key="stab_size").set_value(size).run()
    ranked = sorted(found.spreads, key=lambda s: -s.relative(size))
    assert charts(at)[1]["data"][0]["customdata"] == [s.tensor for s in ranked]
    at.selectbox(key="stab_tensor").set_value("relu@1").run()
    assert at.session_state["lab.tensor"] == "relu@1"
    assert any(f"samples={size}" in code.value and "tensor=relu%401" in code.value for code in at.code)
    other = page(samples=str(size), tensor="relu@1")
    assert other.segmented_control(key="stab_size").value == size
    assert other.selectbox(key="stab_tensor").value == "relu@1"


def test_the_table_holds_every_draw(page, found) -> None:
    at = page()
    at.session_state["stab_tabs"] = "Table"
    at.run()
    table = at.dataframe[0].value
    assert list(table["Samples"]) == [d.samples for d in found.draws]
    assert list(table["Accuracy (%)"]) == [100 * d.accuracy for d in found.draws]
