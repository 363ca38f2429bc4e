"""Remedies of what was found, as configs; and what each brings when it is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlab.analysis.fault import Fault
from qlab.analysis.look_at_weights import outlier_limit
from qlab.analysis.remedy import Remedy
from qlab.analysis.unmatched import unmatched_remedies
from qlab.analysis.unseen import unseen, unseen_remedy
from qlab.calibration import Calibration, Progress, calibrate
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.data import Dataset
from qlab.errors import InvalidConfig, NonFinite, NotObserved
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.graph.capture import Model
from qlab.graph.equalize import equalizable, network_of
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type
from qlab.graph.placement import place
from qlab.metrics import three_digits
from qlab.quant.qparams import choose_qparams

ENOUGH_BITS = 8
TRY = "try"
Change = Callable[[QuantSpec], QuantSpec]


def remedies(fault: Fault, model: Model, mapping: QConfigMapping, calib: Calibration) -> list[Remedy]:
    """Configs that may repair this fault, the most particular first; none where no config can."""
    out: list[Remedy] = []
    for remedy in _Remedies(fault, model, mapping, calib).all():
        if remedy.mapping != mapping and all(remedy.mapping != known.mapping for known in out):
            out.append(remedy)
    return out


class _Remedies:
    def __init__(self, fault: Fault, model: Model, mapping: QConfigMapping, calib: Calibration):
        self.fault, self.model, self.mapping, self.calib = fault, model, mapping, calib
        self.network = network_of(model, mapping)
        self.ops = {self.network.names[node]: op_type(node) for node in self.network.ops}

    def all(self) -> Iterator[Remedy]:
        make = getattr(self, f"_{self.fault.kind}", None)
        if make is not None:
            yield from make()

    # one method for each kind that a config can repair

    def _unmatched_rule(self) -> Iterator[Remedy]:
        yield from unmatched_remedies(self.fault.tensor, self.mapping, self.network)

    def _never_observed(self) -> Iterator[Remedy]:
        placement = place(self.network, self.mapping, self.calib.infinite)
        for one in unseen(self.network, placement, self.calib):
            if one.tensor == self.fault.tensor:
                yield unseen_remedy(one, self.mapping, self.network, self.calib)

    def _outlier_weight(self) -> Iterator[Remedy]:
        tensor = self.fault.tensor
        point = next(p for p in place(self.network, self.mapping, self.calib.infinite).weights if p.tensor == tensor)
        weight = attribute(self.network.graph_module, point.constant)
        assert weight is not None
        limit = outlier_limit(weight, point.axis)
        yield Remedy(
            f"Clip the outliers of {tensor}",
            f"Its grid ends at ±{three_digits(limit)}, where the other weights end. The outliers become that; the "
            "layer "
            "computes something else where they matter.",
            self.mapping.replace(ranges={**self.mapping.ranges, tensor: (-limit, limit)}),
        )
        yield from self._per_channel()
        yield from self._weight_observer("mse")
        yield from self._keep_float()

    def _weight_spread(self) -> Iterator[Remedy]:
        yield from self._per_channel()
        yield from self._equalize()
        yield from self._keep_float()

    _norm_spread = _weight_spread

    def _activation_spread(self) -> Iterator[Remedy]:
        yield from self._equalize()
        yield from self._activation_observer("mse")
        yield from self._more_bits("activation")
        yield from self._keep_float()

    def _saturated(self) -> Iterator[Remedy]:
        if self.fault.tensor in self.mapping.ranges:
            yield self._without_range(self.fault.tensor)
        yield from self._activation_observer("min_max")
        yield from self._activation_observer("mse")
        yield from self._keep_float()

    def _wasted_range(self) -> Iterator[Remedy]:
        yield from self._activation_observer("mse")
        yield from self._activation_observer("percentile")
        yield from self._more_bits("activation")
        yield from self._keep_float()

    def _absurd_scale(self) -> Iterator[Remedy]:
        yield from self._saturated()

    def _bias_shift(self) -> Iterator[Remedy]:
        yield Remedy(
            "Correct the "
            "biases", "What rounding the weights adds to the mean of a channel is taken out of its bias, in every "
            "layer. It costs nothing at run time.", self.mapping.replace(correct_bias=True),
        )  # fmt: skip
        yield from self._per_channel()
        yield from self._more_bits("weight")
        yield from self._keep_float()

    def _coarse_grid(self) -> Iterator[Remedy]:
        yield from self._more_bits("weight")
        yield from self._more_bits("activation")
        yield from self._more_bits_everywhere()
        yield from self._per_channel()
        yield from self._weight_observer("mse")
        yield from self._activation_observer("mse")
        yield from self._keep_float()

    # the pieces they share

    def _layers(self) -> list[str]:
        """The layers whose config decides about the tensor: its own, or those that read an input."""
        if self.fault.layer in self.ops:
            return [self.fault.layer]
        owners = []
        for point in place(self.network, self.mapping, self.calib.infinite).activations:
            if point.tensor == self.fault.tensor:
                owners += [self.network.names[node] for node in point.consumers or ()]
        return owners

    def _config(self, layer: str) -> QConfig | None:
        # A recurrent layer has a weight for each of its matrices, named behind its own name.
        if layer not in self.ops and (parent := layer.rpartition(".")[0]) in self.ops:
            layer = parent
        return self.mapping.resolve(layer, self.ops[layer]).qconfig if layer in self.ops else None

    def _here(self, part: str, change: Change, title: str, sentence: str) -> Iterator[Remedy]:
        """The spec of this part changed for the layers of this fault; nothing where that cannot be."""
        rules = {}
        for layer in self._layers():
            config = self._config(layer)
            spec = getattr(config, part) if config is not None else None
            if config is None or spec is None:
                return
            try:
                rules[layer] = config.replace(**{part: change(spec)})
            except InvalidConfig:
                return
        if rules:
            yield Remedy(title, sentence, self.mapping.replace(by_name={**self.mapping.by_name, **rules}))

    def _per_channel(self) -> Iterator[Remedy]:
        def change(spec: QuantSpec) -> QuantSpec:
            if spec.granularity != "tensor":
                raise InvalidConfig("it has a scale for each channel already.")
            return spec.replace(qscheme=spec.qscheme.replace("per_tensor", "per_channel"))

        name = self.fault.layer
        sentence = "Each output channel of the weight gets its own scale: a few bytes, and no time on the kernels."
        yield from self._here("weight", change, f"Scale {name} per channel", sentence)
        default = self.mapping.default
        if default is not None and default.weight is not None and default.weight.granularity == "tensor":
            wide = self.mapping.replace(default=default.replace(weight=change(default.weight)))
            yield Remedy("Scale all weights per channel", "Every layer that no rule names otherwise.", wide)

    def _equalize(self) -> Iterator[Remedy]:
        if not self.mapping.equalize and any(equalizable(self.model)):
            yield Remedy(
                "Equalise adjacent layers",
                "Channels are scaled against each other between layers, so that one scale fits them all. The float "
                "network "
                "computes the same; nothing is added at run time.",
                self.mapping.replace(equalize=True),
            )

    def _weight_observer(self, observer: str) -> Iterator[Remedy]:
        def change(spec: QuantSpec) -> QuantSpec:
            return spec.replace(observer=observer, observer_args={})

        sentence = f"{observer} picks the range of the weight, where the squared error is least."
        yield from self._here("weight", change, f"Range {self.fault.layer} by {observer}", sentence)

    def _activation_observer(self, observer: str) -> Iterator[Remedy]:
        def change(spec: QuantSpec) -> QuantSpec:
            if spec.observer == observer and not spec.observer_args:
                raise InvalidConfig("it is that one already.")
            return spec.replace(observer=observer, observer_args={})

        tensor = self.fault.tensor
        words = {"min_max": "covers every value seen in calibration", "mse": "takes the range of least squared error",
                 "percentile": "leaves out the farthest 0.01 %"}[observer]  # fmt: skip
        if tensor in self.mapping.ranges:
            return
        if self.fault.layer in self.ops:
            yield from self._here("activation", change, f"Range {tensor} by {observer}", f"{observer} {words}.")
            return
        point = next(
            (p for p in place(self.network, self.mapping, self.calib.infinite).activations if p.tensor == tensor), None
        )
        if point is None or tensor not in self.calib:
            return
        try:
            grid = choose_qparams(self.calib[tensor], change(point.spec))
        except InvalidConfig:
            return
        if not grid.scale.ndim:
            ends = {tensor: (float(grid.low), float(grid.high))}
            new = self.mapping.replace(ranges={**self.mapping.ranges, **ends})
            yield Remedy(f"Range {tensor} by {observer}", f"{observer} {words}.", new)

    def _more_bits(self, part: str) -> Iterator[Remedy]:
        def change(spec: QuantSpec) -> QuantSpec:
            if spec.bits >= ENOUGH_BITS:
                raise InvalidConfig("it has them.")
            return spec.replace(bits=ENOUGH_BITS)

        what = {"weight": "weight", "activation": "output"}[part]
        sentence = f"{2**ENOUGH_BITS} levels for this {what}; the others stay as they are."
        yield from self._here(part, change, f"{ENOUGH_BITS} bits for the {what} of {self.fault.layer}", sentence)

    def _more_bits_everywhere(self) -> Iterator[Remedy]:
        default = self.mapping.default
        if default is None or default.activation is None or default.activation.bits >= ENOUGH_BITS:
            return
        wide = default.replace(activation=default.activation.replace(bits=ENOUGH_BITS))
        sentence = "Activations take most harm at few bits, and their bits cost no byte of the file."
        yield Remedy(f"{ENOUGH_BITS} bits for all activations", sentence, self.mapping.replace(default=wide))

    def _keep_float(self) -> Iterator[Remedy]:
        layers = [layer for layer in self._layers() if self._config(layer) is not None]
        if layers:
            new = self.mapping.replace(by_name={**self.mapping.by_name, **dict.fromkeys(layers)})
            names = ", ".join(layers)
            sentence = "Neither its weight nor its output is rounded; it computes in float, with conversions around it."
            yield Remedy(f"Keep {names} float", sentence, new)

    def _without_range(self, tensor: str) -> Remedy:
        ranges = {name: ends for name, ends in self.mapping.ranges.items() if name != tensor}
        return Remedy(f"Drop the range of {tensor}", "Its observer decides again.", self.mapping.replace(ranges=ranges))


# ---- trying ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A remedy, measured on the evaluation data. against: the config before, sample by sample.

    gain: of accuracy (without labels: of agreement with float). recovered: gain over what the config before had lost
    against float, None where that was within noise. size: bytes; size_before. Of a config that could not be carried out
    everything was lost: against and size_before are None.
    """

    remedy: Remedy
    evaluation: Evaluation
    against: Comparison | None
    gain: float
    recovered: float | None
    size: int
    size_before: int | None

    @property
    def beyond_chance(self) -> bool | None:
        """Whether the difference is more than chance; None without labels."""
        return None if self.against is None else self.against.significant


