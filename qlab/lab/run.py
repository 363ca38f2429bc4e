"""What the Run button does: load, check, calibrate, convert, evaluate, compare, store.

Calibration and float evaluation depend on model and data alone. They are kept under the hash of both and taken from
there by the next run, whatever its config.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import qlab
from qlab.calibration import Calibration
from qlab.config import QConfigMapping
from qlab.conversion import QuantizedModel
from qlab.data import Dataset, Finding
from qlab.errors import RunFailed, UnsupportedModel
from qlab.evaluation import SQNR_SAMPLES, Comparison, Evaluation, compare, evaluate
from qlab.graph.capture import Model
from qlab.lab import sources, stages, templates, trained
from qlab.lab.experiment import Experiment
from qlab.lab.progress import Progress, ProgressCallback, Stage
from qlab.lab.race import Race
from qlab.lab.store import Headline, Run, Store, open_store
from qlab.lab.tasks import describe_experiment, describe_prepare
from qlab.lab.work import Outcome, Work, carry_out

RESULT_VERSION = 1
QUANTIZED_EVALUATION = "quantized evaluation"
FLIPS_LISTED = 1000
EVALUATE_QUANTIZED, COMPARE = "evaluate quantized", "compare"


@dataclass(frozen=True)
class Prepared:
    """What needs no config: computed once for a model and its data.

    *_artifact: hash of the file in the store.
    """

    calibration: Calibration
    float_evaluation: Evaluation
    calibration_artifact: str
    evaluation_artifact: str


@dataclass(frozen=True)
class Result:
    """What a finished experiment found, as the objects the engine gave."""

    reference: Evaluation
    quantized: Evaluation
    comparison: Comparison
    size: Mapping[str, int]
    ledger: Sequence[Mapping[str, Any]]
    unmatched: Sequence[str]
    findings: Sequence[Finding]
    timings: Mapping[str, float]
    versions: Mapping[str, str]


# ---- for scripts -----------------------------------------------------------------------------------------------------


def run(
    experiment: Experiment,
    progress: ProgressCallback | None = None,
    store: Store | None = None,
    run_id: str | None = None,
    *,
    watch: Callable[[Progress], None] | None = None,
) -> Run:
    """Carry out an experiment in this process and give the stored run, with its result.

    progress(stage, done, total) may raise to stop; watch gets the same with share and time left. run_id: of a row that
    is written already. Raises what went wrong, after the row says so too; Cancelled if it was stopped.
    """
    store = store or open_store()
    if run_id is None:
        row = describe_experiment(store, {"experiment": experiment}, travels=False)
        run_id = store.create_run(kind="experiment", **row.columns)
    if not store.start(run_id):
        raise RunFailed(f"Run {run_id} is {store.get_run(run_id).status}; only one that is queued can be started.")
    work = Work(store, run_id, progress, watch)
    carry_out(lambda w, _spec: _experiment(w, experiment), work, {})
    return store.get_run(run_id)


def prepare(
    model: Any,
    data: Any,
    progress: ProgressCallback | None = None,
    *,
    batch_size: int = 64,
    calibration_samples: int | None = None,
    seed: int = 0,
    mapping: QConfigMapping | None = None,
    store: Store | None = None,
) -> Prepared:
    """Calibration and float evaluation of a model on data, from the store if they are there.

    model, data: as in Experiment. mapping: a config the calibration is for; of it counts the preparation alone.
    progress may raise to stop. Raises DataMismatch, NonFinite, and what loading raises.
    """
    store = store or open_store()
    arguments: dict[str, Any] = {"batch_size": batch_size, "calibration_samples": calibration_samples, "seed": seed}
    arguments["mapping"] = (mapping or QConfigMapping()).preparation
    row = describe_prepare(store, {"model": model, "data": data, **arguments}, travels=False)
    run_id = store.create_run(kind="prepare", **row.columns)
    store.start(run_id)
    work = Work(store, run_id, progress)
    kept: list[Prepared] = []
    experiment = Experiment(model, data, **arguments)

    def task(work: Work, _spec: Mapping[str, Any]) -> Outcome:
        found, outcome = _prepare(work, experiment)
        kept.append(found)
        return outcome

    carry_out(task, work, {})
    return kept[0]


def find_prepared(
    store: Store,
    model: Model,
    data: Dataset,
    *,
    batch_size: int = 64,
    calibration_samples: int | None = None,
    seed: int = 0,
    mapping: QConfigMapping | None = None,
) -> Prepared | None:
    """What `prepare` stored for this model and data, or None if it has not been computed; computes nothing."""
    data = sources.split(data, calibration_samples, seed)
    key = stages.calibration_key(model, data, batch_size, mapping or QConfigMapping())
    calibration = store.find_derived(stages.CALIBRATION, key)
    evaluation = store.find_derived(stages.FLOAT_EVALUATION, stages.evaluation_key(model, data, batch_size))
    if calibration is None or evaluation is None:
        return None
    return Prepared(
        Calibration.load(calibration.path), stages.read_evaluation(evaluation), calibration.hash, evaluation.hash
    )


def read_result(store: Store, run: Run) -> Result:
    """The result of a finished experiment as objects. Raises RunFailed with the run's reason if it has none."""
    if run.result_json is None and run.ended:
        run = store.get_run(run.id)  # a run from a list comes without its result
    result = run.require_result()
    if run.kind != "experiment":
        raise RunFailed(f"Run {run.id} is a job of kind {run.kind}, not an experiment.")
    return Result(
        reference=stages.read_evaluation(store.artifact(result["artifacts"][stages.FLOAT_EVALUATION])),
        quantized=stages.read_evaluation(store.artifact(result["artifacts"][QUANTIZED_EVALUATION])),
        comparison=Comparison.from_dict(result["comparison"]),
        size=result["size"],
        ledger=result["ledger"],
        unmatched=result["unmatched"],
        findings=[Finding(**f) for f in result["findings"]],
        timings=result["timings"],
        versions=result["versions"],
    )


