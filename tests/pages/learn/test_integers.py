"""Lesson 8 teaches that static int8 multiplies integers, and that other kinds of quantization do not."""

from __future__ import annotations

import numpy as np
import pytest

from qlab.lessons import integers
from qlab.metrics import MINUS
from tests.pages.elements import button, figures, texts


def number(text: str) -> float:
    return float(text.split()[0].replace(MINUS, "-").replace(",", ""))


@pytest.fixture
def page(open_page):
    at = open_page("integers")
    assert not at.exception
    return at


def rows(at) -> list[dict[str, str]]:
    """What the table says of the number so far."""
    return at.table[0].value.to_dict("records")


@pytest.mark.parametrize(
    ("layer", "which"), [("block2.conv", "largest"), ("block4.conv", "below"), ("classifier", "middle")]
)
def test_the_kernel_gives_the_code_that_whole_numbers_give_by_hand(layer, which) -> None:
    for image in (0, 5):
        found, one = integers.kernel(layer, image, which), integers.one_number(layer, image, which)
        assert found.code == found.by_hand, (layer, image)
        s = one.steps
        assert all(np.issubdtype(part.dtype, np.integer) for part in (s.inputs, s.weights, s.products))
        assert one.errors.adding < 1e-9
        assert one.errors.rounding <= 0.5 + 1e-4


def test_each_step_uncovers_one_more_line_up_to_the_code(page) -> None:
    for step in range(1, 6):
        page.slider(key="learn_integers_step").set_value(step).run()
        assert not page.exception
        assert len(rows(page)) == step
    shown = rows(page)[-1]
    one = integers.one_number("block2.conv", 0, "largest")
    assert shown["On integers"] == f"code {one.steps.code}"
    assert number(shown["That stands for"]) == pytest.approx(one.steps.value, abs=1e-3)
    assert f"code **{one.steps.code}**, the same as by hand" in texts(page, "markdown")


def test_the_float_side_is_that_of_the_float_network(page) -> None:
    page.slider(key="learn_integers_step").set_value(5).run()
    assert "Float network" not in rows(page)[0]
    button(page, "Show without a guess").click().run()
    for layer in ("block1.conv", "classifier"):
        page.selectbox(key="learn_integers_layer").set_value(layer).run()
        shown = [number(row["Float network"]) for row in rows(page)]
        assert shown[4] == pytest.approx(max(shown[3], 0) if "conv" in layer else shown[3], abs=1e-3), layer


def test_the_error_of_a_number_is_said_to_come_from_where_it_was_measured(page) -> None:
    page.button_group(key="learn_integers_guess").set_value("adding").run()
    for which in ("largest", "middle", "below"):
        page.button_group(key="learn_integers_number").set_value(which).run()
        seen = figures(page)
        assert seen["From adding up"] == "0 steps"
        parts = {
            "the codes that came in": number(seen["Came in with the codes"]),
            "rounding the sum": number(seen["From rounding the sum"]),
        }
        assert parts["rounding the sum"] <= 0.51
        assert f"It is: **{max(parts, key=parts.__getitem__)}" in texts(page, "warning")


def test_what_ran_is_hidden_until_a_guess_and_the_claim_is_judged_by_it(page) -> None:
    assert "MACs on integer kernels" not in figures(page)
    page.button_group(key="learn_integers_ran_guess").set_value("all").run()
    seen = figures(page)
    assert seen["MACs on integer kernels"] == "100.0 %"
    assert seen["Time in float kernels"] == "0 %"
    assert "As you said" in texts(page, "success")
    assert "does not hold" in texts(page, "markdown")
    page.button_group(key="learn_integers_config").set_value("weight_only").run()
    assert figures(page)["MACs on integer kernels"] == "0 %"
    assert "sentence **holds**" in texts(page, "markdown")
    page.button_group(key="learn_integers_config").set_value("dynamic").run()
    assert 0 < number(figures(page)["MACs on integer kernels"].replace("<", "").strip()) < 1
    page.button_group(key="learn_integers_network").set_value("outlier_mlp").run()
    assert figures(page)["MACs on integer kernels"] == "100.0 %"
    button(page, "Hide the answer").click().run()
    assert "MACs on integer kernels" not in figures(page)


@pytest.mark.parametrize("name", ["steps", "runtime"])
def test_the_way_to_the_own_model_opens(page, name) -> None:
    if name == "runtime":
        page.button_group(key="learn_integers_ran_guess").set_value("all").run()
    page.button(key=f"learn_integers_yours_{name}_go").click().run()
    assert not page.exception
    assert "Is inference really integer?" not in texts(page, "title")
    assert page.session_state["lab.mapping"].default.mode == "static"
