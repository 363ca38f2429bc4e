"""The jobs that look into a config: what is wrong, what helps, how steady the calibration is. Done once for a request,
then found in the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qlab.analysis import advice, diagnose, propagation, sensitivity, stability
from qlab.analysis.advice import Tried, try_remedies
from qlab.analysis.diagnose import Diagnosis
from qlab.analysis.remedy import Remedy
from qlab.analysis.stability import Stability
from qlab.analysis.stored import from_json, to_json
from qlab.calibration import Calibration
from qlab.errors import NonFinite
from qlab.lab import stages
from qlab.lab.experiment import Experiment
from qlab.lab.progress import Stage
from qlab.lab.store import Artifact, Store
from qlab.lab.work import Outcome, Work

if TYPE_CHECKING:
    from qlab.config import QConfigMapping
    from qlab.data import Dataset
    from qlab.graph.capture import Model

T = TypeVar("T")
MOST_TRIED = 40


@dataclass(frozen=True)
class Attempts:
    """What was tried, best first. left_out: remedies beyond the limit."""

    tried: Sequence[Tried]
    left_out: int = 0


@dataclass(frozen=True)
class Analysis(Generic[T]):
    """One kind of job. name: of what is kept; version: raise it when the same request would give something else.

    result: the type of what is found. compute: does it. plan: its stages, from the number of evaluation batches. draws:
    whether it depends on the seed.
    """

    name: str
    version: int
    result: type[T]
    compute: Callable[[Work, stages.Loaded, Experiment, Calibration | None], T]
    plan: Callable[[int], Sequence[Stage]]
    draws: bool = False

    def find(
        self, store: Store, model: Model, data: Dataset, mapping: QConfigMapping, *, batch_size: int = 64, seed: int = 0
    ) -> T | None:
        """What a job found for this request, or None; computes nothing. data: split as it calibrates."""
        found = store.find_derived_json(self.name, self._key(model, data, mapping, batch_size, seed))
        return None if found is None else from_json(self.result, found)

    def keep(
        self, store: Store, model: Model, data: Dataset, mapping: QConfigMapping, made: T, *, batch_size: int = 64,
        seed: int = 0,
    ) -> Artifact:  # fmt: skip
        """Where `find` finds it for the same request."""
        return store.derive_json(self.name, self._key(model, data, mapping, batch_size, seed), to_json(made))

    def task(self, work: Work, spec: Mapping[str, Any]) -> Outcome:
        """What the job does. spec: experiment. Raises what loading and the analysis raise."""
        experiment = Experiment.from_dict(spec["experiment"])
        mapping = experiment.resolved_mapping
        loaded = stages.load(work, experiment, ranges=True, reference=False, then=self.plan)
        size, seed = experiment.batch_size, experiment.seed
        artifact = work.store.find_derived(self.name, self._key(loaded.model, loaded.data, mapping, size, seed))
        if artifact is None:
            made = self.compute(work, loaded, experiment, self._calibration(work, loaded, experiment))
            artifact = self.keep(work.store, loaded.model, loaded.data, mapping, made, batch_size=size, seed=seed)
        work.meter.finish()
        return Outcome({"artifacts": {self.name: artifact.hash}, "timings": work.meter.timings})

    def _calibration(self, work: Work, loaded: stages.Loaded, experiment: Experiment) -> Calibration | None:
        """None where the data cannot be calibrated on: a diagnosis says why."""
        try:
            return stages.calibration(
                work, loaded.model, loaded.data, experiment.batch_size, experiment.resolved_mapping
            )[0]
        except NonFinite:
            if self.name != DIAGNOSIS.name:
                raise
            return None

    def _key(self, model: Model, data: Dataset, mapping: QConfigMapping, batch_size: int, seed: int) -> str:
        return stages.key_of(
            self.name, self.version, stages.evaluation_key(model, data, batch_size),
            json.dumps(mapping.to_dict(), sort_keys=True), *([seed] if self.draws else []),
        )  # fmt: skip


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def _diagnose(work: Work, loaded: stages.Loaded, experiment: Experiment, calib: Calibration | None) -> Diagnosis:
    return diagnose.diagnose(
        loaded.model, loaded.data, experiment.resolved_mapping, calib, batch_size=experiment.batch_size,
        progress=work.progress,
    )  # fmt: skip


def _diagnosing(_batches: int) -> list[Stage]:
    few = -(-propagation.SAMPLES // 64)
    return [
        Stage(diagnose.COMPARE_DATA, 2 * few, stages.CALIBRATE_COST), Stage(diagnose.LOOK, seconds=0.3),
        Stage(propagation.PROPAGATE, few, 6.0), Stage(sensitivity.SENSITIVITY, 40, 0.6),
    ]  # fmt: skip


# ---- what helps ------------------------------------------------------------------------------------------------------


def _try(work: Work, loaded: stages.Loaded, experiment: Experiment, calib: Calibration | None) -> Attempts:
    """Every remedy of every fault, each config once."""
    model, data, mapping, size = loaded.model, loaded.data, experiment.resolved_mapping, experiment.batch_size
    known = DIAGNOSIS.find(work.store, model, data, mapping, batch_size=size)
    if known is None:
        known = _diagnose(work, loaded, experiment, calib)
    remedies = distinct([remedy for fault in known.faults for remedy in fault.remedies])
    reference, _ = stages.float_evaluation(work, model, data, size)
    tried = try_remedies(
        model, data, mapping, remedies[:MOST_TRIED], calib, reference=reference, batch_size=size, progress=work.progress
    )
    return Attempts(tried, max(0, len(remedies) - MOST_TRIED))


def distinct(remedies: Sequence[Remedy]) -> list[Remedy]:
    """Each config once, under the first of its names."""
    out: dict[str, Remedy] = {}
    for remedy in remedies:
        out.setdefault(json.dumps(remedy.mapping.to_dict(), sort_keys=True), remedy)
    return list(out.values())


def _trying(batches: int) -> list[Stage]:
    return [Stage(stages.EVALUATE_FLOAT, batches), Stage(advice.TRY, 10 * batches, stages.QUANTIZED_COST)]


# ---- how steady the calibration is -----------------------------------------------------------------------------------


def _stability(work: Work, loaded: stages.Loaded, experiment: Experiment, _calib: Calibration | None) -> Stability:
    return stability.stability(
        loaded.model, loaded.data, experiment.resolved_mapping, batch_size=experiment.batch_size,
        seed=experiment.seed, progress=work.progress,
    )  # fmt: skip


def _drawing(batches: int) -> list[Stage]:
    return [
        Stage(stability.GATHER, 8, 2 * stages.CALIBRATE_COST),
        Stage(stability.DRAW, 12 * batches, stages.QUANTIZED_COST),
    ]


DIAGNOSIS: Analysis[Diagnosis] = Analysis("diagnosis", 2, Diagnosis, _diagnose, _diagnosing)
ADVICE: Analysis[Attempts] = Analysis("advice", 2, Attempts, _try, _trying)
STABILITY: Analysis[Stability] = Analysis("stability", 2, Stability, _stability, _drawing, draws=True)

diagnose_task, advice_task, stability_task = DIAGNOSIS.task, ADVICE.task, STABILITY.task
