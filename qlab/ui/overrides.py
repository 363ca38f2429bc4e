"""Rules for single layers as an editable table: which layers, and what they get instead of the default.

The table is another view of the mapping in the shared state. A cell left empty follows the default, also when that
changes later; this is why the rows are kept beside the mapping while a session lasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import pandas as pd
import streamlit as st

from qlab.config import ACTIVATION_BITS, QSCHEMES, WEIGHT_BITS, QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig
from qlab.graph.optypes import OP_TYPES
from qlab.preset import presets
from qlab.quant.observers import OBSERVERS
from qlab.ui import errors, say, state

BY_NAME: Final = "layer name"
BY_TYPE: Final = "op type"
GROUP_SIZE = 32
ROWS, BASE, VERSION = "exp_rules", "exp_rules_base", "exp_rules_version"
SHOWN = 6  # layer names written out for a rule


@dataclass(frozen=True)
class Rule:
    """One row. None in a cell: as the default has it. origin: what the rule held where the cells cannot say it all."""

    by: Literal["layer name", "op type"] = BY_NAME
    pattern: str = ""
    keep_float: bool = False
    weight_bits: int | None = None
    weight_scheme: str | None = None
    activation_bits: int | None = None
    activation_observer: str | None = None
    origin: QConfig | None = None

    def qconfig(self, default: QConfig | None) -> QConfig | None:
        """What the layers get. Raises InvalidConfig when the cells cannot be combined."""
        if self.keep_float:
            return None
        config = self.origin or default or presets[state.DEFAULT_PRESET].default
        assert config is not None
        weight, activation = config.weight, config.activation
        if self.weight_bits is not None or self.weight_scheme is not None:
            usual = QuantSpec(qscheme="per_channel_symmetric")
            weight = _changed(weight or usual, self.weight_bits, self.weight_scheme)
        if self.activation_bits is not None or self.activation_observer is not None:
            if activation is None:
                raise InvalidConfig(
                    "in mode weight-only activations stay float: clear the activation cells, or choose another mode."
                )
            activation = _changed(activation, self.activation_bits, None)
            if self.activation_observer is not None:
                activation = activation.replace(observer=self.activation_observer, observer_args={})
        return config.replace(weight=weight, activation=activation)

    def matches(self, layers: Sequence[tuple[str, str]]) -> list[str]:
        """The layers this rule names, of (layer, op type)."""
        if self.by == BY_TYPE:
            return [layer for layer, op in layers if op == self.pattern]
        return [layer for layer, _ in layers if fnmatchcase(layer, self.pattern)]

    @property
    def blank(self) -> bool:
        return replace(self, by=BY_NAME) == Rule()


@dataclass(frozen=True)
class Parsed:
    """The mapping that rows make, and what is wrong with which row (numbered from 1)."""

    mapping: QConfigMapping
    problems: Mapping[int, str] = field(default_factory=dict)


def _changed(spec: QuantSpec, bits: int | None, scheme: str | None) -> QuantSpec:
    if bits is not None:
        spec = spec.replace(bits=bits)
    if scheme is not None and scheme != spec.qscheme:
        group_size = (spec.group_size or GROUP_SIZE) if "group" in scheme else None
        spec = spec.replace(qscheme=scheme, signed=None, narrow_range=False, group_size=group_size)
    return spec


def parse(rules: Sequence[Rule], default: QConfig | None, like: QConfigMapping | None = None) -> Parsed:
    """The mapping of this default with these rules; a row that makes no sense is left out and named.

    like: where what is no rule (ranges by hand, equalisation) is taken from.
    """
    by_type: dict[str, QConfig | None] = {}
    by_name: dict[str, QConfig | None] = {}
    problems: dict[int, str] = {}
    for number, rule in enumerate(rules, 1):
        if rule.blank:
            continue
        rows = by_type if rule.by == BY_TYPE else by_name
        if not rule.pattern:
            problems[number] = f"has no {rule.by}: write which layers it is for, or delete the row."
        elif rule.by == BY_TYPE and rule.pattern not in OP_TYPES:
            problems[number] = f"there is no op type {rule.pattern!r}: use one of {', '.join(OP_TYPES)}."
        elif rule.pattern in rows:
            problems[number] = f"a row above is for {rule.by} {rule.pattern!r} already: put both into one row."
        else:
            try:
                rows[rule.pattern] = rule.qconfig(default)
            except InvalidConfig as error:
                problems[number] = str(error)
    return Parsed(replace(like or QConfigMapping(), default=default, by_type=by_type, by_name=by_name), problems)


def rules_of(mapping: QConfigMapping) -> list[Rule]:
    """The rows that make this mapping again."""
    named = [(BY_NAME, pattern, config) for pattern, config in mapping.by_name.items()]
    typed = [(BY_TYPE, name, config) for name, config in mapping.by_type.items()]
    return [_rule(by, pattern, config, mapping.default) for by, pattern, config in [*named, *typed]]


def _rule(by: Any, pattern: str, config: QConfig | None, default: QConfig | None) -> Rule:
    if config is None:
        return Rule(by, pattern, keep_float=True)
    rule = Rule(by, pattern, **_differences(config, default))
    try:
        same = rule.qconfig(default) == config
    except InvalidConfig:
        same = False
    return rule if same else Rule(by, pattern, origin=config)


def _differences(config: QConfig, default: QConfig | None) -> dict[str, Any]:
    default = default or presets[state.DEFAULT_PRESET].default
    assert default is not None
    out: dict[str, Any] = {}
    for side, of_spec in (
        ("weight", {"bits": "bits", "scheme": "qscheme"}),
        ("activation", {"bits": "bits", "observer": "observer"}),
    ):
        mine, usual = getattr(config, side), getattr(default, side)
        for cell, name in of_spec.items():
            if mine is not None and (usual is None or getattr(mine, name) != getattr(usual, name)):
                out[f"{side}_{cell}"] = getattr(mine, name)
    return out


def apply_edits(rules: Sequence[Rule], edits: Mapping[str, Any]) -> list[Rule]:
    """The rows after what a person did in the table, as st.data_editor reports it."""
    changed = list(rules)
    for number, cells in edits.get("edited_rows", {}).items():
        changed[int(number)] = _with_cells(changed[int(number)], cells)
    deleted = set(edits.get("deleted_rows", ()))
    kept = [rule for number, rule in enumerate(changed) if number not in deleted]
    return kept + [_with_cells(Rule(), cells) for cells in edits.get("added_rows", ())]


def _with_cells(rule: Rule, cells: Mapping[str, Any]) -> Rule:
    values = {k: v for k, v in cells.items() if k in Rule.__dataclass_fields__}
    if "pattern" in values:
        values["pattern"] = (values["pattern"] or "").strip()
    if "keep_float" in values:
        values["keep_float"] = bool(values["keep_float"])
    if "by" in values:
        values["by"] = values["by"] or BY_NAME
    for cell in ("weight_bits", "activation_bits"):
        if values.get(cell) is not None:
            values[cell] = int(values[cell])
    return replace(rule, **values)


# --- the shared state -------------------------------------------------------------------------------------------------


def rows() -> list[Rule]:
    """The rows of this session, brought in line with the mapping when another page changed that."""
    mapping = state.mapping()
    known = st.session_state.get(ROWS)
    if known is None or parse(known, mapping.default, mapping).mapping != mapping:
        known = rules_of(mapping)
        _restart(known)
    return known


def set_default(config: QConfig | None) -> None:
    """Changes what layers without a rule get; the cells left empty in the rules follow."""
    state.set_mapping(parse(rows(), config, state.mapping()).mapping)


def set_rows(rules: list[Rule]) -> None:
    """Makes these rules the rules of the current config."""
    st.session_state[ROWS] = rules
    state.set_mapping(parse(rules, state.mapping().default, state.mapping()).mapping)


def _restart(rules: list[Rule]) -> None:
    # The table reports edits relative to what it was given first, so it gets a new start under a new key.
    st.session_state[ROWS] = st.session_state[BASE] = rules
    st.session_state[VERSION] = st.session_state.get(VERSION, 0) + 1


def _edited(key: str) -> None:
    set_rows(apply_edits(st.session_state[BASE], st.session_state[key]))


# --- drawing ----------------------------------------------------------------------------------------------------------


def table(layers: Sequence[tuple[str, str]] | None) -> None:
    """The table, and for every rule how many layers it names. layers: (layer, op type); None: there is no model."""
    known = rows()
    key = f"exp_rules_table_{st.session_state[VERSION]}"
    if key not in st.session_state and known != st.session_state[BASE]:
        # Streamlit forgot the edits while another page was shown; the rows did not.
        _restart(known)
        key = f"exp_rules_table_{st.session_state[VERSION]}"
    st.data_editor(
        _frame(st.session_state[BASE]),
        key=key,
        num_rows="dynamic",
        hide_index=True,
        width="stretch",
        column_config=_columns(),
        on_change=_edited,
        args=(key,),
        placeholder="as default",
    )
    if layers is None:
        return
    default = state.mapping().default
    for number, problem in parse(known, default).problems.items():
        st.error(f"Row {number}: {errors.escape(problem)}")
    for rule in known:
        _count(rule, layers, default)
    if not any(not rule.blank for rule in known):
        example, (op, _) = layers[0][0] if layers else "conv1", Counter(op for _, op in layers).most_common(1)[0]
        say.caption(
            f"No rules: every layer gets the config above. A rule for the layer name `{example}` or the pattern "
            f"`{example[:3]}*`, or for the op type `{op}`, gives some layers other bits or leaves them float."
        )


def _count(rule: Rule, layers: Sequence[tuple[str, str]], default: QConfig | None) -> None:
    if not rule.pattern:
        return
    found = rule.matches(layers)
    name = f"{rule.by} **{errors.escape(rule.pattern)}**"
    if not found:
        known = sorted({op for _, op in layers}) if rule.by == BY_TYPE else [layer for layer, _ in layers]
        say.warning(
            f"The {name} matches nothing in this model, so this rule does nothing. The model has "
            f"{errors.escape(some(known))}."
        )
        return
    ops = dict(layers)
    idle = all(OP_TYPES[ops[layer]].role in ("passthrough", "float") for layer in found)
    effect = "; they compute nothing the lab quantizes, so this rule changes nothing" if idle else ""
    say.caption(
        f"{name} matches **{len(found)} of {len(layers)}** layers: {errors.escape(some(found))}{effect}.",
        help=f"They get: {_described(rule, default)}",
    )


def _described(rule: Rule, default: QConfig | None) -> str:
    try:
        return str(rule.qconfig(default) or "float")
    except InvalidConfig as error:
        return str(error)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _frame(rules: Sequence[Rule]) -> pd.DataFrame:
    fields = [name for name in Rule.__dataclass_fields__ if name != "origin"]
    made = pd.DataFrame([[getattr(rule, name) for name in fields] for rule in rules], columns=fields)
    kinds = {"keep_float": "bool", "weight_bits": "Int64", "activation_bits": "Int64"}
    return made.astype({name: kinds.get(name, "string") for name in fields})


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "by": column.SelectboxColumn(
            "Rule for", options=[BY_NAME, BY_TYPE], default=BY_NAME, required=True, width="small",
            help="Whether the next cell is a layer name or an op type.",
        ),
        "pattern": column.TextColumn(
            "Name, pattern or type", help="* stands for any text, ? for one character: layer1.* means all of layer1.",
        ),
        "keep_float": column.CheckboxColumn("Float", default=False, width="small", help="Leaves these layers float."),
        "weight_bits": column.NumberColumn(
            "W bits", min_value=WEIGHT_BITS[0], max_value=WEIGHT_BITS[1], step=1, width="small",
            help="Bits of the weights; empty follows the default.",
        ),
        "weight_scheme": column.SelectboxColumn(
            "W scheme", options=list(QSCHEMES), help="How the grid of the weights is laid; empty follows the default.",
        ),
        "activation_bits": column.NumberColumn(
            "A bits", min_value=ACTIVATION_BITS[0], max_value=ACTIVATION_BITS[1], step=1, width="small",
            help="Bits of the activations; empty follows the default.",
        ),
        "activation_observer": column.SelectboxColumn(
            "A observer", options=list(OBSERVERS), width="small",
            help="The rule that picks the range of the activations; empty follows the default.",
        ),
    }  # fmt: skip
