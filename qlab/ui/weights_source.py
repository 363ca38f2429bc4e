"""What is looked at on Weights: a quantized model, one of its layers, and the numbers a person wrote into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import cache, choose, converted, prepared, state, weight_edits
from qlab.ui.converted import Key

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.edits import Edit
    from qlab.graph.capture import Model
    from qlab.lab.store import Artifact, Run

CONFIG = ""  # the origin that stands for the current config
LAYER, ORIGIN = "weights.layer", "weights.origin"
TRAINED = "trained model"
LATEST = 200  # finished experiments among which trained ones are looked for
ENOUGH_FOR_A_PICTURE = 64


@dataclass(frozen=True, eq=False)
class Shown:
    """model: the float network that is open. qmodel: the quantized one, with the edits in it; original: without them,
    shared, do not change it. key: what original depends on. layer: key of `qmodel.weights`; "" where nothing is
    quantized. edits: what a person wrote into it, in order. origin: "" for the current config, else the id of the run
    that trained it, whose own edits are in the original.
    """

    model: Model
    qmodel: QuantizedModel
    key: Key
    layer: str
    original: QuantizedModel
    edits: tuple[Edit, ...]
    origin: str

    @property
    def stamp(self) -> Key:
        """What everything that is worked out from this layer depends on."""
        return (*self.key, self.layer, _written(self.edits))


def shown() -> Shown | None:
    """What the page shows; None while a job prepares it, or where the data does not fit, which is told.

    Raises what convert, load_quantized and apply_edits raise.
    """
    model = cache.model(state.model_ref())
    origin = st.session_state.get(ORIGIN, CONFIG)
    found = _from_config(model) if origin == CONFIG else _from_run(model, origin)
    if found is None:
        return None
    original, key, again = found
    edits = weight_edits.current(key)
    qmodel = _edited(key, _written(edits), edits, again) if edits else original
    return Shown(model, qmodel, key, layer_of(original), original, edits, origin)


def layer_of(qmodel: QuantizedModel) -> str:
    """The layer that was chosen, where this model has it; else the first with enough weights for a picture."""
    chosen = st.session_state.get(LAYER)
    if chosen in qmodel.weights:
        return str(chosen)
    large = (name for name, tensor in qmodel.weights.items() if tensor.codes.numel() >= ENOUGH_FOR_A_PICTURE)
    return next(large, next(iter(qmodel.weights), ""))


_Found = tuple["QuantizedModel", Key, Callable[[], "QuantizedModel"]]  # the shared one, its key, how one more is made


def _from_config(model: Model) -> _Found | None:
    from qlab.conversion import convert

    if not choose.data_fits(model):
        return None
    found = prepared.require(key="weights")
    if found is None:
        return None
    mapping, calibration = state.mapping(), found.calibration
    qmodel, key = converted.under(model, mapping, cache.store().artifact(found.calibration_artifact))
    return qmodel, key, lambda: convert(model, mapping, calibration)


def _from_run(model: Model, run_id: str) -> _Found:
    run = cache.store().get_run(run_id)
    artifact = cache.store().artifact(run.require_result()["artifacts"][TRAINED])
    # The file holds what training ended with; numbers that the run edited by hand stand in its spec.
    edits = json.dumps(run.spec.get("edits", []))
    key = (model.content_hash, artifact.hash, TRAINED if edits == "[]" else f"{TRAINED} {edits}")
    return _trained(key, model, artifact, edits), key, lambda: _read_trained(model, artifact, edits)


@st.cache_resource(max_entries=4, show_spinner="Reading the trained model")
def _trained(key: Key, _model: Model, _artifact: Artifact, _edits: str) -> QuantizedModel:
    return _read_trained(_model, _artifact, _edits)


def _read_trained(model: Model, artifact: Artifact, edits: str) -> QuantizedModel:
    from qlab.edits import Edit, apply_edits
    from qlab.export.quantized_load import load_quantized

    qmodel = load_quantized(artifact.path, model)
    apply_edits(qmodel, [Edit.from_dict(edit) for edit in json.loads(edits)])
    return qmodel


def trained_runs(model: Model) -> list[Run]:
    """Finished runs that trained this network, newest first, of the latest experiments."""
    from qlab.lab.store import DONE

    store = cache.store()
    if not store.list_artifacts(TRAINED, limit=1):
        return []  # before the first training nothing has to be read
    home = str(store.home)
    runs = store.list_runs(LATEST, kind="experiment", status=DONE)
    return [run for run in runs if run.model_hash == model.content_hash and _has_trained(run.id, home)]


@st.cache_data(max_entries=2_000, show_spinner=False)
def _has_trained(run_id: str, home: str) -> bool:
    # Of a run that is done, the result does not change any more.
    return TRAINED in cache.store().get_run(run_id).require_result().get("artifacts", {})


def _written(edits: tuple[Edit, ...]) -> str:
    return json.dumps([edit.to_dict() for edit in edits])


@st.cache_resource(max_entries=4, show_spinner="Quantizing with the numbers written by hand")
def _edited(
    key: Key, written: str, _edits: tuple[Edit, ...], _again: Callable[[], QuantizedModel]
) -> QuantizedModel:  # fmt: skip
    from qlab.edits import apply_edits

    qmodel = _again()  # a model of its own: the shared one is never written to
    apply_edits(qmodel, _edits)
    return qmodel
