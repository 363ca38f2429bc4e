"""The job that times the exported files of several runs side by side, so that their latencies can be compared."""

from __future__ import annotations

from typing import Any

from qlab.errors import InvalidConfig, UnsupportedModel
from qlab.lab import stages, templates
from qlab.lab.experiment import Experiment
from qlab.lab.progress import Stage
from qlab.lab.work import Outcome, Work
from qlab.runtime.latency import Call, time_calls
from qlab.runtime.measure import call_of, take, torch_threads, wait_for_quiet
from qlab.runtime.session import RuntimeOptions, float_session, integer_session

OPEN_SESSIONS, TIME = "open sessions", "time"
SECONDS_EACH = 0.4  # of timed turns, for each network
FLOAT = "float"


def latency_task(work: Work, spec: dict[str, Any]) -> Outcome:
    """What a job of kind "latency" does. spec: experiments (run -> experiment), batch, threads.

    Every run's file and its float network take turns in one process (`time_calls`). The median goes into the row of the
    run; the result has quartiles, and how each compares with float turn by turn. A config without an ONNX form is left
    out with the reason. Raises InvalidConfig when the runs are of different networks, or none has a session.
    """
    batch, threads = spec["batch"], spec["threads"]
    experiments = {run_id: Experiment.from_dict(d) for run_id, d in spec["experiments"].items()}
    count = len(experiments)
    first = next(iter(experiments.values()))

    def own_stages(_batches: int) -> list[Stage]:
        return [
            Stage(templates.EXPORT, seconds=templates.SECONDS), Stage(OPEN_SESSIONS, seconds=0.15 * count),
            Stage(TIME, seconds=SECONDS_EACH * (count + 1)),
        ]  # fmt: skip

    ranges = any(e.resolved_mapping.needs_calibration for e in experiments.values())
    loaded = stages.load(work, first, ranges=ranges, reference=False, then=own_stages)
    work.progress(templates.EXPORT)
    templates.ensure_template(work.store, loaded.model)
    x = take(loaded.model, loaded.data, batch)
    calls: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    with torch_threads(threads):
        options = RuntimeOptions(threads=threads)
        calls[FLOAT] = call_of(float_session(loaded.model, options), x)
        for number, (run_id, experiment) in enumerate(experiments.items()):
            work.progress(OPEN_SESSIONS, number, count)
            own = stages.load(work, experiment, ranges=experiment.resolved_mapping.needs_calibration, reference=False)
            if own.model.content_hash != loaded.model.content_hash:
                raise InvalidConfig("These runs are of different networks: time those of one network together.")
            qmodel = stages.quantized(work, own, experiment)
            try:
                calls[run_id] = call_of(integer_session(qmodel, options), x)
                calls[run_id]()
            except UnsupportedModel as error:
                calls.pop(run_id, None)
                left_out[run_id] = str(error)
        if len(calls) == 1:
            raise InvalidConfig(f"None of these runs can be timed: {next(iter(left_out.values()))}")
        busy = wait_for_quiet()
        timing = time_calls(
            calls, len(x[0]), threads, budget=SECONDS_EACH * len(calls),
            progress=lambda done, total: work.progress(TIME, done, total),
        )  # fmt: skip
    work.meter.finish()
    latencies = {name: timing.latency(name).to_dict() for name in calls}
    for run_id in calls:
        if run_id != FLOAT:
            work.store.note_latency(run_id, latencies[run_id]["median"], timing.batch)
    return Outcome(
        {
            "batch": timing.batch,
            "threads": threads,
            "latency": latencies,
            "over_float": {name: list(timing.ratio(name, FLOAT)) for name in calls if name != FLOAT},
            "left_out": left_out,
            "busy": busy,
            "timings": work.meter.timings,
        }
    )
