"""What is shown on Distributions: the numbers, remembered by tensor and spec, and how they are drawn.

No model runs here: everything comes from a weight, or from what the calibration kept of an activation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.config import QuantSpec
from qlab.metrics import metric, three_digits, write
from qlab.quant.observers import OBSERVERS
from qlab.ui import by_hand, prepared, say, state, trial, widgets
from qlab.ui.tensors import Entry, ModelTensors

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.plots.bins import Window
    from qlab.plots.channels import Channels
    from qlab.plots.study import Ends, Line, Study, Tensor, Values

# A weight with more values is looked at through a histogram of all of them where the scheme allows it, which is fast.
MANY_VALUES = 500_000
ALL = "all channels"
WIDTHS = (210, 134, 134, 134, 134, 134)  # of the figures; the first names an observer in its note
Figure = tuple[str, str, str | None, str]  # label, value, note under it, help


# --- the numbers, remembered ------------------------------------------------------------------------------------------


def load(model: Model, known: ModelTensors, entry: Entry) -> tuple[Tensor | None, str]:
    """The tensor and a key that names its content; None while the calibration is not there, which is then shown."""
    if entry.role == "weight":
        return known.weights[entry.tensor], f"{model.content_hash}/{entry.tensor}"
    calibration = prepared.calibration(key="dist")
    if calibration is None:
        return None, ""
    return calibration[entry.tensor], f"{model.content_hash}/{state.data_ref()}/{calibration.samples}/{entry.tensor}"


def lighter(tensor: Tensor, key: str, spec: QuantSpec, channel: int | None) -> Tensor:
    """A large weight as the histogram of its values, where nothing but its values matters."""
    from qlab.quant.stats import TensorStats

    whole = spec.granularity == "tensor" and channel is None
    if isinstance(tensor, TensorStats) or not whole or tensor.numel() <= MANY_VALUES:
        return tensor
    return _histogram(key, tensor)


def one_thread() -> None:
    """Keeps torch from sharing small work between threads that wait for each other: 10 times slower beside a job."""
    import torch

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@st.cache_resource(max_entries=8, show_spinner=False)
def _histogram(key: str, _tensor: Any) -> Any:
    from qlab.quant.stats import stats_of

    return stats_of(_tensor, key.rsplit("/", 1)[-1])


@st.cache_resource(max_entries=32, show_spinner=False)
def values(key: str, channel: int | None, kind: str, _tensor: Any, _axis: int) -> Values:
    """The values of a tensor, or of one channel. kind: whether they are looked at one by one or as a histogram."""
    from qlab.plots.study import values_of

    return values_of(_tensor, _axis, channel)


@st.cache_resource(max_entries=256, show_spinner="Working out the ranges")
def studied(key: str, spec: str, channel: int | None, _tensor: Any, _spec: QuantSpec, _axis: int) -> Study:
    """What every observer gives. spec: the spec in words, for the key."""
    from qlab.plots.study import study

    return study(_tensor, _spec, _axis, channel)


@st.cache_resource(max_entries=64, show_spinner="Working out the channels")
def channels(
    key: str, spec: str, ends: Ends | None, _tensor: Any, _spec: QuantSpec, _axis: int
) -> Channels | None:  # fmt: skip
    from qlab.plots.study import channels_of

    return channels_of(_tensor, _spec, _axis, ends)


def spec_key(spec: QuantSpec) -> str:
    return repr(spec.to_dict())


# --- what is shown ----------------------------------------------------------------------------------------------------


def window(found: Study, shown: Values) -> Window:
    """The part of the value axis that is drawn; a range that is set by hand does not move it."""
    return shown.window(found.ranges, st.session_state.get("dist.zoom", "auto"))


def picture(
    entry: Entry, tensor: Tensor, found: Study, shown: Values, seen: Window, axis: int, channel: int | None,
    **on_select: Any,
) -> None:  # fmt: skip
    """Brackets, histogram, grid and error in one chart. on_select: for st.plotly_chart, to drag over it."""
    from qlab.plots.distribution import distribution_figure
    from qlab.plots.drag import draggable
    from qlab.plots.study import dequantized_bins, error_in

    view = st.session_state
    known = found.chosen.error is not None
    figure = distribution_figure(
        shown.bins(seen),
        seen,
        found.brackets,
        found.clipped,
        error_in(tensor, found, seen, axis, channel) if known else None,
        found.grid,
        dark=widgets.dark(),
        quantity=f"value of {entry.tensor}" + (f", channel {channel}" if channel is not None else ""),
        zeros=shown.zeros,
        values=shown.count,
        logarithmic=view.get("dist.log", False),
        dequantized=dequantized_bins(tensor, found, seen, axis, channel) if view.get("dist.overlay", False) else None,
        no_grid=_no_grid(found),
        no_error="a calibration keeps the range of each channel, not its values: the error is known per tensor only",
        revision=entry.tensor,
    )
    chosen = found.chosen
    widgets.chart(
        draggable(figure, widgets.dark(), view.get(by_hand.TURN, 0)) if on_select else figure,
        key="dist_picture",
        alt=f"Distribution of {entry.tensor}: the range {'of ' if found.ends is None else ''}{chosen.observer} goes "
        f"from {three_digits(chosen.low.min())} to {three_digits(chosen.high.max())}, "
        f"SQNR {write('sqnr', chosen.sqnr)}.",
        **on_select,
    )


def _no_grid(found: Study) -> str:
    return f"one grid for each {'group' if found.spec.granularity == 'group' else 'channel'}"


def headline(found: Study) -> None:
    """The figures of the chosen observer; of a range that was set by hand, beside those of the observer."""
    figures = _figures_of(found.chosen, found.spec)
    if found.ends is not None:
        beside = _figures_of(found.observed, found.spec)
        figures = [(*f[:2], f"observer {other[1]}", f[3]) for f, other in zip(figures, beside, strict=True)]
    label, value, _, text = figures[0]
    figures[0] = label, value, _behind(found), text
    # Not in columns: these wrap into a second row on a narrow page, where columns cut the numbers off.
    with st.container(horizontal=True, gap="small"):
        for width, (label, value, note, text) in zip(WIDTHS, figures, strict=True):
            st.metric(label, value, note, delta_color="off", delta_arrow="off", help=text, width=width)


def _figures_of(line: Line, spec: QuantSpec) -> list[Figure]:
    error = line.error
    clipped, energy = (error.clipped_share, error.clipped_energy_share) if error else (None, None)
    shares = [error.roundoff / error.noise, error.clip / error.noise] if error and error.noise > 0 else [None, None]
    return [
        (metric("sqnr").label, write("sqnr", line.sqnr), None, metric("sqnr").help),
        (
            metric("clipped").label,
            write("clipped", clipped),
            None if energy is None else f"{write('clipped', energy)} of the energy",
            metric("clipped").help,
        ),
        (
            metric("roundoff_error").label,
            write("roundoff_error", shares[0]),
            f"clip {write('clip_error', shares[1])}",
            f"{metric('roundoff_error').help} A wider range rounds more, a narrower one clips more.",
        ),
        (
            metric("levels").label,
            write("levels", error.levels_used if error else None),
            f"of {spec.quant_max - spec.quant_min + 1:,}",
            metric("levels").help,
        ),
        _scale_figure(line),
        (
            metric("zero_point").label,
            _span(line.zero_point, "zero_point"),
            f"codes {write('zero_point', spec.quant_min)} … {write('zero_point', spec.quant_max)}",
            metric("zero_point").help,
        ),
    ]


def _behind(found: Study) -> str | None:
    """How the SQNR compares: of an observer with the best of all, of a range by hand with the observer's."""
    line, other = found.chosen, found.observed
    if found.ends is None:
        other = max(found.lines.values(), key=lambda o: -math.inf if o.sqnr is None else o.sqnr)
    if line.sqnr is None or other.sqnr is None or not math.isfinite(other.sqnr):
        return None
    if found.ends is None and line.sqnr >= other.sqnr - 0.05:
        return "best of all here"
    if round(line.sqnr - other.sqnr, 1) == 0:
        return f"as {other.observer}"
    way = "above" if line.sqnr > other.sqnr else "below"
    return f"{write('sqnr', abs(line.sqnr - other.sqnr))} {way} {other.observer}"


