"""The lab's words in one or two sentences each, and the links to them wherever they appear in a text."""

from __future__ import annotations

import re
from functools import cache
from urllib.parse import quote_plus

TERMS: dict[str, str] = {
    "accuracy": "Share of the evaluation samples whose largest output is the right label.",
    "agreement": "Share of samples on which float and quantized network name the same class. It needs no labels.",
    "axis": "The dimension of a weight along which every slice gets its own scale: its output channels.",
    "baseline": "The run, or the float network, that all others are held against.",
    "batch norm": "A layer that shifts and stretches each channel by learned constants. At inference it is folded into "
    "the convolution or linear layer before it, so it no longer appears in the layer table.",
    "calibration": "Running part of the data through the float network once, to learn what values each tensor takes.",
    "clipping": "Values outside the range are moved to its end. A narrower range clips more and rounds less.",
    "dynamic": "Activations get their range from each call's own minimum and maximum, at run time.",
    "evaluation": "Running the other part of the data, which calibration never saw, to measure accuracy.",
    "fake quantization": "Rounding a value to the grid and back to float, so that ordinary float arithmetic shows what "
    "integers would give.",
    "grid": "The values a quantized number can take: evenly spaced, `scale` apart, 2^bits of them.",
    "interval": "The range in which the true accuracy lies with 95 % confidence, given how many samples were evaluated "
    "(Wilson). Differences smaller than it may be chance.",
    "ledger": "One line for each operation: quantized or not, and why.",
    "level": "One code of the grid. A level that no weight takes is paid for in bits and not used.",
    "MACs": "Multiplications with addition, for one sample: a measure of the work of a layer.",
    "nibble": "Half a byte: 4 bits. Of two 4-bit codes the first lies in the low nibble, bits 0 to 3, the second in "
    "the high one.",
    "observer": "The rule that turns what was seen of a tensor into the range its grid covers.",
    "packing": "Writing codes of fewer than 8 bits one after the other without gaps, so that a byte holds more than "
    "one.",
    "paired comparison": "Two networks on the same samples, prediction by prediction: only samples on which "
    "they differ count. McNemar's test says how often chance alone would split those so unevenly.",
    "Pareto front": "The runs that no other beats in both accuracy and cost.",
    "per channel": "Every output channel of a weight gets its own scale. Costs a few bytes, often saves the accuracy.",
    "per group": "Every stretch of `group_size` weights gets its own scale. Usual at 4 bits.",
    "per tensor": "One scale for the whole tensor.",
    "preprocessing": "What is done to the raw data before the network sees it: (x × scale − mean) / std. It must be "
    "what the network was trained with.",
    "qscheme": "How a grid is laid: one scale per tensor, channel or group; symmetric around zero, or affine, with a "
    "zero point that shifts it.",
    "round-off": "The error of moving a value to the nearest grid point: at most half a scale.",
    "scale": "The distance between two neighbouring grid points.",
    "simulated": "Computed in float with fake quantization, not by integer kernels.",
    "SQNR": "Signal-to-quantization-noise ratio in dB: 10 log10 of signal power over error power. 6 dB more is half "
    "the error, about one bit.",
    "static": "Activations get their range ahead of time, from the calibration.",
    "weight-only": "Weights are stored in few bits, activations stay float.",
    "zero point": "The integer code that stands for exactly 0.",
    "QAT": "Quantization-aware training: the weights learn while every forward pass rounds them to their grid.",
    "straight-through estimator": "Rounding has no slope to follow, so its gradient is taken to be that of no rounding "
    "at all, and zero where a value is cut off.",
    "LSQ": "Learned step size quantization: the scale of each grid is trained by its gradient, like a weight.",
    "distillation": "Learning to give what another network gives, here the float one, instead of the label alone.",
    "flip": "A weight whose code changed; of a prediction: another class than before.",
    "accumulator": "The 32-bit integer in which a kernel adds up the products of integers.",
    "boundary": "A place where values change between integer and float. Each costs a pass over the tensor.",
    "folding": "Working the constants of a batch norm into the weights and bias of the layer before it.",
    "fusing": "Computing several layers in one go, such as a convolution with its ReLU, so that nothing between them "
    "is written to memory or rounded.",
    "mode": "When activations get their range, if at all: static, dynamic or weight-only.",
    "multiplier": "The one constant by which requantization takes the accumulator to steps of the output's grid.",
    "remedy": "A change of the config that the lab offers for something it found.",
    "epoch": "One pass over all samples a network is trained on.",
    "gradient": "The slope of the loss for each weight: which way, and how steeply, training should move it.",
    "tie": "A value exactly halfway between two grid points. It goes to the even code.",
    "two's complement": "How signed codes are written in bits: the highest bit counts negative.",
    "int8": "A whole number in 8 bits: −128 to 127 signed, 0 to 255 unsigned (uint8).",
    "integer kernel": "The routine of a runtime that multiplies integers and adds them up in an accumulator.",
    "outlier": "A value far from all others. It stretches the range, and all others share what is left of the grid.",
    "PTQ": "Post-training quantization: a trained network is put on grids without training it further.",
    "requantization": "Turning the accumulator into the next tensor's code: times one constant, rounded, shifted, cut.",
    "state_dict": "PyTorch's table of a module's tensors by name: what is saved and loaded.",
}
# Each word's lesson, where one teaches it.
TAUGHT: dict[str, str] = {
    "scale": "grid",
    "zero point": "grid",
    "grid": "grid",
    "round-off": "grid",
    "clipping": "grid",
    "qscheme": "schemes",
    "observer": "observers",
    "calibration": "observers",
    "outlier": "observers",
    "per tensor": "granularity",
    "per channel": "granularity",
    "per group": "granularity",
    "axis": "granularity",
    "SQNR": "bits",
    "dynamic": "modes",
    "static": "modes",
    "weight-only": "modes",
    "batch norm": "folding",
    "folding": "folding",
    "fusing": "folding",
    "accumulator": "integers",
    "requantization": "integers",
    "integer kernel": "integers",
    "simulated": "integers",
    "boundary": "boundaries",
    "QAT": "straight_through",
    "fake quantization": "straight_through",
    "straight-through estimator": "straight_through",
    "packing": "few_bits",
    "nibble": "few_bits",
    "level": "few_bits",
    "ledger": "not_quantized",
    "state_dict": "state_dict",
}
_OTHERS = {
    "BatchNorm": "batch norm",
    "clipped": "clipping",
    "boundaries": "boundary",
    "remedies": "remedy",
    "paired verdict": "paired comparison",
}  # spellings, by what they mean
# What Markdown takes otherwise than as words: code, formulas, links, headings, icons and colours, tags.
_NOT_TEXT = (
    r"```.*?```|`[^`]*`|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|^\#+ .*?$|:[a-z_]+/[a-z_]+:|:[a-z-]+\[|<[^>\n]*>|https?://\S+"
)


