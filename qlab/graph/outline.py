"""The network as a picture needs it: ops and what runs between them, folded by module. Draws nothing.

A line runs from the op that makes a tensor to each op that reads it. What it carries is said at both ends, because a
tensor may be put on a grid, or taken off one, on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from torch import fx

from qlab.conversion import QuantizedModel
from qlab.graph.causes import State, state_of
from qlab.graph.ops import is_float, op_type
from qlab.graph.optypes import OP_TYPES
from qlab.graph.placement import LedgerRow

MOST = 40  # vertices that are shown without being asked for
OUTPUT = "output"

Carries = Literal["grid", "unit", "float", "whole"]
"""What a line holds: values on a grid, sums inside one kernel, floats, whole numbers or truth values."""
Conversion = Literal["", "quantize", "dequantize", "ranged"]
"""What happens on the way: put on a grid, taken off one, put on one that is chosen at every call."""


@dataclass(frozen=True)
class Vertex:
    """One box. key: its layer, or "layer1.*" for a block, with a number where the module has several boxes.

    op: the op type; of a block how many ops it holds of each state, in `counts`. path: of a block, what to open.
    layers: the ops in it, in order. shape: of what an op gives, with the example's batch.
    """

    key: str
    kind: Literal["input", "op", "block", "output"]
    op: str
    state: State | None
    layers: tuple[str, ...]
    path: str = ""
    shape: tuple[int, ...] | None = None
    counts: Mapping[State, int] | None = None


@dataclass(frozen=True)
class Link:
    """A line between two boxes. tensors: what runs over it. carries, arrives: at its start and at its end."""

    source: str
    target: str
    tensors: tuple[str, ...]
    carries: Carries
    arrives: Carries
    conversion: Conversion = ""


@dataclass(frozen=True)
class Outline:
    """Boxes in the order they are computed, and lines, which all run forward."""

    vertices: tuple[Vertex, ...]
    links: tuple[Link, ...]

    def vertex(self, key: str) -> Vertex | None:
        return next((v for v in self.vertices if v.key == key), None)

    def holding(self, layer: str) -> Vertex | None:
        """The box in which this op is."""
        return next((v for v in self.vertices if layer in v.layers or layer == v.key), None)

    @cached_property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Module path -> its ops, for each that holds more than one op and not all of them."""
        members: dict[str, list[str]] = {}
        for layer in (layer for v in self.vertices for layer in v.layers):
            for path in _paths(layer):
                members.setdefault(path, []).append(layer)
        whole = sum(len(v.layers) for v in self.vertices)
        return {path: tuple(layers) for path, layers in members.items() if 1 < len(layers) < whole}


def outline_of(qmodel: QuantizedModel) -> Outline:
    """Every op of the network that was quantized, with what the config made of it. Constants are left out."""
    return _Reader(qmodel).read()


class _Reader:
    def __init__(self, qmodel: QuantizedModel):
        self.model = qmodel.model
        self.rows = {row.layer: row for row in qmodel.ledger}
        points = qmodel.placement.activations
        self.on_edge = {(p.node, reader) for p in points for reader in p.consumers or ()}
        self.ranged = {(p.node.args[0], p.node) for p in qmodel.placement.dynamic}

    def read(self) -> Outline:
        names, graph = self.model.names, self.model.graph_module.graph
        vertices = [
            Vertex(name, "input", "input", None, (), shape=node.meta.get("shape"))
            for node, name in names.items()
            if node.op == "placeholder"
        ]
        links: dict[tuple[str, str], Link] = {}
        for node in self.model.ops:
            layer = names[node]
            row = self.rows.get(layer)
            state = None if row is None else state_of(row.cause)
            vertices.append(Vertex(layer, "op", op_type(node), state, (layer,), shape=node.meta.get("shape")))
            for source in self._sources(node):
                links.setdefault((names[source], layer), self._link(source, node, layer))
        end = graph.output_node()
        vertices.append(Vertex(_free(OUTPUT, names.values()), "output", "output", None, ()))
        for source in self._sources(end):
            links.setdefault((names[source], vertices[-1].key), self._link(source, end, vertices[-1].key))
        return Outline(tuple(vertices), tuple(links.values()))

    def _sources(self, node: fx.Node) -> Iterator[fx.Node]:
        """The named nodes this one reads, through those that give several tensors (chunk), which have no name."""
        for source in node.all_input_nodes:
            if source in self.model.names:
                yield source
            elif OP_TYPES[op_type(source)].role == "passthrough":
                yield from self._sources(source)

    def _link(self, source: fx.Node, reader: fx.Node, target: str) -> Link:
        name = self.model.names[source]
        carries = self._carries(source)
        arrives, conversion = carries, ""
        row = self.rows.get(target)
        if (source, reader) in self.ranged:
            arrives, conversion = "grid", "ranged"
        elif (source, reader) in self.on_edge:
            arrives, conversion = "grid", "quantize"
        elif carries == "grid" and not _reads_grids(row):
            arrives, conversion = "float", "dequantize"
        return Link(name, target, (name,), carries, arrives, conversion)  # type: ignore[arg-type]

    def _carries(self, node: fx.Node) -> Carries:
        row = self.rows.get(self.model.names[node])
        if row is not None and row.output is not None:
            # the end of a unit is on a grid; what its ops hand on before is never rounded to one
            return "unit" if row.cause == "quantized" and row.output != row.layer else "grid"
        if row is not None and row.cause == "fused":
            return "unit"
        return "float" if is_float(node) or op_type(node) in ("lstm", "gru") else "whole"


