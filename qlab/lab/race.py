"""Ends the evaluation of a config that is worse than another beyond chance, so that the time goes to the contenders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qlab.evaluation import mcnemar

LOOKS = (1 / 8, 1 / 4, 1 / 2)  # of the samples: when the two are compared
FEWEST = 64  # samples, below which nothing is decided
ALPHA = 0.05  # chance that a config which is no worse is dropped, over all looks together


@dataclass(frozen=True)
class Dropped:
    """After how many of the samples, and how the two stood: samples on which one did better than the other."""

    samples: int
    of: int
    worse: int
    better: int
    p: float

    @property
    def words(self) -> str:
        p = "p < 0.0001" if self.p < 1e-4 else f"p = {self.p:.2g}"
        return (
            f"stopped after {self.samples:,} of {self.of:,} samples: worse than the best so far beyond chance "
            f"({self.worse} samples worse, {self.better} better, {p})"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"words": self.words}


class Race:
    """Compares predictions as they come with those of a rival on the same samples.

    rival, right: [n] or [n, positions]. Each look is a sign test over samples, two-sided, at ALPHA / looks
    (Bonferroni): all looks together drop a config that is no worse with a chance of at most ALPHA. A sample with
    several predictions counts once, by how many are right: those within a sample are not independent.
    """

    def __init__(self, rival: np.ndarray, right: np.ndarray, looks: Sequence[float] = LOOKS) -> None:
        self._right = np.asarray(right)
        self._rival = _score(rival, self._right)
        n = len(self._rival)
        self._looks = [look for look in (int(np.ceil(share * n)) for share in looks) if FEWEST <= look < n]
        self._level = ALPHA / max(len(self._looks), 1)
        self.dropped: Dropped | None = None

    def keep_going(self, predictions: np.ndarray) -> bool:
        """Whether to go on, given all predictions so far. Looks once for each share that has been reached."""
        seen = len(predictions)
        if not self._looks or seen < self._looks[0] or seen >= len(self._rival):
            return True
        self._looks = [look for look in self._looks if look > seen]
        own = _score(predictions, self._right[:seen])
        rival = self._rival[:seen]
        worse, better = int((own < rival).sum()), int((own > rival).sum())
        p = mcnemar(worse, better)
        if worse > better and p < self._level:
            self.dropped = Dropped(seen, len(self._rival), worse, better, p)
        return self.dropped is None


def _score(predictions: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[n]: how many predictions of each sample are right."""
    return (np.asarray(predictions) == right).reshape(len(predictions), -1).sum(1)
