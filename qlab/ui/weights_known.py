"""What is known of the weight that Weights shows: worked out once for a config, a layer and the edits in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlab.ui.converted import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from qlab.quant.cells import Cells
    from qlab.quant.levels import Levels
    from qlab.quant.tensor import QuantizedTensor
    from qlab.ui.weights_source import Shown

MOST_CELLS, MOST_ROWS, MOST_COLUMNS = 4_096, 64, 144
MOST_POINTS = 4_000
_KERNEL = {1: "kernel position", 2: "kernel row, column", 3: "kernel plane, row, column"}


@dataclass(frozen=True, eq=False)
class Known:
    """One quantized weight. name: of the tensor. axis: of its output channels, of which it has `channels`, each with
    `positions` numbers. original: the float weight, None where the file does not hold it. sqnr: of the weight, dB.
    """

    name: str
    tensor: QuantizedTensor
    axis: int
    original: Tensor | None
    levels: Levels
    sqnr: float | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.codes.shape)

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def positions(self) -> int:
        return self.tensor.codes.numel() // max(self.channels, 1)

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of what is shown at a time."""
        columns = max(min(self.positions, MOST_COLUMNS), 1)
        return max(min(self.channels, MOST_ROWS, MOST_CELLS // columns), 1), columns

    @property
    def float_bytes(self) -> int:
        return self.tensor.codes.numel() * (4 if self.original is None else self.original.element_size())

    def names(self, positions: NDArray[Any]) -> list[str]:
        """What these positions are called by the axes behind the channel; nothing where there is one such axis."""
        behind = self._behind
        if len(behind) < 2:
            return []
        return [", ".join(map(str, at)) for at in np.stack(np.unravel_index(positions, behind), axis=-1)]

    @property
    def across(self) -> str:
        """The title of the axis of positions."""
        kernel = _KERNEL.get(len(self._behind) - 1)
        return f"position: input channel, {kernel}" if kernel else "position: input of the layer"

    @property
    def _behind(self) -> tuple[int, ...]:
        return tuple(n for axis, n in enumerate(self.shape) if axis != self.axis)


def known(shown: Shown) -> Known:
    """The weight of the layer that is shown. Shared: do not change it."""
    return _known(shown.stamp, shown)


@st.cache_resource(max_entries=16, show_spinner="Counting the integers")
def _known(stamp: Key, _shown: Shown) -> Known:
    from qlab.graph.lower import attribute
    from qlab.quant.error import sqnr
    from qlab.quant.levels import levels_used

    qmodel = _shown.qmodel
    tensor = qmodel.weights[_shown.layer]
    point = next(point for point in qmodel.placement.weights if point.layer == _shown.layer)
    original = attribute(qmodel.reference.graph_module, point.constant) if qmodel.has_float_original else None
    axis = point.axis % max(tensor.codes.ndim, 1)
    measured = None if original is None else sqnr(original.detach().float(), tensor.dequantize())
    return Known(point.tensor, tensor, axis, original, levels_used(tensor, axis), measured)


def cells_at(of: Known, channel: int, position: int) -> Cells:
    """The window that begins here."""
    from qlab.quant.cells import cells

    rows, columns = of.window
    at = np.arange(channel, min(channel + rows, of.channels))[:, None]
    return cells(of.tensor, of.axis, at, np.arange(position, min(position + columns, of.positions)), of.original)


def sampled(of: Known) -> Cells:
    """Single numbers at even distances, all of them where they are few; flat."""
    from qlab.quant.cells import cells

    size = of.tensor.codes.numel()
    at = np.unique(np.linspace(0, size - 1, min(size, MOST_POINTS)).round().astype(np.int64))
    return cells(of.tensor, of.axis, at // max(of.positions, 1), at % max(of.positions, 1), of.original)


@dataclass(frozen=True, eq=False)
class Packed:
    """values: uint8 [bytes]. same: how many of the codes came back equal when they were unpacked again, of `count`."""

    values: NDArray[np.uint8]
    same: int
    count: int


def packed(shown: Shown) -> Packed:
    """The packed bytes of the layer that is shown, unpacked again to see that they hold the codes."""
    return _packed(shown.stamp, shown)


@st.cache_resource(max_entries=8, show_spinner="Packing")
def _packed(stamp: Key, _shown: Shown) -> Packed:
    from qlab.quant.packing import unpack

    tensor = _shown.qmodel.weights[_shown.layer]
    values = tensor.packed()
    back = unpack(values, tensor.bits, tensor.signed, tensor.codes.shape)
    return Packed(values.numpy(), int((back == tensor.codes).sum()), tensor.codes.numel())
