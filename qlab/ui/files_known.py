"""The file that Quantized files shows, from an example or an upload, and what it is of the network: read once, kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import UnsupportedModel
from qlab.ui import cache, choose, converted, export, prepared, state
from qlab.ui.converted import Key

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model
    from qlab.lab.store import Artifact
    from qlab.opened import FileTensor, Match, QuantizedFile
    from qlab.quant.cells import Cells
    from qlab.quant.levels import Levels

KIND = "opened file"  # of uploads in the store
OURS, OURS_ONNX, OTHER = "ours", "ours-onnx", "other"
OTHERS = ("int4_weight_only", "int8_weight_only")  # presets that need no data; the second where the first is current


@dataclass(frozen=True)
class Ours:
    """The network under the current config, and its key."""

    qmodel: QuantizedModel
    key: Key


def ours(model: Model) -> Ours | None:
    """None while the calibration is being made, or where the data does not fit, which is told."""
    if not choose.data_fits(model):
        return None
    found = prepared.require(key="files")
    if found is None:
        return None
    return Ours(*converted.under(model, state.mapping(), cache.store().artifact(found.calibration_artifact)))


def other_preset() -> str:
    """A preset that is not the current config, for a file that differs from ours."""
    return next(name for name in OTHERS if name != state.preset_name())


def uploads() -> list[Artifact]:
    """The files that were opened here, the newest first."""
    return cache.store().list_artifacts(KIND)


def example(source: str, model: Model, mine: Ours | None) -> tuple[QuantizedFile, str] | None:
    """One of the files made here, and what it is known by; None while it is being made.

    Raises UnsupportedModel where the network has no ONNX form.
    """
    if source == OTHER:
        from qlab.preset import presets

        qmodel, key = converted.under(model, presets[other_preset()], None)
        return _own(key, f"{model.name}_{other_preset()}.safetensors", qmodel), repr(key)
    if mine is None:
        return None
    if source == OURS:
        return _own(mine.key, f"{export.stem()}.safetensors", mine.qmodel), repr(mine.key)
    files = export.files(model)
    if files is None:
        return None
    if files.onnx is None:
        raise UnsupportedModel(files.blocked or "This network has no ONNX form.", detail=files.detail)
    return _stored(files.onnx.hash, f"{export.stem()}.onnx", files.onnx.path), files.onnx.hash


@st.cache_resource(max_entries=4, show_spinner="Writing the file")
def _own(key: Key, name: str, _qmodel: QuantizedModel) -> QuantizedFile:
    from qlab.export.quantized_file import quantized_bytes
    from qlab.opened import read_quantized_file

    return read_quantized_file(quantized_bytes(_qmodel), name)


def uploaded(artifact: Artifact) -> QuantizedFile:
    """Raises BadUpload, UnsafeFile."""
    return _stored(artifact.hash, artifact.original_name, artifact.path)


@st.cache_resource(max_entries=4, show_spinner="Reading the file")
def _stored(digest: str, name: str, _path: Path) -> QuantizedFile:
    from qlab.opened import read_quantized_file

    return read_quantized_file(_path, name)


def check(path: Path) -> None:
    """Reads an upload before it is kept. Raises BadUpload, UnsafeFile."""
    from qlab.opened import read_quantized_file

    read_quantized_file(path)


def matched(file: QuantizedFile, known_by: str, model: Model, mine: Ours | None) -> Match:
    """Which tensor is which of the network. Shared: do not change it."""
    return _match(known_by, model.content_hash, mine.key if mine else (), file, model, mine.qmodel if mine else None)


@st.cache_resource(max_entries=8, show_spinner="Looking for its tensors in the network")
def _match(
    known_by: str, network: str, key: Key, _file: QuantizedFile, _model: Model, _qmodel: QuantizedModel | None
) -> Match:  # fmt: skip
    from qlab.opened import match

    return match(_file, _model, _qmodel)


# ---- one tensor ------------------------------------------------------------------------------------------------------


def rows_of(tensor: FileTensor) -> tuple[int, int, int]:
    """(axis of the channels, channels, positions in each): a weight as rows."""
    assert tensor.codes is not None
    axis = 0 if tensor.axis is None or tensor.block_size is not None else tensor.axis
    shape = tensor.codes.shape or (1,)
    return axis, shape[axis], tensor.codes.size // max(shape[axis], 1)


def cells(tensor: FileTensor, channel: int, position: int, rows: int, columns: int) -> Cells:
    """Rows and columns of a weight from this place on."""
    import numpy as np

    from qlab.quant.cells import Cells

    assert tensor.codes is not None
    axis, channels, positions = rows_of(tensor)

    def window(values: np.ndarray) -> np.ndarray:
        flat = np.moveaxis(np.atleast_1d(values), axis, 0).reshape(channels, positions)
        return flat[channel : channel + rows, position : position + columns]

    grids = (tensor.spread(v) for v in (tensor.scale, tensor.zero_point))
    code, scale, zero = (window(values) for values in (tensor.codes, *grids))
    at = np.broadcast_to(np.arange(channel, channel + len(code))[:, None], code.shape)
    behind = np.broadcast_to(np.arange(position, position + code.shape[1]), code.shape)
    dequantized = (code.astype(np.int64) - zero).astype(np.float32) * scale
    return Cells(
        at, behind, code.astype(np.int32), scale, zero.astype(np.int32), dequantized, None
    )  # fmt: skip


def levels(tensor: FileTensor) -> Levels:
    """How often each code of the grid occurs."""
    import numpy as np

    from qlab.quant.levels import Levels

    assert tensor.codes is not None
    axis, channels, positions = rows_of(tensor)
    codes = tensor.codes.astype(np.int64)
    count = np.bincount(codes.ravel() - tensor.quant_min, minlength=1 << tensor.bits)
    ordered = np.sort(np.moveaxis(np.atleast_1d(codes), axis, 0).reshape(channels, positions), axis=1)
    used = (ordered[:, 1:] != ordered[:, :-1]).sum(1) + (positions > 0)
    return Levels(np.arange(tensor.quant_min, tensor.quant_max + 1), count, used)
