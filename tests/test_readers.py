"""Reading data files: what is read, and the limits, names and paths that are held to."""

import io
import struct
import zlib
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors

from qlab.errors import BadUpload
from qlab.readers import Limits, read_data
from tests.reader_files import (
    CLEAN_PT,
    X,
    arrays_of,
    image,
    npy,
    npz,
    parquet,
    pt,
    safetensors,
    zipped,
)

# ------------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize(
    "dtype",
    ["bool", "u1", "i1", "<u2", "<i4", ">i4", "<i8", "<u8", "<f2", "<f4", ">f4", "<f8"],
    ids=lambda name: name.replace("<", "le_").replace(">", "be_"),
)
@pytest.mark.parametrize("kind", ["npy", "npz", "npz_deflated"])
def test_numpy_files_give_the_stored_array(kind, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    data = npy(array) if kind == "npy" else npz(x=array, compressed=kind == "npz_deflated")
    got = arrays_of(data)["x"]
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype.newbyteorder("=")
    assert got.dtype.isnative
    assert not got.flags.writeable


def test_fortran_order_is_kept_apart_from_c_order():
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(arrays_of(npy(array))["x"], array)


def test_npz_keeps_file_order_and_class_names():
    arrays = arrays_of(npz(b=X, a=X, class_names=np.array(["cat", "dög"])))
    assert list(arrays) == ["b", "a", "class_names"]
    assert arrays["class_names"].tolist() == ["cat", "dög"]


def test_npy_of_version_2_and_3():
    for version in ((2, 0), (3, 0)):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, X, version=version)
        np.testing.assert_array_equal(arrays_of(buffer.getvalue())["x"], X)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
    ids=str,
)
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_tensor_files_equal_torch(form, dtype):
    x = torch.arange(24).reshape(2, 3, 4).to(dtype)
    data = save_safetensors({"x": x}) if form == "safetensors" else pt({"x": x})
    got = torch.from_numpy(arrays_of(data)["x"].copy())
    assert got.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.equal(got, x.to(got.dtype))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (torch.ones(2, 3), ["x"]),
        ([torch.ones(2, 3)], ["x"]),
        ((torch.ones(2, 3), torch.zeros(2)), ["x0", "x1"]),
        ({"b": torch.ones(2), "a": torch.ones(2)}, ["b", "a"]),
        (OrderedDict(b=torch.ones(2), y=torch.ones(2)), ["b", "y"]),
        (
            {"x": torch.ones(2), "scale": 0.5, "mean": [1, 2.0], "class_names": ["a"]},
            ["x", "scale", "mean", "class_names"],
        ),
        ({"x": torch.ones(2, requires_grad=True)}, ["x"]),
    ],
    ids=["tensor", "list_of_one", "tuple", "dict", "ordered_dict", "with_preprocessing", "requires_grad"],
)
def test_pt_forms(value, names):
    assert list(arrays_of(pt(value))) == names


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_pt_views_equal_torch(shape, data):
    """Transposed, sliced and expanded tensors, and several that share a storage."""
    base = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    view = base.permute(data.draw(st.permutations(range(len(shape)))))
    view = view[data.draw(st.integers(0, view.shape[0] - 1)) :]
    expanded = view[:, None].expand(view.shape[0], 3, *view.shape[1:])
    got = arrays_of(pt({"base": base, "view": view, "expanded": expanded}))
    for name, tensor in (("base", base), ("view", view), ("expanded", expanded)):
        np.testing.assert_array_equal(got[name], tensor.numpy())


def test_csv_with_text_labels():
    arrays = arrays_of(b"a,b,class\n1,2.5,dog\n3,-4,cat\n")
    np.testing.assert_array_equal(arrays["x"], np.array([[1, 2.5], [3, -4]], np.float32))
    assert arrays["x"].dtype == np.float32
    assert arrays["y"].tolist() == [1, 0]
    assert arrays["class_names"].tolist() == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "x"),
    [
        ("a;b;y\n1;2;0\n3;4;1\n", [[1, 2], [3, 4]]),
        ("a\tb\tLabel\n1\t2\t0\n", [[1, 2]]),
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("\ufeffa,b\r\n1,2\r\n", [[1, 2]]),
        ('"a","b"\n"1","2"\n', [[1, 2]]),
        ("a\n1\n2\n", [[1], [2]]),
        ("a,b\n1e-3, True\n0.5,False\n", [[1e-3, 1], [0.5, 0]]),
    ],
    ids=["semicolon", "tab", "no_header", "bom_crlf", "quoted", "one_column", "bool"],
)
def test_csv_forms(text, x):
    np.testing.assert_array_equal(arrays_of(text.encode(), filename="data.csv")["x"], np.array(x, np.float32))


