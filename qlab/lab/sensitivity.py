"""The job that finds out which layers a config costs most, and what keeping them out of it brings: measured once for a
request, then found in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qlab.analysis import keep
from qlab.analysis.keep import Kept, keep_curve
from qlab.analysis.sensitivity import MODES, PARTS, SENSITIVITY, Mode, Part, Sensitivity, ranked, sensitivity
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig
from qlab.lab import sources, stages
from qlab.lab.experiment import Experiment
from qlab.lab.progress import Stage
from qlab.lab.work import Outcome, Work

if TYPE_CHECKING:
    from qlab.data import Dataset
    from qlab.graph.capture import Model
    from qlab.lab.store import Store

Instead = Literal["float", "8 bits"]
INSTEADS: tuple[Instead, ...] = ("float", "8 bits")
CURVE = "keep curve"
CONFIRM = 8
VERSION = 2  # part of every key: raise it when the same request would give something else


@dataclass(frozen=True)
class Question:
    """mode, parts, confirm: of `sensitivity`. curve: what the worst layers become on the curve; None: no curve.

    Raises InvalidConfig.
    """

    mode: Mode = "only"
    parts: tuple[Part, ...] = ("both",)
    confirm: int | None = CONFIRM
    curve: Instead | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidConfig(f"mode is {self.mode!r}: use one of {', '.join(MODES)}.")
        if not self.parts or any(part not in PARTS for part in self.parts):
            raise InvalidConfig(f"parts are {list(self.parts)}: name some of {', '.join(PARTS)}.")
        object.__setattr__(self, "parts", tuple(part for part in PARTS if part in self.parts))
        confirm = self.confirm
        if confirm is not None and (not isinstance(confirm, int) or isinstance(confirm, bool) or confirm < 0):
            raise InvalidConfig(f"confirm is {confirm!r}: give a number of layers, or None for all of them.")
        if self.curve is not None and self.curve not in INSTEADS:
            raise InvalidConfig(f"curve is {self.curve!r}: use one of {', '.join(INSTEADS)}, or None.")

    def to_dict(self) -> dict[str, Any]:
        return {"mode": self.mode, "parts": list(self.parts), "confirm": self.confirm, "curve": self.curve}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Question:
        return cls(d["mode"], tuple(d["parts"]), d["confirm"], d["curve"])


def at_8_bits(config: QConfig) -> QConfig:
    """The same with at least 8 bits for weights and activations."""

    def raised(spec: QuantSpec | None) -> QuantSpec | None:
        return None if spec is None else spec.replace(bits=max(spec.bits, 8))

    return config.replace(weight=raised(config.weight), activation=raised(config.activation))


def instead_of(mapping: QConfigMapping, curve: Instead) -> QConfig | None:
    """What a layer gets that is kept out of this config: None for float, or the first rule of fewer bits at 8.

    Raises InvalidConfig where the config has 8 bits anyway.
    """
    if curve == "float":
        return None
    fewer = [rule for rule in mapping.rules if rule is not None and at_8_bits(rule) != rule]
    if not fewer:
        raise InvalidConfig("this config has 8 bits already: keep layers float, or choose one with fewer bits.")
    return at_8_bits(fewer[0])


def order_of(found: Sensitivity) -> list[str]:
    """The layers, guiltiest first, by whatever part of theirs comes first."""
    whole = [row for row in found if row.part == "both"]
    return list(dict.fromkeys(row.layer for row in ranked(whole or list(found), found.mode)))


def sensitivity_task(work: Work, spec: dict[str, Any]) -> Outcome:
    """What a job of kind "sensitivity" does. spec: experiment, and the question. Raises what its parts raise."""
    experiment, question = Experiment.from_dict(spec["experiment"]), Question.from_dict(spec["question"])
    mapping, batch_size = experiment.resolved_mapping, experiment.batch_size
    instead = None if question.curve is None else instead_of(mapping, question.curve)

    def own_stages(batches: int) -> list[Stage]:
        layers = len(sources.open_model(experiment.model, work.store).layers)
        looks = 2 * layers * len(question.parts) + batches * (layers if question.confirm is None else question.confirm)
        curve = [Stage(keep.KEEP, len(keep.counts_up_to(layers)) * batches, stages.QUANTIZED_COST)]
        return [Stage(SENSITIVITY, looks, 0.6), *(curve if question.curve else [])]

    loaded = stages.load(work, experiment, ranges=mapping.needs_calibration, reference=False, then=own_stages)
    model, data, store = loaded.model, loaded.data, work.store
    keys = _keys(model, data, mapping, question, batch_size)
    missing = [name for name, key in keys.items() if store.find_derived(name, key) is None]
    calib = None
    if missing and mapping.needs_calibration:
        calib = stages.calibration(work, model, data, batch_size, mapping)[0]
    if SENSITIVITY in missing:
        made = sensitivity(
            model, data, mapping, calib, question.mode, parts=question.parts, batch_size=batch_size,
            confirm=question.confirm, progress=work.progress,
        )  # fmt: skip
        store.derive_json(SENSITIVITY, keys[SENSITIVITY], made.to_dict())
    if CURVE in missing:
        found = find_sensitivity(store, model, data, mapping, question, batch_size=batch_size)
        assert found is not None
        points = keep_curve(
            model, data, mapping, calib, order_of(found), instead=instead, batch_size=batch_size,
            progress=work.progress,
        )  # fmt: skip
        store.derive_json(CURVE, keys[CURVE], [point.to_dict() for point in points])
    work.meter.finish()
    artifacts = {name: store.find_derived(name, key) for name, key in keys.items()}
    return Outcome({"artifacts": {name: a.hash for name, a in artifacts.items() if a}, "timings": work.meter.timings})


def find_sensitivity(
    store: Store, model: Model, data: Dataset, mapping: QConfigMapping, question: Question, *, batch_size: int = 64
) -> Sensitivity | None:  # fmt: skip
    """What a job measured for this question, or None if there was none; measures nothing. data: split as it
    calibrates."""
    found = store.find_derived_json(SENSITIVITY, _keys(model, data, mapping, question, batch_size)[SENSITIVITY])
    return None if found is None else Sensitivity.from_dict(found)


def find_curve(
    store: Store, model: Model, data: Dataset, mapping: QConfigMapping, question: Question, *, batch_size: int = 64
) -> Sequence[Kept] | None:  # fmt: skip
    """The same for the curve of a question that has one."""
    key = _keys(model, data, mapping, question, batch_size).get(CURVE)
    found = None if key is None else store.find_derived_json(CURVE, key)
    return None if found is None else [Kept.from_dict(point) for point in found]


def _keys(
    model: Model, data: Dataset, mapping: QConfigMapping, question: Question, batch_size: int
) -> dict[str, str]:  # fmt: skip
    """Of each thing that is kept. The ranking does not depend on what the worst layers become afterwards."""
    asked = (
        VERSION, stages.evaluation_key(model, data, batch_size), json.dumps(mapping.to_dict(), sort_keys=True),
        question.mode, *question.parts, question.confirm,
    )  # fmt: skip
    keys = {SENSITIVITY: stages.key_of(SENSITIVITY, *asked)}
    if question.curve is not None:
        keys[CURVE] = stages.key_of(CURVE, *asked, question.curve)
    return keys