def _span(numbers: Any, key: str) -> str:
    low, high = numbers.min(), numbers.max()
    return write(key, low) if low == high else f"{write(key, low)} … {write(key, high)}"


def _scale_figure(line: Line) -> Figure:
    entry = metric("scale")
    if line.scale.size == 1:
        return entry.label, write("scale", line.scale[0]), "one for all values", entry.help
    return "Scales", f"{line.scale.size:,}", _span(line.scale, "scale"), entry.help


def observer_table(entry: Entry, found: Study) -> None:
    """One line for each observer; a click chooses it."""
    import pandas as pd

    names = list(found.lines)
    rows = [
        {
            "Observer": name,
            "Low": _span(line.low, "low"),
            "High": _span(line.high, "high"),
            "Scale": _span(line.scale, "scale"),
            "Zero point": _span(line.zero_point, "zero_point"),
            "SQNR": write("sqnr", line.sqnr),
            "Clipped": write("clipped", line.error.clipped_share if line.error else None),
            "Levels used": write("levels", line.error.levels_used if line.error else None),
            "What it does": _rule(name),
        }
        for name, line in found.lines.items()
    ]
    chosen: Any = {"selection": {"rows": [names.index(found.chosen.observer)], "columns": [], "cells": []}}
    # Another table where there is one line more: told at once of that line and that it is chosen, a browser may keep
    # the old choice, and report it as a click at the next chance.
    key = "dist_table" if found.ends is None else "dist_table_hand"
    if st.session_state.get(key, chosen)["selection"]["rows"] != chosen["selection"]["rows"]:
        st.session_state[key] = chosen

    def clicked() -> None:
        _choose_row(entry, found, names, st.session_state[key]["selection"]["rows"])

    st.dataframe(
        pd.DataFrame(rows),
        key=key,
        hide_index=True,
        width="stretch",
        on_select=clicked,
        selection_mode="single-row-required",
        selection_default=chosen,
        column_config={"What it does": st.column_config.TextColumn(width="large")},
    )


