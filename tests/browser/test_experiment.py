"""The whole path of a person in a real browser: set, estimate, run, reload, cancel, result, and back another day."""

from __future__ import annotations

import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from qlab import convert, load_dataset, load_model
from qlab.lab.run import find_prepared, read_result
from qlab.lab.store import Run, Store
from qlab.metrics import write
from qlab.preset import presets

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

SLOW = 4  # batch size: a run of some seconds, so that there is a middle to reload in
PATIENCE = 180_000


def walk_in(server, visit):
    """Opens the app and goes to the page by the menu, as a person does; waits until a run would be the only job."""
    visited = visit(server)
    visited.page.get_by_test_id("stSidebar").get_by_role("link", name="Experiment").click()
    visited.page.get_by_role("heading", level=1, name="What does this configuration cost?").wait_for(timeout=60_000)
    ready(visited)
    return visited


def ready(visited) -> None:
    """Waits for the estimate: the calibration is there, and no job is in the way of a run."""
    visited.page.get_by_text("Noise each layer adds itself").wait_for(timeout=PATIENCE)
    visited.settle()


def resting_place(visited, element) -> dict[str, float]:
    """Where an element is once it has been in one place for a second: charts above it may still be drawn."""
    box, since = element.bounding_box(), time.monotonic()
    while time.monotonic() - since < 1:
        visited.page.wait_for_timeout(100)
        now = element.bounding_box()
        if now != box:
            box, since = now, time.monotonic()
    return box


def press_run(visited) -> str:
    visited.page.get_by_test_id("stMain").get_by_role("button", name="Run", exact=True).click()
    visited.page.wait_for_url(re.compile(r"[?&]run="), timeout=30_000)
    return parse_qs(urlsplit(visited.page.url).query)["run"][0]


def progress(visited):
    return visited.page.locator(".st-key-exp_bar").get_by_test_id("stProgress")


def run_in_store(server, run_id: str) -> Run:
    store = Store(server.log_path.parent)
    try:
        return store.get_run(run_id)
    finally:
        store.close()


def set_batch_size(visited, size: int) -> None:
    visited.page.get_by_role("button", name="Name, batch size, seed").click()
    field = visited.page.locator(".st-key-exp_batch_size input")
    field.fill(str(size))
    field.press("Enter")
    visited.page.keyboard.press("Escape")
    # Another batch size needs another calibration. It is stopped, so that it becomes a part of the run.
    visited.page.locator(".st-key-exp_gives").get_by_role("button", name="Cancel").click(timeout=30_000)
    visited.page.get_by_text("The calibration was stopped").wait_for(timeout=30_000)
    visited.settle()


def result_shown(visited) -> None:
    visited.page.get_by_role("tab", name="Flipped examples").wait_for(timeout=PATIENCE)
    visited.settle()


def test_run_goes_on_through_a_reload_and_is_found_in_another_browser(server, visit) -> None:
    visited = walk_in(server, visit)
    set_batch_size(visited, SLOW)
    run_id = press_run(visited)
    progress(visited).wait_for(timeout=30_000)
    visited.page.reload()
    progress(visited).wait_for(timeout=30_000)
    assert not run_in_store(server, run_id).ended
    result_shown(visited)

    store = Store(server.log_path.parent)
    run = store.get_run(run_id)
    result = read_result(store, run)
    store.close()
    bar = visited.page.locator(".st-key-exp_bar")
    assert write("accuracy", result.reference.accuracy) in bar.inner_text()
    assert write("accuracy", result.quantized.accuracy) in bar.inner_text()
    assert result.comparison.verdict[1:] in bar.inner_text()
    assert "simulated" in bar.inner_text()

    again = visit(server, f"experiment?run={run_id}")
    result_shown(again)
    assert result.comparison.verdict[1:] in again.page.locator(".st-key-exp_bar").inner_text()
    for page in (visited, again):
        assert page.page.get_by_test_id("stException").count() == 0
        assert not page.outside
        assert not page.errors


def test_cancel_ends_a_run_within_a_second(server, visit) -> None:
    visited = walk_in(server, visit)
    set_batch_size(visited, SLOW - 1)
    run_id = press_run(visited)
    until = time.monotonic() + 60
    while run_in_store(server, run_id).status != "running" and time.monotonic() < until:
        time.sleep(0.05)
    visited.page.locator(".st-key-exp_bar").get_by_role("button", name="Cancel").click()
    asked = time.time()
    visited.page.get_by_text("This run was stopped before it had a result").wait_for(timeout=10_000)
    run = run_in_store(server, run_id)
    assert run.status == "cancelled"
    assert run.finished is not None
    assert run.finished - asked < 1.0
    visited.settle()
    assert visited.page.get_by_test_id("stMain").get_by_role("button", name="Run", exact=True).is_enabled()


def test_preset_changes_the_estimate_at_once_and_without_a_run(server, visit) -> None:
    visited = walk_in(server, visit)
    store, model = Store(server.log_path.parent), load_model("residual_digits")
    found = find_prepared(store, model, load_dataset("residual_digits"))
    store.close()
    size = convert(model, presets["w4a8"], found.calibration).size
    visited.page.locator(".st-key-exp_preset").get_by_text("W4 A8").click()
    visited.page.locator(".st-key-exp_gives").get_by_text(write("size", size.quantized_bytes), exact=True).wait_for()
    sidebar = visited.page.get_by_test_id("stSidebar")
    sidebar.get_by_text("w4a8").wait_for()
    # The sliders follow the preset, and do so in the browser, not in the session alone.
    assert visited.page.locator(".st-key-exp_w_bits").inner_text().split()[1] == "4"


def test_rule_typed_into_the_table_is_counted_and_survives_a_walk(server, visit) -> None:
    visited = walk_in(server, visit)
    grid = visited.page.get_by_test_id("stDataFrame").first
    grid.scroll_into_view_if_needed()
    box = resting_place(visited, grid)
    # The last line of an editable table adds a row; the second column takes the pattern.
    visited.page.mouse.click(box["x"] + 200, box["y"] + box["height"] - 16)
    visited.settle()
    box = resting_place(visited, grid)
    visited.page.mouse.click(box["x"] + 250, box["y"] + 52)
    visited.page.wait_for_timeout(300)  # the speed of a hand: the cell is chosen, then typing opens it
    visited.page.keyboard.type("layer1*", delay=50)
    visited.page.keyboard.press("Enter")
    layers = [layer.name for layer in load_model("residual_digits").layers]
    count = sum(name.startswith("layer1") for name in layers)
    counted = visited.page.get_by_text(f"matches {count} of {len(layers)} layers")
    counted.wait_for(timeout=20_000)
    visited.page.get_by_test_id("stSidebar").get_by_role("link", name="Start").click()
    visited.settle(120)
    visited.page.get_by_test_id("stSidebar").get_by_role("link", name="Experiment").click()
    counted.wait_for(timeout=60_000)
