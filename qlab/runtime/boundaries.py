"""Where values cross between integers and float in the executed graph, and which op asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qlab.runtime.executed import Executed, ExecutedOp


@dataclass(frozen=True)
class Boundary:
    """One conversion. before: op whose output is converted, None for an input of the network or a constant; after: ops
    that read what it gives, none where it leaves the network. Ops that only move values are looked through.
    cause: in words."""

    op: ExecutedOp
    before: ExecutedOp | None
    after: tuple[ExecutedOp, ...]
    cause: str


def boundaries(ran: Executed, inputs: Sequence[str], reasons: Mapping[str, str]) -> tuple[Boundary, ...]:
    """Each conversion in order of execution. inputs: names of the network's; reasons: layer -> what the ledger says."""
    makers = {name: op for op in ran.ops for name in op.outputs if name}
    readers: dict[str, list[ExecutedOp]] = {}
    for op in ran.ops:
        for name in op.inputs:
            readers.setdefault(name, []).append(op)

    def source(op: ExecutedOp) -> tuple[ExecutedOp | None, str]:
        """What computed the values an op takes, and the name they started from."""
        name = op.inputs[0]
        while (made := makers.get(name)) is not None and made.kind in ("move", "shape"):
            name = made.inputs[0]
        return made, name

    def targets(op: ExecutedOp) -> list[ExecutedOp]:
        found: dict[str, ExecutedOp] = {}
        waiting = [op]
        while waiting:
            for name in waiting.pop().outputs:
                for reader in readers.get(name, ()):
                    if reader.kind in ("move", "shape"):
                        waiting.append(reader)
                    else:
                        found.setdefault(reader.name, reader)
        return list(found.values())

    out = []
    for op in ran.boundaries:
        before, start = source(op)
        after = targets(op)
        out.append(Boundary(op, before, tuple(after), _cause(op, before, start in inputs, after, reasons)))
    return tuple(out)


def _cause(
    op: ExecutedOp, before: ExecutedOp | None, from_input: bool, after: Sequence[ExecutedOp],
    reasons: Mapping[str, str],
) -> str:  # fmt: skip
    to_float = op.writes[:1] == ("float",)
    if before is None and not from_input:
        return "a constant stored as integers, turned into float at every call"
    if op.op == "DynamicQuantizeLinear":
        return "its range is taken from the values of each call (dynamic)"
    if not to_float:
        if before is None:
            return "the network's input comes as float"
        return _float_op(before, reasons) if before.kind == "float" else f"{before.op} of {before.layer} gives float"
    if not after:
        return "the network's output leaves as float"
    floats = [o for o in after if o.kind == "float"]
    return "; ".join(_float_op(o, reasons) for o in floats[:2]) or f"{after[0].op} of {after[0].layer} takes float"


def _float_op(op: ExecutedOp, reasons: Mapping[str, str]) -> str:
    """The op, and what the plan said about it where that explains it."""
    reason = reasons.get(op.layer)
    return f"{op.op} of {op.layer} computes in float" + (f": {reason}" if reason else "")