# ---- for workers -----------------------------------------------------------------------------------------------------


def experiment_task(work: Work, spec: dict[str, Any]) -> Outcome:
    return _experiment(work, Experiment.from_dict(spec))


def prepare_task(work: Work, spec: dict[str, Any]) -> Outcome:
    return _prepare(work, Experiment.from_dict(spec))[1]


# ---- keys ------------------------------------------------------------------------------------------------------------


def content_key(model: Model, data: Dataset, experiment: Experiment) -> str:
    """Equal for runs that compute the same thing, whatever their names, paths or presets."""
    return content_key_of(model.content_hash, data.content_hash, model.fixed_batch or experiment.batch_size, experiment)


def content_key_of(model_hash: str, data_hash: str, batch: int, experiment: Experiment) -> str:
    """The same for who knows the hashes alone. batch: the samples really given at once."""
    return stages.key_of(
        "experiment",
        stages.DERIVED_VERSION,
        model_hash,
        data_hash,
        batch,
        json.dumps(experiment.resolved_mapping.to_dict(), sort_keys=True),
        experiment.backend,
        experiment.sqnr_samples,
        *([experiment.changes] if experiment.changes else []),
    )


# ---- the stages ------------------------------------------------------------------------------------------------------


def _experiment(work: Work, experiment: Experiment, given: Calibration | None = None) -> Outcome:
    """given: a calibration to take instead of that of the data."""
    mapping = experiment.resolved_mapping
    ranges = mapping.needs_calibration
    integer = _on_integers(experiment.backend, mapping)

    def own_stages(batches: int) -> list[Stage]:
        known = not integer or templates.has_template(work.store, loaded_model())
        export = [] if known else [Stage(templates.EXPORT, seconds=templates.SECONDS)]
        cost = stages.INTEGER_COST if integer else stages.QUANTIZED_COST
        return [
            Stage(stages.CONVERT, seconds=0.2), *training(), *export, Stage(EVALUATE_QUANTIZED, batches, cost),
            Stage(COMPARE, seconds=0.05),
        ]  # fmt: skip

    def training() -> list[Stage]:
        data = sources.open_data(experiment.data, work.store, experiment.calibration_samples, experiment.seed)
        return trained.training_stages(work.store, loaded_model(), data, experiment)

    def loaded_model() -> Model:
        return sources.open_model(experiment.model, work.store)

    loaded = stages.load(work, experiment, ranges=ranges and given is None, then=own_stages)
    model, data = loaded.model, loaded.data
    if given is None:
        work.store.identify(work.run_id, content_key=content_key(model, data, experiment))
    # Weight-only and dynamic configs take no ranges from the data: nothing to wait for.
    calibrated = None
    if ranges and given is None:
        calibrated = stages.calibration(work, model, data, experiment.batch_size, mapping)
    reference, reference_artifact = stages.float_evaluation(work, model, data, experiment.batch_size)
    calibration = calibrated[0] if calibrated else given if ranges else None
    qmodel = stages.quantized(work, loaded, experiment, calibration, reference)
    race = _race(work, data.evaluation, reference)
    quantized = _evaluate(work, experiment, qmodel, data, reference, integer, race)
    work.progress(COMPARE)
    right = data.evaluation.targets
    seen = reference if quantized.predicted == reference.predicted else reference.first(quantized.n, right)
    comparison = compare(seen, quantized, None if right is None else right[: quantized.n])
    artifact = stages.write_evaluation(work.store, QUANTIZED_EVALUATION, quantized)
    work.progress(COMPARE, 1, 1)
    work.meter.finish()
    artifacts = {stages.FLOAT_EVALUATION: reference_artifact.hash, QUANTIZED_EVALUATION: artifact.hash}
    artifacts |= trained.artifacts_of(work.store, model, data, experiment)
    if calibrated:
        artifacts[stages.CALIBRATION] = calibrated[1].hash
    return Outcome(
        _result(model, data, mapping, loaded.findings, qmodel, seen, quantized, comparison)
        | {
            "calibration": _calibration_summary(calibration) if calibration else None,
            "artifacts": artifacts,
            "dropped": None if race is None or race.dropped is None else race.dropped.to_dict(),
            "timings": work.meter.timings,
        },
        headline(
            quantized,
            # Over all samples, also where this run saw only some: it is a fact about the network, not about the run.
            float_accuracy=reference.accuracy,
            size=qmodel.size.quantized_bytes,
            float_size=qmodel.size.float_bytes,
            dropped=None if race is None or race.dropped is None else race.dropped.words,
        ),
    )


