"""A folder and a database beside it: SQLite by default, any SQLAlchemy URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from qlab.errors import InvalidConfig
from qlab.lab.tables import METADATA, RUNS, SCHEMA, SCHEMA_VERSION, UPGRADED


def default_home() -> Path:
    return Path(os.environ.get("QLAB_HOME") or ".qlab").absolute()


class Database:
    """Transactions that read and that write; safe to use from several threads and processes at once."""

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

    def __repr__(self) -> str:
        return f"Store({str(self.home)!r})"

    def close(self) -> None:
        self._engine.dispose()

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
            METADATA.create_all(connection)
            found = connection.execute(sa.select(SCHEMA.c.version)).scalar_one_or_none()
            if found is None:
                connection.execute(SCHEMA.insert().values(version=SCHEMA_VERSION))
            elif found in UPGRADED:
                _add_columns(connection)
                connection.execute(SCHEMA.update().values(version=SCHEMA_VERSION))
                found = SCHEMA_VERSION
        if found is not None and found != SCHEMA_VERSION:
            raise InvalidConfig(
                f"The run database at {self.home} has version {found}, this qlab reads version {SCHEMA_VERSION}. "
                "Use the qlab that wrote it, or set QLAB_HOME to another folder."
            )


def _add_columns(connection: sa.Connection) -> None:
    """Give the runs of an older database the columns that came later; all of them may be empty."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(RUNS.name)}
    for column in RUNS.columns:
        if column.name not in there:
            kind = column.type.compile(dialect=connection.dialect)
            connection.execute(sa.DDL(f"ALTER TABLE {RUNS.name} ADD COLUMN {column.name} {kind}"))


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


def _without_password(url: str) -> str:
    return sa.engine.make_url(url).render_as_string() if "://" in url else url
