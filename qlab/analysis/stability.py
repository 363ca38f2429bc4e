"""Whether a result hangs on which samples calibrated it: ranges and accuracy over many draws of the calibration data.

The data is run once, chunk by chunk. Statistics merge exactly, so the calibration of any draw of chunks, in any order,
follows without running the network again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from qlab.calibration import Calibration, Progress, calibrate, merge_calibrations
from qlab.config import QConfigMapping
from qlab.conversion import convert
from qlab.data import Dataset
from qlab.errors import DataMismatch, InvalidConfig
from qlab.evaluation import Evaluation, compare, evaluate
from qlab.graph.capture import Model
from qlab.graph.equalize import network_of
from qlab.graph.placement import place
from qlab.quant.packed import Packed, merge_packed
from qlab.quant.stats import TensorStats

CHUNK = 8  # samples that are drawn together, where there are enough
FEWEST, MOST = 16, 128  # chunks
RESAMPLES = 6
EVALUATED = 512
LEVEL = 0.05  # of all tests of one size together
STEADY = 0.99  # agreement from which a draw without labels counts as steady
GATHER, DRAW = "gather statistics", "draw calibrations"


@dataclass(frozen=True)
class Draw:
    """One calibration of so many samples. accuracy: None without labels; agreement: with the whole calibration.

    p: McNemar, against the network under the whole calibration, on the same samples; None without labels.
    """

    samples: int
    accuracy: float | None
    agreement: float
    p: float | None

    @property
    def figure(self) -> float:
        """Accuracy, or without labels the agreement."""
        return self.agreement if self.accuracy is None else self.accuracy


@dataclass(frozen=True)
class Spread:
    """Of one tensor's scale. scales: samples -> [K], of each draw; whole: under the whole calibration."""

    tensor: str
    whole: float
    scales: Mapping[int, NDArray[np.float64]]

    def relative(self, samples: int) -> float:
        """Standard deviation over the mean, of the draws of this size."""
        found = self.scales[samples]
        return float(found.std(ddof=1) / found.mean()) if len(found) > 1 and found.mean() else 0.0


@dataclass(frozen=True)
class Stability:
    """draws: sizes ascending. spreads: of every tensor with a static grid of one scale, the most unsteady first.

    whole: the figure under all calibration samples. chunk: samples that are drawn together; evaluated: samples each
    draw was measured on.
    """

    draws: tuple[Draw, ...]
    spreads: tuple[Spread, ...]
    whole: float
    chunk: int
    evaluated: int
    labelled: bool

    @property
    def sizes(self) -> list[int]:
        return sorted({draw.samples for draw in self.draws})

    def at(self, samples: int) -> list[Draw]:
        return [draw for draw in self.draws if draw.samples == samples]

    def worse(self, draw: Draw) -> bool:
        """Whether this draw is worse than the whole calibration: beyond chance, counted over the draws of its size;
        without labels, whether it names the same class on less than 99 % of the samples."""
        if draw.p is None:
            return not self.labelled and draw.agreement < STEADY
        return draw.p < LEVEL / len(self.at(draw.samples)) and draw.figure < self.whole

    def steady(self, samples: int) -> bool:
        """Whether no draw of this size is worse."""
        return not any(self.worse(draw) for draw in self.at(samples))

    @property
    def enough(self) -> int | None:
        """The smallest size from which on every size is steady; None when not even the largest is."""
        found = None
        for samples in reversed(self.sizes):
            if not self.steady(samples):
                break
            found = samples
        return found

    @property
    def warning(self) -> str | None:
        """What to tell when the result hangs on the sample; None when it does not."""
        largest = self.sizes[-1]
        if self.steady(largest):
            return None
        figures = [draw.figure for draw in self.at(largest)]
        ends = f"{100 * min(figures):.1f} to {100 * max(figures):.1f} %"
        found = (
            f"give {ends}, and the worst is worse beyond chance"
            if self.labelled
            else f"name the same class as the whole calibration for {ends} of the samples"
        )
        return (
            f"The result hangs on the sample: {len(figures)} calibrations of {largest} samples {found}. Calibrate with "
            "more samples, or with an observer that does not follow single values."
        )


