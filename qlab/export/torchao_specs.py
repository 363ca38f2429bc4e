"""QuantSpec as torchao's QuantizationSpec: dtype, codes, scheme and the nearest of its observers."""

from __future__ import annotations

from collections.abc import Iterator

from qlab.config import QuantSpec
from qlab.export.script_parts import named_layers
from qlab.export.translation import Difference, observer_words, takes_whole_range
from qlab.quant.observers import OBSERVERS


class Specs:
    """The distinct specs of a script under short names, and what each could not say."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._lost: dict[tuple[str, str, str], list[str]] = {}

    def weight(self, spec: QuantSpec, axis: int, layer: str) -> str:
        return self._add("weight", self._spec(spec, axis, layer, constant=True))

    def activation(self, spec: QuantSpec, axis: int | None, layer: str) -> str:
        return self._add("activation", self._spec(spec, axis or 0, layer, constant=False))

    def dynamic(self, spec: QuantSpec, layer: str) -> str:
        """Ranged at every call: nothing is observed, and the graph takes minimum and maximum itself."""
        observer = "PlaceholderObserver.with_args(eps=torch.finfo(torch.float32).eps)"
        scheme, signed = self._codes(spec, layer)
        return self._add("dynamic", _source(spec, signed, scheme, observer, None, dynamic=True))

    def fixed(self, scale: float, zero_point: int, quant_min: int, quant_max: int) -> str:
        dtype = _dtype(quant_min < 0, 8 if quant_max - quant_min < 256 else 16)
        lines = (
            f"dtype=torch.{dtype}", f"scale={scale!r}", f"zero_point={zero_point}", f"quant_min={quant_min}",
            f"quant_max={quant_max}", "qscheme=torch.per_tensor_affine",
        )  # fmt: skip
        source = "FixedQParamsQuantizationSpec(\n" + "".join(f"    {line},\n" for line in lines) + ")"
        return self._add("fixed", source)

    def lines(self) -> Iterator[str]:
        for source, name in self._names.items():
            yield f"{name} = {source}"

    def differences(self) -> list[Difference]:
        return [Difference(*said, named_layers(layers)) for said, layers in self._lost.items()]

    def _add(self, kind: str, source: str) -> str:
        number = sum(name.startswith(kind) for name in self._names.values()) + 1
        return self._names.setdefault(source, f"{kind}_{number}")

    def _say(self, layer: str, asked: str, written: str, why: str) -> None:
        self._lost.setdefault((asked, written, why), []).append(layer)

    def _spec(self, spec: QuantSpec, axis: int, layer: str, *, constant: bool) -> str:
        what = "weights" if constant else "activations"
        if spec.granularity == "group":
            asked = f"{what} in groups of {spec.group_size}"
            self._say(layer, asked, "one scale for each channel", "A QuantizationSpec of PT2E has no groups.")
        per_channel = spec.granularity != "tensor"
        observer = self._observer(spec, layer, what, per_channel, constant)
        scheme, signed = self._codes(spec, layer)
        return _source(
            spec,
            signed,
            f"per_{'channel' if per_channel else 'tensor'}_{scheme}",
            observer,
            axis if per_channel else None,
        )

    def _observer(self, spec: QuantSpec, layer: str, what: str, per_channel: bool, constant: bool) -> str:
        settings = OBSERVERS[spec.observer].settings(spec.observer_args)
        whole_range = takes_whole_range(spec)
        if per_channel:
            if not whole_range:
                asked = f"{what} per channel ranged by {observer_words(spec)}"
                written = "minimum and maximum of each channel (PerChannelMinMaxObserver)"
                self._say(layer, asked, written, "torchao has no other observer per channel.")
            return "PerChannelMinMaxObserver"
        if whole_range or (spec.observer == "moving_average" and constant):
            return "MinMaxObserver"
        if spec.observer == "moving_average":
            constant_text = repr(settings["averaging_constant"])
            return f"MovingAverageMinMaxObserver.with_args(averaging_constant={constant_text})"
        why = (
            "It searches the least squared error too, on a histogram of 2,048 bins, in coarser steps."
            if spec.observer == "mse"
            else "torchao has no such observer; this one looks for the least squared error."
        )
        self._say(layer, f"{what} ranged by {observer_words(spec)}", "HistogramObserver", why)
        return "HistogramObserver"

    def _codes(self, spec: QuantSpec, layer: str) -> tuple[str, bool]:
        """affine or symmetric, and whether the codes are signed."""
        signed = bool(spec.signed)
        if spec.symmetric and not signed and 8 < spec.bits < 16:
            self._say(
                layer, f"symmetric with unsigned codes of {spec.bits} bits", "symmetric with signed codes",
                "Observers of torchao put the zero point of uint16 at 32,768, whatever the codes.",
            )  # fmt: skip
            signed = True
        return ("symmetric" if spec.symmetric else "affine"), signed


def _dtype(signed: bool, bits: int) -> str:
    return f"{'int' if signed else 'uint'}{8 if bits <= 8 else 16}"


def _source(
    spec: QuantSpec, signed: bool, scheme: str, observer: str, axis: int | None, *, dynamic: bool = False
) -> str:
    low, high = spec.replace(signed=signed).quant_min, spec.replace(signed=signed).quant_max
    if not scheme.startswith("per_"):
        scheme = f"per_tensor_{scheme}"
    lines = [f"dtype=torch.{_dtype(signed, spec.bits)}"]
    # With bounds of its own an observer puts the zero point of 0..255 at 127, without them at 128.
    if not (scheme.endswith("symmetric") and not signed and spec.bits == 8 and not spec.narrow_range):
        lines += [f"quant_min={low}", f"quant_max={high}"]
    lines.append(f"qscheme=torch.{scheme}")
    if axis is not None:
        lines.append(f"ch_axis={axis}")
    if dynamic:
        lines.append("is_dynamic=True")
    lines.append(f"observer_or_fake_quant_ctr={observer}")
    return "QuantizationSpec(\n" + "".join(f"    {line},\n" for line in lines) + ")"
