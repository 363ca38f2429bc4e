"""What tells two configs apart: in words, and field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.metrics import MISSING

FLOAT = "float"
DEFAULT = "default"
SWITCHES = {"equalize": "equalisation of adjacent layers", "correct_bias": "bias correction"}


@dataclass(frozen=True)
class FieldDifference:
    """where: "default", "type linear" or "layer conv1"; field: "activation observer"; a, b: as a person reads them.

    A rule that one side does not have reads "–" there: the next broader rule holds.
    """

    where: str
    field: str
    a: str
    b: str

    def __str__(self) -> str:
        place = "" if self.where == DEFAULT else f"{self.where} "
        return f"{place}{self.field} {self.a} → {self.b}" if self.field else f"{place or 'all '}{self.a} → {self.b}"


@dataclass(frozen=True)
class Difference:
    """rows: one for each field that differs; words: the same in one line."""

    rows: tuple[FieldDifference, ...]

    @property
    def words(self) -> str:
        return "; ".join(map(str, self.rows)) if self.rows else "the configs are equal"

    @property
    def equal(self) -> bool:
        return not self.rows


def config_difference(a: QConfigMapping, b: QConfigMapping) -> Difference:
    """From a to b: the default first, then rules for types, then for layers."""
    rows = _rule(DEFAULT, _present(a.default), _present(b.default))
    for word, of_a, of_b in (("type", a.by_type, b.by_type), ("layer", a.by_name, b.by_name)):
        for key in dict.fromkeys([*of_a, *of_b]):
            rows += _rule(f"{word} {key}", _looked_up(of_a, key), _looked_up(of_b, key))
    for name in dict.fromkeys([*a.ranges, *b.ranges]):
        before, after = a.ranges.get(name), b.ranges.get(name)
        if before != after:
            rows.append(FieldDifference(f"tensor {name}", "range", _ends(before), _ends(after)))
    for key, words in SWITCHES.items():
        if getattr(a, key) != getattr(b, key):
            rows.append(FieldDifference(DEFAULT, words, _on(getattr(a, key)), _on(getattr(b, key))))
    return Difference(tuple(rows))


def _ends(ends: tuple[float, float] | None) -> str:
    return "observed" if ends is None else f"{ends[0]:.4g} … {ends[1]:.4g}"


def _on(value: bool) -> str:
    return "on" if value else "off"


_Rule = tuple[bool, QConfig | None]  # whether there is one, and what it says


def _present(config: QConfig | None) -> _Rule:
    return True, config


def _looked_up(rules: Mapping[str, QConfig | None], key: str) -> _Rule:
    return key in rules, rules.get(key)


def _rule(where: str, a: _Rule, b: _Rule) -> list[FieldDifference]:
    if a == b:
        return []
    (has_a, of_a), (has_b, of_b) = a, b
    if of_a is None or of_b is None:  # float, or no rule, on one side: its fields say nothing one by one
        return [FieldDifference(where, "", _short(has_a, of_a), _short(has_b, of_b))]
    fields_a, fields_b = _fields(of_a), _fields(of_b)
    return [
        FieldDifference(where, key, fields_a.get(key, MISSING), fields_b.get(key, MISSING))
        for key in sorted(dict.fromkeys([*fields_a, *fields_b]), key=_order)
        if fields_a.get(key) != fields_b.get(key)
    ]


def _order(field: str) -> int:
    return ("mode", "weight", "activation").index(field.split()[0].rstrip("s"))


def _short(has: bool, config: QConfig | None) -> str:
    if not has:
        return MISSING
    return FLOAT if config is None else summary(config)


def extras(mapping: QConfigMapping) -> list[str]:
    """What a config does beside its rules, in a few words each."""
    count = len(mapping.ranges)
    out = [f"{count} range{'s' if count > 1 else ''} by hand"] if count else []
    short = {"equalize": "equalised", "correct_bias": "biases corrected"}
    return out + [words for key, words in short.items() if getattr(mapping, key)]


def summary(config: QConfig | None) -> str:
    """A config in a few words: "W8 A8 static", "W4 weight-only"; float for None."""
    if config is None:
        return FLOAT
    parts = [f"{letter}{spec.bits}" for letter, spec in (("W", config.weight), ("A", config.activation)) if spec]
    return " ".join([*parts, config.mode.replace("_", "-")])


def _fields(config: QConfig) -> dict[str, str]:
    out = {"mode": config.mode.replace("_", "-")}
    for word, spec in (("weight", config.weight), ("activation", config.activation)):
        if spec is None:
            out[f"{word}s"] = FLOAT
            continue
        out |= {f"{word} {key}": value for key, value in _spec_fields(spec).items()}
    return out


def _spec_fields(spec: QuantSpec) -> dict[str, str]:
    out = {
        "bits": str(spec.bits), "scheme": spec.qscheme.replace("_", " "), "observer": observer_words(spec),
        "codes": "signed" if spec.signed else "unsigned",
    }  # fmt: skip
    if spec.narrow_range:
        out["narrow range"] = "yes"
    if spec.group_size is not None:
        out["group size"] = str(spec.group_size)
    return out


def observer_words(spec: QuantSpec) -> str:
    """The observer with the settings that are not the usual ones: "mse", "percentile 99.9"."""
    from qlab.quant.observers import OBSERVERS

    observer = OBSERVERS[spec.observer]
    usual = observer.settings({})
    own = [f"{value:g}" for key, value in observer.settings(spec.observer_args).items() if value != usual[key]]
    return " ".join([spec.observer, *own])
