"""What is shown on Error propagation: which tensor and measure, what the picture says in words, and one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import MISSING, percent, three_digits, write
from qlab.plots.error_measure import MEASURES, names_of
from qlab.ui import cache, change, errors, run_list, say, state, trial, widgets

if TYPE_CHECKING:
    from qlab.analysis.diagnose import Diagnosis
    from qlab.analysis.propagation import Propagation, TensorError

MEASURE, TABS = "prop.measure", "prop_tabs"
STOPS = ("non_finite", "never_observed")  # faults with which the config cannot be carried out
TABLE_HEIGHT = 480


# --- what is looked at ------------------------------------------------------------------------------------------------


def begin() -> None:
    """Takes tensor and measure from the link on the first visit."""
    if MEASURE in st.session_state:
        return
    asked = st.query_params.get("measure", "")
    st.session_state[MEASURE] = asked if asked in MEASURES else "sqnr"
    if (tensor := st.query_params.get("tensor")) is not None:
        state.set_tensor(tensor)


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same."""
    measure = st.session_state.get(MEASURE)
    return {"tensor": state.tensor(), "measure": None if measure == "sqnr" else measure}


def chosen(found: Propagation) -> TensorError:
    """The tensor that was looked at last on any page, where it is one of these; else the one that makes most error."""
    return found.of(state.tensor() or "") or found.made


def nothing(found: Diagnosis) -> None:
    """Why there is no error to follow, and the way on."""
    stop = next((fault for fault in found.faults if fault.kind in STOPS), None)
    if stop is not None:
        say.info(errors.escape(f"The errors cannot be followed before this is repaired. {stop.sentence} {stop.advice}"))
    else:
        why = f" {found.first.sentence}" if found.first is not None else ""
        say.info(errors.escape(f"Nothing is quantized under this config, so no tensor has an error to follow.{why}"))
        _to_default()
    st.page_link("pages/diagnose/findings.py", label="See all that is wrong, and what helps, on Findings")


def _to_default() -> None:
    from qlab.preset import presets

    name = state.DEFAULT_PRESET
    st.button(
        f"Switch to the config {name}", key="prop_default", type="primary", on_click=change.to,
        args=(presets[name], f"Switched to {name}"), help="Makes the static 8-bit preset the current config.",
    )  # fmt: skip


def controls(found: Propagation, row: TensorError) -> None:
    """One row: what is drawn, and which tensor is looked at."""
    names = names_of(found)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="prop_controls"):
        widgets.kept(
            st.segmented_control, "Measure", list(MEASURES), value=st.session_state[MEASURE], required=True,
            store=lambda name: st.session_state.__setitem__(MEASURE, name), key="prop_measure", width="content",
            format_func=lambda name: MEASURES[name].figure.label,
            help="Draws another figure of the same errors. " + MEASURES[st.session_state[MEASURE]].figure.help,
        )  # fmt: skip
        widgets.kept(
            st.selectbox, "Tensor", [r.tensor for r in found.rows], value=row.tensor, store=state.set_tensor,
            key="prop_tensor", width=300,
            format_func=lambda tensor: names[tensor] if names[tensor] == tensor else f"{names[tensor]} → {tensor}",
            help="Shows the values of another tensor below; a click on a point of the picture does the same.",
        )  # fmt: skip


# --- the picture ------------------------------------------------------------------------------------------------------


def sentence(found: Propagation) -> str:
    """Where most is made and where it shows most, and what is left at the end. Markdown."""
    of, names = MEASURES[st.session_state[MEASURE]], names_of(found)
    most, shown, last = of.worst(found, own=True), of.worst(found, own=False), found.rows[-1]

    def bold(row: TensorError) -> str:
        return f"**{errors.escape(names[row.tensor])}**"

    if all(row.arrived.largest == 0 and row.own.largest == 0 for row in found.rows):
        return f"Every tensor is exact on {found.samples:,} samples: nothing is lost under this config."
    by = "" if of is MEASURES["sqnr"] else f"By {of.figure.label.lower()}: "
    if most is shown:
        text = f"most error is made in {bold(most)}, and shows most there ({of.write(most.own)} by itself, "
        text += f"{of.write(most.arrived)} with what arrives)."
    else:
        text = f"most error is made in {bold(most)} ({of.write(most.own)} by itself); it shows most in {bold(shown)} "
        text += f"({of.write(shown.arrived)})."
    if last is not shown:
        text += f" The last one, {bold(last)}, has {of.write(last.arrived)}."
    return by + (text if by else text[:1].upper() + text[1:])


def picture(found: Propagation, row: TensorError) -> None:
    from qlab.plots.propagation import propagation_figure

    measure = st.session_state[MEASURE]
    say.markdown(sentence(found))
    widgets.chart(
        propagation_figure(found, widgets.dark(), measure, row.tensor), key="prop_picture", on_select=_click,
        selection_mode="points",
        alt=f"{MEASURES[measure].figure.label} of {len(found)} tensors in the order of the network, made by each and "
        "arrived",
    )  # fmt: skip
    say.caption(
        f"Simulated, on {found.samples:,} evaluation samples; {len(found)} tensors in the order of the network."
    )


def _click() -> None:
    if found := widgets.clicked("prop_picture"):
        state.set_tensor(found[0])


# --- one tensor -------------------------------------------------------------------------------------------------------


