"""An exponential average of the range of each batch."""

from __future__ import annotations

import numpy as np

from qlab.quant.observers.base import Distribution, Grid, Observer, Param, Range


def moving_average(d: Distribution, grid: Grid, averaging_constant: float) -> Range:
    """r = r + c (batch - r), starting at the first batch, in float32 and in the order of the batches. [1] each.

    Without batches (a constant tensor) it is the range itself. Source: torch.ao MovingAverageMinMaxObserver.
    """
    if d.batch_minimum is None or d.batch_maximum is None:
        return d.minimum, d.maximum
    c = np.float32(averaging_constant)
    low, high = d.batch_minimum[0], d.batch_maximum[0]
    for smallest, largest in zip(d.batch_minimum[1:], d.batch_maximum[1:], strict=True):
        low, high = low + c * (smallest - low), high + c * (largest - high)
    return np.array([low], np.float32), np.array([high], np.float32)


OBSERVER = Observer(
    name="moving_average",
    summary="An average of the batches' ranges that follows slowly, so that a single odd batch counts little.",
    rule=moving_average,
    needs="batches",
    params=(
        Param(
            "averaging_constant",
            default=0.01,
            minimum=0.0001,
            maximum=1.0,
            help="Weight of each new batch: 1 keeps only the last batch, small values hold on to the first ones.",
        ),
    ),
)
