"""A tensor on a symmetric and on an affine grid, and what a zero point adds to an integer product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.config import QuantSpec
from qlab.lessons.samples import sample
from qlab.plots.bins import Bins
from qlab.preset import presets
from qlab.quant.error import QuantError, quantization_error
from qlab.quant.fake_quant import dequantize, quantize
from qlab.quant.qparams import QParams, choose_qparams

SAMPLE = "conv_digits"
VALUES = {  # what to look at -> its tensor; what a layer gives is taken of a few images
    "relu": "block1.relu",
    "conv": "block1.conv",
    "weight": "block3.conv.weight",
}
IMAGES = 16
BINS = 160
ONE_BIT = 20 * math.log10(2)  # dB
LAYER, INPUT = "block1.conv", "x"  # one output element of this layer is taken apart


@dataclass(frozen=True)
class Scheme:
    """A grid over the values. points, codes [levels] ascending; used [levels]: whether a value lands there.

    outside: codes that stand for values beyond the smallest and the largest there is.
    """

    qparams: QParams
    error: QuantError
    points: NDArray[np.float64]
    codes: NDArray[np.int64]
    used: NDArray[np.bool_]
    outside: int

    @property
    def zero_point(self) -> int:
        return int(self.qparams.zero_point)

    @property
    def levels(self) -> int:
        return self.qparams.levels


@dataclass(frozen=True)
class Schemes:
    """The same values on both grids, from their minimum to their maximum.

    bins: their histogram over all that both grids reach. zeros: how many are exactly 0, of count.
    """

    affine: Scheme
    symmetric: Scheme
    bins: Bins
    zeros: int
    count: int

    @property
    def lost(self) -> float:
        """What the symmetric grid loses in SQNR, in dB."""
        return self.affine.error.sqnr - self.symmetric.error.sqnr

    @property
    def lost_bits(self) -> float:
        return self.lost / ONE_BIT


@lru_cache(maxsize=128)
def schemes(which: str, shift: float, bits: int) -> Schemes:
    """Both grids over a tensor of the sample network. which: a key of VALUES.

    shift: how far the values are moved, in halves of their range: 1 puts the smallest of values around 0 at 0.
    """
    values = _values(which)
    low, high = (float(end) for end in torch.aminmax(values))
    if shift:
        values = values + shift * (high - low) / 2
    affine, symmetric = (_scheme(values, bits, kind) for kind in ("affine", "symmetric"))
    ends = [end for scheme in (affine, symmetric) for end in (scheme.points[0], scheme.points[-1])]
    edges = np.linspace(min(*ends, float(values.min())), max(*ends, float(values.max())), BINS + 1)
    bins = Bins(edges, np.histogram(values.numpy(), edges)[0].astype(np.float64))
    return Schemes(affine, symmetric, bins, int((values == 0).sum()), values.numel())


@lru_cache(maxsize=len(VALUES))
def _values(which: str) -> torch.Tensor:
    """[n] float32."""
    found, name = sample(SAMPLE), VALUES[which]
    return (found.weights[name] if name in found.weights else found.values(name, IMAGES)).flatten()


def _scheme(values: torch.Tensor, bits: int, kind: str) -> Scheme:
    qparams = choose_qparams(values, QuantSpec(bits=bits, qscheme=f"per_tensor_{kind}"))
    codes = torch.arange(qparams.quant_min, qparams.quant_max + 1, dtype=torch.int32)
    points = dequantize(codes, qparams).double().numpy()
    taken = torch.bincount((quantize(values, qparams).long() - qparams.quant_min).ravel(), minlength=qparams.levels)
    half = float(qparams.scale) / 2
    outside = int(((points < float(values.min()) - half) | (points > float(values.max()) + half)).sum())
    return Scheme(
        qparams, quantization_error(values, qparams), points, codes.numpy().astype(np.int64), (taken > 0).numpy(),
        outside,
    )  # fmt: skip


@dataclass(frozen=True)
class Sums:
    """One output element as integers: Σ (qx − zx)(qw − zw) = products + weight_zero + input_zero + both.

    products = Σ qx qw; weight_zero = −zw Σ qx, which needs the input; input_zero = −zx Σ qw and both = K zx zw, which
    are known with the weights. K: products of one element. scale: of the sum; bias, exact: of the float network.
    channels: output channels, which share Σ qx.
    """

    zero_x: int
    zero_w: int
    products: int
    weight_zero: int
    input_zero: int
    both: int
    K: int
    channels: int
    scale: float
    bias: float
    exact: float

    @property
    def total(self) -> int:
        return self.products + self.weight_zero + self.input_zero + self.both

    @property
    def value(self) -> float:
        """What the integers stand for."""
        return self.total * self.scale + self.bias

    @property
    def at_run_time(self) -> int:
        """Corrections that are there and need the input."""
        return int(self.zero_w != 0)

    @property
    def ahead(self) -> int:
        """Corrections that are there and are worked out once, with the weights."""
        return int(self.zero_x != 0) + int(self.zero_x != 0 and self.zero_w != 0)


@lru_cache(maxsize=64)
def sums(weights: str, inputs: str, channel: int, row: int = 7, column: int = 7) -> Sums:
    """An output element of the first convolution for the first image. weights, inputs: "affine" or "symmetric".

    channel: of the output; row, column: its place, from 1 to 14, so that the whole window lies in the image.
    """
    found = sample(SAMPLE)
    x, weight = found.values(INPUT, 1), found.weights[f"{LAYER}.weight"]
    window = x[0, :, row - 1 : row + 2, column - 1 : column + 2].contiguous()
    of_x = found.calibration.qparams(INPUT, QuantSpec(qscheme=f"per_tensor_{inputs}"))
    of_w = choose_qparams(weight, QuantSpec(qscheme=f"per_tensor_{weights}"))
    qx, qw = quantize(window, of_x).long(), quantize(weight, of_w)[channel].long()
    zero_x, zero_w = int(of_x.zero_point), int(of_w.zero_point)
    exact = float(found.values(LAYER, 1)[0, channel, row, column])
    return Sums(
        zero_x, zero_w, int((qx * qw).sum()), -zero_w * int(qx.sum()), -zero_x * int(qw.sum()),
        qx.numel() * zero_x * zero_w, qx.numel(), len(weight), float(of_x.scale) * float(of_w.scale),
        exact - float((window * weight[channel]).sum()), exact,
    )  # fmt: skip


def usual_choice() -> tuple[int, int]:
    """Of the presets that quantize activations: how many take weights symmetric and activations affine; and of all."""
    configs = [mapping.default for mapping in presets.values()]
    pairs = [(one.weight, one.activation) for one in configs if one and one.weight and one.activation]
    return sum(weight.symmetric and not activation.symmetric for weight, activation in pairs), len(pairs)


@lru_cache(maxsize=1)
def channels() -> int:
    """Output channels of the layer that is taken apart."""
    return len(sample(SAMPLE).weights[f"{LAYER}.weight"])
