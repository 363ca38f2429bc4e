"""What is wrong with weights: outliers, channels of very different range, a folded BatchNorm, dead channels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from qlab.analysis.fault import Fault, threshold
from qlab.conversion import QuantizedModel
from qlab.graph.lower import FOLDED_NORM, FoldedNorm, attribute
from qlab.graph.placement import WeightPoint
from qlab.metrics import percent, three_digits

TOP_SHARE = 0.001  # of the values, that make outliers
FAR = 4.0  # times the next largest of its own channel: an outlier and no wide channel
NAMED = 3


def weight_faults(qmodel: QuantizedModel) -> Iterator[Fault]:
    """What is found in the weights that are quantized, under the granularity their spec gives them."""
    for point in qmodel.placement.weights:
        weight = attribute(qmodel.reference.graph_module, _constant(qmodel, point))
        if weight is None or not bool(torch.isfinite(weight).all()) or weight.ndim < 2:
            continue
        weight = weight.detach().float()
        yield from _dead(point, weight)
        if point.tensor in qmodel.mapping.ranges:
            continue  # its ends are where somebody put them
        outlier = _outlier(point, weight)
        yield from outlier
        if point.spec.granularity == "tensor" and not outlier:
            yield from _spread(point, weight)


def outlier_share(values: Tensor) -> float:
    """The share of the range 0..max |x| that the largest 0.1 % of the values take for themselves."""
    magnitudes = values.abs().flatten()
    top = max(1, math.ceil(TOP_SHARE * magnitudes.numel()))
    if magnitudes.numel() <= top:
        return 0.0
    largest = torch.topk(magnitudes, top + 1).values
    return 1.0 - float(largest[-1] / largest[0]) if float(largest[0]) > 0 else 0.0


def outlier_limit(weight: Tensor, axis: int) -> float:
    """The largest magnitude among the weights that are no outliers of their channel."""
    rows = weight.detach().float().movedim(axis, 0).flatten(1).abs()
    usual = _second(rows) * FAR
    inside = rows <= usual[:, None]
    return float(rows[inside].max())


def _constant(qmodel: QuantizedModel, point: WeightPoint) -> object:
    """The weight as it was, where the biases of the network that was quantized are others."""
    if qmodel.reference is qmodel.model:
        return point.constant
    node = qmodel.reference.node(qmodel.model.names[point.node])
    return next(
        (n for n in node.all_input_nodes if n.op == "get_attr" and n.target == point.constant.target), point.constant
    )


def _second(rows: Tensor) -> Tensor:
    """The value of each row that only its largest 0.1 % are beyond. [R]"""
    top = max(1, math.ceil(TOP_SHARE * rows.shape[1]))
    return torch.topk(rows, min(top + 1, rows.shape[1])).values[:, -1]


def _outlier(point: WeightPoint, weight: Tensor) -> list[Fault]:
    """Weights far beyond all others of the grid they share, and of their own channel."""
    rows = weight.movedim(point.axis, 0).flatten(1)
    if rows.shape[1] < 8:
        return []
    magnitudes = rows.abs()
    far = magnitudes > FAR * _second(magnitudes).clamp_min(1e-30)[:, None]
    far &= magnitudes.amax(1, keepdim=True) > 0
    if not bool(far.any()):
        return []
    if point.spec.granularity == "tensor":
        shares = [outlier_share(weight)]
    else:
        shares = [outlier_share(rows[i]) for i in range(len(rows)) if bool(far[i].any())]
    share = max(shares)
    if share < threshold("outlier_weight"):
        return []
    places = far.nonzero()
    order = magnitudes[far].argsort(descending=True)
    named = ", ".join(three_digits(float(rows[tuple(places[i])])) for i in order[:NAMED])
    rest = float(magnitudes[~far].max())
    count, verb = (len(places), "are") if len(places) > 1 else (1, "is")
    sentence = (
        f"{count} of {weight.numel():,} weights of {point.tensor} {verb} far beyond all others: {named}"
        f"{' …' if count > NAMED else ''} against at most {three_digits(rest)} elsewhere. "
        f"{percent(share)} of the range is there for them alone."
    )
    channels = tuple(dict.fromkeys(int(places[i][0]) for i in order))
    return [Fault("outlier_weight", "warning", point.tensor, point.layer, share, sentence, channels=channels)]


def _spread(point: WeightPoint, weight: Tensor) -> Iterator[Fault]:
    ranges = weight.movedim(point.axis, 0).flatten(1).abs().amax(1)
    alive = ranges > 0
    if int(alive.sum()) < 2:
        return
    median = float(ranges[alive].median())
    ratio = float(ranges.max()) / median
    wide = tuple(int(i) for i in ranges.argsort(descending=True) if float(ranges[i]) > ratio * median / 2)
    norm = point.constant.meta.get(FOLDED_NORM)
    folded = _norm_spread(norm, ranges, alive) if isinstance(norm, FoldedNorm) else 0.0
    if isinstance(norm, FoldedNorm) and folded >= threshold("norm_spread"):
        sentence = (
            f"{norm.name} was folded into {point.layer}: its channels were multiplied by factors of which the largest "
            "is "
            f"{three_digits(folded)} times the median one, because their variances differ that much. One scale serves "
            f"all channels of {point.tensor}, and most of them get few levels."
        )
        yield Fault("norm_spread", "warning", point.tensor, point.layer, folded, sentence, channels=wide)
    elif ratio >= threshold("weight_spread"):
        count = len(wide)
        sentence = (
            f"The widest channel of {point.tensor} ({wide[0]}) reaches {three_digits(float(ranges.max()))}, "
            f"{three_digits(ratio)} times the median one, and one scale serves all {len(ranges)} channels."
            + (f" {count} channels are that wide." if count > 1 else "")
        )
        yield Fault("weight_spread", "warning", point.tensor, point.layer, ratio, sentence, channels=wide)


def _norm_spread(norm: FoldedNorm, ranges: Tensor, alive: Tensor) -> float:
    """Largest factor over the median one, where the factors and not the weights before them make the spread."""
    factor = norm.factor.abs().float()
    if factor.shape != ranges.shape:
        return 0.0
    before = ranges[alive] / factor[alive].clamp_min(1e-30)
    made_here = float(ranges[alive].max() / ranges[alive].median())
    was_there = float(before.max() / before.median())
    return float(factor[alive].max() / factor[alive].median()) if was_there < made_here / 3 else 0.0


def _dead(point: WeightPoint, weight: Tensor) -> Iterator[Fault]:
    rows = weight.movedim(point.axis, 0).flatten(1)
    dead = tuple(int(i) for i in (rows == 0).all(1).nonzero().flatten())
    if dead:
        named = ", ".join(map(str, dead[:8])) + (" …" if len(dead) > 8 else "")
        sentence = (
            f"{len(dead)} of {len(rows)} channels of {point.tensor} are all zero (channel {named}): their scale is the "
            "smallest allowed."
        )
        yield Fault(
            "dead_channel", "note", point.tensor, point.layer, len(dead), sentence, channels=dead,
            advice="They can be removed from the network without a change of its output.",
        )  # fmt: skip
