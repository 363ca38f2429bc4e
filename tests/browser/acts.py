"""What a person does on a page, and how long the page takes to answer."""

from __future__ import annotations

import os

LINE = 35  # pixels of the heading of a table, and of each line
# From an event to the frame in which what is drawn has become another. Armed before the event, which it takes once.
ARM = """
name => {
  const before = window.drawn();
  window.took = null;
  document.addEventListener(name, event => {
    const painted = () => { window.took = performance.now() - event.timeStamp; };
    const look = () => {
      const now = window.drawn();
      // One frame later what was drawn is on the screen.
      requestAnimationFrame(now !== null && now !== before ? painted : look);
    };
    look();
  }, {capture: true, once: true});
}
"""


def watch(page, drawn: str, of: str | None = None) -> None:
    """From here on `timed` looks at this: a function in JavaScript that gives what is drawn, or null if nothing is."""
    page.evaluate(f"of => {{ window.drawn = () => ({drawn})(of); }}", of)


def timed(page, act, event: str = "keydown") -> float:
    """Milliseconds from the event that this act ends in to what is drawn then."""
    page.evaluate(ARM, event)
    act()
    page.wait_for_function("() => window.took !== null", timeout=15_000)
    took = page.evaluate("() => window.took")
    page.wait_for_timeout(300)
    return took


def crowd() -> float:
    """How much longer things may take where other work shares the cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def until(page, condition, *, timeout: float = 15_000) -> None:
    """Waits for this to be so."""
    waited = 0
    while not condition():
        page.wait_for_timeout(100)
        waited += 100
        assert waited < timeout, "it did not happen"


def click_middle(page, box: dict[str, float]) -> None:
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def pick_line(page, table, line: int) -> None:
    """Ticks this line of a table, counted from 1, at its left edge."""
    table.scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # a table that comes into view draws itself once more
    corner = table.bounding_box()
    page.mouse.click(corner["x"] + 16, corner["y"] + LINE * line + LINE // 2)


def sideways(page) -> int:
    """Pixels the page scrolls sideways."""
    main = "document.querySelector('[data-testid=stMain]')"
    return page.evaluate(f"Math.max(0, {main}.scrollWidth - {main}.clientWidth)")
