"""What is read of a TFLite file is what its interpreter takes from it."""

import contextlib

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from qlab.opened import read_quantized_file
from qlab.opened.tflite_ops import BUILTIN
from tests.opened.made import TFLITE

QUANTIZED = [name for name in TFLITE if not name.endswith("float")]


def interpreter(name):
    # without XNNPACK, whose delegate takes no codes of 2 bits
    made = Interpreter(
        str(TFLITE[name]), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    with contextlib.suppress(RuntimeError):  # the constants are there before memory is laid out
        made.allocate_tensors()
    return made


@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_and_grids_are_those_of_the_interpreter(name):
    file, runtime = read_quantized_file(TFLITE[name]), interpreter(name)
    known = {d["name"]: d for d in runtime.get_tensor_details()}
    assert file.format == "TFLite"
    assert file.of("weight")
    for tensor in file.tensors:
        details = known[tensor.name]
        parameters = details["quantization_parameters"]
        np.testing.assert_array_equal(tensor.scale.reshape(-1), parameters["scales"])
        points = parameters["zero_points"]
        np.testing.assert_array_equal(tensor.zero_point.reshape(-1), points if len(points) else 0)
        if tensor.scale.ndim == 1:
            assert tensor.axis == parameters["quantized_dimension"]
        if tensor.codes is not None and tensor.bits != 2:
            np.testing.assert_array_equal(tensor.codes, runtime.get_tensor(details["index"]))


@pytest.mark.parametrize(
    ("name", "bits", "granularity"),
    [
        ("conv_digits_int8", 8, "per channel"),
        ("perceptron_int16_activations", 8, "per channel"),
        ("perceptron_int4", 4, "per channel"),
        ("perceptron_int4_blocks", 4, "blocks of 32"),
        ("perceptron_int2_blocks", 2, "blocks of 32"),
    ],
)
def test_bits_and_granularity(name, bits, granularity):
    weights = read_quantized_file(TFLITE[name]).of("weight")
    assert {(t.bits, t.granularity) for t in weights} == {(bits, granularity)}


def test_dequantized_weights_are_the_float_ones_within_half_a_step():
    float_weights = {
        d["name"]: interpreter("perceptron_float").get_tensor(d["index"])
        for d in interpreter("perceptron_float").get_tensor_details()
        if d["name"].endswith(".weight")
    }
    for name in ("perceptron_int4", "perceptron_int4_blocks", "perceptron_int16_activations"):
        for tensor in read_quantized_file(TFLITE[name]).of("weight"):
            apart = np.abs(tensor.dequantize() - float_weights[tensor.name])
            assert (apart <= 0.51 * tensor.spread(tensor.scale)).all()


def test_the_ops_around_a_tensor_and_the_counts():
    file = read_quantized_file(TFLITE["conv_digits_int8"])
    weights, activations = file.of("weight"), {t.name: t for t in file.of("activation")}
    assert [t.reader_op for t in weights] == ["CONV_2D"] * 4 + ["FULLY_CONNECTED"]
    assert activations["conv1;relu"].maker == weights[0].reader
    assert activations["conv1;relu"].low == 0
    assert [t.reader for t in file.of("bias")] == [t.reader for t in weights]
    assert {(o.op, o.count, o.on_integers) for o in file.ops} == {
        ("CONV_2D", 4, 4), ("MAX_POOL_2D", 2, 2), ("MEAN", 1, 1), ("FULLY_CONNECTED", 1, 1),
    }  # fmt: skip
    assert activations["x"].dtype == "int8"


def test_a_float_file_has_nothing_on_a_grid():
    file = read_quantized_file(TFLITE["perceptron_float"])
    assert file.tensors == ()
    assert [(o.op, o.on_integers) for o in file.ops] == [("FULLY_CONNECTED", 0)]


def test_the_operators_are_those_of_the_schema():
    known = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    assert dict(enumerate(BUILTIN)) == known
