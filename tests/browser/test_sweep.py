"""A sweep in a real browser, and an app that is killed in the middle of it."""

from __future__ import annotations

import os
import re
import signal
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from qlab.lab.store import DONE, FAILED, OPEN, Run, Store
from tests.browser.acts import click_middle

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PATIENCE = 180_000


def parts(store: Store, sweep_id: str) -> list[Run]:
    return store.list_runs(limit=None, parent=sweep_id, kind="experiment")


def wait_for(what, seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_a_sweep_survives_the_death_of_the_app(launch, visit) -> None:
    first = launch()
    visited = visit(first, "sweep?model=conv_digits&data=conv_digits")
    page = visited.page
    page.get_by_role("button", name="5", exact=True).first.click()  # weights of 5 bits too: 18 configs
    page.get_by_text(re.compile("18 configs")).wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="Run the sweep").click()
    page.wait_for_url(re.compile(r"[?&]sweep="), timeout=PATIENCE)
    sweep_id = parse_qs(urlsplit(page.url).query)["sweep"][0]
    store = Store(first.log_path.parent)
    # how far the whole is, and the best so far while it goes on
    bar = page.get_by_test_id("stMain").get_by_test_id("stProgress")
    bar.wait_for(timeout=PATIENCE)
    page.get_by_text("Best so far").wait_for(timeout=PATIENCE)
    wait_for(lambda: sum(run.status == DONE for run in parts(store, sweep_id)) >= 4)
    assert re.search(r"of 18", bar.inner_text())
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    done = {run.id: (run.attempts, run.finished) for run in parts(store, sweep_id) if run.status == DONE}
    assert 4 <= len(done) < 18

    second = launch()
    visited = visit(second, f"sweep?model=conv_digits&data=conv_digits&sweep={sweep_id}")
    page = visited.page
    page.get_by_text("the app was stopped while this run was going").wait_for(timeout=PATIENCE)
    assert store.get_run(sweep_id).status == FAILED
    now = parts(store, sweep_id)
    assert not [run for run in now if run.status in OPEN]
    # a worker of the dead app may have finished one in its last moment
    done |= {run.id: (run.attempts, run.finished) for run in now if run.status == DONE}
    page.get_by_role("button", name=f"Take up the {18 - len(done)} missing").click()
    page.get_by_role("button", name="Use the best config").wait_for(timeout=PATIENCE)
    wait_for(lambda: store.get_run(sweep_id).status == DONE)
    runs = parts(store, sweep_id)
    assert len(runs) == 18
    assert {run.status for run in runs} == {DONE}
    assert {run.id: (run.attempts, run.finished) for run in runs if run.id in done} == done
    # The chart of a sweep that goes on is another than that of one that has ended.
    page.get_by_test_id("stMain").get_by_test_id("stProgress").wait_for(state="detached", timeout=PATIENCE)
    page.get_by_text("Click a point to open that run").wait_for(timeout=PATIENCE)
    page.locator(".js-plotly-plot").first.wait_for(timeout=PATIENCE)
    visited.settle()
    assert visited.outside == []
    # a point of the chart opens its run
    chart = page.locator(".js-plotly-plot").first
    chart.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    click_middle(page, chart.locator(".scatterlayer path.point >> visible=true").first.bounding_box())
    page.get_by_role("heading", level=1, name="What does this configuration cost?").wait_for(timeout=PATIENCE)
    assert parse_qs(urlsplit(page.url).query)["run"][0] in {run.id for run in runs}
