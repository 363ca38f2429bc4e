"""Claims about single numbers: the formulas of a grid, weights that become zero, outliers."""

from __future__ import annotations

from functools import lru_cache

import torch

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.evaluation import compare, evaluate
from qlab.graph.capture import load_model
from qlab.graph.lower import attribute
from qlab.graph.placement import place
from qlab.lessons.myths.claim import TUTORIAL, WEB, Bar, Bars, Claim, Control, Outcome, Verdict
from qlab.lessons.samples import sample
from qlab.metrics import percent, three_digits, write
from qlab.quant.fake_quant import dequantize, quantize
from qlab.quant.qparams import choose_qparams

NETWORK, WEIGHT, TENSOR = "conv_digits", "block2.conv.weight", "block1.relu"


def _root_mean_square(difference: torch.Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


@lru_cache(maxsize=4)
def _affine(scheme: str) -> Outcome:
    weight = sample(NETWORK).weights[WEIGHT]
    qparams = choose_qparams(weight, QuantSpec(8, f"per_tensor_{scheme}"))
    codes, scale, zero_point = quantize(weight, qparams), float(qparams.scale), int(qparams.zero_point)
    right, claimed = dequantize(codes, qparams), codes * scale + zero_point
    error, claimed_error = (_root_mean_square(back - weight) for back in (right, claimed))
    verdict: Verdict = "true" if torch.equal(right, claimed) else "false"
    because = (
        f"The zero point of this grid is {zero_point}. Read as q × scale + zero point, the weights are off by "
        f"{three_digits(claimed_error)} on average, read as (q − zero point) × scale by {three_digits(error)}."
    )
    if verdict == "true":
        because += " With a zero point of 0 both formulas are one."
    return Outcome(
        verdict, because.replace("-", "−"),
        (
            ("Zero point", str(zero_point).replace("-", "−"), None, "The code that stands for exactly 0."),
            ("Error of (q − z) × s", three_digits(error), None, "Root mean square, over all weights."),
            ("Error of q × s + z", three_digits(claimed_error), None, "Root mean square, over the same weights."),
            ("Code of 0, read as claimed", three_digits(zero_point * scale + zero_point).replace("-", "−"), None,
             "It should be 0."),
        ),
        Bars(
            (Bar("(q − z) × s", error, three_digits(error), "quantized"),
             Bar("q × s + z", claimed_error, three_digits(claimed_error), "error")),
            "root mean square error of the weights, in their own unit",
        ),
        "The zero point is a code, so it is taken off before the scale is applied. The formula q × scale + offset also "
        "exists, with an offset in the unit of the values; no runtime here stores its grids so. "
        f"The weights are those of {WEIGHT} of {NETWORK}.",
    )  # fmt: skip


@lru_cache(maxsize=4)
def _order(bits: str) -> Outcome:
    values = sample(NETWORK).inputs(64)[0]
    spec = QuantSpec(int(bits), "per_tensor_affine")
    qparams = choose_qparams(values, spec)
    scale, zero_point = qparams.scale, qparams.zero_point
    low, high = qparams.quant_min, qparams.quant_max

    def differing(x: torch.Tensor) -> int:
        claimed = torch.round(torch.clamp(x / scale + zero_point, low, high))
        return int((claimed != quantize(x, qparams)).sum())

    between = (torch.arange(low, high, dtype=torch.float32) - zero_point + 0.5) * scale  # halfway between two codes
    real, ties = differing(values), differing(between)
    verdict: Verdict = "true" if real == ties == 0 else "depends" if real <= values.numel() // 1000 else "false"
    because = (
        f"Of {values.numel():,} real input values {real:,} get another code; of {len(between):,} values that lie "
        f"halfway between two codes, as near as float32 comes, {ties:,} do. The zero point is {int(zero_point)}."
    )
    return Outcome(
        verdict, because,
        (
            ("Real values", f"{values.numel():,}", f"{real:,} with another code",
             f"The input of {NETWORK}, 64 images."),
            ("Values halfway", f"{len(between):,}", f"{ties:,} with another code",
             "Between two codes, as near as float32 comes."),
            ("Zero point", f"{int(zero_point)}", "odd" if int(zero_point) % 2 else "even",
             "Rounding takes the even one of two."),
        ),
        Bars(
            (Bar("real values", 100 * real / values.numel(), percent(real / values.numel()), "quantized"),
             Bar("values halfway", 100 * ties / len(between), percent(ties / len(between)), "error")),
            "share that gets another code (%)",
        ),
        "To clamp before or after rounding is the same, because the ends are whole numbers. What differs is when the "
        "zero point is added: rounding goes to the even neighbour at a tie, and an odd zero point turns even into odd. "
        "Integer tests that compare bit by bit notice.",
    )  # fmt: skip


@lru_cache(maxsize=8)
def _small(bits: str) -> Outcome:
    known = sample(NETWORK)
    mapping = QConfigMapping(default=QConfig(weight=QuantSpec(int(bits), "per_channel_symmetric"), mode="weight_only"))
    quantized = convert(known.model, mapping)
    codes = {point.tensor: quantized.weights[point.layer].codes for point in place(known.model, mapping).weights}
    network = load_model(NETWORK)  # of its own: its weights are changed
    gone = count = 0
    with torch.no_grad():
        for point in place(network, mapping).weights:
            weight = attribute(network.graph_module, point.constant)
            assert weight is not None
            none = codes[point.tensor] == 0
            gone, count = gone + int((none & (weight != 0)).sum()), count + weight.numel()
            weight[none] = 0
    targets = known.data.evaluation.targets
    zeroed = evaluate(network, known.data, known.float_evaluation)
    rounded = evaluate(quantized, known.data, known.float_evaluation, sqnr_samples=0)
    lost = compare(known.float_evaluation, zeroed, targets)
    verdict: Verdict = "true" if lost.significant and lost.lost > lost.gained else "false"
    rows = (("float", known.float_evaluation, "float"), ("small weights made 0", zeroed, "error"),
            ("all weights rounded", rounded, "quantized"))  # fmt: skip
    because = (
        f"At {bits} bits {percent(gone / count)} of the weights become zero. With these at zero and all others in "
        f"float the accuracy goes from {write('accuracy', known.float_evaluation.accuracy)} to "
        f"{write('accuracy', zeroed.accuracy)}, which is {'beyond' if lost.significant else 'within'} chance on "
        f"{lost.n:,} samples."
    )
    return Outcome(
        verdict, because,
        (
            ("Become zero", percent(gone / count), f"of {count:,} weights", "Not zero in float, code 0."),
            ("Float", write("accuracy", known.float_evaluation.accuracy), None, "All weights as they were trained."),
            ("Only small ones made 0", write("accuracy", zeroed.accuracy), None, "All others in float."),
            ("All rounded", write("accuracy", rounded.accuracy), "simulated", "Weights on their grid."),
        ),
        Bars(
            tuple(Bar(label, 100 * (e.accuracy or 0), write("accuracy", e.accuracy), ink) for label, e, ink in rows),  # type: ignore[arg-type]
            "accuracy (%)",
        ),
        "A weight that becomes zero does lose its contribution, but never more than half a step, as every other weight "
        "may. It matters when the steps are large. Vary the bits and see where that begins.",
    )  # fmt: skip


BITS = Control("Bits", {bits: bits for bits in ("8", "6", "4", "3")}, "8", "Fewer bits: larger steps of the grid.")
CLAIMS = {
    "affine": Claim(
        "Dequantize: q × scale + zero point",
        "With a zero point, a quantized weight is read back as (w_q × scale) + zero_point.",
        WEB,
        "The weights of a convolution are put on a grid and read back by this formula and by the other one.",
        _affine,
        Control("Grid", {"affine": "Affine", "symmetric": "Symmetric"}, "affine", "Lays the grid with or without a "
                "zero point."),
        ("grid", "schemes"),
    ),
    "order": Claim(
        "round(clamp(x / scale + zero point))",
        "The formula of quantization is round(clamp(x / scale + zero_point)): first clamp, then round.",
        TUTORIAL,
        "Real values, and values that lie exactly halfway between two codes, are quantized in both orders.",
        _order, BITS, ("grid",),
    ),
    "small": Claim(
        "Small weights lose their contribution",
        "Values close to zero can be rounded to zero, effectively removing their contribution.",
        WEB,
        "Exactly those weights that quantization rounds to zero are set to zero in the float network.",
        _small, BITS, ("bits", "few_bits"), "Evaluating the network three ways …",
    ),
}  # fmt: skip
