"""The Ledger page: one line for every op, what is not meant stands first, and a button really changes what happens."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qlab
from qlab.calibration import Calibration
from qlab.config import QConfigMapping
from qlab.graph.causes import state_of
from qlab.preset import presets
from qlab.ui import cache, jobs, prepared
from tests.pages.elements import button, figures, said, texts

MODEL = "residual_digits"
STATIC = presets["x86"].default


@pytest.fixture
def page(open_under):
    def opened(mapping: QConfigMapping, model: str = MODEL, **query: str):
        return open_under("ledger", mapping, model, **query)

    return opened


@pytest.fixture(scope="module")
def model():
    return qlab.load_model(MODEL)


@pytest.fixture(scope="module")
def calib(model):
    return qlab.calibrate(model, qlab.load_dataset(MODEL))


def lines(at):
    return at.dataframe[0].value


def words(at):
    return texts(at, "markdown")


@pytest.mark.parametrize("preset", ["x86", "dynamic", "int8_weight_only", "float"])
def test_the_table_is_the_ledger_and_the_figures_count_it(page, model, calib, preset) -> None:
    at = page(presets[preset])
    assert not at.error
    ledger = qlab.convert(model, presets[preset], calib).ledger
    table = lines(at)
    assert list(table["Layer"]) == [row.layer for row in ledger]
    assert list(table["State"]) == [state_of(row.cause) for row in ledger]
    assert list(table["Why"]) == [row.reason for row in ledger]
    shown = figures(at)
    count = list(table["State"]).count
    assert shown["Quantized"] == f"{count('quantized')} of {len(ledger)}"
    assert (shown["Sharing"], shown["Float"]) == (str(count("shared")), str(count("float")))
    macs = {layer.name: layer.macs for layer in model.layers}
    share = sum(macs[row.layer] for row in ledger if row.quantized) / sum(macs.values())
    assert float(shown["MACs quantized"].removesuffix(" %")) == pytest.approx(100 * share, abs=0.05)


def test_a_press_changes_the_config_and_undo_brings_it_back(page) -> None:
    at = page(presets["dynamic"])
    assert "9 ops" in next(b.help for b in at.button if b.label == "Static ranges for every conv2d")
    assert "conv1, layer1.0.conv1" in words(at)
    button(at, "Static ranges for every conv2d").click().run()
    mapping = at.session_state["lab.mapping"]
    assert mapping.by_type["conv2d"].mode == "static"
    table = lines(at).set_index("Layer")
    assert table.loc["conv1", "State"] == "quantized"
    assert "(conv2d) have a weight" not in words(at)
    assert "1 override" in next(m.value for m in at.sidebar.markdown if m.value.startswith("Config"))
    at.button(key="ledger_undo").click().run()
    assert at.session_state["lab.mapping"] == presets["dynamic"]
    assert "(conv2d) have a weight" in words(at)
    assert not [b for b in at.button if b.key == "ledger_undo"]


def test_undo_is_not_offered_for_what_was_changed_elsewhere(page) -> None:
    at = page(presets["dynamic"])
    button(at, "Static ranges for every conv2d").click().run()
    assert at.button(key="ledger_undo")
    at.session_state["lab.mapping"] = presets["x86"]
    at.run()
    assert not [b for b in at.button if b.key == "ledger_undo"]


def test_a_rule_without_effect_stands_first_and_is_mended(page) -> None:
    at = page(QConfigMapping(default=STATIC, by_name={"layer1.0.conv_1": None}))
    assert "The rule for the layer name layer1.0.conv\\_1 matches nothing" in words(at)
    button(at, "Write layer1.0.conv1 instead").click().run()
    assert at.session_state["lab.mapping"].by_name == {"layer1.0.conv1": None}
    table = lines(at).set_index("Layer")
    assert table.loc["layer1.0.conv1", "State"] == "float"
    assert "matches nothing" not in words(at)


def test_the_line_of_a_link_is_picked_with_what_helps(page) -> None:
    mapping = QConfigMapping(default=STATIC, by_name={"layer2.*": None})
    at = page(mapping, layer="layer2.0.conv2")
    assert "**layer2.0.conv2** (conv2d) · float: excluded by by\\_name layer2.\\*." in words(at)
    button(at, "Quantize layer2.0.conv2").click().run()
    assert at.session_state["lab.mapping"].by_name["layer2.0.conv2"] == STATIC
    assert "**layer2.0.conv2** (conv2d) · quantized" in words(at)
    assert lines(at).set_index("Layer").loc["layer2.0.conv1", "State"] == "float"


def test_where_nothing_helps_it_says_so(page) -> None:
    at = page(presets["x86"], "transformer_text", layer="blocks.0.norm1")
    assert "No integer kernel of the runtimes computes it" in words(at)
    assert not [b for b in at.button if b.key.startswith("ledger_do")]


def test_what_follows_leads_to_what_it_follows(page) -> None:
    at = page(presets["int8_weight_only"], layer="layer1.0.relu")
    assert "It reads layer1.0.conv1." in words(at)
    at.button(key="ledger_source").click().run()
    assert "**layer1.0.conv1** (conv2d)" in words(at)


def test_only_what_was_asked_for_is_shown(page) -> None:
    at = page(presets["x86"])
    at.segmented_control(key="ledger_shown").set_value("shared").run()
    assert set(lines(at)["State"]) == {"shared"}
    at.text_input(key="ledger_search").set_value("unit layer3").run()
    table = lines(at)
    assert list(table["Layer"]) == ["layer3.0.relu", "layer3.0.relu@1"]
    at.text_input(key="ledger_search").set_value("nothing like it").run()
    assert not at.dataframe
    assert "No op has" in said(at.info[0])


def test_a_config_without_static_ranges_needs_no_calibration(open_page, fresh_home, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(jobs, "submit", lambda kind, **arguments: asked.append(kind))
    at = open_page(state={"lab.mapping": presets["int8_weight_only"]})
    assert asked == ["prepare"]  # by the start page, which measures the accuracy
    at.session_state["lab.prepare"] = {}
    at.switch_page("pages/diagnose/ledger.py").run()
    assert len(lines(at))
    assert asked == ["prepare"]


def test_a_tensor_without_a_range_is_told_instead_of_failing(page, model, calib, monkeypatch, tmp_path) -> None:
    """A calibration that lacks a tensor, as one of a store that was mended by hand."""
    stats = {name: calib[name] for name in calib if name not in calib.aliases and name != "layer1.0.conv2"}
    Calibration(stats, calib.aliases, calib.model_hash, calib.samples).save(tmp_path / "partly.npz")
    whole = prepared.require

    def partly(*, key):
        artifact = cache.store().add_bytes((tmp_path / "partly.npz").read_bytes(), kind="calibration")
        found = replace(whole(key=key), calibration_artifact=artifact.hash)
        return replace(found, calibration=Calibration.load(artifact.path))

    monkeypatch.setattr(prepared, "require", partly)
    at = page(presets["x86"])
    assert not at.error
    assert "layer1.0.conv2 was never observed by the calibration" in words(at)
    button(at, "Keep layer1.0.conv2 float").click().run()
    assert "was never observed" not in words(at)
    assert lines(at).set_index("Layer").loc["layer1.0.conv2", "State"] == "float"


def test_a_layer_that_is_quantized_and_of_no_use_because_of_one_weight(page, read) -> None:
    rough = QConfigMapping(qlab.QConfig(qlab.QuantSpec(4, "per_tensor_symmetric"), mode="weight_only"))
    at = page(rough, model="outlier_mlp")
    said = words(at)
    assert "quantized, and little use" in said
    assert "fc1.weight" in said.replace("\\", "")
    button(at, "Scale fc1 per channel").click().run()
    assert at.session_state["lab.mapping"].by_name["fc1"].weight.granularity == "channel"
    assert "fc1.weight" not in words(at).replace("\\", "").split("fc2.weight")[0]


def test_a_range_of_a_tensor_that_is_not_there_is_told_and_dropped(page) -> None:
    at = page(presets["x86"].replace(ranges={"layer9": (0.0, 1.0)}))
    assert "range of the tensor layer9 matches nothing" in words(at).replace("\\", "")
    button(at, "Drop the range of layer9").click().run()
    assert at.session_state["lab.mapping"] == presets["x86"]
