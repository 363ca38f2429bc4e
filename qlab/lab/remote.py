"""Workers of an existing Dask cluster, which share nothing with the app but the connection to the scheduler.

What a run needs travels to its worker once for each worker process, what it made travels back (courier.py, outpost.py).
All of it goes through the scheduler: workers need no way to reach the app.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import qlab
from qlab.errors import RunFailed
from qlab.lab import outpost
from qlab.lab.courier import Courier, Desk
from qlab.lab.crew import KILLED, Ended, Ticket, over_memory
from qlab.lab.parcel import Packer
from qlab.lab.tables import SCHEMA_VERSION

if TYPE_CHECKING:
    from distributed import Client

    from qlab.lab.store import Run, Store

LOG = logging.getLogger("qlab.lab")

CONNECT_WITHIN = "10s"
ANSWER_WITHIN = "5s"
LOOK_EVERY = 0.2
CONNECTION_LOST = "The connection to the Dask scheduler was lost while this run was going. Start it again."
OVER_MEMORY = (
    "The run needed more memory than its worker may take and was stopped. Use a smaller batch size, or give workers "
    "more with --memory-limit."
)


@dataclass
class _Worker:
    """A worker process of the cluster. samples: None until it has been greeted. unfit: why it can do no job."""

    threads: int
    samples: Mapping[tuple[str, str], str] | None = None
    unfit: str | None = None
    courier: Courier | None = None

    @property
    def fit(self) -> bool:
        return self.samples is not None and self.unfit is None


class RemoteCluster:
    """A Crew of the workers at an address. The constructor connects: it raises RunFailed if nobody answers."""

    def __init__(self, store: Store, address: str, wake: Callable[[], None]) -> None:
        self._address = address
        self._wake = wake
        self._client = _connect(address)
        self._topic = f"qlab-{secrets.token_hex(8)}"
        self._desk = Desk(store, self._client, self._topic, Packer(store))
        self._workers: dict[str, _Worker] = {}
        self._idle: list[str] = []
        self._couriers: dict[str, Courier] = {}  # by the id of their call
        self._back: queue.SimpleQueue[tuple[str, Courier, Ended]] = queue.SimpleQueue()
        self._looked = 0.0
        self._client.subscribe_topic(self._topic, self._hear)

    # ---- the workers ---------------------------------------------------------------------------------------------

    @property
    def places(self) -> int:
        return sum(w.fit for w in list(self._workers.values()))

    def look(self) -> None:
        """Notice who came and who went."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        present = self._ask("ncores")
        for address in [a for a in self._workers if a not in present]:
            worker = self._workers.pop(address)
            if worker.courier is not None:
                worker.courier.lose()
        for address, threads in present.items():
            if address not in self._workers:
                self._workers[address] = _Worker(threads)
                # It may be importing qlab for seconds: nobody waits for that here.
                threading.Thread(target=self._greet, args=(address,), name="qlab-greet", daemon=True).start()
        unfit = [w.unfit for w in self._workers.values() if w.unfit is not None]
        if unfit and len(unfit) == len(self._workers):
            raise RunFailed(f"None of the workers at {self._address} can do this job. {unfit[0]}")

    def _greet(self, address: str) -> None:
        worker = self._workers.get(address)
        if worker is None:
            return
        try:
            greeting = self._client.run(outpost.greet, workers=[address])[address]
        except OSError:
            self._workers.pop(address, None)  # gone, or not to be reached just now: the next look tells
            return
        except Exception as error:  # what its import of qlab raised, whatever that is
            worker.unfit = f"{address} cannot import qlab: {error}. Install qlab {qlab.__version__} there."
            LOG.warning("%s", worker.unfit)
        else:
            if greeting.version != (here := (qlab.__version__, SCHEMA_VERSION)):
                worker.unfit = (
                    f"{address} has qlab {greeting.version[0]} (tables {greeting.version[1]}), the app has {here[0]} "
                    f"(tables {here[1]}). Install the same there."
                )
                LOG.warning("%s", worker.unfit)
            worker.samples = greeting.samples
        self._wake()

    # ---- giving and taking back ------------------------------------------------------------------------------------

    def free(self) -> int:
        """Counts the workers that have nothing of ours to do, and a thread left beside what others have them do."""
        idle = [a for a, w in self._workers.items() if w.fit and w.courier is None]
        if idle:
            others, awake = self._ask("processing", workers=idle), self._ask("ncores_running")
            # A worker that is short of memory pauses: it finishes what it does and begins nothing.
            idle = [a for a in idle if a in awake and len(others.get(a, ())) < self._workers[a].threads]
        self._idle = idle
        return len(idle)

    def give(self, ticket: Ticket) -> None:
        address = self._idle.pop()
        worker = self._workers[address]
        assert worker.samples is not None

        def back(ended: Ended) -> None:
            self._back.put((address, courier, ended))
            self._wake()

        courier = Courier(self._desk, ticket, address, worker.samples, back)
        worker.courier = courier
        self._couriers[courier.call.id] = courier
        courier.start()

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """What a worker said, in the thread of the connection: only handed on here."""
        courier = self._couriers.get(event[1]["call"])
        if courier is not None:
            courier.hear(event[1])

    def ended(self) -> Sequence[Ended]:
        over = []
        with contextlib.suppress(queue.Empty):
            while True:
                address, courier, ended = self._back.get_nowait()
                over.append(ended)
                del self._couriers[courier.call.id]
                worker = self._workers.get(address)
                if worker is not None and worker.courier is courier:
                    worker.courier = None
                    if ended.lost:
                        del self._workers[address]  # it may still be listed: it has to be greeted again
        return over

    def stop(self, ticket: Ticket) -> None:
        courier = self._couriers.get(ticket.key)
        if courier is not None:
            courier.stop()

    def kill(self, ticket: Ticket, run: Run) -> None:
        courier = self._couriers.get(ticket.key)
        address = next((a for a, w in self._workers.items() if courier is not None and w.courier is courier), None)
        if address is None:
            return
        if set(self._ask("processing", workers=[address]).get(address, ())) - {ticket.key}:
            LOG.warning("run %s is cancelled; its worker %s has other tasks and is left alone", run.id, address)
            return
        threading.Thread(target=_restart, args=(self._client, address), name="qlab-restart", daemon=True).start()

    def why_lost(self, run: Run) -> str:
        with self._connected():
            return OVER_MEMORY if over_memory(self._client, run) else KILLED

    @property
    def alive(self) -> bool:
        """A connection that came back is another one: the scheduler has forgotten what it had been given."""
        return self._client.status == "running"

    def close(self) -> None:
        for courier in list(self._couriers.values()):
            courier.lose()
        self._client.close(timeout=2)  # the scheduler takes back what is unfinished, and the workers notice

    def _ask(self, what: str, **arguments: Any) -> Mapping[str, Any]:
        """One of the scheduler's answers about its workers: address -> … Raises RunFailed."""
        with self._connected():
            # Not Client.nthreads and the like: they wait half a minute for a scheduler that is gone.
            method = getattr(self._client.scheduler, what)
            return self._client.sync(method, callback_timeout=ANSWER_WITHIN, **arguments)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Raise RunFailed where the scheduler does not answer."""
        from distributed.client import ClosedClientError

        if not self.alive:
            raise RunFailed(CONNECTION_LOST)
        try:
            yield
        except (OSError, ClosedClientError) as error:
            raise RunFailed(CONNECTION_LOST, detail=f"{type(error).__name__}: {error}") from error


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
