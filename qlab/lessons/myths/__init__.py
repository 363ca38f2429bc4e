"""Claims one hears about quantization, each with a test that runs now, and a verdict that its numbers choose."""

from __future__ import annotations

from collections.abc import Mapping

from qlab.lessons.myths import layers, networks, numbers, runtime
from qlab.lessons.myths.claim import VERDICTS, Bar, Bars, Claim, Control, Outcome, Verdict

# In the order of the menu: what is answered at once first.
_ALL = {**numbers.CLAIMS, **layers.CLAIMS, **networks.CLAIMS, **runtime.CLAIMS}
_ORDER = (
    "affine", "arithmetic", "state_dict", "dynamic", "outlier", "order", "small", "bits", "observer", "faster",
    "fusing", "training",
)  # fmt: skip
CLAIMS: Mapping[str, Claim] = {key: _ALL[key] for key in _ORDER}

__all__ = ["CLAIMS", "VERDICTS", "Bar", "Bars", "Claim", "Control", "Outcome", "Verdict"]
