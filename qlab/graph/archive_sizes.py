"""Sizes of tensors in a `.pt2`: fixed ones, free ones with their bounds, and the inputs that have them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qlab.graph.archive_schema import (
    affine,
    as_int,
    as_list,
    as_record,
    damaged,
    dtype_of,
    field,
    record_at,
    shown,
    text_at,
    union,
)

MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class InputSpec:
    """One input of a program. Free dimensions are None in `shape`; minimum and maximum equal the size elsewhere."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    example_shape: tuple[int, ...]
    minimum: tuple[int, ...]
    maximum: tuple[int | None, ...]


class Sizes:
    """What a document says about sizes. program: the document; graph: its graph."""

    def __init__(self, program: dict[str, object], graph: dict[str, object]) -> None:
        self.ranges = record_at(program, "range_constraints", "program")
        self.tensor_values = record_at(graph, "tensor_values", "graph")

    def of(self, name: str, where: str) -> tuple[torch.dtype, list[object]] | None:
        """dtype and sizes of a tensor as the file writes them; None where it says nothing about it."""
        if name not in self.tensor_values:
            return None
        value = as_record(self.tensor_values[name], where)
        return dtype_of(field(value, "dtype", where), where), as_list(
            field(value, "sizes", where), where, MAX_DIMENSIONS
        )

    def dimension(self, value: object, where: str) -> tuple[int | None, int, int, int | None]:
        """shape (None: free), example size, smallest and largest size."""
        case, content = union(value, where)
        if case == "as_int":
            size = as_int(content, where)
            if size < 0:
                damaged(where, f"has the size {size}")
            return size, size, size, size
        example = hint(case, content, where)
        if example is None:
            damaged(where, "is free and has no example size")
        low, high = self._range(text_at(as_record(content, where), "expr_str", where), where)
        return None, example, min(low, example), None if high is None else max(high, example)

    def _range(self, expression: str, where: str) -> tuple[int, int | None]:
        """Bounds of a free size. One derived from another (2 * batch) takes them from the other's."""
        parts = affine(expression)
        if parts is None:
            return 1, None
        factor, symbol, offset = parts
        product = symbol if factor == 1 else f"{factor}*{symbol}"
        derived = product if offset == 0 else f"{product} {'-' if offset < 0 else '+'} {abs(offset)}"
        if derived in self.ranges:  # sharper than what follows from the range of the symbol
            symbol, factor, offset = derived, 1, 0
        if symbol not in self.ranges:
            return 1, None
        limits = as_record(self.ranges[symbol], where)
        low, high = (
            None if limits.get(key) is None else as_int(limits[key], where) * factor + offset
            for key in ("min_val", "max_val")
        )
        if high is not None and high > 2**48:  # torch's way to say "no limit"
            high = None
        return max(low or 0, 0), high


def hint(case: str, content: object, where: str) -> int | None:
    """The size at export. None: it depended on values."""
    if case == "as_int":
        return as_int(content, where)
    if case != "as_expr":
        damaged(where, f"should be a size and is {shown(case)}")
    known = as_record(content, where).get("hint")
    if known is None:
        return None
    kind, value = union(known, where)
    if kind != "as_int":
        damaged(where, f"should have an integer as example size and has {shown(kind)}")
    return as_int(value, where)
