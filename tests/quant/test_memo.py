"""What was made is not made again, within a limit of bytes."""

import threading

import pytest

from qlab.quant.memo import Memo


def test_a_value_is_made_once_and_shared():
    memo, made = Memo(100, len), []

    def make():
        made.append(1)
        return b"12345"

    assert memo.get("a", make) is memo.get("a", make)
    assert made == [1]


def test_those_asked_for_last_are_kept():
    memo, made = Memo(10, len), []

    def ask(key):
        return memo.get(key, lambda: made.append(key) or key.encode() * 4)

    for key in "abacab":  # room for two: b goes when c comes, because a was asked for since
        ask(key)
    assert made == ["a", "b", "c", "b"]
    assert len(memo) == 2


def test_what_is_larger_than_the_limit_is_given_all_the_same():
    memo = Memo(10, len)
    assert memo.get("small", lambda: b"1") == b"1"
    assert memo.get("large", lambda: bytes(11)) == bytes(11)
    assert memo.get("large", lambda: bytes(12)) == bytes(12)


def test_an_error_is_not_kept():
    memo = Memo(10, len)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            memo.get("a", lambda: 1 / 0)
    assert memo.get("a", lambda: b"1") == b"1"


def test_many_threads_get_one_value():
    memo, start, given = Memo(1000, len), threading.Barrier(8, timeout=10), []

    def ask():
        start.wait()
        for key in range(50):
            given.append((key, memo.get(key, lambda key=key: bytes([key]) * 3)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 400
    assert all(value == bytes([key]) * 3 for key, value in given)
    assert len({id(value) for _, value in given}) == 50