def one(found: Propagation, row: TensorError) -> None:
    """Its figures, its values in float and simulated, and the mean shift of its channels."""
    from qlab.plots.propagation import channel_shift_figure, overlay_figure

    with st.container(horizontal=True, vertical_alignment="center"):
        say.markdown(f"{_about(found, row)} · simulated", width="stretch")
        there = row.tensor in trial.tensors(cache.network(state.model_ref())).entries
        if there and st.button(
            "Open in Distributions", key="prop_open", help="Shows all observers' ranges on this tensor."
        ):
            state.set_tensor(row.tensor)
            st.switch_page("pages/lab/distributions.py")
    figures(row)
    widgets.chart(
        overlay_figure(row, widgets.dark()), key="prop_overlay",
        alt=f"How often each value occurs in {row.tensor}, in float and as it arrives in the simulated network",
    )  # fmt: skip
    if row.arrived.channel_shift is None:
        say.caption("This tensor has no channels whose means could shift apart.")
        return
    say.markdown(
        "**How far has the mean of each channel moved?**",
        help="Mean error of the channel over the standard deviation of the float values (σ). What moves a mean does "
        "not average out in the layers behind; correcting the biases takes out what the weights do.",
    )
    widgets.chart(
        channel_shift_figure(row, widgets.dark()), key="prop_channels",
        alt=f"Mean shift of each channel of {row.tensor}, arrived and made here",
    )  # fmt: skip


def _about(found: Propagation, row: TensorError) -> str:
    name = names_of(found)[row.tensor]
    words = f"**{errors.escape(name)}** ({row.op})"
    return words if name == row.tensor else f"{words}, tensor {errors.escape(row.tensor)}"


def figures(row: TensorError) -> None:
    own, arrived = row.own, row.arrived
    of = MEASURES
    widgets.figures(
        [
            (
                "SQNR made here", write("sqnr", own.sqnr), "inputs in float",
                "Signal over noise of this tensor when only its own unit is rounded: its weight, bias and output.",
            ),
            (
                "SQNR arrived", write("sqnr", arrived.sqnr), "all before it quantized",
                "Signal over noise of this tensor in the whole quantized network.",
            ),
            ("Cosine", of["cosine"].write(arrived), f"{of['cosine'].write(own)} made here", of["cosine"].figure.help),
            (
                "Largest error", of["largest"].write(arrived), f"{of['largest'].write(own)} made here",
                of["largest"].figure.help,
            ),
            (
                "Mean shift", f"{three_digits(arrived.shift)} σ".replace("-", "−"),
                f"worst channel {of['shift'].write(arrived)}",
                "Mean error over the standard deviation of the float values, arrived: of all values, and of the "
                "channel where it is largest.",
            ),
            (
                "Clipped", MISSING if row.clipped is None else percent(row.clipped),
                "of the float values" if row.clipped is not None else "no one grid",
                "Share of the float values that lie outside the grid of this tensor, where it has one for all values.",
            ),
        ]
    )  # fmt: skip


# --- all of them ------------------------------------------------------------------------------------------------------


def table(found: Propagation, row: TensorError) -> None:
    """All tensors; a click on a line looks at it."""
    import pandas as pd

    names, tensors = names_of(found), [r.tensor for r in found.rows]
    key = f"prop_table_{hash(tuple(tensors))}"
    run_list.choose(key, [tensors.index(row.tensor)])
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(
            {
                "Depth": range(1, len(found) + 1),
                "Layer": [names[t] for t in tensors],
                "Made here (dB)": [r.own.sqnr for r in found.rows],
                "Arrived (dB)": [r.arrived.sqnr for r in found.rows],
                "Cosine": [r.arrived.cosine for r in found.rows],
                "Largest error": [r.arrived.largest for r in found.rows],
                "Shift made (σ)": [r.own.largest_shift for r in found.rows],
                "Shift arrived (σ)": [r.arrived.largest_shift for r in found.rows],
                "Clipped (%)": [None if r.clipped is None else 100 * r.clipped for r in found.rows],
                "Op": [r.op for r in found.rows],
                "Tensor": tensors,
            }
        ),
        key=key, hide_index=True, width="stretch", height=run_list.height(len(found), TABLE_HEIGHT), placeholder="–",
        column_config={
            "Depth": number(width=56, help="Place in the order of the network."),
            "Layer": st.column_config.TextColumn(width=140),
            "Tensor": st.column_config.TextColumn(width=140),
            "Op": st.column_config.TextColumn(width=78),
            "Made here (dB)": number(width=104, format="%.1f", help="SQNR with inputs in float, simulated."),
            "Arrived (dB)": number(width=88, format="%.1f", help="SQNR in the whole quantized network, simulated."),
            "Cosine": number(width=72, format="%.5f", help="Arrived, simulated."),
            "Largest error": number(format="%.3g", help="Of one value, arrived, simulated; in the tensor's own unit."),
            "Shift made (σ)": number(format="%.3f", help="Mean shift of the worst channel with inputs in float."),
            "Shift arrived (σ)": number(format="%.3f", help="Mean shift of the worst channel, arrived."),
            "Clipped (%)": number(format="%.2f", help="Share of the float values outside the grid."),
        },
        on_select=_picker(key, tensors), selection_mode="single-row",
        alt="All tensors with the error they make and the error that arrives",
    )  # fmt: skip
    say.caption(f"Simulated, on {found.samples:,} evaluation samples. A click on a heading sorts.")


def _picker(key: str, tensors: Sequence[str]) -> Callable[[], Any]:
    def pick() -> None:
        if rows := run_list.chosen(key, tensors):
            state.set_tensor(rows[0])

    return pick
