"""How much of its grid a quantized tensor uses: which codes occur, and how many of them in each channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.errors import DataMismatch
from qlab.quant.cells import by_channel
from qlab.quant.tensor import QuantizedTensor


@dataclass(frozen=True, eq=False)
class Levels:
    """codes: [L] every code of the grid, quant_min..quant_max. count: [L] how often each occurs in the tensor.
    used_by_channel: [C] how many different ones occur in each channel."""

    codes: NDArray[np.int64]
    count: NDArray[np.int64]
    used_by_channel: NDArray[np.int64]

    @property
    def used(self) -> int:
        return int(np.count_nonzero(self.count))

    @property
    def unused(self) -> NDArray[np.int64]:
        """The codes that do not occur."""
        return self.codes[self.count == 0]


def levels_used(tensor: QuantizedTensor, axis: int = 0) -> Levels:
    """Levels of the tensor and of its channels along this axis. Raises DataMismatch for a code beyond the grid."""
    rows = by_channel(tensor.codes, axis)
    size = tensor.quant_max - tensor.quant_min + 1
    low, high = (int(rows.min()), int(rows.max())) if rows.numel() else (tensor.quant_min, tensor.quant_max)
    if low < tensor.quant_min or high > tensor.quant_max:
        raise DataMismatch(
            f"codes {low}..{high} lie beyond the grid {tensor.quant_min}..{tensor.quant_max}: write codes of the grid."
        )
    count = torch.bincount(rows.reshape(-1).to(torch.int32) - tensor.quant_min, minlength=size)
    # Sorted, a new code begins wherever two neighbours differ; a table of channels by levels would be much larger.
    ordered = rows.sort(dim=1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(1)
    used = changes + 1 if rows.shape[1] else changes
    return Levels(
        np.arange(tensor.quant_min, tensor.quant_max + 1), count.numpy().astype(np.int64), used.numpy().astype(np.int64)
    )
