"""Lesson 14 teaches that the tools, in this order, name what was done to a network; and that not all is broken."""

from __future__ import annotations

import pytest

from qlab.lessons import hunt
from qlab.lessons.hunt_told import CULPRITS
from tests.pages.elements import button, charts, texts

# What was done to each network, which the tools do not know.
PLANTED = {
    "1": "outlier", "2": "channels", "3": "data", "4": "calibration", "5": "cut", "6": "nothing", "7": "coarse",
}  # fmt: skip
CURED = 0.9  # of what was lost


@pytest.mark.parametrize("key", hunt.CASES, ids=lambda key: hunt.CASES[key].title)
def test_the_tools_name_what_was_planted(key: str) -> None:
    assert hunt.culprit(key) == PLANTED[key]


def test_a_loss_is_told_from_chance_and_quantization_from_data() -> None:
    for key in ("1", "2", "4", "5", "7"):
        found = hunt.accuracy(key)
        assert found.quantization.significant
        assert found.quantization.lost > found.quantization.gained
        assert not found.preparation.significant
        assert hunt.guilty(key)
    data, chance = hunt.accuracy("3"), hunt.accuracy("6")
    assert data.preparation.significant
    assert not data.quantization.significant
    assert not hunt.guilty("3")  # every layer is innocent where the data is not
    assert not chance.preparation.significant
    assert not chance.quantization.significant


def test_the_guilty_layer_is_the_one_that_was_tampered_with() -> None:
    assert hunt.layers("1").ranked()[0].layer in ("fc1", "fc2")
    assert "depthwise" in hunt.layers("2").ranked()[0].layer
    assert hunt.suspect("5").tensor == hunt.CASES["5"].cut == hunt.errors("5").made.tensor
    assert hunt.errors("5").shown.tensor != hunt.errors("5").made.tensor  # made in one place, shown in another


def test_the_suspect_shows_why() -> None:
    outlier, channels, cut = (hunt.suspect(key) for key in ("1", "2", "5"))
    assert outlier.part == channels.part == "weight"
    assert cut.part == "activation"
    assert outlier.tail > 0.9
    assert outlier.levels is not None
    assert outlier.levels[0] < outlier.levels[1] / 4
    assert channels.spread is not None
    assert channels.spread > 50
    assert cut.row is not None
    assert cut.row.clipped is not None
    assert cut.row.clipped > 0.1


@pytest.mark.parametrize("key", ["1", "2", "3", "4", "5"])
def test_the_best_remedy_brings_back_what_was_lost(key: str) -> None:
    found = hunt.cures(key)
    best = found.tried[0]
    assert best.against.significant
    assert best.accuracy - found.before > CURED * (found.float - found.before) - 0.01


def test_nothing_is_cured_where_nothing_is_broken() -> None:
    assert hunt.cures("6").tried == ()


@pytest.fixture
def page(open_page):
    at = open_page("hunt")
    assert not at.exception
    return at


def step(at, to: str):
    return at.button_group(key="learn_hunt_step").set_value(to).run()


def test_steps_open_one_after_another_and_keep_the_evidence(page) -> None:
    assert "Is it really broken?" in texts(page, "markdown")
    assert "Does float work" not in texts(page, "markdown")
    for question in ("Does float work on this data?", "Which layer?"):
        button(page, f"Next: {question}").click().run()
        assert not page.exception
        assert f"*{question}*" in texts(page, "markdown")
    assert "`fc" in texts(page, "markdown")
    assert not [one for one in page.button if one.label.startswith("Next")]  # first a guess


def test_the_culprit_is_hidden_until_a_guess_and_then_told_with_its_finding(page) -> None:
    step(page, "5")
    assert not charts(page)
    assert "far beyond all others" not in texts(page, "markdown", "success", "warning", "info")
    page.button_group(key="learn_hunt_guess_1").set_value("channels").run()
    assert f"You said: {CULPRITS['channels']}" in texts(page, "warning")
    assert "far beyond all others" in texts(page, "warning")
    step(page, "6")
    assert not page.exception
    assert "helps most" in texts(page, "markdown")
    assert f"of the {len(hunt.cures('1').tried)} tried here" in texts(page, "markdown")


def test_another_case_begins_at_its_first_step(page) -> None:
    step(page, "4")
    page.button_group(key="learn_hunt_guess_1").set_value("outlier").run()
    assert charts(page)
    page.selectbox(key="learn_hunt_case").set_value("6").run()
    assert page.button_group(key="learn_hunt_step").value == "1"
    assert "not beyond chance" in texts(page, "markdown")
    step(page, "6")
    page.button_group(key="learn_hunt_guess_6").set_value("nothing").run()
    assert "As you said" in texts(page, "success")
    assert "nothing to cure" in texts(page, "markdown")


@pytest.mark.parametrize("tool", ["propagation", "sensitivity"])
def test_a_link_opens_a_case_at_a_step(open_page, tool: str) -> None:
    at = open_page("hunt", query={"case": "5", "step": "3", "tool": tool})
    assert not at.exception
    assert at.button_group(key="learn_hunt_tool").value == tool
    (picture,) = charts(at)
    assert ("layer2.0.add" in str(picture["layout"])) or ("layer2.0.relu@1" in str(picture))


@pytest.mark.parametrize(("at_step", "page_title"), [("1", "experiment"), ("3", "sensitivity"), ("4", "distributions")])
def test_each_step_leads_to_its_tool(open_page, at_step: str, page_title: str) -> None:
    at = open_page("hunt", query={"step": at_step})
    next(one for one in at.button if one.key == f"learn_hunt_yours_{page_title}_go").click().run()
    assert not at.exception
