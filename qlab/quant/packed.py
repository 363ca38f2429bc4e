"""Statistics of many small parts of the data, held packed and merged in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlab.quant.stats import OCTAVES, PER_OCTAVE, SIDE, TensorStats

Packed = Mapping[str, NDArray[Any]]  # what TensorStats.to_arrays gives


def merge_packed(parts: Sequence[Packed]) -> TensorStats:
    """What merging all of them one after the other gives, exactly, without a histogram for each. At least one part.

    Batches of equal index stay in the order of the parts. All parts have to be of one tensor.
    """
    first = parts[0]
    scalars = np.stack([p["scalars"] for p in parts]).astype(np.int64)
    tops = scalars[:, 4]
    top = int(tops.max())
    index = np.concatenate([_moved(p["bucket_index"], top - int(t)) for p, t in zip(parts, tops, strict=True)])
    counts = np.concatenate([p["bucket_count"] for p in parts])
    # Sums of counts stay below 2^53, where float64 holds whole numbers exactly.
    held = np.bincount(index, weights=counts, minlength=2 * SIDE).astype(np.int64)
    used = np.flatnonzero(held)
    batches = np.concatenate([p["batch_index"] for p in parts])
    order = np.argsort(batches, kind="stable")
    arrays: dict[str, NDArray[Any]] = {
        "name": first["name"],
        "scalars": np.array([*scalars[:, :4].sum(0), top], np.int64),
        "batch_index": batches[order],
        "bucket_index": used.astype(np.int32),
        "bucket_count": held[used],
    }
    for key in ("batch_minimum", "batch_maximum", "batch_total", "batch_total_square"):
        arrays[key] = np.concatenate([p[key] for p in parts])[order]
    if "channel_axis" in first:
        arrays["channel_axis"] = first["channel_axis"]
        arrays["channel_minimum"] = np.minimum.reduce([p["channel_minimum"] for p in parts])
        arrays["channel_maximum"] = np.maximum.reduce([p["channel_maximum"] for p in parts])
    return TensorStats.from_arrays(arrays)


def _moved(index: NDArray[Any], octaves: int) -> NDArray[np.int64]:
    """Bucket numbers under a top exponent so much higher; what leaves falls into the bucket of zero of its sign."""
    side, within = np.divmod(index.astype(np.int64), SIDE)
    moved = np.maximum(within - octaves * PER_OCTAVE, 0) if octaves < OCTAVES else np.zeros_like(within)
    return side * SIDE + moved
