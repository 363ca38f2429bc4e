"""How far a piece of work is and how long it will still take, from the timings of that very work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Progress:
    """stage, and done of total within it; share of the whole work 0..1; seconds left, None while unknown."""

    stage: str
    done: int
    total: int
    share: float
    seconds_left: float | None


@dataclass(frozen=True)
class Stage:
    """One part of a piece of work.

    units: what it counts, e.g. batches. cost: of one unit, as a multiple of one batch through the float network.
    seconds: what it takes whatever the network is; such a stage has no units to learn from.
    """

    name: str
    units: int = 0
    cost: float = 1.0
    seconds: float = 0.0


class Meter:
    """Turns (stage, done, total) into share and time left.

    What a unit costs is learnt as the work goes: a stage that ran is known, one that runs is extrapolated from its own
    units, and one still to come is priced by its `cost` times the speed measured so far.
    """

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], float] = time.monotonic) -> None:
        self._stages = {s.name: s for s in stages}
        self._clock = clock
        self._begun = clock()
        self._current: str | None = None
        self._current_since = self._begun
        self._done = 0
        self._total = 0
        self._before = 0  # done of this stage by someone else: what is resumed was not done in the time since
        self._spent: dict[str, float] = {}
        self._share = 0.0

    @property
    def timings(self) -> dict[str, float]:
        """Seconds each finished stage took."""
        return dict(self._spent)

    def plan(self, stages: Sequence[Stage]) -> None:
        """What is now known about the stages to come; those not named here are dropped, those that ran stay."""
        self._stages = {n: s for n, s in self._stages.items() if n in self._spent or n == self._current}
        self._stages |= {s.name: s for s in stages if s.name not in self._spent}

    def at(self, stage: str, done: int = 0, total: int = 0) -> Progress:
        """Note that this stage is here, and say how the whole stands."""
        now = self._clock()
        if stage != self._current:
            self._leave(now)
            self._current, self._current_since = stage, now
            self._before = done
            self._stages.setdefault(stage, Stage(stage))
        self._done, self._total = done, total
        return self._progress(now)

    def finish(self) -> None:
        """The last stage is over."""
        self._leave(self._clock())
        self._current = None

    def _leave(self, now: float) -> None:
        if self._current is not None:
            self._spent[self._current] = self._spent.get(self._current, 0.0) + now - self._current_since

    def _progress(self, now: float) -> Progress:
        assert self._current is not None
        spent = now - self._begun
        left = self._seconds_left(now)
        if left is not None:
            # What was said once is not taken back: a bar that runs backwards is read as a fault.
            self._share = max(self._share, min(spent / (spent + left), 1.0) if spent + left > 0 else 0.0)
        return Progress(self._current, self._done, self._total, self._share, left)

    def _seconds_left(self, now: float) -> float | None:
        speed = self._speed(now)
        left = 0.0
        for stage in self._stages.values():
            if stage.name in self._spent and stage.name != self._current:
                continue
            if stage.name != self._current:
                if stage.units and speed is None:
                    return None
                left += stage.seconds + stage.units * stage.cost * (speed or 0.0)
                continue
            running = now - self._current_since
            if self._done > self._before and self._total:
                left += running / (self._done - self._before) * max(self._total - self._done, 0)
            elif stage.units:
                if speed is None:
                    return None
                left += max(stage.units * stage.cost * speed - running, 0.0)
            else:
                left += max(stage.seconds - running, 0.0)
        return left

    def _speed(self, now: float) -> float | None:
        """Seconds for a unit of cost 1, over everything measured so far."""
        seconds = units = 0.0
        for name, spent in self._spent.items():
            if self._stages[name].units:
                seconds += spent
                units += self._stages[name].units * self._stages[name].cost
        if self._current is not None and self._current not in self._spent:
            stage = self._stages[self._current]
            if stage.units and self._total and self._done > self._before:
                seconds += now - self._current_since
                units += stage.units * stage.cost * (self._done - self._before) / self._total
        return seconds / units if units else None
