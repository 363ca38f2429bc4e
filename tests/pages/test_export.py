"""The Export page: what it offers are the files of the engine, and the lines it shows run outside the lab."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qlab.conversion import convert
from qlab.data import load_dataset
from qlab.export.quantized_load import load_quantized
from qlab.export.script_parts import safe_stem
from qlab.export.size import file_size
from qlab.export.torchao_script import torchao_script
from qlab.export.translation import Difference
from qlab.graph.capture import load_model
from qlab.lab.experiment import Experiment
from qlab.lab.export import EXPORT, export_key, find_exports
from qlab.lab.run import find_prepared
from qlab.lab.store import Store
from qlab.metrics import write
from qlab.preset import presets
from qlab.ui import cache, export_text
from qlab.ui.library import ModelRef, sample_data
from tests.jobs_here import carry
from tests.pages.elements import figures, said

MODEL = "conv_digits"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def written(prepared_home):
    """The files of the sample under two configs, in the store as the job leaves them."""
    store = Store(prepared_home)
    for preset in ("x86", "int4_weight_only"):
        carry(store, "export", experiment=Experiment(MODEL, MODEL, preset))
    store.close()


@pytest.fixture
def page(open_page):
    def opened(preset="x86", **session):
        state_of = {"lab.mapping": presets[preset]} | {k.replace("__", "."): v for k, v in session.items()}
        at = open_page("export", query={"model": MODEL}, state=state_of)
        assert not at.exception
        return at

    return opened


@pytest.fixture(scope="module")
def qmodel(prepared_home):
    store = Store(prepared_home)
    found = find_prepared(store, load_model(MODEL), load_dataset(MODEL))
    store.close()
    return convert(load_model(MODEL), presets["x86"], found.calibration)


def code_with(at, word):
    return next(code.value for code in at.code if word in code.value)


def buttons(at):
    return {button.proto.label for button in at.get("download_button")}


def outside(tmp_path: Path, *arguments: str, **environment: str) -> str:
    """What Python prints for these arguments in a folder of its own, without the project on its path."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def onnx_beside(home: Path, folder: Path) -> None:
    """The ONNX file as a download puts it."""
    files = find_exports(Store(home), load_model(MODEL), load_dataset(MODEL), presets["x86"])
    (folder / f"{MODEL}_x86.onnx").write_bytes(files.onnx.path.read_bytes())


# --- the files --------------------------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_files(page, qmodel, home) -> None:
    at = page()
    assert not at.error
    size = file_size(qmodel)
    files = find_exports(Store(home), load_model(MODEL), load_dataset(MODEL), presets["x86"])
    assert figures(at)["ONNX file"] == write("size", size.total) == write("size", files.onnx.bytes)
    assert figures(at)["Float network"] == write("size", size.float_file)
    assert figures(at)["Quantized model"] == write("size", files.quantized.bytes)
    assert len(at.get("plotly_chart")) == 1
    assert {f"Download {MODEL}_x86.onnx", f"Download {MODEL}_x86.safetensors"} <= buttons(at)
    facts = "\n".join(said(text) for text in at.markdown)
    assert "opset 21 with standard operators only" in facts
    assert "5 weight tensors as int8" in facts
    assert f"{len(qmodel.activations)} activations on grids known beforehand" in facts


def test_the_lines_for_onnx_runtime_run_without_the_project(page, home, tmp_path) -> None:
    at = page()
    onnx_beside(home, tmp_path)
    lines = 'import importlib.util\nassert importlib.util.find_spec("qlab") is None\n' + code_with(
        at, "InferenceSession"
    )
    (tmp_path / "lines.py").write_text(lines)
    assert outside(tmp_path, "-I", "lines.py").strip() == "(1, 10)"


def test_the_onnx_file_gives_the_simulated_values_with_the_lines_of_the_page(page, qmodel, home, tmp_path) -> None:
    at = page()
    onnx_beside(home, tmp_path)
    _, (x,), _ = next(iter(load_dataset(MODEL).evaluation.batches(32)))
    np.save(tmp_path / "x.npy", x.numpy())
    lines, replaced = re.subn(r"numpy\.zeros\(.*?\)(?=\}\))", 'numpy.load("x.npy")', code_with(at, "InferenceSession"))
    assert replaced == 1
    (tmp_path / "lines.py").write_text(f'{lines}\nnumpy.save("y.npy", outputs[0])\n')
    assert outside(tmp_path, "-I", "lines.py").strip() == "(32, 10)"
    step = float(qmodel.activations["classifier"].scale)
    difference = np.abs(np.load(tmp_path / "y.npy") - qmodel(x).numpy()) / step
    # A value in the middle between two codes may go either way, and then others behind it.
    assert difference.max() <= 2.01
    assert (difference < 0.01).mean() > 0.95


def test_the_lines_for_the_quantized_model_give_the_converted_one(page, home, qmodel, tmp_path) -> None:
    at = page()
    files = find_exports(Store(home), load_model(MODEL), load_dataset(MODEL), presets["x86"])
    (tmp_path / f"{MODEL}_x86.safetensors").write_bytes(files.quantized.path.read_bytes())
    lines = code_with(at, "load_quantized") + "\nprint(output.sum().item())"
    (tmp_path / "lines.py").write_text(lines)
    printed = outside(tmp_path, "lines.py", PYTHONPATH=str(ROOT))
    assert float(printed) == pytest.approx(qmodel(torch.zeros(1, 1, 16, 16)).sum().item(), rel=1e-6)
    again = load_quantized(tmp_path / f"{MODEL}_x86.safetensors")
    assert again.float_hash == load_model(MODEL).content_hash


