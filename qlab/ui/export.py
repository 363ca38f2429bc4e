"""What can be taken away from the lab: files of the quantized model, the spec, and lines of Python that use them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import percent, write
from qlab.plots.size import size_bars
from qlab.ui import cache, choose, derived, errors, say, state, widgets

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.export import Exports, OnnxContents

KIND = "export"
WORDS = derived.Words(
    stopped="Writing the files was stopped, so there is nothing to download yet.",
    no_result="Writing the files ended without a result.",
    again="Write the files",
    help="Converts the network under the current config and writes both files.",
)
CARD_WIDTH = 480


def stem() -> str:
    """Name of a download without its ending: the current model and config."""
    from qlab.export.script_parts import safe_stem

    return safe_stem(state.model_ref().title.removesuffix(".pt2"), state.preset_name())


def files(model: Model) -> Exports | None:
    """The files under the current config; starts the job that writes them where there are none, and shows how far it
    is."""
    if not choose.data_fits(model):
        return None
    experiment = state.experiment().replace(name="")
    mine = json.dumps(experiment.to_dict(), sort_keys=True)
    return derived.require(KIND, {"experiment": experiment}, lambda: find(model), WORDS, mine=mine, key="export")


def find(model: Model) -> Exports | None:
    """The files of the current model, data and config if they are in the store; writes nothing."""
    from qlab.lab.export import find_exports

    data = cache.dataset(state.data_ref())
    return find_exports(cache.store(), model, data, state.mapping(), batch_size=state.options().batch_size)


# --- lines of Python --------------------------------------------------------------------------------------------------


def session_entries(contents: OnnxContents) -> dict[str, tuple[str, str]]:
    """Entry of the session options -> (value, why), under which the file gives the simulated results on this CPU."""
    from qlab.runtime.session import AS_SIMULATED

    why = AS_SIMULATED.explain()
    return {name: (value, why[name]) for name, value in AS_SIMULATED.entries.items() if name in contents.entries}


def onnx_code(file_name: str, contents: OnnxContents) -> str:
    """Runs the ONNX file with ONNX Runtime alone."""
    kept = session_entries(contents)
    given = ", ".join(f'"{name}": numpy.zeros({tuple(shape)}, "{kind}")' for name, kind, shape in contents.inputs)
    lines = ["import numpy", "import onnxruntime", ""]
    if kept:
        lines += ["options = onnxruntime.SessionOptions()"]
        lines += [f'options.add_session_config_entry("{name}", "{value}")' for name, (value, _) in kept.items()]
    more = ", options" if kept else ""
    lines += [
        f'session = onnxruntime.InferenceSession("{file_name}"{more})',
        f"outputs = session.run(None, {{{given}}})",
    ]
    return "\n".join([*lines, "print(outputs[0].shape)"])


def quantized_code(file_name: str, model: Model) -> str:
    """Loads the quantized model and calls it."""
    given = ", ".join(
        f"torch.zeros({tuple(1 if n is None else n for n in s.shape)}, dtype={s.dtype})" for s in model.inputs
    )
    return "\n".join(
        ["import torch", "import qlab", "", f'qmodel = qlab.load_quantized("{file_name}")', f"output = qmodel({given})"]
    )


# --- drawing ----------------------------------------------------------------------------------------------------------


def headline(found: Exports) -> None:
    """Both files and the float one as figures, and where the bytes go."""
    shown: list[tuple[str, str, str | None, str]] = [
        (
            "Quantized model", write("size", found.quantized.bytes), ".safetensors",
            "Codes packed at their bits, scales, what stays float, and the graph.",
        )
    ]  # fmt: skip
    if found.size is not None:
        shown = [
            ("ONNX file", write("size", found.size.total), _beside(found.size.ratio),
             "Every byte of the file, its graph included."),
            *shown,
            ("Float network", write("size", found.size.float_file), "as ONNX",
             "The same network before it was quantized, in the same format."),
        ]  # fmt: skip
    widgets.figures(shown)
    if found.size is not None:
        widgets.chart(size_bars(found.size, widgets.dark()), key="export_size")


def _beside(ratio: float) -> str:
    return f"{write('ratio', 1 / ratio)} smaller than float" if ratio < 0.95 else f"{percent(ratio)} of the float file"


def cards(found: Exports, model: Model) -> None:
    """One card for each file."""
    with st.container(horizontal=True, gap="medium"):
        with st.container(border=True, width=CARD_WIDTH, key="export_card_onnx"), errors.box():
            _onnx_card(found, f"{stem()}.onnx")
        with st.container(border=True, key="export_card_quantized"), errors.box():
            _quantized_card(found, model, f"{stem()}.safetensors")


def _onnx_card(found: Exports, name: str) -> None:
    say.markdown("**ONNX**, for runtimes", help="The network with integer weights, as other programs read it.")
    if found.onnx is None or found.contents is None:
        say.warning(errors.escape(found.blocked or "This network has no ONNX form."))
        say.caption(
            "A layer that is named here can be kept float with a rule on Experiment; an op without an ONNX form has to "
            "be replaced in the network. The quantized model is complete either way."
        )
        if found.detail:
            with st.expander("Technical details"):
                st.code(found.detail, language=None)
        return
    say.markdown("\n".join(f"- {fact}" for fact in onnx_facts(found.contents)))
    st.download_button(
        f"Download {name}", found.onnx.path.read_bytes, name, "application/octet-stream", key="export_onnx",
        type="primary", on_click="ignore", help="Saves the file; it runs without this lab.",
    )  # fmt: skip
    st.code(onnx_code(name, found.contents), language="python", wrap_lines=True)
    for entry, (_, why) in session_entries(found.contents).items():
        say.caption(f"`{entry}`: {why}.")


def onnx_facts(contents: OnnxContents) -> list[str]:
    """What is in the file, in sentences."""
    other = ", ".join(f"`{d}`" for d in contents.domains)
    weights = ", ".join(f"{n} weight {'tensors' if n > 1 else 'tensor'} as {t}" for t, n in contents.weights.items())
    facts = [
        f"opset {contents.opset} and {other}: needs ONNX Runtime and nothing else"
        if other
        else f"opset {contents.opset} with standard operators only: needs ONNX Runtime and nothing else",
        f"opened here by ONNX Runtime {contents.runtime}",
        weights or "no weights as integers: the config keeps them float",
        f"{contents.grids} activations on grids known beforehand"
        if contents.grids
        else "no activation on a grid known beforehand",
        f"{contents.nodes} operators",
    ]
    if contents.float_biases:
        layers = ", ".join(f"`{name}`" for name in contents.float_biases)
        facts.append(f"biases of {layers} do not fit 32 bits and are added in float")
    return facts


def _quantized_card(found: Exports, model: Model, name: str) -> None:
    say.markdown("**Quantized model**, for qlab", help="What this lab made, to be loaded by qlab in Python.")
    say.markdown(
        f"- {write('size', found.quantized.bytes)}: codes packed at their bits, scales, zero points, what stays float\n"
        "- the graph and the config as JSON beside them\n"
        "- without the float weights; reading it runs nothing from the file\n"
        "- simulates in PyTorch, and writes ONNX again"
    )
    st.download_button(
        f"Download {name}", found.quantized.path.read_bytes, name, "application/octet-stream", key="export_quantized",
        type="primary", on_click="ignore", help="Saves the file; qlab.load_quantized reads it.",
    )  # fmt: skip
    st.code(quantized_code(name, model), language="python", wrap_lines=True)
