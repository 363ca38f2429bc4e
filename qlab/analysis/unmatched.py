"""Rules of a config that no op matched: what was probably meant."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from qlab.analysis.ledger import without
from qlab.analysis.remedy import Remedy
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.capture import Model
from qlab.graph.ops import op_type
from qlab.graph.optypes import OP_TYPES
from qlab.graph.placement import place

ALIKE = 0.5  # ratio of difflib from which two names may be the same with a slip
MOST = 3


def closest(pattern: str, model: Model, most: int = MOST) -> list[str]:
    """Layer names that are like this one, or like the start and the end of this pattern; best first."""
    names = [model.names[node] for node in model.ops]
    if not _is_pattern(pattern):
        candidates = names
    else:
        candidates = [p for p in dict.fromkeys(_patterns(pattern, names)) if any(fnmatchcase(n, p) for n in names)]
    ranked = sorted(((_alike(pattern, name), name) for name in candidates), key=lambda pair: -pair[0])
    layer = pattern.rpartition(".")[0]  # of a tensor, such as fc.weight
    found = [layer] if layer in names else []
    return [*found, *(name for ratio, name in ranked if ratio >= ALIKE and name != layer)][:most]


def has_tensor(name: str, model: Model) -> bool:
    """Whether an activation, an input or a weight of the network has this name, on a grid or not."""
    inputs = {spec.name for spec in model.inputs}
    every_weight = QConfigMapping(QConfig(weight=QuantSpec(), mode="weight_only"))
    return name in inputs or name in model.names.values() or any(
        point.tensor == name for point in place(model, every_weight).weights
    )  # fmt: skip


def unmatched_remedies(rule: str, mapping: QConfigMapping, model: Model) -> list[Remedy]:
    """What to do about a rule that no op matched: the closest one that some do, or none at all.

    rule: as `unmatched` of a quantized model names it, "by_name layer9.*", "by_type linear" or "range fc.weight".
    """
    by, _, pattern = rule.partition(" ")
    if by == "range":
        ranges = {tensor: ends for tensor, ends in mapping.ranges.items() if tensor != pattern}
        there = has_tensor(pattern, model)
        sentence = "It is on no grid, so nothing changes." if there else "No tensor has this name, so nothing changes."
        return [Remedy(f"Drop the range of {pattern}", sentence, mapping.replace(ranges=ranges))]
    taken = getattr(mapping, by)
    others = closest(pattern, model) if by == "by_name" else _types(pattern, model)
    out = []
    for other in [name for name in others if name not in taken][:MOST]:
        rules = {other if key == pattern else key: config for key, config in taken.items()}
        matched = sum(fnmatchcase(n, other) if by == "by_name" else op == other for n, op in _layers(model))
        sentence = f"The rule then names {matched:,} op{'s' if matched != 1 else ''} of this network."
        out.append(Remedy(f"Write {other} instead", sentence, mapping.replace(**{by: rules})))
    return [*out, Remedy(f"Drop the rule {pattern}", "It does nothing, so nothing changes.", without(rule, mapping))]


def _types(name: str, model: Model) -> list[str]:
    """Types of the network that are quantized in the same way, those with the most like name first."""
    here = dict.fromkeys(op for _, op in _layers(model))
    same = [op for op in here if OP_TYPES[op].role == OP_TYPES[name].role]
    return sorted(same, key=lambda op: -_alike(name, op))[:MOST]


def _patterns(pattern: str, names: list[str]) -> Iterator[str]:
    """The pattern with what stands before its first wildcard, or behind its last, taken from the names there are."""
    first = min(pattern.index(c) for c in "*?[" if c in pattern)
    last = max(pattern.rindex(c) for c in "*?]" if c in pattern) + 1
    head, tail = pattern[:first], pattern[last:]
    for name in names:
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            start, end = ".".join(parts[:i]), ".".join(parts[-i:])
            if head:
                yield start + ("." if head.endswith(".") else "") + pattern[first:]
            if tail:
                yield pattern[:last] + ("." if tail.startswith(".") else "") + end
            if head and tail:
                for j in range(1, len(parts)):
                    yield (
                        start
                        + ("." if head.endswith(".") else "")
                        + pattern[first:last]
                        + ("." if tail.startswith(".") else "")
                        + ".".join(parts[-j:])
                    )


def _is_pattern(text: str) -> bool:
    return any(c in text for c in "*?[")


def _alike(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _layers(model: Model) -> list[tuple[str, str]]:
    return [(model.names[node], op_type(node)) for node in model.ops]
