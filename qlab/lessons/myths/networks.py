"""Claims about configs of whole networks: more bits, better observers, fusing, training afterwards. Simulated."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import fx

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.evaluation import Evaluation, compare, evaluate
from qlab.graph.archive import read_program
from qlab.graph.ops import packet_name
from qlab.lessons.myths.claim import COMMON, TUTORIAL, Bar, Bars, Claim, Control, Outcome, Verdict
from qlab.lessons.samples import sample
from qlab.metrics import three_digits, write
from qlab.quant.error import sqnr
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import choose_qparams
from qlab.samples import sample_folder

WIDTHS = range(2, 9)
EPOCHS, TRAINED_BITS = 2, 3
ROUNDED = ("conv2d", "batch_norm", "relu", "relu_")  # what gives a value of its own where nothing is fused
NETWORKS = {"conv_digits": "Convolutions", "outlier_mlp": "Linears with outliers"}


def _config(bits: int, observer: str) -> QConfigMapping:
    weight = QuantSpec(bits, "per_tensor_symmetric", observer=observer)
    return QConfigMapping(default=QConfig(weight, QuantSpec(8, observer=observer)))


@lru_cache(maxsize=64)
def _evaluated(network: str, bits: int, observer: str) -> Evaluation:
    known = sample(network)
    quantized = convert(known.model, _config(bits, observer), known.calibration)
    return evaluate(quantized, known.data, known.float_evaluation, sqnr_samples=0)


def _accuracy_bar(label: str, found: Evaluation, ink: Any = "quantized") -> Bar:
    return Bar(label, 100 * (found.accuracy or 0.0), write("accuracy", found.accuracy), ink)


def _accuracy_bars(bars: list[Bar], network: str) -> Bars:
    known = sample(network).float_evaluation.accuracy
    return Bars(tuple(bars), "accuracy (%), simulated", (100 * (known or 0.0), f"float {write('accuracy', known)}"))


@lru_cache(maxsize=4)
def _bits(network: str) -> Outcome:
    found = {bits: _evaluated(network, bits, "min_max") for bits in WIDTHS}
    targets = sample(network).data.evaluation.targets
    helped = {}
    for bits in WIDTHS[1:]:
        step = compare(found[bits - 1], found[bits], targets)
        helped[bits] = bool(step.significant) and step.gained > step.lost
    useless = [bits for bits, helps in helped.items() if not helps]
    verdict: Verdict = "false" if useless else "true"
    steps = ", ".join(f"{bits - 1} to {bits}" for bits in useless)
    because = (
        f"Of {len(helped)} steps from {WIDTHS[0]} to {WIDTHS[-1]} bits {sum(helped.values())} helped beyond chance on "
        f"{len(targets):,} samples." + (f" Nothing came of {steps}." if useless else "")  # type: ignore[arg-type]
    )
    best = max(found, key=lambda bits: found[bits].accuracy or 0.0)
    return Outcome(
        verdict, because,
        (
            ("Steps that helped", f"{sum(helped.values())} of {len(helped)}", None, "One bit more, beyond chance."),
            ("2 bits", write("accuracy", found[2].accuracy), "simulated", "Weights per tensor, minimum to maximum."),
            ("8 bits", write("accuracy", found[8].accuracy), "simulated", "The same with 256 codes."),
            ("Best", f"{best} bits", write("accuracy", found[best].accuracy), "Differences may be chance."),
        ),
        _accuracy_bars(
            [_accuracy_bar(f"{bits} bits", e, "quantized" if helped.get(bits, True) else "neutral")
             for bits, e in found.items()], network,
        ),
        "A bit more halves every error, but what it buys depends on where the network stands: near float there is "
        "nothing left to win, and where an outlier takes the range a bit more is still too few. Grey: no better than "
        "one bit less, beyond chance.",
    )  # fmt: skip


@lru_cache(maxsize=8)
def _observer(bits: str) -> Outcome:
    bars: list[Bar] = []
    better: list[str] = []
    worse: list[str] = []
    for network, title in NETWORKS.items():
        simple, smart = (_evaluated(network, int(bits), observer) for observer in ("min_max", "mse"))
        against = compare(simple, smart, sample(network).data.evaluation.targets)
        if against.significant:
            (better if against.gained > against.lost else worse).append(title)
        bars += [
            _accuracy_bar(f"{title}: min_max", simple, "range"),
            _accuracy_bar(f"{title}: mse", smart, "quantized" if against.significant else "neutral"),
        ]
    verdict: Verdict = "true" if len(better) == len(NETWORKS) else "depends" if better else "false"
    because = (
        f"At {bits} bits mse is better beyond chance on {len(better)} of {len(NETWORKS)} networks"
        + (f" ({', '.join(better).lower()})" if better else "")
        + (f", worse on {len(worse)} ({', '.join(worse).lower()})." if worse else ", worse on none.")
    )
    return Outcome(
        verdict, because,
        tuple((bar.label, bar.text, "simulated", "This observer for weights and activations.") for bar in bars),
        Bars(tuple(bars), "accuracy (%), simulated"),
        "The least squared error of a tensor is not the best accuracy of a network. Where little is clipped both rules "
        "choose nearly the same range; where an outlier is so large that cutting it costs more squared error than all "
        "the others gain, mse keeps it. Grey: no difference beyond chance.",
    )  # fmt: skip


class _Rounding(fx.Interpreter):
    """Puts the output of each of these ops on a grid of its own minimum and maximum."""

    def __init__(self, graph_module: fx.GraphModule, ops: tuple[str, ...], bits: int) -> None:
        super().__init__(graph_module)
        self._ops, self._spec = ops, QuantSpec(bits)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "call_function" or packet_name(n) not in self._ops:
            return value
        return fake_quantize(value, choose_qparams(value, self._spec))


def _as_stored(network: str) -> fx.GraphModule:
    """The network with its batch norms, before anything is folded."""
    folder = sample_folder(network)
    assert folder is not None
    return read_program(folder / "model.pt2").graph_module


@lru_cache(maxsize=8)
def _fusing(bits: str) -> Outcome:
    known = sample("conv_digits")
    x = known.inputs(256)
    apart, exact = _as_stored("conv_digits"), _as_stored("conv_digits").double()
    with torch.no_grad():
        truth = exact(*(one.double() for one in x))
        one_by_one, fused = apart(*x), known.model(*x)
        after_each = _Rounding(apart, ROUNDED, int(bits)).run(*x)
        after_unit = _Rounding(known.model.graph_module, ("relu", "relu_"), int(bits)).run(*x)
    float_errors = [float((out.double() - truth).square().mean().sqrt()) for out in (one_by_one, fused)]
    quantized = [sqnr(truth, out.double()) for out in (after_each, after_unit)]
    in_float, in_integers = float_errors[1] < 0.8 * float_errors[0], quantized[1] > quantized[0] + 1
    verdict: Verdict = "true" if in_float and in_integers else "depends" if in_float or in_integers else "false"
    less = "less" if in_float else "not clearly less"
    because = (
        f"In float the fused network is off by {three_digits(float_errors[1])}, the other by "
        f"{three_digits(float_errors[0])}: {less}. With values rounded to {bits} bits between the ops, one rounding "
        f"for each unit leaves {write('sqnr', quantized[1])}, one for each op {write('sqnr', quantized[0])}."
    )
    return Outcome(
        verdict, because,
        (
            ("Float, op by op", three_digits(float_errors[0]), None, "Root mean square error against float64."),
            ("Float, fused", three_digits(float_errors[1]), None, "The same network with batch norm folded."),
            ("Rounded after each op", write("sqnr", quantized[0]), "simulated", "SQNR of the outputs."),
            ("Rounded after each unit", write("sqnr", quantized[1]), "simulated", "SQNR of the outputs."),
        ),
        Bars(
            (Bar("rounded after conv, norm and ReLU", quantized[0], write("sqnr", quantized[0]), "error"),
             Bar("rounded once, after the ReLU", quantized[1], write("sqnr", quantized[1]), "quantized")),
            "SQNR of the outputs (dB), simulated",
        ),
        "Float errors are too small to matter either way. What fusing spares is roundings to few bits: each of them "
        "costs, and the range before a ReLU is half wasted on values that the ReLU removes.",
    )  # fmt: skip


@lru_cache(maxsize=1)
def _training(_: str) -> Outcome:
    from qlab.training.trainer import train_qat

    known = sample("conv_digits")
    weight = QuantSpec(TRAINED_BITS, "per_channel_symmetric")
    mapping = QConfigMapping(default=QConfig(weight, QuantSpec(8)))
    targets = known.data.evaluation.targets
    before = convert(known.model, mapping, known.calibration)
    after = train_qat(
        known.model, known.data, mapping, known.calibration, epochs=EPOCHS, reference=known.float_evaluation
    )  # fmt: skip
    start, end = (evaluate(q, known.data, known.float_evaluation, sqnr_samples=0) for q in (before, after))
    found = compare(start, end, targets)
    better = bool(found.significant) and found.gained > found.lost
    samples = len(known.data.calibration)
    same = sum(
        int((after.weights[layer].codes == tensor.codes).sum()) for layer, tensor in before.weights.items()
    )  # fmt: skip
    count = sum(tensor.codes.numel() for tensor in before.weights.values())
    return Outcome(
        "false" if better else "true",
        f"The calibrated and converted network was trained on for {EPOCHS} epochs of {samples} samples: "
        f"{write('accuracy', start.accuracy)} became {write('accuracy', end.accuracy)}, "
        f"{'better' if better else 'not better'} beyond chance.",
        (
            ("Float", write("accuracy", known.float_evaluation.accuracy), None, "The network before."),
            ("PTQ", write("accuracy", start.accuracy), "simulated", f"{TRAINED_BITS}-bit weights, calibrated."),
            ("PTQ, then trained", write("accuracy", end.accuracy), "simulated", "From the same config on."),
            ("Codes that moved", f"{count - same:,}", f"of {count:,}", "Integers of weights that training changed."),
        ),
        _accuracy_bars(
            [_accuracy_bar("calibrated (PTQ)", start, "neutral"),
             _accuracy_bar("and trained on", end, "gained" if better else "neutral")], "conv_digits",
        ),
        "Integers have no slope to follow, so training goes on with the float weights behind them, as long as these "
        "are kept. What is set in stone is a file that holds the integers alone.",
    )  # fmt: skip


_BITS = {bits: bits for bits in ("8", "6", "4")}
CLAIMS = {
    "bits": Claim(
        "More bits always help", "The more bits, the better the network.", COMMON,
        "The weights of a network get 2 to 8 bits per tensor; each step is tested for chance.",
        _bits, Control("Network", NETWORKS, "conv_digits", "Takes a network with or without outliers."),
        ("bits",), "Evaluating the network at seven widths …",
    ),
    "observer": Claim(
        "Histogram observers are always better",
        "Min-max gets clobbered by outliers. Histogram observers, which search the least squared error, are smarter.",
        TUTORIAL, "Two networks are ranged by min_max and by mse, weights and activations both.",
        _observer, Control("Bits", _BITS, "4", "Bits of the weights; activations have 8."),
        ("observers",), "Evaluating two networks with two observers …",
    ),
    "fusing": Claim(
        "Fusing lowers the error", "Fusing convolution, batch norm and ReLU minimizes numerical errors.", TUTORIAL,
        "The same network runs op by op and fused, in float and with values rounded in between.",
        _fusing, Control("Bits", _BITS, "8", "Bits that values between ops are rounded to."), ("folding",),
    ),
    "training": Claim(
        "PTQ cannot be trained afterwards",
        "PTQ is a one-shot deal: once you calibrate and convert, you do not get to fine-tune any more.", TUTORIAL,
        f"A network is calibrated and converted to {TRAINED_BITS} bits, and then trained on from there.",
        _training, None, ("straight_through",), "Training two epochs …",
    ),
}  # fmt: skip
