"""The float network's tensors on a few batches, kept for the next config: they are the same for every one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from qlab.graph.capture import Model

# The 256 samples that SQNR is measured on take 268 MB of a ResNet-20 for 32 x 32 images.
FLOAT_BYTES = 320 << 20


@dataclass
class FloatBatch:
    """output: of the network. tensors: by name. power: sum of the squares of each."""

    output: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)
    power: dict[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        storages = (t.untyped_storage() for t in self.tensors.values())  # a view keeps all of what it views
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class FloatSide:
    """Up to `limit` bytes of tensors, by the content of the batch. What it gives is shared: never write to it.

    A round is one evaluation. Batches that the present round used do not make room for others: evaluations go over the
    same batches in the same order, and with the oldest making room none would be there when its turn comes.
    """

    def __init__(self, limit: int = FLOAT_BYTES):
        self.limit = limit
        self._lock = threading.RLock()
        self._kept: dict[bytes, FloatBatch] = {}
        self._used: dict[bytes, int] = {}
        self._round = 0

    @property
    def nbytes(self) -> int:
        return sum(batch.nbytes for batch in self._kept.values())

    def begin(self) -> None:
        """A new round."""
        with self._lock:
            self._round += 1

    def batch(self, model: Model, nodes: Mapping[fx.Node, str], inputs: tuple[Tensor, ...]) -> FloatBatch:
        """The model's output for these inputs and what its nodes give, under their names; run where it is not known.

        From any thread; one runs the network at a time, because torch uses all its threads for it.
        """
        key = _digest(inputs)
        with self._lock:
            known = self._kept.get(key)
            missing = {n: name for n, name in nodes.items() if known is None or name not in known.tensors}
            if known is None or missing:
                found = _run(model, missing, inputs)
                if known is not None:
                    found = FloatBatch(found.output, known.tensors | found.tensors, known.power | found.power)
                    del self._kept[key]
                self._keep(key, found)
                known = found
            self._used[key] = self._round
            return known

    def _keep(self, key: bytes, batch: FloatBatch) -> None:
        wanted = batch.nbytes
        if wanted > self.limit:
            return
        free = self.limit - self.nbytes
        for old in sorted((k for k in self._kept if self._used[k] < self._round), key=self._used.__getitem__):
            if free >= wanted:
                break
            free += self._kept.pop(old).nbytes
            del self._used[old]
        if free >= wanted:
            self._kept[key] = batch


_LOCK = threading.Lock()
_OF: WeakKeyDictionary[Model, FloatSide] = WeakKeyDictionary()


def float_side(model: Model) -> FloatSide:
    """What is kept of this model. One at a time: that of another goes, and with the model all of it."""
    with _LOCK:
        if model not in _OF:
            _OF.clear()
            _OF[model] = FloatSide()
        return _OF[model]


def power(x: Tensor) -> float:
    """Sum of the squares, added up in float64."""
    parts = (part.double() for part in x.detach().reshape(-1).split(1 << 18))
    return sum(float(torch.dot(part, part)) for part in parts)


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


def _run(model: Model, nodes: Mapping[fx.Node, str], inputs: tuple[Tensor, ...]) -> FloatBatch:
    found = FloatBatch(None)
    with torch.no_grad():
        found.output = Tapped(model.graph_module, nodes, found.tensors.__setitem__).run(*inputs)
    found.power = {name: power(x) for name, x in found.tensors.items()}
    return found


def _digest(inputs: tuple[Tensor, ...]) -> bytes:
    digest = hashlib.sha256()
    for x in inputs:
        digest.update(f"{x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().numpy().data)
    return digest.digest()
