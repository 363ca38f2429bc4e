"""Tasks the job tests hand to real workers. Imported there, so light."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from qlab.errors import Cancelled, DataMismatch
from qlab.lab.progress import Stage
from qlab.lab.tasks import Kind
from qlab.lab.work import Outcome, Work

if TYPE_CHECKING:
    from qlab.lab.jobs import JobRunner


def count(work: Work, spec: dict[str, Any]) -> Outcome:
    """Counts, looking for a cancel at each step."""
    steps, pause = spec["steps"], spec.get("pause", 0.01)
    work.meter.plan([Stage("count", units=steps)])
    for step in range(steps):
        work.progress("count", step, steps)
        time.sleep(pause)
    return Outcome({"steps": steps, "pid": os.getpid(), "nice": os.getpriority(os.PRIO_PROCESS, 0)})


def stubborn(work: Work, spec: dict[str, Any]) -> Outcome:
    """Never looks whether it is wanted."""
    end = time.monotonic() + spec.get("seconds", 60)
    while time.monotonic() < end:
        sum(range(10_000))
    return Outcome({"pid": os.getpid()})


def die(work: Work, spec: dict[str, Any]) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def die_once(work: Work, spec: dict[str, Any]) -> Outcome:
    if work.store.get_run(work.run_id).attempts == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome({"attempts": work.store.get_run(work.run_id).attempts})


def gorge(work: Work, spec: dict[str, Any]) -> Outcome:
    """Takes more and more memory."""
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20) * 16))
        time.sleep(0.02)


def mismatch(work: Work, spec: dict[str, Any]) -> Outcome:
    raise DataMismatch("The data has 3 channels, the model takes 1.", detail="shape [8, 3, 16, 16]")


def broken(work: Work, spec: dict[str, Any]) -> Outcome:
    return Outcome({"x": {}["missing"]})


def settings(work: Work, spec: dict[str, Any]) -> Outcome:
    import torch

    return Outcome({"threads": torch.get_num_threads(), "main": __import__("sys").modules["__main__"].__name__})


def lead(runner: JobRunner, run_id: str) -> Outcome:
    """Light coordination: writes the rows of parts, hands them in and waits for them, looking for a cancel."""
    store = runner.store
    spec = store.get_run(run_id).spec
    rows = [{"spec": {"steps": spec["steps"]}} for _ in range(spec["parts"])]
    parts = store.create_runs(rows, kind="count", parent=run_id)
    for part in parts:
        runner.hand_in(part)
        runner.hand_in(part)  # once is enough, and twice does no harm
    while any(store.is_open(part) for part in parts):
        if runner.closing or not store.wanted(run_id):
            raise Cancelled("The run was stopped.")
        time.sleep(0.02)
    return Outcome({"statuses": [store.get_run(part).status for part in parts], "pid": os.getpid()})


def lead_astray(runner: JobRunner, run_id: str) -> Outcome:
    raise DataMismatch("Nothing to lead.")


def lead_nowhere(runner: JobRunner, run_id: str) -> None:
    """Leaves its row open, which is a fault."""


KINDS = {
    function.__name__: Kind(f"tests.lab.job_tasks:{function.__name__}")
    for function in (count, stubborn, die, die_once, gorge, mismatch, broken, settings)
} | {
    function.__name__: Kind(f"tests.lab.job_tasks:{function.__name__}", here=True)
    for function in (lead, lead_astray, lead_nowhere)
}