def _reads_grids(row: LedgerRow | None) -> bool:
    """Whether this op computes on the codes of a grid that its input lies on."""
    if row is None or not row.quantized:
        return False
    return row.mode in (None, "static") and OP_TYPES[row.op].role != "recurrent"


def _free(name: str, taken: Collection[str]) -> str:
    return name if name not in taken else _free(f"{name}'", taken)


# --- folding ----------------------------------------------------------------------------------------------------------


def folded(outline: Outline, opened: Collection[str]) -> Outline:
    """The outline with every module as one box that is not among `opened`.

    A module is split into several boxes where one would lie on a circle: lines always run forward.
    """
    grouping = _Grouping(outline, opened)
    boxes: dict[str, list[Vertex]] = {}
    for vertex in outline.vertices:
        boxes.setdefault(grouping.take(vertex), []).append(vertex)
    vertices = tuple(_box(key, members, grouping.path.get(key)) for key, members in boxes.items())
    links: dict[tuple[str, str], Link] = {}
    for link in outline.links:
        ends = grouping.box[link.source], grouping.box[link.target]
        if ends[0] != ends[1]:
            links[ends] = _joined(links.get(ends), replace(link, source=ends[0], target=ends[1]))
    return Outline(_in_order(vertices, links.values()), tuple(links.values()))


def first_opened(outline: Outline, most: int = MOST) -> frozenset[str]:
    """The modules to show open at first: level by level, as long as no more than `most` boxes are shown."""
    opened: frozenset[str] = frozenset()
    for depth in range(1, 1 + max((path.count(".") + 1 for path in outline.blocks), default=0)):
        more = opened | {path for path in outline.blocks if path.count(".") + 1 == depth}
        if len(folded(outline, more).vertices) > most:
            break
        opened = more
    return opened


def path_to(outline: Outline, layer: str) -> tuple[str, ...]:
    """The modules that have to be open for this op to have a box of its own, outermost first."""
    return tuple(path for path in _paths(layer) if path in outline.blocks)


class _Grouping:
    """Which box each op goes into."""

    def __init__(self, outline: Outline, opened: Collection[str]):
        self.blocks, self.opened = outline.blocks, opened
        self.before: dict[str, list[str]] = {}
        for link in outline.links:
            self.before.setdefault(link.target, []).append(link.source)
        self.box: dict[str, str] = {}  # vertex -> its box
        self.path: dict[str, str] = {}  # box -> the module it is of
        self.newest: dict[str, int] = {}  # module -> which of its boxes its ops go into
        self.after: dict[str, set[str]] = {}  # box -> the boxes behind it

    def take(self, vertex: Vertex) -> str:
        path = self._closed(vertex.key) if vertex.kind == "op" else None
        sources = {self.box[source] for source in self.before.get(vertex.key, ())}
        box = vertex.key
        if path is not None:
            number = self.newest.get(path, 1)
            box = _block_key(path, number)
            if self._reaches(box, sources - {box}):
                number += 1
                box = _block_key(path, number)
            self.newest[path] = number
            self.path[box] = path
        for source in sources - {box}:
            self.after.setdefault(source, set()).add(box)
        self.box[vertex.key] = box
        return box

    def _closed(self, layer: str) -> str | None:
        """The outermost module around this op that is not open. What alone fills its module opens with it."""
        parent: str | None = None
        for path in _paths(layer):
            if path not in self.blocks:
                continue
            if path not in self.opened and (parent is None or self.blocks[path] != self.blocks[parent]):
                return path
            parent = path
        return None

    def _reaches(self, start: str, ends: set[str]) -> bool:
        seen, waiting = {start}, [start]
        while waiting:
            new = self.after.get(waiting.pop(), set()) - seen
            if new & ends:
                return True
            seen |= new
            waiting.extend(new)
        return False


def _block_key(path: str, number: int) -> str:
    """No op is called so: one may have the name of the module (an op "conv" beside "conv.add")."""
    return f"{path}.*" if number == 1 else f"{path}.* ({number})"


def _box(key: str, members: list[Vertex], path: str | None) -> Vertex:
    if path is None:
        return members[0]
    counts = Counter(v.state for v in members if v.state is not None)
    layers = tuple(layer for v in members for layer in v.layers)
    states = set(counts)
    state: State | None = None
    if states and "float" not in states:
        state = "quantized" if "quantized" in states else "shared"
    elif states == {"float"}:
        state = "float"
    return Vertex(key, "block", "block", state, layers, path, members[-1].shape, counts)


def _joined(known: Link | None, new: Link) -> Link:
    if known is None:
        return new
    first = known if known.conversion or not new.conversion else new
    return replace(first, tensors=tuple(dict.fromkeys([*known.tensors, *new.tensors])))


def _in_order(vertices: tuple[Vertex, ...], links: Collection[Link]) -> tuple[Vertex, ...]:
    """The boxes such that every line runs forward, otherwise as they come."""
    before: dict[str, set[str]] = {v.key: set() for v in vertices}
    for link in links:
        before[link.target].add(link.source)
    out: dict[str, Vertex] = {}
    waiting = list(vertices)
    while waiting:
        late = []
        for vertex in waiting:
            if before[vertex.key] <= out.keys():
                out[vertex.key] = vertex
            else:
                late.append(vertex)
        waiting = late
    return tuple(out.values())


def _paths(layer: str) -> list[str]:
    """ "layer1.0.conv1" -> ["layer1", "layer1.0"]"""
    parts = layer.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
