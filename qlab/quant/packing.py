"""Codes of 2 to 8 bits, packed without gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.errors import DataMismatch, InvalidConfig


@dataclass(frozen=True, eq=False)
class BitMap:
    """Whose bits lie in a stretch of packed bytes.

    byte: [b] indices of the bytes. code: [b, 8] index of the code that each bit belongs to, and bit: [b, 8] which of
    its bits it is; lowest bit of the byte first, both -1 for the zeros that fill up the last byte.
    """

    byte: NDArray[np.int64]
    code: NDArray[np.int64]
    bit: NDArray[np.int64]


def pack(codes: torch.Tensor, bits: int, signed: bool) -> torch.Tensor:
    """Codes of any shape as a little-endian bit stream, uint8 [ceil(n * bits / 8)].

    Code i takes the bits i * bits .. (i + 1) * bits - 1, lowest first: of two 4-bit codes the first is the low nibble.
    Signed codes are in two's complement. The last byte is filled with zeros.
    Raises InvalidConfig for a width outside 2..8, DataMismatch for a code that does not fit it.
    """
    low, high = _limits(bits, signed)
    flat = codes.reshape(-1).to(torch.int32)
    if flat.numel() and not low <= int(flat.min()) <= int(flat.max()) <= high:
        raise DataMismatch(f"codes {int(flat.min())}..{int(flat.max())} do not fit {bits} bits ({low}..{high}).")
    raw = flat.numpy().astype(np.uint8)  # wraps: the low bits of two's complement
    if bits == 8:
        return torch.from_numpy(raw)
    stream = np.unpackbits(raw[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(stream.reshape(-1), bitorder="little"))


def unpack(packed: torch.Tensor, bits: int, signed: bool, shape: Sequence[int]) -> torch.Tensor:
    """The codes that pack was given: int8 signed, uint8 not, of this shape. Raises InvalidConfig, DataMismatch."""
    _limits(bits, signed)
    n = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != -(-n * bits // 8):
        raise DataMismatch(f"{packed.numel()} bytes of {packed.dtype} do not hold {n} codes of {bits} bits.")
    stream = np.unpackbits(packed.reshape(-1).numpy(), count=n * bits, bitorder="little").reshape(n, bits)
    codes: NDArray[Any] = np.packbits(stream, axis=1, bitorder="little")[:, 0] if n else np.empty(0, np.uint8)
    if signed:
        codes = (codes << (8 - bits)).view(np.int8) >> (8 - bits)  # carries the sign bit up
    return torch.from_numpy(codes.reshape(tuple(shape)))


def bits_in_bytes(n: int, bits: int, first: int = 0, count: int | None = None) -> BitMap:
    """Whose bits lie in `count` bytes from `first` on, of n codes that pack packed at this width.

    What reaches beyond the last byte is left out; None: to the end. Raises InvalidConfig for a width outside 2..8.
    """
    _limits(bits, False)
    end = -(-n * bits // 8)
    last = end if count is None else min(first + count, end)
    byte = np.arange(max(first, 0), max(last, first, 0), dtype=np.int64)
    at = byte[:, None] * 8 + np.arange(8)
    used = at < n * bits
    return BitMap(byte, np.where(used, at // bits, -1), np.where(used, at % bits, -1))


def _limits(bits: int, signed: bool) -> tuple[int, int]:
    if not 2 <= bits <= 8:
        raise InvalidConfig(f"codes of {bits} bits cannot be packed: 2 to 8 can.")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
