"""Products of 8-bit codes, summed in the simulation as an integer kernel sums them: exactly.

A convolution or linear whose input and weight lie on such grids multiplies their codes, less the zero points, as whole
float32 numbers. float32 holds them and their sums exactly up to 2^24, which sums of real networks stay below. The scale
of a product, that of the input times that of the weight, comes in once, afterwards. Summing values instead, each a
rounded product of code and scale, rounds at every step and lands on the other side of a tie now and then.

    x ─ InputCodes ─┐
    WeightCodes ────┼─ convolution or linear ─ ProductScale ─>
    b ─ BiasCodes ──┘
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from qlab.quant.tensor import QuantizedTensor

if TYPE_CHECKING:
    from qlab.conversion import FakeQuantize


class _OnGrid(Protocol):
    """What says which grid it is on."""

    scale: Tensor
    quant_min: int
    quant_max: int
    axis: int | None


def sums_are_integer(grid: _OnGrid, weight: _OnGrid) -> bool:
    """Whether integer kernels multiply these: 8-bit codes, one grid for the input, no groups of weights."""
    return (
        not grid.scale.ndim
        and grid.quant_max - grid.quant_min < 256
        and weight.scale.ndim < 2
        and weight.quant_max - weight.quant_min < 256
        and weight.axis in (None, 0)
    )


class InputCodes(nn.Module):
    """Codes less the zero point, of an input that lies on this grid; same shape, whole numbers in float32."""

    def __init__(self, grid: FakeQuantize):
        super().__init__()
        self._grid = (grid,)  # in a tuple: it is registered once, where it belongs

    def in_steps(self, x: Tensor) -> Tensor:
        """x in steps of the grid, whole numbers only where x lies on it."""
        return x * float(self._grid[0].scale.reciprocal())

    def forward(self, x: Tensor) -> Tensor:
        return self.in_steps(x).round_()


class WeightCodes(nn.Module):
    """Codes less the zero points; shape of the weight, whole numbers in float32."""

    def __init__(self, weight: QuantizedTensor):
        super().__init__()
        self._weight = (weight,)

    def forward(self) -> Tensor:
        codes, zero_point = self._weight[0].codes.float(), self._weight[0].zero_point
        return codes - zero_point.reshape(-1, *[1] * (codes.ndim - 1)) if zero_point.ndim else codes - zero_point


class _ProductGrid(nn.Module):
    def __init__(self, grid: FakeQuantize, weight: QuantizedTensor):
        super().__init__()
        self._parts = (grid, weight)

    @property
    def scale(self) -> Tensor:
        """Of a product: [C] per channel of the output, [] per tensor."""
        grid, weight = self._parts
        return grid.scale * weight.scale


class BiasCodes(_ProductGrid):
    """A float bias in units of a product, rounded as integer kernels hold it; where that does not fit 32 bits, not
    rounded.

    Source: Jacob et al. 2018, section 2.4.
    """

    def codes(self, bias: Tensor) -> tuple[Tensor, Tensor]:
        """int64 codes and their float32 scale, [C] each or the scale [] per tensor."""
        scale = self.scale
        return torch.round(bias.detach().double() / scale.double()).long(), scale

    def forward(self, bias: Tensor) -> Tensor:
        codes, scale = self.codes(bias)
        return torch.where(codes.abs() < 2**31, codes.double(), bias.double() / scale.double()).to(bias.dtype)


class ProductScale(_ProductGrid):
    """Sums of products to values. channels: axis of the output channels. target: the grid that what comes out is put on
    next; rounding is then that of an integer kernel, which goes from sums to steps of this grid with one multiplier."""

    def __init__(self, grid: FakeQuantize, weight: QuantizedTensor, channels: int, target: FakeQuantize | None = None):
        super().__init__(grid, weight)
        self.channels = channels
        self._target = (target,)

    def forward(self, sums: Tensor) -> Tensor:
        (target,) = self._target
        scale = self.scale if target is None else self.scale / target.scale
        if scale.ndim:
            scale = scale.reshape([-1 if i == self.channels % sums.ndim else 1 for i in range(sums.ndim)])
        sums.mul_(scale)
        return sums if target is None else sums.round_().mul_(target.scale)
