"""Queues jobs and sees them through, on worker processes of this machine or on an existing Dask cluster (QLAB_DASK).

One thread, the keeper, owns the workers and everything that happens to them. It hands a worker one job at a time and
keeps the queue itself: Dask would send waiting jobs ahead to a busy worker, and they would die with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from qlab.errors import InvalidConfig, QLabError, RunFailed
from qlab.lab.cluster import OwnCluster, Staff
from qlab.lab.crew import Crew, Ended, Ticket
from qlab.lab.store import APP_STOPPED, CANCELLED, DONE, FAILED, RUNNING, Run, Store
from qlab.lab.tasks import KINDS, Kind, find_task
from qlab.lab.work import LAB_ERROR, Outcome, recorded

LOG = logging.getLogger("qlab.lab")

PATIENCE = 0.6  # seconds a job may take to notice that it was cancelled, before its worker is killed
TICK = 0.25
BEAT_EVERY = 5.0
RECOVER_EVERY = 60.0
PLACES_WITHIN = 10.0
HERE_ENDS_WITHIN = 5.0
LOST_BEFORE_START = 3  # times a job may go down with a worker it had not begun on


class JobRunner:
    """Queue, workers and their supervision; one for an app. Thread-safe.

    The constructor is cheap. `start` returns at once too: the workers come up in the background, and jobs submitted
    before that wait for them. Jobs go on without whoever submitted them.
    """

    def __init__(
        self,
        store: Store,
        *,
        kinds: Mapping[str, Kind] = KINDS,
        staff: Staff | None = None,
        address: str | None = None,
    ) -> None:
        self.store = store
        self.address = address or os.environ.get("QLAB_DASK") or None
        self._kinds = kinds
        self._staff = staff
        self._lock = threading.RLock()
        self._pending: deque[Ticket] = deque()
        self._active: dict[str, Ticket] = {}
        self._here: dict[str, threading.Thread] = {}
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._keeper: threading.Thread | None = None
        self._closing = False
        self._ready = threading.Event()
        self._crew: Crew | None = None
        self._places_by: float | None = None  # how long to wait for the number of places
        store.recover()

    # ---- for everybody -------------------------------------------------------------------------------------------

    def start(self, timeout: float = 0.0) -> bool:
        """Bring the workers up in the background; with a timeout, wait that long. True when they are there."""
        if not self._have_keeper():
            raise RunFailed("The job runner is closed.")
        return self._ready.wait(timeout)

    def _have_keeper(self) -> bool:
        with self._lock:
            if self._keeper is None and not self._closing:
                self._keeper = threading.Thread(target=self._keep, name="qlab-jobs", daemon=True)
                self._keeper.start()
            return not self._closing

    def submit(
        self, kind: str, *, name: str = "", parent: str | None = None, max_attempts: int = 1, **arguments: Any
    ) -> str:
        """Write the run's row and queue the job; gives the run's id at once.

        arguments: those of the kind, e.g. experiment=Experiment(…). max_attempts: how often the job may be begun when
        its worker is lost. Raises InvalidConfig for an unknown kind or arguments that cannot travel.
        """
        if kind not in self._kinds:
            raise InvalidConfig(f"There is no job of kind {kind!r}: use one of {', '.join(self._kinds)}.")
        row = self._kinds[kind].describe(self.store, arguments)
        self.start()
        columns = row.columns | ({"name": name} if name else {})
        run_id = self.store.create_run(kind=kind, parent=parent, **columns)
        self._take_in(run_id, self._kinds[kind], max_attempts)
        return run_id

    def hand_in(self, run_id: str, *, max_attempts: int = 3, needs: Sequence[str] = ()) -> None:
        """Queue a run whose row is written with status queued; one that is here or was cancelled stays as it is.

        needs: hashes of artifacts its worker must have at hand. When the runner is closing, the run ends like the
        others. Raises InvalidConfig if there is no such run or kind.
        """
        kind = self.store.get_run(run_id).kind
        if kind not in self._kinds:
            raise InvalidConfig(f"Run {run_id} is of kind {kind!r}: this app has {', '.join(self._kinds)}.")
        self._have_keeper()
        self._take_in(run_id, self._kinds[kind], max_attempts, tuple(n.removeprefix("sha256:") for n in needs))

    @property
    def places(self) -> int:
        """How many jobs can run at once, 1 at least. The first call waits for the workers, PLACES_WITHIN at most."""
        if self._staff is not None and not self.address:
            return self._staff.workers
        self.start()
        if self._places_by is None:
            self._places_by = time.monotonic() + PLACES_WITHIN
        while True:
            crew = self._crew
            known = 0 if crew is None else crew.places
            failed = crew is None and self._ready.is_set()
            if known or failed or self._closing or time.monotonic() >= self._places_by:
                return max(known, 1)
            time.sleep(0.02)

    @property
    def closing(self) -> bool:
        """Whether the runner has been told to end; jobs that are carried out here should then end too."""
        return self._closing

    def cancel(self, run_id: str, timeout: float = 5.0) -> Run:
        """Stop a run; gives it as it ended, in less than a second. One that has ended stays as it is.

        A job that looks stops by itself, at its next batch. One that does not loses its worker process.
        A run of another app is asked to stop, and not waited for.
        """
        self.store.request_cancel(run_id)
        self._wake.put(None)
        with self._lock:
            mine = self._mine(run_id)
        return self.wait(run_id, timeout) if mine else self.store.get_run(run_id)

    def wait(self, run_id: str, timeout: float | None = None) -> Run:
        """The run when it has ended, or after `timeout` seconds as it then is."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.store.is_open(run_id) and (until is None or time.monotonic() < until):
            time.sleep(0.02)
        return self.store.get_run(run_id)

    def ahead(self, run_id: str) -> int | None:
        """How many jobs are before this one in the queue; None when it is not waiting here."""
        with self._lock:
            waiting = [t.run_id for t in self._pending]
            return len(self._active) + waiting.index(run_id) if run_id in waiting else None

    def close(self) -> None:
        """End the workers; runs that were going end as failed, with that reason."""
        with self._lock:
            if self._closing:
                return
            here = list(self._here.items())
            for run_id, _ in here:  # before they see `closing`, and say that they were stopped
                self._end(run_id, APP_STOPPED)
            self._closing = True
        self._wake.put(None)
        if self._keeper is not None:
            self._keeper.join(30)
        for _, thread in here:
            if thread is not threading.current_thread():
                thread.join(HERE_ENDS_WITHIN)

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- on their way --------------------------------------------------------------------------------------------

    def _take_in(self, run_id: str, kind: Kind, max_attempts: int, needs: tuple[str, ...] = ()) -> None:
        with self._lock:
            if self._closing:
                self._end(run_id, APP_STOPPED)
                return
            if self._mine(run_id):
                return
            if kind.here:
                thread = threading.Thread(
                    target=self._carry_out_here, args=(run_id, kind.target), name=f"qlab-{run_id}", daemon=True
                )
                self._here[run_id] = thread
                thread.start()
                return
            self._pending.append(Ticket(run_id, kind.target, max_attempts, needs))
        self._wake.put(None)

    def _mine(self, run_id: str) -> bool:
        """Whether a run is on its way through this runner. Under the lock."""
        return run_id in self._active or run_id in self._here or any(t.run_id == run_id for t in self._pending)

    def _carry_out_here(self, run_id: str, target: str) -> None:
        """A kind with here=True, in a thread of its own."""
        try:
            if not self.store.start(run_id):
                return  # cancelled meanwhile
            with recorded(self.store, run_id):
                outcome = find_task(target)(self, run_id)
                if isinstance(outcome, Outcome):
                    self.store.finish(run_id, DONE, result=outcome.result, headline=outcome.headline)
                elif self.store.is_open(run_id):
                    raise TypeError(f"{target} gave {type(outcome).__name__}, not an Outcome, and left its run open")
        except QLabError as error:
            LOG.info("run %s ended: %s", run_id, error)  # it stands in the row, with its reason
        except Exception:
            LOG.exception("run %s failed", run_id)  # in the row too
        finally:
            with self._lock:
                del self._here[run_id]

    def _end(self, run_id: str, reason: str, detail: str | None = None) -> None:
        if not self.store.wanted(run_id):
            self.store.finish(run_id, CANCELLED)  # asked to stop: that it was lost on the way is no news
        self.store.finish(run_id, FAILED, error=reason, detail=detail)

    # ---- the keeper ----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        beat = recovered = time.monotonic()
        try:
            while not self._closing:
                try:
                    if self._crew is None:
                        self._open()
                    self._settle_ended()
                    self._stop_cancelled()
                    self._hand_out()
                    now = time.monotonic()
                    if now - beat > BEAT_EVERY:
                        self.store.beat()
                        beat = now
                    if now - recovered > RECOVER_EVERY:
                        self.store.recover()
                        recovered = now
                except QLabError as error:
                    self._give_up(str(error), error.detail)
                except Exception:
                    # The keeper outlives whatever happens to a cluster; who waits for it is told, not left hanging.
                    LOG.exception("the job runner failed")
                    self._give_up(LAB_ERROR, traceback.format_exc())
                self._rest()
        finally:
            self._give_up(APP_STOPPED, None)

    def _rest(self) -> None:
        """Until something happens, or a look is due."""
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=TICK if self._active or self._pending else 1.0)
            while True:
                self._wake.get_nowait()

    def _open(self) -> None:
        """Connect to the cluster, starting it if it is ours."""
        with self._lock:
            if not self._pending and self._ready.is_set():
                return  # given up before; the next job is reason to try again
        if self.address:
            from qlab.lab.remote import RemoteCluster

            self._crew = RemoteCluster(self.store, self.address, lambda: self._wake.put(None))
        else:
            self._staff = self._staff or Staff.of_this_machine()
            self._crew = OwnCluster(self.store, self._staff, lambda: self._wake.put(None))
        self._ready.set()

    def _give_up(self, reason: str, detail: str | None) -> None:
        """End all that is queued or running, and let go of the cluster."""
        with self._lock:
            tickets = [*self._active.values(), *self._pending]
            self._active.clear()
            self._pending.clear()
        for ticket in tickets:
            self._end(ticket.run_id, reason, detail)
        self._ready.set()  # whoever waits for the start need not wait longer
        self._let_go()

    def _let_go(self) -> None:
        crew, self._crew = self._crew, None
        try:
            if crew is not None:
                crew.close()
        except Exception:  # the workers are daemons of this process: what is left ends with it
            LOG.exception("the cluster did not close in order")

    def _hand_out(self) -> None:
        """Give the next jobs to workers that are free."""
        if self._crew is None:
            return
        if not self._active and not self._crew.alive:
            self._let_go()  # lost while there was nothing to do: a job that comes now gets another
            return
        self._crew.look()
        if not self._pending:
            return
        for _ in range(self._crew.free()):
            with self._lock:
                if not self._pending:
                    return
                ticket = self._pending.popleft()
                self._active[ticket.run_id] = ticket
            self._crew.give(ticket)

    def _settle_ended(self) -> None:
        """Take in the jobs that came back; see to it that their rows say how."""
        for ended in self._crew.ended() if self._crew is not None else ():
            run = self.store.get_run(ended.ticket.run_id)
            again = not run.ended and self._settle(run, ended)
            with self._lock:
                del self._active[run.id]
                if again:
                    self._pending.appendleft(ended.ticket)

    def _settle(self, run: Run, ended: Ended) -> bool:
        """A job came back and its run did not end: its worker was lost, or could not do it. True: once more."""
        assert self._crew is not None
        ticket = ended.ticket
        if not ended.lost:
            detail = ended.detail or (None if ended.reason else f"the job came back and left its run {run.status}")
            self._end(run.id, ended.reason or LAB_ERROR, detail)
            return False
        if run.status == RUNNING:
            ticket.begun += 1
            again = ticket.begun < ticket.max_attempts and self.store.wanted(run.id) and self.store.requeue(run.id)
        else:
            ticket.lost += 1
            again = ticket.lost < LOST_BEFORE_START
        if again:
            LOG.warning("run %s lost its worker and is queued again", run.id)
        else:
            self._end(run.id, self._crew.why_lost(run), ended.detail)
        return again

    def _stop_cancelled(self) -> None:
        """See that a cancelled job ends: by itself if it can, with its worker if it does not."""
        if self._crew is None:
            return
        now = time.monotonic()
        with self._lock:
            here = [*self._active, *(t.run_id for t in self._pending)]
            gone = self.store.ended_of(here) if here else set()
            self._pending = deque(t for t in self._pending if t.run_id not in gone)
        # A run that was given out and has ended all the same was cancelled before its worker took it up.
        asked = [i for i, t in self._active.items() if t.stop_by is None]
        for run_id in [*self.store.cancel_requests(asked), *gone.intersection(asked)] if asked else ():
            ticket = self._active[run_id]
            ticket.stop_by = now + PATIENCE
            self._crew.stop(ticket)
            # A thread of its own: the keeper's next look may be later than the moment the worker has to go.
            threading.Timer(PATIENCE, self._wake.put, (None,)).start()
        for run_id, ticket in self._active.items():
            if ticket.stop_by is not None and now >= ticket.stop_by and not ticket.killed:
                run = self.store.get_run(run_id)
                if not run.ended:
                    self.store.finish(run_id, CANCELLED)
                    self._crew.kill(ticket, run)
                ticket.killed = True


__all__ = ["JobRunner", "Staff"]
