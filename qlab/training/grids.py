"""Fake quantization that trains: the straight-through gradient, ranges that follow the data, steps that are learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlab.config import QuantSpec
from qlab.quant.observers import EPS, Grid
from qlab.quant.qparams import QParams

aten = torch.ops.aten


class GridPass(torch.autograd.Function):
    """Fake quantization on a grid of one scale, straight-through. Arguments: x, scale [], zero_point, quant_min,
    quant_max, after_relu (of relu(x)), strength (of the gradient of the scale). Gradients as in `ChannelPass`.

    Forward as `qlab.fake_quantize`, in passes that vectorise; torch's own kernel for this goes value by value.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: int, quant_min: int, quant_max: int, after_relu: bool,
        strength: float,
    ) -> Tensor:  # fmt: skip
        step = np.float32(scale.item())
        low, high = quant_min - zero_point, quant_max - zero_point
        steps = x * float(np.float32(1) / step)
        ctx.save_for_backward(steps, scale)
        ctx.ends = max(low, 0) if after_relu else low, high
        ctx.inside = 0.0 if after_relu and low <= 0 else low - _REACH, high + _REACH
        ctx.strength = strength
        out = steps.round()
        out.clamp_(*ctx.ends)
        return torch.add(_ZERO, out, alpha=float(step), out=out)  # 0 + …: no zero keeps a minus sign

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        steps, scale = ctx.saved_tensors
        (grad,) = grads
        passed = aten.hardtanh_backward(grad, steps, *ctx.inside)
        total = None
        if ctx.needs_input_grad[1]:
            # Inside, what rounding added, in steps; outside, the end of the grid.
            moved = steps.round().clamp_(*ctx.ends).sub_(aten.hardtanh_backward(steps, steps, *ctx.inside))
            total = torch.dot(grad.reshape(-1), moved.reshape(-1)).reshape(scale.shape) * ctx.strength
        return passed, total, None, None, None, None, None


_ZERO = torch.zeros(())
# A value half a step beyond the last code lies on the end of the range that its grid was laid over, and rounds to one
# that is clipped. It is no further out than the range, and goes on learning.
_REACH = 0.5 + 1e-4


