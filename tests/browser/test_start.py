"""The first minutes of a new user in a real browser: deep links, start page, uploads, nothing leaves the machine."""

from __future__ import annotations

import io
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "sample_models" / "conv_digits"


def open_upload_tab(visited) -> None:
    visited.page.get_by_role("tab", name="Your own network or data").click()


def send(visited, which: str, name: str, content: bytes) -> None:
    """Hands a file to the uploader of a model or of data and waits until the page has taken it."""
    # By its key: for a moment after a tab opens, the second uploader may be there without the first.
    uploader = visited.page.locator(f'[class*="st-key-start_upload_{which}_"]')
    box = uploader.get_by_test_id("stFileUploaderDropzoneInput")
    box.set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": content})
    visited.page.wait_for_timeout(500)
    visited.settle()


def test_deep_link_on_a_cold_server_shows_the_page_in_its_frame(launch, visit) -> None:
    visited = visit(launch(), "?model=outlier_mlp")
    sidebar = visited.page.get_by_test_id("stSidebar")
    sidebar.get_by_text("quantization laboratory").wait_for()
    visited.page.get_by_text("Perceptron with outlier weights").first.wait_for()
    visited.settle(120)
    assert sidebar.get_by_role("link", name="Start").is_visible()
    assert visited.page.get_by_test_id("stException").count() == 0
    assert not visited.outside
    assert not visited.errors


def test_deep_link_to_another_page_on_a_cold_server_shows_the_frame(launch, visit) -> None:
    visited = visit(launch(), "distributions")
    visited.page.get_by_test_id("stSidebar").get_by_text("quantization laboratory").wait_for()
    visited.page.get_by_role("heading", level=1, name="Where do the values fall?").wait_for(timeout=60_000)
    visited.settle(120)
    assert visited.page.get_by_role("dialog").count() == 0, visited.page.get_by_role("dialog").inner_text()


def test_first_heading_within_two_seconds_on_a_warm_server(tmp_path, server, launch, visit) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("import streamlit as st\nst.title('nothing')")
    bare = launch(empty)

    def seconds(which) -> float:
        begun = time.monotonic()
        visited = visit(which)
        took = time.monotonic() - begun
        # A page left open goes on asking its server and drawing, and would slow the next one down.
        visited.settle(180)
        visited.page.close()
        return took

    for which in (server, server, bare):
        seconds(which)
    # The best of three: the measure is what the app takes, not what else the machine is doing. On a machine so busy
    # that a page with nothing on it takes more than a second, the app may take twice as long as that one. Turn by turn,
    # so that both meet the same machine.
    pairs = [(seconds(server), seconds(bare)) for _ in range(3)]
    ours, nothing = (min(column) for column in zip(*pairs, strict=True))
    print(f"first heading after {ours:.2f} s; on a page with nothing on it {nothing:.2f} s")
    assert ours <= max(2.0, 2 * nothing), f"{ours:.2f} s, an empty page {nothing:.2f} s"


def test_start_page_measures_the_float_accuracy_without_being_asked(server, visit) -> None:
    visited = visit(server)
    metric = visited.page.get_by_test_id("stMetric").filter(has_text="Float accuracy")
    metric.wait_for(timeout=180_000)
    visited.settle()
    assert "%" in metric.inner_text()
    assert "[" in metric.inner_text()
    sidebar = visited.page.get_by_test_id("stSidebar")
    assert "in float" in sidebar.inner_text()
    assert "Running" not in sidebar.inner_text()
    assert visited.page.get_by_test_id("stException").count() == 0
    assert visited.page.get_by_test_id("stAlert").count() == 0
    assert not visited.outside
    assert not visited.errors


def test_model_switch_works_from_another_page(server, visit) -> None:
    visited = visit(server, "experiment")
    visited.settle(120)
    box = visited.page.get_by_test_id("stSidebar").get_by_test_id("stSelectbox").first
    box.click()
    visited.page.get_by_role("option", name="lstm_text").click()
    visited.settle(120)
    assert "data of lstm_text" in visited.page.get_by_test_id("stSidebar").inner_text() or "data of lstm_text" in (
        visited.page.get_by_test_id("stSidebar").get_by_test_id("stSelectbox").nth(1).locator("input").input_value()
    )
    visited.page.get_by_role("link", name="Start").click()
    visited.page.get_by_role("heading", level=3, name="LSTM on text").wait_for(timeout=60_000)


def test_upload_of_network_and_data_leads_to_an_accuracy_and_frees_the_memory(server, visit) -> None:
    visited = visit(server)
    visited.settle(120)
    open_upload_tab(visited)
    send(visited, "model", "my_network.pt2", (SAMPLE / "model.pt2").read_bytes())
    visited.page.get_by_role("heading", level=3, name="my_network.pt2").wait_for(timeout=60_000)
    send(visited, "data", "my_data.npz", (SAMPLE / "data.npz").read_bytes())
    visited.page.get_by_test_id("stMetric").filter(has_text="Float accuracy").wait_for(timeout=180_000)
    visited.settle()
    assert visited.page.get_by_test_id("stAlert").count() == 0
    with urllib.request.urlopen(server.url + "/_stcore/metrics") as answer:
        assert b"UploadedFileManager" not in answer.read()
    # Another browser finds the upload in its list.
    other = visit(server)
    other.settle(120)
    other.page.get_by_test_id("stSidebar").get_by_test_id("stSelectbox").first.click()
    assert other.page.get_by_role("option", name="my_network.pt2").is_visible()


def test_refused_uploads_leave_one_box_and_a_page_that_works(server, visit) -> None:
    import torch

    whole_module = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), whole_module)
    raw = io.BytesIO()
    np.savez(raw, x=np.random.default_rng(0).integers(0, 256, (64, 1, 16, 16), dtype=np.uint8), y=np.arange(64) % 10)
    visited = visit(server)
    visited.settle(120)
    open_upload_tab(visited)
    send(visited, "model", "whole_module.pt", whole_module.getvalue())
    alert = visited.page.get_by_test_id("stAlert")
    alert.first.wait_for(timeout=60_000)
    assert alert.count() == 1
    recipes = visited.page.get_by_test_id("stCode").filter(has_text="torch.export.save")
    recipes.nth(1).wait_for()
    assert recipes.count() == 2
    assert visited.page.get_by_test_id("stException").count() == 0
    visited.page.get_by_role("heading", level=3, name="Residual network on digits").wait_for()
    # The same file taken for data: the words in the box, the lines of Python below it.
    send(visited, "data", "whole_module.pt", whole_module.getvalue())
    as_data = alert.filter(has_text="A model is brought in like this:")
    as_data.wait_for(timeout=60_000)
    recipes.nth(2).wait_for()
    assert "torch.export.save" not in as_data.inner_text()
    send(visited, "data", "raw.npz", raw.getvalue())
    visited.page.get_by_test_id("stAlert").filter(has_text="Set scale=1/255").wait_for(timeout=60_000)
