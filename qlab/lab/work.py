"""A run while it is being carried out: progress and cancel on the way, how it ended at the end.

The same for a worker of the app and for a script: only who calls it differs.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qlab.errors import Cancelled, QLabError
from qlab.lab.progress import Meter, Progress, ProgressCallback
from qlab.lab.store import CANCELLED, DONE, FAILED, Headline, Store

REPORT_EVERY = 0.2
LAB_ERROR = "Something in the lab itself went wrong. The detail says what; the run can be tried again."
NO_MEMORY = (
    "There was not enough memory for this run. Use a smaller batch size, or give workers more with QLAB_WORKER_MEMORY."
)
STOPPED = "The run was stopped."


@dataclass(frozen=True)
class Outcome:
    """What a task gives: the result as JSON, and the figures tables sort by."""

    result: Mapping[str, Any]
    headline: Headline = field(default_factory=Headline)


class Work:
    """What a task is handed: the store, its run, and `progress`, which raises Cancelled when the run is to stop."""

    def __init__(
        self,
        store: Store,
        run_id: str,
        progress: ProgressCallback | None = None,
        watch: Callable[[Progress], None] | None = None,
    ) -> None:
        self.store = store
        self.run_id = run_id
        self.meter = Meter(())
        self._progress = progress
        self._watch = watch
        self._stage: str | None = None
        self._reported = 0.0

    def progress(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Note how far the work is. Raises Cancelled."""
        now = self.meter.at(stage, done, total)
        if self._progress is not None:
            self._progress(stage, done, total)
        if self._watch is not None:
            self._watch(now)
        # A transaction for every batch would cost more than a small network; a new stage is always written.
        if stage != self._stage or time.monotonic() - self._reported >= REPORT_EVERY:
            self._stage, self._reported = stage, time.monotonic()
            if not self.store.report(self.run_id, now):
                raise Cancelled(STOPPED)

    def stage(self, name: str) -> ProgressCallback:
        """A progress callback for a part of the engine, shown under the name this run uses for it."""

        def forward(_stage: str, done: int, total: int) -> None:
            self.progress(name, done, total)

        return forward


@contextmanager
def recorded(store: Store, run_id: str) -> Iterator[None]:
    """Whatever ends the work within, the run's row says so; the exception goes on."""
    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        store.finish(run_id, CANCELLED)
        raise
    except QLabError as error:
        store.finish(run_id, FAILED, error=str(error), detail=error.detail)
        raise
    except MemoryError:
        store.finish(run_id, FAILED, error=NO_MEMORY, detail=traceback.format_exc())
        raise
    except BaseException:
        store.finish(run_id, FAILED, error=LAB_ERROR, detail=traceback.format_exc())
        raise


def carry_out(task: Callable[[Work, dict[str, Any]], Outcome], work: Work, spec: dict[str, Any]) -> None:
    """Run a task whose row has been started, and store what it gives. Raises what the task raises."""
    with recorded(work.store, work.run_id):
        outcome = task(work, spec)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"the task gave {type(outcome).__name__}, not an Outcome")
        if not work.store.finish(work.run_id, DONE, result=outcome.result, headline=outcome.headline):
            raise Cancelled(STOPPED)
