"""Distributions in a real browser: a change of a control is a new picture within the time a person takes as at once."""

from __future__ import annotations

import statistics

import pytest

from tests.browser.acts import click_middle, crowd, pick_line, timed, until, watch

pytestmark = pytest.mark.browser

# What the picture shows, as drawn: all lines and all words. It changes exactly when a new chart has been painted.
DRAWN = """
() => {
  const chart = document.querySelector('.st-key-dist_picture .js-plotly-plot');
  if (!chart || !chart.querySelector('path.js-line')) return null;
  const axes = chart.querySelectorAll('.yaxislayer-above, .yaxislayer-below');
  return [...chart.querySelectorAll('path.js-line')].map(path => path.getAttribute('d')).join('')
      + chart.querySelector('.infolayer').textContent + [...axes].map(axis => axis.innerHTML).join('');
}
"""


def slider(page):
    return page.locator(".st-key-dist_bits_weight").get_by_role("slider")


def choose(page, key: str, option: str) -> float:
    """Opens a select box and takes an option; timed is the key that takes it."""
    box = page.locator(f".st-key-{key} input")
    box.click()
    box.fill(option)
    page.get_by_role("option", name=option, exact=True).wait_for()
    return timed(page, lambda: page.keyboard.press("Enter"))


@pytest.fixture
def bench(distributions):
    watch(distributions.page, DRAWN)
    return distributions


def test_a_change_is_a_new_picture_at_once(bench, record_property):
    page = bench.page
    slider(page).focus()
    took = {"bits": [timed(page, lambda: page.keyboard.press("ArrowLeft")) for _ in range(5)]}
    took["observer"] = [choose(page, "dist_observer", name) for name in ("mse", "percentile", "entropy", "min_max")]
    took["scheme"] = [choose(page, "dist_scheme", name) for name in ("tensor · affine", "tensor · symmetric")]
    every = [t for times in took.values() for t in times]
    print({name: [round(t) for t in times] for name, times in took.items()})
    print(f"median {statistics.median(every):.0f} ms over {len(every)} changes")
    record_property("median_ms", statistics.median(every))
    # The bar is 300 ms on a quiet machine. Here it is wide, and wider where other work shares the cores.
    assert statistics.median(every) <= 600 * crowd()
    assert not bench.errors
    assert not bench.outside


def bold(page) -> str:
    """The chosen observer, as its bracket is labelled."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.st-key-dist_picture .y2tick text')]
            .filter(t => t.innerHTML.includes('bold')).map(t => t.textContent).join()"""
    )


def test_a_click_on_a_line_of_the_table_chooses_its_observer(bench):
    page = bench.page
    assert bold(page) == "min_max"
    pick_line(page, page.locator(".st-key-dist_table canvas").first, 3)  # mse
    until(page, lambda: bold(page) == "mse")
    assert page.locator(".st-key-dist_observer input").input_value() == "mse"
    choose(page, "dist_observer", "percentile")
    until(page, lambda: bold(page) == "percentile")
    assert not bench.errors


def test_a_click_on_a_channel_shows_it_and_leaves_the_other_chart_in_place(bench):
    page = bench.page
    page.get_by_role("tab", name="Channels").click()
    bars = page.locator(".st-key-dist_channels_weight .js-plotly-plot .barlayer .point")
    bars.first.wait_for(timeout=15_000)
    bench.settle()
    bars.nth(4).scroll_into_view_if_needed()
    click_middle(page, bars.nth(4).bounding_box())
    until(page, lambda: page.get_by_text("channel 4 ·").count() > 0)
    bench.settle()
    page.wait_for_timeout(1000)
    # What does not change keeps its node: another view of the channels leaves the picture as it is drawn.
    page.evaluate("() => document.querySelector('.st-key-dist_picture .js-plotly-plot').setAttribute('data-seen', '1')")
    page.get_by_text("widest first").click()
    bench.settle()
    assert page.locator(".st-key-dist_picture .js-plotly-plot[data-seen]").count() == 1
    assert not bench.errors


def test_an_activation_waits_for_its_calibration_and_comes_by_itself(bench):
    page = bench.page
    box = page.locator(".st-key-dist_what input")
    box.click()
    page.get_by_role("option", name="output", exact=True).click()
    page.get_by_text("moving_average").first.wait_for(timeout=120_000)
    until(page, lambda: "moving_average" in page.locator(".st-key-dist_picture").inner_text())
    assert not bench.errors
