"""Data files to arrays. Every byte is hostile: nothing is unpickled, nothing from an archive touches the disk.

    read_data(source) -> Contents        .npz .npy .safetensors .pt .csv .parquet, a .zip of images

The order is the same everywhere: the size that a header declares is held against the limits and against the bytes that
are there, and only then memory is asked for. A refusal is a BadUpload (UnsafeFile where the file would have run code or
left its folder); it says what was found and what to do.
"""

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qlab.errors import BadUpload, UnsafeFile
from qlab.readers.common import DEFAULT_LIMITS, GIB, Limits, shown, size_text
from qlab.readers.images import read_images
from qlab.readers.numpy_files import read_npy, read_npz
from qlab.readers.safetensors_file import read_safetensors
from qlab.readers.tables import TABLE_TARGET_NAMES, TARGET_NAMES, read_csv, read_parquet
from qlab.readers.torch_tensors import read_pt
from qlab.readers.zips import IMAGE_SUFFIXES, detect_zip

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "GIB",
    "IMAGE_SUFFIXES",
    "TABLE_TARGET_NAMES",
    "TARGET_NAMES",
    "Contents",
    "Limits",
    "read_data",
]

FORMATS = ".npz, .npy, .safetensors, .pt (tensors only), .csv, .parquet or a .zip of images"

_KIND_BY_SUFFIX = {
    ".npz": "npz", ".npy": "npy", ".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".csv": "csv",
    ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet", ".zip": "images",
}  # fmt: skip
_KIND_LABEL = {
    "npz": "an .npz archive", "npy": "an .npy array", "safetensors": "a safetensors file", "pt": "a torch tensor file",
    "csv": "text", "parquet": "a Parquet file", "images": "a zip of images",
}  # fmt: skip
_FOREIGN_MAGIC = (
    (b"\x89PNG", "a single PNG image", "put the images into a .zip, a folder for each class"),
    (b"\xff\xd8\xff", "a single JPEG image", "put the images into a .zip, a folder for each class"),
    (b"BM", "a single BMP image", "put the images into a .zip, a folder for each class"),
    (b"\x89HDF", "an HDF5 file", "save its arrays with numpy.savez"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "use .zip"),
    (b"Rar!", "a RAR archive", "use .zip"),
)


@dataclass(frozen=True)
class Contents:
    """What a file held: arrays by name in file order. `scale` is what the format implies (images: 1/255)."""

    kind: str
    label: str
    arrays: dict[str, np.ndarray]
    scale: float | None = None


def read_data(
    source: str | Path | bytes | BinaryIO,
    *,
    filename: str | None = None,
    labels: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Contents:
    """Read a data file from a path, from its bytes or from an open binary file.

    labels: the column of a table that holds the labels, if its name does not say so; other formats keep their names.
    The format is taken from the content; a file name that says another format is refused rather than believed.
    Raises BadUpload, UnsafeFile.
    """
    label, data = _read_bytes(source, filename, limits)
    suffix = Path(label).suffix.lower()
    claimed = _KIND_BY_SUFFIX.get(suffix)
    if not data:
        raise BadUpload(f"{label} is empty (0 bytes). Upload {FORMATS}.")
    if suffix in (".pt2", ".onnx"):
        raise BadUpload(f"{label} is a model file, but data is expected here. Open it as the model.")
    found = _detect(data, label, limits)
    if found is None and claimed is None:
        raise BadUpload(f"{label} is of no known format (it begins with {shown(data[:8])}). Upload {FORMATS}.")
    if found is not None and claimed is not None and found != claimed:
        raise BadUpload(
            f"{label} is named {suffix}, but its content is {_KIND_LABEL[found]}. "
            f"Rename it to {_suffix_of(found)}, or save the data again as {suffix}."
        )
    kind = found or claimed
    assert kind is not None
    if kind in ("csv", "parquet"):
        arrays = (read_csv if kind == "csv" else read_parquet)(data, label, limits, labels)
    else:
        readers = {"npz": read_npz, "npy": read_npy, "safetensors": read_safetensors, "pt": read_pt}
        arrays = readers.get(kind, read_images)(data, label, limits)
    for array in arrays.values():
        array.setflags(write=False)
    return Contents(kind, label, arrays, scale=1 / 255 if kind == "images" else None)


def _read_bytes(source: str | Path | bytes | BinaryIO, filename: str | None, limits: Limits) -> tuple[str, bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        label, data = filename or "the upload", bytes(source)
    elif isinstance(source, str | Path):
        path = Path(source)
        label = filename or path.name
        try:
            information = path.stat()
            if not stat.S_ISREG(information.st_mode):
                raise BadUpload(f"{path} is not a file. Give a file: {FORMATS}.")
            _check_file_size(label, information.st_size, limits)
            with path.open("rb") as file:
                data = file.read(limits.max_file_bytes + 1)
        except FileNotFoundError:
            raise BadUpload(f"There is no file {path}. Check the path.") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise BadUpload(f"{label} cannot be read: {error}.", detail=repr(error)) from error
    else:
        label = filename or Path(str(getattr(source, "name", "the upload"))).name
        if source.seekable():  # Streamlit hands out the same open file in every run of a page
            source.seek(0)
        data = source.read(limits.max_file_bytes + 1)
        if not isinstance(data, bytes):
            raise BadUpload(f"{label} is opened as text. Open it in binary mode.")
    _check_file_size(label, len(data), limits)
    return label, data


def _check_file_size(label: str, size: int, limits: Limits) -> None:
    if size > limits.max_file_bytes:
        raise BadUpload(
            f"{label} is larger than the limit of {size_text(limits.max_file_bytes)}. Use fewer samples: "
            "a few hundred are enough to calibrate, a few thousand to evaluate."
        )


def _detect(data: bytes, label: str, limits: Limits) -> str | None:
    """The format by content, None if nothing fits. Raises for content that is recognised and unwanted."""
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return detect_zip(data, label, limits)
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    if data.startswith(b"PAR1"):
        return "parquet"
    if len(data) >= 9 and data[8:9] == b"{" and 8 + int.from_bytes(data[:8], "little") <= len(data):
        return "safetensors"
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UnsafeFile(
            f"{label} is a pickle: opening it can run any code, so it is refused. Save the data with numpy.savez, or, "
            "if torch wrote it before version 1.6, load it and save the tensors again with torch.save."
        )
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        raise BadUpload(f"{label} is a single WebP image: put the images into a .zip, a folder for each class.")
    for magic, what, remedy in _FOREIGN_MAGIC:
        # "BM" and the like may begin a text; the binary ones cannot be decoded or hold a NUL early on.
        if data.startswith(magic) and not _is_text(data):
            raise BadUpload(f"{label} is {what}: {remedy}.")
    return "csv" if _is_text(data) else None


def _is_text(data: bytes) -> bool:
    head = data[:4096]
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return len(data) > len(head) and error.start >= len(head) - 3
    return True


def _suffix_of(kind: str) -> str:
    return next(suffix for suffix, known in _KIND_BY_SUFFIX.items() if known == kind)
