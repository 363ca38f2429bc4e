"""One pass over the calibration data: a small mergeable summary of every activation."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from qlab.config import QConfigMapping, QuantSpec
from qlab.data import Dataset
from qlab.errors import BadUpload, DataMismatch, NonFinite, NotObserved
from qlab.graph.capture import Model
from qlab.graph.equalize import network_of
from qlab.graph.lower import copy_graph
from qlab.graph.ops import SAME_VALUES, channel_axis, is_float, op_type, packet_name
from qlab.graph.optypes import OP_TYPES
from qlab.memory import keep_freed_memory
from qlab.quant.memo import Memo
from qlab.quant.qparams import QParams, choose_qparams
from qlab.quant.stats import SAMPLES_PER_BATCH, StatsCollector, TensorStats

Progress = Callable[[str, int, int], None]
MEANS = "rows"  # what means in a file are over; files that do not say it have sums over axis 0 by samples
KNOWN_BYTES = 16 << 20  # of scales and zero points that a calibration keeps


class Calibration(Mapping[str, TensorStats]):
    """Tensor name -> TensorStats, for every float activation and input of a model.

    A tensor that holds the values of another (a view) is found under both names and stored once.
    means: tensor -> its mean, float32: of what layers with weights read, where it was asked for. Over all but the last
    axis where linears alone read it, [K]; where a convolution does, its positions stay, [C, …].
    """

    def __init__(
        self, stats: Mapping[str, TensorStats], aliases: Mapping[str, str], model_hash: str, samples: int,
        means: Mapping[str, np.ndarray] | None = None,
    ):  # fmt: skip
        self._stats = dict(stats)
        self.means = dict(means or {})
        self.aliases = dict(aliases)
        self.model_hash = model_hash
        self.samples = samples
        self._chosen: Memo[QParams] = Memo(KNOWN_BYTES, lambda qparams: qparams.nbytes)

    def qparams(self, name: str, spec: QuantSpec) -> QParams:
        """choose_qparams of this tensor, chosen once for each spec: configs of a sweep share most of theirs.

        The result is shared: do not write to it. Raises as choose_qparams.
        """
        source = self.aliases.get(name, name)
        return self._chosen.get((source, spec), lambda: choose_qparams(self[source], spec))

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
            "means": MEANS,
        }
        arrays = {"head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)}
        for i, stats in enumerate(self._stats.values()):
            arrays.update({f"{i}/{key}": value for key, value in stats.to_arrays().items()})
        arrays.update({f"mean/{name}": value for name, value in self.means.items()})
        return arrays

    def save(self, path: str | Path) -> None:
        """Write as .npz; plain arrays, no pickle."""
        # numpy's own compression takes four times as long and makes the file 7 % smaller.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in self.to_arrays().items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as f:
                    np.lib.format.write_array(f, np.asanyarray(array), allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises BadUpload when the file is not a calibration."""
        with np.load(path, allow_pickle=False) as z:
            if "head" not in z:
                raise BadUpload("this file is not a calibration: it has no head. Calibrate again.")
            head = json.loads(bytes(z["head"]).decode())
            groups: dict[int, dict[str, np.ndarray]] = {}
            means = {}
            for key in z.files:
                if key != "head":
                    number, name = key.split("/", 1)
                    if number == "mean":
                        means[name] = z[key]
                    else:
                        groups.setdefault(int(number), {})[name] = z[key]
        stats = {name: TensorStats.from_arrays(groups[i]) for i, name in enumerate(head["tensors"])}
        made = cls(stats, head["aliases"], head["model_hash"], head["samples"], means)
        if head.get("means") != MEANS:
            made.means = {name: made._of_rows(name, mean) for name, mean in means.items()}
        return made

    def _of_rows(self, name: str, mean: np.ndarray) -> np.ndarray:
        """The mean over axis 0 from what older files hold, its sum divided by the samples."""
        if name not in self or not mean.size:
            return mean
        rows = self[name].count / mean.size
        return (mean * (self.samples / rows)).astype(np.float32)


