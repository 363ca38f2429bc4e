"""Claims about what a tool does with a layer: what PyTorch stores, and whether outliers keep a layer in float."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from qlab.analysis.torch_converted import TorchConverted, torch_converted
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.graph.capture import load_model
from qlab.graph.lower import attribute
from qlab.lessons.myths.claim import WEB, Bar, Bars, Claim, Control, Outcome, Verdict
from qlab.lessons.samples import sample
from qlab.metrics import write
from qlab.quant.error import sqnr

NETWORK, LAYER = "conv_digits", "classifier"
FACTORS = (1, 10, 100, 1000)  # times the largest weight, which one weight is made


@lru_cache(maxsize=4)
def _in_torch(factor: int) -> TorchConverted:
    """What PyTorch makes of the layer, one weight of it times a factor of the largest."""
    weight = sample(NETWORK).weights[f"{LAYER}.weight"].clone()
    weight[0, 0] = weight.abs().max() * factor
    return torch_converted(weight)


@lru_cache(maxsize=1)
def _state_dict(_: str) -> Outcome:
    found = _in_torch(1)
    holds = [entry.holds for entry in found.stored]
    old, integers = holds.count("float weight"), holds.count("integers")
    verdict: Verdict = "depends" if old and integers else "true" if old else "false"
    alone = found.alone
    example = (
        f"A layer handed to prepare and convert by itself, as in that answer, stays a `{_short(alone.after)}`: it was "
        "never quantized, so its float weight is all there is."
        if alone.float_weight
        else f"A layer handed to prepare and convert by itself becomes a `{_short(alone.after)}`."
    )
    works = [attempt for attempt in found.attempts if attempt.works]
    return Outcome(
        verdict,
        f"Of {len(holds)} entries {integers} hold{'s' if integers == 1 else ''} the integers of the weight and "
        f"{old or 'none'} the float weight from before. {example}",
        (
            ("Entries", str(len(holds)), f"torch {found.version}", "Of the state_dict after convert."),
            ("With integers", str(integers), None, "Entries that hold the integers the layer computes with."),
            ("With the float weight", str(old), None, "Entries that hold the weight from before quantization."),
            ("Ways to write that work", f"{len(works)} of {len(found.attempts)}", None,
             "Ways of changing an integer after which module and state_dict both have it."),
        ),
        Bars(
            tuple(
                Bar(attempt.name, float(attempt.held), f"{attempt.held:,}{', stored' if attempt.stored else ''}",
                    "gained" if attempt.works else "error")
                for attempt in found.attempts
            ),
            "integers of the module that changed (stored: in its state_dict, too)",
        ),
        "What does not change is a copy: weight() and state_dict() give unpacked copies, and writing to a copy reaches "
        f"nobody. {', '.join(f'`{attempt.name}`' for attempt in works) or 'No way'} "
        f"{'reaches' if len(works) < 2 else 'reach'} the module and its state_dict.",
    )  # fmt: skip


def _short(name: str) -> str:
    return name.removeprefix("torch.")


@lru_cache(maxsize=4)
def _outlier(bits: str) -> Outcome:
    mapping = QConfigMapping(default=QConfig(QuantSpec(int(bits), "per_tensor_symmetric"), mode="weight_only"))
    held, left = 0, []
    for factor in FACTORS:
        network = load_model(NETWORK)  # of its own: its weight is changed
        weight = attribute(network.graph_module, network.node(LAYER).args[1])
        assert weight is not None
        with torch.no_grad():
            weight[0, 0] = weight.abs().max() * factor
        quantized = convert(network, mapping)
        held += next(row.quantized for row in quantized.ledger if row.layer == LAYER)
        left.append(sqnr(weight.detach().flatten()[1:], quantized.weights[LAYER].dequantize().flatten()[1:]))
    found = _in_torch(FACTORS[-1])
    in_torch = any(entry.holds == "integers" for entry in found.stored)
    verdict: Verdict = "false" if held == len(FACTORS) and in_torch else "depends" if held or in_torch else "true"
    return Outcome(
        verdict,
        f"One weight was made up to {FACTORS[-1]:,} times the largest. The layer was quantized {held} of "
        f"{len(FACTORS)} times here, and in PyTorch it {'was quantized, too' if in_torch else 'stayed float'}. What "
        f"changes is what is left of the other weights: {write('sqnr', left[0])} without an outlier, "
        f"{write('sqnr', left[-1])} with the largest.",
        (
            ("Quantized all the same", f"{held} of {len(FACTORS)}", None, "By the ledger of the engine."),
            ("In PyTorch", "integers" if in_torch else "float", f"torch {found.version}",
             f"With the largest outlier: {found.module}, scales per channel."),
            ("Others, without outlier", write("sqnr", left[0]), None, "SQNR of all other weights of the layer."),
            ("Others, with the largest", write("sqnr", left[-1]), None, "SQNR of the same weights."),
        ),
        Bars(
            tuple(
                Bar(f"largest × {factor:,}", value if math.isfinite(value) else 0.0, write("sqnr", value),
                    "quantized" if i == 0 else "error")
                for i, (factor, value) in enumerate(zip(FACTORS, left, strict=True))
            ),
            "SQNR of all other weights (dB)",
        ),
        "No tool looks at the values to decide whether a layer is quantized: the config, the type of the layer and "
        "what surrounds it decide. An outlier makes the result bad, and nothing says so.",
    )  # fmt: skip


CLAIMS = {
    "state_dict": Claim(
        "state_dict shows the old weights",
        "After quantization the state_dict shows the weights from before, and the quantized ones live elsewhere.",
        WEB,
        "A linear layer is converted by PyTorch, its state_dict is read, and its integers are written to in several "
        "ways.",
        _state_dict, None, ("state_dict",), "Converting layers in PyTorch …",
    ),
    "outlier": Claim(
        "Outliers keep a linear from being quantized",
        "Some nn.Linear layers are not quantized, because of outliers in their weights.",
        WEB,
        "One weight of a linear layer is made larger and larger, and the layer is converted here and in PyTorch.",
        _outlier,
        Control("Bits", {bits: bits for bits in ("8", "6", "4")}, "8", "Bits of the weights, one scale per tensor."),
        ("not_quantized", "observers"), "Converting the layer with larger and larger weights …",
    ),
}  # fmt: skip
