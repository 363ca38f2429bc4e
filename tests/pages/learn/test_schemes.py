"""Lesson 2 teaches that half a grid is one bit, that centred values need no other, and what zero points cost."""

from __future__ import annotations

import pytest

from qlab.lessons.schemes import sums
from qlab.metrics import MINUS
from tests.pages.elements import array, button, charts, figures, texts


def number(text: str) -> float:
    return float(text.split()[0].replace(MINUS, "-").replace(",", ""))


@pytest.fixture
def page(open_page):
    at = open_page("schemes")
    assert not at.exception
    return at


def lost(at) -> float:
    """dB that the symmetric grid loses, as the page shows it."""
    seen = figures(at)
    return number(seen["SQNR, affine"]) - number(seen["SQNR, symmetric"])


def test_a_symmetric_grid_costs_a_relu_one_bit_and_uses_half_its_codes(page) -> None:
    page.button_group(key="learn_schemes_guess").set_value("one").run()
    for bits in (3, 4, 6, 8):
        page.slider(key="learn_schemes_bits").set_value(bits).run()
        assert lost(page) == pytest.approx(6, abs=0.6), bits
        assert number(figures(page)["Codes used, symmetric"]) <= 2**bits / 2
        assert number(figures(page)["Codes used, affine"]) > 1.5 * number(figures(page)["Codes used, symmetric"])
        assert "As you said" in texts(page, "success")
    assert "Half the codes are one bit" in texts(page, "markdown")


def test_centred_weights_lose_little_until_they_are_shifted_to_one_side(page) -> None:
    page.button_group(key="learn_schemes_guess").set_value("none").run()
    page.button_group(key="learn_schemes_values").set_value("weight").run()
    for bits in (4, 6, 8):
        page.slider(key="learn_schemes_bits").set_value(bits).run()
        assert abs(lost(page)) < 2, bits
        assert "As you said" in texts(page, "success")
        assert figures(page)["Zero point, symmetric"] == "0"
        assert number(figures(page)["Zero point, affine"]) != 0
    page.slider(key="learn_schemes_shift").set_value(1.0).run()
    assert lost(page) == pytest.approx(6, abs=0.6)
    assert "You said: less than half a bit. It is: **about one bit" in texts(page, "warning")


def test_a_relu_shifted_to_both_sides_of_zero_loses_nothing(page) -> None:
    page.button_group(key="learn_schemes_guess").set_value("none").run()
    page.slider(key="learn_schemes_shift").set_value(-1.0).run()
    assert abs(lost(page)) < 1


def test_the_answer_is_hidden_but_both_grids_are_drawn_before_the_guess(page) -> None:
    assert "SQNR, affine" not in figures(page)
    (picture,) = charts(page)
    ticks = [trace for trace in picture["data"] if trace["mode"] == "markers"]
    assert [len(array(trace["x"])) for trace in ticks] == [16, 16]
    button(page, "Show without a guess").click().run()
    assert "It is: **about one bit" in texts(page, "info")
    (picture,) = charts(page)
    drawn = {
        (trace["yaxis"], trace["name"]): len(array(trace["x"]))
        for trace in picture["data"]
        if trace["mode"] == "markers"
    }
    assert drawn["y3", "codes that values take"] == number(figures(page)["Codes used, symmetric"])
    assert drawn["y3", "codes no value takes"] == 16 - drawn["y3", "codes that values take"]


@pytest.mark.parametrize(("weights", "truth"), [("affine", "one of them"), ("symmetric", "none of them")])
@pytest.mark.parametrize("inputs", ["affine", "symmetric"])
def test_only_the_zero_point_of_the_weights_costs_at_run_time(page, weights, inputs, truth) -> None:
    page.button_group(key="learn_schemes_weights").set_value(weights).run()
    page.button_group(key="learn_schemes_inputs").set_value(inputs).run()
    assert "More additions" not in figures(page)
    page.button_group(key="learn_schemes_zero_guess").set_value("all").run()
    assert f"You said: all three. It is: **{truth}" in texts(page, "warning")
    assert (number(figures(page)["More additions"]) > 0) == (weights == "affine")
    seen = figures(page)
    assert number(seen["From the integers"]) == pytest.approx(number(seen["In float"]), abs=0.05)


def test_the_bars_add_up_to_the_sum(page) -> None:
    page.button_group(key="learn_schemes_zero_guess").set_value("one").run()
    bars = array(charts(page)[-1]["data"][0]["x"])
    assert sum(bars[:4]) == bars[4]


def test_the_integers_give_the_float_output_whatever_the_schemes() -> None:
    for weights in ("affine", "symmetric"):
        for inputs in ("affine", "symmetric"):
            for channel in range(12):
                found = sums(weights, inputs, channel)
                assert found.value == pytest.approx(found.exact, abs=0.06), (weights, inputs, channel)
                assert (found.zero_w == 0) == (weights == "symmetric")


def test_the_own_model_opens_with_an_output_on_a_symmetric_grid(page) -> None:
    button(page, "Distributions with residual\\_digits").click().run()
    assert not page.exception
    assert "Where do the values fall?" in [title.value for title in page.title]
    assert page.selectbox(key="dist_scheme").value == "per_tensor_symmetric"
    assert page.selectbox(key="dist_what").value == "output"
