"""What stands for a tensor while an ONNX graph is written: its float value, its codes, or an op not yet written.

Ops that commute with quantization (clamping, a positive factor, reshaping) wait until it is known whether somebody
reads them in float. If a grid follows at once, they become part of it: a ReLU is then the lowest code, not an op.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from qlab.quant.qparams import QParams


@dataclass(frozen=True)
class Codes:
    """Integer codes as an ONNX value. name: of the value; scale, zero_point: of the constants beside it.

    kind: the ONNX type they live in. shift: what was added to each code so that it fits, 128 for int8 in uint8.
    """

    name: str
    scale: str
    zero_point: str
    qparams: QParams
    kind: int
    shift: int

    def same_grid(self, qparams: QParams) -> bool:
        own = self.qparams
        return (
            own.axis == qparams.axis
            and (own.quant_min, own.quant_max) == (qparams.quant_min, qparams.quant_max)
            and torch.equal(own.scale, qparams.scale)
            and torch.equal(own.zero_point, qparams.zero_point)
        )


@dataclass
class Value:
    """A float value of the graph. name is None until it is written."""

    name: str | None


@dataclass
class OnGrid(Value):
    """Codes; the float value is written when somebody reads it. tensor: what it is called."""

    codes: Codes
    tensor: str


@dataclass
class Constant(Value):
    """An initializer."""


@dataclass
class Clamped(Value):
    base: Value
    low: float
    high: float


@dataclass
class Scaled(Value):
    base: Value
    factor: float


@dataclass
class Reshaped(Value):
    base: Value
    shape: list[int] = field(default_factory=list)


Waiting = Clamped | Scaled | Reshaped