def explain(*terms: str) -> str:
    """These terms as a Markdown list, in the order given."""
    return "\n".join(f"- **{link(term)}** – {TERMS[term]}" for term in terms)


def link(term: str, text: str = "") -> str:
    """A Markdown link to a word, with what it means for the mouse. text: as it is spelled here."""
    meaning = TERMS[term].replace('"', "'")
    return f'[{text or term}](glossary?word={quote_plus(term)} "{meaning}")'


def linked(text: str) -> str:
    """Markdown in which each word of the glossary is a link where it first appears."""
    seen: set[str] = set()

    def turn(match: re.Match[str]) -> str:
        word = match["word"]
        term = None if word is None else _terms()[_plain(word)]
        if term is None or term in seen:
            return match[0]
        seen.add(term)
        return link(term, word)

    return _pattern().sub(turn, text)


def unlinked(text: str) -> str:
    """The same text without these links."""
    return re.sub(r"\[([^\]]*)\]\(glossary\?[^\s)]*(?: \"[^\"]*\")?\)", r"\1", text)


@cache
def _terms() -> dict[str, str]:
    known = {_plain(term): term for term in TERMS} | {_plain(word): term for word, term in _OTHERS.items()}
    return known | {f"{word}s": term for word, term in known.items()}


def _plain(word: str) -> str:
    return word.lower().replace("-", " ")


@cache
def _pattern() -> re.Pattern[str]:
    words = sorted(_terms(), key=len, reverse=True)
    either = "|".join(re.escape(word).replace(r"\ ", "[ -]") for word in words)
    return re.compile(rf"{_NOT_TEXT}|(?<![\w/.-])(?P<word>(?i:{either}))(?![\w-])", re.MULTILINE | re.DOTALL)