def calibrate(
    model: Model, data: Dataset, batch_size: int = 64, progress: Progress | None = None, *,
    samples_per_batch: int = SAMPLES_PER_BATCH, mapping: QConfigMapping | None = None,
) -> Calibration:  # fmt: skip
    """Run the calibration part of the data through the float model once and collect statistics of every tensor.

    mapping: a config the calibration is for; needed only where it equalises (the network that is then quantized is
    calibrated) or corrects biases (means of what layers read are kept).

    Each batch gives its exact minimum and maximum and at most `samples_per_batch` values to the histogram of a tensor.
    A model with a fixed batch size sees whole batches only. progress(stage, done, total) may raise to stop.
    Raises DataMismatch, NonFinite.
    """
    part = data.calibration
    if len(part) == 0:
        raise DataMismatch("there is no calibration data: give at least one sample.")
    keep_freed_memory()
    if mapping is not None:
        model = network_of(model, mapping)
    size = model.fixed_batch or batch_size
    if len(part) < size and model.fixed_batch:
        raise DataMismatch(
            f"the model was exported for batches of exactly {size}, the data has {len(part)} samples: "
            f"give at least {size}, or export with a free batch dimension."
        )
    observer = _Observer(model, samples_per_batch, means=mapping is not None and mapping.correct_bias)
    total = len(part) // size if model.fixed_batch else -(-len(part) // size)
    seen = 0
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
    means = {name: (total / seen).numpy().astype(np.float32) for name, total in observer.totals.items()}
    return Calibration(observer.finish(), observer.aliases, model.content_hash, seen, means)


def merge_calibrations(calibrations: Sequence[Calibration]) -> Calibration:
    """What one calibration over all their data would have given, exactly; the means to the last digits.

    Raises DataMismatch when they are of different models or hold different means, and when there is none.
    """
    if not calibrations:
        raise DataMismatch("there is no calibration to merge.")
    first, *rest = calibrations
    for other in rest:
        if other.model_hash != first.model_hash or set(other) != set(first):
            raise DataMismatch("these calibrations are of different models: only those of one model can be merged.")
        if {n: m.shape for n, m in other.means.items()} != {n: m.shape for n, m in first.means.items()}:
            raise DataMismatch(
                "these calibrations have no means of the same tensors and shapes: calibrate with the same mapping, in "
                "batches of one size."
            )
    stats = dict(first._stats)
    for other in rest:
        stats = {name: mine.merge(other._stats[name]) for name, mine in stats.items()}
    samples = sum(c.samples for c in calibrations)
    means = {name: sum(c.means[name] * (c.samples / samples) for c in calibrations) for name in first.means}
    return Calibration(stats, first.aliases, first.model_hash, samples, means)  # type: ignore[arg-type]


class _Tap(nn.Module):
    """Counts the tensor that comes by, and what follows from it."""

    def __init__(self, collector: StatsCollector, is_input: bool):
        super().__init__()
        self.collector, self.is_input = collector, is_input
        self.rectified: list[StatsCollector] = []
        self.first = 0

    def decides(self, relu: StatsCollector) -> bool:
        """Whether all of relu(x) follows from what is seen of x, at a third of the cost."""
        return not self.collector.allow_infinite and self.collector.channel_axis == relu.channel_axis

    def forward(self, x: Tensor) -> None:
        try:
            seen = self.collector.look(x, self.first)
        except NonFinite as e:
            if self.is_input:
                what = f"{e} This is the data itself: clean it, or check scale, mean and std."
                raise NonFinite(what, detail=e.detail, tensor=e.tensor, first_sample=e.first_sample) from e
            raise
        self.collector.add(seen)
        for collector in self.rectified:
            collector.add(seen.rectified())


