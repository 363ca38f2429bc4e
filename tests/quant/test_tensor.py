"""QuantizedTensor and the packing of its codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.config import QuantSpec
from qlab.errors import DataMismatch, InvalidConfig
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.packing import pack, unpack
from qlab.quant.qparams import choose_qparams
from qlab.quant.tensor import QuantizedTensor


def quantized(spec: QuantSpec, shape: tuple[int, ...] = (4, 3, 2, 2)) -> tuple[torch.Tensor, QuantizedTensor]:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return w, QuantizedTensor.from_float(w, choose_qparams(w, spec))


def test_buffers_are_the_truth() -> None:
    _, t = quantized(QuantSpec(8, "per_channel_symmetric"))
    t.codes[0, 0, 0, 0] = 100
    t.scale[0] = 0.25
    assert float(t()[0, 0, 0, 0]) == 25.0
    assert float(t.dequantize()[0, 0, 0, 0]) == 25.0
    assert int(t.state_dict()["codes"][0, 0, 0, 0]) == 100
    assert set(t.state_dict()) == {"codes", "scale", "zero_point"}
    assert t.qparams.scale.data_ptr() == t.scale.data_ptr()


def test_state_dict_round_trip() -> None:
    _, a = quantized(QuantSpec(8, "per_channel_affine"))
    b = QuantizedTensor.from_float(torch.zeros(4, 3, 2, 2), a.qparams)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(), b())


def test_from_float_copies_the_qparams() -> None:
    w = torch.randn(3, 4)
    qp = choose_qparams(w, QuantSpec(qscheme="per_channel_symmetric"))
    t = QuantizedTensor.from_float(w, qp)
    t.scale.fill_(9.0)
    assert not torch.equal(qp.scale, t.scale)


@pytest.mark.parametrize(
    ("spec", "bits", "codes", "scales", "zero_points"),
    [
        (QuantSpec(8, "per_tensor_symmetric"), 8, 48, 4, 0),
        (QuantSpec(8, "per_channel_affine"), 8, 48, 16, 4),
        (QuantSpec(4, "per_channel_symmetric"), 4, 24, 16, 0),
        (QuantSpec(3, "per_group_affine", group_size=6), 3, 18, 32, 8),
        (QuantSpec(4, "per_channel_symmetric", narrow_range=True), 4, 24, 16, 0),
        (QuantSpec(2, "per_tensor_affine"), 2, 12, 4, 1),
    ],
    ids=str,
)
def test_bytes(spec: QuantSpec, bits: int, codes: int, scales: int, zero_points: int) -> None:
    w, t = quantized(spec)
    size = t.size_breakdown()
    assert (t.bits, size.codes, size.scales, size.zero_points) == (bits, codes, scales, zero_points)
    assert t.packed_bytes == codes + scales + zero_points
    assert t.packed().numel() == codes
    assert torch.equal(t(), fake_quantize(w, t.qparams))
    before = t.codes.clone()
    packed = t.packed()
    t.codes.zero_()
    t.set_packed(packed)
    assert torch.equal(t.codes, before)


def test_what_does_not_fit() -> None:
    one, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
    with pytest.raises(InvalidConfig, match="whole numbers"):
        QuantizedTensor(torch.ones(3), one, zero, -8, 7)
    with pytest.raises(InvalidConfig, match="do not fit"):
        QuantizedTensor(torch.ones(3, dtype=torch.int8), torch.ones(2), torch.zeros(2, dtype=torch.int32), -8, 7, 0)
    with pytest.raises(InvalidConfig, match="do not fit"):
        QuantizedTensor(torch.ones(3, dtype=torch.int8), torch.ones(3), zero, -8, 7, 0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pack_round_trip(bits: int, signed: bool, data: st.DataObject) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = data.draw(st.lists(st.integers(low, high), max_size=40))
    codes = torch.tensor(values, dtype=torch.int8 if signed else torch.uint8)
    packed = pack(codes, bits, signed)
    assert packed.numel() == -(-len(values) * bits // 8)
    assert torch.equal(unpack(packed, bits, signed, codes.shape), codes)


def test_layout_by_hand() -> None:
    assert pack(torch.tensor([1, 2, 3]), 4, False).tolist() == [0x21, 0x03]  # low nibble first
    assert pack(torch.tensor([-1, -8]), 4, True).tolist() == [0x8F]
    assert pack(torch.tensor([7, 0, 5]), 3, False).tolist() == [0b01_000_111, 0b1]  # 5 = 0b101 crosses the byte
    assert unpack(torch.tensor([0x8F], dtype=torch.uint8), 4, True, (1, 2)).tolist() == [[-1, -8]]


def test_packing_refuses() -> None:
    with pytest.raises(DataMismatch, match=r"-1\.\.8 do not fit 4 bits"):
        pack(torch.tensor([-1, 8]), 4, True)
    with pytest.raises(InvalidConfig, match="9 bits"):
        pack(torch.tensor([1]), 9, True)
    with pytest.raises(DataMismatch, match="do not hold 5 codes"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, True, (5,))
