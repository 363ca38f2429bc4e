"""The Weights page: the integers it shows are those of the converted model, and every control leads to its numbers."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.data import load_dataset
from qlab.edits import Edit
from qlab.graph.capture import load_model
from qlab.graph.lower import attribute
from qlab.lab.experiment import Experiment
from qlab.lab.run import find_prepared
from qlab.lab.sources import config_label
from qlab.lab.store import DONE, Store
from qlab.metrics import MINUS, write
from qlab.preset import presets
from qlab.quant.error import sqnr
from qlab.quant.levels import levels_used
from qlab.quant.packing import pack
from qlab.training.settings import Training
from qlab.ui import weights_bytes, weights_tabs
from qlab.ui.weights_known import Known
from tests.pages.elements import array, charts, deltas, figures, texts

MODEL = "conv_digits"


def only(**spec) -> QConfigMapping:
    return QConfigMapping(default=QConfig(weight=QuantSpec(**spec), mode="weight_only"))


W3 = only(bits=3, qscheme="per_channel_affine")


@pytest.fixture(scope="module")
def qmodels(prepared_home):
    """The sample as the page converts it."""
    store, model = Store(prepared_home), load_model(MODEL)
    found = find_prepared(store, model, load_dataset(MODEL))
    store.close()
    return lambda mapping: convert(model, mapping, found.calibration)


@pytest.fixture
def page(open_under):
    def opened(mapping=presets["x86"], model=MODEL, **query):
        at = open_under("weights", mapping, model, **query)
        assert not at.error
        return at

    return opened


def original(qmodel, layer):
    point = next(p for p in qmodel.placement.weights if p.layer == layer)
    return attribute(qmodel.reference.graph_module, point.constant)


def heat(at):
    return next(trace for trace in charts(at)[0]["data"] if trace["type"] == "heatmap")


def shown_codes(at):
    """The codes of the picture, as the mouse is told them."""
    told = heat(at)["customdata"]
    shape = [int(n) for n in told["shape"].split(",")]
    return np.array(array(told)).reshape(shape)[:, :, 1]


def open_tab(at, title):
    at.session_state["weights_tabs"] = title
    return at.run()


def test_a_first_visit_shows_all_integers_of_a_layer_and_its_figures(page, qmodels) -> None:
    at = page()
    qmodel = qmodels(presets["x86"])
    layer = "block1.conv"
    tensor = qmodel.weights[layer]
    assert at.selectbox(key="weights_layer").value == layer
    assert np.array_equal(shown_codes(at), tensor.codes.reshape(12, 9).numpy())
    shown = figures(at)
    size = tensor.size_breakdown()
    assert shown["Bits"] == "8"
    assert shown["Codes"] == "108"
    assert shown["Packed"] == write("size", size.total)
    assert deltas(at)["Packed"] == f"float {write('size', 4 * 108)}"
    assert shown["Levels used"] == f"{len(tensor.codes.unique())} of 256"
    assert shown["SQNR of the weight"] == write("sqnr", sqnr(original(qmodel, layer), tensor.dequantize()))
    assert "All 108 integers" in texts(at, "caption")
    assert not at.number_input
    assert "layer=block1.conv" in "".join(code.value for code in at.run().code)


def test_a_large_weight_is_shown_in_parts_and_says_which(page, qmodels) -> None:
    at = page(layer="block4.conv", channel="20", position="144")
    codes = qmodels(presets["x86"]).weights["block4.conv"].codes.reshape(48, 288).numpy()
    assert np.array_equal(shown_codes(at), codes[20:48, 144:288])
    assert "channels 20 to 47 of 48, positions 144 to 287 of 288" in texts(at, "caption")
    assert heat(at)["text"][0][0] == " (16, 0, 0)"
    at.number_input(key="weights_channel_48").set_value(0).run()
    assert np.array_equal(shown_codes(at), codes[:28, 144:288])
    assert shown_codes(at).size <= 4096
    at.selectbox(key="weights_layer").set_value("block2.conv").run()
    assert "channels" not in texts(at, "caption") or "positions 0 to" in texts(at, "caption")
    assert not at.error
    wrong = page(layer="no such", channel="99999", position="-1")
    assert wrong.selectbox(key="weights_layer").value == "block1.conv"
    assert np.array_equal(shown_codes(wrong)[0], qmodels(presets["x86"]).weights["block1.conv"].codes[0].reshape(-1))


def test_the_table_has_the_numbers_of_the_window(page, qmodels) -> None:
    at = page(W3, layer="block3.conv", channel="10")
    qmodel = qmodels(W3)
    tensor, w = qmodel.weights["block3.conv"], original(qmodel, "block3.conv")
    frame = at.dataframe[0].value
    assert (frame["Channel"].iloc[0], frame["Index behind"].iloc[10]) == (10, "1, 0, 1")
    assert np.array_equal(frame["Code"], shown_codes(at).ravel())
    part = np.s_[10:32, :144]
    assert np.array_equal(frame["Dequantized"], tensor.dequantize().reshape(32, 216)[part].reshape(-1).numpy())
    assert np.array_equal(frame["Error"], (tensor.dequantize() - w).reshape(32, 216)[part].reshape(-1).numpy())


def test_the_file_has_the_numbers_of_the_layer(page, qmodels, monkeypatch) -> None:
    (button,) = page(W3, layer="block3.conv").get("download_button")
    assert button.proto.label == "Download the whole layer as CSV"
    qmodel = qmodels(W3)
    tensor, w = qmodel.weights["block3.conv"], original(qmodel, "block3.conv")
    of = Known("block3.conv.weight", tensor, 0, w, levels_used(tensor), None)
    assert weights_tabs.in_file(of, 7) == (0, 32)
    lines = list(csv.DictReader(io.StringIO(weights_tabs.as_csv(of, 0, 32))))
    assert [int(line["code"]) for line in lines] == tensor.codes.reshape(-1).tolist()
    assert np.array_equal(np.array([line["float_original"] for line in lines], dtype=np.float32), w.reshape(-1).numpy())
    monkeypatch.setattr(weights_tabs, "MOST_LINES", 1_000)
    assert weights_tabs.in_file(of, 7) == (7, 11)  # four channels of 216
    assert weights_tabs.in_file(of, 30) == (30, 32)
    (button,) = page(W3, layer="block3.conv", channel="7").get("download_button")
    assert button.proto.label == "Download channels 7 to 10 as CSV"


def test_scales_stand_as_figures_per_tensor_and_as_charts_per_channel_and_group(page, qmodels) -> None:
    per_tensor = only(bits=5, qscheme="per_tensor_affine")
    at = open_tab(page(per_tensor), "Scales")
    tensor = qmodels(per_tensor).weights["block1.conv"]
    assert figures(at)["Scale"] == f"{float(tensor.scale):.6g}"
    assert figures(at)["Zero point"] == str(int(tensor.zero_point))
    at = open_tab(page(W3), "Scales")
    tensor = qmodels(W3).weights["block1.conv"]
    assert array(charts(at)[1]["data"][0]["y"]) == tensor.scale.tolist()
    assert at.dataframe[0].value["Zero point"].tolist() == tensor.zero_point.tolist()
    groups = only(bits=4, qscheme="per_group_symmetric", group_size=9)
    at = open_tab(page(groups, layer="block2.conv"), "Scales")
    tensor = qmodels(groups).weights["block2.conv"]
    assert array(charts(at)[1]["data"][0]["z"]) == tensor.scale.reshape(-1).tolist()
    assert at.dataframe[0].value["Scale"].tolist() == tensor.scale.reshape(-1).tolist()


def test_the_error_is_that_of_the_float_weight_by_value_and_by_code(page, qmodels) -> None:
    at = open_tab(page(W3, layer="block3.conv"), "Against float")
    assert "4,000 of 6,912 weights" in texts(at, "caption")
    points = charts(at)[1]["data"][1]
    qmodel = qmodels(W3)
    pairs = set(zip(original(qmodel, "block3.conv").reshape(-1).tolist(),
                    qmodel.weights["block3.conv"].dequantize().reshape(-1).tolist(), strict=True))  # fmt: skip
    assert set(zip(array(points["x"]), array(points["y"]), strict=True)) <= pairs
    at.segmented_control(key="weights_against").set_value("code").run()
    assert charts(at)[1]["layout"]["xaxis"]["title"]["text"] == "code"
    assert not at.error


def test_levels_are_counted_and_unused_ones_named(page, qmodels) -> None:
    at = open_tab(page(only(bits=4, qscheme="per_tensor_symmetric")), "Levels")
    codes = qmodels(only(bits=4, qscheme="per_tensor_symmetric")).weights["block1.conv"].codes
    unused = [c for c in range(-8, 8) if not (codes == c).any()]
    bars = charts(at)[1]["data"][0]
    assert array(bars["x"]) == list(range(-8, 8))
    assert array(bars["y"]) == [int((codes == c).sum()) for c in range(-8, 8)]
    assert f"**{len(unused)} of 16 levels unused**" in texts(at, "markdown")
    assert all(str(c).replace("-", MINUS) in texts(at, "markdown") for c in unused)
    assert array(charts(at)[2]["data"][0]["y"]) == [len(row.unique()) for row in codes.reshape(12, 9)]
    at.toggle(key="weights_log").set_value(True).run()
    assert charts(at)[1]["layout"]["yaxis"]["type"] == "log"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_the_bytes_are_those_of_the_packed_codes_and_unpack_to_all_of_them(page, qmodels, bits) -> None:
    mapping = only(bits=bits, qscheme="per_channel_symmetric")
    at = open_tab(page(mapping, layer="classifier", byte="16"), "Packed bytes")
    codes = qmodels(mapping).weights["classifier"].codes
    packed = pack(codes, bits, True)
    assert f"Packed into {len(packed)} bytes and unpacked again: all 480 integers are the same." in texts(at, "success")
    rows = charts(at)[1]["data"][0]["text"]
    assert [int("".join(row), 2) for row in rows] == packed[16:32].tolist()
    assert ("across two bytes" in texts(at, "markdown")) == (8 % bits != 0)
    table = at.dataframe[0].value
    assert table["Hex"].tolist() == [f"{byte:02X}" for byte in packed[16:32].tolist()]
    first = 16 * 8 // bits
    value = str(int(codes.reshape(-1)[first])).replace("-", MINUS)
    assert table["Codes in it"].iloc[0].startswith(f"code {first} = {value} (bit")
    assert ("low nibble" in table["Codes in it"].iloc[0]) == (bits == 4)


def test_a_code_across_two_bytes_is_told_in_both(qmodels) -> None:
    from qlab.quant.packing import bits_in_bytes

    codes = torch.tensor([7, 0, 5])
    found = bits_in_bytes(3, 3)
    assert weights_bytes.in_short(found, 0, codes, 3) == [(0, "0 = 7"), (1, "1 = 0"), (2, "2… = 5")]
    assert weights_bytes.in_short(found, 1, codes, 3) == [(2, "…2 = 5")]
    assert weights_bytes.in_full(found, 0, codes, 3).endswith("code 2 = 5 (bits 6 to 7, lower 2 of its 3 bits)")
    assert weights_bytes.in_full(found, 1, codes, 3) == "code 2 = 5 (bit 0, upper 1 of its 3 bits)"


def test_at_eight_bits_a_byte_is_a_code_and_a_button_leads_to_fewer(page) -> None:
    at = open_tab(page(), "Packed bytes")
    assert "a byte is a code" in texts(at, "markdown")
    at.button(key="weights_fewer").click().run()
    assert not at.error
    assert at.session_state["lab.mapping"] == presets["w4a8"]
    assert figures(at)["Bits"] == "4"
    at.button(key="weights_undo").click().run()
    assert at.session_state["lab.mapping"] == presets["x86"]
    assert weights_bytes.fewer("weight_only") == "int4_weight_only"


def test_the_window_leads_to_its_byte(page) -> None:
    at = open_tab(page(presets["w4a8"], layer="block3.conv", channel="10"), "Packed bytes")
    at.button(key="weights_to_window").click().run()
    assert at.number_input(key="weights_byte_3456").value == 10 * 216 * 4 // 8
    assert at.dataframe[0].value["Channel"].iloc[0] == 10


def test_a_config_without_integers_says_so_and_offers_one_with_them(page) -> None:
    at = page(presets["float"])
    assert "held as integers" in texts(at, "info")
    assert not at.metric
    at.button(key="weights_default").click().run()
    assert figures(at)["Bits"] == "8"


def test_layers_that_stay_float_say_why(page) -> None:
    at = page(presets["x86"].replace(by_name={"block2.conv": None}))
    assert "block2.conv" not in at.selectbox(key="weights_layer").options
    assert "block2.conv" in texts(at, "markdown")


@pytest.mark.parametrize("model", ["lstm_text", "transformer_text", "depthwise_digits"])
def test_other_networks_show_their_integers(page, model) -> None:
    at = page(presets["int4_weight_only"], model=model)
    qmodel = convert(load_model(model), presets["int4_weight_only"])
    first = at.selectbox(key="weights_layer").value
    tensor = qmodel.weights[first]
    rows, columns = shown_codes(at).shape
    assert np.array_equal(shown_codes(at), tensor.codes.reshape(len(tensor.codes), -1)[:rows, :columns].numpy())


def test_a_trained_model_can_be_looked_at(page, open_page, home, qmodels) -> None:
    assert "weights_origin" not in {box.key for box in page().selectbox}
    qmodel = qmodels(presets["w4a8"])
    store = Store(home)
    with store.new_file(".safetensors") as path:
        qmodel.save(path)
        artifact = store.add_upload(path, kind="trained model")
    run = store.create_run(kind="experiment", spec={}, name="four bits", model=MODEL)
    store.start(run)
    store.identify(run, model_hash=load_model(MODEL).content_hash)
    store.finish(run, DONE, result={"artifacts": {"trained model": artifact.hash}})
    store.close()
    at = page()
    box = at.selectbox(key="weights_origin")
    assert box.options == ["The current config: x86", f"Trained: four bits ({run[:6]})"]
    assert figures(at)["Bits"] == "8"
    box.set_value(run).run()
    assert not at.error
    assert figures(at)["Bits"] == "4"
    assert np.array_equal(shown_codes(at), qmodel.weights["block1.conv"].codes.reshape(12, 9).numpy())
    assert figures(at)["SQNR of the weight"] == write(
        "sqnr", sqnr(original(qmodel, "block1.conv"), qmodel.weights["block1.conv"].dequantize())
    )
    linked = page(trained=run)
    assert figures(linked)["Bits"] == "4"
    # Another page may lead here; the run of another network is dropped.
    led = open_page("weights", query={"model": MODEL}, state={"weights.origin": run})
    assert figures(led)["Bits"] == "4"
    other = open_page("weights", query={"model": "outlier_mlp"}, state={"weights.origin": run})
    assert not other.error
    assert other.session_state["weights.origin"] == ""


def test_a_run_that_edited_what_it_trained_shows_its_edits(open_page, home, qmodels) -> None:
    """The file of its training does not hold them."""
    qmodel = qmodels(presets["w4a8"])
    codes = qmodel.weights["block1.conv"].codes
    new = -8 if codes[4, 0, 2, 1] != -8 else 7
    edit = Edit("block1.conv", "code", (4, 0, 2, 1), new)
    store = Store(home)
    with store.new_file(".safetensors") as path:
        qmodel.save(path)
        artifact = store.add_upload(path, kind="trained model")
    run = store.create_run(kind="experiment", spec={"edits": [edit.to_dict()]}, name="edited", model=MODEL)
    store.start(run)
    store.identify(run, model_hash=load_model(MODEL).content_hash)
    store.finish(run, DONE, result={"artifacts": {"trained model": artifact.hash}})
    store.close()
    at = open_page("weights", query={"model": MODEL}, state={"weights.origin": run})
    assert not at.error
    expected = codes.clone()
    expected[4, 0, 2, 1] = new
    assert np.array_equal(shown_codes(at), expected.reshape(12, 9).numpy())


def test_a_training_without_a_name_says_first_what_was_done(page, home, qmodels) -> None:
    done = Experiment(MODEL, MODEL, "w4a8", training=Training(epochs=3))
    store = Store(home)
    with store.new_file(".safetensors") as path:
        qmodels(presets["w4a8"]).save(path)
        artifact = store.add_upload(path, kind="trained model")
    run = store.create_run(kind="experiment", spec=done.to_dict(), model=MODEL, config=config_label(done))
    store.start(run)
    store.identify(run, model_hash=load_model(MODEL).content_hash)
    store.finish(run, DONE, result={"artifacts": {"trained model": artifact.hash}})
    store.close()
    assert page().selectbox(key="weights_origin").options[1] == f"Trained 3 epochs: w4a8 ({run[:6]})"


def test_what_was_written_by_hand_is_shown_and_framed(open_page, home, qmodels) -> None:
    store, model = Store(home), load_model(MODEL)
    calibration = find_prepared(store, model, load_dataset(MODEL)).calibration_artifact
    store.close()
    key = (model.content_hash, calibration, json.dumps(presets["w4a8"].to_dict(), sort_keys=True))
    codes = qmodels(presets["w4a8"]).weights["block1.conv"].codes
    new = -8 if codes[4, 0, 2, 1] != -8 else 7
    state = {"lab.mapping": presets["w4a8"], "weights.edits": {key: (Edit("block1.conv", "code", (4, 0, 2, 1), new),)}}
    at = open_page("weights", query={"model": MODEL}, state=state)
    assert not at.error
    expected = codes.clone()
    expected[4, 0, 2, 1] = new
    assert np.array_equal(shown_codes(at), expected.reshape(12, 9).numpy())
    frame = next(trace for trace in charts(at)[0]["data"] if trace.get("name") == "written by hand")
    assert (array(frame["x"]), array(frame["y"])) == ([7], [4])
    assert "Framed: written by hand." in texts(at, "caption")
    assert at.dataframe[0].value["Code"].iloc[4 * 9 + 7] == new
    open_tab(at, "Against float")
    assert "clipped or written by hand" in texts(at, "caption")
    # The shared model has none of it.
    at.session_state["weights.edits"] = {}
    assert np.array_equal(shown_codes(at.run()), codes.reshape(12, 9).numpy())


def test_every_tab_opens(page) -> None:
    at = page()
    for title in ("Table", "Scales", "Against float", "Levels", "Packed bytes", "Edit a number", "In PyTorch"):
        open_tab(at, title)
        assert not at.exception
        assert not at.error
        assert len(at.get("tab")) == 7


def test_the_picture_is_small_enough_to_send(page) -> None:
    at = page(layer="block4.conv")
    assert len(json.dumps(charts(at)[0])) < 500_000
