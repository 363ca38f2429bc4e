"""Lesson 10 teaches that a staircase has no slope to follow, what stands in for it, and that training then works."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qlab.lessons import straight_through as ste
from qlab.metrics import MINUS
from tests.pages.elements import array, button, charts, figures, texts

SETTING = ("outlier_mlp", 2, 2)


def number(text: str) -> float:
    return float(text.split()[0].replace(MINUS, "-"))


def trace(at, name: str) -> tuple[list[float], list[float]]:
    """x and y of a line, from the first picture that has one of this name."""
    found = next(t for c in charts(at) for t in c["data"] if str(t.get("name", "")).startswith(name))
    return array(found["x"]), array(found["y"])


@pytest.fixture
def page(open_page):
    at = open_page("straight_through", query={"network": SETTING[0], "bits": "2", "activations": "same"})
    assert not at.exception
    return at


def test_the_true_slope_is_zero_and_the_one_in_its_place_one_inside_and_zero_where_clipped(page) -> None:
    page.button_group(key="learn_straight_through_guess").set_value("flat").run()
    assert "As you said: **0" in texts(page, "success")
    for bits in (2, 3, 4):
        page.slider(key="learn_straight_through_steps").set_value(bits).run()
        x, y = (np.array(v) for v in trace(page, "after fake quantization"))
        _, through = trace(page, "slope that training takes")
        assert len(set(y.tolist())) == 2**bits
        step = np.diff(np.unique(y)).min()
        inside = (x > y.min() - step / 2) & (x < y.max() + step / 2)
        edge = np.minimum(abs(x - (y.min() - step / 2)), abs(x - (y.max() + step / 2))) < 0.01
        assert np.array_equal(np.array(through)[~edge], inside[~edge].astype(float))
    for value, slope in ((0.21, 1), (-0.9, 1), (1.5, 0), (-1.6, 0)):
        page.slider(key="learn_straight_through_value").set_value(value).run()
        seen = figures(page)
        assert seen["True slope here"] == "0", value
        assert number(seen["Slope that training takes"]) == slope, value
    page.slider(key="learn_straight_through_value").set_value(0.2).run()  # one and a half steps of 4 bits: an edge
    assert figures(page)["True slope here"] == "a jump"


def test_answers_are_hidden_until_one_is_given(page) -> None:
    assert not figures(page)
    assert not any(t.get("name") == "slope that training takes" for c in charts(page) for t in c["data"])
    assert button(page, "Train one epoch").disabled
    button(page, "Show without a guess").click().run()
    assert "exactly 0" in texts(page, "info")


def test_training_wins_back_what_rounding_cost_beyond_chance(page) -> None:
    page.button_group(key="learn_straight_through_train").set_value("same").run()
    assert "became right" not in texts(page, "success", "warning")
    button(page, "Train one epoch").click().run()
    button(page, "Train one epoch").click().run()
    assert not page.exception
    x, y = trace(page, "accuracy, simulated")
    assert x == [0, 1, 2]
    assert y[2] - y[0] > 3
    said = texts(page, "warning")
    assert "You said: nothing beyond chance. It is: **wins points back.**" in said
    right, wrong = map(int, re.findall(r"(\d+) (?:samples became right|wrong)", said))
    assert right > 2 * wrong
    assert "simulated" in said
    _, losses = trace(page, "loss, mean of the epoch")
    assert losses[1] < losses[0]


def test_several_epochs_are_trained_one_after_the_other_and_it_starts_over(page) -> None:
    page.button_group(key="learn_straight_through_train").set_value("better").run()
    button(page, "Train 10").click().run(timeout=120)
    assert trace(page, "accuracy, simulated")[0] == list(range(11))
    assert "After 10 epochs" in texts(page, "success")
    button(page, "Start over").click().run()
    assert "After" not in texts(page, "success")
    assert {t["name"] for c in charts(page) for t in c["data"] if "name" in t} >= {"before training"}


def test_a_training_goes_on_to_the_same_bits_and_ends_at_the_last_epoch() -> None:
    begun = ste.start(*SETTING)
    twice = ste.go_on(*SETTING, ste.go_on(*SETTING, begun, 1), 1)
    once = ste.go_on(*SETTING, begun, 2)
    assert twice.history.losses.tolist() == once.history.losses.tolist()
    assert twice.history.epochs == once.history.epochs
    assert begun.epoch == 0
    assert ste.go_on(*SETTING, once, ste.EPOCHS).epoch == ste.EPOCHS


def test_what_looks_at_the_steps_can_end_an_epoch_and_loses_no_other() -> None:
    def refuse(done: int, steps: int) -> None:
        raise KeyboardInterrupt

    begun = ste.start(*SETTING)
    with pytest.raises(KeyboardInterrupt):
        ste.go_on(*SETTING, begun, 1, refuse)
    assert ste.go_on(*SETTING, begun, 1).epoch == 1


def test_it_goes_on_with_the_own_model(page) -> None:
    button(page, "Training (QAT) with residual\\_digits").click().run()
    assert not page.exception
    assert page.session_state["lab.mapping"] == ste.mapping(2, 2)
