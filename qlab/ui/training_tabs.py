"""What training did to grids and weights, and what was done: the tabs of Training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import MINUS, percent, three_digits, write
from qlab.ui import errors, export, say, state, training, widgets
from qlab.ui.training_controls import NAMES

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.store import Run
    from qlab.training.history import GridTrace, History
    from qlab.ui.training import Seen

TABLE_HEIGHT = 460
WEIGHTS_PAGE, COMPARE_PAGE = "pages/inspect/weights.py", "pages/lab/compare.py"


def draw(seen: Seen, model: Model) -> None:
    history = seen.history
    if history is None:
        return
    widgets.tabs(
        {
            "How do the grids move?": lambda: grids(history),
            "Weights over the grid": lambda: weights(history),
            "Which weights flip?": lambda: flips(history),
            "Observer state": lambda: states(history),
            "What was done": lambda: done(history),
            "Take it with you": lambda: take(seen, model),
        },
        key="train_tabs",
    )


# --- grids ------------------------------------------------------------------------------------------------------------


def grids(history: History) -> None:
    """Range and step size of one tensor over time."""
    from qlab.plots.training_grids import grid_moves

    grid = _choose(history.grids, "train_grid", "Shows how the range and the step size of another tensor moved.")
    if grid is None:
        return
    widgets.chart(
        grid_moves(history, grid, widgets.dark()), key="train_grid_moves",
        alt=f"Both ends of the range of {grid.tensor} and its step size over the epochs",
    )  # fmt: skip
    left = grid.count - len(grid.channels)
    say.caption(
        f"As it was {_every(history)}."
        + (f" Of the {grid.count:,} scales, {len(grid.channels):,} at even distances are kept." if left else "")
    )


def _every(history: History) -> str:
    """How often grids were written down, in words."""
    records = int((history.record_epochs <= 1).sum()) - 1
    if len(history.epochs) < 2 or records < 1:
        return "written down once so far"
    return f"written down {records} times in an epoch" if records > 1 else "written down once in an epoch"


def _choose(found: Sequence[GridTrace], key: str, text: str) -> GridTrace | None:
    """The tensor that was looked at last, where it is among these, else the first."""
    if not found:
        say.caption("This config has no grid that could be followed here.")
        return None
    names = {grid.tensor: grid for grid in found}
    grid = names.get(state.tensor() or "", found[0])
    widgets.kept(
        st.selectbox, "Tensor", list(names), value=grid.tensor, store=state.set_tensor, key=key, width=340, help=text,
        format_func=lambda name: f"{name} · {names[name].role}, {names[name].bits} bit",
    )  # fmt: skip
    return grid


# --- weights ----------------------------------------------------------------------------------------------------------


def weights(history: History) -> None:
    """The histogram of one weight at one epoch."""
    from qlab.plots.training_grids import middle_words, weights_on_grid

    of_weights = [grid for grid in history.grids if grid.role == "weight"]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="train_weights_row"):
        grid = _choose(of_weights, "train_weight", "Shows another weight over its grid.")
        if grid is None:
            return
        epoch = _epoch(history, "train_weights")
    row = next(i for i, e in enumerate(history.epochs) if e.epoch == epoch)
    label = "before training" if epoch == 0 else f"epoch {epoch}"
    widgets.chart(
        weights_on_grid(grid, row, widgets.dark(), label), key="train_weights_chart",
        alt=f"Histogram of {grid.tensor} over its grid, {label}",
    )  # fmt: skip
    say.markdown(middle_words(grid, row))
    say.caption(
        "Every weight in steps of its own grid, before it is rounded; the end bins hold what lies beyond the grid. "
        "A weight in a grey part is rounded up or down by the smallest change."
    )


def _epoch(history: History, key: str) -> int:
    """The epoch that is looked at, with a slider and steps to either side; one for all tabs."""
    last, now = history.epochs[-1].epoch, training.epoch(history)
    if not last:
        return now
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", width=460, key=f"{key}_steps"):
        st.button(
            "Previous", key=f"{key}_back", disabled=now == 0, on_click=training.set_epoch, args=(now - 1,),
            help="Goes one epoch back.",
        )  # fmt: skip
        _slider(last, now, f"{key}_epoch_{last}")
        st.button(
            "Next", key=f"{key}_next", disabled=now == last, on_click=training.set_epoch, args=(now + 1,),
            help="Goes one epoch on.",
        )  # fmt: skip
    return now


def _slider(last: int, now: int, key: str) -> None:
    """key: another one for another end."""
    # Not `widgets.kept`: it leaves the slider to begin at 0 and then moves it. In a training that goes on one drawing
    # overtakes another, the move gets lost, and the browser reports what nobody chose: that 0, or where it stood.
    given: dict[str, Any] = {"value": now}
    if st.session_state.get(key, now) != now:
        st.session_state[key], given = now, {}
    st.slider(
        "Epoch", 0, last, key=key, width=250, on_change=_slid, args=(key, now),
        help="Shows the state at the end of this epoch; 0 is before the first step.", **given,
    )  # fmt: skip


def _slid(key: str, stood: int) -> None:
    if st.session_state[key] != stood:
        training.set_epoch(st.session_state[key])


def flips(history: History) -> None:
    """Share of the codes that change, by layer and time."""
    from qlab.plots.training_grids import flips as flips_figure

    widgets.chart(
        flips_figure(history, widgets.dark()), key="train_flips",
        alt="Share of the codes of each weight that changed from one record to the next, over the epochs",
    )  # fmt: skip
    say.caption(
        f"Share of the codes that differ from those at the record before; {_every(history)}. Grids that move change "
        "codes as well as weights that learn."
    )
    found = [(grid, grid.flips[-1]) for grid in history.grids if grid.role == "weight"]
    if found and len(history.record_epochs) > 1:
        grid, share = max(found, key=lambda pair: float(pair[1]))
        say.markdown(
            f"At the last record, **{errors.escape(grid.tensor)}** changes most: {percent(float(share))} of its codes "
            "since the record before. Codes that go on flipping late are weights that sit between two grid points."
            if share
            else "At the last record no code of any weight has changed since the one before."
        )


# --- every grid at one epoch ------------------------------------------------------------------------------------------


def states(history: History) -> None:
    """A table of all fake-quantize modules at one epoch, those with a mark first."""
    import pandas as pd

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="train_states_row"):
        epoch = _epoch(history, "train_states")
    record = history.record_of(epoch)
    say.markdown(marked_words(history, record, epoch))
    rows: list[dict[str, Any]] = [
        _line(grid, record) for grid in sorted(history.grids, key=lambda grid: not grid.marks(record))
    ]
    column = st.column_config
    st.dataframe(
        pd.DataFrame(rows).drop(columns=[] if any(row["Marks"] for row in rows) else ["Marks"]),
        key="train_states_table", hide_index=True, width="stretch", height=_height(len(rows)),
        column_config={
            "Marks": column.TextColumn(width="medium", help="What is wrong with this grid; empty where nothing is."),
            "Scale": column.TextColumn(help="Step size; of several the median, with the least and the largest."),
            "Zero point": column.TextColumn(help="The code of exactly 0; of several the least and the largest."),
            "Min": column.TextColumn(help="Lower end of the range; of several the lowest."),
            "Max": column.TextColumn(help="Upper end of the range; of several the highest."),
            "Frozen": column.CheckboxColumn(help="Whether the grid stands still by now."),
        },
    )  # fmt: skip


def _height(rows: int) -> int:
    return min(TABLE_HEIGHT, 38 + 35 * rows)


def marked_words(history: History, record: int, epoch: int) -> str:
    """How many grids have a mark at this record, in words."""
    marked = sum(bool(grid.marks(record)) for grid in history.grids)
    frozen = sum(bool(grid.frozen[record]) for grid in history.grids)
    count = len(history.grids)
    when = "before training" if epoch == 0 else f"after epoch {epoch}"
    still = f" {frozen} of {count} stand still." if frozen else " All of them may move."
    if not marked:
        return f"Nothing is wrong with any of the **{count} grids** {when}.{still}"
    return f"**{marked} of {count} grids** {'has' if marked == 1 else 'have'} a mark {when}; they come first.{still}"


def _line(grid: GridTrace, record: int) -> dict[str, Any]:
    from qlab.plots.training_grids import scale_words

    points = grid.zero_point[record]
    low, high = int(points.min()), int(points.max())
    return {
        "Marks": "; ".join(grid.marks(record)),
        "Tensor": grid.tensor,
        "Role": grid.role,
        "Bits": grid.bits,
        "Scales": grid.count,
        "Scale": scale_words(grid, record),
        "Zero point": f"{low}" if low == high else f"{low} … {high}",
        "Min": three_digits(float(grid.low[record].min())).replace("-", MINUS),
        "Max": three_digits(float(grid.high[record].max())).replace("-", MINUS),
        "Frozen": bool(grid.frozen[record]),
    }


# --- what was done ----------------------------------------------------------------------------------------------------


def done(history: History) -> None:
    """Settings, samples and what decides, as sentences."""
    say.markdown("\n".join(f"- {line}" for line in facts(history)))


def facts(history: History) -> list[str]:
    """What was done, a sentence each."""
    how, (trained, held) = history.settings, history.samples
    share = float(how["distillation"])
    ranges = (
        "learned step size: each scale follows the gradient of the loss"
        if how["ranges"] == "lsq"
        else f"moving average of what each batch holds, {how['averaging_constant']:g} of it from the newest"
    )
    out = [
        f"Trained on **{trained:,} samples** of the calibration part, "
        + (
            f"**{held:,}** held out to choose the best epoch."
            if held
            else "none held out, so the last epoch is the result."
        ),
        f"Measured after every epoch on **{history.evaluation_samples:,} evaluation samples**. They decide nothing: "
        "not the weights, not the ranges, not which epoch is the result.",
        f"{NAMES[how['optimizer']]}, learning rate {how['lr']:g}, {NAMES[how['schedule']]}; batches of "
        f"{how['batch_size']:,}; up to {how['epochs']:,} epochs"
        + (f", ended after {how['patience']:,} without a better one." if how["patience"] and held else "."),
        f"Ranges: {ranges}; they freeze after {_share(how['freeze_after'])} of the steps.",
    ]
    if history.float_accuracy is None:
        out.append("The data has no labels, so the float network is the teacher: its outputs are what is learned.")
    elif share:
        out.append(
            f"{_share(share)} of the loss asks for the output of the float network, the rest for the label."
            if share < 1
            else "The loss asks for the output of the float network alone; labels are not used."
        )
    else:
        out.append("The loss asks for the label alone.")
    if how["mixing"]:
        out.append(
            f"{_share(how['mixing'])} of the samples of a step are replaced by mixtures of two, for which the float "
            "network says what is right; token numbers cannot be mixed and stay."
        )
    if how["hints"]:
        out.append(
            f"The inner tensors are asked to stay close to those of the float network (hints, weight {how['hints']:g})."
        )
    out.append(
        "Rounding has no slope, so its gradient is taken to be that of no rounding at all (straight-through), and "
        "zero where a value is cut off."
    )
    return [*out, f"Seed {how['seed']}: of the order of the samples, of the mixtures and of what is held out."]


def _share(value: float) -> str:
    """A share that was set, as it was set."""
    return f"{100 * value:.4g} %"


# --- where to go on ---------------------------------------------------------------------------------------------------


def take(seen: Seen, model: Model) -> None:
    """The file of the trained model, and the pages that show it."""
    run = seen.finished
    if run is None:
        say.caption("Once the training has come to its end, the trained model can be downloaded and looked at here.")
        return
    file, name = training.trained_model(run), f"{export.stem()}_trained.safetensors"
    say.markdown(
        f"The network of epoch {seen.history.best if seen.history else 0} as a file of {write('size', file.bytes)}: "
        "integer codes, grids, biases and the graph. It can be written as ONNX from there."
    )
    with st.container(horizontal=True, gap="small"):
        st.download_button(
            f"Download {name}", file.path.read_bytes, name, "application/octet-stream", key="train_download",
            type="primary", on_click="ignore", help="Saves the file; qlab.load_quantized reads it.",
        )  # fmt: skip
        if st.button(
            "Compare with float and PTQ", key="train_compare",
            help="Opens the comparison with this run, beside the one without training where it was measured.",
        ):  # fmt: skip
            _compare(run, seen.untrained)
        if st.button("Look at its weights", key="train_weights_page", help="Opens Weights on the trained model."):
            st.session_state[training.WEIGHTS_ORIGIN] = run.id
            st.switch_page(WEIGHTS_PAGE)
    st.code(export.quantized_code(name, model), language="python", wrap_lines=True)


def _compare(run: Run, untrained: Run | None) -> None:
    state.set_compared([run.id] if untrained is None else [untrained.id, run.id])
    state.set_baseline(None if untrained is None else untrained.id)
    st.switch_page(COMPARE_PAGE)
