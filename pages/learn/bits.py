"""Lesson 5: what one bit costs. SQNR over the bits against 6.02 dB per bit, and accuracy beside it."""

from itertools import pairwise

import streamlit as st

from qlab.lab.grid import Grid
from qlab.lessons import bits as lesson_bits
from qlab.lessons.samples import sample
from qlab.metrics import COMPUTED, MINUS, metric, percent, write
from qlab.plots.lessons import bits as pictures
from qlab.ui import lesson, sweep_setup, widgets

EXPLAIN = """
Rounding moves a value by half a step at most, and one bit more halves the step. The error is then half as large, its
power a quarter: that is 20 log10(2) = 6.02 dB. The rule speaks of rounding alone. What lies beyond the range is
clipped, and that error does not shrink with the step. The rule also takes for granted that the step is small beside the
values; with two or three bits it is not.
"""
WORTH = {"none": "next to nothing", "three": "about 3 dB", "six": "about 6 dB", "twelve": "about 12 dB"}
DECIBEL = {"none": 0.0, "three": 3.0, "six": 6.0, "twelve": 12.0}
ENOUGH = {str(n): f"{n} bits" for n in lesson_bits.NETWORK_BITS} | {"more": "more than 8 bits"}
NETWORKS = {name: name for name in lesson_bits.SAMPLES}
OBSERVERS = {name: name for name in lesson_bits.OBSERVERS}
START = {"conv_digits": "block2.relu", "residual_digits": "layer2.0.relu", "outlier_mlp": "fc2.weight"}
VIEWS = {"over_bits": "SQNR over the bits", "values": "Values and ranges"}
TOGETHER = 0.5  # dB within which two observers are said to do the same


def draw(page: lesson.Lesson) -> None:
    page.header(
        "What does one bit cost?",
        "Every bit taken away doubles the step of the grid. Choose a tensor and a rule for its range, and watch the "
        "error grow bit by bit; then see when the network begins to mind.",
        explain=EXPLAIN,
        terms=("SQNR", "observer", "round-off", "clipping", "interval", "paired comparison", "simulated"),
    )
    page.part(one_tensor)
    page.part(network)
    page.yours(
        "lab", "sweep", "Sweep", "The accuracy of your network at 8 to 2 bits, measured on its own evaluation samples.",
        before=sweep_over_bits,
    )  # fmt: skip
    page.yours("lab", "distributions", "Distributions", "The SQNR of each of your tensors, at any number of bits.")


def one_tensor(page: lesson.Lesson) -> None:
    with page.controls():
        name = page.select(
            "network", "Network", NETWORKS, lesson_bits.SAMPLES[0], width=170,
            help="The sample network that the tensor is of.",
        )  # fmt: skip
        known = lesson_bits.tensors(name)
        tensor = page.select(
            "tensor", "Tensor", {t: f"{t}{'' if weight else ' · activation'}" for t, weight in known.items()},
            first_of(name), width=220,
            help="Whose values are put on grids: weights have up to 8 bits here, activations up to 16.",
        )  # fmt: skip
        observer = page.choice(
            "observer", "Observer", OBSERVERS, "min_max",
            help="How the range is chosen: all values, the least squared error, or all but a few of the values.",
        )  # fmt: skip
        found = lesson_bits.curves(name, tensor)
        bits = page.slider(
            "bits", "Bits", found.bits[0], found.bits[-1], 4, width=160,
            help="Draws the ranges and the figures at this width.",
        )  # fmt: skip
    first, last = found.many[0], found.many[-1]
    guess = page.predict(
        f"Between {first} and {last} bits, with {observer}: how much SQNR does each bit taken away cost?", WORTH
    )
    view = "values"
    if guess.open:
        view = page.choice("view", "Show", VIEWS, "over_bits", help="Two looks at the same tensor and ranges.")
    if view == "over_bits":
        page.chart(pictures.over_bits(found, observer, widgets.dark()), "over_bits")
    else:
        bins, zeros = lesson_bits.histogram(name, tensor)
        ends = {o: one.ends(bits) for o, one in found.rows.items()}
        page.chart(pictures.values(bins, zeros, ends, observer, 2**bits, tensor, widgets.dark()), "values")
    if guess.open:
        signal(page, guess, found, observer, bits)


def first_of(name: str) -> str:
    """The tensor of a network that is looked at first."""
    known = lesson_bits.tensors(name)
    return START[name] if START.get(name) in known else next(iter(known))


def signal(
    page: lesson.Lesson, guess: lesson.Guess, found: lesson_bits.Curves, observer: str, bits: int
) -> None:  # fmt: skip
    row, (first, last) = found.rows[observer], (found.many[0], found.many[-1])
    many, few = row.slope(found.many), row.slope(found.few)
    guess.told(
        min(DECIBEL, key=lambda key: abs(DECIBEL[key] - many)),
        f"Fitted to what was computed at {first} to {last} bits: {many:.2f} dB per bit. Rounding alone gives "
        f"{lesson_bits.PER_BIT:.2f}.",
    )
    error = row.at(bits)
    lost = None if bits == found.bits[0] else error.sqnr - row.at(bits - 1).sqnr
    widgets.figures(
        [
            (f"SQNR at {bits} bits", write("sqnr", error.sqnr),
             "the fewest there are" if lost is None else f"one bit less: {metric('sqnr').delta(-lost)}",
             metric("sqnr").help),
            ("Of the error, clipping makes", percent(error.clip / error.noise if error.noise else 0.0),
             f"{percent(error.clipped_share)} of the values", "The rest of the squared error is round-off."),
            (f"Slope, {first} to {last} bits", f"{many:.2f} dB per bit", None,
             "A straight line fitted to the computed SQNR by least squares."),
            (f"Slope, {found.few[0]} to {found.few[-1]} bits", f"{few:.2f} dB per bit", None,
             "The same where bits are few."),
        ]
    )  # fmt: skip
    page.notice(bend(found))


