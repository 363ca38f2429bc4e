"""Arrays that numpy saved: .npy, and .npz archives of them."""

import re
from dataclasses import dataclass

import numpy as np

from qlab.errors import BadUpload, UnsafeFile
from qlab.readers.common import Limits, check_array_count, checked_bytes, parsing, shape_text, shown, values_at
from qlab.readers.zips import entry_bytes, open_zip


def read_npy(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    header = _npy_header(data, label, len(data), limits)
    return {"x": _npy_array(data, header)}


def read_npz(data: bytes, label: str, limits: Limits) -> dict[str, np.ndarray]:
    archive, files = open_zip(data, label, limits)
    arrays: dict[str, np.ndarray] = {}
    check_array_count(label, len(files), limits)
    with archive:
        for name, info in files.items():
            if not name.endswith(".npy"):
                raise BadUpload(f"{label} holds {name!r} beside its arrays. Save it again with numpy.savez.")
            key = name.removesuffix(".npy")
            where = f"{label}, array {key[:80]!r}"
            head = entry_bytes(archive, info, label, 65_536)
            header = _npy_header(head, where, info.file_size, limits, strings=key == "class_names")
            arrays[key] = _npy_array(entry_bytes(archive, info, label), header)
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
        raise BadUpload(f"{where} is not an .npy array (it begins with {shown(head[:8])}). Save it with numpy.save.")
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
    size = checked_bytes(shape, dtype.itemsize, where, limits)
    if start + length + size != declared:
        raise BadUpload(
            f"{where} declares {shape_text(shape)} {dtype}, which is {size:,} bytes, but {declared - start - length:,} "
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
        with parsing(where, f"the dtype {text!r}"):
            return np.dtype(text)
    what = "complex numbers" if re.fullmatch(r"[|<>=]?[cFDG]\d*", text) else f"the dtype {text[:40]!r}"
    raise BadUpload(f"{where} holds {what}. Save whole numbers or floats of at most 64 bits.")


def _npy_array(data: bytes, header: _NpyHeader) -> np.ndarray:
    array = values_at(data, header.dtype, header.shape, header.offset, "F" if header.fortran_order else "C")
    if array.dtype.kind == "U":
        codes = np.frombuffer(array.tobytes(), np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise BadUpload("class_names holds characters that do not exist. Save the file again.")
    return array
