"""Builders of the files that the tests of the readers read: whole, odd and forged."""

import io
import json
import struct
import zipfile

import numpy as np
import pandas as pd
import torch
from PIL import Image

from qlab.readers import read_data

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


def pickle_zip(pickled: bytes) -> bytes:
    return zipped({"archive/data.pkl": pickled, "archive/version": b"3"}, zipfile.ZIP_STORED)


CLEAN_PT = pt({"x": torch.arange(4.0)})
