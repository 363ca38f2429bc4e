"""The report in a real browser without a network: drawn in full, sorted by a click, nothing asked for, nothing run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import qlab
from qlab.export.report import comparison_report
from qlab.lab.compared import line_of
from qlab.lab.store import Run, Store
from qlab.plots.theme import DARK, LIGHT

pytestmark = pytest.mark.browser

ATTACK = "</script><img src=x onerror=alert(1)>"
NO_UNPACKING = "delete window.DecompressionStream"


@dataclass
class Opened:
    page: object
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # errors and whatever stands on the console
    dialogs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[bytes, list[Run]]:
    """The report on ten runs: the name, notes and tag of one are an attack, three were timed."""
    store = Store(tmp_path_factory.mktemp("report") / "home")
    few = qlab.load_dataset("conv_digits").subset(range(200)).split(50)
    grid = qlab.Grid(weight_bits=(8, 6, 4, 3, 2), activation_observers=("min_max", "mse"))
    runs = list(qlab.sweep("conv_digits", few, grid, store=store))
    store.annotate(runs[3].id, name=ATTACK, notes=f"{ATTACK}\nsecond line", tags=[ATTACK])
    for number, run in enumerate(runs[:3]):
        store.note_latency(run.id, 0.001 * (3 - number), 32)
    by_id = {run.id: run for run in store.list_runs(ids=[run.id for run in runs])}
    runs = [by_id[run.id] for run in runs]
    return comparison_report(store, runs, runs[0]), runs


@pytest.fixture
def opened(chromium, made, tmp_path):
    """Opens the file as a person would, with the network off: `opened(dark=True)`."""
    contexts = []
    path = tmp_path / "report.html"
    path.write_bytes(made[0])

    def open_file(*, dark: bool = False, width: int = 1400, script: bool = True, before: str = "") -> Opened:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            offline=True,
            java_script_enabled=script,
        )
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("pageerror", lambda error: found.said.append(str(error)))
        found.page.on("console", lambda message: found.said.append(message.text))
        found.page.on("dialog", lambda dialog: (found.dialogs.append(dialog.message), dialog.dismiss()))
        if before:
            found.page.add_init_script(before)
        found.page.goto(path.as_uri())
        return found

    yield open_file
    for context in contexts:
        context.close()


def drawn(found: Opened) -> None:
    """Waits until every chart has been drawn."""
    charts = found.page.locator(".chart")
    assert charts.count() == 4
    for number in range(4):
        charts.nth(number).locator(".main-svg").first.wait_for(timeout=30_000)


def asked_for(found: Opened) -> list[str]:
    """Requests but for the file itself and for pictures that the page made."""
    return [url for url in found.requests[1:] if not url.startswith(("data:", "blob:"))]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_chart_is_drawn_and_nothing_is_asked_for(opened, made, dark) -> None:
    _, runs = made
    found = opened(dark=dark)
    drawn(found)
    marks = {
        name: found.page.locator(f"#{name} .scatterlayer .points path").count()
        for name in ("over-size", "over-latency", "accuracy")
    }
    assert marks["over-size"] >= len(runs)
    assert marks["over-latency"] >= 3
    assert marks["accuracy"] >= len(runs) + 1
    # A heatmap is a picture, which the page's policy has to let through.
    picture = found.page.locator("#layers-0 .heatmaplayer image").first
    assert picture.evaluate(
        "(i) => new Promise((ok) => { const p = new Image(); p.onload = () => ok(p.naturalWidth > 1);"
        " p.onerror = () => ok(false); p.src = i.href.baseVal; })"
    )
    colours = DARK if dark else LIGHT
    assert hexadecimal(found, "body", "background-color") == colours.background
    legend = found.page.locator("#over-size .legendtext").first
    assert legend.evaluate("(e) => getComputedStyle(e).fill") == rgb(colours.muted)
    assert found.said == []
    assert asked_for(found) == []


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def hexadecimal(found: Opened, where: str, what: str) -> str:
    value = found.page.locator(where).evaluate(f"(e) => getComputedStyle(e).getPropertyValue('{what}')")
    return "#" + "".join(f"{int(part):02X}" for part in re.findall(r"\d+", value))


def wait_for_colour(found: Opened, colour: str) -> None:
    """Until the chart over size has been drawn in this colour."""
    legend = found.page.locator("#over-size .legendtext").first
    for _ in range(100):
        if legend.evaluate("(e) => getComputedStyle(e).fill") == rgb(colour):
            return
        found.page.wait_for_timeout(50)
    pytest.fail(f"the legend did not become {colour}")


def test_the_charts_follow_the_system_from_light_to_dark_and_back(opened) -> None:
    found = opened()
    drawn(found)
    for scheme, colours in (("dark", DARK), ("light", LIGHT)):
        found.page.emulate_media(color_scheme=scheme)
        wait_for_colour(found, colours.muted)
    assert found.said == []


def test_on_paper_it_is_light(opened) -> None:
    found = opened(dark=True)
    drawn(found)
    wait_for_colour(found, DARK.muted)
    found.page.evaluate("() => { dispatchEvent(new Event('beforeprint')); }")
    wait_for_colour(found, LIGHT.muted)
    found.page.emulate_media(media="print", color_scheme="dark")
    assert hexadecimal(found, "body", "background-color") == LIGHT.background
    assert hexadecimal(found, "#settings", "color") == LIGHT.text
    found.page.evaluate("() => { dispatchEvent(new Event('afterprint')); }")
    wait_for_colour(found, DARK.muted)


def test_a_name_that_is_markup_does_nothing(opened, made) -> None:
    found = opened()
    drawn(found)
    found.page.locator("summary").nth(3).click()
    found.page.locator("#over-size .points path").first.hover(force=True)
    assert found.dialogs == []
    assert found.page.locator("img").count() == 0
    assert found.page.locator("#runs tbody th").nth(3).inner_text() == ATTACK
    assert ATTACK in found.page.locator("#settings tbody tr").nth(3).inner_text()
    assert f'"name": "{ATTACK}"' in found.page.locator("details pre").nth(3).inner_text()
    assert asked_for(found) == []


def test_no_script_but_the_two_of_the_page_may_run(opened) -> None:
    """What would be left if a text were not escaped: the policy of the page stops it all the same."""
    found = opened()
    drawn(found)
    found.page.evaluate(
        "() => { document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">');"
        " const own = document.createElement('script'); own.textContent = 'window.ran = 2';"
        " const far = document.createElement('script'); far.src = 'https://outside.example/x.js';"
        " document.body.append(own, far); }"
    )
    found.page.wait_for_timeout(300)
    assert found.page.evaluate("() => window.ran") is None
    refused = [words for words in found.said if "Content Security Policy" in words]
    assert len(refused) >= 3  # the picture, the script, and the one from elsewhere


def test_a_click_on_a_heading_sorts_and_what_is_missing_stays_last(opened, made) -> None:
    _, runs = made
    lines = [line_of(run) for run in runs]
    found = opened()

    def column(number: int) -> list[str]:
        return found.page.locator(f"#runs tbody tr > :nth-child({number})").all_inner_texts()

    def heading(name: str):
        return found.page.locator("#runs thead th", has_text=name)

    sizes = [line.title for line in sorted(lines, key=lambda line: line.size)]
    heading("Size").get_by_role("button").click()
    assert heading("Size").get_attribute("aria-sort") == "ascending"
    assert column(1) == sizes
    heading("Latency").get_by_role("button").press("Enter")
    assert heading("Size").get_attribute("aria-sort") is None
    timed = sorted((line for line in lines if line.latency), key=lambda line: line.latency)
    assert column(1)[:3] == [line.title for line in timed]
    heading("Latency").get_by_role("button").click()
    assert heading("Latency").get_attribute("aria-sort") == "descending"
    assert column(1)[:3] == [line.title for line in reversed(timed)]
    assert len(column(1)) == len(runs)


@pytest.mark.parametrize("width", [900, 1400])
def test_nothing_lies_beside_the_page(opened, width) -> None:
    found = opened(width=width)
    drawn(found)
    assert found.page.evaluate("() => document.documentElement.scrollWidth") == width
    for name in ("runs", "settings"):
        assert found.page.locator(f"#{name}").evaluate("(t) => t.scrollWidth <= t.parentNode.clientWidth")
    # No word is broken to make room, and a verdict stands on one line.
    verdicts = found.page.locator("#runs td span")
    assert verdicts.count() == 2 * 10 - 1  # the baseline has no difference
    for number in range(verdicts.count()):
        assert verdicts.nth(number).bounding_box()["height"] < 30


def test_the_page_does_not_jump_when_the_charts_come(opened) -> None:
    before = opened(script=False).page.locator("#settings").bounding_box()
    found = opened()
    drawn(found)
    found.page.wait_for_timeout(300)
    assert found.page.locator("#settings").bounding_box()["y"] == pytest.approx(before["y"], abs=4)


def test_a_browser_that_cannot_unpack_says_so_and_shows_the_tables(opened, made) -> None:
    found = opened(before=NO_UNPACKING)
    told = found.page.locator(".chart").all_inner_texts()
    assert len(told) == 4
    assert all("cannot unpack the charts" in words for words in told)
    assert found.page.locator("#runs tbody tr").count() == len(made[1])
    assert found.said == []


def test_without_scripts_the_tables_are_there(opened, made) -> None:
    found = opened(script=False)
    assert found.page.locator("#runs tbody tr").count() == len(made[1])
    assert "Charts and sorting need JavaScript" in found.page.locator("noscript").inner_text()


def test_ten_runs_are_one_file_of_a_few_megabytes(made) -> None:
    assert len(made[0]) < 5_000_000
    assert len(made[1]) == 10
    assert Path(qlab.__file__).parent.joinpath("export", "report_page.js").read_bytes() in made[0]
