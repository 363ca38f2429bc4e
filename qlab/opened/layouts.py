"""Weights of other formats in the order that torch has them: candidates by shape, of which the values choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Orders of axes in which a weight of so many may be stored; torch has [out, in, ...].
ORDERS: dict[int, tuple[tuple[int, ...], ...]] = {
    0: ((),),
    1: ((0,),),
    2: ((0, 1), (1, 0)),  # Gemm without transB and MatMul have [in, out]
    3: ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)),
    4: (
        (0, 1, 2, 3),
        (0, 3, 1, 2),  # [out, height, width, in]: TFLite
        (3, 0, 1, 2),  # [1, height, width, out]: depthwise in TFLite; [out, height, width, in] of a transposed one
        (3, 2, 0, 1),  # [height, width, in, out]
        (1, 0, 2, 3),
    ),
    5: ((0, 1, 2, 3, 4), (0, 4, 1, 2, 3), (4, 3, 0, 1, 2), (1, 0, 2, 3, 4)),
}
GATES = {  # where torch has each gate: ONNX stores i o f c, and z r h
    "lstm": (0, 2, 3, 1),
    "gru": (1, 0, 2),
}


@dataclass(frozen=True)
class Layout:
    """How a stored tensor becomes one of torch: axes in this order, then this shape, then rows in blocks of gates."""

    order: tuple[int, ...]
    shape: tuple[int, ...]
    gates: tuple[int, ...] = ()

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        out = values.transpose(self.order).reshape(self.shape)
        if not self.gates:
            return out
        blocks = out.reshape(len(self.gates), -1, *self.shape[1:])
        return blocks[list(self.gates)].reshape(self.shape)


def layouts(stored: tuple[int, ...], wanted: tuple[int, ...], op: str) -> Iterator[Layout]:
    """Every way in which a tensor of the first shape may be one of the second; none where they do not fit.

    Axes of size 1 may come and go, and what lies behind the first axis may be stored as one.
    """
    if math.prod(stored) != math.prod(wanted):
        return
    seen: set[tuple[int, ...]] = set()
    for order in ORDERS.get(len(stored), ()):
        moved = tuple(stored[axis] for axis in order)
        long = tuple(axis for axis in order if stored[axis] != 1)
        flat = len(moved) == 2 and moved[0] == wanted[0] and len(wanted) > 2
        if long in seen or not (_long(moved) == _long(wanted) or flat):
            continue
        seen.add(long)
        yield Layout(order, wanted)
        gates = GATES.get(op, ())
        if gates and len(wanted) == 2 and wanted[0] % len(gates) == 0:
            yield Layout(order, wanted, gates)


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of the angle between two tensors; 0 where one of them is all zero."""
    x, y = (v.reshape(-1).astype(np.float64) for v in (a, b))
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 and math.isfinite(norm) else 0.0
