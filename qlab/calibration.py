"""One pass over the calibration data: a small mergeable summary of every activation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qlab.data import Dataset
from qlab.errors import BadUpload, DataMismatch, NonFinite, NotObserved
from qlab.graph.capture import Model
from qlab.graph.ops import SAME_VALUES, channel_axis, is_float, op_type, packet_name
from qlab.quant.stats import SAMPLES_PER_BATCH, StatsCollector, TensorStats

Progress = Callable[[str, int, int], None]


class Calibration(Mapping[str, TensorStats]):
    """Tensor name -> TensorStats, for every float activation and input of a model.

    A tensor that holds the values of another (a view) is found under both names and stored once.
    """

    def __init__(self, stats: Mapping[str, TensorStats], aliases: Mapping[str, str], model_hash: str, samples: int):
        self._stats = dict(stats)
        self.aliases = dict(aliases)
        self.model_hash = model_hash
        self.samples = samples

    def __getitem__(self, name: str) -> TensorStats:
        source = self.aliases.get(name, name)
        if source not in self._stats:
            raise NotObserved(
                f"tensor {name!r} was never observed: it is not in this calibration of {len(self._stats)} tensors. "
                "Calibrate the model again."
            )
        return self._stats[source]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._stats, *self.aliases])

    def __len__(self) -> int:
        return len(self._stats) + len(self.aliases)

    def __contains__(self, name: object) -> bool:
        return name in self._stats or name in self.aliases

    @property
    def infinite(self) -> dict[str, int]:
        """Tensor name -> number of infinities seen, for the tensors that held any (attention masks)."""
        return {name: self[name].infinite for name in self if self[name].infinite}

    def to_arrays(self) -> dict[str, np.ndarray]:
        head = {
            "aliases": self.aliases,
            "model_hash": self.model_hash,
            "samples": self.samples,
            "tensors": list(self._stats),
        }
        arrays = {"head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)}
        for i, stats in enumerate(self._stats.values()):
            arrays.update({f"{i}/{key}": value for key, value in stats.to_arrays().items()})
        return arrays

    def save(self, path: str | Path) -> None:
        """Write as .npz; plain arrays, no pickle."""
        with open(path, "wb") as f:
            np.savez_compressed(f, **self.to_arrays())  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises BadUpload when the file is not a calibration."""
        with np.load(path, allow_pickle=False) as z:
            if "head" not in z:
                raise BadUpload("this file is not a calibration: it has no head. Calibrate again.")
            head = json.loads(bytes(z["head"]).decode())
            groups: dict[int, dict[str, np.ndarray]] = {}
            for key in z.files:
                if key != "head":
                    number, name = key.split("/", 1)
                    groups.setdefault(int(number), {})[name] = z[key]
        stats = {name: TensorStats.from_arrays(groups[i]) for i, name in enumerate(head["tensors"])}
        return cls(stats, head["aliases"], head["model_hash"], head["samples"])


def calibrate(
    model: Model, data: Dataset, batch_size: int = 64, progress: Progress | None = None, *,
    samples_per_batch: int = SAMPLES_PER_BATCH,
) -> Calibration:  # fmt: skip
    """Run the calibration part of the data through the float model once and collect statistics of every tensor.

    Each batch gives its exact minimum and maximum and at most `samples_per_batch` values to the histogram of a tensor.
    A model with a fixed batch size sees whole batches only. progress(stage, done, total) may raise to stop.
    Raises DataMismatch, NonFinite.
    """
    part = data.calibration
    if len(part) == 0:
        raise DataMismatch("there is no calibration data: give at least one sample.")
    size = model.fixed_batch or batch_size
    if len(part) < size and model.fixed_batch:
        raise DataMismatch(
            f"the model was exported for batches of exactly {size}, the data has {len(part)} samples: "
            f"give at least {size}, or export with a free batch dimension."
        )
    observer = _Observer(model, samples_per_batch)
    total = len(part) // size if model.fixed_batch else -(-len(part) // size)
    seen = 0
    with closing(observer):
        for number, (first, inputs, _) in enumerate(part.batches(size)):
            if number >= total:
                break
            model.check_inputs(inputs)
            if progress is not None:
                progress("calibrate", number, total)
            observer.batch(inputs, first)
            seen += len(inputs[0])
    if progress is not None:
        progress("calibrate", total, total)
    return Calibration(observer.finish(), observer.aliases, model.content_hash, seen)


