"""From the references in an experiment to a Model and a Dataset: samples, paths, files in the store, objects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qlab.difference import extras
from qlab.errors import InvalidConfig
from qlab.lab.experiment import IN_MEMORY, Experiment
from qlab.lab.kept import file_key, kept
from qlab.lab.store import Artifact, Store
from qlab.metrics import counted
from qlab.samples import sample_folder, sample_names

if TYPE_CHECKING:
    from qlab.data import Dataset
    from qlab.graph.capture import Model
    from qlab.lab.sweep import Sweep

DATASET = "dataset"
Described = TypeVar("Described", "Experiment", "Sweep")

# An artifact's name is its hash alone; readers that go by the ending find one of these beside it.
ENDINGS = (".pt2", ".npz", ".npy", ".safetensors", ".pt", ".csv", ".parquet", ".zip")


def open_model(reference: Any, store: Store) -> Model:
    """Load the model an experiment names. Raises InvalidConfig, UnsupportedModel, BadUpload."""
    from qlab.graph.capture import load_model

    if not isinstance(reference, str):
        return reference
    source = _locate(reference, store, "model")
    return kept("model", _file_key(source, "model.pt2"), lambda: load_model(source))


def open_data(reference: Any, store: Store, samples: int | None = None, seed: int = 0) -> Dataset:
    """Load the data an experiment names, read as its table says, and split it where samples are asked for.

    Raises InvalidConfig, BadUpload, DataMismatch.
    """
    from qlab.data import load_dataset

    if not isinstance(reference, str | Mapping):
        return split(reference, samples, seed)
    how = {k: v for k, v in reference.items() if k != "path"} if isinstance(reference, Mapping) else {}
    source = _locate(reference["path"] if isinstance(reference, Mapping) else reference, store, "data")
    keys = [_file_key(source, "data.npz")]
    if "targets" in how:
        # A column of the file or, where there is a file of this name, the labels in it.
        how["targets"] = _targets(how["targets"], store)
        if os.path.isfile(how["targets"]):
            keys.append(file_key(how["targets"]))
    key = (*keys, json.dumps(how, sort_keys=True), samples, seed)
    return kept("data", key, lambda: split(load_dataset(source, **how), samples, seed))


def split(data: Dataset, samples: int | None, seed: int) -> Dataset:
    """The data with this many samples set aside to calibrate; None leaves the split they bring."""
    return data if samples is None else data.split(samples, seed)


def _file_key(source: str, sample_file: str) -> tuple[Any, ...]:
    folder = sample_folder(source)
    return file_key(source if folder is None else folder / sample_file)


def portable(experiment: Described, store: Store, *, travels: bool = True) -> Described:
    """The same experiment in words another process understands: absolute paths, data in memory saved in the store.

    A Model in memory has no file to name: it raises InvalidConfig if the experiment travels to another process, and
    stays what it is if it does not.
    """
    stays = not isinstance(experiment.model, str) and not travels
    return experiment.replace(
        model=experiment.model if stays else portable_reference(experiment.model, store),
        data=portable_reference(experiment.data, store),
    )


def portable_reference(reference: Any, store: Store) -> Any:
    if isinstance(reference, Mapping):
        return {**reference, "path": portable_reference(reference["path"], store)} | (
            {"targets": os.path.abspath(reference["targets"])} if os.path.isfile(reference.get("targets", "")) else {}
        )
    if isinstance(reference, str):
        known = reference in sample_names() or reference.startswith(("sha256:", IN_MEMORY))
        return reference if known else os.path.abspath(reference)
    if not hasattr(reference, "save"):
        raise InvalidConfig(
            f"The model {getattr(reference, 'name', '')!r} lives in memory and cannot travel to a worker: "
            "write it with torch.export.save and give the path, or use qlab.run, which works in this process."
        )
    saved = store.find_derived(DATASET, reference.content_hash)
    if saved is None:
        with store.new_file(".npz") as path:
            reference.save(path)
            saved = store.add_upload(path, f"{reference.content_hash[:12]}.npz", kind=DATASET)
        store.derive(DATASET, reference.content_hash, saved)
    return saved.reference


def label(reference: Any, store: Store) -> str:
    """What a person calls this model or data."""
    if isinstance(reference, Mapping):
        return label(reference["path"], store)
    if not isinstance(reference, str):
        return getattr(reference, "name", "") or "in memory"
    if reference.startswith(IN_MEMORY):
        return reference.removeprefix(IN_MEMORY).split(":")[0] or "in memory"
    if reference.startswith("sha256:"):
        return store.artifact(reference).original_name or reference[:19]
    return reference if reference in sample_names() else Path(reference).name


def config_label(experiment: Experiment) -> str:
    """The config in a few words."""
    training, edits = experiment.training, len(experiment.edits)
    done = [f"trained {counted(training.epochs, 'epoch')}"] if training is not None else []
    done += [f"{counted(edits, 'number')} edited"] if edits else []
    if isinstance(experiment.mapping, str):
        return " · ".join([experiment.mapping, *done])
    mapping = experiment.mapping
    overrides = mapping.rule_count
    more = [f"{overrides} override{'s' if overrides > 1 else ''}"] if overrides else []
    return " · ".join([str(mapping.default) if mapping.default else "float", *more, *extras(mapping), *done])


def _locate(reference: str, store: Store, what: str) -> str:
    if reference in sample_names():
        return reference
    if reference.startswith(IN_MEMORY):
        raise InvalidConfig(
            f"This experiment used a {what} that lived in memory ({label(reference, store)}); only its hash was kept. "
            f"Write the {what} to a file and name the file."
        )
    if reference.startswith("sha256:"):
        return str(_with_ending(store.artifact(reference), store))
    if not os.path.isfile(reference):
        raise InvalidConfig(
            f"There is no {what} {reference!r}: it is neither a file nor a sample ({', '.join(sample_names())})."
        )
    return reference


def _targets(reference: str, store: Store) -> str:
    return str(_with_ending(store.artifact(reference), store)) if reference.startswith("sha256:") else reference


def _with_ending(artifact: Artifact, store: Store) -> Path:
    ending = Path(artifact.original_name).suffix.lower()
    if ending not in ENDINGS:
        return artifact.path
    folder = store.home / "named"
    folder.mkdir(exist_ok=True)
    link = folder / f"{artifact.hash}{ending}"
    if not link.exists():
        temporary = folder / f"{artifact.hash}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(artifact.path)
        os.replace(temporary, link)  # another process may be doing the same
    return link
