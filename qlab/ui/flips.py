"""The samples whose prediction changed, drawn so that a person can judge whether the change matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st

from qlab.ui import cards, errors, say

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
    data: Dataset, before: Evaluation, after: Evaluation, indices: Sequence[int], most: int = MOST
) -> list[Flip]:
    """The flips at these indices, which count predictions in evaluation order. data: the evaluation part.

    One of the two may have been ended early: indices are then of the samples that both have seen.
    """
    assert before.predictions is not None
    assert after.predictions is not None
    each = before.predictions.shape[1:]
    positions = int(np.prod(each)) if each else 1
    said_before, said_after = before.predictions.ravel(), after.predictions.ravel()
    labels = None if data.targets is None else data.targets.ravel()

    def name(number: int) -> str:
        return data.class_names[number] if data.class_names else str(number)

    return [
        Flip(
            i // positions,
            i % positions if positions > 1 else None,
            None if labels is None else name(int(labels[i])),
            name(int(said_before[i])),
            name(int(said_after[i])),
        )
        for i in indices[:most]
    ]


def draw(
    data: Dataset,
    before: Evaluation,
    after: Evaluation,
    comparison: Comparison,
    *,
    names: tuple[str, str] = ("float", "quantized"),
    key: str = "exp_flips",
) -> None:
    """Lost, gained and otherwise changed predictions, with a few examples of each. names: of the two, in that order."""
    decided = {*comparison.lost_indices, *comparison.gained_indices}
    other = [i for i in comparison.changed_indices if i not in decided]
    labelled = comparison.p is not None
    first, second = map(errors.escape, names)
    groups = [
        (f"Lost: {first} was right, {second} is wrong", comparison.lost_indices, "lost"),
        (f"Gained: {first} was wrong, {second} is right", comparison.gained_indices, "gained"),
        ("Changed from one wrong answer to another" if labelled else "Changed", other, "changed"),
    ]
    if not comparison.changed:
        say.caption(f"No prediction changed: both say the same on all {comparison.n:,}.")
        return
    say.caption(f"Under each example: what {first} says → what {second} says.")
    for title, indices, group in groups:
        if not indices:
            continue
        more = f", {MOST} of them shown" if len(indices) > MOST else ""
        say.markdown(f"**{title}** – {len(indices):,}{more}")
        _draw(data, flips_of(data, before, after, indices), names, f"{key}_{group}")


def _draw(data: Dataset, found: list[Flip], names: tuple[str, str], key: str) -> None:
    first = data.inputs[0]
    if cards.is_image(first):
        samples = first[[flip.sample for flip in found]]
        low, high = float(samples.min()), float(samples.max())
        with st.container(horizontal=True, gap="small"):
            for sample, flip in zip(samples, found, strict=True):
                st.image(cards.picture(sample, low, high), caption=_caption(flip), width=cards.PICTURE)
        return
    before, after = (name[:1].upper() + name[1:] for name in names)
    rows = pd.DataFrame(
        {
            "Sample": [flip.sample for flip in found],
            "Position": [flip.position for flip in found],
            "Label": [flip.label for flip in found],
            before: [flip.before for flip in found],
            after if after != before else f"{after} (2)": [flip.after for flip in found],
            "Input": [_written(data, flip.sample) for flip in found],
        }
    ).dropna(axis=1, how="all")
    st.dataframe(rows, key=key, hide_index=True, width="stretch")


def _caption(flip: Flip) -> str:
    change = f"{flip.before} → {flip.after}"
    return change if flip.label in (None, flip.before, flip.after) else f"{change} (is {flip.label})"


def _written(data: Dataset, sample: int) -> str:
    first = data.inputs[0][sample]
    words = cards.vocabulary(data) if data.is_tokens(0) else None
    if words:
        return "".join(words[token] for token in first)
    values = first.ravel()[:VALUES]
    more = " …" if first.size > VALUES else ""
    return ", ".join(f"{value:.3g}" for value in values) + more
