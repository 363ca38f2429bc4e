"""The experiment as text: its spec, and scripts that repeat it here and with other tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import cache, converted, errors, say, state, widgets
from qlab.ui.export import stem

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.export.translation import Difference, Translation
    from qlab.graph.capture import Model

LAYERS_NAMED = 4
SCRIPT_HEIGHT = 520  # pixels; longer ones scroll
TABS = ("Spec (JSON)", "Python script", "torchao script", "ONNX Runtime script")


def draw(model: Model, prepared: bool) -> None:
    """A tab for each text; only the open one is written. prepared: whether the job has stored what scripts need."""
    name = stem()
    parts: tuple[Callable[[], None], ...] = (
        lambda: _spec(f"{name}.json"),
        _script,
        lambda: _other(
            "The same quantization asked of torchao's PT2E flow in PyTorch.", _torchao, model, prepared,
            "export_torchao",
        ),
        lambda: _other(
            "The same quantization asked of the quantizer that comes with ONNX Runtime.", _onnxruntime, model,
            prepared, "export_onnxruntime",
        ),
    )  # fmt: skip

    def boxed(write: Callable[[], None]) -> None:
        with errors.box():
            write()

    places = {title: partial(boxed, write) for title, write in zip(TABS, parts, strict=True)}
    widgets.tabs(places, key="export_tabs")


def _spec(file_name: str) -> None:
    text = json.dumps(state.experiment().to_dict(), indent=2)
    say.markdown("Model, data and config of this experiment. The command line runs it and stores the result as a run:")
    st.code(f"python -m qlab run {file_name}", language="bash")
    if any(ref.kind == "upload" for ref in (state.model_ref(), state.data_ref())):
        say.caption("Uploads are named by the hash of their content: the spec runs in a lab that holds these files.")
    _download(file_name, text, "application/json", "export_spec")
    st.code(text, language="json")


def _script() -> None:
    from qlab.export.script import python_script

    say.markdown("The same run as a Python script, step by step with the functions of qlab.")
    _show(python_script(state.experiment()), "export_script")


def _other(
    words: str, translate: Callable[[QuantizedModel], Translation], model: Model, prepared: bool,
    key: str,
) -> None:  # fmt: skip
    say.markdown(words)
    if not prepared:
        say.caption("It is written once the files above are there.")
        return
    _show(translate(_quantized(model)), key)


def _torchao(qmodel: QuantizedModel) -> Translation:
    from qlab.export.torchao_script import torchao_script

    return torchao_script(state.experiment(), qmodel)


def _onnxruntime(qmodel: QuantizedModel) -> Translation:
    from qlab.export.onnxruntime_script import onnxruntime_script

    return onnxruntime_script(state.experiment(), qmodel)


def _quantized(model: Model) -> QuantizedModel:
    """The model under the current config, from the calibration that the job has stored."""
    from qlab.lab import stages

    mapping, data = state.mapping(), cache.dataset(state.data_ref())
    found = None
    if mapping.needs_calibration:
        key = stages.calibration_key(model, data, state.options().batch_size, mapping)
        found = cache.store().find_derived(stages.CALIBRATION, key)
    return converted.under(model, mapping, found)[0]


def _show(made: Translation, key: str) -> None:
    """What the script does not do as asked, then the script."""
    if made.differences:
        say.markdown(f"**What it does differently** – {len(made.differences)}")
        say.markdown("\n".join(map(sentence, made.differences)))
    else:
        say.caption("It does exactly what the config says.")
    _download(made.file_name, made.text, "text/x-python", key)
    st.code(made.text, language="python", wrap_lines=True, height=SCRIPT_HEIGHT)


def sentence(difference: Difference) -> str:
    """A line of a Markdown list: what was asked, what is written, why, and for which layers."""
    asked, written, why = (errors.escape(text) for text in (difference.asked, difference.written, difference.why))
    names = ", ".join(f"`{name}`" for name in difference.layers[:LAYERS_NAMED])
    more = len(difference.layers) - LAYERS_NAMED
    where = f" ({names} and {more} more)" if more > 0 else f" ({names})" if names else ""
    return f"- **{asked}** → {written}. {why.rstrip('.')}.{where}"


def _download(file_name: str, text: str, media: str, key: str) -> None:
    """file_name: of letters, digits, dot, dash and underscore, as `stem` and `file_stem` give it."""
    st.download_button(
        f"Download {file_name}", text, file_name, media, key=key, on_click="ignore", help="Saves it as a text file."
    )
