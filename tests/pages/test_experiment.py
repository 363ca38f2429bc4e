"""The Experiment page: the editor keeps configs valid, the estimate and the run give the engine's own numbers."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from qlab import compare, convert, evaluate, load_dataset, load_model
from qlab.config import QSCHEMES, QConfig, QConfigMapping, QuantSpec
from qlab.lab.experiment import Experiment
from qlab.lab.run import find_prepared, run
from qlab.lab.store import Store
from qlab.metrics import write
from qlab.preset import presets
from qlab.quant.observers import OBSERVERS
from qlab.ui import cache, config_editor, errors, overrides
from qlab.ui.overrides import BY_TYPE, Rule
from tests.pages.elements import said

X86 = presets["x86"].default
LAYERS = [("conv1", "conv2d"), ("relu", "relu"), ("layer1.conv1", "conv2d"), ("layer1.add", "add"), ("fc", "linear")]


# --- what the editor can make -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["weight", "activation"])
def test_every_scheme_and_observer_on_offer_is_a_valid_spec(role) -> None:
    spec = QuantSpec()
    for scheme in QSCHEMES:
        if scheme.split("_")[1] not in config_editor.granularities_for(role):
            continue
        spec = config_editor.with_scheme(spec, role, scheme)
        assert spec.qscheme == scheme
        for observer in config_editor.observers_for(role, spec.granularity):
            changed = spec.replace(observer=observer, observer_args={})
            QConfig(**{"weight": X86.weight, "activation": X86.activation, role: changed})


def test_scheme_takes_and_leaves_its_group_size() -> None:
    grouped = config_editor.with_scheme(X86.weight, "weight", "per_group_symmetric")
    assert grouped.group_size == config_editor.GROUP_SIZE
    assert config_editor.with_scheme(grouped, "weight", "per_tensor_affine").group_size is None


def test_weight_is_not_offered_an_average_over_batches() -> None:
    offered = config_editor.observers_for("weight", "channel")
    assert "moving_average" not in offered
    assert {name for name, o in OBSERVERS.items() if o.needs != "batches"} == set(offered)


def test_every_preset_can_change_into_every_mode() -> None:
    for name, mode in itertools.product(presets, [*config_editor.MODES, config_editor.FLOAT]):
        changed = config_editor.with_mode(presets[name].default, mode)
        assert (changed.mode if changed else config_editor.FLOAT) == mode


def test_activations_come_back_when_the_mode_quantizes_them_again() -> None:
    activation = QuantSpec(bits=6, observer="percentile", observer_args={"percentile": 99.0})
    config = config_editor.with_mode(X86.replace(activation=activation), "weight_only")
    assert config.activation is None
    assert config_editor.with_mode(config, "static", activation).activation == activation


@pytest.mark.parametrize("observer", OBSERVERS.values(), ids=list(OBSERVERS))
def test_steps_of_a_setting_fit_into_its_range(observer) -> None:
    for param in observer.params:
        assert 0 < config_editor.step_of(param) <= param.maximum - param.minimum


# --- rules for single layers ------------------------------------------------------------------------------------------


def test_empty_cells_follow_the_default_and_filled_ones_do_not() -> None:
    rules = [Rule(pattern="conv1", weight_bits=4)]
    first = overrides.parse(rules, X86).mapping.by_name["conv1"]
    assert first == X86.replace(weight=X86.weight.replace(bits=4))
    other = X86.replace(activation=X86.activation.replace(bits=6))
    assert overrides.parse(rules, other).mapping.by_name["conv1"].activation.bits == 6


MAPPINGS = {
    "float by name": QConfigMapping(X86, by_name={"conv1": None}),
    "bits and scheme": QConfigMapping(
        X86, by_type={"linear": X86.replace(weight=QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=32))}
    ),
    "settings no cell can hold": QConfigMapping(
        X86,
        by_name={
            "conv*": X86.replace(
                activation=X86.activation.replace(observer="percentile", observer_args={"percentile": 95.0})
            )
        },
    ),
    "another mode": QConfigMapping(X86, by_type={"linear": presets["dynamic"].default}),
    "float default": QConfigMapping(None, by_name={"fc": X86}),
}


@pytest.mark.parametrize("mapping", MAPPINGS.values(), ids=list(MAPPINGS))
def test_table_loses_nothing_of_a_mapping(mapping) -> None:
    again = overrides.parse(overrides.rules_of(mapping), mapping.default)
    assert again.mapping == mapping
    assert not again.problems


PROBLEMS = {
    "no pattern": ([Rule(weight_bits=4)], "has no layer name"),
    "unknown type": ([Rule(BY_TYPE, "conv")], "there is no op type"),
    "twice": ([Rule(pattern="a"), Rule(pattern="a")], "already"),
}


@pytest.mark.parametrize(("rules", "words"), PROBLEMS.values(), ids=list(PROBLEMS))
def test_a_row_that_makes_no_sense_is_named_and_left_out(rules, words) -> None:
    parsed = overrides.parse(rules, X86)
    assert words in parsed.problems[len(rules)]
    assert len(parsed.mapping.by_name) + len(parsed.mapping.by_type) == len(rules) - 1


def test_activation_cells_in_a_mode_without_activations_are_refused() -> None:
    parsed = overrides.parse([Rule(pattern="conv1", activation_bits=6)], presets["int8_weight_only"].default)
    assert "weight-only" in parsed.problems[1]


def test_matches_count_as_the_engine_resolves() -> None:
    rule = Rule(pattern="layer1.*", keep_float=True)
    mapping = overrides.parse([rule], X86).mapping
    by_engine = [layer for layer, op in LAYERS if mapping.resolve(layer, op).rule != "default"]
    assert rule.matches(LAYERS) == by_engine == ["layer1.conv1", "layer1.add"]
    assert Rule(BY_TYPE, "conv2d").matches(LAYERS) == ["conv1", "layer1.conv1"]


def test_edits_of_the_table_become_rows() -> None:
    edits = {
        "edited_rows": {0: {"weight_bits": 4.0, "pattern": " conv* "}},
        "added_rows": [{"by": BY_TYPE, "pattern": "linear", "keep_float": True}],
        "deleted_rows": [1],
    }
    rows = overrides.apply_edits([Rule(pattern="conv1"), Rule(pattern="fc")], edits)
    assert rows == [Rule(pattern="conv*", weight_bits=4), Rule(BY_TYPE, "linear", keep_float=True)]


# --- the page ---------------------------------------------------------------------------------------------------------


def metrics(at) -> dict[str, str]:
    return {m.label: m.value for m in at.main.metric}


@pytest.fixture
def finished(home, tmp_path):
    """Carries out an experiment on the first samples of a data set in this process; gives its run."""

    def go(mapping, *, labels: bool = True, model: str = "outlier_mlp", samples: int = 120):
        data = load_dataset(model).evaluation.subset(slice(0, samples))
        path = tmp_path / f"{model}.npz"
        (data if labels else replace(data, targets=None)).split(40).save(path)
        store = Store(home)
        try:
            return run(Experiment(model, str(path), mapping), store=store)
        finally:
            store.close()

    return go


def test_first_visit_shows_what_the_preset_will_give(open_page) -> None:
    at = open_page("experiment")
    assert not at.error
    assert not at.exception
    assert at.pills(key="exp_preset").value == "x86"
    model, store = load_model("residual_digits"), Store()
    found = find_prepared(store, model, load_dataset("residual_digits"))
    size = convert(model, presets["x86"], found.calibration).size
    assert metrics(at)["Size, exactly"] == write("size", size.quantized_bytes)
    assert metrics(at)["Float"] == write("accuracy", found.float_evaluation.accuracy)
    store.close()


def test_preset_and_controls_change_the_shared_config(open_page) -> None:
    at = open_page("experiment")
    at.pills(key="exp_preset").set_value("w4a8").run()
    assert at.session_state["lab.mapping"] == presets["w4a8"]
    assert at.slider(key="exp_w_bits").value == 4
    at.slider(key="exp_w_bits").set_value(6).run()
    assert at.session_state["lab.mapping"].default.weight.bits == 6
    assert at.pills(key="exp_preset").value is None
    at.selectbox(key="exp_w_qscheme").select("per_group_symmetric").run()
    assert at.number_input(key="exp_w_group_size").value == config_editor.GROUP_SIZE
    at.segmented_control(key="exp_mode").set_value("weight_only").run()
    assert at.session_state["lab.mapping"].default.activation is None
    at.segmented_control(key="exp_mode").set_value("static").run()
    assert at.session_state["lab.mapping"].default.activation == presets["w4a8"].default.activation
    assert not at.error
    assert not at.exception


@pytest.mark.parametrize("observer", [o for o in OBSERVERS.values() if o.params], ids=lambda o: o.name)
def test_settings_of_an_observer_are_drawn_from_its_declaration(open_page, observer) -> None:
    at = open_page("experiment")
    at.selectbox(key="exp_a_observer").select(observer.name).run()
    for param in observer.params:
        control = at.number_input(key=f"exp_a_{observer.name}_{param.name}")
        assert (control.value, control.min, control.max) == (param.default, param.minimum, param.maximum)
        control.set_value(param.maximum).run()
        assert at.session_state["lab.mapping"].default.activation.observer_args[param.name] == param.maximum
    assert not at.exception


def test_every_preset_is_drawn_without_a_word_of_error(open_page) -> None:
    at = open_page("experiment", query={"model": "outlier_mlp"})
    for name in presets:
        at.pills(key="exp_preset").set_value(name).run()
        assert at.session_state["lab.mapping"] == presets[name]
        assert not at.error, name
        assert not at.exception, name


def test_rule_that_matches_nothing_is_said_and_one_that_does_is_counted(open_page, read) -> None:
    mapping = presets["x86"].replace(by_name={"layer9*": None, "layer1*": None})
    at = open_page("experiment", state={"lab.mapping": mapping})
    assert "matches nothing" in said(at.warning[0])
    layers = [layer.name for layer in load_model("residual_digits").layers]
    count = sum(name.startswith("layer1") for name in layers)
    assert f"matches **{count} of {len(layers)}** layers" in read(at, "caption")
    assert at.session_state["lab.mapping"] == mapping


def test_config_and_rules_are_there_after_a_walk_to_another_page(open_page) -> None:
    at = open_page("experiment")
    mapping = presets["arm"].replace(by_type={"linear": None})
    at.session_state["lab.mapping"] = mapping
    at.run()
    at.switch_page("pages/lab/start.py").run()
    at.switch_page("pages/lab/experiment.py").run()
    assert at.session_state["lab.mapping"] == mapping
    assert list(at.data_editor[0].value["pattern"]) == ["linear"]


def test_run_in_a_worker_gives_the_numbers_of_the_engine(open_page, home) -> None:
    at = open_page("experiment")
    at.button(key="exp_run").click().run()
    run_id = at.session_state["lab.run"]
    assert at.query_params["run"] == run_id
    assert at.button(key="exp_run").disabled
    ended = cache.runner().wait(run_id, 200)
    assert ended.status == "done", ended.error
    at.run()
    model, data = load_model("residual_digits"), load_dataset("residual_digits")
    store = Store(home)
    found = find_prepared(store, model, data)
    store.close()
    qmodel, reference = convert(model, presets["x86"], found.calibration), found.float_evaluation
    quantized = evaluate(qmodel, data, reference)
    shown = metrics(at)
    assert shown["Float"] == write("accuracy", reference.accuracy)
    assert shown["Quantized, simulated"] == write("accuracy", quantized.accuracy)
    assert shown["Agreement"] == write("agreement", quantized.agreement)
    assert shown["Size"] == write("size", qmodel.size.quantized_bytes)
    verdict = compare(reference, quantized, data.evaluation.targets).verdict
    assert any(verdict[1:] in said(m) for m in at.markdown)
    assert not at.error
    assert not at.exception


def test_run_that_fails_says_why(open_page) -> None:
    at = open_page("experiment", query={"model": "residual_digits", "data": "lstm_text"})
    at.button(key="exp_run").click().run()
    run = cache.runner().wait(at.session_state["lab.run"], 200)
    assert run.status == "failed"
    at.run()
    assert any(errors.escape(run.error[:40]) in box.value for box in at.error)
    assert not at.button(key="exp_run").disabled


def test_run_that_was_stopped_says_so(open_page, home) -> None:
    store = Store(home)
    run_id = store.create_run(kind="experiment", spec=Experiment("outlier_mlp", "outlier_mlp", "x86").to_dict())
    store.request_cancel(run_id)
    store.close()
    at = open_page("experiment", query={"run": run_id})
    assert any("was stopped" in said(box) for box in at.info)


def test_link_to_a_run_that_is_not_here_says_so_once(open_page) -> None:
    at = open_page("experiment", query={"run": "nothere"})
    assert "nothere" in at.error[0].value
    assert not at.run().error


def test_config_of_an_earlier_run_becomes_the_current_one(open_page, finished, read) -> None:
    mapping = presets["w4a8"].replace(by_name={"nothing": None})
    done = finished(mapping)
    at = open_page("experiment", query={"run": done.id, "model": "outlier_mlp"})
    assert "matched no layer" in read(at, "warning")
    at.button(key="exp_use_config").click().run()
    assert at.session_state["lab.mapping"] == mapping
    assert at.button(key="exp_use_config").disabled
    assert list(at.dataframe[-1].value["Run"]) == [done.id]


def test_without_labels_agreement_stands_alone_and_the_page_says_why(open_page, finished, read) -> None:
    done = finished("x86", labels=False)
    at = open_page("experiment", query={"run": done.id})
    assert "no labels" in read(at, "markdown")
    assert metrics(at)["Agreement with float"] == write("agreement", done.headline.agreement)
    assert "Lost" not in metrics(at)
    assert not at.exception


def test_result_names_a_network_that_is_not_the_open_one_and_opens_it(open_page, home) -> None:
    store = Store(home)
    done = run(Experiment("outlier_mlp", "outlier_mlp", "x86"), store=store)
    store.close()
    at = open_page("experiment", query={"run": done.id})
    assert at.session_state["lab.model"].source == "residual_digits"
    at.button(key="exp_open_refs").click().run()
    assert at.session_state["lab.model"].source == "outlier_mlp"
    assert at.session_state["lab.run"] == done.id
    assert not at.error


@pytest.mark.parametrize("name", ["transformer_text", "lstm_text", "depthwise_digits"])
def test_results_of_other_kinds_of_data_are_drawn(open_page, finished, name) -> None:
    done = finished("w4a8", model=name, samples=60)
    at = open_page("experiment", query={"run": done.id, "model": name})
    assert not at.exception
    assert not at.error
    assert metrics(at)["Quantized, simulated"] == write("accuracy", done.headline.accuracy)
