"""What a quantized file holds, whatever its format: tensors on grids, and ops by whether they compute on integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qlab.errors import BadUpload
from qlab.readers.common import MAX_AXES, shape_text

Role = Literal["weight", "activation", "bias"]
MAX_NAME = 200


@dataclass(frozen=True, eq=False)
class FileTensor:
    """One tensor on a grid: value = (code - zero_point) * scale.

    shape: None where the file does not say it; a free size is None. codes: whole numbers of that shape; None for an
    activation. scale float32 and zero_point int64 have one shape: [] per tensor, [C] along `axis`; with `block_size`
    that of the codes, but for `axis`, of which each covers a block. quant_min, quant_max: what the container holds.
    reader: the op that reads it (for an activation: the first), maker: the op that gives an activation; ops by their
    name in the file, or #number. reader_op, maker_op: the types of these. aliases: every name the file has for it.
    """

    name: str
    role: Role
    shape: tuple[int | None, ...] | None
    bits: int
    signed: bool
    codes: NDArray[Any] | None
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int | None
    block_size: int | None
    quant_min: int
    quant_max: int
    reader: str = ""
    reader_op: str = ""
    maker: str = ""
    maker_op: str = ""
    aliases: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """int8, uint4, ..."""
        return f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def granularity(self) -> str:
        """How many values share a scale, in words."""
        if self.block_size is not None:
            return f"blocks of {self.block_size:,}"
        return "per tensor" if self.axis is None else "per channel"

    @property
    def low(self) -> float:
        """The smallest value the grid can hold."""
        return min(self._ends)

    @property
    def high(self) -> float:
        """The largest value the grid can hold."""
        return max(self._ends)

    @property
    def _ends(self) -> tuple[float, ...]:
        if not self.scale.size:
            return (0.0,)
        scale, points = self.scale.astype(np.float64), self.zero_point.astype(np.float64)
        ends = ((bound - points) * scale for bound in (self.quant_min, self.quant_max))
        return tuple(float(f(end)) for end in ends for f in (np.min, np.max))

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Scales or zero points in the shape of the codes (a view where none is blocked). Needs codes."""
        assert self.codes is not None
        return spread(values, self.codes.shape, self.axis, self.block_size)

    def dequantize(self) -> NDArray[np.float32]:
        """(codes - zero_point) * scale, float32, in the shape of the codes. Raises ValueError for an activation."""
        if self.codes is None:
            raise ValueError(f"{self.name!r} is an activation: the file holds its grid, not its values.")
        centred = self.codes.astype(np.int64) - self.spread(self.zero_point)
        return centred.astype(np.float32) * self.spread(self.scale)

    @property
    def bytes(self) -> int:
        """Bytes of the codes, packed at their bits, and of the scales as float32; zero points are not counted."""
        codes = 0 if self.codes is None else -(-self.codes.size * self.bits // 8)
        return codes + 4 * self.scale.size


@dataclass(frozen=True)
class Near:
    """The ops around a tensor, as FileTensor has them."""

    reader: str = ""
    reader_op: str = ""
    maker: str = ""
    maker_op: str = ""


@dataclass(frozen=True)
class OpCount:
    """How often an op occurs in a file. on_integers: where it takes integers alone, or floats that were integers just
    before and become integers again, which runtimes turn into an integer kernel."""

    op: str
    count: int
    on_integers: int


@dataclass(frozen=True, eq=False)
class QuantizedFile:
    """What was read. format: "ONNX", "TFLite" or "qlab". producer: who wrote it, as it says. versions: of the format.

    bytes: of the file. notes: what was left out, in sentences.
    """

    name: str
    format: str
    producer: str
    versions: str
    bytes: int
    ops: tuple[OpCount, ...]
    tensors: tuple[FileTensor, ...]
    notes: tuple[str, ...] = ()

    def of(self, role: Role) -> tuple[FileTensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.role == role)


def spread(
    values: NDArray[Any], shape: Sequence[int], axis: int | None, block_size: int | None
) -> NDArray[Any]:  # fmt: skip
    """One value for each scale, in the shape of the codes."""
    if axis is None:
        return np.broadcast_to(values, tuple(shape))
    if block_size is not None:
        return np.repeat(values, block_size, axis=axis)[(slice(None),) * axis + (slice(0, shape[axis]),)]
    return np.broadcast_to(values.reshape([-1 if i == axis else 1 for i in range(len(shape))]), tuple(shape))


def ends_of(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest code of so many bits."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def clean(text: str) -> str:
    """A name from a file, fit to be shown: printable and of bounded length."""
    kept = "".join(c if c.isprintable() else "?" for c in text[: MAX_NAME + 1])
    return kept if len(kept) <= MAX_NAME else kept[: MAX_NAME - 1] + "…"


NOWHERE = Near()


def checked(
    name: str, role: Role, *, bits: int, signed: bool, scale: NDArray[Any], zero_point: NDArray[Any] | None,
    codes: NDArray[Any] | None = None, shape: tuple[int | None, ...] | None = None, axis: int | None = None,
    block_size: int | None = None, aliases: Sequence[str] = (), near: Near = NOWHERE,
) -> FileTensor:  # fmt: skip
    """A tensor whose parts hold together. axis counts where `scale` has more than one value; it may be negative.

    Raises BadUpload naming the tensor.
    """
    label = f"Tensor {clean(name)!r}"
    scale = np.asarray(scale, np.float32)
    shape = codes.shape if codes is not None else shape
    if shape is not None and len(shape) > MAX_AXES:
        raise BadUpload(f"{label} has {len(shape)} axes; at most {MAX_AXES} are read.")
    points = np.zeros(scale.shape, np.int64) if zero_point is None else np.asarray(zero_point).astype(np.int64)
    if points.size == 1 and scale.size != 1:
        points = np.broadcast_to(points.reshape(()), scale.shape)
    if scale.size == 1 and points.size == 1:
        scale, points, axis, block_size = scale.reshape(()), points.reshape(()), None, None
    if points.shape != scale.shape:
        raise BadUpload(
            f"{label} has scales of shape {shape_text(scale.shape)} and zero points of {shape_text(points.shape)}, "
            "which do not fit each other. Write the file again."
        )
    if scale.ndim:
        axis = _axis(label, shape, scale, axis, block_size)
        if block_size is not None and shape is not None:  # one block may be said to be longer than what there is
            block_size = max(1, min(block_size, shape[axis] or block_size))
    if not np.isfinite(scale).all():
        raise BadUpload(f"{label} has a scale that is not a finite number. Quantize the model again.")
    low, high = ends_of(bits, signed)
    if np.abs(points.astype(np.float64)).max(initial=0) > 2**31:
        raise BadUpload(f"{label} has a zero point that 32 bits do not hold. Write the file again.")
    reach = float(np.abs(scale.astype(np.float64)).max(initial=0)) * (
        max(-low, high) + float(np.abs(points).max(initial=0))
    )
    if reach > float(np.finfo(np.float32).max):
        raise BadUpload(f"{label} has a scale of {np.abs(scale).max():.3g}, with which its values are not finite.")
    return FileTensor(
        clean(name), role, shape, bits, signed, codes, scale, points, axis, block_size, low, high,
        clean(near.reader), clean(near.reader_op), clean(near.maker), clean(near.maker_op),
        tuple(dict.fromkeys(a for a in aliases if a)),
    )  # fmt: skip


def _axis(
    label: str, shape: Sequence[int | None] | None, scale: NDArray[Any], axis: int | None, block_size: int | None
) -> int:
    """The axis of the scales, counted from the front."""
    found = f"{label} has scales of shape {shape_text(scale.shape)}"
    if axis is None or (block_size is None and scale.ndim != 1):
        raise BadUpload(f"{found} and does not say for what. Write the file again.")
    if shape is None:  # an activation of unknown shape
        return max(axis, 0)
    axis = axis + len(shape) if axis < 0 else axis
    if not 0 <= axis < len(shape):
        raise BadUpload(f"{found} along axis {axis} of {len(shape)}. Write the file again.")
    if block_size is None:
        due: tuple[int | None, ...] = (shape[axis],)
    else:
        size = shape[axis]
        blocks = None if size is None or block_size < 1 else -(-size // block_size)
        due = (*shape[:axis], blocks, *shape[axis + 1 :])
    if len(due) != scale.ndim or any(d not in (None, s) for d, s in zip(due, scale.shape, strict=True)):
        raise BadUpload(f"{found}; a tensor of {shape_text(shape)} needs {shape_text(due)}. Write the file again.")
    return axis


class Budget:
    """How many values may be unpacked from one file: several tensors may point at the same bytes."""

    def __init__(self, values: int):
        self.total = self.left = values

    def take(self, count: int, where: str) -> None:
        """Raises BadUpload."""
        self.left -= count
        if self.left < 0:
            raise BadUpload(
                f"{where}: the file stands for more than {self.total:,} values, which is the limit. Open a smaller one."
            )
