"""Work by several threads: in order, bounded, and over when it is told to be."""

import threading
import time

import pytest

from qlab.in_order import in_order


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_the_order_is_that_of_the_numbers(at_once):
    def work(number):
        time.sleep(0.02 if number % 3 == 0 else 0.0)  # the first of each three comes in last
        return number * number

    assert list(in_order(work, 14, at_once)) == [n * n for n in range(14)]
    assert list(in_order(work, 0, at_once)) == []


def test_so_many_at_a_time_and_no_more():
    meeting, seen = threading.Barrier(3, timeout=10), set()

    def work(number):
        seen.add(threading.current_thread())
        meeting.wait()  # passes only when three are at work at the same moment
        return number

    assert list(in_order(work, 9, 3)) == list(range(9))
    assert len(seen) == 3
    assert threading.current_thread() not in seen


def test_one_at_a_time_is_the_callers_thread_and_nothing_ahead():
    begun = []

    def work(number):
        begun.append(threading.current_thread())
        return number

    results = in_order(work, 5, 1)
    assert next(results) == 0
    assert begun == [threading.current_thread()]


def test_little_is_made_ahead_of_what_is_taken():
    begun, lock = [0], threading.Lock()

    def work(number):
        with lock:
            begun[0] += 1
        return number

    for taken, _ in enumerate(in_order(work, 40, 2), 1):
        time.sleep(0.002)  # leaves the threads time to run ahead
        assert begun[0] <= taken + 4


def test_an_error_stands_where_the_result_would():
    def work(number):
        if number == 3:
            raise ValueError("three")
        return number

    for at_once in (1, 4):
        results = in_order(work, 20, at_once)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)


def test_closing_waits_for_what_runs_and_drops_the_rest():
    begun, over = [], []

    def work(number):
        begun.append(number)
        time.sleep(0.03)
        over.append(number)
        return number

    results = in_order(work, 1000, 2)
    next(results)
    results.close()
    assert sorted(begun) == sorted(over)
    assert len(begun) <= 5
    assert not [t for t in threading.enumerate() if t.name.startswith("batch")]
