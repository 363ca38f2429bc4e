"""What a translation is, and that names cannot break out of the text."""

import ast

import pytest

import qlab
from qlab.config import QConfigMapping
from qlab.export.onnxruntime_script import onnxruntime_script
from qlab.export.script_parts import comment, data_constants, file_stem, head, model_path, stand_in
from qlab.export.torchao_script import torchao_script
from qlab.export.translation import Difference, Translation
from qlab.lab.experiment import Experiment
from qlab.samples import sample_names
from tests.export.script_runs import HOSTILE, quantized, translated


def test_frozen():
    t = Translation("text", "a.py", (Difference("a", "b", "c"),))
    with pytest.raises(AttributeError):
        t.text = "other"  # type: ignore[misc]
    assert t.differences[0].layers == ()


@pytest.mark.parametrize(
    "text", [HOSTILE, "a" * 400, "\x85\u2029b\nc", "\ud800"], ids=["hostile", "long", "breaks", "half"]
)
def test_comment_stays_a_comment(text):
    lines = comment(text)
    assert all(line.startswith("#") for line in lines.splitlines())
    assert ast.parse(lines.encode("utf-8")).body == []


def test_head_names_each_difference():
    experiment = Experiment("conv_digits", "conv_digits", "x86")
    text = head(experiment, "does it.", "torch", [Difference("a" + HOSTILE, "b", "c.", tuple("lmnopqrs"))])
    assert ast.parse(text).body == []
    assert "Written by qlab for 'conv_digits', 'x86'." in text
    assert "l, m, n, o, p, q and 2 more" in text


@pytest.mark.parametrize("model", [HOSTILE, "../a b/c.pt2", "sha256:12", "///"])
def test_file_stem_is_plain(model):
    stem = file_stem(Experiment(model, "d.npz", QConfigMapping()))
    assert stem
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def test_stand_in_tells_what_the_file_was():
    assert stand_in("a.pt2", "model", "model.pt2") == ("a.pt2", None, None)
    path, remark, difference = stand_in("sha256:ab", "model", "model.pt2")
    assert path == "model.pt2"
    assert difference is not None
    assert "sha256:ab" in difference.asked
    assert remark is not None
    assert "sha256:ab" in remark


def test_data_that_is_no_npz_is_told():
    text, differences = data_constants(Experiment("m.pt2", {"path": "d.csv", "scale": 255}, "x86"))
    assert len(differences) == 1
    assert "SCALE = None" in text  # the file that is made has it already
    text, differences = data_constants(Experiment("m.pt2", {"path": "d.npz", "mean": [0.5, 0.25]}, "x86"))
    assert differences == []
    assert "MEAN = [0.5, 0.25]" in text


def test_samples_are_named_by_their_file():
    path, _, difference = model_path("conv_digits")
    assert path.endswith("conv_digits/model.pt2")
    assert difference is None


other_tools = pytest.mark.parametrize("script", [torchao_script, onnxruntime_script])


@other_tools
def test_every_preset_and_sample_compiles(script):
    for sample in sample_names():
        for preset in qlab.presets:
            t, _ = translated(script, sample, preset)
            compile(t.text, t.file_name, "exec")


@other_tools
def test_hostile_names_stay_texts(script):
    _, qmodel, _ = quantized("conv_digits", "x86")
    t = script(Experiment(HOSTILE, {"path": HOSTILE + ".npz", "targets": HOSTILE}, "x86"), qmodel)
    calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(t.text)) if isinstance(n, ast.Call)}
    assert not [c for c in calls if c.startswith("os.")]
    assert f"MODEL = {HOSTILE!r}" in t.text