class ChannelPass(torch.autograd.Function):
    """Fake quantization with several scales, straight-through. Arguments: x, scale and zero_point shaped to broadcast
    over it, quant_min, quant_max, strength (of the gradient of the scale).

    d out / d scale = code - x / scale inside the grid, the end code outside it, zero points taken off; summed over what
    shares a scale and multiplied by `strength`. d out / d x: straight-through, zero outside.
    Source: Esser et al. 2020, eq. 3, with zero points as in Bhalgat et al. 2020, eq. 7.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, strength: float
    ) -> Tensor:
        steps = x * scale.reciprocal()
        low, high = (quant_min - zero_point).float(), (quant_max - zero_point).float()
        codes = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, codes, (steps >= low - _REACH) & (steps <= high + _REACH), scale)
        ctx.strength = strength
        return codes * scale + 0.0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        steps, codes, inside, scale = ctx.saved_tensors
        (grad,) = grads
        total = None
        if ctx.needs_input_grad[1]:
            total = (grad * (codes - steps * inside)).sum_to_size(scale.shape) * ctx.strength
        return grad * inside, total, None, None, None, None


class TrainedGrid(nn.Module):
    """Fake quantization of one weight or activation while it is trained; shapes as in QParams.

    It starts on the calibrated grid. ranges "moving_average": the range follows the extremes of what comes in, each of
    its ends kept at the share of them at which the observer had put it, `averaging_constant` of the way with each call.
    "lsq": the scale is learned, as a multiple (`factor`) of the calibrated one, so that one learning rate fits all.
    freeze() ends both. low, high: the ends of the range that moves.
    Raises InvalidConfig through what it calls when shapes do not fit.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    frozen: Tensor
    start_scale: Tensor

    def __init__(
        self, start: QParams, spec: QuantSpec, extremes: tuple[Tensor, Tensor], *, ranges: str,
        averaging_constant: float, batched: bool, after_relu: bool = False,
    ):  # fmt: skip
        """extremes: lowest and highest value as they usually come in, shaped like the scale; what the range is a share
        of. batched: whether the first axis counts samples, as in activations."""
        super().__init__()
        self.quant_min, self.quant_max, self.axis, self.group_size = (
            start.quant_min, start.quant_max, start.axis, start.group_size
        )  # fmt: skip
        self.grid = Grid(spec.quant_min, spec.quant_max, spec.symmetric, spec.signed)
        self.spec, self.batched, self.after_relu = spec, batched, after_relu
        self.learned = ranges == "lsq"
        self.averaging_constant = averaging_constant
        low, high = _range_of(start, self.grid)
        self.register_buffer("scale", start.scale.detach().clone().float())
        self.register_buffer("zero_point", start.zero_point.detach().clone().int())
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("frozen", torch.tensor(False))
        least, most = self._sides(*extremes)
        nothing = float(EPS) * self.grid.steps / 2  # what the smallest scale covers
        self.low_share, self.high_share = _share(low, least, nothing), _share(high, most, nothing)
        if self.learned:
            self.register_buffer("start_scale", self.scale.clone())
            self.factor = nn.Parameter(torch.ones_like(self.scale))

    @property
    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis, self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.learned and not self.frozen:
            self.observe(torch.relu(x.detach()) if self.after_relu else x.detach())
        learning = self.learned and self.training and not bool(self.frozen)
        scale = self.start_scale * self.factor if learning else self.scale
        if not scale.ndim:
            out: Tensor = GridPass.apply(
                x, scale, int(self.zero_point), self.quant_min, self.quant_max, self.after_relu,
                self.strength(x) if learning else 1.0,
            )  # fmt: skip
            return out
        rows, shape = self._rows(torch.relu(x) if self.after_relu else x)
        out = ChannelPass.apply(
            rows, scale.reshape(shape), self.zero_point.reshape(shape), self.quant_min, self.quant_max,
            self.strength(x) if learning else 1.0,
        )  # fmt: skip
        return out.reshape(x.shape)

    def strength(self, x: Tensor) -> float:
        """What the gradient of the scale is multiplied by: 1 / sqrt(N Q), N values behind a scale (of one sample),
        Q steps above zero. Source: Esser et al. 2020, section 2.2."""
        values = x.numel() / (len(x) if self.batched else 1) / self.scale.numel()
        return float((values * max(self.quant_max - int(self.zero_point.min()), 1)) ** -0.5)

    def observe(self, x: Tensor) -> None:
        """Move the range towards the extremes of x."""
        least, most = self._sides(*extremes_of(x, self.qparams))
        low, high = self.low.numpy(), self.high.numpy()  # the buffers themselves
        low += self.averaging_constant * (self.low_share.numpy() * least.numpy() - low)
        high += self.averaging_constant * (self.high_share.numpy() * most.numpy() - high)
        scale, zero_point = self.grid.scale_zero_point(low, high)
        self.scale.numpy()[...] = scale
        self.zero_point.numpy()[...] = zero_point

    def positions(self, x: Tensor) -> Tensor:
        """Where the values lie on the grid, in codes, before rounding and clipping; same shape."""
        if not self.scale.ndim:
            return x / self.scale + self.zero_point
        rows, shape = self._rows(x)
        return (rows / self.scale.reshape(shape) + self.zero_point.reshape(shape)).reshape(x.shape)

    def stepped(self) -> None:
        """After the optimiser's step: take over the learned scale, kept above the smallest allowed."""
        if self.learned and not self.frozen:
            scale, factor, start = self.scale.numpy(), self.factor.detach().numpy(), self.start_scale.numpy()
            scale[...] = np.maximum(start * factor, EPS)
            factor[...] = scale / start

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Of the range the grid is laid over, shaped like the scale."""
        return _range_of(self.qparams, self.grid) if self.learned else (self.low, self.high)

    def freeze(self) -> None:
        """From now on the grid stays."""
        self.frozen.fill_(True)
        if self.learned:
            self.factor.requires_grad_(False)

    def _rows(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """x as several scales go over it, and the shape in which they do."""
        if self.group_size is not None:
            return x.reshape(-1, self.group_size), [-1, 1]
        return x, [-1 if i == (self.axis or 0) % x.ndim else 1 for i in range(x.ndim)]

    def _sides(self, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """What the ends of the range are measured against: the same on both sides where the grid is symmetric."""
        if self.spec.symmetric:
            reach = torch.maximum(-least, most).clamp(min=0)
            return -reach, reach
        return least.clamp(max=0), most.clamp(min=0)


class TrainedBias(nn.Module):
    """A bias [C] rounded to whole products of these two grids, as integer kernels hold it; straight-through gradient.

    Source: Jacob et al. 2018, section 2.4.
    """

    def __init__(self, grid: TrainedGrid, weight: TrainedGrid):
        super().__init__()
        self._grids = (grid, weight)  # in a tuple: they are registered once, where they belong

    def forward(self, bias: Tensor) -> Tensor:
        grid, weight = self._grids
        step = (grid.scale * weight.scale).double()  # the product as `BiasCodes` has it
        value = bias.detach().double()
        return bias + ((value / step).round() * step - value).to(bias.dtype)


def extremes_of(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of x behind each scale, shaped like the scale."""
    if not qparams.scale.ndim:
        low, high = torch.aminmax(x)
        return low, high
    if qparams.group_size is not None:
        rows = x.reshape(-1, qparams.group_size)
    else:
        rows = x.movedim(qparams.axis or 0, 0).reshape(x.shape[qparams.axis or 0], -1)
    low, high = torch.aminmax(rows, dim=1)
    return low.reshape(qparams.scale.shape), high.reshape(qparams.scale.shape)


def _range_of(qparams: QParams, grid: Grid) -> tuple[Tensor, Tensor]:
    """The range a grid was laid over."""
    if grid.symmetric:
        reach = qparams.scale.detach().float() * (grid.steps / 2)
        return -reach, reach.clone()
    return qparams.low.detach().float().clone(), qparams.high.detach().float().clone()


def _share(end: Tensor, extreme: Tensor, nothing: float) -> Tensor:
    """1 where there is nothing to be a share of: a dead channel has the smallest scale, which no extreme led to."""
    there = extreme.abs() > nothing
    return torch.where(there, end / torch.where(there, extreme, torch.ones_like(extreme)), torch.ones_like(end))
