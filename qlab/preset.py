"""Named configs: the defaults that runtimes and other tools use, each with the sentence that explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig


@dataclass(frozen=True)
class Preset:
    name: str
    title: str
    summary: str
    mapping: QConfigMapping


def _static(weight: QuantSpec, activation: QuantSpec) -> QConfigMapping:
    return QConfigMapping(default=QConfig(weight=weight, activation=activation))


_W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
_U8 = QuantSpec(bits=8, qscheme="per_tensor_affine")

_ALL = (
    Preset(
        "x86", "x86 server", "int8 weights per channel, uint8 activations ranged by least squared error; "
        "what a server CPU runs well.", _static(_W8, _U8.replace(observer="mse")),
    ),
    Preset(
        "x86_avx2", "x86 before VNNI", "7-bit weights per channel, uint8 activations: sums of two products then fit "
        "the 16 bits in which CPUs with AVX2 and without VNNI add them, so that fast is also exact.",
        _static(_W8.replace(bits=7), _U8.replace(observer="mse")),
    ),
    Preset(
        "arm", "Arm (QNNPACK)", "int8 weights per tensor, as PyTorch's QNNPACK default has them; small and fast, "
        "and hard on depthwise layers.",
        _static(QuantSpec(bits=8, qscheme="per_tensor_symmetric"), _U8.replace(observer="mse")),
    ),
    Preset(
        "tflite", "LiteRT (TensorFlow Lite)", "int8 weights per channel without -128, int8 activations with a zero "
        "point.",
        _static(_W8.replace(narrow_range=True), _U8.replace(signed=True)),
    ),
    Preset(
        "onnxruntime", "ONNX Runtime", "int8 weights per channel, uint8 activations from minimum and maximum, "
        "as quantize_static does.", _static(_W8, _U8),
    ),
    Preset(
        "tensorrt", "TensorRT style", "int8 on both sides, symmetric, activations ranged by entropy.",
        _static(_W8.replace(narrow_range=True), QuantSpec(bits=8, qscheme="per_tensor_symmetric", observer="entropy")),
    ),
    Preset(
        "dynamic", "Dynamic", "int8 weights; linear and recurrent layers range their input at every call. "
        "No calibration needed.",
        QConfigMapping(default=QConfig(weight=_W8, activation=_U8, mode="dynamic")),
    ),
    Preset(
        "int8_weight_only", "Weights 8 bit", "int8 weights per channel, activations stay float: smaller, not faster "
        "arithmetic.",
        QConfigMapping(default=QConfig(weight=_W8, mode="weight_only")),
    ),
    Preset(
        "int4_weight_only", "Weights 4 bit", "4-bit weights with a scale for every channel, activations stay float.",
        QConfigMapping(default=QConfig(weight=_W8.replace(bits=4, observer="mse"), mode="weight_only")),
    ),
    Preset(
        "int4_grouped", "Weights 4 bit, groups of 32", "4-bit weights with a scale for every 32 values; layers whose "
        "rows do not divide by 32 stay float. What language models are stored in.",
        QConfigMapping(
            default=QConfig(weight=QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=32), mode="weight_only")
        ),
    ),
    Preset(
        "w4a8", "W4 A8", "4-bit weights per channel by least squared error, 8-bit activations.",
        _static(_W8.replace(bits=4, observer="mse"), _U8.replace(observer="mse")),
    ),
    Preset(
        "float", "Float", "nothing is quantized: the reference.", QConfigMapping(),
    ),
)  # fmt: skip


class _Presets(Mapping[str, QConfigMapping]):
    """Preset name -> QConfigMapping; `presets.about(name)` has title and summary."""

    def __init__(self, items: tuple[Preset, ...]) -> None:
        self._items = {p.name: p for p in items}

    def about(self, name: str) -> Preset:
        if name not in self._items:
            raise InvalidConfig(f"preset {name!r} is not known: use one of {', '.join(self._items)}.")
        return self._items[name]

    def __getitem__(self, name: str) -> QConfigMapping:
        return self.about(name).mapping

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


presets = _Presets(_ALL)
