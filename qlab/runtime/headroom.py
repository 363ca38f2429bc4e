"""How much room the accumulators of integer kernels have: the 32 bits of a sum, and the 16 bits of a pair of products.

A kernel for 8-bit codes adds its products in int32. On x86 without VNNI it first adds pairs of neighbouring products in
int16 (vpmaddubsw), and what does not fit there is cut off at 32,767 or -32,768: 255 * 127 * 2 is twice that.

What is taken for granted is ONNX Runtime's MLAS on such a CPU, and tests hold it to the runtime that is installed:
- activations are uint8 in the kernel; int8 ones are moved by 128 when the model is loaded;
- int8 weights take the saturating kernel, uint8 weights one that multiplies in 16 and adds in 32 bits;
- the products of a convolution run over [*kernel, channels of the group], those of a linear over its inputs. Pairs are
  (0, 1), (2, 3), ... of that order, an odd last product stays alone, and padding holds the zero point;
- pairs hold codes as they are: zero points are subtracted afterwards, from sums in 32 bits;
- a depthwise convolution (one channel in and one out for each group) has a kernel of its own that makes no pairs.
Source: ONNX Runtime, providers/cpu/quantization/qlinearconv.cc, mlas/lib/qgemm_kernel_avx2.cpp, mlas/lib/convsym.cpp.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn.functional import pad

from qlab.conversion import QuantizedModel
from qlab.graph.integer_sums import sums_are_integer
from qlab.metrics import percent
from qlab.quant.fake_quant import quantize
from qlab.runtime.steps import INT32, IntegerLayer, explainable_layers, integer_layer, run_tapped

INT16_LOW, INT16_HIGH = -(2**15), 2**15 - 1
MAX_POSITIONS = 4096
_MOST_PAIRS = 96_000_000  # pair sums looked at in one layer: about a quarter of a second on two cores
_CHUNK = 4_000_000  # of these at a time, 4 bytes each


@dataclass(frozen=True)
class Pairs:
    """Sums of two neighbouring products in 16 bits. seen, possible: lowest and highest.

    possible: by these weights with any codes of the input. saturated: share of the pairs seen that are cut off.
    affected: share of the accumulators with at least one such pair. shift: how far the worst of them ends from its true
    sum, in steps of the output grid.
    """

    seen: tuple[int, int]
    possible: tuple[int, int]
    saturated: float
    affected: float
    shift: float

    @property
    def seen_share(self) -> float:
        """Of the int16 range; above 1 saturates."""
        return _share16(self.seen)

    @property
    def possible_share(self) -> float:
        return _share16(self.possible)


@dataclass(frozen=True)
class Headroom:
    """The room of one layer's accumulators.

    products: how many one accumulator adds. seen: the largest magnitude on the samples; possible: the largest that
    these weights allow with any codes of the input. Both count the integer bias. positions: output positions looked at,
    all channels each, of `of_positions` that the samples have. samples: in the batch.
    pairs: None where the kernel makes none; `why` then says so.
    """

    layer: str
    op: str
    products: int
    seen: int
    possible: int
    pairs: Pairs | None
    why: str
    positions: int
    of_positions: int
    samples: int

    @property
    def seen_share(self) -> float:
        """Of 2^31."""
        return self.seen / INT32

    @property
    def possible_share(self) -> float:
        return self.possible / INT32

    @property
    def reduce_range(self) -> bool:
        """Whether weights of 7 bits are called for on a CPU that saturates pairs: some were seen to saturate."""
        return self.pairs is not None and self.pairs.saturated > 0

    @property
    def verdict(self) -> str:
        """Whether weights need to be kept to 7 bits, in words."""
        if self.pairs is None:
            return f"not applicable: {self.why}"
        if self.pairs.saturated > 0:
            return f"yes: {percent(self.pairs.saturated)} of pairs saturate"
        if self.pairs.possible_share <= 1:
            return "no: impossible by the weights"
        return f"no: not seen in {self.samples} sample{'s' if self.samples != 1 else ''}"


def headroom(
    qmodel: QuantizedModel, inputs: tuple[Tensor, ...], max_positions: int = MAX_POSITIONS
) -> list[Headroom]:  # fmt: skip
    """A row for each convolution and linear that runs on 8-bit integers, in order, on these samples.

    Of more than `max_positions` output positions (fewer in very wide layers) a fixed random choice is looked at.
    Raises DataMismatch for inputs that do not fit the model.
    """
    qmodel.model.check_inputs(inputs)
    layers = [integer_layer(qmodel, name) for name in explainable_layers(qmodel)]
    layers = [layer for layer in layers if sums_are_integer(layer.source, layer.weight)]
    by_op = {layer.node: layer for layer in layers}
    readers = Counter(layer.input_node for layer in layers)
    kept: dict[fx.Node, Tensor] = {}
    rows = []

    def see(node: fx.Node, value: Tensor) -> None:
        if node in readers:
            kept[node] = value
        layer = by_op.get(node)
        if layer is None:
            return
        rows.append(_row(layer, kept[layer.input_node], value, len(inputs[0]), max_positions))
        readers[layer.input_node] -= 1
        if readers[layer.input_node] == 0:
            del kept[layer.input_node]

    run_tapped(qmodel.graph_module, {*readers, *by_op}, see, inputs)
    return rows


def _row(layer: IntegerLayer, x: Tensor, y: Tensor, samples: int, max_positions: int) -> Headroom:
    """x: what enters the layer, y: what leaves it, for its shape."""
    weights, groups = layer.weight.codes, layer.groups
    outputs, width, products = len(weights), weights.shape[1], weights[0].numel()
    places = (y.shape[0], *y.shape[2:]) if layer.stride else (y.numel() // outputs,)
    total = math.prod(places)
    limit = min(max_positions, _MOST_PAIRS * 2 // (outputs * products), _CHUNK // (groups * products))
    positions = _choose(places, total, max(1, limit))
    values, _ = layer.windows(x, positions)
    # [P, *kernel, C] and [O, C, *kernel] to [groups, P or O of a group, products], in the order of the kernel
    codes = quantize(values, layer.source.qparams).unflatten(-1, (groups, width)).movedim(-2, 0)
    codes = codes.reshape(groups, len(positions), products).int()
    rows = weights.movedim(1, -1).reshape(groups, -1, products).int()
    seen, possible = _accumulators(layer, codes, rows)
    why = None
    if layer.weight.quant_min >= 0:
        why = "uint8 weights are multiplied in 16 bits and added in 32"
    elif width == 1 and outputs == groups:
        why = "a depthwise kernel adds each product in 32 bits"
    pairs = _pairs(layer, codes, rows) if why is None else None
    return Headroom(
        layer.name, layer.op, products, seen, possible, pairs, why or "", len(positions), total, samples
    )  # fmt: skip


def _choose(places: tuple[int, ...], total: int, most: int) -> Tensor:
    """[P, axes] coordinates: all, or a fixed random choice, since every n-th may always be the same column."""
    flat = torch.arange(total)
    if total > most:
        flat = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:most]
    return torch.stack(torch.unravel_index(flat, places), 1)


def _accumulators(layer: IntegerLayer, codes: Tensor, rows: Tensor) -> tuple[int, int]:
    """Largest magnitude seen and possible, with the bias where it is an integer of 32 bits.

    codes [G, P, K], rows [G, O, K]. float64 holds every sum exactly, and its product is the fast one.
    """
    source, groups = layer.source, layer.groups
    biases = layer.bias_codes
    fitting = np.zeros(1) if biases is None else np.where(np.abs(biases) < INT32, biases, 0)
    bias = torch.from_numpy(fitting.astype(np.float64)).expand(len(layer.weight.codes)).reshape(groups, 1, -1)
    w_zero = layer.weight.zero_point.expand(len(layer.weight.codes)).reshape(groups, -1, 1)
    x = (codes - source.zero_point).double()
    w = (rows - w_zero).double()
    sums = torch.bmm(x, w.transpose(1, 2)) + bias
    low, high = (float(end - source.zero_point) for end in (source.quant_min, source.quant_max))
    up, down = w.clamp(min=0).sum(2)[:, None], w.clamp(max=0).sum(2)[:, None]
    ends = torch.stack([up * high + down * low + bias, up * low + down * high + bias])
    return int(sums.abs().max()), int(ends.abs().max())


def _pairs(layer: IntegerLayer, codes: Tensor, rows: Tensor) -> Pairs:
    """codes [G, P, K], rows [G, O, K]. float32 holds every sum of two products exactly."""
    groups, count, products = codes.shape
    moved = 128 if layer.source.quant_min < 0 else 0
    odd = products % 2
    half = (products + odd) // 2
    a = pad((codes + moved).float(), (0, odd)).reshape(groups, count, half, 2).movedim(1, 2)
    w = pad(rows.float(), (0, odd)).reshape(groups, -1, half, 2).permute(0, 2, 3, 1)
    lowest, highest = layer.source.quant_min + moved, layer.source.quant_max + moved
    up, down = w.clamp(min=0).sum(2), w.clamp(max=0).sum(2)
    possible = (int((up * lowest + down * highest).min()), int((up * highest + down * lowest).max()))
    multipliers = torch.from_numpy(layer.multipliers.astype(np.float64)).reshape(groups, 1, -1)
    lows, highs, cut, affected, shift = [], [], 0, 0, 0.0
    for part in a.split(max(1, _CHUNK // w[:, :, 0].numel()), 2):
        sums = torch.bmm(part.flatten(0, 1), w.flatten(0, 1)).unflatten(0, (groups, half))
        low, high = torch.aminmax(sums)
        lows.append(int(low))
        highs.append(int(high))
        if lows[-1] >= INT16_LOW and highs[-1] <= INT16_HIGH:
            continue
        lost = sums.clamp(INT16_LOW, INT16_HIGH).sub_(sums)
        cut += int(lost.count_nonzero())
        affected += int((lost != 0).any(1).count_nonzero())
        shift = max(shift, float((lost.sum(1, dtype=torch.float64) * multipliers).abs().max()))
    accumulators = count * rows.shape[0] * rows.shape[1]
    return Pairs((min(lows), max(highs)), possible, cut / (accumulators * half), affected / accumulators, shift)


def _share16(ends: tuple[int, int]) -> float:
    return max(ends[0] / INT16_LOW, ends[1] / INT16_HIGH)
