"""Single numbers of a quantized weight: code, scale, zero point, what they stand for, and the float they came from.

A weight is seen as rows: a row for each channel, and in it, flattened, what lies behind that channel ("position").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.errors import DataMismatch
from qlab.quant.tensor import QuantizedTensor

CSV_COLUMNS = ("channel", "position", "code", "scale", "zero_point", "dequantized", "float_original", "error")


@dataclass(frozen=True, eq=False)
class Cells:
    """Arrays of one shape, an element for each number. channel, position: int64, where it stands. code, zero_point:
    int32. scale, dequantized: float32. original: float32 it was quantized from, None where that is not known."""

    channel: NDArray[np.int64]
    position: NDArray[np.int64]
    code: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    dequantized: NDArray[np.float32]
    original: NDArray[np.float32] | None

    @property
    def error(self) -> NDArray[np.float32] | None:
        """dequantized - original."""
        return None if self.original is None else self.dequantized - self.original


def by_channel(values: torch.Tensor, axis: int) -> torch.Tensor:
    """[C, K]: a row for each index of this axis; a view where that is possible. A scalar is one row of one."""
    if not values.ndim:
        return values.reshape(1, 1)
    rows = values.movedim(axis, 0)
    return rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))


def cells(
    tensor: QuantizedTensor, axis: int, channel: Any, position: Any, original: torch.Tensor | None = None
) -> Cells:
    """The numbers at these channels and positions, arrays of integers that broadcast to the shape of the result.

    axis: of the channels, also where the tensor has one scale. original: the float weight, shape of the codes.
    Raises DataMismatch for an original of another shape and a place outside the weight.
    """
    rows = by_channel(tensor.codes, axis)
    if original is not None and original.shape != tensor.codes.shape:
        raise DataMismatch(
            f"the float weight has shape {list(original.shape)}, its codes {list(tensor.codes.shape)}: give the weight "
            "that was quantized."
        )
    at, behind = np.broadcast_arrays(np.asarray(channel, dtype=np.int64), np.asarray(position, dtype=np.int64))
    for name, index, size in (("channels", at, rows.shape[0]), ("positions", behind, rows.shape[1])):
        if index.size and not 0 <= index.min() <= index.max() < size:
            raise DataMismatch(f"{name} {index.min()}..{index.max()} were asked for; this weight has {size:,}.")
    i, j = torch.from_numpy(at.copy()), torch.from_numpy(behind.copy())
    code = rows[i, j].to(torch.int32)
    scale, zero_point = (_of_place(grid, tensor.group_size, i, j) for grid in (tensor.scale, tensor.zero_point))
    floats = None if original is None else by_channel(original.detach(), axis)[i, j].float().numpy()
    return Cells(
        at, behind, code.numpy(), scale.numpy(), zero_point.numpy(), ((code - zero_point) * scale).numpy(), floats
    )  # fmt: skip


def _of_place(grid: torch.Tensor, group_size: int | None, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Scales or zero points of these places, from [] per tensor, [C] per channel or [C, K // group_size] per group."""
    grid = grid.detach()
    if not grid.ndim:
        return grid.expand(i.shape)
    return grid[i] if grid.ndim == 1 else grid[i, j // (group_size or 1)]


def packed_index(shape: Sequence[int], axis: int, channel: Any, position: Any) -> Any:
    """Index among the packed codes of the number at this channel and position."""
    moved = _moved(len(shape), axis)
    at = np.unravel_index(np.asarray(channel) * _behind(shape, axis) + np.asarray(position), [shape[a] for a in moved])
    return np.ravel_multi_index(tuple(at[moved.index(a)] for a in range(len(shape))), tuple(shape))


def place_of(shape: Sequence[int], axis: int, index: Any) -> tuple[Any, Any]:
    """Channel and position of the packed code with this index: the inverse of packed_index."""
    moved = _moved(len(shape), axis)
    at = np.unravel_index(np.asarray(index), tuple(shape))
    flat = np.ravel_multi_index(tuple(at[a] for a in moved), tuple(shape[a] for a in moved))
    return flat // _behind(shape, axis), flat % _behind(shape, axis)


def _moved(ndim: int, axis: int) -> list[int]:
    """The axes with that of the channels in front."""
    axis %= ndim
    return [axis, *(a for a in range(ndim) if a != axis)]


def _behind(shape: Sequence[int], axis: int) -> int:
    return math.prod(n for a, n in enumerate(shape) if a != axis % len(shape))


def to_csv(found: Cells) -> str:
    """A line for each number under CSV_COLUMNS; floats with the nine digits that tell any two float32 apart, the float
    original and the error empty where it is not known."""
    whole, real = "%d", "%.9g"
    columns: list[tuple[str, NDArray[Any] | None]] = [
        (whole, found.channel), (whole, found.position), (whole, found.code), (real, found.scale),
        (whole, found.zero_point), (real, found.dequantized), (real, found.original), (real, found.error),
    ]  # fmt: skip
    line = ",".join("" if values is None else form for form, values in columns)
    # One format for a whole line takes a quarter of the time that pandas takes.
    numbers = zip(*(values.ravel().tolist() for _, values in columns if values is not None), strict=True)
    return "\n".join([",".join(CSV_COLUMNS), *(line % row for row in numbers)]) + "\n"
