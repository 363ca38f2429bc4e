"""The ranges of the channels of one tensor under the range they share, and which of them suffer from sharing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.metrics import metric, three_digits, write
from qlab.plots.theme import Palette, empty, figure, palette

MOST_BARS = 400  # above it, bars take longer to draw than a person waits, and are under two pixels wide
MOST_LABELS = 24
TWO_BITS = 12.04  # dB
SUFFERS = "loses two bits or more to sharing"


@dataclass(frozen=True)
class Channels:
    """minimum, maximum: [C] of the values. sqnr: [C] dB under the chosen scheme; own: [C] dB with one grid per channel.

    sharing: whether the channels share one grid. sqnr and own are None where only ranges are known, as for activations.
    """

    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    sqnr: NDArray[np.float64] | None = None
    own: NDArray[np.float64] | None = None
    sharing: bool = True

    @property
    def suffers(self) -> NDArray[np.bool_]:
        """[C] Channels that lose at least two bits to the grid they share; one is lost soon and seldom matters.

        By what a grid of their own would gain in SQNR; where only ranges are known, by using less than a quarter of it.
        """
        if not self.sharing:
            return np.zeros(len(self.minimum), dtype=bool)
        if self.sqnr is not None and self.own is not None:
            # Two infinities (all zeros, exact on any grid) differ by NaN, which compares as False: nothing is lost.
            with np.errstate(invalid="ignore"):
                return self.own - self.sqnr >= TWO_BITS
        reach = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        return (reach > 0) & (reach < 0.25 * reach.max(initial=0.0))


def channel_figure(
    channels: Channels,
    *,
    dark: bool,
    shared: tuple[float, float] | None = None,
    shared_name: str = "one range for all",
    chosen: int | None = None,
    ranked: bool = False,
    quantity: str = "value",
    revision: str = "",
) -> go.Figure:
    """A bar from minimum to maximum for each channel; under it, where known, its SQNR.

    shared: the range of the whole tensor, drawn across, and what to call it. ranked: widest channel first.
    Every point carries its channel number in `customdata`, so that a click can be followed.
    """
    count = len(channels.minimum)
    if count == 0:
        return empty("This tensor has no channels.", dark)
    colours = palette(dark)
    order = np.argsort(channels.minimum - channels.maximum, kind="stable") if ranked else np.arange(count)
    with_sqnr = channels.sqnr is not None
    made = figure(
        dark, 420 if with_sqnr else 300, room={"t": 30, "b": 48, "l": 72, "r": 16}, bargap=0.25, barmode="overlay",
        uirevision=revision, yaxis={"title": {"text": quantity}},
    )  # fmt: skip
    _ranges(made, channels, order, colours)
    if shared is not None:
        _shared(made, shared, shared_name, count, colours)
    if with_sqnr:
        made.update_layout(yaxis={"domain": [0.4, 1.0]}, xaxis={"anchor": "y2"})
        _sqnr(made, channels, order, colours)
    if chosen is not None:
        place = int(np.flatnonzero(order == chosen)[0])
        made.add_vrect(
            x0=place - 0.5, x1=place + 0.5, fillcolor=colours.wash("range", 0.35), line_width=0, layer="below"
        )
    made.update_xaxes(
        title_text=f"channel, widest first ({count:,})" if ranked else f"channel ({count:,})",
        range=[-0.7, count - 0.3],
        showgrid=False,
        zeroline=False,
    )
    if ranked or count <= MOST_LABELS:
        shown = np.arange(0, count, max(1, -(-count // MOST_LABELS)))
        made.update_xaxes(tickvals=shown, ticktext=[str(channel) for channel in order[shown]])
    return made


def _ranges(made: go.Figure, channels: Channels, order: NDArray[np.int64], colours: Palette) -> None:
    low, high, suffers = channels.minimum[order], channels.maximum[order], channels.suffers[order]
    places = np.arange(len(order))
    # Where no channel suffers there is no second kind to tell from the first, and nothing for a legend to say.
    made.update_layout(showlegend=bool(suffers.any()))
    for label, mask, name in (("channel", ~suffers, "float"), (SUFFERS, suffers, "error")):
        if not mask.any():
            continue
        at, bottom, top, who = places[mask], low[mask], high[mask], order[mask]
        if len(order) <= MOST_BARS:
            made.add_bar(
                x=at,
                y=top - bottom,
                base=bottom,
                # given, because plotly takes the distance of the nearest two bars of the same trace for it
                width=0.75,
                customdata=who,
                name=label,
                marker={"color": colours.wash(name, 0.8), "line": {"width": 0}},
                hovertext=[
                    f"channel {c}: {three_digits(a)} … {three_digits(b)}"
                    for c, a, b in zip(who, bottom, top, strict=True)
                ],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        else:
            # One trace of upright lines with gaps between them draws thousands of channels in the time of one line.
            gap = np.full(len(at), np.nan)
            made.add_scatter(
                x=np.repeat(at, 3),
                y=np.stack([bottom, top, gap], axis=1).ravel(),
                customdata=np.repeat(who, 3),
                mode="lines",
                name=label,
                line={"color": getattr(colours, name), "width": 1},
                hovertemplate="channel %{customdata}: %{y:.3g}<extra></extra>",
            )


def _shared(made: go.Figure, shared: tuple[float, float], name: str, count: int, colours: Palette) -> None:
    """Both ends of a range that holds for all, across all channels; named in the legend, where no bar covers it."""
    made.add_scatter(
        x=[-0.7, count - 0.3, None, -0.7, count - 0.3],
        y=[shared[0], shared[0], None, shared[1], shared[1]],
        mode="lines",
        name=f"{name}: {three_digits(shared[0])} … {three_digits(shared[1])}".replace("-", "−"),
        line={"color": colours.range, "width": 2.5},
        hoverinfo="skip",
    )
    made.update_layout(showlegend=True)


def _sqnr(made: go.Figure, channels: Channels, order: NDArray[np.int64], colours: Palette) -> None:
    """A dot for each channel under the chosen scheme, and a hollow one for what a grid of its own would give."""
    places = np.arange(len(order))
    size = 8 if len(order) <= 64 else 5 if len(order) <= MOST_BARS else 3
    chosen = [colours.error if suffers else colours.quantized for suffers in channels.suffers[order]]
    for values, label, marker in (
        (channels.own, "with a grid of its own", {"symbol": "circle-open", "color": colours.neutral}),
        (channels.sqnr, "as chosen", {"symbol": "circle", "color": chosen}),
    ):
        if values is None:
            continue
        heights = values[order]
        # A channel without any error has no place on the axis: it is left out here and stays in the bars.
        made.add_scatter(
            x=places,
            y=np.where(np.isfinite(heights), heights, np.nan),
            yaxis="y2",
            mode="markers",
            name=label,
            customdata=order,
            marker=marker | {"size": size},
            hovertext=[f"channel {c}: {write('sqnr', v)} {label}" for c, v in zip(order, heights, strict=True)],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    made.update_layout(
        showlegend=True, yaxis2={"title_text": metric("sqnr").axis, "domain": [0, 0.34], "anchor": "x", "nticks": 4}
    )
