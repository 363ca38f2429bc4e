"""What are the integers: which weight is shown and which part of it, the picture of its codes, and its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from qlab.lab.compared import changes_of
from qlab.metrics import MINUS, metric, write
from qlab.ui import change, errors, say, state, weights_known, weights_source, widgets
from qlab.ui.weights_source import CONFIG, LAYER, ORIGIN, Shown

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.quant.cells import Cells
    from qlab.ui.weights_known import Known

OF, CHANNEL, POSITION, BYTE = "weights.of", "weights.channel", "weights.position", "weights.byte"


def begin(model_hash: str) -> None:
    """Takes layer, window and run from the link on the first visit; another model starts anew.

    A run that another page has set as origin stays; one that does not fit the model is dropped by `origin`.
    """
    if st.session_state.get(OF) == model_hash:
        return
    asked = st.query_params if OF not in st.session_state else {}
    st.session_state.update({OF: model_hash, LAYER: asked.get("layer", "")})
    st.session_state[ORIGIN] = asked.get("trained") or st.session_state.get(ORIGIN, CONFIG)
    for key, name in ((CHANNEL, "channel"), (POSITION, "position"), (BYTE, "byte")):
        text = asked.get(name, "")
        st.session_state[key] = int(text) if text.isdecimal() else 0


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same."""
    names = {"layer": LAYER, "trained": ORIGIN, "channel": CHANNEL, "position": POSITION, "byte": BYTE}
    found = {name: st.session_state.get(key) for name, key in names.items()}
    return {name: str(value) if value else None for name, value in found.items()}


# --- controls ---------------------------------------------------------------------------------------------------------


def origin(model: Model) -> None:
    """Which quantized model is looked at; there only where one was trained."""
    runs = {run.id: run for run in weights_source.trained_runs(model)}
    if st.session_state[ORIGIN] not in runs:
        st.session_state[ORIGIN] = CONFIG
    if not runs:
        return

    def title(run_id: str) -> str:
        if run_id == CONFIG:
            return f"The current config: {state.config_label()}"
        run = runs[run_id]
        changes = changes_of(run)  # first, because the end of a long config is cut off
        config = f"{changes[:1].upper()}{changes[1:]}: {run.config.removesuffix(f' · {changes}')}"
        return f"Trained: {run.name} ({run_id[:6]})" if run.name else f"{config} ({run_id[:6]})"

    widgets.kept(
        st.selectbox, "What to look at", [CONFIG, *runs], value=st.session_state[ORIGIN], store=widgets.into(ORIGIN),
        key="weights_origin", format_func=title, width=340,
        help="Shows the integers that the current config gives, or those that a training ended with.",
    )  # fmt: skip


def controls(shown: Shown, of: Known) -> Cells:
    """Layer and window; gives the numbers in the window."""
    rows, columns = of.window
    st.session_state[LAYER] = shown.layer  # a link names it, also where nobody chose one
    widgets.kept(
        st.selectbox, "Layer", list(shown.qmodel.weights), value=shown.layer, store=_set_layer, key="weights_layer",
        width=300, help="Shows another weight; those held as integers are listed.",
    )  # fmt: skip
    channel = _start("First channel", CHANNEL, of.channels, rows)
    position = _start("First position", POSITION, of.positions, columns)
    return weights_known.cells_at(of, channel, position)


def _start(label: str, key: str, size: int, step: int) -> int:
    """Where the window begins along one side; nothing to choose where it shows all of it."""
    at = min(int(st.session_state[key]), max(size - 1, 0)) if size > step else 0
    st.session_state[key] = at
    if size > step:
        widgets.kept(
            st.number_input, label, 0, size - 1, value=at, store=widgets.into(key), key=f"weights_{label[6:]}_{size}",
            step=step, width=140, help=f"Moves the window, {step:,} of {size:,} at a time; any number can be typed.",
        )  # fmt: skip
    return at


def _set_layer(layer: str) -> None:
    # A place in one weight says nothing in another.
    st.session_state.update({LAYER: layer, CHANNEL: 0, POSITION: 0, BYTE: 0})


# --- the picture and its figures --------------------------------------------------------------------------------------


