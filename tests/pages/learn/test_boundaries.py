"""Lesson 9 teaches that values are converted wherever the side changes, and that short stretches cost more of it."""

from __future__ import annotations

import pytest

from qlab.lessons import boundaries
from tests.pages.elements import array, button, charts, deltas, figures, texts


@pytest.fixture
def page(open_page):
    at = open_page("boundaries")
    assert not at.exception
    return at


def pattern(page, name: str):
    page.button(key=f"learn_boundaries_pattern_{name.replace(' ', '_')}").click().run()
    assert not page.exception
    return page


def test_there_is_a_conversion_wherever_the_side_changes(page) -> None:
    choices = [*boundaries.patterns().values(), (False, True, False, False, False), (False, False, True, False, True)]
    for chosen in choices:
        found = boundaries.ran(chosen, False)
        assert len(found.crossings) == found.changes, chosen
        assert found.quantized == found.integer
        assert not found.taken


def test_short_stretches_need_more_conversions_than_one_long_one(page) -> None:
    page.button_group(key="learn_boundaries_guess").set_value("2").run()
    counts = {}
    for name in boundaries.patterns():
        counts[name] = int(figures(pattern(page, name))["Conversions"])
    assert counts["none"] == 0
    assert counts["all"] == counts["first half"] == 2
    assert counts["every second"] > counts["all"]
    assert "Nothing is converted" not in texts(page, "markdown")
    assert "Nothing is converted" in texts(pattern(page, "none"), "markdown")


def test_the_answer_is_hidden_until_one_is_given_and_counts_what_ran(page) -> None:
    assert not page.metric
    assert "conversion" not in {trace["name"] for trace in charts(page)[0]["data"] if "name" in trace}
    page.button_group(key="learn_boundaries_guess").set_value("0").run()
    found = boundaries.ran(boundaries.patterns()["every second"], False)
    assert f"The runtime executed {len(found.crossings)}" in texts(page, "warning")
    (marks,) = [trace for trace in charts(page)[0]["data"] if trace.get("name") == "conversion"]
    assert len(marks["hovertext"]) == len(found.crossings)
    assert figures(page)["Layers on integers"] == f"{len(found.integer)} of 5"
    pattern(page, "all")
    assert "It is: **two" in texts(page, "warning")
    button(page, "Hide the answer").click().run()
    assert not page.metric


def test_a_layer_the_runtime_quantized_by_itself_is_named(page) -> None:
    page.button_group(key="learn_boundaries_guess").set_value("4").run()
    assert "by itself" not in texts(page, "success", "warning")
    page.toggle(key="learn_boundaries_defaults").set_value(True).run()
    found = boundaries.ran(boundaries.patterns()["every second"], True)
    assert found.taken
    assert set(found.taken) == found.integer - found.quantized
    said = texts(page, "success", "warning")
    assert "by itself" in said
    assert all(f"`{layer}`" in said for layer in found.taken)
    assert "by itself" not in texts(pattern(page, "all"), "success", "warning")


def test_one_layer_by_hand(page) -> None:
    page.button_group(key="learn_boundaries_guess").set_value("2").run()
    pattern(page, "none")
    page.toggle(key="learn_boundaries_layer2").set_value(True).run()
    assert not page.exception
    assert figures(page)["Layers on integers"] == "1 of 5"
    assert "As you said: **two" in texts(page, "success")


def test_each_speed_comes_with_its_verdict(page) -> None:
    page.button_group(key="learn_boundaries_guess").set_value("2").run()
    for i in (0, 1):  # one of the patterns, and a choice that is none
        page.toggle(key="learn_boundaries_layer0").set_value(i == 0).run()
        chosen = (i == 0, False, True, False, True)
        speed = boundaries.timed(chosen, 0, False)
        seen = figures(page)["Speed of your choice"]
        assert seen == speed.written
        assert deltas(page)["Speed of your choice"] == speed.outcome
        low, median, high = speed.ratio
        assert 0 < low <= median <= high
        (row,) = [trace for trace in charts(page)[1]["data"] if "your choice" in trace["hovertext"][0]]
        assert array(row["x"]) == [pytest.approx(median)]
    second = boundaries.patterns()["every second"]
    assert boundaries.timed(second, 0, False) == boundaries.timed_patterns(0, False)["every second"]


def test_any_network_can_have_every_second_layer_on_integers(page) -> None:
    page.button(key="learn_boundaries_yours_runtime_go").click().run()
    assert not page.exception
    assert "What really ran on integers" in texts(page, "title")
    mapping = page.session_state["lab.mapping"]
    assert mapping.resolve("conv1", "conv2d").qconfig is not None
    assert mapping.resolve("layer1.0.conv1", "conv2d").qconfig is None
