"""Training in a job: done once for a request, resumed where it was left, looked at while it goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError

from qlab.calibration import Calibration
from qlab.conversion import QuantizedModel
from qlab.data import Dataset
from qlab.errors import BadUpload
from qlab.evaluation import Evaluation
from qlab.export.quantized_file import SUFFIX, save_quantized
from qlab.export.quantized_load import load_quantized
from qlab.graph.capture import Model
from qlab.lab import stages
from qlab.lab.experiment import Experiment
from qlab.lab.progress import Stage
from qlab.lab.store import Run, Store
from qlab.lab.work import Work
from qlab.training.history import History
from qlab.training.settings import Training
from qlab.training.trainer import TEACHER, TRAIN, Trainer

LOG = logging.getLogger("qlab.lab")
VERSION = 1  # raise it when the same request would give another network
MODEL, HISTORY = "trained model", "training history"
FOLDER = "checkpoints"

# Relative to a sample through the float network.
STEP_COST, TEACHER_COST = 6.0, 1.0


def trained_model(
    work: Work, loaded: stages.Loaded, experiment: Experiment, calib: Calibration | None,
    reference: Evaluation | None = None,
) -> QuantizedModel:  # fmt: skip
    """The trained network of this experiment: from the store, or trained now, from its last checkpoint on.

    reference: evaluation of the float network, if it is at hand. Raises what training raises.
    """
    assert experiment.training is not None
    store, model, data = work.store, loaded.model, loaded.data
    key = training_key(model, data, experiment)
    found = store.find_derived(MODEL, key)
    if found is not None and store.find_derived(HISTORY, key) is not None:
        return load_quantized(found.path.read_bytes(), model)
    if reference is None:
        reference, _ = stages.float_evaluation(work, model, data, experiment.batch_size)
    work.progress(stages.CONVERT)
    path = checkpoint_path(store, key)
    trainer = _trainer(model, data, experiment, calib, path, reference)
    qmodel = trainer.run(work.progress)
    with store.new_file(SUFFIX) as file:
        save_quantized(qmodel, file)
        store.derive(MODEL, key, store.add_upload(file, f"{model.name}.trained{SUFFIX}", kind=MODEL))
    with store.new_file(SUFFIX) as file:
        trainer.history.write(file)
        store.derive(HISTORY, key, store.add_upload(file, f"{model.name}.history{SUFFIX}", kind=HISTORY))
    path.unlink(missing_ok=True)
    return qmodel


def _trainer(
    model: Model, data: Dataset, experiment: Experiment, calib: Calibration | None, path: Path, reference: Evaluation
) -> Trainer:
    """From the checkpoint if there is one that can be read; one that cannot is of no use to anyone."""

    def made() -> Trainer:
        assert experiment.training is not None
        return Trainer(
            model, data, experiment.resolved_mapping, calib, experiment.training, checkpoint=path, reference=reference
        )

    try:
        return made()
    except BadUpload:
        LOG.warning("the checkpoint %s is damaged: training starts anew", path)
        path.unlink(missing_ok=True)
        return made()


def training_stages(store: Store, model: Model, data: Dataset, experiment: Experiment) -> list[Stage]:
    """What is still to do for this experiment's training; costs are counted in batches of the float network."""
    training = experiment.training
    if training is None or len(artifacts_of(store, model, data, experiment)) == 2:
        return []
    samples, batch = len(data.calibration), model.fixed_batch or experiment.batch_size
    size = min(model.fixed_batch or training.batch_size, samples)
    steps = training.epochs * (samples // size)
    return [
        Stage(TEACHER, -(-samples // batch), TEACHER_COST), Stage(TRAIN, steps, STEP_COST * size / batch),
    ]  # fmt: skip


def live(store: Store, model: Model, data: Dataset, experiment: Experiment) -> History | None:
    """What is known of this training: all of it when it is done, else up to its last checkpoint; None before the first.

    data: split as the job splits it.
    """
    key = training_key(model, data, experiment)
    found = store.find_derived(HISTORY, key)
    if found is not None:
        return History.read(found.path)
    path = checkpoint_path(store, key)
    try:
        return History.read(path)
    except (FileNotFoundError, SafetensorError):  # before the first checkpoint, or damaged; or it was done in between
        found = store.find_derived(HISTORY, key)
        return None if found is None else History.read(found.path)


def read_history(store: Store, run: Run) -> History | None:
    """Of a finished run; None if it did not train. Raises RunFailed."""
    artifacts = store.get_run(run.id).require_result()["artifacts"]
    return History.read(store.artifact(artifacts[HISTORY]).path) if HISTORY in artifacts else None


def training_key(model: Model, data: Dataset, experiment: Experiment) -> str:
    """What decides the result, but for the number of threads, under which sums are taken in another order."""
    training = experiment.training or Training()
    mapping = experiment.resolved_mapping
    return stages.key_of(
        MODEL, VERSION, torch.__version__, stages.evaluation_key(model, data, experiment.batch_size),
        json.dumps(mapping.to_dict(), sort_keys=True), json.dumps(training.to_dict(), sort_keys=True),
    )  # fmt: skip


def checkpoint_path(store: Store, key: str) -> Path:
    return store.home / FOLDER / f"{key}{SUFFIX}"


def artifacts_of(store: Store, model: Model, data: Dataset, experiment: Experiment) -> dict[str, str]:
    """The files of a training as a result names them; nothing where none was asked for."""
    if experiment.training is None:
        return {}
    key = training_key(model, data, experiment)
    found = {name: store.find_derived(name, key) for name in (MODEL, HISTORY)}
    return {name: artifact.hash for name, artifact in found.items() if artifact is not None}
