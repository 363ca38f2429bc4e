"""Memory where the defaults of C library and interpreter cost time.

Freed memory is kept, because networks ask for the same sizes again with the next batch. glibc gives large freed blocks
back to the system at once and asks for them anew; every page then costs a fault, which made the forward pass of a
ResNet-20 take 1.6 times as long here. Other C libraries are left as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import platform
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 256 << 20
LARGEST_BLOCK = 32 << 20  # glibc takes no larger one
_LOCK = threading.Lock()
_settled = 0


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 256 MB of freed memory; returns whether its C library could be told."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES) and libc.mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK))


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Within, the garbage collector leaves alone what is there at the start; what is made within it collects as usual.

    The objects of torch, sympy and ONNX alone take it 0.2 s to look through, which it does several times in an export.
    """
    global _settled
    with _LOCK:
        _settled += 1
        gc.freeze()
    try:
        yield
    finally:
        with _LOCK:
            _settled -= 1
            if not _settled:  # the interpreter has one such state, and others may be within
                gc.unfreeze()
