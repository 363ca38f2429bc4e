"""Distributions: where the values of a tensor fall, what range each observer gives it, and what that costs."""

import streamlit as st

from qlab.metrics import three_digits
from qlab.ui import by_hand, cache, distributions, errors, frame, hand_controls, hand_run, say, state, trial, widgets

EXPLAIN = """
**Reading the picture.** The blue shape counts the values. The bars above it are the ranges of all observers, with the
SQNR each gives; the chosen one is thick, and its ends run down through the picture. What lies outside is clipped and
shaded. The ticks below are the grid: every value moves to the nearest one. The lowest panel shows which values make the
error: violet by rounding inside the range, red-orange by clipping outside.

**Trying.** Take the bits down to 4 and watch the grid appear. Go from min_max to mse: the range shrinks, a few values
are clipped, and the SQNR rises because all others are rounded less.

**A range by hand.** Drag over the picture, or move the handles under it. The range then counts as the chosen one, and
all figures are its own, beside those of the observer. A run measures the accuracy with it. Zooming is a button above
the picture.
"""


@st.fragment
def bench() -> None:
    """Everything on the page, so that a change reruns this alone and the link under Share stays right."""
    by_hand.begin()
    frame.header(
        "Where do the values fall?",
        "Every observer's range over the real values at once. Change the observer or the bits, or drag a range of "
        "your own, and see what is rounded and what is clipped.",
        explain=EXPLAIN,
        terms=("observer", "qscheme", "scale", "zero point", "grid", "round-off", "clipping", "SQNR", "per channel"),
        **by_hand.share_params(),
    )
    with errors.box():
        trial.take_result_of_use()
        model = cache.network(state.model_ref())
        known = trial.tensors(model)
        entry = trial.chosen_entry(known)
        spec = trial.draft(entry)
        trial.controls(known, entry, spec)
        tensor, key = distributions.load(model, known, entry)
        if tensor is not None:
            look(entry, spec, tensor, key)


def look(entry, spec, tensor, key) -> None:
    distributions.one_thread()
    axis = entry.axis or 0
    channel = st.session_state.get("dist.channel") if entry.role == "weight" else None
    words = distributions.spec_key(spec)
    light = distributions.lighter(tensor, key, spec, channel)
    shown = distributions.values(key, channel, type(light).__name__, light, axis)
    trial.config_line(entry, spec, about(entry, tensor, shown, channel))
    found = distributions.studied(key, words, channel, light, spec, axis)
    seen = distributions.window(found, shown)
    if (ends := by_hand.ends_for(entry, spec)) is not None:
        found = by_hand.studied(key, words, channel, ends, found, light, axis)
    dragged = hand_controls.on_picture(entry, spec, found, seen)
    distributions.picture(entry, light, found, shown, seen, axis, channel, **dragged)
    hand_controls.controls(entry, spec, found, shown, seen)
    distributions.headline(found)
    hand_run.panel(entry, ends)
    if entry.fixed:
        say.caption(f"The output of {entry.fixed} has a range that is known without data, and a run uses that one.")

    def channels() -> None:
        by_channel = distributions.channels(key, words, ends, tensor, spec, axis)
        distributions.channel_panel(entry, by_channel, found, channel)

    places = {
        "Observers": lambda: distributions.observer_table(entry, found),
        "Channels": channels,
        "How it is computed": lambda: distributions.how_computed(found),
    }
    widgets.tabs(places, key="dist_tabs")


def about(entry, tensor, shown, channel) -> str:
    """One line on what is looked at."""
    shape = " × ".join(str(n) for n in tensor.shape) if entry.role == "weight" else ""
    ends = f"{three_digits(shown.minimum)} … {three_digits(shown.maximum)}".replace("-", "−")
    seen = "" if entry.role == "weight" or tensor.sampled == tensor.count else f" ({tensor.sampled:,} sampled)"
    parts = [
        f"**{errors.escape(entry.tensor)}**",
        shape,
        f"channel {channel}" if channel is not None else "",
        f"{shown.count:,.0f} values{seen}",
        ends,
    ]
    return " · ".join(part for part in parts if part)


bench()
