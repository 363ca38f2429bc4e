"""The sample models: what the cards claim is what the files hold, and the scripts that made them still run."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qlab

SAMPLES = Path(__file__).resolve().parents[1] / "sample_models"
NAMES = (
    "conv_digits",
    "depthwise_digits",
    "lstm_text",
    "outlier_mlp",
    "residual_digits",
    "transformer_text",
)
WRITTEN = {"name", "title", "task", "architecture", "source", "input", "notes", "planted"}
MEASURED = {"parameters", "float_accuracy", "n_calibration", "n_evaluation", "classes"}
PLANTED = {"depthwise_digits", "outlier_mlp"}
MEGABYTE = 1024**2

each_sample = pytest.mark.parametrize("name", NAMES)


pytestmark = pytest.mark.usefixtures("one_thread")


def card(name: str) -> dict[str, Any]:
    return json.loads((SAMPLES / name / "card.json").read_text(encoding="utf-8"))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "data.npz", allow_pickle=False) as archive:
        return dict(archive)


@cache
def loaded(name: str) -> tuple[qlab.Model, qlab.Dataset]:
    return qlab.load_model(name), qlab.load_dataset(name)


@cache
def accuracy(name: str, bits: int | None = None, qscheme: str = "", observer: str = "min_max") -> float:
    """Accuracy on the evaluation part; with `bits`, all weights quantized and the activations left in float."""
    model, data = loaded(name)
    if bits is None:
        return qlab.evaluate(model, data).accuracy
    spec = qlab.QuantSpec(bits=bits, qscheme=qscheme, observer=observer)
    mapping = qlab.QConfigMapping(default=qlab.QConfig(weight=spec, mode="weight_only"))
    return qlab.evaluate(qlab.convert(model, mapping), data).accuracy


def test_the_folders_are_the_known_ones():
    assert sorted(path.parent.name for path in SAMPLES.glob("*/card.json")) == list(NAMES)


@each_sample
def test_card_is_complete(name):
    found = card(name)
    assert set(found) == WRITTEN | MEASURED
    assert found["name"] == name
    assert all(found[key].strip() for key in WRITTEN - {"planted"})
    assert (found["planted"] is not None) == (name in PLANTED)
    assert "Licen" in found["source"] or "CC BY" in found["source"]


@each_sample
def test_card_says_what_the_script_says(name):
    tree = ast.parse((SAMPLES / name / "train.py").read_text(encoding="utf-8"))
    call = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD"
    )
    assert isinstance(call, ast.Call)
    said = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    assert WRITTEN - set(said) <= {"source", "planted"}
    assert {key: card(name)[key] for key in said} == said


@each_sample
def test_card_matches_the_data(name):
    data, found = arrays(SAMPLES / name), card(name)
    calibration, evaluation = data["calibration_index"], data["evaluation_index"]
    assert (len(calibration), len(evaluation)) == (found["n_calibration"], found["n_evaluation"])
    assert found["n_evaluation"] >= 1000
    assert sorted([*calibration, *evaluation]) == list(range(len(data["x"])))
    assert len(data["y"]) == len(data["x"])
    assert len(data["class_names"]) == len(set(data["class_names"])) == found["classes"]
    assert data["y"].min() >= 0
    assert data["y"].max() < found["classes"]
    assert data["x"].dtype == (np.int64 if name.endswith("_text") else np.uint8)
    assert ("scale" in data) != name.endswith("_text")


@each_sample
def test_calibration_and_evaluation_share_no_sample(name):
    data = arrays(SAMPLES / name)
    rows = [{row.tobytes() for row in data["x"][data[key]]} for key in ("calibration_index", "evaluation_index")]
    assert not rows[0] & rows[1]


@each_sample
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_card_matches_the_model(name):
    program = torch.export.load(SAMPLES / name / "model.pt2")
    parameters = sum(tensor.numel() for _, tensor in program.named_parameters())
    assert parameters == card(name)["parameters"]
    assert 10_000 <= parameters <= 150_000
    assert program.example_inputs is None


@each_sample
def test_any_batch_size_is_accepted(name):
    model, data = loaded(name)
    (spec,) = model.inputs
    assert (spec.shape[0], spec.minimum[0], spec.maximum[0]) == (None, 1, 4096)
    assert spec.shape[1:] == data.inputs[0].shape[1:]


@each_sample
def test_float_accuracy_is_the_card_s(name):
    assert accuracy(name) == pytest.approx(card(name)["float_accuracy"], abs=1e-6)
    assert 0.5 < accuracy(name) < 0.97


@each_sample
def test_eight_bits_per_channel_cost_next_to_nothing(name):
    assert accuracy(name, 8, "per_channel_symmetric") > accuracy(name) - 0.01


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_eight_bits_per_tensor_break_what_was_planted_to_break(name):
    assert accuracy(name, 8, "per_tensor_symmetric") < accuracy(name) - 0.1


@each_sample
def test_four_bits_tell_per_tensor_from_per_channel(name):
    assert accuracy(name, 4, "per_channel_symmetric") > accuracy(name, 4, "per_tensor_symmetric")


@pytest.mark.parametrize("layer", [f"block{i}.depthwise" for i in (1, 2, 3, 4)])
def test_depthwise_channels_differ_in_range(layer):
    model, _ = loaded("depthwise_digits")
    spec = qlab.QuantSpec(bits=8, qscheme="per_channel_symmetric", observer="min_max")
    mapping = qlab.QConfigMapping(default=qlab.QConfig(weight=spec, mode="weight_only"))
    scale = qlab.convert(model, mapping).weights[layer].scale
    assert scale.max() / scale.min() > 50


def test_percentile_repairs_the_outliers():
    assert accuracy("outlier_mlp", 8, "per_tensor_symmetric", "percentile") > accuracy("outlier_mlp") - 0.02


def test_all_samples_are_small():
    files = [path for path in SAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 15 * MEGABYTE


@pytest.mark.parametrize("name", ["outlier_mlp", "lstm_text"])
def test_the_script_runs_and_repeats_itself(name, tmp_path):
    outputs = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        command = [sys.executable, str(SAMPLES / name / "train.py"), "--quick", "--out", str(folder)]
        done = subprocess.run(command, cwd=SAMPLES.parent, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in folder.iterdir()} == {"model.pt2", "data.npz", "card.json"}
        written = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        assert {key: written[key] for key in WRITTEN} == {key: card(name)[key] for key in WRITTEN}
        assert written["parameters"] == card(name)["parameters"]
        outputs.append((written, arrays(folder)))
    (first_card, first), (second_card, second) = outputs
    assert first_card == second_card
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert qlab.evaluate(qlab.load_model(folder / "model.pt2"), qlab.load_dataset(folder / "data.npz")).accuracy == (
        pytest.approx(first_card["float_accuracy"], abs=1e-6)
    )
