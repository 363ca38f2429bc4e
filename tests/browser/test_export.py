"""The Export page in a real browser: what is saved by a click runs where there is no lab."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.browser

OUTSIDE = """
import importlib.util, sys
import numpy, onnxruntime
assert importlib.util.find_spec("qlab") is None
session = onnxruntime.InferenceSession(sys.argv[1])
print(session.run(None, {"x": numpy.zeros((3, 1, 16, 16), "float32")})[0].shape)
"""


def test_the_first_visit_writes_the_files_and_a_click_saves_one_that_runs_elsewhere(server, visit, tmp_path):
    visited = visit(server, "export?model=conv_digits")
    page = visited.page
    button = page.get_by_role("button", name="Download conv_digits_x86.onnx")
    button.wait_for(timeout=120_000)  # a job calibrates, exports and writes it
    with page.expect_download() as waiting:
        button.click()
    saved = waiting.value
    assert saved.suggested_filename == "conv_digits_x86.onnx"
    path = tmp_path / saved.suggested_filename
    saved.save_as(path)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDE, str(path)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "(3, 10)", done.stderr
    assert not visited.errors
    assert not visited.outside
