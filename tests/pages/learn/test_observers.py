"""Lesson 3 teaches what outliers do to a range, that observers choose differently, and what too little data costs."""

from __future__ import annotations

import numpy as np
import pytest

from qlab.lessons import observers
from qlab.metrics import MINUS
from tests.pages.elements import array, button, charts, figures, texts


def number(text: str) -> float:
    return float(text.replace("<", "").split()[0].replace(MINUS, "-").replace(",", ""))


@pytest.fixture
def page(open_page):
    at = open_page("observers")
    assert not at.exception
    return at


def opened(at, **settings):
    """The page with the answer shown and these settings."""
    at.button_group(key="learn_observers_guess").set_value("few").run()
    return changed(at, **settings)


def changed(at, **settings):
    for name, value in settings.items():
        key = f"learn_observers_{name}"
        control = {"outliers": at.select_slider, "observer": at.button_group}.get(name, at.slider)(key=key)
        control.set_value(value).run()
        assert not at.exception
    return at


def test_one_far_value_takes_most_codes_of_min_max_from_all_others(page) -> None:
    opened(page, observer="min_max", outliers=0, bits=6)
    whole = number(figures(page)["Codes used by the ordinary"])
    assert whole > 32
    assert "It is: **more than half of them" in texts(page, "warning")
    changed(page, outliers=1, distance=60)
    assert number(figures(page)["Codes used by the ordinary"]) < whole / 3
    assert "As you said: **less than a fifth" in texts(page, "success")


def test_min_max_clips_nothing_and_the_others_trade_clipping_for_finer_steps(page) -> None:
    opened(page, bits=4, outliers=10, distance=30)
    seen = {}
    for name in observers.OBSERVERS:
        changed(page, observer=name)
        seen[name] = figures(page)
    assert number(seen["min_max"]["Clipped"]) == 0
    assert number(seen["min_max"]["Error by clipping"]) == 0
    for name in ("mse", "entropy"):
        assert number(seen[name]["Clipped"]) > 0
        assert number(seen[name]["Error by clipping"]) > 0
        assert number(seen[name]["SQNR of the ordinary"]) > number(seen["min_max"]["SQNR of the ordinary"]) + 3
    best = max(number(one["SQNR of all values"]) for one in seen.values())
    assert number(seen["mse"]["SQNR of all values"]) == best


def test_squared_error_keeps_an_outlier_that_entropy_gives_up(page) -> None:
    opened(page, bits=8, outliers=1, distance=40, observer="mse")
    mse = figures(page)
    changed(page, observer="entropy")
    entropy = figures(page)
    assert number(mse["SQNR of all values"]) > number(entropy["SQNR of all values"]) + 10
    assert number(mse["SQNR of the ordinary"]) < number(entropy["SQNR of the ordinary"]) - 10
    assert "only an" in texts(page, "markdown")


def test_the_ranges_are_hidden_before_the_guess_and_the_values_are_not(page) -> None:
    (picture,) = charts(page)
    assert picture["layout"]["xaxis"]["title"]["text"] == "weight"
    assert not {"mse", "entropy"} & {trace.get("name") for trace in picture["data"]}
    assert "Clipped" not in figures(page)
    button(page, "Show without a guess").click().run()
    (picture,) = charts(page)
    assert set(observers.OBSERVERS) <= {trace.get("name") for trace in picture["data"]}
    assert "codes of min_max" in texts(page, "info")


@pytest.mark.parametrize("view", ["table", "bits"])
def test_every_view_shows_all_observers(page, view) -> None:
    opened(page)
    page.button_group(key="learn_observers_view").set_value(view).run()
    assert not page.exception
    if view == "table":
        assert all(f"| {name} |" in texts(page, "markdown") for name in observers.OBSERVERS)
    else:
        lines = [trace for trace in charts(page)[0]["data"] if trace.get("xaxis") == "x"]
        assert [line["name"] for line in lines] == list(observers.OBSERVERS)
        mse, widest = (array(line["y"]) for line in (lines[2], lines[0]))
        assert all(better >= worse - 0.2 for better, worse in zip(mse, widest, strict=True))


def test_one_image_is_too_little_and_512_are_enough(page) -> None:
    page.button_group(key="learn_observers_data_guess").set_value("none").run()
    assert "You said: none or next to none" in texts(page, "warning")
    assert "It is: **more than 1 %" in texts(page, "warning")
    for draw in range(1, observers.DRAWS + 1):
        page.select_slider(key="learn_observers_draw").set_value(draw).run()
        seen = figures(page)
        assert number(seen["SQNR after 512"]) > number(seen["SQNR after one image"]) + 6, draw
        found = observers.learned("classifier", draw).by_observer["min_max"]
        assert found.clipped[0] > 10 * found.clipped[-1]
    assert f"Over {observers.DRAWS} draws" in texts(page, "markdown")


@pytest.mark.parametrize("tensor", observers.TENSORS)
def test_the_range_of_min_max_grows_with_every_image_and_ends_at_the_full_calibration(tensor) -> None:
    found = observers.learned(tensor, 1).by_observer["min_max"]
    # The ends of the grid move by up to half a step so that zero stays exact.
    assert np.all(np.diff(found.high - found.low) >= -1e-5)
    whole = observers.sample(observers.SAMPLE).calibration.qparams(tensor, observers.spec("min_max", 8))
    assert found.high[-1] == pytest.approx(float(whole.high))
    assert found.low[-1] == pytest.approx(float(whole.low))


def test_the_ways_to_the_own_model_open_their_pages(open_page) -> None:
    for name, title in (("Distributions", "Where do the values fall?"), ("Stability", None)):
        at = open_page("observers")
        button(at, f"{name} with residual\\_digits").click().run()
        assert not at.exception
        assert title is None or title in [one.value for one in at.title]
        assert "How far should the grid reach?" not in [one.value for one in at.title]
