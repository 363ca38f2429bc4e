"""Configs: an invalid one cannot exist, and what is saved as JSON loads again."""

import json
import subprocess
import sys

import pytest

import qlab
from qlab.config import QSCHEMES, QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig
from qlab.quant.observers import OBSERVERS

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
A8 = QuantSpec(bits=8)


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({"bits": 8}, 0, 255),
        ({"bits": 8, "signed": True}, -128, 127),
        ({"bits": 8, "qscheme": "per_tensor_symmetric"}, -128, 127),
        ({"bits": 4, "qscheme": "per_channel_symmetric"}, -8, 7),
        ({"bits": 4, "qscheme": "per_channel_symmetric", "narrow_range": True}, -7, 7),
        ({"bits": 2, "qscheme": "per_tensor_symmetric"}, -2, 1),
        ({"bits": 16}, 0, 65535),
        ({"bits": 16, "signed": True}, -32768, 32767),
        ({"bits": 7}, 0, 127),
    ],
    ids=str,
)
def test_code_range_follows_bits_and_sign(fields, low, high):
    spec = QuantSpec(**fields)
    assert (spec.quant_min, spec.quant_max) == (low, high)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"bits": 1}, "2 to 16"),
        ({"bits": 17}, "2 to 16"),
        ({"bits": 8.0}, "2 to 16"),
        ({"bits": True}, "2 to 16"),
        ({"qscheme": "per_row"}, "per_tensor_affine"),
        ({"observer": "histogram"}, "min_max"),
        ({"observer_args": {"percentile": 99.0}}, "min_max"),
        ({"observer": "percentile", "observer_args": {"percentile": 200.0}}, "percentile"),
        ({"qscheme": "per_group_symmetric"}, "group_size"),
        ({"qscheme": "per_group_symmetric", "group_size": 1}, "group_size"),
        ({"group_size": 32}, "group_size"),
    ],
    ids=str,
)
def test_an_invalid_spec_cannot_exist(fields, says):
    with pytest.raises(InvalidConfig, match=says):
        QuantSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mode": "lazy"}, "static"),
        ({"weight": W8}, "activation"),
        ({"weight": QuantSpec(bits=16), "activation": A8}, "2 to 8"),
        ({"weight": W8.replace(observer="moving_average"), "activation": A8}, "moving average"),
        ({"weight": W8, "activation": A8, "mode": "weight_only"}, "activation"),
        ({"mode": "weight_only"}, "weight"),
        ({"weight": W8, "activation": A8.replace(observer="mse"), "mode": "dynamic"}, "min_max"),
        ({"activation": A8, "mode": "dynamic"}, "weight"),
        ({"weight": W8, "activation": QuantSpec(qscheme="per_group_affine", group_size=8)}, "groups"),
    ],
    ids=str,
)
def test_an_invalid_qconfig_cannot_exist(fields, says):
    with pytest.raises(InvalidConfig, match=says):
        QConfig(**fields)


def test_the_most_specific_rule_wins():
    exact, pattern, wider, kind, default = (QConfig(weight=W8.replace(bits=b), activation=A8) for b in (2, 3, 4, 5, 6))
    mapping = QConfigMapping(
        default=default,
        by_type={"linear": kind},
        by_name={"layer1.*": wider, "layer1.0.*": pattern, "layer1.0.conv1": exact, "head": None},
    )
    assert mapping.resolve("layer1.0.conv1", "conv2d").qconfig is exact
    assert mapping.resolve("layer1.0.conv2", "conv2d").qconfig is pattern
    assert mapping.resolve("layer1.1.fc", "linear").qconfig is wider
    assert mapping.resolve("fc", "linear") == (r := mapping.resolve("fc", "linear"))
    assert r.qconfig is kind
    assert r.rule == "by_type linear"
    assert mapping.resolve("stem", "conv2d").qconfig is default
    assert mapping.resolve("head", "linear").qconfig is None


def test_an_unknown_op_type_is_refused():
    with pytest.raises(InvalidConfig, match="conv2d"):
        QConfigMapping(by_type={"convolution": None})


