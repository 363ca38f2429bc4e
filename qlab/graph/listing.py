"""The quantized graph as a table: a row for each FX node, as print_tabular has it, with what quantization adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor, fx

from qlab.config import QuantSpec
from qlab.conversion import FakeQuantize, QuantizedModel
from qlab.graph.integer_sums import WeightCodes
from qlab.metrics import three_digits
from qlab.quant.tensor import QuantizedTensor

TITLES = ("opcode", "name", "target", "args", "kwargs", "observer", "scale", "zero point", "shape")


@dataclass(frozen=True)
class Line:
    """One node. observer, scale, zero_point: empty where nothing is put on a grid. shape: of what it gives, with the
    batch of the example."""

    opcode: str
    name: str
    target: str
    args: str
    kwargs: str
    observer: str
    scale: str
    zero_point: str
    shape: str


def listing(qmodel: QuantizedModel) -> list[Line]:
    """The nodes of the graph that the simulation runs, in order."""
    specs: dict[int, tuple[QuantSpec, str]] = {
        id(qmodel.activations[key]): (point.spec, point.kind) for key, point in qmodel.points.items()
    }
    specs |= {id(qmodel.weights[p.layer]): (p.spec, "observed") for p in qmodel.placement.weights}
    return [_line(node, qmodel, specs) for node in qmodel.graph_module.graph.nodes]


def as_text(lines: Sequence[Line]) -> str:
    """Columns under their titles with a rule between, as fx's print_tabular writes them."""
    rows = [TITLES, *(astuple(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(TITLES))]
    ruled = [rows[0], tuple("-" * width for width in widths), *rows[1:]]
    text = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in ruled)
    return "\n".join(text) + "\n"


def _line(node: fx.Node, qmodel: QuantizedModel, specs: dict[int, tuple[QuantSpec, str]]) -> Line:
    module = qmodel.graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    observer = scale = zero_point = ""
    if isinstance(module, WeightCodes):
        (module,) = module._weight  # held so that it is registered once; the grid of the codes is its
    if isinstance(module, (FakeQuantize, QuantizedTensor)):
        spec, kind = specs[id(module)]
        observer = spec.observer if kind != "fixed" else "fixed by its function"
        scale, zero_point = _span(module.scale, three_digits), _span(module.zero_point, str)
    shape = node.meta.get("shape")
    return Line(
        node.op, node.name, str(node.target), str(node.args), str(node.kwargs), observer, scale, zero_point,
        "" if shape is None or node.op == "output" else " × ".join(map(str, shape)),
    )  # fmt: skip


def _span(values: Tensor, write: Any) -> str:
    """The value, or of several the ends and how many there are."""
    if values.numel() == 1:
        return str(write(values.item()))
    low, high = values.min().item(), values.max().item()
    return f"{write(low)} × {values.numel()}" if low == high else f"{write(low)} … {write(high)} ({values.numel()})"
