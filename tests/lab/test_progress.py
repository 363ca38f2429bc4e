"""Share and time left, on a clock of our own."""

import pytest

from qlab.lab.progress import Meter, Stage


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_stage_to_come_is_priced_by_the_speed_so_far(clock: Clock) -> None:
    meter = Meter([Stage("a", units=10, cost=1), Stage("b", units=5, cost=2), Stage("c", seconds=3)], clock)
    assert meter.at("a", 0, 10).seconds_left is None  # nothing is known yet
    clock.now = 4.0
    now = meter.at("a", 4, 10)  # a second for a unit: 6 left here, 10 in b, 3 in c
    assert now.seconds_left == pytest.approx(6 + 10 + 3)
    assert now.share == pytest.approx(4 / 23)


def test_a_running_stage_goes_by_its_own_units(clock: Clock) -> None:
    meter = Meter([Stage("a", units=10), Stage("b", units=10)], clock)
    meter.at("a", 0, 10)
    clock.now = 10.0
    assert meter.at("b", 0, 10).seconds_left == pytest.approx(10)
    clock.now = 30.0  # b is four times slower than a was
    assert meter.at("b", 5, 10).seconds_left == pytest.approx(20)


def test_share_never_falls(clock: Clock) -> None:
    meter = Meter([Stage("a", units=10), Stage("b", units=10)], clock)
    shares = []
    for stage, pace in (("a", 0.1), ("b", 5.0)):
        for step in range(10):
            shares.append(meter.at(stage, step, 10).share)
            clock.now += pace
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1


def test_stages_learnt_late_and_dropped(clock: Clock) -> None:
    meter = Meter([Stage("load", seconds=1), Stage("old", units=100)], clock)
    meter.at("load")
    meter.plan([Stage("work", units=4)])
    clock.now = 1.0
    meter.at("work", 0, 4)
    clock.now = 3.0
    assert meter.at("work", 2, 4).seconds_left == pytest.approx(2)
    clock.now = 5.0
    meter.finish()
    assert meter.timings == {"load": 1.0, "work": 4.0}


def test_what_is_resumed_was_not_done_in_the_time_since(clock: Clock) -> None:
    """Twenty units, of which sixteen stand from before: one takes two seconds, three are left."""
    meter = Meter([Stage("a", units=20)], clock)
    meter.at("a", 16, 20)
    clock.now = 2.0
    now = meter.at("a", 17, 20)
    assert now.seconds_left == pytest.approx(6)
    assert now.share == pytest.approx(0.25)
