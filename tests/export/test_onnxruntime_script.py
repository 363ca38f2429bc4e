"""The ONNX Runtime script runs, comes near our simulation, and tells what it loses."""

import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.export.onnxruntime_script import onnxruntime_script
from tests.export.script_runs import printed, quantized, run_scripts, static, translated

W, A = QuantSpec(qscheme="per_channel_symmetric", narrow_range=True), QuantSpec()


def _static(weight=W, activation=A):
    return static(weight, activation)


def _weights(**changes):
    return QConfigMapping(by_type={"linear": QConfig(W.replace(narrow_range=False, **changes), mode="weight_only")})


def test_accuracies_are_near_the_simulation(tmp_path):
    mixed = _static().replace(by_name={"layer1.0.add": None, "layer2.0.conv1": None})
    cases = {
        "plain.py": ("conv_digits", _static(), 99.0),
        "mixed.py": ("residual_digits", mixed, 99.0),
        "dynamic.py": ("outlier_mlp", qlab.presets["dynamic"], 99.0),
        "blocks.py": ("outlier_mlp", qlab.presets["int4_grouped"], 96.0),
    }
    ready = {name: quantized(*case[:2], samples=None) for name, case in cases.items()}
    # Each its own files: those of mappings without a name have the same.
    texts = {
        name: onnxruntime_script(experiment, qmodel).text.replace("_quantized.", f"_{name[:-3]}.")
        for name, (experiment, qmodel, _) in ready.items()
    }
    found = run_scripts(tmp_path, texts)
    for name, (_, qmodel, data) in ready.items():
        reference = qlab.evaluate(qmodel.model, data)
        accuracy, same = printed(found[name]["out"], "ONNX Runtime")
        ours = qlab.evaluate(qmodel, data, reference, sqnr_samples=0)
        assert accuracy == pytest.approx(100 * ours.accuracy, abs=0.7)
        assert cases[name][2] <= same < 100
        assert printed(found[name]["out"], "float") == (pytest.approx(100 * reference.accuracy, abs=0.07), 100)
    _check_files(tmp_path)


def _check_files(folder):
    import onnx

    def ops(name):
        graph = onnx.load(folder / name).graph
        made = {o: n for n in graph.node for o in n.output}
        return graph, made, [n.op_type for n in graph.node]

    graph, made, _ = ops("residual_digits_mixed.onnxruntime.onnx")
    adds = {n.output[0] for n in graph.node if n.op_type == "Add"}
    behind = sorted(n.op_type for n in graph.node if adds & set(n.input))
    assert behind == ["QuantizeLinear", "QuantizeLinear", "Relu"]  # the excluded one keeps its ReLU, in float
    convolutions = [n for n in graph.node if n.op_type == "Conv"]
    floats = [n.input[1] for n in convolutions if n.input[1] not in made]
    assert floats == ["layer2.0.conv1.weight"]
    assert "MatMulNBits" in ops("outlier_mlp_blocks.onnxruntime.onnx")[2]
    assert "MatMulInteger" in ops("outlier_mlp_dynamic.onnxruntime.onnx")[2]


@pytest.mark.parametrize(
    "mapping",
    [
        _static(),
        _static(QuantSpec(qscheme="per_tensor_symmetric", narrow_range=True), A.replace(bits=16)),
        _static(QuantSpec(), A.replace(signed=True)),
        _static(W, A.replace(observer="percentile")),
        _static(W.replace(bits=4, narrow_range=False)),
        _static().replace(by_name={"block2.*": None}),
        _weights(bits=4, qscheme="per_group_affine", group_size=16, signed=False),
        _weights(qscheme="per_channel_affine", signed=False),
        QConfigMapping(default=QConfig(W, A, mode="dynamic")),
        QConfigMapping(),
    ],
    ids=["plain", "tensor", "signed", "percentile", "int4", "excluded", "groups", "int8 blocks", "dynamic",
         "float"],
)  # fmt: skip
def test_nothing_is_told_of_what_can_be_said(mapping):
    t, _ = translated(onnxruntime_script, "conv_digits", mapping)
    assert t.differences == ()


@pytest.mark.parametrize(
    ("sample", "mapping", "asked"),
    [
        ("conv_digits", _static(W, A.replace(observer="mse")), "activations ranged by mse"),
        ("conv_digits", _static(W, A.replace(observer="entropy")), "entropy on 2048 bins"),
        ("conv_digits", _weights(bits=4), "steps of max |w| / 7.5"),
        ("conv_digits", _static(W, A.replace(qscheme="per_tensor_symmetric")), "layer and its ReLU"),
        ("conv_digits", _static(W, A.replace(observer="moving_average")), "activations ranged by moving_average"),
        ("conv_digits", _static(W.replace(observer="mse")), "weights ranged by mse"),
        ("conv_digits", _static(W.replace(narrow_range=False)), "weight codes -128..127"),
        ("conv_digits", _static(W.replace(bits=6)), "weight codes -31..31"),
        ("conv_digits", _static(W, A.replace(bits=5)), "activation codes 0..31"),
        ("conv_digits", _static(W, A.replace(qscheme="per_channel_affine")), "activations per channel"),
        ("conv_digits", _static(None), "float weights"),
        ("conv_digits", _static().replace(by_name={"block2.conv": QConfig(W.replace(bits=4), A)}), "weight int4"),
        ("conv_digits", _static().replace(by_name={"block2.conv": QConfig(W, mode="weight_only")}), "mode weight_only"),
        ("conv_digits", QConfigMapping(default=QConfig(W.replace(narrow_range=False), mode="weight_only")), "conv2d"),
        ("conv_digits", _weights(bits=3), "3-bit weights"),
        ("conv_digits", _weights(qscheme="per_group_symmetric", group_size=24), "groups of 24"),
        ("lstm_text", _static(), "lstm quantized"),
    ],
    ids=["mse", "entropy", "steps", "relu", "average", "weight mse", "codes", "6 bits", "5 bits", "channel",
         "float weights", "rule", "mode",
         "convolutions", "3 bits", "groups", "lstm"],
)  # fmt: skip
def test_what_is_lost_is_told(sample, mapping, asked):
    t, qmodel = translated(onnxruntime_script, sample, mapping)
    (found,) = [d for d in t.differences if asked in d.asked]
    assert found.layers
    assert set(found.layers) <= set(qmodel.model.names.values())


def test_what_a_config_does_beside_its_rules_is_told_where_it_does_something():
    ranges = {"block2.conv.weight": (-0.25, 0.25), "no such tensor": (-1.0, 1.0)}
    mapping = _static().replace(ranges=ranges, equalize=True, correct_bias=True)
    t, _ = translated(onnxruntime_script, "conv_digits", mapping)
    assert [d.asked.split()[0] for d in t.differences] == ["ranges", "weight", "biases"]
    assert t.differences[0].layers == ("block2.conv.weight",)
    t, _ = translated(onnxruntime_script, "conv_digits", QConfigMapping(equalize=True, correct_bias=True))
    assert t.differences == ()


@pytest.mark.parametrize("scheme", ["per_tensor_affine", "per_tensor_symmetric"])
def test_percentile_of_the_sides_the_scheme_has(scheme):
    t, _ = translated(onnxruntime_script, "conv_digits", _static(W, A.replace(qscheme=scheme, observer="percentile")))
    assert f"'CalibPercentile': 99.99, 'CalibTensorRangeSymmetric': {scheme.endswith('symmetric')}" in t.text