def picture(shown: Shown, of: Known, found: Cells) -> None:
    from qlab.plots.weights import codes_heatmap

    changed = _changed(shown, of, found)
    widgets.chart(
        codes_heatmap(
            found, of.tensor.quant_min, of.tensor.quant_max, widgets.dark(),
            names=of.names(found.position[0]) if found.code.size else (), across=of.across, changed=changed,
        ),
        key="weights_codes",
        alt=f"Integer codes of {of.name}: channels from top to bottom, what lies behind them from left to right",
    )  # fmt: skip
    say.caption(part_shown(of, found) + " Framed: written by hand." * bool(changed.any()))


def _changed(shown: Shown, of: Known, found: Cells) -> np.ndarray:
    """Which codes of the window are not those without the edits."""
    from qlab.quant.cells import cells

    if not shown.edits:
        return np.zeros(found.code.shape, dtype=bool)
    before = cells(shown.original.weights[shown.layer], of.axis, found.channel, found.position)
    return before.code != found.code


def part_shown(of: Known, found: Cells) -> str:
    """Which part of the weight is in the window, in words."""
    count, every = found.code.size, of.tensor.codes.numel()
    if count == every:
        return f"All {every:,} integers of {errors.escape(of.name)} are shown."
    ends = [(int(at.min()), int(at.max())) for at in (found.channel, found.position)]
    return (
        f"{count:,} of {every:,} integers of {errors.escape(of.name)} are shown: channels {ends[0][0]:,} to "
        f"{ends[0][1]:,} of {of.channels:,}, positions {ends[1][0]:,} to {ends[1][1]:,} of {of.positions:,}."
    )


def figures(shown: Shown, of: Known) -> None:
    tensor, size, levels = of.tensor, of.tensor.size_breakdown(), len(of.levels.codes)
    unused = len(of.levels.unused)
    grid = f"{tensor.quant_min} to {tensor.quant_max}".replace("-", MINUS)
    stored = [f"codes {write('size', size.codes)}", f"scales {write('size', size.scales)}"]
    if size.zero_points:
        stored.append(f"zero points {write('size', size.zero_points)}")
    widgets.figures(
        [
            ("Bits", f"{tensor.bits}", f"codes {grid}", "Bits of one code, and the codes of the grid."),
            (
                "Codes", f"{tensor.codes.numel():,}", " × ".join(map(str, of.shape)),
                "How many integers the weight holds, and its shape.",
            ),
            (
                "Packed", write("size", size.total), f"float {write('size', of.float_bytes)}",
                f"Bytes as stored: {', '.join(stored)}; and what the float weight takes.",
            ),
            (
                "Levels used", f"{of.levels.used:,} of {levels:,}", f"{unused:,} unused",
                "Codes of the grid that at least one weight has; what is unused was paid for in bits.",
            ),
            (
                "SQNR of the weight", write("sqnr", of.sqnr),
                "no float weight to compare" if of.sqnr is None else "against the float weight",
                metric("sqnr").help,
            ),
        ]
    )  # fmt: skip
    if not shown.qmodel.has_float_original:
        say.caption("The file of this model does not hold the float weights, so there is no error to measure.")


# --- nothing to show --------------------------------------------------------------------------------------------------


def nothing(shown: Shown) -> None:
    """No weight is quantized: says so, and offers a config that quantizes them."""
    from qlab.preset import presets

    name = state.DEFAULT_PRESET
    say.info("No weight of this network is held as integers under this config, so there are none to look at.")
    st.button(
        f"Switch to the config {name}", key="weights_default", type="primary", on_click=go_to,
        args=(name,), help=f"{presets.about(name).title}: {presets.about(name).summary}",
    )  # fmt: skip
    others(shown)


def go_to(preset: str) -> None:
    """Makes a preset the current config, and looks at what it gives. For a button's on_click."""
    from qlab.preset import presets

    st.session_state[ORIGIN] = CONFIG
    change.to(presets[preset], f"Switched to {preset}")


def others(shown: Shown) -> None:
    """Layers whose weights stay float, and why."""
    constants = {layer.name for layer in shown.qmodel.model.layers if layer.weight_shape is not None}
    stay = [
        row for row in shown.qmodel.ledger
        if row.layer in constants and not any(key == row.layer or key.startswith(f"{row.layer}.")
                                              for key in shown.qmodel.weights)
    ]  # fmt: skip
    if stay:
        with st.expander(f"Why {len(stay)} {'layers have' if len(stay) > 1 else 'layer has'} no integer weights"):
            say.markdown("\n".join(f"- {errors.escape(row.layer)}: {errors.escape(row.reason)}" for row in stay))
