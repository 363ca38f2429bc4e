"""The curve of keeping the worst layers out of the config, and the point that is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import write
from qlab.ui import change, errors, say, sensitivity, state, widgets
from qlab.ui.sensitivity_layer import verdict

if TYPE_CHECKING:
    from qlab.analysis.keep import Kept
    from qlab.analysis.sensitivity import Sensitivity
    from qlab.graph.capture import Model

CHART = sensitivity.CURVE
POINT = sensitivity.POINT


def tab(model: Model, found: Sensitivity) -> None:
    """Accuracy over size, point by point; a point's config can be made the current one."""
    from qlab.lab.sensitivity import instead_of
    from qlab.plots.keep import keep_points

    kept = st.session_state[sensitivity.KEEP]
    with errors.box():
        instead_of(state.mapping(), kept)  # raises where 8 bits would change nothing
        points = sensitivity.curve(model)
        if points is None:
            return
        chosen = _chosen(points)
        made = keep_points(points, found.float.accuracy, widgets.dark(), selected=chosen.count)
        widgets.chart(made, key=CHART, on_select=lambda: _clicked(points), selection_mode="points")
        say.caption(
            "Layers are kept in the order of the output's SQNR, which tells them apart where their accuracies lie "
            "within the noise."
        )
        _point(points, chosen, kept)


def _chosen(points: Sequence[Kept]) -> Kept:
    """The point that was clicked; else the first with one layer."""
    count = st.session_state.get(POINT)
    return next((p for p in points if p.count == count), points[min(1, len(points) - 1)])


def _clicked(points: Sequence[Kept]) -> None:
    counts = {p.count for p in points}
    for count in widgets.clicked(CHART):
        if count in counts:
            st.session_state[POINT] = count


def _point(points: Sequence[Kept], point: Kept, kept: str) -> None:
    from qlab.analysis.remedy import Remedy

    measured, first = point.measured, points[0]
    share = "agreement" if measured.accuracy is None else "accuracy"
    value = measured.agreement if measured.accuracy is None else measured.accuracy
    what = "left float" if kept == "float" else "at 8 bits"
    with st.container(border=True, key="sens_point"):
        named = ", ".join(point.layers[:5]) + (f" and {point.count - 5} more" if point.count > 5 else "")
        say.markdown(
            f"**{point.count} of {points[-1].count} layers {what}**" + (f": {errors.escape(named)}" if named else "")
        )
        text = f"{share.capitalize()} {write(share, value)}, {write('size', point.size)}"
        if point.count:
            more = point.size - first.size
            text += f" ({'+' if more >= 0 else ''}{write('size', more)} against none kept). On the same samples: "
            text += verdict(point.against_base, "all_but")
        say.markdown(f"{text}. Output {write('sqnr', measured.sqnr)}. Simulated, {measured.n:,} samples.")
        if point.count and point.mapping != state.mapping():
            remedy = Remedy(
                f"Keep the {point.count} worst {'float' if kept == 'float' else 'at 8 bits'}",
                "Makes the config of this point the current one.", point.mapping,
            )  # fmt: skip
            st.button(
                "Use this config", key="sens_use", type="primary", on_click=change.press, args=(remedy,),
                help="Makes the config of this point the current one, for the whole lab; Undo brings the one before "
                "back.",
            )  # fmt: skip
