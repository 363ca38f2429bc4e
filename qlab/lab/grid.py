"""Many configs from a few choices, and an order in which the first ones already cover the space."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig

Observer = str | tuple[str, Mapping[str, Any]]  # a name, or a name with its settings


@dataclass(frozen=True)
class Grid:
    """Every combination of these choices that makes a valid config.

    Observers are names, or pairs of a name and its settings: ("percentile", {"percentile": 99.9}). rules: what stands
    in `by_type` and `by_name` of every config, such as layers to keep float. Raises InvalidConfig when a choice is
    empty or no combination is valid.
    """

    weight_bits: Sequence[int] = (8,)
    activation_bits: Sequence[int] = (8,)
    weight_schemes: Sequence[str] = ("per_channel_symmetric",)
    activation_schemes: Sequence[str] = ("per_tensor_affine",)
    weight_observers: Sequence[Observer] = ("min_max",)
    activation_observers: Sequence[Observer] = ("min_max",)
    modes: Sequence[str] = ("static",)
    group_size: int = 32
    rules: QConfigMapping = field(default_factory=QConfigMapping)

    def configs(self) -> dict[str, QConfigMapping]:
        """Name -> config, in the order of the choices; equal configs once.

        A combination that cannot be is taken as what its mode makes of it: weight-only leaves activations float,
        dynamic ranges them per call. What is still invalid is left out; `left_out` says why.
        """
        return self._made()[0]

    @property
    def left_out(self) -> dict[str, str]:
        """Name of a combination that is no valid config -> why."""
        return self._made()[1]

    def _made(self) -> tuple[dict[str, QConfigMapping], dict[str, str]]:
        choices = (
            self.modes, self.weight_bits, self.activation_bits, self.weight_schemes, self.activation_schemes,
            self.weight_observers, self.activation_observers,
        )  # fmt: skip
        if not all(choices):
            raise InvalidConfig("A grid needs at least one entry for every choice.")
        found: dict[str, QConfig] = {}
        left_out: dict[str, str] = {}
        for mode, wbits, abits, wscheme, ascheme, wobserver, aobserver in itertools.product(*choices):
            try:
                weight = _spec(wbits, wscheme, wobserver, self.group_size)
                activation = None
                if mode == "dynamic":
                    layout = ascheme.split("_")[-1]
                    activation = QuantSpec(bits=abits, qscheme=f"per_tensor_{layout}")
                elif mode != "weight_only":
                    activation = _spec(abits, ascheme, aobserver, None)
                config = QConfig(weight=weight, activation=activation, mode=mode)
            except InvalidConfig as error:
                left_out[f"{mode} W{wbits} {_words(wobserver)} · A{abits} {_words(aobserver)}"] = str(error)
                continue
            if config not in found.values():
                found[str(len(found))] = config
        if not found:
            raise InvalidConfig(f"No combination of this grid is a valid config: {next(iter(left_out.values()))}")
        names = short_names([*found.values()])
        rules = self.rules
        return {n: rules.replace(default=c) for n, c in zip(names, found.values(), strict=True)}, left_out


def short_names(configs: Sequence[QConfig]) -> list[str]:
    """Bits, then whatever else is not the same in all of them: "W8 A6 · mse", "W4 per_channel · A8"."""
    parts = [_parts(c) for c in configs]
    varying = {key for key in parts[0] if len({p[key] for p in parts}) > 1}
    for word, other in (("weight", "activation"), ("activation", "weight")):
        for what in ("scheme", "observer"):
            if f"{word} {what}" in varying and f"{other} {what}" not in varying:  # then it is clear whose it is
                for part in parts:
                    part[f"{word} {what}"] = part[f"{word} {what}"][2:]
    names = []
    for config, part in zip(configs, parts, strict=True):
        weight, activation = config.weight, config.activation
        bits = f"W{weight.bits if weight else ' float'} A{activation.bits if activation else ' float'}"
        more = [part[key] for key in part if key in varying and not key.endswith("bits") and part[key]]
        names.append(" · ".join([bits, *more]))
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _parts(config: QConfig) -> dict[str, str]:
    out = {"mode": config.mode.replace("_", "-")}
    for letter, word, spec in (("W", "weight", config.weight), ("A", "activation", config.activation)):
        out[f"{word} bits"] = str(spec.bits) if spec else ""
        out[f"{word} scheme"] = f"{letter} {spec.qscheme.replace('_', ' ')}" if spec else ""
        settings = [f"{v:g}" if isinstance(v, float) else str(v) for v in spec.observer_args.values()] if spec else []
        out[f"{word} observer"] = " ".join([letter, spec.observer, *settings]) if spec else ""
        signed = None if spec is None or spec.signed == spec.symmetric else spec.signed
        out[f"{word} sign"] = "" if signed is None else f"{letter} {'signed' if signed else 'unsigned'}"
        out[f"{word} range"] = f"{letter} narrow" if spec and spec.narrow_range else ""
        out[f"{word} group"] = f"groups of {spec.group_size}" if spec and spec.group_size else ""
    return out


def _spec(bits: int, scheme: str, observer: Observer, group_size: int | None) -> QuantSpec:
    name, settings = (observer, {}) if isinstance(observer, str) else observer
    size = group_size if "group" in scheme else None
    return QuantSpec(bits=bits, qscheme=scheme, observer=name, observer_args=dict(settings), group_size=size)


def _words(observer: Observer) -> str:
    return observer if isinstance(observer, str) else f"{observer[0]} {', '.join(map(str, observer[1].values()))}"


def coverage_order(mappings: Sequence[QConfigMapping]) -> list[int]:
    """An order in which every next config is as far as can be from those before it, so that any beginning of it covers
    the space. The first is the one with the most bits: what is found best early is what the others are held against.

    Distance: how many fields differ, bits by how much they do. Source: farthest-point traversal, Gonzalez 1985.
    """
    if not mappings:
        return []
    features = _features(mappings)
    bits = np.array([_bits(m) for m in mappings])
    order = [int(bits.argmax())]
    nearest = np.abs(features - features[order[0]]).sum(1)
    while len(order) < len(mappings):
        nearest[order] = -1
        # Of those equally far the one with more bits, then the earlier one: reproducible.
        best = max(range(len(mappings)), key=lambda i: (nearest[i], bits[i], -i))
        order.append(best)
        nearest = np.minimum(nearest, np.abs(features - features[best]).sum(1))
    return order


def _features(mappings: Sequence[QConfigMapping]) -> np.ndarray:
    """[configs, fields] in 0..1; fields that are equal everywhere say nothing and count nothing."""
    tables = [dict(_flat(m.to_dict())) for m in mappings]
    columns = []
    for key in sorted({k for t in tables for k in t}):
        values = [t.get(key) for t in tables]
        if key.endswith("bits") and all(isinstance(v, int) for v in values):
            numbers = np.array(values, dtype=float)
            columns.append((numbers - numbers.min()) / (np.ptp(numbers) or 1.0))
            continue
        kinds = sorted({repr(v) for v in values})
        # Half for each of the two columns in which different kinds differ, so that a different kind is 1 away.
        columns += [np.array([0.5 * (repr(v) == kind) for v in values]) for kind in kinds if len(kinds) > 1]
    return np.stack(columns, 1) if columns else np.zeros((len(mappings), 1))


def _flat(table: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{before}{key}"
        out += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return out


def _bits(mapping: QConfigMapping) -> float:
    """Bits of weights and activations of the default; float counts as 32."""
    default = mapping.default
    if default is None:
        return 64.0
    return sum(float(spec.bits) if spec else 32.0 for spec in (default.weight, default.activation))
