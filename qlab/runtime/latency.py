"""How long one call takes, of several networks side by side: turn by turn, so that drift of the machine cancels.

Threads of ONNX Runtime and of OpenMP go on spinning for a while after a call, in wait of the next, and take the cores
from whoever is called then. So each network has the machine to itself for a moment before it is timed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Call = Callable[[], Any]
SETTLE = 0.015  # seconds of untimed calls before those that count; what others left spinning has stopped by then
TIMED = 3  # short calls in a row, of which the median is one turn; of long ones a single call is


@dataclass(frozen=True)
class Latency:
    """Seconds of one call. low, high: quartiles. runs: turns that were timed, after the warm-up."""

    median: float
    low: float
    high: float
    runs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Named latencies of one batch size, and how they compare turn by turn.

    ratio(a, b): median of the ratios within each turn, with their quartiles.
    """

    batch: int
    threads: int
    seconds: Mapping[str, tuple[float, ...]]

    def latency(self, name: str) -> Latency:
        times = self.seconds[name]
        low, median, high = _quartiles(times)
        return Latency(median, low, high, len(times))

    def ratio(self, a: str, b: str) -> tuple[float, float, float]:
        """(lower quartile, median, upper quartile) of time of a over time of b, turn by turn."""
        return _quartiles([x / y for x, y in zip(self.seconds[a], self.seconds[b], strict=True)])

    def to_dict(self) -> dict[str, Any]:
        return {"batch": self.batch, "threads": self.threads, "seconds": {k: list(v) for k, v in self.seconds.items()}}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Timing:
        return cls(d["batch"], d["threads"], {k: tuple(v) for k, v in d["seconds"].items()})


def time_calls(
    calls: Mapping[str, Call], batch: int, threads: int, *, budget: float = 2.0, least: int = 5, most: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> Timing:  # fmt: skip
    """Time these calls turn by turn: each once a turn, in an order that changes, so that none always follows the same.

    Warms each up, then takes as many turns as `budget` seconds allow, from `least` to `most`. Turns that a pause of the
    machine fell into stay in; medians and quartiles do not mind them. progress(done, total) after every turn.
    """
    for call in calls.values():
        call()
    start = time.perf_counter()
    for call in calls.values():
        _settled(call)
    turns = max(least, min(most, int(budget / (time.perf_counter() - start))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffled = list(calls), random.Random(0)
    for turn in range(turns):
        shuffled.shuffle(order)
        for name in order:
            seconds[name].append(_settled(calls[name]))
        if progress is not None:
            progress(turn + 1, turns)
    return Timing(batch, threads, {name: tuple(times) for name, times in seconds.items()})


def _settled(call: Call) -> float:
    start = time.perf_counter()
    call()
    if (first := time.perf_counter() - start) >= SETTLE:
        return _timed(call)
    while time.perf_counter() - start < SETTLE - first:
        call()
    return statistics.median(_timed(call) for _ in range(TIMED))


def _timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high
