"""The job that writes the files of a quantized model: what it stores, and that it is stored once."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import qlab
from qlab.errors import DataMismatch, UnsupportedModel
from qlab.export.size import file_size
from qlab.lab import export, stages, templates
from qlab.lab.experiment import Experiment
from qlab.lab.export import find_exports
from qlab.lab.store import DONE, FAILED, Store
from qlab.preset import presets
from tests.jobs_here import carry

MODEL = "conv_digits"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("lab") / "home")


def found(store: Store, few_digits: Path, preset: str):
    return find_exports(store, qlab.load_model(MODEL), qlab.load_dataset(few_digits), presets[preset])


def test_both_files_are_those_of_the_converted_model(store: Store, few_digits: Path) -> None:
    assert found(store, few_digits, "x86") is None
    run = carry(store, "export", experiment=Experiment(MODEL, str(few_digits), "x86", name="a name"))
    assert run.status == DONE
    assert run.name == ""
    assert set(run.require_result()["timings"]) == {
        "load", "check", "calibrate", "convert", "write .safetensors", "export graph", "write ONNX",
    }  # fmt: skip
    files = found(store, few_digits, "x86")
    model, data = qlab.load_model(MODEL), qlab.load_dataset(few_digits)
    qmodel = qlab.convert(model, presets["x86"], qlab.calibrate(model, data))
    x = torch.from_numpy(data.evaluation.example(5)[0])
    # .safetensors: the same network to the bit; ONNX: within a rounding of each output.
    path = files.quantized.path
    again = qlab.load_quantized(_named(path, few_digits.parent / "again.safetensors"))
    assert torch.equal(again(x), qmodel(x))
    session = onnxruntime.InferenceSession(files.onnx.path.read_bytes(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": x.numpy()})
    step = float(qmodel.activations["classifier"].scale)
    assert np.abs(output - qmodel(x).numpy()).max() <= 2.01 * step
    assert files.size == file_size(qmodel)
    assert files.size.total == files.onnx.bytes
    assert (files.contents.opset, list(files.contents.domains)) == (21, [])
    assert files.contents.weights == {"int8": 5}
    assert files.contents.grids == len(qmodel.activations)
    assert [list(i) for i in files.contents.inputs] == [["x", "float32", [1, 1, 16, 16]]]


def test_the_same_request_is_found_and_not_written_again(store: Store, few_digits: Path, monkeypatch) -> None:
    first = carry(store, "export", experiment=Experiment(MODEL, str(few_digits), "x86"))

    def refuse(*_args, **_kwargs):
        raise AssertionError("it was written again")

    monkeypatch.setattr(export, "_write", refuse)
    monkeypatch.setattr(stages, "calibrate", refuse)
    again = carry(store, "export", experiment=Experiment(MODEL, str(few_digits), presets["x86"], name="another"))
    assert again.status == DONE
    assert again.require_result()["artifacts"] == first.require_result()["artifacts"]


def test_another_config_shares_the_exported_graph_and_needs_no_calibration(store, few_digits, monkeypatch) -> None:
    carry(store, "export", experiment=Experiment(MODEL, str(few_digits), "x86"))

    def refuse(*_args, **_kwargs):
        raise AssertionError("it was computed again")

    monkeypatch.setattr(templates, "template", refuse)
    monkeypatch.setattr(stages, "calibrate", refuse)
    assert carry(store, "export", experiment=Experiment(MODEL, str(few_digits), "int4_weight_only")).status == DONE
    files = found(store, few_digits, "int4_weight_only")
    assert files.contents.weights == {"int4": 5}
    assert files.contents.grids == 0
    assert files.size.total < found(store, few_digits, "x86").size.total


def test_an_op_without_an_onnx_form_leaves_the_other_file(tmp_path: Path, few_digits: Path, monkeypatch) -> None:
    store = Store(tmp_path / "home")

    def refuse(_model):
        raise UnsupportedModel("This network cannot be written as ONNX: no form for x.", detail="aten::x")

    monkeypatch.setattr(templates, "template", refuse)
    run = carry(store, "export", experiment=Experiment(MODEL, str(few_digits), "x86"))
    assert run.status == DONE
    files = found(store, few_digits, "x86")
    assert (files.onnx, files.contents, files.size) == (None, None, None)
    assert (files.blocked, files.detail) == ("This network cannot be written as ONNX: no form for x.", "aten::x")
    assert qlab.load_quantized(_named(files.quantized.path, tmp_path / "again.safetensors")).name == MODEL


def test_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    with pytest.raises(DataMismatch):
        carry(store, "export", experiment=Experiment(MODEL, "lstm_text", "x86"))
    (run,) = store.list_runs()
    assert run.status == FAILED
    assert not store.list_artifacts(export.QUANTIZED_FILE)


def _named(source: Path, target: Path) -> Path:
    """A file of the store under a name with its ending."""
    target.write_bytes(source.read_bytes())
    return target
