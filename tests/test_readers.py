"""Reading untrusted data files: what is read, what is refused, and that no bytes end in anything but a QLabError."""

import io
import json
import pickle
import random
import stat
import struct
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_safetensors

from qlab.data import load_dataset
from qlab.errors import BadUpload, NonFinite, QLabError, UnsafeFile
from qlab.readers import Limits, read_data

X = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
Y = np.array([1, 0], np.int64)


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(compressed=False, **arrays) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def pt(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def rezipped(data: bytes, change) -> bytes:
    """An archive with each entry's bytes put through change(name, bytes); None drops the entry."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: change(name, archive.read(name)) for name in archive.namelist()}
    return zipped({name: content for name, content in files.items() if content is not None}, zipfile.ZIP_STORED)


def image(colour=(255, 0, 0), size=(4, 3), mode="RGB", kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def parquet(frame: pd.DataFrame, **options) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, **options)
    return buffer.getvalue()


def npy_header(header: str, body: bytes = b"") -> bytes:
    text = header.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def safetensors(header, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor_entry(dtype, shape, offsets) -> bytes:
    return safetensors({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, b"abc")


def arrays_of(data: bytes, **options):
    return read_data(data, **options).arrays


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


# -------------------------------------------------------------------------------------------------- what is refused

BOMB = zipped(
    {"x.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (400000000,), }") + b"\0" * 10**7}
)
CLEAN_PT = pt({"x": torch.arange(4.0)})


class Opens:
    def __reduce__(self):
        return (open, ("qlab_was_here", "w"))


class Net(torch.nn.Module):
    def forward(self, x):
        return x


def symlink_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def duplicate_zip() -> bytes:
    data = zipped({"x.npy": npy(X), "z.npy": npy(X)})
    return data.replace(b"z.npy", b"x.npy")


def torchscript() -> bytes:
    buffer = io.BytesIO()
    buffer.write(
        zipped({"net/data.pkl": b"\x80\x02}.", "net/code/__torch__.py": b"", "net/constants.pkl": b"\x80\x02)."})
    )
    return buffer.getvalue()


def forged_count(data: bytes, count: int) -> bytes:
    return rezipped(data, lambda n, d: d.replace(b"K\x04", b"K" + bytes([count])) if n.endswith("data.pkl") else d)


def pickle_zip(pickled: bytes) -> bytes:
    return zipped({"archive/data.pkl": pickled, "archive/version": b"3"}, zipfile.ZIP_STORED)


UNSAFE = {
    "npy_of_objects": (npy(np.array([{}, 1], object), allow_pickle=True), "pickled"),
    "npz_of_objects": (npz(x=np.array([None, 1], object)), "pickled"),
    "pickle": (pickle.dumps(Opens()), "is a pickle"),
    "legacy_torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a pickle"),
    "dotdot": (zipped({"../x.npy": npy(X)}), "no name inside"),
    "backslash_dotdot": (zipped({"..\\x.npy": npy(X)}), "no name inside"),
    "absolute": (zipped({"/etc/x.npy": npy(X)}), "no name inside"),
    "drive": (zipped({"C:x.npy": npy(X)}), "no name inside"),
    "link": (symlink_zip(), "link"),
    "pt_code": (pt({"x": Opens()}), "open"),
    "pt_module": (pt(Net()), "not a plain file of tensors"),
    "pt_state_dict": (pt(torch.nn.Linear(2, 2).state_dict()), "not a plain file of tensors"),
    "pt_parameter": (pt({"w": torch.nn.Parameter(torch.ones(2))}), "detach"),
    "pt_stack_global": (pickle_zip(pickle.dumps(Opens(), protocol=4)), "opcode"),
    "pt_build": (pickle_zip(b"\x80\x02}}b."), "opcode BUILD"),
    "pt_calls_storage": (pickle_zip(b"\x80\x02ctorch\nFloatStorage\n)R."), "no need"),
    "pt_storage_too_long": (forged_count(CLEAN_PT, 200), "claims 800 bytes"),
    "pt_no_record": (rezipped(CLEAN_PT, lambda n, d: None if n.endswith("data/0") else d), "file holds none"),
    "pt_short_record": (rezipped(CLEAN_PT, lambda n, d: d[:-4] if n.endswith("data/0") else d), "file holds 12"),
}
BAD = {
    "empty": (b"", "empty"),
    "unknown": (b"\0\1\2\3" * 9, "no known format"),
    "html": (b"<html><body>hi</body></html>", "no rows"),
    "one_png": (image(), "single PNG"),
    "one_jpeg": (image(kind="JPEG"), "single JPEG"),
    "one_bmp": (image(kind="BMP"), "single BMP"),
    "one_webp": (image(kind="WEBP"), "single WebP"),
    "gzip": (b"\x1f\x8b\x08\0" + b"\0" * 20, "unpack"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0", "HDF5"),
    "complex": (npy(np.ones(3, complex)), "complex"),
    "text_array": (npy(np.array(["a", "b"])), "text"),
    "bytes_array": (npy(np.array([b"a", b"b"])), "text"),
    "structured": (npy(np.zeros(2, [("a", "f4"), ("b", "i4")])), "structured"),
    "datetime": (npy(np.array(["2020-01-01"], "M8[D]")), "dtype"),
    "longdouble": (npy(np.ones(2, np.longdouble)), "dtype"),
    "npy_twice": (npy(X) + npy(X), "several arrays"),
    "npy_short": (npy(X)[:-1], "cut off"),
    "npy_huge": (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627777, 4), }"), "forged"),
    "npy_3_gib": (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (402653184,), }"), "limit"),
    "npy_expression": (npy_header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (), }"), "header"),
    "npy_twice_a_key": (npy_header("{'descr': '<f4', 'descr': '<f4', 'shape': (), }"), "header"),
    "npy_shape": (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1 2, ), }"), "broken shape"),
    "npy_axes": (npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1,' * 17}), }}", b"abcd"), "axes"),
    "npy_version": (b"\x93NUMPY\x09\x00" + npy(X)[8:], "version"),
    "npz_header_against_entry": (BOMB, "which is 400,000,000 bytes, but 10,000,000"),
    "npz_foreign_entry": (zipped({"x.npy": npy(X), "readme.md": b"hi"}), "readme.md"),
    "npz_not_npy": (zipped({"x.npy": b"hello world!"}), "not an .npy"),
    "npz_twice": (duplicate_zip(), "two entries"),
    "npz_lzma": (zipped({"x.npy": npy(X)}, zipfile.ZIP_LZMA), "rare method"),
    "npz_surrogates": (
        npz(x=X, class_names=np.array(["a"])).replace(b"a\0\0\0", b"\0\xd8\0\0"), "cannot be read"),
    "zip_empty": (zipped({}), "empty archive"),
    "zip_of_text": (zipped({"a.txt": b"a"}), "without images"),
    "zip_without_directory": (npz(x=X)[:-30], "table of contents"),
    "pt2": (zipped({"m/models/model.json": b"{}", "m/data.pkl": b""}), "torch.export"),
    "torchscript": (torchscript(), "TorchScript"),
    "pt_nothing": (pt({"x": 3}), "no tensor"),
    "pt_int_keys": (pt({1: torch.ones(2)}), "keys"),
    "pt_text": (pt("hello"), "no tensors"),
    "pt_big_endian": (rezipped(CLEAN_PT, lambda n, d: b"big" if n.endswith("byteorder") else d), "big-endian"),
    "pt_no_stop": (pickle_zip(b"\x80\x02}"), "cannot be read"),
    "pt_empty_stack": (pickle_zip(b"\x80\x02."), "cannot be read"),
    "pt_no_mark": (pickle_zip(b"\x80\x02}u."), "cannot be read"),
    "safetensors_header_length": (struct.pack("<Q", 2**62) + b"{}", "no known format"),
    "safetensors_json": (safetensors(b"{" + b"[" * 5000), "cannot be read"),
    "safetensors_entry": (safetensors({"x": 1}), "no dtype"),
    "safetensors_twice": (safetensors(b'{"x": {}, "x": {}}'), "twice"),
    "safetensors_dtype": (tensor_entry("F8_E4M3", [3], [0, 3]), "F8_E4M3"),
    "safetensors_offsets": (tensor_entry("U8", [4], [0, 4]), "cut off"),
    "safetensors_backwards": (tensor_entry("U8", [0], [2, 1]), "cut off"),
    "safetensors_negative": (tensor_entry("U8", [-1], [0, 1]), "broken"),
    "safetensors_bool_size": (tensor_entry("U8", [True], [0, 1]), "broken"),
    "safetensors_huge": (tensor_entry("U8", [2**40, 2**40, 0], [0, 0]), "forged"),
    "csv_text_feature": (b"a,b,y\n1,2,0\n3,red,1\n", "'b' holds 'red' in row 2"),
    "csv_missing": (b"a,b\n1,2\n3,\n", "'b' has no value in row 2"),
    "csv_infinite": (b"a,b\n1,2\n3,inf\n", "infinite value in row 2"),
    "csv_huge_number": (b"a,b\n1,2\n3,1e300\n", "too large"),
    "csv_ragged": (b"a,b\n1,2\n3,4,5\n", "cannot be read"),
    "csv_wider_than_header": (b"a,b\n1,2,3\n4,5,6\n", "more fields"),
    "csv_wider_and_counting": (b"a,b\n0,2,3\n1,5,6\n", "more fields"),
    "csv_two_labels": (b"a,y,label\n1,2,3\n", "several columns"),
    "csv_no_label": (b"a,y\n1,cat\n2,\n", "row 2 has no label"),
    "csv_row_numbers": (b",a\n0,5\n1,6\n", "index=False"),
    "csv_quote": (b'a,b\n"1,2\n', "cannot be read"),
    "csv_blank": (b"\n\n", "cannot be read"),
    "parquet_text_feature": (parquet(pd.DataFrame({"a": ["x"], "y": [1]})), "'a' holds"),
    "parquet_list": (parquet(pd.DataFrame({"a": [[1, 2]], "y": [1]})), "'a' holds"),
    "parquet_date": (parquet(pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])})), "'a' holds"),
    "parquet_missing": (parquet(pd.DataFrame({"a": [1.0, None]})), "no value in row 2"),
    "parquet_broken": (b"PAR1" + b"\0" * 20 + b"PAR1", "cannot be read"),
    "images_of_two_sizes": (zipped({"a.png": image(), "b.png": image(size=(5, 3))}), "4 x 3 (1 images), 5 x 3 (1"),
    "images_transparent": (zipped({"a.png": image((1, 2, 3, 9), mode="RGBA")}), "transparent"),
    "images_16_bit": (zipped({"a.png": image(9, mode="I;16")}), "8 bits"),
    "images_and_text": (zipped({"a.png": image(), "notes.txt": b"hi"}), "notes.txt"),
    "images_nested": (zipped({"a/b/1.png": image(), "c/1.png": image()}), "different depths"),
    "images_broken": (zipped({"a.png": image()[:40]}), "cannot be read as an image"),
    "images_other_format": (zipped({"a.png": image(kind="GIF")}), "cannot be read as an image"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_files_are_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, words = UNSAFE[case]
    with pytest.raises(UnsafeFile) as caught:
        read_data(data)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case):
    data, words = BAD[case]
    with pytest.raises(BadUpload) as caught:
        read_data(data)
    assert words in str(caught.value)
    assert not isinstance(caught.value, UnsafeFile)


@pytest.mark.parametrize("case", ["pt_module", "torchscript"])
def test_a_model_given_as_data_is_told_how_to_export(case):
    with pytest.raises(BadUpload, match=r"torch\.export\.save"):
        read_data((UNSAFE | BAD)[case][0])


def test_a_pt_tensor_expanded_over_the_limit_is_refused():
    data = pt({"x": torch.zeros(1).expand(1 << 30)})
    assert len(data) < 2000
    with pytest.raises(BadUpload, match=r"4\.0 GiB; the limit is 2\.0 GiB"):
        read_data(data)


def test_a_pt_tensor_that_reaches_beyond_its_storage_is_refused():
    data = pt({"x": torch.zeros(4)})
    # shape (4,): the first of the two K\x04 after the storage is the size
    forged = rezipped(data, lambda n, d: d[::-1].replace(b"\x04K", b"\x05K", 1)[::-1] if n.endswith("data.pkl") else d)
    with pytest.raises(UnsafeFile, match="beyond its storage"):
        read_data(forged)


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


# ----------------------------------------------------------------------------------------------------------- fuzzing

SEEDS = {
    "npy": npy(X.astype(np.float32)),
    "npz": npz(x=X, y=Y, scale=np.array(0.5), class_names=np.array(["a", "b"]), calibration_index=np.array([0])),
    "npz_deflated": npz(compressed=True, x=X.astype(np.float64), y=Y, mean=np.zeros(3)),
    "safetensors": save_safetensors({"x": torch.ones(2, 3), "y": torch.tensor([0, 1]), "b": torch.ones(2).bfloat16()}),
    "pt": pt({"x": torch.arange(6.0).reshape(2, 3).T, "y": torch.tensor([0, 1, 2]), "mean": [0.0, 1.0]}),
    "csv": b"a,b,class\n1,2.5,dog\n3,-4,cat\n5,6,dog\n",
    "parquet": parquet(pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1, 2], "y": ["x", "z", "x"]})),
    "png": zipped({"cat/1.png": image(), "dog/2.png": image((1, 2, 3))}),
    "png_stored": zipped({"cat/1.png": image(mode="P", colour=3), "dog/2.png": image((1, 2, 3))}, zipfile.ZIP_STORED),
    "jpeg": zipped({"1.jpg": image(kind="JPEG")}, zipfile.ZIP_STORED),
    "bmp": zipped({"1.bmp": image(kind="BMP")}, zipfile.ZIP_STORED),
    "webp": zipped({"1.webp": image(kind="WEBP")}, zipfile.ZIP_STORED),
}
SMALL = Limits(max_file_bytes=1 << 20, max_unpacked_bytes=1 << 24, max_image_pixels=1 << 16)


def swallow(data: bytes) -> bool:
    """Whether these bytes are a data set. Anything but a data set or a QLabError fails the test."""
    try:
        dataset = load_dataset(data, limits=SMALL)
    except QLabError:
        return False
    dataset.describe()
    dataset.example(0)
    return True


@pytest.mark.parametrize("name", SEEDS)
def test_seed_files_are_whole(name):
    assert swallow(SEEDS[name])


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_truncated_files(name):
    data = SEEDS[name]
    for length in range(0, len(data), max(1, len(data) // 150)):
        swallow(data[:length])


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_files(name):
    chance = random.Random(name)
    for _ in range(150):
        data = bytearray(SEEDS[name])
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.choice((0, 0xFF, chance.randrange(256)))
        swallow(bytes(data))


def repacked(name: str, chance: random.Random) -> bytes:
    """A flipped entry in an archive whose checksums are right, so that the flip gets past the zip layer."""

    def flip(_, content: bytes) -> bytes:
        changed = bytearray(content)
        if changed and chance.random() < 0.7:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)

    return rezipped(SEEDS[name], flip)


@pytest.mark.parametrize("name", ["npz", "pt", "png", "png_stored", "jpeg", "bmp", "webp"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_entries(name):
    chance = random.Random(name)
    for _ in range(200):
        swallow(repacked(name, chance))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_npy_header(data):
    swallow(npy_header("{" + data.decode("latin1") + "}", b"\0" * 16))


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_the_pickle_of_a_pt(data):
    swallow(pickle_zip(b"\x80\x02" + data))


@given(
    st.lists(
        st.sampled_from(
            [
                b"}",
                b"]",
                b")",
                b"(",
                b"u",
                b"s",
                b"e",
                b"a",
                b"t",
                b"\x85",
                b"\x86",
                b"\x87",
                b"q\0",
                b"h\0",
                b"K\x02",
                b"Q",
                b"R",
                b"X\1\0\0\0k",
                b"ctorch\nFloatStorage\n",
                b"N",
                b"\x88",
                b"ctorch._utils\n_rebuild_tensor_v2\n",
                b"ccollections\nOrderedDict\n",
            ]
        ),
        max_size=40,
    )
)
@settings(max_examples=300, deadline=None)  # fmt: skip
def test_any_allowed_opcodes_as_the_pickle_of_a_pt(codes):
    swallow(pickle_zip(b"\x80\x02" + b"".join(codes) + b"."))


def test_deep_nesting_in_a_pt_is_refused():
    swallow(pickle_zip(b"\x80\x02)" + b"\x85" * 60_000 + b"."))
    swallow(pickle_zip(b"\x80\x02})" + b"\x85" * 60_000 + b"K\x01s."))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["x", "dtype", "shape", "data_offsets", "y"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    header=st.dictionaries(
        st.text(max_size=4),
        JSON
        | st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "U8", "BF16", "BOOL"]),
                "shape": st.lists(st.integers(-1, 4), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2),
            }
        ),
        max_size=3,
    )
)
@settings(max_examples=200, deadline=None)  # fmt: skip
def test_any_json_as_safetensors_header(header):
    swallow(safetensors(header, b"\1" * 32))


@given(st.text(alphabet="ab12,;\n\r\t\"' .-einfy", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_as_csv(text):
    swallow(text.encode())


def test_nan_bit_patterns_of_any_kind_are_named():
    for dtype, bits in ((np.float32, 0x7FA00000), (np.float64, 0x7FF4000000000000), (np.float16, 0x7D00)):
        values = np.zeros((3, 2), dtype)
        values[1, 1] = np.array([bits], f"u{values.itemsize}").view(dtype)[0]
        with pytest.raises(NonFinite, match="sample 1"):
            load_dataset(npy(values))
