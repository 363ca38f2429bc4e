"""What can be done about something that was found: always a change of the config; and several of them as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlab.config import QConfig, QConfigMapping
from qlab.errors import InvalidConfig
from qlab.graph.capture import Model
from qlab.graph.ops import op_type
from qlab.graph.placement import place

_ABSENT = object()  # in place of a key that a table does not have


@dataclass(frozen=True)
class Remedy:
    """One way out. title: a button's text ("Quantize fc1.weight per channel"); sentence: what it does and what it
    costs. mapping: the whole config with it."""

    title: str
    sentence: str
    mapping: QConfigMapping


def combined(mapping: QConfigMapping, chosen: Iterable[Remedy], model: Model | None = None) -> QConfigMapping:
    """The config with what all of these change, each field of a spec by itself.

    Where two set the same field, the later one counts; float comes before any spec, and what is said of a layer before
    what is said of all. model: tells the type of a layer that is named; needed where the config has rules by type.
    Raises InvalidConfig where it is missing, or where what comes out is no config.
    """
    return _Merge(mapping, list(chosen), model).mapping


def conflicts(mapping: QConfigMapping, chosen: Iterable[Remedy], model: Model | None = None) -> list[str]:
    """What `combined` cannot have both ways, a sentence for each field. Raises as `combined`.

    With the model also ranges that do nothing, because another remedy takes their tensor off its grid.
    """
    several = list(chosen)
    merge = _Merge(mapping, several, model)
    return merge.conflicts if model is None else [*merge.conflicts, *_without_grid(mapping, several, merge, model)]


def _without_grid(mapping: QConfigMapping, chosen: list[Remedy], merge: _Merge, model: Model) -> Iterator[str]:
    placement = place(model, merge.mapping)
    on_grids = {p.tensor for p in placement.weights} | {p.tensor for p in placement.activations}
    for remedy in chosen:
        for tensor, ends in remedy.mapping.ranges.items():
            if mapping.ranges.get(tensor) != ends and tensor not in on_grids:
                yield f"“{remedy.title}” does nothing beside the others: {tensor} is on no grid then."


class _Merge:
    def __init__(self, mapping: QConfigMapping, chosen: list[Remedy], model: Model | None):
        self.before, self.chosen = mapping, chosen
        self.conflicts: list[str] = []
        types = {} if model is None else {model.names[node]: op_type(node) for node in model.ops}
        named = dict.fromkeys(
            name for r in chosen for name in r.mapping.by_name
            if name not in mapping.by_name and not any(c in name for c in "*?[")
        )  # fmt: skip
        if named and model is None and any(m.by_type for m in (mapping, *(r.mapping for r in chosen))):
            raise InvalidConfig("the config has rules by op type: give the model, which knows the type of a layer.")

        def tree(config: QConfigMapping) -> dict[str, Any]:
            """Every layer that some remedy names has a rule of its own in each, so that field stands beside field."""
            own = {name: config.resolve(name, types.get(name, "")).qconfig for name in named}
            return {"ranges": {}} | config.replace(by_name={**config.by_name, **own}).to_dict()

        merged = self._merged((), tree(mapping), [(r, tree(r.mapping)) for r in chosen])
        self.mapping = QConfigMapping.from_dict(merged)

    def _merged(self, path: tuple[str, ...], base: Any, new: list[tuple[Remedy, Any]]) -> Any:
        changed = [(remedy, value) for remedy, value in new if value != base]
        if not changed:
            return base
        if len(path) == 2 and path[0] == "by_name":
            changed = self._by_precedence(path[1], changed)
        changed.sort(key=lambda pair: pair[1] is None)
        if isinstance(base, dict) and all(isinstance(value, dict) for _, value in changed):
            out = {
                key: self._merged((*path, key), base.get(key, _ABSENT), [(r, v.get(key, _ABSENT)) for r, v in changed])
                for key in dict.fromkeys([*base, *(key for _, value in changed for key in value)])
            }
            return {key: value for key, value in out.items() if value is not _ABSENT}
        last, value = changed[-1]
        against = [remedy.title for remedy, other in changed if other != value]
        if against:
            others = " and ".join(f"“{title}”" for title in dict.fromkeys(against))
            self.conflicts.append(f"“{last.title}” and {others} set {_words(path)} differently: the first counts.")
        return value

    def _by_precedence(self, layer: str, changed: list[tuple[Remedy, Any]]) -> list[tuple[Remedy, Any]]:
        """What names the layer last; alone, where it keeps the layer float."""

        def names(remedy: Remedy) -> bool:
            rules: Mapping[str, QConfig | None] = remedy.mapping.by_name
            return layer in rules and (layer not in self.before.by_name or rules[layer] != self.before.by_name[layer])

        own = [pair for pair in changed if names(pair[0])]
        if any(value is None for _, value in own):
            return own
        return [pair for pair in changed if not names(pair[0])] + own


def _words(path: tuple[str, ...]) -> str:
    """A field of a config in a sentence: "the bits of the weight of fc", "the range of x"."""
    by, *rest = path
    if by == "ranges":
        return f"the range of {rest[0]}"
    if by in ("by_name", "by_type"):
        place = rest.pop(0) if by == "by_name" else f"every {rest.pop(0)}"
    else:
        place = "the default" if by == "default" else by
    inner = {"activation": "activations", "qscheme": "scheme"}
    return " of ".join([*(f"the {inner.get(part, part)}" for part in reversed(rest)), place])