def _choose_row(entry: Entry, found: Study, names: list[str], rows: list[int]) -> None:
    if not rows or names[rows[0]] == found.chosen.observer:
        return
    if found.ends is not None:
        by_hand.take_off(entry)
    if names[rows[0]] != found.spec.observer:
        trial.change(entry, found.spec, observer=names[rows[0]], observer_args={})


def _rule(name: str) -> str:
    return OBSERVERS[name].summary if name in OBSERVERS else "Takes the ends that were set here."


def channel_panel(entry: Entry, found: Channels | None, study: Study, channel: int | None) -> None:
    """The ranges of the channels; of a weight, a click or the box shows one channel in the picture above."""
    from qlab.plots.channels import channel_figure

    if found is None:
        say.caption("This tensor has no channels: it is one row of values.")
        return
    is_weight = entry.role == "weight"
    count = len(found.minimum)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        widgets.kept(
            st.segmented_control,
            "Order",
            (False, True),
            value=st.session_state.get("dist.ranked", False),
            required=True,
            store=lambda new: st.session_state.__setitem__("dist.ranked", new),
            key="dist_ranked",
            format_func=lambda ranked: "widest first" if ranked else "in order",
            help="Widest first shows how unequal the channels are; in order finds a channel by its number.",
        )
        if is_weight:
            widgets.kept(
                st.selectbox,
                "Channel in the picture",
                # A word and not None, which the box would take for nothing chosen.
                [ALL, *range(count)],
                value=ALL if channel is None else channel,
                store=lambda new: st.session_state.__setitem__("dist.channel", None if new == ALL else new),
                key="dist_channel",
                format_func=lambda c: c if c == ALL else f"channel {c}",
                width=220,
                help="Shows the values of one channel under the scale it gets; a click on a bar does the same.",
            )
    suffering = int(found.suffers.sum())
    shares = study.spec.granularity == "tensor"
    line = study.chosen
    made = channel_figure(
        found,
        dark=widgets.dark(),
        shared=(float(line.low.min()), float(line.high.max())) if shares else study.ends,
        shared_name="one range for all" if study.ends is None else "set by hand" if shares else "each is cut to",
        chosen=channel,
        ranked=st.session_state.get("dist.ranked", False),
        quantity="value",
        revision=entry.tensor,
    )
    widgets.chart(
        made,
        key=f"dist_channels_{entry.role}",
        alt=f"Ranges of {count} channels of {entry.tensor}; {suffering} lose two bits or more to sharing a grid.",
        **({"on_select": _click_channel, "selection_mode": "points"} if is_weight else {}),
    )
    say.caption(_channel_words(found, shares, suffering, is_weight) + _cut_words(found, study))


