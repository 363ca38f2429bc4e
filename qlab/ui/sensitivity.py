"""Which layer is guilty: what is asked of the current config, its ranking, and the figures above it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import metric, write
from qlab.ui import cache, choose, derived, say, state, widgets

if TYPE_CHECKING:
    from qlab.analysis.keep import Kept
    from qlab.analysis.sensitivity import Sensitivity, SensitivityRow
    from qlab.graph.capture import Model
    from qlab.lab.sensitivity import Question

KIND = "sensitivity"
WORDS = derived.Words(
    stopped="The measurement was stopped, so it is not known yet which layer costs most.",
    no_result="The measurement ended without a result.",
    again="Measure",
    help="Measures the network under the current config once for each layer.",
)
MODES = {"only": "only this", "all_but": "all but this"}
MEASURES = {"accuracy": "Accuracy", "loss": "Loss", "sqnr": "Output SQNR"}
PARTS = {"both": "whole layer", "weight": "weights", "activation": "activations"}
KEEPS = ("float", "8 bits")
ALL = "all"
CONFIRMS = (0, 4, 8, 16, 32, ALL)
CHART, CURVE, TABLE = "sens_bars", "sens_curve", "sens_table"
MODE, MEASURE, PART, KEEP, CONFIRM = (f"sens.{name}" for name in ("mode", "measure", "parts", "keep", "confirm"))
LAYER, POINT = "sens.layer", "sens.point"


# --- what is asked ----------------------------------------------------------------------------------------------------


def begin() -> None:
    """Takes mode, measure, parts and layer from the link on the first visit."""
    if MODE in st.session_state:
        return
    asked = {name: st.query_params.get(name, "") for name in ("mode", "measure", "parts", "layer")}
    parts = tuple(part for part in PARTS if part in asked["parts"].split(","))
    st.session_state[MODE] = asked["mode"] if asked["mode"] in MODES else "only"
    st.session_state[MEASURE] = asked["measure"] if asked["measure"] in MEASURES else "accuracy"
    st.session_state[PART] = parts or ("both",)
    st.session_state[KEEP], st.session_state[CONFIRM] = "float", 8
    st.session_state[LAYER] = asked["layer"] or None


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same."""
    return {
        "mode": st.session_state.get(MODE), "measure": st.session_state.get(MEASURE),
        "parts": ",".join(st.session_state.get(PART, ())) or None, "layer": st.session_state.get(LAYER),
    }  # fmt: skip


def controls() -> None:
    """One row: mode, measure, part, what the worst become; and how many are measured on all samples."""
    chosen = st.session_state
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="sens_controls"):
        widgets.kept(
            st.segmented_control, "Quantized", list(MODES), value=chosen[MODE], store=widgets.into(MODE),
            key="sens_mode", format_func=MODES.__getitem__, width="content",
            help="Quantizes one layer and leaves all others float, or leaves one float and quantizes all others. The "
            "first shows what a layer breaks, the second what sparing it repairs.",
        )  # fmt: skip
        widgets.kept(
            st.segmented_control, "Measure", list(MEASURES), value=chosen[MEASURE], store=widgets.into(MEASURE),
            key="sens_measure", format_func=MEASURES.__getitem__, width="content",
            help="Ranks by right predictions, by the cross-entropy of the labels, which notices doubt before a "
            "prediction falls, or by how far the output is from float's.",
        )  # fmt: skip
        widgets.kept(
            st.segmented_control, "Part", list(PARTS), value=list(chosen[PART]), store=widgets.into(PART),
            key="sens_part", selection_mode="multi", format_func=PARTS.__getitem__, width="content",
            help="Takes a layer as a whole, or its weights and its activations apart: press both to see which of the "
            "two it is.",
        )  # fmt: skip
        widgets.kept(
            st.segmented_control, "Keep the worst", list(KEEPS), value=chosen[KEEP], store=widgets.into(KEEP),
            key="sens_keep", width="content",
            help="Leaves the worst layers float on the curve below, or gives them 8 bits.",
        )  # fmt: skip
        with st.popover("More", help="Shows how many layers are measured on all samples."):
            widgets.kept(
                st.select_slider, "Layers measured on all samples", list(CONFIRMS), value=chosen[CONFIRM],
                store=lambda value: chosen.__setitem__(CONFIRM, value), key="sens_confirm",
                help="Ranks all layers on the first 128 samples, or on more where so few leave the order open, and "
                "measures so many of the worst on all; more of them take longer.",
            )  # fmt: skip


def question(*, curve: bool = False) -> Question:
    from qlab.lab.sensitivity import Question

    chosen = st.session_state
    confirm = None if chosen[CONFIRM] == ALL else chosen[CONFIRM]
    return Question(chosen[MODE], chosen[PART], confirm, chosen[KEEP] if curve else None)


def measured(model: Model) -> Sensitivity | None:
    """The ranking; starts the job that makes it where there is none, and shows how far it is."""
    from qlab.lab.sensitivity import find_sensitivity

    return _required(model, find_sensitivity, question(), key="sens")


