"""What is found in an ONNX graph is gathered here: each tensor once, with everything the file calls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.opened.file import FileTensor, Near, Role, checked, ends_of, spread
from qlab.opened.onnx_graph import OnnxGraph
from qlab.opened.onnx_values import FLOATS, SMALL_FLOATS, WHOLE

OWN = "/codes"  # what the lab's own files add to the name of a tensor: there it is better than that of the float


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of a tensor, and the names of their constants."""

    scale: NDArray[Any]
    zero_point: NDArray[Any] | None
    bits: int
    signed: bool
    names: tuple[str, ...]


@dataclass
class _Draft:
    name: str
    role: Role
    fields: dict[str, Any]
    aliases: list[str] = field(default_factory=list)
    reader: int | None = None
    maker: int | None = None


class Found:
    """Tensors on grids, in the order they are found. notes: what could not be read, in sentences."""

    def __init__(self, graph: OnnxGraph):
        self.graph = graph
        self._drafts: dict[tuple[Any, ...], _Draft] = {}
        self._left_out: dict[str, int] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{count:,} × {why}" for why, count in self._left_out.items())

    def leave_out(self, why: str) -> None:
        self._left_out[why] = self._left_out.get(why, 0) + 1

    def grid(self, scale: str, zero_point: str, codes: str = "", kind: int | None = None) -> Grid | None:
        """The grid of these names; None, with a note, where it is not in the file. codes: the constant on it, if any.

        kind: the type of the codes where neither zero point nor constant says it (uint8 is what ONNX takes then).
        """
        graph = self.graph
        held = graph.behind(scale)
        points = graph.behind(zero_point) if zero_point else None
        if held is None or (zero_point and points is None):
            self.leave_out("scales or zero points computed while the network runs, which the file does not hold.")
            return None
        if codes in graph.constants:
            kind = graph.kind(codes)
        elif points is not None:
            kind = graph.kind(points)
        kind = kind or 2  # TensorProto.UINT8
        if kind in SMALL_FLOATS:
            self.leave_out(f"tensors in {SMALL_FLOATS[kind]}, whose values are floats and no codes.")
            return None
        if graph.kind(held) not in FLOATS or kind not in WHOLE:
            self.leave_out("grids of a type that is neither a float scale nor whole codes.")
            return None
        values = graph.array(held)
        assert values is not None
        bits, signed = WHOLE[kind]
        return Grid(values, None if points is None else graph.array(points), bits, signed, (scale, held, zero_point))

    def constant(
        self, role: Role, codes: str, grid: Grid, *, axis: int | None = None, block_size: int | None = None,
        reader: int | None = None, aliases: tuple[str, ...] = (), values: NDArray[Any] | None = None,
        part: str = "",
    ) -> None:  # fmt: skip
        """A weight or bias. codes: its constant; values: its codes where they are not the constant as it stands."""
        held = self.graph.array(codes) if values is None else values
        if held is None:
            return self.leave_out("constants of a type without numbers.")
        key = ("constant", codes, grid.names[1], part)
        draft = self._drafts.get(key)
        if draft is None:
            fields = {
                "bits": grid.bits, "signed": grid.signed, "scale": grid.scale, "zero_point": grid.zero_point,
                "codes": held, "axis": axis, "block_size": block_size,
            }  # fmt: skip
            draft = self._drafts[key] = _Draft(_named(codes) + part, role, fields)
        draft.aliases += [codes + part, *aliases, *grid.names] if not part else [codes + part, *aliases]
        draft.reader = reader if draft.reader is None else draft.reader

    def activation(
        self, codes: str, name: str, grid: Grid, *, axis: int | None = None, block_size: int | None = None,
        reader: int | None = None, maker: int | None = None, aliases: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """codes: the tensor of its codes, by which it is known; name: what the float tensor is called, or ""."""
        key = ("activation", codes)
        draft = self._drafts.get(key)
        if draft is None:
            sizes = self.graph.sizes
            fields = {
                "bits": grid.bits, "signed": grid.signed, "scale": grid.scale, "zero_point": grid.zero_point,
                "shape": sizes.get(codes, sizes.get(name)), "axis": axis,
                "block_size": block_size,
            }  # fmt: skip
            called = _named(codes) if codes.endswith(OWN) or not name else name
            draft = self._drafts[key] = _Draft(called, "activation", fields)
        draft.aliases += [name, codes, *aliases, *grid.names]
        draft.reader = reader if draft.reader is None else draft.reader
        draft.maker = maker if draft.maker is None else draft.maker

    def moved(self, origin: str | None, grid: Grid, aliases: tuple[str, ...], reader: int | None) -> bool:
        """Whether these are the codes of an activation that is known, only in another shape or order; then it gets
        these names too."""
        draft = self._drafts.get(("activation", origin))
        if draft is None or grid.scale.size != 1 or draft.fields["scale"].size != 1:
            return False
        first, own = (
            0 if p is None or p.size != 1 else int(p.flat[0]) for p in (draft.fields["zero_point"], grid.zero_point)
        )
        if float(draft.fields["scale"].flat[0]) != float(grid.scale.flat[0]) or first != own:
            return False
        draft.aliases += aliases
        draft.reader = reader if draft.reader is None else draft.reader
        return True

    def tensors(self) -> tuple[FileTensor, ...]:
        """Raises BadUpload where scales and codes do not fit each other."""
        return tuple(self._made(draft) for draft in sorted(self._drafts.values(), key=_place))

    def _made(self, draft: _Draft) -> FileTensor:
        ops = [
            ("", "") if n is None else (self.graph.name(n), self.graph.nodes[n].op_type)
            for n in (draft.reader, draft.maker)
        ]
        return checked(draft.name, draft.role, aliases=draft.aliases, near=Near(*ops[0], *ops[1]), **draft.fields)


def _place(draft: _Draft) -> tuple[int, int]:
    """Constants before the op that reads them, activations behind the op that gives them."""
    number = draft.maker if draft.role == "activation" else draft.reader
    return (-1 if number is None else number, int(draft.role == "activation"))


def codes_of(
    values: NDArray[Any], grid: Grid, axis: int | None, block_size: int | None, name: str
) -> NDArray[Any]:  # fmt: skip
    """What QuantizeLinear makes of float values: rounded to even, cut off at the ends. Raises BadUpload."""
    low, high = ends_of(grid.bits, grid.signed)
    shell = checked(
        name, "weight", bits=grid.bits, signed=grid.signed, scale=grid.scale, zero_point=grid.zero_point,
        codes=values, axis=axis, block_size=block_size,
    )  # fmt: skip
    scale, points = (spread(v, values.shape, shell.axis, shell.block_size) for v in (shell.scale, shell.zero_point))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.nan_to_num(np.rint(values.astype(np.float32) / scale), nan=0.0, posinf=2.0**40, neginf=-(2.0**40))
    steps = np.clip(steps.astype(np.float64), -(2.0**40), 2.0**40)
    dtype = np.dtype(f"{'i' if grid.signed else 'u'}{max(1, grid.bits // 8)}")
    return np.clip(steps + points, low, high).astype(dtype)


def _named(codes: str) -> str:
    """The name of the tensor behind the name of its codes."""
    for ending in ("_quantized", OWN, "_QuantizeLinear_Output", "_q"):
        codes = codes.removesuffix(ending)
    return codes
