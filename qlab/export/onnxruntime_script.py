"""An experiment as a script for the quantizers of ONNX Runtime: static, dynamic, or weights in blocks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from qlab.config import QuantSpec
from qlab.export.onnxruntime_settings import Settings
from qlab.export.script_parts import LOAD_DATA, file_stem, named_layers, preamble, told_beside_rules
from qlab.export.translation import Difference, Translation
from qlab.graph.ops import op_type
from qlab.graph.optypes import OP_TYPES

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.graph.placement import LedgerRow
    from qlab.lab.experiment import Experiment

# What torch.onnx writes for an op type.
ONNX_TYPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), ("Conv",)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ("ConvTranspose",)),
    "linear": ("Gemm", "MatMul"), "matmul": ("MatMul",), "add": ("Add",), "mul": ("Mul",), "cat": ("Concat",),
    "avg_pool": ("AveragePool", "GlobalAveragePool", "ReduceMean"), "relu6": ("Clip",), "clamp": ("Clip",),
    "gelu": ("Gelu",), "hardswish": ("HardSwish",), "hardsigmoid": ("HardSigmoid",), "leaky_relu": ("LeakyRelu",),
    "elu": ("Elu",), "mish": ("Mish",), "softplus": ("Softplus",), "sigmoid": ("Sigmoid",), "softmax": ("Softmax",),
    "tanh": ("Tanh",), "embedding": ("Gather",), "lstm": ("LSTM",),
}  # fmt: skip
_PASSED_ON = ("Relu", "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")
_DYNAMIC = ("linear", "lstm")


def onnxruntime_script(experiment: Experiment, qmodel: QuantizedModel) -> Translation:
    """The experiment for ONNX Runtime; differences name what its quantizers cannot say."""
    chosen = _Choice(qmodel)
    stem = file_stem(experiment)
    what = (
        "Exports the network to ONNX, quantizes it with the quantizer of ONNX Runtime, and measures both files there."
    )
    install = "torch, onnx, onnxscript, onnxruntime, numpy (written for ONNX Runtime 1.31)."
    begin, differences = preamble(
        experiment, qmodel.model.fixed_batch, what, install, _IMPORTS[chosen.mode], chosen.differences
    )  # fmt: skip
    parts = [
        begin,
        f"FLOAT, OUTPUT = {stem + '.float.onnx'!r}, {stem + '.onnxruntime.onnx'!r}",
        "# (module, operators, which of them in order): layers that stay float",
        "EXCLUDED = [" + "".join(f"\n    {row!r}," for row in chosen.excluded()) + ("\n]" if chosen.left else "]"),
        LOAD_DATA,
        _EXPORT,
        chosen.call(),
        _MEASURE,
    ]  # fmt: skip
    return Translation("\n".join(parts), f"{stem}_onnxruntime.py", differences)


class _Choice:
    """One mode and one pair of specs for the whole network, which is what the quantizers take; the rest is told."""

    def __init__(self, qmodel: QuantizedModel):
        self.qmodel = qmodel
        rows = [r for r in qmodel.ledger if r.quantized and r.mode is not None]
        self.mode = Counter(str(r.mode) for r in rows).most_common(1)[0][0] if rows else "float"
        own = [r for r in rows if r.mode == self.mode]
        self.weight = _most([r.weight for r in own if r.weight is not None and self._takes(r)])
        self.activation = _most([r.activation for r in own if r.activation is not None])
        self.settings = Settings(self.mode, self.weight, self.activation, self._longest(own))
        self.differences: list[Difference] = []
        self.kept = [row for row in rows if row.mode == self.mode and self._takes(row)]
        self._tell_left(rows)
        kept_weights = named_layers(r.layer for r in self.kept if r.weight is not None)
        kept_activations = named_layers(r.layer for r in self.kept if r.activation is not None)
        if self.kept:
            self.differences += told_beside_rules(qmodel)
            self.differences += self.settings.differences(kept_weights, kept_activations)
        self._tell_others()
        self.types = tuple(dict.fromkeys(t for r in self.kept for t in ONNX_TYPES[r.op]))
        names = {r.layer for r in self.kept}
        self.left = [
            node
            for node in qmodel.model.ops
            if qmodel.model.names[node] not in names
            and op_type(node) in ONNX_TYPES
            and set(ONNX_TYPES[op_type(node)]) & set(self.types)
            and not self._fused(qmodel.model.names[node])
        ]

    def _fused(self, layer: str) -> bool:
        return any(r.layer == layer and r.quantized for r in self.qmodel.ledger if r.mode is None)

    def _takes(self, row: LedgerRow) -> bool:
        if row.op not in ONNX_TYPES:
            return False
        role = OP_TYPES[row.op].role
        if self.mode == "weight_only":
            return row.op == "linear"
        return row.op in _DYNAMIC if self.mode == "dynamic" else role not in ("recurrent", "lookup")

    def _longest(self, rows: list[LedgerRow]) -> int:
        linear = {r.layer for r in rows if r.op == "linear"}
        shapes = [layer.weight_shape for layer in self.qmodel.model.layers if layer.name in linear]
        return max((shape[1] for shape in shapes if shape), default=16)

    def _tell_left(self, rows: list[LedgerRow]) -> None:
        reason = {
            "static": "quantize_static has no such operator on integers.",
            "dynamic": "quantize_dynamic knows products with constant matrices and LSTM layers.",
            "weight_only": "MatMulNBitsQuantizer knows products with constant matrices alone.",
        }
        other = [r for r in rows if r.mode != self.mode]
        for mode in dict.fromkeys(r.mode for r in other):
            layers = named_layers(r.layer for r in other if r.mode == mode)
            why = "One call of a quantizer has one mode."
            self.differences.append(Difference(f"mode {mode}", f"float in a network of mode {self.mode}", why, layers))
        lost = [r for r in rows if r.mode == self.mode and not self._takes(r)]
        for op in dict.fromkeys(r.op for r in lost):
            layers = named_layers(r.layer for r in lost if r.op == op)
            asked = f"{op} quantized ({self.mode})"
            self.differences.append(Difference(asked, "they stay float", reason[self.mode], layers))

    def _tell_others(self) -> None:
        for what, main in (("weight", self.weight), ("activation", self.activation)):
            other: dict[str, list[str]] = {}
            for row in self.kept:
                spec = getattr(row, what)
                if spec is None and what == "weight" and OP_TYPES[row.op].role == "weighted":
                    other.setdefault("float weights", []).append(row.layer)
                elif spec is not None and spec != main:
                    other.setdefault(f"{what} {spec}", []).append(row.layer)
            for asked, layers in other.items():
                written = f"{what} as in the other layers" if main is not None else "int8 weights"
                why = "The quantizer takes one type and one rule for the whole network."
                self.differences.append(Difference(asked, written, why, named_layers(layers)))
        ranged = [r.layer for r in self.kept if r.op in ("sigmoid", "tanh") and self.mode == "static"]
        if ranged:
            self.differences.append(
                Difference("the fixed range of sigmoid and tanh", "the range seen in calibration",
                           "ONNX Runtime fixes the range of softmax alone.", named_layers(ranged))
            )  # fmt: skip
        relu = [r.layer for r in self.kept if r.output is not None and r.output != r.layer]
        if relu and self.mode == "static" and self.activation is not None and self.activation.symmetric:
            self.differences.append(
                Difference("one grid behind a layer and its ReLU", "a grid before the ReLU and one behind it",
                           "ONNX Runtime's quantizer joins the two for asymmetric activations alone.",
                           named_layers(relu))
            )  # fmt: skip
        apart = [
            self.qmodel.model.names[n]
            for n in self.qmodel.model.ops
            if op_type(n) == "linear" and len(n.meta.get("shape") or ()) > 2 and self.mode == "static"
        ]
        kept = {r.layer for r in self.kept}
        if kept & set(apart):
            self.differences.append(
                Difference("one grid behind a linear layer", "a second one between its product and its bias",
                           "On inputs of more than two axes ONNX has MatMul and Add, which are quantized one by one.",
                           named_layers(a for a in apart if a in kept))
            )  # fmt: skip

    def excluded(self) -> list[tuple[str, tuple[str, ...], int]]:
        """(module path or layer, operators, position among the nodes that share both)."""
        seen: Counter[tuple[str, tuple[str, ...]]] = Counter()
        out = []
        for node in self.qmodel.model.ops:
            kind = op_type(node)
            if kind not in ONNX_TYPES:
                continue
            layer = self.qmodel.model.names[node].split("@")[0]
            where = layer if OP_TYPES[kind].role == "weighted" else str(node.meta.get("module_path") or "")
            key = where.split("@")[0], ONNX_TYPES[kind]
            if node in self.left:
                out.append((*key, seen[key]))
            seen[key] += 1
        return out

    def call(self) -> str:
        types = (*self.types, *_PASSED_ON) if self.mode == "static" else self.types
        if not self.kept:
            return _FLOAT if self.mode == "float" else _FLOAT.replace("asks for nothing", "asks for nothing it knows")
        return self.settings.call(types)


def _most(specs: list[QuantSpec]) -> QuantSpec | None:
    return Counter(specs).most_common(1)[0][0] if specs else None


_COMMON = """import ast

