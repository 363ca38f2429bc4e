"""The worker's side of a cluster without shared files: a store of its own that asks the app for what it lacks.

The tasks are those of any worker. They find a Store in their Work as ever; what it does not hold, a file or something
derived, it asks the app for, keeps for later runs of this process, and tells at the end what the run made and used.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import qlab
from qlab.errors import Cancelled, InvalidConfig, QLabError, RunFailed
from qlab.lab.line import ARTIFACT, BEGIN, DERIVED, LINES, PROGRESS, Line
from qlab.lab.parcel import Answer, Blob, Call, Greeting, Parcel, renamed, samples_here
from qlab.lab.process import this_process
from qlab.lab.progress import Progress
from qlab.lab.store import DONE, Artifact, Headline, Store
from qlab.lab.tables import DOCUMENTS, RUNS, SCHEMA_VERSION
from qlab.lab.tasks import find_task
from qlab.lab.work import Work, carry_out

if TYPE_CHECKING:
    from distributed import Worker

LOG = logging.getLogger("qlab.lab")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ROOM = 8 << 30  # bytes of files that a worker keeps for later runs; those unused for longest go first
TOLD = ("name", "model", "data", "config", "model_hash", "data_hash", "content_key", "rival")

_SETTLED = threading.Event()


# ---- called by the app, in the event loop of the worker --------------------------------------------------------------


def greet(dask_worker: Worker) -> Greeting:
    """Say what is here; torch is loaded meanwhile, with the threads of the worker."""
    if not _SETTLED.is_set():  # by another app, whose torch may still be loading
        _SETTLED.set()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(dask_worker.state.nthreads)
        else:
            # Read when it is loaded; a nanny sets each of them to 1.
            os.environ |= dict.fromkeys(THREADS, str(dask_worker.state.nthreads))
            threading.Thread(target=importlib.import_module, args=("torch",), name="load-torch", daemon=True).start()
    return Greeting((qlab.__version__, SCHEMA_VERSION), samples_here())


def give(digest: str, offset: int, size: int, dask_worker: Worker) -> bytes:
    """A piece of a file that a run made here."""
    with (_home(dask_worker) / "artifacts" / digest).open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


# ---- the task --------------------------------------------------------------------------------------------------------


def execute(call: Call) -> Answer | None:
    """Carry out one run. The answer says how it ended; None if it is not wanted."""
    from distributed import get_worker

    worker = get_worker()
    line = Line(worker, call, _home(worker))
    LINES[call.id] = line
    try:
        parcel, _ = line.ask(BEGIN, process=asdict(this_process()))
        if not isinstance(parcel, Parcel):
            return None
        store = Outpost(_home(worker), line)
        try:
            return _carry_out(store, parcel, call.run_id)
        finally:
            store.close()
    except Cancelled:  # while it waited for the parcel
        return None
    finally:
        del LINES[call.id]


def _carry_out(store: Outpost, parcel: Parcel, run_id: str) -> Answer:
    store.open_run(parcel.row)

    def task(work: Work, _spec: dict[str, Any]) -> Any:
        store.make_room()
        for digest in parcel.needs:
            store.fetch(digest)
        spec = renamed(work.store.get_run(run_id).spec, store.name_files(parcel))
        return find_task(parcel.target)(work, spec)

    try:
        carry_out(task, Work(store, run_id), {})
    except QLabError as error:
        LOG.info("run %s ended: %s", run_id, error)  # it stands in the answer, with its reason
    except Exception:
        LOG.exception("run %s failed", run_id)  # in the answer too
    return store.close_run(parcel.row)


def _home(worker: Worker) -> Path:
    """Within the folder that the worker removes when it goes."""
    return Path(worker.local_directory) / f"qlab-{os.getpid()}"


# ---- the store -------------------------------------------------------------------------------------------------------


class Outpost(Store):
    """A Store in the folder of a worker, for one run. What it lacks it asks for; how the run ends it keeps to tell."""

    def __init__(self, home: Path, line: Line) -> None:
        # Not the database that QLAB_DB may name: what is in here is this process's own.
        super().__init__(home, f"sqlite:///{home / 'qlab.db'}")
        self._line = line
        self._used: dict[str, Blob] = {}
        self._made: dict[tuple[str, str], str] = {}
        self._found: dict[tuple[str, str], str] = {}
        self._answer: Answer | None = None

    # ---- the run -------------------------------------------------------------------------------------------------

    def open_run(self, row: Mapping[str, Any]) -> None:
        """Write the row as the app has it."""
        owner = self._own()
        with self._write() as connection:
            self._forget(connection, row["id"])
            connection.execute(RUNS.insert().values({**row, "owner": owner}))

    def close_run(self, row: Mapping[str, Any]) -> Answer:
        """How it ended, with what it made; the row is gone afterwards."""
        assert self._answer is not None, "a run that was carried out has ended"
        now = self.get_run(row["id"])
        with self._write() as connection:
            self._forget(connection, row["id"])
        return Answer(
            **{name: getattr(self._answer, name) for name in ("status", "result", "headline", "error", "detail")},
            columns={name: getattr(now, name) for name in TOLD if getattr(now, name) != row[name]},
            blobs=tuple(self._used.values()),
            made=tuple((kind, key, digest) for (kind, key), digest in self._made.items()),
            found=tuple((kind, key, digest) for (kind, key), digest in self._found.items()),
        )

    @staticmethod
    def _forget(connection: Any, run_id: str) -> None:
        connection.execute(DOCUMENTS.delete().where(DOCUMENTS.c.run == run_id))
        connection.execute(RUNS.delete().where(RUNS.c.id == run_id))

    def report(self, run_id: str, progress: Progress) -> bool:
        left = progress.seconds_left
        self._line.say(
            PROGRESS, stage=progress.stage, done=int(progress.done), total=int(progress.total),
            share=float(progress.share), left=None if left is None else float(left),
        )  # fmt: skip
        return self._line.wanted

    def wanted(self, run_id: str) -> bool:
        return self._line.wanted

    def finish(
        self,
        run_id: str,
        status: str,
        *,
        result: Mapping[str, Any] | None = None,
        headline: Headline | None = None,
        error: str | None = None,
        detail: str | None = None,
    ) -> bool:
        if self._answer is not None:
            return False
        if status == DONE and not self._line.wanted:
            return False
        written = None if result is None else json.dumps(result)  # raises here, where the task can still fail
        self._answer = Answer(status, written, headline, error, detail)
        return True

    # ---- files ---------------------------------------------------------------------------------------------------

    def artifact(self, reference: str) -> Artifact:
        digest = reference.removeprefix("sha256:")
        found = self.fetch(digest)
        return found if found is not None else super().artifact(digest)  # which says that it is nowhere

    def fetch(self, digest: str) -> Artifact | None:
        """The artifact, from the app if it is not here; None if the app has none either."""
        try:
            found = super().artifact(digest)
        except InvalidConfig:
            return self._received(*self._line.ask(ARTIFACT, hash=digest))
        os.utime(found.path)  # used last now
        self._used[digest] = Blob.of(found)
        return found

    def find_derived(self, kind: str, key: str) -> Artifact | None:
        found = super().find_derived(kind, key)
        if found is not None:
            self._found[kind, key] = found.hash
            return found
        found = self._received(*self._line.ask(DERIVED, kind=kind, key=key))
        if found is not None:
            super().derive(kind, key, found)
        return found

    def derive(self, kind: str, key: str, artifact: Artifact) -> None:
        super().derive(kind, key, artifact)
        self._made[kind, key] = artifact.hash

    def _take(self, stream: BinaryIO, name: str, limit: int | None, kind: str, media: str) -> Artifact:
        artifact = super()._take(stream, name, limit, kind, media)
        self._used[artifact.hash] = Blob.of(artifact)
        return artifact

    def _received(self, blob: Parcel | Blob | None, part: Path | None) -> Artifact | None:
        """The blob as an artifact of this store. Raises RunFailed if its bytes are not those it is named by."""
        if not isinstance(blob, Blob):
            return None
        if part is None:
            return super().artifact(blob.hash)
        try:
            found = super().add_upload(part, blob.original_name, kind=blob.kind, media=blob.media)
        finally:
            part.unlink(missing_ok=True)
        if found.hash != blob.hash:
            raise RunFailed(
                f"The file sha256:{blob.hash[:12]}… arrived at the worker as other bytes ({found.hash[:12]}…): "
                "it was changed in the store, or on the way. Add it again."
            )
        return found

    def name_files(self, parcel: Parcel) -> dict[tuple[str, str], str]:
        """Give the files of a spec the names they have where the spec was written: labels and endings go by them."""
        names = {}
        for place, file in parcel.files.items():
            found = self.artifact(file.hash)
            path = self.home / "files" / file.hash / Path(file.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                os.link(found.path, path)
            names[place] = str(path)
        return names

    def make_room(self) -> None:
        """Remove the files that no run has used for longest, where there are more than ROOM bytes."""
        files = [(path.stat(), path) for path in (self.home / "artifacts").iterdir()]
        size = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda f: f[0].st_mtime):
            if size <= ROOM:
                return
            path.unlink(missing_ok=True)  # its row stays: a file that is gone is asked for again
            shutil.rmtree(self.home / "files" / path.name, ignore_errors=True)
            size -= stat.st_size
