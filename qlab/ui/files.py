"""What is shown on Quantized files: which file, its figures, and what it keeps of each weight beside ours."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import byte_size, percent, whole
from qlab.ui import errors, files_known, say, state, uploads, widgets

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.store import Artifact
    from qlab.opened import Match, QuantizedFile
    from qlab.ui.files_known import Ours

SOURCE, TENSOR = "files.source", "files.tensor"


def begin() -> None:
    """Takes the file from the link on the first visit."""
    if SOURCE not in st.session_state:
        st.session_state[SOURCE] = st.query_params.get("file", files_known.OURS)


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same."""
    return {"file": st.session_state.get(SOURCE)}


def choose() -> str:
    """Which file is shown: an example or one that was uploaded; and the place where one is uploaded."""
    from qlab.opened.read import MAX_FILE
    from qlab.readers.common import size_text

    kept = files_known.uploads()
    names = Counter(artifact.original_name for artifact in kept)
    titles = {
        files_known.OURS: f"Example: {state.config_label()} as .safetensors",
        files_known.OURS_ONNX: f"Example: {state.config_label()} as .onnx",
        files_known.OTHER: f"Example: {files_known.other_preset()} as .safetensors",
    }
    for artifact in kept:
        many = names[artifact.original_name] > 1
        titles[artifact.reference] = artifact.original_name + (f" ({artifact.hash[:6]})" if many else "")
    if st.session_state[SOURCE] not in titles:
        say.info("The file of this link is not here: it may have been opened on another machine. An example is shown.")
        st.session_state[SOURCE] = files_known.OURS
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="files_controls"):
        source = widgets.kept(
            st.selectbox, "File", list(titles), value=st.session_state[SOURCE],
            store=lambda chosen: st.session_state.update({SOURCE: chosen}), key="files_source",
            format_func=lambda one: titles[one], width=460,
            help="Shows another file: one that is made here from the network that is open, or one of yours.",
        )  # fmt: skip
        with st.popover("Open a file", help="Shows what is in a quantized file of yours; it is read, never run."):
            uploads.receive(
                "An .onnx, .tflite or .safetensors file", files_known.KIND, files_known.check, _accept,
                key="files_upload",
                text="Reads tensors and grids of the file; nothing in it is run, and it is kept in the store.",
                megabytes=MAX_FILE >> 20,
            )  # fmt: skip
            say.caption(
                "ONNX with QuantizeLinear and DequantizeLinear or with operators on integers, TFLite, or a model that "
                f"this lab saved, up to {size_text(MAX_FILE)}. Weights of an ONNX file must lie in the file itself."
            )
    return source


def _accept(artifact: Artifact) -> None:
    st.session_state[SOURCE] = artifact.reference


def opened(source: str, model: Model, mine: Ours | None) -> tuple[QuantizedFile, str] | None:
    """The file and what it is known by; None while it is being made."""
    if source in (files_known.OURS, files_known.OURS_ONNX, files_known.OTHER):
        return files_known.example(source, model, mine)
    artifact = next(a for a in files_known.uploads() if a.reference == source)
    return files_known.uploaded(artifact), artifact.hash


# ---- headline --------------------------------------------------------------------------------------------------------


