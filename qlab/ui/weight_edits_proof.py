"""Where an edited number is found again: each line is read there, now, and says so where it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import byte_size
from qlab.ui import errors, say
from qlab.ui.weight_edits_controls import number

if TYPE_CHECKING:
    import torch

    from qlab.edits import Edit
    from qlab.export.read_back import ReadBack
    from qlab.ui.weights_source import Shown

READ = "edits.read"  # the stamps whose files are to be written and read back
FOUND, LOST = "✓", "✗"
BUFFERS = {"code": "codes", "scale": "scale", "zero_point": "zero_point"}
MOST_OTHERS = 4


def draw(shown: Shown) -> None:
    """The last edit in the buffer and the state dict; in both files once a person asks for it."""
    edit = shown.edits[-1]
    say.markdown(f"**Where the last number is now** · {errors.escape(edit.tensor)}, {edit.part.replace('_', ' ')}")
    say.markdown("\n".join(f"- {line}" for line in (*in_memory(shown, edit), others(shown))))
    asked = st.session_state.setdefault(READ, set())
    if shown.stamp not in asked:
        st.button(
            "Look into the saved file and the ONNX file", key="edits_read", on_click=asked.add, args=(shown.stamp,),
            help="Writes both files in memory and reads the number from their bytes, which takes some seconds.",
        )  # fmt: skip
        return
    try:
        found = _read(shown.stamp, shown, edit)
    except QLabError as refused:
        errors.show(refused)
        return
    say.markdown("\n".join(f"- {line}" for line in in_files(edit, found)))


# --- read now ---------------------------------------------------------------------------------------------------------


def held(edit: Edit) -> float:
    """The value as a buffer of its type holds it: scales are float32."""
    import numpy as np

    return float(np.float32(edit.value)) if edit.part == "scale" else edit.value


def in_memory(shown: Shown, edit: Edit) -> list[str]:
    """A line for the buffer and one for the state dict, each read there."""
    from qlab.edits import buffer_of
    from qlab.export.read_back import state_key

    table = "weights" if edit.of == "weight" else "activations"
    place = f"qmodel.{table}[{edit.tensor!r}].{BUFFERS[edit.part]}"
    old, new = (_at(buffer_of(m, edit.tensor, edit.part, edit.of), edit) for m in (shown.original, shown.qmodel))
    key = state_key(shown.qmodel, edit)
    was, now = (_at(m.state_dict()[key], edit) for m in (shown.original, shown.qmodel))
    return [
        f"{_mark(new == held(edit))} in {code(place, edit)}: {number(old)} → **{number(new)}**",
        f"{_mark(now == held(edit))} in {code(f'qmodel.state_dict()[{key!r}]', edit)}: "
        f"{number(was)} → **{number(now)}**",
    ]


def others(shown: Shown) -> str:
    """Whether anything but the edited numbers differs from the model without edits."""
    import torch

    from qlab.export.read_back import state_key

    places: dict[str, set[tuple[int, ...]]] = {}
    for edit in shown.edits:
        places.setdefault(state_key(shown.qmodel, edit), set()).add(edit.index)
    before, after = shown.original.state_dict(), shown.qmodel.state_dict()
    same, stray = 0, 0
    for key, tensor in before.items():
        if torch.equal(tensor, after[key]):
            same += 1
            continue
        differing = {tuple(int(i) for i in at) for at in (tensor != after[key]).nonzero()}
        stray += len(differing - places.get(key, set()))
    return (
        f"{_mark(not stray)} nothing else: {same:,} of {len(before):,} tensors are equal to the last bit, and in the "
        f"others {'no number' if not stray else f'{stray:,} numbers'} beside the edited differ{'s' * (not stray)}"
    )


def in_files(edit: Edit, found: ReadBack) -> list[str]:
    """A line for the saved file and one for the ONNX file, as they were read back."""
    lines = [
        f"{_mark(found.saved == held(edit))} in the saved file ({byte_size(found.bytes)}), read back by "
        f"`qlab.load_quantized`: **{number(found.saved)}**"
    ]
    one = found.held
    if found.refused is not None:
        lines.append(f"{_mark(False)} there is no file for an integer session: {errors.escape(found.refused)}")
        return lines
    if not found.onnx:
        same = found.was == held(edit)
        lines.append(f"{_mark(same)} the file of the integer session is equal to that without this edit")
        return lines
    if one is None:
        lines.append(f"{_mark(False)} in the file of the integer session it was not found as a number of its own")
    else:
        assert one.before is not None
        assert one.after is not None
        index = f" [{', '.join(map(str, one.index))}]" if one.index else ""
        moved = f", where signed codes lie {found.moved} higher" if found.moved else ""
        lines.append(
            f"{_mark(True)} in the file of the integer session, constant {_span(one.constant + index)} ({one.kind})"
            f"{moved}: {number(one.before)} → **{number(one.after)}**"
        )
    rest = [difference.constant for difference in found.onnx if difference is not one]
    if rest:
        named = ", ".join(_span(name) for name in rest[:MOST_OTHERS])
        more = f" and {len(rest) - MOST_OTHERS} more" if len(rest) > MOST_OTHERS else ""
        lines.append(f"what follows from it in that file: {named}{more}")
    elif one is not None:
        lines.append("every other constant of that file is equal")
    return lines


@st.cache_resource(max_entries=8, show_spinner="Writing both files and reading them back")
def _read(stamp: tuple[str, ...], _shown: Shown, _edit: Edit) -> ReadBack:
    from qlab.edits import buffer_of
    from qlab.export.read_back import read_back

    was = _at(buffer_of(_shown.original, _edit.tensor, _edit.part, _edit.of), _edit)
    return read_back(_shown.qmodel, _edit, was)


def _at(buffer: torch.Tensor, edit: Edit) -> float:
    found: float = buffer[edit.index].item()
    return found


def _mark(found: bool) -> str:
    return f":green[{FOUND}]" if found else f":orange[{LOST} not there:]"


def code(place: str, edit: Edit) -> str:
    """A place in the words of Python, as code."""
    return _span(place + (f"[{', '.join(map(str, edit.index))}]" if edit.index else ""))


def _span(text: str) -> str:
    """Text as inline code, whatever it holds."""
    fence = "`" * (max((len(run) for run in _ticks(text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _ticks(text: str) -> list[str]:
    import re

    return re.findall("`+", text)
