"""What to do with which op: frozen, validated, serialisable.

`QuantSpec` says how one tensor is quantized, `QConfig` what happens to one op, `QConfigMapping` which op gets which.
Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from qlab.errors import InvalidConfig
from qlab.quant.observers import OBSERVERS, check_observer_args

QSCHEMES = (
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_group_affine",
    "per_group_symmetric",
)
MODES = ("static", "dynamic", "weight_only")
WEIGHT_BITS = (2, 8)
ACTIVATION_BITS = (2, 16)

Granularity = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized.

    bits: 2..16. signed: None takes the usual choice, signed for symmetric and unsigned for affine.
    narrow_range drops the lowest code, which makes a signed grid the same on both sides of zero.
    group_size: values per scale along a row of the weight; only with the per_group schemes.
    observer_args: parameters of the observer, e.g. {"percentile": 99.9}.
    Raises InvalidConfig.
    """

    bits: int = 8
    qscheme: str = "per_tensor_affine"
    observer: str = "min_max"
    observer_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    group_size: int | None = None
    signed: bool | None = None
    narrow_range: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise InvalidConfig(f"bits is {self.bits!r}: use a whole number from 2 to 16.")
        if self.qscheme not in QSCHEMES:
            raise InvalidConfig(f"qscheme {self.qscheme!r} is not known: use one of {', '.join(QSCHEMES)}.")
        if self.observer not in OBSERVERS:
            raise InvalidConfig(f"observer {self.observer!r} is not known: use one of {', '.join(OBSERVERS)}.")
        object.__setattr__(self, "observer_args", check_observer_args(self.observer, self.observer_args))
        if self.signed is None:
            object.__setattr__(self, "signed", self.symmetric)
        grouped = self.granularity == "group"
        if grouped and (
            isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < 2
        ):
            raise InvalidConfig(
                f"{self.qscheme} needs group_size, a whole number from 2 up; it is {self.group_size!r}."
            )
        if not grouped and self.group_size is not None:
            raise InvalidConfig(f"group_size is {self.group_size!r} but {self.qscheme} has no groups: leave it out.")

    @property
    def symmetric(self) -> bool:
        return self.qscheme.endswith("symmetric")

    @property
    def granularity(self) -> Granularity:
        return self.qscheme.split("_")[1]  # type: ignore[return-value]

    @property
    def quant_min(self) -> int:
        return (-(2 ** (self.bits - 1)) if self.signed else 0) + int(self.narrow_range)

    @property
    def quant_max(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    def replace(self, **changes: Any) -> QuantSpec:
        """A copy with these fields changed; checked like a new one."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {"bits": self.bits, "qscheme": self.qscheme, "observer": self.observer}
        if self.observer_args:
            out["observer_args"] = dict(self.observer_args)
        if self.group_size is not None:
            out["group_size"] = self.group_size
        return out | {"signed": self.signed, "narrow_range": self.narrow_range}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> QuantSpec:
        return _build(cls, d, "quantization spec")

    def __str__(self) -> str:
        sign = "int" if self.signed else "uint"
        group = f" of {self.group_size}" if self.group_size else ""
        return f"{sign}{self.bits} {self.qscheme.replace('_', ' ')}{group} · {self.observer}"


@dataclass(frozen=True)
class QConfig:
    """What happens to one op: a spec for its weight, one for its activations, and the mode.

    static: activations ranged ahead from the calibration (needs `activation`; `weight` None leaves weights float).
    dynamic: activations ranged per call from their own minimum and maximum. weight_only: activations stay float.
    Raises InvalidConfig.
    """

    weight: QuantSpec | None = None
    activation: QuantSpec | None = None
    mode: str = "static"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InvalidConfig(f"mode {self.mode!r} is not known: use one of {', '.join(MODES)}.")
        if self.weight is not None and not WEIGHT_BITS[0] <= self.weight.bits <= WEIGHT_BITS[1]:
            raise InvalidConfig(f"weights have 2 to 8 bits; {self.weight.bits} were asked for.")
        if self.weight is not None and self.weight.observer == "moving_average":
            raise InvalidConfig(
                "a weight is one constant tensor, so a moving average over batches means nothing: use min_max."
            )
        if self.mode == "weight_only":
            if self.weight is None:
                raise InvalidConfig("mode weight_only needs a weight spec.")
            if self.activation is not None:
                raise InvalidConfig("mode weight_only leaves activations float: set activation to None.")
        else:
            if self.activation is None:
                raise InvalidConfig(f"mode {self.mode} needs an activation spec; for weights alone use weight_only.")
            if self.activation.granularity == "group":
                raise InvalidConfig("groups are for weights: choose a per_tensor scheme for activations.")
        if self.mode == "dynamic" and self.activation is not None:
            if self.weight is None:
                raise InvalidConfig("mode dynamic needs a weight spec.")
            if self.activation.observer != "min_max" or self.activation.granularity != "tensor":
                raise InvalidConfig(
                    "dynamic activations take their range from each call's minimum and maximum: "
                    "set the activation observer to min_max and the scheme to per_tensor."
                )

    def replace(self, **changes: Any) -> QConfig:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "weight": self.weight.to_dict() if self.weight else None,
            "activation": self.activation.to_dict() if self.activation else None,
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> QConfig:
        d = dict(_mapping(d, "qconfig"))
        for key in ("weight", "activation"):
            if d.get(key) is not None:
                d[key] = QuantSpec.from_dict(d[key])
        return _build(cls, d, "qconfig")

    def __str__(self) -> str:
        return f"{self.mode} · W {self.weight or 'float'} · A {self.activation or 'float'}"


@dataclass(frozen=True)
class Resolved:
    """The config an op gets, and which rule gave it ("default", "by_type linear", "by_name layer4.*")."""

    qconfig: QConfig | None
    rule: str


@dataclass(frozen=True)
class QConfigMapping:
    """Which op gets which config; None means it stays float.

    by_type: op type ("linear", "conv2d", ...) to config. by_name: layer-name pattern (shell style) to config.
    The most specific rule wins: an exact name, then the pattern with the most literal characters, then the type,
    then the default. Equal patterns: the later one.

    ranges: tensor name to the lowest and highest value its grid is laid over, in place of what the observer says; of a
    weight with a scale for each channel or group, each range is cut to it.
    equalize: scales the channels between adjacent layers so that their weights get equal ranges, before anything is
    quantized; the float network computes the same. correct_bias: takes the mean shift that rounded weights cause out
    of the biases.
    """

    default: QConfig | None = None
    by_type: Mapping[str, QConfig | None] = field(default_factory=dict, hash=False)
    by_name: Mapping[str, QConfig | None] = field(default_factory=dict, hash=False)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    equalize: bool = False
    correct_bias: bool = False

    def __post_init__(self) -> None:
        from qlab.graph.optypes import OP_TYPES

        for key in self.by_type:
            if key not in OP_TYPES:
                raise InvalidConfig(f"op type {key!r} is not known: use one of {', '.join(sorted(OP_TYPES))}.")
        if any(v is not None and not isinstance(v, QConfig) for v in self.rules):
            raise InvalidConfig("a mapping holds QConfig objects, or None for float.")
        object.__setattr__(self, "by_type", dict(self.by_type))
        object.__setattr__(self, "by_name", dict(self.by_name))
        object.__setattr__(self, "ranges", {name: _range(name, ends) for name, ends in self.ranges.items()})
        for name in ("equalize", "correct_bias"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}: it is on (true) or off (false).")

    @property
    def rules(self) -> tuple[QConfig | None, ...]:
        """All its configs: the default, those of types, those of names."""
        return self.default, *self.by_type.values(), *self.by_name.values()

    @property
    def rule_count(self) -> int:
        """Rules beside the default."""
        return len(self.by_type) + len(self.by_name)

    @property
    def needs_calibration(self) -> bool:
        """Whether any op takes its range from a calibration, or any bias the mean of what its layer reads."""
        return self.correct_bias or any(rule is not None and rule.mode == "static" for rule in self.rules)

    @property
    def preparation(self) -> QConfigMapping:
        """What a calibration has to know of this mapping: whether it equalises or corrects biases."""
        return QConfigMapping(equalize=self.equalize, correct_bias=self.correct_bias)

    def resolve(self, layer: str, op_type: str) -> Resolved:
        """The config for this layer and op type, with the rule that gave it."""
        if layer in self.by_name:
            return Resolved(self.by_name[layer], f"by_name {layer}")
        matching = [p for p in self.by_name if fnmatchcase(layer, p)]
        if matching:
            best = max(enumerate(matching), key=lambda ip: (_literal_characters(ip[1]), ip[0]))[1]
            return Resolved(self.by_name[best], f"by_name {best}")
        if op_type in self.by_type:
            return Resolved(self.by_type[op_type], f"by_type {op_type}")
        return Resolved(self.default, "default")

    def replace(self, **changes: Any) -> QConfigMapping:
        return replace(self, **changes)

    def each(self, change: Callable[[QConfig], QConfig]) -> QConfigMapping:
        """With this change of every config, the default's and the rules'; what is float stays."""

        def changed(rules: Mapping[str, QConfig | None]) -> dict[str, QConfig | None]:
            return {key: change(config) if config else None for key, config in rules.items()}

        default = change(self.default) if self.default else None
        return self.replace(default=default, by_type=changed(self.by_type), by_name=changed(self.by_name))

    def to_dict(self) -> dict[str, Any]:
        def each(rules: Mapping[str, QConfig | None]) -> dict[str, Any]:
            return {k: v.to_dict() if v else None for k, v in rules.items()}

        out: dict[str, Any] = {
            "default": self.default.to_dict() if self.default else None,
            "by_type": each(self.by_type),
            "by_name": each(self.by_name),
        }
        # Left out where they are as usual: what was written before they existed stays equal to what is written today.
        if self.ranges:
            out["ranges"] = {name: list(ends) for name, ends in self.ranges.items()}
        return out | {name: True for name in ("equalize", "correct_bias") if getattr(self, name)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> QConfigMapping:
        d = dict(_mapping(d, "mapping"))

        def one(value: Any) -> QConfig | None:
            return None if value is None else QConfig.from_dict(value)

        for key in ("by_type", "by_name"):
            d[key] = {k: one(v) for k, v in _mapping(d.get(key) or {}, key).items()}
        d["ranges"] = _mapping(d.get("ranges") or {}, "ranges")
        d["default"] = one(d.get("default"))
        return _build(cls, d, "mapping")


def _literal_characters(pattern: str) -> int:
    return sum(c not in "*?[]" for c in pattern)


def _range(name: str, ends: Any) -> tuple[float, float]:
    """Two finite numbers, the lower first, with zero between them: every grid holds zero."""
    if not isinstance(ends, Sequence) or len(ends) != 2 or any(
        isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end) for end in ends
    ):  # fmt: skip
        raise InvalidConfig(f"the range of {name} is {ends!r}: give its lowest and highest value, two finite numbers.")
    low, high = float(ends[0]), float(ends[1])
    if not low <= 0 <= high or low == high:
        raise InvalidConfig(
            f"the range of {name} is {low:g} to {high:g}: it has to reach from zero or below to zero or above, because "
            "zero lies on every grid."
        )
    return low, high


def _mapping(d: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(d, Mapping):
        raise InvalidConfig(f"a {what} is written as a table of names and values; found {type(d).__name__}.")
    return d


def _build(cls: Any, d: Mapping[str, Any], what: str) -> Any:
    d = _mapping(d, what)
    known = [f.name for f in fields(cls)]
    unknown = set(d) - set(known)
    if unknown:
        raise InvalidConfig(f"a {what} has no field {', '.join(sorted(unknown))}: it has {', '.join(known)}.")
    return cls(**d)
