"""Draws over their size, spread of the scales, and one scale: marks stand for draws, and unsteady ones stand out."""

import math

import numpy as np
import pytest

from qlab.analysis.stability import Draw, Spread, Stability
from qlab.evaluation import wilson_interval
from qlab.plots.stability import MOST_BARS, draws_figure, ranking, scales_figure, spread_bars
from qlab.plots.theme import palette

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
BAD = Draw(8, 0.5, 0.55, 1e-6)
SPREADS = (
    Spread("calm", 2.0, {8: np.array([2.0, 2.0]), 32: np.array([2.0, 2.1])}),
    Spread("wild", 1.0, {8: np.array([1.0, 3.0]), 32: np.array([1.0, 1.05])}),
)


def result(*draws, labelled=True, spreads=SPREADS):
    return Stability(draws, spreads, 0.9 if labelled else 1.0, 8, 200, labelled)


FOUND = result(BAD, Draw(8, 0.9, 0.97, 1.0), Draw(32, 0.91, 0.99, 0.7), Draw(32, 0.89, 0.98, 0.6))


def marks(made):
    return {t.name: t for t in made.data if t.mode == "markers"}


@both_themes
def test_each_draw_is_a_mark_and_what_is_worse_stands_out(dark):
    made = draws_figure(FOUND, dark)
    found = marks(made)
    assert list(found["a drawn calibration"].y) == [90.0, 91.0, 89.0]
    assert list(found["worse beyond chance"].y) == [50.0]
    assert found["worse beyond chance"].marker.color == palette(dark).wash("error", 0.85)
    # side by side, and nearer to their own size than to the next
    places = sorted([*found["a drawn calibration"].x, *found["worse beyond chance"].x])
    assert len(set(places)) == 4
    assert [min((8, 32), key=lambda size: abs(math.log(at / size))) for at in places] == [8, 8, 32, 32]
    assert made.layout.xaxis.type == "log"
    assert "simulated" in made.layout.yaxis.title.text


def test_the_whole_is_a_line_with_its_interval_and_sizes_say_whether_they_are_steady():
    made = draws_figure(FOUND, False)
    low, high = wilson_interval(180, 200)
    band = next(t for t in made.data if t.fill == "toself")
    assert (min(band.y), max(band.y)) == pytest.approx((100 * low, 100 * high))
    line = next(t for t in made.data if t.line.dash == "dash")
    assert set(line.y) == {90.0}
    small, large = made.layout.xaxis.ticktext
    assert small.startswith("8<br>")
    assert "unsteady" in small
    assert large == "32<br>✓ steady"


def test_what_is_worse_is_what_makes_a_size_unsteady():
    without = result(Draw(8, None, 0.98, None), Draw(8, None, 1.0, None), Draw(32, None, 0.995, None), labelled=False)
    better = result(Draw(8, 0.99, 0.9, 1e-6))
    for found in (FOUND, without, better):
        for size in found.sizes:
            assert found.steady(size) == (not any(found.worse(draw) for draw in found.at(size)))


def test_without_labels_agreement_is_drawn_against_what_counts_as_steady():
    made = draws_figure(result(Draw(8, None, 0.98, None), Draw(32, None, 1.0, None), labelled=False), False)
    assert list(marks(made)["names other classes"].y) == [98.0]
    assert not [t for t in made.data if t.fill == "toself"]
    assert set(next(t for t in made.data if t.line.dash == "dash").y) == {99.0}
    assert "Same class" in made.layout.yaxis.title.text


def test_the_most_unsteady_scale_of_a_size_is_first():
    assert [s.tensor for s in ranking(FOUND, 8)] == ["wild", "calm"]
    bars = spread_bars(FOUND, 8, False, "calm").data[0]
    assert list(bars.customdata) == ["wild", "calm"]
    assert bars.x[0] == pytest.approx(100 * math.sqrt(2) / 2)
    assert bars.marker.color[1] == palette(False).wash("range", 1)
    assert bars.marker.color[0] != bars.marker.color[1]


def test_of_many_tensors_the_worst_are_drawn_with_the_chosen_one():
    many = tuple(Spread(f"t{i}", 1.0, {8: np.array([1.0, 1.0 + i])}) for i in range(50))
    made = spread_bars(result(BAD, spreads=many), 8, False, chosen="t3")
    tensors = list(made.data[0].customdata)
    assert len(tensors) == MOST_BARS
    assert tensors[0] == "t49"
    assert tensors[-1] == "t3"
    assert f"{50 - MOST_BARS} more" in made.layout.xaxis.title.text


def test_without_scales_it_says_so():
    assert "No tensor" in spread_bars(result(BAD, spreads=()), 8, False).layout.annotations[0].text


def test_one_scale_in_every_draw():
    made = scales_figure(SPREADS[1], False)
    assert list(marks(made)["a drawn calibration"].y) == [1.0, 3.0, 1.0, 1.05]
    assert set(made.data[0].y) == {1.0}
    assert [text.split("<br>")[0] for text in made.layout.xaxis.ticktext] == ["8", "32"]
    assert "± 70.7 %" in made.layout.xaxis.ticktext[0]
