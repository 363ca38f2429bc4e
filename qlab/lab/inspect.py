"""The job that runs a quantized model on integers and reports: measured once for a request, then found in the store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import onnxruntime

import qlab
from qlab.errors import UnsupportedModel
from qlab.lab import stages, templates
from qlab.lab.experiment import Experiment
from qlab.lab.progress import Stage
from qlab.lab.store import DONE, Store
from qlab.lab.work import Outcome, Work
from qlab.runtime import measure
from qlab.runtime.measure import blocked_report, runtime_report
from qlab.runtime.report import REPORT_VERSION, RuntimeReport, numbers_from_dict, numbers_to_dict

if TYPE_CHECKING:
    from qlab.config import QConfigMapping
    from qlab.data import Dataset
    from qlab.graph.capture import Model

REPORT, NUMBERS = "runtime report", "runtime numbers"


def runtime_task(work: Work, spec: dict[str, Any]) -> Outcome:
    """What a job of kind "runtime" does. spec: experiment, batch, threads, and again: times are taken anew.

    Raises what loading and converting raise.
    """
    experiment = Experiment.from_dict(spec["experiment"])
    batch, threads = spec["batch"], spec["threads"]
    mapping, batch_size = experiment.resolved_mapping, experiment.batch_size

    def own_stages(batches: int) -> list[Stage]:
        return [
            Stage(stages.CONVERT, seconds=0.2),
            Stage(templates.EXPORT, seconds=templates.SECONDS),
            Stage(measure.COMPARE, seconds=0.2),
            Stage(measure.ROOM, seconds=0.3),
            Stage(measure.SIMULATE, batches, stages.QUANTIZED_COST),
            Stage(measure.INTEGERS, batches, 1.0),
            Stage(measure.PROFILE, seconds=0.3),
            Stage(measure.TIME, seconds=2 * measure.BUDGET),
        ]

    loaded = stages.load(work, experiment, ranges=mapping.needs_calibration, then=own_stages)
    model, data, store = loaded.model, loaded.data, work.store
    keys = _keys(model, data, mapping, batch, threads, batch_size, experiment.changes)
    found = store.find_derived(REPORT, keys[REPORT])
    if found is None or spec["again"]:
        reference, _ = stages.float_evaluation(work, model, data, batch_size)
        qmodel = stages.quantized(work, loaded, experiment)
        work.progress(templates.EXPORT)
        kept = store.find_derived_json(NUMBERS, keys[NUMBERS])
        known = None if kept is None else numbers_from_dict(kept)
        try:
            templates.ensure_template(store, qmodel.model)
            made = runtime_report(
                qmodel, data, batch, threads, work.progress, reference=reference, numbers=known, batch_size=batch_size
            )
        except UnsupportedModel as error:
            made = blocked_report(qmodel, batch, threads, error)
        if made.numbers is not None and known is None:
            store.derive_json(NUMBERS, keys[NUMBERS], numbers_to_dict(made.numbers))
        found = store.derive_json(REPORT, keys[REPORT], made.to_dict())
    work.meter.finish()
    return Outcome({"artifacts": {REPORT: found.hash}, "timings": work.meter.timings})


def find_runtime_report(
    store: Store, model: Model, data: Dataset, mapping: QConfigMapping, *, batch: int = 32, threads: int = 2,
    batch_size: int = 64,
) -> RuntimeReport | None:  # fmt: skip
    """What a job measured for this request on this machine, or None if there was none; measures nothing.

    data: split as it calibrates. batch_size: of calibration and evaluation.
    """
    key = _keys(model, data, mapping, batch, threads, batch_size)[REPORT]
    found = store.find_derived_json(REPORT, key)
    return None if found is None else RuntimeReport.from_dict(found)


def newest_report(store: Store, experiment: Experiment, batch: int, threads: int) -> RuntimeReport | None:
    """What the newest job for this request measured, wherever it ran: a worker on another machine has another CPU,
    which the report names. experiment: as the job's row has it."""
    wanted = {"experiment": experiment.to_dict(), "batch": batch, "threads": threads}
    for run in store.list_runs(200, kind="runtime", status=DONE):
        if {key: value for key, value in run.spec.items() if key != "again"} == wanted:
            artifact = store.artifact(store.get_run(run.id).require_result()["artifacts"][REPORT])
            return RuntimeReport.from_dict(json.loads(artifact.path.read_bytes()))
    return None


def _keys(
    model: Model, data: Dataset, mapping: QConfigMapping, batch: int, threads: int, batch_size: int, changes: str = ""
) -> dict[str, str]:  # fmt: skip
    """Of the report, and of its part that does not depend on how calls are made. Measured on another CPU or by another
    version of the runtime, it would be another one."""
    parts = (
        REPORT_VERSION, qlab.__version__, onnxruntime.__version__, templates.template_key(model),
        stages.evaluation_key(model, data, batch_size), json.dumps(mapping.to_dict(), sort_keys=True),
        json.dumps(asdict(measure.machine().cpu), sort_keys=True), *([changes] if changes else []),
    )  # fmt: skip
    return {
        REPORT: stages.key_of(REPORT, *parts, measure.machine().cores, batch, threads),
        NUMBERS: stages.key_of(NUMBERS, *parts),
    }
