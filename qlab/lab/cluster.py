"""Worker processes on this machine: a Dask cluster inside the app, which looks into the app's own store."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlab.errors import InvalidConfig
from qlab.lab.crew import KILLED, Ended, Ticket, over_memory
from qlab.lab.tasks import TAKEN, Order, execute
from qlab.lab.work import LAB_ERROR

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

    from qlab.lab.store import Run, Store

LOG = logging.getLogger("qlab.lab")

STAFF_EVERY = 10.0
DISCONNECTED = "The connection to the worker processes was lost while this run was going. Start it again."


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


class OwnCluster:
    """A Crew of processes that are daemons of this one. The constructor takes a second."""

    def __init__(self, store: Store, staff: Staff, wake: Callable[[], None]) -> None:
        self._store = store
        self._staff = staff
        self._wake = wake
        self._cluster, self._client = _start_cluster(staff, str(store.home / "workers"))
        self._active: dict[Ticket, Future] = {}
        self._looked = time.monotonic()
        self._understaffed_since: float | None = None

    @property
    def places(self) -> int:
        return self._staff.workers

    @property
    def alive(self) -> bool:
        return True

    def free(self) -> int:
        return self._staff.workers - len(self._active)

    def give(self, ticket: Ticket) -> None:
        order = Order(ticket.run_id, ticket.target, str(self._store.home), self._store.url)
        future = self._client.submit(execute, order, key=ticket.key, pure=False, retries=0)
        self._active[ticket] = future
        future.add_done_callback(lambda _future: self._wake())

    def ended(self) -> Sequence[Ended]:
        over = [ticket for ticket, future in self._active.items() if future.done()]
        # Only now is the place free: until the scheduler has said so, it may send the next job to a dead worker.
        return [_ended(ticket, self._active.pop(ticket)) for ticket in over]

    def look(self) -> None:
        """A nanny starts a killed worker again, unless it was killed while starting; then the nanny is replaced."""
        now = time.monotonic()
        if now - self._looked < STAFF_EVERY / 5:
            return
        self._looked = now
        present = self._cluster.scheduler.workers  # type: ignore[union-attr]  # it runs in this process
        if len(present) >= self._staff.workers:
            self._understaffed_since = None
            return
        self._understaffed_since = self._understaffed_since or now
        if now - self._understaffed_since > STAFF_EVERY:
            LOG.warning("a worker did not come back: starting another")
            alive = {w.name for w in present.values()}
            self._cluster.sync(_replace_missing, self._cluster, alive)
            self._understaffed_since = None

    def stop(self, ticket: Ticket) -> None:
        """The worker sees it in the store."""

    def kill(self, ticket: Ticket, run: Run) -> None:
        nannies = list(self._cluster.workers.values())
        if run.worker_pid is not None and run.worker_pid in [n.pid for n in nannies]:
            # Straight away: asking the worker to stop is answered by the very process that does not listen.
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.worker_pid, signal.SIGKILL)  # the nanny starts another

    def why_lost(self, run: Run) -> str:
        if not over_memory(self._client, run):
            return KILLED
        return (
            f"The run needed more memory than the {self._staff.memory / 2**30:.1f} GB a worker may take and was "
            "stopped. Use a smaller batch size, or give workers more with QLAB_WORKER_MEMORY."
        )

    def close(self) -> None:
        self._client.close(timeout=2)
        self._cluster.sync(_end_workers, self._cluster)
        self._cluster.close(timeout=10)


def _ended(ticket: Ticket, future: Future) -> Ended:
    """The row says how it went, unless the worker was lost or never began."""
    from distributed import KilledWorker

    status = future.status
    error = future.exception(timeout=5) if status == "error" else None
    answer = future.result(timeout=5) if status == "finished" else None
    future.release()
    if isinstance(error, KilledWorker) or answer == TAKEN:
        return Ended(ticket, lost=True, detail=str(error) if error else None)
    if error is not None:
        return Ended(ticket, reason=LAB_ERROR, detail=f"{type(error).__name__}: {error}")
    if status in ("cancelled", "lost"):
        return Ended(ticket, reason=DISCONNECTED)
    return Ended(ticket, reason=LAB_ERROR, detail=f"the task ended as {status} with {answer!r} and left its run open")


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
    # the job it was given. Replacing what does not come back is done in `look`.
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
