"""What each figure is called, its unit, which way is better and how it is written: one table for all pages.

Shares (accuracy, clipped, ...) are kept as fractions 0..1 everywhere and become percent only when written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", "none"]
MINUS = "−"
BYTES = ("B", "kB", "MB", "GB", "TB")
MISSING = "–"


@dataclass(frozen=True)
class Metric:
    """One figure. `write` turns a finite value into text with its unit; `better` says which way is good."""

    key: str
    label: str
    unit: str
    better: Direction
    write: Callable[[float], str]
    help: str

    def format(self, value: float | None) -> str:
        """The value with its unit. None is a dash (there is none); NaN and infinity are named, never hidden."""
        if value is None:
            return MISSING
        value = float(value)
        if math.isnan(value):
            return "not defined"
        if math.isinf(value):
            return join(f"{MINUS if value < 0 else ''}∞", self.unit)
        return self.write(value).replace("-", MINUS)

    def delta(self, value: float | None) -> str:
        """A difference with its sign; shares differ in points (pt)."""
        if value is None:
            return MISSING
        if self.unit == "%" and math.isfinite(value):
            text = f"{value * 100:+.1f} pt"
            return "0.0 pt" if text in ("+0.0 pt", "-0.0 pt") else text.replace("-", MINUS)
        text = self.format(value)
        return text if value <= 0 or math.isnan(value) else f"+{text}"

    def interval(self, low: float, high: float) -> str:
        """`[89.4, 92.9]`, in the metric's unit, which is not repeated."""
        ends = (self.format(end).removesuffix(self.unit).strip() for end in (low, high))
        return f"[{', '.join(ends)}]"

    @property
    def axis(self) -> str:
        """Title of an axis that shows this figure."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


def join(number: str, unit: str) -> str:
    return f"{number} {unit}" if unit else number


def percent(value: float) -> str:
    """97.8 %; what is small but not zero never reads as zero: < 0.01 %."""
    if value == 0:
        return "0 %"
    size = abs(value) * 100
    if size < 0.01:
        return f"{'> -' if value < 0 else '< '}0.01 %"
    # 99.97 must not read as "100.0 %": a share short of everything keeps the digits that show it
    digits = 2 if size < 1 or 99.95 <= size < 100 else 1
    return "> 99.99 %" if 99.995 <= size < 100 else f"{value * 100:.{digits}f} %"


def plain_percent(value: float) -> str:
    return f"{value * 100:.1f} %"


def three_digits(value: float) -> str:
    """Three significant digits: 0.0123, 1.23e-05, 123."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def cosine(value: float) -> str:
    """As many digits as tell it from 1."""
    apart = 1 - value
    if abs(apart) < 5e-8:
        return "1"
    return f"{value:.{min(7, max(3, 1 - math.floor(math.log10(abs(apart)))))}f}"


def whole(value: float) -> str:
    return f"{round(value):,}"


