"""The settings of a training: the few that matter in a row, the rest behind a button, and the bits of the config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import write
from qlab.training.settings import OPTIMIZERS, RANGES, SCHEDULES
from qlab.ui import change, errors, say, state, training, widgets

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.store import Run

NAMES = {
    "moving_average": "moving average", "lsq": "learned step size", "adam": "Adam", "sgd": "SGD, momentum 0.9",
    "cosine": "cosine, to zero", "constant": "constant",
}  # fmt: skip
MOST_EARLIER = 12
PATIENCE = 5  # epochs, where a person first asks for an early end


def row(model: Model) -> None:
    """Epochs, learning rate and ranges, the rest in a popover; and what was trained before."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="train_controls"):
        _number("Epochs", "epochs", 1, 1000, "More epochs win back more and take longer.", width=150)
        _number(
            "Learning rate", "lr", 1e-6, 10.0,
            "A higher rate learns faster and may spoil what the float network knows; the loss then jumps.",
            width=150, step=0.0005, format="%g",
        )  # fmt: skip
        _choice(
            "Ranges", "ranges", RANGES,
            "A moving average follows the values of each batch; a learned step size is set by the gradient of the "
            "loss, which pays at 4 bits and below.",
        )  # fmt: skip
        with st.popover("More settings", help="Shows the settings that rarely need a change."):
            _more()
        if done := training.earlier(model):
            with st.popover("Earlier trainings", help="Shows finished trainings of this network, to be opened again."):
                _earlier(done)


def _more() -> None:
    now = training.settings()
    _choice("Optimizer", "optimizer", OPTIMIZERS, "Adam finds its own step for each weight; SGD needs a higher rate.")
    _choice(
        "Learning rate over time", "schedule", SCHEDULES,
        "Cosine lets the rate end at zero, so that the codes come to rest; constant keeps moving them.",
    )  # fmt: skip
    _number("Batch size", "batch_size", 1, 4096, "Smaller batches give more and noisier steps in an epoch.", step=1)
    _number(
        "Averaging constant", "averaging_constant", 0.0, 1.0,
        "A larger one lets a range follow the newest batch faster and shake more.",
        disabled=now.ranges != "moving_average", step=0.005, format="%g",
    )  # fmt: skip
    _number(
        "Freeze ranges after (share of the steps)", "freeze_after", 0.0, 1.0,
        "From there on the grids stand still and only weights learn; 1 never freezes them.", step=0.05, format="%g",
    )  # fmt: skip
    _number(
        "Distillation share", "distillation", 0.0, 1.0,
        "How much of the loss asks for the output of the float network instead of the label; without labels all of it.",
        step=0.1, format="%g",
    )  # fmt: skip
    _number(
        "Mixing", "mixing", 0.0, 1.0,
        "This share of the samples of a step are mixtures of two, for which the float network is asked: few samples "
        "then last longer.",
        step=0.1, format="%g",
    )  # fmt: skip
    _number(
        "Hints", "hints", 0.0, 100.0,
        "How much the loss asks for the inner tensors of the float network as well: it guides every layer, and a step "
        "takes longer by a run of the float network; 0 leaves it out.",
        step=0.5, format="%g",
    )  # fmt: skip
    _number(
        "Held-out share", "validation", 0.0, 0.5,
        "This part of the calibration samples is not trained on and chooses the best epoch; with 0 the last one is the "
        "result.",
        step=0.05, format="%g",
    )  # fmt: skip
    _early()
    _number("Seed", "seed", 0, 2**31 - 1, "Another one shuffles, mixes and holds out other samples.")


def _early() -> None:
    """An end before the last epoch, which takes samples that are held out."""
    now = training.settings()
    widgets.kept(
        st.checkbox, "End early", value=now.patience is not None, key="train_early",
        store=lambda on: _set("patience", PATIENCE if on else None), disabled=not now.validation,
        help="Ends the training once no epoch has been better on the held-out samples for a while; needs some held "
        "out.",
    )  # fmt: skip
    if now.patience is not None:
        _number(
            "Patience (epochs)", "patience", 1, 1000, "So many epochs without a better one end the training.",
            disabled=not now.validation,
        )  # fmt: skip


