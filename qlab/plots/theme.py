"""One look for every figure: a colour has one meaning, in light and in dark.

The colours are those of Okabe and Ito (2008), which people with any common colour vision tell apart;
dark mode uses a lighter twin of each, so that the contrast with the background stays above 3:1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import plotly.graph_objects as go

FONT = '"Source Sans", "Source Sans 3", "Source Sans Pro", sans-serif'
MONO = '"Source Code", "Source Code Pro", ui-monospace, monospace'
LETTER = 6.2  # pixels that a letter of a tick takes, on average
_TAG = re.compile("<[^>]+>")


@dataclass(frozen=True)
class Palette:
    """Colours by what they mean."""

    float: str  # float values, the reference
    quantized: str
    error: str  # clipped, lost
    gained: str  # also: integer kernel
    range: str  # grid, range, calibration
    neutral: str  # not quantized, float kernel, inside the noise
    text: str
    muted: str  # axis labels, annotations that may be overlooked
    rule: str  # grid lines and axes
    background: str  # the page's: for text halos, never painted as a surface

    def wash(self, name: str, alpha: Any) -> str:
        """A colour of this palette, see-through: `rgba(...)`. alpha: 0..1 (`float` names a colour in this class)."""
        red, green, blue = (int(getattr(self, name)[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{alpha:g})"


LIGHT = Palette(
    float="#0072B2",
    quantized="#E69F00",
    error="#D55E00",
    gained="#009E73",
    range="#CC79A7",
    neutral="#8C8C8C",
    text="#31333F",
    muted="#6B6E7B",
    rule="#E3E5EA",
    background="#FFFFFF",
)
DARK = Palette(
    float="#56B4E9",
    quantized="#F7C04A",
    error="#FF8B4D",
    gained="#3FCFA6",
    range="#E8A5CB",
    neutral="#A9ABB3",
    text="#FAFAFA",
    muted="#A3A8B4",
    rule="#31343E",
    background="#0E1117",
)


def palette(dark: bool) -> Palette:
    return DARK if dark else LIGHT


@cache
def template(dark: bool, size: float = 1.0, *, fitted: bool = False) -> go.layout.Template:
    """The plotly template of the app: transparent, quiet axes, units in the axis titles.

    size: of the letters. fitted: for a figure whose margins are known to be wide enough.
    """
    colours = palette(dark)
    axis = {
        "gridcolor": colours.rule,
        "linecolor": colours.rule,
        "zerolinecolor": colours.rule,
        "zerolinewidth": 1,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": colours.rule,
        "tickfont": {"color": colours.muted, "size": 12 * size},
        "title": {"font": {"color": colours.muted, "size": 13 * size}, "standoff": 8},
        # Finding the margins out makes plotly draw everything twice, each time.
        "automargin": not fitted,
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13 * size, "color": colours.text},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [
                colours.float,
                colours.quantized,
                colours.gained,
                colours.range,
                colours.error,
                colours.neutral,
            ],
            "colorscale": {
                "sequential": "Viridis",
                "diverging": [[0.0, colours.float], [0.5, colours.background], [1.0, colours.error]],
            },
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "hoverlabel": {
                "font": {"family": FONT, "size": 13 * size, "color": colours.text},
                "bgcolor": colours.background,
                "bordercolor": colours.rule,
            },
            # Without one of its own plotly takes grey for what lies behind the buttons of a transparent chart.
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": colours.muted, "activecolor": colours.text},
            "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "font": {"color": colours.muted}},
            "xaxis": axis,
            "yaxis": axis,
            "dragmode": "zoom",
            "hovermode": "closest",
        }
    )


def figure(dark: bool, height: int, *, room: Mapping[str, float] | None = None, **layout: object) -> go.Figure:
    """An empty figure in this look. room: pixels around the axes (l, r, t, b), where they are known; `name_rows` knows
    those on the left. Without them plotly finds out, which takes it as long as drawing."""
    if room is not None:
        layout["margin"] = dict(room)
    # All at once: a figure that begins without a template is given plotly's own first, which takes as long again.
    return go.Figure(layout={"template": template(dark, fitted=room is not None), "height": height, **layout})


def enlarge(made: go.Figure, dark: bool, size: float) -> None:
    """Larger letters, and as much more room, for a figure that is shown to a room."""
    made.update_layout(template=template(dark, size), height=round((made.layout.height or 450) * size))
    own = [trace.textfont for trace in made.data if "textfont" in trace]
    for font in (*own, *(note.font for note in made.layout.annotations)):
        if isinstance(font.size, int | float):  # its own, which the template does not move
            font.size *= size


def name_rows(made: go.Figure, names: Sequence[str]) -> None:
    """Names on the y axis of horizontal bars that stand at 0, 1, …: the first one on top, without lines between."""
    lines = [line for name in names for line in _TAG.sub("", name.replace("<br>", "\n")).split("\n")]
    made.layout.margin.l = 16 + LETTER * max(map(len, lines), default=0)
    made.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=list(names),
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
        ticks="",
        zeroline=False,
    )


def empty(message: str, dark: bool, height: int = 220) -> go.Figure:
    """A figure that says why it shows nothing."""
    made = figure(dark, height)
    made.update_xaxes(visible=False)
    made.update_yaxes(visible=False)
    made.add_annotation(
        text=message, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"color": palette(dark).muted}
    )
    return made
