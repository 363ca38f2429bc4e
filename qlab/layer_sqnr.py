"""Signal to quantization noise of each layer's output, quantized network beside float one on the same samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qlab.conversion import QuantizedModel
from qlab.float_side import FloatBatch, Tapped, float_side, power


class SqnrTaps:
    """Runs both networks and keeps signal and noise of the output of each quantized unit, tensor by tensor and batch by
    batch. Batches may come from several threads and in any order.

    Differences are taken in float32, as the values are, and added up in float64: of what float64 throughout would give,
    dB are off by less than 1e-6.
    """

    def __init__(self, qmodel: QuantizedModel):
        self.qmodel = qmodel
        self.layers_of: dict[str, list[str]] = {}
        for layer, tensor in qmodel.outputs.items():
            self.layers_of.setdefault(tensor, []).append(layer)
        self._float_nodes = {qmodel.reference.node(tensor): tensor for tensor in self.layers_of}
        self._float = float_side(qmodel.reference)
        self._float.begin()
        self._sums: dict[int, dict[str, tuple[float, float]]] = {}

    def run(self, number: int, inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """Outputs of the quantized and of the float network for this batch."""
        reference = self._float.batch(self.qmodel.reference, self._float_nodes, inputs)
        output, noise = self._quantized(inputs, reference)
        self._sums[number] = {tensor: (reference.power[tensor], noise[tensor]) for tensor in noise}
        return output, reference.output

    def _quantized(self, inputs: tuple[Tensor, ...], reference: FloatBatch) -> tuple[Any, dict[str, float]]:
        """Output of the quantized network, and the noise of its tensors: sum of squared differences."""
        raise NotImplementedError

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

    def _quantized(self, inputs: tuple[Tensor, ...], reference: FloatBatch) -> tuple[Any, dict[str, float]]:
        noise: dict[str, float] = {}

        def see(name: str, x: Tensor) -> None:
            noise[name] = power(reference.tensors[name] - x)

        nodes = {self.qmodel.output_nodes[tensor]: tensor for tensor in self.layers_of}
        with torch.no_grad():
            return Tapped(self.qmodel.graph_module, nodes, see).run(*inputs), noise
