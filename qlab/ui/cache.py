"""Loaders that remember: a model, a data set and a calibration are read once, whatever page asks.

Keys are references and content hashes, never arrays (Streamlit hashes only a sample of a large array, so two tensors
could share a key). **What comes out of here is shared by all sessions: never change it.** Copy, or call a function of
the engine that returns something new. Engine imports stand inside the functions, because torch takes a second or two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import write
from qlab.ui import facts, state
from qlab.ui.library import DataRef, ModelRef

if TYPE_CHECKING:
    from qlab.config import QConfigMapping
    from qlab.data import Dataset
    from qlab.graph.capture import Model
    from qlab.lab.jobs import JobRunner
    from qlab.lab.run import Prepared
    from qlab.lab.store import Store


@st.cache_resource(show_spinner=False)
def store() -> Store:
    """The run store under QLAB_HOME, or where QLAB_DB points."""
    from qlab.lab.store import Store

    return Store()


@st.cache_resource(show_spinner=False, on_release=lambda runner: runner.close())
def runner() -> JobRunner:
    """The job runner of this server, one for all sessions. Making it is cheap; its workers come up later."""
    from qlab.lab.jobs import JobRunner

    return JobRunner(store())


def model(ref: ModelRef) -> Model:
    """The captured model. Raises UnsupportedModel, BadUpload or InvalidConfig. Shared: do not change it."""
    found = _model(ref.source, str(store().home))
    facts.note(ref, f"{write('parameters', found.parameter_count)} parameters")
    return found


def dataset(ref: DataRef) -> Dataset:
    """The data with preprocessing and split as the reference says. Raises BadUpload, DataMismatch, NonFinite,
    InvalidConfig. Shared: do not change it.
    """
    found = _dataset(ref, state.options().seed, str(store().home))
    parts = f"{len(found.calibration):,} calibrate · {len(found.evaluation):,} evaluate"
    facts.note(ref, parts if found.has_split else f"{len(found):,} samples, all calibrate and evaluate")
    return found


# QLAB_HOME is part of the keys because a reference means a file of one store.
@st.cache_resource(max_entries=16, show_spinner="Reading the model")
def _model(source: str, _home: str) -> Model:
    from qlab.lab.sources import open_model

    return open_model(source, store())


@st.cache_resource(max_entries=16, show_spinner="Reading the data")
def _dataset(ref: DataRef, seed: int, _home: str) -> Dataset:
    from qlab.lab.sources import open_data

    data = open_data(state.data_table(ref), store())
    return data.split(ref.calibration_samples, seed) if ref.calibration_samples else data


def network(ref: ModelRef) -> Model:
    """The float network that the current config quantizes: the model, or the same function equalised. Shared: do not
    change it. Raises as `model`."""
    from qlab.graph.equalize import network_of

    return network_of(model(ref), state.mapping())


def prepared(model_ref: ModelRef, data_ref: DataRef) -> Prepared | None:
    """Float evaluation and a calibration for the current config if they are in the store; None if they are not. Shared:
    do not change it."""
    chosen, preparation = state.options(), state.mapping().preparation
    key = (model_ref.source, data_ref, chosen.batch_size, chosen.seed, str(store().home), repr(preparation))
    try:
        return _prepared(*key, preparation)
    except _NotThere:
        return None


class _NotThere(Exception):
    """Raised instead of giving None, because Streamlit would remember the None."""


@st.cache_resource(max_entries=16, show_spinner=False)
def _prepared(
    source: str, data_ref: DataRef, batch_size: int, seed: int, home: str, preparation: str, _mapping: QConfigMapping
) -> Prepared:  # fmt: skip
    from qlab.lab.run import find_prepared

    # The data is split already, so the split that find_prepared would make is left out.
    held = _model(source, home), _dataset(data_ref, seed, home)
    found = find_prepared(store(), *held, batch_size=batch_size, mapping=_mapping)
    if found is None:
        raise _NotThere
    return found
