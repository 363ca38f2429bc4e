"""An ONNX file: tensors on grids in both of its styles, beside QuantizeLinear and in operators on integers."""

from __future__ import annotations

from collections import Counter

import onnx

from qlab.errors import BadUpload
from qlab.opened.file import Budget, OpCount, QuantizedFile, clean
from qlab.opened.onnx_graph import OnnxGraph
from qlab.opened.onnx_grids import Found
from qlab.opened.onnx_operators import GIVE_CODES, INTEGER_OPS, operators
from qlab.opened.onnx_pairs import pairs
from qlab.opened.read import KINDS, MAX_VALUES

ENDS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
STAY = (  # give codes where they are given codes
    "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Slice", "Concat", "Split", "Clip",
    "Pad", "Identity", "Expand", "Tile", "Resize", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip


def read_onnx(data: bytes, name: str) -> QuantizedFile:
    """Raises BadUpload, UnsafeFile."""
    model = _parsed(data, name)
    graph = OnnxGraph(model.graph, Budget(MAX_VALUES))
    graph.check_external()
    found = Found(graph)
    operators(found)
    pairs(found)
    opsets = ", ".join(f"{clean(i.domain) or 'opset'} {i.version}" for i in model.opset_import)
    producer = clean(f"{model.producer_name} {model.producer_version}".strip())
    return QuantizedFile(
        name, "ONNX", producer or "not named", opsets, len(data), _ops(graph), found.tensors(), _notes(found, model)
    )


def _parsed(data: bytes, name: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # of protobuf, which raises what it likes
        raise BadUpload(
            f"{name!r} is no model that can be read here: give {KINDS}. If it is one, it is cut off or damaged.",
            detail=f"{type(error).__name__}: {error}"[:300],
        ) from error
    if not model.ir_version or not len(model.graph.node):
        raise BadUpload(f"{name!r} is no model that can be read here: it has no graph. Give {KINDS}.")
    _check_texts(model, name)
    return model


def _check_texts(model: onnx.ModelProto, name: str) -> None:
    """protobuf gives a text that is not UTF-8 as bytes. Raises BadUpload."""
    graph = model.graph
    texts = [model.producer_name, model.producer_version, *(i.domain for i in model.opset_import)]
    texts += [held.name for part in (graph.initializer, graph.input, graph.output, graph.value_info) for held in part]
    for node in graph.node:
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    if not all(isinstance(text, str) for text in texts):
        raise BadUpload(f"{name!r} has a name that is not UTF-8. The file is damaged: write it again.")


def _notes(found: Found, model: onnx.ModelProto) -> tuple[str, ...]:
    notes = list(found.notes)
    inner = sum(a.HasField("g") or bool(len(a.graphs)) for node in model.graph.node for a in node.attribute)
    if inner:
        notes.append(f"{inner:,} graphs inside operators (If, Loop) were not looked into.")
    if len(model.functions):
        notes.append(f"{len(model.functions):,} functions of the file were not looked into.")
    return tuple(notes)


def _ops(graph: OnnxGraph) -> tuple[OpCount, ...]:
    """Ops in the order they first occur. Codes are followed from where they are made, in the order of the graph."""
    codes: set[str] = set()
    floats: set[str] = set()  # just dequantized
    counts: Counter[str] = Counter()
    integer: Counter[str] = Counter()
    for node in graph.nodes:
        counts[node.op_type] += 1
        given = [name for name in node.input if name and name not in graph.constants]
        if node.op_type in INTEGER_OPS:
            integer[node.op_type] += 1
            codes.update(node.output if node.op_type in GIVE_CODES else ())
        elif node.op_type in ENDS:
            (floats if node.op_type == "DequantizeLinear" else codes).update(node.output[:1])
        elif node.op_type in STAY and given and given[0] in codes:
            integer[node.op_type] += 1
            codes.update(node.output)
        elif given and all(name in floats for name in given) and _quantized_next(graph, node):
            integer[node.op_type] += 1
    return tuple(OpCount(clean(op), n, integer[op]) for op, n in counts.items() if op != "Constant")


def _quantized_next(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    """Whether everything it gives becomes codes, or goes through a ReLU that does."""
    out = [user for name in node.output if name for user in graph.users(name, ("Relu", "Clip"))]
    return bool(out) and all(graph.nodes[number].op_type == "QuantizeLinear" for number, _ in out)