def test_another_config_has_other_files(page) -> None:
    at = page("int4_weight_only")
    assert f"Download {MODEL}_int4_weight_only.onnx" in buttons(at)
    assert any("5 weight tensors as int4" in said(text) for text in at.markdown)
    assert figures(at)["ONNX file"] != figures(page())["ONNX file"]


def test_a_first_visit_has_the_files_written_by_a_job(page) -> None:
    at = page("int8_weight_only")
    for _ in range(60):
        if "ONNX file" in figures(at):
            break
        (run,) = cache.store().list_runs(kind="export", limit=1)
        cache.runner().wait(run.id, 60)
        at.run()
    assert not at.error
    assert f"Download {MODEL}_int8_weight_only.onnx" in buttons(at)
    assert any("5 weight tensors as int8" in said(text) for text in at.markdown)


def test_a_network_without_an_onnx_form_says_why_and_has_the_other_file(page, home) -> None:
    store = Store(home)
    key = export_key(load_model(MODEL), load_dataset(MODEL), presets["x86"], 64)
    index = json.loads(store.find_derived(EXPORT, key).path.read_bytes())
    blocked = {"quantized": index["quantized"], "blocked": "No form for *aten.x* of layer fc.", "detail": "stack"}
    store.derive(EXPORT, key, store.add_bytes(json.dumps(blocked).encode(), kind=EXPORT))
    at = page()
    assert not at.error
    assert said(at.warning[0]) == "No form for \\*aten.x\\* of layer fc."
    assert buttons(at) >= {f"Download {MODEL}_x86.safetensors"}
    assert not any(label.endswith(".onnx") for label in buttons(at))
    assert not at.get("plotly_chart")


def test_data_that_does_not_fit_is_said_and_starts_no_job(open_page) -> None:
    query = {"model": MODEL, "data": "lstm_text"}
    at = open_page("export", query=query)
    assert not at.exception
    assert at.error
    assert not at.metric


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("net", "net_x86"),
        ("../../etc/passwd", "etc_passwd_x86"),
        ('a"b\\n; rm -rf ~', "a_b_n_rm_-rf_x86"),
        ("ü" * 200, "x86"),
        ("n" * 200, "n" * 60),
    ],
    ids=["plain", "path", "shell", "not ASCII", "long"],
)
def test_names_of_downloads_are_safe(name, expected) -> None:
    assert safe_stem(name, "x86") == expected
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,60}", safe_stem(name, "x86"))


def test_an_upload_cannot_write_into_the_lines_it_is_named_in(page) -> None:
    name = 'x"); import os; os.remove("a.pt2'
    at = page(lab__model=ModelRef(MODEL, name, "sample"), lab__data=sample_data(MODEL))
    assert not at.error
    assert "Download x_import_os_os_remove_a_x86.onnx" in buttons(at)
    lines = [code.value for code in at.code if code.language == "python"]
    assert len(lines) == 2
    for text in lines:
        assert "os.remove" not in text
        ast.parse(text)


# --- text -------------------------------------------------------------------------------------------------------------


def with_tab(page, name, preset="x86"):
    at = page(preset)
    at.session_state["export_tabs"] = name
    return at.run()


def test_the_spec_is_the_experiment_as_it_would_run(page) -> None:
    spec = json.loads(code_with(page(), '"version"'))
    assert Experiment.from_dict(spec) == Experiment(MODEL, MODEL, "x86")


def test_differences_are_told_with_their_layers() -> None:
    everywhere = Difference("mse *observer*", "histogram", "There is no such rule.")
    assert export_text.sentence(everywhere) == "- **mse \\*observer\\*** → histogram. There is no such rule."
    six = Difference("4 bits", "8 bits", "No kernel", tuple(f"layer{i}" for i in range(6)))
    assert export_text.sentence(six).endswith("No kernel. (`layer0`, `layer1`, `layer2`, `layer3` and 2 more)")


def test_what_a_script_does_differently_stands_above_it(page, qmodel) -> None:
    at = with_tab(page, "torchao script")
    made = torchao_script(Experiment(MODEL, MODEL, "x86"), qmodel)
    assert made.differences
    assert at.code[-1].value == made.text.rstrip()
    told = "\n".join(said(text) for text in at.markdown)
    for difference in made.differences:
        assert export_text.sentence(difference) in told


@pytest.mark.parametrize("preset", ["x86", "int4_weight_only"])
@pytest.mark.parametrize("tab", export_text.TABS[1:])
def test_every_script_is_python_and_is_offered_as_shown(page, tab, preset) -> None:
    at = with_tab(page, tab, preset)
    assert not at.error
    script = at.code[-1].value  # behind the lines of the cards
    assert any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(ast.parse(script)))
    (name,) = [label for label in buttons(at) if label.endswith(".py")]
    assert re.fullmatch(r"Download [A-Za-z0-9_-]+\.py", name)
