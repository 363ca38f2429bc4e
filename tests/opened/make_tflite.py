"""Writes the .tflite files of this folder: the sample conv_digits and a small perceptron, by Google's quantizer.

    pip install -r requirements-dev.txt ai-edge-quantizer==0.10.0
    python -m tests.opened.make_tflite

The float graph is written with the classes of the public schema, then quantized; the files are committed because the
quantizer is needed for nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

HERE = Path(__file__).resolve().parent
KINDS = schema.BuiltinOperator


class Writer:
    """A float TFLite graph, op by op; tensors are numbers."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.codes: list[int] = []
        self.ops: list[Any] = []

    def tensor(self, name: str, shape: tuple[int, ...], values: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name, list(shape), 0
        made.type = schema.TensorType.INT32 if values is not None and values.dtype == np.int32 else 0
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
            self.buffers.append(buffer)
            made.buffer = len(self.buffers) - 1
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, name: str, values: np.ndarray) -> int:
        return self.tensor(name, values.shape, values)

    def op(
        self, kind: int, inputs: list[int], name: str, shape: tuple[int, ...], options: Any, **fields: Any
    ) -> int:  # fmt: skip
        if kind not in self.codes:
            self.codes.append(kind)
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.codes.index(kind), inputs, [self.tensor(name, shape)]
        for key, value in fields.items():
            setattr(options, key, value)
        made.builtinOptions = options
        made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.ops.append(made)
        return made.outputs[0]

    def bytes(self, given: int, result: int) -> bytes:
        graph = schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.ops, [given], [result]
        graph.name = "main"
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = [_named("x", given)], [_named("y", result)]
        model = schema.ModelT()
        model.version, model.description, model.subgraphs, model.buffers = 3, "make_tflite", [graph], self.buffers
        model.signatureDefs = [signature]
        model.operatorCodes = []
        for kind in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), 1
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _named(name: str, tensor: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, tensor
    return made


def float_weights() -> dict[str, np.ndarray]:
    """Weights and biases of conv_digits, BatchNorm folded, by layer."""
    import qlab
    from qlab.graph.lower import attribute

    model, out = qlab.load_model("conv_digits"), {}
    for node in model.ops:
        for what, argument in zip(("weight", "bias"), node.args[1:3], strict=False):
            value = attribute(model.graph_module, argument)
            if value is not None:
                out[f"{model.names[node]}.{what}"] = value.detach().numpy()
    return out


def conv_digits() -> bytes:
    """The sample in the layout of TFLite: [N, height, width, channels], weights [out, height, width, in]."""
    values, graph = float_weights(), Writer()
    given = x = graph.tensor("x", (1, 16, 16, 1))
    size = 16
    for i in range(1, 5):
        weight = values[f"block{i}.conv.weight"]
        # names as a converter gives them, which say nothing of the layer
        pair = [graph.constant(f"arith.constant{i}", weight.transpose(0, 2, 3, 1)),
                graph.constant(f"arith.constant{i}b", values[f"block{i}.conv.bias"])]  # fmt: skip
        channels = weight.shape[0]
        x = graph.op(
            KINDS.CONV_2D, [x, *pair], f"conv{i};relu", (1, size, size, channels), schema.Conv2DOptionsT(),
            padding=schema.Padding.SAME, strideW=1, strideH=1, dilationWFactor=1, dilationHFactor=1,
            fusedActivationFunction=schema.ActivationFunctionType.RELU,
        )  # fmt: skip
        if i in (2, 3):
            size //= 2
            x = graph.op(
                KINDS.MAX_POOL_2D, [x], f"pool{i}", (1, size, size, channels), schema.Pool2DOptionsT(),
                padding=schema.Padding.VALID, strideW=2, strideH=2, filterWidth=2, filterHeight=2,
            )  # fmt: skip
    axes = graph.constant("axes", np.array([1, 2], np.int32))
    x = graph.op(KINDS.MEAN, [x, axes], "mean", (1, 48), schema.ReducerOptionsT(), keepDims=False)
    pair = [
        graph.constant(f"arith.constant5{s}", values[f"classifier.{w}"]) for s, w in (("", "weight"), ("b", "bias"))
    ]
    x = graph.op(KINDS.FULLY_CONNECTED, [x, *pair], "y", (1, 10), schema.FullyConnectedOptionsT())
    return graph.bytes(given, x)


def perceptron(width: int = 64) -> bytes:
    """Two linear layers of random weights, wide enough for blocks of 32."""
    chance, graph = np.random.default_rng(0), Writer()
    given = x = graph.tensor("x", (1, width))
    for name, rows, relu in (("fc1", width, 1), ("fc2", 8, 0)):
        pair = [graph.constant(f"{name}.weight", chance.normal(0, 0.2, (rows, width)).astype(np.float32)),
                graph.constant(f"{name}.bias", chance.normal(0, 0.1, rows).astype(np.float32))]  # fmt: skip
        x = graph.op(
            KINDS.FULLY_CONNECTED, [x, *pair], name, (1, rows), schema.FullyConnectedOptionsT(),
            fusedActivationFunction=relu,
        )  # fmt: skip
    return graph.bytes(given, x)


def quantized(float_model: bytes, recipe: Any, samples: np.ndarray) -> bytes:
    from ai_edge_quantizer import quantizer

    made = quantizer.Quantizer(bytearray(float_model), recipe)
    ranges = None
    if made.need_calibration:
        ranges = made.calibrate({"serving_default": [{"x": sample} for sample in samples]})
    return bytes(made.quantize(ranges).quantized_model)


def main() -> None:
    from ai_edge_quantizer import recipe

    import qlab

    data = qlab.load_dataset("conv_digits").calibration
    _, (digits,), _ = next(iter(data.batches(32)))
    noise = np.random.default_rng(1).normal(size=(16, 1, 64)).astype(np.float32)
    images = digits.numpy().transpose(0, 2, 3, 1)[:, None]
    files = {
        "conv_digits_int8": (conv_digits(), recipe.static_wi8_ai8(), images),
        "perceptron_float": (perceptron(), None, noise),
        "perceptron_int16_activations": (perceptron(), recipe.static_wi8_ai16(), noise),
        "perceptron_int4": (perceptron(), recipe.dynamic_wi4_afp32(), noise),
        "perceptron_int4_blocks": (perceptron(), recipe.dynamic_wi4b32_afp32(), noise),
        "perceptron_int2_blocks": (perceptron(), recipe.dynamic_wi2b32_afp32(), noise),
    }
    for name, (model, how, samples) in files.items():
        data = model if how is None else quantized(model, how, samples)
        (HERE / f"{name}.tflite").write_bytes(data)
        print(f"{name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
