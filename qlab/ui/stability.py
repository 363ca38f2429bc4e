"""What is shown on Stability: whether the result hangs on which samples calibrated it, and which scales move."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.metrics import about_duration, metric, percent, write
from qlab.ui import cache, change, choose, derived, errors, estimate, jobs, say, state, widgets

if TYPE_CHECKING:
    from qlab.analysis.remedy import Remedy
    from qlab.analysis.stability import Stability
    from qlab.config import QConfig, QConfigMapping
    from qlab.graph.capture import Model

KIND = "stability"
WORDS = derived.Words(
    stopped="The drawing was stopped, so it is not known how steady this config is.",
    no_result="The drawing ended without a result.",
    again="Draw again",
    help="Draws calibrations of several sizes from the calibration data and measures each.",
)
ASKED, SIZE = "stab.asked", "stab.size"
OBSERVERS = ("percentile", "mse")  # do not follow single values
PREPARES = 15  # times what one calibration and one evaluation take together, as measured on the samples
MOVES = 0.1  # relative spread of a scale from which it is worth a word
NOT_DRAWN = {
    "dynamic": "it is **dynamic**, so activations get their ranges from each call's own values",
    "weight_only": "it is **weight-only**, so activations stay float",
    "static": "every range it needs is given by hand or known without data",
    "float": "it quantizes nothing by default",
}


# --- the result -------------------------------------------------------------------------------------------------------


def begin() -> None:
    """Takes tensor and size from the link on the first visit."""
    if SIZE in st.session_state:
        return
    asked = st.query_params.get("samples", "")
    st.session_state[SIZE] = int(asked) if asked.isdecimal() else None
    if (tensor := st.query_params.get("tensor")) is not None:
        state.set_tensor(tensor)


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same."""
    size = st.session_state.get(SIZE)
    return {"tensor": state.tensor(), "samples": None if size is None else str(size)}


def known(model: Model) -> Stability | None:
    """What a job found for the current model, data and config, or None; draws nothing."""
    from qlab.lab.analyses import STABILITY

    data, chosen = cache.dataset(state.data_ref()), state.options()
    return STABILITY.find(cache.store(), model, data, state.mapping(), batch_size=chosen.batch_size, seed=chosen.seed)


def depends(model: Model) -> bool:
    """Whether anything of the current config comes from the calibration data."""
    from qlab.graph.equalize import network_of
    from qlab.graph.placement import place

    mapping = state.mapping()
    points = place(network_of(model, mapping), mapping).activations
    return mapping.correct_bias or any(point.kind == "observed" for point in points)


def found(model: Model) -> Stability | None:
    """The result for the current config: found again, or drawn once a person has asked for it."""
    if not choose.data_fits(model):
        return None
    if not depends(model):
        _independent()
        return None
    if (result := known(model)) is not None:
        return result
    arguments: dict[str, Any] = {"experiment": state.experiment().replace(name="")}
    mine = json.dumps(arguments["experiment"].to_dict(), sort_keys=True)
    if mine not in st.session_state.setdefault(ASKED, set()) and not _going_on(arguments):
        _ask(model, mine)
        return None
    return derived.require(KIND, arguments, lambda: known(model), WORDS, mine=mine, key="stab")


def _going_on(arguments: dict[str, Any]) -> bool:
    """Whether it is being drawn already, for another browser or before a reload."""
    from qlab.lab.tasks import KINDS

    spec = KINDS[KIND].describe(cache.store(), arguments).spec
    return any(run.kind == KIND and run.spec == spec for run in jobs.open_runs())


def _ask(model: Model, mine: str) -> None:
    from qlab.analysis.stability import EVALUATED, RESAMPLES

    data = cache.dataset(state.data_ref())
    with st.container(border=True, key="stab_ask"):
        say.markdown(
            f"Calibrations of growing size are drawn from the {len(data.calibration):,} calibration samples, "
            f"{RESAMPLES} of each size, with replacement and in any order. Each is quantized under "
            f"**{errors.escape(state.config_label())}** and measured on {min(EVALUATED, len(data.evaluation)):,} "
            f"evaluation samples. {_how_long(model)} What is found is kept."
        )
        st.button(
            "Draw calibrations", key="stab_draw", type="primary", on_click=st.session_state[ASKED].add, args=(mine,),
            help="Starts a job; the other pages go on working meanwhile.",
        )  # fmt: skip


def _how_long(model: Model) -> str:
    from qlab.lab.store import DONE

    data = cache.dataset(state.data_ref()).content_hash
    runs = cache.store().list_runs(limit=None, kind=(KIND, "prepare"), status=DONE)
    for kind, times in ((KIND, 1), ("prepare", PREPARES)):
        expected = estimate.expected_seconds([run for run in runs if run.kind == kind], model.content_hash, data)
        # A request that was found in the store ended at once, and says nothing.
        if expected is not None and expected[0] >= 1:
            return f"That takes {about_duration(times * expected[0])}."
    return "That takes some seconds for a small network, a minute or more for a larger one."


