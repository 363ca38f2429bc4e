"""Lesson 3: values with outliers, the range each observer gives them, and calibrations that saw too little."""

from collections.abc import Mapping

import streamlit as st

from qlab.lessons import observers
from qlab.lessons.observers import Looked, Ranged
from qlab.metrics import percent, write
from qlab.plots.lessons.observers import by_bits, by_samples, table, under_observers, values_alone
from qlab.ui import lesson, widgets

EXPLAIN = """
An **observer** is a rule: it looks at values and says from where to where the grid should reach.

- **min_max** takes the smallest and the largest value. Nothing is clipped.
- **percentile** leaves out a fixed share at the ends, however far out it lies.
- **mse** takes the range with the least squared error, of round-off inside and clipping outside together.
- **entropy** takes the range after which the histogram looks most like the one before. A few far values hardly change
  a histogram, so it gives them up early.
"""
SHARES = {"most": "more than half of them", "some": "a fifth to a half", "few": "less than a fifth"}
CLIPPED = {"none": "none or next to none: under 0.1 %", "some": "0.1 % to 1 %", "many": "more than 1 %"}
VIEWS = {"ranges": "Ranges and error", "table": "All observers", "bits": "Every number of bits"}
SAME = 0.1  # dB; what is closer is not called a difference
NAMES = {name: name for name in observers.OBSERVERS}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "How far should the grid reach?",
        "These are real weights of a small network, and you can pull some of them far out. The range of the grid is a "
        "choice between two errors: a wide one rounds all values more, a narrow one clips the farthest.",
        explain=EXPLAIN,
        terms=("observer", "outlier", "clipping", "round-off", "SQNR"),
    )
    page.part(outliers)
    page.part(little_data)
    page.yours(
        "lab", "distributions", "Distributions", "The ranges of all observers over the values of each of your layers."
    )
    page.yours(
        "diagnose", "stability", "Stability", "How much your scales and accuracy hang on which samples calibrated them."
    )


def outliers(page: lesson.Lesson) -> None:
    with page.controls():
        moved = page.scale(
            "outliers", "Outliers", [0, 1, 3, 10, 30, 100], 3, width=140, help="How many weights are moved far out."
        )
        distance = page.slider(
            "distance", "Distance (σ)", 5, 60, 20, width=140,
            help="How far out the outliers lie, in standard deviations of the weights.",
        )  # fmt: skip
        bits = page.slider("bits", "Bits", 2, 8, 4, width=100, help="With more bits the same range has finer steps.")
        chosen = page.choice("observer", "Observer", NAMES, "min_max", help="Whose grid and error are drawn.")
        kept = page.scale(
            "percentile", "Percentile (%)", [95.0, 99.0, 99.9, 99.99], observers.PERCENTILE, width=140,
            help="The share of the values that the observer percentile keeps inside its range.",
        )  # fmt: skip
    tail = observers.tail(moved, distance)
    every = observers.ranged(moved, distance, bits, kept)
    guess = page.predict(
        f"A grid of {bits} bits has {2**bits} codes. Laid from the smallest to the largest value, how many of them do "
        f"the {len(tail.ordinary):,} ordinary values use?", SHARES,
    )  # fmt: skip
    found = observers.looked(chosen, moved, distance, bits, kept)
    if guess.open:
        answer(page, guess, every, chosen, found, (moved, distance, kept))
    else:
        page.chart(values_alone(found, tail, widgets.dark()), "tail")


def answer(
    page: lesson.Lesson, guess: lesson.Guess, every: Mapping[str, Ranged], chosen: str, found: Looked,
    settings: tuple[int, float, float],
) -> None:  # fmt: skip
    widest, one = every["min_max"].ordinary, every[chosen]
    share = widest.levels_used / widest.levels
    guess.told(
        "most" if share > 0.5 else "some" if share >= 0.2 else "few",
        f"They use {widest.levels_used} of the {widest.levels} codes of min_max.",
    )
    moved, distance, kept = settings
    view = page.choice("view", "Show", VIEWS, "ranges", help="Three looks at the same values and ranges.")
    if view == "ranges":
        page.chart(under_observers(found, every, chosen, widgets.dark()), "ranges")
    elif view == "table":
        page.text(table(every))
    else:
        with st.spinner("Ranging at every number of bits"):
            lines = [observers.ranged(moved, distance, b, kept) for b in observers.BITS]
        page.chart(by_bits(observers.BITS, lines, chosen, widgets.dark()), "curve")
    error = one.error
    widgets.figures(
        [
            ("SQNR of all values", write("sqnr", error.sqnr), one.observer, "Signal over error of all values."),
            ("SQNR of the ordinary", write("sqnr", one.ordinary.sqnr), "without the outliers",
             "The same, of the values that were not moved."),
            ("Clipped", percent(error.clipped_share), None, "Share of the values outside the range."),
            ("Error by clipping", percent(error.clip / error.noise if error.noise else 0.0), "the rest is round-off",
             "Share of the squared error that is made outside the range."),
            ("Codes used by the ordinary", f"{one.ordinary.levels_used} of {one.ordinary.levels}", None,
             "Codes that at least one of the values that were not moved takes."),
        ]
    )  # fmt: skip
    page.notice(who_wins(every, moved))


