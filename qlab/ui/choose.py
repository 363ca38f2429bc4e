"""Choosing model and data on the start page: sample cards, uploads, preprocessing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qlab.errors import InvalidConfig
from qlab.ui import cache, errors, facts, library, prepared, say, state, uploads
from qlab.ui.library import DataRef, ModelRef

if TYPE_CHECKING:
    from qlab.data import Dataset, Finding
    from qlab.graph.capture import Model
    from qlab.lab.store import Artifact

COLUMNS = 3
SHARES = (5, 50)  # per cent of the samples that may calibrate
CALIBRATION = 512


def sample_cards() -> dict[str, DeltaGenerator]:
    """A card for each sample network; gives the places where `fill_figures` writes what has to be read first."""
    places = {}
    columns: list[DeltaGenerator] = []
    for i, card in enumerate(library.cards().values()):
        # A new row of columns for every three: cards in a row then share their height.
        columns = columns if i % COLUMNS else st.columns(COLUMNS)
        ref = library.sample_model(card.name)
        current = ref == state.model_ref()
        place = columns[i % COLUMNS].container(
            border=True, key=f"start_card_{card.name}", height="stretch", vertical_alignment="distribute"
        )
        with place.container():
            say.markdown(f"**{card.title}**", help=card.architecture)
            say.caption(card.task)
        with place.container():
            places[card.name] = st.empty()
            places[card.name].caption(facts.of(ref))
            st.button(
                "Open now" if current else "Open",
                key=f"start_open_{card.name}",
                on_click=state.set_model,
                args=(ref,),
                disabled=current,
                width="stretch",
                help="Shows this network and its data on every page.",
            )
    return places


def fill_figures(places: dict[str, DeltaGenerator]) -> None:
    """Parameters and measured accuracy on each card; the accuracy only where it has been measured."""
    for name, place in places.items():
        ref = library.sample_model(name)
        cache.model(ref)
        found = prepared.known(ref, library.sample_data(name))
        mark = f"{prepared.accuracy_text(found.float_evaluation)} in float" if found else "not measured yet"
        place.caption(f"{facts.of(ref)} · {mark}")


def title(ref: ModelRef) -> str:
    """What a person calls this network, ready for Markdown."""
    card = library.cards().get(ref.source) if ref.kind == "sample" else None
    return card.title if card else errors.escape(ref.title)


def about(ref: ModelRef) -> None:
    """What a sample network shows, and what was planted in it; nothing for an upload."""
    card = library.cards().get(ref.source) if ref.kind == "sample" else None
    if card is None:
        return
    say.markdown(card.notes or card.architecture)
    if card.planted:
        say.caption(f"Planted on purpose: {card.planted}")


# --- uploads ----------------------------------------------------------------------------------------------------------


def upload() -> None:
    """Uploaders for a network and for data, and the lines that write the network's file."""
    left, right = st.columns(2, gap="large")
    with left:
        uploads.receive(
            "Network: a .pt2 file written by torch.export.save",
            library.MODEL,
            _read_model,
            _open_model,
            key="start_upload_model",
            text="Makes this network the one every page shows; nothing in the file is run while it is read.",
        )
    with right:
        uploads.receive(
            "Data: .npz, .npy, .safetensors, .pt of tensors, .csv, .parquet or a .zip of images",
            library.DATA,
            _read_data,
            _open_data,
            key="start_upload_data",
            text="Makes this data calibrate and evaluate; how it is scaled is set beside the examples below.",
        )
        say.caption(
            "Samples lie along the first axis. Labels are the array named y, or a column named y or label; images in a "
            "zip are labelled by their folder. Without labels, agreement with float and SQNR are measured instead of "
            "accuracy."
        )
    say.caption("These lines write the file of any network in PyTorch; example_input is one batch of what it takes:")
    st.code(_export_lines(), language="python", wrap_lines=True)


def _export_lines() -> str:
    from qlab.graph.archive_schema import EXPORT_LINES

    return EXPORT_LINES


def _read_model(path: Path) -> None:
    from qlab.graph.capture import load_model

    load_model(path)


def _open_model(artifact: Artifact) -> None:
    state.set_model(library.uploaded_model(artifact))


