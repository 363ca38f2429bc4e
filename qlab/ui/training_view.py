"""A training as a person sees it: the button, how far it is, the curves, and what was won back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from qlab.metrics import MISSING, about_duration, metric, percent, write
from qlab.ui import cache, errors, jobs, prepared, results, say, state, training, training_tabs, widgets

if TYPE_CHECKING:
    from qlab.evaluation import Comparison, Evaluation
    from qlab.graph.capture import Model
    from qlab.lab.store import Run
    from qlab.training.history import Epoch, History
    from qlab.ui.training import Seen

EVERY = 2.0  # seconds between two looks at a training that goes on
HELP = (
    "Simulated with fake quantization on the evaluation samples, which training never sees; in brackets the 95 % "
    "interval."
)


def draw(model: Model) -> None:
    """The button, and under it what is known: the picture and its tabs, or what to do first."""
    seen = training.look(model)
    training.note_address(seen.run)
    bar(model, seen)
    if seen.going:
        st.fragment(_alive, run_every=EVERY)(model)
    else:
        found(model, seen)


def _alive(model: Model) -> None:
    # The bar above runs the whole page again once the job has ended.
    found(model, training.look(model))


def found(model: Model, seen: Seen) -> None:
    if seen.history is None:
        before_any(model, seen)
        return
    picture(seen.history)
    pairs = None
    with errors.box():
        pairs = paired_with(seen)
    figures(seen.history, None if pairs is None or pairs.ptq is None else bool(pairs.ptq.significant))
    if pairs is not None:
        verdict(seen, seen.history, pairs)
    training_tabs.draw(seen, model)


# --- the button -------------------------------------------------------------------------------------------------------


def bar(model: Model, seen: Seen) -> None:
    """Train beside what is known of the job: how far it is, how long it will take, or how it ended."""
    if problem := st.session_state.pop(training.PROBLEM, None):
        errors.show(problem)
    with st.container(horizontal=True, gap="medium", vertical_alignment="center", border=True, key="train_job"):
        with st.container(width=210, gap="xsmall"):
            st.button(
                label(seen), key="train_start", type="primary", width="stretch", on_click=training.start,
                disabled=seen.going or seen.finished is not None,
                help="Trains the weights through fake quantization, in a process of its own; other pages go on "
                "working. It may be stopped at any time and goes on from its last epoch.",
            )  # fmt: skip
            say.caption(_expected(model, seen))
        # A width of its own, so that in a narrow window it moves under the button instead of being squeezed.
        with st.container(width=560):
            _state(seen)


def label(seen: Seen) -> str:
    """What the button says."""
    if seen.going:
        return "Training"
    if seen.finished is not None:
        return "Trained"
    if seen.history is not None and seen.history.finished:
        return "Measure again"  # the training is there and its run is not
    return f"Go on from epoch {seen.reached}" if seen.reached else "Train"


def _expected(model: Model, seen: Seen) -> str:
    if seen.finished is not None:
        took = seen.finished.seconds
        return "these settings are trained" + (f", in {write('duration', took)}" if took is not None else "")
    if seen.going:
        return "other pages go on working"
    known = training.expected_seconds(model)
    if known is None:
        return "no earlier training to tell the time"
    seconds, count = known
    return f"{about_duration(seconds)} in all, by {count} earlier training{'s' * (count > 1)}"


def _state(seen: Seen) -> None:
    run, history = seen.run, seen.history
    if run is not None and not run.ended:
        jobs.watch(run.id, key="train_progress")
    elif run is not None and run.status == "failed":
        errors.failure(run.error or "The training ended without a result.", run.detail)
        if seen.reached:
            say.caption(f"What was found up to epoch {seen.reached} stands below, and training can go on from there.")
    elif run is not None and run.status == "cancelled":
        say.info(
            f"The training was stopped after epoch {seen.reached}; what it found until then stands below."
            if seen.reached
            else "The training was stopped before its first epoch was over."
        )
    elif history is not None and history.finished:
        say.markdown(_ended(history))
    elif seen.reached:
        say.info(f"A training by these settings was broken off after epoch {seen.reached}; it can go on.")
    else:
        data = cache.dataset(state.data_ref())
        say.markdown(
            f"Press **Train**: the weights learn on the {len(data.calibration):,} calibration samples with the grid in "
            f"their way, and every epoch is measured on the {len(data.evaluation):,} evaluation samples."
        )


def _ended(history: History) -> str:
    asked, went = int(history.settings["epochs"]), history.epochs[-1].epoch
    early = f" of {asked}, because none had been better for {history.settings['patience']}" if went < asked else ""
    if not history.samples[1]:
        return f"Trained for **{went} epochs**{early}. Nothing was held out, so the last of them is the result."
    if not history.best:
        return (
            f"Trained for **{went} epochs**{early}. None of them has a lower loss on the held-out samples than the "
            "start, which therefore is the result: a lower learning rate or more samples may help."
        )
    return (
        f"Trained for **{went} epochs**{early}. Epoch **{history.best}** is the result: it has the least loss on the "
        "held-out samples."
    )


# --- before any training ----------------------------------------------------------------------------------------------


def before_any(model: Model, seen: Seen) -> None:
    """Float and PTQ as far as they are known."""
    # A training that goes on calibrates by itself: a second job would do the same beside it.
    known = prepared.known(state.model_ref(), state.data_ref()) if seen.going else prepared.require(key="train")
    reference = known.float_evaluation if known else None
    if reference is not None and reference.accuracy is None:
        say.markdown(
            "The data has no labels: the float network is the teacher, and what counts is on how many samples both "
            "name the same class."
        )
    widgets.figures(_known(reference, seen.untrained))
    if seen.untrained is None and not seen.going:
        _offer_untrained(seen, "Training measures it too, before its first step.")


def _known(reference: Evaluation | None, untrained: Run | None) -> list[tuple[str, str, str | None, str]]:
    known = results.result_of(untrained).quantized if untrained is not None else None
    if reference is not None and reference.accuracy is None:
        value, note = (write("agreement", known.agreement), "with float") if known else (MISSING, "not measured yet")
        return [("PTQ, same class as float", value, note, metric("agreement").help)]
    out: list[tuple[str, str, str | None, str]] = [
        (name, write("accuracy", one.accuracy if one else None), _interval(one) if one else "not measured yet", HELP)
        for name, one in (("Float", reference), ("PTQ", known))
    ]
    if reference and known and reference.accuracy is not None and known.accuracy is not None:
        out.append(_cost(reference.accuracy, known.accuracy, (known.accuracy_interval or (0.0, 0.0))[1]))
    return out


def _interval(one: Evaluation) -> str:
    ends = one.accuracy_interval
    return f"{metric('accuracy').interval(*ends)} on {one.n:,}" if ends else f"on {one.n:,}"


def _offer_untrained(seen: Seen, more: str) -> None:
    """A button that measures the config without training, or how far that is."""
    if seen.measuring is not None:
        jobs.watch(seen.measuring.id, key="train_ptq_progress")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button(
            "Measure PTQ", key="train_ptq", on_click=training.measure_untrained,
            help="Runs the current config without training, so that both can be compared sample by sample.",
        )  # fmt: skip
        say.caption(more)


# --- the picture and the figures --------------------------------------------------------------------------------------


def picture(history: History) -> None:
    from qlab.plots.training import curves

    widgets.chart(
        curves(history, widgets.dark()), key="train_curves",
        alt="Accuracy of the quantized network by epoch against float and before training, and the loss by step",
    )  # fmt: skip
    held = history.samples[1]
    say.caption(
        f"Simulated on {history.evaluation_samples:,} evaluation samples, which training never sees. "
        + (
            f"Which epoch is best is decided by the loss on the {held:,} held-out samples alone."
            if held
            else "Nothing is held out, so the last epoch is the result."
        )
    )


def figures(history: History, real: bool | None = None) -> None:
    """Float, before and after training, and how much of the loss came back. real: whether the gain is more than chance,
    where both were compared sample by sample."""
    before, after = history.epochs[0], chosen(history)
    if not history.epochs[-1].epoch:
        widgets.figures(_start(history))
        return
    name = "After training" if history.finished else "Best so far" if history.samples[1] else "So far"
    value = metric("accuracy")
    if history.float_accuracy is None or before.accuracy is None or after.accuracy is None:
        same = metric("agreement")
        shown: list[tuple[str, str, str | None, str]] = [
            ("PTQ", same.format(before.agreement), "same class as float", same.help),
            (name, same.format(after.agreement), f"epoch {after.epoch}", same.help),
        ]
    else:
        shown = [
            ("Float", value.format(history.float_accuracy), f"on {history.evaluation_samples:,} samples", HELP),
            ("PTQ", value.format(before.accuracy),
             f"{value.delta(before.accuracy - history.float_accuracy)} to float {_ends(before)}", HELP),
            (name, value.format(after.accuracy),
             f"{value.delta(after.accuracy - before.accuracy)} to PTQ {_ends(after)}", HELP),
            ("Against float", value.delta(after.accuracy - history.float_accuracy), f"epoch {after.epoch}",
             "What is still missing after training, or what it has above the float network."),
        ]  # fmt: skip
    share, words = recovered(history, real)
    shown.append(("Recovered", MISSING if share is None else percent(share), words, RECOVERED))
    widgets.figures(shown)


def _start(history: History) -> list[tuple[str, str, str | None, str]]:
    """Before the first epoch is over: what there is to win back."""
    before, value = history.epochs[0], metric("accuracy")
    if history.float_accuracy is None or before.accuracy is None:
        return [("PTQ", write("agreement", before.agreement), "same class as float", metric("agreement").help)]
    return [
        ("Float", value.format(history.float_accuracy), f"on {history.evaluation_samples:,} samples", HELP),
        ("PTQ", value.format(before.accuracy), _ends(before), HELP),
        _cost(history.float_accuracy, before.accuracy, before.accuracy_high or 0.0),
    ]


def _cost(reference: float, ptq: float, high: float) -> tuple[str, str, str | None, str]:
    """What quantization without training costs. high: upper end of its 95 % interval."""
    if ptq >= reference:
        note = "nothing to win back"
    else:
        note = "within the noise" if reference <= high else "to win back"
    text = "What quantization costs without training, and whether that is more than chance on so many samples."
    return "PTQ against float", metric("accuracy").delta(ptq - reference), note, text


RECOVERED = (
    "What training brought, as a share of what quantization without training cost. Not told where that cost lies "
    "within what chance alone does."
)


def chosen(history: History) -> Epoch:
    """The epoch that is the result so far."""
    return next(e for e in history.epochs if e.epoch == history.best)


def recovered(history: History, real: bool | None = None) -> tuple[float | None, str]:
    """Share of the cost of quantization that training won back, and what it is a share of; None where that cost is
    nothing or within the noise. real: as in `figures`; None goes by the intervals."""
    before, after = history.epochs[0], chosen(history)
    if history.float_accuracy is not None and before.accuracy is not None and after.accuracy is not None:
        cost, won = history.float_accuracy - before.accuracy, after.accuracy - before.accuracy
        if cost <= 0:
            return None, "PTQ cost no accuracy"
        if before.accuracy_high is not None and history.float_accuracy <= before.accuracy_high:
            return None, "what PTQ cost is within the noise"
        if real if real is not None else _overlap(before, after) is False:
            return won / cost, "of what quantization cost"
        return won / cost, "of the cost, a change within the noise"
    if before.agreement is None or after.agreement is None or before.agreement == 1:
        return None, "PTQ changed no prediction"
    return (after.agreement - before.agreement) / (1 - before.agreement), "of the predictions that had changed"


def _ends(epoch: Epoch) -> str:
    if epoch.accuracy_low is None or epoch.accuracy_high is None:
        return ""
    return metric("accuracy").interval(epoch.accuracy_low, epoch.accuracy_high)


# --- the verdict ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """A finished training held against others on the same samples; ptq: None where PTQ has no run of its own."""

    float: Comparison
    ptq: Comparison | None


def paired_with(seen: Seen) -> Pairs | None:
    """None before the training has come to its end. Raises DataMismatch where the data is no longer what it was."""
    from qlab.lab.compared import paired

    run = seen.finished
    if run is None:
        return None
    before = None if seen.untrained is None else paired(cache.store(), run, seen.untrained).comparison
    return Pairs(results.result_of(run).comparison, before)


def verdict(seen: Seen, history: History, pairs: Pairs) -> None:
    """What of it is more than chance: against float, and against the same config without training."""
    _said(pairs.float, "float")
    if pairs.ptq is not None:
        _said(pairs.ptq, "PTQ")
    elif history.float_accuracy is not None:
        say.markdown(apart(history))
        _offer_untrained(seen, "As a run of its own, PTQ can be compared sample by sample.")


def _said(comparison: Comparison, than: str) -> None:
    from qlab.lab.compared import against

    told = against(comparison, than)
    colour = {"better": "green", "worse": "orange"}.get(told.tone, "gray")
    change = told.short if told.delta is None else metric("accuracy").delta(told.delta)
    say.markdown(f":{colour}-badge[{change}] {errors.escape(told.words[:1].upper() + told.words[1:])}.")


def _overlap(before: Epoch, after: Epoch) -> bool | None:
    """Whether the 95 % intervals of two epochs have something in common; None without labels."""
    ends = (before.accuracy_low, before.accuracy_high, after.accuracy_low, after.accuracy_high)
    low, high, new_low, new_high = (float("nan") if end is None else end for end in ends)
    return None if None in ends else new_low <= high and low <= new_high


def apart(history: History) -> str:
    """Whether the intervals before and after training have something in common, in words."""
    before, after = history.epochs[0], chosen(history)
    if _overlap(before, after) is None or before.accuracy is None or after.accuracy is None:
        return ""
    if _overlap(before, after):
        return "The intervals before and after training overlap, so they alone do not say that training helped."
    what = "helped" if after.accuracy > before.accuracy else "did harm"
    return f"The intervals before and after training do not overlap: training {what}, beyond chance."
