"""Training and edits as parts of an experiment: run, resumed, looked at, exported, compared."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.edits import Edit
from qlab.errors import Cancelled, InvalidConfig
from qlab.lab import trained
from qlab.lab.experiment import Experiment
from qlab.lab.export import find_exports
from qlab.lab.run import read_result, run
from qlab.lab.store import CANCELLED, DONE, Store
from qlab.lab.tasks import KINDS
from qlab.training.settings import Training
from tests.jobs_here import carry

MODEL = "residual_digits"
LOW = QConfigMapping(
    default=QConfig(
        QuantSpec(2, "per_channel_symmetric", observer="mse"), QuantSpec(4, "per_tensor_affine", observer="mse")
    )
)
SHORT = Training(epochs=3, batch_size=8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def experiment(few_digits: Path) -> Experiment:
    return Experiment(MODEL, str(few_digits), LOW, batch_size=32, training=SHORT)


def test_what_is_written_comes_back(experiment: Experiment) -> None:
    edits = (Edit("conv1", "code", (0, 0, 1, 1), 1), Edit("conv1", "scale", (3,), 0.25))
    given = experiment.replace(edits=edits)
    assert Experiment.from_dict(json.loads(json.dumps(given.to_dict()))) == given
    assert len({e.spec_hash for e in (given, experiment, experiment.replace(training=None))}) == 3
    assert "training" not in experiment.replace(training=None).to_dict()
    assert experiment.replace(training=None).changes == ""


def test_what_is_no_training_is_refused(experiment: Experiment) -> None:
    with pytest.raises(InvalidConfig, match="training"):
        experiment.replace(training={"epochs": 3})
    with pytest.raises(InvalidConfig, match="epochs"):
        Experiment.from_dict(experiment.to_dict() | {"training": {"epochs": "many"}})
    with pytest.raises(InvalidConfig, match="edits"):
        Experiment.from_dict(experiment.to_dict() | {"edits": "none"})


def test_a_trained_run_equals_training_by_hand(store: Store, experiment: Experiment, few_digits: Path) -> None:
    done = carry(store, "experiment", experiment=experiment)
    model, data = qlab.load_model(MODEL), qlab.load_dataset(few_digits)
    reference = qlab.evaluate(model, data, batch_size=32)
    qmodel = qlab.train_qat(model, data, LOW, qlab.calibrate(model, data, 32), training=SHORT, reference=reference)
    measured = qlab.evaluate(qmodel, data, reference, 32)
    assert done.status == DONE
    assert read_result(store, done).quantized.to_dict() == measured.to_dict()
    assert "trained 3 epochs" in done.config
    history = trained.read_history(store, done)
    assert history is not None
    assert history.finished
    assert history.epochs[-1].accuracy == measured.accuracy
    # The file is the trained network.
    artifact = store.artifact(done.require_result()["artifacts"][trained.MODEL])
    again = qlab.load_quantized(artifact.path.read_bytes(), model)
    assert again.trained
    assert all((again.weights[k].codes == qmodel.weights[k].codes).all() for k in qmodel.weights)
    assert not list((store.home / trained.FOLDER).iterdir())  # the checkpoint is gone


def test_the_next_run_takes_the_trained_network(store: Store, experiment: Experiment) -> None:
    first = run(experiment, store=store)
    stages: list[str] = []
    second = run(experiment.replace(backend="integer"), lambda stage, *_: stages.append(stage), store)
    assert "train" not in stages
    assert second.headline.backend == "integer"
    assert second.require_result()["artifacts"][trained.MODEL] == first.require_result()["artifacts"][trained.MODEL]
    assert first.content_key != run(experiment.replace(training=None), store=store).content_key


def test_a_stopped_training_goes_on(store: Store, experiment: Experiment, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "train" and done == 6:  # of 12 steps in 3 epochs
            raise Cancelled("The run was stopped.")

    with pytest.raises(Cancelled):
        run(experiment, stop, store)
    assert store.list_runs()[0].status == CANCELLED
    model, data = qlab.load_model(MODEL), qlab.load_dataset(experiment.data)
    so_far = trained.live(store, model, data, experiment)
    assert so_far is not None
    assert [e.epoch for e in so_far.epochs] == [0, 1]
    steps: list[int] = []
    resumed = run(experiment, lambda stage, done, _: steps.append(done) if stage == "train" else None, store)
    assert steps[0] == 4
    whole = run(experiment, store=Store(tmp_path / "another"))
    hashes = [r.require_result()["artifacts"][trained.MODEL] for r in (resumed, whole)]
    assert hashes[0] == hashes[1]
    finished = trained.live(store, model, data, experiment)
    assert finished is not None
    assert finished.finished


def test_a_damaged_checkpoint_is_no_obstacle(store: Store, experiment: Experiment) -> None:
    model, data = qlab.load_model(MODEL), qlab.load_dataset(experiment.data)
    path = trained.checkpoint_path(store, trained.training_key(model, data, experiment))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut off")
    assert trained.live(store, model, data, experiment) is None
    assert run(experiment, store=store).status == DONE


def test_a_history_holds_no_weights(store: Store, experiment: Experiment) -> None:
    done = run(experiment, store=store)
    history = store.artifact(done.require_result()["artifacts"][trained.HISTORY])
    with safe_open(history.path, framework="numpy") as file:
        assert all(name.startswith("history.") for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("kind", ["sensitivity", "diagnose", "advice", "stability"])
def test_what_looks_into_a_config_takes_no_training(store: Store, experiment: Experiment, kind: str) -> None:
    with pytest.raises(InvalidConfig, match="trained"):
        KINDS[kind].describe(store, {"experiment": experiment})


def test_nothing_is_known_of_a_training_that_never_ran(store: Store, experiment: Experiment) -> None:
    model, data = qlab.load_model(MODEL), qlab.load_dataset(experiment.data)
    assert trained.live(store, model, data, experiment) is None


def test_edits_are_made_last(store: Store, experiment: Experiment, few_digits: Path) -> None:
    """After training, and in what is exported and measured."""
    edits = tuple(Edit("fc", "scale", (channel,), 1e-6) for channel in range(1, 10))
    edited = run(experiment.replace(edits=edits), store=store)
    plain = run(experiment, store=store)
    assert "9 numbers edited" in edited.config
    assert edited.headline.accuracy != plain.headline.accuracy
    export = carry(store, "export", experiment=experiment.replace(edits=edits))
    written = store.artifact(export.require_result()["artifacts"]["quantized model"])
    qmodel = qlab.load_quantized(written.path.read_bytes())
    assert qmodel.trained
    assert qmodel.weights["fc"].scale[1:].tolist() == pytest.approx([1e-6] * 9)
    model, data = qlab.load_model(MODEL), qlab.load_dataset(few_digits)
    changes = experiment.replace(edits=edits).changes
    assert find_exports(store, model, data, LOW, batch_size=32, changes=changes) is not None
    assert find_exports(store, model, data, LOW, batch_size=32) is None
