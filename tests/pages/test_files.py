"""The page Quantized files: an example without an upload, uploads of every format, and what it says of odd ones."""

from __future__ import annotations

import pytest

from qlab.lab.experiment import Experiment
from qlab.lab.store import Store
from qlab.metrics import byte_size
from qlab.preset import presets
from qlab.ui import cache, files_known
from tests.jobs_here import carry
from tests.opened.made import TFLITE, float_file, static_file
from tests.pages.elements import charts, deltas, figures, texts

MODEL = "conv_digits"


@pytest.fixture
def page(open_under):
    def opened(mapping=presets["x86"], model=MODEL, **query):
        at = open_under("files", mapping, model, **query)
        assert not at.exception
        return at

    return opened


@pytest.fixture
def keep():
    """Puts a file into the store as an upload of this page and gives its name in links."""

    def put(data: bytes, name: str) -> str:
        return cache.store().add_bytes(data, kind=files_known.KIND, original_name=name).reference

    return put


def words(at) -> str:
    return texts(at, "info", "warning", "error", "markdown", "caption")


def marks(at, name):
    (found,) = [t for t in charts(at)[0]["data"] if t.get("name") == name]
    return found


def tab(at, title):
    at.session_state["files_tabs"] = title
    at.run()
    assert not at.exception
    assert not at.error
    return at


def test_it_shows_our_own_file_without_an_upload(page) -> None:
    at = page()
    assert not at.error
    shown = figures(at)
    assert shown["Format"] == "qlab"
    assert shown["Weights on grids"] == "5"
    assert shown["Found in the network"] == "5 of 5"
    assert deltas(at)["Weights on grids"].startswith("int8")
    assert marks(at, "in the file")["customdata"] == [
        "block1.conv.weight", "block2.conv.weight", "block3.conv.weight", "block4.conv.weight", "classifier.weight",
    ]  # fmt: skip
    table = at.dataframe[0].value
    assert (table["Same codes (%)"] == 100).all()
    assert list(table["SQNR file (dB)"]) == pytest.approx(list(table["SQNR ours (dB)"]), abs=1e-4)


def test_another_preset_is_worse_and_says_where(page) -> None:
    at = page()
    at.selectbox(key="files_source").set_value(files_known.OTHER).run()
    assert deltas(at)["Weights on grids"].startswith("int4")
    table = at.dataframe[0].value
    assert (table["SQNR file (dB)"] < table["SQNR ours (dB)"] - 10).all()
    assert "the file keeps 5 worse and 0 better" in words(at)
    assert any("file=other" in code.value for code in at.code)


def test_the_onnx_example_is_written_by_a_job(page, asked, prepared_home, home) -> None:
    at = page()
    at.selectbox(key="files_source").set_value(files_known.OURS_ONNX).run()
    assert [kind for kind, _ in asked] == ["export"]
    assert not charts(at)
    store = Store(home)
    carry(store, "export", experiment=Experiment(MODEL, MODEL, "x86"))
    store.close()
    again = page(file=files_known.OURS_ONNX)
    assert figures(again)["Format"] == "ONNX"
    assert (again.dataframe[0].value["Same codes (%)"] == 100).all()


def test_a_tflite_file_is_matched_by_its_values(page, keep) -> None:
    at = page(file=keep(TFLITE["conv_digits_int8"].read_bytes(), "theirs.tflite"))
    shown = figures(at)
    assert shown["Format"] == "TFLite"
    assert shown["Size"] == byte_size(TFLITE["conv_digits_int8"].stat().st_size)
    assert shown["Ops on integers"] == "8 of 8"
    table = at.dataframe[0].value
    assert set(table["Told by"]) == {"values"}
    assert list(table["In the file"]) == [f"arith.constant{i}" for i in range(1, 6)]
    ranges = tab(at, "Activations")
    assert list(ranges.dataframe[0].value["In the file"])[1] == "conv1;relu"
    assert list(tab(at, "Not matched").dataframe[0].value["Name"]) == ["pool2", "pool3", "mean"]


def test_a_file_of_onnx_runtime(page, keep) -> None:
    at = page(file=keep(static_file(MODEL, "QDQ, per channel"), "theirs.onnx"))
    assert figures(at)["Found in the network"] == "5 of 5"
    assert set(at.dataframe[0].value["Told by"]) == {"name"}
    everything = tab(at, "All tensors").dataframe[0].value
    assert set(everything["Role"]) == {"weight", "bias", "activation"}
    assert len(everything) == 5 + 5 + 9
    ops = tab(at, "Operators").dataframe[0].value.set_index("Op")
    assert tuple(ops.loc["Conv"]) == (4, 4)