def test_csv_label_column_by_name():
    arrays = arrays_of(b"a,kind,y\n1,dog,7\n3,cat,8\n", labels="kind")
    assert arrays["y"].tolist() == [1, 0]
    np.testing.assert_array_equal(arrays["x"], [[1, 7], [3, 8]])


@pytest.mark.parametrize("compression", ["snappy", "zstd", None], ids=str)
def test_parquet(compression):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1, 2], "flag": [True, False, True], "target": ["x", "z", "x"]})
    arrays = arrays_of(parquet(frame, compression=compression))
    np.testing.assert_array_equal(arrays["x"], np.array([[1, 0.5, 1], [2, 1, 0], [3, 2, 1]], np.float32))
    assert arrays["y"].tolist() == [0, 1, 0]
    assert arrays["class_names"].tolist() == ["x", "z"]


def test_parquet_with_numeric_or_categorical_labels():
    frame = pd.DataFrame({"a": [1.0, 2.0], "y": [3, 0]})
    assert arrays_of(parquet(frame))["y"].tolist() == [3, 0]
    frame = pd.DataFrame({"a": [1.0, 2.0], "y": pd.Categorical(["b", "a"])})
    assert arrays_of(parquet(frame))["class_names"].tolist() == ["a", "b"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_image_folders_give_classes(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    files = {
        "set/dog/2.img": image((0, 0, 255), kind=kind, **options),
        "set/cat/1.img": image((255, 0, 0), kind=kind, **options),
        "__MACOSX/set/cat/._1.img": b"junk",
        "set/.DS_Store": b"junk",
    }
    contents = read_data(zipped({name.replace(".img", "." + kind.lower()): data for name, data in files.items()}))
    assert contents.scale == 1 / 255
    assert contents.arrays["x"].shape == (2, 3, 3, 4)
    assert contents.arrays["x"].dtype == np.uint8
    assert contents.arrays["y"].tolist() == [0, 1]
    assert contents.arrays["class_names"].tolist() == ["cat", "dog"]
    red, blue = contents.arrays["x"][:, :, 0, 0].astype(int)
    assert np.abs(red - (255, 0, 0)).max() <= 2
    assert np.abs(blue - (0, 0, 255)).max() <= 2


@pytest.mark.parametrize(
    ("files", "shape"),
    [
        ({"b.png": image(7, mode="L"), "a.png": image(1, mode="1")}, (2, 1, 3, 4)),
        ({"b.png": image(7, mode="L"), "a.png": image()}, (2, 3, 3, 4)),
        ({"a.png": image(0, mode="P")}, (1, 3, 3, 4)),
        ({"a.png": image((1, 2, 3, 255), mode="RGBA")}, (1, 3, 3, 4)),
        ({"folder/a.png": image(), "folder/b.png": image()}, (2, 3, 3, 4)),
        ({"Shot at 9\u202fPM.png": image()}, (1, 3, 3, 4)),
        ({"x/models/a.png": image(), "x/code/a.png": image()}, (2, 3, 3, 4)),
    ],
    ids=["grey", "mixed", "palette", "opaque_alpha", "one_folder", "odd_space", "folders_named_like_a_model"],
)
def test_image_forms(files, shape):
    assert arrays_of(zipped(files))["x"].shape == shape


def test_source_forms_and_the_label(tmp_path):
    path = tmp_path / "some.npz"
    path.write_bytes(npz(x=X))
    (tmp_path / "link.npz").symlink_to(path)
    for source in (path, str(path), tmp_path / "link.npz"):
        np.testing.assert_array_equal(read_data(source).arrays["x"], X)
    with path.open("rb") as file:
        assert read_data(file).label == "some.npz"
        assert read_data(file).label == "some.npz"  # read from the start again


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(max_file_bytes=100), npz(x=X)),
        (Limits(max_unpacked_bytes=100_000), npz(compressed=True, x=np.zeros(200_000, np.uint8))),
        (Limits(max_unpacked_bytes=100), safetensors({
            f"x{i}": {"dtype": "U8", "shape": [60], "data_offsets": [0, 60]} for i in range(2)}, b"a" * 60)),
        (Limits(max_unpacked_bytes=1000), pt({"a": torch.zeros(1).expand(200), "b": torch.zeros(1).expand(200)})),
        (Limits(max_entries=3), zipped({f"{i}.png": image() for i in range(4)})),
        (Limits(max_arrays=1), npz(a=X, b=X)),
        (Limits(max_arrays=1), pt([torch.ones(1)] * 2)),
        (Limits(max_arrays=1), save_safetensors({"a": torch.ones(1), "b": torch.ones(1)})),
        (Limits(max_rows=2), b"a,b\n1,2\n3,4\n5,6\n"),
        (Limits(max_columns=1), b"a,b\n1,2\n"),
        (Limits(max_rows=1), parquet(pd.DataFrame({"a": [1, 2]}))),
        (Limits(max_unpacked_bytes=10_000), parquet(pd.DataFrame({"a": [1, 2], "y": ["a" * 9_000, "b" * 9_000]}))),
        (Limits(max_image_pixels=11), zipped({"a.png": image()})),
        (Limits(max_unpacked_bytes=200), zipped({f"{i}.png": image() for i in range(9)})),
    ],
    ids=["file", "unpacked", "shared_bytes", "expanded", "entries", "arrays", "pt_arrays", "tensors", "rows", "columns",
         "parquet_rows", "parquet_bytes", "pixels", "images"],
)  # fmt: skip
def test_limits(limits, data):
    with pytest.raises(BadUpload):
        read_data(data, limits=limits)
    read_data(data)


