"""One number, step by step: the page shows the engine's steps and what ONNX Runtime gave, or says why it cannot."""

from __future__ import annotations

import pytest
import torch

from qlab.conversion import convert
from qlab.data import load_dataset
from qlab.graph.capture import load_model
from qlab.lab.run import find_prepared
from qlab.lab.store import Store
from qlab.lab.templates import ensure_template
from qlab.metrics import MINUS
from qlab.preset import presets
from qlab.runtime.kernel_codes import kernel_trace, open_codes
from qlab.runtime.steps import explain_element, explainable_layers, trace_layer
from tests.pages.elements import figures, said

MODEL = "conv_digits"


@pytest.fixture(scope="module", autouse=True)
def qmodel(prepared_home):
    """The sample under x86, as the page converts it; its exported graph is in the store from here on."""
    store = Store(prepared_home)
    model, data = load_model(MODEL), load_dataset(MODEL)
    ensure_template(store, model)
    found = find_prepared(store, model, data)
    store.close()
    return convert(model, presets["x86"], found.calibration)


@pytest.fixture(scope="module")
def evaluation():
    return load_dataset(MODEL).evaluation


@pytest.fixture
def page(open_under):
    def opened(preset="x86", **query):
        at = open_under("steps", presets[preset], MODEL, **query)
        assert not at.error
        return at

    return opened


def number(text):
    return int(text.replace(MINUS, "-").replace(",", ""))


def formulas(at):
    return "\n".join(code.value for code in at.code)


def index_of(at):
    return at.session_state["steps.index"]


def sample(evaluation, i):
    return tuple(torch.from_numpy(x) for x in evaluation.example(i))


def test_a_first_visit_takes_a_number_apart_that_is_large_and_not_cut_off(page, qmodel, evaluation) -> None:
    at = page()
    layer = explainable_layers(qmodel)[0]
    steps = explain_element(qmodel, layer, sample(evaluation, 0), index_of(at))
    assert at.selectbox(key="steps_layer").value == layer
    assert not steps.clamped
    assert steps.code > 0.5 * steps.high
    shown = figures(at)
    assert number(shown["By hand, on integers"]) == steps.code
    assert number(shown["Simulated"]) == steps.simulated_code
    assert float(shown["Float"].replace(MINUS, "-")) == pytest.approx(steps.float_value, rel=1e-4)
    for part in (steps.accumulator, steps.bias, steps.rounded, steps.accumulator + steps.bias):
        assert f"{part:,}".replace("-", MINUS) in formulas(at)
    assert f"{steps.scaled:.4f}".replace("-", MINUS) in formulas(at)
    assert len(at.get("plotly_chart")) == 2


def test_the_kernels_answer_is_what_onnx_runtime_gives(page, qmodel, evaluation) -> None:
    at = page(layer="block3.conv", sample="7", at="0.4.2.3")
    x = sample(evaluation, 7)
    found = kernel_trace(qmodel, "block3.conv", x, open_codes(qmodel)(*x))
    assert number(figures(at)["Integer kernel"]) == int(found.codes[0, 4, 2, 3])
    assert any("ONNX Runtime" in said(text) and "gave the integer" in said(text) for text in at.markdown)


def test_a_link_opens_its_number_and_a_wrong_one_another(page) -> None:
    at = page(layer="block2.conv", sample="3", at="0.5.0.15")
    assert (at.selectbox(key="steps_layer").value, at.number_input(key="steps_sample").value) == ("block2.conv", 3)
    assert index_of(at) == (0, 5, 0, 15)
    assert "are padding" in "".join(said(text) for text in at.markdown)
    wrong = page(layer="no such", sample="-1", at="0.99.0.0")
    assert wrong.selectbox(key="steps_layer").value == "block1.conv"
    assert wrong.number_input(key="steps_sample").value == 0
    assert index_of(wrong) != (0, 99, 0, 0)


def test_every_control_leads_to_the_numbers_of_its_place(page, qmodel, evaluation) -> None:
    at = page()
    at.selectbox(key="steps_layer").set_value("block2.conv").run()
    at.number_input(key="steps_sample").set_value(11).run()
    at.number_input(key="steps_axis_1_24").set_value(9).run()
    at.number_input(key="steps_axis_3_16").set_value(2).run()
    assert not at.error
    place = index_of(at)
    assert (place[1], place[3]) == (9, 2)
    steps = explain_element(qmodel, "block2.conv", sample(evaluation, 11), place)
    assert number(figures(at)["By hand, on integers"]) == steps.code
    assert f"sum of all {steps.products.size:,}: {steps.accumulator:,}".replace("-", MINUS) in formulas(at)
    at.selectbox(key="steps_layer").set_value("classifier").run()
    assert len(index_of(at)) == 2
    assert number(figures(at)["By hand, on integers"]) == int(
        explain_element(qmodel, "classifier", sample(evaluation, 11), index_of(at)).code
    )


def test_the_input_channel_can_be_chosen(page) -> None:
    at = page(layer="block2.conv")
    first = at.get("plotly_chart")[0].proto.spec
    box = at.selectbox(key="steps_input")
    box.set_value(-1).run()
    assert "summed over the input channels" in at.get("plotly_chart")[0].proto.spec
    assert at.get("plotly_chart")[0].proto.spec != first


def test_a_number_that_is_cut_off_is_found(page, qmodel, evaluation) -> None:
    at = page(layer="block2.conv")
    at.button(key="steps_clamped").click().run()
    steps = explain_element(qmodel, "block2.conv", sample(evaluation, 0), index_of(at))
    assert steps.clamped
    assert "cut off.**" in "".join(said(text) for text in at.markdown)
    at.button(key="steps_large").click().run()
    trace = trace_layer(qmodel, "block2.conv", sample(evaluation, 0))
    assert not trace.explain(index_of(at)).clamped


def test_a_disagreement_is_found_or_said_to_be_none(page, qmodel, evaluation) -> None:
    at = page(layer="block4.conv")
    at.button(key="steps_disagree").click().run()
    _, inputs, _ = next(iter(evaluation.batches(128)))
    found = kernel_trace(qmodel, "block4.conv", inputs, open_codes(qmodel)(*inputs))
    if len(found.differing):
        at_sample, *rest = found.differing[0].tolist()
        assert at.session_state["steps.sample"] == at_sample
        assert index_of(at) == (0, *rest)
        assert number(figures(at)["Integer kernel"]) != number(figures(at)["Simulated"])
    else:
        assert any("agree on all of this layer" in said(text) for text in at.caption)


@pytest.mark.parametrize(
    ("preset", "word"), [("dynamic", "dynamic"), ("int4_weight_only", "weight-only"), ("float", "float")]
)
def test_a_config_without_known_grids_says_so_and_offers_one_with_them(page, preset, word) -> None:
    at = page(preset)
    assert any(word in said(box) for box in at.info)
    assert not at.metric
    at.button(key="steps_x86").click().run()
    assert not at.error
    assert at.session_state["lab.mapping"] == presets["x86"]
    assert figures(at)["By hand, on integers"]


def test_layers_of_another_kind_say_why_they_are_not_listed(open_page) -> None:
    mixed = presets["x86"].replace(by_name={"block2.conv": None})
    at = open_page("steps", query={"model": MODEL}, state={"lab.mapping": mixed})
    assert not at.error
    assert "block2.conv" not in at.selectbox(key="steps_layer").options
    assert "block2.conv" in "".join(said(text) for text in at.markdown if "stays float" in said(text))
