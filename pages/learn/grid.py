"""Lesson 1: one number on a grid. Scale, zero point, rounding, clipping, and why zero must be exact."""

from qlab.lessons import grid
from qlab.metrics import MINUS, percent, three_digits, write
from qlab.plots.lessons.grid import number_line
from qlab.ui import lesson, widgets

EXPLAIN = """
A quantized tensor holds whole numbers, its *codes*, and two constants: a scale and a zero point. A code stands for
the value **(code − zero point) × scale**. To quantize a value, divide it by the scale, round, add the zero point, and
cut what lies outside the codes there are.
"""
SPANS = {"centred": "−1 … 1", "relu": "0 … 6", "shifted": "−0.7 … 2.9"}
REACH = {"whole": "up to a whole step", "half": "up to half a step", "tenth": "a tenth of a step at most"}
DISTANCE = {"whole": 1.0, "half": 0.5, "tenth": 0.1}
FATE = {"kept": "it stays 0", "moved": "it becomes something else than 0"}


def draw(page: lesson.Lesson) -> None:
    page.header(
        "Where does a number land on a grid?",
        "A grid of few bits holds few values, and every number moves to the nearest of them. Drag the number and take "
        "bits away: watch how far it moves, and what happens beyond the ends.",
        explain=EXPLAIN,
        terms=("grid", "scale", "zero point", "round-off", "clipping"),
    )
    page.part(one_number)
    page.part(zero_point)
    page.yours(
        "lab", "distributions", "Distributions",
        "The same on the real values of a layer: the grid below the histogram, the clipped parts shaded.",
    )  # fmt: skip


def one_number(page: lesson.Lesson) -> None:
    with page.controls():
        span = page.choice("range", "Range", SPANS, "centred", help="The smallest and the largest value of the grid.")
        low, high = grid.RANGES[span]
        room = round(0.3 * (high - low), 2)
        bits = page.slider("bits", "Bits", 2, 8, 3, help="Each bit taken away halves the number of grid points.")
        value = page.slider(
            "value", "Value", low - room, high + room, low + 0.62 * (high - low), step=0.01, format="%.2f", width=360,
            help="The float number to put on the grid; drag it beyond the range as well.",
        )  # fmt: skip
    found = grid.on_grid(value, low, high, bits)
    page.chart(number_line(found, widgets.dark()), "line")
    landing = found.landing
    widgets.figures(
        [
            ("Code", str(landing.code).replace("-", MINUS), None, "The whole number that is stored."),
            ("Scale", write("scale", found.scale), None, "The distance between two grid points."),
            ("Zero point", write("zero_point", found.zero_point), None, "The code that stands for exactly 0."),
            ("Value after the grid", three_digits(landing.back).replace("-", MINUS), None,
             "(code − zero point) × scale."),
            ("Error", three_digits(landing.error).replace("-", MINUS),
             "clipped" if landing.clipped else f"{three_digits(landing.in_steps)} steps",
             "Value after the grid minus the value before."),
        ]
    )  # fmt: skip
    guess = page.predict("Inside the range, how far can a value be moved?", REACH)
    if guess.open:
        truth = min(DISTANCE, key=lambda key: abs(DISTANCE[key] - found.largest))
        guess.told(
            truth,
            f"Of {grid.MOST:,} values over this range the worst is moved by {found.largest:.2f} steps. Beyond the "
            "range there is no such limit: the error is the whole distance to the end.",
        )


def zero_point(page: lesson.Lesson) -> None:
    page.section("Why must zero be exact?")
    with page.controls("zero"):
        start = page.slider(
            "start", "The grid starts at", -1.0, 0.0, -0.37, step=0.01, format="%.2f",
            help="A grid laid from exactly here to the largest value need not hold 0.",
        )  # fmt: skip
        bits = page.slider("zero_bits", "Bits of this grid", 2, 8, 4, help="More bits move zero by less.")
    guess = page.predict(
        "A grid is laid from exactly this start to the largest value of a ReLU, without care for zero. What does it "
        "make of 0?", FATE, name="zero_guess",
    )  # fmt: skip
    if not guess.open:
        return
    found = grid.zeros(start, bits)
    guess.told(
        "kept" if abs(found.moved) < found.scale * 1e-6 else "moved",
        f"0 becomes {three_digits(found.moved).replace('-', MINUS)}.",
    )
    widgets.figures(
        [
            ("Values that are exactly 0", percent(found.share), None,
             "Measured: what the first ReLU of conv_digits gives for 64 images."),
            ("0 on the careless grid", three_digits(found.moved).replace("-", MINUS), None,
             "Start and step are taken as they are."),
            ("0 on the lab's grid", three_digits(found.kept), None, "The range is shifted until a code falls on 0."),
            ("All zeros of one image add up to", three_digits(found.sum_moved).replace("-", MINUS),
             f"{three_digits(found.sum_kept)} on the lab's grid",
             "An error that always has one sign does not average out."),
        ]
    )  # fmt: skip
    page.notice(
        f"{percent(found.share)} of what a real ReLU gives are zeros, and padding adds more. Each is moved by the same "
        "amount in the same direction, so the errors add up instead of averaging out. A grid therefore gives up a "
        "little of its range so that its zero point is a whole number and 0 is kept to the last bit."
    )


lesson.show("grid", draw)
