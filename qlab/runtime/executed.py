"""What ONNX Runtime really executes: its optimized graph, op by op, with the time each op took.

Nothing is concluded from the file that was handed in. The runtime rewrites it (fusing, moving, dropping conversions),
and what it then runs is read from the graph it writes itself and from its own profile.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from qlab.runtime.session import AS_SIMULATED, RuntimeOptions, open_session

Kind = Literal["integer", "float", "convert", "move", "shape"]
KINDS: Mapping[Kind, str] = {
    "integer": "computes on integers",
    "float": "computes in float",
    "convert": "converts between integers and float",
    "move": "moves values without computing",
    "shape": "works out sizes",
}
_CONVERT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
_MOVE = frozenset(
    "Transpose Reshape Squeeze Unsqueeze Flatten Slice Gather Concat Split Expand Pad Identity Tile ReorderInput "
    "ReorderOutput QLinearConcat DepthToSpace".split()
)
_INTEGER_TYPES = frozenset({"int8", "uint8", "int4", "uint4", "int16", "uint16", "int32"})
_NAMES = {"Int4x2": "int4", "UInt4x2": "uint4"}  # as the profiler calls them
# They take float and give float, and multiply integers in between.
_INTEGER_INSIDE = frozenset(
    "DynamicQuantizeMatMul DynamicQuantizeLSTM MatMulIntegerToFloat MatMulInteger ConvInteger QAttention".split()
)


@dataclass(frozen=True)
class ExecutedOp:
    """One op of the optimized graph, in the order of execution.

    layer: name of the tensor or layer it belongs to. seconds: median of the profiled runs. reads, writes: element
    types of what it takes and gives; shape: of its first output.
    """

    name: str
    op: str
    layer: str
    kind: Kind
    seconds: float
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> ExecutedOp:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in d.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Executed:
    """The whole graph as it ran. runs: how many were profiled after the warm-up."""

    ops: tuple[ExecutedOp, ...]
    runs: int

    @property
    def seconds(self) -> float:
        return sum(o.seconds for o in self.ops)

    def share(self, kind: Kind) -> float:
        """Share of the time spent in ops of this kind, 0..1."""
        total = self.seconds
        return sum(o.seconds for o in self.ops if o.kind == kind) / total if total else 0.0

    @property
    def boundaries(self) -> tuple[ExecutedOp, ...]:
        """The conversions between integers and float, those at input and output among them."""
        return tuple(o for o in self.ops if o.kind == "convert")

    def of_layer(self, layer: str) -> tuple[ExecutedOp, ...]:
        return tuple(o for o in self.ops if o.layer == layer)

    def to_dict(self) -> dict[str, Any]:
        return {"ops": [o.to_dict() for o in self.ops], "runs": self.runs}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Executed:
        return cls(tuple(ExecutedOp.from_dict(o) for o in d["ops"]), d["runs"])


def executed(
    proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], options: RuntimeOptions = AS_SIMULATED, runs: int = 20
) -> Executed:
    """Run the graph on these inputs, twice to warm up and `runs` times under the profiler, and read what ran.

    Raises UnsupportedModel when the runtime does not take the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session = open_session(proto, options, optimized=optimized, profile=Path(folder) / "profile")
        for _ in range(2 + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(optimized).graph
    return Executed(tuple(_read(graph.node, events)), runs)


def _read(nodes: Iterable[onnx.NodeProto], events: Sequence[Mapping[str, Any]]) -> list[ExecutedOp]:
    found = {n.name: n for n in nodes}
    timed: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            timed.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    out = []
    for name, own in timed.items():
        node, about = found[name], own[-1]["args"]
        reads, writes = (_types(about[key]) for key in ("input_type_shape", "output_type_shape"))
        shape = next((tuple(s) for d in about["output_type_shape"] for s in d.values()), ())
        seconds = statistics.median(e["dur"] for e in own[2:] or own) * 1e-6
        out.append(
            ExecutedOp(
                name,
                node.op_type,
                _layer(node),
                _kind(node.op_type, reads, writes),
                seconds,
                reads,
                writes,
                shape,
                tuple(node.input),
                tuple(node.output),
            )
        )
    return out


def _types(described: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(_NAMES.get(kind, kind) for one in described for kind in one)


def _kind(op: str, reads: tuple[str, ...], writes: tuple[str, ...]) -> Kind:
    given, made = set(reads), set(writes)
    if op in _CONVERT:
        return "shape" if made <= {"int64", "bool"} or not (given | made) & _INTEGER_TYPES else "convert"
    if op in _INTEGER_INSIDE or (op.startswith("QLinear") and op not in _MOVE) or op == "QGemm":
        return "integer"
    if made <= {"int64", "bool"}:
        return "shape"
    if op in _MOVE:
        return "move"
    return "integer" if made <= _INTEGER_TYPES and reads[0] in _INTEGER_TYPES else "float"


def _layer(node: onnx.NodeProto) -> str:
    """The part before the slash; ops that the runtime made itself are found by what they give, or else by what they
    take. A convolution in blocked layout that took an addition in has the plain name of its layer."""
    if "/" not in node.name and node.name.endswith("_nchwc"):
        return node.name.removesuffix("_nchwc")
    for name in (node.name, *node.output, *node.input[:1]):
        if "/" in name and not name.startswith("/"):
            return name.split("/")[0].removesuffix(".weight").removesuffix(".bias")
    return node.output[0]