def _number(label: str, name: str, low: float, high: float, text: str, **kwargs: Any) -> None:
    value = getattr(training.settings(), name)
    widgets.kept(
        st.number_input, label, low, high, value=value, store=partial(_set, name), key=f"train_{name}", help=text,
        **kwargs,
    )  # fmt: skip


def _choice(label: str, name: str, options: tuple[str, ...], text: str) -> None:
    widgets.kept(
        st.segmented_control, label, options, value=getattr(training.settings(), name), store=partial(_set, name),
        key=f"train_{name}", required=True, format_func=NAMES.__getitem__, help=text, width="content",
    )  # fmt: skip


def _set(name: str, value: Any) -> None:
    if value is None and name != "patience":
        return  # a field that was emptied: what it held before comes back
    try:
        training.change_settings(**{name: value})
    except QLabError as error:
        st.session_state[training.PROBLEM] = error


def _earlier(done: Sequence[Run]) -> None:
    """A button for each: what it was and what came of it."""
    for run in done[:MOST_EARLIER]:
        how = run.spec["training"]
        said = f"{run.config} · {NAMES[how['ranges']]} · learning rate {how['lr']:g}"
        st.button(
            f"{errors.escape(said)}: {_came_of(run)}", key=f"train_earlier_{run.id}", on_click=training.reopen,
            args=(run,), width="stretch",
            help="Makes its config and its settings the current ones and shows what it found.",
        )  # fmt: skip
    if len(done) > MOST_EARLIER:
        st.page_link("pages/lab/runs.py", label=f"{len(done) - MOST_EARLIER} older ones on Runs")


def _came_of(run: Run) -> str:
    head = run.headline
    return write("accuracy", head.accuracy) if head.accuracy is not None else write("agreement", head.agreement)


# --- the config -------------------------------------------------------------------------------------------------------


def config() -> None:
    """The bits of the config, and the configs at which training has something to win."""
    mapping = state.mapping()
    offered = [
        (title, changed)
        for weight, activation, title in training.LOW_BITS
        if (changed := training.low_bits(mapping, weight, activation)) != mapping
    ]
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="train_config"):
        say.markdown(
            f"Config **{errors.escape(state.config_label())}**: {bits()}", width="content",
            help="The config that all pages share: training starts on its grids and keeps their bits.",
        )  # fmt: skip
        for i, (title, changed) in enumerate(offered):
            st.button(
                title, key=f"train_bits_{i}", on_click=_to(changed, f"Set {title}"),
                help="Changes the bits of every config of the current one: weights per channel, activations per "
                "tensor, ranged by least squared error. What stays float stays so.",
            )  # fmt: skip
        st.page_link("pages/lab/experiment.py", label="Change it on Experiment")
    fewest = training.fewest_bits(mapping)
    if fewest is None:
        say.info("This config quantizes nothing, so there is nothing to win back. A button above sets few bits.")
    elif fewest >= training.NO_LOSS:
        say.info(
            f"With {fewest} bits and more, quantization itself seldom costs anything that training could win back. "
            "Few bits show what training is for: a button above sets them."
        )


def _to(changed: Any, title: str) -> Callable[[], None]:
    return partial(change.to, changed, title)


def bits() -> str:
    """Bits of weights and activations, in words."""
    mapping = state.mapping()
    if mapping.default is None:
        text = "float, unless a rule says otherwise"
    else:
        weight, activation = mapping.default.weight, mapping.default.activation
        said = [f"{spec.bits}-bit {what}" if spec else f"float {what}" for what, spec in
                (("weights", weight), ("activations", activation))]  # fmt: skip
        text = ", ".join(said)
    count = mapping.rule_count
    return text + (f", {count} rule{'s' * (count > 1)} beside it" if count else "")
