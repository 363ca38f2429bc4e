"""A TFLite file: every tensor with quantization parameters, and the operators around it.

Fields by number, as in the public schema: github.com/google-ai-edge/LiteRT, tflite/converter/schema/schema.fbs.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.errors import BadUpload
from qlab.opened.file import Budget, FileTensor, Near, OpCount, QuantizedFile, Role, checked, clean
from qlab.opened.flatbuffer import Buffer, Table
from qlab.opened.onnx_values import unpacked
from qlab.opened.read import MAX_VALUES
from qlab.opened.tflite_ops import BUILTIN
from qlab.readers.common import DEFAULT_LIMITS, checked_bytes, shape_text

WHOLE = {  # type -> bits, signed
    2: (32, True), 3: (8, False), 4: (64, True), 7: (16, True), 9: (8, True), 15: (32, False), 16: (16, False),
    17: (4, True), 19: (2, True), 20: (4, False),
}  # fmt: skip
FLOAT16, CUSTOM, BLOCKS = 1, 32, 2
MAX_NODES = 200_000
BIAS_AT = {  # the operators that take a bias, and where
    "CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3, "CONV_3D": 2,
    "CONV_3D_TRANSPOSE": 3,
}  # fmt: skip
BETWEEN = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class _Op:
    name: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_tflite(data: bytes, name: str) -> QuantizedFile:
    """Raises BadUpload."""
    model = Buffer(data, name).root()
    version = model.number(0, "<I")
    if version != 3:
        raise BadUpload(f"{name!r} is TFLite of version {version}; version 3 is read. Convert the model again.")
    codes = [_op_name(code) for code in model.tables(1)]
    buffers = model.tables(4)
    budget = Budget(MAX_VALUES)
    parts = [_Part(table, codes, buffers, budget, name) for table in model.tables(2)]
    if not any(part.ops for part in parts):
        raise BadUpload(f"{name!r} holds no operator, so it is no model. Convert the model again.")
    tensors = [t for i, part in enumerate(parts) for t in part.read(f"[{i}]" if i else "")]
    producer = clean(model.text(3)) or "not named"
    return QuantizedFile(
        name, "TFLite", producer, f"schema {version}", len(data), _ops(parts), tuple(tensors),
        tuple(f"{n:,} × {why}" for why, n in sum((part.left_out for part in parts), Counter()).items()),
    )  # fmt: skip


def _op_name(code: Table) -> str:
    """The larger of the two numbers, as the schema asks for: old files have the first, new ones the second."""
    number = max(code.number(0, "<b"), code.number(3, "<i"))
    if number == CUSTOM:
        return clean(code.text(1)) or "CUSTOM"
    return BUILTIN[number] if 0 <= number < len(BUILTIN) else f"operator {number}"


def _ops(parts: list[_Part]) -> tuple[OpCount, ...]:
    counts: Counter[str] = Counter()
    integer: Counter[str] = Counter()
    for part in parts:
        for op in part.ops:
            counts[op.kind] += 1
            integer[op.kind] += op.kind not in BETWEEN and part.on_integers(op)
    return tuple(OpCount(op, n, integer[op]) for op, n in counts.items())


class _Part:
    """One subgraph."""

    def __init__(self, table: Table, codes: list[str], buffers: list[Table], budget: Budget, name: str):
        self.tables, self.buffers, self.budget, self.label = table.tables(0), buffers, budget, name
        self.left_out: Counter[str] = Counter()
        rows = table.tables(3)
        if len(rows) > MAX_NODES:
            raise BadUpload(f"{name!r} has {len(rows):,} operators; at most {MAX_NODES:,} are read.")
        self.ops = [self._op(i, row, codes) for i, row in enumerate(rows)]

    def _op(self, number: int, row: Table, codes: list[str]) -> _Op:
        index = row.number(0, "<I")
        if index >= len(codes):
            row.buffer.broken(f"operator #{number} is of kind {index:,} of {len(codes):,}")
        inputs, outputs = (tuple(int(i) for i in row.vector(field, "<i4")) for field in (1, 2))
        if max((*inputs, *outputs), default=-1) >= len(self.tables):
            row.buffer.broken(f"operator #{number} takes a tensor that is not there")
        return _Op(f"#{number}", codes[index], inputs, outputs)

    @cached_property
    def reader(self) -> dict[int, tuple[_Op, int]]:
        """Tensor -> the first operator that reads it, and where; DEQUANTIZE counts where nobody else does."""
        found: dict[int, tuple[_Op, int]] = {}
        for op in self.ops:
            for position, index in enumerate(op.inputs):
                if index >= 0 and (index not in found or found[index][0].kind in BETWEEN):
                    found[index] = (op, position)
        return found

    @cached_property
    def maker(self) -> dict[int, _Op]:
        return {index: op for op in self.ops for index in op.outputs if index >= 0}

    def kind(self, index: int) -> int:
        return self.tables[index].number(1, "<b")

    def name(self, index: int) -> str:
        return clean(self.tables[index].text(3)) or f"tensor {index}"

    def scales(self, index: int) -> int:
        """How many scales a tensor has."""
        quantization = self.tables[index].table(4)
        return 0 if quantization is None else len(quantization.vector(2, "<f4"))

    def data(self, index: int) -> NDArray[np.uint8]:
        """The bytes of a constant; none for what is computed."""
        number = self.tables[index].number(2, "<I")
        if number >= len(self.buffers):
            self.tables[index].buffer.broken(f"{self.name(index)!r} lies in buffer {number:,} of {len(self.buffers):,}")
        buffer = self.buffers[number]
        offset, size = buffer.number(1, "<Q"), buffer.number(2, "<Q")
        if offset > 1:  # behind the tables, as files above 2 GB have it
            buffer.buffer.need(offset, size)
            return np.frombuffer(buffer.buffer.data, np.uint8, size, offset) if size else np.zeros(0, np.uint8)
        return buffer.vector(0, "u1")

    def on_integers(self, op: _Op) -> bool:
        """Whether everything that an operator takes and gives lies on a grid, but for constants that do not count."""
        given = [i for i in op.inputs if i >= 0 and (self.scales(i) or not len(self.data(i)))]
        made = [i for i in op.outputs if i >= 0]
        return bool(given and made) and all(self.kind(i) in WHOLE and self.scales(i) for i in (*given, *made))

    def read(self, part: str) -> list[FileTensor]:
        order = sorted(range(len(self.tables)), key=self._place)
        return [t for i in order if (t := self._tensor(i, part)) is not None]

    def _place(self, index: int) -> int:
        op = self.maker.get(index) or (self.reader[index][0] if index in self.reader else None)
        return int(op.name[1:]) if op else -1

    def _tensor(self, index: int, part: str) -> FileTensor | None:
        table, name = self.tables[index], self.name(index) + part
        quantization = table.table(4)
        if quantization is None or self.kind(index) not in WHOLE:
            return None
        shape = tuple(int(size) for size in table.vector(0, "<i4"))
        if min(shape, default=0) < 0:
            raise BadUpload(f"Tensor {name!r} has a negative size: {shape_text(shape)}. The file is damaged.")
        bits, signed = WHOLE[self.kind(index)]
        codes = self._codes(index, shape, bits, signed)
        grid = self._grid(index, quantization, shape)
        if grid is None:
            return None
        reader = self.reader.get(index)
        maker = self.maker.get(index)
        near = Near(
            *((reader[0].name + part, reader[0].kind) if reader else ("", "")),
            *((maker.name + part, maker.kind) if maker else ("", "")),
        )
        role: Role = "activation"
        if codes is not None:
            role = "bias" if reader is not None and BIAS_AT.get(reader[0].kind) == reader[1] else "weight"
        return checked(
            name, role, bits=bits, signed=signed, codes=codes, shape=shape, aliases=[name],
            near=near, **grid,
        )  # fmt: skip

    def _grid(self, index: int, quantization: Table, shape: tuple[int, ...]) -> dict[str, Any] | None:
        """scale, zero_point, axis and block_size; None where the tensor is not quantized."""
        axis = quantization.number(6, "<i")
        if quantization.number(4, "<B") == BLOCKS:
            return self._blocks(index, quantization, shape, axis)
        scale, zero_point = quantization.vector(2, "<f4"), quantization.vector(3, "<i8")
        if not len(scale):
            return None
        return {"scale": scale, "zero_point": zero_point if len(zero_point) else None, "axis": axis}

    def _blocks(self, index: int, quantization: Table, shape: tuple[int, ...], axis: int) -> dict[str, Any] | None:
        """Scales of blocks along the last axis lie in a tensor of their own, in float16."""
        details = quantization.table(5)
        held = -1 if details is None else details.number(0, "<i")
        size = 0 if details is None else details.number(2, "<i")
        if not (0 <= held < len(self.tables) and size > 0 and shape and self.kind(held) in (0, FLOAT16)):
            self.left_out["tensors in blocks whose scales were not found."] += 1
            return None
        data, dtype = self.data(held), np.dtype("<f2" if self.kind(held) == FLOAT16 else "<f4")
        due = (*shape[:-1], -(-shape[-1] // size))
        if len(data) != math.prod(due) * dtype.itemsize:
            raise BadUpload(
                f"Tensor {self.name(index)!r} of {shape_text(shape)} needs {math.prod(due):,} scales for its blocks of "
                f"{size:,}; the file has {len(data) // dtype.itemsize:,}. Convert the model again."
            )
        scale = np.frombuffer(data.tobytes(), dtype).astype(np.float32).reshape(due)
        points = self._block_points(0 if details is None else details.number(1, "<i"), due)
        return {"scale": scale, "zero_point": points, "axis": len(shape) - 1, "block_size": size}

    def _block_points(self, held: int, due: tuple[int, ...]) -> NDArray[Any] | None:
        """A zero point for each block; None where the file has none, which is how symmetric blocks are written."""
        if not 0 < held < len(self.tables) or self.kind(held) not in WHOLE:
            return None
        bits, signed = WHOLE[self.kind(held)]
        data, count = self.data(held), math.prod(due)
        if not len(data) or len(data) != -(-count * bits // 8):
            return None
        if bits < 8:
            return unpacked(data, bits, signed, count).reshape(due)
        return np.frombuffer(data.tobytes(), np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")).reshape(due)

    def _codes(self, index: int, shape: tuple[int, ...], bits: int, signed: bool) -> NDArray[Any] | None:
        data = self.data(index)
        if not len(data):
            return None
        where = f"Tensor {self.name(index)!r}"
        checked_bytes(shape, 1, where, DEFAULT_LIMITS)
        count = math.prod(shape)
        self.budget.take(count, where)
        if len(data) != -(-count * bits // 8):
            raise BadUpload(
                f"{where} declares the shape {shape_text(shape)} of {bits} bits, which is {-(-count * bits // 8):,} "
                f"bytes; it has {len(data):,}. The file is cut off or damaged: convert the model again."
            )
        if bits < 8:
            return unpacked(data, bits, signed, count).reshape(shape)
        return np.frombuffer(data.tobytes(), np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")).reshape(shape)
