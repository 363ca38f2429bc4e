"""Numbers of a quantized model written by hand: kept for this browser, written, undone, and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.ui import errors, say, weight_edits_accuracy, weight_edits_controls, weight_edits_effect, weight_edits_proof
from qlab.ui.converted import Key
from qlab.ui.weight_edits_controls import number

if TYPE_CHECKING:
    from qlab.edits import Edit
    from qlab.ui.weight_edits_controls import Place
    from qlab.ui.weights_source import Shown

HELD = "weights.edits"  # what an unedited quantized model depends on -> the edits of it, in order
MOST_LINES = 6  # of the list before it scrolls


def current(key: Key) -> tuple[Edit, ...]:
    """The edits made in this browser session in the quantized model that depends on this, in the order they apply."""
    return _held().get(key, ())


def _held() -> dict[Key, tuple[Edit, ...]]:
    return st.session_state.setdefault(HELD, {})


def write(key: Key, edit: Edit) -> None:
    """Adds an edit. For a button's on_click."""
    _held()[key] = (*current(key), edit)


def undo(key: Key, number: int) -> None:
    """Takes one edit back; the others stay. For a button's on_click."""
    edits = current(key)
    _held()[key] = (*edits[:number], *edits[number + 1 :])


def undo_all(key: Key) -> None:
    """Takes all of them back. For a button's on_click."""
    _held().pop(key, None)


# --- the tab ----------------------------------------------------------------------------------------------------------


def draw(shown: Shown) -> None:
    """Choose a number, write it, and see what that does."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="edits_controls"):
        place = weight_edits_controls.place(shown)
        value = weight_edits_controls.new_value(shown, place)
        _write_button(shown, place, value)
    weight_edits_controls.jumps(shown, place)
    weight_edits_controls.now(shown, place, value)
    if not shown.edits:
        say.caption(
            "Nothing is written yet: the model is as the config made it. A number written here is there on the other "
            "tabs, too; pages other than Weights keep the model without it."
        )
        return
    _list(shown)
    weight_edits_proof.draw(shown)
    weight_edits_effect.draw(shown)
    weight_edits_accuracy.draw(shown)


def _write_button(shown: Shown, place: Place, value: float | None) -> None:
    from qlab.errors import InvalidConfig

    made, refused = None, "Choose another value: the number has this one already."
    if value is not None and weight_edits_controls.differs(shown, place, value):
        try:
            made = place.edit(value)
        except InvalidConfig as error:
            refused = str(error)
    st.button(
        "Write", key="edits_write", type="primary", disabled=made is None, on_click=write, args=(shown.key, made),
        help=refused if made is None else "Writes the number into the buffer that the forward, the state dict, the "
        "saved file and the integer session read.",
    )  # fmt: skip


def _list(shown: Shown) -> None:
    """The edits in order, each with its way back."""
    count = len(shown.edits)
    say.markdown(f"**{count} number{'s' if count > 1 else ''} written by hand**")
    was = before(shown)
    with st.container(
        border=True, key="edits_list", height=330 if count > MOST_LINES else "content", gap="small"
    ):  # fmt: skip
        for number, (edit, value) in enumerate(zip(shown.edits, was, strict=True)):
            with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
                say.markdown(f"{told(edit, value)}; {meaning(shown, edit, value)}", width="content")
                st.button(
                    "Undo", key=f"edits_undo_{number}", on_click=undo, args=(shown.key, number), width="content",
                    help="Takes this edit back; the others stay.",
                )  # fmt: skip
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Undo all", key="edits_undo_all", on_click=undo_all, args=(shown.key,),
            help="Gives the model back as the config made it, to the last bit.",
        )  # fmt: skip
        _download(shown)


def _download(shown: Shown) -> None:
    from qlab.export.quantized_file import SUFFIX, quantized_bytes

    qmodel = shown.qmodel
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in qmodel.name) or "model"
    st.download_button(
        "Download the edited model", lambda: quantized_bytes(qmodel), f"{name}.edited{SUFFIX}",
        "application/octet-stream", key="edits_download", on_click="ignore",
        help="Saves codes, scales and zero points with these edits; qlab.load_quantized reads the file.",
    )  # fmt: skip


def before(shown: Shown) -> list[float]:
    """What each edited number was just before its edit: the original's, or what an earlier edit wrote."""
    from qlab.edits import buffer_of

    standing: dict[tuple[str, str, str, tuple[int, ...]], float] = {}
    found = []
    for edit in shown.edits:
        place = (edit.of, edit.tensor, edit.part, edit.index)
        if place not in standing:
            buffer = buffer_of(shown.original, edit.tensor, edit.part, edit.of)
            standing[place] = buffer[edit.index].item()
        found.append(standing[place])
        standing[place] = edit.value
    return found


def told(edit: Edit, was: float) -> str:
    """An edit in one line of Markdown."""
    index = "" if not edit.index else f" [{', '.join(map(str, edit.index))}]"
    what = "activation " if edit.of == "activation" else ""
    part = edit.part.replace("_", " ")
    return f"{what}{errors.escape(edit.tensor)}, {part}{errors.escape(index)}: **{number(was)} → {number(edit.value)}**"


def meaning(shown: Shown, edit: Edit, was: float) -> str:
    """What the number stood for and stands for: a weight, or how far a grid reaches. By the grid as it is now."""
    if edit.part == "code":
        zero_point, scale = weight_edits_controls.grid_of_code(shown, edit.tensor, edit.index)
        old, new = (number((code - zero_point) * scale) for code in (was, edit.value))
        return f"stands for {old} → {new}"
    qmodel = shown.qmodel
    grid = qmodel.weights[edit.tensor] if edit.of == "weight" else qmodel.activations[edit.tensor]
    held = {"scale": grid.scale[edit.index].item(), "zero_point": grid.zero_point[edit.index].item()}
    ends = []
    for value in (was, edit.value):
        now = held | {edit.part: value}
        ends.append(
            " … ".join(number((end - now["zero_point"]) * now["scale"]) for end in (grid.quant_min, grid.quant_max))
        )
    return f"the grid reaches {ends[0]} → {ends[1]}"
