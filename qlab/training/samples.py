"""The samples of one training step, some of them mixed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qlab.evaluation import first_tensor
from qlab.graph.capture import Model
from qlab.training.loss import Loss


@dataclass(frozen=True)
class Samples:
    """inputs: each [N, ...]. targets [N, ...] or None; teacher: what the float network says to them, or None. The first
    `mixtures` of them are mixed: they have no label, and `to_mixtures` is what the float network says to those."""

    inputs: tuple[Tensor, ...]
    targets: Tensor | None
    teacher: Tensor | None
    mixtures: int = 0
    to_mixtures: Tensor | None = None

    def mixed(self, count: int, draw: np.random.Generator, network: Model) -> Samples:
        """With the first `count` mixed with another one each, by a share that is drawn evenly."""
        size = len(self.inputs[0])
        partner = torch.from_numpy(draw.permutation(size)[:count])
        share = torch.from_numpy(draw.random(count, dtype=np.float32))
        inputs = tuple(torch.cat([_mix(x, count, partner, share), x[count:]]) for x in self.inputs)
        # The whole batch is asked where the network takes no other size.
        asked = inputs if network.fixed_batch else tuple(x[:count] for x in inputs)
        return Samples(inputs, self.targets, self.teacher, count, first_tensor(network(*asked))[:count])

    def loss(self, loss: Loss, output: Tensor) -> Tensor:
        """Mean over the samples, []."""
        k, size = self.mixtures, len(output)
        parts = []
        if k:
            assert self.to_mixtures is not None
            parts.append(loss.to_teacher(output[:k], self.to_mixtures, self.targets) * (k / size))
        if k < size:
            targets = None if self.targets is None else self.targets[k:]
            teacher = None if self.teacher is None else self.teacher[k:]
            parts.append(loss(output[k:], targets, teacher) * ((size - k) / size))
        return sum(parts[1:], start=parts[0])


def _mix(x: Tensor, count: int, partner: Tensor, share: Tensor) -> Tensor:
    share = share.reshape(-1, *[1] * (x.ndim - 1))
    return share * x[:count] + (1 - share) * x[partner]
