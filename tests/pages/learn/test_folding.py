"""Lesson 7 teaches that folding spreads the channels and leaves the outputs, and that rounding once keeps more."""

from __future__ import annotations

import numpy as np
import pytest

from qlab.lessons import folding
from qlab.lessons.samples import sample
from tests.pages.elements import array, charts, deltas, figures, texts


def number(text: str) -> float:
    return float(text.split()[0])


@pytest.fixture
def page(open_page):
    at = open_page("folding")
    assert not at.exception
    return at


def test_folding_moves_channels_apart_and_costs_the_shared_grid(page) -> None:
    page.button_group(key="learn_folding_guess").set_value("grows").run()
    for layer in folding.units("conv_digits"):
        page.selectbox(key="learn_folding_layer").set_value(layer).run()
        assert "As you said: **they move apart" in texts(page, "success"), layer
        seen, before = figures(page), deltas(page)
        assert number(seen["Widest over narrowest"]) > number(before["Widest over narrowest"].split("folding ")[1])
        shared, own = (number(seen[f"Worst channel, {how}"]) for how in ("per tensor", "per channel"))
        assert own >= shared
        assert shared < number(before["Worst channel, per tensor"].split("folding ")[1])
        assert own == pytest.approx(number(before["Worst channel, per channel"].split("folding ")[1]), abs=0.15)


@pytest.mark.parametrize("network", folding.NETWORKS)
def test_the_outputs_move_by_the_rounding_of_float32(network: str) -> None:
    found = folding.outputs(network)
    assert 0 < found.folded < 5 * found.rounding
    assert found.folded < 1e-5 * found.largest


@pytest.mark.parametrize("network", folding.NETWORKS)
def test_folded_weights_are_those_of_the_file_times_the_factor(network: str) -> None:
    assert len(folding.units(network)) >= 4
    for layer in folding.units(network):
        found = folding.folded(network, layer, 8)
        np.testing.assert_allclose(found.after.reach, found.before.reach * np.abs(found.factor), rtol=1e-5)
        assert any(line.endswith(f"into {layer}") for line in sample(network).model.folded)


@pytest.mark.parametrize("network", folding.NETWORKS)
def test_rounding_once_keeps_more_than_rounding_on_the_way(network: str) -> None:
    layer = list(folding.units(network))[1]
    for bits in (4, 6, 8):
        once, twice, each = folding.rounded(network, layer, bits).sqnr.values()
        assert once > twice + 3 > each + 3, bits


def test_the_answers_are_hidden_until_one_is_given(page) -> None:
    assert not page.metric
    assert len(charts(page)) == 1
    assert charts(page)[0]["data"][0]["name"] == "before folding"
    assert "after folding" not in {trace["name"] for trace in charts(page)[0]["data"] if "name" in trace}
    page.button_group(key="learn_folding_guess").set_value("stays").run()
    assert "You said: it stays about the same. It is: **they move apart" in texts(page, "warning")
    assert "after folding" in {trace["name"] for trace in charts(page)[0]["data"] if "name" in trace}


def test_three_ops_become_one_kernel(page) -> None:
    page.button_group(key="learn_folding_fused_guess").set_value("little").run()
    assert not page.exception
    found = folding.kernels("conv_digits", "block1.conv")
    assert found.in_file.ops == ("conv2d", "batch_norm", "relu")
    assert found.on_integers.ops == ("QLinearConv",)
    assert len(found.in_float.ops) == 1
    assert found.on_integers.written * 12 == found.in_file.written
    bars = charts(page)[1]["data"][0]
    sqnr = array(bars["x"])
    assert sqnr[0] > sqnr[1] > sqnr[2]
    assert f"{sqnr[0] - sqnr[1]:.1f} dB, simulated" in texts(page, "warning", "success")
    assert "`QLinearConv`" in texts(page, "markdown")


def test_fewer_bits_reach_fewer_codes(page) -> None:
    page.button_group(key="learn_folding_guess").set_value("grows").run()
    codes = []
    for bits in (8, 6, 4):
        page.slider(key="learn_folding_bits").set_value(bits).run()
        codes.append(number(figures(page)["Codes of the narrowest"]))
    assert codes == sorted(codes, reverse=True)


def test_a_network_that_was_made_hard_says_so(page) -> None:
    page.selectbox(key="learn_folding_network").set_value("depthwise_digits").run()
    assert not page.exception
    assert "multiplied by 64" in texts(page, "caption")


def test_the_same_on_ones_own_model(page) -> None:
    page.button(key="learn_folding_yours_distributions_go").click().run()
    assert not page.exception
    assert "Where do the values fall" in texts(page, "title")
    assert page.session_state["lab.tensor"] == "conv1.weight"
