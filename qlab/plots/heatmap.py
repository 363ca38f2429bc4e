"""SQNR of every layer under every run: which config hurts which layer, at a glance."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.errors import InvalidConfig
from qlab.metrics import metric
from qlab.plots.layers import shorten
from qlab.plots.theme import empty, palette, template

TALL, LOW, MANY = 24, 17, 30  # pixels of a row, and the number of layers from which rows are the lower ones
MOST_WRITTEN = 14  # columns; in more, figures would not fit their cells
NOTE = 18  # pixels of a line under the picture
RUN_NAME = 22
NAMES = {0: 28, -40: 96, -90: 140}  # pixels that the names of the runs take at each angle
BRIGHT = 0.44  # from this share of viridis on black is read more easily than white
EXACT = "exact"


def sqnr_heatmap(layers: Sequence[str], runs: Sequence[str], matrix: NDArray[np.float64], dark: bool) -> go.Figure:
    """A row for each layer in the given order, first on top, a column for each run.

    matrix: [layers, runs] in dB. Infinite (nothing was lost) is grey and says "exact"; NaN (not quantized in this run,
    or no signal) stays blank. Raises InvalidConfig where the shape is another.
    """
    z = np.asarray(matrix, dtype=np.float64)
    if z.shape != (len(layers), len(runs)):
        raise InvalidConfig(
            f"the SQNR of {len(layers)} layers in {len(runs)} runs came as an array of shape {list(z.shape)}: "
            "give one row for each layer and one column for each run."
        )
    if not z.size or np.isnan(z).all():
        return empty("No layer was quantized in these runs, so there is no noise to show.", dark)
    figures, colours = metric("sqnr"), palette(dark)
    finite, exact = np.isfinite(z), np.isposinf(z)
    known = z[finite]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if high - low < 1.0:
        # Nearly the same everywhere: a scale of a hundredth of a dB would paint noise in all colours.
        low, high = (low + high) / 2 - 0.5, (low + high) / 2 + 0.5
    row = TALL if len(layers) <= MANY else LOW
    written = len(runs) <= MOST_WRITTEN
    angle = 0 if len(runs) <= 3 else -40 if written else -90
    shared: dict[str, Any] = {
        "type": "heatmap",
        "x": list(range(len(runs))),
        "y": list(range(len(layers))),
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hovertext": _told(layers, runs, z),
    }
    data: list[dict[str, Any]] = [
        {
            **shared,
            "name": figures.label,
            "z": np.where(finite, z, np.nan),
            "colorscale": "Viridis",
            "zmin": low,
            "zmax": high,
            "showscale": bool(known.size),
            "colorbar": {
                "ticksuffix": f" {figures.unit}",
                "tickfont": {"color": colours.muted},
                "thickness": 12,
                "outlinewidth": 0,
            },
        }
    ]
    if exact.any():
        grey = colours.wash("neutral", 0.35)
        data.append(
            {
                **shared,
                "name": EXACT,
                "z": np.where(exact, 1.0, np.nan),
                "colorscale": [[0, grey], [1, grey]],
                "showscale": False,
                "hoverongaps": False,
            }
        )
    if written:
        data.append(_written(z, low, high, colours.text, 12 if row == TALL else 11))
    notes = [f"{figures.axis}, lower is worse"]
    if exact.any() and not written:
        notes[0] += " · grey: exact, nothing was lost"
    if np.isnan(z).any():
        notes.append("blank: not quantized, or without signal")
    return go.Figure(
        data=data,
        layout={
            "template": template(dark),
            "height": NAMES[angle] + 24 + row * len(layers) + NOTE * len(notes),
            "margin": {"t": 8, "b": 16 + NOTE * len(notes), "l": 8, "r": 8},
            "uirevision": "sqnr_heatmap",
            "xaxis": {
                "side": "top",
                "tickvals": list(range(len(runs))),
                "ticktext": [html.escape(shorten(name, RUN_NAME), quote=False) for name in runs],
                "range": [-0.5, len(runs) - 0.5],
                "tickangle": angle,
                "ticklabeloverflow": "allow",  # a slanted last name would be left out
                **_BARE,
            },
            "yaxis": {
                "tickvals": list(range(len(layers))),
                "ticktext": [html.escape(shorten(name), quote=False) for name in layers],
                "range": [len(layers) - 0.5, -0.5],
                "tickfont": {"size": 12 if row == TALL else 11},
                **_BARE,
            },
            "annotations": [
                {
                    "text": "<br>".join(notes),
                    "x": 0,
                    "y": 0,
                    "xref": "paper",
                    "yref": "paper",
                    "xanchor": "left",
                    "yanchor": "top",
                    "align": "left",
                    "yshift": -8,
                    "showarrow": False,
                    "font": {"color": colours.muted},
                }
            ],
        },
    )


_BARE: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": ""}


def _written(z: NDArray[np.float64], low: float, high: float, plain: str, size: int) -> dict[str, Any]:
    """The figures in their cells: plotly itself writes dark grey on the middle of viridis, at a contrast of 3.

    plain: the colour on what is not viridis.
    """
    rows, columns = np.nonzero(~np.isnan(z))
    values = z[rows, columns]
    return {
        "type": "scatter",
        "mode": "text",
        "name": "figures",
        "x": columns.tolist(),
        "y": rows.tolist(),
        "text": [EXACT if v == np.inf else f"{v:.1f}".replace("-inf", "−∞").replace("-", "−") for v in values],
        "textfont": {
            "size": size,
            "color": [
                plain if np.isinf(v) else "#000000" if v >= low + BRIGHT * (high - low) else "#FFFFFF" for v in values
            ],
        },
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _told(layers: Sequence[str], runs: Sequence[str], z: NDArray[np.float64]) -> list[list[str]]:
    """What hovering over each cell says."""
    figures = metric("sqnr")

    def of(value: float) -> str:
        if np.isnan(value):
            return "not quantized in this run, or without signal"
        return "exact: nothing was lost" if value == np.inf else f"{figures.label} {figures.format(value)}"

    rows, columns = ([html.escape(name, quote=False) for name in names] for names in (layers, runs))
    return [[f"<b>{row}</b><br>{column}<br>{of(z[i, j])}" for j, column in enumerate(columns)]
            for i, row in enumerate(rows)]  # fmt: skip