def headline(evaluation: Evaluation, **more: Any) -> Headline:
    """The figures of a row, from what was evaluated."""
    low, high = evaluation.accuracy_interval or (None, None)
    return Headline(
        accuracy=evaluation.accuracy,
        accuracy_low=low,
        accuracy_high=high,
        agreement=evaluation.agreement,
        samples=evaluation.n,
        backend=evaluation.backend,
        **more,
    )


def _on_integers(backend: str, mapping: QConfigMapping) -> bool:
    """Whether to try the integer kernels. None runs activations per channel, and weights alone compute in float."""
    if backend != "auto":
        return backend == "integer"
    specs = [rule.activation for rule in mapping.rules if rule is not None]
    return any(specs) and all(spec is None or spec.granularity == "tensor" for spec in specs)


def _race(work: Work, part: Dataset, reference: Evaluation) -> Race | None:
    """What this run is held against while it goes on, if whoever started it named a rival."""
    rival = work.store.get_run(work.run_id).rival
    if rival is None:
        return None
    against = stages.read_evaluation(work.store.artifact(rival))
    assert against.predictions is not None
    # Without labels the float network's answer is the right one.
    right = part.targets if part.targets is not None else reference.predictions
    assert right is not None
    return Race(against.predictions, right)


def _evaluate(
    work: Work, experiment: Experiment, qmodel: QuantizedModel, data: Dataset, reference: Evaluation, integer: bool,
    race: Race | None,
) -> Evaluation:  # fmt: skip
    def on(backend: str) -> Evaluation:
        return evaluate(
            qmodel, data, reference, experiment.batch_size, backend, work.stage(EVALUATE_QUANTIZED),
            sqnr_samples=SQNR_SAMPLES if experiment.sqnr_samples is None else experiment.sqnr_samples,
            keep_going=None if race is None else race.keep_going,
        )  # fmt: skip

    if not integer:
        return on("simulated")
    work.progress(templates.EXPORT)
    try:
        templates.ensure_template(work.store, qmodel.model)
        return on("integer")
    except UnsupportedModel:
        if experiment.backend == "integer":
            raise
        return on("simulated")  # "auto" means just that; the result says with what it was computed


