"""Runs jobs in worker processes: an embedded Dask cluster, or an existing one under QLAB_DASK.

One thread, the keeper, owns the cluster and everything that happens to it. It hands a worker one job at a time and
keeps the queue itself: Dask would send waiting jobs ahead to a busy worker, and they would die with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qlab.errors import InvalidConfig, QLabError, RunFailed
from qlab.lab.store import APP_STOPPED, CANCELLED, DONE, FAILED, QUEUED, RUNNING, Run, Store
from qlab.lab.tasks import KINDS, NOT_FOUND, TAKEN, Kind, Order, execute, find_task
from qlab.lab.work import LAB_ERROR, Outcome, recorded

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

LOG = logging.getLogger("qlab.lab")

PATIENCE = 0.6  # seconds a job may take to notice that it was cancelled, before its worker is killed
TICK = 0.25
BEAT_EVERY = 5.0
RECOVER_EVERY = 60.0
STAFF_EVERY = 10.0
CONNECT_WITHIN = "10s"
PLACES_WITHIN = 60.0
HERE_ENDS_WITHIN = 5.0
LOST_BEFORE_START = 3  # times a job may go down with a worker it had not begun on
MEMORY_EVENT = "worker-restart-memory"  # what a nanny calls it when it ends a worker over its limit

KILLED = (
    "The worker process of this run was ended from outside: it was killed, or the machine ran out of memory. "
    "Run it again; if that happens once more, use a smaller batch size."
)
NOT_SHARED = (
    "The worker did not find this run in its store. The workers of the cluster under QLAB_DASK must see the same "
    "QLAB_HOME and QLAB_DB as the app."
)
CONNECTION_LOST = "The connection to the Dask scheduler was lost while this run was going. Start it again."


@dataclass(frozen=True)
class Staff:
    """How many workers the embedded cluster has, and what each may take. memory: bytes."""

    workers: int
    threads: int
    memory: int

    @classmethod
    def of_this_machine(cls) -> Staff:
        from dask.system import CPU_COUNT
        from distributed.system import MEMORY_LIMIT

        workers = 1 if CPU_COUNT <= 3 else CPU_COUNT // 2
        share = int(min(4 * 2**30, MEMORY_LIMIT / 2 if workers == 1 else MEMORY_LIMIT * 0.8 / workers))
        return cls(workers, max(1, CPU_COUNT // workers), _worker_memory() or max(share, 2**30))


@dataclass
class _Ticket:
    """A run on its way through the runner."""

    order: Order
    max_attempts: int
    needs: tuple[str, ...] = ()  # hashes of artifacts its worker must have at hand
    future: Future | None = None
    stop_by: float | None = None  # when its worker is killed unless it ends by itself
    killed: bool = False
    lost: int = 0
    handed_out: float = field(default=0.0)


class JobRunner:
    """Queue, workers and their supervision; one for an app. Thread-safe.

    The constructor is cheap. `start` returns at once too: the cluster comes up in the background, and jobs submitted
    before that wait for it. Jobs go on without whoever submitted them.
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
        self._pending: deque[_Ticket] = deque()
        self._active: dict[str, _Ticket] = {}
        self._here: dict[str, threading.Thread] = {}
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._keeper: threading.Thread | None = None
        self._closing = False
        self._ready = threading.Event()
        self._cluster: LocalCluster | None = None
        self._client: Client | None = None
        self._understaffed_since: float | None = None
        store.recover()

    # ---- for everybody -------------------------------------------------------------------------------------------

    def start(self, timeout: float = 0.0) -> bool:
        """Bring the workers up in the background; with a timeout, wait that long. True when they are there."""
        with self._lock:
            if self._closing:
                raise RunFailed("The job runner is closed.")
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="qlab-jobs", daemon=True)
                self._keeper.start()
        return self._ready.wait(timeout)

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

        needs: hashes of artifacts its worker must have at hand. Raises InvalidConfig if there is no such run or kind.
        """
        kind = self.store.get_run(run_id).kind
        if kind not in self._kinds:
            raise InvalidConfig(f"Run {run_id} is of kind {kind!r}: this app has {', '.join(self._kinds)}.")
        self.start()
        self._take_in(run_id, self._kinds[kind], max_attempts, tuple(needs))

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
            order = Order(run_id, kind.target, str(self.store.home), self.store.url)
            self._pending.append(_Ticket(order, max_attempts, needs))
        self._wake.put(None)

    @property
    def places(self) -> int:
        """How many jobs can run at once, 1 at least. Waits for the cluster to be up, unless that number is known."""
        if self._staff is not None and not self.address:
            return self._staff.workers
        self.start(PLACES_WITHIN)
        with self._lock:
            return max(1, self._places() if self._client is not None else 0)

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

    def _mine(self, run_id: str) -> bool:
        """Whether a run is on its way through this runner. Under the lock."""
        return run_id in self._active or run_id in self._here or any(t.order.run_id == run_id for t in self._pending)

    def wait(self, run_id: str, timeout: float | None = None) -> Run:
        """The run when it has ended, or after `timeout` seconds as it then is."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.store.is_open(run_id) and (until is None or time.monotonic() < until):
            time.sleep(0.02)
        return self.store.get_run(run_id)

    def ahead(self, run_id: str) -> int | None:
        """How many jobs are before this one in the queue; None when it is not waiting here."""
        with self._lock:
            waiting = [t.order.run_id for t in self._pending]
            return len(self._active) + waiting.index(run_id) if run_id in waiting else None

    def close(self) -> None:
        """End the workers; runs that were going end as failed, with that reason."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            here = list(self._here.items())
        self._wake.put(None)
        for run_id, _ in here:
            self._end(run_id, APP_STOPPED)
        if self._keeper is not None:
            self._keeper.join(30)
        for _, thread in here:
            if thread is not threading.current_thread():
                thread.join(HERE_ENDS_WITHIN)

    def __enter__(self) -> JobRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- kinds that are carried out here -------------------------------------------------------------------------

    def _carry_out_here(self, run_id: str, target: str) -> None:
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

    # ---- the keeper ----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        beat = recovered = staffed = time.monotonic()
        try:
            while not self._closing:
                try:
                    if self._client is None:
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
                    if now - staffed > STAFF_EVERY / 5:
                        self._keep_staffed()
                        staffed = now
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
            self._client = _connect(self.address)
        else:
            self._staff = self._staff or Staff.of_this_machine()
            self._cluster, self._client = _start_cluster(self._staff, str(self.store.home / "workers"))
        self._ready.set()

    def _give_up(self, reason: str, detail: str | None) -> None:
        """End all that is queued or running, and let go of the cluster."""
        with self._lock:
            tickets = [*self._active.values(), *self._pending]
            self._active.clear()
            self._pending.clear()
            client, cluster = self._client, self._cluster
            self._client = self._cluster = None
        for ticket in tickets:
            self._end(ticket.order.run_id, reason, detail)
        self._ready.set()  # whoever waits for the start need not wait longer
        try:
            if client is not None:
                client.close(timeout=2)
            if cluster is not None:
                cluster.sync(_end_workers, cluster)
                cluster.close(timeout=10)
        except Exception:  # the workers are daemons of this process: what is left ends with it
            LOG.exception("the cluster did not close in order")

    def _end(self, run_id: str, reason: str, detail: str | None = None) -> None:
        if not self.store.wanted(run_id):
            self.store.finish(run_id, CANCELLED)  # asked to stop: that it was lost on the way is no news
        self.store.finish(run_id, FAILED, error=reason, detail=detail)

    def _settle_ended(self) -> None:
        """Take in the jobs whose future has ended; see to it that their rows say how."""
        for run_id, ticket in list(self._active.items()):
            future = ticket.future
            assert future is not None
            if not future.done():
                continue
            # Only now is the place free: until the scheduler has said so, it may send the next job to a dead worker.
            with self._lock:
                del self._active[run_id]
            run = self.store.get_run(run_id)
            if not run.ended:
                self._settle(run, ticket)
            future.release()

    def _settle(self, run: Run, ticket: _Ticket) -> None:
        """A future ended and its run did not: the worker was lost, or never knew the run."""
        from distributed import KilledWorker

        assert ticket.future is not None
        status = ticket.future.status
        error = ticket.future.exception(timeout=5) if status == "error" else None
        answer = ticket.future.result(timeout=5) if status == "finished" else None
        if answer == NOT_FOUND:
            self._end(run.id, NOT_SHARED)
        elif isinstance(error, KilledWorker) or answer == TAKEN:
            ticket.lost += 1
            again = run.status == QUEUED and ticket.lost < LOST_BEFORE_START
            if run.status == RUNNING and run.attempts < ticket.max_attempts and self.store.wanted(run.id):
                again = self.store.requeue(run.id)
            if again:
                LOG.warning("run %s lost its worker and is queued again", run.id)
                ticket.future = None
                with self._lock:
                    self._pending.appendleft(ticket)
            else:
                self._end(run.id, self._why_killed(run), str(error) if error else None)
        elif error is not None:
            self._end(run.id, LAB_ERROR, f"{type(error).__name__}: {error}")
        elif status in ("cancelled", "lost"):
            self._end(run.id, CONNECTION_LOST)
        else:
            self._end(run.id, LAB_ERROR, f"the task ended as {status} with {answer!r} and left its run {run.status}")

    def _why_killed(self, run: Run) -> str:
        assert self._client is not None
        events = self._client.get_events(MEMORY_EVENT)
        if not any(e["pid"] == run.worker_pid and at > (run.started or 0) for at, e in events or ()):
            return KILLED
        limit = f" than the {self._staff.memory / 2**30:.1f} GB a worker may take" if self._staff else ""
        return (
            f"The run needed more memory{limit} and was stopped. Use a smaller batch size, or give workers more "
            "with QLAB_WORKER_MEMORY."
        )

    def _stop_cancelled(self) -> None:
        """See that a cancelled job ends: by itself if it can, with its worker if it does not."""
        now = time.monotonic()
        with self._lock:
            waiting = [t.order.run_id for t in self._pending]
            gone = self.store.ended_of(waiting) if waiting else ()
            self._pending = deque(t for t in self._pending if t.order.run_id not in gone)
        asked = [i for i, t in self._active.items() if t.stop_by is None]
        for run_id in self.store.cancel_requests(asked) if asked else ():
            self._active[run_id].stop_by = now + PATIENCE
            # A thread of its own: the keeper's next look may be later than the moment the worker has to go.
            threading.Timer(PATIENCE, self._wake.put, (None,)).start()
        for run_id, ticket in self._active.items():
            if ticket.stop_by is not None and now >= ticket.stop_by and not ticket.killed:
                run = self.store.get_run(run_id)
                if not run.ended:
                    self.store.finish(run_id, CANCELLED)
                    self._kill_worker(run, ticket)
                ticket.killed = True

    def _kill_worker(self, run: Run, ticket: _Ticket) -> None:
        assert self._client is not None
        assert ticket.future is not None
        if self._cluster is not None:
            nannies = list(self._cluster.workers.values())
            if run.worker_pid is not None and run.worker_pid in [n.pid for n in nannies]:
                # Straight away: asking the worker to stop is answered by the very process that does not listen.
                os.kill(run.worker_pid, signal.SIGKILL)  # the nanny starts another
            return
        processing = self._client.processing()
        for address, keys in processing.items():
            if ticket.future.key not in keys:
                continue
            if len(keys) > 1:
                LOG.warning("run %s is cancelled; its worker %s has other tasks and is left alone", run.id, address)
                return
            threading.Thread(target=_restart, args=(self._client, address), name="qlab-restart", daemon=True).start()

    def _hand_out(self) -> None:
        """Give the next jobs to workers that are free."""
        if self._client is None:
            return
        with self._lock:
            if not self._pending:
                return
            free = self._places() - len(self._active)
            for _ in range(min(free, len(self._pending))):
                ticket = self._pending.popleft()
                order = ticket.order
                ticket.future = self._client.submit(
                    execute, order, key=f"qlab-{order.run_id}-{ticket.lost}", pure=False, retries=0
                )
                ticket.handed_out = time.monotonic()
                self._active[order.run_id] = ticket
                ticket.future.add_done_callback(lambda _future: self._wake.put(None))

    def _places(self) -> int:
        if self._staff is not None and self._cluster is not None:
            return self._staff.workers
        assert self._client is not None
        return sum(self._client.nthreads().values())

    def _keep_staffed(self) -> None:
        """A nanny starts a killed worker again, unless it was killed while starting; then the nanny is replaced."""
        if self._cluster is None or self._staff is None:
            return
        present = self._cluster.scheduler.workers  # type: ignore[union-attr]  # it runs in this process
        if len(present) >= self._staff.workers:
            self._understaffed_since = None
            return
        now = time.monotonic()
        self._understaffed_since = self._understaffed_since or now
        if now - self._understaffed_since > STAFF_EVERY:
            LOG.warning("a worker did not come back: starting another")
            alive = {w.name for w in present.values()}
            self._cluster.sync(_replace_missing, self._cluster, alive)
            self._understaffed_since = None


async def _end_workers(cluster: Any) -> None:
    """At once: a worker that is asked to close waits for its task, which may take no notice."""
    for nanny in cluster.workers.values():
        nanny.close_gracefully()  # means: do not start it again
        if nanny.pid is not None:
            os.kill(nanny.pid, signal.SIGKILL)


async def _replace_missing(cluster: Any, alive: set[Any]) -> None:
    for name in [n for n in cluster.workers if n not in alive]:
        await cluster.workers.pop(name).close(timeout=2)
    await cluster._correct_state()


def _start_cluster(staff: Staff, folder: str) -> tuple[LocalCluster, Client]:
    import dask
    from distributed import Client, LocalCluster

    from qlab.lab.settle import Settle

    threads = {name: str(staff.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    settings = {
        "distributed.scheduler.allowed-failures": 0,  # a job that takes its worker down must not take three more
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        # A worker's memory is its job's: nothing to move to disk, and a paused job would wait for ever.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
        "distributed.worker.profile.enabled": False,
        "distributed.nanny.pre-spawn-environ": {**dask.config.get("distributed.nanny.pre-spawn-environ"), **threads},
    }
    # Not undone below: it is read whenever a worker goes. Fifteen seconds after that the cluster looks whether one of
    # the same name is there, and if that one is just being started again after another kill, closes it for good, with
    # the job it was given. Replacing what does not come back is _keep_staffed's.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "100 days"})
    with dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=staff.workers,
            threads_per_worker=1,
            memory_limit=staff.memory,
            host="127.0.0.1",
            # None would not switch these off but bind a port on every interface.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            local_directory=folder,
            silence_logs=logging.ERROR,
        )
    client = Client(cluster, set_as_default=False)
    client.register_plugin(Settle())
    return cluster, client


def _connect(address: str) -> Client:
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_WITHIN, set_as_default=False, name="qlab")
    except (OSError, ValueError) as error:  # TimeoutError is an OSError; a malformed address a ValueError
        raise RunFailed(
            f"No Dask scheduler answers at {address}. Start it, or unset QLAB_DASK to use workers on this machine.",
            detail=str(error),
        ) from error


def _restart(client: Client, address: str) -> None:
    try:
        client.restart_workers([address], timeout=10, raise_for_error=False)
    except ValueError as error:  # a worker without a nanny: it goes on to the end of its task, which is not waited for
        LOG.warning("the worker %s of a cancelled run cannot be restarted: %s", address, error)


def _worker_memory() -> int | None:
    """QLAB_WORKER_MEMORY in bytes; "2GB" and the like are understood."""
    text = os.environ.get("QLAB_WORKER_MEMORY")
    if not text:
        return None
    from dask.utils import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InvalidConfig(f"QLAB_WORKER_MEMORY is {text!r}: write it like 2GB.") from error
