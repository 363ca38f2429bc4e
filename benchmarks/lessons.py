"""The lessons in a real browser: how long the first visit to a new server takes, and each control."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.case import Case, Row

# The browser tests know how to start a server; they lie beside this package and are not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlab.ui.curriculum import LESSONS
from tests.browser.serve import CHROMIUM, CHROMIUM_ARGS, QUIET, start_server, stop_server

CONTROLS = ", ".join(f'[data-testid="{name}"]' for name in ("stSlider", "stButtonGroup", "stCheckbox", "stSelectbox"))
TURNS = 5
# From the first event on: until the script is idle and nothing that is drawn changes any more. The last change counts.
# Looking at the text and the paths themselves would take the browser more time than drawing them.
WATCH = """() => {
  const main = document.querySelector('[data-testid="stMain"]');
  window.took = null;
  let start = null, changed = null;
  const seen = new MutationObserver(() => { changed = performance.now(); });
  const marks = ["d", "transform", "x", "y"];
  seen.observe(main, {subtree: true, childList: true, characterData: true, attributeFilter: marks});
  const look = () => {
    const at = performance.now();
    const idle = document.querySelector('[data-testid="stApp"]').dataset.testScriptState === "notRunning";
    if (changed !== null && idle && at - changed > 250) window.took = changed - start;
    else if (at - start > 15000) window.took = -1;
    else { setTimeout(look, 25); return; }
    seen.disconnect();
  };
  const begin = () => { if (start === null) { start = performance.now(); changed = null; look(); } };
  for (const event of ["keydown", "click"]) document.addEventListener(event, begin, {capture: true, once: true});
}"""


def lessons(_: Case) -> Iterator[Row]:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise SystemExit("no chromium on this machine: install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=CHROMIUM_ARGS)
        for slug in LESSONS:
            with tempfile.TemporaryDirectory() as home:
                server = start_server(Path(home) / "home")
                try:
                    context = browser.new_context(viewport={"width": 1400, "height": 950})
                    yield from _lesson(context.new_page(), server.url, slug)
                    context.close()
                finally:
                    stop_server(server)
        browser.close()


def _lesson(page: Any, url: str, slug: str) -> Iterator[Row]:
    begun = time.perf_counter()
    page.goto(f"{url}/{slug}")
    page.locator(f".st-key-learn_{slug}_footer").wait_for(timeout=60_000)
    _settle(page)
    closed = page.get_by_role("button", name="Show without a guess")
    # The browser loads the code of a button when it first draws one, after the box it stands in.
    if asked := page.locator(f'[class*="st-key-learn_{slug}_"][class*="_box"]').count():
        closed.nth(asked - 1).wait_for()
    shown = time.perf_counter() - begun
    answers = 0.0
    while closed.count():
        pressed = time.perf_counter()
        closed.first.click()
        asked -= 1
        _settle(page)
        closed.nth(asked).wait_for(state="detached")
        answers += time.perf_counter() - pressed
    yield Row(
        f"lesson {slug}: first visit to a new server, with all answers", f"{shown + answers:.1f} s", "≤ 10 s",
        shown + answers <= 10, f"{shown:.1f} s until the page stands",
    )  # fmt: skip
    page.wait_for_timeout(1500)
    found = [box.get_attribute("class") for box in page.locator(f'[class*="st-key-learn_{slug}_"]').all()]
    keys = [name[len("st-key-") :] for names in found for name in names.split() if name.startswith("st-key-")]
    took = {key: answer for key in dict.fromkeys(keys) if (answer := _reaction(page, key)) is not None}
    if not took:
        return
    slowest = max(took, key=lambda key: took[key])
    yield Row(
        f"lesson {slug}: slowest of {len(took)} controls, median of {TURNS}", f"{took[slowest]:.0f} ms", "≤ 300 ms",
        took[slowest] <= 300, slowest.removeprefix(f"learn_{slug}_"),
    )  # fmt: skip


def _reaction(page: Any, key: str) -> float | None:
    """Milliseconds until a control is answered; None for what is no control, or changes nothing."""
    box = page.locator(f".st-key-{key}").first
    if not box.count() or not box.is_visible() or box.locator(CONTROLS).count() != 1 or "guess" in key:
        return None
    slider, options = box.locator("input[type=range]"), box.locator('[role="radio"], [data-testid*="segmented"]')
    menu, entries = box.locator('[data-testid="stSelectbox"] input'), page.locator('[role="listbox"] [role="option"]')
    times = []
    for turn in range(TURNS + 1):
        if menu.count():
            menu.focus()
            page.keyboard.press("ArrowDown")
            entries.first.wait_for()
            page.wait_for_timeout(200)
        page.evaluate(WATCH)
        if slider.count():
            slider.last.focus()
            page.keyboard.press("ArrowRight" if turn % 4 < 2 else "ArrowLeft")
        elif menu.count():
            entries.nth((turn + 1) % min(2, entries.count())).click()
        elif options.count():
            options.nth((turn + 1) % options.count()).click()
        else:
            box.locator("label").first.click()
        page.wait_for_function("() => window.took !== null", timeout=30_000)
        times.append(page.evaluate("() => window.took"))
        page.wait_for_timeout(200)
    seen = [time for time in times[1:] if time >= 0]
    return statistics.median(seen) if seen else None


def _settle(page: Any) -> None:
    page.wait_for_timeout(150)
    page.wait_for_selector(QUIET, timeout=120_000)


MEASURES = {"lessons": lessons}
