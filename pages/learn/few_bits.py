"""Lesson 11: a weight in four bits and fewer. Its bytes, the way back to float, and what groups cost and give."""

import streamlit as st

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.lessons import few_bits
from qlab.metrics import COMPUTED, MINUS, metric, three_digits, write
from qlab.plots.lessons.few_bits import groups, read_back
from qlab.plots.weights import codes_heatmap
from qlab.plots.weights_bytes import bytes_picture
from qlab.ui import lesson, weights_bytes, widgets

EXPLAIN = """
A 4-bit weight is stored as a *code* of 4 bits. No memory is addressed in half bytes, so two codes share a byte, the
first one in its low half. Codes of 3 bits follow each other in the same way, and some begin in one byte and end in the
next. Beside the codes stand the scales, 4 bytes each, and on an affine grid the zero points, one byte each.
"""
PLACES = {"low": "in the low bits, on the right", "high": "in the high bits, on the left"}
SAME = {
    "same": "the same weights",
    "little": "weights that are off by less than a step",
    "far": "weights that are far off",
}
EXTRA = {
    "tenth": "at most a tenth of a bit",
    "half": "about half a bit",
    "one": "about one bit",
    "two": "two bits or more",
}
BITS = {"tenth": 0.1, "half": 0.5, "one": 1.0, "two": 2.0}
EACH = "32"  # weights in a group, where nothing is said of groups
FIRST = 4  # codes that the question shows


def draw(page: lesson.Lesson) -> None:
    page.header(
        "How is a four-bit weight stored and read?",
        "No computer stores half a byte. Take a real weight down to 4, 3 or 2 bits, find one number among its bytes, "
        "and turn it back into the float that the network computes with.",
        explain=EXPLAIN,
        terms=("packing", "nibble", "zero point", "scale", "per group", "weight-only", "SQNR"),
    )
    page.part(in_bytes)
    page.part(reading)
    page.part(grouped)


def setting(page: lesson.Lesson, prefix: str = "") -> tuple[str, int, bool]:
    """Controls for a weight, its bits, and whether its grid is affine. prefix: of the settings' names."""
    weight = page.select(f"{prefix}weight", "Weight", {w: w for w in few_bits.WEIGHTS}, next(iter(few_bits.WEIGHTS)),
                         width=280, help="A weight of a sample network.")  # fmt: skip
    bits = page.choice(f"{prefix}bits", "Bits", {str(b): str(b) for b in few_bits.BITS}, "4", help="Bits of one code.")
    scheme = page.choice(f"{prefix}scheme", "Scheme", {"affine": "affine", "symmetric": "symmetric"}, "affine",
                         help="Affine grids have a zero point; on symmetric ones it is 0.")  # fmt: skip
    return weight, int(bits), scheme == "affine"


def in_bytes(page: lesson.Lesson) -> None:
    with page.controls():
        weight, bits, affine = setting(page)
    page.text(f"Every {EACH} weights of a channel share a scale. What other groups cost is the last question below.")
    stored(page, few_bits.held(weight, bits, affine, EACH))
    page.yours(
        "inspect", "weights", "Weights", "The codes of every layer, and under “Packed bytes” whose bits lie where.",
        mapping=QConfigMapping(
            default=QConfig(weight=QuantSpec(bits, f"per_channel_{'affine' if affine else 'symmetric'}"),
                            mode="weight_only")
        ),
    )  # fmt: skip


def stored(page: lesson.Lesson, found: few_bits.Held) -> None:
    tensor, codes = found.tensor, found.cells.code.reshape(-1)
    packed = found.packed[: few_bits.SHOWN].numpy()
    values = [str(code).replace("-", MINUS) for code in codes[:FIRST]]
    picture = st.container()
    widgets.figures(
        [
            ("First codes", ", ".join(values), None, "The first numbers of the weight on their grid."),
            ("First byte", f"{packed[0]:08b}", "highest bit on the left", "The first byte of the packed codes."),
            ("All codes", write("size", len(found.packed)), f"{write('size', 4 * found.count)} as float32",
             f"{found.count:,} codes of {tensor.bits} bits without gaps."),
        ]
    )  # fmt: skip
    guess = page.predict("Several codes share a byte. Where in the first byte does the first code lie?", PLACES)
    if not guess.open:
        with picture:
            across = "position in the channel"
            drawn = codes_heatmap(found.part, tensor.quant_min, tensor.quant_max, widgets.dark(), across=across)
            page.chart(drawn, "codes")
        return
    bits = found.bit_map()
    shifts = few_bits.read(found, 0).places
    guess.told(
        "low" if shifts[0][1] == 0 else "high",
        f"Code 0 takes the bits {shifts[0][1]} to {shifts[-1][1]} of byte 0. Read from left to right, the codes stand "
        "in reverse.",
    )
    contents = [weights_bytes.in_short(bits, row, codes, tensor.bits) for row in range(len(packed))]
    page.chart(bytes_picture(packed, bits, contents, widgets.dark(), nibbles=tensor.bits == 4), "bytes")
    index = page.slider("index", "Code", 0, few_bits.SHOWN * 8 // tensor.bits - 1, 1, width=400,
                        help="Which of the codes in the picture is read back below.")  # fmt: skip
    one = few_bits.read(found, index)
    places = ", ".join(f"{byte}:{bit}" for byte, bit in reversed(one.places))
    signed = f"{one.raw} in two's complement" if tensor.signed else "as it stands in the bits"
    widgets.figures(
        [
            ("Its bits, byte:bit", places, f"{one.raw:0{tensor.bits}b} in binary", "Highest bit first."),
            ("Code", str(one.code).replace("-", MINUS), signed, "The whole number that these bits are."),
            ("Less zero point", str(one.code - one.zero_point).replace("-", MINUS), f"zero point {one.zero_point}",
             "How many steps from 0."),
            ("Times scale", signed_digits(one.value), f"scale {write('scale', one.scale)}",
             "The float that the code stands for."),
            ("In the engine", signed_digits(one.engine), f"float before: {signed_digits(one.original)}",
             "What the network computes with at this place, and the weight before it was rounded."),
        ]
    )  # fmt: skip
    page.notice(
        f"Of all {found.count:,} codes, {found.same_codes:,} are the same after packing and unpacking, and "
        f"{found.same_values:,} of the floats read back in this way are to the last bit what the engine computes with."
    )


