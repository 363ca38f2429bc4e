"""What can be chosen: the sample models and what was uploaded, as small hashable references.

A reference says where a model or a data set lies and how it is read; it loads nothing and imports no torch, so the
sidebar can draw it before the engine is there. Uploads lie in the store by the hash of their content: the same file
uploaded twice is one entry, and it is still there after a restart.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from qlab.samples import sample_card, sample_names

if TYPE_CHECKING:
    from qlab.lab.store import Artifact

MEGABYTE = 1 << 20
MODEL, DATA = "model", "data"  # kinds of uploads in the store
PREPROCESSING = ("scale", "mean", "std", "calibration_samples")

Kind = Literal["sample", "upload"]


@dataclass(frozen=True)
class ModelRef:
    """A model that can be loaded. source: a sample name or "sha256:..." of an upload; it also goes into links."""

    source: str
    title: str
    kind: Kind


@dataclass(frozen=True)
class DataRef:
    """A data set that can be loaded, with its preprocessing: the network sees (x * scale - mean) / std.

    scale: for whole numbers a value of 2 or more is the full scale to divide by. mean, std: one number, or one for each
    channel. calibration_samples: how many samples calibrate, the others evaluate; None leaves the split to the data.
    """

    source: str
    title: str
    kind: Kind
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    calibration_samples: int | None = None

    def replace(self, **changes: Any) -> DataRef:
        return replace(self, **changes)


@dataclass(frozen=True)
class Card:
    """What a sample's card.json says about it in words. Figures are measured by the engine, not read from here."""

    name: str
    title: str
    task: str
    architecture: str
    notes: str
    source: str
    planted: str | None = None


def cards() -> dict[str, Card]:
    """The sample models by name, the default first."""
    return {name: _card(name) for name in sample_names()}


@lru_cache(maxsize=64)
def _card(name: str) -> Card:
    content = sample_card(name)
    # A card that lacks a field is a fault of its training script: the KeyError names the field.
    fields = {name: content[name] for name in Card.__dataclass_fields__ if name != "planted"}
    return Card(**fields, planted=content.get("planted"))


def sample_model(name: str) -> ModelRef:
    return ModelRef(source=name, title=name, kind="sample")


def sample_data(name: str) -> DataRef:
    return DataRef(source=name, title=f"data of {name}", kind="sample")


def models() -> list[ModelRef]:
    """Every model that can be chosen: samples first, then uploads, the newest first."""
    return [*map(sample_model, cards()), *map(uploaded_model, _uploads(MODEL))]


def data_sets() -> list[DataRef]:
    """Every data set that can be chosen, in the same order; an upload with the preprocessing it was last given."""
    return [*map(sample_data, cards()), *map(uploaded_data, _uploads(DATA))]


def uploaded_model(artifact: Artifact) -> ModelRef:
    return ModelRef(source=artifact.reference, title=artifact.original_name, kind="upload")


def uploaded_data(artifact: Artifact) -> DataRef:
    from qlab.ui import cache

    ref = DataRef(source=artifact.reference, title=artifact.original_name, kind="upload")
    saved = cache.store().find_derived("preprocessing", artifact.hash)
    if saved is None:
        return ref
    content = json.loads(saved.path.read_text(encoding="utf-8"))
    return ref.replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})


def remember_preprocessing(ref: DataRef) -> None:
    """Keeps the preprocessing of an uploaded data set, so that a later visit reads it the same way."""
    from qlab.ui import cache

    if ref.kind != "upload":
        return
    content = {k: v for k, v in asdict(ref).items() if k in PREPROCESSING}
    saved = cache.store().add_bytes(json.dumps(content).encode(), kind="preprocessing", media="application/json")
    cache.store().derive("preprocessing", ref.source.removeprefix("sha256:"), saved)


def path_of(source: str) -> Path:
    """The file of an upload."""
    from qlab.ui import cache

    return cache.store().artifact(source).path


def add_upload(file: BinaryIO, name: str, kind: str, check: Callable[[Path], Any]) -> Artifact:
    """Writes an upload to disk in pieces, has it checked, and keeps it in the store if the check raises nothing.

    What is refused leaves no trace, so it cannot be chosen. name: shown, and its ending tells the format; never a path.
    Raises BadUpload when it is larger than the server takes, and whatever `check` raises.
    """
    from streamlit import config

    from qlab.ui import cache

    store, limit = cache.store(), int(config.get_option("server.maxUploadSize")) * MEGABYTE
    # Under its own name, cleaned, because the messages of the readers name the file they refuse.
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", Path(name).name).lstrip(".")[-100:] or "upload"
    with tempfile.TemporaryDirectory(dir=store.home, prefix="uploading-") as folder:
        place = Path(folder) / safe
        with place.open("wb") as out:
            while piece := file.read(MEGABYTE):
                out.write(piece)
        check(place)
        return store.add_upload(place, safe, limit, kind=kind)


def _uploads(kind: str) -> list[Artifact]:
    from qlab.ui import cache

    return cache.store().list_artifacts(kind)
