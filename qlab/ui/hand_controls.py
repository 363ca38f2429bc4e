"""The controls that set a range by hand: the picture to drag over, the slider under it, and the fields.

All of them change one pair of numbers, which `by_hand` keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.config import QuantSpec
from qlab.ui import by_hand, hand_run, say, state, widgets
from qlab.ui.tensors import Entry

if TYPE_CHECKING:
    from qlab.plots.bins import Window
    from qlab.plots.study import Ends, Study, Values

STEPS = 500  # of the slider, from end to end


# --- what the slider runs over ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Track:
    """What the slider runs over. digits: behind the point."""

    low: float
    high: float
    step: float
    digits: int

    @property
    def format(self) -> str:
        return f"%.{self.digits}f" if self.digits <= 6 else "%.2e"

    def snapped(self, value: float) -> float:
        """On a step of the slider, and on the slider."""
        return round(min(max(round(value / self.step) * self.step, self.low), self.high), self.digits)


def track(low: float, high: float) -> Track:
    """Steps of 1, 2 or 5 in the last place, at least STEPS of them from end to end."""
    step, digits = round_step((high - low) / STEPS)
    first, last = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
    return Track(round(first, digits), round(last, digits), step, digits)


def round_step(largest: float) -> tuple[float, int]:
    """The largest of 1, 2, 5 times a power of ten that is no larger, and its digits behind the point."""
    power = math.floor(math.log10(largest))
    times = max(n for n in (1, 2, 5) if n * 10.0**power <= largest * (1 + 1e-9))
    digits = max(0, -power)
    return round(times * 10.0**power, digits), digits


# --- drawing ----------------------------------------------------------------------------------------------------------


def on_picture(entry: Entry, spec: QuantSpec, found: Study, seen: Window) -> dict[str, Any]:
    """What makes the picture one to drag over, for st.plotly_chart; nothing where no range can be set."""
    if by_hand.refusal(entry, spec) is not None:
        return {}
    return {"on_select": lambda: _dragged(entry, spec, found, seen), "selection_mode": "box"}


def _dragged(entry: Entry, spec: QuantSpec, found: Study, seen: Window) -> None:
    boxes = st.session_state["dist_picture"]["selection"]["box"]
    if not boxes:  # a click beside the picture, or a second click, which marks nothing
        return
    low, high = sorted(float(x) for x in boxes[-1]["x"])
    # As fine as the eye can see, and no finer: the ends are to be read and typed.
    _, digits = round_step((seen.high - seen.low) / 1000)
    by_hand.set_ends(entry, spec, (round(low, digits), round(high, digits)), found.ends or _observed(found))


def _observed(found: Study) -> Ends:
    return float(found.observed.low.min()), float(found.observed.high.max())


def controls(entry: Entry, spec: QuantSpec, found: Study, shown: Values, seen: Window) -> None:
    """The slider under the picture, in line with it, and a row: exact ends, what is set, keep and remove."""
    why = by_hand.refusal(entry, spec)
    if why is not None:
        say.caption(why)
        return
    now = found.ends or _observed(found)
    _slider(entry, spec, found, shown, seen, now)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="dist_hand"):
        _exact(entry, spec, seen, now)
        words, text = _words(entry, found)
        say.markdown(words, width="stretch", help=text)
        if found.ends is not None:
            _buttons(entry, found.ends)
    if note := st.session_state.pop(by_hand.NOTE, None):
        say.caption(note)


def _slider(entry: Entry, spec: QuantSpec, found: Study, shown: Values, seen: Window, now: Ends) -> None:
    from qlab.plots.distribution import LEFT, RIGHT

    first, last = _observed(found)
    low, high = max(seen.low, min(shown.minimum, first, 0.0)), min(seen.high, max(shown.maximum, last, 0.0))
    if not high > low:
        return
    run = track(low, high)
    value = run.snapped(now[0]), run.snapped(now[1])
    key = "dist_hand_slider"

    def moved(new: Ends) -> None:
        # An end that was not moved stays as exact as it was.
        ends = tuple(old if end == at else end for end, at, old in zip(new, value, now, strict=True))
        by_hand.set_ends(entry, spec, ends, now)  # type: ignore[arg-type]

    width = seen.high - seen.low
    before, after = (max(part / width, 0.001) for part in (run.low - seen.low, seen.high - run.high))
    # As far from both sides as the axis of the picture, so that each handle stands under the end it moves.
    with st.container(horizontal=True, gap=None, key="dist_hand_track"):
        st.space(LEFT)
        with st.container(width="stretch"):
            _, place, _ = st.columns([before, 1 - before - after, after], gap=None)
        st.space(RIGHT)
    with place:
        widgets.kept(
            st.slider,
            "Range",
            run.low,
            run.high,
            value=value,
            step=run.step,
            format=run.format,
            store=moved,
            key=key,
            label_visibility="collapsed",
        )


def _exact(entry: Entry, spec: QuantSpec, seen: Window, now: Ends) -> None:
    box = st.popover(
        "Exact ends",
        key="dist_exact",
        on_change="rerun",
        help="Sets both ends to the digit, also beyond what is drawn. Dragging over the picture sets both at once.",
    )
    if not box.open:
        return
    step = round_step((seen.high - seen.low) / STEPS)[0]
    with box:
        for place, label in enumerate(("Lowest value", "Highest value")):

            def store(new: float | None, place: int = place) -> None:
                if new is not None:
                    ends = (new, now[1]) if place == 0 else (now[0], new)
                    by_hand.set_ends(entry, spec, ends, now)

            widgets.kept(
                st.number_input,
                label,
                value=float(f"{now[place]:.6g}"),
                step=step,
                format="%.6g",
                store=store,
                key=f"dist_hand_{('low', 'high')[place]}",
                help="Below it every value becomes the lowest code." if place == 0
                else "Above it every value becomes the highest code.",
            )  # fmt: skip


def _words(entry: Entry, found: Study) -> tuple[str, str | None]:
    """What the range is and where it holds, and what it means for this grid."""
    if found.ends is None:
        return ":gray[Drag over the picture or move the handles to set a range by hand.]", None
    held = state.mapping().ranges.get(entry.tensor)
    where = "tried here" if held is None else "in the config" if held == found.ends else f"config {by_hand.span(held)}"
    means = ["The grid is symmetric, so both ends are as far from zero."] if found.spec.symmetric else []
    if found.qparams.scale.ndim:
        means.append(f"Each {found.spec.granularity} keeps a range of its own, cut to this one.")
    return f"**By hand** {by_hand.span(found.ends)} · {where}", " ".join(means) or None


def _buttons(entry: Entry, ends: Ends) -> None:
    blocked = by_hand.idle(entry)
    hand_run.button(entry, ends, blocked)
    same = state.mapping().ranges.get(entry.tensor) == ends
    st.button(
        "In the config" if same else "Keep in the config",
        key="dist_hand_keep",
        disabled=same or blocked is not None,
        on_click=by_hand.keep,
        args=(entry, ends),
        help=blocked or "Every run of this config then lays the grid of this tensor over this range.",
    )
    st.button(
        "Remove",
        key="dist_hand_remove",
        on_click=by_hand.remove,
        args=(entry,),
        help="Goes back to the range of the observer, here and in the config.",
    )
