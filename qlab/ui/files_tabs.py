"""The tabs of Quantized files: layer by layer, activations, one tensor, all tensors, ops, what was not found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlab.metrics import MISSING, three_digits
from qlab.ui import errors, files, files_known, run_list, say, widgets

if TYPE_CHECKING:
    import pandas as pd

    from qlab.opened import FileTensor, Match, QuantizedFile
    from qlab.opened.match import WeightRow

VIEW, CHANNEL, POSITION = "files.view", "files.channel", "files.position"
VIEWS = ("Codes", "Levels", "Scales")
ROWS, COLUMNS = 32, 96  # of the window on the codes
MOST_LEVELS = 12  # bits up to which each level has a bar
MOST_SCALES = 4_000
TOLD = {"name": "name", "values": "values", "layer": "its layer", None: "not found"}


# ---- layer by layer --------------------------------------------------------------------------------------------------


def layers(found: Match) -> None:
    """Every weight of the network beside that of the file."""
    import pandas as pd

    number = st.column_config.NumberColumn
    frame = pd.DataFrame([_layer(row) for row in found.weights])
    st.dataframe(
        frame, key="files_layers", hide_index=True, width="stretch", height=run_list.height(len(frame), 460),
        placeholder=MISSING,
        column_config={
            "Told by": st.column_config.TextColumn(
                width=110,
                help="How the file's tensor was found: by its name, or by its values, which fit this weight best."
            ),
            "Cosine": number(format="%.5f", help="Of the file's weight with the float one: how sure it is the same."),
            "SQNR file (dB)": number(format="%.1f", help="Of the file's weight against the float one."),
            "SQNR ours (dB)": number(format="%.1f", help="Of ours under the current config, against the same."),
            "Scale ratio": number(format="%.3f", help="The file's scale over ours; the median over the channels."),
            "Same codes (%)": number(
                format="%.1f", help="Counted from the zero point; only where the scales differ by 25 % at most."
            ),
        },
        alt="Every weight of the network with what the file has for it",
    )  # fmt: skip
    _download(frame, "layers.csv", "files_layers_csv", "Saves this table.")


def _layer(row: WeightRow) -> dict[str, Any]:
    def finite(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else value

    return {
        "Weight": row.tensor,
        "In the file": None if row.file is None else row.file.name,
        "Told by": f"{TOLD[row.how]}, doubtful" if row.doubtful else TOLD[row.how],
        "Cosine": row.cosine,
        "File": None if row.file is None else f"{row.file.dtype} {row.file.granularity}",
        "Ours": "float" if row.ours is None else f"{'int' if row.ours.signed else 'uint'}{row.ours.bits}",
        "SQNR file (dB)": finite(row.sqnr_file),
        "SQNR ours (dB)": finite(row.sqnr_ours),
        "Scale ratio": row.scale_ratio,
        "Same codes (%)": None if row.same_codes is None else 100 * row.same_codes,
    }


# ---- activations -----------------------------------------------------------------------------------------------------


def activations(found: Match) -> None:
    """Ranges of the activations that could be told, beside ours."""
    import pandas as pd

    from qlab.plots.opened import range_bars

    if not found.activations:
        say.info(
            "No activation of the file could be told to be one of the network: it has none on a grid known beforehand, "
            "as dynamic and weight-only files, or its names and layers are others."
        )
        return
    widgets.chart(
        range_bars(found.activations, widgets.dark()), key="files_ranges",
        alt="What the grid of each activation holds, in the file and in ours",
    )  # fmt: skip
    number = st.column_config.NumberColumn
    frame = pd.DataFrame(
        [
            {
                "Tensor": row.tensor, "In the file": row.file.name, "Told by": TOLD[row.how], "Type": row.file.dtype,
                "Scale file": _one(row.file.scale), "Scale ours": None if row.ours is None else row.ours[0],
                "Scale ratio": row.scale_ratio,
                "Zero point file": _one(row.file.zero_point),
                "Zero point ours": None if row.ours is None else row.ours[1],
                "Low file": row.file.low, "Low ours": None if row.ours is None else row.ours[2],
                "High file": row.file.high, "High ours": None if row.ours is None else row.ours[3],
            }
            for row in found.activations
        ]
    )  # fmt: skip
    real = {c: number(format="%.5g") for c in frame.columns if c.startswith(("Scale", "Low", "High"))}
    st.dataframe(
        frame, key="files_activations", hide_index=True, width="stretch", placeholder=MISSING, column_config=real,
        height=run_list.height(len(frame), 420), alt="Grids of the activations in the file and in ours",
    )  # fmt: skip
    say.caption(
        "Zero points of a signed and an unsigned container differ by half the grid and mean the same: compare the ends "
        "of the ranges. Where ours is empty, our tensor shares the grid of another one or is float."
    )


def _one(values: np.ndarray) -> float | None:
    return float(values) if values.ndim == 0 else None


# ---- one tensor ------------------------------------------------------------------------------------------------------


def one(file: QuantizedFile, found: Match) -> None:
    """The codes of one weight, how often each occurs, and its scales."""
    weights = list(file.of("weight"))
    if not weights:
        say.info("The file holds no weight as integers, so there is none to look into.")
        return
    chosen = next(
        (i for row in found.weights if row.file is not None and row.tensor == st.session_state.get(files.TENSOR)
         for i, t in enumerate(weights) if t is row.file),
        st.session_state.get("files.index", 0),
    )  # fmt: skip
    chosen = min(chosen, len(weights) - 1)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="files_one"):
        index = widgets.kept(
            st.selectbox, "Tensor", list(range(len(weights))), value=chosen, store=_choose, key="files_tensor",
            format_func=lambda i: weights[i].name, width=360, help="Shows another weight of the file.",
        )  # fmt: skip
        view = widgets.kept(
            st.segmented_control, "View", VIEWS, value=st.session_state.get(VIEW, VIEWS[0]), required=True,
            store=lambda v: st.session_state.update({VIEW: v}), key="files_view", width="content",
            help="Shows the integers themselves, how often each one occurs, or the scales.",
        )  # fmt: skip
    tensor = weights[index]
    say.markdown(f"**{errors.escape(tensor.name)}**: {_about(tensor)}")
    {"Codes": _codes, "Levels": _levels, "Scales": _scales}[view](tensor)


def _choose(index: int) -> None:
    st.session_state["files.index"] = index
    for key in (files.TENSOR, CHANNEL, POSITION):
        st.session_state.pop(key, None)


def _about(tensor: FileTensor) -> str:
    reader = f", read by {errors.escape(tensor.reader)} ({errors.escape(tensor.reader_op)})" if tensor.reader else ""
    return f"{tensor.dtype}, shape {_shape(tensor)}, {tensor.granularity}{reader}."


def _codes(tensor: FileTensor) -> None:
    from qlab.plots.weights import codes_heatmap

    _, channels, positions = files_known.rows_of(tensor)
    first = [_first(CHANNEL, "First channel", channels, ROWS), _first(POSITION, "First position", positions, COLUMNS)]
    shown = files_known.cells(tensor, first[0], first[1], ROWS, COLUMNS)
    widgets.chart(
        codes_heatmap(shown, tensor.quant_min, tensor.quant_max, widgets.dark()), key="files_codes",
        alt=f"The integers of {tensor.name}, a row for each channel",
    )  # fmt: skip
    if shown.code.size < channels * positions:
        say.caption(f"{shown.code.size:,} of {channels * positions:,} numbers, as many as fit.")


def _first(key: str, label: str, size: int, window: int) -> int:
    """Where the window begins, in an axis that does not fit into it."""
    last = max(size - window, 0)
    value = min(st.session_state.get(key, 0), last)
    if not last:
        return 0
    return widgets.kept(
        st.slider, label, 0, last, value=value, store=lambda v: st.session_state.update({key: v}),
        key=key.replace(".", "_"), help="Moves the window over the weight.", width=400,
    )  # fmt: skip


def _levels(tensor: FileTensor) -> None:
    from qlab.plots.weights import levels_chart

    if tensor.bits > MOST_LEVELS:
        say.info(f"{tensor.dtype} has {1 << tensor.bits:,} levels, too many to count each: look at the codes.")
        return
    levels = files_known.levels(tensor)
    say.markdown(f"{levels.used:,} of {len(levels.codes):,} levels are used, {len(levels.unused):,} are not.")
    widgets.chart(
        levels_chart(levels, widgets.dark()), key="files_levels",
        alt=f"How many weights of {tensor.name} have each code; unused codes are marked",
    )  # fmt: skip


def _scales(tensor: FileTensor) -> None:
    from qlab.plots.weights import group_chart, scale_chart

    if not tensor.scale.ndim:
        widgets.figures(
            [
                ("Scale", f"{float(tensor.scale):.6g}", "weight per code", "Distance of two neighbouring grid points."),
                ("Zero point", f"{int(tensor.zero_point)}", "code", "The code that stands for exactly 0."),
                ("Grid", f"{three_digits(tensor.low)} … {three_digits(tensor.high)}", "weight",
                 "Smallest and largest weight that the grid can hold."),
            ]
        )  # fmt: skip
    elif tensor.block_size is None:
        shown = slice(0, MOST_SCALES)
        widgets.chart(
            scale_chart(tensor.scale[shown], tensor.zero_point[shown], widgets.dark()), key="files_scales",
            alt=f"Scale and zero point of each channel of {tensor.name}",
        )  # fmt: skip
    else:
        scale, zero = (v.reshape(len(v), -1)[:ROWS, :COLUMNS] for v in (tensor.scale, tensor.zero_point))
        widgets.chart(
            group_chart(scale, zero, widgets.dark()), key="files_groups", alt=f"Scale of each block of {tensor.name}"
        )
        if scale.size < tensor.scale.size:
            say.caption(f"The first {scale.size:,} of {tensor.scale.size:,} blocks.")


# ---- everything ------------------------------------------------------------------------------------------------------


def tensors(file: QuantizedFile) -> None:
    """Every tensor on a grid."""
    if not file.tensors:
        say.info("There is no tensor on a grid in this file.")
        return
    frame = _frame(file.tensors)
    number = st.column_config.NumberColumn
    st.dataframe(
        frame, key="files_table", hide_index=True, width="stretch", height=run_list.height(len(frame), 520),
        placeholder=MISSING,
        column_config={
            "Scale": st.column_config.TextColumn(help="One number, or the smallest and largest of several."),
            "Low": number(format="%.4g", help="The smallest value that the grid can hold."),
            "High": number(format="%.4g", help="The largest value that the grid can hold."),
            "Bytes": number(help="Codes packed at their bits, and scales."),
        },
        alt="Every tensor of the file that lies on a grid",
    )  # fmt: skip
    _download(frame, "tensors.csv", "files_table_csv", "Saves this table with a line for each tensor.")


def _frame(found: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "Name": t.name, "Role": t.role, "Type": t.dtype, "Shape": _shape(t), "Scales": t.granularity,
                "Scale": _ends(t.scale, three_digits), "Zero point": _ends(t.zero_point, str), "Low": t.low,
                "High": t.high, "Read by": t.reader or None, "Op": t.reader_op or None,
                "Bytes": t.bytes if t.codes is not None else None,
            }
            for t in found
        ]
    )  # fmt: skip


def _ends(values: np.ndarray, write: Any) -> str:
    """One value, or the smallest and the largest."""
    if not values.size:
        return MISSING
    low, high = values.min().item(), values.max().item()
    return write(low) if low == high else f"{write(low)} … {write(high)}"


def _shape(tensor: FileTensor) -> str:
    if tensor.shape is None:
        return "not stated"
    return "[" + ", ".join("any" if size is None else str(size) for size in tensor.shape) + "]"


def _download(frame: pd.DataFrame, name: str, key: str, text: str) -> None:
    st.download_button(
        "Download as CSV", lambda: frame.to_csv(index=False), name, "text/csv", key=key, on_click="ignore", help=text
    )


def operators(file: QuantizedFile) -> None:
    """Every op, how often, and how often between integers."""
    import pandas as pd

    frame = pd.DataFrame({"Op": [op.op for op in file.ops], "Count": [op.count for op in file.ops],
                          "On integers": [op.on_integers for op in file.ops]})  # fmt: skip
    st.dataframe(
        frame, key="files_ops", hide_index=True, width="content", height=run_list.height(len(frame), 520),
        column_config={
            "On integers": st.column_config.NumberColumn(
                help="Takes integers alone, or floats that were integers just before and become integers again."
            )
        },
        alt="Every operator of the file, how often it occurs and how often on integers",
    )  # fmt: skip


def unmatched(found: Match) -> None:
    """What could not be told to be anything of the network; and what of the network the file lacks."""
    lacking = [row.tensor for row in found.weights if row.file is None]
    if lacking:
        names = ", ".join(f"`{errors.escape(name)}`" for name in lacking[:20])
        more = f" and {len(lacking) - 20:,} more" if len(lacking) > 20 else ""
        say.markdown(f"**Weights of the network that were not found in the file**: {names}{more}")
    if not found.unmatched:
        say.caption("Every weight and activation of the file was told to be one of the network.")
        return
    say.markdown("**Tensors of the file that belong to nothing of the network, as far as can be told**")
    frame = _frame(found.unmatched)
    st.dataframe(
        frame, key="files_unmatched", hide_index=True, width="stretch", height=run_list.height(len(frame), 420),
        placeholder=MISSING, alt="Tensors of the file that were not found in the network",
    )  # fmt: skip
    say.caption(
        "A tensor is told by its name, by values that fit a float weight (cosine), or by the layer that gives it; what "
        "none of these tells is left here and not guessed."
    )
