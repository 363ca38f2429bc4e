"""What is wrong with weights: outliers, channels of very different range, a folded BatchNorm, dead channels."""

from __future__ import annotations

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
# Weights that are not zero, which every grid holds: of fewer, "the others" of a channel or of a grid say too little.
ENOUGH_IN_CHANNEL, ENOUGH_ON_GRID = 8, 32
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
    """The share of the range 0..max |x| that the largest 0.1 % of the values that are not zero take for themselves."""
    rows = values.abs().reshape(1, -1)
    largest = float(rows.max())
    return 1.0 - float(_second(rows)) / largest if largest > 0 else 0.0


def outlier_limit(weight: Tensor, point: WeightPoint) -> float:
    """The largest magnitude among the weights that are no outliers of their channel; 0 where all are zero."""
    rows = weight.detach().float().movedim(point.axis, 0).flatten(1).abs()
    return float(rows[~_far(point, rows)].max())


def _constant(qmodel: QuantizedModel, point: WeightPoint) -> object:
    """The weight as it was, where the biases of the network that was quantized are others."""
    if qmodel.reference is qmodel.model:
        return point.constant
    node = qmodel.reference.node(qmodel.model.names[point.node])
    return next(
        (n for n in node.all_input_nodes if n.op == "get_attr" and n.target == point.constant.target), point.constant
    )


def _second(rows: Tensor) -> Tensor:
    """The magnitude of each row that only the largest 0.1 % of those that are not zero are beyond. [R]"""
    top = (rows.count_nonzero(1).double() * TOP_SHARE).ceil().long().clamp(1, rows.shape[1] - 1)
    return torch.topk(rows, int(top.max()) + 1).values.gather(1, top[:, None])[:, 0]


def _far(point: WeightPoint, rows: Tensor) -> Tensor:
    """Which magnitudes [R, K] are far beyond all others of their channel, of which there are enough to tell. Bool."""
    per_tensor = point.spec.granularity == "tensor"
    on_grid = int(rows.count_nonzero()) if per_tensor else point.spec.group_size or ENOUGH_ON_GRID
    if rows.shape[1] < ENOUGH_IN_CHANNEL or on_grid < ENOUGH_ON_GRID:
        return torch.zeros_like(rows, dtype=torch.bool)
    enough = rows.count_nonzero(1) >= (ENOUGH_IN_CHANNEL if per_tensor else ENOUGH_ON_GRID)
    return (rows > FAR * _second(rows)[:, None]) & enough[:, None]


def _outlier(point: WeightPoint, weight: Tensor) -> list[Fault]:
    """Weights far beyond all others of the grid they share, and of their own channel."""
    rows = weight.movedim(point.axis, 0).flatten(1)
    magnitudes = rows.abs()
    far = _far(point, magnitudes)
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
            f"is {three_digits(folded)} times the median one, because their variances differ that much. One scale "
            f"serves all channels of {point.tensor}, and most of them get few levels."
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
