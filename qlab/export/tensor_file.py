"""The bytes of a .safetensors file: texts and tensors in, the same bytes out every time; and back.

Written here because the library writes its metadata in random order, and the format tag belongs in front. Layout:
length of the header (8 bytes, little-endian), JSON header padded to 8 bytes, values.
Source: github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from qlab.errors import BadUpload
from qlab.export.fields import ADVICE, at, damaged, parse, typed
from qlab.graph.archive_schema import shown
from qlab.readers.common import DEFAULT_LIMITS, checked_bytes

MAX_FILE = 2 * 2**30
MAX_HEADER = 16 * 2**20

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def pack_file(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    """The file that holds these. Wide values first, so that each starts where its size divides the position."""
    header: dict[str, object] = {"__metadata__": dict(texts)}
    values: list[bytes] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        values.append(_bytes(tensor.detach().cpu()))
        begin, end = end, end + len(values[-1])
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *values])


def write_whole(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, also when the process is killed meanwhile; an older one is replaced."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> bytes:
    # Without values the last stride may be 0, and torch then sees no bytes in it.
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def unpack_file(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Texts and tensors; the tensors own their memory. Raises BadUpload."""
    length = int.from_bytes(data[:8], "little")
    if len(data) > MAX_FILE:
        raise BadUpload(f"The file has {len(data) / 2**30:.1f} GB; the lab reads up to {MAX_FILE / 2**30:.0f} GB.")
    if len(data) < 8 or not 2 <= length <= min(len(data) - 8, MAX_HEADER) or data[8:9] != b"{":
        raise BadUpload(
            "This is not a quantized model that the lab saved: no safetensors header of up to "
            f"{MAX_HEADER // 2**20} MB at its start. Give a file that QuantizedModel.save wrote."
        )
    try:
        header = parse(data[8 : 8 + length].decode("utf-8"), "the header")
    except UnicodeDecodeError as error:
        raise BadUpload(f"The quantized model file is damaged: its header is not UTF-8. {ADVICE}") from error
    texts = at(header, "__metadata__", dict, "the header") if "__metadata__" in header else {}
    for key, value in texts.items():
        typed(value, str, f"__metadata__.{shown(key)}")
    return texts, _tensors(data)


def _tensors(data: bytes) -> dict[str, Tensor]:
    try:
        # in Rust; refuses values that overlap, leave gaps or reach beyond the end
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise BadUpload(
            f"The quantized model file is damaged or cut off: its tensors do not lie as its header says. {ADVICE}",
            detail=str(error)[:300],
        ) from error
    tensors = {}
    for name, entry in found:
        where = f"tensor {shown(name)}"
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            damaged(where, f"is of type {shown(entry['dtype'])}, which the lab does not compute with")
        shape = tuple(entry["shape"])
        checked_bytes(shape, dtype.itemsize, where, DEFAULT_LIMITS)
        values = torch.frombuffer(bytearray(entry["data"]), dtype=torch.uint8) if entry["data"] else torch.empty(0)
        if dtype is torch.bool:
            values = values != 0  # a byte of 2 is neither False nor True to torch
        tensors[name] = (values.view(dtype) if values.numel() else values.to(dtype)).reshape(shape)
    return tensors
