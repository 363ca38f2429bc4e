"""What the lab remembers: runs, artifacts, and what was derived from what. SQLite by default, any SQLAlchemy URL."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from qlab.errors import BadUpload, InvalidConfig, RunFailed
from qlab.lab.process import Process, this_process
from qlab.lab.progress import Progress

SCHEMA_VERSION = 1
QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
OPEN = (QUEUED, RUNNING)
ENDED = (DONE, FAILED, CANCELLED)

APP_STOPPED = "the app was stopped while this run was going"
# An owner on another host or in another container cannot be asked whether it lives; it counts as gone when it has not
# reported for this long. Owners report every few seconds.
SILENT_AFTER = 120.0
CHUNK = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")

_metadata = sa.MetaData()

_schema = sa.Table("schema_version", _metadata, sa.Column("version", sa.Integer, primary_key=True))

_owners = sa.Table(
    "owners",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("boot", sa.String(64), nullable=False),
    sa.Column("started", sa.String(64), nullable=False),
    sa.Column("seen", sa.Float, nullable=False),
)

_runs = sa.Table(
    "runs",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("finished", sa.Float),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("name", sa.Text, nullable=False, default=""),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("spec_hash", sa.String(64), nullable=False),
    sa.Column("parent", sa.String(32)),  # the sweep this run belongs to
    sa.Column("model", sa.Text, nullable=False, default=""),
    sa.Column("data", sa.Text, nullable=False, default=""),
    sa.Column("config", sa.Text, nullable=False, default=""),
    sa.Column("model_hash", sa.String(80)),
    sa.Column("data_hash", sa.String(80)),
    # Hash of model content, data content and resolved spec: equal keys are the same computation.
    sa.Column("content_key", sa.String(64)),
    sa.Column("stage", sa.Text, nullable=False, default=""),
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("share", sa.Float, nullable=False, default=0.0),
    sa.Column("seconds_left", sa.Float),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("accuracy", sa.Float),
    sa.Column("float_accuracy", sa.Float),
    sa.Column("agreement", sa.Float),
    sa.Column("size", sa.BigInteger),
    sa.Column("float_size", sa.BigInteger),
    sa.Column("samples", sa.Integer),
    sa.Column("owner", sa.String(32), sa.ForeignKey("owners.id"), nullable=False),
    sa.Column("worker_pid", sa.Integer),
    sa.Column("worker_host", sa.String(255)),
    sa.Column("tags", sa.Text, nullable=False, default="[]"),
    sa.Column("notes", sa.Text, nullable=False, default=""),
    sa.Column("deleted", sa.Float),
    sa.Index("runs_by_created", "created"),
    sa.Index("runs_by_status", "status"),
    sa.Index("runs_by_parent", "parent"),
    sa.Index("runs_by_content_key", "content_key"),
)

# Apart from the row: a table of 1,000 runs is read without paging through their results.
_documents = sa.Table(
    "run_documents",
    _metadata,
    sa.Column("run", sa.String(32), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("result", sa.Text),
    sa.Column("detail", sa.Text),
)

_artifacts = sa.Table(
    "artifacts",
    _metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("media", sa.String(128), nullable=False, default=""),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("original_name", sa.Text, nullable=False, default=""),
    sa.Column("created", sa.Float, nullable=False),
)

_derived = sa.Table(
    "derived",
    _metadata,
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("artifact", sa.String(64), sa.ForeignKey("artifacts.hash"), nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)


@dataclass(frozen=True)
class Headline:
    """The figures of a run that tables show and sort by."""

    accuracy: float | None = None
    float_accuracy: float | None = None
    agreement: float | None = None
    size: int | None = None
    float_size: int | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Run:
    """One run as stored; times are seconds since 1970 (UTC), sizes bytes.

    `result` and `detail` are there only when the run was read alone, with Store.get_run: lists leave them out.
    """

    id: str
    created: float
    started: float | None
    finished: float | None
    status: str
    kind: str
    name: str
    spec_json: str = field(repr=False)
    spec_hash: str
    parent: str | None
    model: str
    data: str
    config: str
    model_hash: str | None
    data_hash: str | None
    content_key: str | None
    stage: str
    done: int
    total: int
    share: float
    seconds_left: float | None
    cancel_requested: bool
    attempts: int
    error: str | None
    headline: Headline
    owner: str
    worker_pid: int | None
    worker_host: str | None
    tags: tuple[str, ...]
    notes: str
    deleted: float | None
    result_json: str | None = field(default=None, repr=False)
    detail: str | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def seconds(self) -> float | None:
        """How long it ran, or has been running."""
        return None if self.started is None else (self.finished or time.time()) - self.started

    @cached_property
    def spec(self) -> dict[str, Any]:
        return json.loads(self.spec_json)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        return None if self.result_json is None else json.loads(self.result_json)

    def require_result(self) -> dict[str, Any]:
        """The result; raises RunFailed with the run's own reason if there is none."""
        if self.result is None:
            reason = self.error or f"it is {self.status}"
            raise RunFailed(f"Run {self.id} has no result: {reason}.".replace("..", "."), detail=self.detail)
        return self.result


