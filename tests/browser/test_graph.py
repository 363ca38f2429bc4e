"""The graph in a real browser: a click opens a module, an op or a line; a line of the ledger is chosen."""

from __future__ import annotations

import pytest

from tests.browser.acts import click_middle, pick_line, sideways

pytestmark = pytest.mark.browser

PICTURE = ".st-key-graph_frame .js-plotly-plot"


def click(page, text: str) -> None:
    click_middle(page, page.locator(f"{PICTURE} .bartext", has_text=text).first.bounding_box())


def test_a_click_opens_a_module_and_chooses_an_op_or_a_line(server, visit) -> None:
    visited = visit(server, "graph?model=transformer_text", width=1400)
    page = visited.page
    page.locator(PICTURE).wait_for(timeout=120_000)
    visited.settle(60)
    assert page.locator(f"{PICTURE} .bartext", has_text="softmax").count() == 0
    click(page, "blocks.0.attention")
    page.locator(f"{PICTURE} .bartext", has_text="softmax").first.wait_for()
    visited.settle(60)
    click(page, "blocks.0.attention.query")
    details = page.locator(".st-key-graph_details")
    details.get_by_text("blocks.0.attention.query (linear)").wait_for()
    visited.settle(60)
    diamond = page.locator(f"{PICTURE} .scatterlayer .trace").last.locator(".points path").first
    # the first conversion: what the embedding gives is put on a grid
    click_middle(page, diamond.bounding_box())
    details.get_by_text("embedding (embedding)").wait_for()
    visited.settle(60)
    page.get_by_role("button", name="Why?").click()
    page.get_by_role("heading", name="Why is my layer not quantized?").wait_for()
    page.locator(".st-key-ledger_details").get_by_text("embedding (embedding)").wait_for()
    assert sideways(page) == 0
    assert page.get_by_test_id("stException").count() == 0
    assert not visited.outside
    assert not visited.errors


def test_a_line_of_the_table_is_picked(server, visit) -> None:
    visited = visit(server, "ledger?model=residual_digits&layer=fc", width=900)
    page = visited.page
    page.locator(".st-key-ledger_details").get_by_text("fc (linear)").wait_for(timeout=120_000)
    visited.settle(60)
    pick_line(page, page.get_by_test_id("stDataFrame").first, 1)
    page.locator(".st-key-ledger_details").get_by_text("conv1 (conv2d)").wait_for()
    assert sideways(page) == 0
    assert not visited.errors
