"""The tabs of Weights: the numbers as a table, the grids, the error against float, and the levels that are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlab.metrics import MINUS, three_digits
from qlab.ui import run_list, say, weights, weights_known, widgets
from qlab.ui.weights_source import Shown

if TYPE_CHECKING:
    from qlab.quant.cells import Cells
    from qlab.ui.weights_known import Known

MOST_CHANNELS = 4_000  # in one chart
MOST_LINES = 1_000_000  # of a CSV file: some 80 MB, written in seconds
AGAINST, LOG = "weights.against", "weights.log"
VIEWS = {"value": "Value against float", "code": "Error by code"}


# --- the numbers ------------------------------------------------------------------------------------------------------


def table(of: Known, found: Cells) -> None:
    """The window as a table, and the whole layer as a file."""
    import pandas as pd

    names, flat = of.names(found.position.ravel()), found.code.ravel()
    columns: dict[str, Any] = {
        "Channel": found.channel.ravel(),
        "Position": found.position.ravel(),
        "Index behind": names or None,
        "Code": flat,
        "Scale": found.scale.ravel(),
        "Zero point": found.zero_point.ravel(),
        "Dequantized": found.dequantized.ravel(),
        "Float original": None if found.original is None else found.original.ravel(),
        "Error": None if found.error is None else found.error.ravel(),
    }
    number = st.column_config.NumberColumn
    real = {name: number(format="%.6g") for name in ("Scale", "Dequantized", "Float original", "Error")}
    st.dataframe(
        pd.DataFrame({name: values for name, values in columns.items() if values is not None}), key="weights_table",
        hide_index=True, width="stretch", height=run_list.height(len(flat), 420),
        column_config=real
        | {
            "Index behind": st.column_config.TextColumn(help=f"The same place by its axes; {of.across}."),
            "Error": number(format="%.3g", help="Dequantized minus float original."),
        },
        alt="Every number of the window with its code, scale, zero point and error",
    )  # fmt: skip
    _download(of, st.session_state[weights.CHANNEL])


def _download(of: Known, first: int) -> None:
    start, end = in_file(of, first)
    which = "the whole layer" if end - start == of.channels else f"channels {start:,} to {end - 1:,}"
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in of.name)
    st.download_button(
        f"Download {which} as CSV", lambda: as_csv(of, start, end), f"{name}.csv", "text/csv", key="weights_csv",
        on_click="ignore",
        help=f"Saves {(end - start) * of.positions:,} lines with every number to its last bit.",
    )  # fmt: skip


def in_file(of: Known, first: int) -> tuple[int, int]:
    """The channels of the file, as start and end: all of them; of a weight too large for one file, as many whole ones
    as fit from `first` on."""
    if of.tensor.codes.numel() <= MOST_LINES:
        return 0, of.channels
    return first, min(first + max(MOST_LINES // of.positions, 1), of.channels)


def as_csv(of: Known, start: int, end: int) -> str:
    """Every number of these channels, a line each."""
    from qlab.quant.cells import cells, to_csv

    at = np.arange(start, end)[:, None]
    return to_csv(cells(of.tensor, of.axis, at, np.arange(of.positions), of.original))


# --- scales -----------------------------------------------------------------------------------------------------------


def scales(of: Known) -> None:
    """Scale and zero point: as figures per tensor, as chart and table per channel or group."""
    tensor = of.tensor
    if not tensor.scale.ndim:
        _one_scale(of)
    elif tensor.scale.ndim == 1:
        _by_channel(of)
    else:
        _by_group(of)


def _one_scale(of: Known) -> None:
    tensor = of.tensor
    scale, zero = float(tensor.scale), int(tensor.zero_point)
    ends = [(end - zero) * scale for end in (tensor.quant_min, tensor.quant_max)]
    say.markdown("One scale and one zero point hold for the whole weight.")
    widgets.figures(
        [
            ("Scale", f"{scale:.6g}", "weight per code", "Distance between two neighbouring grid points."),
            ("Zero point", str(zero).replace("-", MINUS), "code", "The code that stands for exactly 0."),
            (
                "Grid", " … ".join(three_digits(end) for end in ends).replace("-", MINUS), "weight",
                "Smallest and largest weight that the grid can hold.",
            ),
        ]
    )  # fmt: skip


def _by_channel(of: Known) -> None:
    from qlab.plots.weights import scale_chart

    scale, zero = of.tensor.scale.numpy(), of.tensor.zero_point.numpy()
    part = _channels(of)
    say.markdown(f"Each of the {of.channels:,} output channels has a scale of its own.")
    widgets.chart(
        scale_chart(scale[part], zero[part], widgets.dark(), first=part.start), key="weights_scales",
        alt="Scale and zero point of each output channel",
    )  # fmt: skip
    _told(of, part)
    _grids(of, {"Channel": np.arange(part.start, part.stop)}, scale[part], zero[part])


def _by_group(of: Known) -> None:
    from qlab.plots.weights import group_chart

    groups, size = of.tensor.scale.shape[1], of.tensor.group_size or 1
    rows, _ = of.window
    columns = min(groups, weights_known.MOST_CELLS // rows)
    channel = st.session_state[weights.CHANNEL]
    group = min(st.session_state[weights.POSITION] // size, groups - columns)
    part, along = slice(channel, min(channel + rows, of.channels)), slice(group, group + columns)
    scale, zero = (grid[part, along].numpy() for grid in (of.tensor.scale, of.tensor.zero_point))
    say.markdown(f"Every {size:,} weights of a channel have a scale of their own: {groups:,} groups in each channel.")
    widgets.chart(
        group_chart(scale, zero, widgets.dark(), first_channel=channel, first_group=group), key="weights_groups",
        alt="Scale of each group: channels from top to bottom, groups along them from left to right",
    )  # fmt: skip
    if scale.size < of.tensor.scale.numel():
        say.caption(
            f"Channels {part.start:,} to {part.stop - 1:,} of {of.channels:,}, groups {group:,} to "
            f"{group + columns - 1:,} of {groups:,}: those of the window above."
        )
    at, behind = np.indices(scale.shape)
    places = {"Channel": (at + channel).ravel(), "Group": (behind + group).ravel()}
    _grids(of, places, scale.ravel(), zero.ravel())


def _channels(of: Known) -> slice:
    """All channels, or as many as a chart holds, from that of the window on."""
    start = min(st.session_state[weights.CHANNEL], max(of.channels - MOST_CHANNELS, 0))
    return slice(start, min(start + MOST_CHANNELS, of.channels))


def _told(of: Known, part: slice) -> None:
    if part.stop - part.start < of.channels:
        say.caption(f"Channels {part.start:,} to {part.stop - 1:,} of {of.channels:,}, from that of the window on.")


def _grids(of: Known, places: dict[str, Any], scale: np.ndarray, zero: np.ndarray) -> None:
    import pandas as pd

    low, high = ((end - zero) * scale for end in (of.tensor.quant_min, of.tensor.quant_max))
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(places | {"Scale": scale, "Zero point": zero, "Lowest": low, "Highest": high}),
        key="weights_grids", hide_index=True, width="content", height=run_list.height(len(scale), 320),
        column_config={
            "Scale": number(format="%.6g"),
            "Lowest": number(format="%.4g", help="The smallest weight that this grid can hold."),
            "Highest": number(format="%.4g", help="The largest weight that this grid can hold."),
        },
        alt="Scale, zero point and range of each grid",
    )  # fmt: skip


# --- against float ----------------------------------------------------------------------------------------------------


def against_float(shown: Shown, of: Known) -> None:
    """What the codes stand for beside the float weight, or that there is none."""
    from qlab.plots.weights import against_float as by_value
    from qlab.plots.weights import error_by_code

    if of.original is None:
        say.info(
            "The file of this model does not hold the float weights, so there is nothing to compare the integers with."
        )
        return
    found = weights_known.sampled(of)
    # From 6 bits on, the steps are too small to be seen beside the weights themselves.
    view = st.session_state.get(AGAINST, "value" if of.tensor.bits < 6 else "code")
    widgets.kept(
        st.segmented_control, "View", list(VIEWS), value=view, required=True,
        store=lambda chosen: st.session_state.update({AGAINST: chosen}), key="weights_against",
        format_func=VIEWS.__getitem__, width="content",
        help="Shows where each weight ends up, or how far it was moved, code by code.",
    )  # fmt: skip
    dark = widgets.dark()
    made = by_value(found, dark) if view == "value" else error_by_code(
        found, of.tensor.quant_min, of.tensor.quant_max, dark
    )  # fmt: skip
    widgets.chart(made, key=f"weights_error_{view}", alt=f"{VIEWS[view]} of {of.name}")
    say.caption(_what_is_seen(shown, of, found.code.size))


def _what_is_seen(shown: Shown, of: Known, count: int) -> str:
    every = of.tensor.codes.numel()
    part = f"All {every:,} weights." if count == every else f"{count:,} of {every:,} weights, at even distances."
    why = ["moved by training"] * shown.qmodel.trained + ["clipped"] + ["written by hand"] * bool(shown.edits)
    return f"{part} Rounding moves a weight by half a step at most; what lies further off was {' or '.join(why)}."


# --- levels -----------------------------------------------------------------------------------------------------------


def levels(of: Known) -> None:
    """How often each level occurs, those that do not, and how many each channel uses."""
    from qlab.plots.weights import levels_chart, used_by_channel

    every, unused = len(of.levels.codes), of.levels.unused
    logarithmic = bool(st.session_state.get(LOG, False))
    say.markdown(f"**{len(unused):,} of {every:,} levels unused**{_named(unused)}")
    widgets.kept(
        st.toggle, "Logarithmic count", value=logarithmic, store=lambda on: st.session_state.update({LOG: on}),
        key="weights_log", help="Makes levels that few weights take visible beside those that many take.",
    )  # fmt: skip
    widgets.chart(
        levels_chart(of.levels, widgets.dark(), logarithmic), key="weights_levels",
        alt=f"How many weights of {of.name} have each code; unused codes are marked",
    )  # fmt: skip
    part, used = _channels(of), of.levels.used_by_channel
    say.markdown("**How many levels does each channel use?**")
    widgets.chart(
        used_by_channel(used[part], every, of.positions, widgets.dark(), first=part.start), key="weights_used",
        alt="How many levels of the grid each output channel uses",
    )  # fmt: skip
    _told(of, part)
    if len(used):
        say.caption(
            f"Between {int(used.min()):,} and {int(used.max()):,} of {every:,} levels; a channel has {of.positions:,} "
            "weights."
        )


def _named(unused: np.ndarray) -> str:
    """The unused codes, where they are few."""
    few = ", ".join(str(code) for code in unused[:12]).replace("-", MINUS)
    return f": {few}{' …' if len(unused) > 12 else ''}" if len(unused) else ", the whole grid is in use"
