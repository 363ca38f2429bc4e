"""Compare and Runs in a real browser with 1,000 runs in the store: quick to open and to filter, clicks that count."""

from __future__ import annotations

import json
import re
import statistics
import time

import pytest

from qlab.lab.store import Store
from tests.browser.acts import click_middle, crowd, pick_line, sideways, timed, watch
from tests.browser.serve import start_server, stop_server
from tests.many_runs import fill, one_run

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

COUNT = 1000
# The first rows of a table as painted: its accessible twin follows 200 ms later.
ROWS = """
key => {
  const canvas = document.querySelector(`.st-key-${key} canvas`);
  if (!canvas || !canvas.width) return null;
  const pixels = canvas.getContext('2d').getImageData(0, 36, Math.min(canvas.width, 700), 140).data;
  let sum = 0;
  for (let i = 0; i < pixels.length; i += 4) sum = (sum * 31 + pixels[i]) | 0;
  return sum;
}
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A server over a store of 1,000 runs, and their ids, newest first."""
    home = tmp_path_factory.mktemp("many") / "home"
    ids = fill(home, COUNT)
    server = start_server(home)
    yield server, ids
    stop_server(server)


def changes(page, key: str, box: str, keys: list[str]) -> list[float]:
    """Milliseconds from each of these keys, typed into a box, to the table that is drawn anew."""
    watch(page, ROWS, key)
    page.locator(f".st-key-{box} input").click()
    return [timed(page, lambda pressed=pressed: page.keyboard.press(pressed)) for pressed in keys]


@pytest.mark.parametrize("path", ["runs", "compare?model=outlier_mlp"])
def test_the_heading_is_there_soon(many, visit, path, record_property):
    server, _ = many
    visit(server).page.context.close()  # what a cold server does first is the frame's matter
    took, start = [], []
    for where, times in ((path, took), ("", start)) * 3:
        since = time.monotonic()
        visited = visit(server, where)
        times.append(time.monotonic() - since)
        visited.settle()
        assert not visited.errors
        assert not visited.outside
        visited.page.context.close()  # a page left open goes on drawing, and would slow the next one down
    print(f"{path}: heading after {[round(t, 2) for t in took]} s, of Start {[round(t, 2) for t in start]} s")
    record_property("heading_s", min(took))
    # The best of three, as for Start. Every request of these pages is looked at on its way, which takes 0.4 s; on a
    # machine so busy that Start takes its time too, what 1,000 runs add to it is what counts.
    assert min(took) <= max(2.0, 1.25 * min(start))


def test_runs_are_filtered_at_once(many, visit, record_property):
    server, ids = many
    visited = visit(server, "runs")
    page = visited.page
    page.locator(".st-key-runs_table canvas").first.wait_for(timeout=60_000)
    visited.settle()
    took = changes(page, "runs_table", "runs_words", ["7", "7", "Backspace", "Backspace", "3", "1", "Backspace"])
    print(f"runs: {[round(t) for t in took]} ms, median {statistics.median(took):.0f}")
    record_property("median_ms", statistics.median(took))
    assert statistics.median(took) <= 600 * crowd()  # the bar is 300 ms on a quiet machine
    assert page.get_by_text("runs, newest first").count() == 1
    assert not visited.errors
    assert len(ids) == COUNT


def test_picker_of_compare_is_filtered_at_once(many, visit, record_property):
    server, _ = many
    visited = visit(server, "compare?model=outlier_mlp")
    page = visited.page
    page.get_by_text("Choose runs").first.click()
    page.locator(".st-key-compare_pick_table canvas").first.wait_for(timeout=60_000)
    visited.settle()
    took = changes(page, "compare_pick_table", "compare_pick_words", ["7", "7", "Backspace", "Backspace", "3", "1"])
    print(f"picker: {[round(t) for t in took]} ms, median {statistics.median(took):.0f}")
    record_property("median_ms", statistics.median(took))
    assert statistics.median(took) <= 600 * crowd()
    assert not visited.errors


