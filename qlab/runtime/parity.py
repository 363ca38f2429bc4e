"""Simulated against integer, tensor by tensor, in steps of each tensor's scale.

Two figures for each tensor: what has arrived there, with all differences before it, and what its own op makes when both
sides start from the very same codes. The second is at most a rounding: the sum of the same products, rounded to a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from qlab.export.onnx_file import quantized_onnx
from qlab.export.values import Codes
from qlab.runtime.session import AS_SIMULATED, RuntimeOptions, open_session

if TYPE_CHECKING:
    from qlab.conversion import FakeQuantize, QuantizedModel


HALFWAY = 1e-4  # in steps


@dataclass(frozen=True)
class TensorParity:
    """count: values compared. differing, largest: codes that differ, and by how many steps at most.

    own_differing, own_largest: the same when the op starts from the integer side's codes. own_halves: of own_differing,
    those whose value lies within HALFWAY of the middle between two codes: which one it becomes is up to the last bit of
    a float sum, and that to the CPU.
    """

    tensor: str
    count: int
    differing: int
    largest: int
    own_differing: int
    own_largest: int
    own_halves: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Parity:
    """tensors: in order of computation. output_largest: largest difference of the first output, in steps of its scale
    where it lies on a grid (output_in_steps), else in its own unit. output_within_step: share of its values within one
    step, None without a grid. agreement: share of equal classes. samples: how many."""

    tensors: tuple[TensorParity, ...]
    output_largest: float
    output_in_steps: bool
    output_within_step: float | None
    agreement: float | None
    samples: int

    @property
    def first(self) -> TensorParity | None:
        """The first tensor that differs at all, or None."""
        return next((t for t in self.tensors if t.differing), None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Parity:
        return cls(**{**d, "tensors": tuple(TensorParity(**t) for t in d["tensors"])})


def parity(qmodel: QuantizedModel, inputs: tuple[Tensor, ...], options: RuntimeOptions = AS_SIMULATED) -> Parity:
    """Run both on these inputs and compare every tensor on a static grid. Raises UnsupportedModel."""
    assembled = quantized_onnx(qmodel, codes_as_outputs=True)
    runtime = open_session(assembled.proto, options.for_model(qmodel))
    names = [v.name for v in runtime.get_outputs()]
    feed = {s.name: x.numpy() for s, x in zip(qmodel.inputs, inputs, strict=True)}
    given = dict(zip(names, runtime.run(None, feed), strict=True))
    integer = {key: torch.from_numpy(given[c.name].astype(np.int64)) - c.shift for key, c in assembled.codes.items()}
    arrived, own = _Compare(qmodel, assembled.codes, integer, follow=False), None
    with torch.no_grad():
        simulated = arrived.run(*inputs)
        own = _Compare(qmodel, assembled.codes, integer, follow=True)
        own.run(*inputs)
    rows = [
        TensorParity(key, integer[key].numel(), *arrived.found[key], *own.found[key], own.halves[key])
        for key in arrived.found
    ]  # fmt: skip
    return _with_output(qmodel, rows, simulated, given[names[0]], len(inputs[0]))


def _with_output(
    qmodel: QuantizedModel, rows: list[TensorParity], simulated: Any, integer: np.ndarray, samples: int
) -> Parity:
    first = simulated if isinstance(simulated, Tensor) else simulated[0]
    grid = _output_grid(qmodel)
    step = float(grid.scale) if grid is not None and not grid.scale.ndim else None
    difference = np.abs(integer - first.numpy()) / (step or 1.0)
    # differences are whole steps up to the rounding of the floats that say so
    within = float((difference <= 1.0 + 1e-3).mean()) if step else None
    agreement = None
    if integer.ndim >= 2 and integer.shape[-1] > 1:
        agreement = float((integer.argmax(-1) == first.numpy().argmax(-1)).mean())
    return Parity(tuple(rows), float(difference.max()), step is not None, within, agreement, samples)


def _output_grid(qmodel: QuantizedModel) -> FakeQuantize | None:
    """The grid the first output lies on."""
    node: Any = qmodel.graph_module.graph.output_node().args[0]
    node = node[0] if isinstance(node, (tuple, list)) else node
    if node.op != "call_module":
        return None
    module = qmodel.graph_module.get_submodule(str(node.target))
    return next((m for m in qmodel.activations.values() if m is module), None)


class _Compare(fx.Interpreter):
    """Runs the simulation and compares the codes of each grid. follow: go on from the integer side's codes."""

    def __init__(self, qmodel: QuantizedModel, codes: Mapping[str, Codes], integer: Mapping[str, Tensor], follow: bool):
        super().__init__(qmodel.graph_module)
        self.key_of = {id(module): key for key, module in qmodel.activations.items()}
        self.codes, self.integer, self.follow = codes, integer, follow
        self.found: dict[str, tuple[int, int]] = {}
        self.halves: dict[str, int] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_module(target, args, kwargs)
        key = self.key_of.get(id(self.fetch_attr(target)))
        if key is None or key not in self.codes:
            return result
        qparams, integer = self.codes[key].qparams, self.integer[key]
        scale, zero_point = (
            _shaped(qparams.scale, result, qparams.axis),
            _shaped(qparams.zero_point, result, qparams.axis),
        )
        own = torch.round(result.double() / scale.double()).long() + zero_point
        difference = (own - integer.reshape(own.shape)).abs()
        steps = args[0].double() / scale.double()
        halfway = ((steps - steps.floor() - 0.5).abs() <= HALFWAY) & (difference > 0)
        self.halves[key] = int(halfway.sum())
        self.found[key] = (int((difference > 0).sum()), int(difference.max()) if difference.numel() else 0)
        if not self.follow:
            return result
        return ((integer.reshape(own.shape) - zero_point) * scale).to(result.dtype)


def _shaped(values: Tensor, like: Tensor, axis: int | None) -> Tensor:
    if not values.ndim:
        return values
    shape = [1] * like.ndim
    shape[axis or 0] = -1
    return values.reshape(shape)
