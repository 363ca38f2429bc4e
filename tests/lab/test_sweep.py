"""Sweeps in this process, on the workers of a runner, and after the process that led one was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qlab
from qlab.errors import Cancelled, InvalidConfig, RunFailed
from qlab.lab.drive import resume
from qlab.lab.experiment import Experiment
from qlab.lab.jobs import JobRunner
from qlab.lab.run import read_result
from qlab.lab.store import CANCELLED, DONE, FAILED, OPEN, Store
from qlab.lab.sweep import Sweep

PER_CHANNEL = qlab.QuantSpec(8, "per_channel_affine")
FOUR = qlab.Grid(weight_bits=(8, 4), activation_bits=(8, 5))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture(scope="module")
def few():
    """The digits with few samples: what is tested is how a sweep goes, not how well the network does."""
    return qlab.load_dataset("conv_digits").subset(range(400)).split(100)


def runs_of(store: Store, sweep_id: str) -> list:
    return store.list_runs(limit=None, parent=sweep_id, kind="experiment")


# ---- what it is ------------------------------------------------------------------------------------------------------


def test_a_sweep_is_json_and_back() -> None:
    sweep = Sweep.of("conv_digits", "conv_digits", FOUR, name="four", eliminate=True, most=3)
    again = Sweep.from_dict(json.loads(json.dumps(sweep.to_dict())))
    assert again == sweep
    assert [e.spec_hash for e in again.experiments] == [e.spec_hash for e in sweep.experiments]
    assert [e.name for e in sweep.experiments] == ["W8 A8", "W8 A5", "W4 A8", "W4 A5"]


def test_a_spec_written_by_hand_has_presets_and_a_grid() -> None:
    spec = {
        "version": 1, "model": "conv_digits", "data": "conv_digits", "configs": ["x86", {"mapping": "arm"}],
        "grid": {"weight_bits": [8, 4], "activation_observers": ["mse", ["percentile", {"percentile": 99.9}]]},
    }  # fmt: skip
    names = [name for name, _ in Sweep.from_dict(spec).configs]
    # W8 A8 mse is what x86 is
    assert names == ["x86", "arm", "W8 A8 · percentile 99.9", "W4 A8 · mse", "W4 A8 · percentile 99.9"]
    for wrong, message in (
        ({"grid": {"bits": [8]}}, "any of weight_bits"), ({"configs": [3]}, "list of presets"),
        ({"name": 3}, "name is 3"), ({"version": 2}, "version 1"), ({"more": 1}, "no more"),
    ):  # fmt: skip
        with pytest.raises(InvalidConfig, match=message):
            Sweep.from_dict({**spec, **wrong})


def test_equal_configs_are_one() -> None:
    mapping = qlab.presets["x86"]
    assert len(Sweep.of("conv_digits", "conv_digits", ["x86", mapping, "arm"]).configs) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 0}, "most is 0"),
        ({"seconds": -1.0}, "seconds is -1"),
        ({"backend": "quick"}, "backend is 'quick'"),
        ({"sqnr_samples": -1}, "sqnr_samples is -1"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_a_sweep_that_cannot_be_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Sweep.of("conv_digits", "conv_digits", FOUR, **settings)
    with pytest.raises(InvalidConfig, match="at least one config"):
        Sweep.of("conv_digits", "conv_digits", [])


# ---- in this process -------------------------------------------------------------------------------------------------


def test_each_config_is_a_run_like_any_other(store: Store, few) -> None:
    found = qlab.sweep("conv_digits", few, FOUR, store=store, name="four")
    assert [run.name for run in found] == ["W8 A8", "W8 A5", "W4 A8", "W4 A5"]
    assert {run.status for run in found} == {DONE}
    assert {run.headline.backend for run in found} == {"integer"}
    assert found.run.status == DONE
    assert found.summary["samples"] == {"evaluated": 1200, "in_full": 1200}
    model, calib = qlab.load_model("conv_digits"), qlab.calibrate(qlab.load_model("conv_digits"), few)
    for run, mapping in zip(found, FOUR.configs().values(), strict=True):
        alone = qlab.evaluate(qlab.convert(model, mapping, calib), few, backend="integer", sqnr_samples=0)
        result = read_result(store, store.get_run(run.id))
        assert run.headline.accuracy == alone.accuracy
        assert (run.headline.accuracy_low, run.headline.accuracy_high) == alone.accuracy_interval
        assert (result.quantized.predictions == alone.predictions).all()
        assert Experiment.from_dict(run.spec).resolved_mapping == mapping
        assert result.quantized.sqnr
    best = max(found, key=lambda run: (run.headline.accuracy, -run.headline.size))
    assert found.best is not None
    assert found.best.id == best.id
    assert found.run.headline.accuracy == best.headline.accuracy


def test_calibration_and_float_evaluation_are_made_once(store: Store, few) -> None:
    found = qlab.sweep("conv_digits", few, FOUR, store=store)
    stages = [store.get_run(run.id).result["timings"] for run in found]
    assert not any({"calibrate", "evaluate float"} & set(timings) for timings in stages)
    (prepare,) = store.list_runs(parent=found.id, kind="prepare")
    assert {"calibrate", "evaluate float", "export graph"} <= set(store.get_run(prepare.id).result["timings"])


def test_weight_only_configs_are_simulated_and_say_so(store: Store, few) -> None:
    found = qlab.sweep("conv_digits", few, ["int4_weight_only", "x86", "float"], store=store)
    assert [run.headline.backend for run in found] == ["simulated", "integer", "simulated"]
    assert [run.name for run in found] == ["int4_weight_only", "x86", "float"]


def test_what_was_computed_is_taken_from_the_store(store: Store, few) -> None:
    first = qlab.sweep("conv_digits", few, FOUR, store=store)
    more = qlab.sweep("conv_digits", few, qlab.Grid(weight_bits=(8, 4, 3), activation_bits=(8, 5)), store=store)
    assert len(more) == 6
    assert len(more.summary["reused"]) == 4
    assert set(more.summary["reused"].values()) == {run.id for run in first}
    assert more.summary["samples"]["evaluated"] == 2 * 300
    by_name = {run.name: run.headline.accuracy for run in first}
    assert {run.name: run.headline.accuracy for run in more if run.name in by_name} == by_name


def test_a_budget_of_configs_leaves_the_rest_visible(store: Store, few) -> None:
    found = qlab.sweep("conv_digits", few, FOUR, store=store, most=2)
    done = [run.name for run in found if run.status == DONE]
    assert len(done) == 2
    assert done[0] == "W8 A8"
    left = [run for run in found if run.status == CANCELLED]
    assert [run.id for run in left] == found.summary["not_run"]
    assert all("budget" in run.error for run in left)


def test_a_budget_of_time_runs_one_at_least(store: Store, few) -> None:
    found = qlab.sweep("conv_digits", few, FOUR, store=store, seconds=1e-6)
    assert [run.status for run in found].count(DONE) == 1
    assert len(found.summary["not_run"]) == 3


def test_elimination_drops_what_is_worse_and_says_so(store: Store) -> None:
    grid = qlab.Grid(weight_bits=(8, 2), activation_bits=(8, 2))
    found = qlab.sweep("residual_digits", "residual_digits", grid, store=store, eliminate=True)
    by_name = {run.name: run for run in found}
    assert by_name["W8 A8"].headline.dropped is None
    bad = by_name["W2 A2"].headline
    assert bad.dropped is not None
    assert f"after {bad.samples} of 1,500 samples" in bad.dropped
    assert bad.samples < 750
    assert by_name["W2 A2"].id in found.summary["dropped"]
    assert found.summary["samples"]["evaluated"] < found.summary["samples"]["in_full"] == 6000
    result = read_result(store, store.get_run(by_name["W2 A2"].id))
    assert result.comparison.n == result.quantized.n == bad.samples
    # what was dropped is not known in full, so nobody takes it for that
    again = qlab.sweep("residual_digits", "residual_digits", grid, store=store)
    assert by_name["W2 A2"].id not in again.summary["reused"].values()
    assert {run.headline.samples for run in again} == {1500}


def test_a_given_calibration_is_used_and_not_kept_for_others(store: Store, few) -> None:
    model = qlab.load_model("conv_digits")
    little = qlab.calibrate(model, few.subset(range(8)))
    mapping = FOUR.configs()["W8 A8"]
    (run,) = qlab.sweep(model, few, [mapping], little, store=store)
    alone = qlab.evaluate(qlab.convert(model, mapping, little), few, backend="integer", sqnr_samples=0)
    assert (read_result(store, store.get_run(run.id)).quantized.predictions == alone.predictions).all()
    (own,) = qlab.sweep(model, few, [mapping], store=store)
    full = qlab.evaluate(
        qlab.convert(model, mapping, qlab.calibrate(model, few)), few, backend="integer", sqnr_samples=0
    )
    assert (read_result(store, store.get_run(own.id)).quantized.predictions == full.predictions).all()


def test_stopping_keeps_what_is_done_and_calling_again_goes_on(store: Store, few) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        qlab.sweep("conv_digits", few, FOUR, progress=stop, store=store)
    (stopped,) = store.list_runs(kind="sweep")
    assert stopped.status == CANCELLED
    assert stopped.best is not None
    runs = runs_of(store, stopped.id)
    assert [run.status for run in runs].count(DONE) == 2
    assert not [run for run in runs if run.status in OPEN]
    assert all("stopped" in run.error for run in runs if run.status == CANCELLED and run.started is None)
    again = qlab.sweep("conv_digits", few, FOUR, store=store)
    assert len(again.summary["reused"]) == 2


def test_a_config_that_cannot_be_fails_alone(store: Store, few) -> None:
    mapping = FOUR.configs()["W8 A8"]
    assert mapping.default is not None
    impossible = mapping.replace(default=mapping.default.replace(activation=PER_CHANNEL.replace(observer="mse")))
    found = qlab.sweep("conv_digits", few, {"a": mapping, "b": impossible}, store=store)
    assert [run.status for run in found] == [DONE, FAILED]
    assert found.summary["failed"] == [found[1].id]
    assert "min_max" in found[1].error
    with pytest.raises(RunFailed, match="No config could be carried out"):
        qlab.sweep("conv_digits", few, {"b": impossible}, store=store)
    simulated = mapping.replace(default=mapping.default.replace(activation=PER_CHANNEL))
    (auto,) = qlab.sweep("conv_digits", few, {"c": simulated}, store=store)
    assert auto.headline.backend == "simulated"


def test_data_that_does_not_fit_ends_the_sweep_with_the_reason(store: Store) -> None:
    with pytest.raises(RunFailed, match="could not be prepared"):
        qlab.sweep("conv_digits", "lstm_text", FOUR, store=store)
    (run,) = store.list_runs(kind="sweep")
    assert run.status == FAILED
    assert {child.status for child in runs_of(store, run.id)} == {CANCELLED}


# ---- on workers ------------------------------------------------------------------------------------------------------


def test_workers_give_what_this_process_gives(store: Store, few, tmp_path: Path) -> None:
    few.save(tmp_path / "few.npz")
    here = qlab.sweep("conv_digits", few, FOUR, store=Store(tmp_path / "other"))
    seen: list[tuple[str, int, int]] = []
    with JobRunner(store) as runner:
        there = qlab.sweep(
            "conv_digits", tmp_path / "few.npz", FOUR, runner=runner, progress=lambda *now: seen.append(now)
        )
        assert [r.headline.accuracy for r in there] == [r.headline.accuracy for r in here]
        assert there.summary["samples"] == here.summary["samples"]
        assert max(done for _, done, _ in seen) == 4
        assert {total for _, _, total in seen} <= {0, 4}
        # stopping one from outside, then taking it up again: the same row, no config twice
        sweep_id = runner.submit(
            "sweep", sweep=Sweep.of("conv_digits", str(tmp_path / "few.npz"), qlab.Grid(weight_bits=(7, 6, 5, 3, 2)))
        )
        wait_for(lambda: any(r.status == DONE for r in runs_of(store, sweep_id)))
        runner.cancel(sweep_id)
        stopped = runner.wait(sweep_id, 30)
        assert stopped.status == CANCELLED
        wait_for(lambda: not [r for r in runs_of(store, sweep_id) if r.status in OPEN])
        done = {r.id: r.finished for r in runs_of(store, sweep_id) if r.status == DONE}
        assert 1 <= len(done) < 5
        resume(runner, sweep_id)
        assert runner.wait(sweep_id, 120).status == DONE
        ended = {r.id: r for r in runs_of(store, sweep_id)}
        assert len(ended) == 5
        assert {r.status for r in ended.values()} == {DONE}
        assert {i: ended[i].finished for i in done} == done
        with pytest.raises(InvalidConfig, match="only a sweep that was stopped"):
            resume(runner, sweep_id)


def wait_for(what, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


LEAD = """
import sys
import qlab
from qlab.lab.jobs import JobRunner
from qlab.lab.store import Store
from qlab.lab.sweep import Sweep

