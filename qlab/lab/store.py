"""What the lab remembers: runs, artifacts, and what was derived from what."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from qlab.errors import InvalidConfig, RunFailed
from qlab.lab.artifacts import ArtifactStore
from qlab.lab.database import default_home
from qlab.lab.process import Process, this_process
from qlab.lab.progress import Progress
from qlab.lab.records import CANCELLED, DONE, ENDED, FAILED, OPEN, QUEUED, RUNNING, Artifact, Headline, Run
from qlab.lab.rows import conditions, run_of
from qlab.lab.tables import DOCUMENTS, OWNERS, RUNS

APP_STOPPED = "the app was stopped while this run was going"
# An owner on another host or in another container cannot be asked whether it lives; it counts as gone when it has not
# reported for this long. Owners report every few seconds.
SILENT_AFTER = 120.0


class Store(ArtifactStore):
    """Runs, artifacts and derived results; safe to use from several threads and processes at once."""

    def __init__(self, home: str | os.PathLike[str] | None = None, url: str | None = None) -> None:
        super().__init__(home, url)
        self._owner: str | None = None
        self._owner_pid: int | None = None

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
        row = {"spec": spec, "spec_hash": spec_hash, "name": name, "model": model, "data": data, "config": config}
        return self.create_runs([row], kind=kind, parent=parent)[0]

    def create_runs(self, rows: Sequence[Mapping[str, Any]], *, kind: str, parent: str | None = None) -> list[str]:
        """Write the rows of runs, all or none; gives their ids. Those of a sweep get their position in it.

        rows: spec, and any of spec_hash, name, model, data, config.
        """
        common = {"kind": kind, "parent": parent, "owner": self._own(), "status": QUEUED, "created": time.time()}
        values = []
        for position, row in enumerate(rows):
            try:
                spec = json.dumps(row["spec"], allow_nan=False, sort_keys=True)
            except (TypeError, ValueError) as error:
                raise InvalidConfig(f"The spec of a run has to be JSON: {error}.") from error
            words = {column: row.get(column, "") for column in ("name", "model", "data", "config")}
            digest = row.get("spec_hash") or hashlib.sha256(spec.encode()).hexdigest()
            place = None if parent is None else position
            values.append({**common, **words, "spec": spec, "spec_hash": digest, "position": place})
        for _ in range(3):
            ids = [secrets.token_hex(5) for _ in values]
            try:
                with self._write() as connection:
                    if values:
                        connection.execute(RUNS.insert(), [{"id": i, **v} for i, v in zip(ids, values, strict=True)])
                return ids
            except IntegrityError:
                if not self.list_runs(ids=ids, limit=1) and not self.list_runs(ids=ids, limit=1, deleted=True):
                    raise  # not two equal ids, so another try would not help
        raise RunFailed("No free id for a new run was found in three tries.")

    def start(self, run_id: str, worker: Process | None = None) -> bool:
        """queued -> running. False if it is not queued any more: cancelled meanwhile, or begun elsewhere."""
        worker = worker or this_process()
        with self._write() as connection:
            changed = connection.execute(
                RUNS.update()
                .where(RUNS.c.id == run_id, RUNS.c.status == QUEUED)
                .values(
                    status=RUNNING,
                    started=time.time(),
                    attempts=RUNS.c.attempts + 1,
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
                RUNS.update()
                .where(RUNS.c.id == run_id, RUNS.c.status == RUNNING)
                .values(
                    stage=progress.stage,
                    done=int(progress.done),
                    total=int(progress.total),
                    share=float(progress.share),
                    seconds_left=None if progress.seconds_left is None else float(progress.seconds_left),
                )
            )
            row = connection.execute(
                sa.select(RUNS.c.status, RUNS.c.cancel_requested).where(RUNS.c.id == run_id)
            ).one_or_none()
        return row is not None and row.status == RUNNING and not row.cancel_requested

    def wanted(self, run_id: str) -> bool:
        """Whether a run still is to be carried out; a read, cheap."""
        with self._read() as connection:
            row = connection.execute(
                sa.select(RUNS.c.status, RUNS.c.cancel_requested).where(RUNS.c.id == run_id)
            ).one_or_none()
        return row is not None and row.status in OPEN and not row.cancel_requested

    def is_open(self, run_id: str) -> bool:
        """Whether a run is queued or running."""
        with self._read() as connection:
            status = connection.execute(sa.select(RUNS.c.status).where(RUNS.c.id == run_id)).scalar_one_or_none()
        return status in OPEN

    def ended_of(self, ids: Sequence[str]) -> set[str]:
        """Those of these runs that are not queued or running any more; one query, however many."""
        query = sa.select(RUNS.c.id).where(RUNS.c.id.in_(ids), RUNS.c.status.in_(ENDED))
        with self._read() as connection:
            return set(connection.execute(query).scalars())

    def known(self, content_keys: Sequence[str]) -> set[str]:
        """Those of these keys that a finished run has whose evaluation was not ended early."""
        c = RUNS.c
        query = sa.select(c.content_key).where(
            c.content_key.in_(content_keys), c.status == DONE, c.deleted.is_(None), c.dropped.is_(None)
        )
        with self._read() as connection:
            return set(connection.execute(query).scalars())

    def cancel_requests(self, ids: Sequence[str]) -> list[str]:
        """Those of these runs that go on and have been asked to stop, by this process or another."""
        query = sa.select(RUNS.c.id).where(
            RUNS.c.id.in_(ids), RUNS.c.status == RUNNING, RUNS.c.cancel_requested.is_(True)
        )
        with self._read() as connection:
            return list(connection.execute(query).scalars())

    def identify(self, run_id: str, **values: str) -> None:
        """Fill in what is known only later: name, model, data, hashes, content_key, rival."""
        unknown = set(values) - {"name", "model", "data", "config", "model_hash", "data_hash", "content_key", "rival"}
        if unknown:
            raise TypeError(f"not for identify: {', '.join(sorted(unknown))}")
        with self._write() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == run_id).values(**values))

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
            values["share"] = 1.0
        if headline is not None:
            values |= asdict(headline)
        with self._write() as connection:
            changed = connection.execute(
                RUNS.update().where(RUNS.c.id == run_id, RUNS.c.status.in_(OPEN)).values(**values)
            )
            if changed.rowcount != 1:
                return False
            if result is not None or detail is not None:
                connection.execute(
                    DOCUMENTS.insert().values(
                        run=run_id, result=None if result is None else json.dumps(result), detail=detail
                    )
                )
        return True

    def requeue(self, run_id: str) -> bool:
        """running -> queued, for a run whose worker was lost and that may be tried again."""
        with self._write() as connection:
            changed = connection.execute(
                RUNS.update().where(RUNS.c.id == run_id, RUNS.c.status == RUNNING).values(status=QUEUED, started=None)
            )
        return changed.rowcount == 1

    def reopen(self, ids: Sequence[str]) -> list[str]:
        """failed or cancelled -> queued, owned by this process, for what is to be tried again. Gives those reopened."""
        owner = self._own()
        with self._write() as connection:
            found = list(
                connection.execute(
                    sa.select(RUNS.c.id).where(RUNS.c.id.in_(ids), RUNS.c.status.in_((FAILED, CANCELLED)))
                ).scalars()
            )
            connection.execute(DOCUMENTS.delete().where(DOCUMENTS.c.run.in_(found)))
            connection.execute(
                RUNS.update()
                .where(RUNS.c.id.in_(found))
                .values(
                    status=QUEUED, owner=owner, started=None, finished=None, error=None, cancel_requested=False,
                    stage="", done=0, total=0, share=0.0, seconds_left=None, rival=None,
                )
            )  # fmt: skip
        return found

    def note_best(self, sweep: str, best: str | None, headline: Headline) -> None:
        """Write the best of a sweep's runs so far, and its figures, into the row of the sweep."""
        with self._write() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == sweep).values(best=best, **asdict(headline)))

    def note_latency(self, run_id: str, seconds: float, batch: int) -> None:
        """Write what a call of a run's integer session takes."""
        with self._write() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id == run_id).values(latency=seconds, latency_batch=batch))

    def request_cancel(self, run_id: str) -> str:
        """Ask a run to stop; one that has not begun is cancelled at once. Gives the status after that."""
        with self._write() as connection:
            connection.execute(
                RUNS.update()
                .where(RUNS.c.id == run_id, RUNS.c.status == QUEUED)
                .values(status=CANCELLED, finished=time.time(), cancel_requested=True)
            )
            connection.execute(
                RUNS.update().where(RUNS.c.id == run_id, RUNS.c.status == RUNNING).values(cancel_requested=True)
            )
            status = connection.execute(sa.select(RUNS.c.status).where(RUNS.c.id == run_id)).scalar_one_or_none()
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
            sa.select(RUNS, DOCUMENTS.c.result, DOCUMENTS.c.detail)
            .select_from(RUNS.outerjoin(DOCUMENTS, RUNS.c.id == DOCUMENTS.c.run))
            .where(RUNS.c.id == run_id)
        )
        with self._read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else run_of(row)

    def find_run(self, prefix: str) -> Run:
        """The run whose id begins like this. Raises InvalidConfig if there is none, or more than one."""
        with self._read() as connection:
            ids = connection.execute(
                sa.select(RUNS.c.id).where(RUNS.c.id.startswith(prefix, autoescape=True)).limit(2)
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
        parts: bool = True,
    ) -> list[Run]:
        """Runs, newest first, without result and detail.

        search: words, each part of name, model, data, config, tags or notes, or the beginning of the id. parts: whether
        those that belong to a sweep are among them.
        """
        chosen = conditions(ids, status, kind, parent, content_key, search, tag, deleted, owner, parts)
        query = sa.select(RUNS).where(*chosen)
        query = query.order_by(RUNS.c.created.desc(), RUNS.c.position, RUNS.c.id).limit(limit).offset(offset)
        with self._read() as connection:
            return [run_of(row) for row in connection.execute(query).mappings()]

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
        parts: bool = True,
    ) -> int:
        """How many runs list_runs would give without a limit."""
        chosen = conditions(ids, status, kind, parent, content_key, search, tag, deleted, owner, parts)
        with self._read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(RUNS).where(*chosen)).scalar_one()

    def stamp(self) -> str:
        """A word that changes when a run begins, ends, is deleted, or is given a name, tags, notes or a latency."""
        c = RUNS.c
        # Progress is left out: it is written a few times a second while something runs.
        query = sa.select(c.id, c.status, c.name, c.tags, c.notes, c.deleted, c.latency, c.best).order_by(c.id)
        with self._read() as connection:
            rows = connection.execute(query).all()
        return hashlib.sha256(repr([tuple(row) for row in rows]).encode()).hexdigest()

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
            changed = connection.execute(RUNS.update().where(RUNS.c.id == run_id).values(**values))
        if changed.rowcount != 1:
            raise InvalidConfig(f"There is no run {run_id} in this store: choose one from the list of runs.")

    def delete_runs(self, ids: Sequence[str]) -> list[str]:
        """Hide runs that have ended; restore_runs brings them back. Gives the ids that were hidden by this call."""
        with self._write() as connection:
            found = connection.execute(
                sa.select(RUNS.c.id).where(RUNS.c.id.in_(ids), RUNS.c.deleted.is_(None), RUNS.c.status.in_(ENDED))
            ).scalars()
            hidden = list(found)
            connection.execute(RUNS.update().where(RUNS.c.id.in_(hidden)).values(deleted=time.time()))
        return hidden

    def restore_runs(self, ids: Sequence[str]) -> None:
        with self._write() as connection:
            connection.execute(RUNS.update().where(RUNS.c.id.in_(ids)).values(deleted=None))

    # ---- owners --------------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Say that this process, as owner of runs, is alive."""
        if self._owner is None:
            return
        with self._write() as connection:
            connection.execute(OWNERS.update().where(OWNERS.c.id == self._owner).values(seen=time.time()))

    @property
    def owner(self) -> str | None:
        """This process as owner of runs; None before its first run."""
        return self._owner if self._owner_pid == os.getpid() else None

    def recover(self) -> list[str]:
        """End the runs whose owner is gone: failed, or cancelled where that had been asked for. Gives their ids."""
        with self._write() as connection:
            candidates = connection.execute(
                sa.select(OWNERS).where(
                    OWNERS.c.id.in_(sa.select(RUNS.c.owner).where(RUNS.c.status.in_(OPEN)).distinct())
                )
            ).all()
            gone = [
                o.id
                for o in candidates
                if o.id != self.owner and _is_gone(Process(o.pid, o.host, o.boot, o.started), o.seen)
            ]
            lost = sa.and_(RUNS.c.owner.in_(gone), RUNS.c.status.in_(OPEN))
            ids = list(connection.execute(sa.select(RUNS.c.id).where(lost)).scalars())
            now = time.time()
            connection.execute(
                RUNS.update()
                .where(lost, RUNS.c.cancel_requested.is_(True))
                .values(status=CANCELLED, finished=now, seconds_left=None)
            )
            connection.execute(
                RUNS.update().where(lost).values(status=FAILED, finished=now, seconds_left=None, error=APP_STOPPED)
            )
        for path in (self.home / "incoming").iterdir():
            if path.stat().st_mtime < time.time() - 86400:  # left by a process that died while it wrote
                path.unlink(missing_ok=True)
        return ids

    def _own(self) -> str:
        """This process as owner of runs, written on first use."""
        if self._owner is not None and self._owner_pid == os.getpid():
            return self._owner
        me, owner = this_process(), secrets.token_hex(8)
        with self._write() as connection:
            connection.execute(OWNERS.insert().values(id=owner, seen=time.time(), **asdict(me)))
        self._owner, self._owner_pid = owner, me.pid
        return owner


def open_store(home: str | os.PathLike[str] | None = None) -> Store:
    """The store under QLAB_HOME, with the runs of an app that died ended as failed."""
    store = Store(home)
    store.recover()
    return store


def _is_gone(process: Process, seen: float) -> bool:
    dead = process.dead
    return dead if dead is not None else time.time() - seen > SILENT_AFTER


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