def bend(found: lesson_bits.Curves) -> str:
    """How the choice of the range bends the line: all of it from what was computed."""
    plain, least, cut = (found.rows[o] for o in lesson_bits.OBSERVERS)
    low, high = found.bits[0], found.bits[-1]
    gain, behind = least.at(low).sqnr - plain.at(low).sqnr, plain.at(high).sqnr - cut.at(high).sqnr
    (begin, end), (wide_begin, wide_end) = least.ends(low), plain.ends(low)
    narrower = 1 - (end - begin) / (wide_end - wide_begin)
    said = f"At {low} bits mse is {gain:.1f} dB above min_max"
    if gain <= TOGETHER or narrower <= 0:
        said += ", and not by a narrower range. "
    else:
        said += (
            f". It narrows the range by {percent(narrower)}: {percent(least.at(low).clipped_share)} of the values are "
            "clipped, the others get a finer grid. "
        )
        meets = found.meets("mse", "min_max", TOGETHER)
        if meets is not None:
            said += (
                f"The finer the grid is anyway, the less that saves: from {meets} bits on the two are within "
                f"{TOGETHER:g} dB. So mse begins higher and gains less with each bit, {least.slope(found.few):.2f} dB "
                f"between {low} and {found.few[-1]} bits. "
            )
    if plain.slope(found.many) < lesson_bits.PER_BIT - 1:
        said += (
            f"Even without clipping this tensor does not follow the rule: at {high} bits its values use "
            f"{plain.at(high).levels_used} of {plain.at(high).levels:,} levels, so the step is not small beside them. "
        )
    if behind > TOGETHER:
        said += (
            f"percentile cuts the same share however many bits there are: at {high} bits clipping makes "
            f"{percent(cut.at(high).clip / cut.at(high).noise)} of its error, and it is {behind:.1f} dB below min_max. "
        )
    return said


def network(page: lesson.Lesson) -> None:
    page.section("And when does the network mind?")
    with page.controls("network"):
        name = page.select(
            "whole", "Network", NETWORKS, lesson_bits.SAMPLES[0], width=170,
            help="The sample network whose accuracy is measured.",
        )  # fmt: skip
        observer = page.choice(
            "rule", "Observer", OBSERVERS, "min_max", help="How the ranges of all its tensors are chosen."
        )
    said, reference = metric("accuracy"), sample(name).float_evaluation
    page.text(
        f"Now all weights of {name} (per channel) and all its activations (per tensor) get the same number of bits, "
        f"ranged by {observer}. In float it names {said.format(reference.accuracy)} right, of {reference.n:,} samples."
    )
    guess = page.predict(
        "How few bits are enough, before the accuracy can be told apart from that of the float network?", ENOUGH,
        name="enough",
    )  # fmt: skip
    if not guess.open:
        return
    with st.spinner("Measuring the accuracy at every width"):
        measured = lesson_bits.accuracies(name, observer)
    enough = measured.enough
    if enough is None:
        guess.told(
            "more", f"Even {lesson_bits.NETWORK_BITS[-1]} bits are told apart from float on {reference.n:,} samples."
        )
    else:
        at = measured.at(enough).evaluation
        guess.told(
            str(enough),
            f"{said.format(at.accuracy)} against {said.format(reference.accuracy)} in float: "
            f"{measured.at(enough).comparison.verdict}. No width above it is told apart either.",
        )
    page.chart(pictures.accuracy_over_bits(measured, widgets.dark()), "accuracy")
    page.notice(cliff(measured, lesson_bits.curves(name, first_of(name)), observer), name="second_notice")


def cliff(measured: lesson_bits.Accuracies, found: lesson_bits.Curves, observer: str) -> str:
    """The accuracy beside the SQNR, width by width."""
    rows, row, enough = measured.rows, found.rows[observer], measured.enough
    pairs = list(pairwise(rows))  # of each, the one with a bit less first
    lost = [100 * ((more.evaluation.accuracy or 0) - (less.evaluation.accuracy or 0)) for less, more in pairs]
    decibel = [row.at(more.bits).sqnr - row.at(less.bits).sqnr for less, more in pairs]
    worst = max(range(len(pairs)), key=lost.__getitem__)
    said = (
        f"Between {rows[-1].bits} and {rows[0].bits} bits each bit taken away costs {found.tensor} "
        f"{min(decibel):.1f} to {max(decibel):.1f} dB. It costs the accuracy {min(lost):.1f} to {max(lost):.1f} "
        f"points, most from {pairs[worst][1].bits} to {pairs[worst][0].bits} bits. "
    ).replace("-", MINUS)
    if enough is not None and enough < rows[-1].bits:
        said += (
            f"What is left of it from {enough} to {rows[-1].bits} bits cannot be told from noise on so few samples. "
        )
    return said + f"All accuracies are {COMPUTED['simulated']}; of twenty verdicts about one is wrong by chance."


def sweep_over_bits() -> None:
    """Makes Sweep start with the widths of this lesson."""
    st.session_state["lab.plan"] = sweep_setup.Plan(grid=Grid(weight_bits=(8, 6, 5, 4, 3, 2), activation_bits=(8,)))


lesson.show("bits", draw)
