"""Lesson 15 teaches by counterexample: each claim has a test, and the verdict is what its numbers say."""

from __future__ import annotations

import pytest

from qlab.errors import InvalidConfig
from qlab.lessons.myths import CLAIMS, VERDICTS, Outcome
from tests.pages.elements import button, charts, figures, texts


def outcome(key: str, option: str | None = None) -> Outcome:
    claim = CLAIMS[key]
    if option is None:
        option = "" if claim.control is None else claim.control.default
    return claim.outcome(option)


@pytest.mark.parametrize("key", CLAIMS)
def test_every_claim_has_a_test_that_says_what_it_measured(key: str) -> None:
    found = outcome(key)
    assert found.verdict in VERDICTS
    assert any(character.isdigit() for character in found.because)
    assert len(found.figures) >= 3
    assert len(found.bars.bars) >= 2


def test_an_option_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="use one of"):
        CLAIMS["bits"].outcome("nowhere")


def test_the_wrong_formula_is_wrong_exactly_where_there_is_a_zero_point() -> None:
    affine, symmetric = outcome("affine", "affine"), outcome("affine", "symmetric")
    assert (affine.verdict, symmetric.verdict) == ("false", "true")
    right, claimed = affine.bars.bars
    assert claimed.value > 1000 * right.value
    assert symmetric.bars.bars[0].value == symmetric.bars.bars[1].value


@pytest.mark.parametrize("bits", ["8", "6", "4"])
def test_the_order_of_rounding_and_clamping_matters_at_ties_alone(bits: str) -> None:
    real, ties = outcome("order", bits).bars.bars
    assert real.value < 0.1  # %
    assert ties.value > 50  # the zero point of this input is odd
    assert outcome("order", bits).verdict == "depends"


def test_small_weights_matter_when_steps_are_large() -> None:
    assert outcome("small", "8").verdict == "false"
    assert outcome("small", "3").verdict == "true"


def test_the_state_dict_of_what_was_converted_holds_integers() -> None:
    found = outcome("state_dict")
    assert found.verdict == "false"
    seen = {label: value for label, value, _, _ in found.figures}
    assert int(seen["With integers"]) >= 1
    assert seen["With the float weight"] == "0"
    changed = {bar.label for bar in found.bars.bars if bar.value}
    assert "set_weight_bias" in changed
    assert "int_repr" not in changed


def test_an_outlier_keeps_no_layer_in_float_and_ruins_the_others() -> None:
    found = outcome("outlier")
    assert found.verdict == "false"
    left = [bar.value for bar in found.bars.bars]
    assert left == sorted(left, reverse=True)
    assert left[0] - left[-1] > 20  # dB


def test_static_networks_multiply_integers_and_weights_alone_do_not() -> None:
    assert outcome("arithmetic", "x86").verdict == "false"
    assert outcome("arithmetic", "int8_weight_only").verdict == "true"
    assert all("on integers" in bar.text for bar in outcome("arithmetic", "x86").bars.bars)


def test_a_convolution_is_ranged_once_a_call_and_not_once_a_window() -> None:
    seen = {label: value for label, value, _, _ in outcome("dynamic").figures}
    assert int(seen["Ranges taken"]) * 50 < int(seen["Windows"].replace(",", ""))
    assert outcome("dynamic").verdict != "true"


@pytest.mark.parametrize("network", ["conv_digits", "outlier_mlp"])
def test_not_every_bit_helps(network: str) -> None:
    found = outcome("bits", network)
    assert found.verdict == "false"
    assert any(bar.ink == "neutral" for bar in found.bars.bars)
    assert any(bar.ink == "quantized" for bar in found.bars.bars[1:])


def test_mse_helps_where_little_is_lost_by_cutting() -> None:
    simple, smart, outlier_simple, outlier_smart = outcome("observer", "4").bars.bars
    assert smart.value > simple.value + 3  # points
    assert outlier_smart.value == pytest.approx(outlier_simple.value, abs=2)
    assert outcome("observer", "4").verdict == "depends"


@pytest.mark.parametrize("bits", ["8", "4"])
def test_fusing_spares_roundings(bits: str) -> None:
    each, once = outcome("fusing", bits).bars.bars
    assert once.value > each.value + 3  # dB


def test_what_was_calibrated_can_be_trained_on() -> None:
    before, after = outcome("training").bars.bars
    assert after.value > before.value
    assert outcome("training").verdict == "false"


def test_speed_is_judged_by_its_quartiles() -> None:
    found = outcome("faster", "outlier_mlp")
    faster = [bar for bar in found.bars.bars if bar.ink == "gained"]
    assert found.verdict == ("true" if len(faster) == len(found.bars.bars) else "depends" if faster else "false")
    assert all(bar.value > 1 for bar in faster)


@pytest.fixture
def page(open_page):
    at = open_page("myths")
    assert not at.exception
    return at


def test_the_answer_is_hidden_until_a_guess_and_follows_the_control(page) -> None:
    assert "With a zero point" in texts(page, "markdown")  # the claim is there from the start
    assert not charts(page)
    assert not page.metric
    page.button_group(key="learn_myths_guess_affine").set_value("true").run()
    assert "You said: true here. It is: **false here.**" in texts(page, "warning")
    assert figures(page)["Zero point"] != "0"
    page.button_group(key="learn_myths_of_affine").set_value("symmetric").run()
    assert "As you said: **true here.**" in texts(page, "success")
    assert figures(page)["Zero point"] == "0"


def test_what_was_tested_stays_in_the_table_of_the_session(page) -> None:
    page.button_group(key="learn_myths_guess_affine").set_value("false").run()
    page.selectbox(key="learn_myths_claim").set_value("order").run()
    assert not page.metric  # another claim, another guess
    button(page, "Show without a guess").click().run()
    assert "2 of 12 claims tested, 1 of 1 guesses right." in texts(page, "markdown")
    assert f"| {CLAIMS['affine'].title} (Grid: Affine) | false here | false here |" in texts(page, "markdown")
    assert f"| {CLAIMS['order'].title} (Bits: 8) | – | it depends |" in texts(page, "markdown")


@pytest.mark.parametrize("key", CLAIMS)
def test_each_claim_leads_to_ones_own_model(open_page, key: str) -> None:
    at = open_page("myths", query={"claim": key})
    assert not at.exception
    assert CLAIMS[key].quote in texts(at, "markdown")
    next(one for one in at.button if "learn_myths_yours" in one.key).click().run()
    assert not at.exception
