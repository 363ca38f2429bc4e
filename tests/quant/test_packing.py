"""Packing: exact for every width, sign and size, whatever the layout in memory; and whose bits lie in which byte."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import DataMismatch, InvalidConfig
from qlab.quant.packing import bits_in_bytes, pack, unpack

every_width = pytest.mark.parametrize("bits", range(2, 9))
both_signs = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def limits(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def drawn(shape: tuple[int, ...], bits: int, signed: bool, seed: int = 0) -> torch.Tensor:
    low, high = limits(bits, signed)
    codes = torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))
    return codes.to(torch.int8 if signed else torch.uint8)


def by_hand(codes: list[int], bits: int) -> list[int]:
    """The bytes of a stream of bits, written as one large number."""
    number = sum((code % 2**bits) << (i * bits) for i, code in enumerate(codes))
    return list(number.to_bytes(-(-len(codes) * bits // 8), "little"))


def exact(codes: torch.Tensor, bits: int, signed: bool) -> None:
    packed = pack(codes, bits, signed)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == by_hand(codes.reshape(-1).tolist(), bits)
    back = unpack(packed, bits, signed, codes.shape)
    assert back.dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(back.to(torch.int32), codes.to(torch.int32))


@every_width
@both_signs
def test_every_code_at_every_place_of_a_byte_comes_back(bits: int, signed: bool) -> None:
    low, high = limits(bits, signed)
    for before in range(8):  # codes in front move it through all places that a code of this width can begin at
        for code in range(low, high + 1):
            exact(torch.tensor([high] * before + [code, low]), bits, signed)


@both_signs
def test_every_row_of_three_codes_of_two_bits_comes_back(signed: bool) -> None:
    low, high = limits(2, signed)
    for codes in itertools.product(range(low, high + 1), repeat=3):
        exact(torch.tensor(codes), 2, signed)


@every_width
@both_signs
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 7, 8, 9, 15, 17, 31, 63, 65, 127, 1001])
def test_odd_sizes_come_back(bits: int, signed: bool, size: int) -> None:
    exact(drawn((size,), bits, signed), bits, signed)


@every_width
@both_signs
def test_empty_tensors_keep_their_shape(bits: int, signed: bool) -> None:
    for shape in ((0,), (0, 3), (4, 0, 2)):
        packed = pack(drawn(shape, bits, signed), bits, signed)
        assert packed.numel() == 0
        assert unpack(packed, bits, signed, shape).shape == shape


@every_width
@both_signs
def test_what_is_not_contiguous_is_packed_in_the_order_it_is_read(bits: int, signed: bool) -> None:
    codes = drawn((5, 6, 7), bits, signed)
    for view in (codes.transpose(0, 2), codes[:, ::2], codes[1:, :, 3], codes.permute(2, 0, 1)[::3], codes[0].T):
        assert not view.is_contiguous()
        exact(view, bits, signed)
    expanded = codes[:, :1, :1].expand(5, 4, 3)
    exact(expanded, bits, signed)


def test_a_single_code_without_dimensions_comes_back() -> None:
    exact(torch.tensor(-3, dtype=torch.int8), 3, True)


@given(data=st.data(), bits=st.integers(2, 8), signed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_shape_comes_back(data: st.DataObject, bits: int, signed: bool) -> None:
    shape = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    low, high = limits(bits, signed)
    size = int(np.prod(shape))
    values = data.draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
    codes = torch.tensor(values, dtype=torch.int16).reshape(shape)
    exact(codes.permute(*data.draw(st.permutations(range(len(shape))))), bits, signed)


# --- whose bits ---------------------------------------------------------------------------------------------------


def test_bits_by_hand() -> None:
    found = bits_in_bytes(3, 3)  # nine bits: the third code lies in two bytes
    assert found.byte.tolist() == [0, 1]
    assert found.code.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2], [2, -1, -1, -1, -1, -1, -1, -1]]
    assert found.bit.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [2, -1, -1, -1, -1, -1, -1, -1]]
    assert bits_in_bytes(4, 4).code.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3, 3, 3]]


@given(data=st.data(), n=st.integers(0, 60), bits=st.integers(2, 8), signed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_codes_can_be_put_together_from_the_bits_named(
    data: st.DataObject, n: int, bits: int, signed: bool
) -> None:
    codes = drawn((n,), bits, signed, seed=data.draw(st.integers(0, 99)))
    packed = pack(codes, bits, signed).numpy()
    first = data.draw(st.integers(0, len(packed)))
    count = data.draw(st.integers(0, len(packed) + 3))
    some, whole = bits_in_bytes(n, bits, first, count), bits_in_bytes(n, bits)
    assert whole.byte.tolist() == list(range(len(packed)))
    for part in ("byte", "code", "bit"):
        assert np.array_equal(getattr(some, part), getattr(whole, part)[first : first + count])
    digits = np.unpackbits(packed[:, None], axis=1, bitorder="little")
    assert not digits[whole.code < 0].any()  # what fills up the last byte
    built = np.zeros(n, dtype=np.int64)
    np.add.at(
        built, whole.code[whole.code >= 0], (digits.astype(np.int64) << np.maximum(whole.bit, 0))[whole.code >= 0]
    )
    assert built.tolist() == [code % 2**bits for code in codes.tolist()]


def test_other_widths_and_codes_beyond_are_refused() -> None:
    for bits in (0, 1, 9):
        with pytest.raises(InvalidConfig, match=f"codes of {bits} bits"):
            bits_in_bytes(4, bits)
    with pytest.raises(DataMismatch, match="do not fit 2 bits"):
        pack(torch.tensor([2]), 2, True)
    with pytest.raises(DataMismatch, match="do not hold 3 codes"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, True, (3,))
