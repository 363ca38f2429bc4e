import itertools
import time

import pytest
import torch

import qlab
from qlab.runtime.latency import Timing, time_calls
from qlab.runtime.session import RuntimeOptions, float_session


def test_calls_are_timed_turn_by_turn():
    called, told = [], []

    def call(name, seconds):
        def wait():
            called.append(name)
            time.sleep(seconds)

        return wait

    calls = {"slow": call("slow", 0.004), "fast": call("fast", 0.002)}
    timing = time_calls(calls, 1, 1, budget=0.3, progress=lambda done, total: told.append((done, total)))
    turns = len(timing.seconds["slow"])
    assert len(timing.seconds["fast"]) == turns
    assert told == [(i + 1, turns) for i in range(turns)]
    assert called[:2] == ["slow", "fast"]  # the warm-up
    stretches = [name for name, _ in itertools.groupby(called)]
    assert turns <= len(stretches) <= 2 * turns + 6  # one after the other, not all of one first
    assert {a for a, b in itertools.pairwise(stretches)} == {"slow", "fast"}
    low, median, high = timing.ratio("slow", "fast")
    assert low <= median <= high
    assert 1.4 < median < 2.2
    latency = timing.latency("slow")
    assert 0.004 <= latency.low <= latency.median <= latency.high
    assert latency.runs == turns


def test_a_short_budget_still_gives_five_turns_and_a_long_one_stops():
    calls = {"a": lambda: time.sleep(0.001)}
    assert len(time_calls(calls, 1, 1, budget=0.0).seconds["a"]) == 5
    assert len(time_calls(calls, 1, 1, budget=10.0, most=7).seconds["a"]) == 7


def test_a_timing_survives_json():
    timing = Timing(16, 2, {"integer": (0.1, 0.2, 0.3), "float": (0.2, 0.4, 0.6)})
    again = Timing.from_dict(timing.to_dict())
    assert again == timing
    assert again.ratio("integer", "float") == pytest.approx((0.5, 0.5, 0.5))


def test_neighbours_do_not_slow_each_other_down():
    """Torch and ONNX Runtime timed side by side take what each takes alone."""
    model = qlab.load_model("residual_digits")
    inputs = tuple(torch.zeros(32, *s.example_shape[1:], dtype=s.dtype) for s in model.inputs)
    session = float_session(model, RuntimeOptions(2))
    together = time_calls({"runtime": lambda: session(*inputs), "torch": lambda: model(*inputs)}, 32, 2, budget=1.0)
    alone = time_calls({"runtime": lambda: session(*inputs)}, 32, 2, budget=0.5)
    # the best of each: other processes of the machine only ever add
    assert min(together.seconds["runtime"]) < 1.5 * min(alone.seconds["runtime"])
