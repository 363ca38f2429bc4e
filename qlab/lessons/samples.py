"""A sample network with its data and calibration, each made once for each process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from qlab.config import QConfig, QConfigMapping, QuantSpec

if TYPE_CHECKING:
    from qlab.calibration import Calibration
    from qlab.data import Dataset
    from qlab.evaluation import Evaluation
    from qlab.graph.capture import Model


@dataclass(frozen=True)
class Sample:
    """Shared by all who ask: change nothing of it."""

    model: Model
    data: Dataset

    @cached_property
    def calibration(self) -> Calibration:
        from qlab.calibration import calibrate

        return calibrate(self.model, self.data)

    @cached_property
    def float_evaluation(self) -> Evaluation:
        """Of the evaluation part: what results are held against."""
        from qlab.evaluation import evaluate

        return evaluate(self.model, self.data)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The float weights by name ("conv1.weight"), BatchNorm folded into them."""
        from qlab.graph.lower import attribute
        from qlab.graph.placement import place

        everything = QConfigMapping(default=QConfig(weight=QuantSpec(), activation=QuantSpec()))
        found = {
            point.tensor: attribute(self.model.graph_module, point.constant)
            for point in place(self.model, everything).weights
        }
        return {name: weight.detach() for name, weight in found.items() if weight is not None}

    def inputs(self, samples: int) -> tuple[Tensor, ...]:
        """The first of the calibration part, as the network takes them: [samples, ...] each."""
        _, inputs, _ = next(iter(self.data.calibration.batches(samples)))
        return tuple(inputs)

    def values(self, tensor: str, samples: int = 64) -> Tensor:
        """What this tensor of the float network holds for the first samples: [samples, ...]. Raises KeyError."""
        node = self.model.node(tensor)
        with torch.no_grad():
            reader = _Reader(self.model.graph_module, node)
            reader.run(*self.inputs(samples))
        return reader.found


class _Reader(fx.Interpreter):
    """Runs a graph and keeps what one node gave."""

    found: Tensor

    def __init__(self, graph_module: fx.GraphModule, node: fx.Node) -> None:
        super().__init__(graph_module)
        self._wanted = node

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n is self._wanted:
            self.found = value
        return value


@cache
def sample(name: str) -> Sample:
    """The sample network of this name; calibrated and evaluated when that is asked for, a second at most."""
    from qlab.data import load_dataset
    from qlab.graph.capture import load_model

    return Sample(load_model(name), load_dataset(name))
