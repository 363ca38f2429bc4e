"""Labels: found beside the inputs or given on their own, and brought to class numbers."""

from pathlib import Path
from typing import Any

import numpy as np

from qlab.arrays import RESERVED, as_array
from qlab.errors import BadUpload, DataMismatch, NonFinite
from qlab.readers import TARGET_NAMES, Limits, read_data
from qlab.readers.common import checked_bytes, shape_text

# A label beyond this is a sample number or a hash, not a class; tables of classes are sized by the largest one.
MAX_CLASSES = 1_000_000

_REMEDY = (
    "Give class numbers 0 .. C-1, one for each sample [N] or for each of its positions [N, T] or [N, H, W]; without "
    "labels agreement with the float model and SQNR still work."
)


def found_labels(found: dict[str, np.ndarray], title: str) -> np.ndarray | None:
    keys = [key for key in found if key.lower() in TARGET_NAMES]
    if len(keys) > 1:
        raise BadUpload(f"{title} holds several arrays of labels: {', '.join(keys)}. Name one in targets.")
    return found[keys[0]] if keys else None


def named_labels(found: dict[str, np.ndarray], key: str, title: str) -> np.ndarray:
    if key not in found or key in RESERVED:
        raise BadUpload(f"targets is {key!r}: no file has that name, and no array of {title} ({', '.join(found)}).")
    return found.pop(key)


def given_labels(targets: Any, limits: Limits) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The labels of the `targets` argument, and what its file says of them: class_names, label_positions."""
    if not (isinstance(targets, str | Path | bytes) or hasattr(targets, "read")):
        return as_array(targets, "targets"), {}
    contents = read_data(targets, limits=limits)
    arrays = {key: array for key, array in contents.arrays.items() if key not in RESERVED}
    keys = [key for key in arrays if key.lower() in TARGET_NAMES] or list(arrays)
    if len(keys) != 1 or contents.kind == "images":
        raise BadUpload(f"{contents.label} holds {', '.join(keys) or 'no array'}: which are the labels? Name one y.")
    about = {key: array for key, array in contents.arrays.items() if key in ("class_names", "label_positions")}
    return arrays[keys[0]], about


def class_numbers(
    labels: np.ndarray, positions: np.ndarray | None, limits: Limits
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as int64, [N] or [N, ...] for labels per position, and the names if they were given as text.

    positions: the axes after the first, where a file states them. Without that [N, 1] is a column of labels, and [N, C]
    of zeros with a single 1 in each row is one-hot; any other array of whole numbers is labels per position.
    """
    if labels.dtype.kind not in "biufU":
        raise DataMismatch(f"The labels are of type {labels.dtype}. {_REMEDY}")
    if positions is None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 0 or (labels.ndim > 1 and labels.dtype.kind == "U"):
        raise DataMismatch(f"The labels have the shape {shape_text(labels.shape)}, type {labels.dtype}. {_REMEDY}")
    if positions is not None and not np.array_equal(positions, labels.shape[1:]):
        raise DataMismatch(
            f"label_positions is not {shape_text(labels.shape[1:])}, but the labels have the shape "
            f"{shape_text(labels.shape)}. Give the sizes of their axes after the first, or leave it out."
        )
    if labels.dtype.kind == "U":
        names, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int64), tuple(str(name) for name in names)
    if labels.dtype.kind == "f":
        if not (finite := np.isfinite(labels)).all():
            raise NonFinite(f"The labels hold NaN or Inf at {_first(labels, ~finite)[1]}. {_REMEDY}")
        if (broken := labels != np.floor(labels)).any():
            value, where = _first(labels, broken)
            raise DataMismatch(f"The labels are no whole numbers: {value} at {where}. {_REMEDY}")
    if positions is None and labels.ndim == 2 and _is_one_hot(labels):
        labels = labels.argmax(axis=1)
    if (wrong := (labels < 0) | (labels >= MAX_CLASSES)).any():
        value, where = _first(labels, wrong)
        raise DataMismatch(f"The label at {where} is {value}, which is no class number. {_REMEDY}")
    # A byte for each position becomes eight.
    checked_bytes(labels.shape, 8, "The array of labels as int64", limits)
    return labels.astype(np.int64), None


def _is_one_hot(labels: np.ndarray) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _first(labels: np.ndarray, wrong: np.ndarray) -> tuple[Any, str]:
    """The first label that is wrong, and where it is."""
    sample, *position = (int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    return labels[sample, *position], f"sample {sample}" + (f", position {position}" if position else "")


def check_targets(targets: np.ndarray | None, count: int, class_names: tuple[str, ...] | None) -> None:
    if targets is None:
        return
    if targets.ndim == 0 or len(targets) != count or targets.size == 0:
        raise DataMismatch(
            f"There are {count:,} samples and labels of the shape {shape_text(targets.shape)}. "
            "Give one label for each sample, or for each position of each sample."
        )
    if targets.min() < 0 or targets.max() >= MAX_CLASSES:
        raise DataMismatch(f"The labels go from {targets.min()} to {targets.max()}. Give class numbers 0 .. C-1.")
    if class_names is not None and int(targets.max()) >= len(class_names):
        raise DataMismatch(
            f"There are {len(class_names)} class names, but a label is {targets.max()}. Name every class."
        )


def as_class_names(array: np.ndarray | None) -> tuple[str, ...] | None:
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataMismatch(
            f"class_names has the shape {shape_text(array.shape)} and type {array.dtype}. Give [C] of text."
        )
    return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.tolist())
