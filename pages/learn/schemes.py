"""Lesson 2: the same tensor on a symmetric and on an affine grid, and what a zero point costs a kernel."""

from qlab.lessons import schemes
from qlab.metrics import MINUS, three_digits, write
from qlab.plots.lessons.schemes import terms, two_grids
from qlab.ui import cache, lesson, state, trial, widgets

EXPLAIN = """
An **affine** grid runs from the smallest to the largest value; its zero point says which code stands for 0. A
**symmetric** grid reaches as far below zero as above. Its zero point is always 0, so there is one constant less to
reckon with, but where all values lie on one side, the codes of the other side are never used.

SQNR compares the values with the error made on them. Half the error is 6 dB more, which is what one bit gives.
"""
VALUES = {"relu": "ReLU output", "conv": "convolution output", "weight": "weights"}
LOST = {"none": "less than half a bit", "one": "about one bit", "more": "more than one and a half bits"}
KINDS = {"symmetric": "symmetric", "affine": "affine"}
ANEW = {"none": "none of them", "one": "one of them", "all": "all three"}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "Does zero belong in the middle of the grid?",
        "A symmetric grid puts zero in its middle, an affine grid puts it where the values need it. Choose real values "
        "of a small network, shift them, and compare both grids with the same number of codes.",
        explain=EXPLAIN,
        terms=("qscheme", "zero point", "grid", "level", "SQNR"),
    )
    page.part(both_grids)
    page.part(zero_points)
    page.yours(
        "lab", "distributions", "Distributions",
        "The output of a layer on a symmetric grid. Set the scheme back to affine there and watch the SQNR.",
        before=symmetric_output,
    )  # fmt: skip


def both_grids(page: lesson.Lesson) -> None:
    with page.controls():
        which = page.choice("values", "Values", VALUES, "relu", help="Real tensors of conv_digits, a small network.")
        bits = page.slider("bits", "Bits", 2, 8, 4, width=170,
                           help="Both grids have 2 to the power of this many codes.")  # fmt: skip
        shift = page.slider(
            "shift", "Shift (half ranges)", -1.0, 1.0, 0.0, step=0.05, format="%.2f", width=210,
            help="Moves all values by this part of half their range, as a bias would: to one side of zero, or back.",
        )  # fmt: skip
    found = schemes.schemes(which, shift, bits)
    guess = page.predict("Both grids have as many codes. What does the symmetric one lose on these values?", LOST)
    page.chart(two_grids(found, widgets.dark(), guess.open), "grids")
    if guess.open:
        answer(page, guess, found)


def answer(page: lesson.Lesson, guess: lesson.Guess, found: schemes.Schemes) -> None:
    affine, symmetric = found.affine, found.symmetric
    truth = "none" if found.lost_bits < 0.5 else "one" if found.lost_bits < 1.5 else "more"
    guess.told(
        truth,
        f"Affine gives {write('sqnr', affine.error.sqnr)}, symmetric {write('sqnr', symmetric.error.sqnr)}: a "
        f"difference of {write('sqnr', found.lost)}, or {bits_of(found.lost_bits)}.",
    )
    widgets.figures(
        [
            ("SQNR, affine", write("sqnr", affine.error.sqnr), f"scale {write('scale', float(affine.qparams.scale))}",
             "Signal over error of these values on the affine grid."),
            ("SQNR, symmetric", write("sqnr", symmetric.error.sqnr),
             f"scale {write('scale', float(symmetric.qparams.scale))}", "The same on the symmetric grid."),
            ("Codes used, affine", f"{affine.error.levels_used} of {affine.levels}", None,
             "Codes that at least one value takes."),
            ("Codes used, symmetric", f"{symmetric.error.levels_used} of {symmetric.levels}", None,
             "Codes that at least one value takes."),
            ("Zero point, affine", str(affine.zero_point), None, "The code that stands for 0."),
            ("Zero point, symmetric", str(symmetric.zero_point), None, "The code that stands for 0."),
        ]
    )  # fmt: skip
    share = symmetric.outside / symmetric.levels
    if share >= 0.4:
        why = "Half of the grid, or nearly so, lies idle. Half the codes are one bit: the steps are twice as wide."
    elif share >= 0.15:
        why = "The values lean to one side, so a part of the grid lies idle; shift them further and it becomes half."
    else:
        why = "The values reach about as far below zero as above, so next to nothing of the grid lies idle."
    page.notice(
        f"{symmetric.outside} of the {symmetric.levels} codes of the symmetric grid stand for values beyond the "
        f"smallest and the largest there is. {why}"
    )


