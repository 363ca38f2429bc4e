"""What a claim is, and what came out when it was tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from qlab.errors import InvalidConfig

Verdict = Literal["true", "false", "depends"]
VERDICTS: Mapping[Verdict, str] = {"true": "true here", "false": "false here", "depends": "it depends"}
Ink = Literal["float", "quantized", "error", "gained", "neutral", "range"]
WEB, TUTORIAL, COMMON = "from an answer on the web", "from a tutorial on the web", "heard often"


@dataclass(frozen=True)
class Bar:
    """One thing that was measured. text: the value as it is written. ink: its colour by meaning."""

    label: str
    value: float
    text: str
    ink: Ink = "quantized"


@dataclass(frozen=True)
class Bars:
    """axis: title with its unit. mark: a value to draw across, with its name."""

    bars: tuple[Bar, ...]
    axis: str
    mark: tuple[float, str] | None = None


@dataclass(frozen=True)
class Outcome:
    """verdict: chosen from the numbers. because: a sentence with them. notice: what to learn from it.

    figures: (label, value, note, help), as `widgets.figures` takes them.
    """

    verdict: Verdict
    because: str
    figures: tuple[tuple[str, str, str | None, str], ...]
    bars: Bars
    notice: str


@dataclass(frozen=True)
class Control:
    """What can be varied. options: key to what it says."""

    label: str
    options: Mapping[str, str]
    default: str
    help: str


@dataclass(frozen=True)
class Claim:
    """title: in a few words. quote: the claim in a sentence; source: what kind of place it is from.

    test: what is done to try it, a sentence. control: None where nothing is varied. lessons: slugs that teach it.
    run: the measurement, of the option of its control ("" without one). waiting: what takes so long.
    """

    title: str
    quote: str
    source: str
    test: str
    run: Callable[[str], Outcome]
    control: Control | None = None
    lessons: tuple[str, ...] = ()
    waiting: str = "Measuring …"

    def outcome(self, option: str) -> Outcome:
        """Runs the test. Raises InvalidConfig for an option the control does not have."""
        known = ("",) if self.control is None else tuple(self.control.options)
        if option not in known:
            raise InvalidConfig(f"{self.title!r} has no option {option!r}: use one of {', '.join(known)}.")
        return self.run(option)
