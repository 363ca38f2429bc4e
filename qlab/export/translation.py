"""An experiment written for another tool: the text, and what that tool does differently."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One thing that the written file cannot say as it was asked.

    asked: what the experiment says. written: what the file does instead. why: the reason.
    layers: those it concerns; () for all of them.
    """

    asked: str
    written: str
    why: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Translation:
    """text: the file. file_name: what to call it. differences: () if it does exactly what was asked."""

    text: str
    file_name: str
    differences: tuple[Difference, ...]