def stability(
    model: Model, data: Dataset, mapping: QConfigMapping, *, sizes: Sequence[int] | None = None,
    resamples: int = RESAMPLES, evaluated: int = EVALUATED, batch_size: int = 64, seed: int = 0,
    progress: Progress | None = None,
) -> Stability:  # fmt: skip
    """Draw calibrations of several sizes from the calibration data, with replacement and in any order, and see what
    becomes of scales and accuracy. Simulated; the same seed gives the same.

    sizes: samples, rounded up to whole chunks, which are also the batches a moving average sees; None: 1, 4, 16, …
    chunks and all. Chunks are of one size or one sample smaller, so that a size is the mean of its draws. evaluated: at
    most so many evaluation samples. Source of drawing with replacement: the bootstrap, Efron 1979.
    Raises InvalidConfig (no range comes from the data), DataMismatch (fewer than two chunks), NonFinite.
    """
    part = data.calibration
    network = network_of(model, mapping)
    fixed = model.fixed_batch
    chunk = fixed or max(1, min(CHUNK, len(part) // FEWEST), -(-len(part) // MOST))
    count = len(part) // chunk if fixed else -(-len(part) // chunk)
    if count < 2:
        raise DataMismatch(f"{len(part)} calibration samples are too few to draw from: give at least two batches.")
    watched = _watched(network, mapping, {})
    if not watched and not mapping.correct_bias:
        raise InvalidConfig("no range of this config comes from the calibration data, so none can depend on it.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(part))[: count * chunk]
    held = [part.subset(np.sort(samples)) for samples in np.array_split(order, count)]

    def gathered() -> list[_Chunk]:
        found = []
        for number, samples in enumerate(held):
            if progress is not None:
                progress(GATHER, number, count)
            found.append(_Chunk.of(calibrate(model, samples, chunk, mapping=mapping), watched))
        return found

    chunks = gathered()
    all_together = _together(chunks)
    masks = {name: all_together[name] for name in all_together.infinite}
    if more := _watched(network, mapping, all_together.infinite) - watched:
        watched |= more
        chunks = gathered()
        all_together = _together(chunks)
    counts = sorted({min(count, max(1, -(-size // chunk))) for size in sizes}) if sizes else _growing(count)
    seen = data.evaluation.subset(range(min(evaluated, len(data.evaluation))))
    total, done = len(counts) * resamples + 1, 0

    def measured(calib: Calibration, reference: Evaluation | Model) -> tuple[Evaluation, dict[str, float]]:
        nonlocal done
        if progress is not None:
            progress(DRAW, done, total)
        done += 1
        qmodel = convert(model, mapping, calib)
        scales = {key: float(m.scale) for key, m in qmodel.activations.items() if not m.scale.ndim}
        kept = {key: scale for key, scale in scales.items() if qmodel.points[key].kind == "observed"}
        return evaluate(qmodel, seen, reference, batch_size, sqnr_samples=0), kept

    whole, whole_scales = measured(all_together, model)
    draws: list[Draw] = []
    scales: dict[str, dict[int, list[float]]] = {key: {} for key in whole_scales}
    for n in counts:
        size = round(n * len(order) / count)
        for _ in range(resamples):
            chosen = rng.integers(0, count, n)
            calib = _together([chunks[i] for i in chosen], masks)
            found, own = measured(calib, whole)
            p = None if seen.targets is None else compare(whole, found, seen.targets).p
            assert found.agreement is not None
            draws.append(Draw(size, found.accuracy, found.agreement, p))
            for key, scale in own.items():
                scales[key].setdefault(size, []).append(scale)
    spreads = [
        Spread(key, whole_scales[key], {n: np.array(values) for n, values in of.items()}) for key, of in scales.items()
    ]
    spreads.sort(key=lambda s: -s.relative(draws[-1].samples))
    figure = whole.accuracy if whole.accuracy is not None else 1.0
    return Stability(tuple(draws), tuple(spreads), figure, chunk, len(seen), seen.targets is not None)


def _watched(network: Model, mapping: QConfigMapping, infinite: Mapping[str, int]) -> set[str]:
    """The tensors whose range comes from the data. infinite: as for `place`."""
    return {p.tensor for p in place(network, mapping, infinite).activations if p.kind == "observed"}


def _growing(count: int) -> list[int]:
    """1, 4, 16, … and the whole."""
    return sorted({min(count, 4**i) for i in range(count.bit_length() + 1)})


@dataclass(frozen=True)
class _Chunk:
    """A calibration of few samples, with its statistics packed: many are held at once."""

    calib: Calibration
    packed: Mapping[str, Packed]

    @classmethod
    def of(cls, calib: Calibration, wanted: set[str]) -> _Chunk:
        """Of these tensors alone."""
        needed = {calib.aliases.get(name, name) for name in wanted}
        packed = {name: calib[name].to_arrays() for name in needed if name in calib}
        return cls(Calibration({}, calib.aliases, calib.model_hash, calib.samples, calib.means), packed)


def _together(chunks: Sequence[_Chunk], masks: Mapping[str, TensorStats] = MappingProxyType({})) -> Calibration:
    """The calibration of these chunks in this order, whichever order the data had.

    masks: of tensors that hold infinities somewhere in the data, whether these chunks have seen one or not: they are on
    no grid, and the ops around them are placed as over all data.
    """
    stats = {}
    for name in chunks[0].packed:
        parts, first = [], 0
        for chunk in chunks:
            batches = len(chunk.packed[name]["batch_index"])
            parts.append({**chunk.packed[name], "batch_index": np.arange(first, first + batches)})
            first += batches
        stats[name] = merge_packed(parts)
    stats.update(masks)
    head = merge_calibrations([chunk.calib for chunk in chunks])  # samples and means
    return Calibration(stats, head.aliases, head.model_hash, head.samples, head.means)
