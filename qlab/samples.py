"""Where the sample models lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


def sample_folder(name: str) -> Path | None:
    """The folder of the sample of this name, or None when there is none."""
    return SAMPLES / name if name in sample_names() else None


def sample_names() -> tuple[str, ...]:
    """Names of the samples, those first that show the lab best."""
    names = sorted(p.parent.name for p in SAMPLES.glob("*/card.json"))
    return tuple(sorted(names, key=lambda n: (n != "residual_digits", n)))


def sample_card(name: str) -> dict[str, Any]:
    """The card of a sample: title, task, source of the data, what it shows."""
    return json.loads((SAMPLES / name / "card.json").read_text(encoding="utf-8"))
