"""Data files to arrays. Every byte is hostile: nothing is unpickled, nothing from an archive touches the disk.

    read_data(source) -> Contents        .npz .npy .safetensors .pt .csv .parquet, a .zip of images

The order is the same everywhere: the size that a header declares is held against the limits and against the bytes that
are there, and only then memory is asked for. A refusal is a BadUpload (UnsafeFile where the file would have run code or
left its folder); it says what was found and what to do.

Tensor files of torch are read here and not by torch.load: weights_only is not a sandbox, it takes more than data needs
(state_dicts, sparse and nested tensors, storages on devices), and it builds what a file describes before its size can
be looked at: with strides of 0 a few bytes are a tensor of any size. The few opcodes that a file of plain tensors needs
are interpreted in `_tensor_pickle`; every other is refused. A page that only shows data needs no torch either.
"""

import csv
import io
import json
import math
import pickletools
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np

from qlab.errors import BadUpload, QLabError, UnsafeFile

GIB = 1024**3
TARGET_NAMES = frozenset({"y", "targets", "target", "labels", "label"})
TABLE_TARGET_NAMES = TARGET_NAMES | {"class"}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
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
# Of files that systems put into archives unasked.
_LITTER = re.compile(r"(^|/)(__MACOSX/|\.[^/]*$|Thumbs\.db$|desktop\.ini$)")
_MAX_AXES = 16
# The pickle of a thousand tensors takes half of this; one of this size is interpreted in about a second.
_MAX_INDEX_BYTES = 256 * 1024


@dataclass(frozen=True)
class Limits:
    """What a data file may ask for. Sizes in bytes."""

    max_file_bytes: int = 2 * GIB
    max_unpacked_bytes: int = 2 * GIB
    max_entries: int = 200_000
    max_arrays: int = 1_000
    max_header_bytes: int = 8 * 1024**2
    max_rows: int = 5_000_000
    max_columns: int = 20_000
    max_image_pixels: int = 32_000_000


DEFAULT_LIMITS = Limits()


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
        raise BadUpload(f"{label} is of no known format (it begins with {_shown(data[:8])}). Upload {FORMATS}.")
    if found is not None and claimed is not None and found != claimed:
        raise BadUpload(
            f"{label} is named {suffix}, but its content is {_KIND_LABEL[found]}. "
            f"Rename it to {_suffix_of(found)}, or save the data again as {suffix}."
        )
    kind = found or claimed
    assert kind is not None
    if kind in ("csv", "parquet"):
        arrays = (_read_csv if kind == "csv" else _read_parquet)(data, label, limits, labels)
    else:
        readers = {"npz": _read_npz, "npy": _read_npy, "safetensors": _read_safetensors, "pt": _read_pt}
        arrays = readers.get(kind, _read_images)(data, label, limits)
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
            f"{label} is larger than the limit of {_size(limits.max_file_bytes)}. Use fewer samples: "
            "a few hundred are enough to calibrate, a few thousand to evaluate."
        )


def _detect(data: bytes, label: str, limits: Limits) -> str | None:
    """The format by content, None if nothing fits. Raises for content that is recognised and unwanted."""
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _detect_zip(data, label, limits)
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


# ---------------------------------------------------------------------------------------------------------------- zip


