"""What can be done about something that was found: always a change of the config."""

from __future__ import annotations

from dataclasses import dataclass

from qlab.config import QConfigMapping


@dataclass(frozen=True)
class Remedy:
    """One way out. title: a button's text ("Quantize fc1.weight per channel"); sentence: what it does and what it
    costs. mapping: the whole config with it."""

    title: str
    sentence: str
    mapping: QConfigMapping
