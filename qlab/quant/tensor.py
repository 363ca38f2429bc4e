"""A weight held as integer codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from qlab.errors import InvalidConfig
from qlab.quant.fake_quant import dequantize, quantize
from qlab.quant.packing import pack, unpack
from qlab.quant.qparams import QParams


@dataclass(frozen=True)
class SizeBreakdown:
    """Bytes of a quantized tensor as stored: codes packed at their bits, 4 bytes a scale, zero points if any."""

    codes: int
    scales: int
    zero_points: int

    @property
    def total(self) -> int:
        return self.codes + self.scales + self.zero_points


class QuantizedTensor(nn.Module):
    """codes (shape of the weight), scale and zero_point are buffers and the only copy of the weight.

    Writing to them changes what dequantize() and forward() return and what state_dict() holds.
    scale float32 and zero_point int32: [] per tensor, [C] per channel, [C, K // group_size] per group.
    Raises InvalidConfig when the shapes do not fit together.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        quant_min: int,
        quant_max: int,
        axis: int | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise InvalidConfig(f"codes are whole numbers; these are {codes.dtype}.")
        if scale.shape != zero_point.shape:
            raise InvalidConfig(f"{list(scale.shape)} scales and {list(zero_point.shape)} zero points do not fit.")
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.quant_min, self.quant_max, self.axis, self.group_size = quant_min, quant_max, axis, group_size
        self.dequantize()  # raises here, not at the first forward, when the scales do not fit the codes

    @classmethod
    def from_float(cls, weight: torch.Tensor, qparams: QParams) -> QuantizedTensor:
        """The codes of this weight on this grid. Raises InvalidConfig when they do not fit."""
        return cls(
            quantize(weight, qparams),
            qparams.scale.detach().clone(),
            qparams.zero_point.detach().clone(),
            qparams.quant_min,
            qparams.quant_max,
            qparams.axis,
            qparams.group_size,
        )

    @property
    def qparams(self) -> QParams:
        """Scale and zero point as they stand; the tensors are the buffers themselves."""
        return QParams(self.scale, self.zero_point, self.quant_min, self.quant_max, self.axis, self.group_size)

    @property
    def signed(self) -> bool:
        return self.quant_min < 0

    @property
    def bits(self) -> int:
        """The bits a code needs; a narrow range needs as many as the full one."""
        if self.signed:
            return max((-self.quant_min - 1).bit_length(), self.quant_max.bit_length()) + 1
        return self.quant_max.bit_length()

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dequantize(self) -> torch.Tensor:
        """(codes - zero_point) * scale, float32, shape of the weight."""
        return dequantize(self.codes, self.qparams)

    def forward(self) -> torch.Tensor:
        return self.dequantize()

    def packed(self) -> torch.Tensor:
        """The codes as packed bytes. Raises DataMismatch when a code written by hand does not fit its bits."""
        return pack(self.codes, self.bits, self.signed)

    def set_packed(self, packed: torch.Tensor) -> None:
        """Replace the codes by packed ones of the same shape. Raises DataMismatch."""
        self.codes.copy_(unpack(packed, self.bits, self.signed, self.codes.shape))

    @property
    def packed_bytes(self) -> int:
        """Bytes as stored: size_breakdown().total."""
        return self.size_breakdown().total

    def size_breakdown(self) -> SizeBreakdown:
        """Zero points take one byte each (two above 8 bits), and nothing where all are 0 on a signed grid."""
        needed = not self.signed or bool((self.zero_point != 0).any())
        each = -(-self.bits // 8)
        return SizeBreakdown(
            codes=-(-self.codes.numel() * self.bits // 8),
            scales=4 * self.scale.numel(),
            zero_points=each * self.zero_point.numel() if needed else 0,
        )

    def extra_repr(self) -> str:
        kind = f"{'int' if self.signed else 'uint'}{self.bits}"
        return f"{kind}, shape={list(self.codes.shape)}, axis={self.axis}, group_size={self.group_size}"