def signed_digits(value: float) -> str:
    return three_digits(value).replace("-", MINUS)


def reading(page: lesson.Lesson) -> None:
    page.section("Is a weight code × scale + zero point?")
    page.text(
        "The formula `q * scale + zero_point` is often written for reading weights back. In PyTorch, ONNX and LiteRT "
        "the zero point is a code: the integer that stands for 0."
    )
    with page.controls("reading"):
        weight, bits, affine = setting(page, "read_")
    guess = page.predict("With these codes, what does that formula give?", SAME, name="formula")
    if not guess.open:
        return
    with st.spinner("Measuring the network with both readings"):
        measured = few_bits.formulas(weight, bits, affine, EACH)
    found = few_bits.held(weight, bits, affine, EACH)
    off = abs(found.wrong - found.right)
    low, high = found.cells.zero_point.min(), found.cells.zero_point.max()
    points = f"The zero points here are {f'{low} to {high}' if low < high else low}"
    truth = "same" if not off.any() else "far" if off.max() > found.cells.scale.max() else "little"
    guess.told(
        truth,
        f"{points}, so both formulas say the same." if truth == "same" else
        f"{points}, and each weight comes out too high by its zero point × (1 + scale): by {three_digits(off.mean())} "
        f"on average, where the weights themselves reach {three_digits(abs(found.floats).max())}.",
    )  # fmt: skip
    page.chart(read_back(found, widgets.dark()), "read_back")
    said = metric("accuracy")
    figures = [
        (label, said.format(of.accuracy),
         f"{said.interval(*(of.accuracy_interval or (0, 1)))}, SQNR {write('sqnr', db)}",
         f"Accuracy of the network on {of.n:,} samples, with this one weight read so; the rest is float.")
        for label, of, db in (
            ("(code − zero point) × scale", measured.right, found.sqnr(found.right)),
            ("code × scale + zero point", measured.wrong, found.sqnr(found.wrong)),
        )
    ]  # fmt: skip
    widgets.figures(figures)
    apart = float(abs(found.with_offset - found.right).max())
    page.text(
        f"Both accuracies are {COMPUTED['simulated']}. With the first formula {measured.differing:,} of "
        f"{measured.right.n:,} predictions differ from the engine's own. A sum is right where what is added is the "
        f"*value* of code 0, {MINUS}zero point × scale, and not the zero point: with that, no weight is off by more "
        f"than {three_digits(apart)}."
    )


def grouped(page: lesson.Lesson) -> None:
    page.section("What do groups cost?")
    with page.controls("groups"):
        weight, bits, affine = setting(page, "group_")
        each = page.choice("each", "One scale for each", {s: s for s in few_bits.sizes(weight)}, EACH,
                           help="The whole tensor, an output channel, or so many weights of a channel.")  # fmt: skip
    rows = {(row.bits, row.each): row for row in few_bits.costs(weight, affine)}
    mine, channel = rows[bits, each], rows[bits, few_bits.CHANNEL]
    of = f"{each} weights" if each.isdecimal() else f"whole {each}"
    guess = page.predict(
        f"A scale takes 4 bytes{', a zero point one' if affine else ''}. With one for each {of}: how much is stored "
        f"for every weight, beside the {bits} bits of its code?", EXTRA, name="groups",
    )  # fmt: skip
    if not guess.open:
        return
    guess.told(
        min(BITS, key=lambda key: abs(BITS[key] - mine.extra)),
        f"{write('size', mine.scales)} of scales"
        + f" and {write('size', mine.zero_points)} of zero points" * (mine.zero_points > 0)
        + f" beside {write('size', mine.codes)} of codes: {mine.extra:.2f} bits more, {mine.per_weight:.2f} in all.",
    )
    page.chart(groups(list(rows.values()), bits, each, widgets.dark()), "costs")
    said = (
        f"With a scale for each {of} the weight has {mine.sqnr:.1f} dB, with one for each channel {channel.sqnr:.1f}. "
    )
    if (more := rows.get((bits + 1, few_bits.CHANNEL))) is not None and mine.per_weight > channel.per_weight:
        better = "more" if more.sqnr > mine.sqnr else "less"
        said += (
            f"A whole bit more for every code, and a scale for each channel, gives {more.sqnr:.1f} dB for "
            f"{more.per_weight:.2f} bits, {better} than these groups give for {mine.per_weight:.2f}. "
        )
    fewer = [row for row in rows.values() if row.per_weight < mine.per_weight and row.sqnr > mine.sqnr]
    if fewer:
        best = min(fewer, key=lambda row: row.per_weight)
        said += f"What is chosen is beaten on both counts: {best.bits} bits with one scale for each {best.each}."
    else:
        said += "Nothing in the picture is both smaller and closer to the float weight."
    page.text(f"**What that gives.** {said}")


lesson.show("few_bits", draw)
