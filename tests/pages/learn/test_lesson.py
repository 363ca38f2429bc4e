"""What all lessons share: settings in the link, presenter mode, the way to one's own model."""

from __future__ import annotations

from tests.pages.elements import button, texts


def link(at) -> str:
    return next(code.value for code in at.code if "model=" in code.value)


def test_a_link_opens_a_lesson_with_its_settings(open_page) -> None:
    at = open_page("grid", query={"bits": "5", "range": "relu", "value": "2.5"})
    assert at.slider(key="learn_grid_bits").value == 5
    assert at.slider(key="learn_grid_value").value == 2.5
    assert at.button_group(key="learn_grid_range").value == "relu"
    assert all(part in link(at) for part in ("bits=5", "range=relu", "value=2.5"))


def test_what_is_set_goes_into_the_link_and_wins_over_it(open_page) -> None:
    at = open_page("grid", query={"bits": "5"})
    at.slider(key="learn_grid_bits").set_value(6).run()
    assert at.slider(key="learn_grid_bits").value == 6
    assert "bits=6" in link(at)


def test_a_link_with_values_that_do_not_exist_opens_as_usual_and_says_so(open_page) -> None:
    at = open_page("grid", query={"bits": "99", "range": "none", "value": "x"})
    assert not at.exception
    assert at.slider(key="learn_grid_bits").value == 3
    assert len(at.toast) == 3


def test_presenting_is_in_the_link_and_every_page_has_the_way_out(open_page) -> None:
    at = open_page("grid", query={"present": "1"})
    assert "present=1" in link(at)
    button(at, "Stop presenting").click().run()
    assert "present=1" not in link(at)
    button(at, "Present").click().run()
    at.switch_page("pages/lab/start.py").run()
    assert button(at, "Stop presenting")


def test_words_of_the_glossary_are_links_with_their_meaning(open_page) -> None:
    at = open_page("grid")
    assert any('(glossary?word=zero+point "The integer code' in text.value for text in at.markdown)
    at = open_page("glossary", query={"word": "zero point"})
    assert not at.exception
    assert "The integer code that stands for exactly 0." in texts(at, "markdown")
    at.text_input(key="glossary_find").set_value("nibble").run()
    assert "Half a byte" in texts(at, "markdown")


def test_the_way_to_the_own_model_opens_its_page(open_page) -> None:
    at = open_page("grid")
    button(at, "Distributions with residual\\_digits").click().run()
    assert not at.exception
    assert "Where do the values fall?" in [title.value for title in at.title]
