"""The codes ONNX Runtime really gave for single inputs, to be laid beside what a person computes by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, fx

from qlab.errors import InvalidConfig
from qlab.export.onnx_file import quantized_onnx
from qlab.export.values import Codes
from qlab.quant.fake_quant import quantize
from qlab.runtime.session import AS_SIMULATED, RuntimeOptions, open_session
from qlab.runtime.steps import Trace, trace_layer

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel


@dataclass(frozen=True, eq=False)
class CodeSession:
    """A session whose outputs are the codes of every tensor on a static grid. options: how it was opened."""

    qmodel: QuantizedModel
    runtime: onnxruntime.InferenceSession
    codes: Mapping[str, Codes]
    options: RuntimeOptions

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Grid (key of QuantizedModel.activations) -> its codes, int64. Raises DataMismatch for inputs that do not
        fit the model."""
        self.qmodel.model.check_inputs(inputs)
        feed = {s.name: x.numpy() for s, x in zip(self.qmodel.inputs, inputs, strict=True)}
        given = self.runtime.run([c.name for c in self.codes.values()], feed)
        return {
            key: torch.from_numpy(array.astype(np.int64)) - codes.shift
            for (key, codes), array in zip(self.codes.items(), given, strict=True)
        }


@dataclass(frozen=True, eq=False)
class KernelTrace:
    """One layer between the codes ONNX Runtime had before it and after it.

    trace: to explain elements from the runtime's own input codes. codes: what its kernel made of them, shaped as the
    output. simulated: the codes of the simulation, from its own inputs.
    """

    trace: Trace
    codes: Tensor
    simulated: Tensor

    @property
    def differing(self) -> Tensor:
        """[D, axes] the elements whose integer is not the simulated one, the largest difference first."""
        distance = (self.codes - self.simulated).abs()
        found = distance.nonzero()
        return found[distance[tuple(found.T)].argsort(descending=True, stable=True)]


def open_codes(qmodel: QuantizedModel, options: RuntimeOptions = AS_SIMULATED) -> CodeSession:
    """The quantized model in ONNX Runtime with its codes laid open. Raises UnsupportedModel."""
    assembled, chosen = quantized_onnx(qmodel, codes_as_outputs=True), options.for_model(qmodel)
    return CodeSession(qmodel, open_session(assembled.proto, chosen), assembled.codes, chosen)


def kernel_trace(
    qmodel: QuantizedModel, layer: str, inputs: tuple[Tensor, ...], codes: Mapping[str, Tensor],
    simulated: Trace | None = None,
) -> KernelTrace:  # fmt: skip
    """The layer in the integer run whose codes are given (CodeSession called on the same inputs).

    simulated: what trace_layer gave for these inputs, where it is at hand.
    Raises as trace_layer, and InvalidConfig where the exported graph has no codes of the layer's output.
    """
    simulated = simulated or trace_layer(qmodel, layer, inputs)
    found = simulated.layer
    key = next(key for key, module in qmodel.activations.items() if module is found.target)
    if key not in codes:
        raise InvalidConfig(
            f"the exported graph holds no integers of {key!r}, so its kernel's result for layer {layer!r} cannot be "
            "read: choose another layer."
        )
    follow = _Follow(qmodel, codes, found.input_node)
    with torch.no_grad():
        follow.run(*inputs)
    assert follow.seen is not None
    trace = Trace(found, follow.seen, simulated.simulated, simulated.float_value)
    return KernelTrace(
        trace, codes[key].reshape(simulated.shape), quantize(simulated.simulated, found.target.qparams).long()
    )


class _Follow(fx.Interpreter):
    """Runs the quantized graph on the runtime's codes instead of its own, and keeps the value of one node."""

    def __init__(self, qmodel: QuantizedModel, codes: Mapping[str, Tensor], node: fx.Node):
        super().__init__(qmodel.graph_module)
        self.codes, self.node = codes, node
        self.key_of = {id(module): key for key, module in qmodel.activations.items()}
        self.seen: Tensor | None = None

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_module":
            grid: Any = self.fetch_attr(str(n.target))
            key = self.key_of.get(id(grid))
            # A scale for each channel has no one layer that is taken apart behind it.
            if key is not None and key in self.codes and not grid.scale.ndim:
                steps = self.codes[key].reshape(result.shape) - grid.zero_point
                result = (steps * grid.scale).to(result.dtype)
        if n is self.node:
            self.seen = result
        return result
