"""Which scales move between drawn calibrations, and every draw as a table: the tabs of Stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import whole
from qlab.ui import errors, say, state, widgets
from qlab.ui.stability import SIZE

if TYPE_CHECKING:
    from qlab.analysis.stability import Stability


def scales(result: Stability) -> None:
    """How far each scale moves at one size, and all draws of one tensor."""
    from qlab.plots.stability import MOST_BARS, ranking, scales_figure, spread_bars

    if not result.spreads:
        say.caption("No tensor has one scale that comes from the calibration, so there is none to follow.")
        return
    wanted = st.session_state[SIZE]
    size = wanted if wanted in result.sizes else result.sizes[-1]
    ranked = ranking(result, size)
    spread = next((s for s in ranked if s.tensor == state.tensor()), ranked[0])
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="stab_controls"):
        widgets.kept(
            st.segmented_control, "Samples drawn", result.sizes, value=size, required=True, format_func=whole,
            store=lambda n: st.session_state.__setitem__(SIZE, n), key="stab_size", width="content",
            help="Shows how far the scales move between calibrations of another size.",
        )  # fmt: skip
        widgets.kept(
            st.selectbox, "Tensor", [s.tensor for s in ranked], value=spread.tensor, store=state.set_tensor,
            key="stab_tensor", width=300,
            help="Shows the scales of another tensor below; a click on a bar does the same.",
        )  # fmt: skip
    widgets.chart(
        spread_bars(result, size, widgets.dark(), spread.tensor), key="stab_spreads", on_select=_click,
        selection_mode="points",
        alt=f"How far the scale of each tensor moves between calibrations of {size:,} samples, {MOST_BARS} at most",
    )  # fmt: skip
    say.markdown(f"**{errors.escape(spread.tensor)}**: the scale that each draw gives it")
    widgets.chart(
        scales_figure(spread, widgets.dark()), key="stab_scales",
        alt=f"The scale of {spread.tensor} in each drawn calibration over its number of samples",
    )  # fmt: skip


def _click() -> None:
    if tensors := widgets.clicked("stab_spreads"):
        state.set_tensor(tensors[0])


def table(result: Stability) -> None:
    """Every draw."""
    import pandas as pd

    draws = result.draws
    columns: dict[str, Sequence[Any]] = {
        "Samples": [draw.samples for draw in draws],
        "Accuracy (%)": [None if draw.accuracy is None else 100 * draw.accuracy for draw in draws],
        "Same class (%)": [100 * draw.agreement for draw in draws],
        "p": [draw.p for draw in draws],
    }
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame({name: values for name, values in columns.items() if set(values) != {None}}), key="stab_table",
        hide_index=True, width="content",
        column_config={
            "Accuracy (%)": number(format="%.1f", help="Simulated."),
            "Same class (%)": number(format="%.1f", help="Agreement with the whole calibration, simulated."),
            "p": number(format="%.3g", help="McNemar's test against the whole calibration, on the same samples."),
        },
        alt="Every drawn calibration with its figures",
    )  # fmt: skip
