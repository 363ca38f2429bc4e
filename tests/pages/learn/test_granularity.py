"""Lesson 4 teaches that channels which share a scale pay for the largest of them, and what scales of their own cost."""

from __future__ import annotations

import numpy as np
import pytest

from qlab.lessons import granularity
from qlab.metrics import MINUS
from tests.pages.elements import array, button, charts, deltas, figures, texts

OTHERS = "SQNR of the others, per "


def number(text: str) -> float:
    return float(text.split()[0].replace(MINUS, "-").replace(",", ""))


@pytest.fixture
def page(open_page):
    at = open_page("granularity")
    assert not at.exception
    return at


def others(at) -> dict[str, float]:
    return {name: number(figures(at)[OTHERS + name]) for name in granularity.GRANULARITIES}


def test_each_doubling_of_one_channel_takes_about_a_bit_from_all_others_per_tensor_alone(page) -> None:
    page.button_group(key="learn_granularity_guess").set_value("some").run()
    seen = {}
    for factor in (4, 8, 16, 32, 64):
        page.select_slider(key="learn_granularity_factor").set_value(factor).run()
        seen[factor] = others(page)
    for factor in (4, 8, 16, 32):
        assert seen[factor]["tensor"] - seen[2 * factor]["tensor"] == pytest.approx(6, abs=0.5)
    for name in ("channel", "group"):
        assert seen[4][name] == seen[64][name]
    assert seen[64]["group"] > seen[64]["channel"] > seen[64]["tensor"] + 30
    assert "You said: one to three bits. It is: **more than three bits" in texts(page, "warning")
    assert "about one bit for every doubling" in texts(page, "markdown")


def test_finer_is_better_at_every_number_of_bits_and_costs_more_bytes(page) -> None:
    page.button_group(key="learn_granularity_guess").set_value("much").run()
    for bits in (3, 4, 6, 8):
        page.slider(key="learn_granularity_bits").set_value(bits).run()
        seen = others(page)
        assert seen["tensor"] < seen["channel"] < seen["group"], bits
    scales = [int(deltas(page)[OTHERS + name].split()[0]) for name in granularity.GRANULARITIES]
    assert scales[0] == 1
    assert scales[1] == granularity.channels()
    page.select_slider(key="learn_granularity_group").set_value(8).run()
    assert int(deltas(page)[OTHERS + "group"].split()[0]) > scales[2]


def test_unscaled_the_lesson_says_what_a_scale_for_each_channel_is_worth_all_the_same(page) -> None:
    page.button_group(key="learn_granularity_guess").set_value("little").run()
    page.select_slider(key="learn_granularity_factor").set_value(1).run()
    assert "As you said: **less than one bit" in texts(page, "success")
    assert "No channel is scaled" in texts(page, "markdown")


def test_the_answer_is_hidden_and_the_channels_are_drawn_before_the_guess(page) -> None:
    assert len(charts(page)) == 2
    assert not figures(page)
    bars = next(trace for trace in charts(page)[0]["data"] if trace["type"] == "bar")
    heights = array(bars["y"])
    assert np.argmax(heights) == 3
    page.slider(key="learn_granularity_channel").set_value(5).run()
    bars = next(trace for trace in charts(page)[0]["data"] if trace["type"] == "bar")
    assert np.argmax(array(bars["y"])) == 5
    button(page, "Show without a guess").click().run()
    assert "bits less" in texts(page, "info")
    assert len(charts(page)) == 3


def test_every_channel_but_the_scaled_one_is_better_off_with_a_scale_of_its_own(page) -> None:
    page.button_group(key="learn_granularity_guess").set_value("much").run()
    page.button_group(key="learn_granularity_view").set_value("channels").run()
    lines = {trace["name"]: np.array(array(trace["y"])) for trace in charts(page)[1]["data"]}
    gained = lines["per channel"] - lines["per tensor"]
    assert np.all(np.delete(gained, 3) > 12)
    assert abs(gained[3]) < 1


def test_one_scale_for_each_tensor_ruins_the_depthwise_network_and_one_for_each_channel_does_not(page) -> None:
    assert "Accuracy, per tensor" not in figures(page)
    page.button_group(key="learn_granularity_network_guess").set_value("same").run()
    assert "You said: no loss beyond chance. It is: **more than 20 points less" in texts(page, "warning")
    for bits in granularity.NETWORK_BITS:
        page.select_slider(key="learn_granularity_network_bits").set_value(bits).run()
        seen = figures(page)
        assert number(seen["Accuracy, per channel"]) > number(seen["Accuracy, per tensor"]) + 40, bits
        assert number(seen["Accuracy, per channel"]) > 85
        assert "simulated" in deltas(page)["Accuracy, per tensor"]
    size = granularity.outcome("channel", 8).size
    assert size.scales < 0.15 * size.quantized_bytes
    assert not granularity.outcome("channel", 8).against.significant


def test_the_dots_are_the_accuracies_of_the_figures(page) -> None:
    page.button_group(key="learn_granularity_network_guess").set_value("ruin").run()
    dots = [array(trace["x"])[0] for trace in charts(page)[-1]["data"]]
    seen = figures(page)
    assert dots[1] == pytest.approx(number(seen["Accuracy, per tensor"]), abs=0.05)
    assert dots[2] == pytest.approx(number(seen["Accuracy, per channel"]), abs=0.05)


def test_the_own_model_opens_with_the_weight_whose_channels_differ_most(open_page) -> None:
    at = open_page("granularity", query={"model": "depthwise_digits"})
    button(at, "Distributions with depthwise\\_digits").click().run()
    assert not at.exception
    assert at.session_state["lab.tensor"] in granularity.depthwise_layers()


def test_the_own_model_is_given_one_scale_for_each_tensor(page) -> None:
    button(page, "Experiment with residual\\_digits").click().run()
    assert not page.exception
    assert page.session_state["lab.mapping"] == granularity.network_mapping("tensor", 8)
