"""A server of the app with a home of its own, and a browser that records every request that would leave the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.browser.serve import APP, CHROMIUM, CHROMIUM_ARGS, QUIET, Server, start_server, stop_server


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers nobody has visited yet: `launch()` the app, `launch(path)` another script."""
    started = []

    def start(app: Path = APP) -> Server:
        started.append(start_server(tmp_path / "home", app))
        return started[-1]

    yield start
    for server in started:
        stop_server(server)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all browser tests; what one test uploads or runs, the others may see."""
    server = start_server(tmp_path_factory.mktemp("lab") / "home")
    yield server
    stop_server(server)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A browser page on the app. outside: requests that were stopped because they would have left the machine."""

    page: object
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def settle(self, timeout: float = 60) -> None:
        """Waits until the script has run to its end."""
        self.page.wait_for_timeout(150)  # type: ignore[attr-defined]
        self.page.wait_for_selector(QUIET, timeout=timeout * 1000)  # type: ignore[attr-defined]


Open = Callable[..., Visit]


@pytest.fixture
def visit(chromium) -> Iterator[Open]:
    """Opens an address of a server in a browser context of its own: `visit(server, "experiment?run=3")`."""
    contexts = []

    def open_page(server: Server, path: str = "", *, width: int = 1400, dark: bool = False) -> Visit:
        context = chromium.new_context(
            viewport={"width": width, "height": 950},
            color_scheme="dark" if dark else "light",
            service_workers="block",
        )
        contexts.append(context)
        visited = Visit(None)

        def guard(route) -> None:
            if route.request.url.startswith((server.url, "data:", "blob:")):
                route.continue_()
            else:
                visited.outside.append(route.request.url)
                route.abort()

        context.route("**/*", guard)
        visited.page = context.new_page()
        visited.page.on("pageerror", lambda error: visited.errors.append(str(error)))
        visited.page.goto(f"{server.url}/{path}")
        visited.page.locator("h1").first.wait_for(timeout=60_000)
        return visited

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def distributions(server: Server, visit: Open) -> Visit:
    """Distributions with its picture drawn. What a deep link does on a cold server is the frame's matter."""
    visit(server)
    visited = visit(server, "distributions")
    picture = visited.page.locator(".st-key-dist_picture .js-plotly-plot path.js-line")  # type: ignore[attr-defined]
    picture.first.wait_for(timeout=60_000)
    visited.settle()
    return visited
