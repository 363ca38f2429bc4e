"""What a few turns of timing allow to say: faster, slower, or noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qlab.evaluation import mcnemar
from qlab.runtime.latency import Timing

ENOUGH = 9  # turns with which a difference can be told from chance even if one of them falls the other way
CHANCE = 0.05  # what comes this often by chance alone is noise


@dataclass(frozen=True)
class Speed:
    """One network against another, from the same turns. ratio: (lower quartile, median, upper quartile) of how many
    times faster it was. p: how often turns would fall this unevenly by chance, if both took the same time."""

    ratio: tuple[float, float, float]
    turns: int
    p: float

    @property
    def outcome(self) -> Literal["faster", "slower", "noise"]:
        """noise where 1 lies between the quartiles, and where so few turns split like that by chance."""
        low, _, high = self.ratio
        if low <= 1 <= high or self.p >= CHANCE:
            return "noise"
        return "faster" if low > 1 else "slower"

    @property
    def written(self) -> str:
        """1.18 × [1.10, 1.25]"""
        low, median, high = self.ratio
        return f"{median:.2f} × [{low:.2f}, {high:.2f}]"


def speed(timing: Timing, name: str, against: str) -> Speed:
    """How many times faster `name` is than `against`, turn by turn."""
    pairs = list(zip(timing.seconds[name], timing.seconds[against], strict=True))
    ahead, behind = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    return Speed(timing.ratio(against, name), len(pairs), mcnemar(ahead, behind))
