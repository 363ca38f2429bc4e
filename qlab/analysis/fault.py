"""What can be wrong with a quantized network: the kinds of it, when each is worth a word, and one that was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qlab.analysis.remedy import Remedy

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
Picture = Literal["distribution", "channels", "overlay", "none"]


@dataclass(frozen=True)
class Kind:
    """title: in a few words. meaning: a sentence on what it is and why it costs. number: what `Fault.value` is.

    threshold: from which value on it is found. picture: what shows it.
    """

    title: str
    meaning: str
    number: str
    threshold: float
    picture: Picture


@dataclass(frozen=True)
class Fault:
    """One thing that was found. tensor, layer: where; "" where it has no place. value: the number its kind is about.

    sentence: what was seen, in plain words. cost: noise over signal at the network's output when that part of the layer
    alone is quantized, 0 where that is not what it is about. channels: those it is about. advice: what to do where no
    change of the config helps. remedies: configs to try.
    """

    kind: str
    severity: Severity
    tensor: str
    layer: str
    value: float
    sentence: str
    cost: float = 0.0
    channels: tuple[int, ...] = ()
    advice: str = ""
    remedies: tuple[Remedy, ...] = ()

    @property
    def title(self) -> str:
        return KINDS[self.kind].title


# In the order in which they are told where nothing else decides: what stops everything, then what makes all that
# follows say little, then causes before their consequences.
KINDS: Mapping[str, Kind] = {
    "non_finite": Kind(
        "NaN or Inf", "One value that is no number makes every result behind it no number.",
        "first sample of the batch", 0, "none",
    ),
    "never_observed": Kind(
        "Never observed", "A static range is needed of a tensor the calibration holds nothing of.",
        "values seen", 0, "none",
    ),
    "unmatched_rule": Kind(
        "A rule that matches nothing", "The rule was written for some layer, and no layer got what it says.",
        "layers matched", 0, "none",
    ),
    "unused_range": Kind(
        "A range without effect", "A range set by hand works where its tensor is put on a grid, and this one is not.",
        "grids", 0, "none",
    ),
    "unlike_training": Kind(
        "Data unlike training",
        "A folded BatchNorm remembers mean and spread of the training data. Values that reach the first layers with "
        "others were prepared in another way: scale, mean, std, colour order or size.",
        "distance from training in standard deviations", 0.5, "distribution",
    ),
    "unlike_evaluation": Kind(
        "Calibration unlike evaluation",
        "Ranges that were learned on other values than those that come later are too wide or too narrow for them.",
        "distance in standard deviations", 0.35, "distribution",
    ),
    "absurd_scale": Kind(
        "A scale that makes no sense", "The grid's step is at its floor or beyond all values: nothing is left of them.",
        "scale", 0, "distribution",
    ),
    "all_zero": Kind(
        "Nothing but zeros",
        "Calibration saw no value but zero, so nothing says how far the grid has to reach: its scale is the smallest "
        "allowed, and any other value is cut off.",
        "values that are not zero", 0, "none",
    ),
    "outlier_weight": Kind(
        "Outlier weights",
        "The range is as wide as its largest weight. A few far ones leave all others a handful of levels.",
        "share of the range that the top 0.1 % take", 0.7, "distribution",
    ),
    "norm_spread": Kind(
        "BatchNorm with very different variances",
        "Folding multiplies each channel by its own factor. Where these differ greatly, one scale cannot serve all of "
        "them.",
        "largest factor over the median one", 12, "channels",
    ),
    "weight_spread": Kind(
        "Channels of very different range",
        "One scale for all channels follows the widest; the narrow ones keep a handful of levels.",
        "widest channel over the median one", 12, "channels",
    ),
    "saturated": Kind(
        "Saturated activation",
        "Values beyond the end of the grid all become its last code: what made them different is lost.",
        "share of the values beyond the grid", 0.01, "distribution",
    ),
    "activation_spread": Kind(
        "Channels of very different activations",
        "One scale for all channels follows the widest; what the narrow ones carry drowns in its rounding, and a layer "
        "that multiplies them up again multiplies the rounding too.",
        "widest channel over the median one", 12, "channels",
    ),
    "bias_shift": Kind(
        "Mean shift",
        "Rounding the weights moves the mean of a channel: an error that does not average out in what follows.",
        "shift of a channel in standard deviations", 0.1, "overlay",
    ),
    "wasted_range": Kind(
        "A range hardly used",
        "A few far values set the range; nearly all values share the few levels near zero.",
        "share of the range that the top 0.1 % of the values take", 0.7, "distribution",
    ),
    "coarse_grid": Kind(
        "A grid too coarse", "Nothing special is wrong here: the levels are too few for what this tensor carries.",
        "own SQNR in dB", 18, "overlay",
    ),
    "dead_channel": Kind(
        "Dead channels", "They are zero whatever comes in: they cost memory and time, and their scale means nothing.",
        "dead channels", 1, "channels",
    ),
}  # fmt: skip


def threshold(kind: str) -> float:
    return KINDS[kind].threshold


def ordered(faults: list[Fault]) -> list[Fault]:
    """Errors first, in the order of the kinds; then warnings and notes, each by cost, then by kind."""
    rank = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(
        faults,
        key=lambda f: (SEVERITIES.index(f.severity), 0.0 if f.severity == "error" else -f.cost, rank[f.kind], -f.value),
    )
