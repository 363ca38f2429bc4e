"""The Training page: it trains when asked to, shows what the job wrote down, and says what is beyond chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import Cancelled
from qlab.lab.compared import paired
from qlab.lab.experiment import Experiment
from qlab.lab.run import experiment_task, read_result
from qlab.lab.store import Store
from qlab.lab.tasks import KINDS
from qlab.lab.trained import read_history
from qlab.lab.work import Work, carry_out
from qlab.metrics import metric, percent, write
from qlab.plots.training_grids import coarser
from qlab.preset import presets
from qlab.training.history import Epoch, History
from qlab.training.settings import Training
from qlab.ui import training, training_tabs, training_view
from tests.jobs_here import carry
from tests.pages.elements import array, button, charts, figures, said, texts

MODEL = "outlier_mlp"
LOW = training.low_bits(presets["x86"], 4, 4)
HOW = Training(epochs=3, lr=0.002, batch_size=64, validation=0.1)
BROKEN = HOW.replace(epochs=4)  # stopped after its second epoch


def asked_for(how):
    return Experiment(MODEL, MODEL, LOW, training=how)


@pytest.fixture(scope="module", autouse=True)
def trained(prepared_home):
    """(store, run, history) of a training that has ended; the same without training has a run, too. A second training
    was stopped on the way."""
    store = Store(prepared_home)
    run = carry(store, "experiment", experiment=asked_for(HOW))
    carry(store, "experiment", experiment=Experiment(MODEL, MODEL, LOW))
    _stop_after(store, asked_for(BROKEN), epochs=2)
    yield store, run, read_history(store, run)
    store.close()


def _stop_after(store, experiment, epochs):
    """Ends the run in the epoch after these."""
    row = KINDS["experiment"].describe(store, {"experiment": experiment})
    run_id = store.create_run(kind="experiment", **row.columns)
    assert store.start(run_id)

    def stop(stage, done, total):
        if stage == "train" and total and done > epochs * total / experiment.training.epochs:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        carry_out(experiment_task, Work(store, run_id, stop), dict(row.spec))


@pytest.fixture
def page(open_page):
    def opened(how=HOW, mapping=LOW, model=MODEL, **query):
        given = {"lab.mapping": mapping, training.SETTINGS: how}
        at = open_page("training", query={"model": model, **query}, state=given)
        assert not at.exception
        assert not at.error
        return at

    return opened


def words(at):
    return texts(at, "markdown", "caption", "info", "success", "warning")


def tab(at, name):
    at.session_state["train_tabs"] = name
    at.run()
    assert not at.error
    return at


def epoch_slider(at, tab):
    (found,) = (slider for slider in at.slider if slider.key.startswith(f"train_{tab}_epoch"))
    return found


# --- before -----------------------------------------------------------------------------------------------------------


def test_before_any_training_it_shows_float_and_what_to_do_first(page, asked) -> None:
    at = page(HOW.replace(epochs=7), presets["x86"])
    assert not asked
    assert not charts(at)
    shown = figures(at)
    assert shown["Float"].endswith(" %")
    assert shown["PTQ"] == "–"
    assert "Press **Train**" in words(at)
    assert "on the 512 calibration samples" in words(at)
    assert "With 8 bits and more" in said(at.info[0])
    button(at, "Measure PTQ").click().run()
    ((kind, arguments),) = asked
    assert kind == "experiment"
    assert arguments["experiment"].training is None
    assert "Measure PTQ" not in [b.label for b in at.button]
    assert button(at, "Cancel")


def test_what_ptq_costs_is_shown_where_it_was_measured(page, trained) -> None:
    store, run, _ = trained
    at = page(HOW.replace(epochs=7))
    untrained = next(r for r in store.list_runs(kind="experiment") if r.status == "done" and r.id != run.id)
    assert figures(at)["PTQ"] == write("accuracy", untrained.headline.accuracy)
    assert figures(at)["PTQ against float"] == metric("accuracy").delta(
        untrained.headline.accuracy - untrained.headline.float_accuracy
    )
    assert not [b for b in at.button if b.label == "Measure PTQ"]


@pytest.mark.parametrize(("weight", "activation", "label"), training.LOW_BITS, ids=["4-4", "2-4"])
def test_few_bits_are_a_press_away_and_can_be_taken_back(page, weight, activation, label) -> None:
    at = page(mapping=presets["x86"])
    button(at, label).click().run()
    default = at.session_state["lab.mapping"].default
    assert (default.weight.bits, default.activation.bits) == (weight, activation)
    assert (default.weight.qscheme, default.activation.qscheme) == ("per_channel_symmetric", "per_tensor_affine")
    assert label not in [b.label for b in at.button]
    assert f"{weight}-bit weights, {activation}-bit activations" in words(at)
    button(at, "Undo").click().run()
    assert at.session_state["lab.mapping"] == presets["x86"]


def test_few_bits_reach_every_config_and_leave_float_what_is_float() -> None:
    wide = QConfig(QuantSpec(8), QuantSpec(8))
    mapping = QConfigMapping(default=wide, by_name={"fc1": None, "fc2": wide}, by_type={"conv2d": wide}, equalize=True)
    low = training.low_bits(mapping, 2, 4)
    assert low.by_name["fc1"] is None
    assert low.by_name["fc2"] == low.by_type["conv2d"] == low.default
    assert low.equalize
    assert training.fewest_bits(low) == 2
    assert training.fewest_bits(mapping) == 8
    only_weights = QConfigMapping(by_name={"fc1": QConfig(QuantSpec(4), mode="weight_only")})
    assert training.fewest_bits(only_weights) == 4
    assert training.low_bits(only_weights, 4, 4).default is None


def test_a_config_that_quantizes_nothing_gets_few_bits_as_its_default(page) -> None:
    at = page(mapping=presets["float"])
    assert "quantizes nothing" in said(at.info[0])
    assert training.low_bits(presets["float"], 4, 4).default.weight.bits == 4


def test_train_starts_the_experiment_with_these_settings(page, asked) -> None:
    at = page()
    at.number_input(key="train_epochs").set_value(9).run()
    at.number_input(key="train_lr").set_value(0.004).run()
    at.segmented_control(key="train_ranges").set_value("lsq").run()
    assert not at.checkbox(key="train_early").disabled
    at.checkbox(key="train_early").check().run()
    at.number_input(key="train_patience").set_value(2).run()
    button(at, "Train").click().run()
    ((kind, arguments),) = asked
    wanted = arguments["experiment"]
    assert kind == "experiment"
    assert wanted.training == HOW.replace(epochs=9, lr=0.004, ranges="lsq", patience=2)
    assert wanted.resolved_mapping == LOW
    assert button(at, "Training").disabled
    assert button(at, "Cancel")
    assert "PTQ against float" in figures(at)


def test_how_long_it_takes_is_told_from_earlier_trainings_alone(page, trained) -> None:
    _, run, _ = trained
    at = page(HOW.replace(epochs=300))
    assert "by 1 earlier training" in words(at)
    seconds = training_seconds(at)
    assert seconds == pytest.approx(100 * run.seconds, rel=0.2, abs=1)
    assert "no earlier training to tell the time" in words(page(HOW.replace(ranges="lsq")))


def test_an_early_end_needs_samples_that_are_held_out(page) -> None:
    at = page(HOW.replace(validation=0.0, patience=3))
    assert at.checkbox(key="train_early").disabled
    assert at.number_input(key="train_patience").disabled
    at.number_input(key="train_validation").set_value(0.2).run()
    assert at.session_state[training.SETTINGS] == HOW.replace(validation=0.2, patience=3)
    assert not at.checkbox(key="train_early").disabled


def training_seconds(at) -> float:
    told = next(said(c) for c in at.caption if "earlier training" in said(c))
    numbers = [float(word) for word in told.split(" in all")[0].split() if word.isdecimal()]
    return numbers[-1] if len(numbers) == 1 else 60 * numbers[0] + numbers[1]


# --- after ------------------------------------------------------------------------------------------------------------


def test_a_finished_training_is_shown_at_once(page, trained) -> None:
    _, _, history = trained
    at = page()
    assert button(at, "Trained").disabled
    (curves, *_) = charts(at)
    line = next(t for t in curves["data"] if t["name"] == "accuracy, simulated")
    assert array(line["x"]) == [0, 1, 2, 3]
    assert array(line["y"]) == pytest.approx([100 * e.accuracy for e in history.epochs])
    star = next(t for t in curves["data"] if t["name"].startswith("result"))
    assert star["x"] == [history.best]
    steps = next(t for t in curves["data"] if t["name"] == "loss of a step")
    assert array(steps["y"]) == pytest.approx(history.losses.tolist())
    assert f"{history.samples[1]} held-out samples alone" in words(at)


def test_figures_are_those_of_the_history_and_the_verdict_that_of_the_runs(page, trained) -> None:
    store, run, history = trained
    at = page()
    before, after = history.epochs[0], history.epochs[history.best]
    shown = figures(at)
    assert shown["Float"] == write("accuracy", history.float_accuracy)
    assert shown["PTQ"] == write("accuracy", before.accuracy)
    assert shown["After training"] == write("accuracy", after.accuracy)
    assert shown["Against float"] == metric("accuracy").delta(after.accuracy - history.float_accuracy)
    won = (after.accuracy - before.accuracy) / (history.float_accuracy - before.accuracy)
    assert shown["Recovered"] == percent(won)
    untrained = next(
        r for r in store.list_runs(kind="experiment", status="done") if r.id != run.id and not r.spec.get("training")
    )
    said = words(at)
    assert read_result(store, run).comparison.verdict[1:] in said.replace("\\", "")
    assert paired(store, run, untrained).verdict("PTQ")[1:] in said.replace("\\", "")
    assert [b for b in at.button if b.label == "Measure PTQ"] == []


def test_the_trained_network_is_what_its_history_says(trained) -> None:
    store, run, history = trained
    assert read_result(store, run).quantized.accuracy == history.epochs[history.best].accuracy


def test_without_a_run_of_ptq_the_intervals_speak(page, monkeypatch, trained) -> None:
    monkeypatch.setattr(training, "untrained", lambda: asked_for(None).replace(seed=5))
    monkeypatch.setattr(training, "experiment", lambda: asked_for(HOW))
    at = page()
    assert training_view.apart(trained[2]) in words(at)
    assert button(at, "Measure PTQ")


def test_a_training_that_was_stopped_shows_what_it_found_and_goes_on(page, asked) -> None:
    at = page(BROKEN)
    assert "stopped after epoch 2" in said(at.info[0])
    line = next(t for t in charts(at)[0]["data"] if t["name"] == "accuracy, simulated")
    assert array(line["x"]) == [0, 1, 2]
    assert "Best so far" in figures(at)
    button(at, "Go on from epoch 2").click().run()
    ((_, arguments),) = asked
    assert arguments["experiment"].training == BROKEN
    # While it goes on, what is there stays in view.
    assert button(at, "Training").disabled
    assert "Best so far" in figures(at)
    assert len(charts(at)) == 2


def test_an_earlier_training_is_opened_with_its_config_and_settings(page, trained) -> None:
    _, run, _ = trained
    at = page(Training(), presets["x86"])
    at.button(key=f"train_earlier_{run.id}").click().run()
    assert at.session_state[training.SETTINGS] == HOW
    assert at.session_state["lab.mapping"] == LOW
    assert button(at, "Trained")


# --- tabs -------------------------------------------------------------------------------------------------------------


def test_another_grid_can_be_followed(page, trained) -> None:
    history = trained[2]
    at = page()
    grid = next(g for g in history.grids if g.role == "activation")
    at.selectbox(key="train_grid").set_value(grid.tensor).run()
    assert at.session_state["lab.tensor"] == grid.tensor
    scale = next(t for t in charts(at)[1]["data"] if t["yaxis"] == "y2")
    assert array(scale["y"]) == pytest.approx(grid.scale[:, 0].tolist())
    assert array(scale["x"]) == history.record_epochs.tolist()


def test_weights_are_looked_at_epoch_by_epoch(page, trained) -> None:
    history = trained[2]
    at = tab(page(), "Weights over the grid")
    assert epoch_slider(at, "weights").value == history.best
    epoch_slider(at, "weights").set_value(1).run()
    button(at, "Next").click().run()
    assert at.session_state[training.EPOCH] == 2
    grid = next(g for g in history.grids if g.role == "weight")
    shown = next(t for t in charts(at)[1]["data"] if t["name"] == "epoch 2")
    _, counts = coarser(grid, 2)
    assert array(shown["y"])[:-1] == pytest.approx((100 * counts / grid.histogram[2].sum()).tolist())
    assert "near the middle between two grid points" in words(at)
    epoch_slider(at, "weights").set_value(0).run()
    assert button(at, "Previous").disabled
    assert epoch_slider(at, "weights").value == 0
    button(at, "Next").click().run()
    assert epoch_slider(at, "weights").value == 1
    # A browser that draws it for the first time begins where it stands, and not at 0.
    assert epoch_slider(tab(page(), "Weights over the grid"), "weights").proto.default == [history.best]


def test_a_link_opens_the_same_tensor_and_epoch(page, trained) -> None:
    tensor = [g.tensor for g in trained[2].grids if g.role == "weight"][-1]
    at = tab(page(epoch="1", tensor=tensor), "Weights over the grid")
    assert epoch_slider(at, "weights").value == 1
    assert at.selectbox(key="train_weight").value == tensor
    assert any("epoch=1" in code.value for code in at.code)


def test_a_page_that_is_loaded_again_finds_its_training(page, open_page, trained) -> None:
    _, run, _ = trained
    shown = page()
    assert shown.query_params["training"] == run.id
    assert any(f"training={run.id}" in code.value for code in shown.code)
    at = open_page("training", query={"training": run.id})
    assert at.session_state[training.SETTINGS] == HOW
    assert at.session_state["lab.mapping"] == LOW
    assert at.session_state["lab.model"].source == MODEL
    assert button(at, "Trained")


def test_a_link_to_a_training_that_is_not_here_says_so(open_page) -> None:
    at = open_page("training", query={"model": MODEL, "training": "nothing"})
    assert "not in this store" in at.error[0].value
    assert button(at, "Train")


def test_codes_that_flip_are_counted_by_layer(page, trained) -> None:
    at = tab(page(), "Which weights flip?")
    weights = [g for g in trained[2].grids if g.role == "weight"]
    drawn = charts(at)[1]["data"]
    assert len(drawn) == len(weights)
    assert array(drawn[0]["y"]) == pytest.approx((100 * weights[0].flips[1:]).tolist())
    assert "4 times in an epoch" in words(at)


def test_the_state_of_every_grid_stands_in_a_table_what_is_marked_first(page, trained) -> None:
    history = trained[2]
    at = tab(page(), "Observer state")
    epoch_slider(at, "states").set_value(0).run()
    table = at.dataframe[0].value
    assert sorted(table["Tensor"]) == sorted(g.tensor for g in history.grids)
    assert not table["Frozen"].any()
    # One neuron of the first layer was planted dead, and its scale is zero.
    assert table["Tensor"][0] == "fc1.weight"
    assert table["Marks"][0] == "; ".join(history.grid("fc1.weight", "weight").marks(0)) != ""
    assert f"**1 of {len(history.grids)} grids** has a mark before training" in words(at)
    epoch_slider(at, "states").set_value(3).run()
    assert at.dataframe[0].value["Frozen"].all()


def test_where_no_grid_has_a_mark_it_says_so_and_has_no_column_for_it(page, trained, monkeypatch) -> None:
    history = trained[2]
    sound = replace(history, grids=[g for g in history.grids if not g.marks(history.record_of(3))])
    monkeypatch.setattr(training, "_history", lambda run_id, home: sound)
    at = tab(page(), "Observer state")
    assert "Marks" not in at.dataframe[0].value
    assert f"Nothing is wrong with any of the **{len(sound.grids)} grids**" in words(at)


def test_what_was_done_says_who_decides(page, trained) -> None:
    history = trained[2]
    said = words(tab(page(), "What was done"))
    trained_on, held = history.samples
    assert f"Trained on **{trained_on} samples**" in said
    assert f"**{held}** held out" in said
    assert "They decide nothing" in said
    assert "50 % of the loss asks for the output of the float network" in said
    assert "mixtures of two" in said
    alone = training_tabs.facts(replace(history, float_accuracy=None, samples=(512, 0)))
    assert any("float network is the teacher" in line for line in alone)
    assert any("the last epoch is the result" in line for line in alone)


def test_the_trained_model_can_be_taken_along_and_compared(page, trained) -> None:
    run = trained[1]
    at = tab(page(), "Take it with you")
    assert at.get("download_button")[0].proto.label.endswith("_trained.safetensors")
    assert "qlab.load_quantized" in at.code[-1].value
    button(at, "Compare with float and PTQ").click().run()
    assert run.id in at.session_state["lab.compared"]
    assert at.session_state["lab.baseline"] in at.session_state["lab.compared"]
    assert not at.exception


def test_the_trained_weights_are_opened_on_their_page(page, trained) -> None:
    at = tab(page(), "Take it with you")
    button(at, "Look at its weights").click().run()
    assert at.session_state[training.WEIGHTS_ORIGIN] == trained[1].id
    assert not at.exception
    assert not at.error


def test_without_labels_agreement_is_what_counts(page, trained, monkeypatch) -> None:
    history = trained[2]
    bare = {"accuracy": None, "accuracy_low": None, "accuracy_high": None}
    epochs = [replace(e, **bare) for e in history.epochs]
    unlabelled = replace(history, float_accuracy=None, epochs=epochs)
    monkeypatch.setattr(training, "_history", lambda run_id, home: unlabelled)
    at = page()
    shown = figures(at)
    assert "Float" not in shown
    assert shown["PTQ"] == write("agreement", epochs[0].agreement)
    assert shown["After training"] == write("agreement", epochs[history.best].agreement)
    line = next(t for t in charts(at)[0]["data"] if t["name"] == "agreement with float, simulated")
    assert array(line["y"]) == pytest.approx([100 * e.agreement for e in epochs])


# --- in words ---------------------------------------------------------------------------------------------------------


def history_of(before, after, reference, n=100):
    from qlab.evaluation import wilson_interval

    def epoch(number, accuracy, agreement=0.8):
        ends = (None, None) if accuracy is None else wilson_interval(round(n * accuracy), n)
        return Epoch(number, number, 0.1, None, None, accuracy, *ends, agreement, False, True)

    none = np.zeros(0)
    epochs = [epoch(0, before), epoch(1, after, 0.9)]
    return History(Training(epochs=1).to_dict(), (9, 1), n, reference, epochs, none, none, none, (), True)


@pytest.mark.parametrize(
    ("ptq", "told"), [(0.91, "nothing to win back"), (0.88, "within the noise"), (0.5, "to win back")]
)
def test_what_ptq_costs_is_told_with_whether_it_is_more_than_chance(ptq, told) -> None:
    start = replace(history_of(ptq, ptq, 0.9), finished=False)
    (_, _, cost) = training_view._start(start)
    assert cost[:3] == ("PTQ against float", metric("accuracy").delta(ptq - 0.9), told)


@pytest.mark.parametrize(
    ("before", "after", "reference", "share", "told"),
    [
        (0.5, 0.85, 0.9, 0.875, "of what quantization cost"),
        (0.5, 0.52, 0.9, 0.05, "of the cost, a change within the noise"),
        (0.88, 0.9, 0.9, None, "what PTQ cost is within the noise"),
        (0.92, 0.9, 0.9, None, "PTQ cost no accuracy"),
        (None, None, None, 0.5, "of the predictions that had changed"),
    ],
    ids=["won", "noise", "little to win", "nothing to win", "no labels"],
)
def test_what_was_recovered_is_told_only_where_something_was_lost(before, after, reference, share, told) -> None:
    found, said = training_view.recovered(history_of(before, after, reference))
    assert found == (None if share is None else pytest.approx(share))
    assert said == told


def test_a_paired_comparison_outweighs_the_intervals() -> None:
    found = history_of(0.5, 0.52, 0.9)
    assert training_view.recovered(found, real=True)[1] == "of what quantization cost"
    assert training_view.recovered(history_of(0.5, 0.85, 0.9), real=False)[1].endswith("within the noise")
    assert "overlap, so they alone" in training_view.apart(found)
    assert "training helped, beyond chance" in training_view.apart(history_of(0.5, 0.85, 0.9))
    assert "training did harm" in training_view.apart(history_of(0.85, 0.5, 0.9))
    assert training_view.apart(history_of(None, None, None)) == ""
