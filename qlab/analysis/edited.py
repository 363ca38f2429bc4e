"""What an edit does: to the output of a layer, and to what the network answers, on a few samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qlab.errors import InvalidConfig, NonFinite
from qlab.evaluation import first_tensor, predict
from qlab.float_side import Tapped

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel

Batches = Iterable[tuple[tuple[Tensor, ...], Tensor | None]]
_CHANNELS_FIRST = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


@dataclass(frozen=True, eq=False)
class EditEffect:
    """An edited quantized model held against the unedited one, on the same samples.

    tensor: at the end of the layer's unit, of `values` numbers in all; changed: how many of them differ. sqnr: of it
    against the unedited one, dB; inf where nothing differs, -inf where the unedited one is zero throughout. largest:
    absolute change. channels: [C] largest absolute change of each channel. step: distance of two neighbours on the grid
    of that tensor, None where it lies on no grid of one scale. predicted: predictions, of which `answered` differ.
    output: largest absolute change of the network's output.
    """

    tensor: str
    samples: int
    values: int
    changed: int
    sqnr: float
    largest: float
    channels: NDArray[np.float64]
    step: float | None
    predicted: int
    answered: int
    output: float

    @property
    def changed_channels(self) -> NDArray[np.int64]:
        """The channels in which a number differs, the most changed first."""
        order = np.argsort(-self.channels, kind="stable")
        return order[self.channels[order] > 0]


def output_of(qmodel: QuantizedModel, layer: str) -> str:
    """The tensor at the end of the unit of this weight. Raises InvalidConfig for what is no quantized weight."""
    if layer in qmodel.outputs:
        return qmodel.outputs[layer]
    for point in qmodel.placement.weights:
        if point.layer == layer:  # a weight of a recurrent layer, which has several
            name = qmodel.model.names[point.node]
            return qmodel.outputs.get(name, name)
    raise InvalidConfig(f"{layer!r} is no quantized weight of this model: name one of its weights.")


def edit_effect(original: QuantizedModel, edited: QuantizedModel, layer: str, batches: Batches) -> EditEffect:
    """Run both on these batches, each (inputs, targets or None), and compare. Neither model is changed.

    Both come from one network under one config. Raises InvalidConfig for a layer without a quantized weight and without
    a batch, NonFinite where an edit makes the output infinite.
    """
    tensor, sums = output_of(original, layer), _Sums()
    axis = _channel_axis(original, layer)
    for inputs, targets in batches:
        before, after = (_run(qmodel, tensor, inputs) for qmodel in (original, edited))
        if not bool(torch.isfinite(after[1]).all()):
            raise NonFinite(f"{tensor!r} holds NaN or Inf with these edits: write a smaller scale.", tensor=tensor)
        sums.answers(before[0], after[0], targets, len(inputs[0]))
        sums.add(before[1], after[1], axis)
    if not sums.samples:
        raise InvalidConfig("an effect is measured on samples: give at least one batch.")
    grid = edited.activations.get(tensor)
    step = None if grid is None or grid.scale.ndim else float(grid.scale)
    return sums.effect(tensor, step)


def _run(qmodel: QuantizedModel, tensor: str, inputs: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
    """The network's output, and a tensor on its way."""
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        found[name] = x.detach().clone()  # what comes behind may write into it

    with torch.no_grad():
        output = Tapped(qmodel.graph_module, {qmodel.output_nodes[tensor]: tensor}, see).run(*inputs)
    return output, found[tensor]


def _channel_axis(qmodel: QuantizedModel, layer: str) -> int:
    """The axis of the channels in a layer's output."""
    kinds = {row.layer: row.op for row in qmodel.ledger}
    return 1 if kinds.get(layer) in _CHANNELS_FIRST else -1


class _Sums:
    """What the batches add up to."""

    def __init__(self) -> None:
        self.samples = self.values = self.changed = self.predicted = self.answered = 0
        self.signal = self.noise = self.output = 0.0
        self.channels: NDArray[np.float64] | None = None

    def add(self, before: Tensor, after: Tensor, axis: int) -> None:
        difference = (after.double() - before.double()).abs()
        self.values += difference.numel()
        self.changed += int((difference > 0).sum())
        self.signal += float(before.double().square().sum())
        self.noise += float(difference.square().sum())
        if not difference.ndim:
            difference = difference.reshape(1)
        rows = difference.movedim(axis, 0).reshape(difference.shape[axis], -1).amax(1).numpy()
        self.channels = rows if self.channels is None else np.maximum(self.channels, rows)

    def answers(self, before: Any, after: Any, targets: Tensor | None, count: int) -> None:
        self.samples += count
        a, b = (predict(output, targets, count, "the edited model") for output in (before, after))
        self.predicted += a.size
        self.answered += int((a != b).sum())
        change = (first_tensor(after).double() - first_tensor(before).double()).abs()
        self.output = max(self.output, float(change.max()))

    def effect(self, tensor: str, step: float | None) -> EditEffect:
        assert self.channels is not None
        sqnr = math.inf
        if self.noise:
            sqnr = 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf
        return EditEffect(
            tensor, self.samples, self.values, self.changed, sqnr, float(self.channels.max()), self.channels, step,
            self.predicted, self.answered, self.output,
        )  # fmt: skip