def _channel_words(found: Channels, shares: bool, suffering: int, is_weight: bool) -> str:
    count = len(found.minimum)
    if not shares:
        return "Every channel has a range of its own here, so none pays for another's."
    if not suffering:
        return f"None of the {count:,} channels loses two bits (12 dB) or more to sharing one grid."
    loses = "loses two bits (12 dB) or more" if is_weight else "uses less than a quarter of the shared range"
    return f"**{suffering:,} of {count:,}** channels: each {loses}. A scale for each channel gives that back."


def _cut_words(found: Channels, study: Study) -> str:
    """How many channels a range by hand cuts."""
    if study.ends is None:
        return ""
    cut = int(((found.minimum < study.ends[0]) | (found.maximum > study.ends[1])).sum())
    return f" The range by hand cuts **{cut:,} of {len(found.minimum):,}** channels."


def _click_channel() -> None:
    points = st.session_state["dist_channels_weight"]["selection"]["points"]
    if points and points[0].get("customdata") is not None:
        clicked = points[0]["customdata"]
        st.session_state["dist.channel"] = int(clicked[0] if isinstance(clicked, list) else clicked)


def how_computed(found: Study) -> None:
    """The formulas with the numbers of this tensor."""
    spec, line = found.spec, found.chosen
    if line.scale.size > 1:
        say.markdown(
            f"Every {spec.granularity} has a scale and a zero point of its own, {line.scale.size:,} of each, by "
            f"the rule **{found.observed.observer}**: {_rule(found.observed.observer)}"
            + ("" if found.ends is None else f" Each range is then cut to {by_hand.span(found.ends)}, set by hand.")
        )
        return
    scale, zero, low, high = float(line.scale[0]), int(line.zero_point[0]), float(line.low[0]), float(line.high[0])
    value = 0.37 * (high if abs(high) >= abs(low) else low)
    code = min(max(round(value / scale) + zero, spec.quant_min), spec.quant_max)
    say.markdown(
        f"1. **{line.observer}** picks the range. {_rule(line.observer)}\n"
        f"2. The range is laid on the codes {spec.quant_min:,} … {spec.quant_max:,} so that 0 lies exactly on one: "
        f"scale = `{scale:.6g}`, zero point = `{zero}`. The grid then reaches from `{low:.6g}` to `{high:.6g}`.\n"
        f"3. A value becomes a code: `clamp(round(x / {scale:.6g}) + {zero}, {spec.quant_min}, {spec.quant_max})`; "
        f"and back: `(code − {zero}) × {scale:.6g}`.\n"
        f"4. For example x = `{value:.6g}` gets the code `{code}` and comes back as `{(code - zero) * scale:.6g}`, "
        f"an error of `{(code - zero) * scale - value:.2g}`."
    )
