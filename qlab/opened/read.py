"""`read_quantized_file`: the format is told by the bytes, not by the name."""

from __future__ import annotations

from pathlib import Path

from qlab.errors import BadUpload
from qlab.opened.file import QuantizedFile, clean
from qlab.readers.common import size_text

MAX_FILE = 256 * 2**20
MAX_VALUES = 2**28
KINDS = "an ONNX file (.onnx), a TFLite file (.tflite) or a quantized model of the lab (.safetensors)"


def read_quantized_file(source: bytes | str | Path, name: str = "") -> QuantizedFile:
    """What is in a quantized file, from its bytes or its path. Nothing of it is run, and no other file is opened.

    name: what it is called where `source` has no name. A float model is read too and has no tensors.
    Raises BadUpload (none of these formats, damaged, too large), UnsafeFile (it points at other files).
    """
    data, name = _bytes(source, name)
    if data[4:8] == b"TFL3":
        from qlab.opened.tflite import read_tflite

        return read_tflite(data, name)
    if data[8:9] == b"{":
        from qlab.opened.own import read_own

        return read_own(data, name)
    if data[:2] == b"PK":
        raise BadUpload(
            f"{name!r} is a zip archive. A .pt2 is opened as a network on Start; here comes {KINDS}."
        )  # fmt: skip
    from qlab.opened.onnx_file import read_onnx

    return read_onnx(data, name)


def _bytes(source: bytes | str | Path, name: str) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        size, name = len(source), clean(name) or "the file"
    else:
        path = Path(source)
        name = clean(name or path.name)
        if not path.is_file():
            raise BadUpload(f"There is no file {name!r}. Give the path of {KINDS}.")
        size = path.stat().st_size
    if size > MAX_FILE:
        raise BadUpload(f"{name!r} has {size_text(size)}; the limit is {size_text(MAX_FILE)}. Open a smaller model.")
    if size < 8:
        raise BadUpload(f"{name!r} has {size} bytes, which is no model. Give {KINDS}.")
    return (source if isinstance(source, bytes) else path.read_bytes()), name