def _independent() -> None:
    """Why there is nothing to draw, and a config with which there is."""
    from qlab.preset import presets

    default = state.mapping().default
    mode = "float" if default is None else default.mode
    name = state.DEFAULT_PRESET
    say.info(
        f"No range of this config comes from the calibration data: {NOT_DRAWN[mode]}. Its result is the same whatever "
        "the calibration samples are."
    )
    st.button(
        f"Switch to the config {name}", key="stab_default", on_click=change.to,
        args=(presets[name], f"Switched to {name}"), help="Makes the static 8-bit preset the current config.",
    )  # fmt: skip


# --- the verdict ------------------------------------------------------------------------------------------------------


def sentence(result: Stability, samples: int) -> str:
    """How many samples are enough, in words. samples: of the whole calibration."""
    if result.enough is None:
        return result.warning or ""
    if result.labelled:
        return (
            f"From **{result.enough:,} samples** on, no drawn calibration is worse than all {samples:,} beyond chance."
        )
    return (
        f"From **{result.enough:,} samples** on, every drawn calibration names the same class as all {samples:,} for "
        "at least 99 % of the samples."
    )


def verdict(result: Stability) -> None:
    samples = len(cache.dataset(state.data_ref()).calibration)
    (st.warning if result.enough is None else st.success)(sentence(result, samples))
    figures(result, samples)


def figures(result: Stability, samples: int) -> None:
    from qlab.evaluation import wilson_interval
    from qlab.plots.stability import ranking

    largest, accuracy = result.sizes[-1], metric("accuracy")
    drawn = [draw.figure for draw in result.at(largest)]
    low, high = (accuracy.format(end) for end in (min(drawn), max(drawn)))
    values: list[tuple[str, str, str | None, str]] = [
        (
            "Enough", "none of these" if result.enough is None else f"{result.enough:,}",
            f"of {samples:,} calibration samples",
            "The smallest size from which on every drawn calibration does as well as the whole one.",
        )
    ]  # fmt: skip
    if result.labelled:
        ends = wilson_interval(round(result.whole * result.evaluated), result.evaluated)
        values.append(
            (
                "Whole calibration", write("accuracy", result.whole),
                f"{accuracy.interval(*ends)} on {result.evaluated:,}",
                f"Accuracy with all {samples:,} calibration samples, simulated, with its 95 % interval.",
            )
        )  # fmt: skip
    values.append(
        (
            f"Drawn, {largest:,} samples", low if low == high else f"{low.removesuffix(' %')} … {high}",
            "accuracy" if result.labelled else "same class",
            f"Lowest and highest of {len(drawn)} calibrations of {largest:,} samples, drawn with replacement; "
            "simulated.",
        )
    )  # fmt: skip
    if result.spreads:
        first = ranking(result, largest)[0]
        values.append(
            (
                "Most unsteady scale", f"± {percent(first.relative(largest))}", first.tensor,
                f"Standard deviation over mean of its scale, between the draws of {largest:,} samples.",
            )
        )  # fmt: skip
    widgets.figures(values)


def picture(result: Stability) -> None:
    from qlab.plots.stability import draws_figure

    say.markdown("**How many samples are enough?**")
    widgets.chart(
        draws_figure(result, widgets.dark()), key="stab_draws",
        alt="The figure of each drawn calibration over its number of samples, with that of the whole calibration",
    )  # fmt: skip
    say.caption(
        f"Simulated, on {result.evaluated:,} evaluation samples. Each size is drawn {len(result.at(result.sizes[0]))} "
        f"times with replacement, {result.chunk} samples at a time."
        + (
            " Worse beyond chance: McNemar's test against the whole calibration, at 5 % for each size."
            * result.labelled
        )
    )


# --- what helps -------------------------------------------------------------------------------------------------------


def remedies(mapping: QConfigMapping) -> list[Remedy]:
    """Configs whose ranges do not follow single values."""
    from qlab.analysis.remedy import Remedy
    from qlab.quant.observers import OBSERVERS as RULES

    out = []
    for name in OBSERVERS:
        new = _ranged_by(mapping, name)
        if new != mapping:
            sentence = f"For the activations of every layer. {RULES[name].summary}"
            out.append(Remedy(f"Range activations by {name}", sentence, new))
    return out


def _ranged_by(mapping: QConfigMapping, observer: str) -> QConfigMapping:
    """The config with this observer for all activations; bits and schemes stay, and what cannot have it stays whole."""

    def changed(config: QConfig) -> QConfig:
        spec = config.activation
        # Of activations per channel only the range is known, which serves min_max alone.
        if spec is None or spec.granularity != "tensor" or spec.observer == observer:
            return config
        return config.replace(activation=spec.replace(observer=observer, observer_args={}))

    return mapping.each(changed)


def advice(result: Stability) -> None:
    """What to do where a size is unsteady; what it means where scales move and the result does not."""
    from qlab.plots.stability import ranking

    unsteady = [size for size in result.sizes if not result.steady(size)]
    largest = result.sizes[-1]
    if unsteady:
        helps = remedies(state.mapping())
        if helps:
            say.markdown("**What may help**: an observer that does not follow single values.")
            change.buttons(helps, "stab_do")
        if state.data_ref().kind != "sample":
            st.page_link("pages/lab/start.py", label="Calibrate with more samples: the share is set on Start")
    elif result.spreads and ranking(result, largest)[0].relative(largest) >= MOVES:
        say.caption("Some scales move by 10 % and more between draws. The result bears it, so nothing has to be done.")
