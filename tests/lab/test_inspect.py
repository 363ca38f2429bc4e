"""The job that measures a quantized model on integers: what it stores, what it takes from the store, how it ends."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

import qlab
from qlab.errors import InvalidConfig, UnsupportedModel
from qlab.lab import inspect, stages, templates
from qlab.lab.experiment import Experiment
from qlab.lab.inspect import find_runtime_report, newest_report
from qlab.lab.jobs import JobRunner, Staff
from qlab.lab.store import CANCELLED, DONE, Store
from qlab.lab.tasks import describe_runtime
from qlab.preset import presets
from qlab.runtime import measure
from tests.jobs_here import carry

MODEL = "conv_digits"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("lab") / "home")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Times are not what is looked at here."""
    monkeypatch.setitem(measure.runtime_report.__kwdefaults__, "budget", 0.05)


def measured(store: Store, few_digits: Path, preset="x86", **calls):
    """The job in this process; gives its run."""
    return carry(store, "runtime", experiment=Experiment(MODEL, str(few_digits), preset, name="a name"), **calls)


def found(store: Store, few_digits: Path, preset="x86", **calls):
    return find_runtime_report(store, qlab.load_model(MODEL), qlab.load_dataset(few_digits), presets[preset], **calls)


def refuse(*_args, **_kwargs):
    raise AssertionError("it was computed again")


def test_a_report_is_stored_under_what_was_asked(store: Store, few_digits: Path) -> None:
    assert found(store, few_digits, batch=4, threads=1) is None
    run = measured(store, few_digits, batch=4, threads=1)
    assert (run.status, run.name) == (DONE, "")
    made = found(store, few_digits, batch=4, threads=1)
    assert (made.batch, made.threads, made.times.timing.batch, made.blocked) == (4, 1, 4, None)
    assert made.numbers.accuracies.integer.n == 64
    # nothing is shown for another batch, other threads, another config or another split
    assert found(store, few_digits, batch=5, threads=1) is None
    assert found(store, few_digits, batch=4, threads=2) is None
    assert found(store, few_digits, "dynamic", batch=4, threads=1) is None
    other = qlab.load_dataset(few_digits).split(16, seed=1)
    assert find_runtime_report(store, qlab.load_model(MODEL), other, presets["x86"], batch=4, threads=1) is None


def test_a_report_of_another_machine_is_found_by_its_request(store: Store, few_digits: Path, monkeypatch) -> None:
    measured(store, few_digits, "arm", batch=6, threads=1)
    made = found(store, few_digits, "arm", batch=6, threads=1)
    elsewhere = replace(measure.machine(), cores=measure.machine().cores + 1)
    monkeypatch.setattr(measure, "machine", lambda: elsewhere)
    assert found(store, few_digits, "arm", batch=6, threads=1) is None
    asked = Experiment(MODEL, str(few_digits), "arm")
    assert newest_report(store, asked, 6, 1) == made
    assert newest_report(store, asked, 7, 1) is None
    assert newest_report(store, asked.replace(seed=1), 6, 1) is None


def test_another_batch_measures_times_alone(store: Store, few_digits: Path, monkeypatch) -> None:
    measured(store, few_digits, batch=4, threads=1)
    monkeypatch.setattr(measure, "measure_numbers", refuse)
    monkeypatch.setattr(stages, "calibrate", refuse)
    monkeypatch.setattr(templates, "template", refuse)
    measured(store, few_digits, batch=2, threads=2)
    made = found(store, few_digits, batch=2, threads=2)
    assert made.numbers == found(store, few_digits, batch=4, threads=1).numbers
    assert (made.times.timing.batch, made.times.timing.threads) == (2, 2)


def test_what_is_there_is_measured_again_only_when_asked(store: Store, few_digits: Path, monkeypatch) -> None:
    measured(store, few_digits, batch=4, threads=1)
    before = found(store, few_digits, batch=4, threads=1)
    monkeypatch.setattr(measure, "measure_numbers", refuse)
    measured(store, few_digits, batch=4, threads=1, again=True)
    after = found(store, few_digits, batch=4, threads=1)
    assert after.times != before.times
    assert after.numbers == before.numbers
    monkeypatch.setattr(inspect, "runtime_report", refuse)
    measured(store, few_digits, batch=4, threads=1)


def test_what_cannot_be_exported_is_a_report_too(tmp_path: Path, few_digits: Path, monkeypatch) -> None:
    store = Store(tmp_path / "home")

    def no_form(_model):
        raise UnsupportedModel("no ONNX form for x.", detail="aten::x")

    monkeypatch.setattr(templates, "template", no_form)
    assert measured(store, few_digits).status == DONE
    made = found(store, few_digits)
    assert (made.blocked, made.detail, made.times) == ("no ONNX form for x.", "aten::x", None)


@pytest.mark.parametrize("calls", [{"batch": 0}, {"threads": 1.5}, {"batch": True}], ids=str)
def test_calls_that_make_no_sense_are_refused(store: Store, few_digits: Path, calls) -> None:
    with pytest.raises(InvalidConfig, match="whole number"):
        describe_runtime(store, {"experiment": Experiment(MODEL, str(few_digits), "x86"), **calls})


def test_a_worker_reports_its_stages_and_stops_when_told(tmp_path: Path, few_digits: Path) -> None:
    store = Store(tmp_path / "home")
    with JobRunner(store, staff=Staff(1, 1, 2 << 30)) as runner:
        run_id = runner.submit("runtime", experiment=Experiment(MODEL, str(few_digits), "x86"), batch=2)
        done = runner.wait(run_id, 120)
        assert done.status == DONE, done.error
        assert set(done.require_result()["timings"]) == {
            "load", "check", "calibrate", "evaluate float", "convert", "export graph", "compare codes", "accumulators",
            "evaluate simulated", "evaluate integer", "run op by op", "latency",
        }  # fmt: skip
        assert found(store, few_digits, batch=2).times.timing.batch == 2
        stopped = runner.submit("runtime", experiment=Experiment(MODEL, str(few_digits), "dynamic"), batch=2)
        deadline = time.monotonic() + 60
        while store.get_run(stopped).stage != measure.TIME and time.monotonic() < deadline:
            time.sleep(0.02)
        runner.cancel(stopped)
        assert runner.wait(stopped, 60).status == CANCELLED
    assert found(store, few_digits, "dynamic", batch=2) is None
