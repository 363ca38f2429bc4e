"""Remedies of what was found, as configs; and what each brings when it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from qlab.analysis.fault import Fault
from qlab.analysis.look_at_weights import outlier_limit
from qlab.analysis.remedy import Remedy
from qlab.analysis.unmatched import unmatched_remedies
from qlab.analysis.unseen import unseen, unseen_remedy
from qlab.calibration import Calibration, Progress, calibrate
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.data import Dataset
from qlab.errors import InvalidConfig, NonFinite, NotObserved, QLabError
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.graph.capture import Model
from qlab.graph.equalize import equalizable, network_of
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type
from qlab.graph.optypes import OP_TYPES
from qlab.graph.placement import ActivationPoint, Placement, place
from qlab.metrics import three_digits
from qlab.quant.qparams import choose_qparams

ENOUGH_BITS = 8
NAMED = 3  # layers in a title
TRY = "try"
WITHOUT_EFFECT = ("unmatched_rule", "unused_range")  # kinds whose remedies tidy the config and may change nothing else
Change = Callable[[QuantSpec], QuantSpec]


def remedies(fault: Fault, model: Model, mapping: QConfigMapping, calib: Calibration) -> list[Remedy]:
    """Configs that may repair this fault, the most particular first; none where no config can.

    Each changes a weight's or an activation's grid, or the network that is put on grids; no two change the same.
    """
    return _Remedies(model, mapping, calib).of(fault)


def advised(faults: Iterable[Fault], model: Model, mapping: QConfigMapping, calib: Calibration) -> tuple[Fault, ...]:
    """The faults, each with its `remedies`."""
    advisor = _Remedies(model, mapping, calib)
    return tuple(replace(fault, remedies=tuple(advisor.of(fault))) for fault in faults)


class _Remedies:
    def __init__(self, model: Model, mapping: QConfigMapping, calib: Calibration):
        self.model, self.mapping, self.calib = model, mapping, calib
        self.network, self.infinite = network_of(model, mapping), calib.infinite
        self.ops = {self.network.names[node]: op_type(node) for node in self.network.ops}
        self.placements: dict[QConfigMapping, Placement] = {}
        self.effects: dict[QConfigMapping, frozenset[object]] = {}
        self.placement = self._place(mapping)

    def of(self, fault: Fault) -> list[Remedy]:
        make = getattr(self, f"_{fault.kind}", None)
        if make is None:
            return []
        out: list[Remedy] = []
        known = [] if fault.kind in WITHOUT_EFFECT else [self._effect(self.mapping)]
        for remedy in make(fault):
            effect = self._effect(remedy.mapping)
            if remedy.mapping == self.mapping or effect in known or any(remedy.mapping == r.mapping for r in out):
                continue
            out.append(remedy)
            if fault.kind not in WITHOUT_EFFECT:
                known.append(effect)
        return out

    # one method for each kind that a config can repair

    def _unmatched_rule(self, fault: Fault) -> Iterator[Remedy]:
        yield from unmatched_remedies(fault.tensor, self.mapping, self.network)

    def _unused_range(self, fault: Fault) -> Iterator[Remedy]:
        yield from unmatched_remedies(f"range {fault.tensor}", self.mapping, self.network)

    def _never_observed(self, fault: Fault) -> Iterator[Remedy]:
        for one in unseen(self.network, self.placement, self.calib):
            if one.tensor == fault.tensor:
                yield unseen_remedy(one, self.mapping, self.network, self.calib)

    _all_zero = _never_observed

    def _outlier_weight(self, fault: Fault) -> Iterator[Remedy]:
        tensor = fault.tensor
        point = next(p for p in self.placement.weights if p.tensor == tensor)
        weight = attribute(self.network.graph_module, point.constant)
        assert weight is not None
        limit = outlier_limit(weight, point)
        if 0 < limit < float(weight.detach().abs().max()):
            yield Remedy(
                f"Clip the outliers of {tensor}",
                f"Its grid ends at ±{three_digits(limit)}, where the other weights end. The outliers become that; the "
                "layer computes something else where they matter.",
                self.mapping.replace(ranges={**self.mapping.ranges, tensor: (-limit, limit)}),
            )
        yield from self._per_channel(fault)
        yield from self._weight_observer(fault, "mse")
        yield from self._float_weight(fault)

    def _weight_spread(self, fault: Fault) -> Iterator[Remedy]:
        yield from self._per_channel(fault)
        yield from self._equalize()
        yield from self._float_weight(fault)

    _norm_spread = _weight_spread

    def _activation_spread(self, fault: Fault) -> Iterator[Remedy]:
        yield from self._equalize()
        yield from self._activation_observer(fault, "mse")
        yield from self._more_activation_bits(fault)
        yield from self._float_activation(fault)

    def _saturated(self, fault: Fault) -> Iterator[Remedy]:
        if fault.tensor in self.mapping.ranges:
            yield self._without_range(fault.tensor)
        yield from self._activation_observer(fault, "min_max")
        yield from self._activation_observer(fault, "mse")
        yield from self._float_activation(fault)

    _absurd_scale = _saturated

    def _wasted_range(self, fault: Fault) -> Iterator[Remedy]:
        yield from self._activation_observer(fault, "mse")
        yield from self._activation_observer(fault, "percentile")
        yield from self._more_activation_bits(fault)
        yield from self._float_activation(fault)

    def _bias_shift(self, fault: Fault) -> Iterator[Remedy]:
        layer = self._weighted(fault)
        if layer is not None and OP_TYPES[self.ops[layer]].role == "weighted":  # others have no bias to correct
            yield Remedy(
                "Correct the biases",
                "What rounding the weights adds to the mean of a channel is taken out of its bias, in every layer. It "
                "costs nothing at run time.",
                self.mapping.replace(correct_bias=True),
            )
        yield from self._per_channel(fault)
        yield from self._more_weight_bits(fault)
        yield from self._more_activation_bits(fault)
        yield from self._keep_float(fault)

    def _coarse_grid(self, fault: Fault) -> Iterator[Remedy]:
        yield from self._more_weight_bits(fault)
        yield from self._more_activation_bits(fault)
        yield from self._more_bits_everywhere()
        yield from self._per_channel(fault)
        yield from self._weight_observer(fault, "mse")
        yield from self._activation_observer(fault, "mse")
        yield from self._keep_float(fault)

    # what a config does

    def _place(self, mapping: QConfigMapping) -> Placement:
        if mapping not in self.placements:
            self.placements[mapping] = place(self.network, mapping, self.infinite)
        return self.placements[mapping]

    def _effect(self, mapping: QConfigMapping) -> frozenset[object]:
        """Which weight, which activation on its way into which op, is put on which grid; and of which network.

        Equal for configs that compute the same. A tensor put on its grid where it is made is the same as one put on
        that grid by everything that reads it.
        """
        if mapping not in self.effects:
            placement = self._place(mapping)
            out: set[object] = {(p.tensor, p.spec, mapping.ranges.get(p.tensor)) for p in placement.weights}
            out |= {(p.layer, p.spec) for p in placement.dynamic}
            for point in placement.activations:
                values = self.calib.aliases.get(point.tensor, point.tensor)
                for reader in _readers(point.node) if point.consumers is None else point.consumers:
                    out.add((reader.name, values, point.spec, mapping.ranges.get(point.tensor)))
            corrected = any(OP_TYPES[op_type(p.node)].role == "weighted" for p in placement.weights)
            out.add((mapping.equalize, mapping.correct_bias and corrected))
            self.effects[mapping] = frozenset(out)
        return self.effects[mapping]

    def _weighted(self, fault: Fault) -> str | None:
        """The layer whose weight is on a grid and in which the fault is; None where there is none."""
        for point in self.placement.weights:  # a recurrent layer has several, named behind its own name
            if fault.layer in (point.layer, self.network.names[point.node]):
                return self.network.names[point.node]
        return None

    def _points(self, fault: Fault) -> list[ActivationPoint]:
        return [p for p in self.placement.activations if p.tensor == fault.tensor]

    def _deciding(self, fault: Fault) -> list[str]:
        """The layers whose config says how the tensor is put on a grid: what makes it, or what reads it."""
        points, made = self._points(fault), self._made(fault)
        makers = [layer for layer, tensor in self.placement.outputs.items() if made and tensor == fault.tensor]
        return list(dict.fromkeys([*makers, *(self.network.names[n] for p in points for n in p.consumers or ())]))

    def _made(self, fault: Fault) -> bool:
        """Whether the tensor is put on its grid where it is made."""
        return any(p.consumers is None for p in self._points(fault))

    def _with(self, layers: Sequence[str], part: str, change: Change) -> QConfigMapping | None:
        """The config with this part of the spec changed for those of these layers where that can be; None for none."""
        rules = {}
        for layer in layers:
            config = self.mapping.resolve(layer, self.ops[layer]).qconfig
            spec = getattr(config, part) if config is not None else None
            if config is None or spec is None:
                continue
            try:
                rules[layer] = config.replace(**{part: change(spec)})
            except InvalidConfig:
                continue
        return self.mapping.replace(by_name={**self.mapping.by_name, **rules}) if rules else None

    def _everywhere(self, part: str, change: Change) -> QConfigMapping:
        """The config with this part changed in its default and in all its rules, where that can be."""

        def changed(config: QConfig) -> QConfig:
            spec = getattr(config, part)
            try:
                return config if spec is None else config.replace(**{part: change(spec)})
            except InvalidConfig:
                return config

        return self.mapping.each(changed)

    def _also(self, fault: Fault, new: QConfigMapping) -> str:
        """A sentence on the other activations whose grid this changes."""
        before = {(p.tensor, p.spec) for p in self.placement.activations}
        after = ((p.tensor, p.spec) for p in self._place(new).activations)
        others = dict.fromkeys(t for t, spec in after if t != fault.tensor and (t, spec) not in before)
        if not others:
            return "The others stay as they are."
        verb = "gets" if len(others) == 1 else "get"
        return f"{_listed(others)} {verb} the same: an op has one spec for all it reads and gives."

    # the pieces they share

    def _per_channel(self, fault: Fault) -> Iterator[Remedy]:
        layer = self._weighted(fault)
        if layer is None:
            return
        sentence = "Each output channel of the weight gets its own scale: a few bytes, and no time on the kernels."
        if (new := self._with([layer], "weight", _scaled_per_channel)) is not None:
            yield Remedy(f"Scale {layer} per channel", sentence, new)
        yield Remedy(
            "Scale all weights per channel", "In the default and in every rule: a scale for each output channel.",
            self._everywhere("weight", _scaled_per_channel),
        )  # fmt: skip

    def _equalize(self) -> Iterator[Remedy]:
        if not self.mapping.equalize and any(equalizable(self.model)):
            yield Remedy(
                "Equalise adjacent layers",
                "Channels are scaled against each other between layers, so that one scale fits them all. The float "
                "network computes the same; nothing is added at run time.",
                self.mapping.replace(equalize=True),
            )

    def _weight_observer(self, fault: Fault, observer: str) -> Iterator[Remedy]:
        layer = self._weighted(fault)
        if layer is None:
            return
        sentence = f"{observer} picks the range of the weight, where the squared error is least."
        if (new := self._with([layer], "weight", _observed_by(observer))) is not None:
            yield Remedy(f"Range the weight of {layer} by {observer}", sentence, new)

    def _activation_observer(self, fault: Fault, observer: str) -> Iterator[Remedy]:
        tensor, points = fault.tensor, self._points(fault)
        words = {"min_max": "covers every value seen in calibration", "mse": "takes the range of least squared error",
                 "percentile": "leaves out the farthest 0.01 %"}[observer]  # fmt: skip
        if tensor in self.mapping.ranges or not points:
            return

        def change(spec: QuantSpec) -> QuantSpec:
            if spec.granularity == "channel":
                raise InvalidConfig("of a channel of an activation only the range is known.")
            return _observed_by(observer)(spec)

        if self._made(fault):
            layers = self._deciding(fault)
            if (new := self._with(layers, "activation", change)) is not None:
                sentence = f"{observer} {words}. {self._also(fault, new)}"
                yield Remedy(f"Range the output of {_listed(layers)} by {observer}", sentence, new)
            return
        if tensor not in self.calib:
            return
        try:
            spec = change(points[0].spec)
        except InvalidConfig:
            return
        grid = choose_qparams(self.calib[tensor], spec)
        ends = {tensor: (float(grid.low), float(grid.high))}
        new = self.mapping.replace(ranges={**self.mapping.ranges, **ends})
        yield Remedy(f"Range {tensor} by {observer}", f"{observer} {words}.", new)

    def _more_weight_bits(self, fault: Fault) -> Iterator[Remedy]:
        layer = self._weighted(fault)
        if layer is not None and (new := self._with([layer], "weight", _wider)) is not None:
            sentence = f"{2**ENOUGH_BITS} levels for this weight; the others stay as they are."
            yield Remedy(f"{ENOUGH_BITS} bits for the weight of {layer}", sentence, new)

    def _more_activation_bits(self, fault: Fault) -> Iterator[Remedy]:
        layers = self._deciding(fault)
        new = self._with(layers, "activation", _wider)
        if new is not None:
            names = _listed(layers)
            what = f"the output of {names}" if self._made(fault) else f"{fault.tensor}, read by {names}"
            sentence = f"{2**ENOUGH_BITS} levels for {fault.tensor}. {self._also(fault, new)}"
            yield Remedy(f"{ENOUGH_BITS} bits for {what}", sentence, new)

    def _more_bits_everywhere(self) -> Iterator[Remedy]:
        sentence = "Activations take most harm at few bits, and their bits cost no byte of the file."
        yield Remedy(f"{ENOUGH_BITS} bits for all activations", sentence, self._everywhere("activation", _wider))

    def _keep_float(self, fault: Fault) -> Iterator[Remedy]:
        yield from self._float_activation(fault) if self._weighted(fault) is None else self._float_weight(fault)

    def _float_weight(self, fault: Fault) -> Iterator[Remedy]:
        layer = self._weighted(fault)
        if layer is None:
            return
        new = self._kept_float([layer])
        output = set(_same_grid(self.network.node(self.placement.outputs[layer])))
        points = [p for p in self._place(new).activations if p.node in output]
        readers = list(dict.fromkeys(self.network.names[n] for p in points for n in p.consumers or ()))
        sentence = f"Its weight is not rounded; {layer} computes in float, with conversions around it."
        if readers:
            verb = "reads" if len(readers) == 1 else "read"
            sentence += f" Its output still is: {_listed(readers)} {verb} it on a grid."
        yield Remedy(f"Keep {layer} float", sentence, new)

    def _float_activation(self, fault: Fault) -> Iterator[Remedy]:
        """Whatever puts the tensor on a grid float: what makes it, and what would then read it on a grid of its own."""
        kept = dict.fromkeys(self._deciding(fault))
        same = {node for point in self._points(fault) for node in _same_grid(point.node)}
        while kept:
            new = self._kept_float(list(kept))
            on_grid = [p for p in self._place(new).activations if p.node in same]
            more = [self.network.names[n] for p in on_grid for n in p.consumers or ()]
            if not on_grid:
                one = len(kept) == 1
                sentence = (
                    f"{fault.tensor} is on no grid then; {_listed(kept)} compute{'s' if one else ''} in float, with "
                    f"conversions around {'it' if one else 'them'}."
                )
                yield Remedy(f"Keep {_listed(kept)} float", sentence, new)
                return
            if not set(more) - set(kept):
                return
            kept |= dict.fromkeys(more)

    def _kept_float(self, layers: Sequence[str]) -> QConfigMapping:
        return self.mapping.replace(by_name={**self.mapping.by_name, **dict.fromkeys(layers)})

    def _without_range(self, tensor: str) -> Remedy:
        ranges = {name: ends for name, ends in self.mapping.ranges.items() if name != tensor}
        return Remedy(f"Drop the range of {tensor}", "Its observer decides again.", self.mapping.replace(ranges=ranges))


def _scaled_per_channel(spec: QuantSpec) -> QuantSpec:
    if spec.granularity != "tensor":
        raise InvalidConfig("it has a scale for each channel already.")
    return spec.replace(qscheme=spec.qscheme.replace("per_tensor", "per_channel"))


def _wider(spec: QuantSpec) -> QuantSpec:
    if spec.bits >= ENOUGH_BITS:
        raise InvalidConfig("it has them.")
    return spec.replace(bits=ENOUGH_BITS)


def _observed_by(observer: str) -> Change:
    def change(spec: QuantSpec) -> QuantSpec:
        if spec.observer == observer and not spec.observer_args:
            raise InvalidConfig("it is that one already.")
        return spec.replace(observer=observer, observer_args={})

    return change


def _passes_on(node: fx.Node) -> bool:
    return node.op == "call_function" and OP_TYPES[op_type(node)].role == "passthrough"


def _readers(node: fx.Node) -> list[fx.Node]:
    """What computes with the values of this node, also behind ops that share its grid."""
    return [user for same in _same_grid(node) for user in same.users if not _passes_on(user)]


def _same_grid(node: fx.Node) -> list[fx.Node]:
    """The node and what passes its values on."""
    out = [node]
    for one in out:
        out += [user for user in one.users if _passes_on(user) and user not in out]
    return out


def _listed(names: Iterable[str]) -> str:
    """In a sentence: "a", "a and b", "a, b and 3 more"."""
    several = list(names)
    if len(several) > NAMED + 1:
        return f"{', '.join(several[:NAMED])} and {len(several) - NAMED} more"
    return " and ".join([", ".join(several[:-1]), several[-1]] if len(several) > 1 else several)


# ---- trying ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A remedy, measured on the evaluation data. against: the config before, sample by sample.

    gain: of accuracy (without labels: of agreement with float). recovered: gain over what the config before had lost
    against float, None where that was within noise. size: bytes; size_before. Of a config that could not be carried out
    everything was lost: against and size_before are None.
    problem: why the remedy itself could not be carried out; evaluation, gain and size are None then. "" where it could.
    """

    remedy: Remedy
    evaluation: Evaluation | None
    against: Comparison | None
    gain: float | None
    recovered: float | None
    size: int | None
    size_before: int | None
    problem: str = ""

    @property
    def beyond_chance(self) -> bool | None:
        """Whether the difference is more than chance; None without labels."""
        return None if self.against is None else self.against.significant