def try_remedies(
    model: Model, data: Dataset, mapping: QConfigMapping, tried: Sequence[Remedy], calib: Calibration | None = None, *,
    reference: Evaluation | None = None, batch_size: int = 64, progress: Progress | None = None,
) -> list[Tried]:  # fmt: skip
    """Measure each remedy on all evaluation data, simulated, best first. calib: of `mapping`; reference: of float.

    Raises what `convert` and `evaluate` raise.
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
    out = []
    for number, remedy in enumerate(tried, 1):
        if progress is not None:
            progress(TRY, number, total)
        found, size = measured(remedy.mapping)
        gain = _figure(found) - had
        lost = (1.0 if reference.accuracy is None else reference.accuracy) - had
        recovered = None if lost_by_chance or lost <= 0 else gain / lost
        against = None if before is None else compare(before, found, targets)
        out.append(Tried(remedy, found, against, gain, recovered, size, size_before))
    if progress is not None:
        progress(TRY, total, total)
    return sorted(out, key=lambda t: (-t.gain, t.size))


def _figure(evaluation: Evaluation) -> float:
    """Accuracy, or without labels agreement."""
    value = evaluation.accuracy if evaluation.accuracy is not None else evaluation.agreement
    assert value is not None
    return value


def combined(mapping: QConfigMapping, chosen: Iterable[Remedy]) -> QConfigMapping:
    """The config with what all of these change; where two change the same, the later one."""
    out = mapping
    for remedy in chosen:
        new = remedy.mapping
        changes: dict[str, Any] = {
            key: _merged(getattr(mapping, key), getattr(new, key), getattr(out, key))
            for key in ("by_type", "by_name", "ranges")
        }
        if new.default != mapping.default:
            changes["default"] = new.default
        changes |= {k: getattr(new, k) or getattr(out, k) for k in ("equalize", "correct_bias")}
        out = out.replace(**changes)
    return out


def _merged(before: Mapping[str, Any], after: Mapping[str, Any], into: Mapping[str, Any]) -> dict[str, Any]:
    gone = before.keys() - after.keys()
    changed = {k: v for k, v in after.items() if k not in before or before[k] != v}
    return {k: v for k, v in into.items() if k not in gone} | changed
