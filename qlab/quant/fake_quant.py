"""Quantize, dequantize, and both at once in float.

fake_quantize gives the bits of torch.fake_quantize_per_tensor_affine and _per_channel_affine, at about a tenth of their
time: their kernel goes through int64 one value at a time and writes a mask, four vectorised passes do not. One case
differs: NaN stays NaN here, where torch turns it into the lowest code and so hides it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qlab.errors import InvalidConfig
from qlab.quant.qparams import QParams

_CONTAINERS = (torch.int8, torch.uint8, torch.int16, torch.int32)


def fake_quantize(x: torch.Tensor, qp: QParams) -> torch.Tensor:
    """x' = (clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point) * scale; same shape, float32.

    The division is a multiplication with the float32 reciprocal, as in torch. Gradient: that of x where the code is
    within the range, zero outside (straight-through). Raises InvalidConfig when qp does not fit the shape.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        result: torch.Tensor = _StraightThrough.apply(x, qp)
        return result
    return _forward(x, qp, relu=False)


def relu_fake_quantize(x: torch.Tensor, qp: QParams) -> torch.Tensor:
    """fake_quantize(relu(x)), for the price of fake_quantize: the clamp does both."""
    if torch.is_grad_enabled() and x.requires_grad:
        return fake_quantize(torch.relu(x), qp)
    return _forward(x, qp, relu=True)


def fake_quantize_(x: torch.Tensor, qp: QParams, relu: bool = False) -> torch.Tensor:
    """fake_quantize (of relu(x)) in place, for a tensor nobody else reads; no gradient."""
    return _forward(x, qp, relu=relu, out=x)


def quantize(x: torch.Tensor, qp: QParams) -> torch.Tensor:
    """Codes clamp(round(x / scale) + zero_point, quant_min, quant_max), shape of x, in the smallest type that fits."""
    scale, zero_point, shape = _broadcast(x, qp)
    codes = (x.detach().to(torch.float32).reshape(shape) * scale.reciprocal()).round_()
    codes = codes.add_(zero_point).clamp_(qp.quant_min, qp.quant_max)
    return codes.to(container(qp.quant_min, qp.quant_max)).reshape(x.shape)


def dequantize(codes: torch.Tensor, qp: QParams) -> torch.Tensor:
    """(codes - zero_point) * scale, shape of codes, float32."""
    scale, zero_point, shape = _broadcast(codes, qp)
    # int32 first: codes minus zero point leaves the container of the codes.
    return ((codes.reshape(shape).to(torch.int32) - zero_point) * scale).reshape(codes.shape)


def container(quant_min: int, quant_max: int) -> torch.dtype:
    """The smallest of int8, uint8, int16, int32 that holds the codes."""
    for dtype in _CONTAINERS:
        if torch.iinfo(dtype).min <= quant_min and quant_max <= torch.iinfo(dtype).max:
            return dtype
    raise InvalidConfig(f"codes {quant_min}..{quant_max} do not fit 32 bits.")


def _forward(x: torch.Tensor, qp: QParams, relu: bool, out: torch.Tensor | None = None) -> torch.Tensor:
    x = x.detach()
    if qp.scale.ndim == 0:
        # Floats instead of tensors of one element: each pass is then one vectorised loop without broadcasting.
        scale = np.float32(qp.scale.item())
        inverse = float(np.float32(1) / scale)
        zero_point = int(qp.zero_point.item())
        low = 0 if relu else qp.quant_min - zero_point
        y = torch.mul(x, inverse, out=out) if out is not None else x * inverse
        y.round_().clamp_(low, qp.quant_max - zero_point)
        # 0 + scale * y, not scale * y: torch returns +0 for every zero, a product keeps the sign of -0.
        return torch.add(_ZERO, y, alpha=float(scale), out=y)
    scales, zero_points, shape = _broadcast(x, qp)
    low_code = qp.quant_min - zero_points
    if relu:
        low_code = low_code.clamp(min=0)
    y = x.reshape(shape) * scales.reciprocal()
    y.round_()
    torch.clamp(y, low_code.to(y.dtype), (qp.quant_max - zero_points).to(y.dtype), out=y)
    y = y.mul_(scales).add_(0.0).reshape(x.shape)
    return y if out is None else out.copy_(y)


_ZERO = torch.zeros(())


def _broadcast(x: torch.Tensor, qp: QParams) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """scale and zero point ready to broadcast over x seen in the returned shape."""
    scale, zero_point = qp.scale, qp.zero_point
    if scale.ndim == 0:
        return scale, zero_point, tuple(x.shape)
    axis = (qp.axis or 0) % max(x.ndim, 1)
    if x.ndim == 0 or x.shape[axis] != scale.shape[0]:
        raise InvalidConfig(f"{scale.shape[0]} channels of scales do not fit axis {axis} of shape {list(x.shape)}.")
    if scale.ndim == 1:
        view = [1] * x.ndim
        view[axis] = -1
        return scale.reshape(view), zero_point.reshape(view), tuple(x.shape)
    groups, size = scale.shape[1], qp.group_size or 0
    if axis != 0:
        raise InvalidConfig(f"groups run along what lies behind axis 0; these have axis {axis}.")
    if groups * size * x.shape[0] != x.numel():
        raise InvalidConfig(f"{groups} groups of {size} in a channel do not fit shape {list(x.shape)}.")
    return scale[:, :, None], zero_point[:, :, None], (x.shape[0], groups, size)


class _StraightThrough(torch.autograd.Function):
    """Forward as without gradient; backward lets through what was not clipped."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, qp: QParams) -> torch.Tensor:
        scale, zero_point, shape = _broadcast(x, qp)
        codes = (x.detach().reshape(shape) * scale.reciprocal()).round_()
        low, high = qp.quant_min - zero_point, qp.quant_max - zero_point
        ctx.save_for_backward(((codes >= low) & (codes <= high)).reshape(x.shape))
        torch.clamp(codes, low.to(codes.dtype), high.to(codes.dtype), out=codes)
        return codes.mul_(scale).add_(0.0).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None
