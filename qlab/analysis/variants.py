"""Many configs of one network, measured on the same batches beside a base, from which each takes what is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from qlab.analysis.measured import Held, Measured, Paired, Score
from qlab.analysis.reuse import Numbering, Plan, Values, lasting
from qlab.calibration import Calibration, Progress
from qlab.config import QConfigMapping
from qlab.conversion import FromCalibration, QuantizedModel, bias_shifts, convert, convert_from
from qlab.data import Dataset
from qlab.errors import DataMismatch
from qlab.evaluation import first_tensor
from qlab.forward import pad
from qlab.graph.capture import Model
from qlab.graph.equalize import with_biases
from qlab.graph.placement import WeightPoint
from qlab.memory import keep_freed_memory
from qlab.quant.tensor import QuantizedTensor

# Of values of the base that wait for the variants of a batch; what needs more is run group by group, the base again
# for each. A ResNet-20 holds 150 MB for 64 images of 32 x 32.
HELD_BYTES = 1 << 29


@dataclass(frozen=True)
class Variant:
    """One config: the network it makes, what of it has to run, and what was found. Variants that compute the same have
    one score."""

    network: QuantizedModel
    plan: Plan
    score: Score

    @property
    def measured(self) -> Measured:
        return self.score.measured()

    @property
    def paired(self) -> Paired:
        return self.score.paired()


class Bench:
    """A base, the float network or all that `mapping` quantizes, and variants of it over the evaluation data.

    whole: the network under the mapping. Raises DataMismatch, and what `convert` raises.
    """

    def __init__(
        self, model: Model, data: Dataset, mapping: QConfigMapping, calib: Calibration | None,
        base: Literal["float", "quantized"], batch_size: int, progress: tuple[str, Progress] | None = None,
    ):  # fmt: skip
        self.given, self.calib, self.data, self.progress = model, calib, data.evaluation, progress
        if len(self.data) == 0:
            raise DataMismatch("there is no evaluation data: give at least one sample.")
        if batch_size < 1:
            raise DataMismatch(f"The batch size is {batch_size}. It has to be at least 1.")
        self.whole = convert(model, mapping, calib)
        self.model = self.whole.reference
        self.size = self.model.fixed_batch or batch_size
        self.total = self.done = 0
        self.of_base, self.of_float = Score(), Score()
        self._numbering = Numbering()
        self._float = self._plan(self.model)
        self._base = self._float if base == "float" else self._plan(self.whole)
        self._known = lasting(self._base.gm, self._base.numbers)
        self._scores: dict[str, tuple[Plan, Score]] = {}
        self._weights: dict[tuple[Any, ...], QuantizedTensor] = {}
        self._sizes: dict[int, int] | None = None
        keep_freed_memory()

    def variant(self, mapping: QConfigMapping) -> Variant:
        """The variant that this config is."""
        network = self._convert(mapping)
        plan = self._plan(network, self._known, quick=True)
        plan, score = self._scores.setdefault(plan.gives, (plan, Score()))
        return Variant(network, plan, score)

    def _convert(self, mapping: QConfigMapping) -> QuantizedModel:
        """As `convert`, but each weight is put on each of its grids once: the networks share them."""
        network = self.model
        infinite = {k: n for k, n in self.calib.infinite.items() if n} if self.calib is not None else {}
        source = _SharedWeights(network, self.calib, mapping, self._weights)
        corrected = network
        if mapping.correct_bias:
            corrected = with_biases(network, bias_shifts(source, network, mapping, infinite))
            source.model = corrected
        return convert_from(source, corrected, mapping, infinite, self.given.content_hash, network)

    def _plan(
        self, network: Model | QuantizedModel, known: frozenset[int] = frozenset(), *, quick: bool = False
    ) -> Plan:
        gm = network.graph_module
        numbers = self._numbering.of(gm)
        return Plan(gm, numbers, known & lasting(gm, numbers), numbering=self._numbering, quick=quick)

    def samples(self, at_least: int) -> int:
        """Samples of whole batches that are at least so many, or all there are."""
        return min(-(-at_least // self.size) * self.size, len(self.data))

    def steps(self, variants: Sequence[Variant], samples: int) -> int:
        """How many batches of variants are still to be run until each of them has seen so many samples."""
        distinct = {id(v.score): v for v in variants}.values()
        return sum(-(-samples // self.size) - -(-v.score.n // self.size) for v in distinct)

    def measure(self, variants: Sequence[Variant], samples: int) -> None:
        """Goes on with these until they have seen so many samples; all of them have seen equally many before."""
        distinct = list({id(v.score): v for v in variants}.values())
        start = distinct[0].score.n if distinct else self.of_base.n
        if any(v.score.n != start for v in distinct):
            raise ValueError("variants that go on together have seen equally many samples")
        for first in range(start, samples, self.size):
            self._batch(distinct, first, min(self.size, samples - first))

    def finish(self) -> None:
        """Says that all is done."""
        self.total = self.done
        self._tell()

    def _batch(self, variants: Sequence[Variant], first: int, count: int) -> None:
        _, inputs, targets = self.data.batch(first, count)
        inputs = pad(inputs, self.size) if self.model.fixed_batch and count < self.size else inputs
        self.model.check_inputs(inputs)
        groups = self._groups(variants, inputs)
        output = None
        if self._float is not self._base:
            self._float.run(inputs, {})
            output = self._output(self._float, count)
        held: Held | None = None
        for group in groups or [[]]:
            read = frozenset().union(*(v.plan.taken for v in group))
            known: Values = self._base.run(inputs, {}, read)
            if held is None:
                base = self._output(self._base, count)
                held = Held(base if output is None else output, targets, count, f"batch {first // self.size}")
                of_base, of_float = (self.of_base, self.of_float) if self.of_base.n == first else (Score(), Score())
                of_float.add(held.output, held)
                of_base.add(base, held, base=True)
            for variant in group:
                self._tell()
                variant.plan.run(inputs, known)
                variant.score.add(self._output(variant.plan, count), held)
                self.done += 1

    def _groups(self, variants: Sequence[Variant], inputs: tuple[Tensor, ...]) -> list[list[Variant]]:
        """Neighbours whose values of the base may all be held at once; one that needs more by itself is alone."""
        if self._sizes is None:
            constant = self._numbering.constant  # held once, for all batches
            sizes = self._base.sizes(inputs).items()
            self._sizes = {number: 0 if number in constant else size for number, size in sizes}
        groups: list[list[Variant]] = []
        taken: frozenset[int] = frozenset()
        for variant in variants:
            together = taken | variant.plan.taken
            if groups and sum(self._sizes[number] for number in together) <= HELD_BYTES:
                groups[-1].append(variant)
                taken = together
            else:
                groups.append([variant])
                taken = variant.plan.taken
        return groups

    @staticmethod
    def _output(plan: Plan, count: int) -> Tensor:
        return first_tensor(plan.result())[:count]

    def _tell(self) -> None:
        if self.progress is not None:
            stage, tell = self.progress
            tell(stage, self.done, self.total)


class _SharedWeights(FromCalibration):
    """made: what was put on its grid before, and is from now on, by constant, spec, axis and range set by hand."""

    def __init__(
        self, model: Model, calib: Calibration | None, mapping: QConfigMapping,
        made: dict[tuple[Any, ...], QuantizedTensor],
    ):  # fmt: skip
        super().__init__(model, calib, mapping)
        self.made = made

    def weight(self, target: str, point: WeightPoint) -> QuantizedTensor:
        key = (point.constant.target, repr(point.spec), point.axis, self.ranges.get(point.tensor))
        if key not in self.made:
            self.made[key] = super().weight(target, point)
        return self.made[key]
