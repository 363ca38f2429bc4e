"""The range with the least squared error of quantize-dequantize."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.quant.observers.base import EPS, Distribution, Floats, Grid, Observer, Param, Range
from qlab.quant.observers.noise import BLOCK, Sample

# Places at which the search closes in, round by round; the last ones are compared on the whole histogram. A second row
# for many rows, where the cost is rows times values.
_PLACES = {False: (4, 3, 2, 2, 2), True: (3, 2, 1, 1, 1)}
# Scales tried around each place.
_FINE = {False: 9, True: 7}
# Numbers looked at while the ladder of scales may grow: few values make the error a rugged function of the scale.
_BUDGET = 1 << 19


def mse(d: Distribution, grid: Grid, candidates: int) -> Range:
    """argmin over (low, high) of sum (x - x')² with exactly these codes, for every row. [R] each.

    Searched is the pair that the hardware will use, (zero_point, scale), so the rounding of the zero point is part of
    what is compared: first a ladder of `candidates` scales (more for few values) from the full range down to below the
    root mean square, for a set of zero points (all of them on grids up to 16 levels); then ever closer around the best
    local minima; then the least squares scale for the codes found. The full range takes part to the end, so the error
    never exceeds min_max's.
    """
    sample = Sample.of(d)
    low, high = np.array(d.minimum, np.float32), np.array(d.maximum, np.float32)
    step = max(1, BLOCK // max(sample.size, 1))
    for start in range(0, len(low), step):
        part = slice(start, start + step)
        low[part], high[part] = _search(sample.rows(part), d.minimum[part], d.maximum[part], grid, candidates)
    return low, high


def _search(sample: Sample, minimum: Floats, maximum: Floats, grid: Grid, candidates: int) -> Range:
    rows = np.arange(len(minimum))
    thin = len(minimum) > 1
    low, high = np.minimum(minimum, np.float32(0)), np.maximum(maximum, np.float32(0))
    largest = np.maximum(np.maximum(-low, high), EPS)
    # A range well below the root mean square clips most of the energy: nothing to find there.
    deepest = np.clip(0.3 * np.sqrt(sample.mean_square()) / largest, 1e-6, 0.5)
    coarse = sample if thin else sample.coarser(float(deepest[0] * largest[0]) / grid.steps)

    def errors(zero_point: NDArray[Any], factor: NDArray[Any]) -> NDArray[np.float64]:
        flat = zero_point.reshape(-1, len(rows))
        scale = np.maximum(factor.reshape(flat.shape) * _full_scale(low, high, flat, grid), EPS)
        return coarse.squared_error(scale, flat, grid).reshape(zero_point.shape)

    codes, moves, spacing = _zero_points(low, high, grid)
    cost = len(codes) * len(rows) * max(coarse.size, 1)
    ladder_length = int(np.clip(_BUDGET // cost, candidates, 16 * candidates))
    ladder = deepest ** np.linspace(0.0, 1.0, ladder_length)[:, None]
    factor: NDArray[Any] = np.broadcast_to(ladder, (len(codes), *ladder.shape))
    zero_point: NDArray[Any] = np.broadcast_to(codes[:, None], factor.shape)
    error: NDArray[Any] = errors(zero_point, factor)
    # Only local minima along the ladder are places of their own; their neighbours lead to the same one.
    beyond = np.pad(error, ((0, 0), (1, 1), (0, 0)), constant_values=np.inf)
    error = np.where((error <= beyond[:, :-2]) & (error <= beyond[:, 2:]), error, np.inf)
    zero_point, factor, error = (a.reshape(-1, len(rows)) for a in (zero_point, factor, error))

    ratio = deepest ** (-1.0 / (ladder_length - 1))
    fine = np.linspace(-1.0, 1.0, _FINE[thin])[:, None]
    for places in _PLACES[thin]:
        at = np.argsort(error, axis=0, kind="stable")[:places], rows
        around = factor[at][:, None, None] * np.exp(np.log(ratio) * fine)
        shifted = np.clip(zero_point[at][:, None] + moves[:, None] * spacing, grid.quant_min, grid.quant_max)
        factor = np.broadcast_to(around, (len(around), len(moves), *around.shape[2:]))
        zero_point = np.broadcast_to(shifted[:, :, None], factor.shape)
        error = errors(zero_point, factor).reshape(len(around), -1, len(rows))
        # The best around each place; the place itself is among them, so no round loses ground.
        best = np.argmin(error, axis=1)[:, None]
        zero_point, factor, error = (
            np.take_along_axis(a.reshape(error.shape), best, axis=1)[:, 0] for a in (zero_point, factor, error)
        )
        ratio = ratio ** (2.5 / len(fine))
        spacing = max(1, spacing // 3)

    # What the search found becomes ranges, and these are compared as they will be used, on all that is known.
    lows: list[NDArray[Any]] = [minimum]
    highs: list[NDArray[Any]] = [maximum]
    for code, share in zip(zero_point, factor, strict=True):
        scale = np.maximum(share * _full_scale(low, high, code[None], grid)[0], EPS)
        for _ in range(2):
            lows.append(_low(scale, code, grid))
            highs.append(_high(scale, code, grid))
            scale = np.maximum(sample.least_squares_scale(scale, code, grid), EPS)
    lows_all, highs_all = np.array(lows, np.float32), np.array(highs, np.float32)
    scales, zero_points = grid.scale_zero_point(lows_all, highs_all)
    final = sample.squared_error(scales, zero_points, grid, np.float32 if thin else np.float64)
    chosen = np.argmin(final, axis=0), rows
    return lows_all[chosen], highs_all[chosen]


def _full_scale(low: Floats, high: Floats, zero_point: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """The smallest scale that clips nothing with these zero points. [K, R]; a side that has no codes is left out."""
    above, below = grid.quant_max - zero_point, zero_point - grid.quant_min
    up = np.where(above > 0, high / np.maximum(above, 1), 0.0)
    down = np.where(below > 0, -low / np.maximum(below, 1), 0.0)
    return np.maximum(up, down).astype(np.float64)


def _zero_points(low: Floats, high: Floats, grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Zero points the search starts from [Z, R], moves around a place [M], and the step of these moves at first."""
    stay = np.zeros(1, np.int64)
    if grid.symmetric:
        return np.full((1, len(low)), grid.symmetric_zero_point, np.int64), stay, 1
    own = grid.scale_zero_point(low, high)[1].astype(np.int64)[None]
    if np.all(low == 0) or np.all(high == 0):
        return own, stay, 1  # one-sided: every code on the other side would be wasted
    if len(low) > 1:
        starts = np.unique(np.round(np.linspace(-grid.steps / 6, grid.steps / 6, 5)).astype(np.int64))
        codes = np.clip(own + starts[:, None], grid.quant_min, grid.quant_max)
        return codes, np.array([-1, 0, 1]), max(1, grid.steps // 24)
    if grid.steps <= 15:
        return np.arange(grid.quant_min, grid.quant_max + 1)[:, None], np.array([-1, 0, 1]), 1
    # Around the full range's own as well: where one side is short, each of its few codes is another error.
    near = np.clip(own[0] + np.arange(-2, 3), grid.quant_min, grid.quant_max)
    spread = np.linspace(grid.quant_min, grid.quant_max, 12).round().astype(np.int64)
    return np.unique(np.append(near, spread))[:, None], np.array([-2, -1, 0, 1, 2]), max(1, grid.steps // 24)


def _low(scale: NDArray[np.float64], zero_point: NDArray[np.int64], grid: Grid) -> NDArray[np.float64]:
    return -scale * grid.steps / 2 if grid.symmetric else (grid.quant_min - zero_point) * scale


def _high(scale: NDArray[np.float64], zero_point: NDArray[np.int64], grid: Grid) -> NDArray[np.float64]:
    return scale * grid.steps / 2 if grid.symmetric else (grid.quant_max - zero_point) * scale


OBSERVER = Observer(
    name="mse",
    summary="The range with the least squared error: clips as much as finer steps make up for.",
    rule=mse,
    needs="values",
    params=(
        Param(
            "candidates",
            default=32,
            minimum=8,
            maximum=512,
            help="Ranges tried before the search closes in: more finds a better one in rugged cases and takes longer.",
            kind="int",
        ),
    ),
)
