"""Lesson 6 teaches what each mode puts on integers: dynamic the LSTM and linear layers, static the convolutions too."""

from __future__ import annotations

import pytest

from qlab.lessons import modes
from qlab.runtime.latency import Timing
from tests.pages.elements import button, charts, deltas, figures, texts

AMOUNT = {  # network -> mode -> how much of its multiplications runs on integers
    "lstm_text": {"dynamic": "all", "static": "all", "weight_only": "none"},
    "conv_digits": {"dynamic": "none", "static": "all", "weight_only": "none"},
}


@pytest.fixture
def page(open_page):
    at = open_page("modes")
    assert not at.exception
    return at


def test_the_answer_is_hidden_until_one_is_given(page) -> None:
    assert "Integer kernels computed" not in texts(page, "success", "info", "warning")
    assert not page.metric
    assert "?" in charts(page)[0]["data"][1]["text"]
    page.button_group(key="learn_modes_guess").set_value("none").run()
    assert "You said: next to none" in texts(page, "warning")
    assert len(charts(page)) == 2
    button(page, "Hide the answer").click().run()
    assert not page.metric


@pytest.mark.parametrize("network", AMOUNT)
def test_what_runs_on_integers_under_each_mode(page, network: str) -> None:
    page.button_group(key="learn_modes_guess").set_value("some").run()
    page.button_group(key="learn_modes_network").set_value(network).run()
    for mode, amount in AMOUNT[network].items():
        page.button_group(key="learn_modes_mode").set_value(mode).run()
        assert not page.exception
        said = texts(page, "warning")
        assert {"all": "It is: **nearly all", "none": "It is: **next to none"}[amount] in said, (network, mode)
        assert figures(page)["Mode"] == mode.replace("_", "-")
        assert deltas(page)["Mode"] == ("needs a calibration" if mode == "static" else "no calibration")
    notice = texts(page, "markdown")
    assert ("convolutions want static ranges" in notice) == (network == "conv_digits")


def test_every_mode_makes_the_file_smaller_but_dynamic_hardly_that_of_a_convolution_net() -> None:
    lstm, digits = modes.modes("lstm_text"), modes.modes("conv_digits")
    for one in lstm.modes.values():
        assert one.bytes < 0.4 * lstm.float_bytes
    assert digits.modes["static"].bytes < 0.4 * digits.float_bytes
    assert digits.modes["dynamic"].bytes > 0.9 * digits.float_bytes


def test_the_picture_shows_what_was_executed(page) -> None:
    page.button_group(key="learn_modes_network").set_value("conv_digits").run()
    page.button_group(key="learn_modes_guess").set_value("none").run()
    cells = {trace["name"]: len(trace["y"]) for trace in charts(page)[0]["data"][1:]}
    found = modes.modes("conv_digits")
    on = sum(len(one.integer) for one in found.modes.values())
    assert cells == {"integer kernel": on, "float kernel": 3 * len(found.products) - on}


def test_a_difference_is_noise_where_turns_fall_either_way_or_are_few() -> None:
    def outcome(*seconds: float) -> str:
        return modes.speed(Timing(1, 1, {"float": (1.0,) * len(seconds), "dynamic": seconds}), "dynamic").outcome

    assert outcome(*[0.5] * 8) == "faster"
    assert outcome(*[2.0] * 8) == "slower"
    assert outcome(0.5, 2.0, 0.5, 2.0, 0.5, 2.0, 0.5, 2.0) == "noise"
    assert outcome(*[0.5] * 5) == "noise"


def test_the_fastest_mode_is_one_that_beats_float() -> None:
    turns = {"float": (1.0,) * 8, "dynamic": (0.9,) * 8, "static": (0.5,) * 8, "weight_only": (1.2,) * 8}
    assert modes.fastest(Timing(1, 1, turns)) == "static"
    assert modes.beaten(Timing(1, 1, turns), "static") == ("dynamic", "weight_only")
    close = turns | {"dynamic": (0.45, 0.6) * 4, "static": (0.44, 0.59) * 4}
    assert modes.fastest(Timing(1, 1, close)) == "static"
    assert modes.beaten(Timing(1, 1, close), "static") == ("weight_only",)  # each turn, and yet within the spread
    assert modes.fastest(Timing(1, 1, turns | {"static": (1.0,) * 8, "dynamic": (1.1,) * 8})) is None


def test_the_same_on_ones_own_model(page) -> None:
    page.button_group(key="learn_modes_mode").set_value("weight_only").run()
    page.button(key="learn_modes_yours_runtime_go").click().run()
    assert not page.exception
    assert "What really ran on integers" in texts(page, "title")
    assert page.session_state["lab.mapping"].default.mode == "weight_only"
