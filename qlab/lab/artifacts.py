"""Files under the hash of their bytes, and which of them was derived from what."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from qlab.errors import BadUpload, InvalidConfig
from qlab.lab.database import Database
from qlab.lab.kept import file_key
from qlab.lab.records import Artifact
from qlab.lab.tables import ARTIFACTS, DERIVED

CHUNK = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")


class ArtifactStore(Database):
    """Uploads, models, calibrations and reports; what is there already is kept once."""

    def __init__(self, home: str | os.PathLike[str] | None = None, url: str | None = None) -> None:
        super().__init__(home, url)
        self._intact: dict[str, tuple[Any, ...]] = {}  # hash -> the file that was found to hold it

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
                connection.execute(ARTIFACTS.insert().values(hash=target.name, **values))
        except IntegrityError:
            with self._write() as connection:  # the same bytes are here already: the latest name is the one to show
                if name:
                    connection.execute(
                        ARTIFACTS.update().where(ARTIFACTS.c.hash == target.name).values(original_name=name)
                    )
        return self.artifact(target.name)

    def artifact(self, reference: str) -> Artifact:
        """The artifact with this hash ("sha256:…" or bare). Raises InvalidConfig if it is not in this store."""
        digest = reference.removeprefix("sha256:")
        path = self._artifact_path(digest)
        with self._read() as connection:
            row = connection.execute(sa.select(ARTIFACTS).where(ARTIFACTS.c.hash == digest)).one_or_none()
        if row is None or not path.exists():
            raise InvalidConfig(
                f"The file sha256:{digest[:12]}… is not in this store ({self.home}). "
                "Add it again, or name it by its path."
            )
        return Artifact(**row._mapping, path=path)

    def list_artifacts(self, kind: str | None = None, limit: int = 100) -> list[Artifact]:
        """Artifacts, newest first, of those whose file is there."""
        query = sa.select(ARTIFACTS).order_by(ARTIFACTS.c.created.desc(), ARTIFACTS.c.hash).limit(limit)
        if kind is not None:
            query = query.where(ARTIFACTS.c.kind == kind)
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
        same = sa.and_(DERIVED.c.kind == kind, DERIVED.c.key == key)
        with self._write() as connection:
            if connection.execute(DERIVED.update().where(same).values(**values)).rowcount:
                return
        try:
            with self._write() as connection:
                connection.execute(DERIVED.insert().values(kind=kind, key=key, **values))
        except IntegrityError:
            with self._write() as connection:  # another process was quicker: it derived the same thing
                connection.execute(DERIVED.update().where(same).values(**values))

    def derive_json(self, kind: str, key: str, content: object) -> Artifact:
        """Keep something that JSON knows as what `kind` gives for `key`."""
        artifact = self.add_bytes(json.dumps(content).encode(), kind=kind, media="application/json")
        self.derive(kind, key, artifact)
        return artifact

    def find_derived_json(self, kind: str, key: str) -> Any | None:
        """What derive_json kept, or None as find_derived."""
        found = self.find_derived(kind, key)
        return None if found is None else json.loads(found.path.read_bytes())

    def find_derived(self, kind: str, key: str) -> Artifact | None:
        """What was derived, or None if it never was, or its file is gone or no longer what it was."""
        of_it = sa.and_(DERIVED.c.artifact == ARTIFACTS.c.hash, DERIVED.c.kind == kind, DERIVED.c.key == key)
        with self._read() as connection:
            row = connection.execute(sa.select(ARTIFACTS).join(DERIVED, of_it)).one_or_none()
        if row is None:
            return None
        artifact = Artifact(**row._mapping, path=self._artifact_path(row.hash))
        return artifact if self._is_intact(artifact) else None

    def _is_intact(self, artifact: Artifact) -> bool:
        """Whether the file holds what its name says; it is read once, and again when it was touched since."""
        try:
            key = file_key(artifact.path)
            if self._intact.get(artifact.hash) != key:
                with artifact.path.open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != artifact.hash:
                        return False
                self._intact[artifact.hash] = key
        except FileNotFoundError:
            return False
        return True


def _megabytes(count: int) -> str:
    return f"{count / 2**20:.0f} MB" if count >= 2**20 else f"{count / 2**10:.0f} kB"
