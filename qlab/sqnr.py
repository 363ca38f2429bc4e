"""Signal to quantization noise of each layer's output, quantized network beside float one on the same samples."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from qlab.conversion import QuantizedModel


class SqnrTaps:
    """Runs both networks and keeps signal and noise of the output of each quantized unit, tensor by tensor and batch by
    batch. Batches may come from several threads and in any order."""

    def __init__(self, qmodel: QuantizedModel):
        self.qmodel = qmodel
        self.layers_of: dict[str, list[str]] = {}
        for layer, tensor in qmodel.outputs.items():
            self.layers_of.setdefault(tensor, []).append(layer)
        self.float_nodes = {qmodel.model.node(tensor): tensor for tensor in self.layers_of}
        self._sums: dict[int, dict[str, tuple[float, float]]] = {}
        self._float = threading.Lock()

    def run(self, number: int, inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """Outputs of the quantized and of the float network for this batch."""
        raise NotImplementedError

    def run_float(self, inputs: tuple[Tensor, ...]) -> tuple[Any, dict[str, Tensor]]:
        """The float network's output, and the tensors that are compared."""
        kept: dict[str, Tensor] = {}
        tapped = Tapped(self.qmodel.model.graph_module, self.float_nodes, lambda name, x: kept.__setitem__(name, x))
        with self._float, torch.no_grad():  # one at a time: torch uses all its threads for it
            return tapped.run(*inputs), kept

    def add(self, number: int, name: str, reference: Tensor, x: Tensor) -> None:
        reference, x = reference.double(), x.double()
        sums = self._sums.setdefault(number, {})
        sums[name] = float(reference.square().sum()), float((reference - x).square().sum())

    def sqnr(self, batches: int) -> dict[str, float]:
        """Layer -> dB over the first so many batches, in the order of the network."""
        seen = [self._sums[number] for number in sorted(self._sums) if number < batches]
        out = {}
        for tensor in seen[0] if seen else ():
            signal, noise = (sum(sums[tensor][i] for sums in seen) for i in (0, 1))
            value = math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
            out.update(dict.fromkeys(self.layers_of[tensor], value))
        order = {layer: i for i, layer in enumerate(self.qmodel.outputs)}
        return dict(sorted(out.items(), key=lambda kv: order[kv[0]]))


class SimulatedTaps(SqnrTaps):
    """Float and simulated side by side."""

    def __init__(self, qmodel: QuantizedModel):
        super().__init__(qmodel)
        self.quantized_nodes = {qmodel.output_nodes[tensor]: tensor for tensor in self.layers_of}

    def run(self, number: int, inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
        reference, kept = self.run_float(inputs)
        tapped = Tapped(
            self.qmodel.graph_module, self.quantized_nodes, lambda name, x: self.add(number, name, kept[name], x)
        )
        with torch.no_grad():
            return tapped.run(*inputs), reference


class Tapped(fx.Interpreter):
    """Runs a graph and shows the outputs of some of its nodes under their names."""

    def __init__(self, gm: fx.GraphModule, taps: Mapping[fx.Node, str], see: Callable[[str, Tensor], None]):
        super().__init__(gm)
        self.taps, self.see = taps, see

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        name = self.taps.get(n)
        if name is not None:
            self.see(name, result[0] if isinstance(result, tuple) else result)
        return result