def headline(file: QuantizedFile, found: Match, model: Model) -> None:
    weights, activations = file.of("weight"), file.of("activation")
    told = sum(row.file is not None for row in found.weights)
    computing = [op for op in file.ops if op.op not in ("QuantizeLinear", "DequantizeLinear", "QUANTIZE", "DEQUANTIZE")]
    ops, integer = sum(op.count for op in computing), sum(op.on_integers for op in computing)
    values = sum(t.codes.size for t in weights if t.codes is not None)
    shown: list[tuple[str, str, str | None, str]] = [
        (
            "Format", file.format, errors.escape(file.producer),
            "Told by the bytes of the file; below it who wrote it, as it says.",
        ),
        (
            "Size", byte_size(file.bytes), errors.escape(file.versions),
            "Of the whole file; below it the version of the format.",
        ),
        (
            "Weights on grids", whole(len(weights)), f"{_bits(file)}, {values:,} numbers" if weights else None,
            "Constants that the file holds as integers with scales, without biases.",
        ),
        (
            "Activations on grids", whole(len(activations)), "known beforehand" if activations else None,
            "Tensors between the layers whose scale and zero point are in the file; a dynamic file has none.",
        ),
        (
            "Ops on integers", f"{integer:,} of {ops:,}", percent(integer / ops) if ops else None,
            "Operators that take integers alone, or floats that were integers just before and become integers again; "
            "what a runtime makes of them is its own choice.",
        ),
        (
            "Found in the network", f"{told:,} of {len(found.weights):,}", f"weights of {errors.escape(model.name)}",
            "Weights of the network that is open which were found in the file, by name or by their values.",
        ),
    ]  # fmt: skip
    widgets.figures(shown)


def _bits(file: QuantizedFile) -> str:
    kinds = dict.fromkeys(t.dtype for t in file.of("weight"))
    return ", ".join(kinds)


def told(file: QuantizedFile, found: Match, model: Model) -> None:
    """What has to be known before the picture is read: nothing quantized, another network, values that do not fit."""
    name = errors.escape(model.name)
    rows = [row for row in found.weights if row.file is not None]
    if not file.tensors:
        say.info(
            "There is nothing quantized in this file: its weights and activations are float. Quantize it with the tool "
            "of your runtime, or choose a config on Experiment and take the file from Export."
        )
    elif file.of("weight") and not rows:
        say.info(
            f"No weight of this file belongs to **{name}**, neither by name nor by its values: it is a file of another "
            "network, or of another training of this one. Its tensors are shown below; choose its network in the "
            "sidebar to compare them."
        )
    doubtful = [row for row in rows if row.doubtful]
    if doubtful:
        names = ", ".join(f"`{errors.escape(row.tensor)}`" for row in doubtful[:5])
        say.warning(
            f"{names}{' and more' if len(doubtful) > 5 else ''}: the name fits and the values do not (cosine below "
            f"{_sure()}). The file comes from another training of the network, or another layer has that name."
        )
    for note in file.notes:
        say.caption(f"Left out: {errors.escape(note)}")


def _sure() -> str:
    from qlab.opened.match import SURE

    return f"{SURE:g}"


# ---- picture ---------------------------------------------------------------------------------------------------------


def picture(found: Match) -> None:
    """What the file keeps of each weight beside ours."""
    from qlab.plots.opened import sqnr_dots

    rows = [row for row in found.weights if row.file is not None]
    if not rows:
        return
    say.markdown("**How much of each float weight does the file keep?**")
    widgets.chart(
        sqnr_dots(found.weights, widgets.dark(), st.session_state.get(TENSOR)), key="files_picture", on_select=_click,
        selection_mode="points", alt="SQNR of each weight in the file and of ours, against the float weight",
    )  # fmt: skip
    both = [(row.sqnr_file, row.sqnr_ours) for row in rows if row.sqnr_file is not None and row.sqnr_ours is not None]
    worse, better = sum(f < o - 1 for f, o in both), sum(f > o + 1 for f, o in both)
    missing = len(found.weights) - len(rows)
    sentences = [
        f"Of {len(both):,} weights that both have on integers, the file keeps {worse:,} worse and {better:,} better by "
        "more than 1 dB."
        if both
        else "There are no integers of ours beside them: the config leaves these weights float, or is not ready yet."
    ]
    if missing:
        sentences.append(f"{missing:,} weights of the network were not found in the file: they may be float there.")
    say.caption(" ".join([*sentences, "A click on a mark opens that weight under One tensor."]))


def _click() -> None:
    if tensors := widgets.clicked("files_picture"):
        st.session_state[TENSOR] = tensors[0]
        st.session_state["files_tabs"] = "One tensor"