import numpy as np
import onnx
import onnxruntime
import torch
"""
_IMPORTS = {
    "static": _COMMON
    + """from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
""",
    "dynamic": _COMMON
    + """from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
""",
    "weight_only": _COMMON
    + """from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process
""",
    "float": _COMMON + "from onnxruntime.quantization.shape_inference import quant_pre_process\n",
}

_EXPORT = '''

# ---- the float network as ONNX, with the shapes the quantizer needs

network = torch.export.load(MODEL).module()
example = tuple(map(torch.from_numpy, next(batches(evaluation_rows))[0]))
shapes = None if FIXED_BATCH else tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
torch.onnx.export(network, example, dynamo=True, opset_version=21, dynamic_shapes=shapes, verbose=False).save(FLOAT)
quant_pre_process(FLOAT, FLOAT, skip_optimization=True)
graph = onnx.load(FLOAT).graph
names = [x.name for x in graph.input]


def scope(node):
    """The module a node comes from, as the exporter notes it."""
    noted = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
    return ([""] + ast.literal_eval(noted))[-2]


def nodes_of(where, operators, position):
    of_type = [n for n in graph.node if n.op_type in operators]
    found = [n.name for n in of_type if f"{where}.weight" in n.input or scope(n) == where]
    return found[position : position + 1]


excluded = [name for row in EXCLUDED for name in nodes_of(*row)]
if len(excluded) < len(EXCLUDED):
    raise SystemExit("Not every layer that stays float was found in the exported network.")


# ---- quantize
'''

_MEASURE = """

# ---- measure


def of_file(path):
    options = onnxruntime.SessionOptions()
    # Without it int8 kernels add pairs of products in 16 bits on x86 CPUs that lack VNNI, which may saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, dict(zip(names, x)))[0]


reference = predict(of_file(FLOAT))
report("float", reference, reference)
report("ONNX Runtime", predict(of_file(OUTPUT)), reference)
"""

_FLOAT = """# The experiment asks for nothing to quantize.
onnx.save(onnx.load(FLOAT), OUTPUT)
"""
