"""Codes and their convolutions in less time, with the same results bit for bit.

A value that is put on its grid only for its codes to be taken again is left as codes. Convolutions of codes run with
the channels last in memory, which is faster: whole numbers add up to the same in any order, as long as no sum can leave
what float32 holds exactly. What is not done value by value gets its input back as it lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qlab.conversion import FakeQuantize
from qlab.graph.integer_sums import BiasCodes, InputCodes, ProductScale, WeightCodes
from qlab.graph.lower import attribute
from qlab.graph.ops import packet_name

EXACT = 2**24  # float32 holds every whole number up to here
_VALUE_BY_VALUE = frozenset({"relu", "relu6", "hardtanh", "clamp", "add", "sub", "mul"})


@dataclass(frozen=True)
class Split:
    """A tensor on its grid. codes: less the zero point. values: None where nobody reads them."""

    codes: Tensor
    values: Tensor | None


class Quick:
    """What of these nodes, given in the order they run, has a quicker way. ends: whose values are asked for."""

    def __init__(self, gm: fx.GraphModule, nodes: Iterable[fx.Node], ends: Iterable[fx.Node]):
        self._gm = gm
        nodes = list(nodes)
        runs, kept = set(nodes), set(ends)
        self._convolutions = {n for n in nodes if _exact_convolution(gm, n)}
        self._moved: set[fx.Node] = set()  # whose values may lie with the channels last
        for node in nodes:
            behind = any(n in self._moved for n in node.all_input_nodes)
            if node in self._convolutions or (behind and _value_by_value(gm, node)):
                self._moved.add(node)
        self._codes = {n for n in nodes if n.op == "call_module" and _takes_codes(gm, n) and n.args[0] in runs}
        self._split = {n.args[0] for n in self._codes}
        self._for_codes_alone = {
            n
            for n in self._split
            if n not in kept and all(u in self._codes for u in n.users if u in runs)  # type: ignore[union-attr]
        }

    def call(self, node: fx.Node, given: Any) -> tuple[bool, Any]:
        """Whether this node has a way of its own, and what it gives. given: the value of its first argument."""
        if node in self._codes:
            return True, given.codes
        if node not in self._split:
            return False, None
        grid = self._gm.get_submodule(str(node.target))
        assert isinstance(grid, FakeQuantize)
        codes = _codes(given, grid)
        if node in self._for_codes_alone:
            return True, Split(codes, None)
        # 0 + scale * code, as fake_quantize has it: a product alone keeps the sign of -0.
        return True, Split(codes, torch.add(_ZERO, codes, alpha=float(np.float32(grid.scale.item()))))

    def given(self, node: fx.Node, source: fx.Node, value: Any) -> Any:
        """What `source` gave, as `node` reads it."""
        if isinstance(value, Split):
            if node in self._codes:
                return value
            value = value.values
        if node in self._convolutions:
            return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        return value.contiguous() if source in self._moved and node not in self._moved else value


_ZERO = torch.zeros(())


def _codes(x: Tensor, grid: FakeQuantize) -> Tensor:
    """The first half of `fake_quantize`: codes less the zero point, whole numbers in float32."""
    zero = int(grid.zero_point.item())
    y = x * float(np.float32(1) / np.float32(grid.scale.item()))
    return y.round_().clamp_(0 if grid.after_relu else grid.quant_min - zero, grid.quant_max - zero)


def _takes_codes(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it takes the codes of what its own grid has just been laid over."""
    module, source = _module(gm, node), _module(gm, node.args[0] if node.args else None)
    return isinstance(module, InputCodes) and source is module._grid[0] and not source.scale.ndim


def _exact_convolution(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether this is a convolution of codes whose sums, in whatever order, stay whole numbers that float32 holds."""
    if node.op != "call_function" or packet_name(node) != "conv2d":
        return False
    x, w = (_module(gm, n) for n in node.args[:2])
    bias = node.args[2] if len(node.args) > 2 else None
    b = _module(gm, bias)
    if not isinstance(x, InputCodes) or not isinstance(w, WeightCodes) or (bias is not None and b is None):
        return False
    grid = x._grid[0]
    zero = int(grid.zero_point)
    largest = max(abs(grid.quant_min - zero), abs(grid.quant_max - zero))
    total = float(w().double().abs().flatten(1).sum(1).max()) * largest
    if isinstance(b, BiasCodes) and isinstance(bias, fx.Node):
        held = attribute(gm, bias.args[0])
        if held is None or bool((b(held) != b(held).round()).any()):  # a bias beyond 32 bits is not rounded
            return False
        total += float(b(held).double().abs().max())
    return total < EXACT


def _module(gm: fx.GraphModule, node: Any) -> Any:
    return gm.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def _value_by_value(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(_module(gm, node), FakeQuantize | InputCodes | ProductScale)
    return node.op == "call_function" and packet_name(node) in _VALUE_BY_VALUE
