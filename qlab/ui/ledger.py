"""The ledger of the current config: what happened to every op, and buttons that change what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.errors import NotObserved
from qlab.metrics import MISSING, percent
from qlab.plots.theme import palette
from qlab.ui import cache, change, choose, converted, errors, graph, overrides, prepared, run_list, say, state, widgets

if TYPE_CHECKING:
    from qlab.analysis.fault import Fault
    from qlab.analysis.remedy import Remedy
    from qlab.calibration import Calibration
    from qlab.config import QuantSpec
    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model
    from qlab.graph.placement import LedgerRow, Placement

HEIGHT = 460
FOLDED_FROM = 4  # findings that stand open
ALL = "all"
WORDS = {ALL: "All", "quantized": "Quantized", "shared": "Shared", "float": "Float"}
LAYER, SHOWN, SEARCH = "ledger.layer", "ledger.shown", "ledger.search"


@dataclass(frozen=True)
class Found:
    """The ledger of a config. model: the network that was placed. calib: None where the config needs none.

    useless: weights that are quantized and keep next to nothing, because one outlier or channel takes the range.
    unmatched: rules, and ranges set by hand, that name nothing in the network.
    """

    model: Model
    rows: Sequence[LedgerRow]
    placement: Placement
    calib: Calibration | None
    useless: Sequence[Fault] = ()
    unmatched: Sequence[str] = ()

    @property
    def infinite(self) -> dict[str, int]:
        return {} if self.calib is None else self.calib.infinite

    def of(self, *states: str) -> list[LedgerRow]:
        from qlab.graph.causes import state_of

        return [row for row in self.rows if state_of(row.cause) in states]


def found(model: Model) -> Found | None:
    """The ledger under the current config; None while the calibration is made, or where the data does not fit."""
    from qlab.graph.placement import place

    mapping = state.mapping()
    ready = None
    if mapping.needs_calibration:
        if not choose.data_fits(model):
            return None
        ready = prepared.require(key="ledger")
        if ready is None:
            return None
    artifact = None if ready is None else cache.store().artifact(ready.calibration_artifact)
    calib = None if ready is None else ready.calibration
    try:
        qmodel, _ = converted.under(model, mapping, artifact)
    except NotObserved:
        # Where a range is missing nothing can be converted; what would be placed where can be told all the same.
        assert calib is not None
        network = cache.network(state.model_ref())
        placement = place(network, mapping, {name: n for name, n in calib.infinite.items() if n})
        return Found(network, placement.ledger, placement, calib, unmatched=placement.unmatched)
    return Found(qmodel.model, qmodel.ledger, qmodel.placement, calib, _useless(qmodel), qmodel.unmatched)


def _useless(qmodel: QuantizedModel) -> list[Fault]:
    """Weights that most of the range is not there for, at bits so few that it shows."""
    from qlab.analysis.look_at_weights import weight_faults

    out = []
    for fault in weight_faults(qmodel):
        if fault.kind == "dead_channel":
            continue
        tensor = next(p for p in qmodel.placement.weights if p.tensor == fault.tensor)
        weight = qmodel.weights[tensor.layer]
        inner = weight.dequantize().abs().flatten().kthvalue(max(1, weight.codes.numel() // 2)).values
        if float(inner) == 0.0:  # half of the weights or more have become zero
            out.append(fault)
    return out


def _remedies(known: Found, fault: Fault) -> Sequence[Remedy]:
    from qlab.analysis.advice import remedies
    from qlab.calibration import Calibration

    model = cache.model(state.model_ref())
    calib = known.calib or Calibration({}, {}, known.model.content_hash, 0)
    return remedies(fault, model, state.mapping(), calib)


# --- figures and what to know first -----------------------------------------------------------------------------------


def figures(known: Found) -> None:
    macs = {layer.name: layer.macs for layer in known.model.layers}
    total, on = sum(macs.values()), sum(macs.get(row.layer, 0) for row in known.of("quantized", "shared"))
    counts = {name: len(known.of(name)) for name in ("quantized", "shared", "float")}
    widgets.figures(
        [
            (
                "Quantized", f"{counts['quantized']:,} of {len(known.rows):,}", "ops with a config of their own",
                "Ops whose weight, output or both are put on a grid by a rule of the config or by its default.",
            ),
            (
                "Sharing", f"{counts['shared']:,}", "on the grid of another op",
                "Ops that are part of the unit of another one, as a ReLU behind a convolution is, or that only move "
                "values about.",
            ),
            ("Float", f"{counts['float']:,}", "untouched", "Ops that compute on floats, each for the reason below."),
            (
                "MACs quantized", percent(on / total) if total else MISSING, f"of {total:,} a sample",
                "Share of the multiplications with addition that stand in quantized ops. With weight-only configs the "
                "products themselves are still computed in float.",
            ),
        ]
    )  # fmt: skip


def findings(known: Found) -> None:
    """Rules without effect, tensors without a range, layers with a weight that are float: each with what helps."""
    from qlab.analysis.ledger import groups_with_remedies, why_none
    from qlab.analysis.unmatched import closest, has_tensor, unmatched_remedies
    from qlab.analysis.unseen import unseen, unseen_remedy

    mapping = state.mapping()
    lines: list[tuple[str, str, Sequence[Remedy]]] = []
    for rule in known.unmatched:
        by, _, pattern = rule.partition(" ")
        what = {"by_type": "op type", "by_name": "layer name", "range": "range of the tensor"}[by]
        alike = closest(pattern, known.model) if by == "by_name" else []
        meant = f" The closest: {', '.join(alike)}." if alike else ""
        sentence = (
            f"The {what if by == 'range' else f'rule for the {what}'} {pattern} matches nothing in this network.{meant}"
        )
        if by == "range" and has_tensor(pattern, known.model):
            sentence = f"The range of {pattern} does nothing: under this config that tensor is on no grid."
        lines.append((":orange-badge[rule without effect]", sentence, unmatched_remedies(rule, mapping, known.model)))
    for one in unseen(known.model, known.placement, known.calib) if known.calib is not None else ():
        saw = "holds nothing but zeros in the calibration" if one.zeros else "was never observed by the calibration"
        sentence = (
            f"{one.tensor} {saw}, so there is no range to lay a grid over. {overrides.some(one.layers)} need it on one."
        )
        assert known.calib is not None
        lines.append((":orange-badge[no range]", sentence, [unseen_remedy(one, mapping, known.model, known.calib)]))
    for rows, remedies in groups_with_remedies(known.rows, mapping, known.model, known.infinite):
        first, many = rows[0], len(rows) > 1
        asked = first.cause in ("excluded", "default_float")
        badge = ":gray-badge[kept float]" if asked else ":orange-badge[float]"
        sentence = (
            f"{overrides.some([row.layer for row in rows])} ({first.op}) {'have' if many else 'has'} a weight and "
        )
        sentence += f"{'stay' if many else 'stays'} float: {first.reason}."
        lines.append((badge, sentence if remedies else f"{sentence} {why_none(first, known.model)}", remedies))
    for fault in known.useless:
        lines.append((":orange-badge[quantized, and little use]", fault.sentence, _remedies(known, fault)))
    for i, line in enumerate(lines[:FOLDED_FROM]):
        _finding(*line, key=f"ledger_finding_{i}")
    if rest := lines[FOLDED_FROM:]:
        with st.expander(f"{len(rest)} more like these"):
            for i, line in enumerate(rest, FOLDED_FROM):
                _finding(*line, key=f"ledger_finding_{i}")


def _finding(badge: str, sentence: str, remedies: Sequence[Remedy], *, key: str) -> None:
    with st.container(border=True, key=key):
        say.markdown(f"{badge} {errors.escape(sentence)}")
        if remedies:
            change.buttons(remedies, f"{key}_do")


# --- the table --------------------------------------------------------------------------------------------------------


def begin() -> None:
    """Takes the layer from the link on the first visit."""
    if LAYER not in st.session_state:
        st.session_state[LAYER] = st.query_params.get("layer")


def share_params() -> dict[str, str | None]:
    return {"layer": st.session_state.get(LAYER)}


def controls(known: Found) -> list[LedgerRow]:
    """Which ops to show; gives those."""
    counts = {name: len(known.of(name)) if name != ALL else len(known.rows) for name in WORDS}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="ledger_controls"):
        shown = widgets.kept(
            st.segmented_control, "Show", list(WORDS), value=st.session_state.get(SHOWN, ALL),
            store=widgets.into(SHOWN), key="ledger_shown", required=True,
            format_func=lambda name: f"{WORDS[name]} ({counts[name]:,})", width="content",
            help="Shows only the ops to which this happened.",
        )  # fmt: skip
        search = widgets.kept(
            st.text_input, "Find", value=st.session_state.get(SEARCH, ""), store=widgets.into(SEARCH),
            key="ledger_search", placeholder="layer, op or reason", width=260,
            help="Shows only lines with all of these words.",
        )  # fmt: skip
    words = search.lower().split()
    rows = known.rows if shown == ALL else known.of(shown)
    return [
        row for row in rows if all(word in f"{row.layer} {row.op} {row.reason} {row.rule}".lower() for word in words)
    ]


def table(known: Found, rows: Sequence[LedgerRow]) -> LedgerRow | None:
    """The lines; gives the one that is picked: by a click, by the link, else the first that may surprise."""
    if not rows:
        say.info("No op has this state and these words.")
        return None
    picked = next((row for row in rows if row.layer == st.session_state.get(LAYER)), None) or _surprising(rows)
    # Under another filter the same op has another number, and the browser may tell the old one once more.
    key = f"ledger_table_{st.session_state.get(SHOWN, ALL)}_{st.session_state.get(SEARCH, '')}"
    names = [row.layer for row in rows]
    run_list.choose(key, [] if picked is None else [names.index(picked.layer)])
    column = st.column_config
    st.dataframe(
        _painted(rows),
        key=key,
        hide_index=True,
        width="stretch",
        height=run_list.height(len(rows), HEIGHT),
        column_config={
            "Layer": column.TextColumn(width=168),
            "Op": column.TextColumn(width=86),
            "State": column.TextColumn(width=76, help="Quantized itself, sharing with another op, or float."),
            "Why": column.TextColumn(width=290),
            "Weight": column.TextColumn(width=168, help="How its weight is quantized."),
            "Activation": column.TextColumn(width=158, help="How its output is quantized, and an input that is float."),
            "Mode": column.TextColumn(width=80, help="When activations get their range."),
            "Rule": column.TextColumn(width=110, help="The rule of the config that decided; default: none named it."),
        },
        on_select=lambda: _pick(key, names),
        selection_mode="single-row",
        alt="The ops of the network, and what happened to each",
    )
    return picked


def _pick(key: str, names: Sequence[str]) -> None:
    chosen = run_list.chosen(key, names)
    st.session_state[LAYER] = chosen[0] if chosen else None


def _surprising(rows: Sequence[LedgerRow]) -> LedgerRow | None:
    from qlab.graph.optypes import OP_TYPES

    floats = [row for row in rows if not row.quantized]
    weighted = (row for row in floats if OP_TYPES[row.op].role in ("weighted", "lookup", "recurrent"))
    return next(weighted, floats[0] if floats else rows[0])


def _painted(rows: Sequence[LedgerRow]) -> Any:
    """The table with its states in their colours."""
    import pandas as pd

    from qlab.graph.causes import state_of

    frame = pd.DataFrame(
        {
            "Layer": [row.layer for row in rows],
            "Op": [row.op for row in rows],
            "State": [state_of(row.cause) for row in rows],
            "Why": [row.reason for row in rows],
            "Weight": [_short(row.weight) for row in rows],
            "Activation": [_short(row.activation) for row in rows],
            "Mode": [(row.mode or "").replace("_", "-") for row in rows],
            "Rule": [row.rule for row in rows],
            "Notes": ["; ".join(row.notes) for row in rows],
        }
    )
    said = {"Notes": {""}, "Rule": {"default", "-"}, "Weight": {""}, "Activation": {""}, "Mode": {""}}
    frame = frame.drop(columns=[name for name, nothing in said.items() if set(frame[name]) <= nothing])
    colours = palette(widgets.dark())
    paint = {
        "quantized": f"background-color: {colours.wash('quantized', 0.55)}",
        "shared": f"background-color: {colours.wash('quantized', 0.2)}",
        "float": f"background-color: {colours.wash('neutral', 0.25)}",
    }
    return frame.style.map(paint.__getitem__, subset=["State"])


def _short(spec: QuantSpec | None) -> str:
    """As much of a spec as tells lines apart; the rest stands with the line that is picked."""
    if spec is None:
        return ""
    group = f" of {spec.group_size}" if spec.group_size else ""
    return f"{'int' if spec.signed else 'uint'}{spec.bits} per {spec.granularity}{group} · {spec.observer}"


# --- one line ---------------------------------------------------------------------------------------------------------


def details(known: Found, row: LedgerRow) -> None:
    """What happened to one op, what can be done about it, and where to look further."""
    from qlab.analysis.ledger import input_of, remedies_of, why_none
    from qlab.graph.causes import state_of

    with st.container(border=True, key="ledger_details"):
        say.markdown(f"**{errors.escape(row.layer)}** ({row.op}) · {state_of(row.cause)}: {errors.escape(row.reason)}.")
        specs = [(row.mode or "").replace("_", "-")]
        specs += [f"{what} {spec}" for what, spec in (("weight", row.weight), ("activation", row.activation)) if spec]
        if row.mode is not None:
            say.caption(errors.escape(" · ".join(specs)))
        for note in row.notes:
            say.caption(errors.escape(f"{note}."))
        remedies = remedies_of(row, state.mapping(), known.model, known.infinite)
        if remedies:
            change.buttons(remedies, "ledger_do")
            say.caption(
                "\n".join(f"- **{errors.escape(one.title)}**: {errors.escape(one.sentence)}" for one in remedies)
            )
        elif why := why_none(row, known.model):
            say.markdown(errors.escape(why))
        with st.container(horizontal=True, gap="small"):
            source = input_of(row, known.model) if row.cause == "float_input" else None
            if source is not None:
                st.button(
                    f"Look at {errors.escape(source)}", key="ledger_source", on_click=_look_at, args=(source,),
                    help="Shows the line of the op whose output this one reads.",
                )  # fmt: skip
            if st.button("Show it in the graph", key="ledger_graph", help="Opens the graph at this op."):
                graph.reveal(row.layer)
                st.switch_page("pages/diagnose/graph.py")
            if st.button("See its values", key="ledger_values", help="Opens Distributions at a tensor of this op."):
                state.set_tensor(row.output or row.layer)
                st.switch_page("pages/lab/distributions.py")


def _look_at(layer: str) -> None:
    st.session_state[LAYER], st.session_state[SHOWN], st.session_state[SEARCH] = layer, ALL, ""
