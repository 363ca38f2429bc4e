"""The torchao script runs, comes near our simulation, and tells what it loses and nothing else."""

import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.export.torchao_script import torchao_script
from tests.export.script_runs import printed, quantized, run_scripts, static, translated

W, A = QuantSpec(qscheme="per_channel_symmetric"), QuantSpec()


def _static(weight=W, activation=A):
    return static(weight, activation)


def test_accuracies_are_those_of_the_simulation(tmp_path):
    cases = [("conv_digits", "onnxruntime"), ("residual_digits", "tflite"), ("outlier_mlp", "dynamic")]
    ready = {case: quantized(*case, samples=None) for case in cases}
    made = {case: torchao_script(experiment, qmodel) for case, (experiment, qmodel, _) in ready.items()}
    found = run_scripts(tmp_path, {t.file_name: t.text for t in made.values()})
    for case, (_, qmodel, data) in ready.items():
        out = found[made[case].file_name]["out"]
        reference = qlab.evaluate(qmodel.model, data)
        ours = qlab.evaluate(qmodel, data, reference, sqnr_samples=0)
        assert printed(out, "float") == (pytest.approx(100 * reference.accuracy, abs=0.006), 100)
        accuracy, same = printed(out, "torchao")
        assert accuracy == pytest.approx(100 * ours.accuracy, abs=0.3)
        assert same == pytest.approx(100 * ours.agreement, abs=0.3)
        assert same < 100
    assert (tmp_path / "conv_digits_onnxruntime.torchao.pt2").exists()


@pytest.mark.parametrize(
    "mapping",
    [
        _static(),
        _static(W.replace(bits=4, narrow_range=True), A.replace(bits=6)),
        _static(
            QuantSpec(qscheme="per_tensor_symmetric", bits=3), A.replace(qscheme="per_tensor_symmetric", signed=False)
        ),
        _static(W, A.replace(observer="moving_average", observer_args={"averaging_constant": 0.2})),
        _static(W, A.replace(observer="percentile", observer_args={"percentile": 100})),
        _static(W, A.replace(bits=16)),
        _static().replace(by_name={"block2.*": None}, by_type={"linear": QConfig(W.replace(bits=4), A)}),
        QConfigMapping(default=QConfig(W, mode="weight_only")),
        QConfigMapping(default=QConfig(W, A, mode="dynamic")),
        QConfigMapping(),
    ],
    ids=["plain", "bits", "tensor", "average", "percentile 100", "16", "rules", "weight only", "dynamic", "float"],
)
def test_nothing_is_told_of_what_can_be_said(mapping):
    t, _ = translated(torchao_script, "conv_digits", mapping)
    assert t.differences == ()
    assert "differs" not in t.text.split("import numpy")[0]


@pytest.mark.parametrize(
    ("sample", "mapping", "asked"),
    [
        ("conv_digits", _static(W, A.replace(observer="mse")), "activations ranged by mse"),
        ("conv_digits", _static(W, A.replace(observer="percentile")), "activations ranged by percentile"),
        ("conv_digits", _static(W, A.replace(observer="entropy")), "activations ranged by entropy"),
        ("conv_digits", _static(W.replace(observer="mse")), "weights per channel ranged by mse"),
        ("conv_digits", _static(QuantSpec(observer="percentile")), "weights ranged by percentile"),
        ("conv_digits", qlab.presets["int4_grouped"], "weights in groups of 32"),
        ("conv_digits", _static(W, QuantSpec(10, "per_tensor_symmetric", signed=False)), "unsigned codes of 10 bits"),
        ("lstm_text", _static(), "recurrent layers"),
        ("transformer_text", _static(), "inside attention"),
    ],
    ids=["mse", "percentile", "entropy", "weight mse", "weight percentile", "groups", "unsigned", "lstm", "attention"],
)
def test_what_is_lost_is_told(sample, mapping, asked):
    t, qmodel = translated(torchao_script, sample, mapping)
    (found,) = [d for d in t.differences if asked in d.asked]
    assert len(t.differences) == 1
    assert found.layers
    known = {*qmodel.model.names.values()}
    assert set(found.layers) <= known
    # wrapped in the head of the script
    words = " ".join(line.removeprefix("#").strip() for line in t.text.splitlines() if line.startswith("#"))
    assert f"{found.asked}: {found.written}." in words


def test_what_a_config_does_beside_its_rules_is_told_where_it_does_something():
    ranges = {"block2.conv.weight": (-0.25, 0.25), "no such tensor": (-1.0, 1.0)}
    mapping = _static().replace(ranges=ranges, equalize=True, correct_bias=True)
    t, _ = translated(torchao_script, "conv_digits", mapping)
    assert [d.asked.split()[0] for d in t.differences] == ["ranges", "weight", "biases"]
    assert t.differences[0].layers == ("block2.conv.weight",)
    # No two layers of this one can be equalised, and a config of floats has no biases to correct.
    t, _ = translated(torchao_script, "transformer_text", _static().replace(equalize=True))
    assert not [d for d in t.differences if "equalised" in d.asked]
    t, _ = translated(torchao_script, "conv_digits", QConfigMapping(correct_bias=True))
    assert t.differences == ()


def test_layers_of_a_rule_have_their_own_spec():
    t, _ = translated(
        torchao_script, "conv_digits", _static().replace(by_name={"block2.*": QConfig(W.replace(bits=4), A)})
    )
    assert "('conv2d_1', 'block2.conv.weight'): weight_2," in t.text
    assert "('conv2d_2', 'block3.conv.weight'): weight_1," in t.text
    assert "quant_min=-8,\n    quant_max=7," in t.text
