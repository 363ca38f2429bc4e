"""What a page shows, read from its elements."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest

from qlab.ui.glossary import unlinked


def said(element: Any) -> str:
    """What a person reads there: words of the glossary without their links."""
    return unlinked(str(getattr(element, "value", "")))


def texts(at: AppTest, *kinds: str) -> str:
    """All elements of these kinds, as one text: `texts(at, "caption")`."""
    return "\n".join(said(element) for kind in kinds for element in at.get(kind))


def figures(at: AppTest) -> dict[str, str]:
    """What stands under each label."""
    return {metric.label: metric.value for metric in at.metric}


def deltas(at: AppTest) -> dict[str, str]:
    """The small print under each figure."""
    return {metric.label: metric.delta for metric in at.metric}


def charts(at: AppTest) -> list[dict[str, Any]]:
    """The plotly figures from top to bottom."""
    return [json.loads(chart.proto.spec) for chart in at.get("plotly_chart")]


def array(values: Any) -> Any:
    """A list of a chart, or an array as plotly sends it."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
    return values


def button(at: AppTest, label: str) -> Any:
    """The first button with this label."""
    return next(b for b in at.button if b.label == label)