if __name__ == "__main__":
    store = Store(sys.argv[1])
    with JobRunner(store) as runner:
        grid = qlab.Grid(weight_bits=(8, 7, 6, 5, 4, 3, 2), activation_bits=(8, 5))
        sweep = Sweep.of("conv_digits", "conv_digits", grid)
        sweep_id = runner.submit("sweep", sweep=sweep)
        print(sweep_id, flush=True)
        runner.wait(sweep_id)
"""


def test_killing_the_app_in_the_middle_loses_and_repeats_nothing(store: Store, tmp_path: Path) -> None:
    script = tmp_path / "lead.py"
    script.write_text(LEAD)
    environment = {**os.environ, "PYTHONPATH": str(Path(qlab.__file__).parents[1])}
    app = subprocess.Popen(
        [sys.executable, str(script), str(store.home)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert app.stdout is not None
    sweep_id = app.stdout.readline().strip()
    wait_for(lambda: sum(r.status == DONE for r in runs_of(store, sweep_id)) >= 3, 120)
    app.send_signal(signal.SIGKILL)
    app.wait()
    before = {r.id: (r.attempts, r.finished) for r in runs_of(store, sweep_id) if r.status == DONE}
    assert len(before) < 14
    with JobRunner(store) as runner:  # a new app: it ends what the old one left
        assert store.get_run(sweep_id).status == FAILED
        assert not [r for r in runs_of(store, sweep_id) if r.status in OPEN]
        # a worker of the dead app may have finished one more in its last moment
        before |= {r.id: (r.attempts, r.finished) for r in runs_of(store, sweep_id) if r.status == DONE}
        resume(runner, sweep_id)
        assert runner.wait(sweep_id, 240).status == DONE
    runs = runs_of(store, sweep_id)
    assert len(runs) == 14
    assert {r.status for r in runs} == {DONE}
    assert {r.id: (r.attempts, r.finished) for r in runs if r.id in before} == before
    summary = store.get_run(sweep_id).require_result()
    assert (summary["failed"], summary["not_run"], summary["reused"]) == ([], [], {})
    app.stdout.close()
