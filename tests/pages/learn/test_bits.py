"""Lesson 5 teaches that a bit is worth 6 dB, that clipping bends that line, and that accuracy is flat at first."""

from __future__ import annotations

import pytest

from qlab.lessons import bits as lesson_bits
from qlab.metrics import MINUS
from tests.pages.elements import array, button, charts, figures, texts


def number(text: str) -> float:
    return float(text.split()[0].replace(MINUS, "-"))


def curve(at, name: str) -> dict[int, float]:
    """One line of the picture: SQNR by bits."""
    (picture,) = [c for c in charts(at) if any(t.get("name") == "6.02 dB per bit" for t in c["data"])]
    (line,) = [trace for trace in picture["data"] if trace.get("name") == name]
    return dict(zip(array(line["x"]), array(line["y"]), strict=True))


@pytest.fixture
def page(open_page):
    at = open_page("bits")
    assert not at.exception
    return at


@pytest.fixture
def opened(page):
    page.button_group(key="learn_bits_guess").set_value("six").run()
    assert not page.exception
    return page


def slopes(at) -> tuple[float, float]:
    """Where bits are many, where they are few."""
    many, few = (value for label, value in figures(at).items() if label.startswith("Slope"))
    return number(many), number(few)


@pytest.mark.parametrize("tensor", ["block2.relu", "block4.relu", "block3.conv.weight"])
def test_where_nothing_is_clipped_a_bit_is_worth_six_decibel(opened, tensor: str) -> None:
    opened.selectbox(key="learn_bits_tensor").set_value(tensor).run()
    many, _ = slopes(opened)
    assert many == pytest.approx(6.02, abs=0.2)
    line, rule = curve(opened, "min_max"), curve(opened, "6.02 dB per bit")
    widths = sorted(line)[len(line) // 2 :]
    assert all(abs(line[bits] - rule[bits]) < 0.7 for bits in widths)
    assert figures(opened)["Of the error, clipping makes"] == "0 %"


def test_mse_begins_higher_gains_less_with_each_bit_and_arrives_at_the_same(opened) -> None:
    _, plain = slopes(opened)
    opened.button_group(key="learn_bits_observer").set_value("mse").run()
    _, least = slopes(opened)
    assert least < plain - 0.5
    mse, min_max = curve(opened, "mse"), curve(opened, "min_max")
    assert mse[2] > min_max[2] + 3
    assert mse[16] == pytest.approx(min_max[16], abs=0.1)
    assert all(mse[bits] >= min_max[bits] - 0.05 for bits in mse)


def test_a_fixed_share_that_is_clipped_makes_more_bits_worthless_and_the_answer_another(opened) -> None:
    assert "As you said: **about 6 dB" in texts(opened, "success")
    opened.button_group(key="learn_bits_observer").set_value("percentile").run()
    assert slopes(opened)[0] < 1
    assert "It is: **next to nothing" in texts(opened, "warning")
    opened.slider(key="learn_bits_bits").set_value(16).run()
    assert number(figures(opened)["Of the error, clipping makes"].removeprefix("> ")) > 99


def test_the_values_and_the_ranges_can_be_seen_with_the_answer(opened) -> None:
    assert len(charts(opened)) == 1
    opened.button_group(key="learn_bits_view").set_value("values").run()
    (picture,) = charts(opened)
    ends = {trace["name"]: array(trace["x"]) for trace in picture["data"] if trace.get("name") in lesson_bits.OBSERVERS}
    assert set(ends) == set(lesson_bits.OBSERVERS)
    assert ends["percentile"][1] < ends["min_max"][1]


def test_accuracy_is_flat_and_then_falls_off(page) -> None:
    page.button_group(key="learn_bits_enough").set_value("6").run()
    (picture,) = [c for c in charts(page) if any("float" in str(t.get("name", "")) for t in c["data"])]
    traces = {trace["name"].split()[0]: trace for trace in picture["data"]}
    dots = {b: a for t in ("apart", "within") for b, a in zip(*(array(traces[t][k]) for k in "xy"), strict=True)}
    assert abs(dots[8] - dots[6]) < 1
    assert dots[4] - dots[2] > 50
    assert all(bits in array(traces["within"]["x"]) for bits in (7, 8))
    assert 2 in array(traces["apart"]["x"])
    assert "not distinguishable from float on 1,500 samples" in texts(page, "success", "warning")
    page.button_group(key="learn_bits_enough").set_value("2").run()
    assert "You said: 2 bits" in texts(page, "warning")


def test_answers_are_hidden_until_one_is_given(page) -> None:
    assert len(charts(page)) == 1  # the values alone
    assert not figures(page)
    assert "dB per bit" not in texts(page, "markdown", "info", "success", "warning")
    button(page, "Show without a guess").click().run()
    assert "6.02 dB per bit" in texts(page, "info")


def test_it_goes_on_with_the_own_model(page) -> None:
    button(page, "Sweep with residual\\_digits").click().run()
    assert not page.exception
    assert page.button_group(key="sweep_weight_bits").value == [8, 6, 5, 4, 3, 2]
