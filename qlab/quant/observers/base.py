"""What an observer is given and what it declares about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Range = tuple[Floats, Floats]
Needs = Literal["range", "batches", "values"]

# The smallest scale, as in torch.ao.quantization: it keeps x / scale finite for a dead channel.
EPS = np.float32(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Distribution:
    """What an observer may look at: R rows, one for each scale.

    minimum, maximum  [R] float32     exact
    values            [R, n] float32  None: only the range is known. One row of a histogram is ascending.
    counts            [R, n] float64  None: each value counts once
    widths            [R, n] float32  None: values are exact. Otherwise the values behind entry i are spread evenly over
                                      values ± widths / 2 (a histogram bucket); 0 is an exact value
    batch_minimum, batch_maximum [B] float32  None: not known, or not per row
    """

    minimum: Floats
    maximum: Floats
    values: Floats | None = None
    counts: NDArray[np.float64] | None = None
    batch_minimum: Floats | None = None
    batch_maximum: Floats | None = None
    widths: Floats | None = None


@dataclass(frozen=True)
class Grid:
    """The integer codes quant_min..quant_max and how a range is laid onto them.

    signed decides the zero point of a symmetric grid: 0 when signed, the middle code when not. None: signed when
    quant_min is negative.
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    signed: bool | None = None

    @property
    def steps(self) -> int:
        """Distance from the lowest to the highest code; one less than the number of levels."""
        return self.quant_max - self.quant_min

    @property
    def symmetric_zero_point(self) -> int:
        """0 signed; unsigned 128 for 0..255 and 32,768 for 0..65,535, else the middle rounded down, as in torch."""
        if self.quant_min < 0 if self.signed is None else self.signed:
            return 0
        full = self.quant_min == 0 and self.quant_max in (255, 65535)
        return (self.quant_max + 1) // 2 if full else (self.quant_min + self.quant_max) // 2

    def scale_zero_point(self, low: ArrayLike, high: ArrayLike) -> tuple[Floats, NDArray[np.int32]]:
        """Scale (float32, > 0) and zero point (int32) of the ranges [low, high], any shape, bit for bit as torch.ao.

        affine:    scale = (max(high, 0) - min(low, 0)) / (quant_max - quant_min)
                   zero_point = quant_min - round(min(low, 0) / scale)
        symmetric: scale = max(-low, high, 0) / ((quant_max - quant_min) / 2)
        scale is at least float32 eps. Source: torch.ao.quantization.observer.UniformQuantizationObserverBase.
        """
        low = np.minimum(np.asarray(low, np.float32), np.float32(0))
        high = np.maximum(np.asarray(high, np.float32), np.float32(0))
        with np.errstate(over="ignore"):  # a range beyond float32 gives an infinite scale, which choose_qparams reports
            if self.symmetric:
                scale = np.maximum(np.maximum(-low, high) / np.float32(self.steps / 2), EPS)
                return scale, np.full(scale.shape, self.symmetric_zero_point, np.int32)
            scale = np.maximum((high - low) / np.float32(self.steps), EPS)
        zero_point = np.clip(self.quant_min - np.rint(low / scale), self.quant_min, self.quant_max)
        return scale, zero_point.astype(np.int32)


@dataclass(frozen=True)
class Param:
    """One setting of an observer, as a control would show it. `help` says in a sentence what it does."""

    name: str
    default: float | int
    minimum: float | int
    maximum: float | int
    help: str
    kind: Literal["float", "int"] = "float"


@dataclass(frozen=True)
class Observer:
    """A rule with its name, a summary for people and its settings.

    rule(distribution, grid, **params) -> (low [R], high [R]) float32.
    needs: "range" works from the range alone, "batches" from the range of each batch, "values" from the distribution.
    """

    name: str
    summary: str
    rule: Callable[..., Range]
    needs: Needs
    params: tuple[Param, ...] = ()

    def settings(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter with its value: the one given, else the default."""
        return {p.name: args.get(p.name, p.default) for p in self.params}