def who_wins(every: Mapping[str, Ranged], outliers: int) -> str:
    """What is best for all values, what for the ordinary ones, and whether that is the same."""
    best = max(every.values(), key=lambda one: one.error.sqnr)
    plain = max(every.values(), key=lambda one: one.ordinary.sqnr)
    widest = every["min_max"]
    if best.error.sqnr - widest.error.sqnr < SAME:
        best = widest
        text = f"Of all values, none has a higher SQNR than min_max with {write('sqnr', widest.error.sqnr)}. "
    else:
        text = (
            f"Of all values, {best.observer} has the highest SQNR, {write('sqnr', best.error.sqnr)}; min_max has "
            f"{write('sqnr', widest.error.sqnr)}. "
        )
    if not outliers:
        return text + "Without outliers the observers differ by what the ends of the bell are worth to each."
    if plain.ordinary.sqnr - best.ordinary.sqnr < SAME:
        return text + "It is also the best for the ordinary values alone, so here nobody has to choose."
    return text + (
        f"For the ordinary values alone it is {plain.observer}, {write('sqnr', plain.ordinary.sqnr)} against "
        f"{write('sqnr', best.ordinary.sqnr)} with {best.observer}: squared error weighs one far value as much as "
        "very many near ones. Which of the two matters to the network only an evaluation says."
    )


def little_data(page: lesson.Lesson) -> None:
    page.section("How much data does a calibration need?")
    page.text(
        "A weight is known. What a layer gives is only seen while some images run through the network, and the range "
        "has to hold for images that come later. Here conv_digits is calibrated on 1, 2, 4 … images, on "
        f"{observers.FEW_BITS} bits, and each range is held against the images of the evaluation, which it never saw."
    )
    with page.controls("data"):
        tensor = page.choice(
            "values", "Values", observers.TENSORS, "classifier", help="Whose range is taken from the images."
        )
        chosen = page.select("rule", "Observer", NAMES, "min_max", width=150, help="The line that is drawn thick.")
        draw = page.scale(
            "draw", "Draw", list(range(1, observers.DRAWS + 1)), 1, width=150,
            help="Another draw: other images of the calibration part come first.",
        )  # fmt: skip
    guess = page.predict(
        f"min_max has seen one image. What share of the values of unseen images ({observers.TENSORS[tensor]}) lies "
        "outside its range?", CLIPPED, name="data_guess",
    )  # fmt: skip
    if not guess.open:
        return
    with st.spinner("Calibrating on 1, 2, 4 … images, several times over"):
        observers.prepare()
        found = observers.learned(tensor, draw)
    reach, most = found.by_observer["min_max"], observers.COUNTS[-1]
    first = float(reach.clipped[0])
    guess.told(
        "none" if first < 0.001 else "some" if first <= 0.01 else "many",
        f"After one image {percent(first)} of the values of {found.evaluation:,} images are clipped, after {most} "
        f"{percent(float(reach.clipped[-1]))}. Another draw gives another number.",
    )
    page.chart(by_samples(found, chosen, widgets.dark()), "samples")
    one = found.by_observer[chosen]
    enough = next(n for n, sqnr in zip(observers.COUNTS, one.sqnr, strict=True) if sqnr >= one.sqnr[-1] - 1)
    widgets.figures(
        [
            ("SQNR after one image", write("sqnr", float(one.sqnr[0])), chosen, "On the values of unseen images."),
            (f"SQNR after {most}", write("sqnr", float(one.sqnr[-1])), chosen, "On the same values."),
            ("Within 1 dB of that from", f"{enough} image{'s' if enough > 1 else ''}", None,
             "The smallest number of images from which on the range is about as good as with all."),
        ]
    )  # fmt: skip
    early = observers.clipped_early(tensor)
    page.notice(
        f"Over {observers.DRAWS} draws, min_max after one image clips between "
        f"{percent(min(early))} and {percent(max(early))} of these values: with so little data the range is luck. The "
        "range of min_max can only grow with more images; it is never wider than what came by.",
        name="second_notice",
    )


lesson.show("observers", draw)
