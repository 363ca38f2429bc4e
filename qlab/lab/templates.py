"""The exported float graph of a model in the store, so that seconds of export are paid once and not by each process."""

from __future__ import annotations

import onnx
import torch

from qlab.errors import UnsupportedModel
from qlab.export.template import OPSET, Template, has_own_template, keep_template, template
from qlab.graph.capture import Model
from qlab.lab import stages
from qlab.lab.store import Artifact, Store

TEMPLATE = "exported graph"
EXPORT = "export graph"  # the stage
SECONDS = 4.0  # about what an export takes
VERSION = 1  # raise it when the markers change


def template_key(model: Model) -> str:
    """Who wrote it counts: torch and onnx translate the ops."""
    return stages.key_of(TEMPLATE, VERSION, OPSET, torch.__version__, onnx.__version__, model.content_hash)


def has_template(store: Store, model: Model) -> bool:
    return store.find_derived(TEMPLATE, template_key(model)) is not None


def ensure_template(store: Store, model: Model) -> Artifact:
    """Give the model its exported graph: from the store, or exported now and stored. Raises UnsupportedModel."""
    key = template_key(model)
    found = store.find_derived(TEMPLATE, key)
    if found is not None:
        if not has_own_template(model):
            keep_template(model, Template.from_bytes(found.path.read_bytes(), model.content_hash))
        return found
    content = template(model).to_bytes()
    made = store.add_bytes(content, kind=TEMPLATE, original_name=f"{model.name}.graph")
    store.derive(TEMPLATE, key, made)
    return made


def artifacts_of(store: Store, model: Model) -> dict[str, str]:
    """The exported graph as a result names it; nothing for a network that has none."""
    try:
        return {TEMPLATE: ensure_template(store, model).hash}
    except UnsupportedModel:
        return {}  # whoever needs it meets the reason again, with the config that needs it
