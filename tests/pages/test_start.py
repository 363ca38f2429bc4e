"""The start page: samples, uploads, checks of the data against the network, the float accuracy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from qlab.ui import cache, jobs

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "sample_models" / "conv_digits" / "model.pt2"
BINARY = "application/octet-stream"


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def images(count: int = 40, shape: tuple[int, ...] = (1, 16, 16), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def upload(at, which: str, name: str, content: bytes):
    box = next(u for u in at.get("file_uploader") if u.key.startswith(f"start_upload_{which}_"))
    box.set_value((name, content, BINARY))
    return at.run()


def test_every_sample_has_a_card_with_its_title_and_a_button(open_page, read) -> None:
    at = open_page()
    titles = read(at, "markdown")
    for title in ("Residual network on digits", "LSTM on text", "Perceptron with outlier weights"):
        assert title in titles
    assert at.button(key="start_open_residual_digits").disabled
    assert not at.button(key="start_open_lstm_text").disabled
    assert not at.error


@pytest.mark.parametrize("name", ["depthwise_digits", "lstm_text", "outlier_mlp", "transformer_text"])
def test_opening_a_sample_shows_its_layers_and_its_data(open_page, read, name: str) -> None:
    at = open_page()
    at.button(key=f"start_open_{name}").click().run()
    assert at.session_state["lab.model"].source == name
    from qlab import load_model

    layers = at.dataframe[-1].value
    assert list(layers["Layer"]) == [layer.name for layer in load_model(name).layers]
    assert "2,012 samples" in read(at, "markdown")
    assert not at.error
    assert not at.exception


def test_upload_of_a_network_becomes_the_current_one_and_stays_in_the_list(open_page, read) -> None:
    at = upload(open_page(), "model", "mine.pt2", MODEL.read_bytes())
    assert at.session_state["lab.model"].title == "mine.pt2"
    assert at.session_state["lab.model"].kind == "upload"
    assert "mine.pt2" in at.sidebar.selectbox(key="frame_model").options
    assert not at.error
    assert "mine.pt2" in open_page().sidebar.selectbox(key="frame_model").options


def test_network_that_would_run_code_is_refused_and_the_sample_stays(open_page, read) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer)
    at = upload(open_page(), "model", "whole_module.pt", buffer.getvalue())
    assert len(at.error) == 1
    assert "pickle" in at.error[0].value or "torch" in at.error[0].value
    # Once below the box, once as the advice of the tab.
    assert sum("torch.export.save" in code.value for code in at.code) == 2
    assert at.session_state["lab.model"].source == "residual_digits"
    assert at.sidebar.selectbox(key="frame_model").options == open_page().sidebar.selectbox(key="frame_model").options
    assert not at.exception
    assert not upload(at, "model", "mine.pt2", MODEL.read_bytes()).error


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.npz", b""),
        ("broken.npz", b"PK\x03\x04nonsense"),
        ("words.csv", b"\xff\xfe\x00"),
        ("x.npy", b"\x93NUMPY"),
    ],
    ids=["empty", "broken zip", "not text", "cut header"],
)
def test_data_that_cannot_be_read_ends_in_one_box(open_page, name: str, content: bytes) -> None:
    at = upload(open_page(), "data", name, content)
    assert len(at.error) == 1
    assert "Something in the lab" not in at.error[0].value
    assert at.session_state["lab.data"].source == "residual_digits"
    assert not at.exception


def test_raw_pixels_are_noticed_and_preprocessing_cures_it(open_page, read) -> None:
    content = npz(x=images(), y=np.arange(40) % 10)
    at = upload(open_page(), "data", "raw.npz", content)
    ref = at.session_state["lab.data"]
    assert ref.calibration_samples == 20
    warnings = read(at, "warning")
    assert "0..255" in warnings
    assert "scale=1/255" in warnings
    mark = ref.source[-8:]
    at.text_input(key=f"start_scale_{mark}").input("1/255")
    at.text_input(key=f"start_mean_{mark}").input("0.2")
    at.text_input(key=f"start_std_{mark}").input("0.2")
    at.slider(key=f"start_share_{mark}").set_value(25)
    at.button(key=f"start_apply_{mark}").click().run()
    ref = at.session_state["lab.data"]
    assert (ref.scale, ref.mean, ref.std, ref.calibration_samples) == (1 / 255, (0.2,), (0.2,), 10)
    assert not at.warning
    assert not at.error
    # Another visit reads the file in the same way.
    again = open_page(query={"data": ref.source})
    assert again.session_state["lab.data"] == ref


@pytest.mark.parametrize("text", ["abc", "1/0", "nan"])
def test_preprocessing_that_is_no_number_is_refused_in_words(open_page, text: str) -> None:
    at = upload(open_page(), "data", "raw.npz", npz(x=images()))
    mark = at.session_state["lab.data"].source[-8:]
    at.text_input(key=f"start_mean_{mark}").input(text)
    at.button(key=f"start_apply_{mark}").click().run()
    assert len(at.error) == 1
    assert at.error[0].value.startswith("mean is")
    assert at.session_state["lab.data"].mean is None


def test_data_of_another_shape_says_what_does_not_fit(open_page, read) -> None:
    at = upload(open_page(), "data", "wide.npz", npz(x=images(shape=(16, 16, 1)), y=np.arange(40) % 10))
    assert "transpose" in read(at, "error").replace("\\", "")
    assert "once the data fits" in read(at, "info")
    assert not at.exception


def test_labels_beyond_the_classes_are_named(open_page, read) -> None:
    at = upload(open_page(), "data", "labels.npz", npz(x=images(), y=np.arange(40)))
    assert "A label is 39, but the model has 10 classes" in read(at, "error")


def test_lines_that_write_a_model_are_shown(open_page) -> None:
    assert any("torch.export.save" in code.value for code in open_page().code)


# --- the float accuracy -----------------------------------------------------------------------------------------------


def finish_jobs(at):
    """Waits for the jobs of the page and runs it again."""
    for run in jobs.open_runs():
        cache.runner().wait(run.id, 120)
    return at.run()


def test_float_accuracy_is_measured_by_a_job_and_found_again(fresh_home, open_page, read) -> None:
    import qlab

    at = open_page(query={"model": "outlier_mlp"})
    assert [run.kind for run in jobs.open_runs()] == ["prepare"]
    assert "Calibrating outlier\\_mlp" in at.get("progress")[0].proto.text
    at = finish_jobs(at)
    measured = qlab.evaluate(qlab.load_model("outlier_mlp"), qlab.load_dataset("outlier_mlp"))
    shown = next(m for m in at.metric if m.label == "Float accuracy")
    assert shown.value == f"{measured.accuracy:.1%}".replace("%", " %")
    assert shown.delta.endswith("on 1,500")
    assert f"{shown.value} in float" in read(at.sidebar, "caption")
    assert not at.error
    # A second browser finds the result and starts nothing.
    again = open_page(query={"model": "outlier_mlp"})
    assert any(m.label == "Float accuracy" for m in again.metric)
    assert len(cache.store().list_runs(kind="prepare")) == 1


def test_second_browser_joins_the_job_of_the_first(fresh_home, open_page) -> None:
    open_page(query={"model": "lstm_text"})
    open_page(query={"model": "lstm_text"})
    assert len(cache.store().list_runs(kind="prepare")) == 1


def test_stopped_job_can_be_started_again(fresh_home, open_page, read) -> None:
    at = open_page(query={"model": "transformer_text"})
    at.button(key="start_prepare_stop").click().run()
    assert [run.status for run in cache.store().list_runs()] == ["cancelled"]
    assert "was stopped" in read(at, "info")
    at.button(key="start_again").click().run()
    assert [run.status for run in cache.store().list_runs()][1:] == ["cancelled"]
    assert len(jobs.open_runs()) == 1


def test_data_without_labels_says_what_is_measured_instead(open_page, read) -> None:
    at = upload(open_page(query={"model": "conv_digits"}), "data", "plain.npz", npz(x=images()))
    at = finish_jobs(at)
    assert "no labels" in read(at, "info")
    assert not at.error