def test_a_decompression_bomb_image_is_refused_before_it_is_decoded():
    header = bytearray(image())
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    with pytest.raises(BadUpload, match="pixels"):
        read_data(zipped({"a.png": bytes(header)}))


def test_a_forged_table_of_contents_is_refused_before_it_is_parsed():
    data = bytearray(npz(x=X))
    end = data.rfind(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", 0x7FFFFFFF)
    with pytest.raises(BadUpload, match="table of contents"):
        read_data(bytes(data))


@pytest.mark.parametrize(
    ("filename", "data", "words"),
    [
        ("a.csv", npz(x=X), "is named .csv, but its content is an .npz archive. Rename it to .npz"),
        ("a.npz", b"a,b\n1,2\n", "its content is text"),
        ("a.npz", npy(X), "its content is an .npy array"),
        ("a.zip", npz(x=X), "Rename it to .npz"),
        ("a.npz", zipped({"a.png": image()}), "a zip of images. Rename it to .zip"),
        ("a.pt", save_safetensors({"x": torch.ones(2)}), "a safetensors file"),
        ("a.npz", CLEAN_PT, "a torch tensor file. Rename it to .pt"),
        ("a.pt2", b"anything", "is a model file"),
        ("a.onnx", b"anything", "is a model file"),
    ],
    ids=["npz_as_csv", "csv_as_npz", "npy_as_npz", "npz_as_zip", "images_as_npz", "safetensors_as_pt", "pt_as_npz",
         "pt2", "onnx"],
)  # fmt: skip
def test_a_name_that_says_another_format_is_refused(filename, data, words):
    with pytest.raises(BadUpload) as caught:
        read_data(data, filename=filename)
    assert words in str(caught.value)


@pytest.mark.parametrize("filename", ["a.npz", "a.npy", "a.safetensors", "a.pt", "a.csv", "a.parquet", "a.zip"])
@pytest.mark.parametrize("data", [b"\0" * 40, b"\xff" * 40, b"PK\x03\x04"], ids=["zeros", "ones", "zip_magic"])
def test_junk_under_a_known_name(filename, data):
    with pytest.raises(BadUpload):
        read_data(data, filename=filename)


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "missing.npz", "a\0b"):
        with pytest.raises(BadUpload):
            read_data(path)
    with pytest.raises(BadUpload, match="binary"):
        read_data(io.StringIO("a,b"))  # type: ignore[arg-type]