def zero_points(page: lesson.Lesson) -> None:
    page.section("Why not always affine?")
    page.text(
        "An integer kernel multiplies codes. With zero points it needs Σ (qx − zx) · (qw − zw), for codes qx of the "
        "input and qw of the weights. Multiplied out, that is the sum of products and three corrections: −zw · Σ qx, "
        "−zx · Σ qw, and zx · zw as often as there are products. Here is one real output number of a convolution, on 8 "
        "bits."
    )
    with page.controls("zero"):
        weights = page.choice("weights", "Weights", KINDS, "affine", help="A symmetric grid has the zero point zw = 0.")
        inputs = page.choice("inputs", "Input", KINDS, "affine", help="A symmetric grid has the zero point zx = 0.")
        channel = page.slider(
            "channel", "Output channel", 0, schemes.channels() - 1, 0, help="Another filter over the same window."
        )
    found = schemes.sums(weights, inputs, channel)
    guess = page.predict(
        f"The weights have the zero point {found.zero_w}, the input has {found.zero_x}. Which corrections must be "
        "worked out again for every new input?", ANEW, name="zero_guess",
    )  # fmt: skip
    if not guess.open:
        return
    ahead = {0: "No other is there", 1: "One more is there", 2: "The other two are there"}[found.ahead]
    guess.told(
        "one" if found.at_run_time else "none",
        (
            "The sum of the codes of the input is not known before the input is. "
            if found.at_run_time
            else "The zero point of the weights is 0, so the sum of the input's codes is not needed. "
        )
        + (f"{ahead}, made of weights and constants, and added to the bias ahead." if found.ahead else f"{ahead}."),
    )
    page.chart(terms(found, widgets.dark()), "terms")
    widgets.figures(
        [
            ("From the integers", three_digits(found.value).replace("-", MINUS),
             "sum × both scales + bias", "What the sum stands for."),
            ("In float", three_digits(found.exact).replace("-", MINUS), None, "The same output number of the network."),
            ("More additions", f"{found.K if found.at_run_time else 0}",
             f"beside {found.K * found.channels} products",
             "At one position of the image, for all output channels: they share the sum of the input's codes."),
        ]
    )  # fmt: skip
    if found.at_run_time:
        weights_lose = schemes.schemes("weight", 0.0, 8).lost
        text = (
            f"The zero point of the weights costs {found.K} additions at every position, shared by {found.channels} "
            f"output channels. Symmetric weights save them. What that costs on 8 bits, for the weights above: "
            f"{write('sqnr', weights_lose)}."
        )
    else:
        so, of = schemes.usual_choice()
        text = (
            "With symmetric weights no correction is left for run time, whatever grid the input has: an affine input "
            f"changes only the bias. Of the {of} presets of this lab that quantize activations, {so} take weights "
            "symmetric and activations affine."
        )
    page.notice(text, name="second_notice")


def symmetric_output() -> None:
    """The first output of a layer there is, tried out on a symmetric grid."""
    known = trial.tensors(cache.network(state.model_ref())).entries.values()
    activations = [one for one in known if one.role == "activation"]
    entry = next((one for one in activations if one.what == "output"), next(iter(activations), None))
    if entry is not None:
        state.set_tensor(entry.tensor)
        trial.change(entry, trial.draft(entry), qscheme="per_tensor_symmetric", signed=True)


def bits_of(amount: float) -> str:
    """How many bits a difference is worth: 1.0 bits."""
    return f"{amount:.1f} bits".replace("-", MINUS) if abs(amount) >= 0.05 else "no bit at all"


lesson.show("schemes", draw)
