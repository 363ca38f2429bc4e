"""No bytes end in anything but what is in a file or a BadUpload."""

import random
import struct

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qlab.errors import BadUpload, UnsafeFile
from qlab.export.quantized_file import quantized_bytes
from qlab.opened import read, read_quantized_file
from qlab.opened.file import clean
from tests.opened.made import TFLITE, dynamic_file, nbits_file, ours, static_file

SMALL = {name: path.read_bytes() for name, path in TFLITE.items() if path.stat().st_size < 10_000}


@pytest.fixture(scope="module")
def seeds():
    from onnxruntime.quantization import QuantFormat

    weight = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    return SMALL | {
        "pairs": static_file("conv_digits", "QDQ, 4-bit weights"),
        "operators": static_file("conv_digits", "operators, per channel"),
        "dynamic": dynamic_file("conv_digits", True),
        "bits": nbits_file(weight, symmetric=False, bits=4, form=QuantFormat.QOperator),
        "blocks": nbits_file(weight, symmetric=False, bits=4, form=QuantFormat.QDQ),
        "own": quantized_bytes(ours("conv_digits", "int4_grouped")),
    }


NAMES = [*SMALL, "pairs", "operators", "dynamic", "bits", "blocks", "own"]


def swallow(data):
    """Whether these bytes are a file. Anything but a file or a BadUpload fails the test."""
    try:
        file = read_quantized_file(data)
    except BadUpload:
        return False
    for tensor in file.tensors:
        assert tensor.low <= tensor.high
        assert tensor.name.isprintable()
        if tensor.codes is not None:
            assert np.isfinite(tensor.dequantize()).all()
            assert tensor.codes.shape == tensor.shape
    return True


@pytest.mark.parametrize("name", NAMES)
def test_the_files_are_whole(seeds, name):
    assert swallow(seeds[name])


@pytest.mark.parametrize("name", NAMES)
def test_truncated(seeds, name):
    data = seeds[name]
    for length in range(0, len(data), max(1, len(data) // 60)):
        swallow(data[:length])


@pytest.mark.parametrize("name", NAMES)
def test_flipped(seeds, name):
    chance, data = random.Random(name), seeds[name]
    # sizes and offsets of a flatbuffer lie at both ends, those of the others between the values
    places = [*range(min(600, len(data))), *range(max(0, len(data) - 1200), len(data))] * 2 + list(range(len(data)))
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 6))):
            changed[chance.choice(places)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        if changed[8:9] == b"{" or name != "own":
            swallow(bytes(changed))


@pytest.mark.parametrize("name", list(SMALL))
def test_words_of_a_flatbuffer_changed(name):
    chance, data = random.Random(name), SMALL[name]
    values = (0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0, len(data), len(data) - 4, 1 << 16)
    for at in range(0, len(data) - 4, 4):
        changed = bytearray(data)
        struct.pack_into("<I", changed, at, chance.choice(values))
        if at < 400 or chance.random() < 0.3:
            swallow(bytes(changed))


@given(st.binary(max_size=120))
@settings(max_examples=150, deadline=None)
def test_any_bytes(data):
    swallow(data)
    swallow(data[:4] + b"TFL3" + data[4:])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_field_of_an_onnx_file(data):
    model = onnx.load_model_from_string(static_file("conv_digits", "QDQ, per channel"))
    graph = model.graph
    for _ in range(data.draw(st.integers(1, 3))):
        match data.draw(st.sampled_from(["dims", "type", "input", "attribute", "raw", "drop", "output"])):
            case "dims":
                held = data.draw(st.sampled_from(list(graph.initializer)))
                sizes = data.draw(st.lists(st.sampled_from([0, 1, 3, -1, 12, 2**31, 2**62, 2**63 - 1]), max_size=5))
                held.ClearField("dims")
                held.dims.extend(sizes)
            case "type":
                held = data.draw(st.sampled_from(list(graph.initializer)))
                held.data_type = data.draw(st.sampled_from([*TensorProto.DataType.values(), 999, -5]))
            case "raw":
                held = data.draw(st.sampled_from(list(graph.initializer)))
                held.raw_data = data.draw(st.binary(max_size=16))
            case "input":
                node = data.draw(st.sampled_from(list(graph.node)))
                if node.input:
                    place = data.draw(st.integers(0, len(node.input) - 1))
                    node.input[place] = data.draw(st.sampled_from(["", "x", *(c.name for c in graph.initializer)]))
            case "output":
                node = data.draw(st.sampled_from(list(graph.node)))
                node.output[0] = data.draw(st.sampled_from(["", "x", *node.input]))
            case "attribute":
                node = data.draw(st.sampled_from(list(graph.node)))
                name = data.draw(st.sampled_from(["axis", "block_size", "output_dtype", "transB", "value"]))
                value = data.draw(st.sampled_from([0, 1, -1, 7, -(2**63), 2**63 - 1]))
                node.attribute.append(helper.make_attribute(name, value))
            case "drop":
                node = data.draw(st.sampled_from(list(graph.node)))
                del node.input[:]
    swallow(model.SerializeToString())


# ---- what is refused, in words ---------------------------------------------------------------------------------------


def linear(**changes):
    """A weight [2, 3] behind DequantizeLinear, with some of its constants replaced."""
    constants = {"w": np.ones((2, 3), np.int8), "s": np.array(0.5, np.float32), "z": np.array(0, np.int8)} | changes
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [v if isinstance(v, TensorProto) else numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph).SerializeToString()


def sized(dims, data=b""):
    return TensorProto(name="w", data_type=TensorProto.INT8, dims=dims, raw_data=data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (linear(w=sized([2**40, 2**40])), r"declares the shape"),
        (linear(w=sized([1_000, 1_000], b"abc")), r"1,000,000 bytes; it has 3"),
        (linear(w=sized([-1, 2])), "negative size"),
        (linear(s=np.array(np.inf, np.float32)), "not a finite number"),
        (linear(s=np.array(3e38, np.float32)), "values are not finite"),
        (linear(s=np.ones(7, np.float32)), r"scales of shape \[7\]"),
        (linear(s=np.ones(3, np.float32), z=np.zeros(2, np.int8)), "do not fit each other"),
        (b"PK\x03\x04 and so on", "zip archive"),
        (b"no model at all, but some text", "no model that can be read here"),
        (b"abc", "3 bytes"),
        (b"\0" * 4 + b"TFL3" + b"\0" * 60, "version 0"),
        (b"\xff" * 4 + b"TFL3" + b"\0" * 60, "damaged"),
    ],
)
def test_the_reason_is_told(data, words):
    with pytest.raises(BadUpload, match=words):
        read_quantized_file(data)