def counted(number: int, what: str) -> str:
    """1 epoch, 20 epochs."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def step_of(value: float, base: float, count: int) -> int:
    """The largest power of the base, below `count`, in which the number as it is written is 1 or above."""
    size, power = abs(value), 0
    while size >= base * 0.9995 and power < count - 1:
        size, power = size / base, power + 1
    return power


def in_steps(value: float, base: float, steps: tuple[str, ...]) -> str:
    """Three significant digits in the largest unit that keeps the number at 1 or above."""
    power = step_of(value, base, len(steps))
    size = abs(value) / base**power
    number = f"{size:.0f}" if power == 0 or size >= 100 else f"{size:.1f}" if size >= 10 else f"{size:.2f}"
    return join(f"{'-' if value < 0 else ''}{number}", steps[power])


def steps(value: float) -> str:
    """1 step, 17 steps; what lies between two steps keeps three digits."""
    near = round(value)
    number = f"{near:,}" if abs(value - near) < 1e-3 else three_digits(value)
    return f"{number} step{'' if number in ('1', '-1') else 's'}"


def byte_size(value: float) -> str:
    return in_steps(value, 1000, BYTES)


def large_count(value: float) -> str:
    return in_steps(value, 1000, ("", "k", "M", "G", "T"))


def duration(seconds: float) -> str:
    """1.24 ms, 830 µs, 3.10 s, 2 min 05 s."""
    size = abs(seconds)
    if size >= 59.95:
        minutes, rest = divmod(round(size), 60)
        return f"{minutes} min {rest:02d} s"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if size * factor >= 0.9995 or unit == "µs":
            return f"{three_digits(seconds * factor)} {unit}"
    raise AssertionError("the last unit always returns")


COMPUTED = {"simulated": "simulated", "integer": "on integer kernels"}  # backend -> how a figure came about, in words


def about_duration(seconds: float) -> str:
    """A time that is estimated, in whole seconds: less than 1 s, about 3 s, about 2 min 05 s."""
    whole = round(seconds)
    if whole < 1:
        return "less than 1 s"
    return f"about {whole} s" if whole < 60 else f"about {duration(whole)}"


def duration_range(low: float, high: float) -> str:
    """`1.70 … 1.75 ms`: both ends in the unit of the higher one."""
    _, unit = duration(high).split(" ", 1)
    if unit not in ("s", "ms", "µs"):
        return f"{duration(low)} … {duration(high)}"
    factor = {"s": 1.0, "ms": 1e3, "µs": 1e6}[unit]
    return f"{three_digits(low * factor)} … {three_digits(high * factor)} {unit}"


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("accuracy", "Accuracy", "%", "up", plain_percent, "Share of samples whose largest output is the label."),
        Metric(
            "agreement",
            "Agreement with float",
            "%",
            "up",
            plain_percent,
            "Share of samples on which both networks name the same class; needs no labels.",
        ),
        Metric("lost", "Lost", "", "down", whole, "Samples that were right in float and are wrong when quantized."),
        Metric("gained", "Gained", "", "up", whole, "Samples that were wrong in float and are right when quantized."),
        Metric(
            "p_value",
            "p",
            "",
            "none",
            three_digits,
            "How often chance alone would flip this unevenly, if both networks were equally good (McNemar).",
        ),
        Metric(
            "sqnr",
            "SQNR",
            "dB",
            "up",
            lambda v: f"{v:.1f} dB",
            "Signal over quantization noise; 6 dB more is half the error, which is what one more bit gives.",
        ),
        Metric("cosine", "Cosine", "", "up", cosine, "Of the angle between float and quantized; 1 is best."),
        Metric("largest_error", "Largest error", "", "down", three_digits, "Of one value, in the tensor's own unit."),
        Metric(
            "mean_shift",
            "Mean shift",
            "σ",
            "down",
            lambda v: f"{three_digits(v)} σ",
            "Mean error of the worst channel over the standard deviation of the float values.",
        ),
        Metric(
            "loss", "Loss", "nats", "down", lambda v: f"{three_digits(v)} nats", "Mean cross-entropy of the labels."
        ),
        Metric("clipped", "Clipped", "%", "down", percent, "Share of the values that lie outside the range."),
        Metric(
            "roundoff_error", "Round-off", "%", "none", percent, "Share of the squared error made between grid points."
        ),
        Metric("clip_error", "Clip error", "%", "none", percent, "Share of the squared error made outside the range."),
        Metric("scale", "Scale", "", "none", three_digits, "Distance between two neighbouring grid points."),
        Metric("zero_point", "Zero point", "", "none", whole, "The integer code that stands for exactly 0."),
        Metric("levels", "Levels used", "", "up", whole, "Grid points that at least one value lands on."),
        Metric("minimum", "Minimum", "", "none", three_digits, "Smallest value seen."),
        Metric("maximum", "Maximum", "", "none", three_digits, "Largest value seen."),
        Metric("low", "Low", "", "none", three_digits, "Smallest value the grid can hold."),
        Metric("high", "High", "", "none", three_digits, "Largest value the grid can hold."),
        Metric("bits", "Bits", "bit", "down", lambda v: f"{v:.0f} bit", "Bits of one code."),
        Metric(
            "size",
            "Size",
            "B",
            "down",
            byte_size,
            "Bytes of all weights: packed codes, scales, zero points, and what stays float.",
        ),
        Metric("ratio", "Ratio", "×", "up", lambda v: f"{three_digits(v)} ×", "How many times smaller or faster."),
        Metric("latency", "Latency", "s", "down", duration, "Time of one call."),
        Metric(
            "steps",
            "Difference",
            "steps",
            "down",
            steps,
            "Distance of two integers that should be the same, in steps of the tensor's scale.",
        ),
        Metric("duration", "Duration", "s", "down", duration, "Time the job took."),
        Metric("parameters", "Parameters", "", "down", large_count, "Numbers the network has learned."),
        Metric("macs", "MACs", "", "down", large_count, "Multiplications with addition, for one sample."),
        Metric("samples", "Samples", "", "none", whole, "Examples counted."),
    )
}


def metric(key: str) -> Metric:
    """The entry for this key. Raises KeyError that lists the known ones."""
    if key not in METRICS:
        raise KeyError(f"no metric {key!r}: use one of {', '.join(METRICS)}.")
    return METRICS[key]


def write(key: str, value: float | None) -> str:
    """`write("sqnr", 31.42)` is "31.4 dB"."""
    return metric(key).format(value)
