"""Tables of a flatbuffer, read one field at a time; every offset and length is held against the buffer.

Written here because the readers that are generated from a schema trust the offsets they follow.
Source: flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from qlab.errors import BadUpload

MAX_TABLES = 2_000_000  # followed in one file: vectors of tables may share tables, so their number has no other bound
MAX_TEXT = 4_096


class Buffer:
    """The bytes, and how many tables were followed in them."""

    def __init__(self, data: bytes, name: str):
        self.data, self.name, self.followed = data, name, 0

    def number(self, at: int, form: str) -> Any:
        """One number (a struct format) at this position."""
        self.need(at, struct.calcsize(form))
        return struct.unpack_from(form, self.data, at)[0]

    def need(self, at: int, size: int) -> None:
        """Raises BadUpload unless so many bytes are there."""
        if at < 0 or size < 0 or at + size > len(self.data):
            self.broken(f"an offset leads to byte {at + size:,} of {len(self.data):,}")

    def broken(self, what: str) -> NoReturn:
        raise BadUpload(f"{self.name!r} is damaged: {what}. It is cut off or altered: write it again.")

    def root(self) -> Table:
        return Table(self, self.number(0, "<I"))


class Table:
    """A table at a position; fields by their number in the schema, with the default where one is not stored."""

    def __init__(self, buffer: Buffer, at: int):
        buffer.followed += 1
        if buffer.followed > MAX_TABLES:
            buffer.broken(f"it refers to more than {MAX_TABLES:,} tables")
        self.buffer, self.at = buffer, at
        self.fields = at - buffer.number(at, "<i")
        self.length = buffer.number(self.fields, "<H")
        buffer.need(self.fields, self.length)

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self.length:
            return None
        offset = self.buffer.number(self.fields + entry, "<H")
        return self.at + offset if offset else None

    def number(self, field: int, form: str, default: int = 0) -> Any:
        place = self._place(field)
        return default if place is None else self.buffer.number(place, form)

    def _behind(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + self.buffer.number(place, "<I")

    def table(self, field: int) -> Table | None:
        place = self._behind(field)
        return None if place is None else Table(self.buffer, place)

    def text(self, field: int) -> str:
        """A text, cut at a length that no name has."""
        return bytes(self.vector(field, "u1")[:MAX_TEXT]).decode("utf-8", errors="replace")

    def vector(self, field: int, dtype: str) -> NDArray[Any]:
        """A vector of numbers, as a view of the bytes; empty where there is none."""
        place = self._behind(field)
        if place is None:
            return np.zeros(0, dtype)
        count, size = self.buffer.number(place, "<I"), np.dtype(dtype).itemsize
        self.buffer.need(place + 4, count * size)
        return np.frombuffer(self.buffer.data, dtype, count, place + 4) if count else np.zeros(0, dtype)

    def tables(self, field: int) -> list[Table]:
        place = self._behind(field)
        if place is None:
            return []
        offsets = self.vector(field, "<u4")
        return [Table(self.buffer, place + 4 + 4 * i + int(offset)) for i, offset in enumerate(offsets)]