@dataclass(frozen=True)
class Artifact:
    hash: str
    kind: str
    media: str
    bytes: int
    original_name: str
    created: float
    path: Path

    @property
    def reference(self) -> str:
        """How an experiment names it."""
        return f"sha256:{self.hash}"


def default_home() -> Path:
    return Path(os.environ.get("QLAB_HOME") or ".qlab").absolute()


class Store:
    """Runs, artifacts and derived results; safe to use from several threads and processes at once."""

    def __init__(self, home: str | os.PathLike[str] | None = None, url: str | None = None) -> None:
        self.home = Path(home).absolute() if home is not None else default_home()
        try:
            (self.home / "artifacts").mkdir(parents=True, exist_ok=True)
            (self.home / "incoming").mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidConfig(
                f"The lab cannot keep its files in {self.home}: {error.strerror}. "
                "Set QLAB_HOME to a folder that can be written."
            ) from error
        self.url = url or os.environ.get("QLAB_DB") or f"sqlite:///{self.home / 'qlab.db'}"
        try:
            self._engine = _engine(self.url)
            self._writer = self._engine.execution_options(qlab_writer=True)
            self._create()
        except (DBAPIError, sa.exc.ArgumentError, ImportError) as error:
            raise InvalidConfig(
                f"The run database {_without_password(self.url)} cannot be opened. Check QLAB_DB, or QLAB_HOME.",
                detail=str(error),
            ) from error
        self._owner: str | None = None
        self._owner_pid: int | None = None

    def __repr__(self) -> str:
        return f"Store({str(self.home)!r})"

    def close(self) -> None:
        self._engine.dispose()

    # ---- runs: writing -------------------------------------------------------------------------------------------

    def create_run(
        self,
        *,
        kind: str,
        spec: Mapping[str, Any],
        spec_hash: str = "",
        name: str = "",
        model: str = "",
        data: str = "",
        config: str = "",
        parent: str | None = None,
    ) -> str:
        """Write the row of a run that is about to start, owned by this process; gives its id."""
        try:
            spec_json = json.dumps(spec, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise InvalidConfig(f"The spec of a run has to be JSON: {error}.") from error
        owner = self._own()
        values = {
            "created": time.time(),
            "status": QUEUED,
            "kind": kind,
            "name": name,
            "spec": spec_json,
            "spec_hash": spec_hash or hashlib.sha256(spec_json.encode()).hexdigest(),
            "parent": parent,
            "model": model,
            "data": data,
            "config": config,
            "owner": owner,
        }
        for _ in range(3):
            run_id = secrets.token_hex(5)
            try:
                with self._write() as connection:
                    connection.execute(_runs.insert().values(id=run_id, **values))
                return run_id
            except IntegrityError:
                if self.try_run(run_id) is None:
                    raise  # not two equal ids, so another try would not help
        raise RunFailed("No free id for a new run was found in three tries.")

    def start(self, run_id: str, worker: Process | None = None) -> bool:
        """queued -> running. False if it is not queued any more: cancelled meanwhile, or begun elsewhere."""
        worker = worker or this_process()
        with self._write() as connection:
            changed = connection.execute(
                _runs.update()
                .where(_runs.c.id == run_id, _runs.c.status == QUEUED)
                .values(
                    status=RUNNING,
                    started=time.time(),
                    attempts=_runs.c.attempts + 1,
                    worker_pid=worker.pid,
                    worker_host=worker.host,
                    stage="",
                    done=0,
                    total=0,
                    share=0.0,
                    seconds_left=None,
                )
            )
        return changed.rowcount == 1

    def report(self, run_id: str, progress: Progress) -> bool:
        """Write how far a running run is. False: stop, it was cancelled or has been ended from outside."""
        with self._write() as connection:
            connection.execute(
                _runs.update()
                .where(_runs.c.id == run_id, _runs.c.status == RUNNING)
                .values(
                    stage=progress.stage,
                    done=int(progress.done),
                    total=int(progress.total),
                    share=float(progress.share),
                    seconds_left=None if progress.seconds_left is None else float(progress.seconds_left),
                )
            )
            row = connection.execute(
                sa.select(_runs.c.status, _runs.c.cancel_requested).where(_runs.c.id == run_id)
            ).one_or_none()
        return row is not None and row.status == RUNNING and not row.cancel_requested

    def wanted(self, run_id: str) -> bool:
        """Whether a run still is to be carried out; a read, cheap."""
        with self._read() as connection:
            row = connection.execute(
                sa.select(_runs.c.status, _runs.c.cancel_requested).where(_runs.c.id == run_id)
            ).one_or_none()
        return row is not None and row.status in OPEN and not row.cancel_requested

    def is_open(self, run_id: str) -> bool:
        """Whether a run is queued or running."""
        with self._read() as connection:
            status = connection.execute(sa.select(_runs.c.status).where(_runs.c.id == run_id)).scalar_one_or_none()
        return status in OPEN

    def ended_of(self, ids: Sequence[str]) -> set[str]:
        """Those of these runs that are not queued or running any more; one query, however many."""
        query = sa.select(_runs.c.id).where(_runs.c.id.in_(ids), _runs.c.status.in_(ENDED))
        with self._read() as connection:
            return set(connection.execute(query).scalars())

    def cancel_requests(self, ids: Sequence[str]) -> list[str]:
        """Those of these runs that go on and have been asked to stop, by this process or another."""
        query = sa.select(_runs.c.id).where(
            _runs.c.id.in_(ids), _runs.c.status == RUNNING, _runs.c.cancel_requested.is_(True)
        )
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def identify(self, run_id: str, **values: str) -> None:
        """Fill in what is known only after loading: name, model, data, model_hash, data_hash, content_key."""
        unknown = set(values) - {"name", "model", "data", "config", "model_hash", "data_hash", "content_key"}
        if unknown:
            raise TypeError(f"not for identify: {', '.join(sorted(unknown))}")
        with self._write() as connection:
            connection.execute(_runs.update().where(_runs.c.id == run_id).values(**values))

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
        """End a run. False if it had ended already: the first end stands."""
        if status not in ENDED:
            raise TypeError(f"{status!r} does not end a run")
        if (status == DONE) != (result is not None):
            raise TypeError("a run is done exactly if it has a result")
        values: dict[str, Any] = {"status": status, "finished": time.time(), "seconds_left": None, "error": error}
        if status == DONE:
            values |= {"share": 1.0, **asdict(headline or Headline())}
        with self._write() as connection:
            changed = connection.execute(
                _runs.update().where(_runs.c.id == run_id, _runs.c.status.in_(OPEN)).values(**values)
            )
            if changed.rowcount != 1:
                return False
            if result is not None or detail is not None:
                connection.execute(
                    _documents.insert().values(
                        run=run_id, result=None if result is None else json.dumps(result), detail=detail
                    )
                )
        return True

    def requeue(self, run_id: str) -> bool:
        """running -> queued, for a run whose worker was lost and that may be tried again."""
        with self._write() as connection:
            changed = connection.execute(
                _runs.update()
                .where(_runs.c.id == run_id, _runs.c.status == RUNNING)
                .values(status=QUEUED, started=None)
            )
        return changed.rowcount == 1

    def request_cancel(self, run_id: str) -> str:
        """Ask a run to stop; one that has not begun is cancelled at once. Gives the status after that."""
        with self._write() as connection:
            connection.execute(
                _runs.update()
                .where(_runs.c.id == run_id, _runs.c.status == QUEUED)
                .values(status=CANCELLED, finished=time.time(), cancel_requested=True)
            )
            connection.execute(
                _runs.update().where(_runs.c.id == run_id, _runs.c.status == RUNNING).values(cancel_requested=True)
            )
            status = connection.execute(sa.select(_runs.c.status).where(_runs.c.id == run_id)).scalar_one_or_none()
        if status is None:
            raise InvalidConfig(f"There is no run {run_id} in this store: choose one from the list of runs.")
        return status

    # ---- runs: reading -------------------------------------------------------------------------------------------

    def get_run(self, run_id: str) -> Run:
        """The run with its result. Raises InvalidConfig if there is none."""
        run = self.try_run(run_id)
        if run is None:
            raise InvalidConfig(f"There is no run {run_id} in this store: choose one from the list of runs.")
        return run

    def try_run(self, run_id: str) -> Run | None:
        """The run with its result, or None if there is none."""
        query = (
            sa.select(_runs, _documents.c.result, _documents.c.detail)
            .select_from(_runs.outerjoin(_documents, _runs.c.id == _documents.c.run))
            .where(_runs.c.id == run_id)
        )
        with self._read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else _run(row)

    def find_run(self, prefix: str) -> Run:
        """The run whose id begins like this. Raises InvalidConfig if there is none, or more than one."""
        with self._read() as connection:
            ids = connection.execute(
                sa.select(_runs.c.id).where(_runs.c.id.startswith(prefix, autoescape=True)).limit(2)
            ).scalars()
            found = list(ids)
        if len(found) != 1:
            raise InvalidConfig(
                f"{'No run begins' if not found else 'More than one run begins'} with {prefix!r}: "
                "give more of the id; `python -m qlab runs` lists them."
            )
        return self.get_run(found[0])

    def list_runs(
        self,
        limit: int | None = 50,
        offset: int = 0,
        *,
        ids: Sequence[str] | None = None,
        status: str | Sequence[str] | None = None,
        kind: str | Sequence[str] | None = None,
        parent: str | None = None,
        content_key: str | None = None,
        search: str = "",
        tag: str | None = None,
        deleted: bool = False,
        owner: str | None = None,
    ) -> list[Run]:
        """Runs, newest first, without result and detail.

        search: words, each part of name, model, data, config, tags or notes, or the beginning of the id.
        """
        query = sa.select(_runs).where(
            *_conditions(ids, status, kind, parent, content_key, search, tag, deleted, owner)
        )
        query = query.order_by(_runs.c.created.desc(), _runs.c.id).limit(limit).offset(offset)
        with self._read() as connection:
            return [_run(row) for row in connection.execute(query).mappings()]

    def count_runs(
        self,
        *,
        ids: Sequence[str] | None = None,
        status: str | Sequence[str] | None = None,
        kind: str | Sequence[str] | None = None,
        parent: str | None = None,
        content_key: str | None = None,
        search: str = "",
        tag: str | None = None,
        deleted: bool = False,
        owner: str | None = None,
    ) -> int:
        """How many runs list_runs would give without a limit."""
        conditions = _conditions(ids, status, kind, parent, content_key, search, tag, deleted, owner)
        with self._read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(_runs).where(*conditions)).scalar_one()

    # ---- runs: what a person does with them ----------------------------------------------------------------------

    def annotate(
        self, run_id: str, *, name: str | None = None, tags: Iterable[str] | None = None, notes: str | None = None
    ) -> None:
        """Change name, tags or notes; None leaves one as it is."""
        values: dict[str, Any] = {}
        if name is not None:
            values["name"] = name.strip()
        if tags is not None:
            values["tags"] = json.dumps(sorted({t.strip() for t in tags if t.strip()}), ensure_ascii=False)
        if notes is not None:
            values["notes"] = notes
        if not values:
            return
        with self._write() as connection:
            changed = connection.execute(_runs.update().where(_runs.c.id == run_id).values(**values))
        if changed.rowcount != 1:
            raise InvalidConfig(f"There is no run {run_id} in this store: choose one from the list of runs.")

    def delete_runs(self, ids: Sequence[str]) -> list[str]:
        """Hide runs that have ended; restore_runs brings them back. Gives the ids that were hidden by this call."""
        with self._write() as connection:
            found = connection.execute(
                sa.select(_runs.c.id).where(_runs.c.id.in_(ids), _runs.c.deleted.is_(None), _runs.c.status.in_(ENDED))
            ).scalars()
            hidden = list(found)
            connection.execute(_runs.update().where(_runs.c.id.in_(hidden)).values(deleted=time.time()))
        return hidden

    def restore_runs(self, ids: Sequence[str]) -> None:
        with self._write() as connection:
            connection.execute(_runs.update().where(_runs.c.id.in_(ids)).values(deleted=None))

    # ---- owners --------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that this process, as owner of runs, is alive."""
        if self._owner is None:
            return
        with self._write() as connection:
            connection.execute(_owners.update().where(_owners.c.id == self._owner).values(seen=time.time()))

    @property
    def owner(self) -> str | None:
        """This process as owner of runs; None before its first run."""
        return self._owner if self._owner_pid == os.getpid() else None

    def recover(self) -> list[str]:
        """End the runs whose owner is gone: failed, or cancelled where that had been asked for. Gives their ids."""
        with self._write() as connection:
            candidates = connection.execute(
                sa.select(_owners).where(
                    _owners.c.id.in_(sa.select(_runs.c.owner).where(_runs.c.status.in_(OPEN)).distinct())
                )
            ).all()
            gone = [
                o.id
                for o in candidates
                if o.id != self.owner and _is_gone(Process(o.pid, o.host, o.boot, o.started), o.seen)
            ]
            lost = sa.and_(_runs.c.owner.in_(gone), _runs.c.status.in_(OPEN))
            ids = list(connection.execute(sa.select(_runs.c.id).where(lost)).scalars())
            now = time.time()
            connection.execute(
                _runs.update()
                .where(lost, _runs.c.cancel_requested.is_(True))
                .values(status=CANCELLED, finished=now, seconds_left=None)
            )
            connection.execute(
                _runs.update().where(lost).values(status=FAILED, finished=now, seconds_left=None, error=APP_STOPPED)
            )
        for path in (self.home / "incoming").iterdir():
            if path.stat().st_mtime < time.time() - 86400:  # left by a process that died while it wrote
                path.unlink(missing_ok=True)
        return ids

    # ---- artifacts -----------------------------------------------------------------------------------------------

    def add_upload(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        original_name: str | None = None,
        limit: int | None = None,
        *,
        kind: str = "upload",
        media: str = "",
    ) -> Artifact:
        """Take in a file, a megabyte at a time, under the hash of its bytes.

        limit: bytes; a larger file raises BadUpload and leaves nothing behind. original_name is kept to show, never
        used as a path.
        """
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            name = original_name if original_name is not None else path.name
            try:
                with path.open("rb") as stream:
                    return self._take(stream, name, limit, kind, media)
            except OSError as error:
                raise BadUpload(f"{name} cannot be read: {error.strerror}.") from error
        return self._take(source, original_name or "", limit, kind, media)

    def add_bytes(self, content: bytes, *, kind: str, media: str = "", original_name: str = "") -> Artifact:
        import io

        return self._take(io.BytesIO(content), original_name, None, kind, media)

    @contextmanager
    def new_file(self, suffix: str = "") -> Iterator[Path]:
        """A path to write an artifact to before add_upload takes it in; it is gone afterwards."""
        handle, name = tempfile.mkstemp(dir=self.home / "incoming", suffix=suffix)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _take(self, stream: BinaryIO, name: str, limit: int | None, kind: str, media: str) -> Artifact:
        digest, size = hashlib.sha256(), 0
        with self.new_file() as temporary:
            with temporary.open("wb") as out:
                while chunk := stream.read(CHUNK):
                    size += len(chunk)
                    if limit is not None and size > limit:
                        raise BadUpload(
                            f"{name or 'The file'} is larger than the limit of {_megabytes(limit)}. "
                            "Use a smaller file, for data a sample of it."
                        )
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())  # the row below must not outlive the bytes when the machine goes down
            target = self._artifact_path(digest.hexdigest())
            os.replace(temporary, target)
        values = {"kind": kind, "media": media, "bytes": size, "original_name": name, "created": time.time()}
        try:
            with self._write() as connection:
                connection.execute(_artifacts.insert().values(hash=target.name, **values))
        except IntegrityError:
            with self._write() as connection:  # the same bytes are here already: the latest name is the one to show
                if name:
                    connection.execute(
                        _artifacts.update().where(_artifacts.c.hash == target.name).values(original_name=name)
                    )
        return self.artifact(target.name)

    def artifact(self, reference: str) -> Artifact:
        """The artifact with this hash ("sha256:…" or bare). Raises InvalidConfig if it is not in this store."""
        digest = reference.removeprefix("sha256:")
        path = self._artifact_path(digest)
        with self._read() as connection:
            row = connection.execute(sa.select(_artifacts).where(_artifacts.c.hash == digest)).one_or_none()
        if row is None or not path.exists():
            raise InvalidConfig(
                f"The file sha256:{digest[:12]}… is not in this store ({self.home}). "
                "Add it again, or name it by its path."
            )
        return Artifact(**row._mapping, path=path)

    def list_artifacts(self, kind: str | None = None, limit: int = 100) -> list[Artifact]:
        """Artifacts, newest first, of those whose file is there."""
        query = sa.select(_artifacts).order_by(_artifacts.c.created.desc(), _artifacts.c.hash).limit(limit)
        if kind is not None:
            query = query.where(_artifacts.c.kind == kind)
        with self._read() as connection:
            rows = connection.execute(query).all()
        found = [Artifact(**row._mapping, path=self._artifact_path(row.hash)) for row in rows]
        return [a for a in found if a.path.exists()]

    def _artifact_path(self, digest: str) -> Path:
        if not _HASH.fullmatch(digest):
            raise InvalidConfig(f"{digest[:80]!r} is not a content hash: 64 hexadecimal digits follow sha256:.")
        return self.home / "artifacts" / digest

    # ---- derived -------------------------------------------------------------------------------------------------

    def derive(self, kind: str, key: str, artifact: Artifact) -> None:
        """Remember that this artifact is what `kind` gives for `key`."""
        values = {"artifact": artifact.hash, "created": time.time()}
        same = sa.and_(_derived.c.kind == kind, _derived.c.key == key)
        with self._write() as connection:
            if connection.execute(_derived.update().where(same).values(**values)).rowcount:
                return
        try:
            with self._write() as connection:
                connection.execute(_derived.insert().values(kind=kind, key=key, **values))
        except IntegrityError:
            with self._write() as connection:  # another process was quicker: it derived the same thing
                connection.execute(_derived.update().where(same).values(**values))

    def find_derived(self, kind: str, key: str) -> Artifact | None:
        """What was derived, or None if it never was, or its file is gone or no longer what it was."""
        query = sa.select(_derived.c.artifact).where(_derived.c.kind == kind, _derived.c.key == key)
        with self._read() as connection:
            digest = connection.execute(query).scalar_one_or_none()
        if digest is None or not self._artifact_path(digest).exists():
            return None
        artifact = self.artifact(digest)
        with artifact.path.open("rb") as stream:
            intact = hashlib.file_digest(stream, "sha256").hexdigest() == digest
        return artifact if intact else None

    # ---- connections ---------------------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._writer.begin() as connection:
            yield connection

    def _create(self) -> None:
        with self._write() as connection:
            _metadata.create_all(connection)
            found = connection.execute(sa.select(_schema.c.version)).scalar_one_or_none()
            if found is None:
                connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
        if found is not None and found != SCHEMA_VERSION:
            raise InvalidConfig(
                f"The run database at {self.home} has version {found}, this qlab reads version {SCHEMA_VERSION}. "
                "Use the qlab that wrote it, or set QLAB_HOME to another folder."
            )

    def _own(self) -> str:
        """This process as owner of runs, written on first use."""
        if self._owner is not None and self._owner_pid == os.getpid():
            return self._owner
        me, owner = this_process(), secrets.token_hex(8)
        with self._write() as connection:
            connection.execute(_owners.insert().values(id=owner, seen=time.time(), **asdict(me)))
        self._owner, self._owner_pid = owner, me.pid
        return owner


