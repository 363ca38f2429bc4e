"""What the readers share: limits, sizes that are checked before memory is asked for, and the words of refusals."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qlab.errors import BadUpload, QLabError

GIB = 1024**3
MAX_AXES = 16


@dataclass(frozen=True)
class Limits:
    """What a data file may ask for. Sizes in bytes."""

    max_file_bytes: int = 2 * GIB
    max_unpacked_bytes: int = 2 * GIB
    max_entries: int = 200_000
    max_arrays: int = 1_000
    max_header_bytes: int = 8 * 1024**2
    max_rows: int = 5_000_000
    max_columns: int = 20_000
    max_image_pixels: int = 32_000_000


DEFAULT_LIMITS = Limits()


@contextmanager
def parsing(where: str, what: str) -> Iterator[None]:
    """Around a foreign parser: it raises what it likes on broken bytes, and all of it means one thing to the user."""
    try:
        yield
    except QLabError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise BadUpload(
            f"{where} cannot be read as {what}: {reason}. The file is cut off or broken: save and upload it again.",
            detail=f"{type(error).__name__}: {error}",
        ) from error


def checked_bytes(shape: tuple[int, ...], itemsize: int, where: str, limits: Limits) -> int:
    if len(shape) > MAX_AXES:
        raise BadUpload(f"{where} has {len(shape)} axes; at most {MAX_AXES} are read.")
    # An axis of 0 must not hide a shape that numpy cannot hold.
    if max(shape, default=1) > 2**40 or math.prod(size or 1 for size in shape) > 2**60:
        raise BadUpload(
            f"{where} declares the shape {shape_text(shape)}. The file is damaged or forged: save it again."
        )
    size = math.prod(shape) * itemsize
    if size > limits.max_unpacked_bytes:
        raise BadUpload(
            f"{where} declares {shape_text(shape)}, which is {size_text(size)}; the limit is "
            f"{size_text(limits.max_unpacked_bytes)}. Use fewer samples."
        )
    return size


def check_unpacked(label: str, size: int, limits: Limits) -> None:
    if not 0 <= size <= limits.max_unpacked_bytes:
        raise BadUpload(
            f"{label} unpacks to {size_text(size)}; the limit is {size_text(limits.max_unpacked_bytes)}. "
            "Use fewer samples."
        )


def check_array_count(label: str, count: int, limits: Limits) -> None:
    if count > limits.max_arrays:
        raise BadUpload(f"{label} holds {count:,} arrays; the limit is {limits.max_arrays:,}. One per input is due.")


def values_at(
    data: bytes, dtype: np.dtype, shape: tuple[int, ...], offset: int = 0, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """The array at `offset` in `data`, whose length has been checked; a view where the bytes serve as they are."""
    count = math.prod(shape)
    if count == 0:  # numpy does not take an offset at the end of the data
        return np.zeros(shape, dtype)
    if dtype.kind == "b":  # a byte of 2 is neither False nor True to numpy
        return np.frombuffer(data, np.uint8, count, offset).reshape(shape, order=order) != 0
    array = np.frombuffer(data, dtype, count, offset).reshape(shape, order=order)
    # In the machine's byte order: torch takes no other.
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bit patterns (uint16): the upper half of a float32."""
    return np.left_shift(bits.astype(np.uint32), 16).view(np.float32)


def model_advice() -> str:
    from qlab.graph.archive import EXPORT_LINES

    return f"A model is brought in like this:\n\n{EXPORT_LINES}"


def are_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(v) is int and 0 <= v < 2**62 for v in value)


def shape_text(shape: Any) -> str:
    sizes = [str(size) for size in shape[: MAX_AXES + 1]]
    return "[" + ", ".join(sizes) + (", ...]" if len(shape) > len(sizes) else "]")


def size_text(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / 1024**2:.1f} MiB"


def shown(data: bytes) -> str:
    return repr(data)[1:]


def listed(names: list[str], limit: int = 5) -> str:
    return ", ".join(repr(name) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
