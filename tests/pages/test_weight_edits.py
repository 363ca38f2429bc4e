"""Edit a number, and In PyTorch: what is written is in the model, what is told was read there, undone is as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qlab.analysis.edited import edit_effect
from qlab.analysis.torch_converted import torch_converted
from qlab.conversion import convert
from qlab.data import load_dataset
from qlab.edits import Edit, apply_edits
from qlab.export.quantized_file import quantized_bytes
from qlab.export.quantized_load import load_quantized
from qlab.export.read_back import read_back
from qlab.graph.capture import load_model
from qlab.lab.experiment import Experiment
from qlab.lab.run import content_key_of, find_prepared
from qlab.lab.sources import config_label
from qlab.lab.store import DONE, Store
from qlab.metrics import three_digits, write
from qlab.preset import presets
from qlab.training.settings import Training
from qlab.ui import torch_converted as in_torch
from qlab.ui import weight_edits, weight_edits_accuracy, weight_edits_effect, weight_edits_proof
from qlab.ui.weight_edits_controls import number
from qlab.ui.weights_source import Shown
from tests.jobs_here import carry
from tests.pages.elements import charts, figures, texts

MODEL, LAYER, KEY = "conv_digits", "block2.conv", "wq_block2_conv_weight"
TAB = "Edit a number"


@pytest.fixture(scope="module")
def known(prepared_home):
    """(model, data, how the page quantizes it)."""
    store, model, data = Store(prepared_home), load_model(MODEL), load_dataset(MODEL)
    found = find_prepared(store, model, data)
    store.close()
    return model, data, lambda preset="x86": convert(model, presets[preset], found.calibration)


@pytest.fixture
def page(open_under):
    def opened(preset="x86", layer=LAYER, tab=TAB, model=MODEL):
        at = open_under("weights", presets[preset], model, layer=layer)
        at.session_state["weights_tabs"] = tab
        return at.run()

    return opened


def shown_by(known, edits, preset="x86", layer=LAYER):
    """What the page would show with these edits."""
    model, _, quantized = known
    original, edited = quantized(preset), quantized(preset)
    apply_edits(edited, edits)
    return Shown(model, edited, (model.content_hash, preset), layer, original, tuple(edits), "")


def put(at, channel, position, value, label="New code"):
    """Goes to a code and writes it."""
    at.number_input(key=next(n.key for n in at.number_input if n.label == "Channel")).set_value(channel).run()
    at.number_input(key=next(n.key for n in at.number_input if n.label == "Position")).set_value(position).run()
    next(n for n in at.number_input if n.label == label).set_value(value).run()
    at.button(key="edits_write").click().run()
    assert not at.exception
    assert not at.error
    return at


def edits_of(at):
    (found,) = at.session_state[weight_edits.HELD].values() or ((),)
    return found


def words(at):
    return texts(at, "markdown", "caption", "info")


# --- writing and undoing ----------------------------------------------------------------------------------------------


def test_nothing_is_written_to_begin_with(page) -> None:
    at = page()
    assert "Nothing is written yet" in words(at)
    assert at.button(key="edits_write").disabled
    assert not [b for b in at.button if b.key.startswith("edits_undo")]


def test_a_code_is_written_and_undone_to_the_last_bit(page, known) -> None:
    _, _, quantized = known
    plain = quantized()
    at = page()
    put(at, 3, 11, 99)
    index = tuple(int(i) for i in np.unravel_index(11, plain.weights[LAYER].shape[1:]))
    was = int(plain.weights[LAYER].codes[(3, *index)])
    assert edits_of(at) == (Edit(LAYER, "code", (3, *index), 99),)
    at_index = ", ".join(map(str, (3, *index)))
    assert f"code \\[{at_index}\\]: **{number(was)} → 99**" in words(at)
    scale = float(plain.weights[LAYER].scale[3])
    assert f"stands for {number(was * scale)} → {number(99 * scale)}" in words(at)
    assert f"`qmodel.weights['{LAYER}'].codes[{at_index}]`: {number(was)} → **99**" in words(at)
    assert f"`qmodel.state_dict()['{KEY}.codes'][{at_index}]`: {number(was)} → **99**" in words(at)
    assert at.button(key="edits_write").disabled  # it has this value now
    at.button(key="edits_undo_all").click().run()
    assert "Nothing is written yet" in words(at)
    # A page that wrote to the shared model would show 99 as what it was.
    put(at, 3, 11, 98)
    assert f"**{number(was)} → 98**" in words(at)


def test_undone_is_bit_equal(known) -> None:
    _, _, quantized = known
    edits = [Edit(LAYER, "code", (0, 0, 0, 0), 5), Edit(LAYER, "scale", (1,), 0.5), Edit(LAYER, "zero_point", (2,), 9)]
    before = quantized_bytes(quantized())
    shown = shown_by(known, edits)
    assert quantized_bytes(shown.qmodel) != before
    assert quantized_bytes(shown.original) == before
    apply_edits(shown.qmodel, apply_edits(quantized(), edits))
    assert quantized_bytes(shown.qmodel) == before


def test_one_of_several_is_undone(page) -> None:
    at = put(put(page(), 0, 0, 11), 1, 1, 12)
    assert [edit.value for edit in edits_of(at)] == [11, 12]
    at.button(key="edits_undo_0").click().run()
    assert [edit.value for edit in edits_of(at)] == [12]
    assert "**1 number written by hand**" in words(at)


def test_edits_belong_to_the_config_they_were_made_in(page) -> None:
    at = put(page(), 0, 0, 11)
    at.session_state["lab.mapping"] = presets["arm"]
    at.run()
    assert "Nothing is written yet" in words(at)
    at.session_state["lab.mapping"] = presets["x86"]
    at.run()
    assert "**1 number written by hand**" in words(at)


def test_scale_of_a_channel_and_of_an_activation(page, known) -> None:
    _, _, quantized = known
    plain = quantized()
    at = page()
    at.segmented_control(key="edits_part").set_value("scale").run()
    at.button(key="edits_widest").click().run()
    channel = int(plain.weights[LAYER].scale.argmax())
    assert next(n.value for n in at.number_input if n.label == "Channel") == channel
    next(n for n in at.number_input if n.label == "New scale").set_value(0.125).run()
    at.button(key="edits_write").click().run()
    name = next(iter(plain.activations))
    at.selectbox(key="edits_of").set_value(name).run()
    next(n for n in at.number_input if n.label == "New scale").set_value(0.25).run()
    at.button(key="edits_write").click().run()
    assert edits_of(at) == (Edit(LAYER, "scale", (channel,), 0.125), Edit(name, "scale", (), 0.25, "activation"))
    assert f"`qmodel.activations['{name}'].scale`" in words(at)
    assert "0.125**; the grid reaches" in words(at)


def test_largest_weight_and_zeros(page, known) -> None:
    _, _, quantized = known
    tensor = quantized().weights[LAYER]
    at = page()
    at.button(key="edits_largest").click().run()
    flat = tensor.dequantize().abs().reshape(len(tensor.codes), -1)
    assert [n.value for n in at.number_input if n.label in ("Channel", "Position")] == [
        int(flat.argmax()) // flat.shape[1],
        int(flat.argmax()) % flat.shape[1],
    ]
    at.button(key="edits_zero").click().run()
    zeros = (tensor.codes.reshape(len(tensor.codes), -1) == 0).nonzero().tolist()
    assert [n.value for n in at.number_input if n.label in ("Channel", "Position")] in zeros
    assert next(n.value for n in at.number_input if n.label == "New code") == 0


@pytest.mark.parametrize(("model", "preset", "layer"), [
    ("outlier_mlp", "int4_grouped", "fc2"), ("outlier_mlp", "arm", "fc3"), ("transformer_text", "w4a8", "blocks.1.fc1"),
    ("lstm_text", "dynamic", "lstm.weight_hh_l0"),
])  # fmt: skip
def test_every_kind_of_weight_can_be_edited(page, model, preset, layer) -> None:
    at = page(preset, layer, model=model)
    assert not at.exception
    for part in ("code", "scale"):
        at.segmented_control(key="edits_part").set_value(part).run()
        box = next(n for n in at.number_input if n.label.startswith("New"))
        box.set_value(1 if part == "code" and box.value != 1 else 0 if part == "code" else 0.5).run()
        at.button(key="edits_write").click().run()
        assert not at.exception
        assert not at.error
    assert [edit.part for edit in edits_of(at)] == ["code", "scale"]
    assert "✗" not in words(at)


# --- what is told was read --------------------------------------------------------------------------------------------


def test_both_files_hold_it(page) -> None:
    at = put(page(), 3, 11, 99)
    assert "saved file" not in words(at)
    at.button(key="edits_read").click().run()
    assert "read back by `qlab.load_quantized`: **99**" in words(at)
    assert f"constant `{LAYER}.weight/codes [3, " in words(at)
    assert "→ **99**" in words(at)
    assert "every other constant of that file is equal" in words(at)
    assert "✗" not in words(at)


def test_what_is_not_there_is_told(known) -> None:
    """The lines follow what is read, whatever the list of edits says."""
    edit = Edit(LAYER, "code", (3, 0, 0, 0), 99)
    shown = shown_by(known, [edit])
    claimed = replace(edit, value=98)
    told = replace(shown, edits=(claimed,))
    assert all(line.startswith(":green[✓] in ") for line in weight_edits_proof.in_memory(shown, edit))
    assert all(line.startswith(":orange[✗ not there:]") for line in weight_edits_proof.in_memory(told, claimed))
    was = shown.original.weights[LAYER].codes[3, 0, 0, 0].item()
    found = read_back(shown.qmodel, edit, was)
    assert [line[:9] for line in weight_edits_proof.in_files(edit, found)[:2]] == [":green[✓]"] * 2
    lost = weight_edits_proof.in_files(claimed, replace(found, held=None))
    assert [line[:9] for line in lost[:2]] == [":orange[✗"] * 2
    refused = weight_edits_proof.in_files(edit, replace(found, held=None, onnx=(), refused="no such kernel"))
    assert refused[1] == ":orange[✗ not there:] there is no file for an integer session: no such kernel"
    assert weight_edits_proof.others(shown).startswith(":green[✓] nothing else")
    stray = weight_edits_proof.others(replace(shown, edits=()))
    assert stray.startswith(":orange[✗")
    assert "1 numbers beside the edited differ" in stray


def test_names_that_break_code_spans_do_not() -> None:
    assert weight_edits_proof.code("a`b``c", Edit("x", "code", (1,), 2)) == "``` a`b``c[1] ```"


def test_the_download_holds_the_edits(known) -> None:
    shown = shown_by(known, [Edit(LAYER, "code", (3, 0, 0, 0), 99)])
    loaded = load_quantized(quantized_bytes(shown.qmodel))
    assert loaded.weights[LAYER].codes[3, 0, 0, 0] == 99


# --- what it does -----------------------------------------------------------------------------------------------------


def test_the_effect_is_that_of_the_engine(page, known) -> None:
    _, data, _ = known
    at = put(page(), 3, 11, 99)
    shown = shown_by(known, edits_of(at))
    part = data.evaluation.subset(range(weight_edits_effect.SAMPLES))
    batches = [(x, y) for _, x, y in part.batches(weight_edits_effect.BATCH)]
    found = edit_effect(shown.original, shown.qmodel, LAYER, batches)
    assert found.changed_channels.tolist() == [3]
    shows = figures(at)
    assert shows["SQNR of the output"] == write("sqnr", found.sqnr)
    assert shows["Largest change"] == three_digits(found.largest)
    assert shows["Channels changed"] == f"1 of {len(found.channels)}"
    assert shows["Predictions changed"] == f"{found.answered} of {found.predicted}"
    assert weight_edits_effect.sentence(found) in words(at)
    assert "in channel 3." in weight_edits_effect.sentence(found)
    assert "largest change" in [trace.get("name") for trace in charts(at)[1]["data"]]


def test_an_edit_that_changes_nothing_here_says_so(known) -> None:
    _, data, _ = known
    shown = shown_by(known, [])
    batches = [(x, y) for _, x, y in data.evaluation.subset(range(4)).batches(4)]
    text = weight_edits_effect.sentence(edit_effect(shown.original, shown.qmodel, LAYER, batches))
    assert text.startswith("Not one of the ")
    assert text.endswith("None of 4 predictions becomes another class.")


def test_accuracy_is_measured_with_and_without(page, asked, home) -> None:
    at = put(page(), 3, 11, 99)
    at.button(key="edits_measure").click().run()
    assert [kind for kind, _ in asked] == ["experiment", "experiment"]
    edited, plain = (arguments["experiment"] for _, arguments in asked)
    assert edited.edits == edits_of(at)
    assert plain.edits == ()
    assert edited.resolved_mapping == plain.resolved_mapping == presets["x86"]
    assert at.button(key="edits_measure").disabled
    at.run()
    assert len(asked) == 2


def test_edits_of_a_trained_run_are_measured_against_it_under_its_own_name(page, known, home, monkeypatch) -> None:
    """Whatever config and data are open; edits that the run had already stay."""
    store, (model, _, _) = Store(home), known
    first, second = Edit(LAYER, "code", (0, 0, 0, 0), 1), Edit(LAYER, "code", (1, 0, 0, 0), 2)
    done = Experiment(MODEL, MODEL, "w4a8", training=Training(epochs=2), edits=(first,))
    run = store.create_run(kind="experiment", spec=done.to_dict(), model=MODEL, config=config_label(done))
    edited = done.replace(edits=(first, second), name="of another name")
    found = store.create_run(kind="experiment", spec=edited.to_dict(), model=MODEL)
    for made, what in ((run, done), (found, edited)):
        store.start(made)
        key = content_key_of(model.content_hash, "other data", 64, what)
        store.identify(made, model_hash=model.content_hash, data_hash="other data", content_key=key)
        store.finish(made, DONE, result={})
    monkeypatch.setattr(weight_edits_accuracy.cache, "store", lambda: store)
    monkeypatch.setattr(weight_edits_accuracy.cache, "model", lambda _: model)
    monkeypatch.setattr(weight_edits_accuracy.state, "model_ref", lambda: None)
    shown = replace(shown_by(known, (second,)), origin=run)
    asked, plain = weight_edits_accuracy.experiments(shown)
    assert asked.edits == (first, second)
    assert asked.name == "w4a8 · trained 2 epochs, 2 numbers edited"
    assert plain == done
    assert weight_edits_accuracy._of(asked, store.get_run(run)).id == found
    store.close()


def test_the_verdict_is_that_of_the_two_runs(page, home) -> None:
    at = put(page(), 3, 11, 99)
    store = Store(home)
    plain = Experiment(MODEL, MODEL, "x86")
    runs = [carry(store, "experiment", experiment=e) for e in (plain.replace(edits=edits_of(at)), plain)]
    store.close()
    at.run()
    shows = figures(at)
    for label, run in zip(("With the edits", "Without the edits"), runs, strict=True):
        assert shows[label] == write("accuracy", run.require_result()["quantized"]["accuracy"])
    assert "the model without the edits on" in words(at)
    assert not [b for b in at.button if b.key == "edits_measure"]


# --- In PyTorch -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts(known):
    model, _, quantized = known
    qmodel = quantized()
    shown = Shown(model, qmodel, ("",), LAYER, qmodel, (), "")
    weight = in_torch.weight_of(shown)
    assert weight.shape == qmodel.weights[LAYER].shape
    return torch_converted(weight)


def test_the_tab_tells_what_came_out(page, facts) -> None:
    at = page(tab="In PyTorch")
    assert not at.exception
    assert not at.error
    shown = words(at)
    for told in (
        in_torch.holds(facts), in_torch.integers(facts), in_torch.in_qlab(facts.in_qlab), in_torch.alone(facts.alone),
        *(in_torch.outcome(attempt, facts) for attempt in facts.attempts),
    ):  # fmt: skip
        assert told in shown
    codes = [block.value for block in at.code]
    assert {attempt.code for attempt in (*facts.attempts, facts.in_qlab)} <= set(codes)
    stored, ways = at.dataframe[0].value, at.dataframe[1].value
    assert list(stored["Key of state_dict()"]) == [one.key for one in facts.stored]
    assert list(ways["Reaches it"]) == [*(attempt.works for attempt in facts.attempts), True]


def test_a_layer_torch_has_no_plain_module_for_is_tried_with_a_small_one(page) -> None:
    at = page("dynamic", "lstm.weight_hh_l0", "In PyTorch", "lstm_text")
    assert "of 8 × 16 drawn weights, because lstm.weight\\_hh\\_l0 is not a linear layer" in words(at)


def test_a_torch_without_it_is_told(page, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.ao.quantization", None)
    at = page(tab="In PyTorch")
    assert not at.exception
    assert "has no torch.ao.quantization" in at.error[0].value.replace("\\", "")


def test_sentences_follow_the_facts(facts) -> None:
    vain = facts.attempt("unpacked")
    assert "the difference of the output is **0**" in in_torch.outcome(vain, facts)
    assert "is a copy" in in_torch.outcome(vain, facts)
    moved = replace(vain, held=3, stored=True, output=1.5)
    assert "**It reaches the module.**" in in_torch.outcome(moved, facts)
    assert "1.50" in in_torch.outcome(moved, facts)
    half = replace(vain, output=1.5)
    assert "the output moves by up to **1.50**" in in_torch.outcome(half, facts)
    refused = replace(vain, error="TypeError: no", written=None)
    assert in_torch.outcome(refused, facts).startswith("It raised `TypeError: no`.")
    assert "No float weight is left" in in_torch.holds(facts)
    left = replace(facts, stored=(replace(facts.stored[0], holds="float weight"),))
    assert "holds a float weight" in in_torch.holds(left)
    assert "No entry holds its integers" in in_torch.holds(left)
    lost = replace(facts.in_qlab, held=0)
    assert "did not reach" in in_torch.in_qlab(lost)
    swapped = replace(facts.alone, after="torch.ao.nn.quantized.Linear")
    assert "here convert does replace it" in in_torch.alone(swapped)
    kept = in_torch.alone(facts.alone)
    assert "holds the float weight from before" in kept
    assert f"**{three_digits(facts.alone.output)}**" in kept
    some = replace(facts, same_as_qlab=1)
    assert f"1 of {facts.count:,} are the integers" in in_torch.integers(some)


def test_float_weights_that_are_not_known_are_not_tried(known) -> None:
    model, _, quantized = known
    loaded = load_quantized(quantized_bytes(quantized()))
    assert not loaded.has_float_original
    assert in_torch.weight_of(Shown(model, loaded, ("",), LAYER, loaded, (), "")) is None
    assert torch.is_tensor(in_torch.weight_of(shown_by(known, [])))
