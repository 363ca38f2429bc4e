"""The exported float graph of a model in the store, so that seconds of export are paid once and not by each process."""

from __future__ import annotations

import onnx
import torch

from qlab.export.template import OPSET, Template, keep_template, template
from qlab.graph.capture import Model
from qlab.lab import stages
from qlab.lab.store import Store

TEMPLATE = "exported graph"
EXPORT = "export graph"  # the stage
SECONDS = 4.0  # about what an export takes
VERSION = 1  # raise it when the markers change


def template_key(model: Model) -> str:
    """Who wrote it counts: torch and onnx translate the ops."""
    return stages.key_of(TEMPLATE, VERSION, OPSET, torch.__version__, onnx.__version__, model.content_hash)


def has_template(store: Store, model: Model) -> bool:
    return store.find_derived(TEMPLATE, template_key(model)) is not None


def ensure_template(store: Store, model: Model) -> None:
    """Give the model its exported graph: from the store, or exported now and stored. Raises UnsupportedModel."""
    key = template_key(model)
    found = store.find_derived(TEMPLATE, key)
    if found is not None:
        keep_template(model, Template.from_bytes(found.path.read_bytes(), model.content_hash))
        return
    content = template(model).to_bytes()
    store.derive(TEMPLATE, key, store.add_bytes(content, kind=TEMPLATE, original_name=f"{model.name}.graph"))
