"""What a config gives when its worst layers are kept out of it, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlab.analysis.measured import Measured, Paired
from qlab.analysis.variants import Bench
from qlab.calibration import Calibration, Progress
from qlab.config import QConfig, QConfigMapping
from qlab.data import Dataset
from qlab.errors import InvalidConfig
from qlab.graph.capture import Model

KEEP = "keep the worst"


@dataclass(frozen=True)
class Kept:
    """A point of the curve. layers: what was kept, worst first; mapping: the config that does it. size: bytes of all
    weights. against_base: against the config that keeps none.
    """

    layers: tuple[str, ...]
    mapping: QConfigMapping
    measured: Measured
    against_base: Paired
    size: int

    @property
    def count(self) -> int:
        return len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "layers": list(self.layers), "mapping": self.mapping.to_dict(), "measured": self.measured.to_dict(),
            "against_base": self.against_base.to_dict(), "size": self.size,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Kept:
        return cls(
            tuple(d["layers"]), QConfigMapping.from_dict(d["mapping"]), Measured.from_dict(d["measured"]),
            Paired.from_dict(d["against_base"]), d["size"],
        )  # fmt: skip


def counts_up_to(layers: int) -> list[int]:
    """0, 1, 2, 3, 5, 8, 13, … and last all of them: the first layers matter most."""
    counts, next_one = [0, 1], 2
    while next_one < layers:
        counts.append(next_one)
        next_one = counts[-1] + counts[-2]
    return [count for count in counts if count < layers] + [layers]


def keep_curve(
    model: Model, data: Dataset, mapping: QConfigMapping, calib: Calibration | None, order: Sequence[str], *,
    instead: QConfig | None = None, counts: Sequence[int] | None = None, batch_size: int = 64,
    progress: Progress | None = None,
) -> list[Kept]:  # fmt: skip
    """Accuracy, SQNR and size with the first k layers of `order` left float, or given the config `instead`.

    counts: the k, ascending; None: those of `counts_up_to`. Simulated, on the whole evaluation data, with the numbers
    that `evaluate(convert(...))` gives. calib: has to serve `instead` too.
    Raises InvalidConfig (a layer the network has not, or one named twice; a count that is none), DataMismatch, and what
    `convert` raises.
    """
    unknown = [layer for layer in order if layer not in {known.name for known in model.layers}]
    if unknown or len(set(order)) < len(order):
        raise InvalidConfig(
            f"the order names {', '.join(unknown)}, which the network has not: take the layers of its ledger."
            if unknown
            else "the order names a layer twice: name each once, worst first."
        )
    counts = counts_up_to(len(order)) if counts is None else list(counts)
    if any(not 0 <= k <= len(order) for k in counts):
        raise InvalidConfig(f"the counts are {counts}: give numbers of layers from 0 to {len(order)}.")
    told = None if progress is None else (KEEP, progress)
    bench = Bench(model, data, mapping, calib, "quantized", batch_size, told)
    mappings = {k: mapping.replace(by_name={**mapping.by_name, **dict.fromkeys(order[:k], instead)}) for k in counts}
    variants = {k: bench.variant(changed) for k, changed in mappings.items()}
    samples = len(bench.data)
    bench.total = bench.steps(list(variants.values()), samples)
    bench.measure(list(variants.values()), samples)
    bench.finish()
    return [
        Kept(tuple(order[:k]), mappings[k], v.measured, v.paired, v.network.size.quantized_bytes)
        for k, v in variants.items()
    ]
