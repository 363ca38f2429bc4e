"""One scale for a tensor, a channel or a group: what a channel that is far larger does to all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import SizeReport, convert
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.lessons.samples import sample
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import choose_qparams
from qlab.quant.tensor import QuantizedTensor, SizeBreakdown

GRANULARITIES = ("tensor", "channel", "group")
SAMPLE, WEIGHT = "conv_digits", "block3.conv.weight"
FACTORS = (1, 2, 4, 8, 16, 32, 64)
GROUPS = (8, 12, 24, 36, 72, 108)  # of the 216 values behind one channel


@dataclass(frozen=True)
class Shared:
    """One granularity. sqnr [C] dB of each channel; others: dB of all channels but the scaled one, taken together.

    size: bytes of codes and scales.
    """

    granularity: str
    sqnr: NDArray[np.float64]
    others: float
    scales: int
    size: SizeBreakdown


Every = Mapping[str, Shared]  # by granularity
Lines = Mapping[str, NDArray[np.float64]]


def channels() -> int:
    """Output channels of the weight that is played with."""
    return len(sample(SAMPLE).weights[WEIGHT])


@lru_cache(maxsize=64)
def scaled(channel: int, factor: int) -> torch.Tensor:
    """The weight with one output channel multiplied by a factor: [C, …] float32."""
    weight = sample(SAMPLE).weights[WEIGHT].clone()
    weight[channel] *= factor
    return weight


def spec(granularity: str, bits: int, group: int) -> QuantSpec:
    """A symmetric grid for each tensor, channel or group of this many weights."""
    return QuantSpec(
        bits=bits, qscheme=f"per_{granularity}_symmetric", group_size=group if granularity == "group" else None
    )


@lru_cache(maxsize=512)
def shared(channel: int, factor: int, bits: int, group: int) -> Every:
    """The weight with this channel scaled, under all three granularities."""
    weight = scaled(channel, factor)
    rows = weight.flatten(1).double()
    rest = torch.arange(len(rows)) != channel
    out = {}
    for granularity in GRANULARITIES:
        qparams = choose_qparams(weight, spec(granularity, bits, group))
        error = (rows - fake_quantize(weight, qparams).flatten(1).double()).square().sum(1)
        signal = rows.square().sum(1)
        out[granularity] = Shared(
            granularity, _decibel(signal, error), float(_decibel(signal[rest].sum(), error[rest].sum())),
            qparams.scale.numel(), QuantizedTensor.from_float(weight, qparams).size_breakdown(),
        )  # fmt: skip
    return out


def by_factor(channel: int, bits: int, group: int) -> Lines:
    """SQNR of the other channels for each factor, by granularity: [len(FACTORS)] dB."""
    every = [shared(channel, factor, bits, group) for factor in FACTORS]
    return {name: np.array([one[name].others for one in every]) for name in GRANULARITIES}


def _decibel(signal: torch.Tensor, noise: torch.Tensor) -> NDArray[np.float64]:
    return (10 * torch.log10(signal / noise)).numpy()


# --- a network that hangs on it ---------------------------------------------------------------------------------------

DEPTHWISE = "depthwise_digits"
NETWORK_BITS = (8, 6, 4)
ACTIVATIONS = QuantSpec(bits=8)


@dataclass(frozen=True)
class Outcome:
    """The network under one config, simulated on the whole evaluation part. against: paired with float."""

    evaluation: Evaluation
    against: Comparison
    size: SizeReport


def network_mapping(granularity: str, bits: int) -> QConfigMapping:
    """Weights of these bits per tensor or per channel, symmetric; activations 8 bits from minimum and maximum."""
    return QConfigMapping(default=QConfig(weight=spec(granularity, bits, 0), activation=ACTIVATIONS))


@lru_cache(maxsize=2 * len(NETWORK_BITS))
def outcome(granularity: str, bits: int) -> Outcome:
    """granularity: tensor or channel. About a second the first time."""
    found = sample(DEPTHWISE)
    qmodel = convert(found.model, network_mapping(granularity, bits), found.calibration)
    seen = evaluate(qmodel, found.data, found.float_evaluation, batch_size=250, sqnr_samples=0)
    return Outcome(seen, compare(found.float_evaluation, seen, found.data.evaluation.targets), qmodel.size)


def prepare() -> None:
    """All of them, so that another number of bits answers at once."""
    for granularity in ("tensor", "channel"):
        for bits in NETWORK_BITS:
            outcome(granularity, bits)


def depthwise_layers() -> list[str]:
    """Weights of the depthwise convolutions, in the order of the network."""
    return [name for name in sample(DEPTHWISE).weights if "depthwise" in name]


def ranges(weight: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest weight of each output channel: [C] each."""
    rows = weight.flatten(1).double()
    return rows.amin(1).numpy(), rows.amax(1).numpy()


def spread(weight: torch.Tensor) -> float:
    """How many times the largest channel reaches as far as the one in the middle. Infinite where most are zero."""
    reach = weight.detach().abs().flatten(1).amax(1).double().numpy()
    middle = float(np.median(reach))
    return float(reach.max()) / middle if middle else np.inf
