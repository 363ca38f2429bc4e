"""What is read of an ONNX file is what ONNX Runtime takes from it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat

from qlab.export.onnx_file import quantized_onnx
from qlab.opened import read_quantized_file
from tests.opened.made import (
    STATIC,
    dequantized_by_runtime,
    dynamic_file,
    float_file,
    nbits_file,
    ours,
    plain_session,
    static_file,
)

FROM_X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
TO_Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def nodes_of(data, *ops):
    return [n for n in onnx.load_model_from_string(data).graph.node if n.op_type in ops]


def attributes_of(node, *names):
    return {a.name: a.i for a in node.attribute if a.name in names}


def by_alias(file, name):
    (found,) = [t for t in file.tensors if name in t.aliases and t.codes is not None]
    return found


@pytest.mark.parametrize("kind", [k for k in STATIC if k.startswith("QDQ")])
def test_weights_behind_dequantize_linear(kind):
    data = static_file("conv_digits", kind)
    file = read_quantized_file(data)
    assert file.format == "ONNX"
    assert file.producer.startswith("onnx.quantize")
    constants = {c.name for c in onnx.load_model_from_string(data).graph.initializer}
    nodes = [n for n in nodes_of(data, "DequantizeLinear") if n.input[0] in constants]
    assert len(nodes) == 10
    assert len(file.of("weight")) == len(file.of("bias")) == 5
    for node in nodes:
        tensor = by_alias(file, node.input[0])
        expected = dequantized_by_runtime(data, *node.input[:3], **attributes_of(node, "axis", "block_size"))
        np.testing.assert_array_equal(tensor.dequantize(), expected)
    bits = {"QDQ, 4-bit weights": "int4"}.get(kind, "int8")
    assert {t.dtype for t in file.of("weight")} == {bits}
    channels = kind in ("QDQ, per channel", "QDQ, 4-bit weights")
    assert {t.granularity for t in file.of("weight")} == {"per channel" if channels else "per tensor"}


@pytest.mark.parametrize("kind", [k for k in STATIC if k.startswith("operators")])
def test_weights_of_operators_on_integers(kind):
    data = static_file("conv_digits", kind)
    file = read_quantized_file(data)
    nodes = nodes_of(data, "QLinearConv", "QGemm")
    assert len(nodes) == 5
    assert len(file.of("weight")) == len(file.of("bias")) == 5
    for node in nodes:
        tensor = by_alias(file, node.input[3])
        expected = dequantized_by_runtime(data, *node.input[3:6], axis=0)
        np.testing.assert_array_equal(tensor.dequantize(), expected)
        assert (tensor.reader, tensor.reader_op) == (node.name, node.op_type)
        bias = by_alias(file, node.input[8 if node.op_type == "QLinearConv" else 6])
        given = {c.name: numpy_helper.to_array(c) for c in onnx.load_model_from_string(data).graph.initializer}
        np.testing.assert_array_equal(bias.scale, given[node.input[1]] * given[node.input[4]])
    assert {o.op: (o.count, o.on_integers) for o in file.ops}["QLinearConv"] == (4, 4)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["conv_digits", "lstm_text"])
def test_weights_of_dynamic_files(name, per_channel):
    data = dynamic_file(name, per_channel)
    file = read_quantized_file(data)
    assert not file.of("activation")
    for node in nodes_of(data, "ConvInteger", "MatMulInteger"):
        tensor = by_alias(file, node.input[1])
        scale = node.input[1].removesuffix("_quantized") + "_scale"
        axis = 0 if node.op_type == "ConvInteger" else 1
        np.testing.assert_array_equal(
            tensor.dequantize(), dequantized_by_runtime(data, node.input[1], scale, node.input[3], axis=axis)
        )
    for node in nodes_of(data, "DynamicQuantizeLSTM"):
        for codes, scale, points in ((1, 8, 9), (2, 10, 11)):
            tensor = by_alias(file, node.input[codes])
            given = {c.name: numpy_helper.to_array(c) for c in onnx.load_model_from_string(data).graph.initializer}
            w, s, z = (given[node.input[i]] for i in (codes, scale, points))
            shape = (1, 1, -1)
            expected = (w.astype(np.int32) - z.reshape(shape)).astype(np.float32) * s.reshape(shape)
            np.testing.assert_array_equal(tensor.dequantize(), expected[0])
    weights = {"conv_digits": 5, "lstm_text": 4}[name]
    assert len(file.of("weight")) == weights


@pytest.mark.parametrize("name", ["conv_digits", "lstm_text"])
@pytest.mark.parametrize("preset", ["x86", "dynamic", "int8_weight_only", "int4_grouped"])
def test_our_own_export_holds_our_weights(name, preset):
    qmodel = ours(name, preset)
    file = read_quantized_file(quantized_onnx(qmodel).proto.SerializeToString())
    weights = {id(t): t for t in qmodel.weights.values()}.values()
    assert len(file.of("weight")) >= len(weights)
    assert not file.notes
    left = list(file.of("weight"))
    for tensor in weights:
        values = tensor.dequantize().numpy()
        same = [
            t for t in left
            if sorted(t.codes.shape) == sorted(values.shape) or t.codes.size == values.size
            if np.allclose(np.sort(t.dequantize(), None), np.sort(values, None), rtol=1e-6, atol=1e-9)
        ]  # fmt: skip
        assert same, "no tensor of the file has these values"
        left.remove(same[0])


@pytest.mark.parametrize("bits", [4, 8, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_matmul_nbits(symmetric, bits):
    weight = np.random.default_rng(0).normal(size=(72, 16)).astype(np.float32)
    data = nbits_file(weight, symmetric=symmetric, bits=bits, form=QuantFormat.QOperator)
    (tensor,) = read_quantized_file(data).tensors
    assert (tensor.role, tensor.bits, tensor.block_size, tensor.shape) == ("weight", bits, 32, (16, 72))
    # times the identity, the operator gives its weight
    given = plain_session(onnx.load_model_from_string(data)).run(None, {"x": np.eye(72, dtype=np.float32)})[0]
    np.testing.assert_allclose(tensor.dequantize().T, given, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_behind_dequantize_linear(symmetric):
    weight = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    data = nbits_file(weight, symmetric=symmetric, bits=4, form=QuantFormat.QDQ)
    (tensor,) = read_quantized_file(data).tensors
    assert (tensor.bits, tensor.block_size) == (4, 32)
    given = plain_session(onnx.load_model_from_string(data)).run(None, {"x": np.eye(64, dtype=np.float32)})[0]
    np.testing.assert_allclose(tensor.dequantize(), given, rtol=1e-6)


def a_model(nodes, constants, opset=25):
    graph = helper.make_graph(
        nodes, "g", [FROM_X], [TO_Y],
        [numpy_helper.from_array(v, k) if isinstance(v, np.ndarray) else v for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("kind", ["INT8", "UINT8", "INT4", "UINT4", "INT16", "UINT16"])
@pytest.mark.parametrize("how", ["tensor", "channel", "blocks"])
def test_a_float_weight_through_quantize_linear_gets_the_codes_of_the_runtime(kind, how):
    weight = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    shape = {"tensor": (), "channel": (4,), "blocks": (4, 2)}[how]
    scale = np.full(shape, 0.02 if "8" in kind else 0.3 if "4" in kind else 1e-4, np.float32)
    points = np.full(scale.size, 3)
    constants = {
        "w": weight, "s": scale,
        "z": helper.make_tensor("z", getattr(TensorProto, kind), shape, points),
    }  # fmt: skip
    more = {"tensor": {}, "channel": {"axis": 0}, "blocks": {"axis": 1, "block_size": 3}}[how]
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], **more),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], **more),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = a_model(nodes, constants, opset=21)
    (tensor,) = read_quantized_file(model.SerializeToString()).tensors
    assert tensor.role == "weight"
    given = plain_session(model).run(None, {"x": np.eye(4, dtype=np.float32)})[0]
    np.testing.assert_array_equal(tensor.dequantize(), given)


@pytest.mark.parametrize("kind", ["INT2", "UINT2", "INT4", "UINT4"])
@pytest.mark.parametrize("raw", [True, False])
def test_packed_codes_are_those_of_onnx(kind, raw):
    low = -2 if kind == "INT2" else -8 if kind == "INT4" else 0
    values = np.random.default_rng(2).integers(low, low + (4 if "2" in kind else 16), (3, 5))
    packed = helper.make_tensor("w", getattr(TensorProto, kind), (3, 5), values)
    if raw:
        packed = numpy_helper.from_array(numpy_helper.to_array(packed), "w")
    assert packed.HasField("raw_data") == raw
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"])]
    file = read_quantized_file(a_model(nodes, {"w": packed, "s": np.array(0.5, np.float32)}).SerializeToString())
    (tensor,) = file.tensors
    np.testing.assert_array_equal(tensor.codes, values)
    assert tensor.dtype == kind.lower()


def test_activations_carry_their_grid_and_the_ops_around_them():
    file = read_quantized_file(static_file("conv_digits", "QDQ, per channel"))
    by_name = {t.name: t for t in file.of("activation")}
    relu = by_name["block1.conv/Relu"]
    assert (relu.maker, relu.reader) == ("block1.conv/Conv", "block2.conv/Conv")
    assert (relu.dtype, relu.low) == ("uint8", 0)
    assert relu.high == pytest.approx(255 * float(relu.scale))
    assert by_name["x"].maker == ""
    counts = {o.op: (o.count, o.on_integers) for o in file.ops}
    assert counts["Conv"] == (4, 4)
    assert counts["ReduceMean"] == (1, 0)


def test_a_float_file_has_nothing_on_a_grid():
    file = read_quantized_file(float_file("conv_digits"))
    assert file.tensors == ()
    assert not any(op.on_integers for op in file.ops)


def test_small_floats_are_told_and_left_out():
    codes = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, (4, 2), np.ones(8))
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, (), [0])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = a_model(nodes, {"w": codes, "s": np.array(1, np.float32), "z": zero})
    file = read_quantized_file(model.SerializeToString())
    assert file.tensors == ()
    assert file.notes == ("1 × tensors in float8e4m3fn, whose values are floats and no codes.",)
