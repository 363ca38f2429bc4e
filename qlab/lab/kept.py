"""What this process has open: models, data and calibrations of its last jobs, so that the next one finds them.

The jobs of a sweep differ in their config alone, and reading a network takes longer than quantizing it. Everything in
here is shared by all jobs of the process: never change it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 8  # things of one kind


class _Kept:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._of_kind: dict[str, OrderedDict[Hashable, Any]] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:  # held while it is made: two jobs that need the same wait for one
            of_kind = self._of_kind.setdefault(kind, OrderedDict())
            if key not in of_kind:
                of_kind[key] = make()
            of_kind.move_to_end(key)
            while len(of_kind) > MOST:
                of_kind.popitem(last=False)
            return of_kind[key]

    def clear(self) -> None:
        with self._lock:
            self._of_kind.clear()


KEPT = _Kept()


def kept(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """What was made for this key before, or is made now and kept. Raises what `make` raises, and keeps nothing then."""
    return KEPT.get(kind, key, make)


def file_key(path: str | os.PathLike[str]) -> tuple[Any, ...]:
    """What changes when a file does, without reading it. Raises OSError."""
    found = Path(path).resolve()
    stat = found.stat()
    return str(found), stat.st_ino, stat.st_size, stat.st_mtime_ns
