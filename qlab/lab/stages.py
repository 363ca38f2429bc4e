"""The stages that jobs share: load and check, calibrate, measure the float network, convert.

Calibration, float evaluation and the exported graph depend on model and data alone. They are kept in the store under
the hash of what they depend on, and taken from there by whatever comes next.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlab.calibration import Calibration, calibrate
from qlab.config import QConfigMapping
from qlab.conversion import QuantizedModel, convert
from qlab.data import Dataset, Finding, check_against
from qlab.edits import apply_edits
from qlab.errors import DataMismatch
from qlab.evaluation import Evaluation, evaluate
from qlab.graph.capture import Model
from qlab.graph.equalize import network_of
from qlab.lab import sources
from qlab.lab.experiment import Experiment
from qlab.lab.kept import kept
from qlab.lab.progress import Stage
from qlab.lab.store import Artifact, Store
from qlab.lab.work import Work

# Part of every key: raise it when statistics or evaluation change what they measure, or old ones would be taken.
DERIVED_VERSION = 3
CALIBRATION, FLOAT_EVALUATION = "calibration", "float evaluation"

# Relative to a batch through the float network, to price the stages still to come before they have been timed.
CALIBRATE_COST, QUANTIZED_COST, INTEGER_COST = 1.5, 1.8, 0.8
REST = "rest"  # stands for what is planned after loading
LOAD, CHECK, CALIBRATE, EVALUATE_FLOAT, CONVERT = "load", "check", "calibrate", "evaluate float", "convert"


@dataclass(frozen=True)
class Loaded:
    """What a job works on. findings: what is worth a word about how data and model fit."""

    model: Model
    data: Dataset
    findings: Sequence[Finding]


def load(
    work: Work, experiment: Experiment, *, ranges: bool, reference: bool = True,
    then: Callable[[int], Sequence[Stage]] = lambda _batches: (),
) -> Loaded:  # fmt: skip
    """Model and data of an experiment, checked against each other; also plans the stages of the job.

    ranges, reference: whether a calibration and the float evaluation will be asked for. then: from the number of
    evaluation batches to the stages after those. Raises DataMismatch, BadUpload, InvalidConfig.
    """
    # How long the rest takes is not known before model and data are, so that no time is told.
    work.meter.plan([Stage(LOAD), Stage(REST, units=1)])
    work.progress(LOAD)
    model = sources.open_model(experiment.model, work.store)
    data = sources.open_data(experiment.data, work.store, experiment.calibration_samples, experiment.seed)
    # Before the check: what is refused should say what it was.
    work.store.identify(work.run_id, model_hash=model.content_hash, data_hash=data.content_hash)
    size = model.fixed_batch or experiment.batch_size
    batches = math.ceil(len(data.evaluation) / size)
    known = work.store.find_derived
    stages = [Stage(CHECK)]
    mapping = experiment.resolved_mapping
    if ranges and not known(CALIBRATION, calibration_key(model, data, experiment.batch_size, mapping)):
        stages.append(Stage(CALIBRATE, math.ceil(len(data.calibration) / size), CALIBRATE_COST))
    if reference and not known(FLOAT_EVALUATION, evaluation_key(model, data, experiment.batch_size)):
        stages.append(Stage(EVALUATE_FLOAT, batches))
    work.meter.plan([*stages, *then(batches)])
    work.progress(CHECK)
    findings = kept(
        CHECK, (model.content_hash, data.content_hash), lambda: check_against(model.inputs, data, model.n_classes)
    )
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise DataMismatch(
            f"{errors[0].message} {errors[0].remedy}".strip(),
            detail="\n".join(f"{f.message} {f.remedy}" for f in errors[1:]) or None,
        )
    return Loaded(model, data, [f for f in findings if f.severity != "ok"])


def quantized(
    work: Work, loaded: Loaded, experiment: Experiment, found: Calibration | None = None,
    reference: Evaluation | None = None,
) -> QuantizedModel:  # fmt: skip
    """The model as the experiment quantizes it: converted or trained, then edited.

    found: its calibration, where it is at hand; taken from the store or made where the mapping needs one. reference:
    evaluation of the float network, where it is at hand. Raises what these raise.
    """
    mapping = experiment.resolved_mapping
    if found is None and mapping.needs_calibration:
        found = calibration(work, loaded.model, loaded.data, experiment.batch_size, mapping)[0]
    if experiment.training is None:
        work.progress(CONVERT)
        qmodel = convert(loaded.model, mapping, found)
    else:
        from qlab.lab.trained import trained_model

        qmodel = trained_model(work, loaded, experiment, found, reference)
    apply_edits(qmodel, experiment.edits)
    return qmodel


def calibration(
    work: Work, model: Model, data: Dataset, batch_size: int, mapping: QConfigMapping
) -> tuple[Calibration, Artifact]:  # fmt: skip
    """A calibration that serves this mapping, and every other with the same preparation."""
    key = calibration_key(model, data, batch_size, mapping)
    found = work.store.find_derived(CALIBRATION, key)
    if found is not None:
        return kept(CALIBRATION, found.hash, lambda: Calibration.load(found.path)), found
    made = calibrate(model, data, batch_size, work.stage(CALIBRATE), mapping=mapping)
    with work.store.new_file(".npz") as path:
        made.save(path)
        artifact = work.store.add_upload(path, f"{model.name}.calibration.npz", kind=CALIBRATION)
    work.store.derive(CALIBRATION, key, artifact)
    return kept(CALIBRATION, artifact.hash, lambda: made), artifact


def float_evaluation(work: Work, model: Model, data: Dataset, batch_size: int) -> tuple[Evaluation, Artifact]:
    key = evaluation_key(model, data, batch_size)
    found = work.store.find_derived(FLOAT_EVALUATION, key)
    if found is not None:
        return read_evaluation(found), found
    evaluation = evaluate(model, data, None, batch_size, progress=work.stage(EVALUATE_FLOAT))
    return evaluation, work.store.derive_json(FLOAT_EVALUATION, key, evaluation.to_dict())


def write_evaluation(store: Store, kind: str, evaluation: Evaluation) -> Artifact:
    return store.add_bytes(json.dumps(evaluation.to_dict()).encode(), kind=kind, media="application/json")


def read_evaluation(artifact: Artifact) -> Evaluation:
    return Evaluation.from_dict(json.loads(artifact.path.read_bytes()))


def calibration_key(model: Model, data: Dataset, batch_size: int, mapping: QConfigMapping) -> str:
    """The data's hash includes its split, and so the calibration samples and the seed. Of the mapping counts what is
    done to the network before it is quantized."""
    network, means = network_of(model, mapping), ["means"] if mapping.correct_bias else []
    batch = model.fixed_batch or batch_size
    return key_of(CALIBRATION, DERIVED_VERSION, network.content_hash, data.content_hash, batch, *means)


def evaluation_key(model: Model, data: Dataset, batch_size: int) -> str:
    return key_of(
        FLOAT_EVALUATION, DERIVED_VERSION, model.content_hash, data.content_hash, model.fixed_batch or batch_size
    )


def key_of(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
