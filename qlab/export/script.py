"""Stub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlab.export.translation import Translation

if TYPE_CHECKING:
    from qlab.lab.experiment import Experiment


def python_script(experiment: Experiment) -> Translation:
    return Translation("", "script.py", ())
