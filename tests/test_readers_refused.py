"""Files that are refused: those that would run code or leave their folder, and those that are broken or forged."""

import io
import pickle
import stat
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch

from qlab.errors import BadUpload, UnsafeFile
from qlab.readers import read_data
from tests.reader_files import (
    CLEAN_PT,
    X,
    image,
    npy,
    npy_header,
    npz,
    parquet,
    pickle_zip,
    pt,
    rezipped,
    safetensors,
    tensor_entry,
    zipped,
)

BOMB = zipped(
    {"x.npy": npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (400000000,), }") + b"\0" * 10**7}
)


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
