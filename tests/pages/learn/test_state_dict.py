"""Lesson 13 teaches that only a weight that is handed back reaches a converted layer, and that an Edit always does."""

from __future__ import annotations

import numpy as np
import pytest

from qlab.lessons import state_dict
from qlab.metrics import MINUS
from tests.pages.elements import button, charts, figures, texts

pytestmark = pytest.mark.peers
OUTCOMES = {
    "float weight": "old", "weight attribute": "error", "unpacked": "old", "int_repr": "old", "state_dict": "old",
    "load_state_dict": "new", "set_weight_bias": "new",
}  # fmt: skip


@pytest.fixture
def page(open_page):
    at = open_page("state_dict")
    assert not at.exception
    return at


@pytest.mark.parametrize("kind", state_dict.LAYERS)
def test_state_dict_and_output_change_together_or_not_at_all(kind) -> None:
    writes = state_dict.tried(kind).writes
    assert {name: write.outcome for name, write in writes.items()} == OUTCOMES
    for name, write in writes.items():
        changed = int((write.before != write.after).sum())
        assert changed == write.attempt.held, name
        if OUTCOMES[name] == "new":
            assert changed > 0
            assert not np.array_equal(write.output_before, write.output_after)
        else:
            assert changed == 0
            assert np.array_equal(write.output_before, write.output_after)
        if OUTCOMES[name] == "old":  # something was written, and it was a copy
            assert (write.written != write.before).any()


@pytest.mark.parametrize("kind", state_dict.LAYERS)
def test_the_page_says_so_of_each_way(page, kind) -> None:
    page.button_group(key="learn_state_dict_kind").set_value(kind).run()
    for way, outcome in OUTCOMES.items():
        page.selectbox(key="learn_state_dict_way").set_value(way).run()
        assert "Changed in the layer" not in figures(page)
        page.button_group(key=f"learn_state_dict_{way}_guess").set_value(outcome).run()
        assert "As you said" in texts(page, "success"), way
        assert figures(page)["state_dict()"] == ("changed" if outcome == "new" else "the same")
        assert (figures(page)["Output moves by"] == "0") == (outcome != "new")
        page.button_group(key=f"learn_state_dict_{way}_guess").set_value("new" if outcome != "new" else "old").run()
        assert "You said" in texts(page, "warning")
        button(page, "Hide the answer").click().run()


def test_what_is_after_stays_covered_until_the_guess(page) -> None:
    def covered() -> bool:
        return "?" in {note.get("text") for note in charts(page)[0]["layout"]["annotations"]}

    assert covered()
    page.button_group(key="learn_state_dict_weight attribute_guess").set_value("old").run()
    assert not covered()
    assert "nothing: it raised" in {note.get("text") for note in charts(page)[0]["layout"]["annotations"]}


def test_all_ways_are_listed_on_demand_with_the_layer_that_was_never_quantized(page) -> None:
    assert not page.table
    page.toggle(key="learn_state_dict_all").set_value(True).run()
    held = page.table[0].value["state_dict() then holds"].tolist()
    assert held.count("the new numbers") == 2
    assert "**2 of 7** reach the layer" in texts(page, "markdown")
    assert "It is still a `torch.nn.modules.linear.Linear`" in texts(page, "markdown")


def test_an_edit_is_in_state_dict_and_changes_its_own_output_alone(page) -> None:
    page.button_group(key="learn_state_dict_edit_guess").set_value("one").run()
    for channel, code in ((3, -100), (5, 127)):
        page.slider(key="learn_state_dict_channel").set_value(channel).run()
        page.slider(key="learn_state_dict_code").set_value(code).run()
        seen = figures(page)
        assert seen["state_dict() after"] == str(code).replace("-", MINUS)
        assert seen["After undo"] == seen["state_dict() before"] != seen["state_dict() after"]
        assert "As you said: **one.**" in texts(page, "success")
        assert state_dict.edited(channel, 7, code).effect.changed_channels.tolist() == [channel]
    page.slider(key="learn_state_dict_code").set_value(int(seen["state_dict() before"].replace(MINUS, "-"))).run()
    assert "It is: **none.**" in texts(page, "warning")


def test_the_way_to_the_own_model_opens_where_the_same_is_tried(page) -> None:
    page.button(key="learn_state_dict_yours_weights_go").click().run()
    assert not page.exception
    assert "What are the integers?" in texts(page, "title")
    assert "Which writes reach it?" in texts(page, "subheader")
