"""The lessons in a real browser: every one in light and dark, wide and narrow; charts as files; words as links."""

from __future__ import annotations

import pytest

from qlab.ui.curriculum import LESSONS
from tests.browser.acts import sideways, until

pytestmark = pytest.mark.browser

BROKEN = '[data-testid="stException"], [data-testid="stAlertContentError"]'


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("slug", LESSONS)
def test_a_lesson_shows_its_answers_without_error_at_any_width(server, visit, slug, dark) -> None:
    visited = visit(server, slug, dark=dark)
    page = visited.page
    page.locator(f".st-key-learn_{slug}_footer").wait_for(timeout=120_000)
    visited.settle(120)
    first = page.locator(f'[class*="st-key-learn_{slug}_"]').first
    assert first.bounding_box()["y"] < 2 * 950, "the first control is more than two screens down"
    closed = page.get_by_role("button", name="Show without a guess")
    opened = page.get_by_role("button", name="Hide the answer")
    if slug != "hunt":  # which asks after its third step
        closed.first.wait_for(timeout=120_000)
    while closed.count():
        before = opened.count()
        closed.first.click()
        until(page, lambda before=before: opened.count() > before, timeout=60_000)
        visited.settle(120)
        page.wait_for_timeout(300)
    # The hunt goes step by step: what it teaches stands at its end, the evidence from the first step on.
    page.get_by_text("Evidence so far" if slug == "hunt" else "What to notice.").first.wait_for(timeout=60_000)
    visited.settle(120)
    for width in (1400, 900):
        page.set_viewport_size({"width": width, "height": 950})
        page.wait_for_timeout(300)
        assert sideways(page) == 0
    assert page.locator(BROKEN).count() == 0
    assert not visited.outside
    assert not visited.errors


@pytest.mark.parametrize("where", ["grid", "distributions"])
def test_a_chart_downloads_as_png_and_as_svg_on_the_background_of_the_page(server, visit, where, tmp_path) -> None:
    visited = visit(server, where, dark=True)
    page = visited.page
    chart = page.locator(".js-plotly-plot").first
    chart.locator(".main-svg").first.wait_for(timeout=120_000)
    visited.settle(120)
    chart.hover()
    files = {}
    for name in ("PNG", "SVG"):
        with page.expect_download(timeout=30_000) as download:
            chart.locator(".modebar").get_by_role("button", name=f"Download as {name}").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        files[name] = path
    assert files["PNG"].name.startswith("qlab-")
    assert files["PNG"].read_bytes().startswith(b"\x89PNG")
    drawn = files["SVG"].read_text()
    assert drawn.startswith("<svg")
    assert "rgb(14, 17, 23)" in drawn.split("<defs")[0]  # the dark page, behind its light letters
    assert not visited.errors


def test_presenting_takes_the_sidebar_away_and_enlarges_letters_and_charts(server, visit) -> None:
    visited = visit(server, "grid")
    page = visited.page
    page.locator(".js-plotly-plot .xtick text").first.wait_for(timeout=120_000)
    visited.settle(60)

    def sizes() -> tuple[float, float]:
        size = "element => parseFloat(getComputedStyle(element).fontSize)"
        return page.locator("h1").first.evaluate(size), page.locator(".js-plotly-plot .xtick text").first.evaluate(size)

    text, chart = sizes()
    assert page.get_by_test_id("stSidebar").is_visible()
    page.get_by_role("button", name="Present", exact=True).click()
    visited.settle(60)
    page.wait_for_timeout(500)
    assert not page.get_by_test_id("stSidebar").is_visible()
    assert sizes()[0] > 1.25 * text
    assert sizes()[1] > 1.25 * chart
    page.get_by_role("button", name="Stop presenting").click()
    page.get_by_test_id("stSidebar").wait_for()


def test_a_word_of_the_glossary_opens_it_beside_the_page(server, visit) -> None:
    visited = visit(server, "distributions")
    page = visited.page
    word = page.locator('a[href^="glossary?word="]').first
    word.wait_for(timeout=120_000)
    assert word.get_attribute("title")
    with page.context.expect_page() as opened:
        word.click()
    beside = opened.value
    beside.get_by_role("heading", name="What does the word mean?").wait_for(timeout=60_000)
    beside.get_by_text(word.inner_text(), exact=False).first.wait_for()
    assert beside.locator(BROKEN).count() == 0
