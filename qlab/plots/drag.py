"""A picture over which a person drags to choose a span of its value axis."""

from __future__ import annotations

import plotly.graph_objects as go

from qlab.plots.theme import palette


def draggable(made: go.Figure, dark: bool, turn: int = 0) -> go.Figure:
    """The same figure, in which dragging marks a span from top to bottom; zooming is a button above the picture.

    turn: another number makes it another figure to the browser, which then forgets the span it has marked.
    """
    colours = palette(dark)
    for trace in made.data:
        # Marks that lie outside the span would fade, as if they had been left out of something.
        if "markers" in (trace.mode or ""):
            trace.unselected = {"marker": {"opacity": 1}}
        elif trace.mode == "text":
            trace.selected = {"textfont": {"color": colours.text}}
            trace.unselected = {"textfont": {"color": colours.muted}}
    made.layout.update(
        dragmode="select",
        selectdirection="h",
        newselection={"line": {"color": colours.range, "width": 2, "dash": "solid"}, "mode": "immediate"},
        activeselection={"fillcolor": colours.range, "opacity": 0.15},
        meta={"turn": turn},
    )
    return made