@pytest.mark.parametrize("view", ["Codes", "Levels", "Scales"])
def test_one_tensor(page, keep, view) -> None:
    at = page(file=keep(TFLITE["conv_digits_int8"].read_bytes(), "theirs.tflite"))
    at.session_state["files.tensor"] = "block2.conv.weight"
    at.session_state["files.view"] = view
    tab(at, "One tensor")
    assert "**arith.constant2**: int8, shape [24, 3, 3, 12]" in words(at)
    assert len(charts(at)) == 2
    kind = {"Codes": "heatmap", "Levels": "bar", "Scales": "scatter"}[view]
    assert charts(at)[1]["data"][0]["type"] == kind


def test_blocks_of_another_network(page, keep) -> None:
    at = page(file=keep(TFLITE["perceptron_int4_blocks"].read_bytes(), "theirs.tflite"))
    assert f"No weight of this file belongs to **{MODEL.replace('_', chr(92) + '_')}**" in words(at)
    assert figures(at)["Found in the network"] == "0 of 5"
    assert not charts(at)
    assert list(tab(at, "All tensors").dataframe[0].value["Scales"]) == ["blocks of 32"] * 2
    at.session_state["files.view"] = "Scales"
    tab(at, "One tensor")
    assert charts(at)[0]["data"][0]["type"] == "heatmap"


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_a_float_file_says_that_nothing_is_quantized(page, keep, name) -> None:
    data = float_file(MODEL) if name == "onnx" else TFLITE["perceptron_float"].read_bytes()
    at = page(file=keep(data, f"float.{name}"))
    assert "There is nothing quantized in this file" in words(at)
    for label in ("Weights on grids", "Activations on grids"):
        (shown,) = (figure for figure in at.metric if figure.label == label)
        assert (shown.value, shown.delta) == ("0", "")  # nothing is said of what is not there
    for title in ("Activations", "One tensor", "All tensors", "Operators", "Not matched"):
        tab(at, title)


def test_a_config_that_quantizes_nothing(page) -> None:
    at = page(presets["float"])
    assert "There is nothing quantized in this file" in words(at)
    at.selectbox(key="files_source").set_value(files_known.OTHER).run()
    assert set(at.dataframe[0].value["Ours"]) == {"float"}


def test_an_upload_is_kept_and_shown(page) -> None:
    at = page()
    data = TFLITE["conv_digits_int8"].read_bytes()
    at.file_uploader(key="files_upload_0").set_value(("a b.tflite", data, "application/octet-stream")).run()
    assert figures(at)["Format"] == "TFLite"
    assert at.selectbox(key="files_source").value.startswith("sha256:")


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"not a model at all", "no model that can be read here"), (b"PK\x03\x04" + b"0" * 40, "zip archive")],
)
def test_what_is_no_model_is_refused_and_the_example_stays(page, data, reason) -> None:
    at = page()
    at.file_uploader(key="files_upload_0").set_value(("x.onnx", data, "application/octet-stream")).run()
    assert reason in at.error[0].value
    assert figures(at)["Format"] == "qlab"
    assert not cache.store().list_artifacts(files_known.KIND)


def test_a_link_to_a_file_that_is_not_here_shows_an_example(page) -> None:
    at = page(file="sha256:" + "0" * 64)
    assert "The file of this link is not here" in words(at)
    assert figures(at)["Format"] == "qlab"


def test_recurrent_weights_of_our_own_file(page, keep) -> None:
    at = page(model="lstm_text")
    assert figures(at)["Found in the network"] == "4 of 4"
    assert (at.dataframe[0].value["Same codes (%)"] == 100).all()


def test_names_from_a_file_are_escaped(page, keep) -> None:
    data = TFLITE["conv_digits_int8"].read_bytes().replace(b"arith.constant2", b"**bo*_l_d**.c12")
    at = page(file=keep(data, "odd.tflite"))
    at.session_state["files.tensor"] = "block2.conv.weight"
    tab(at, "One tensor")
    assert "\\*\\*bo\\*\\_l\\_d" in words(at)
