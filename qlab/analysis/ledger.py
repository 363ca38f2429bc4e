"""What can be done about a line of the ledger: configs under which the op is quantized, or why there is none.

A remedy is offered when placing the model under it really puts the op on integers; nothing is promised from the cause
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qlab.analysis.remedy import Remedy
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.capture import Model
from qlab.graph.causes import Cause
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type
from qlab.graph.optypes import OP_TYPES
from qlab.graph.placement import LedgerRow, place
from qlab.preset import presets

WEIGHTED = ("weighted", "lookup", "recurrent")

NO_REMEDY: Mapping[Cause, str] = {
    "weight_computed": "Its weight is computed anew at every call, so there are no codes to store. Make it a parameter "
    "of the module; or write the product as a matmul, which is quantized with both its inputs on grids.",
    "weight_not_float": "Its weight is not stored in float, so there is nothing to choose a grid for. Export the "
    "network with float weights.",
    "packed": "Pad the sequences to one length and export the network without packing.",
    "integer_values": "It gives whole numbers or truth values, which are exact already.",
    "integer_input": "It reads whole numbers or truth values; a grid is for float tensors.",
    "infinite": "A grid has a lowest and a highest value, so none holds minus infinity. The ops around it are "
    "quantized all the same; the mask itself costs no products.",
    "float_input": "It computes nothing: it takes over the grid of what it reads, and what it reads here gives floats.",
    "unsupported": "No integer kernel of the runtimes computes it, so it stays in float between a dequantize and a "
    "quantize. No config changes that.",
}


@dataclass(frozen=True)
class _Way:
    """A remedy and how far it reaches: this layer, every layer of its type or rule, or the whole network."""

    reach: str  # layer, group, all
    remedy: Remedy


def remedies_of(
    row: LedgerRow, mapping: QConfigMapping, model: Model, infinite: Mapping[str, int] | None = None
) -> list[Remedy]:
    """Changes of the config that put this op on integers, the smallest first; none where none does (`why_none`).

    row: of the ledger that `mapping` gives. infinite: as for `place`.
    """
    return [way.remedy for way in _ways(row, mapping, model, infinite or {})]


def why_none(row: LedgerRow, model: Model) -> str:
    """Why no config helps, in a sentence; empty for an op that is on integers already."""
    if row.quantized:
        return ""
    source = input_of(row, model) if row.cause == "float_input" else None
    more = f" It reads {source}." if source else ""
    return NO_REMEDY.get(row.cause, "No change of the config that the lab knows puts it on integers.") + more


def input_of(row: LedgerRow, model: Model) -> str | None:
    """The op whose output this one reads; None where that is an input of the network, or a constant."""
    before = model.node(row.layer).all_input_nodes
    while before:
        node = before[0]
        if node in model.names:
            return model.names[node] if node.op == "call_function" else None
        before = node.all_input_nodes
    return None


# --- the ways out of each cause ---------------------------------------------------------------------------------------


def _ways(row: LedgerRow, mapping: QConfigMapping, model: Model, infinite: Mapping[str, int]) -> list[_Way]:
    out: list[_Way] = []
    for way in _thinkable(row, mapping, model):
        new = way.remedy.mapping
        after = next(r for r in place(model, new, infinite).ledger if r.layer == row.layer)
        done = after.quantized and (row.weight is not None or not _float_weight(row) or after.weight is not None)
        if done and all(way.remedy.title != kept.remedy.title and new != kept.remedy.mapping for kept in out):
            out.append(way)
    return out


def _float_weight(row: LedgerRow) -> bool:
    return OP_TYPES[row.op].role in WEIGHTED and row.weight is None and row.cause not in ("fused", "shared")


def _thinkable(row: LedgerRow, mapping: QConfigMapping, model: Model) -> Iterator[_Way]:
    """What may help, best first; of those with one title, the first that does is taken."""
    if row.quantized and not _float_weight(row):
        return
    if row.cause == "excluded":
        yield from _without_rule(row, mapping, model)
    elif row.cause == "default_float":
        sentence = "int8 weights per channel and uint8 activations, as the preset x86 has them."
        yield from _reaching(row, mapping, model, _usual(), "Quantize {}", sentence)
        yield _Way(
            "all", _remedy("Quantize whatever no rule names", sentence, mapping, mapping.replace(default=_usual()))
        )
    elif row.cause in ("dynamic_conv", "no_weight"):
        config = _config(row, mapping)
        words = "Its activations get their range from the calibration instead of at every call."
        if config.mode == "weight_only":
            words = "Its activations are put on grids too, with ranges from the calibration."
        yield from _reaching(row, mapping, model, _static(config), "Static ranges for {}", words)
        if row.cause == "dynamic_conv" and config.weight is not None:
            alone = QConfig(weight=config.weight, mode="weight_only")
            words = "Its weight is stored in codes, its arithmetic stays float: smaller, and not faster."
            yield from _reaching(row, mapping, model, alone, "Only the weight of {}", words)
    elif row.cause == "group_size":
        yield from _other_groups(row, mapping, model)
    elif row.cause in ("activations_only", "quantized"):
        config = _config(row, mapping)
        yield from _reaching(
            row, mapping, model, config.replace(weight=_usual().weight), "Quantize the weight of {}",
            "The config has a spec for activations alone; this adds int8 weights per channel.",
        )  # fmt: skip


def _without_rule(row: LedgerRow, mapping: QConfigMapping, model: Model) -> Iterator[_Way]:
    """Out of the rule that keeps the layer float; the whole rule away where it names no other."""
    pattern = row.rule.partition(" ")[2]
    named = [name for name, op in _layers(model) if mapping.resolve(name, op).rule == row.rule]
    rest = without(row.rule, mapping)
    alone = f"Quantize {row.layer}"
    if len(named) < 2:
        sentence = f"Drops the rule {pattern}: the rest of the config then says what the layer gets."
        yield _Way("layer", _remedy(alone, sentence, mapping, rest))
    config = rest.resolve(row.layer, row.op).qconfig or mapping.default or _usual()
    for usable in (config, _static(config)):
        sentence = f"A rule of its own, stronger than {pattern}: {usable}."
        yield _Way("layer", _remedy(alone, sentence, mapping, _by_name(mapping, row, usable)))
    if len(named) > 1:
        some = ", ".join(named[:4]) + (" …" if len(named) > 4 else "")
        sentence = f"Drops the rule {pattern}: the rest of the config then says what {some} get."
        yield _Way("group", _remedy(f"Quantize all {len(named)} of {pattern}", sentence, mapping, rest))


def _other_groups(row: LedgerRow, mapping: QConfigMapping, model: Model) -> Iterator[_Way]:
    config = _config(row, mapping)
    assert config.weight is not None
    assert config.weight.group_size is not None
    spec, asked = config.weight, config.weight.group_size
    per_channel = spec.replace(qscheme=spec.qscheme.replace("group", "channel"), group_size=None)
    counts = _weights_per_channel(row, mapping, model)
    common = math.gcd(*counts)
    fitting = (n for n in range(min(asked, common), 1, -1) if common % n == 0 and n < max(counts))
    if (size := next(fitting, None)) is not None:
        sentence = (
            f"A scale for every {size} weights: the largest size up to {asked} that divides the "
            f"{' and '.join(f'{n:,}' for n in sorted(set(counts)))} weights of a channel."
        )
        new = config.replace(weight=spec.replace(group_size=size))
        yield _Way(
            "layer", _remedy(f"Groups of {size} for {row.layer}", sentence, mapping, _by_name(mapping, row, new))
        )
    sentence = "One scale for each output channel: always possible, and coarser than groups."
    yield from _reaching(row, mapping, model, config.replace(weight=per_channel), "Per channel for {}", sentence)


def _weights_per_channel(row: LedgerRow, mapping: QConfigMapping, model: Model) -> list[int]:
    """How many weights stand behind one output channel, for each weight of the layer."""
    whole = QConfig(weight=QuantSpec(qscheme="per_channel_symmetric"), mode="weight_only")
    out = []
    for point in place(model, _by_name(mapping, row, whole)).weights:
        if model.names[point.node] == row.layer:
            weight = attribute(model.graph_module, point.constant)
            assert weight is not None
            out.append(weight.numel() // weight.shape[point.axis])
    return out


# --- the pieces they share --------------------------------------------------------------------------------------------


def _reaching(
    row: LedgerRow, mapping: QConfigMapping, model: Model, config: QConfig, title: str, sentence: str
) -> Iterator[_Way]:
    """This config for the layer alone, and for every op of its type where it has more than one."""
    yield _Way("layer", _remedy(title.format(row.layer), sentence, mapping, _by_name(mapping, row, config)))
    new = mapping.replace(by_type={**mapping.by_type, row.op: config})
    same = [name for name, op in _layers(model) if op == row.op and new.resolve(name, op).rule == f"by_type {op}"]
    if len(same) > 1:
        sentence = f"{sentence} For all {len(same)} ops of this type that no rule for their name reaches."
        yield _Way("group", _remedy(title.format(f"every {row.op}"), sentence, mapping, new))


def without(rule: str, mapping: QConfigMapping) -> QConfigMapping:
    """The config without this rule, as a ledger names it: "by_type linear", "by_name layer4.*"."""
    by, _, pattern = rule.partition(" ")
    return mapping.replace(**{by: {key: config for key, config in getattr(mapping, by).items() if key != pattern}})


def _by_name(mapping: QConfigMapping, row: LedgerRow, config: QConfig) -> QConfigMapping:
    return mapping.replace(by_name={**mapping.by_name, row.layer: config})


def _config(row: LedgerRow, mapping: QConfigMapping) -> QConfig:
    config = mapping.resolve(row.layer, row.op).qconfig
    assert config is not None, row
    return config


def _usual() -> QConfig:
    config = presets["x86"].default
    assert config is not None
    return config


def _static(config: QConfig) -> QConfig:
    return config.replace(mode="static", activation=config.activation or _usual().activation)


def _layers(model: Model) -> list[tuple[str, str]]:
    return [(model.names[node], op_type(node)) for node in model.ops]


def _remedy(title: str, sentence: str, before: QConfigMapping, after: QConfigMapping) -> Remedy:
    more = " Needs a calibration." if after.needs_calibration and not before.needs_calibration else ""
    return Remedy(title, sentence + more, after)


# --- what to know before reading the ledger ---------------------------------------------------------------------------


def groups_with_remedies(
    ledger: Sequence[LedgerRow], mapping: QConfigMapping, model: Model, infinite: Mapping[str, int] | None = None
) -> list[tuple[list[LedgerRow], list[Remedy]]]:
    """Ops with a weight that are float, those of one cause, rule and type together, and what helps all of them; those
    it leaves float are a group of their own."""
    groups: dict[tuple[str, str, str], list[LedgerRow]] = {}
    for row in ledger:
        if OP_TYPES[row.op].role in WEIGHTED and not row.quantized:
            groups.setdefault((row.cause, row.rule, row.op), []).append(row)
    out = []
    for rows in groups.values():
        ways = _ways(rows[0], mapping, model, infinite or {})
        wanted = ways if len(rows) == 1 else [way for way in ways if way.reach != "layer"]
        remedies = [way.remedy for way in wanted]
        helped = {row.layer for row in rows}.intersection(
            *(_quantized(model, remedy.mapping, infinite or {}) for remedy in remedies)
        )
        out.append(([row for row in rows if row.layer in helped], remedies))
        out.append(([row for row in rows if row.layer not in helped], []))
    return [(rows, remedies) for rows, remedies in out if rows]


def _quantized(model: Model, mapping: QConfigMapping, infinite: Mapping[str, int]) -> set[str]:
    return {row.layer for row in place(model, mapping, infinite).ledger if row.quantized}
