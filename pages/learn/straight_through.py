"""Lesson 10: the slope that training takes for that of a staircase, and a training with it, epoch by epoch."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from qlab.lessons import straight_through as ste
from qlab.lessons.samples import sample
from qlab.metrics import COMPUTED, MINUS, metric, percent, three_digits
from qlab.plots.accuracy import Dot, accuracy_dots
from qlab.plots.lessons.straight_through import staircase
from qlab.plots.training import curves
from qlab.plots.training_grids import middle_words, near_the_middle, weights_on_grid
from qlab.ui import lesson, widgets

EXPLAIN = """
Training moves each weight a little against the slope of the loss. Rounding is a staircase: on a tread nothing changes
with the weight, so the slope is 0, and between two treads there is a jump, which has no slope at all. The
straight-through estimator computes the loss with rounded weights and pretends, going back, that nothing was rounded.
Where a value is clipped it says 0, because moving it a little would change nothing even without rounding.
"""
SLOPES = {"flat": "0: it says nothing", "one": "1, as without rounding", "steep": "endless: there is a jump"}
OUTCOMES = {"better": "wins points back", "same": "nothing beyond chance", "worse": "costs points"}
ACTIVATIONS = {"8": "8", "same": "as few as the weights"}
Setting = tuple[str, int, int]  # network, bits of weights, bits of activations
LEFT, TRAINED = "learn.straight_through.left", "learn.straight_through.trained"


def draw(page: lesson.Lesson) -> None:
    page.header(
        "How can rounding be trained?",
        "Training follows slopes, and rounding is a staircase. Move the weight over it, compare the slope it has with "
        "the slope that training is told; then train a network with it.",
        explain=EXPLAIN,
        terms=("fake quantization", "straight-through estimator", "QAT", "PTQ", "clipping", "paired comparison"),
    )
    page.part(slopes)
    page.part(train)


def slopes(page: lesson.Lesson) -> None:
    with page.controls():
        bits = page.slider("steps", "Bits", 2, 4, 3, width=200, help="More bits make smaller steps.")
        value = page.slider(
            "value", "Weight", -1.6, 1.6, 0.33, step=0.01, format="%.2f", width=400,
            help="Moves the weight along the staircase, and beyond its ends.",
        )  # fmt: skip
    found, weight = ste.staircase(bits), ste.at(value, bits)
    picture = st.container()
    guess = page.predict("What is the true slope of this staircase, at nearly every weight?", SLOPES)
    with picture:
        page.chart(staircase(found, weight, guess.open, widgets.dark()), "staircase")
    if guess.open:
        guess.told(
            "flat" if found.flat > 0.5 else "one",
            f"At {percent(found.flat)} of the {len(found.x):,} values that were tried it is exactly 0; the others lie "
            "on a jump.",
        )
        low, high = (three_digits(end).replace("-", MINUS) for end in found.kept)
        widgets.figures(
            [
                ("Weight after rounding", three_digits(weight.back).replace("-", MINUS), None, "What the layer uses."),
                ("True slope here", "a jump" if weight.true else "0", None,
                 "How much the rounded weight changes when the weight moves by a tiny bit, divided by that bit."),
                ("Slope that training takes", f"{weight.through:.0f}", "clipped" if weight.through == 0 else "inside",
                 "What autograd gets from the engine's fake quantization at this weight."),
            ]
        )  # fmt: skip
        page.notice(
            f"With the true slope every weight stays where it is. The straight-through estimator says "
            f"{found.through.max():.0f} from {low} to {high}, as if nothing were rounded, and "
            f"{found.through.min():.0f} where the value is clipped. Between those ends it is wrong at every single "
            "point, but from one step to the next it is right on average, and that is enough to move a weight over an "
            "edge."
        )


def train(page: lesson.Lesson) -> None:
    page.section("Does it work? Train a network")
    with page.controls("training"):
        name = page.choice("network", "Network", {n: n for n in ste.SAMPLES}, ste.SAMPLES[0],
                           help="The sample network that is trained, on its calibration samples.")  # fmt: skip
        weight_bits = page.slider("bits", "Weight bits", 2, 4, 2, width=200,
                                  help="Fewer bits cost more, and leave more to win back.")  # fmt: skip
        activations = page.choice("activations", "Activation bits", ACTIVATIONS, "8",
                                  help="Activations are rounded in training, too.")  # fmt: skip
    setting = (name, weight_bits, 8 if activations == "8" else weight_bits)
    with st.spinner("Putting the network on its grids"):
        begun = ste.start(*setting)
    kept = st.session_state.setdefault(TRAINED, {})
    trained: ste.Trained = kept.get(setting, begun)
    before, floating = begun.history.epochs[0], sample(name).float_evaluation
    figure = metric("accuracy")
    guess = page.predict(
        f"Rounded after training (PTQ) this network is right on {figure.format(before.accuracy)}, in float on "
        f"{figure.format(floating.accuracy)}. What does quantization-aware training do to that?", OUTCOMES,
        name="train",
    )  # fmt: skip
    going = st.session_state.get(LEFT, (None, 0))[0] == setting and guess.open
    bar = buttons(page, setting, trained, guess.open, going)
    if guess.open and trained.epoch:
        page.chart(curves(trained.history, widgets.dark()), "curves")
    else:
        dots = [
            Dot("float", floating.accuracy or 0, *(floating.accuracy_interval or (0, 1)), "float"),
            Dot("PTQ", before.accuracy or 0, before.accuracy_low or 0, before.accuracy_high or 1),
        ]
        page.chart(accuracy_dots(dots, widgets.dark()), "dots")
    if guess.open and trained.epoch and not going:
        told(page, guess, setting, trained)
    page.part(weights, trained)
    page.yours(
        "lab", "training", "Training (QAT)", "The same bits on your own network, with loss, ranges and codes live.",
        mapping=ste.mapping(*setting[1:]),
    )  # fmt: skip
    if going:
        one_epoch(setting, trained, kept, bar)


def buttons(page: lesson.Lesson, setting: Setting, trained: ste.Trained, opened: bool, going: bool) -> DeltaGenerator:
    """What starts and stops the training; gives the place for its progress."""
    done = trained.epoch >= ste.EPOCHS
    with st.container(horizontal=True, vertical_alignment="center"):
        for count, label in ((1, "Train one epoch"), (10, "Train 10")):
            st.button(
                label, key=page.key(f"train_{count}"), type="primary" if count == 1 else "secondary",
                disabled=not opened or going or done, on_click=go, args=(setting, count),
                help="Guess first." if not opened else f"Goes on from epoch {trained.epoch} of {ste.EPOCHS}; "
                "an epoch shows the network each of its training samples once.",
            )  # fmt: skip
        if going:
            st.button("Stop", key=page.key("stop"), on_click=stop, help="Ends the training after the last whole epoch.")
        elif trained.epoch:
            st.button("Start over", key=page.key("again"), type="tertiary", on_click=forget, args=(setting,),
                      help="Goes back to the network before the first step.")  # fmt: skip
        return st.empty()


def go(setting: Setting, epochs: int) -> None:
    st.session_state[LEFT] = (setting, epochs)


def stop() -> None:
    st.session_state.pop(LEFT, None)


def forget(setting: Setting) -> None:
    st.session_state[TRAINED].pop(setting, None)


def one_epoch(setting: Setting, trained: ste.Trained, kept: dict[Setting, ste.Trained], bar: DeltaGenerator) -> None:
    """Trains, and draws the page anew; the next epoch is trained when that has been drawn."""
    left = st.session_state[LEFT][1]

    def told(done: int, steps: int) -> None:
        bar.progress(done / steps, f"Epoch {trained.epoch + 1} of {ste.EPOCHS}")

    kept[setting] = ste.go_on(*setting, trained, 1, told)
    if left > 1 and kept[setting].epoch < ste.EPOCHS:
        go(setting, left - 1)
    else:
        stop()
    st.rerun()


def told(page: lesson.Lesson, guess: lesson.Guess, setting: Setting, trained: ste.Trained) -> None:
    """What training did so far, beyond chance or not."""
    with st.spinner("Comparing the predictions"):
        found = measured(setting, trained, trained.epoch)
    against, last, figure = found.against_ptq, trained.history.epochs[-1], metric("accuracy")
    truth = "same" if not against.significant else "better" if against.gained > against.lost else "worse"
    low, high = last.accuracy_low or 0, last.accuracy_high or 1
    chance = f"p = {against.p:.2g}" if (against.p or 0) >= 1e-4 else "p < 0.0001"
    guess.told(
        truth,
        f"{said(trained).capitalize()} the accuracy is {figure.format(last.accuracy)} "
        f"{figure.interval(low, high)}, {COMPUTED['simulated']}. Against PTQ, {against.gained} samples became right "
        f"and {against.lost} wrong, of {against.n:,} ({chance}). Against float: {found.against_float.verdict}.",
    )


@st.cache_data(max_entries=32, show_spinner=False)
def measured(setting: Setting, _trained: ste.Trained, epoch: int) -> ste.Verdict:
    return ste.verdict(*setting, _trained)


def said(trained: ste.Trained) -> str:
    return f"after {trained.epoch} epoch{'s' * (trained.epoch > 1)}" if trained.epoch else "before training"


def weights(page: lesson.Lesson, trained: ste.Trained) -> None:
    """One layer's weights over its grid, and where between its points they gather."""
    page.text("**The weights behind it.** Training keeps a float copy of every weight; the grid sees only its code.")
    size = {grid.tensor: int(grid.histogram[0].sum()) for grid in trained.history.grids if grid.role == "weight"}.get
    grids = {grid.tensor: grid for grid in trained.history.grids if grid.role == "weight"}
    tensor = page.select("layer", "Layer", {t: t for t in grids}, max(grids, key=size),
                         help="Whose weights are drawn over their grid.")  # fmt: skip
    grid, row = grids[tensor], len(grids[tensor].histogram) - 1
    page.chart(weights_on_grid(grid, row, widgets.dark(), said(trained)), "weights")
    now, before = near_the_middle(grid, row), near_the_middle(grid, 0)
    told = middle_words(grid, row)
    if trained.epoch and now is not None and before is not None:
        told += (
            f" In the last quarter of epoch {trained.epoch}, {percent(float(grid.flips[-1]))} of the codes changed. "
            + ("Training does not pull the weights to the grid points: one that crosses the edge of a step changes its "
               "code, and the next samples may pull it back." if now > before else "")
        )  # fmt: skip
    page.text(told)


lesson.show("straight_through", draw)
