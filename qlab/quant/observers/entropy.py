"""The range whose quantized histogram differs least from the float one (Kullback-Leibler divergence)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.quant.observers.base import Distribution, Floats, Grid, Observer, Param, Range

# Candidates x levels held at once, for each block of rows.
BLOCK = 1 << 17
SMOOTHING = 1e-4


def entropy(d: Distribution, grid: Grid, bins: int) -> Range:
    """argmin over t of KL(P || Q) for the range cut to ±t, for every row. [R] each.

    P is the histogram of `bins` equal bins within ±t (of |x| when symmetric), the mass beyond t added to its last bins;
    Q is the histogram without that mass, averaged over the nonempty bins that share a code, with the number of codes
    this grid has. t goes from one bin for each code to the full range. As in ONNX Runtime, a two-sided affine range is
    cut at the same t on either side, but never wider than what was seen.
    Source: Migacz 2017 (TensorRT); ONNX Runtime EntropyCalibrater.
    """
    assert d.values is not None
    largest = np.maximum(np.maximum(-d.minimum, d.maximum), 0)
    folded = grid.symmetric or bool(np.all(d.minimum >= 0) or np.all(d.maximum <= 0))
    # A symmetric grid has its codes on both sides of zero, so |x| has half of them.
    levels = (grid.steps + 2) // 2 if grid.symmetric else grid.steps + 1
    rows, n = d.values.shape
    # Several rows are weights: a few hundred values each, which thousands of bins would only scatter.
    count = bins if rows == 1 else max(128, min(bins, 1 << int(np.log2(max(n, 1)))))
    levels = min(levels, count // 2)
    keep = np.empty(rows)
    block = max(1, BLOCK // (levels * min(count, 64)))
    for start in range(0, rows, block):
        part = slice(start, start + block)
        counts = _histogram(d, part, largest[part], count, folded)
        keep[part] = _best_cut(counts, levels, folded)
    high = (largest * keep).astype(np.float32)
    if grid.symmetric:
        return -high, high
    return np.maximum(d.minimum, -high), np.minimum(d.maximum, high)


def _histogram(d: Distribution, part: slice, largest: Floats, bins: int, folded: bool) -> NDArray[Any]:
    """Counts [R, bins] over 0..largest of |x|, or over -largest..largest."""
    assert d.values is not None
    values = np.abs(d.values[part]) if folded else d.values[part]
    rows = len(values)
    span = np.where(largest > 0, largest, 1.0).astype(np.float64)[:, None]

    def position(x: NDArray[Any]) -> NDArray[np.float64]:
        return (x / span if folded else (x / span + 1) / 2) * bins

    counts = np.ones(values.shape) if d.counts is None else d.counts[part]
    # Zero lies on every grid, so its mass tells no two ranges apart; behind a ReLU it is half of all values and would
    # make any cut look harmless (NVIDIA's calibrators overwrite the first bin for the same reason).
    counts = np.where(values == 0, 0.0, counts)
    index = np.clip(position(values).astype(np.int64), 0, bins - 1)
    if d.widths is None:
        index += np.arange(rows)[:, None] * bins
        return np.bincount(index.ravel(), counts.ravel(), rows * bins).reshape(rows, bins)
    # A bucket may be wider than a bin: share it out, so that no pattern of full and empty bins appears.
    half = d.widths[part] / 2
    first = np.clip(position(values - half), 0, bins)
    last = np.clip(position(values + half), 0, bins)
    at = first.astype(np.int64)
    inside = np.maximum(last - first, 1e-12)
    own = np.clip((at + 1 - first) / inside, 0, 1)
    rest = np.clip(at + 1, 0, bins - 1)
    out = np.bincount(np.minimum(at, bins - 1).ravel(), (counts * own).ravel(), bins)
    out += np.bincount(rest.ravel(), (counts * (1 - own)).ravel(), bins)
    return out[None]


def _best_cut(counts: NDArray[np.float64], levels: int, folded: bool) -> NDArray[np.float64]:
    """Share of the full range with the least divergence. [R, bins] -> [R]."""
    rows, bins = counts.shape
    half = bins if folded else bins // 2
    smallest = levels if folded else (levels + 1) // 2
    most = 128 if rows == 1 else 64
    reach = np.unique(np.linspace(smallest, half, most).round().astype(np.int64))  # bins on one side of zero
    start = np.zeros_like(reach) if folded else half - reach
    stop = reach if folded else half + reach
    pad = ((0, 0), (1, 0))
    mass = np.pad(np.cumsum(counts, axis=1), pad)
    filled = np.pad(np.cumsum(counts > 0, axis=1), pad)
    log_mass = np.pad(np.cumsum(counts * np.log(np.maximum(counts, 1e-300)), axis=1), pad)

    # groups [K, levels + 1]: the first bin of each code
    groups = start[:, None] + (np.arange(levels + 1) * (stop - start)[:, None]) // levels
    in_group = np.diff(mass[:, groups], axis=2)
    in_filled = np.diff(filled[:, groups], axis=2)
    level = np.log(np.where(in_group > 0, in_group / np.maximum(in_filled, 1), 1.0))

    total, inside = mass[:, -1:], mass[:, stop] - mass[:, start]
    plogp = log_mass[:, stop] - log_mass[:, start]
    plogq = np.einsum("rkl,rkl->rk", in_group, level)
    # The clipped mass sits in the end bins of P alone; where such a bin is empty, Q gets the smoothing there.
    ends = [(stop - 1, total - mass[:, stop], -1)] if folded else [
        (start, mass[:, start], 0), (stop - 1, total - mass[:, stop], -1)
    ]  # fmt: skip
    for at, clipped, group in ends:
        own = counts[:, at]
        joint = own + clipped
        q = np.where(own > 0, level[:, :, group], np.log(SMOOTHING))
        plogp += joint * np.log(np.maximum(joint, 1e-300)) - own * np.log(np.maximum(own, 1e-300))
        plogq += clipped * q
    # KL of the normalised: sum P/total (log P/total - log Q/inside)
    total = np.maximum(total, SMOOTHING)
    divergence = (plogp - plogq) / total - np.log(total) + np.log(np.maximum(inside, SMOOTHING))
    best = np.argmin(divergence, axis=1)
    return reach[best] / half


OBSERVER = Observer(
    name="entropy",
    summary="The range whose quantized histogram tells most about the float one (KL divergence, as in TensorRT).",
    rule=entropy,
    needs="values",
    params=(
        Param(
            "bins",
            default=2048,
            minimum=256,
            maximum=8192,
            help="Bins of the histogram that is compared: more places the cut finer and takes longer.",
            kind="int",
        ),
    ),
)
