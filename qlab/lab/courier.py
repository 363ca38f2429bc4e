"""Sees one run through on a worker that shares no files with the app; a thread for each run that is given out."""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qlab.errors import InvalidConfig, QLabError, RunFailed
from qlab.lab import line, outpost
from qlab.lab.crew import Ended, Ticket
from qlab.lab.parcel import Answer, Blob, Call, Packer, Parcel, columns_of
from qlab.lab.process import Process
from qlab.lab.progress import Progress
from qlab.lab.store import CANCELLED, Artifact, Store
from qlab.lab.work import LAB_ERROR

if TYPE_CHECKING:
    from distributed import Client, Future

LOG = logging.getLogger("qlab.lab")

CHUNK = 4 << 20  # bytes in one message: small enough that others' messages get through between two
SHOWN = 16 << 20  # bytes from which the run says that a file is on its way
SENDING, MB = "send files", 1 << 20


class WorkerLost(Exception):
    """The worker does not answer any more."""


@dataclass(frozen=True)
class Desk:
    """What the couriers of a cluster share. confirmed: (kind, key) of what is derived on both sides."""

    store: Store
    client: Client
    topic: str
    packer: Packer
    confirmed: set[tuple[str, str]] = field(default_factory=set)


class Courier:
    """Takes a ticket to a worker, answers what the worker asks, writes progress and outcome into the app's store."""

    def __init__(
        self,
        desk: Desk,
        ticket: Ticket,
        address: str,
        samples: Mapping[tuple[str, str], str],
        back: Callable[[Ended], None],
    ) -> None:
        self.call = Call(ticket.key, ticket.run_id, desk.topic)
        self._desk = desk
        self._ticket = ticket
        self._address = address
        self._samples = samples
        self._back = back
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._begun = False

    # ---- for the cluster, which must not wait --------------------------------------------------------------------

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"qlab-{self._ticket.run_id}", daemon=True).start()

    def hear(self, message: dict[str, Any]) -> None:
        """Something the worker said, or one of the two below."""
        self._inbox.put(message)

    def stop(self) -> None:
        """The run was cancelled."""
        self._stopping.set()
        self._inbox.put({"what": "stop"})

    def lose(self) -> None:
        """The worker is gone."""
        self._lost.set()
        self._inbox.put({"what": "lost"})

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = Ended(self._ticket)
        try:
            self._see_through()
        except WorkerLost:
            ended = Ended(self._ticket, lost=True)
        except QLabError as error:
            ended = Ended(self._ticket, reason=str(error), detail=error.detail)
        except Exception as error:
            if self._lost.is_set():  # what a connection that is being closed raises says nothing
                ended = Ended(self._ticket, lost=True)
            else:
                LOG.exception("run %s failed on its way", self._ticket.run_id)
                ended = Ended(self._ticket, reason=LAB_ERROR, detail=f"{type(error).__name__}: {error}")
        finally:
            self._back(ended)

    def _see_through(self) -> None:
        future = self._desk.client.submit(
            outpost.execute, self.call, key=self.call.id, workers=[self._address], allow_other_workers=False,
            pure=False, retries=0,
        )  # fmt: skip
        try:
            future.add_done_callback(lambda _future: self._inbox.put({"what": "done"}))
            while True:
                message = self._inbox.get()
                if self._lost.is_set():
                    raise WorkerLost
                if message["what"] == "stop" and not self._begun:
                    return  # its task is taken back below
                if message["what"] == "done":
                    break
                self._handle(message)
            answer = self._outcome(future)
        except OSError as error:  # what a connection raises
            raise WorkerLost from error
        finally:
            future.release()  # a task that still goes on sees by that that nobody waits for it
        if answer is not None:
            self._write(answer)

    def _outcome(self, future: Future) -> Answer | None:
        """What the task gave, from the worker it lies on. Raises what the task raised, and WorkerLost."""
        from distributed import KilledWorker

        while True:
            if self._lost.is_set() or future.status in ("cancelled", "lost"):
                raise WorkerLost
            try:
                return future.result(timeout=2)
            except KilledWorker as error:
                raise WorkerLost from error
            except TimeoutError:
                continue  # a large outcome, or a worker that was lost with it, which the cluster is about to notice

    def _handle(self, message: dict[str, Any]) -> None:
        what, store, run_id = message["what"], self._desk.store, self._ticket.run_id
        if what == "stop":
            self._say(line.stop)
        elif what == line.PROGRESS:
            m = message
            if not store.report(run_id, Progress(m["stage"], m["done"], m["total"], m["share"], m["left"])):
                self._say(line.stop)
        elif what == line.BEGIN:
            self._begin(message["ask"], Process(**message["process"]))
        elif what == line.ARTIFACT:
            self._answer(message["ask"], _find(store, message["hash"]))
        elif what == line.DERIVED:
            found = store.find_derived(message["kind"], message["key"])
            if found is not None:
                self._desk.confirmed.add((message["kind"], message["key"]))
            self._answer(message["ask"], found)
        else:
            raise RuntimeError(f"a worker said {what!r}")

    def _say(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call something on the worker, in its event loop. Raises WorkerLost."""
        try:
            found = self._desk.client.run(function, self.call.id, *arguments, workers=[self._address])
        except OSError as error:
            raise WorkerLost from error
        return found[self._address]

    # ---- there ---------------------------------------------------------------------------------------------------

    def _begin(self, ask: int, process: Process) -> None:
        if self._begun:  # the cluster gave the task to another process, as it does when the first one dies
            raise WorkerLost
        store, ticket = self._desk.store, self._ticket
        parcel: Parcel | None = None
        run = store.get_run(ticket.run_id)
        if not run.ended:
            packed = self._desk.packer.pack(run, ticket.target, ticket.needs, self._samples)
            if store.start(run.id, process):
                self._begun = True
                parcel = replace(packed, row=columns_of(store.get_run(run.id)))
        self._say(line.reply, ask, parcel, True)

    def _answer(self, ask: int, artifact: Artifact | None) -> None:
        """Tell the worker what was found, and send the bytes if it has not got them."""
        blob = None if artifact is None else Blob.of(artifact)
        if self._say(line.reply, ask, blob, False):
            return
        assert artifact is not None
        LOG.debug("sending sha256:%s to %s for run %s", artifact.hash, self._address, self._ticket.run_id)
        with artifact.path.open("rb") as stream:
            for offset in range(0, max(artifact.bytes, 1), CHUNK):
                if self._lost.is_set():
                    raise WorkerLost
                if self._stopping.is_set() or not self._show(offset, artifact.bytes):
                    self._say(line.stop)
                    return
                if not self._say(line.receive, ask, offset, stream.read(CHUNK)):
                    return  # the run has ended there
        self._say(line.reply, ask, blob, True)

    def _show(self, sent: int, size: int) -> bool:
        """Say how much of a large file is sent. False: the run was cancelled."""
        now = Progress(SENDING, sent // MB, size // MB, 0.0, None)
        return size < SHOWN or self._desk.store.report(self._ticket.run_id, now)

    # ---- and back ------------------------------------------------------------------------------------------------

    def _write(self, answer: Answer) -> None:
        """The outcome into the app's store: files first, so that a run that is done lacks nothing."""
        store, run_id = self._desk.store, self._ticket.run_id
        if answer.status == CANCELLED or not store.wanted(run_id):
            store.finish(run_id, CANCELLED)
            return
        for blob in answer.blobs:
            if _find(store, blob.hash) is None:
                self._fetch(blob)
        for kind, key, digest in (*answer.found, *answer.made):
            made = (kind, key, digest) in answer.made
            if made or ((kind, key) not in self._desk.confirmed and store.find_derived(kind, key) is None):
                store.derive(kind, key, store.artifact(digest))
            self._desk.confirmed.add((kind, key))
        if answer.columns:
            store.identify(run_id, **answer.columns)
        result = None if answer.result is None else json.loads(answer.result)
        store.finish(
            run_id, answer.status, result=result, headline=answer.headline, error=answer.error, detail=answer.detail
        )

    def _fetch(self, blob: Blob) -> None:
        store = self._desk.store
        with store.new_file() as path:
            with path.open("wb") as stream:
                while (offset := stream.tell()) < blob.bytes:
                    piece = self._take(blob.hash, offset)
                    if not piece:
                        break
                    stream.write(piece)
            found = store.add_upload(path, blob.original_name, kind=blob.kind, media=blob.media)
        if found.hash != blob.hash:
            raise RunFailed(
                f"The file sha256:{blob.hash[:12]}… came back from {self._address} as other bytes "
                f"({found.hash[:12]}…). Run it again."
            )

    def _take(self, digest: str, offset: int) -> bytes:
        client = self._desk.client
        try:
            return client.run(outpost.give, digest, offset, CHUNK, workers=[self._address])[self._address]
        except OSError as error:
            raise WorkerLost from error


def _find(store: Store, digest: str) -> Artifact | None:
    try:
        return store.artifact(digest)
    except InvalidConfig:
        return None
