"""Constants of an ONNX file as arrays: sizes are held against the bytes that are there before anything is made."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from qlab.errors import BadUpload
from qlab.opened.file import Budget, clean
from qlab.readers.common import DEFAULT_LIMITS, checked_bytes, from_bfloat16, shape_text

_T = TensorProto
WHOLE: dict[int, tuple[int, bool]] = {  # type -> bits, signed
    _T.INT2: (2, True), _T.UINT2: (2, False), _T.INT4: (4, True), _T.UINT4: (4, False), _T.INT8: (8, True),
    _T.UINT8: (8, False), _T.INT16: (16, True), _T.UINT16: (16, False), _T.INT32: (32, True),
}  # fmt: skip
FLOATS = (_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE)
SMALL_FLOATS = {
    value: name.lower() for name, value in _T.DataType.items() if name.startswith(("FLOAT8", "FLOAT6", "FLOAT4"))
}
_RAW: dict[int, str] = {
    _T.INT8: "i1", _T.UINT8: "u1", _T.INT16: "<i2", _T.UINT16: "<u2", _T.INT32: "<i4", _T.INT64: "<i8",
    _T.FLOAT: "<f4", _T.DOUBLE: "<f8", _T.FLOAT16: "<f2", _T.BFLOAT16: "<u2",
}  # fmt: skip


def array_of(tensor: onnx.TensorProto, budget: Budget) -> NDArray[Any] | None:
    """The values: float32 or float64, or whole numbers in the smallest type; None for a type that is neither.

    Raises BadUpload where dims and bytes do not fit.
    """
    kind, where = tensor.data_type, f"Constant {clean(tensor.name)!r}"
    if kind not in _RAW and kind not in WHOLE:
        return None
    shape = tuple(tensor.dims)
    if min(shape, default=0) < 0:
        raise BadUpload(f"{where} has a negative size: {shape_text(shape)}. The file is damaged: write it again.")
    bits, signed = WHOLE.get(kind, (0, False))
    checked_bytes(shape, 1, where, DEFAULT_LIMITS)
    count = math.prod(shape)
    budget.take(count, where)
    packed = 0 < bits < 8
    flat = _flat(tensor, kind, count, bits if packed else 0, where)
    if packed:
        flat = unpacked(flat.view(np.uint8), bits, signed, count)
    return flat.reshape(shape)


def _flat(tensor: onnx.TensorProto, kind: int, count: int, packed_bits: int, where: str) -> NDArray[Any]:
    """The stored values in one row; bytes where several codes share one."""
    due = -(-count * packed_bits // 8) if packed_bits else count
    dtype = np.dtype("u1") if packed_bits else np.dtype(_RAW[kind])
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != due * dtype.itemsize:
            _misfit(where, tensor, due * dtype.itemsize, len(tensor.raw_data), "bytes")
        row = np.frombuffer(tensor.raw_data, dtype)
    else:
        values = _typed(tensor, kind)
        if len(values) != due:
            _misfit(where, tensor, due, len(values), "values")
        with np.errstate(invalid="ignore"):  # a float that is no number stays none
            wide: NDArray[Any] = np.array(values, np.float64 if kind in (_T.FLOAT, _T.DOUBLE) else np.int64)
        if kind in (_T.FLOAT16, _T.BFLOAT16):  # the bits of each, as a whole number
            row = (wide & 0xFFFF).astype("<u2")
            row = row.view("<f2") if kind == _T.FLOAT16 else row
        else:
            row = wide.astype(dtype)
            # the codes of several bits are one byte, which a writer may have taken as signed
            if dtype.kind in "iu" and not (packed_bits or np.array_equal(row, wide)):
                raise BadUpload(f"{where} holds numbers that its type does not hold. Write the file again.")
    if kind == _T.BFLOAT16:
        return from_bfloat16(row)
    return row.astype(np.float32) if kind == _T.FLOAT16 else row


def _typed(tensor: onnx.TensorProto, kind: int) -> Any:
    if kind == _T.FLOAT:
        return tensor.float_data
    if kind == _T.DOUBLE:
        return tensor.double_data
    return tensor.int64_data if kind == _T.INT64 else tensor.int32_data


def _misfit(where: str, tensor: onnx.TensorProto, due: int, found: int, unit: str) -> None:
    raise BadUpload(
        f"{where} declares the shape {shape_text(tuple(tensor.dims))}, which takes {due:,} {unit}; it has {found:,}. "
        "The file is cut off or damaged: write it again."
    )


def unpacked(data: NDArray[np.uint8], bits: int, signed: bool, count: int) -> NDArray[Any]:
    """So many codes of 2 or 4 bits from bytes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = ((data[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    if not signed:
        return codes
    half = np.uint8(1 << bits - 1)
    return (codes ^ half).astype(np.int8) - np.int8(half)
