"""Curves over the epochs, grids over time, weights over their grid: every mark is a figure of the history."""

from dataclasses import replace

import numpy as np
import pytest

from qlab.evaluation import wilson_interval
from qlab.plots.theme import palette
from qlab.plots.training import curves, frozen_at, step_epochs, thinned
from qlab.plots.training_grids import (
    FEW_CHANNELS,
    FEW_LAYERS,
    coarser,
    flips,
    grid_moves,
    middle_words,
    near_the_middle,
    weights_on_grid,
)
from qlab.training.history import Epoch, GridTrace, History
from qlab.training.settings import Training

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
STEPS, RECORDS = 10, 2  # of an epoch
ACCURACY = (0.4, 0.7, 0.6)


def epoch(number, accuracy, *, best=False, frozen=False):
    ends = (None, None) if accuracy is None else wilson_interval(round(100 * accuracy), 100)
    loss = None if number == 0 else 1.0 / number
    return Epoch(number, STEPS * number, 0.001, loss, 1.5 - 0.5 * number, accuracy, *ends, 0.5, frozen, best)


def weight(name="a.weight", channels=2, histogram=None):
    """Ranges that double from record to record until they freeze at the third."""
    growth = np.array([1, 2, 4, 4, 4], np.float32)[:, None] * np.arange(1, channels + 1, dtype=np.float32)
    counts = np.ones((3, 16 * 8), np.int32) if histogram is None else histogram
    return GridTrace(
        name, "weight", name, 4, -7, 7, channels, np.arange(channels), growth, np.zeros_like(growth, np.int32),
        -7 * growth, 7 * growth, np.arange(5) >= 3, np.array([0, 0.2, 0.1, 0.05, 0]), counts,
    )  # fmt: skip


def activation():
    ones = np.ones((5, 1), np.float32)
    return GridTrace(
        "a", "activation", "a", 4, 0, 15, 1, np.arange(1), ones, ones.astype(np.int32), -ones, 14 * ones,
        np.zeros(5, bool), np.full(5, np.nan), np.zeros((0, 0), np.int32),
    )  # fmt: skip


def history(*, labelled=True, finished=False, grids=None, epochs=3, asked=5):
    rows = [
        epoch(i, value if labelled else None, best=i < 2, frozen=i == 2) for i, value in enumerate(ACCURACY[:epochs])
    ]
    steps = STEPS * (epochs - 1)
    return History(
        Training(epochs=asked).to_dict(), (90, 10), 100, 0.9 if labelled else None, rows, np.linspace(2, 1, steps),
        np.arange(5) * STEPS // RECORDS, np.arange(5) / RECORDS, grids or (weight(), activation()), finished,
    )  # fmt: skip


def named(made, part):
    return next(t for t in made.data if t.name and t.name.startswith(part))


@both_themes
def test_accuracy_lies_between_float_and_ptq_with_the_best_epoch_marked(dark):
    made = curves(history(), dark)
    line = named(made, "accuracy")
    assert list(line.x) == [0, 1, 2]
    assert list(line.y) == pytest.approx([40, 70, 60])
    assert set(named(made, "float").y) == {90.0}
    assert named(made, "float").line.color == palette(dark).float
    before = named(made, "PTQ")
    assert set(before.y) == {40.0}
    assert before.line.dash == "dash"
    star = named(made, "best so far")
    assert (star.x[0], star.y[0]) == (1, pytest.approx(70))
    band = named(made, "95 %")
    low, high = wilson_interval(70, 100)
    assert 100 * low in band.y
    assert 100 * high in band.y
    assert made.layout.uirevision == "training"


def test_the_axis_goes_to_what_was_asked_for_and_ends_where_a_finished_training_did():
    assert curves(history(), False).layout.xaxis.range[1] == pytest.approx(5 * 1.02)
    assert curves(history(finished=True), False).layout.xaxis.range[1] == pytest.approx(2 * 1.02)


def test_losses_stand_at_their_steps_and_means_at_their_epochs():
    found = history()
    made = curves(found, False)
    steps = named(made, "loss of a step")
    assert list(steps.x) == pytest.approx([(i + 1) / STEPS for i in range(2 * STEPS)])
    assert list(steps.y) == list(found.losses)
    means = named(made, "loss, mean")
    assert (list(means.x), list(means.y)) == ([1, 2], [1.0, 0.5])
    held = named(made, "loss, held")
    assert (list(held.x), list(held.y)) == ([0, 1, 2], [1.5, 1.0, 0.5])


def test_without_labels_agreement_is_drawn_and_no_float_line():
    made = curves(history(labelled=False), False)
    assert list(named(made, "agreement").y) == [50, 50, 50]
    assert "Agreement" in made.layout.yaxis.title.text
    assert not [t for t in made.data if t.name.startswith(("float", "95 %"))]


def test_the_moment_of_freezing_is_that_of_the_first_record_it_stands_in():
    found = history()
    assert frozen_at(found) == 1.5
    assert frozen_at(found, found.grids[0]) == 1.5
    assert frozen_at(found, found.grids[1]) is None
    said = {note.text: note.x for note in curves(found, False).layout.annotations}
    assert said == {"best so far: epoch 1": 1.0, "ranges frozen": 1.5}


def test_before_the_first_step_nothing_is_marked_as_best():
    start = history(epochs=1, grids=(activation(),))
    made = curves(start, False)
    assert not made.layout.annotations
    assert list(step_epochs(start)) == []
    assert list(named(made, "accuracy").x) == [0]


def test_while_nothing_is_held_out_the_newest_epoch_is_not_called_the_best():
    going = replace(history(), samples=(100, 0))
    assert not [t for t in curves(going, False).data if "epoch 1" in t.name]
    done = curves(replace(going, finished=True), False)
    assert named(done, "result: epoch 1").x[0] == 1


