"""A training as it goes: accuracy and loss over the epochs, against float and against the network before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from qlab.metrics import metric, three_digits
from qlab.plots.theme import Palette, empty, figure, palette

if TYPE_CHECKING:
    from qlab.training.history import Epoch, GridTrace, History

MOST_POINTS = 1500  # of the thin line; of more steps, means of as many neighbours as it takes
HEIGHT = 560
UPPER, LOWER = (0.5, 1.0), (0.0, 0.38)  # parts of the height that the two panels take
EDGE = 0.02  # room left and right of the epochs, as a share of them


def curves(history: History, dark: bool) -> go.Figure:
    """Above: accuracy by epoch (%, with its 95 % interval), float and the network before training as lines; without
    labels the agreement with float instead. Below: loss of each step, and its means by epoch. x: epochs, as far as the
    training is meant to go; once it ended early, as far as it went.
    """
    if not history.epochs:
        return empty("No epoch has been measured yet.", dark)
    colours = palette(dark)
    made = figure(dark, HEIGHT, room={"t": 50, "b": 48, "l": 72, "r": 12}, uirevision="training", hovermode="closest")
    _measured(made, history, colours)
    _losses(made, history, colours)
    _moments(made, history, colours)
    last = end_of(history)
    made.update_xaxes(
        title_text="epochs (0: before the first step)", range=[-EDGE * last, (1 + EDGE) * last], zeroline=False,
        anchor="y2", **whole_ticks(last),
    )  # fmt: skip
    made.update_layout(
        legend={"yref": "container", "y": 1, "yanchor": "top"},
        legend2={
            "orientation": "h", "x": 0, "y": LOWER[1], "yanchor": "bottom", "font": {"color": colours.muted},
        },
    )  # fmt: skip
    return made


def end_of(history: History) -> float:
    """Where the axis of epochs ends: at what was asked for, or where a finished training stopped."""
    return float(history.epochs[-1].epoch if history.finished else history.settings["epochs"]) or 1.0


def whole_ticks(last: float) -> dict[str, Any]:
    """Of a few epochs each has its tick; plotly would put some between them."""
    return {"dtick": 1, "tick0": 0} if last <= 12 else {"nticks": 12, "tickformat": "d"}


def frozen_at(history: History, grid: GridTrace | None = None) -> float | None:
    """Epochs (with fractions) after which ranges stay, of one grid or of the first that froze on the way; None while
    all move. 0 where a grid stood still from the start."""
    if grid is not None:
        when = np.flatnonzero(grid.frozen)
        return float(history.record_epochs[when[0]]) if len(when) else None
    first = [np.flatnonzero(g.frozen)[0] for g in history.grids if g.frozen.any() and not g.frozen[0]]
    return float(history.record_epochs[min(first)]) if first else None


def step_epochs(history: History) -> NDArray[np.float64]:
    """[S]: how many epochs are over after each step."""
    last = history.epochs[-1]
    steps = np.arange(1, len(history.losses) + 1, dtype=np.float64)
    # Every epoch takes as many steps; what was taken since the last one that is over goes on at that rate.
    return steps * (last.epoch / last.step if last.step else 1.0)


# ---- above -----------------------------------------------------------------------------------------------------------


def _measured(made: go.Figure, history: History, colours: Palette) -> None:
    """Accuracy, or the agreement with float where there are no labels."""
    labelled = history.float_accuracy is not None
    figures = metric("accuracy" if labelled else "agreement")
    known = [(e, e.accuracy if labelled else e.agreement) for e in history.epochs]
    shown = [(e, value) for e, value in known if value is not None]
    seen = [value for _, value in shown]
    ends = [0.0, end_of(history)]
    if history.float_accuracy is not None:
        _level(made, ends, history.float_accuracy, f"float {figures.format(history.float_accuracy)}", colours.float)
        seen.append(history.float_accuracy)
        seen += _interval(made, [e for e, _ in shown], colours)
    if shown and shown[0][0].epoch == 0:
        before = shown[0][1]
        _level(made, ends, before, f"PTQ, before training {figures.format(before)}", colours.quantized, "dash")
    made.add_scatter(
        x=[e.epoch for e, _ in shown], y=[100 * value for _, value in shown], mode="lines+markers",
        name=f"{figures.label.lower()}, simulated", line={"color": colours.quantized, "width": 2.5},
        marker={"size": 7, "color": colours.quantized}, text=[_said(e) for e, _ in shown],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    chosen = [(e, value) for e, value in shown if e.epoch == history.best]
    if chosen and _has_choice(history):
        made.add_scatter(
            x=[chosen[0][0].epoch], y=[100 * chosen[0][1]], mode="markers", name=_chosen_name(history),
            marker={"symbol": "star", "size": 17, "color": colours.quantized,
                    "line": {"color": colours.text, "width": 1.3}},
            hoverinfo="skip",
        )  # fmt: skip
    room = max(max(seen) - min(seen), 0.01) if seen else 1.0
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    made.update_layout(
        yaxis={
            "domain": list(UPPER), "title": {"text": f"{figures.label} (%)"}, "zeroline": False, "nticks": 6,
            "range": [100 * (low - 0.08 * room), 100 * (high + 0.08 * room)], "anchor": "x",
        }
    )  # fmt: skip


def _has_choice(history: History) -> bool:
    """Whether an epoch is the result, or the best so far: while nothing is held out, the newest is neither."""
    return bool(history.finished or (history.samples[1] and history.epochs[-1].epoch))


def _chosen_name(history: History) -> str:
    return f"{'result' if history.finished else 'best so far'}: epoch {history.best}"


def _level(
    made: go.Figure, ends: list[float], value: float, name: str, colour: str, dash: str | None = None
) -> None:  # fmt: skip
    made.add_scatter(
        x=ends, y=[100 * value] * 2, mode="lines", name=name, hoverinfo="skip",
        line={"color": colour, "width": 2, "dash": dash},
    )  # fmt: skip


def _interval(made: go.Figure, epochs: list[Epoch], colours: Palette) -> list[float]:
    """The band of the 95 % intervals; gives their ends."""
    held = [(e.epoch, e.accuracy_low, e.accuracy_high) for e in epochs]
    known = [(at, low, high) for at, low, high in held if low is not None and high is not None]
    at, low, high = ([row[i] for row in known] for i in range(3))
    made.add_scatter(
        x=[*at, *at[::-1]], y=[100 * end for end in (*high, *low[::-1])], mode="lines", fill="toself",
        fillcolor=colours.wash("quantized", 0.18), line={"width": 0}, hoverinfo="skip", name="95 % interval",
        legendrank=1001,
    )  # fmt: skip
    return [*low, *high]


def _said(epoch: Epoch) -> str:
    lines = [f"<b>epoch {epoch.epoch}</b>" + (", before training" if epoch.epoch == 0 else "")]
    if epoch.accuracy is not None:
        text = f"accuracy {metric('accuracy').format(epoch.accuracy)}"
        if epoch.accuracy_low is not None and epoch.accuracy_high is not None:
            text += f" {metric('accuracy').interval(epoch.accuracy_low, epoch.accuracy_high)}"
        lines.append(text)
    if epoch.agreement is not None:
        lines.append(f"same class as float {metric('agreement').format(epoch.agreement)}")
    for what, loss in (("training", epoch.train_loss), ("held out", epoch.validation_loss)):
        if loss is not None:
            lines.append(f"loss {what} {three_digits(loss)}")
    if epoch.epoch:
        lines.append(f"learning rate {three_digits(epoch.lr)}")
    return "<br>".join(lines)


# ---- below -----------------------------------------------------------------------------------------------------------


def _losses(made: go.Figure, history: History, colours: Palette) -> None:
    x, y, each = thinned(step_epochs(history), np.asarray(history.losses, dtype=np.float64))
    name = "loss of a step" if each == 1 else f"loss, means of {each} steps"
    made.add_scatter(
        x=x, y=y, mode="lines", name=name, yaxis="y2", legend="legend2",
        line={"color": colours.wash("neutral", 0.7), "width": 1},
        hovertemplate="%{x:.2f} epochs: %{y:.4g}<extra>" + name + "</extra>",
    )  # fmt: skip
    means = {
        "loss, mean of the epoch": ([(e.epoch, e.train_loss) for e in history.epochs], "solid", "circle"),
        "loss, held-out samples": ([(e.epoch, e.validation_loss) for e in history.epochs], "dot", "diamond-open"),
    }
    for label, (values, dash, symbol) in means.items():
        known = [(at, loss) for at, loss in values if loss is not None]
        if not known:
            continue
        made.add_scatter(
            x=[at for at, _ in known], y=[loss for _, loss in known], mode="lines+markers", name=label, yaxis="y2",
            legend="legend2", line={"color": colours.quantized, "width": 2, "dash": dash},
            marker={"size": 7, "symbol": symbol},
            hovertemplate="epoch %{x}: %{y:.4g}<extra>" + label + "</extra>",
        )  # fmt: skip
    shown = [value for trace in made.data if trace.yaxis == "y2" for value in trace.y]
    # What is learned from the float network need not be class scores, and hints are a ratio: without a unit.
    unit = "" if history.float_accuracy is None or history.settings.get("hints") else " (nats)"
    top = 1.06 * max([*(v for v in shown if np.isfinite(v)), 1e-6])
    made.update_layout(
        yaxis2={
            "domain": list(LOWER), "title": {"text": f"Loss{unit}"}, "nticks": 5, "anchor": "x", "zeroline": False,
            "range": [0, top],
        }
    )  # fmt: skip


def thinned(
    x: NDArray[np.float64], y: NDArray[np.float64], most: int = MOST_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:  # fmt: skip
    """At most this many points, each the mean of as many neighbours, which is the third."""
    each = max(1, -(-len(x) // most))
    if each == 1:
        return x, y, 1
    starts = np.arange(0, len(x), each)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts, each


def _moments(made: go.Figure, history: History, colours: Palette) -> None:
    """The chosen epoch and the moment the ranges froze, through both panels."""
    marks: list[tuple[float, str, str, str]] = []
    if _has_choice(history):
        marks.append((float(history.best), _chosen_name(history), colours.quantized, "dot"))
    if (froze := frozen_at(history)) is not None:
        marks.append((froze, "ranges frozen", colours.range, "dash"))
    last = end_of(history)
    for row, (at, words, colour, dash) in enumerate(marks):
        through(made, at, colour, dash)
        # In the upper part of the losses, which fall; one under the other, so that close moments stay readable.
        left = at > 0.75 * last
        made.add_annotation(
            x=at, y=LOWER[1], yref="paper", yanchor="top", yshift=-2 - 18 * row, text=words, showarrow=False,
            xanchor="right" if left else "left", xshift=-4 if left else 4, font={"color": colours.muted, "size": 12},
            bgcolor=colours.wash("background", 0.8),
        )  # fmt: skip


def through(made: go.Figure, at: float, colour: str, dash: str) -> None:
    """An upright line through every panel; what is written between two panels stays free."""
    for axis in sorted({trace.yaxis or "y" for trace in made.data}):
        made.add_shape(
            type="line", x0=at, x1=at, y0=0, y1=1, yref=f"{axis} domain", layer="above",
            line={"color": colour, "width": 1.5, "dash": dash},
        )  # fmt: skip