def curve(model: Model) -> Sequence[Kept] | None:
    """The curve of keeping the worst, in the same way."""
    from qlab.lab.sensitivity import find_curve

    return _required(model, find_curve, question(curve=True), key="sens_kept")


def _required(model: Model, find: Callable[..., Any], asked: Question, *, key: str) -> Any:
    if not choose.data_fits(model):
        return None
    data, mapping, size = cache.dataset(state.data_ref()), state.mapping(), state.options().batch_size
    experiment = state.experiment().replace(name="")
    mine = json.dumps([experiment.to_dict(), asked.to_dict()], sort_keys=True)
    return derived.require(
        KIND, {"experiment": experiment, **asked.to_dict()},
        lambda: find(cache.store(), model, data, mapping, asked, batch_size=size), WORDS, mine=mine, key=key,
    )  # fmt: skip


# --- the ranking ------------------------------------------------------------------------------------------------------


def headline(found: Sensitivity) -> None:
    """Base and float, the guiltiest layer, and how many differ beyond chance."""
    from qlab.plots.sensitivity import differs, metric_of, worst_first

    measure = st.session_state[MEASURE]
    share, base, layers = metric_of(found, "accuracy"), found.base, worst_first(found, measure)
    values: list[tuple[str, str, str | None, str]] = [
        (
            f"Float {share.label.lower()}" if found.base.accuracy is not None else "Float",
            share.format(found.float.accuracy) if found.float.accuracy is not None else "reference",
            _interval(found.float.accuracy_interval, found.base.n),
            "Of the network before anything is quantized, on the evaluation data.",
        )
    ]  # fmt: skip
    if found.mode == "all_but":
        now = base.agreement if base.accuracy is None else base.accuracy
        values.append(
            (
                "All quantized", share.format(now), _interval(base.accuracy_interval, base.n),
                "Of the config as it is, simulated: every bar below starts from here.",
            )
        )  # fmt: skip
    worst = _worst_row(found, layers[0])
    values.append(
        ("Guiltiest layer", _short(layers[0]), _told(found, worst), "First in the ranking by the chosen measure.")
    )
    rows = [row for row in found if found.confirmed(row)]
    if measure != "sqnr":
        guilty = {row.layer for row in found if differs(row, measure)}
        values.append(
            (
                "Beyond chance", f"{len(guilty)} of {len(layers)} layers",
                "the others are noise" if guilty else "all are within the noise",
                "Layers whose difference from the base chance alone would bring about in fewer than one of twenty "
                "cases: McNemar's test of the predictions, or the paired difference of the losses.",
            )
        )  # fmt: skip
    values.append(
        (
            "Measured in full", f"{len({row.layer for row in rows})} of {len(layers)} layers",
            f"on {base.n:,} samples",
            "The others are estimated from the first samples; More sets how many are measured on all.",
        )
    )  # fmt: skip
    widgets.figures(values)


def picture(found: Sensitivity) -> None:
    """The bars; a click chooses a layer."""
    from qlab.plots.sensitivity import MOST, sensitivity_bars, worst_first

    made = sensitivity_bars(found, st.session_state[MEASURE], widgets.dark(), selected=layer_of(found))
    widgets.chart(made, key=CHART, on_select=lambda: _clicked(found), selection_mode="points")
    rest = len(worst_first(found, st.session_state[MEASURE])) - MOST
    if rest > 0:
        say.caption(f"{rest:,} layers that cost less stand in the table alone.")


def _clicked(found: Sensitivity) -> None:
    names = {row.layer for row in found}
    for name in widgets.clicked(CHART):
        if name in names:
            st.session_state[LAYER] = name


def layer_of(found: Sensitivity) -> str:
    """The layer that is looked at: the chosen one, else the guiltiest."""
    from qlab.plots.sensitivity import worst_first

    chosen = st.session_state.get(LAYER)
    if chosen is not None and any(row.layer == chosen for row in found):
        return str(chosen)
    return worst_first(found, st.session_state[MEASURE])[0]


def _worst_row(found: Sensitivity, layer: str) -> SensitivityRow:
    """Of the parts that were measured, the one that costs most by the output's SQNR."""
    sign = 1 if found.mode == "only" else -1
    return min((row for row in found if row.layer == layer), key=lambda row: sign * row.sqnr)


def _short(name: str) -> str:
    from qlab.plots.layers import shorten

    return shorten(name, 22)


def _interval(ends: tuple[float, float] | None, n: int) -> str | None:
    return None if ends is None else f"{metric('accuracy').interval(*ends)} on {n:,}"


def _told(found: Sensitivity, row: SensitivityRow) -> str:
    """The row's figure under the chosen measure, short."""
    from qlab.plots.sensitivity import signed

    measure = st.session_state[MEASURE]
    if measure == "accuracy":
        return f"{metric('accuracy').delta(row.against_base.accuracy)} · {write('sqnr', row.sqnr)}"
    if measure == "loss":
        return f"{signed(row.against_base.loss)} nats · {write('sqnr', row.sqnr)}"
    return write("sqnr", row.sqnr)
