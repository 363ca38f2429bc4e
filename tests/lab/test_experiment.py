"""Experiment: what is checked, and that its JSON comes back as it went."""

import json
from pathlib import Path

import numpy as np
import pytest

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.data import load_dataset
from qlab.errors import InvalidConfig
from qlab.lab import sources
from qlab.lab.experiment import Experiment
from qlab.lab.store import Store

MAPPING = QConfigMapping(
    default=QConfig(
        weight=QuantSpec(qscheme="per_channel_symmetric"),
        activation=QuantSpec(observer="percentile", observer_args={"percentile": 99.9}),
    ),
    by_type={"linear": None},
    by_name={"layer1.*": QConfig(weight=QuantSpec(bits=4, qscheme="per_tensor_symmetric"), mode="weight_only")},
)
# As written by this version: it has to load for ever.
SAVED = {
    "version": 1,
    "name": "four bits",
    "model": "residual_digits",
    "data": {"path": "digits.npz", "scale": 255.0, "mean": [0.2], "std": [0.2], "targets": "labels"},
    "mapping": {
        "default": {
            "mode": "weight_only",
            "weight": {
                "bits": 4,
                "qscheme": "per_group_symmetric",
                "observer": "min_max",
                "group_size": 32,
                "signed": True,
                "narrow_range": False,
            },
            "activation": None,
        },
        "by_type": {"embedding": None},
        "by_name": {},
    },
    "batch_size": 32,
    "calibration_samples": 256,
    "seed": 3,
}


@pytest.mark.parametrize("mapping", [MAPPING, "x86"], ids=["mapping", "preset"])
@pytest.mark.parametrize(
    "data",
    ["residual_digits", {"path": "a.csv", "scale": 255, "mean": (0.1, 0.2), "std": 0.5, "targets": "label"}],
    ids=["name", "table"],
)
def test_json_round_trip(mapping: QConfigMapping | str, data: object) -> None:
    experiment = Experiment("residual_digits", data, mapping, batch_size=16, calibration_samples=8, seed=1, name="a")
    again = Experiment.from_dict(json.loads(json.dumps(experiment.to_dict())))
    assert again == experiment
    assert again.spec_hash == experiment.spec_hash


def test_a_saved_spec_loads() -> None:
    experiment = Experiment.from_dict(SAVED)
    assert experiment.to_dict() == SAVED
    assert experiment.mapping.default.weight.group_size == 32


def test_spec_hash_is_of_what_decides_the_result() -> None:
    experiment = Experiment("m", "d", "x86")
    assert experiment.spec_hash == experiment.replace(name="other").spec_hash
    assert experiment.spec_hash == experiment.replace(mapping=experiment.resolved_mapping).spec_hash
    assert experiment.spec_hash != experiment.replace(seed=1).spec_hash
    assert experiment.spec_hash != experiment.replace(mapping="w4a8").spec_hash


def test_a_table_with_a_path_alone_is_the_path() -> None:
    assert Experiment("m", {"path": "d.npz", "scale": None}, "x86") == Experiment("m", "d.npz", "x86")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"colour": "red"}, "no field colour"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"seed": -1}, "seed is -1"),
        ({"calibration_samples": 0}, "calibration_samples is 0"),
        ({"mapping": "x87"}, "no preset 'x87'"),
        ({"mapping": {"default": {"mode": "magic"}}}, "magic"),
        ({"model": ""}, "needs a model"),
        ({"model": 7}, "model is the name"),
        ({"data": {"scale": 1}}, "data has no path"),
        ({"data": {"path": "a", "std": "b"}}, "data.std"),
        ({"data": {"path": "a", "url": "b"}}, "no field url"),
        ({"data": 3}, "data is a int"),
        ({"name": 3}, "name is 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Experiment.from_dict(SAVED | change)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidConfig, match="lacks mapping, model"):
        Experiment.from_dict({"version": 1, "data": "d"})


def test_a_spec_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        Experiment.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidConfig, match="is not JSON"):
        Experiment.load(tmp_path / "broken.json")


def test_data_in_memory_travels_through_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = load_dataset(np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1]))
    experiment = sources.portable(Experiment("residual_digits", data, "x86"), store)
    assert experiment.data.startswith("sha256:")
    assert sources.open_data(experiment.data, store).content_hash == data.content_hash


def test_paths_become_absolute_and_samples_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "home")
    (tmp_path / "y.npy").touch()
    experiment = Experiment("m.pt2", {"path": "d.csv", "targets": "y.npy"}, "x86")
    experiment = sources.portable(experiment, store)
    assert experiment.model == str(tmp_path / "m.pt2")
    assert experiment.data == {"path": str(tmp_path / "d.csv"), "targets": str(tmp_path / "y.npy")}
    assert sources.portable_reference("residual_digits", store) == "residual_digits"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(InvalidConfig, match=r"no model 'nowhere.pt2'.*residual_digits"):
        sources.open_model("nowhere.pt2", store)
    with pytest.raises(InvalidConfig, match="is not in this store"):
        sources.open_data("sha256:" + "0" * 64, store)
    with pytest.raises(InvalidConfig, match="not a content hash"):
        sources.open_data("sha256:../../etc/passwd", store)
    with pytest.raises(InvalidConfig, match="lived in memory"):
        sources.open_model("memory:Net:abc", store)
