"""How many samples each class has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from qlab.plots.theme import figure, palette

MAX_LABELS = 24


def class_counts(names: Sequence[str], counts: np.ndarray, dark: bool, height: int = 150) -> go.Figure:
    """A bar for each class, in class order. counts [C]. Beyond 24 classes the axis counts them and names none."""
    made = figure(dark, height, bargap=0.25)
    many = len(names) > MAX_LABELS
    made.add_bar(
        x=np.arange(len(names)) if many else list(names),
        y=counts,
        marker={"color": palette(dark).float},
        customdata=list(names),
        hovertemplate="class %{customdata}<br>%{y:,} samples<extra></extra>",
    )
    made.update_yaxes(title="samples", nticks=4, rangemode="tozero")
    made.update_xaxes(title="class number" if many else "class", type="linear" if many else "category")
    return made