def test_a_click_on_a_point_picks_its_run(many, visit):
    server, ids = many
    visited = visit(server, f"compare?model=outlier_mlp&runs={ids[0]},{ids[300]},{ids[-1]}")
    page = visited.page
    points = page.locator(".st-key-compare_pareto .scatterlayer .points path.point")
    points.first.wait_for(timeout=60_000)
    visited.settle()
    panel = page.locator(".st-key-compare_picked")
    panel.get_by_text("run 0", exact=True).wait_for(timeout=15_000)  # the most accurate
    place = [points.nth(i).bounding_box() for i in range(3)]
    box = min(place, key=lambda b: -b["y"])  # the least accurate stands lowest
    click_middle(page, box)
    store = Store(server.log_path.parent)
    accuracies = {store.get_run(i).name or i: store.get_run(i).headline.accuracy for i in (ids[0], ids[300], ids[-1])}
    store.close()
    worst_name = min(accuracies, key=accuracies.__getitem__)
    panel.get_by_text(worst_name, exact=True).wait_for(timeout=15_000)
    panel.get_by_role("button", name="Make baseline").click()
    panel.get_by_role("button", name="This is the baseline").wait_for(timeout=15_000)
    visited.settle()
    assert "baseline=" in page.url
    page.reload()
    box = page.locator(".st-key-compare_baseline input")
    box.wait_for(timeout=60_000)
    page.wait_for_function("([e, name]) => e.value === name", arg=[box.element_handle(), worst_name], timeout=15_000)
    assert not visited.errors


def test_ticking_runs_in_the_picker_compares_them(many, visit):
    server, ids = many
    visited = visit(server, f"compare?model=outlier_mlp&runs={ids[0]}")
    page = visited.page
    page.get_by_text("Choose runs").first.click()
    grid = page.locator(".st-key-compare_pick_table canvas").first
    grid.wait_for(timeout=60_000)
    page.locator(".st-key-compare_pick_words input").fill("run 77")
    page.get_by_text("shown. What is ticked").wait_for(timeout=15_000)
    visited.settle()
    pick_line(page, grid, 1)
    page.get_by_text(f"2 of {COUNT:,} finished experiments").wait_for(timeout=15_000)
    visited.settle()
    assert "runs=" in page.url
    assert not visited.errors


def test_files_are_made_when_their_button_is_pressed(many, visit):
    server, ids = many
    visited = visit(server, f"compare?model=outlier_mlp&runs={ids[0]},{ids[1]}")
    page = visited.page
    page.get_by_role("tab", name="Share").click()
    got = {}
    for key in ("compare_csv", "compare_specs", "compare_report"):
        button = page.locator(f".st-key-{key} button").first
        button.wait_for(timeout=60_000)
        with page.expect_download(timeout=60_000) as download:
            button.click()
        got[key] = download.value.path().read_text()
    assert "run 0" in got["compare_csv"]
    assert len(json.loads(got["compare_specs"])) == 2
    assert "run 1" in got["compare_report"]
    assert not visited.errors
    assert not visited.outside


@pytest.mark.parametrize("path", ["runs", "compare?model=outlier_mlp"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_narrow_window_needs_no_sideways_scrolling(many, visit, path, dark):
    server, _ = many
    visited = visit(server, path, width=900, dark=dark)
    visited.settle()
    assert sideways(visited.page) == 0
    assert not visited.errors


def test_a_deleted_run_comes_back_with_undo(many, visit):
    server, _ = many
    run = one_run(server.log_path.parent, name="to be deleted")
    visited = visit(server, "runs")
    page = visited.page
    page.locator(".st-key-runs_table canvas").first.wait_for(timeout=60_000)
    visited.settle()
    page.locator(".st-key-runs_words input").fill("to be deleted")
    only = page.get_by_text(re.compile(r"^1 of [\d,]+ runs"))
    only.wait_for(timeout=15_000)
    visited.settle()
    pick_line(page, page.locator(".st-key-runs_table canvas").first, 1)
    page.get_by_role("button", name="Delete this run").click()
    undo = page.get_by_role("button", name="Undo")
    undo.wait_for(timeout=15_000)
    store = Store(server.log_path.parent)
    assert store.get_run(run.id).deleted is not None
    undo.click()
    only.wait_for(timeout=15_000)
    assert store.get_run(run.id).deleted is None
    store.close()
    assert not visited.errors
