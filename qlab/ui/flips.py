"""The samples whose prediction changed, drawn so that a person can judge whether the change matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from qlab.ui import cards

if TYPE_CHECKING:
    from qlab.data import Dataset
    from qlab.evaluation import Comparison, Evaluation

MOST = 10
VALUES = 8  # of a row of numbers


@dataclass(frozen=True)
class Flip:
    """One prediction that changed. position: in a sequence, None where a sample has one prediction."""

    sample: int
    position: int | None
    label: str | None
    before: str
    after: str


def flips_of(
    data: Dataset, reference: Evaluation, quantized: Evaluation, indices: Sequence[int], most: int = MOST
) -> list[Flip]:
    """The flips at these indices, which count predictions in evaluation order. data: the evaluation part."""
    assert reference.predictions is not None
    assert quantized.predictions is not None
    each = reference.predictions.shape[1:]
    positions = int(np.prod(each)) if each else 1
    before, after = reference.predictions.ravel(), quantized.predictions.ravel()
    labels = None if data.targets is None else data.targets.ravel()

    def name(number: int) -> str:
        return data.class_names[number] if data.class_names else str(number)

    return [
        Flip(
            i // positions,
            i % positions if positions > 1 else None,
            None if labels is None else name(int(labels[i])),
            name(int(before[i])),
            name(int(after[i])),
        )
        for i in indices[:most]
    ]


def draw(data: Dataset, reference: Evaluation, quantized: Evaluation, comparison: Comparison) -> None:
    """Lost, gained and otherwise changed predictions, with a few examples of each."""
    decided = {*comparison.lost_indices, *comparison.gained_indices}
    other = [i for i in comparison.changed_indices if i not in decided]
    labelled = comparison.p is not None
    groups = [
        ("Lost: float was right, quantized is wrong", comparison.lost_indices, "exp_flips_lost"),
        ("Gained: float was wrong, quantized is right", comparison.gained_indices, "exp_flips_gained"),
        ("Changed from one wrong answer to another" if labelled else "Changed", other, "exp_flips_changed"),
    ]
    if not comparison.changed:
        st.caption("No prediction changed: both networks say the same on every evaluation sample.")
        return
    st.caption("Under each example: what float says → what the quantized network says.")
    for title, indices, key in groups:
        if not indices:
            continue
        more = f", {MOST} of them shown" if len(indices) > MOST else ""
        st.markdown(f"**{title}** – {len(indices):,}{more}")
        _draw(data, flips_of(data, reference, quantized, indices), key)


def _draw(data: Dataset, found: list[Flip], key: str) -> None:
    first = data.inputs[0]
    if cards._is_image(first):
        samples = first[[flip.sample for flip in found]]
        low, high = float(samples.min()), float(samples.max())
        with st.container(horizontal=True, gap="small"):
            for sample, flip in zip(samples, found, strict=True):
                st.image(cards._picture(sample, low, high), caption=_caption(flip), width=cards.PICTURE)
        return
    rows = pd.DataFrame(
        {
            "Sample": [flip.sample for flip in found],
            "Position": [flip.position for flip in found],
            "Label": [flip.label for flip in found],
            "Float": [flip.before for flip in found],
            "Quantized": [flip.after for flip in found],
            "Input": [_written(data, flip.sample) for flip in found],
        }
    ).dropna(axis=1, how="all")
    st.dataframe(rows, key=key, hide_index=True, width="stretch")


def _caption(flip: Flip) -> str:
    change = f"{flip.before} → {flip.after}"
    return change if flip.label in (None, flip.before, flip.after) else f"{change} (is {flip.label})"


def _written(data: Dataset, sample: int) -> str:
    first = data.inputs[0][sample]
    words = cards._vocabulary(data) if data.is_tokens(0) else None
    if words:
        return "".join(words[token] for token in first)
    values = first.ravel()[:VALUES]
    more = " …" if first.size > VALUES else ""
    return ", ".join(f"{value:.3g}" for value in values) + more
