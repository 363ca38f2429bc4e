"""What travels between the app and a worker of a cluster that shares no files with it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlab.lab.kept import file_key
from qlab.lab.records import Artifact, Run
from qlab.lab.store import Headline, Store
from qlab.lab.tables import RUNS
from qlab.samples import sample_folder, sample_names

SENT = "sent file"  # kind of an artifact that was a path in a spec
HASH = "sha256:"
# Where a spec names a file, and what the file is. Anything else in it is left alone, whatever it looks like.
PLACES = {"model": "model", "data": "data", "path": "data", "targets": "targets"}
SAMPLE_FILES = {"model": "model.pt2", "data": "data.npz"}


@dataclass(frozen=True)
class Blob:
    """An artifact without its bytes."""

    hash: str
    kind: str
    media: str
    bytes: int
    original_name: str

    @classmethod
    def of(cls, artifact: Artifact) -> Blob:
        return cls(artifact.hash, artifact.kind, artifact.media, artifact.bytes, artifact.original_name)


@dataclass(frozen=True)
class File:
    """A file a spec names by a name of this machine. name: what it is called there, which labels go by."""

    hash: str
    name: str


@dataclass(frozen=True)
class Call:
    """What a task of the cluster is called with: the rest it asks for. topic: where it says so."""

    id: str
    run_id: str
    topic: str


@dataclass(frozen=True)
class Parcel:
    """All a worker needs to begin a run.

    row: columns of the run's row. files: (what, reference in the spec) -> the file it means. needs: hashes of artifacts
    to have at hand before the work begins.
    """

    target: str
    row: Mapping[str, Any]
    files: Mapping[tuple[str, str], File]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """How a run ended on a worker. columns: of the row, those that changed.

    blobs: of all artifacts the run made or used. made, found: (kind, key, hash) that were derived in this run, and
    those it found derived by an earlier one. None of these hold bytes: the app takes what it lacks.
    """

    status: str
    result: str | None = None
    headline: Headline | None = None
    error: str | None = None
    detail: str | None = None
    columns: Mapping[str, str] | None = None
    blobs: tuple[Blob, ...] = ()
    made: tuple[tuple[str, str, str], ...] = ()
    found: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Greeting:
    """What a worker is. samples: (what, name of a sample) -> hash of its file there."""

    version: tuple[str, int]
    samples: Mapping[tuple[str, str], str]


# ---- packing ---------------------------------------------------------------------------------------------------------


class Packer:
    """Packs runs for workers. Files that specs name by path are taken into the store, and remembered while they stay
    what they are."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._taken: dict[tuple[Any, ...], str] = {}
        self._samples = samples_here()

    def pack(self, run: Run, target: str, needs: tuple[str, ...], samples: Mapping[tuple[str, str], str]) -> Parcel:
        """samples: those of the worker. Raises InvalidConfig, BadUpload."""
        files: dict[tuple[str, str], File] = {}
        wanted = dict.fromkeys(needs)
        if run.rival is not None:
            wanted[run.rival] = None
        for what, reference in references(run.spec):
            if reference.startswith(HASH):
                wanted[self._store.artifact(reference).hash] = None
            elif (file := self._file(what, reference, samples)) is not None:
                files[what, reference] = file
                wanted[file.hash] = None
        return Parcel(target, columns_of(run), files, tuple(wanted))

    def _file(self, what: str, reference: str, samples: Mapping[tuple[str, str], str]) -> File | None:
        """The file to send for a reference; None where it means the same over there, or is no file at all."""
        if reference in sample_names() and what in SAMPLE_FILES:
            if samples.get((what, reference)) == self._samples[what, reference]:
                return None
            path = sample_folder(reference) / SAMPLE_FILES[what]  # type: ignore[operator]  # the sample is there
            return File(self._take(path), reference + path.suffix)
        if os.path.isabs(reference) and os.path.isfile(reference):
            return File(self._take(Path(reference)), Path(reference).name)
        return None

    def _take(self, path: Path) -> str:
        with self._lock:  # two runs of one file wait for one copy
            key = file_key(path)
            if key not in self._taken:
                self._taken[key] = self._store.add_upload(path, kind=SENT).hash
            return self._taken[key]


def references(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(what, reference) of each place in a spec that may name a file."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from references(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner, place)
    elif isinstance(value, str) and place in PLACES:
        yield PLACES[place], value


def renamed(value: Any, names: Mapping[tuple[str, str], str], place: str = "") -> Any:
    """The spec with other names for its files."""
    if isinstance(value, Mapping):
        return {key: renamed(inner, names, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, names, place) for inner in value]
    return names.get((PLACES[place], value), value) if isinstance(value, str) and place in PLACES else value


def columns_of(run: Run) -> dict[str, Any]:
    """The row of a run as its table holds it."""
    row = {c.name: getattr(run, c.name) for c in RUNS.columns if hasattr(run, c.name)}
    row |= {name: getattr(run.headline, name) for name in Headline.__dataclass_fields__}
    return row | {"spec": run.spec_json, "tags": json.dumps(run.tags, ensure_ascii=False)}


def samples_here() -> dict[tuple[str, str], str]:
    """(what, name) -> hash of the file, for the samples of this machine."""
    import hashlib

    found = {}
    for name in sample_names():
        for what, file in SAMPLE_FILES.items():
            path = sample_folder(name) / file  # type: ignore[operator]
            found[what, name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
