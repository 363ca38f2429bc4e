"""QuantSpec as settings of ONNX Runtime's quantizers: types, ranges, and the nearest way to calibrate."""

from __future__ import annotations

from collections.abc import Callable

from qlab.config import QuantSpec
from qlab.export.translation import Difference, observer_words, takes_whole_range
from qlab.quant.observers import OBSERVERS

ENTROPY_BINS = 128
# (layers, asked, written, why)
Say = Callable[[tuple[str, ...], str, str, str], None]
BLOCKS = (16, 32, 64, 128, 256)
# Codes as onnxruntime.quantization.quant_utils has them: full, symmetric, with reduce_range.
_RANGES = {
    ("QUInt4", False): (0, 15), ("QInt4", False): (-8, 7), ("QUInt8", False): (0, 255), ("QInt8", False): (-128, 127),
    ("QUInt16", False): (0, 65535), ("QInt16", False): (-32768, 32767), ("QInt8", True): (-127, 127),
    ("QInt16", True): (-32767, 32767),
}  # fmt: skip
_REDUCED = {"QUInt8": (0, 127), "QInt8": (-64, 64)}


class Settings:
    """One call of a quantizer. longest: input channels of the widest linear layer, which one block has to span."""

    def __init__(self, mode: str, weight: QuantSpec | None, activation: QuantSpec | None, longest: int):
        self.mode, self.weight, self.activation, self.longest = mode, weight, activation, longest

    @property
    def weight_type(self) -> str:
        if self.weight is None:
            return "QInt8"
        # A dynamic kernel takes bytes.
        return _type(self.weight, 4 if self.weight.bits <= 4 and self.mode == "static" else 8)

    @property
    def activation_type(self) -> str:
        if self.activation is None:
            return "QUInt8"
        return _type(self.activation, 8 if self.activation.bits <= 8 else 16)

    @property
    def reduced(self) -> bool:
        return self.weight is not None and self.weight.bits == 7

    @property
    def block(self) -> int:
        if self.weight is not None and self.weight.group_size is not None:
            return min(BLOCKS, key=lambda b: abs(b - (self.weight.group_size or 0)))  # type: ignore[union-attr]
        return next((b for b in BLOCKS if b >= self.longest), BLOCKS[-1])

    @property
    def block_bits(self) -> int:
        assert self.weight is not None
        return next(b for b in (2, 4, 8) if b >= self.weight.bits)

    # ---- what is lost

    def differences(self, weights: tuple[str, ...], activations: tuple[str, ...]) -> list[Difference]:
        out: list[Difference] = []

        def say(layers: tuple[str, ...], asked: str, written: str, why: str) -> None:
            out.append(Difference(asked, written, why, layers))

        if self.weight is not None and weights:
            self._of_weights(self.weight, weights, say)
        if self.activation is not None and activations:
            self._of_activations(self.activation, activations, say)
        return out

    def _of_weights(self, spec: QuantSpec, layers: tuple[str, ...], say: Say) -> None:
        if not takes_whole_range(spec):
            why = "ONNX Runtime ranges weights by minimum and maximum."
            say(layers, f"weights ranged by {observer_words(spec)}", "minimum and maximum", why)
        if self.mode == "weight_only":
            if spec.bits != self.block_bits:
                why = "MatMulNBits has 2, 4 and 8 bits."
                say(layers, f"{spec.bits}-bit weights", f"{self.block_bits}-bit weights", why)
            if spec.group_size is None:
                if spec.granularity == "tensor" or self.longest > self.block:
                    asked = f"one scale for each {spec.granularity}"
                    why = f"MatMulNBits has blocks of {BLOCKS[0]} to {BLOCKS[-1]}."
                    say(layers, asked, f"one for each {self.block} weights", why)
            elif spec.group_size != self.block:
                why = f"Blocks are powers of two from {BLOCKS[0]} to {BLOCKS[-1]}."
                say(layers, f"groups of {spec.group_size}", f"blocks of {self.block}", why)
            if spec.symmetric and (spec.narrow_range or not spec.signed):
                why = "MatMulNBits holds unsigned codes around a zero point in the middle, all of them in use."
                say(layers, f"codes {spec.quant_min}..{spec.quant_max}", f"{2**self.block_bits} codes", why)
            if spec.symmetric:
                half = 2 ** (self.block_bits - 1)
                why = "MatMulNBitsQuantizer lays the largest value of a block on its lowest code, with its sign."
                say(layers, f"steps of max |w| / {(spec.quant_max - spec.quant_min) / 2:g}", f"max |w| / {half}", why)
            return
        if spec.group_size is not None:
            why = "Scales stand for tensors or channels."
            say(layers, f"weights in groups of {spec.group_size}", "one scale for each channel", why)
        self._codes(spec, self.weight_type, self.reduced, "weight", layers, say)

    def _of_activations(self, spec: QuantSpec, layers: tuple[str, ...], say: Say) -> None:
        if self.mode == "dynamic":
            if (spec.bits, spec.signed, spec.symmetric, spec.narrow_range) != (8, False, False, False):
                why = "DynamicQuantizeLinear knows uint8 with a zero point alone."
                say(layers, f"activations as {spec}", "uint8 with a zero point", why)
            return
        if spec.granularity == "channel":
            why = "Activations have one scale in ONNX Runtime's quantizer."
            say(layers, "activations per channel", "activations per tensor", why)
        if spec.observer == "mse":
            why = "ONNX Runtime has no rule of least squared error; nothing is clipped."
            say(layers, f"activations ranged by {observer_words(spec)}", "minimum and maximum", why)
        if spec.observer == "entropy":
            bins = OBSERVERS["entropy"].settings(spec.observer_args)["bins"]
            why = "quantize_static has no setting for it."
            say(layers, f"entropy on {bins} bins", f"entropy on {ENTROPY_BINS} bins", why)
        if spec.observer == "moving_average":
            why = "Within one pass CalibMovingAverage takes the plain mean of the batches' ranges."
            say(layers, f"activations ranged by {observer_words(spec)}", "the mean of the batches' ranges", why)
        self._codes(spec, self.activation_type, False, "activation", layers, say)

    def _codes(self, spec: QuantSpec, kind: str, reduced: bool, what: str, layers: tuple[str, ...], say: Say) -> None:
        written = _REDUCED[kind] if reduced else _RANGES.get((kind, spec.symmetric), _RANGES[kind, False])
        if written != (spec.quant_min, spec.quant_max):
            asked = f"{what} codes {spec.quant_min}..{spec.quant_max}"
            why = "ONNX Runtime chooses the codes of a type itself, and symmetric signed ones without the lowest."
            say(layers, asked, f"{written[0]}..{written[1]}", why)

    # ---- the call

    def call(self, types: tuple[str, ...]) -> str:
        return {"static": self._static, "dynamic": self._dynamic, "weight_only": self._blocks}[self.mode](types)

    def _static(self, types: tuple[str, ...]) -> str:
        weight = self.weight
        options: dict[str, object] = {
            "WeightSymmetric": weight is None or weight.symmetric,
            "ActivationSymmetric": self.activation is not None and self.activation.symmetric,
        }
        method = "MinMax"
        if self.activation is not None:
            settings = OBSERVERS[self.activation.observer].settings(self.activation.observer_args)
            if self.activation.observer == "percentile":
                method, options["CalibPercentile"] = "Percentile", settings["percentile"]
            elif self.activation.observer == "entropy":
                method = "Entropy"
            if method != "MinMax":
                # Percentile looks at |x| unless told otherwise, entropy at both ends apart.
                options["CalibTensorRangeSymmetric"] = self.activation.symmetric
            if self.activation.observer == "moving_average":
                options["CalibMovingAverage"] = True
                options["CalibMovingAverageConstant"] = settings["averaging_constant"]
        return f"""
class Reader(CalibrationDataReader):
    def __init__(self):
        self.items = (dict(zip(names, x)) for x, _ in batches(calibration_rows))

    def get_next(self):
        return next(self.items, None)


quantize_static(
    FLOAT,
    OUTPUT,
    Reader(),
    quant_format=QuantFormat.QDQ,
    op_types_to_quantize={list(types)!r},
    per_channel={weight is None or weight.granularity != "tensor"},
    reduce_range={self.reduced},
    activation_type=QuantType.{self.activation_type},
    weight_type=QuantType.{self.weight_type},
    nodes_to_exclude=excluded,
    calibrate_method=CalibrationMethod.{method},
    extra_options={options!r},
)
"""

    def _dynamic(self, types: tuple[str, ...]) -> str:
        assert self.weight is not None
        # Gemm becomes MatMul and Add on the way; it is named all the same, so that it is looked at.
        return f"""quantize_dynamic(
    FLOAT,
    OUTPUT,
    op_types_to_quantize={list(types)!r},
    per_channel={self.weight.granularity != "tensor"},
    reduce_range={self.reduced},
    weight_type=QuantType.{self.weight_type},
    nodes_to_exclude=excluded,
    extra_options={{"MatMulConstBOnly": True, "WeightSymmetric": {self.weight.symmetric}}},
)
"""

    def _blocks(self, types: tuple[str, ...]) -> str:
        assert self.weight is not None
        return f"""product = ONNXModel(onnx.load(FLOAT))
product.replace_gemm_with_matmul()  # the quantizer knows MatMul alone
quantizer = MatMulNBitsQuantizer(
    product.model,
    bits={self.block_bits},
    block_size={self.block},
    is_symmetric={self.weight.symmetric},
    nodes_to_exclude=excluded,
)
quantizer.process()
quantizer.model.save_model_to_file(OUTPUT)
"""


def _type(spec: QuantSpec, bits: int) -> str:
    return f"Q{'' if spec.signed else 'U'}Int{bits}"
