"""What is packed for a worker that shares no folder with the app, and what it keeps."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from qlab.errors import InvalidConfig
from qlab.lab.outpost import Outpost
from qlab.lab.parcel import Packer, columns_of, references, renamed, samples_here
from qlab.lab.records import Headline
from qlab.lab.store import Store
from qlab.lab.tables import RUNS
from tests.lab.conftest import MODEL

SMALL = "outlier_mlp"


def test_only_what_names_a_file_is_renamed() -> None:
    spec = {"experiment": {"name": "/etc/hosts", "model": "/m", "data": {"path": "/d", "targets": "/t", "mean": [1.0]}}}
    assert list(references(spec)) == [("model", "/m"), ("data", "/d"), ("targets", "/t")]
    names = {("model", "/m"): "a", ("data", "/d"): "b", ("targets", "/t"): "c", ("model", "/etc/hosts"): "no"}
    assert renamed(spec, names) == {
        "experiment": {"name": "/etc/hosts", "model": "a", "data": {"path": "b", "targets": "c", "mean": [1.0]}}
    }


def packed(store: Store, spec: dict[str, Any], samples: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    run = store.get_run(store.create_run(kind="experiment", spec=spec))
    parcel = Packer(store).pack(run, "a:b", (), samples)
    assert set(parcel.needs) == {file.hash for file in parcel.files.values()}
    return {place: file.name for place, file in parcel.files.items()}


def test_a_sample_goes_along_unless_the_worker_has_the_very_same(tmp_path: Path) -> None:
    store, spec, here = Store(tmp_path), {"model": MODEL, "data": MODEL}, samples_here()
    assert packed(store, spec, here) == {}
    both = {("model", MODEL): f"{MODEL}.pt2", ("data", MODEL): f"{MODEL}.npz"}
    assert packed(store, spec, {}) == both
    assert packed(store, spec, {**here, ("model", MODEL): "another"}) == {("model", MODEL): f"{MODEL}.pt2"}


def test_a_column_of_labels_is_no_file(tmp_path: Path, few_digits: Path) -> None:
    labels = tmp_path / "labels.npy"
    labels.write_bytes(b"numbers")
    store = Store(tmp_path / "home")
    spec = {"model": MODEL, "data": {"path": str(few_digits), "targets": "y"}}
    assert packed(store, spec, samples_here()) == {("data", str(few_digits)): "few_digits.npz"}
    spec["data"]["targets"] = str(labels)  # type: ignore[index]
    assert packed(store, spec, samples_here())["targets", str(labels)] == "labels.npy"


def test_a_changed_file_is_taken_in_anew(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "home"), tmp_path / "m.pt2"
    packer = Packer(store)

    def hash_now() -> str:
        run = store.get_run(store.create_run(kind="experiment", spec={"model": str(file)}))
        return packer.pack(run, "a:b", (), {}).files["model", str(file)].hash

    file.write_bytes(b"first")
    first = hash_now()
    assert hash_now() == first
    file.write_bytes(b"second one")
    assert hash_now() != first


def test_a_reference_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="not in this store"):
        packed(Store(tmp_path), {"model": "sha256:" + "1" * 64}, {})


def test_a_worker_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlab.lab.line import Line

    there = Outpost(tmp_path, cast(Line, None))  # nothing is asked for here
    files = [there.add_bytes(bytes([i]) * 1000, kind="upload") for i in range(4)]
    for age, file in enumerate(files):
        os.utime(file.path, (1e9 + age, 1e9 + age))
    there.artifact(files[0].hash)
    monkeypatch.setattr("qlab.lab.outpost.ROOM", 2500)
    there.make_room()
    assert [file.path.exists() for file in files] == [True, False, False, True]
    there.close()


def test_a_row_travels_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = store.create_run(kind="count", spec={"steps": 1}, name="n", model="m")
    store.annotate(run_id, tags=["a", "ü"])
    row = columns_of(store.get_run(run_id))
    assert set(row) == {c.name for c in RUNS.columns}
    assert set(Headline.__dataclass_fields__) < set(row)
    assert (row["spec"], row["tags"]) == ('{"steps": 1}', '["a", "ü"]')