class _Mean(nn.Module):
    """Adds up the mean of what comes by over its leading axes, each batch by its samples, in float64.

    kept: how many axes at the end stay. layer: who needs it, for the message.
    """

    def __init__(self, totals: dict[str, Tensor], name: str, kept: int, layer: str):
        super().__init__()
        self.totals, self.name, self.kept, self.layer = totals, name, kept, layer
        self.samples = 0

    def forward(self, x: Tensor) -> None:
        rows = x.detach().flatten(0, -self.kept - 1) if x.ndim > self.kept else x.detach()[None]
        added = rows.sum(0).double() * (self.samples / max(len(rows), 1))
        known = self.totals.get(self.name)
        if known is not None and known.shape != added.shape:
            raise DataMismatch(
                f"layer {self.layer!r} reads {self.name!r}, whose positions follow the size of the batch: there is no "
                "one mean to correct its bias by. Calibrate in batches of one size, or leave biases as they are."
            )
        self.totals[self.name] = added if known is None else known + added


class _Observer:
    """The float graph with a tap behind every float tensor."""

    def __init__(self, model: Model, samples_per_batch: int, means: bool = False):
        self.model = model
        self.totals: dict[str, Tensor] = {}
        self.means: list[_Mean] = []
        self.aliases: dict[str, str] = {}
        self.collectors: dict[fx.Node, StatsCollector] = {}
        self.taps: dict[fx.Node, _Tap] = {}
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
            before = self.taps.get(node.all_input_nodes[0]) if op_type(node) == "relu" else None
            if before is not None and before.decides(collector):
                before.rectified.append(collector)
            else:
                self.taps[node] = _Tap(collector, node.op == "placeholder")
        self.graph_module, copy_of = copy_graph(model.graph_module)
        graph = self.graph_module.graph
        after_inputs = next(n for n in graph.nodes if n.op != "placeholder")
        for i, (node, tap) in enumerate(self.taps.items()):
            self.graph_module.add_submodule(f"tap_{i}", tap)
            at = copy_of[node]
            where = graph.inserting_before(after_inputs) if tap.is_input else graph.inserting_after(at)
            with where:
                graph.call_module(f"tap_{i}", (at,))
        if means:
            self._average_inputs(copy_of)
        self.graph_module.recompile()

    def _average_inputs(self, copy_of: Mapping[fx.Node, fx.Node]) -> None:
        """Means of what layers with weights read, beside the taps; constants are their own."""
        readers: dict[fx.Node, list[fx.Node]] = {}
        for node in self.model.ops:
            read = node.args[0] if OP_TYPES[op_type(node)].role == "weighted" else None
            if isinstance(read, fx.Node) and is_float(read) and read.op != "get_attr":
                readers.setdefault(read, []).append(node)
        for i, node in enumerate(n for n in self.model.graph_module.graph.nodes if n in readers):
            kept, layer = max((kept_axes(reader), self.model.names[reader]) for reader in readers[node])
            mean = _Mean(self.totals, self.model.names.get(node, node.name), kept, layer)
            self.means.append(mean)
            self.graph_module.add_submodule(f"mean_{i}", mean)
            first = next(iter(copy_of[node].users))
            with self.graph_module.graph.inserting_before(first):
                self.graph_module.graph.call_module(f"mean_{i}", (copy_of[node],))

    def batch(self, inputs: Sequence[Tensor], first: int) -> None:
        for tap in self.taps.values():
            tap.first = first
        for mean in self.means:
            mean.samples = len(inputs[0])
        with torch.no_grad():
            self.graph_module(*inputs)

    def finish(self) -> dict[str, TensorStats]:
        return {self.model.names[node]: c.finish() for node, c in self.collectors.items()}


def kept_axes(layer: fx.Node) -> int:
    """How many axes at the end of a layer's input its mean needs: the channels, and the positions of a convolution."""
    kind = op_type(layer)
    return 1 if kind == "linear" else 1 + int(kind[-2])  # conv2d has 2 axes of positions


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
