"""Reads a `.pt2` (torch.export.save, schema 8) as zip, JSON and raw bytes. Runs nothing from it.

torch.export.load evaluates texts of the file and unpickles parts of it; see `archive_schema` and `archive_graph` for
what takes its place. The sample inputs, which are a pickle, are never opened.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import fx, nn

from qlab.errors import BadUpload, UnsafeFile
from qlab.graph.archive_graph import build_graph
from qlab.graph.archive_schema import (
    EXPORT_LINES,
    as_bool,
    as_int,
    as_list,
    as_record,
    as_text,
    check_guard,
    check_shape_expression,
    check_strings,
    damaged,
    dtype_of,
    field,
    parse_json,
    plain_int,
    record_at,
    shown,
    text_at,
)
from qlab.graph.archive_sizes import InputSpec

__all__ = ["EXPORT_LINES", "InputSpec", "Program", "read_program"]

SCHEMA_MAJOR = 8
MAX_ARCHIVE = 2 * 2**30
MAX_UNPACKED = 2 * 2**30
MAX_ENTRIES = 20_000
MAX_DIRECTORY = 8 * 2**20  # bytes of the zip's table of contents; each entry of it costs far more memory once read
MAX_JSON = 48 * 2**20
MAX_RATIO = 100  # of unpacked to packed size, beyond the first 16 MB; torch itself does not compress
MAX_NAME = 1_000

_LIBRARY = re.compile(r"\.(so(\.\d+)*|dll|dylib|pyd|exe|cubin|hsaco|ptx|o|a|lib)$", re.IGNORECASE)


@dataclass
class Program:
    """graph_module: placeholders are the user's inputs alone, parameters are get_attr nodes."""

    graph_module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    torch_version: str


def read_program(source: str | Path | bytes) -> Program:
    """Read a `.pt2` from a path or from its bytes.

    Raises BadUpload (not a .pt2, broken, too large), UnsafeFile (would run code or reach outside itself),
    UnsupportedModel (an exported model the lab cannot take).
    """
    if isinstance(source, bytes):
        if len(source) > MAX_ARCHIVE:
            _too_large(len(source))
        return _read(io.BytesIO(source))
    path = Path(source)
    if not path.is_file():
        raise BadUpload("There is no model file of that name. Give the path of a .pt2 file.")
    if path.stat().st_size > MAX_ARCHIVE:
        _too_large(path.stat().st_size)
    with path.open("rb") as file:
        return _read(file)


def _too_large(size: int) -> None:
    raise BadUpload(f"The model file has {size / 2**30:.1f} GB; the lab reads up to {MAX_ARCHIVE / 2**30:.0f} GB.")


def _read(file: IO[bytes]) -> Program:
    _refuse_other_formats(file)
    archive = _Archive(file)
    name = archive.model_name()
    document = parse_json(archive.read(f"models/{name}.json", MAX_JSON), "models/*.json")
    version = _check_document(document)
    weights = _Weights(archive, name)
    graph_module, inputs = build_graph(document, weights.tensor)
    return Program(graph_module, inputs, version)


def _check_document(document: dict[str, object]) -> str:
    """Version first: the rest is only known for the version the lab reads. Returns the version of torch."""
    schema = record_at(document, "schema_version", "program")
    major = as_int(field(schema, "major", "schema_version"), "schema_version.major")
    version = as_text(document.get("torch_version", "unknown"), "torch_version")
    version = version if re.fullmatch(r"[\w.+-]{1,60}", version) else "unknown"
    if major != SCHEMA_MAJOR:
        raise BadUpload(
            f"The model file was written by torch {version} with schema version {major}; the lab reads version "
            f"{SCHEMA_MAJOR}, which torch 2.13 writes. Export the model again with torch 2.13:\n\n{EXPORT_LINES}"
        )
    check_strings(document)
    for guard in as_list(document.get("guards_code", []), "guards_code"):
        check_guard(as_text(guard, "guards_code"))
    for symbol in record_at(document, "range_constraints", "program"):
        check_shape_expression(symbol)
    return version


# --- zip --------------------------------------------------------------------------------------------------------------