def test_many_steps_become_means_of_neighbours():
    x, y, each = thinned(np.arange(10.0), np.arange(10.0) ** 2, most=4)
    assert each == 3
    assert list(x) == [1, 4, 7, 9]
    assert y[0] == pytest.approx((0 + 1 + 4) / 3)
    assert y[-1] == 81


def test_few_channels_get_a_line_each_for_both_ends_and_the_step():
    found = history()
    made = grid_moves(found, found.grids[0], False)
    assert [t.name for t in made.data] == ["channel 0", "channel 1"] * 3
    high, low, scale = (made.data[i] for i in (0, 2, 4))
    assert list(high.y) == [7, 14, 28, 28, 28]
    assert list(low.y) == [-7, -14, -28, -28, -28]
    assert (list(scale.y), scale.yaxis) == ([1, 2, 4, 4, 4], "y2")
    (shade,) = made.layout.shapes
    assert shade.x0 == 1.5


def test_many_channels_become_a_median_in_a_band():
    grid = weight(channels=FEW_CHANNELS + 1)
    made = grid_moves(history(grids=(grid,)), grid, False)
    band, median = made.data[0], made.data[1]
    assert f"{FEW_CHANNELS + 1} scales" in band.name
    assert max(band.y) == grid.high.max()
    assert list(median.y) == list(np.median(grid.high, axis=1))


def test_an_activation_is_dashed_and_what_never_freezes_has_no_shade():
    found = history()
    made = grid_moves(found, found.grids[1], False)
    assert {t.line.dash for t in made.data} == {"dash"}
    assert not made.layout.shapes


def test_bins_are_no_finer_than_the_number_of_weights_bears():
    few = np.zeros((1, 16 * 8), np.int32)
    few[0, [8, 9, 70]] = 1
    edges, counts = coarser(weight(histogram=few), 0)
    assert len(counts) == len(edges) - 1 == 16 * 2  # of 8 bins a step, as many as stay below the fewest
    assert counts.sum() == 3
    assert counts[2] == 2  # both lie in the first half of the step above -7
    assert (edges[0], edges[-1]) == (-8, 8)
    many = few * 10_000
    assert len(coarser(weight(histogram=many), 0)[1]) == 16 * 8


@both_themes
def test_weights_stand_over_their_grid_with_the_start_behind(dark):
    counts = np.full((3, 16 * 8), 100, np.int32)
    counts[2, 60] = 10_000
    made = weights_on_grid(weight(histogram=counts), 2, dark, "epoch 2")
    now, start = named(made, "epoch 2"), named(made, "before training")
    assert sum(now.y[:-1]) == pytest.approx(100)
    assert sum(start.y[:-1]) == pytest.approx(100)
    assert start.line.color == palette(dark).float
    assert start.fill is None
    assert int(np.argmax(now.y)) == 60
    assert list(named(made, "grid points").x) == list(range(-7, 8))
    assert tuple(made.layout.xaxis.range) == (-8, 8)
    assert not [t for t in weights_on_grid(weight(), 0, dark).data if t.name == "before training"]


def test_the_share_near_the_middle_is_counted_from_the_bins():
    # 8 bins to a step: the two around each middle are what lies within an eighth of it.
    counts = np.zeros((2, 16 * 8), np.int32)
    even = np.zeros((16, 8), np.int32)
    even[1:-1] = 1  # evenly between the lowest and the highest grid point
    counts[0] = even.ravel()
    counts[1, 8 * 4] = 30  # on a grid point
    counts[1, 8 * 4 + 4] = 10  # right above the middle after it
    grid = weight(histogram=counts)
    assert near_the_middle(grid, 0) == pytest.approx(0.25)
    assert near_the_middle(grid, 1) == pytest.approx(0.25)
    counts[1, 8 * 4] = 90
    assert near_the_middle(grid, 1) == pytest.approx(0.1)
    assert middle_words(grid, 1).startswith("**10.0 %** of the weights lie near the middle")
    assert "25.0 % before training" in middle_words(grid, 1)


def test_bins_too_wide_to_tell_give_no_share():
    grid = weight(histogram=np.ones((3, 16 * 2), np.int32))
    assert near_the_middle(grid, 0) is None
    assert near_the_middle(activation(), 0) is None
    assert "no share is told" in middle_words(grid, 0)


def test_few_layers_flip_as_lines_and_many_as_rows():
    few = flips(history(), False)
    assert [t.type for t in few.data] == ["scatter"]
    assert list(few.data[0].y) == [20, 10, 5, 0]
    assert list(few.data[0].x) == [0.5, 1, 1.5, 2]
    many = flips(history(grids=tuple(weight(f"w{i}") for i in range(FEW_LAYERS + 1))), False)
    (rows,) = many.data
    assert rows.type == "heatmap"
    assert rows.z.shape == (FEW_LAYERS + 1, 4)
    assert list(rows.x) == [0, 0.5, 1, 1.5, 2]
    assert [note.text for note in many.layout.annotations] == ["ranges frozen"]


def test_rows_that_do_not_fit_are_those_that_change_least(monkeypatch):
    monkeypatch.setattr("qlab.plots.training_grids.MOST_LAYERS", 6)
    calm = replace(weight("calm"), flips=np.zeros(5))
    made = flips(history(grids=(calm, *(weight(f"w{i}") for i in range(6)))), False)
    assert "calm" not in made.layout.yaxis.ticktext
    assert "left out: 1 " in made.layout.yaxis.title.text


def test_without_a_step_no_code_has_changed():
    start = replace(history(), record_epochs=np.zeros(1), record_steps=np.zeros(1, np.int64))
    made = flips(start, False)
    assert not made.data
    assert "no code has changed" in made.layout.annotations[0].text