def _open_zip(data: bytes, label: str, limits: Limits) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive and its files by name, after names, kinds and declared sizes have been checked."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_600))
    if end < 0 or end + 22 > len(data):
        raise BadUpload(f"{label} is a broken zip archive: its table of contents is missing. Upload it again.")
    directory_bytes = struct.unpack_from("<I", data, end + 12)[0]
    if directory_bytes == 0xFFFFFFFF:
        end64 = data.rfind(b"PK\x06\x06", 0, end)
        if end64 >= 0 and end64 + 48 <= end:
            directory_bytes = struct.unpack_from("<Q", data, end64 + 40)[0]
    # Checked before zipfile builds an object for each entry: 40 million of them fit into a file within the size limit.
    if directory_bytes > limits.max_entries * 400:
        raise BadUpload(f"{label} declares a table of contents of {_size(directory_bytes)}. Pack fewer files.")
    with _parsing(label, "a zip archive"):
        archive = zipfile.ZipFile(io.BytesIO(data))
        infos = archive.infolist()
    if len(infos) > limits.max_entries:
        raise BadUpload(f"{label} holds {len(infos):,} files; the limit is {limits.max_entries:,}. Pack fewer files.")
    files: dict[str, zipfile.ZipInfo] = {}
    unpacked = 0
    for info in infos:
        name = info.filename
        parts = PurePosixPath(name.replace("\\", "/"))
        if (
            not name
            or any(ord(c) < 32 for c in name)
            or parts.is_absolute()
            or ".." in parts.parts
            or re.match(r"[A-Za-z]:", name)
        ):
            raise UnsafeFile(f"{label} holds the entry {name!r}, which is no name inside the archive. Pack it again.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UnsafeFile(f"{label} holds the link {name!r}. Pack files, not links.")
        if info.flag_bits & 0x1:
            raise BadUpload(f"{label} is encrypted. Pack it without a password.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadUpload(f"{label} packs {name!r} with a rare method. Pack it as an ordinary zip (deflate).")
        if info.is_dir():
            continue
        if name in files:
            raise BadUpload(f"{label} holds two entries named {name!r}. Pack it again.")
        files[name] = info
        unpacked += info.file_size
    if unpacked > limits.max_unpacked_bytes:
        raise BadUpload(
            f"{label} unpacks to {_size(unpacked)}; the limit is {_size(limits.max_unpacked_bytes)}. Use fewer samples."
        )
    return archive, files


def _detect_zip(data: bytes, label: str, limits: Limits) -> str:
    _, files = _open_zip(data, label, limits)
    names = [name for name in files if not _LITTER.search(name)]
    inner = [name.partition("/")[2] or name for name in names]
    if any(re.search(r"(^|/)(models/[^/]+\.json|archive_format|serialized_exported_program\.json)$", n) for n in names):
        raise BadUpload(f"{label} is a model that torch.export wrote, but data is expected here. Open it as the model.")
    if any(name == "constants.pkl" or re.match(r"code/.*\.py$", name) for name in inner):
        raise BadUpload(f"{label} is a TorchScript model, but data is expected here. {_model_advice()}")
    if "data.pkl" in inner:
        return "pt"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return "images"
    if not names:
        raise BadUpload(f"{label} is an empty archive. Pack images (a folder for each class) or arrays.")
    raise BadUpload(
        f"{label} is a zip archive without images or arrays; it holds {_listed(names)}. "
        "Pack PNG, JPEG, BMP or WebP images, a folder for each class, or save arrays with numpy.savez."
    )


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, label: str, count: int = -1) -> bytes:
    """An entry's bytes (the first `count`). zipfile stops at the declared size and checks the CRC at the end."""
    with _parsing(label, f"the entry {info.filename!r}"), archive.open(info) as file:
        data = file.read(count if count >= 0 else info.file_size)
        if count < 0 and len(data) != info.file_size:
            raise BadUpload(f"{label}: the entry {info.filename!r} ends early. Upload the file again.")
        return data


# -------------------------------------------------------------------------------------------------------- .npy and .npz


def _read_npy(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    header = _npy_header(data, label, len(data), limits)
    return {"x": _npy_array(data, header)}


def _read_npz(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    archive, files = _open_zip(data, label, limits)
    arrays: dict[str, np.ndarray] = {}
    if len(files) > limits.max_arrays:
        raise BadUpload(
            f"{label} holds {len(files):,} arrays; the limit is {limits.max_arrays:,}. One per input is due."
        )
    with archive:
        for name, info in files.items():
            if not name.endswith(".npy"):
                raise BadUpload(f"{label} holds {name!r} beside its arrays. Save it again with numpy.savez.")
            key = name.removesuffix(".npy")
            where = f"{label}, array {key[:80]!r}"
            head = _entry(archive, info, label, 65_536)
            header = _npy_header(head, where, info.file_size, limits, strings=key == "class_names")
            arrays[key] = _npy_array(_entry(archive, info, label), header)
    return arrays


@dataclass(frozen=True)
class _NpyHeader:
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int


# The header is a Python literal. A pattern of what the format allows does without evaluating it.
_NPY_ITEM = re.compile(
    r"""\s*(['"])(?P<key>descr|fortran_order|shape)\1\s*:\s*
    (?:(['"])(?P<text>[^'"\\]*)\3|(?P<flag>True|False)|\((?P<shape>[\d,\s]*)\)|(?P<fields>\[.*\]))\s*(?:,|$)""",
    re.VERBOSE | re.DOTALL,
)


def _npy_header(head: bytes, where: str, declared: int, limits: Limits, *, strings: bool = False) -> _NpyHeader:
    """The header of an .npy of `declared` bytes; its shape and dtype account for exactly those bytes."""
    if not head.startswith(b"\x93NUMPY") or len(head) < 12:
        raise BadUpload(f"{where} is not an .npy array (it begins with {_shown(head[:8])}). Save it with numpy.save.")
    if head[6] not in (1, 2, 3):
        raise BadUpload(f"{where} is of .npy version {head[6]}.{head[7]}; 1.0 to 3.0 are known. Save it again.")
    start = 10 if head[6] == 1 else 12
    length = int.from_bytes(head[8:start], "little")
    if start + length > len(head):
        raise BadUpload(f"{where} ends within its header, or has one of {length:,} bytes. Upload the file again.")
    text = head[start : start + length].decode("latin1").strip()
    values: dict[str, re.Match[str]] = {}
    position, body = 0, text[1:-1].rstrip() if text[:1] == "{" and text[-1:] == "}" else ""
    while position < len(body) and (match := _NPY_ITEM.match(body, position)):
        values[match["key"]] = match
        position = match.end()
    kinds = {key: match.lastgroup for key, match in values.items()}
    if kinds.get("descr") == "fields":
        raise BadUpload(f"{where} is a structured array. Save each field as an array of its own with numpy.savez.")
    if kinds != {"descr": "text", "fortran_order": "flag", "shape": "shape"} or position != len(body):
        raise BadUpload(f"{where} has a broken header. Save it again with numpy.save.", detail=text[:500])
    dtype = _npy_dtype(values["descr"]["text"], where, strings=strings)
    sizes = [size.strip() for size in values["shape"]["shape"].split(",")]
    sizes = sizes[:-1] if sizes[-1] == "" else sizes
    if not all(re.fullmatch("[0-9]{1,18}", size) for size in sizes):
        raise BadUpload(f"{where} has the broken shape ({values['shape']['shape'][:80]}). Save it again.")
    shape = tuple(int(size) for size in sizes)
    size = _checked_bytes(shape, dtype.itemsize, where, limits)
    if start + length + size != declared:
        raise BadUpload(
            f"{where} declares {_shape(shape)} {dtype}, which is {size:,} bytes, but {declared - start - length:,} "
            "follow the header. The file is cut off, or holds several arrays: save it again (several with numpy.savez)."
        )
    return _NpyHeader(dtype, shape, values["fortran_order"]["flag"] == "True", start + length)


def _npy_dtype(text: str, where: str, *, strings: bool) -> np.dtype:
    if re.fullmatch(r"[|<>=]?O\d*", text):
        raise UnsafeFile(
            f"{where} holds Python objects, which are pickled: opening them can run any code, so they are refused. "
            "Save a plain array of numbers; rows of unequal length need padding first."
        )
    if re.fullmatch(r"[|<>=]?[US][1-9]\d{0,5}", text):
        if strings:
            return np.dtype(text)
        raise BadUpload(f"{where} holds text. Save class numbers, and the names as an array named class_names.")
    if re.fullmatch(r"[|<>=]?([?bBhHiIlLqQefd]|[biuf]\d)", text):
        with _parsing(where, f"the dtype {text!r}"):
            return np.dtype(text)
    what = "complex numbers" if re.fullmatch(r"[|<>=]?[cFDG]\d*", text) else f"the dtype {text[:40]!r}"
    raise BadUpload(f"{where} holds {what}. Save whole numbers or floats of at most 64 bits.")


def _npy_array(data: bytes, header: _NpyHeader) -> np.ndarray:
    array = _values(data, header.dtype, header.shape, header.offset, "F" if header.fortran_order else "C")
    if array.dtype.kind == "U":
        codes = np.frombuffer(array.tobytes(), np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise BadUpload("class_names holds characters that do not exist. Save the file again.")
    return array


# --------------------------------------------------------------------------------------------------------- safetensors

_SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "BF16": np.dtype("<u2"),
}  # fmt: skip


def _read_safetensors(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8 or length > limits.max_header_bytes:
        raise BadUpload(f"{label} declares a header of {length:,} bytes and has {len(data):,} in all. Save it again.")
    with _parsing(label, "the safetensors header"):
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique_keys)
    if not isinstance(header, dict):
        raise BadUpload(f"{label} has a safetensors header that is not an object. Save it again.")
    header.pop("__metadata__", None)
    if len(header) > limits.max_arrays:
        raise BadUpload(f"{label} holds {len(header):,} tensors; the limit is {limits.max_arrays:,}.")
    arrays: dict[str, np.ndarray] = {}
    total = 0
    for name, entry in header.items():
        where = f"{label}, tensor {name[:80]!r}"
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise BadUpload(f"{where} has no dtype, shape and data_offsets. Save the file again.")
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise BadUpload(f"{where} is of dtype {str(entry['dtype'])[:40]}. Save whole numbers or floats.")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
            raise BadUpload(f"{where} has a broken shape or broken data_offsets. Save the file again.")
        size = _checked_bytes(tuple(shape), dtype.itemsize, where, limits)
        begin, end = offsets
        if not begin <= end <= len(data) - 8 - length or end - begin != size:
            raise BadUpload(
                f"{where} declares {_shape(shape)} {entry['dtype']}, which is {size:,} bytes, at {begin:,} to {end:,}; "
                f"the file has {len(data) - 8 - length:,} bytes of data. It is cut off or forged: save it again."
            )
        total += size  # several tensors may point at the same bytes
        if total > limits.max_unpacked_bytes:
            raise BadUpload(f"{label} holds more than {_size(limits.max_unpacked_bytes)}. Use fewer samples.")
        array = _values(data, dtype, tuple(shape), 8 + length + begin)
        arrays[name] = _from_bfloat16(array) if entry["dtype"] == "BF16" else array
    return arrays


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise BadUpload("The safetensors header names a tensor twice. Save the file again.")
    return result


# --------------------------------------------------------------------------------------------------------------- torch

_STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"), "ByteStorage": np.dtype("u1"), "CharStorage": np.dtype("i1"),
    "ShortStorage": np.dtype("<i2"), "IntStorage": np.dtype("<i4"), "LongStorage": np.dtype("<i8"),
    "BoolStorage": np.dtype(bool),
}  # fmt: skip
_REBUILD, _ORDERED_DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_MARK = object()


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


def _read_pt(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    archive, files = _open_zip(data, label, limits)
    with archive:
        pickle_name = next(name for name in files if (name.partition("/")[2] or name) == "data.pkl")
        prefix = pickle_name.removesuffix("data.pkl")
        if files[pickle_name].file_size > _MAX_INDEX_BYTES:
            raise BadUpload(f"{label} has an index of {_size(files[pickle_name].file_size)}. Save only the tensors.")
        order = files.get(prefix + "byteorder")
        if order is not None and _entry(archive, order, label) != b"little":
            raise BadUpload(f"{label} was written on a big-endian machine. Save the data with numpy.savez.")

        total = 0
        storages: dict[_Storage, np.ndarray] = {}

        def tensor(arguments: tuple) -> np.ndarray:
            nonlocal total
            storage, offset, shape, stride = arguments[:4] if len(arguments) >= 6 else (None,) * 4
            if (
                not isinstance(storage, _Storage) or not _are_sizes((offset,)) or not _are_sizes(shape)
                or not _are_sizes(stride) or len(shape) != len(stride)
            ):  # fmt: skip
                raise BadUpload(f"{label} describes a tensor in a way torch.save does not. Save it again.")
            dtype = _STORAGES[storage.kind]
            record = files.get(f"{prefix}data/{storage.key}")
            where = f"{label}, tensor {_shape(shape)}"
            if record is None or record.file_size != storage.count * dtype.itemsize:
                held = "none" if record is None else f"{record.file_size:,}"
                raise UnsafeFile(
                    f"{where} claims {storage.count * dtype.itemsize:,} bytes of storage and the file holds {held}. "
                    "It is damaged or forged: save the tensors again."
                )
            # A stride of 0 makes a huge tensor out of few bytes, so the unpacked size counts, not the stored one.
            total += _checked_bytes(shape, dtype.itemsize, where, limits)
            last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
            if total > limits.max_unpacked_bytes:
                raise BadUpload(f"{label} holds more than {_size(limits.max_unpacked_bytes)}. Use fewer samples.")
            if math.prod(shape) and last >= storage.count:
                raise UnsafeFile(f"{where} reaches beyond its storage. It is damaged or forged: save it again.")
            if not math.prod(shape):
                return np.zeros(shape, np.float32 if storage.kind == "BFloat16Storage" else dtype)
            if storage not in storages:  # thousands of tensors may share one
                storages[storage] = _values(_entry(archive, record, label), dtype, (storage.count,))
            flat = storages[storage][offset:]
            steps = tuple(step * dtype.itemsize for step in stride)
            array = np.lib.stride_tricks.as_strided(flat, shape, steps).copy()
            return _from_bfloat16(array) if storage.kind == "BFloat16Storage" else array

        content = _tensor_pickle(_entry(archive, files[pickle_name], label), label, tensor)
    return _named_arrays(content, label, limits)


def _tensor_pickle(data: bytes, label: str, tensor: Any) -> Any:
    """What a pickle of plain tensors holds. Only the opcodes that it needs exist here; no name is ever looked up."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def put(target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in pairs[::2]):
            raise BadUpload(f"{label} holds a table whose keys are not names. Save a dict of tensors by name.")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    with _parsing(label, "the index of the tensors"):
        opcode: Any
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            match opcode.name:
                case "PROTO":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(_MARK)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                    stack.append(argument)
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    if len(stack) < count:
                        raise BadUpload(f"{label} has a broken index. Save the tensors again.")
                    stack[-count:] = [tuple(stack[-count:])]
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "APPEND" | "APPENDS":
                    items = since_mark() if opcode.name == "APPENDS" else [stack.pop()]
                    if not isinstance(stack[-1], list):
                        raise BadUpload(f"{label} has a broken index. Save the tensors again.")
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS":
                    items = since_mark() if opcode.name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                    put(stack[-1], items)
                case "GLOBAL":
                    module, _, name = argument.partition(" ")
                    if argument not in (_REBUILD, _ORDERED_DICT) and not (module == "torch" and name in _STORAGES):
                        _refuse_global(label, f"{module}.{name}")
                    stack.append(_Global(argument))
                case "BINPERSID":
                    stack.append(_storage(stack.pop(), label))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    if function == _Global(_ORDERED_DICT) and arguments == ():
                        stack.append({})
                    elif function == _Global(_REBUILD) and isinstance(arguments, tuple):
                        stack.append(tensor(arguments))
                    else:
                        raise UnsafeFile(
                            f"{label} calls something that a file of tensors has no need to. It is refused."
                        )
                case _:
                    _refuse_global(label, f"the opcode {opcode.name}")
    raise BadUpload(f"{label} has an index without an end. Save the tensors again.")


def _refuse_global(label: str, what: str) -> NoReturn:
    raise UnsafeFile(
        f"{label} asks for {what}, so it is "
        "not a plain file of tensors: a model saved whole, a state_dict or another object; opening it could run code. "
        "For data, save tensors alone: torch.save({'x': x, 'y': y}, 'data.pt') with x.detach().cpu(). "
        + _model_advice()
    )


def _storage(value: Any, label: str) -> _Storage:
    match value:
        case ("storage", _Global(name), str(key), str(), int(count)) if name.startswith("torch ") and count >= 0:
            return _Storage(name.removeprefix("torch "), key, count)
    raise BadUpload(f"{label} describes a storage in a way torch.save does not. Save the tensors again.")


def _named_arrays(content: Any, label: str, limits: Limits) -> dict[str, np.ndarray]:
    if isinstance(content, np.ndarray):
        return {"x": content}
    if isinstance(content, list | tuple) and all(isinstance(item, np.ndarray) for item in content):
        content = {f"x{i}": item for i, item in enumerate(content)} if len(content) != 1 else {"x": content[0]}
    if not isinstance(content, dict):
        raise BadUpload(
            f"{label} holds no tensors. Save a tensor, or a dict of them: torch.save({{'x': x, 'y': y}}, ...)."
        )
    if len(content) > limits.max_arrays:
        raise BadUpload(f"{label} holds {len(content):,} tensors; the limit is {limits.max_arrays:,}.")
    arrays: dict[str, np.ndarray] = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif name == "class_names" and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            arrays[name] = np.array(value, dtype=np.str_)
        elif name in ("scale", "mean", "std") and _are_numbers(value):
            arrays[name] = np.array(value, dtype=np.float64)
        else:
            raise BadUpload(f"{label} holds {name!r}, which is no tensor. Save tensors alone, by name.")
    return arrays


# ------------------------------------------------------------------------------------------------------------- tables


def _read_csv(data: bytes, label: str, limits: Limits, labels: str | None = None) -> dict[str, np.ndarray]:
    import pandas as pd

    if b"\0" in data:
        raise BadUpload(f"{label} is not UTF-8 text: it holds zero bytes. Save the table as CSV in UTF-8.")
    head = data[: limits.max_header_bytes].decode("utf-8-sig", errors="replace").lstrip("\r\n")
    line = re.match(r"[^\r\n]*", head)
    separator = max(",;\t", key=line[0].count if line else head.count)
    with _parsing(label, "a CSV table"):
        lines = csv.reader(io.StringIO(head, newline=""), delimiter=separator, skipinitialspace=True)
        top = [fields for fields, _ in zip((fields for fields in lines if fields), range(2), strict=False)]
    fields = top[0] if top else []
    rows = max(data.count(b"\n"), data.count(b"\r")) + 1
    _check_table(rows, len(fields), label, limits)
    has_header = not all(_is_number(field) for field in fields)
    with _parsing(label, "a CSV table"):
        frame = pd.read_csv(
            io.BytesIO(data), sep=separator, header=0 if has_header else None, low_memory=False, encoding="utf-8-sig",
            # Only an empty field and NaN count as missing: "NA" and "None" are names that classes have.
            keep_default_na=False, na_values=["", "NaN", "nan"], skipinitialspace=True,
        )  # fmt: skip
    # pandas makes an index of the fields that have no name. It may look like any other, so the second line is counted.
    if (len(top) > 1 and len(top[1]) > len(fields)) or not frame.index.equals(pd.RangeIndex(len(frame))):
        raise BadUpload(f"{label} has rows with more fields than its first line has names. Give each column a name.")
    frame.columns = pd.Index([str(name) if has_header else f"column {i + 1}" for i, name in enumerate(frame.columns)])
    _check_table(len(frame), frame.shape[1], label, limits)
    for name in frame.columns:
        unnamed = re.fullmatch(r"Unnamed: \d+", name)
        if unnamed and len(frame) > 1 and np.array_equal(frame[name].to_numpy(), np.arange(len(frame))):
            raise BadUpload(
                f"{label} has a column without a name that counts the rows; it would be taken for a feature. "
                "Write the table with index=False, or delete that column."
            )
    return _table_arrays(frame, label, limits, labels)


def _read_parquet(data: bytes, label: str, limits: Limits, labels: str | None = None) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _parsing(label, "a Parquet file"):
        metadata = pq.read_metadata(pa.BufferReader(data))
        names = list(metadata.schema.to_arrow_schema().names)
        types = dict(zip(names, metadata.schema.to_arrow_schema().types, strict=True))
        rows, columns = metadata.num_rows, metadata.num_columns
        unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    _check_table(rows, columns, label, limits)
    if unpacked > limits.max_unpacked_bytes or unpacked < 0:
        raise BadUpload(f"{label} unpacks to {_size(unpacked)}; the limit is {_size(limits.max_unpacked_bytes)}.")
    if len(set(names)) != len(names):
        raise BadUpload(f"{label} has two columns of one name. Give each a name of its own.")
    text = []
    for name, kind in types.items():
        if isinstance(kind, pa.DictionaryType):
            kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            continue
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (is_text and _is_target_column(name, labels)):
            raise BadUpload(
                f"{label}: the column {name!r} holds {str(kind)[:80]} from row 1 on, not numbers. "
                "Encode it as numbers or leave it out; only a column of labels may hold text."
            )
        text.append(name)
    with _parsing(label, "a Parquet file"):
        # Text stays dictionary-encoded: written out, a long label repeated over millions of rows would fill the memory.
        table = pq.ParquetFile(pa.BufferReader(data), read_dictionary=text).read(use_threads=False)
        frame = table.to_pandas(ignore_metadata=True)
    if len(frame) != rows:
        raise BadUpload(f"{label} declares {rows:,} rows and holds {len(frame):,}. Save it again.")
    return _table_arrays(frame, label, limits, labels)


def _is_target_column(name: str, labels: str | None) -> bool:
    return name == labels if labels is not None else name.strip().lower() in TABLE_TARGET_NAMES


def _check_table(rows: int, columns: int, label: str, limits: Limits) -> None:
    # 8 bytes a number while pandas holds the table
    if rows > limits.max_rows or columns > limits.max_columns or rows * columns * 8 > limits.max_unpacked_bytes:
        raise BadUpload(
            f"{label} is a table of {rows:,} rows and {columns:,} columns; the limits are {limits.max_rows:,} rows, "
            f"{limits.max_columns:,} columns and {_size(limits.max_unpacked_bytes)}. Use fewer samples."
        )


def _table_arrays(frame: Any, label: str, limits: Limits, labels: str | None) -> dict[str, np.ndarray]:
    """Numeric columns as x [N, F] float32, the column of labels as y (text: numbers, and class_names)."""
    import pandas as pd

    targets = [name for name in frame.columns if _is_target_column(name, labels)]
    if labels is not None and not targets:
        raise BadUpload(f"{label} has no column {labels!r}; it has {_listed([str(name) for name in frame.columns])}.")
    if len(targets) > 1:
        raise BadUpload(f"{label} has several columns of labels: {_listed(targets)}. Keep one of them.")
    features = [name for name in frame.columns if name not in targets]
    if not len(frame):
        raise BadUpload(
            f"{label} has the columns {_listed([str(name) for name in frame.columns])} and no rows. Add some."
        )
    arrays: dict[str, np.ndarray] = {}
    x = np.empty((len(frame), len(features)), np.float32)
    for i, name in enumerate(features):
        column = frame[name]
        numbers = column if pd.api.types.is_numeric_dtype(column) else pd.to_numeric(column, errors="coerce")
        if numbers is not column and (bad := (numbers.isna() & column.notna()).to_numpy()).any():
            row = int(bad.argmax())
            raise BadUpload(
                f"{label}: the column {name!r} holds {str(column.iloc[row])[:60]!r} in row {row + 1}, not a number. "
                "Encode it as numbers or leave it out; only a column of labels may hold text."
            )
        values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(values).all():
            row = int((~np.isfinite(values)).argmax())
            what = "no value" if np.isnan(values[row]) else "an infinite value"
            raise BadUpload(f"{label}: the column {name!r} has {what} in row {row + 1}. Fill it in or drop the row.")
        if np.abs(values).max(initial=0) > np.finfo(np.float32).max:
            raise BadUpload(f"{label}: the column {name!r} holds numbers too large for float32. Scale it first.")
        x[:, i] = values
    if features:
        arrays["x"] = x
    if targets:
        column = frame[targets[0]]
        missing = column.isna().to_numpy()
        if missing.any():
            raise BadUpload(f"{label}: row {int(missing.argmax()) + 1} has no label. Fill it in or drop the row.")
        if pd.api.types.is_numeric_dtype(column):
            arrays["y"] = column.to_numpy()
        else:
            codes, names = pd.factorize(column.astype("category"), sort=True)
            arrays["y"] = codes.astype(np.int64)
            arrays["class_names"] = np.array([str(name) for name in names], dtype=np.str_)
            if arrays["class_names"].nbytes > limits.max_header_bytes:
                raise BadUpload(f"{label}: the column {targets[0]!r} holds long texts, not names of classes.")
    return arrays


# ------------------------------------------------------------------------------------------------------------- images


def _read_images(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    """uint8 [N, 3, H, W], or [N, 1, H, W] if all are grey; y and class_names from the folders, if there are any."""
    archive, files = _open_zip(data, label, limits)
    names = sorted(name for name in files if not _LITTER.search(name))
    paths = [PurePosixPath(name) for name in names]
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise BadUpload(
                f"{label} holds {str(path)!r} among the images. Leave it out; PNG, JPEG, BMP, WebP are read."
            )
    folders = _class_folders(paths, label)
    arrays: dict[str, np.ndarray] = {}
    with archive:
        sizes: list[tuple[int, int]] = []
        grey = True
        for name in names:
            image = _open_image(_entry(archive, files[name], label), f"{label}, image {name!r}", limits)
            sizes.append(image.size)
            grey = grey and image.mode in ("1", "L", "LA")
        if len(set(sizes)) > 1:
            found = ", ".join(f"{w} x {h} ({n} images)" for (w, h), n in Counter(sizes).most_common(5))
            more = f" and {len(set(sizes)) - 5} more" if len(set(sizes)) > 5 else ""
            raise BadUpload(f"{label} holds images of several sizes: {found}{more}. Resize them to the model's size.")
        width, height = sizes[0]
        shape = (len(names), 1 if grey else 3, height, width)
        _checked_bytes(shape, 1, label, limits)
        x = np.empty(shape, np.uint8)
        for i, name in enumerate(names):
            where = f"{label}, image {name!r}"
            x[i] = _pixels(_open_image(_entry(archive, files[name], label), where, limits), where, grey)
    arrays["x"] = x
    if folders is not None:
        classes = sorted(set(folders))
        arrays["y"] = np.array([classes.index(folder) for folder in folders], np.int64)
        arrays["class_names"] = np.array(classes, dtype=np.str_)
    return arrays


def _class_folders(paths: list[PurePosixPath], label: str) -> list[str] | None:
    """The class folder of each image; None if all lie in one folder. Folders around all of them do not count."""
    parents = [path.parts[:-1] for path in paths]
    around = 0
    while all(len(parts) > around and parts[around] == parents[0][around] for parts in parents):
        around += 1
    depths = {len(parts) - around for parts in parents}
    if depths == {0}:
        return None
    if depths == {1}:
        return [parts[-1] for parts in parents]
    raise BadUpload(
        f"{label} has images {_listed(sorted({str(path.parent) for path in paths}))}, at different depths. "
        "Put each image into the folder of its class, and the class folders side by side."
    )


def _open_image(data: bytes, where: str, limits: Limits) -> Any:
    from PIL import Image

    with _parsing(where, "an image"):
        # Opening reads the header alone; the size is checked before a pixel is decoded.
        try:
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "WEBP"))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadUpload(f"{where} has too many pixels: {error} Resize it.") from error
        animated = getattr(image, "is_animated", False)
    width, height = image.size
    if width * height > limits.max_image_pixels or width * height == 0:
        raise BadUpload(f"{where} has {width} x {height} pixels; the limit is {limits.max_image_pixels:,}. Resize it.")
    if animated:
        raise BadUpload(f"{where} is an animation. Save one frame of it.")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise BadUpload(
            f"{where} has pixels of kind {image.mode}, which is not 8 bits a channel. Save it as 8-bit RGB."
        )
    return image


def _pixels(image: Any, where: str, grey: bool) -> np.ndarray:
    """[C, H, W] uint8."""
    with _parsing(where, "an image"):
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            if image.getextrema()[3][0] < 255:
                raise BadUpload(f"{where} has transparent parts. Put it on a background and save it as RGB.")
        pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


# ------------------------------------------------------------------------------------------------------------ helpers


@contextmanager
def _parsing(where: str, what: str) -> Iterator[None]:
    """Around a foreign parser: it raises what it likes on broken bytes, and all of it means one thing to the user."""
    try:
        yield
    except QLabError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise BadUpload(
            f"{where} cannot be read as {what}: {reason}. The file is cut off or broken: save and upload it again.",
            detail=f"{type(error).__name__}: {error}",
        ) from error


def _checked_bytes(shape: tuple[int, ...], itemsize: int, where: str, limits: Limits) -> int:
    if len(shape) > _MAX_AXES:
        raise BadUpload(f"{where} has {len(shape)} axes; at most {_MAX_AXES} are read.")
    # An axis of 0 must not hide a shape that numpy cannot hold.
    if max(shape, default=1) > 2**40 or math.prod(size or 1 for size in shape) > 2**60:
        raise BadUpload(f"{where} declares the shape {_shape(shape)}. The file is damaged or forged: save it again.")
    size = math.prod(shape) * itemsize
    if size > limits.max_unpacked_bytes:
        raise BadUpload(
            f"{where} declares {_shape(shape)}, which is {_size(size)}; the limit is "
            f"{_size(limits.max_unpacked_bytes)}. Use fewer samples."
        )
    return size


def _values(
    data: bytes, dtype: np.dtype, shape: tuple[int, ...], offset: int = 0, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """The array at `offset` in `data`, whose length has been checked; a view where the bytes serve as they are."""
    count = math.prod(shape)
    if count == 0:  # numpy does not take an offset at the end of the data
        return np.zeros(shape, dtype)
    if dtype.kind == "b":  # a byte of 2 is neither False nor True to numpy
        return np.frombuffer(data, np.uint8, count, offset).reshape(shape, order=order) != 0
    array = np.frombuffer(data, dtype, count, offset).reshape(shape, order=order)
    # In the machine's byte order: torch takes no other.
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bit patterns (uint16): the upper half of a float32."""
    return np.left_shift(bits.astype(np.uint32), 16).view(np.float32)


def _model_advice() -> str:
    from qlab.graph.archive import EXPORT_LINES

    return f"A model is brought in like this:\n{EXPORT_LINES}"


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(v) is int and 0 <= v < 2**62 for v in value)


def _are_numbers(value: Any) -> bool:
    return all(type(v) in (int, float) for v in (value if isinstance(value, list | tuple) else (value,)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _suffix_of(kind: str) -> str:
    return next(suffix for suffix, known in _KIND_BY_SUFFIX.items() if known == kind)


def _shape(shape: Any) -> str:
    sizes = [str(size) for size in shape[: _MAX_AXES + 1]]
    return "[" + ", ".join(sizes) + (", ...]" if len(shape) > len(sizes) else "]")


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / 1024**2:.1f} MiB"


def _shown(data: bytes) -> str:
    return repr(data)[1:]


def _listed(names: list[str], limit: int = 5) -> str:
    return ", ".join(repr(name) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