def merge_calibrations(calibrations: Sequence[Calibration]) -> Calibration:
    """What one calibration over all their data would have given, exactly.

    Raises DataMismatch when they are of different models, or when there is none.
    """
    if not calibrations:
        raise DataMismatch("there is no calibration to merge.")
    first, *rest = calibrations
    for other in rest:
        if other.model_hash != first.model_hash or set(other) != set(first):
            raise DataMismatch("these calibrations are of different models: only those of one model can be merged.")
    stats = dict(first._stats)
    for other in rest:
        stats = {name: mine.merge(other._stats[name]) for name, mine in stats.items()}
    return Calibration(stats, first.aliases, first.model_hash, sum(c.samples for c in calibrations))


class _Observer(fx.Interpreter):
    """Runs the float graph and hands every float tensor to its collector."""

    def __init__(self, model: Model, samples_per_batch: int):
        super().__init__(model.graph_module)
        self.model = model
        self.samples_per_batch = samples_per_batch
        self.aliases: dict[str, str] = {}
        self.collectors: dict[fx.Node, StatsCollector] = {}
        self.first = 0
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(self.threads)
        self.waiting: list[tuple[fx.Node, Tensor]] = []
        self.rectified: dict[fx.Node, list[StatsCollector]] = {}
        self.derived: set[fx.Node] = set()
        for node, name in model.names.items():
            if not is_float(node):
                continue
            source = _holder(node)
            if source is not node and source in model.names:
                self.aliases[name] = model.names[source]
                continue
            collector = StatsCollector(
                name, channel_axis(node), samples_per_batch, allow_infinite=_only_feeds_softmax(node)
            )
            self.collectors[node] = collector
            source = node.all_input_nodes[0] if op_type(node) == "relu" else node
            before = self.collectors[source] if source is not node and source in self.collectors else None
            if before and not before.allow_infinite and before.channel_axis == collector.channel_axis:
                # what it holds follows from its input, at a third of the cost
                self.rectified.setdefault(source, []).append(collector)
                self.derived.add(node)

    def batch(self, inputs: Sequence[Tensor], first: int) -> None:
        self.first = first
        with torch.no_grad():
            self.run(*inputs)
        self._count_waiting()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.collectors and n not in self.derived:
            self.waiting.append((n, result))
            if len(self.waiting) >= self.threads:
                self._count_waiting()
        return result

    def _count_waiting(self) -> None:
        """Count the tensors that wait, each on a thread; an error is that of the first tensor.

        No more than one a thread is held back: memory that is given back soon is reused, and fresh memory costs more
        than counting.
        """
        waiting, self.waiting = self.waiting, []
        list(self.pool.map(self._count, waiting))

    def _count(self, one: tuple[fx.Node, Tensor]) -> None:
        node, tensor = one
        try:
            seen = self.collectors[node].look(tensor, self.first)
        except NonFinite as e:
            if node.op == "placeholder":
                raise NonFinite(
                    f"{e} This is the data itself: clean it, or check scale, mean and std.", detail=e.detail
                ) from e
            raise
        self.collectors[node].add(seen)
        for collector in self.rectified.get(node, ()):
            collector.add(seen.rectified())

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def finish(self) -> dict[str, TensorStats]:
        return {self.model.names[node]: c.finish() for node, c in self.collectors.items()}


def _holder(node: fx.Node) -> fx.Node:
    """The node whose values this one holds in another shape or order."""
    while node.op == "call_function" and packet_name(node) in SAME_VALUES:
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op == "get_attr":
            break
        node = source
    return node


def _only_feeds_softmax(node: fx.Node) -> bool:
    """Whether minus infinity is at home here: a mask on its way into a softmax."""
    users = [u for u in node.users if u.op == "call_function"]
    if op_type(node) == "mask" if node.op == "call_function" else False:
        return True
    return bool(users) and all(
        op_type(u) in ("softmax", "mask")
        or (op_type(u) in ("add", "reshape") and packet_name(u) != "getitem" and _only_feeds_softmax(u))
        for u in users
    )
