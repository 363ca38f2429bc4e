"""Names that other writers derive from ours, and back: `p_fc1_weight_quantized` is `fc1.weight`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# What writers put behind a name.
ENDINGS = frozenset(
    "quantized quantize quantizelinear dequantizelinear quant codes dq q q2 q4 q8 scale zero point output input matmul "
    "gemm conv relu merged folded".split()
)
STARTS = frozenset(("p", "b", "c", "onnx", "model", "graph"))
_PARTS = re.compile(r"[^0-9a-z]+")
MAX_PARTS = 64


def normal(name: str) -> tuple[str, ...]:
    """Lower-case words and numbers of a name."""
    return tuple(part for part in _PARTS.split(name.lower()) if part)[:MAX_PARTS]


def _readings(name: str) -> Iterator[tuple[str, ...]]:
    """The name, and what is left of it without endings and beginnings that writers add, the longest first."""
    parts = normal(name)
    starts = [parts, *([parts[1:]] if parts and parts[0] in STARTS else [])]
    while True:
        yield from (start for start in starts if start)
        if not parts or parts[-1] not in ENDINGS:
            return
        parts = parts[:-1]
        starts = [start[:-1] for start in starts]


class Names:
    """known: name in the file -> what it stands for. A name that several things have stands for none of them."""

    def __init__(self, known: Iterable[tuple[str, str]]):
        self._known: dict[tuple[str, ...], str | None] = {}
        for name, thing in known:
            key = normal(name)
            self._known[key] = thing if self._known.get(key, thing) == thing else None

    def find(self, aliases: Iterable[str]) -> str | None:
        """What one of these names stands for."""
        for alias in aliases:
            for reading in _readings(alias):
                if (thing := self._known.get(reading)) is not None:
                    return thing
        return None
