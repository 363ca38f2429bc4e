"""Tasks the job tests hand to real workers. Imported there, so light."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from qlab.errors import DataMismatch
from qlab.lab.progress import Stage
from qlab.lab.tasks import Kind
from qlab.lab.work import Outcome, Work


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


KINDS = {
    function.__name__: Kind(f"tests.lab.job_tasks:{function.__name__}")
    for function in (count, stubborn, die, die_once, gorge, mismatch, broken, settings)
}
