"""The qlab script gives the figures of the run; what it cannot name it tells."""

import ast

import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.export.script import python_script
from qlab.lab.run import read_result
from qlab.lab.store import open_store
from qlab.samples import sample_names
from tests.export.script_runs import HOSTILE, run_scripts

_RULES = QConfigMapping(
    default=QConfig(QuantSpec(bits=4, qscheme="per_channel_symmetric", narrow_range=True), QuantSpec(signed=True)),
    by_type={"linear": None},
    by_name={"block1.*": QConfig(
        QuantSpec(qscheme="per_tensor_affine", observer="percentile", observer_args={"percentile": 99.5}),
        QuantSpec(observer="moving_average", observer_args={"averaging_constant": 0.1}),
    )},
)  # fmt: skip


_BESIDE = qlab.presets["w4a8"].replace(
    ranges={"block2.conv.weight": (-0.2, 0.2)}, equalize=True, correct_bias=True
)  # fmt: skip


_EDITS = (qlab.Edit("block2.conv", "code", (0, 0, 1, 1), 3), qlab.Edit("block2.conv", "scale", (0,), 0.5, of="weight"))


def _mapping(text):
    """The mapping a script builds, from its own lines."""
    tree = ast.parse(text)
    wanted = [
        n
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]).startswith(("config_", "mapping"))
    ]
    namespace = {"qlab": qlab}
    exec(compile(ast.Module(wanted, []), "script", "exec"), namespace)
    return namespace["mapping"]


def test_same_figures_as_the_run(tmp_path):
    experiments = {
        "preset.py": qlab.Experiment("residual_digits", "residual_digits", "w4a8", batch_size=100),
        "rules.py": qlab.Experiment("conv_digits", {"path": "conv_digits", "scale": 255, "mean": 0.25, "std": [0.5]},
                                    _RULES, calibration_samples=200, seed=7),
        "dynamic.py": qlab.Experiment("conv_digits", "conv_digits", "dynamic"),
        "beside.py": qlab.Experiment("conv_digits", "conv_digits", _BESIDE),
        "trained.py": qlab.Experiment("conv_digits", "conv_digits", "w4a8", calibration_samples=64, edits=_EDITS,
                                      training=qlab.Training(epochs=2, ranges="lsq")),
    }  # fmt: skip
    found = run_scripts(tmp_path, {name: python_script(e).text for name, e in experiments.items()})
    for name, experiment in experiments.items():
        result = read_result(open_store(), qlab.run(experiment))
        quantized, reference = result.quantized.to_dict(), result.reference.to_dict()
        assert found[name]["quantized"] == quantized
        assert found[name]["reference"] == reference
        assert found[name]["comparison"]["verdict"] == result.comparison.verdict
        assert found[name]["size"] == dict(result.size)
        out = found[name]["out"]
        assert f"accuracy   {100 * quantized['accuracy']:.2f} % (95 % interval " in out
        assert f"float {100 * reference['accuracy']:.2f} %" in out
        assert f"size       {result.size['quantized']:,} bytes" in out
        assert (tmp_path / f"{python_script(experiment).file_name[:-3]}.onnx").exists()


@pytest.mark.parametrize("sample", sample_names())
@pytest.mark.parametrize("preset", list(qlab.presets))
def test_presets_by_name(sample, preset):
    t = python_script(qlab.Experiment(sample, sample, preset))
    assert t.differences == ()
    assert f"qlab.presets[{preset!r}]" in t.text
    assert _mapping(t.text) == qlab.presets[preset]


@pytest.mark.parametrize("mapping", [_RULES, _BESIDE, QConfigMapping(), *qlab.presets.values()])
def test_mapping_is_written_in_full(mapping):
    assert _mapping(python_script(qlab.Experiment("a.pt2", "b.npz", mapping)).text) == mapping


def test_hostile_names_stay_texts():
    mapping = QConfigMapping(by_name={HOSTILE: None})
    experiment = qlab.Experiment(HOSTILE, {"path": HOSTILE, "targets": HOSTILE}, mapping, name=HOSTILE)
    text = python_script(experiment).text
    calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)}
    assert not [c for c in calls if c.startswith("os.")]
    assert _mapping(text) == mapping
    assert repr(HOSTILE) in text


@pytest.mark.parametrize("model", ["sha256:" + "a" * 64, "memory:net:123"])
def test_files_of_the_store_get_a_place_to_fill_in(model):
    t = python_script(qlab.Experiment(model, {"path": model, "targets": "sha256:" + "b" * 64}, "x86"))
    assert len(t.differences) == 3
    assert "load_model('model.pt2')" in t.text
    assert t.text.count(f"fill in: the path of the model {model!r}") == 1
