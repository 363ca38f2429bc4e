"""Fake quantization bit for bit against torch, forward and backward; codes; groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig
from qlab.quant.fake_quant import (
    container,
    dequantize,
    fake_quantize,
    fake_quantize_,
    quantize,
    relu_fake_quantize,
)
from qlab.quant.qparams import QParams, choose_qparams


def qparams(scale: float, zero_point: int, low: int, high: int) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, high)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


LIMITS = [(-128, 127), (0, 255), (-8, 7), (0, 3), (-127, 127), (0, 65_535)]


@pytest.mark.peers
@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 9), (4, 8, 33, 31)], ids=str)
def test_per_tensor_bit_for_bit(shape: tuple[int, ...], limits: tuple[int, int]) -> None:
    low, high = limits
    g = torch.Generator().manual_seed(1)
    for scale in (0.03, 1e-3, 7.77, 2.0**-8, float(np.finfo(np.float32).eps)):
        for zero_point in (low, high, (low + high) // 2):
            x = torch.randn(shape, generator=g) * scale * (high - low) / 3
            if x.numel() > 3:
                x.view(-1)[:3] = torch.tensor([0.5, -0.5, 1.5]) * scale  # ties
            qp = qparams(scale, zero_point, low, high)
            expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
            assert same_bits(fake_quantize(x, qp), expected)
            rectified = torch.fake_quantize_per_tensor_affine(x.relu(), scale, zero_point, low, high)
            assert same_bits(relu_fake_quantize(x, qp), rectified)
            assert same_bits(fake_quantize_(x.clone(), qp, relu=True), rectified)
            assert same_bits(fake_quantize_(x.clone(), qp), expected)


@pytest.mark.peers
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("limits", LIMITS[:5], ids=str)
def test_per_channel_bit_for_bit(axis: int, limits: tuple[int, int]) -> None:
    low, high = limits
    g = torch.Generator().manual_seed(2)
    x = torch.randn(5, 6, 7, generator=g) * 3
    channels = x.shape[axis]
    scale = torch.rand(channels, generator=g) * 0.1 + 1e-3
    zero_point = torch.randint(low, high + 1, (channels,), generator=g, dtype=torch.int32)
    qp = QParams(scale, zero_point, low, high, axis % 3)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis % 3, low, high)
    assert same_bits(fake_quantize(x, qp), expected)
    rectified = torch.fake_quantize_per_channel_affine(x.relu(), scale, zero_point, axis % 3, low, high)
    assert same_bits(relu_fake_quantize(x, qp), rectified)
    assert same_bits(fake_quantize_(x.clone(), qp), expected)


@pytest.mark.peers
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=20),
    st.floats(2.0**-20, 2.0**20, width=32),
    st.integers(0, 255),
)
def test_any_value_bit_for_bit(values: list[float], scale: float, zero_point: int) -> None:
    x = torch.tensor(values)
    x = x.clamp(-scale * 2**40, scale * 2**40)  # beyond, torch's int64 overflows; see the test on huge values
    expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
    assert same_bits(fake_quantize(x, qparams(scale, zero_point, 0, 255)), expected)


def test_huge_infinite_and_nan_values() -> None:
    x = torch.tensor([3e38, -3e38, float("inf"), -float("inf"), float("nan")])
    y = fake_quantize(x, qparams(0.5, 10, 0, 255))
    assert y[:4].tolist() == [122.5, -5.0, 122.5, -5.0]
    assert bool(y[4].isnan())  # torch hides it as the lowest code


@pytest.mark.peers
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_gradient_is_torchs(per_channel: bool) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, 50, generator=g) * 3
    upstream = torch.randn(4, 50, generator=g)
    scale = torch.tensor([0.01, 0.02, 0.03, 0.5])
    zero_point = torch.tensor([0, 100, 255, 128], dtype=torch.int32)
    qp = QParams(scale, zero_point, 0, 255, 0) if per_channel else qparams(0.02, 100, 0, 255)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = fake_quantize(ours, qp)
    if per_channel:
        expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero_point, 0, 0, 255)
    else:
        expected = torch.fake_quantize_per_tensor_affine(theirs, 0.02, 100, 0, 255)
    assert same_bits(y.detach(), expected.detach())
    y.backward(upstream)
    expected.backward(upstream)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < int((ours.grad == 0).sum()) < ours.numel()


def test_gradient_through_relu_and_groups() -> None:
    x = torch.tensor([[-1.0, 0.4, 3.0, 90.0]], requires_grad=True)
    y = relu_fake_quantize(x, qparams(0.5, 0, 0, 15))
    assert y.tolist() == [[0.0, 0.5, 3.0, 7.5]]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    x = torch.tensor([[-1.0, 0.4, 3.0, 90.0]], requires_grad=True)
    qp = QParams(torch.tensor([[0.5, 1.0]]), torch.zeros(1, 2, dtype=torch.int32), -8, 7, 0, 2)
    y = fake_quantize(x, qp)
    assert y.tolist() == [[-1.0, 0.5, 3.0, 7.0]]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_without_gradient_the_input_is_left_alone() -> None:
    x = torch.randn(10)
    kept = x.clone()
    fake_quantize(x, qparams(0.1, 0, -8, 7))
    relu_fake_quantize(x, qparams(0.1, 0, -8, 7))
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(8),
        QuantSpec(16),
        QuantSpec(16, "per_tensor_symmetric"),
        QuantSpec(3, "per_channel_affine"),
        QuantSpec(4, "per_group_symmetric", group_size=6),
        QuantSpec(4, "per_group_affine", group_size=4),
        QuantSpec(8, "per_channel_symmetric", narrow_range=True),
    ],
    ids=str,
)
def test_codes_and_back_is_fake_quantize(spec: QuantSpec) -> None:
    x = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    qp = choose_qparams(x, spec)
    codes = quantize(x, qp)
    assert codes.shape == x.shape
    assert codes.dtype == container(spec.quant_min, spec.quant_max)
    assert spec.quant_min <= int(codes.min()) <= int(codes.max()) <= spec.quant_max
    assert torch.equal(dequantize(codes, qp), fake_quantize(x, qp))
    # what is on the grid stays there
    assert torch.equal(quantize(dequantize(codes, qp), qp), codes)


def test_rounding_by_hand() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 100.0, -100.0])
    assert quantize(x, qparams(1.0, 0, -8, 7)).tolist() == [0, 2, 2, 0, 7, -8]
    assert quantize(x, qparams(1.0, 3, 0, 15)).tolist() == [3, 5, 5, 3, 15, 0]


@pytest.mark.parametrize(
    ("limits", "dtype"),
    [
        ((-128, 127), torch.int8),
        ((0, 127), torch.int8),
        ((0, 255), torch.uint8),
        ((-32_768, 32_767), torch.int16),
        ((0, 65_535), torch.int32),
    ],
    ids=str,
)
def test_smallest_container(limits: tuple[int, int], dtype: torch.dtype) -> None:
    assert container(*limits) == dtype


@pytest.mark.parametrize(
    ("qp", "message"),
    [
        (QParams(torch.ones(3), torch.zeros(3, dtype=torch.int32), -8, 7, 0), "3 channels of scales do not fit axis 0"),
        (QParams(torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.int32), -8, 7, 0, 2), "2 groups of 2 in a channel"),
        (QParams(torch.ones(6, 2), torch.zeros(6, 2, dtype=torch.int32), -8, 7, 1, 2), "groups run along"),
    ],
    ids=["channels", "groups", "axis"],
)
def test_scales_that_do_not_fit(qp: QParams, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        fake_quantize(torch.ones(4, 6), qp)