def _some_specs():
    for qscheme in QSCHEMES:
        for observer in OBSERVERS:
            yield QuantSpec(
                bits=5,
                qscheme=qscheme,
                observer=observer,
                group_size=16 if "group" in qscheme else None,
                narrow_range=True,
            )


def test_json_round_trip():
    for spec in _some_specs():
        assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    for name in qlab.presets:
        mapping = qlab.presets[name].replace(by_name={"a.*": None}, by_type={"linear": qlab.presets["x86"].default})
        again = QConfigMapping.from_dict(json.loads(json.dumps(mapping.to_dict())))
        assert again == mapping
        assert again.to_dict() == mapping.to_dict()


def test_unknown_fields_in_json_are_named():
    with pytest.raises(InvalidConfig, match="colour"):
        QuantSpec.from_dict({"bits": 8, "colour": "red"})
    with pytest.raises(InvalidConfig, match="table"):
        QConfigMapping.from_dict([1, 2])


def test_presets_by_name_and_what_they_are():
    assert qlab.presets["x86"].default.weight.qscheme == "per_channel_symmetric"
    assert qlab.presets["dynamic"].default.mode == "dynamic"
    assert all(qlab.presets.about(name).summary for name in qlab.presets)
    with pytest.raises(InvalidConfig, match="x86"):
        qlab.presets["x87"]


@pytest.mark.parametrize(
    "module", ["qlab", "qlab.config", "qlab.preset", "qlab.data", "qlab.lab.store", "qlab.metrics"]
)
def test_light_modules_do_not_import_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules; assert 'streamlit' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_engine_does_not_need_streamlit():
    code = """
import sys, pkgutil, importlib
sys.modules["streamlit"] = None
import qlab
names = [m.name for m in pkgutil.walk_packages(qlab.__path__, "qlab.") if not m.name.startswith("qlab.ui")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
for name in qlab.__all__:
    getattr(qlab, name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 15


def test_functions_are_not_shadowed_by_their_modules():
    code = "import qlab.calibration, qlab.conversion, qlab.evaluation, qlab.lab.run, qlab\n"
    code += "assert all(callable(f) for f in (qlab.calibrate, qlab.convert, qlab.evaluate, qlab.run))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_ranges_and_switches_of_a_mapping_survive_json_and_are_left_out_where_usual():
    mapping = QConfigMapping(ranges={"fc.weight": (-1, 0.5)}, equalize=True)
    again = QConfigMapping.from_dict(json.loads(json.dumps(mapping.to_dict())))
    assert again == mapping
    assert again.ranges == {"fc.weight": (-1.0, 0.5)}
    assert "ranges" not in QConfigMapping().to_dict()
    assert not {"equalize", "correct_bias"} & QConfigMapping().to_dict().keys()
    assert mapping.preparation == QConfigMapping(equalize=True)
    assert QConfigMapping(correct_bias=True).needs_calibration


@pytest.mark.parametrize("ends", [(1.0, 2.0), (-2.0, -1.0), (0.0, 0.0), (-1.0,), "ab", (float("nan"), 1.0), (True, 2)])
def test_a_range_that_is_none_is_refused(ends):
    with pytest.raises(InvalidConfig, match="range of fc"):
        QConfigMapping(ranges={"fc": ends})


def test_switches_are_on_or_off():
    with pytest.raises(InvalidConfig, match="equalize is 'yes'"):
        QConfigMapping(equalize="yes")


def test_each_config_is_changed_and_float_stays_float():
    def config(bits):
        return QConfig(QuantSpec(bits), mode="weight_only")

    mapping = QConfigMapping(config(4), {"linear": None}, {"fc": config(5), "x*": None}, {"y": (0, 1)})
    wide = mapping.each(lambda given: given.replace(weight=given.weight.replace(bits=8)))
    assert wide == mapping.replace(default=config(8), by_name={"fc": config(8), "x*": None})
    assert QConfigMapping().each(lambda given: config(8)) == QConfigMapping()