@pytest.mark.parametrize("location", ["../secret", "/etc/hosts", "weights.bin"])
def test_another_file_is_never_opened(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\1" * 6)
    held = TensorProto(name="w", data_type=TensorProto.INT8, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    held.external_data.add(key="location", value=location)
    (tmp_path / "model.onnx").write_bytes(linear(w=held))
    with pytest.raises(UnsafeFile, match="lies in another file"):
        read_quantized_file(tmp_path / "model.onnx")


def test_many_tensors_on_the_same_bytes_do_not_add_up(monkeypatch):
    monkeypatch.setattr("qlab.opened.tflite.MAX_VALUES", 4_000)
    with pytest.raises(BadUpload, match="more than 4,000 values"):
        read_quantized_file(TFLITE["perceptron_int4"])


def test_a_file_above_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_FILE", 100)
    (tmp_path / "model.onnx").write_bytes(linear() + b"\0" * 200)
    with pytest.raises(BadUpload, match="the limit is"):
        read_quantized_file(tmp_path / "model.onnx")


def test_a_block_longer_than_the_tensor_takes_no_memory():
    model = onnx.load_model_from_string(linear(s=np.ones((1, 3), np.float32), z=np.zeros((1, 3), np.int8)))
    model.graph.node[0].attribute.extend(
        [helper.make_attribute("axis", 0), helper.make_attribute("block_size", 2**62)]
    )  # fmt: skip
    (tensor,) = read_quantized_file(model.SerializeToString()).tensors
    assert tensor.dequantize().shape == (2, 3)


def test_a_scale_tensor_of_blocks_that_is_too_short():
    model = schema.ModelT.InitFromPackedBuf(bytearray(SMALL["perceptron_int4_blocks"]), 0)
    held = next(t for t in model.subgraphs[0].tensors if t.name == b"fc1.weight_scales")
    model.buffers[held.buffer].data = model.buffers[held.buffer].data[:-2]
    import flatbuffers

    builder = flatbuffers.Builder(1 << 14)
    builder.Finish(model.Pack(builder), b"TFL3")
    with pytest.raises(BadUpload, match="needs 128 scales for its blocks of 32; the file has 127"):
        read_quantized_file(bytes(builder.Output()))


def test_names_are_made_fit_to_be_shown():
    assert clean("a\nb\x00c") == "a?b?c"
    assert len(clean("x" * 10_000)) == 200
    data = linear().replace(b"MatMul", b"Mat\nul")
    assert swallow(data)
