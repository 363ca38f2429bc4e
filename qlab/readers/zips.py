"""Zip archives: names, kinds and declared sizes are checked before anything is unpacked, and nothing onto the disk."""

import io
import re
import stat
import struct
import zipfile
from pathlib import PurePosixPath

from qlab.errors import BadUpload, UnsafeFile
from qlab.readers.common import Limits, check_unpacked, listed, model_advice, parsing, size_text

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
# Of files that systems put into archives unasked.
LITTER = re.compile(r"(^|/)(__MACOSX/|\.[^/]*$|Thumbs\.db$|desktop\.ini$)")


def open_zip(data: bytes, label: str, limits: Limits) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
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
        raise BadUpload(f"{label} declares a table of contents of {size_text(directory_bytes)}. Pack fewer files.")
    with parsing(label, "a zip archive"):
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
    check_unpacked(label, unpacked, limits)
    return archive, files


def inner_name(name: str) -> str:
    """An entry's name inside the folder that torch puts around all of them."""
    return name.partition("/")[2] or name


def detect_zip(data: bytes, label: str, limits: Limits) -> str:
    _, files = open_zip(data, label, limits)
    names = [name for name in files if not LITTER.search(name)]
    inner = [inner_name(name) for name in names]
    if any(re.search(r"(^|/)(models/[^/]+\.json|archive_format|serialized_exported_program\.json)$", n) for n in names):
        raise BadUpload(f"{label} is a model that torch.export wrote, but data is expected here. Open it as the model.")
    if any(name == "constants.pkl" or re.match(r"code/.*\.py$", name) for name in inner):
        raise BadUpload(f"{label} is a TorchScript model, but data is expected here. {model_advice()}")
    if "data.pkl" in inner:
        return "pt"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return "images"
    if not names:
        raise BadUpload(f"{label} is an empty archive. Pack images (a folder for each class) or arrays.")
    raise BadUpload(
        f"{label} is a zip archive without images or arrays; it holds {listed(names)}. "
        "Pack PNG, JPEG, BMP or WebP images, a folder for each class, or save arrays with numpy.savez."
    )


def entry_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, label: str, count: int = -1) -> bytes:
    """An entry's bytes (the first `count`). zipfile stops at the declared size and checks the CRC at the end."""
    with parsing(label, f"the entry {info.filename!r}"), archive.open(info) as file:
        data = file.read(count if count >= 0 else info.file_size)
        if count < 0 and len(data) != info.file_size:
            raise BadUpload(f"{label}: the entry {info.filename!r} ends early. Upload the file again.")
        return data
