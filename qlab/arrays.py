"""The arrays of a data set: where they come from, and what inputs, split and preprocessing have to be."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qlab.errors import BadUpload, DataMismatch, NonFinite
from qlab.readers import TARGET_NAMES, Contents, Limits, read_data
from qlab.readers.common import shape_text
from qlab.samples import sample_folder, sample_names

PREPROCESSING = ("scale", "mean", "std")
# What a file may hold beside inputs and labels, by these names.
RESERVED = (
    *PREPROCESSING, "class_names", "calibration_index", "evaluation_index", "sample_index", "label_positions"
)  # fmt: skip
_CHUNK = 1 << 22  # values looked at in one go when a whole array is searched

Numbers = float | Sequence[float] | np.ndarray


def contents_of(source: Any, name: str | None, limits: Limits, labels: str | None) -> tuple[Contents, str]:
    """The arrays of any kind of source, and what to call the data set."""
    if isinstance(source, str) and re.fullmatch(r"[A-Za-z0-9_-]+", source):
        folder = sample_folder(source)
        if folder is not None:
            return read_data(folder / "data.npz", limits=limits, labels=labels), name or source
        if not Path(source).exists():
            known = ", ".join(sample_names()) or "none"
            raise BadUpload(f"There is no sample model and no file named {source!r}. Samples: {known}.")
    if isinstance(source, str | Path):
        return read_data(source, limits=limits, labels=labels), name or Path(source).stem
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read"):
        contents = read_data(source, filename=name, limits=limits, labels=labels)
        return contents, Path(contents.label).stem
    if isinstance(source, Mapping):
        arrays = {str(key): as_array(value, f"the array {key!r}") for key, value in source.items()}
    elif isinstance(source, list | tuple):
        arrays = {f"x{i}": as_array(value, f"input {i}") for i, value in enumerate(source)}
        if len(arrays) == 1:
            arrays = {"x": arrays["x0"]}
    else:
        arrays = {"x": as_array(source, "the input")}
    if not arrays:
        raise DataMismatch("No array was given. Give an array with one row for each sample.")
    return Contents("arrays", "arrays", arrays), name or "arrays"


def is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def as_array(value: Any, what: str) -> np.ndarray:
    """A copy of an array or tensor as numpy: what the caller writes into it later must not change the data set."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_complex() or value.is_quantized or value.is_sparse:
            raise BadUpload(f"{what} is a complex, quantized or sparse tensor. Give a dense tensor of numbers.")
        return np.array((value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy())
    if not isinstance(value, np.ndarray | np.generic | int | float | list | tuple):
        raise BadUpload(f"{what} is of type {type(value).__name__}. Give a numpy array or a torch tensor.")
    try:
        return np.array(value)
    except ValueError as error:  # rows of unequal length
        raise BadUpload(f"{what} is no regular array: {error}. Rows of unequal length need padding.") from error


def checked_input(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        what = {"O": "Python objects", "c": "complex numbers", "U": "text", "S": "text", "V": "a structured type"}
        held = what.get(array.dtype.kind, f"values of type {array.dtype}")
        raise BadUpload(f"The array {name!r} holds {held}. Give whole numbers or floats.")
    if array.dtype.itemsize > 8:
        raise BadUpload(f"The array {name!r} is of {array.dtype}. Give floats of at most 64 bits.")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def check_inputs(inputs: tuple[np.ndarray, ...], names: tuple[str, ...]) -> None:
    if not inputs or len(inputs) != len(names) or len(set(names)) != len(names):
        raise DataMismatch(f"{len(inputs)} inputs are named {', '.join(names) or 'nothing'}. Name each one, once.")
    for name, array in zip(names, inputs, strict=True):
        parts = re.split(r"[/\\]", name)
        if not name or not name.isprintable() or len(name) > 200 or ".." in parts or "" in parts or ":" in name:
            raise DataMismatch(f"{name[:80]!r} cannot be the name of an input. Use letters, digits and dots.")
        if name.lower() in TARGET_NAMES or name in RESERVED:
            raise DataMismatch(f"An input cannot be named {name!r}: files use that name for something else.")
        if array.ndim == 0:
            raise DataMismatch(f"The input {name!r} is a single number. Its first axis has to count the samples.")
        if array.size == 0:
            raise DataMismatch(
                f"The input {name!r} is empty: its shape is {shape_text(array.shape)}. Give some samples."
            )
    if len({len(array) for array in inputs}) > 1:
        counts = ", ".join(f"{name} {len(array):,}" for name, array in zip(names, inputs, strict=True))
        raise DataMismatch(
            f"The inputs have different numbers of samples: {counts}. The first axis of each has to count the same "
            "samples; labels belong into an array named y."
        )


def check_finite(name: str, array: np.ndarray) -> None:
    """NonFinite if a value is no number, or none in float32, which is what the model gets."""
    if array.dtype.kind != "f":
        return
    rows = max(1, _CHUNK // max(1, array[0].size))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs warn when cast
            fine = np.isfinite(part.astype(np.float32, copy=False))
        if fine.all():
            continue
        flat, values = fine.reshape(len(part), -1), part.reshape(len(part), -1)
        row = int((~flat.all(axis=1)).argmax())
        value = float(values[row, int((~flat[row]).argmax())])
        what = "NaN" if math.isnan(value) else "Inf" if math.isinf(value) else f"{value:g}, too large for float32,"
        raise NonFinite(f"The array {name!r} holds {what} in sample {start + row}. Repair or leave out such samples.")


def sample_index(array: np.ndarray | None, count: int) -> np.ndarray:
    if array is None:
        return np.arange(count)
    if (
        array.shape != (count,)
        or array.dtype.kind not in "iu"
        or array.min() < 0
        or array.max() > np.iinfo(np.int64).max
    ):
        raise DataMismatch(f"sample_index is {shape_text(array.shape)} of {array.dtype}. Give [{count}] whole numbers.")
    return array


def stored_split(reserved: dict[str, np.ndarray], count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    found = []
    for key in ("calibration_index", "evaluation_index"):
        array = reserved.get(key)
        if array is not None and (array.ndim != 1 or array.dtype.kind not in "iu" or len(array) == 0):
            raise DataMismatch(
                f"{key} is {shape_text(array.shape)} of {array.dtype}. Give the numbers of samples as [K]."
            )
        if array is not None and int(array.max()) >= count:  # also before uint64 turns into int64
            raise DataMismatch(f"{key} names the sample {array.max()}; there are {count:,}, from 0.")
        found.append(array)
    calibration, evaluation = found
    # The rest of the samples is what the other part means if only one is given.
    if calibration is None and evaluation is not None:
        calibration = np.setdiff1d(np.arange(count), evaluation)
    elif evaluation is None and calibration is not None:
        evaluation = np.setdiff1d(np.arange(count), calibration)
    return calibration, evaluation


def check_split(calibration: np.ndarray | None, evaluation: np.ndarray | None, count: int) -> None:
    if calibration is None and evaluation is None:
        return
    if calibration is None or evaluation is None:
        raise DataMismatch("A split needs both parts, for calibration and for evaluation.")
    for what, part in (("calibration", calibration), ("evaluation", evaluation)):
        if part.ndim != 1 or len(part) == 0:
            raise DataMismatch(f"The {what} part of the split is empty. Leave some samples for it.")
        if part.min() < 0 or part.max() >= count:
            wrong = part.min() if part.min() < 0 else part.max()
            raise DataMismatch(f"The {what} part of the split names the sample {wrong}; there are {count:,}, from 0.")
        if len(np.unique(part)) != len(part):
            raise DataMismatch(f"The {what} part of the split names a sample twice. Name each once.")
    shared = len(np.intersect1d(calibration, evaluation))
    if shared:
        raise DataMismatch(
            f"{shared:,} samples are in both parts of the split. Evaluate on other samples than calibrated."
        )


def numbers_of(key: str, value: Any) -> tuple[float, ...] | None:
    """One number or one for each channel, as a tuple; finite, and not 0 where it scales or divides."""
    if value is None:
        return None
    array = as_array(value, key)
    if array.dtype.kind not in "iuf" or array.ndim > 1 or array.size == 0:
        raise DataMismatch(
            f"{key} has the shape {shape_text(array.shape)} and type {array.dtype}. Give a number or one a channel."
        )
    numbers = tuple(float(v) for v in array.reshape(-1))
    if not all(math.isfinite(v) for v in numbers):
        raise DataMismatch(f"{key} holds {numbers}: not all are numbers. Give what the model was trained with.")
    if (key == "std" and min(numbers) <= 0) or (key == "scale" and 0 in numbers):
        raise DataMismatch(f"{key} holds {numbers}. {'It is divided by and' if key == 'std' else 'It'} cannot be that.")
    return numbers


def factor_of(scale: Any, inputs: tuple[np.ndarray, ...]) -> tuple[float, ...] | None:
    """The factor behind `scale`: for whole numbers, 2 and more is a full-scale value to divide by."""
    numbers = numbers_of("scale", scale)
    if numbers is None or not any(array.dtype.kind in "iu" for array in inputs):
        return numbers
    return tuple(1 / v if v >= 2 else v for v in numbers)


def check_channels(key: str, numbers: tuple[float, ...], name: str, array: np.ndarray) -> None:
    """`numbers` of the preprocessing are one, or one for each channel of this input."""
    if len(numbers) > 1 and (array.ndim < 2 or array.shape[1] != len(numbers)):
        channels = f"{array.shape[1]} channels (axis 1)" if array.ndim > 1 else "no channel axis"
        raise DataMismatch(
            f"{key} has {len(numbers)} numbers; {name} {shape_text(array.shape)} has {channels}. "
            "Give one number, or one for each channel; images are stored as [N, C, H, W]."
        )


def by_channel(numbers: np.ndarray, ndim: int) -> np.ndarray:
    return numbers if len(numbers) == 1 else numbers.reshape(1, -1, *(1,) * (ndim - 2))


def scaled(raw: np.ndarray, scale: tuple[float, ...] | None) -> np.ndarray:
    """x * scale in float32, rounded once: 200 * (1/255) has to be the float32 next to 200/255. Always a new array."""
    if scale is None:
        return raw.astype(np.float32)
    if raw.dtype == np.uint8 and len(scale) == 1:
        return (np.arange(256) * scale[0]).astype(np.float32)[raw]
    return (raw * by_channel(np.array(scale, np.float64), raw.ndim)).astype(np.float32)


def locked(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.setflags(write=False)
    return view
