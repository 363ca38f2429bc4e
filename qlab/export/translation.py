"""An experiment written for another tool: the text, and what that tool does differently."""

from __future__ import annotations

from dataclasses import dataclass

from qlab.config import QuantSpec
from qlab.quant.observers import OBSERVERS


@dataclass(frozen=True)
class Difference:
    """One thing that the written file cannot say as it was asked.

    asked: what the experiment says. written: what the file does instead. why: the reason.
    layers: those it concerns; () for all of them.
    """

    asked: str
    written: str
    why: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Translation:
    """text: the file. file_name: what to call it. differences: () if it does exactly what was asked."""

    text: str
    file_name: str
    differences: tuple[Difference, ...]


def observer_words(spec: QuantSpec) -> str:
    """The rule of a range with its settings: percentile (percentile 99.99)."""
    settings = ", ".join(f"{k} {v}" for k, v in OBSERVERS[spec.observer].settings(spec.observer_args).items())
    return f"{spec.observer}{f' ({settings})' if settings else ''}"


def takes_whole_range(spec: QuantSpec) -> bool:
    """Whether nothing is cut off: what every tool calls minimum and maximum."""
    return spec.observer == "min_max" or OBSERVERS[spec.observer].settings(spec.observer_args).get("percentile") == 100