def try_remedies(
    model: Model, data: Dataset, mapping: QConfigMapping, tried: Sequence[Remedy], calib: Calibration | None = None, *,
    reference: Evaluation | None = None, batch_size: int = 64, progress: Progress | None = None,
) -> list[Tried]:  # fmt: skip
    """Measure each remedy on all evaluation data, simulated, best first. calib: of `mapping`; reference: of float.

    A remedy that cannot be carried out comes last, with what is in the way. Raises what `convert` and `evaluate` raise
    for `mapping` itself, apart from NonFinite and NotObserved.
    """
    reference = reference or evaluate(model, data, batch_size=batch_size)
    calibrations = {repr(mapping.preparation): calib} if calib is not None else {}

    def measured(config: QConfigMapping) -> tuple[Evaluation, int]:
        key = repr(config.preparation)
        if key not in calibrations:
            calibrations[key] = calibrate(model, data, batch_size, mapping=config)
        qmodel = convert(model, config, calibrations[key])
        return evaluate(qmodel, data, reference, batch_size, sqnr_samples=0), qmodel.size.quantized_bytes

    total = len(tried) + 1
    if progress is not None:
        progress(TRY, 0, total)
    targets = data.evaluation.targets
    try:
        before, size_before = measured(mapping)
    except (NotObserved, NonFinite):
        before, size_before = None, None
    lost_by_chance = before is not None and targets is not None and not compare(reference, before, targets).significant
    had = 0.0 if before is None else _figure(before)
    out, failed = [], []
    for number, remedy in enumerate(tried, 1):
        if progress is not None:
            progress(TRY, number, total)
        try:
            found, size = measured(remedy.mapping)
        except QLabError as error:
            failed.append(Tried(remedy, None, None, None, None, None, size_before, str(error)))
            continue
        gain = _figure(found) - had
        lost = (1.0 if reference.accuracy is None else reference.accuracy) - had
        recovered = None if lost_by_chance or lost <= 0 else gain / lost
        against = None if before is None else compare(before, found, targets)
        out.append((gain, size, Tried(remedy, found, against, gain, recovered, size, size_before)))
    if progress is not None:
        progress(TRY, total, total)
    return [one for _, _, one in sorted(out, key=lambda each: (-each[0], each[1]))] + failed


def _figure(evaluation: Evaluation) -> float:
    """Accuracy, or without labels agreement."""
    value = evaluation.accuracy if evaluation.accuracy is not None else evaluation.agreement
    assert value is not None
    return value
