"""What the table of a comparison can show of each run: one entry for a column."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.lab.compared import changes_of
from qlab.ui import compare_pictures as pictures
from qlab.ui import errors, widgets
from qlab.ui.compare import Against, Compared

if TYPE_CHECKING:
    from qlab.lab.compared import Line


@dataclass(frozen=True)
class Column:
    """value: from a run and what it is held against to what stands there. config: how Streamlit shows it."""

    value: Callable[[Line, Against], Any]
    config: Any


def columns(title: str, shown: Compared | None) -> dict[str, Column]:
    """All of them by name. title: what the baseline is called."""
    c = st.column_config
    dark = widgets.dark()
    picture = pictures.intervals(shown, dark) if shown is not None else {}
    picked = shown.picked.id if shown is not None else None
    baseline = shown.baseline.id if shown is not None and shown.baseline is not None else None
    names = {run.id: shown.title(run) for run in shown.runs} if shown is not None else {}
    changes = {run.id: changes_of(run) for run in shown.runs} if shown is not None else {}

    def number(share: float | None, times: float = 100) -> float | None:
        return None if share is None else share * times

    def mark(line: Line, _: Against) -> str:
        return ("●" if line.id == picked else "") + ("◆" if line.id == baseline else "")

    return {
        "": Column(mark, c.TextColumn("", width=26, help="● is the run that is picked, ◆ the baseline.")),
        "Run": Column(
            lambda line, _: names.get(line.id, line.title),
            c.TextColumn(width=150, help="Its name, or its settings where none was given."),
        ),
        "Changes": Column(
            lambda line, _: changes.get(line.id, ""),
            c.TextColumn(width=116, help="What was done beside the config: training, numbers edited by hand."),
        ),
        "Computed": Column(
            lambda line, _: line.backend or "",
            c.TextColumn(width=78, help="Accuracy simulated in torch, or of integer kernels of ONNX Runtime."),
        ),
        "Interval": Column(
            lambda line, _: picture.get(line.id),
            c.ImageColumn(
                "Accuracy, 95 %", width=pictures.WIDTH + 14,
                help="Accuracy with its 95 % interval, all runs on one axis; the blue line is float.",
            ),
        ),
        "Accuracy": Column(
            lambda line, _: number(line.accuracy),
            c.NumberColumn(width=76, format="%.1f %%", help="Share of right predictions."),
        ),
        "95 %": Column(
            lambda line, _: "" if line.low is None or line.high is None else
            f"{100 * line.low:.1f} … {100 * line.high:.1f}",
            c.TextColumn("95 % interval", width=112, help="Where the true accuracy lies, with 95 % confidence."),
        ),
        "Against": Column(
            lambda _, held: number(held.delta),
            c.NumberColumn(
                "Difference", width=80, format="%+.1f pt",
                help=f"Points of accuracy more or less than {errors.escape(title)}, on samples that both have seen.",
            ),
        ),
        "Verdict": Column(
            lambda _, held: held.short,
            c.TextColumn(width=74, help="Whether that difference is more than chance; noise: it is not."),
        ),
        "p": Column(
            lambda _, held: held.p,
            c.NumberColumn(width=78, format="%.2g", help="How often chance alone would flip this unevenly (McNemar)."),
        ),
        "Δ float": Column(
            lambda line, _: number(line.delta_float),
            c.NumberColumn(width=82, format="%+.1f pt", help="Points of accuracy more or less than float."),
        ),
        "Agreement": Column(
            lambda line, _: number(line.agreement),
            c.NumberColumn(width=92, format="%.1f %%", help="Share of samples on which it says what float says."),
        ),
        "Size": Column(
            lambda line, _: number(line.size, 1e-3),
            c.NumberColumn(width=74, format="%.1f kB", help="Bytes of the quantized model."),
        ),
        "Latency": Column(
            lambda line, _: number(line.latency, 1e3),
            c.NumberColumn(width=82, format="%.3g ms", help="Median time of a call on integer kernels."),
        ),
        "Bits": Column(
            lambda line, _: pictures.bits(line, dark),
            c.ImageColumn(
                width=84, help="A block for each bit: above those of a weight, below, open, those of an activation."
            ),
        ),
        "Weight bits": Column(
            lambda line, _: _bits(line.weight_bits), c.TextColumn(width=88, help="Bits of a weight code.")
        ),
        "Activation bits": Column(
            lambda line, _: _bits(line.activation_bits), c.TextColumn(width=112, help="Bits of an activation code.")
        ),
        "Observer": Column(
            lambda line, _: line.activation_observer,
            c.TextColumn(width=104, help="The rule that ranges the activations."),
        ),
        "Weight observer": Column(
            lambda line, _: line.weight_observer, c.TextColumn(width=114, help="The rule that ranges the weights.")
        ),
        "Weight scheme": Column(
            lambda line, _: line.weight_scheme, c.TextColumn(width=140, help="How the grids of the weights are laid.")
        ),
        "Activation scheme": Column(
            lambda line, _: line.activation_scheme,
            c.TextColumn(width=140, help="How the grids of the activations are laid."),
        ),
        "Mode": Column(
            lambda line, _: line.mode,
            c.TextColumn(width=90, help="Ranges ahead from calibration, at every call, or weights alone."),
        ),
        "Rules": Column(
            lambda line, _: line.rules, c.NumberColumn(width=60, help="Layers and types with settings of their own.")
        ),
        "Samples": Column(
            lambda line, _: line.samples, c.NumberColumn(width=76, format="%d", help="Samples that were evaluated.")
        ),
        "Stopped early": Column(
            lambda line, _: line.dropped or "",
            c.TextColumn(width=260, help="Why not all samples were evaluated."),
        ),
        "Network": Column(lambda line, _: line.model, c.TextColumn(width=120, help="The network it is of.")),
        "Data": Column(lambda line, _: line.data, c.TextColumn(width=120, help="What it was measured on.")),
        "Tags": Column(lambda line, _: list(line.tags), c.ListColumn(width=110, help="Words given to the run.")),
        "Notes": Column(lambda line, _: line.notes, c.TextColumn(width=200, help="What was written about the run.")),
        "When": Column(
            lambda line, _: datetime.datetime.fromtimestamp(line.created),
            c.DatetimeColumn(width=126, format="YYYY-MM-DD HH:mm", help="When the run was started."),
        ),
    }  # fmt: skip


def _bits(count: int | None) -> str:
    return "float" if count is None else str(count)
