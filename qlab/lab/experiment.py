"""An experiment: model, data, config, and the few settings that decide the result. Frozen, checked, JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlab.config import QConfigMapping
from qlab.edits import Edit
from qlab.errors import InvalidConfig
from qlab.training.settings import Training

if TYPE_CHECKING:
    from qlab.data import Dataset
    from qlab.graph.capture import Model

VERSION = 1
BACKENDS = ("simulated", "integer", "auto")
DATA_FIELDS = ("path", "scale", "mean", "std", "targets")
IN_MEMORY = "memory:"


@dataclass(frozen=True)
class Experiment:
    """What to quantize, with which data, how.

    model: name of a sample, path of a .pt2, "sha256:…" of a file in the store, or a Model.
    data: the same for data, a Dataset, or a table {"path", "scale", "mean", "std", "targets"} that says how to read it.
    mapping: a QConfigMapping or the name of a preset. calibration_samples: None takes the split the data brings.
    seed: of the split. backend: what the quantized network is evaluated with: "simulated" in torch, "integer" in ONNX
    Runtime, "auto" the latter for configs that run on integers there, the former for the others; the result says which.
    sqnr_samples: how many samples SQNR per layer is measured on; None takes what `evaluate` does.
    training: trains the quantized network on the calibration samples. edits: numbers written into it by hand, in this
    order, last of all. Raises InvalidConfig.
    """

    model: str | Model
    data: str | Mapping[str, Any] | Dataset = field(hash=False)
    mapping: QConfigMapping | str
    # keyword only, so that a later field can stand anywhere
    batch_size: int = field(default=64, kw_only=True)
    calibration_samples: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    name: str = field(default="", kw_only=True)
    backend: str = field(default="simulated", kw_only=True)
    sqnr_samples: int | None = field(default=None, kw_only=True)
    training: Training | None = field(default=None, kw_only=True)
    edits: tuple[Edit, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.model, os.PathLike):
            object.__setattr__(self, "model", os.fspath(self.model))
        if not self.model:
            raise InvalidConfig("An experiment needs a model: the name of a sample, or the path of a .pt2 file.")
        object.__setattr__(self, "data", _data(self.data))
        if isinstance(self.mapping, str):
            _preset(self.mapping)
        elif not isinstance(self.mapping, QConfigMapping):
            raise InvalidConfig(
                f"mapping is a {type(self.mapping).__name__}: give a QConfigMapping, or the name of a preset."
            )
        _whole("batch_size", self.batch_size, 1)
        if self.calibration_samples is not None:
            _whole("calibration_samples", self.calibration_samples, 1)
        _whole("seed", self.seed, 0)
        if self.backend not in BACKENDS:
            raise InvalidConfig(f"backend is {self.backend!r}: use one of {', '.join(BACKENDS)}.")
        if self.sqnr_samples is not None:
            _whole("sqnr_samples", self.sqnr_samples, 0)
        if self.training is not None and not isinstance(self.training, Training):
            raise InvalidConfig(f"training is a {type(self.training).__name__}: give a Training, or None.")
        object.__setattr__(self, "edits", tuple(self.edits))
        if any(not isinstance(edit, Edit) for edit in self.edits):
            raise InvalidConfig("edits holds something that is no Edit.")
        if not isinstance(self.name, str):
            raise InvalidConfig(f"name is {self.name!r}: give a text.")

    @property
    def resolved_mapping(self) -> QConfigMapping:
        """The mapping, looked up if it was named."""
        return _preset(self.mapping) if isinstance(self.mapping, str) else self.mapping

    @property
    def spec_hash(self) -> str:
        """SHA-256 of what decides the result: everything but the name, a preset by its content."""
        spec = self.to_dict() | {"mapping": self.resolved_mapping.to_dict()}
        del spec["name"]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()

    @property
    def changes(self) -> str:
        """What is done to the network beside its mapping, as text that is equal for equal changes; "" for nothing."""
        if self.training is None and not self.edits:
            return ""
        return json.dumps({key: d for key, d in self._changes().items() if d}, sort_keys=True)

    def _changes(self) -> dict[str, Any]:
        training = None if self.training is None else self.training.to_dict()
        return {"training": training, "edits": [edit.to_dict() for edit in self.edits]}

    def replace(self, **changes: Any) -> Experiment:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON. An object in memory becomes "memory:<name>:<hash>", which says what it was but cannot be loaded."""
        # Fields that came later are written where they say something, so that equal experiments keep equal hashes.
        later = {"backend": "simulated", "sqnr_samples": None}
        more = {key: getattr(self, key) for key, usual in later.items() if getattr(self, key) != usual}
        more |= {key: d for key, d in self._changes().items() if d}
        return more | {
            "version": VERSION,
            "name": self.name,
            "model": _reference(self.model),
            "data": self.data if isinstance(self.data, str | dict) else _reference(self.data),
            "mapping": self.mapping if isinstance(self.mapping, str) else self.mapping.to_dict(),
            "batch_size": self.batch_size,
            "calibration_samples": self.calibration_samples,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Experiment:
        if not isinstance(d, Mapping):
            raise InvalidConfig(f"An experiment is a table of names and values; found {type(d).__name__}.")
        d = dict(d)
        version = d.pop("version", None)
        if version != VERSION:
            raise InvalidConfig(
                f"This experiment has version {version!r}; this qlab reads version {VERSION}. "
                + ('Add "version": 1 to it.' if version is None else "Use the qlab that wrote it.")
            )
        unknown, missing = set(d) - set(cls.__dataclass_fields__), {"model", "data", "mapping"} - set(d)
        if unknown:
            raise InvalidConfig(
                f"An experiment has no field {', '.join(sorted(unknown))}: "
                f"it has {', '.join(cls.__dataclass_fields__)}."
            )
        if missing:
            raise InvalidConfig(f"The experiment lacks {', '.join(sorted(missing))}.")
        if not isinstance(d["model"], str):
            raise InvalidConfig("model is the name of a sample, a path, or sha256:… of a file in the store.")
        if not isinstance(d["mapping"], str):
            d["mapping"] = QConfigMapping.from_dict(d["mapping"])
        if d.get("training") is not None:
            d["training"] = Training.from_dict(d["training"])
        edits = d.get("edits", [])
        if not isinstance(edits, list):
            raise InvalidConfig(f"edits is a list; found {type(edits).__name__}.")
        d["edits"] = tuple(Edit.from_dict(edit) for edit in edits)
        return cls(**d)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Experiment:
        """Read a spec from a JSON file. Raises InvalidConfig."""
        return cls.from_dict(read_spec(path))


def read_spec(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds. Raises InvalidConfig."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"The spec {os.fspath(path)} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # of the JSON, or of the text encoding
        raise InvalidConfig(f"The spec {os.fspath(path)} is not JSON: {error}.") from error


def _data(data: Any) -> Any:
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    if isinstance(data, Mapping):
        unknown = set(data) - set(DATA_FIELDS)
        if unknown:
            raise InvalidConfig(f"data has no field {', '.join(sorted(unknown))}: it has {', '.join(DATA_FIELDS)}.")
        table = {k: data[k] for k in DATA_FIELDS if data.get(k) is not None}
        for key in ("path", "targets"):
            if isinstance(table.get(key), os.PathLike):
                table[key] = os.fspath(table[key])
            if key in table and not isinstance(table[key], str):
                raise InvalidConfig(f"data.{key} is {table[key]!r}: give a text.")
        for key in ("scale", "mean", "std"):
            if key in table:
                table[key] = _numbers(key, table[key])
        if not table.get("path"):
            raise InvalidConfig("data has no path: give the name of a sample, or the path of a data file.")
        return table["path"] if set(table) == {"path"} else table
    if isinstance(data, str) and not data:
        raise InvalidConfig("An experiment needs data: the name of a sample, or the path of a data file.")
    if not isinstance(data, str) and not hasattr(data, "content_hash"):
        raise InvalidConfig(f"data is a {type(data).__name__}: give a sample name, a path, a table or a Dataset.")
    return data


def _numbers(key: str, value: Any) -> float | list[float]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise InvalidConfig(f"data.{key} is {value!r}: give a number, or one for each channel.")
    return [float(v) for v in values] if isinstance(value, Sequence) else float(value)


def _preset(name: str) -> QConfigMapping:
    from qlab.preset import presets

    if name not in presets:
        raise InvalidConfig(f"There is no preset {name!r}: use one of {', '.join(presets)}.")
    return presets[name]


def _reference(value: Any) -> str:
    return value if isinstance(value, str) else f"{IN_MEMORY}{getattr(value, 'name', '')}:{value.content_hash}"


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidConfig(f"{name} is {value!r}: use a whole number from {least} up.")
