"""Tensors that safetensors saved: a JSON header, then the bytes."""

import json
from typing import Any

import numpy as np

from qlab.errors import BadUpload
from qlab.readers.common import (
    Limits,
    are_sizes,
    check_array_count,
    check_unpacked,
    checked_bytes,
    from_bfloat16,
    parsing,
    shape_text,
    values_at,
)

_SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "BF16": np.dtype("<u2"),
}  # fmt: skip


def read_safetensors(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8 or length > limits.max_header_bytes:
        raise BadUpload(f"{label} declares a header of {length:,} bytes and has {len(data):,} in all. Save it again.")
    with parsing(label, "the safetensors header"):
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique_keys)
    if not isinstance(header, dict):
        raise BadUpload(f"{label} has a safetensors header that is not an object. Save it again.")
    header.pop("__metadata__", None)
    check_array_count(label, len(header), limits)
    arrays: dict[str, np.ndarray] = {}
    total = 0
    for name, entry in header.items():
        where = f"{label}, tensor {name[:80]!r}"
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise BadUpload(f"{where} has no dtype, shape and data_offsets. Save the file again.")
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise BadUpload(f"{where} is of dtype {str(entry['dtype'])[:40]}. Save whole numbers or floats.")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not are_sizes(shape) or not are_sizes(offsets) or len(offsets) != 2:
            raise BadUpload(f"{where} has a broken shape or broken data_offsets. Save the file again.")
        size = checked_bytes(tuple(shape), dtype.itemsize, where, limits)
        begin, end = offsets
        if not begin <= end <= len(data) - 8 - length or end - begin != size:
            raise BadUpload(
                f"{where} declares {shape_text(shape)} {entry['dtype']}, which is {size:,} bytes, at {begin:,} to "
                f"{end:,}; the file has {len(data) - 8 - length:,} bytes of data. "
                "It is cut off or forged: save it again."
            )
        total += size  # several tensors may point at the same bytes
        check_unpacked(label, total, limits)
        array = values_at(data, dtype, tuple(shape), 8 + length + begin)
        arrays[name] = from_bfloat16(array) if entry["dtype"] == "BF16" else array
    return arrays


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise BadUpload("The safetensors header names a tensor twice. Save the file again.")
    return result
