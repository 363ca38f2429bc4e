"""Pieces of work by several threads at once, taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_order(work: Callable[[int], T], count: int, at_once: int) -> Generator[T, None, None]:
    """work(0) to work(count - 1), in order, each computed by one of `at_once` threads; with one, by the caller's.

    Ahead of what was taken, at most 2 * at_once pieces are begun or done, so that memory stays bounded. What a piece
    raises is raised where its result would have been. Closing the generator waits for the pieces that have begun and
    drops the others.
    """
    if at_once <= 1:
        yield from map(work, range(count))
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="batch")
    try:
        for number in range(count):
            waiting.append(pool.submit(work, number))
            if len(waiting) == 2 * at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
