"""The experiment as text: its spec, and scripts that repeat it here and with other tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from qlab.ui import cache, errors, state, steps_known
from qlab.ui.export import stem

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.export.translation import Difference, Translation
    from qlab.graph.capture import Model

LAYERS_NAMED = 4
TABS = ("Spec (JSON)", "Python script", "torchao PT2E", "ONNX Runtime quantize_static")


def draw(model: Model, prepared: bool) -> None:
    """A tab for each text; only the open one is written. prepared: whether the job has stored what scripts need."""
    name = stem(model.name)
    spec, script, torchao, runtime = st.tabs(TABS, key="export_tabs", on_change="rerun")
    if spec.open:
        with spec, errors.box():
            _spec(f"{name}.json")
    if script.open:
        with script, errors.box():
            _script(f"{name}.py")
    if torchao.open:
        with torchao, errors.box():
            _other(
                "The same quantization asked of torchao's PT2E flow in PyTorch.", f"{name}-torchao.py",
                _torchao, model, prepared, "export_torchao",
            )  # fmt: skip
    if runtime.open:
        with runtime, errors.box():
            _other(
                "The same quantization asked of ONNX Runtime's own quantize_static.", f"{name}-onnxruntime.py",
                _onnxruntime, model, prepared, "export_onnxruntime",
            )  # fmt: skip


def _spec(file_name: str) -> None:
    text = json.dumps(state.experiment().to_dict(), indent=2)
    st.markdown("Model, data and config of this experiment. The command line runs it and stores the result as a run:")
    st.code(f"python -m qlab run {file_name}", language="bash")
    if any(ref.kind == "upload" for ref in (state.model_ref(), state.data_ref())):
        st.caption("Uploads are named by the hash of their content: the spec runs in a lab that holds these files.")
    _download(file_name, text, "application/json", "export_spec")
    st.code(text, language="json")


def _script(file_name: str) -> None:
    from qlab.export.script import python_script

    st.markdown("The same run as a Python script, step by step with the functions of qlab.")
    _show(python_script(state.experiment()), file_name, "export_script")


def _other(
    words: str, file_name: str, translate: Callable[[QuantizedModel], Translation], model: Model, prepared: bool,
    key: str,
) -> None:  # fmt: skip
    st.markdown(words)
    if not prepared:
        st.caption("It is written once the files above are there.")
        return
    _show(translate(_quantized(model)), file_name, key)


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
    if stages.needs_ranges(mapping):
        key = stages.calibration_key(model, data, state.options().batch_size)
        found = cache.store().find_derived(stages.CALIBRATION, key)
    return steps_known.converted(model, mapping, found)


def _show(made: Translation, file_name: str, key: str) -> None:
    """What the file does not do as asked, then the file."""
    if made.differences:
        st.markdown(f"**What it does differently** – {len(made.differences)}")
        st.table(differences_table(made.differences), hide_index=True)
    else:
        st.caption("It does exactly what the config says.")
    _download(file_name, made.text, "text/x-python", key)
    st.code(made.text, language="python")


def differences_table(differences: tuple[Difference, ...]) -> pd.DataFrame:
    """One line for each difference; the cells are Markdown."""
    return pd.DataFrame(
        {
            "The config asks for": [errors.escape(d.asked) for d in differences],
            "The script does": [errors.escape(d.written) for d in differences],
            "Because": [errors.escape(d.why) for d in differences],
            "Layers": [_layers(d.layers) for d in differences],
        }
    )


def _layers(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:LAYERS_NAMED])
    more = len(names) - LAYERS_NAMED
    return "all" if not names else f"{shown} and {more} more" if more > 0 else shown


def _download(file_name: str, text: str, media: str, key: str) -> None:
    st.download_button(
        f"Download {file_name}", text, file_name, media, key=key, on_click="ignore", help="Saves it as a text file."
    )
