"""One layer of the ranking in words, with what can be done about it; and all of them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import metric, write
from qlab.ui import change, errors, run_list, say, state
from qlab.ui.sensitivity import LAYER, MEASURE, PARTS, TABLE, layer_of

if TYPE_CHECKING:
    from qlab.analysis.measured import Paired
    from qlab.analysis.remedy import Remedy
    from qlab.analysis.sensitivity import Sensitivity, SensitivityRow


def details(found: Sensitivity) -> None:
    """One layer in words, and what can be done about it."""
    layer = layer_of(found)
    rows = [row for row in found if row.layer == layer]
    with st.container(border=True, key="sens_layer"):
        say.markdown(f"**{errors.escape(layer)}** ({rows[0].op}, {rows[0].weights:,} weights)")
        for row in rows:
            lead = f"{PARTS[row.part].capitalize()}: " if len(rows) > 1 or row.part != "both" else ""
            say.markdown(lead + _sentence(found, row))
        with st.container(horizontal=True, gap="small"):
            change.buttons(remedies(found, layer), "sens_do")
            if st.button("See its values", key="sens_values", help="Opens Distributions at the output of this layer."):
                state.set_tensor(layer)
                st.switch_page("pages/lab/distributions.py")


def remedies(found: Sensitivity, layer: str) -> list[Remedy]:
    """Keep it float, or give it 8 bits where it has fewer."""
    from qlab.analysis.remedy import Remedy
    from qlab.lab.sensitivity import at_8_bits

    mapping = state.mapping()
    row = next(row for row in found if row.layer == layer)

    def changed(config: Any) -> Any:
        return mapping.replace(by_name={**mapping.by_name, layer: config})

    out = [
        Remedy(
            f"Keep {layer} float", "Leaves this layer out of the config; it computes and stores floats.", changed(None)
        )
    ]
    config = mapping.resolve(layer, row.op).qconfig
    if config is not None and at_8_bits(config) != config:
        sentence = "Gives this layer at least 8 bits for weights and activations; the rest of its config stays."
        out.append(Remedy(f"Give {layer} 8 bits", sentence, changed(at_8_bits(config))))
    return out


def _sentence(found: Sensitivity, row: SensitivityRow) -> str:
    """What quantizing it does to the network, or sparing it, with the verdict on the same samples."""
    from qlab.plots.sensitivity import signed, value_of

    share = metric("agreement" if found.base.accuracy is None else "accuracy")
    does = "Quantized alone" if found.mode == "only" else "Left float while all else is quantized"
    text = f"{does}, it {'leaves' if found.mode == 'only' else 'brings'} {share.label.lower()} "
    text += "" if found.confirmed(row) else "by estimate "
    text += f"{'at' if found.mode == 'only' else 'to'} {share.format(value_of(found, row, 'accuracy'))} "
    text += f"({metric('accuracy').delta(row.against_base.accuracy)}: {verdict(row.against_base, found.mode)}), "
    spread = f"{signed(row.against_base.loss)} ± {1.96 * row.against_base.loss_error:.2g}"
    text += f"the loss at {row.loss:.3g} nats ({spread}) "
    return text + f"and the output {_away(row)}. Simulated, {row.n:,} samples."


def _away(row: SensitivityRow) -> str:
    return "exactly as in float" if row.sqnr == float("inf") else f"{write('sqnr', row.sqnr)} from float"


def verdict(paired: Paired, mode: str) -> str:
    """The paired comparison with the base in words."""
    base = "float" if mode == "only" else "all quantized"
    if paired.lost == paired.gained == 0:
        return f"every prediction as right or wrong as with {base}"
    told = "p < 0.0001" if paired.p < 1e-4 else f"p = {paired.p:.2g}"
    flips = f"{paired.lost} lost, {paired.gained} gained, {told}"
    if not paired.accuracy_differs:
        return f"not distinguishable from {base}; {flips}"
    return f"{'worse' if paired.lost > paired.gained else 'better'} than {base}, beyond chance; {flips}"


def table(found: Sensitivity) -> None:
    """All figures, sortable; a line chooses its layer."""
    import pandas as pd

    from qlab.plots.sensitivity import worst_first

    order = {layer: i for i, layer in enumerate(worst_first(found, st.session_state[MEASURE]))}
    rows = sorted(found, key=lambda row: (order[row.layer], list(PARTS).index(row.part)))
    frame = pd.DataFrame(
        {
            "Layer": [row.layer for row in rows],
            "Op": [row.op for row in rows],
            "Part": [PARTS[row.part] for row in rows],
            "Accuracy": [None if row.accuracy is None else 100 * row.accuracy for row in rows],
            "Change": [100 * row.against_base.accuracy for row in rows],
            "p": [row.against_base.p for row in rows],
            "Lost": [row.against_base.lost for row in rows],
            "Gained": [row.against_base.gained for row in rows],
            "Agreement": [100 * row.measured.agreement for row in rows],
            "Loss": [row.loss for row in rows],
            "Δ loss": [row.against_base.loss for row in rows],
            "SQNR": [row.sqnr for row in rows],
            "Weights": [row.weights for row in rows],
            "Samples": [row.n for row in rows],
        }
    )
    if found.base.accuracy is None:
        frame = frame.drop(columns="Accuracy")
    if len({row.part for row in rows}) == 1:
        frame = frame.drop(columns="Part")
    names = [row.layer for row in rows]
    key = f"{TABLE}_{found.mode}_{len(rows)}"
    chosen = layer_of(found)
    run_list.choose(key, [names.index(chosen)])
    number = st.column_config.NumberColumn
    st.dataframe(
        frame, key=key, hide_index=True, width="stretch", height=run_list.height(len(rows), 520),
        column_config={
            "Layer": st.column_config.TextColumn(width=150, pinned=True),
            "Op": st.column_config.TextColumn(width=72),
            "Part": st.column_config.TextColumn(width=84),
            "Accuracy": number(width=74, format="%.1f %%", help="On the samples that the line has seen."),
            "Change": number(
                width=68, format="%+.1f pt", help="Right predictions more or fewer than the base, on the same samples."
            ),
            "p": number(width=58, format="%.2g", help="How often chance alone would flip this unevenly (McNemar)."),
            "Lost": number(width=48, help="Right with the base, wrong here."),
            "Gained": number(width=60, help="Wrong with the base, right here."),
            "Agreement": number(width=82, format="%.1f %%", help="Predictions equal to float's."),
            "Loss": number(width=62, format="%.4f", help="Mean cross-entropy in nats."),
            "Δ loss": number(width=66, format="%+.4f", help="Against the base, on the same samples, in nats."),
            "SQNR": number(width=66, format="%.1f dB", help="Of the network's output against float's."),
            "Weights": number(width=66, format="localized"),
            "Samples": number(width=66, format="localized", help="All, or the first ones for what is estimated."),
        },
        on_select=lambda: _picked(key, names), selection_mode="single-row",
        alt="The layers, and what quantizing each costs",
    )  # fmt: skip


def _picked(key: str, names: Sequence[str]) -> None:
    chosen = run_list.chosen(key, names)
    if chosen:
        st.session_state[LAYER] = chosen[0]
