"""Values with a tail, observers over the number of bits, and ranges over the number of calibration samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from qlab.lessons.observers import COUNTS, Learned, Looked, Ranged, Tail
from qlab.metrics import metric, percent, three_digits, write
from qlab.plots.distribution import Bracket, ceiling, distribution_figure, scaled, steps
from qlab.plots.theme import Palette, figure, palette

DASHES = ("solid", "dash", "dot", "dashdot")
NONE = 3e-4  # percent; where a share of nothing stands on an axis of powers of ten


def values_alone(found: Looked, tail: Tail, dark: bool) -> go.Figure:
    """The values as a histogram, counts by powers of ten, with the ends of what there is."""
    colours = palette(dark)
    bins = found.values.bins(found.window)
    made = figure(dark, 300, room={"t": 30, "b": 48, "l": 72, "r": 16}, showlegend=False)
    x, y = steps(bins, scaled(bins.counts, True))
    made.add_scatter(
        x=x, y=y, mode="lines", line={"shape": "hv", "width": 1.4, "color": colours.float}, fill="tozeroy",
        fillcolor=colours.wash("float", 0.28), customdata=np.append(bins.counts, bins.counts[-1]),
        hovertemplate="%{x:.3g}: %{customdata:,.0f} values in this bin<extra></extra>",
    )  # fmt: skip
    for end, place, word in ((found.values.minimum, "left", "smallest"), (found.values.maximum, "right", "largest")):
        made.add_vline(x=end, line={"color": colours.range, "width": 2})
        made.add_annotation(
            x=end, y=1, yref="paper", yanchor="bottom", xanchor=place, showarrow=False, font={"color": colours.muted},
            text=f"{word}: {three_digits(end)}, {abs(end) / tail.deviation:.0f} deviations".replace("-", "−"),
        )  # fmt: skip
    top, _ = ceiling(bins, True, 0)
    decades = range(int(np.ceil(top)) + 1)
    made.update_yaxes(
        title_text="values per bin", range=[0, top], tickvals=[0, *(float(np.log10(1 + 10.0**d)) for d in decades)],
        ticktext=["0", *(f"{10**d:,}" for d in decades)],
    )  # fmt: skip
    made.update_xaxes(title_text="weight", zeroline=False)
    return made


def under_observers(found: Looked, every: Mapping[str, Ranged], chosen: str, dark: bool) -> go.Figure:
    """The distribution picture: ranges of all observers, the values, the grid of the chosen one, and its error."""
    brackets = [Bracket(name, one.low, one.high, one.error.sqnr, name == chosen) for name, one in every.items()]
    return distribution_figure(
        found.values.bins(found.window), found.window, brackets, found.study.clipped, found.error, found.study.grid,
        dark=dark, quantity="weight", logarithmic=True,
    )  # fmt: skip


def by_bits(bits: Sequence[int], every: Sequence[Mapping[str, Ranged]], chosen: str, dark: bool) -> go.Figure:
    """SQNR over bits for each observer: of all values on the left, of the ordinary ones on the right."""
    colours = palette(dark)
    made = figure(dark, 320, room={"t": 56, "b": 48, "l": 64, "r": 16})
    for place, part, title in (("", "error", "all values"), ("2", "ordinary", "the ordinary values alone")):
        for number, name in enumerate(every[0]):
            made.add_scatter(
                x=list(bits), y=[getattr(found[name], part).sqnr for found in every], xaxis=f"x{place}",
                yaxis=f"y{place}", name=name, showlegend=not place, legendgroup=name,
                **_line(name == chosen, number, colours),
                hovertemplate=f"{name}: %{{y:.1f}} dB at %{{x}} bits<extra></extra>",
            )  # fmt: skip
        made.add_annotation(
            x=0.5, y=1, xref=f"x{place} domain", yref="y domain", yanchor="bottom", text=f"<b>{title}</b>",
            showarrow=False,
        )  # fmt: skip
    axis = {"title": {"text": "bits"}, "dtick": 1}
    made.update_layout(
        xaxis=axis | {"domain": [0, 0.46]}, xaxis2=axis | {"domain": [0.54, 1], "anchor": "y2"},
        yaxis={"title": {"text": metric("sqnr").axis}}, yaxis2={"matches": "y", "anchor": "x2"}, legend={"y": 1.09},
    )  # fmt: skip
    return made


def by_samples(found: Learned, chosen: str, dark: bool) -> go.Figure:
    """Ranges over the number of calibration samples, under them the share of unseen values that they clip."""
    colours = palette(dark)
    made = figure(dark, 430, room={"t": 34, "b": 48, "l": 72, "r": 16})
    gap = [COUNTS[-1], None]
    made.add_scatter(
        x=[COUNTS[0], *gap, COUNTS[0], COUNTS[-1]],
        y=[found.minimum, found.minimum, None, found.maximum, found.maximum],
        mode="lines", name="smallest and largest of the evaluation images", hoverinfo="skip",
        line={"color": colours.float, "width": 2},
    )  # fmt: skip
    for number, (name, reach) in enumerate(found.by_observer.items()):
        look = _line(name == chosen, number, colours)
        made.add_scatter(
            x=[*COUNTS, None, *COUNTS], y=[*reach.low, None, *reach.high], name=name, legendgroup=name, **look,
            hovertemplate=f"{name}: %{{y:.3g}} after %{{x}} images<extra></extra>",
        )  # fmt: skip
        made.add_scatter(
            x=COUNTS, y=np.maximum(100 * reach.clipped, NONE), yaxis="y2", name=name, legendgroup=name,
            showlegend=False, **look, customdata=[percent(share) for share in reach.clipped],
            hovertemplate=f"{name}: %{{customdata}} clipped after %{{x}} images<extra></extra>",
        )  # fmt: skip
    highest = 100 * max(float(reach.clipped.max()) for reach in found.by_observer.values())
    powers = [power for power in (0.001, 0.01, 0.1, 1.0, 10.0, 100.0) if power <= max(10 * highest, 0.01)]
    made.update_layout(
        xaxis={"type": "log", "tickvals": COUNTS, "ticktext": [str(n) for n in COUNTS], "anchor": "y2",
               "title": {"text": "images seen by the calibration"}},
        yaxis={"domain": [0.5, 1], "title": {"text": "range"}, "zeroline": True},
        yaxis2={"domain": [0, 0.42], "type": "log", "title": {"text": "clipped (%)"}, "anchor": "x",
                "tickvals": [NONE, *powers], "ticktext": ["none", *(f"{power:g}" for power in powers)],
                "range": [np.log10(NONE) - 0.25, np.log10(max(highest, 0.01)) + 0.3]},
    )  # fmt: skip
    return made


def _line(chosen: bool, number: int, colours: Palette) -> dict[str, object]:
    colour = colours.range if chosen else colours.neutral
    return {
        "mode": "lines+markers",
        "line": {"color": colour, "width": 3.5 if chosen else 1.6, "dash": DASHES[number % len(DASHES)]},
        "marker": {"color": colour, "size": 7 if chosen else 4},
        "zorder": 2 if chosen else 1,
    }


def table(every: Mapping[str, Ranged]) -> str:
    """One line for each observer, as Markdown."""
    lines = ["| observer | range | SQNR of all | SQNR of the ordinary | clipped | codes used by the ordinary |"]
    lines.append("|---|---|---|---|---|---|")
    for name, one in every.items():
        ends = f"{three_digits(one.low)} … {three_digits(one.high)}".replace("-", "−")
        lines.append(
            f"| {name} | {ends} | {write('sqnr', one.error.sqnr)} | {write('sqnr', one.ordinary.sqnr)} | "
            f"{percent(one.error.clipped_share)} | {one.ordinary.levels_used} of {one.ordinary.levels} |"
        )
    return "\n".join(lines)
