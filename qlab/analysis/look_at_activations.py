"""What is wrong with activations, from the calibration alone: ranges, channels, clipping, grids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qlab.analysis.fault import Fault, threshold
from qlab.analysis.look_at_weights import TOP_SHARE
from qlab.calibration import Calibration
from qlab.conversion import FakeQuantize, QuantizedModel
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type
from qlab.graph.placement import ActivationPoint
from qlab.metrics import percent, three_digits
from qlab.quant.error import quantization_error
from qlab.quant.stats import TensorStats

HUGE = 1e6  # a step beyond any value a network works with


def activation_faults(qmodel: QuantizedModel, calib: Calibration) -> Iterator[Fault]:
    """What is found in the activations that lie on static grids."""
    layer_of = {tensor: layer for layer, tensor in qmodel.outputs.items()}
    seen: set[str] = set()
    for key, module in qmodel.activations.items():
        point = qmodel.points[key]
        if point.kind != "observed" or point.tensor not in calib or point.tensor in seen:
            continue
        seen.add(point.tensor)
        layer, stats = layer_of.get(point.tensor, point.tensor), calib[point.tensor]
        if stats.minimum == stats.maximum == 0:
            sentence = f"All {stats.count:,} values of {point.tensor} in the calibration are zero."
            advice = "Calibrate with data that reaches it; if it is always zero, it can be removed from the network."
            yield Fault("all_zero", "warning", point.tensor, layer, 0, sentence, advice=advice)
            continue
        dead = list(_dead(qmodel, point, layer, stats))
        yield from dead
        absurd = list(_absurd(point, layer, module, stats))
        yield from absurd
        if absurd or module.scale.ndim:
            continue
        clipped = list(_clipped(point, layer, module, stats))
        yield from clipped
        yield from _spread(qmodel, point, layer, stats)
        if not clipped and point.tensor not in qmodel.mapping.ranges:
            yield from _wasted(point, layer, module, stats)


def _dead(qmodel: QuantizedModel, point: ActivationPoint, layer: str, stats: TensorStats) -> Iterator[Fault]:
    if stats.channel_minimum is None or stats.channel_maximum is None or op_type_of(point) == "input":
        return
    dead = np.flatnonzero((stats.channel_minimum == 0) & (stats.channel_maximum == 0))
    if not len(dead):
        return
    named = ", ".join(map(str, dead[:8])) + (" …" if len(dead) > 8 else "")
    sentence = (
        f"{len(dead)} of {len(stats.channel_minimum)} channels of {point.tensor} were zero for every sample of the "
        f"calibration (channel {named}): nothing that came in switched them on."
    )
    yield Fault(
        "dead_channel", "note", point.tensor, layer, len(dead), sentence, channels=tuple(map(int, dead)),
        advice="Look whether the calibration data is varied enough; if it is, they can be removed from the network.",
    )  # fmt: skip


def op_type_of(point: ActivationPoint) -> str:
    return "input" if point.node.op == "placeholder" else op_type(point.node)


def _absurd(point: ActivationPoint, layer: str, module: FakeQuantize, stats: TensorStats) -> Iterator[Fault]:
    scale = float(module.scale.max())
    largest = max(-stats.minimum, stats.maximum)
    channels = _at_floor(module, stats)
    where = f" of channel {channels[0]}" if channels else ""
    if channels and stats.channel_minimum is not None and stats.channel_maximum is not None:
        largest = float(max(-stats.channel_minimum[channels[0]], stats.channel_maximum[channels[0]]))
    if channels or (not module.scale.ndim and bool(module.qparams.at_floor) and largest > 0):
        sentence = (
            f"The scale{where} of {point.tensor} is the smallest allowed: its largest value in the calibration is "
            f"{three_digits(largest)}, so nothing is left of it on the grid."
        )
    elif scale > HUGE:
        sentence = f"The scale of {point.tensor} is {three_digits(scale)}: its values reach {three_digits(largest)}."
    elif largest and scale > 2 * largest:
        sentence = (
            f"One step of the grid of {point.tensor} is {three_digits(scale)}, its largest value "
            f"{three_digits(largest)}: "
            "every value becomes zero."
        )
    else:
        return
    yield Fault("absurd_scale", "error", point.tensor, layer, scale, sentence, channels=channels)


def _at_floor(module: FakeQuantize, stats: TensorStats) -> tuple[int, ...]:
    """Channels with a scale of their own that is the smallest allowed, though they are not always zero."""
    if not module.scale.ndim or stats.channel_minimum is None or stats.channel_maximum is None:
        return ()
    alive = (stats.channel_minimum != 0) | (stats.channel_maximum != 0)
    return tuple(int(i) for i in np.flatnonzero(module.qparams.at_floor.numpy() & alive))


def _clipped(point: ActivationPoint, layer: str, module: FakeQuantize, stats: TensorStats) -> Iterator[Fault]:
    error = quantization_error(stats, module.qparams)
    # Clipping that costs less than the rounding it saves is what an observer is there for.
    if error.clipped_share >= threshold("saturated") and error.clip > error.roundoff:
        sentence = (
            f"{percent(error.clipped_share)} of the values of {point.tensor} lie beyond its grid, which ends at "
            f"{three_digits(float(module.qparams.low))} and {three_digits(float(module.qparams.high))} while the "
            f"values reach from {three_digits(stats.minimum)} to {three_digits(stats.maximum)}. They carry "
            f"{percent(error.clipped_energy_share)} of its energy."
        )
        yield Fault("saturated", "warning", point.tensor, layer, error.clipped_share, sentence)


def _spread(qmodel: QuantizedModel, point: ActivationPoint, layer: str, stats: TensorStats) -> Iterator[Fault]:
    if stats.channel_minimum is None or stats.channel_maximum is None or op_type_of(point) == "input":
        return
    ranges = np.maximum(-stats.channel_minimum, stats.channel_maximum)
    alive = ranges[ranges > 0]
    if len(alive) < 2:
        return
    median = float(np.median(alive))
    ratio = float(ranges.max()) / median
    if ratio < threshold("activation_spread"):
        yield from _narrow(qmodel, point, layer, ranges, median)
        return
    wide = tuple(int(i) for i in np.argsort(-ranges) if ranges[i] > ratio * median / 2)
    sentence = (
        f"Channel {wide[0]} of {point.tensor} reaches {three_digits(float(ranges.max()))}, {three_digits(ratio)} "
        f"times the median channel, and one scale serves all {len(ranges)} channels."
    )
    yield Fault("activation_spread", "warning", point.tensor, layer, ratio, sentence, channels=wide)


def _narrow(
    qmodel: QuantizedModel, point: ActivationPoint, layer: str, ranges: np.ndarray, median: float
) -> Iterator[Fault]:
    """Channels far narrower than the others that what reads them multiplies up again, and with them their rounding."""
    reach = _weights_behind(qmodel, point, len(ranges))
    if reach is None:
        return
    small = (ranges > 0) & (ranges < median / threshold("activation_spread"))
    said = ranges * reach  # how much of what is read comes from each channel
    narrow = tuple(int(i) for i in np.argsort(ranges) if small[i] and said[i] > np.median(said[ranges > 0]) / 4)
    if not narrow:
        return
    first = narrow[0]
    usual = float(np.median(reach[reach > 0]))
    sentence = (
        f"Channel {first} of {point.tensor} reaches only {three_digits(float(ranges[first]))}, the median channel "
        f"{three_digits(median / float(ranges[first]))} times as much, and one scale serves all {len(ranges)}. What "
        f"reads it has weights {three_digits(float(reach[first]) / usual)} times the usual for it, which multiply its "
        "rounding too."
    )
    yield Fault(
        "activation_spread", "warning", point.tensor, layer, median / float(ranges[first]), sentence, channels=narrow
    )


def _weights_behind(qmodel: QuantizedModel, point: ActivationPoint, channels: int) -> np.ndarray | None:
    """Largest weight with which each channel is read [C]; None where something else than layers with weights reads."""
    out = np.zeros(channels)
    todo, gm = list(point.node.users), qmodel.model.graph_module
    while todo:
        node = todo.pop()
        kind = op_type(node) if node.op == "call_function" else ""
        if kind in ("relu", "max_pool", "avg_pool"):
            todo += node.users
            continue
        weight = attribute(gm, node.args[1]) if kind in ("conv1d", "conv2d", "conv3d", "linear") else None
        if weight is None:
            return None
        groups = channels // weight.shape[1]
        if groups * weight.shape[1] != channels or weight.shape[0] % groups:
            return None
        each = weight.detach().abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).amax((1, 3))
        out = np.maximum(out, each.reshape(-1).numpy())
    return out


def _wasted(point: ActivationPoint, layer: str, module: FakeQuantize, stats: TensorStats) -> Iterator[Fault]:
    d = stats.distribution("tensor")
    assert d.values is not None
    assert d.counts is not None
    magnitudes, counts = np.abs(d.values[0]).astype(np.float64), d.counts[0]
    order = np.argsort(magnitudes)
    below = np.cumsum(counts[order]) / counts.sum()
    inner = float(magnitudes[order][np.searchsorted(below, 1 - TOP_SHARE)])
    largest = max(abs(float(module.qparams.low)), abs(float(module.qparams.high)))
    if not largest:
        return
    share = 1 - inner / largest
    if share < threshold("wasted_range"):
        return
    error = quantization_error(stats, module.qparams)
    sentence = (
        f"99.9 % of the values of {point.tensor} lie within ±{three_digits(inner)}, its grid reaches to "
        f"{three_digits(largest)}: {error.levels_used} of {error.levels} levels are used, and nearly all values share "
        f"{_levels(module, max(-inner, stats.minimum), min(inner, stats.maximum))} of them."
    )
    yield Fault("wasted_range", "warning", point.tensor, layer, share, sentence)


def _levels(module: FakeQuantize, low: float, high: float) -> int:
    """How many levels of a grid with one scale the values from low to high are rounded to."""
    first, last = (round(end / float(module.scale)) + int(module.zero_point) for end in (low, high))
    return min(last, module.quant_max) - max(first, module.quant_min) + 1
