"""Quantized files as others write them: by the quantizer of ONNX Runtime, from the float export of a sample."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import qlab
from qlab.export.onnx_file import float_onnx
from qlab.preset import presets

HERE = Path(__file__).resolve().parent
TFLITE = {path.stem: path for path in sorted(HERE.glob("*.tflite"))}
STATIC = {
    "QDQ, per tensor": {"quant_format": QuantFormat.QDQ},
    "QDQ, per channel": {"quant_format": QuantFormat.QDQ, "per_channel": True, "activation_type": QuantType.QUInt8},
    "QDQ, 4-bit weights": {"quant_format": QuantFormat.QDQ, "per_channel": True, "weight_type": QuantType.QInt4},
    "QDQ, 16-bit activations": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt16},
    "operators, per tensor": {"quant_format": QuantFormat.QOperator, "weight_type": QuantType.QUInt8,
                              "activation_type": QuantType.QUInt8},
    "operators, per channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
}  # fmt: skip


@functools.cache
def sample(name: str):
    """(model, data) of a sample."""
    return qlab.load_model(name), qlab.load_dataset(name)


@functools.cache
def calibration(name: str):
    model, data = sample(name)
    return qlab.calibrate(model, data.subset(np.arange(64)))


@functools.cache
def ours(name: str, preset: str):
    """The sample under a preset."""
    return qlab.convert(sample(name)[0], presets[preset], calibration(name))


@functools.cache
def float_file(name: str) -> bytes:
    return float_onnx(sample(name)[0]).proto.SerializeToString()


class _Batches(CalibrationDataReader):
    def __init__(self, name: str):
        model, data = sample(name)
        _, inputs, _ = next(iter(data.calibration.batches(16)))
        self._left = [{spec.name: x.numpy() for spec, x in zip(model.inputs, inputs, strict=True)}]

    def get_next(self):
        return self._left.pop() if self._left else None


@functools.cache
def static_file(name: str, kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        quantize_static(onnx.load_model_from_string(float_file(name)), out, _Batches(name), **STATIC[kind])
        return out.read_bytes()


@functools.cache
def dynamic_file(name: str, per_channel: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        quantize_dynamic(onnx.load_model_from_string(float_file(name)), out, per_channel=per_channel)
        return out.read_bytes()


def one_matmul(weight: np.ndarray) -> onnx.ModelProto:
    """x [N, K] times a constant [K, N]."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "fc.weight"], ["y"], "fc")], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, columns])],
        [numpy_helper.from_array(weight, "fc.weight")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def nbits_file(weight: np.ndarray, *, symmetric: bool, bits: int, form: QuantFormat) -> bytes:
    made = MatMulNBitsQuantizer(
        one_matmul(weight), bits=bits, block_size=32, is_symmetric=symmetric, quant_format=form
    )  # fmt: skip
    made.process()
    return made.model.model.SerializeToString()


def plain_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def dequantized_by_runtime(data: bytes, codes: str, scale: str, zero_point: str, **attributes: int) -> np.ndarray:
    """What DequantizeLinear of ONNX Runtime makes of constants of this file, as they stand in it."""
    given = {c.name: c for c in onnx.load_model_from_string(data).graph.initializer}
    names = [codes, scale, *([zero_point] if zero_point else [])]
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", names, ["y"], **attributes)], "one", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [given[name] for name in names],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return plain_session(model).run(None, {})[0]
