"""Lesson 1 teaches that rounding moves a value by half a step at most, and what a grid without an exact zero does."""

from __future__ import annotations

import pytest

from qlab.metrics import MINUS
from tests.pages.elements import button, charts, figures, texts


def number(text: str) -> float:
    return float(text.split()[0].replace(MINUS, "-"))


@pytest.fixture
def page(open_page):
    at = open_page("grid")
    assert not at.exception
    return at


def test_inside_the_range_no_value_moves_by_more_than_half_a_step(page) -> None:
    for bits in (2, 3, 5, 8):
        page.slider(key="learn_grid_bits").set_value(bits).run()
        scale = number(figures(page)["Scale"])
        assert scale == pytest.approx(2 / (2**bits - 1), rel=0.01)
        for value in (-0.9, -0.31, 0.0, 0.44, 0.99):
            page.slider(key="learn_grid_value").set_value(value).run()
            assert abs(number(figures(page)["Error"])) <= scale * 0.505, (bits, value)


def test_beyond_the_range_the_error_is_the_distance_to_its_end(page) -> None:
    page.slider(key="learn_grid_bits").set_value(8).run()
    page.slider(key="learn_grid_value").set_value(1.5).run()
    seen = figures(page)
    assert number(seen["Value after the grid"]) == pytest.approx(1, abs=0.01)
    assert number(seen["Error"]) == pytest.approx(-0.5, abs=0.01)
    assert "clipped" in {metric.delta for metric in page.metric}


def test_zero_is_on_every_grid_of_the_engine(page) -> None:
    for span in ("centred", "relu", "shifted"):
        page.button_group(key="learn_grid_range").set_value(span).run()
        page.slider(key="learn_grid_value").set_value(0.0).run()
        assert number(figures(page)["Error"]) == 0, span


def test_the_answer_is_hidden_until_one_is_given_and_says_what_was_measured(page) -> None:
    assert "worst is moved" not in texts(page, "success", "info", "warning")
    page.button_group(key="learn_grid_guess").set_value("half").run()
    assert "As you said" in texts(page, "success")
    assert "0.50 steps" in texts(page, "success")
    page.button_group(key="learn_grid_guess").set_value("whole").run()
    assert "You said: up to a whole step" in texts(page, "warning")
    button(page, "Hide the answer").click().run()
    assert "worst is moved" not in texts(page, "success", "info", "warning")


def test_a_grid_that_misses_zero_moves_all_zeros_the_same_way(page) -> None:
    page.button_group(key="learn_grid_zero_guess").set_value("moved").run()
    seen = figures(page)
    assert number(seen["Values that are exactly 0"]) > 10
    assert number(seen["0 on the careless grid"]) != 0
    assert seen["0 on the lab's grid"] == "0"
    assert abs(number(seen["All zeros of one image add up to"])) > 100 * abs(number(seen["0 on the careless grid"]))
    page.slider(key="learn_grid_start").set_value(0.0).run()
    assert number(figures(page)["0 on the careless grid"]) == 0
    assert "You said: it becomes something else" in texts(page, "warning")


def test_the_picture_shows_the_grid_the_figures_speak_of(page) -> None:
    page.slider(key="learn_grid_bits").set_value(4).run()
    (picture,) = charts(page)
    grid = picture["data"][0]
    assert len(grid["text"]) == 16
    assert "code" in grid["name"]
