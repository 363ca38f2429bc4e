"""Quantized models that pages share: converted once for a config and a stored calibration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import cache

if TYPE_CHECKING:
    from qlab.calibration import Calibration
    from qlab.config import QConfigMapping
    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model
    from qlab.lab.store import Artifact

Key = tuple[str, ...]  # model, calibration, config: what a quantized model depends on


def under(model: Model, mapping: QConfigMapping, calibration: Artifact | None) -> tuple[QuantizedModel, Key]:
    """The model under this config, with a stored calibration, and its key. Shared: do not change it. Raises what
    convert raises."""
    config = json.dumps(mapping.to_dict(), sort_keys=True)
    key = (model.content_hash, "" if calibration is None else calibration.hash, config)
    return _convert(key, model, mapping, calibration), key


@st.cache_resource(max_entries=8, show_spinner="Quantizing")
def _convert(key: Key, _model: Model, _mapping: QConfigMapping, _calibration: Artifact | None) -> QuantizedModel:
    from qlab.conversion import convert

    return convert(_model, _mapping, None if _calibration is None else calibration(_calibration.hash))


@st.cache_resource(max_entries=8, show_spinner="Reading the calibration")
def calibration(digest: str) -> Calibration:
    """A stored one. Shared: do not change it."""
    from qlab.calibration import Calibration

    return Calibration.load(cache.store().artifact(digest).path)
