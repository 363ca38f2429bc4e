"""The Graph page: folded as far as it can be read, opened by a click, and every figure says where it is from."""

from __future__ import annotations

import pytest

import qlab
from qlab.lab.experiment import Experiment
from qlab.lab.store import Store
from qlab.metrics import write
from qlab.preset import presets
from qlab.ui import cache, results
from tests.jobs_here import carry
from tests.pages.elements import charts, texts


@pytest.fixture
def page(open_under):
    def opened(model: str = "residual_digits", preset: str = "x86", **query: str):
        at = open_under("graph", presets[preset], model, **query)
        assert not at.error
        return at

    return opened


def drawn(at):
    return charts(at)[0]


def boxes(at):
    return [data[0].removeprefix("box ") for trace in drawn(at)["data"] if trace["type"] == "bar"
            for data in trace["customdata"]]  # fmt: skip


def words(at):
    return texts(at, "markdown", "caption")


@pytest.mark.parametrize("model", ["residual_digits", "depthwise_digits", "lstm_text"])
def test_a_small_network_is_shown_with_every_op(page, model) -> None:
    assert set(boxes(page(model))) >= {layer.name for layer in qlab.load_model(model).layers}


def test_a_larger_one_is_folded_and_can_be_unfolded(page) -> None:
    at = page("transformer_text")
    assert "blocks.0.attention.*" in boxes(at)
    assert len(boxes(at)) <= 40
    at.button(key="graph_fold").click().run()
    assert "blocks.*" in boxes(at)
    assert len(boxes(at)) == 8
    at.button(key="graph_unfold").click().run()
    assert not [key for key in boxes(at) if key.endswith(".*")]
    assert "blocks.2.attention.qk" in boxes(at)


@pytest.mark.parametrize("preset", ["dynamic", "int8_weight_only", "float"])
def test_a_config_without_static_ranges_is_drawn_too(page, preset) -> None:
    at = page(preset=preset)
    converts = [t for t in drawn(at)["data"] if t.get("name") == "conversion" and t["showlegend"]]
    assert bool(converts) == (preset == "dynamic")


def test_a_link_opens_the_way_to_an_op_and_says_what_it_is(page) -> None:
    at = page("transformer_text", layer="blocks.1.attention.query")
    assert "blocks.1.attention.query" in boxes(at)
    assert "**blocks.1.attention.query** (linear)" in words(at)
    assert "Weight and output quantized." in words(at)
    at.button(key="graph_fold_blocks.1.attention").click().run()
    assert "blocks.1.attention.query" not in boxes(at)
    assert "blocks.1.attention.*" in boxes(at)


def test_an_op_is_found_by_its_name_and_leads_to_its_values_and_its_reason(page) -> None:
    at = page()
    at.selectbox(key="graph_find").set_value("layer2.0.conv2").run()
    assert at.session_state["lab.tensor"] == "layer2.0.conv2"
    assert "**layer2.0.conv2** (conv2d)" in words(at)
    at.button(key="graph_why").click().run()
    assert "Why is my layer not quantized?" in [t.value for t in at.title]
    assert "**layer2.0.conv2** (conv2d) · quantized" in words(at)
    at.button(key="ledger_graph").click().run()
    assert "**layer2.0.conv2** (conv2d)" in words(at)
    at.button(key="graph_values").click().run()
    assert "Where do the values fall?" in [t.value for t in at.title]
    assert "layer2.0.conv2" in words(at)


def test_the_tensor_of_a_part_of_a_unit_is_the_one_at_its_end(page) -> None:
    at = page(layer="conv1")
    at.button(key="graph_values").click().run()
    assert at.session_state["lab.tensor"] == "relu"


def test_sqnr_is_estimated_until_a_run_has_measured_it(page, home) -> None:
    at = page("conv_digits", layer="classifier")
    at.segmented_control(key="graph_colour").set_value("SQNR").run()

    def title():
        bars = [t["marker"]["colorbar"] for t in drawn(at)["data"] if t.get("marker", {}).get("showscale")]
        return bars[0]["title"]["text"]

    assert title().startswith("SQNR (dB), estimated from the calibration")
    store = Store(home)
    run = carry(store, "experiment", experiment=Experiment("conv_digits", "conv_digits", "x86"))
    store.close()
    at.run()
    assert title() == f"SQNR (dB), measured by run {run.id}, simulated"
    measured = results.result_of(cache.store().get_run(run.id)).quantized.sqnr["classifier"]
    assert write("sqnr", measured) in str(at.table[0].value)


def test_the_table_is_the_quantized_graph(page) -> None:
    at = page()
    at.session_state["graph_tabs"] = "Table"
    at.run()
    table = at.dataframe[0].value
    assert list(table.columns[:5]) == ["opcode", "name", "target", "args", "kwargs"]
    assert {"observer", "scale", "zero point", "shape"} <= set(table.columns)
    assert (table["name"] == "aq_relu").any()
    assert at.get("download_button")
