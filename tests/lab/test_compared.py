"""Runs side by side, on runs that a real sweep made."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest

import qlab
from qlab.difference import config_difference
from qlab.errors import DataMismatch, RunFailed
from qlab.evaluation import Comparison
from qlab.lab.compared import (
    against,
    changes_of,
    difference_of,
    layers_by_run,
    line_of,
    mapping_of,
    paired,
    titles,
    verdict,
)
from qlab.lab.experiment import Experiment
from qlab.lab.run import read_result
from qlab.lab.sources import config_label
from qlab.lab.store import Store
from qlab.training.settings import Training

GRID = qlab.Grid(weight_bits=(8, 2), activation_observers=("min_max", ("percentile", {"percentile": 99.0})))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("compared") / "home")


@pytest.fixture(scope="module")
def few():
    return qlab.load_dataset("conv_digits").subset(range(600)).split(200)


@pytest.fixture(scope="module")
def swept(home: Store, few):
    return qlab.sweep("conv_digits", few, GRID, store=home)


def test_a_line_says_what_the_row_holds(swept) -> None:
    line = line_of(swept[1])
    assert (line.name, line.title) == ("W8 A8 · percentile 99", "W8 A8 · percentile 99")
    assert (line.mode, line.weight_bits, line.activation_bits) == ("static", 8, 8)
    assert (line.weight_scheme, line.weight_observer) == ("per channel symmetric", "min_max")
    assert (line.activation_scheme, line.activation_observer) == ("per tensor affine", "percentile 99")
    assert (line.backend, line.samples, line.rules, line.dropped) == ("integer", 400, 0, None)
    assert line.accuracy == swept[1].headline.accuracy
    assert line.delta_float == line.accuracy - line.float_accuracy
    assert line.low < line.accuracy < line.high


def test_the_float_difference_of_a_run_that_was_stopped_early_is_not_told(swept) -> None:
    run = replace(swept[0], headline=replace(swept[0].headline, dropped="stopped", samples=100))
    assert line_of(run).delta_float is None


def test_a_preset_is_looked_up(home: Store, few) -> None:
    (run,) = qlab.sweep("conv_digits", few, ["int4_weight_only"], store=home)
    assert mapping_of(run) == qlab.presets["int4_weight_only"]
    line = line_of(run)
    assert (line.weight_bits, line.activation_bits, line.mode) == (4, None, "weight-only")


def test_a_thousand_lines_are_quick(swept) -> None:
    runs = [replace(run, id=f"{i}") for i, run in enumerate(list(swept) * 250)]
    line_of(runs[0])
    start = time.perf_counter()
    assert len([line_of(run) for run in runs]) == 1000
    assert time.perf_counter() - start < 0.5  # 20 ms on a quiet machine


def test_two_runs_are_compared_sample_by_sample(home: Store, few, swept) -> None:
    good, _, bad, _ = swept
    pair = paired(home, bad, good)
    right = few.evaluation.targets
    a = np.array([read_result(home, home.get_run(r.id)).quantized.predictions for r in (good, bad)])
    lost = np.flatnonzero((a[0] == right) & (a[1] != right))
    assert pair.comparison.lost_indices == tuple(lost)
    assert pair.comparison.lost > pair.comparison.gained
    assert pair.verdict("W8") == verdict(pair.comparison, "W8")
    assert pair.verdict("W8").startswith("worse than W8, beyond chance on 400 samples (p")
    back = paired(home, good, bad).comparison
    assert (back.lost, back.gained, back.p) == (pair.comparison.gained, pair.comparison.lost, pair.comparison.p)
    same = paired(home, good, good)
    assert same.verdict("itself") == "every prediction is that of itself on 400 samples"


def test_the_verdict_in_a_word(home: Store, swept) -> None:
    good, _, bad, _ = swept
    found = {name: against(paired(home, a, b).comparison, "it") for name, a, b in (
        ("worse", bad, good), ("better", good, bad), ("the same", good, good),
    )}  # fmt: skip
    assert {name: one.short for name, one in found.items()} == {name: name for name in found}
    assert [one.tone for one in found.values()] == ["worse", "better", "noise"]
    assert [one.real for one in found.values()] == [True, True, False]
    worse, better, same = found.values()
    assert worse.delta == -better.delta < 0
    assert same.delta == 0
    assert worse.words == paired(home, bad, good).verdict("it")


def test_the_verdict_without_labels() -> None:
    found = against(Comparison(0, 0, 3, 40, None, (), (), (0, 1, 2)), "float")
    assert (found.short, found.tone, found.delta, found.real) == ("3 changed", "", None, None)


def test_titles_tell_runs_apart(swept) -> None:
    first, second, *_ = swept
    same = replace(second, name=first.name)
    alike = [replace(first, id=i, name="a") for i in ("12345", "12346")]
    assert titles(alike) == {"12345": "a (12345)", "12346": "a (12346)"}
    assert titles([]) == {}
    other = replace(second, name=first.name, model_hash="another network of that name")
    assert list(titles([first, second]).values()) == [first.name, second.name]
    assert list(titles([first, same]).values()) == [f"{run.name} ({run.id[:4]})" for run in (first, same)]
    assert all(title.endswith(f" · {first.model} ({i[:4]})") for i, title in titles([first, other]).items())
    # Without a result nothing is known of its network but the name.
    assert titles([first, replace(second, model_hash=None)])[first.id] == first.name


def test_against_float(home: Store, swept) -> None:
    run = swept[2]
    assert paired(home, run, None).comparison == read_result(home, home.get_run(run.id)).comparison


def test_runs_on_other_samples_are_not_compared(home: Store, few, swept) -> None:
    (other,) = qlab.sweep("conv_digits", few.subset(range(300)).split(100), ["x86"], store=home)
    with pytest.raises(DataMismatch, match="same samples"):
        paired(home, other, swept[0])


def test_one_that_was_stopped_early_is_compared_where_both_were(home: Store) -> None:
    found = qlab.sweep(
        "residual_digits", "residual_digits", qlab.Grid(weight_bits=(8, 2), activation_bits=(8, 2)), store=home,
        eliminate=True,
    )  # fmt: skip
    by_name = {run.name: run for run in found}
    dropped, full = by_name["W2 A2"], by_name["W8 A8"]
    pair = paired(home, dropped, full)
    assert pair.comparison.n == dropped.headline.samples < full.headline.samples
    assert pair.before.n == pair.after.n == dropped.headline.samples
    assert pair.comparison.significant
    assert paired(home, full, dropped).comparison.n == dropped.headline.samples


def test_a_run_without_a_result_says_so(home: Store) -> None:
    run_id = home.create_run(kind="experiment", spec={"mapping": "x86"}, data="d")
    with pytest.raises(RunFailed, match="queued"):
        paired(home, home.get_run(run_id), None)
    with pytest.raises(RunFailed, match="not an experiment"):
        paired(home, home.get_run(home.create_run(kind="prepare", spec={})), None)


def test_layers_by_run_follow_the_network(home: Store, few, swept) -> None:
    (partly,) = qlab.sweep(
        "conv_digits", few, [qlab.presets["x86"].replace(by_name={"conv2": None, "features.*": None})], store=home
    )
    results = [read_result(home, home.get_run(run.id)) for run in (swept[0], swept[2], partly)]
    layers, matrix = layers_by_run(results)
    order = [row["layer"] for row in results[0].ledger]
    assert layers == [layer for layer in order if layer in layers]
    assert matrix.shape == (len(layers), 3)
    for i, layer in enumerate(layers):
        for j, result in enumerate(results):
            known = result.quantized.sqnr.get(layer)
            assert math.isnan(matrix[i, j]) if known is None else matrix[i, j] == known
    assert layers_by_run([])[1].shape == (0, 0)


def test_labels_of_a_file_that_changed_are_not_taken(home: Store, few, tmp_path) -> None:
    path = tmp_path / "few.npz"
    few.save(path)
    runs = qlab.sweep("conv_digits", str(path), ["x86", "int4_weight_only"], store=home)
    assert paired(home, runs[1], runs[0]).comparison.n == 400
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"y": np.random.default_rng(0).permutation(arrays["y"])})
    with pytest.raises(DataMismatch, match="has changed since"):
        paired(home, runs[1], runs[0])


def test_layers_that_runs_quantize_apart_stand_in_the_order_of_the_network(home: Store, few, swept) -> None:
    full = read_result(home, home.get_run(swept[0].id))
    only = [
        replace(full, quantized=replace(full.quantized, sqnr={layer: full.quantized.sqnr[layer]}))
        for layer in full.quantized.sqnr
    ]
    order = [row["layer"] for row in full.ledger if row["layer"] in full.quantized.sqnr]
    assert len(order) > 2
    assert layers_by_run([*only, full])[0] == layers_by_run([*only[::-1], full])[0] == order


def test_what_two_runs_differ_in_names_training_and_edits(swept) -> None:
    """Of two runs of one config, one of them trained, or both in another way; of the float network, all of it."""

    def like(**changes: object):
        spec = json.loads(swept[0].spec_json) | changes
        return replace(swept[0], spec_json=json.dumps(spec))

    short, long = Training(epochs=3).to_dict(), Training(epochs=9, ranges="lsq").to_dict()
    assert difference_of(swept[0], swept[0]).equal
    assert difference_of(swept[0], like(training=short)).words == "training none → 3 epochs"
    assert difference_of(like(training=short), like(training=long)).words == (
        "training epochs 3 → 9; training ranges moving_average → lsq"
    )
    edit = {"tensor": "fc", "part": "code", "index": [0, 0], "value": 1}
    assert difference_of(swept[0], like(edits=[edit])).words == "numbers edited by hand 0 → 1"
    assert "training none → 3 epochs" in difference_of(None, like(training=short)).words
    assert difference_of(swept[0], swept[1]).rows == config_difference(*map(mapping_of, swept[:2])).rows


def test_what_was_done_beside_the_config_is_told_as_its_label_ends(swept) -> None:
    edit = {"tensor": "fc", "part": "code", "index": [0, 0], "value": 1}
    training = Training(epochs=3).to_dict()
    for changes, words in (
        ({}, ""),
        ({"training": training}, "trained 3 epochs"),
        ({"edits": [edit]}, "1 number edited"),
        ({"training": training, "edits": [edit, edit]}, "trained 3 epochs · 2 numbers edited"),
    ):
        spec = json.loads(swept[0].spec_json) | changes
        assert changes_of(replace(swept[0], spec_json=json.dumps(spec))) == words
        assert config_label(Experiment.from_dict(spec)).endswith(words)
    # A job that merely names a training did not train.
    named = replace(swept[0], kind="export", spec_json=json.dumps({"training": training}))
    assert changes_of(named) == ""
