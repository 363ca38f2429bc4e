"""What was made before, by what it was made from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Memo(Generic[V]):
    """Keeps values up to `limit` bytes, those asked for last; for several threads. What it gives is shared by all who
    ask: never write to it.

    size: bytes of a value. A value that is larger than the limit is made each time.
    """

    def __init__(self, limit: int, size: Callable[[V], int]):
        self.limit, self._size = limit, size
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of this key, made where it is not there. Raises what `make` raises, and keeps nothing then."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()  # not under the lock: two threads that make the same at once make equal values
        with self._lock:
            if key not in self._values:
                self._values[key] = made
                self._bytes += self._size(made)
                while self._bytes > self.limit:
                    self._bytes -= self._size(self._values.popitem(last=False)[1])
            return self._values.get(key, made)
