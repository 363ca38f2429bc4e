"""What the Run button does, in this process and in a worker, on a sample model."""

import json
from pathlib import Path

import numpy as np
import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import Cancelled, DataMismatch, InvalidConfig, RunFailed
from qlab.lab import stages
from qlab.lab.experiment import Experiment
from qlab.lab.jobs import JobRunner, Staff
from qlab.lab.progress import Progress
from qlab.lab.run import find_prepared, prepare, read_result, run
from qlab.lab.store import CANCELLED, DONE, FAILED, Store
from qlab.lab.work import LAB_ERROR

MODEL = "residual_digits"
W4 = QConfigMapping(
    default=QConfig(
        weight=QuantSpec(bits=3, qscheme="per_tensor_symmetric"), activation=QuantSpec(bits=4, observer="min_max")
    ),
    by_name={"nothing.*": None},
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_a_run_equals_the_steps_done_by_hand(store: Store, few_digits: Path) -> None:
    done = run(Experiment(MODEL, str(few_digits), W4, batch_size=32, name="four"), store=store)
    model, data = qlab.load_model(MODEL), qlab.load_dataset(few_digits)
    calibration = qlab.calibrate(model, data, 32)
    reference = qlab.evaluate(model, data, batch_size=32)
    qmodel = qlab.convert(model, W4, calibration)
    quantized = qlab.evaluate(qmodel, data, reference, 32)
    comparison = qlab.compare(reference, quantized, data.evaluation.targets)

    found = read_result(store, done)
    assert found.reference.to_dict() == reference.to_dict()
    assert found.quantized.to_dict() == quantized.to_dict()
    assert found.comparison == comparison
    assert comparison.changed > 0  # or the flips below would show nothing
    assert found.size == qmodel.size.to_dict()
    assert [row["layer"] for row in found.ledger] == [row.layer for row in qmodel.ledger]
    assert list(found.unmatched) == list(qmodel.unmatched)
    assert len(found.unmatched) == 1

    assert (done.status, done.name, done.model, done.data) == (DONE, "four", MODEL, "few_digits.npz")
    assert done.headline.accuracy == quantized.accuracy
    assert done.headline.float_accuracy == reference.accuracy
    assert done.headline.size == qmodel.size.quantized_bytes
    assert done.headline.samples == 64
    assert (done.model_hash, done.data_hash) == (model.content_hash, data.content_hash)
    result = done.require_result()
    flips = result["flips"]
    assert [f["index"] for f in flips] == list(comparison.changed_indices)
    assert reference.predictions is not None
    for flip in flips:
        assert flip["float"] == reference.predictions[flip["index"]] != flip["quantized"]
        (position,) = np.flatnonzero(data.index == flip["sample"])  # the number in the data this was taken from
        assert flip["label"] == data.targets[position]
    assert set(result["timings"]) == {
        "load", "check", "calibrate", "evaluate float", "convert", "evaluate quantized", "compare",
    }  # fmt: skip
    assert result["versions"]["qlab"] == qlab.__version__


def test_what_needs_no_config_is_computed_once(store: Store, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(MODEL, str(few_digits), "x86", batch_size=32)
    model, data = qlab.load_model(MODEL), qlab.load_dataset(few_digits)
    assert find_prepared(store, model, data, batch_size=32) is None
    prepared = prepare(MODEL, str(few_digits), batch_size=32, store=store)
    assert prepared.float_evaluation.n == 64
    assert [r.kind for r in store.list_runs(status=DONE)] == ["prepare"]

    def again(*_: object, **__: object) -> None:
        raise AssertionError("calibrated again")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "calibrate", again)
        done = run(experiment, store=store)
        found = find_prepared(store, model, data, batch_size=32)
        assert found is not None
        assert set(found.calibration) == set(prepared.calibration)
        # another batch size is another calibration: moving averages see other batches
        with pytest.raises(AssertionError, match="calibrated again"):
            run(experiment.replace(batch_size=16), store=store)
        with pytest.raises(AssertionError, match="calibrated again"):
            run(experiment.replace(calibration_samples=20), store=store)
    assert "calibrate" not in done.require_result()["timings"]
    assert store.list_runs(1)[0].error == LAB_ERROR
    prepared_artifact = store.artifact(prepared.calibration_artifact)
    prepared_artifact.path.write_bytes(b"damaged")
    assert run(experiment, store=store).status == DONE  # computed anew
    assert store.find_derived("calibration", stages.calibration_key(model, data, 32, qlab.QConfigMapping())) is not None


def test_equal_computations_have_equal_keys(store: Store, few_digits: Path) -> None:
    experiment = Experiment(MODEL, str(few_digits), "int8_weight_only")
    first = run(experiment.replace(name="a"), store=store)
    second = run(experiment.replace(name="b", mapping=experiment.resolved_mapping), store=store)
    other = run(experiment.replace(mapping="int4_weight_only"), store=store)
    assert first.content_key == second.content_key != other.content_key
    assert [r.id for r in store.list_runs(content_key=first.content_key)] == [second.id, first.id]
    assert first.require_result()["calibration"] is None  # weights alone need none


def test_a_repeated_run_gives_the_same_bits(store: Store, few_digits: Path, tmp_path: Path) -> None:
    experiment = Experiment(MODEL, str(few_digits), "x86")
    first, second = run(experiment, store=store), run(experiment, store=Store(tmp_path / "other"))
    varying = {"timings"}
    a, b = ({k: v for k, v in r.require_result().items() if k not in varying} for r in (first, second))
    a["artifacts"].pop("calibration"), b["artifacts"].pop("calibration")  # a zip, which may carry the time
    assert a == b


def test_objects_and_labels_missing(store: Store, few_digits: Path) -> None:
    model, data = qlab.load_model(MODEL), qlab.load_dataset(few_digits)
    unlabelled = qlab.load_dataset(data.inputs[0], scale=data.scale, mean=data.mean, std=data.std).split(32)
    done = run(Experiment(model, unlabelled, "x86"), store=store)
    assert done.headline.accuracy is None
    assert done.headline.agreement is not None
    assert done.spec["model"] == f"memory:{MODEL}:{model.content_hash}"
    assert done.spec["data"].startswith("sha256:")
    with pytest.raises(InvalidConfig, match="lived in memory"):
        run(Experiment.from_dict(done.spec), store=store)
    assert done.require_result()["flips"] == [] or done.require_result()["flips"][0]["label"] is None


def test_progress_and_cancel(store: Store, few_digits: Path) -> None:
    seen: list[Progress] = []
    run(Experiment(MODEL, str(few_digits), "x86", batch_size=8), store=store, watch=seen.append)
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9
    assert any(p.seconds_left for p in seen)
    assert [p.seconds_left for p in seen if p.stage == "load"] == [None]  # nothing else is planned yet

    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "evaluate quantized" and done:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        run(Experiment(MODEL, str(few_digits), "x86", batch_size=8), stop, store)
    assert store.list_runs(1)[0].status == CANCELLED


def test_what_does_not_fit_fails_with_its_reason(store: Store) -> None:
    wrong = qlab.load_dataset(np.zeros((8, 3, 16, 16), np.float32), np.zeros(8, np.int64))
    with pytest.raises(DataMismatch) as caught:
        run(Experiment(MODEL, wrong, "x86"), store=store)
    failed = store.list_runs(1)[0]
    assert (failed.status, failed.error) == (FAILED, str(caught.value))
    assert failed.model_hash is not None
    with pytest.raises(RunFailed, match=failed.id):
        read_result(store, failed)
    with pytest.raises(InvalidConfig, match="no model 'nowhere'"):
        run(Experiment("nowhere", wrong, "x86"), store=store)


def test_only_a_queued_run_is_started(store: Store, few_digits: Path) -> None:
    experiment = Experiment(MODEL, str(few_digits), "int8_weight_only")
    done = run(experiment, store=store)
    with pytest.raises(RunFailed, match="is done"):
        run(experiment, store=store, run_id=done.id)


def test_in_a_worker_as_in_this_process(store: Store, few_digits: Path) -> None:
    experiment = Experiment(MODEL, str(few_digits), "x86", batch_size=32, name="there")
    with JobRunner(store, staff=Staff(1, 1, 2 << 30)) as runner:
        ready = runner.submit("prepare", model=MODEL, data=str(few_digits), batch_size=32)
        there = runner.submit("experiment", experiment=experiment)
        with pytest.raises(InvalidConfig, match="lives in memory"):
            runner.submit("experiment", experiment=experiment.replace(model=qlab.load_model(MODEL)))
        with pytest.raises(InvalidConfig, match="experiment="):
            runner.submit("experiment", spec={})
        first, second = runner.wait(ready, 100), runner.wait(there, 100)
    assert (first.status, first.error) == (DONE, None)
    assert (second.status, second.error, second.name) == (DONE, None, "there")
    assert first.headline.float_accuracy == second.headline.float_accuracy
    assert "calibrate" in first.require_result()["timings"]
    assert "calibrate" not in second.require_result()["timings"]
    here = run(Experiment.from_dict(json.loads(json.dumps(second.spec))), store=store)
    assert here.require_result()["sqnr"] == pytest.approx(second.require_result()["sqnr"], rel=1e-3)
    assert here.headline.size == second.headline.size