def open_store(home: str | os.PathLike[str] | None = None) -> Store:
    """The store under QLAB_HOME, with the runs of an app that died ended as failed."""
    store = Store(home)
    store.recover()
    return store


def _engine(url: str) -> sa.Engine:
    parsed = sa.engine.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": 10})

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN is deferred; the one below decides
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=10000")
        cursor.execute("PRAGMA foreign_keys=ON")
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later cannot wait for another writer: SQLite refuses it at once.
        writer = connection.get_execution_options().get("qlab_writer", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")

    return engine


def _conditions(
    ids: Sequence[str] | None,
    status: str | Sequence[str] | None,
    kind: str | Sequence[str] | None,
    parent: str | None,
    content_key: str | None,
    search: str,
    tag: str | None,
    deleted: bool,
    owner: str | None,
) -> list[sa.ColumnElement[bool]]:
    c = _runs.c
    out: list[sa.ColumnElement[bool]] = [c.deleted.is_not(None) if deleted else c.deleted.is_(None)]
    if ids is not None:
        out.append(c.id.in_(ids))
    if status is not None:
        out.append(c.status.in_([status] if isinstance(status, str) else status))
    if kind is not None:
        out.append(c.kind.in_([kind] if isinstance(kind, str) else kind))
    if parent is not None:
        out.append(c.parent == parent)
    if content_key is not None:
        out.append(c.content_key == content_key)
    if owner is not None:
        out.append(c.owner == owner)
    if tag is not None:
        out.append(c.tags.contains(json.dumps(tag, ensure_ascii=False), autoescape=True))
    for word in search.split():
        columns = (c.name, c.model, c.data, c.config, c.tags, c.notes)
        begins = c.id.startswith(word, autoescape=True)  # the middle of an id means nothing to anybody
        out.append(sa.or_(begins, *(column.icontains(word, autoescape=True) for column in columns)))
    return out


def _run(row: Mapping[Any, Any]) -> Run:
    values = {str(k): v for k, v in row.items()}
    headline = Headline(**{k: values.pop(k) for k in Headline.__dataclass_fields__})
    values["spec_json"] = values.pop("spec")
    values["result_json"] = values.pop("result", None)
    values["tags"] = tuple(json.loads(values["tags"]))
    return Run(headline=headline, **values)


def _without_password(url: str) -> str:
    return sa.engine.make_url(url).render_as_string() if "://" in url else url


def _is_gone(process: Process, seen: float) -> bool:
    dead = process.dead
    return dead if dead is not None else time.time() - seen > SILENT_AFTER


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.0f} MB" if count >= 2**20 else f"{count / 2**10:.0f} kB"


__all__ = [
    "APP_STOPPED",
    "Artifact",
    "CANCELLED",
    "DONE",
    "ENDED",
    "FAILED",
    "Headline",
    "OPEN",
    "QUEUED",
    "RUNNING",
    "Run",
    "Store",
    "default_home",
    "open_store",
]
