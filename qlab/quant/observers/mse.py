"""The range with the least squared error of quantize-dequantize."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.quant.observers.base import EPS, Distribution, Floats, Grid, Observer, Param, Range
from qlab.quant.observers.noise import BLOCK, Sample

ROUNDS = 5
# Candidates of the search that are compared once more on the whole histogram.
FINALISTS = 3
# Scales tried around the best in a round, for one row and for many: there the cost is rows times values.
_FINE = {False: 9, True: 7}


def mse(d: Distribution, grid: Grid, candidates: int) -> Range:
    """argmin over (low, high) of sum (x - x')² with exactly these codes, for every row. [R] each.

    Searched is the pair that the hardware will use, (zero_point, scale), so the rounding of the zero point is part of
    what is compared: first `candidates` scales from the full range down to below the root mean square, spaced by ratio,
    for a set of zero points (all of them on grids up to 16 levels); then ever closer around the best; then the least
    squares scale for the codes found. The full range takes part to the end, so the error never exceeds min_max's.
    """
    sample = Sample.of(d)
    low, high = np.minimum(d.minimum, np.float32(0)), np.maximum(d.maximum, np.float32(0))
    out_low, out_high = np.array(d.minimum, np.float32), np.array(d.maximum, np.float32)
    step = max(1, BLOCK // max(sample.size, 1))
    for start in range(0, len(low), step):
        part = slice(start, start + step)
        out_low[part], out_high[part] = _search(sample.rows(part), low[part], high[part], d, part, grid, candidates)
    return out_low, out_high


def _search(
    sample: Sample, low: Floats, high: Floats, d: Distribution, part: slice, grid: Grid, candidates: int
) -> Range:
    rows = len(low)
    rms = np.sqrt(sample.mean_square())
    codes = _zero_points(low, high, grid, rows)
    # A range well below the root mean square clips most of the energy: nothing to find there.
    deepest = np.clip(0.3 * rms / np.maximum(np.maximum(-low, high), EPS), 1e-6, 0.5)
    ladder = deepest ** np.linspace(0.0, 1.0, candidates)[:, None]
    zero_point = np.repeat(codes, candidates, axis=0)
    factor = np.tile(ladder, (len(codes), 1))

    coarse = sample
    if rows == 1:
        coarse = sample.coarser(float(deepest[0] * max(-low[0], high[0])) / grid.steps)
    seen: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []  # zero point, factor, error; [R] each
    ratio = deepest ** (-1.0 / max(candidates - 1, 1))
    spacing = _spacing(codes, grid)
    thin = rows > 1
    for turn in range(ROUNDS + 1):
        scale = np.maximum(factor * _full_scale(low, high, zero_point, grid), EPS)
        error = coarse.squared_error(scale, zero_point, grid)
        best = np.argmin(error, axis=0)
        at = (best, np.arange(rows))
        seen.append((zero_point[at], factor[at], error[at]))
        if turn == ROUNDS:
            break
        # Keep the best of all rounds as the centre of the next.
        latest = np.argmin([s[2] for s in seen], axis=0)
        centre_code = np.array([s[0] for s in seen])[latest, np.arange(rows)]
        centre_factor = np.array([s[1] for s in seen])[latest, np.arange(rows)]
        move = _moves(grid, thin, spacing)
        zero_point = np.clip(
            centre_code + np.repeat(move, _FINE[thin], axis=0)[:, None], grid.quant_min, grid.quant_max
        )
        width = np.log(ratio)[None] * np.linspace(-1.0, 1.0, _FINE[thin])[:, None]
        factor = np.tile(np.exp(np.log(centre_factor)[None] + width), (len(move), 1))
        ratio = ratio ** (2.5 / _FINE[thin])
        spacing = max(1, spacing // 3)

    # What the search found becomes ranges, and these are compared as they will be used, on all that is known.
    lows: list[NDArray[Any]] = [d.minimum[part]]
    highs: list[NDArray[Any]] = [d.maximum[part]]
    codes_seen, factors_seen, errors_seen = (np.array(column) for column in zip(*seen, strict=True))
    for rank in np.argsort(errors_seen, axis=0, kind="stable")[:FINALISTS]:
        zero_point_found, factor_found = codes_seen[rank, np.arange(rows)], factors_seen[rank, np.arange(rows)]
        scale = np.maximum(factor_found * _full_scale(low, high, zero_point_found[None], grid)[0], EPS)
        for _ in range(2):
            lows.append(_low(scale, zero_point_found, grid))
            highs.append(_high(scale, zero_point_found, grid))
            scale = np.maximum(sample.least_squares_scale(scale, zero_point_found, grid), EPS)
    lows_all, highs_all = np.array(lows, np.float32), np.array(highs, np.float32)
    scales, zero_points = grid.scale_zero_point(lows_all, highs_all)
    final = sample.squared_error(scales, zero_points, grid, np.float64 if rows == 1 else np.float32)
    best = np.argmin(final, axis=0)
    return lows_all[best, np.arange(rows)], highs_all[best, np.arange(rows)]


def _full_scale(low: Floats, high: Floats, zero_point: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """The smallest scale that clips nothing with these zero points. [K, R]; a side that has no codes is left out."""
    above, below = grid.quant_max - zero_point, zero_point - grid.quant_min
    up = np.where(above > 0, high / np.maximum(above, 1), 0.0)
    down = np.where(below > 0, -low / np.maximum(below, 1), 0.0)
    return np.maximum(up, down).astype(np.float64)


def _zero_points(low: Floats, high: Floats, grid: Grid, rows: int) -> NDArray[np.int64]:
    """The zero points the search starts from. [Z, R]."""
    if grid.symmetric:
        return np.full((1, rows), grid.symmetric_zero_point, np.int64)
    own = grid.scale_zero_point(low, high)[1].astype(np.int64)[None]
    if np.all(low == 0) or np.all(high == 0):
        return own  # one-sided: every code on the other side would be wasted
    if grid.steps <= 15 and rows == 1:
        return np.arange(grid.quant_min, grid.quant_max + 1)[:, None]
    if rows == 1:
        spread = np.linspace(grid.quant_min, grid.quant_max, 13).round().astype(np.int64)[:, None]
        return np.concatenate([own, spread])
    moves = np.unique(np.round(np.linspace(-grid.steps / 6, grid.steps / 6, 5)).astype(np.int64))
    return np.clip(own + moves[:, None], grid.quant_min, grid.quant_max)


def _spacing(codes: NDArray[np.int64], grid: Grid) -> int:
    return max(1, grid.steps // 24) if len(codes) > 1 else 1


def _moves(grid: Grid, thin: bool, spacing: int) -> NDArray[np.int64]:
    if grid.symmetric:
        return np.zeros(1, np.int64)
    return np.array([-1, 0, 1] if thin else [-2, -1, 0, 1, 2]) * spacing


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