def _read_data(path: Path) -> None:
    from qlab.data import load_dataset

    load_dataset(path)


def _open_data(artifact: Artifact) -> None:
    ref = library.uploaded_data(artifact)
    state.set_data(ref)
    data = cache.dataset(ref)
    if not data.has_split and len(data) > 1:
        # What calibrated must not be what evaluates; the data brings no split, so it gets one.
        state.set_data(ref.replace(calibration_samples=min(CALIBRATION, len(data) // 2)))


# --- preprocessing ----------------------------------------------------------------------------------------------------


def preprocessing(data: Dataset) -> None:
    """Scale, mean, std and split of uploaded data; a sample brings its own."""
    ref = state.data_ref()
    if ref.kind == "sample":
        return
    mark = ref.source[-8:]
    with st.form(f"start_preprocessing_{mark}"):
        say.markdown(
            "**Preprocessing**: the network sees (x × scale − mean) / std, which must be what it was trained with."
        )
        columns = st.columns(3)
        texts = {
            name: column.text_input(
                name, _text(getattr(ref, name)), key=f"start_{name}_{mark}", placeholder=hint, help=help_text
            )
            for column, (name, hint, help_text) in zip(columns, PREPROCESSING, strict=True)
        }
        share = st.slider(
            "Calibration share",
            *SHARES,
            value=_share(ref, data),
            format="%d %%",
            key=f"start_share_{mark}",
            help="How much of the data sets the ranges; the rest measures accuracy.",
        )
        if st.form_submit_button("Apply", key=f"start_apply_{mark}", help="Reads the data again in this way."):
            numbers = {name: _numbers(name, text) for name, text in texts.items()}
            # A split that the file brings stays until the share is moved.
            moved = ref.calibration_samples is not None or share != _share(ref, data)
            samples = max(1, round(len(data) * share / 100)) if moved and len(data) > 1 else None
            scale = numbers.pop("scale")
            if scale is not None and len(scale) != 1:
                raise InvalidConfig("scale is one number, such as 1/255; give mean and std for each channel instead.")
            new = ref.replace(scale=scale[0] if scale else None, calibration_samples=samples, **numbers)
            cache.dataset(new)  # raises before anything is changed
            state.set_data(new)
            st.rerun()


PREPROCESSING = (
    ("scale", "1/255", "Raw values are multiplied with this number first; empty leaves what the file says."),
    ("mean", "0.485, …", "Subtracted after scaling: one number, or one for each channel."),
    ("std", "0.229, …", "Divided by at the end: one number, or one for each channel."),
)


def _share(ref: DataRef, data: Dataset) -> int:
    samples = ref.calibration_samples or (len(data.calibration) if data.has_split else min(CALIBRATION, len(data) // 2))
    return min(max(round(100 * samples / len(data)), SHARES[0]), SHARES[1])


def _text(value: float | tuple[float, ...] | None) -> str:
    numbers = () if value is None else value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{v:.10g}" for v in numbers)


def _numbers(name: str, text: str) -> tuple[float, ...] | None:
    """ "0.5", "1/255" or "0.485, 0.456, 0.406"; None when empty."""
    parts = [part.strip() for part in text.replace(";", ",").split(",") if part.strip()]
    try:
        return tuple(_fraction(part) for part in parts) or None
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidConfig(f"{name} is {text!r}: give numbers such as 0.5, 1/255 or 0.485, 0.456, 0.406.") from error


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    value = float(above) / float(below) if below else float(above)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def findings(model: Model, data: Dataset) -> list[Finding]:
    """The check of the data against the network, errors first."""
    from qlab.data import check_against

    return check_against(model.inputs, data, model.n_classes)


def data_fits(model: Model) -> bool:
    """Whether the current data fits this network; where it does not, says why and links to where that is changed."""
    unfit = [f for f in findings(model, cache.dataset(state.data_ref())) if f.severity == "error"]
    if unfit:
        st.error(errors.escape(f"{unfit[0].message} {unfit[0].remedy or ''}"))
        st.page_link("pages/lab/start.py", label="Choose other data on Start")
    return not unfit