def _prepare(work: Work, experiment: Experiment) -> tuple[Prepared, Outcome]:
    """With a backend other than "simulated" the exported graph is made as well, for the configs to come."""
    exports = experiment.backend != "simulated"
    later = [Stage(templates.EXPORT, seconds=templates.SECONDS)] if exports else []
    loaded = stages.load(work, experiment, ranges=True, then=lambda _batches: later)
    model, data = loaded.model, loaded.data
    calibration, calibration_artifact = stages.calibration(
        work, model, data, experiment.batch_size, experiment.resolved_mapping
    )
    reference, reference_artifact = stages.float_evaluation(work, model, data, experiment.batch_size)
    artifacts = {stages.CALIBRATION: calibration_artifact.hash, stages.FLOAT_EVALUATION: reference_artifact.hash}
    if exports:
        work.progress(templates.EXPORT)
        artifacts |= templates.artifacts_of(work.store, model)
    work.meter.finish()
    result = {
        "version": RESULT_VERSION,
        "model": _about_model(model),
        "data": _about_data(data),
        "findings": [asdict(f) for f in loaded.findings],
        "float": _figures(reference),
        "calibration": _calibration_summary(calibration),
        "artifacts": artifacts,
        "batch": model.fixed_batch or experiment.batch_size,  # the samples really given at once
        "timings": work.meter.timings,
        "versions": _versions(),
    }
    figures = Headline(float_accuracy=reference.accuracy, float_size=model.float_bytes, samples=reference.n)
    prepared = Prepared(calibration, reference, calibration_artifact.hash, reference_artifact.hash)
    return prepared, Outcome(result, figures)


# ---- the result as JSON ----------------------------------------------------------------------------------------------


def _result(
    model: Model,
    data: Dataset,
    mapping: QConfigMapping,
    findings: Sequence[Finding],
    qmodel: QuantizedModel,
    reference: Evaluation,
    quantized: Evaluation,
    comparison: Comparison,
) -> dict[str, Any]:
    return {
        "version": RESULT_VERSION,
        "model": _about_model(model),
        "data": _about_data(data),
        "mapping": mapping.to_dict(),  # in full: a preset may mean something else tomorrow
        "findings": [asdict(f) for f in findings],
        "float": _figures(reference),
        "quantized": _figures(quantized),
        "comparison": comparison.to_dict(),
        "flips": _flips(data.evaluation, reference, quantized, comparison),
        "size": qmodel.size.to_dict(),
        "sqnr": quantized.to_dict()["sqnr"],
        "ledger": [row.to_dict() for row in qmodel.ledger],
        "unmatched": list(qmodel.unmatched),
        "versions": _versions(),
    }


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """Without SQNR and predictions, which stand elsewhere."""
    return replace(evaluation, sqnr={}, predictions=None).to_dict()


def _flips(data: Dataset, before: Evaluation, after: Evaluation, comparison: Comparison) -> list[dict[str, Any]]:
    """The first of the predictions that changed. index counts predictions; sample is the number in the whole data."""
    assert before.predictions is not None
    assert after.predictions is not None
    a, b = before.predictions.ravel(), after.predictions.ravel()
    positions = int(np.prod(before.predictions.shape[1:], dtype=int))
    labels = None if data.targets is None else data.targets.ravel()
    return [
        {
            "index": i,
            "sample": int(data.index[i // positions]),
            "label": None if labels is None else int(labels[i]),
            "float": int(a[i]),
            "quantized": int(b[i]),
        }
        for i in comparison.changed_indices[:FLIPS_LISTED]
    ]


def _about_model(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "hash": model.content_hash,
        "parameters": model.parameter_count,
        "float_bytes": model.float_bytes,
        "layers": len(model.layers),
    }


def _about_data(data: Dataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "hash": data.content_hash,
        "samples": len(data),
        "calibration": len(data.calibration),
        "evaluation": len(data.evaluation),
        "split": data.has_split,
    }


def _calibration_summary(calibration: Calibration) -> dict[str, Any]:
    return {"samples": calibration.samples, "tensors": len(calibration), "infinite": calibration.infinite}


def _versions() -> dict[str, str]:
    return {
        "qlab": qlab.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "onnxruntime": version("onnxruntime"),
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
