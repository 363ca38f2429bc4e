"""What edited numbers do to the output of the layer and to the answers of the network, computed while one looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import metric, percent, three_digits, write
from qlab.ui import cache, errors, say, state, widgets

if TYPE_CHECKING:
    from qlab.analysis.edited import EditEffect
    from qlab.ui.weights_source import Shown

SAMPLES, BATCH = 128, 32
MOST_NAMED = 8  # channels


def draw(shown: Shown) -> None:
    """The change of the layer that is shown, channel by channel, and of the predictions."""
    from qlab.plots.weight_edits import change_by_channel

    say.markdown(f"**What this does to the output of {errors.escape(shown.layer)}**")
    try:
        found = effect(shown)
    except QLabError as refused:  # the rest of the tab has its own answers, and the way back
        errors.show(refused)
        return
    if all(edit.tensor != shown.layer or edit.of != "weight" for edit in shown.edits):
        say.caption("No number of this layer's weight is edited: what changes here comes from the edits elsewhere.")
    say.markdown(sentence(found))
    widgets.figures(
        [
            (
                "SQNR of the output", write("sqnr", found.sqnr), "against the unedited one",
                "Signal to noise of this output, the difference to the unedited model taken as noise: it is ∞ where "
                "nothing differs.",
            ),
            (
                "Largest change", three_digits(found.largest), _in_steps(found),
                "The number of this output that moves farthest, in the unit of the output.",
            ),
            (
                "Channels changed", f"{len(found.changed_channels):,} of {len(found.channels):,}",
                f"{percent(found.changed / found.values)} of its numbers",
                "Channels of this output in which at least one number differs.",
            ),
            (
                "Predictions changed", f"{found.answered:,} of {found.predicted:,}",
                f"{found.samples:,} samples, simulated",
                "How often the edited model names another class than the unedited one, on the first evaluation "
                "samples.",
            ),
        ]
    )  # fmt: skip
    widgets.chart(change_by_channel(found, widgets.dark()), key="edits_channels")
    say.caption(
        f"Computed just now on the first {found.samples:,} evaluation samples, with the quantized model without edits "
        "as the reference."
    )


def effect(shown: Shown) -> EditEffect:
    """The edited model held against the unedited one. Shared: do not change it. Raises NonFinite."""
    data = cache.dataset(state.data_ref())
    return _effect((*shown.stamp, data.content_hash), shown)


@st.cache_resource(max_entries=16, show_spinner="Running the model with and without the edits")
def _effect(key: tuple[str, ...], _shown: Shown) -> EditEffect:
    from qlab.analysis.edited import edit_effect

    part = cache.dataset(state.data_ref()).evaluation
    part = part.subset(range(min(SAMPLES, len(part))))
    size = _shown.model.fixed_batch or BATCH
    if _shown.model.fixed_batch and len(part) >= size:  # a model of one batch size takes no smaller last one
        part = part.subset(range(len(part) // size * size))
    batches = ((inputs, targets) for _, inputs, targets in part.batches(size))
    return edit_effect(_shown.original, _shown.qmodel, _shown.layer, batches)


def sentence(found: EditEffect) -> str:
    """What came of it, in words."""
    tensor = errors.escape(found.tensor)
    if not found.changed:
        grid = "" if found.step is None else (
            f", or what it makes of them stays below half a step of the grid of {tensor} ({three_digits(found.step)})"
        )  # fmt: skip
        text = f"Not one of the {found.values:,} numbers of {tensor} changes: they do not use what was written{grid}."
    else:
        text = f"{found.changed:,} of the {found.values:,} numbers of {tensor} change, {_channels(found)}."
    if found.answered:
        become = "becomes" if found.answered == 1 else "become"
        return f"{text} Of {found.predicted:,} predictions **{found.answered:,}** {become} another class."
    moved = f", though the output moves by up to {three_digits(found.output)}" if found.output else ""
    return f"{text} None of {found.predicted:,} predictions becomes another class{moved}."


def _channels(found: EditEffect) -> str:
    """Which channels change: all of them by number, or those that change most."""
    changed = [int(channel) for channel in found.changed_channels]
    if len(changed) > MOST_NAMED:
        return f"in {len(changed):,} channels, most in {', '.join(f'{c:,}' for c in changed[:MOST_NAMED])}"
    return f"in channel{'s' * (len(changed) > 1)} {', '.join(f'{c:,}' for c in sorted(changed))}"


def _in_steps(found: EditEffect) -> str:
    if found.step is None:
        return metric("sqnr").format(None) if not found.largest else "on no single grid"
    return f"{three_digits(found.largest / found.step)} steps of its grid"
