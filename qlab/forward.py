"""A network over the batches of a data set, on integers several at once; its float original beside it for the SQNR."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlab.conversion import QuantizedModel
from qlab.data import Dataset
from qlab.errors import DataMismatch
from qlab.graph.capture import Model
from qlab.in_order import in_order
from qlab.layer_sqnr import SimulatedTaps, SqnrTaps


@dataclass(frozen=True)
class Batch:
    """inputs: what went in, filled up to a fixed size. count: samples of the data. output: of the network that is
    measured. own_float: of its float original, where that ran too."""

    inputs: tuple[Tensor, ...]
    targets: Tensor | None
    count: int
    output: Any
    own_float: Any


class Forward:
    """model: the float side. size: samples at once; batches: how many of them. taps: what adds up the SQNR of the first
    `sqnr_samples`, or None.

    Raises DataMismatch for a batch size below 1, and for "integer" UnsupportedModel.
    """

    def __init__(
        self, network: Model | QuantizedModel, part: Dataset, batch_size: int, backend: str, sqnr_samples: int
    ):  # fmt: skip
        if batch_size < 1:
            raise DataMismatch(f"The batch size is {batch_size}. It has to be at least 1.")
        self.part = part
        self.model = network.reference if isinstance(network, QuantizedModel) else network
        self.size = self.model.fixed_batch or batch_size
        self.batches = -(-len(part) // self.size)
        self.taps: SqnrTaps | None = None
        self._parallel = 1
        self._execute: Callable[..., Any] = network
        if isinstance(network, QuantizedModel):
            measured = network.has_float_original and sqnr_samples > 0
            if backend == "integer":
                from qlab.runtime.session import at_once
                from qlab.runtime.taps import integer_networks

                self._parallel, options = at_once(network, self.batches)
                if measured:
                    self._execute, self.taps = integer_networks(network, options)
                else:
                    self._execute = network.integer_session(options)
            elif measured:
                self.taps = SimulatedTaps(network)
        self._tapped = -(-sqnr_samples // self.size) if self.taps else 0

    @contextmanager
    def run(self) -> Iterator[Iterator[Batch]]:
        """The batches in order. Leaving early drops those that have not begun."""
        made = in_order(self._batch, self.batches, self._parallel)
        try:
            yield made
        finally:
            made.close()

    def _batch(self, number: int) -> Batch:
        _, inputs, targets = self.part.batch(number * self.size, self.size)
        count = len(inputs[0])
        inputs = pad(inputs, self.size) if self.model.fixed_batch and count < self.size else inputs
        self.model.check_inputs(inputs)
        if self.taps is not None and number < self._tapped:
            return Batch(inputs, targets, count, *self.taps.run(number, inputs))
        return Batch(inputs, targets, count, self._execute(*inputs), None)


def pad(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    """Fill a last batch up with copies of its last sample, for models that take one batch size only."""
    return tuple(torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]) for x in inputs)
