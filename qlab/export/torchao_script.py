"""Stub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlab.export.translation import Translation

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.lab.experiment import Experiment


def torchao_script(experiment: Experiment, qmodel: QuantizedModel) -> Translation:
    return Translation("", "torchao_script.py", ())
