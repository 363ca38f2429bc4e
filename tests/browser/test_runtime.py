"""Runtime in a real browser: the first visit measures by itself, and every tab is drawn from what was measured."""

from __future__ import annotations

import pytest

from tests.browser.acts import sideways

pytestmark = pytest.mark.browser


def test_a_first_visit_measures_and_shows_what_ran(server, visit) -> None:
    visited = visit(server, "runtime?model=conv_digits&batch=8", width=900)
    page = visited.page
    page.get_by_test_id("stMetric").filter(has_text="Layers on integers").wait_for(timeout=240_000)
    visited.settle(120)
    picture = page.locator(".st-key-runtime_picture .js-plotly-plot")
    picture.wait_for()
    assert "conv" in picture.inner_text()
    for name in ("Simulated against integer", "Accumulator headroom", "Latency", "Size"):
        page.get_by_role("tab", name=name).click()
        page.get_by_role("tabpanel", name=name).locator(".js-plotly-plot .xaxislayer-above").first.wait_for()
    # nothing is wider than the page
    assert sideways(page) == 0
    assert page.get_by_test_id("stException").count() == 0
    assert page.get_by_test_id("stAlertContentError").count() == 0
    assert not visited.outside
    assert not visited.errors
    # whoever comes later finds it
    later = visit(server, "runtime?model=conv_digits&batch=8")
    later.page.get_by_test_id("stMetric").filter(has_text="Layers on integers").wait_for(timeout=20_000)
