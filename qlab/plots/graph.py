"""The network as boxes and lines, from top to bottom: what is quantized, what is float, and where values change."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from qlab.graph.outline import Carries, Conversion, Link, Outline, Vertex
from qlab.metrics import metric, write
from qlab.plots.heatmap import BRIGHT
from qlab.plots.layered import HEIGHT, WIDTH, Layout, layered
from qlab.plots.layers import shorten
from qlab.plots.theme import Palette, empty, figure, palette

ROW, TOP = 62, 58  # pixels of a layer, and of the legend above
ROOMY = 3.4  # boxes beside each other from which their names are made shorter
LETTERS = 92  # that fit the full width
SHADES = 7  # colours of lines by SQNR
CONVERTS: Mapping[Conversion, str] = {
    "quantize": "put on a grid here",
    "dequantize": "taken off its grid here",
    "ranged": "put on a grid chosen at every call",
}
HOLDS: Mapping[Carries, str] = {
    "grid": "on a grid",
    "unit": "sum inside one kernel",
    "float": "float",
    "whole": "whole numbers",
}
DASHES: Mapping[Carries, str] = {"grid": "solid", "unit": "solid", "float": "solid", "whole": "dot"}


@dataclass(frozen=True)
class _Look:
    """What the pictures of one call share. sqnr: of every op, or None for colours by what is on a grid."""

    outline: Outline
    layout: Layout
    colours: Palette
    chosen: str | None
    sqnr: Mapping[str, float] | None
    ends: tuple[float, float]

    def of(self, vertex: Vertex) -> float | None:
        """The lowest SQNR of a box. A float op has none, even where its output is put on a grid on the way."""
        return None if vertex.state == "float" or not vertex.layers else self.worst(vertex.layers)

    def worst(self, names: Iterable[str]) -> float | None:
        """The lowest SQNR of these, of those that have one."""
        known = [self.sqnr[name] for name in names if name in (self.sqnr or {})] if self.sqnr is not None else []
        known = [value for value in known if not math.isnan(value)]
        return min(known, default=None)

    def share(self, value: float) -> float:
        """Where this SQNR stands between the lowest and the highest, 0..1."""
        low, high = self.ends
        return min(max((value - low) / (high - low), 0.0), 1.0)


def graph_figure(
    outline: Outline,
    dark: bool,
    *,
    chosen: str | None = None,
    sqnr: Mapping[str, float] | None = None,
    said: str = "",
    revision: str = "",
) -> go.Figure:
    """Boxes for ops and folded modules, lines for tensors. A mark that is clicked carries "box KEY" or "line TENSOR".

    chosen: key of the box, or name of the tensor, that is outlined. sqnr: op -> dB, for colours by it; said: what these
    figures are ("measured", "estimated"). revision: as long as it stays, zoom and place stay.
    """
    if not outline.vertices:
        return empty("The network has no ops.", dark)
    layout = layered([v.key for v in outline.vertices], [(link.source, link.target) for link in outline.links])
    known = [value for value in (sqnr or {}).values() if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    ends = (low, high) if high - low >= 1 else (low - 0.5, high + 0.5)
    look = _Look(outline, layout, palette(dark), chosen, sqnr, ends)
    left, right = layout.span
    made = figure(
        dark, TOP + ROW * layout.depth, barmode="overlay", bargap=0, dragmode="pan", uirevision=revision,
        margin={"l": 4, "r": 4, "t": TOP if sqnr is None else 4, "b": 4}, showlegend=sqnr is None,
        modebar={"orientation": "v"},
        legend={"y": 1, "yref": "container", "yanchor": "top", "itemclick": False, "itemdoubleclick": False},
    )  # fmt: skip
    made.update_xaxes(visible=False, range=[min(left, -1.2) - 0.1, max(right, 1.2) + 0.1])
    made.update_yaxes(visible=False, range=[layout.depth - 0.5, -0.5])
    _lines(made, look)
    _conversions(made, look)
    _boxes(made, look)
    if sqnr is not None:
        _scale(made, look, said)
    return made


# --- lines ------------------------------------------------------------------------------------------------------------


def _lines(made: go.Figure, look: _Look) -> None:
    kinds: dict[tuple[str, str, float, str], list[list[tuple[float, float]]]] = {}
    for link in look.outline.links:
        points = look.layout.route[link.source, link.target]
        middle = _middle(points)
        thick = 2.0 if look.chosen not in link.tensors else 4.0
        if look.sqnr is not None:
            worst = look.worst(link.tensors)
            colour = look.colours.wash("neutral", 0.5) if worst is None else _viridis(look, worst, SHADES)
            kinds.setdefault((colour, "solid", thick, ""), []).append(points)
            continue
        for part, holds in ((points[: middle + 1], link.carries), (points[middle:], link.arrives)):
            colour = _line_colour(holds, look.colours)
            width = thick / 2 if holds == "unit" else thick
            kinds.setdefault((colour, DASHES[holds], width, HOLDS[holds]), []).append(part)
    named: set[str] = set()
    for (colour, dash, width, name), parts in kinds.items():
        made.add_scatter(
            x=[v for part in parts for v in (*(x for x, _ in part), None)],
            y=[v for part in parts for v in (*(y for _, y in part), None)],
            mode="lines", line={"color": colour, "dash": dash, "width": width}, hoverinfo="skip",
            name=name, showlegend=bool(name) and name not in named,
        )  # fmt: skip
        named.add(name)


def _middle(points: Sequence[tuple[float, float]]) -> int:
    """Number of the point in the middle of the last stretch between two layers."""
    last = points[-1][1] - (1 - HEIGHT) / 2
    return min(range(len(points)), key=lambda i: abs(points[i][1] - last))


def _line_colour(holds: Carries, colours: Palette) -> str:
    return {
        "grid": colours.quantized,
        "unit": colours.quantized,
        "float": colours.float,
        "whole": colours.neutral,
    }[holds]


def _conversions(made: go.Figure, look: _Look) -> None:
    """A mark on each line, to hover and to click; a diamond where values are converted, else nothing to see."""
    for shown in (False, True):
        links = [link for link in look.outline.links if bool(link.conversion) == shown]
        spots = [look.layout.route[link.source, link.target] for link in links]
        points = [spot[_middle(spot)] for spot in spots]
        made.add_scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="markers",
            marker={
                "symbol": "diamond",
                "size": 10 if shown else 12,
                "color": look.colours.error if shown else "rgba(0,0,0,0)",
                "line": {"width": 1 if shown else 0, "color": look.colours.background},
            },
            name="conversion",
            showlegend=shown and bool(links),
            customdata=[[f"line {link.tensors[0]}"] for link in links],
            hovertext=[_about_line(link, look) for link in links],
            hovertemplate="%{hovertext}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        )


def _about_line(link: Link, look: _Look) -> str:
    lines = [html.escape(", ".join(link.tensors[:3]) + (" …" if len(link.tensors) > 3 else "")), HOLDS[link.carries]]
    if link.conversion:
        lines.append(f"{CONVERTS[link.conversion]}: {HOLDS[link.carries]} → {HOLDS[link.arrives]}")
    worst = look.worst(link.tensors)
    return "<br>".join([*lines, *([] if worst is None else [f"SQNR {write('sqnr', worst)}"])])


# --- boxes ------------------------------------------------------------------------------------------------------------


def _boxes(made: go.Figure, look: _Look) -> None:
    left, right = look.layout.span
    letters = min(26, int(LETTERS / max(right - left, ROOMY)))
    kinds: dict[str, list[Vertex]] = {}
    for vertex in look.outline.vertices:
        kinds.setdefault(_kind(vertex), []).append(vertex)
    for kind, vertices in kinds.items():
        places = [look.layout.place[v.key] for v in vertices]
        fills = [_fill(v, kind, look) for v in vertices]
        made.add_bar(
            orientation="h",
            base=[x - WIDTH / 2 for x, _ in places],
            x=[WIDTH] * len(places),
            y=[y for _, y in places],
            width=HEIGHT,
            text=[_label(v, letters) for v in vertices],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            insidetextfont={"color": [text for _, text in fills], "size": 12},
            constraintext="inside",
            marker={
                "color": [fill for fill, _ in fills],
                "cornerradius": 6,
                "line": {
                    "color": [look.colours.text if v.key == look.chosen else _edge(kind, look) for v in vertices],
                    "width": [3 if v.key == look.chosen else 2 if v.kind == "block" else 1 for v in vertices],
                },
                **({"pattern": {"shape": "/", "fgcolor": look.colours.wash("neutral", 0.5), "size": 8, "solidity": 0.2}}
                   if kind == "mixed" and look.sqnr is None else {}),
            },
            name="float op" if kind == "float" else kind,
            showlegend=kind != "" and look.sqnr is None,
            customdata=[[f"box {v.key}"] for v in vertices],
            hovertext=[_about(v, look) for v in vertices],
            hovertemplate="%{hovertext}<extra></extra>",
            selected={"marker": {"opacity": 1}},
            unselected={"marker": {"opacity": 1}},
        )  # fmt: skip


def _kind(vertex: Vertex) -> str:
    """How it is called in the legend: its state, "mixed" for a module with float and quantized ops, "" for the ends."""
    if vertex.state is not None:
        return vertex.state
    return "mixed" if vertex.kind == "block" and vertex.counts else ""


def _fill(vertex: Vertex, kind: str, look: _Look) -> tuple[str, str]:
    """Colour of a box, and of the text on it."""
    colours = look.colours
    if look.sqnr is not None:
        worst = look.of(vertex)
        if worst is None:
            return colours.wash("neutral", 0.12), colours.text
        return _viridis(look, worst), "#FFFFFF" if look.share(worst) < BRIGHT else "#000000"
    wash = {"quantized": ("quantized", 0.55), "shared": ("quantized", 0.2), "mixed": ("quantized", 0.3),
            "float": ("neutral", 0.25)}.get(kind, ("neutral", 0.06))  # fmt: skip
    return colours.wash(*wash), colours.text


def _edge(kind: str, look: _Look) -> str:
    colours = look.colours
    return colours.quantized if kind in ("quantized", "shared", "mixed") and look.sqnr is None else colours.neutral


def _viridis(look: _Look, value: float, shades: int | None = None) -> str:
    share = look.share(value)
    if shades is not None:
        share = round(share * (shades - 1)) / (shades - 1)
    return str(sample_colorscale("Viridis", [share])[0])


def _label(vertex: Vertex, letters: int) -> str:
    if vertex.kind != "block":
        name = vertex.key if vertex.kind == "op" else "×".join(map(str, (vertex.shape or ())[1:]))
        first = vertex.op if vertex.kind == "op" else vertex.key
        return f"<b>{html.escape(shorten(first, letters))}</b><br>{html.escape(shorten(name, letters))}"
    again = vertex.key.removeprefix(f"{vertex.path}.*")
    count = f"▸ {len(vertex.layers)} ops"
    return f"<b>{html.escape(shorten(vertex.path + again, letters))}</b><br>{count}"


def _about(vertex: Vertex, look: _Look) -> str:
    lines = [f"<b>{html.escape(vertex.path or vertex.key)}</b>"]
    if vertex.kind == "block":
        lines.append(" · ".join(f"{n} {state}" for state, n in sorted((vertex.counts or {}).items())))
        lines.append("a click opens it")
    elif vertex.kind == "op":
        lines.append(f"{vertex.op}, {vertex.state or 'not on a grid: whole numbers'}")
    if vertex.shape:
        lines.append(f"gives {' × '.join(map(str, vertex.shape))}")
    worst = look.of(vertex)
    if worst is not None:
        lines.append(f"SQNR {write('sqnr', worst)}" + (" at its worst op" if vertex.kind == "block" else ""))
    return "<br>".join(lines)


def _scale(made: go.Figure, look: _Look, said: str) -> None:
    """The colours of the SQNR, as a bar above the picture."""
    low, high = look.ends
    made.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={
            "color": [low, high], "cmin": low, "cmax": high, "colorscale": "Viridis", "showscale": True,
            "colorbar": {
                "orientation": "h", "thickness": 10, "len": 0.6, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
                "title": {"text": f"{metric('sqnr').axis}{f', {said}' if said else ''}", "side": "top"},
                "tickfont": {"size": 11}, "outlinewidth": 0,
            },
        },
    )  # fmt: skip
