"""The Distributions page: its numbers are the engine's, a change runs no model, and the config gets what was tried."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig
from qlab.graph.capture import Model, load_model
from qlab.lab.run import find_prepared
from qlab.lab.store import Store
from qlab.metrics import write
from qlab.preset import presets
from qlab.quant.error import quantization_error
from qlab.quant.qparams import choose_qparams, observer_ranges
from qlab.ui import cache, library
from qlab.ui.tensors import configured, tensors_of, with_spec_everywhere, with_spec_here
from tests.pages.elements import array, charts, figures, said

WEIGHT, ACTIVATION = "layer1.0.conv1.weight", "layer1.0.relu@1"
X86 = presets["x86"].default


@pytest.fixture(scope="module")
def model():
    return load_model("residual_digits")


@pytest.fixture(scope="module")
def known(model):
    return tensors_of(model)


def spec_of(at):
    return charts(at)[0]


def brackets(at):
    """Observer -> what its bracket says of itself."""
    return {trace["name"]: trace["meta"] for trace in spec_of(at)["data"] if trace.get("meta")}


def chosen(at):
    return [name for name, meta in brackets(at).items() if meta["chosen"]]


def same_ranges(at, expected):
    drawn = brackets(at)
    assert list(drawn) == list(expected)
    for name, qp in expected.items():
        assert drawn[name]["low"] == pytest.approx(float(qp.low.min()))
        assert drawn[name]["high"] == pytest.approx(float(qp.high.max()))


@pytest.fixture
def page(open_page):
    def opened(**state):
        at = open_page("distributions", state={key.replace("_", ".", 1): value for key, value in state.items()})
        assert not at.exception
        assert not at.error
        return at

    return opened


# --- the picture and its numbers --------------------------------------------------------------------------------------


def test_a_weight_is_shown_at_once_with_every_observer(page, known) -> None:
    at = page()
    assert any(WEIGHT in said(text) for text in at.markdown)
    same_ranges(at, observer_ranges(known.weights[WEIGHT], X86.weight))
    assert chosen(at) == [X86.weight.observer]


def test_changing_observer_bits_and_scheme_gives_the_engines_numbers(page, known) -> None:
    at = page()
    at.selectbox(key="dist_scheme").set_value("per_tensor_affine").run()
    at.selectbox(key="dist_observer").set_value("mse").run()
    at.slider(key="dist_bits_weight").set_value(4).run()
    assert not at.error
    spec = QuantSpec(4, "per_tensor_affine", "mse")
    weight = known.weights[WEIGHT]
    same_ranges(at, observer_ranges(weight, spec))
    assert chosen(at) == ["mse"]
    qp = choose_qparams(weight, spec)
    error = quantization_error(weight, qp)
    shown = figures(at)
    assert shown["SQNR"] == write("sqnr", error.sqnr)
    assert shown["Clipped"] == write("clipped", error.clipped_share)
    assert shown["Scale"] == write("scale", float(qp.scale))
    assert shown["Zero point"] == write("zero_point", int(qp.zero_point))
    assert shown["Levels used"] == write("levels", error.levels_used)
    ticks = [x for trace in spec_of(at)["data"] if trace["name"].startswith("grid,") or trace["name"] == "grid"
             for x in array(trace["x"])]  # fmt: skip
    np.testing.assert_allclose(sorted(ticks), (np.arange(16) - int(qp.zero_point)) * float(qp.scale), rtol=1e-6)


def test_an_activation_comes_from_the_calibration(page, model) -> None:
    at = page(lab_tensor=ACTIVATION)
    data = cache.dataset(library.sample_data("residual_digits"))
    stats = find_prepared(Store(), model, data).calibration[ACTIVATION]
    same_ranges(at, observer_ranges(stats, X86.activation))
    assert figures(at)["SQNR"] == write("sqnr", quantization_error(stats, choose_qparams(stats, X86.activation)).sqnr)


def test_a_change_runs_no_model_and_observes_nothing_again(page, monkeypatch) -> None:
    at = page(lab_tensor=ACTIVATION)

    def refuse(*_args, **_kwargs):
        raise AssertionError("a model was run")

    monkeypatch.setattr(Model, "__call__", refuse)
    monkeypatch.setattr(torch.fx.GraphModule, "__call__", refuse)
    monkeypatch.setattr(torch.fx.Interpreter, "run", refuse)
    for bits in (6, 4, 3):
        at.slider(key="dist_bits_activation").set_value(bits).run()
        assert not at.error
    at.selectbox(key="dist_observer").set_value("percentile").run()
    assert chosen(at) == ["percentile"]


def test_the_table_has_a_line_for_each_observer_and_marks_the_chosen_one(page, known) -> None:
    at = page()
    at.selectbox(key="dist_observer").set_value("mse").run()
    table = at.dataframe[0].value
    expected = observer_ranges(known.weights[WEIGHT], X86.weight)
    assert list(table["Observer"]) == list(expected)
    errors = [quantization_error(known.weights[WEIGHT], qp) for qp in expected.values()]
    assert list(table["SQNR"]) == [write("sqnr", error.sqnr) for error in errors]
    # A click on a line needs a browser: tests/browser/test_distributions.py.
    assert at.session_state["dist_table"]["selection"]["rows"] == [list(expected).index("mse")]


def test_another_layer_keeps_the_settings_and_the_kind_of_tensor(page) -> None:
    at = page()
    at.slider(key="dist_bits_weight").set_value(5).run()
    at.selectbox(key="dist_layer").set_value("fc").run()
    assert at.session_state["lab.tensor"] == "fc.weight"
    assert at.slider(key="dist_bits_weight").value == 5


@pytest.mark.parametrize("option", ["dist.log", "dist.overlay"])
def test_the_picture_can_be_drawn_otherwise(page, option) -> None:
    plain = spec_of(page())
    other = spec_of(page(**{option.replace(".", "_", 1): True}))
    assert other != plain


@pytest.mark.parametrize("zoom", ["bulk", "all"])
def test_the_window_can_be_chosen(page, zoom) -> None:
    low, high = spec_of(page(dist_zoom=zoom))["layout"]["xaxis"]["range"]
    assert low < high


def test_more_holds_the_settings_of_the_observer(page) -> None:
    at = page()
    at.session_state["dist_more"] = True
    at.selectbox(key="dist_observer").set_value("percentile").run()
    box = at.number_input(key="dist_param_percentile_percentile")
    low = brackets(at)["percentile"]["low"]
    box.set_value(90.0).run()
    assert not at.error
    assert brackets(at)["percentile"]["low"] > low


def with_tab(page, name):
    at = page()
    at.session_state["dist_tabs"] = name
    return at.run()


# --- channels ---------------------------------------------------------------------------------------------------------


def test_one_channel_is_seen_under_its_own_scale(page, known) -> None:
    at = page(dist_channel=3)
    qp = choose_qparams(known.weights[WEIGHT], X86.weight)
    assert figures(at)["Scale"] == write("scale", float(qp.scale[3]))
    assert any("channel 3" in said(text) for text in at.markdown)


def test_the_channels_tab_marks_who_suffers(page) -> None:
    at = with_tab(page, "Channels")
    assert len(at.get("plotly_chart")) == 2
    assert any("range of its own" in said(caption) for caption in at.caption)
    at.selectbox(key="dist_scheme").set_value("per_tensor_symmetric").run()
    assert any("channels" in said(caption) and "two bits" in said(caption) for caption in at.caption)


def test_how_it_is_computed_shows_this_tensors_numbers(page, known) -> None:
    at = with_tab(page, "How it is computed")
    assert any("16 of each" in said(text) for text in at.markdown)
    at.selectbox(key="dist_scheme").set_value("per_tensor_affine").run()
    qp = choose_qparams(known.weights[WEIGHT], QuantSpec(8, "per_tensor_affine", X86.weight.observer))
    assert any(f"{float(qp.scale):.6g}" in said(text) for text in at.markdown)


# --- into the config --------------------------------------------------------------------------------------------------


def test_what_was_tried_goes_into_the_config_for_all(page) -> None:
    at = page()
    at.slider(key="dist_bits_weight").set_value(4).run()
    at.button(key="dist_use_all").click().run()
    assert at.session_state["lab.mapping"].default.weight == X86.weight.replace(bits=4)
    assert at.session_state["lab.mapping"].default.activation == X86.activation
    assert not at.error


def test_or_for_this_layer_alone(page) -> None:
    at = page()
    at.selectbox(key="dist_observer").set_value("mse").run()
    at.button(key="dist_use_here").click().run()
    mapping = at.session_state["lab.mapping"]
    assert mapping.default == X86
    assert mapping.by_name["layer1.0.conv1"].weight == X86.weight.replace(observer="mse")


def test_or_back_to_what_the_config_has(page) -> None:
    at = page()
    at.slider(key="dist_bits_weight").set_value(3).run()
    at.button(key="dist_back").click().run()
    assert at.slider(key="dist_bits_weight").value == X86.weight.bits


def test_a_spec_the_mode_cannot_take_is_refused_in_words(page) -> None:
    dynamic = presets["dynamic"]
    at = page(lab_tensor=ACTIVATION, lab_mapping=dynamic)
    at.selectbox(key="dist_observer").set_value("mse").run()
    at.button(key="dist_use_all").click().run()
    assert any("dynamic" in error.value for error in at.error)
    assert at.session_state["lab.mapping"] == dynamic
    assert at.get("plotly_chart")


def test_a_group_size_that_does_not_divide_is_said_and_the_controls_stay(open_page) -> None:
    grouped = QuantSpec(4, "per_group_symmetric", "min_max", group_size=100)
    mapping = QConfigMapping(default=QConfig(weight=grouped, activation=X86.activation))
    at = open_page("distributions", state={"lab.mapping": mapping})
    assert any("100" in error.value for error in at.error)
    assert at.selectbox(key="dist_scheme").value == "per_group_symmetric"
    at.selectbox(key="dist_scheme").set_value("per_channel_symmetric").run()
    assert not at.error
    assert at.get("plotly_chart")


def test_without_a_calibration_weights_are_there_and_activations_say_what_is_going_on(fresh_home, open_page) -> None:
    at = open_page("distributions", state={"lab.tensor": WEIGHT})
    assert at.get("plotly_chart")
    at.selectbox(key="dist_what").set_value("output").run()
    assert not at.get("plotly_chart")
    assert any(button.label == "Cancel" for button in at.button)


def test_a_link_opens_its_tensor(open_page) -> None:
    at = open_page("distributions", query={"tensor": "fc.weight"})
    assert at.selectbox(key="dist_layer").value == "fc"


# --- the list of tensors ----------------------------------------------------------------------------------------------


def test_tensors_stand_in_the_order_of_the_graph_grouped_by_layer(known) -> None:
    assert list(known.entries)[:3] == ["x", "conv1.weight", "relu"]
    assert [entry.what for entry in known.of_layer("conv1")] == ["weight", "output"]
    assert known.entries["x"].what == "input"
    assert known.entries["x"].owner == "conv1"
    assert known.first.tensor == WEIGHT


def test_a_tensor_several_layers_read_has_no_owner() -> None:
    shared = tensors_of(load_model("transformer_text")).entries["blocks.0.norm1"]
    assert shared.owner is None
    assert configured(presets["x86"], shared) == X86.activation


def test_weights_of_a_recurrent_layer_are_told_apart() -> None:
    known = tensors_of(load_model("lstm_text"))
    assert [entry.what for entry in known.of_layer("lstm")] == ["weight_ih_l0", "weight_hh_l0"]


def test_everywhere_means_every_rule_that_quantizes(known) -> None:
    four = QuantSpec(4, "per_channel_symmetric")
    mapping = QConfigMapping(default=X86, by_type={"linear": X86.replace(weight=four)}, by_name={"conv1": None})
    changed = with_spec_everywhere(mapping, "weight", four.replace(bits=3))
    assert changed.default.weight.bits == changed.by_type["linear"].weight.bits == 3
    assert changed.by_name["conv1"] is None


def test_here_starts_from_what_the_layer_has(known) -> None:
    entry = known.entries["conv1.weight"]
    changed = with_spec_here(QConfigMapping(by_name={"conv1": None}), entry, QuantSpec(4, "per_tensor_symmetric"))
    assert changed.default is None
    assert changed.by_name["conv1"].weight.bits == 4
    with pytest.raises(InvalidConfig):
        with_spec_here(presets["dynamic"], known.entries["relu"], QuantSpec(8, "per_channel_affine"))
