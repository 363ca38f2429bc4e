"""What the float network computes on the way, as something to stay close to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlab.graph.lower import copy_graph
from qlab.training.graph import TrainingNetwork


class Hints:
    """Compares the inner tensors of a training network, on their grids, with those of the float network on the same
    inputs. With some hundred samples they say much more than labels do. Source: Romero et al. 2015."""

    def __init__(self, network: TrainingNetwork):
        points = network.start.points
        self.keys = [key for key, p in points.items() if p.consumers is None and p.kind == "observed"]
        self._floats, copy_of = copy_graph(network.reference.graph_module)
        output = self._floats.graph.output_node()
        output.args = (tuple(copy_of[network.reference.node(points[key].tensor)] for key in self.keys),)
        self._floats.graph.eliminate_dead_code()
        self._floats.recompile()
        self._seen: dict[str, Tensor] = {}
        for key in self.keys:
            network.activations[key].register_forward_hook(self._watch(key))

    def _watch(self, key: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._seen[key] = output

        return hook

    def wanted(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors of the float network for these inputs."""
        with torch.no_grad():
            found: tuple[Tensor, ...] = self._floats(*inputs)
        return found

    def distance(self, wanted: Sequence[Tensor]) -> Tensor:
        """Mean over the tensors of the noise relative to the signal (squares), of the last forward pass. []."""
        parts = []
        for key, target in zip(self.keys, wanted, strict=True):
            noise = (self._seen[key] - target).square().sum()
            parts.append(noise / target.square().sum().clamp(min=1e-12))
        return torch.stack(parts).mean()
