"""The lab's words in one or two sentences each, as the Explain popover of a page shows them."""

from __future__ import annotations

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
}


def explain(*terms: str) -> str:
    """These terms as a Markdown list, in the order given."""
    return "\n".join(f"- **{term}** – {TERMS[term]}" for term in terms)