class _Bounded(io.RawIOBase):
    """A file that refuses large reads. zipfile reads the table of contents in one go, whatever size the file claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.limit: int | None = MAX_DIRECTORY

    def read(self, size: int = -1) -> bytes:
        if self.limit is None:
            return self.file.read(size)
        data = self.file.read(self.limit + 1 if size < 0 else min(size, self.limit + 1))
        if len(data) > self.limit:
            raise BadUpload(f"The model file's table of contents is larger than {MAX_DIRECTORY // 2**20} MB.")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


# What zipfile raises on a file that is cut off or altered.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    struct.error,
    ValueError,
    OSError,
    OverflowError,
)


class _Archive:
    """The entries of the zip, checked by name and size before any is read."""

    def __init__(self, file: IO[bytes]) -> None:
        bounded = _Bounded(file)
        try:
            self.zip = zipfile.ZipFile(bounded)
        except _ZIP_ERRORS as error:
            raise BadUpload(
                "The model file is a damaged or cut off zip archive. Upload it again, or export the model again.",
                detail=str(error)[:300],
            ) from error
        bounded.limit = None
        infos = self.zip.infolist()
        if len(infos) > MAX_ENTRIES:
            raise BadUpload(f"The model file has {len(infos):,} entries, more than {MAX_ENTRIES:,}.")
        self.entries: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            _check_entry(info)
            if info.filename in self.entries:
                raise UnsafeFile(
                    f"The model file has two entries named {shown(info.filename)}, so two readers may see two models. "
                    "Export the model again."
                )
            self.entries[info.filename] = info
        total = sum(info.file_size for info in infos)
        if total > MAX_UNPACKED:
            raise BadUpload(
                f"The model file unpacks to {total / 2**30:.1f} GB, more than {MAX_UNPACKED / 2**30:.0f} GB."
            )
        self.root = _root_of(self.entries)

    def model_name(self) -> str:
        pattern = re.compile(re.escape(self.root) + r"models/([^/]{1,200})\.json")
        names = [m[1] for m in map(pattern.fullmatch, self.entries) if m]
        if len(names) != 1:
            raise BadUpload(
                f"The model file holds {len(names)} models; the lab reads files with one. "
                f"Save it alone:\n\n{EXPORT_LINES}"
            )
        inside = [n.removeprefix(self.root) for n in self.entries]
        if any(n.startswith(("data/aotinductor/", "executorch/", "mtia/")) or _LIBRARY.search(n) for n in inside):
            raise UnsafeFile(
                "The model file contains compiled code, which would run on this machine. "
                f"Save the exported program itself, without compiling it:\n\n{EXPORT_LINES}"
            )
        if any(n.startswith(("data/constants/custom_obj_", "data/constants/opaque_obj_")) for n in inside):
            _refuse_pickle("a custom object")
        order = self.read("byteorder", 16) if f"{self.root}byteorder" in self.entries else b"little"
        if order != b"little":
            raise BadUpload("The model file was written on a big-endian machine. Export it on an ordinary one.")
        return names[0]

    def has(self, name: str) -> bool:
        return self.root + name in self.entries

    def read(self, name: str, limit: int) -> bytes:
        info = self.entries.get(self.root + name)
        if info is None:
            damaged("the archive", f"has no entry {shown(name)}")
        if info.file_size > limit:
            raise BadUpload(
                f"{shown(name)} in the model file has {info.file_size:,} bytes; the lab reads up to {limit:,} of it."
            )
        try:
            with self.zip.open(info) as entry:
                # one byte more than declared: reading to the end is what makes zipfile compare the checksum
                data = entry.read(info.file_size + 1)
        except _ZIP_ERRORS as error:
            raise BadUpload(
                f"{shown(name)} in the model file is damaged: cut off or altered after it was written. "
                "Upload it again.",
                detail=str(error)[:300],
            ) from error
        if len(data) != info.file_size:
            damaged(shown(name), f"has {len(data):,} bytes instead of {info.file_size:,}")
        return data


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    parts = name.removesuffix("/").split("/")
    if (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or re.match(r"[A-Za-z]:", name)
        or {"..", ".", ""} & set(parts)
    ):
        raise UnsafeFile(
            f"The model file has an entry that points outside of it: {shown(name)}. "
            "torch.export.save writes no such names: distrust the file."
        )
    if len(name) > MAX_NAME:
        raise BadUpload(f"The model file has an entry with a name of {len(name):,} characters.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UnsafeFile(f"The model file has a link instead of a file: {shown(name)}. Pack the files themselves.")
    if info.flag_bits & 0x1:
        raise BadUpload("The model file is encrypted. Upload it without a password.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadUpload("The model file is compressed in an unusual way. Upload it as torch.export.save wrote it.")
    if info.file_size > MAX_RATIO * info.compress_size + 16 * 2**20:
        raise BadUpload(
            f"{shown(name)} in the model file unpacks to {info.file_size:,} bytes from {info.compress_size:,}: "
            "that is a trap to fill the memory, not a model."
        )


def _root_of(entries: dict[str, zipfile.ZipInfo]) -> str:
    """The folder all of a .pt2 lies in. Other zips are named for what they are."""
    roots = sorted(
        n.removesuffix("archive_format") for n in entries if n.count("/") == 1 and n.endswith("/archive_format")
    )
    if len(roots) == 1:
        return roots[0]
    names = set(entries)
    if any(n.rpartition("/")[2] == "constants.pkl" for n in names):
        what = "a TorchScript archive (torch.jit.save)"
    elif any(n.rpartition("/")[2] == "data.pkl" for n in names):
        what = "a pickled module or weights alone (torch.save)"
    elif any(n.rpartition("/")[2] == "serialized_exported_program.json" for n in names):
        what = "an exported program of an older torch, whose weights are pickled"
    elif names and all(n.endswith(".npy") for n in names):
        raise BadUpload("This is a data file (.npz), not a model. Upload it as data.")
    else:
        raise BadUpload(
            f"This zip archive is not a model written by torch.export.save. To write one:\n\n{EXPORT_LINES}"
        )
    raise BadUpload(
        f"This is {what}. Reading it would run code from it, so the lab takes exported programs. To turn it into one, "
        f"where you trust the file:\n\n{EXPORT_LINES}"
    )


_FORMATS: tuple[tuple[re.Pattern[bytes], str, bool], ...] = (
    (re.compile(rb"\x80[\x02-\x05]"), "a Python pickle (an old torch.save, or joblib)", True),
    (re.compile(rb"\x89HDF"), "an HDF5 file (Keras)", False),
    (re.compile(rb"GGUF"), "a GGUF file: weights already quantized for llama.cpp", False),
    (re.compile(rb".{4}TFL3", re.DOTALL), "a TensorFlow Lite model", False),
    (re.compile(rb"\x93NUMPY"), "a NumPy array, which is data and not a model", False),
    (re.compile(rb".{5}\x00\x00\x00\{\s*\"", re.DOTALL), "a safetensors file: weights without the network", True),
    (re.compile(rb"\x08[\x01-\x14][\x12\x1a\x22\x3a\x42]"), "an ONNX model", False),
    (re.compile(rb"\x1f\x8b"), "a gzip file", False),
    (re.compile(rb"\x7fELF|MZ"), "a program or compiled library", False),
    (re.compile(rb"\s*[<{]"), "a text file (HTML or JSON)", False),
)


def _refuse_other_formats(file: IO[bytes]) -> None:
    head = file.read(64)
    file.seek(0)
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return
    if not head:
        raise BadUpload("The model file is empty.")
    what = next((what for pattern, what, _ in _FORMATS if pattern.match(head)), "of a kind the lab does not know")
    raise BadUpload(
        f"This file is {what}. The lab reads exported PyTorch programs (.pt2). "
        f"With the network in PyTorch, these lines write one:\n\n{EXPORT_LINES}"
    )


# --- weights ----------------------------------------------------------------------------------------------------------


def _refuse_pickle(what: str) -> None:
    raise UnsafeFile(
        f"The model file stores {what} as a pickle, which can run any code when it is read. Export a model whose "
        f"parameters, buffers and constants are plain tensors:\n\n{EXPORT_LINES}"
    )


class _Weights:
    """Tensors by name. Tensors that share storage in the file share memory here, and equal ones are one object."""

    def __init__(self, archive: _Archive, model: str) -> None:
        self.archive = archive
        self.tables: dict[str, dict[str, object]] = {}
        for folder in ("weights", "constants"):
            entry = f"data/{folder}/{model}_{folder}_config.json"
            where = f"data/{folder}/*_config.json"
            document = parse_json(archive.read(entry, MAX_JSON), where)
            check_strings(document)
            table = record_at(document, "config", where)
            for name, meta in table.items():
                record = as_record(meta, f"{where}: {shown(name)}")
                if (
                    as_bool(field(record, "use_pickle", where), f"{where}: use_pickle")
                    or record.get("tensor_meta") is None
                ):
                    _refuse_pickle(shown(name))
            self.tables[folder] = table
        self.storages: dict[str, bytearray] = {}
        self.made: dict[tuple[object, ...], torch.Tensor] = {}

    def tensor(self, kind: str, name: str) -> torch.Tensor:
        """kind: parameter, buffer or constant. Buffers that are not persistent are stored with the constants."""
        order = ("constants", "weights") if kind == "constant" else ("weights", "constants")
        folder = next((f for f in order if name in self.tables[f]), None)
        if folder is None:
            damaged("the archive", f"has no values for {kind} {shown(name)}")
        where = f"{kind} {shown(name)}"
        record = as_record(self.tables[folder][name], where)
        path = text_at(record, "path_name", where)
        if not re.fullmatch(r"(weight|tensor)_\d{1,9}", path):
            raise UnsafeFile(f"{where} is stored in {shown(path)}, which is not a place torch.export.save uses.")
        meta = record_at(record, "tensor_meta", where)
        dtype = dtype_of(field(meta, "dtype", where), where)
        sizes, strides = (
            [plain_int(v, f"{where}.{key}") for v in as_list(field(meta, key, where), where, 16)]
            for key in ("sizes", "strides")
        )
        offset = plain_int(field(meta, "storage_offset", where), f"{where}.storage_offset")
        if as_int(field(meta, "layout", where), where) != 7:
            damaged(where, "is not a dense tensor")
        as_parameter = kind == "parameter"
        key = (folder, path, dtype, tuple(sizes), tuple(strides), offset, as_parameter)
        if key not in self.made:
            tensor = _view(self._storage(f"data/{folder}/{path}"), dtype, sizes, strides, offset, where)
            self.made[key] = nn.Parameter(tensor, requires_grad=False) if as_parameter else tensor
        return self.made[key]

    def _storage(self, entry: str) -> bytearray:
        if entry not in self.storages:
            self.storages[entry] = bytearray(self.archive.read(entry, MAX_UNPACKED))
        return self.storages[entry]


def _view(
    storage: bytearray, dtype: torch.dtype, sizes: list[int], strides: list[int], offset: int, where: str
) -> torch.Tensor:
    """A tensor over raw bytes. The storage may be longer: torch writes all of it for a tensor that is a slice."""
    if len(sizes) != len(strides):
        damaged(where, f"has {len(sizes)} sizes and {len(strides)} strides")
    if min(sizes, default=0) < 0 or min(strides, default=0) < 0 or offset < 0:
        damaged(where, "has a negative size, stride or offset")
    count = 1
    for size in sizes:
        count *= size
    if count * dtype.itemsize > MAX_UNPACKED:
        damaged(where, f"has {count:,} values, more than the lab reads")
    needed = 0 if count == 0 else offset + 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if needed * dtype.itemsize > len(storage) or len(storage) % dtype.itemsize:
        damaged(
            where,
            f"needs {needed * dtype.itemsize:,} bytes as {list(sizes)} of {str(dtype).removeprefix('torch.')}, and "
            f"{len(storage):,} are stored",
        )
    if count == 0:
        return torch.empty(sizes, dtype=dtype)
    return torch.frombuffer(storage, dtype=dtype).as_strided(sizes, strides, offset)
