"""Data sets: inputs, labels if there are any, how raw values become what the model was trained on, and a split.

    data = load_dataset("digits.npz", scale=255)          # also arrays, bytes, or the name of a sample model
    data = data.split(calibration=512)
    for first, inputs, targets in data.calibration.batches(64): ...

A Dataset keeps the values as stored (uint8 images stay uint8) and preprocesses batch by batch:
`(x * scale - mean) / std`, along the channels.

`Dataset.save` writes an .npz of plain arrays that `load_dataset` reads back: the inputs by name ("x" if there is one),
y, calibration_index, evaluation_index, scale, mean, std, class_names, and sample_index if the samples were chosen from
others. The data of the sample models are of this form, and any .npz, .safetensors or .pt may use these names.
"""

import hashlib
import io
import itertools
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from qlab.errors import BadUpload, DataMismatch, NonFinite
from qlab.readers import DEFAULT_LIMITS, TARGET_NAMES, Contents, Limits, read_data
from qlab.samples import sample_folder, sample_names

if TYPE_CHECKING:
    import torch

    from qlab.graph.archive import InputSpec

# A label beyond this is a sample number or a hash, not a class; tables of classes are sized by the largest one.
MAX_CLASSES = 1_000_000

_PREPROCESSING = ("scale", "mean", "std")
_RESERVED = (*_PREPROCESSING, "class_names", "calibration_index", "evaluation_index", "sample_index")
_CHUNK = 1 << 22  # values looked at in one go when a whole array is searched

Numbers = float | Sequence[float] | np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with their labels, preprocessing and split. Arrays are read-only.

    | field              | shape, dtype                                                                         |
    |--------------------|--------------------------------------------------------------------------------------|
    | inputs             | each [N, ...], as stored                                                             |
    | targets            | [N] int64, 0 .. C-1; None: no labels                                                 |
    | scale, mean, std   | one number or one for each channel (axis 1); None: left out                          |
    | calibration_index  | [K] int64, positions in this data set; None: no split                                |
    | evaluation_index   | [N-K] int64                                                                          |
    | index              | [N] int64, the samples' numbers in the data they were taken from                     |

    Raises DataMismatch if the parts do not fit each other.
    """

    name: str
    inputs: tuple[np.ndarray, ...]
    input_names: tuple[str, ...]
    targets: np.ndarray | None = None
    scale: tuple[float, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    calibration_index: np.ndarray | None = None
    evaluation_index: np.ndarray | None = None
    index: np.ndarray = field(default=None)  # type: ignore[arg-type]  # None becomes 0 .. N-1
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_inputs(self.inputs, self.input_names)
        count = len(self.inputs[0])
        given = {key: getattr(self, key) for key in ("targets", "calibration_index", "evaluation_index", "index")}
        if self.index is None:
            given["index"] = np.arange(count)
        for key, array in given.items():
            if array is not None:
                object.__setattr__(self, key, _locked(np.asarray(array, dtype=np.int64)))
        object.__setattr__(self, "inputs", tuple(_locked(array) for array in self.inputs))
        for key in _PREPROCESSING:
            object.__setattr__(self, key, _numbers(key, getattr(self, key)))
        if self.index.shape != (count,):
            raise DataMismatch(f"index has the shape {_shape(self.index.shape)}; {count:,} samples need [{count}].")
        _check_targets(self.targets, count, self.class_names)
        _check_split(self.calibration_index, self.evaluation_index, count)
        _check_preprocessing(self)

    # ------------------------------------------------------------------------------------------------------ parts

    def __len__(self) -> int:
        return len(self.inputs[0])

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{n} {_shape(x.shape)} {x.dtype}" for n, x in zip(self.input_names, self.inputs, strict=True)
        )
        return f"Dataset({self.name!r}, {shapes}, label_kind={self.label_kind!r}, split={self.has_split})"

    @property
    def label_kind(self) -> Literal["classes", "none"]:
        return "none" if self.targets is None else "classes"

    @property
    def n_classes(self) -> int | None:
        """The number of class names, else the largest label and one; None without labels."""
        if self.class_names is not None:
            return len(self.class_names)
        return None if self.targets is None else int(self.targets.max()) + 1

    @property
    def has_split(self) -> bool:
        return self.calibration_index is not None

    @cached_property
    def calibration(self) -> "Dataset":
        """The samples to calibrate on; the whole data set if there is no split."""
        return self if self.calibration_index is None else self.subset(self.calibration_index)

    @cached_property
    def evaluation(self) -> "Dataset":
        """The samples to evaluate on; the whole data set if there is no split."""
        return self if self.evaluation_index is None else self.subset(self.evaluation_index)

    def split(self, calibration: int = 512, seed: int = 0) -> "Dataset":
        """The same data with `calibration` samples, at most half, set aside by a shuffle that the seed fixes.

        The former stay shuffled, so that batches of a file sorted by class are mixed; the rest keeps its order.
        """
        count = len(self)
        if count < 2:
            raise DataMismatch(
                "One sample cannot be split. Add samples, or use it for calibration and evaluation both."
            )
        if calibration < 1:
            raise DataMismatch(f"{calibration} calibration samples were asked for. At least one is needed.")
        order = np.random.default_rng(seed).permutation(count)
        taken = min(int(calibration), count // 2)
        return replace(self, calibration_index=order[:taken], evaluation_index=np.sort(order[taken:]))

    def subset(self, indices: Any) -> "Dataset":
        """The samples at these positions (numbers, a slice or a mask), without a split; `index` keeps their origin."""
        if isinstance(indices, slice):
            chosen = np.arange(len(self))[indices]
        else:
            chosen = np.asarray(indices)
            if chosen.dtype == bool:
                if chosen.shape != (len(self),):
                    raise DataMismatch(f"The mask has the shape {_shape(chosen.shape)}; it needs [{len(self)}].")
                chosen = np.flatnonzero(chosen)
            elif chosen.size == 0:
                chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise DataMismatch("Samples are chosen by a list of whole numbers, a slice or a mask.")
        outside = (chosen < 0) | (chosen >= len(self))
        if outside.any():
            raise DataMismatch(f"There is no sample {int(chosen[outside.argmax()])}; there are {len(self):,}, from 0.")
        return replace(
            self,
            inputs=tuple(array[chosen] for array in self.inputs),
            targets=None if self.targets is None else self.targets[chosen],
            index=self.index[chosen],
            calibration_index=None,
            evaluation_index=None,
        )

    def with_preprocessing(
        self, scale: Numbers | None = None, mean: Numbers | None = None, std: Numbers | None = None
    ) -> "Dataset":
        """The same data under another preprocessing; `scale` is read as in load_dataset."""
        factor = _factor(scale, self.inputs)
        return replace(self, scale=factor, mean=_numbers("mean", mean), std=_numbers("std", std))

    # ------------------------------------------------------------------------------------------------------ values

    def batches(
        self, batch_size: int
    ) -> Iterator[tuple[int, "tuple[torch.Tensor, ...]", "torch.Tensor | None"]]:  # fmt: skip
        """(number of the batch's first sample, preprocessed inputs, targets): float32, or int64 for token ids.

        The number is `index`, not the position, so that statistics of two slices merge to those of the whole.
        """
        import torch

        if batch_size < 1:
            raise DataMismatch(f"The batch size is {batch_size}. It has to be at least 1.")
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            inputs = tuple(torch.from_numpy(self._preprocessed(i, part)) for i in range(len(self.inputs)))
            targets = None if self.targets is None else torch.from_numpy(self.targets[part].copy())
            yield int(self.index[start]), inputs, targets

    def example(self, i: int) -> tuple[np.ndarray, ...]:
        """Sample i as the model gets it: preprocessed, each input [1, ...]."""
        i = self._position(i)
        return tuple(self._preprocessed(k, slice(i, i + 1)) for k in range(len(self.inputs)))

    def raw_example(self, i: int) -> tuple[np.ndarray, ...]:
        """Sample i as stored, each input without the batch axis."""
        i = self._position(i)
        return tuple(np.asarray(array[i]) for array in self.inputs)

    def is_tokens(self, i: int) -> bool:
        """Input i reaches the model as int64 token ids, not as float32."""
        tokens = [array.dtype in (np.int32, np.int64) for array in self.inputs]
        preprocessed = any(value is not None for value in (self.scale, self.mean, self.std))
        # Preprocessing of several inputs is meant for those that are not token ids; an input alone is what it is for.
        return tokens[i] and not (preprocessed and all(tokens))

    def _position(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise DataMismatch(f"There is no sample {i}; there are {len(self):,}, from 0.")
        return int(i)

    def _preprocessed(self, i: int, part: slice) -> np.ndarray:
        raw = self.inputs[i][part]
        if self.is_tokens(i):
            return raw.astype(np.int64)
        x = _scaled(raw, self.scale)
        # In float32 and in this order, as torchvision.transforms.Normalize computes it: same bits as in training.
        if self.mean is not None:
            x -= _by_channel(np.array(self.mean, np.float32), x.ndim)
        if self.std is not None:
            x /= _by_channel(np.array(self.std, np.float32), x.ndim)
        return x

    # ---------------------------------------------------------------------------------------------------- summaries

    @cached_property
    def content_hash(self) -> str:
        """sha256 over inputs (dtype, shape, bytes), targets, preprocessing, split and index, not names."""
        digest = hashlib.sha256()
        arrays: dict[str, np.ndarray | None] = {f"input {i}": array for i, array in enumerate(self.inputs)}
        arrays |= {key: getattr(self, key) for key in ("targets", "index", "calibration_index", "evaluation_index")}
        arrays |= {key: None if (v := getattr(self, key)) is None else np.array(v) for key in _PREPROCESSING}
        for key, array in arrays.items():
            if array is None:
                digest.update(f"{key}: none\n".encode())
                continue
            digest.update(f"{key}: {array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def _ranges(self) -> tuple[tuple[float, float], ...]:
        return tuple((_number(array.min()), _number(array.max())) for array in self.inputs)

    def describe(self) -> dict[str, Any]:
        """What a page shows of the data. Plain Python values; ranges are those of the raw values."""
        counts = None
        if self.targets is not None:
            values, numbers = np.unique(self.targets, return_counts=True)
            counts = {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
        return {
            "name": self.name,
            "count": len(self),
            "inputs": [
                {"name": name, "shape": list(x.shape), "dtype": str(x.dtype), "minimum": low, "maximum": high}
                for name, x, (low, high) in zip(self.input_names, self.inputs, self._ranges, strict=True)
            ],
            "label_kind": self.label_kind,
            "classes": self.n_classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "class_counts": counts,
            **{key: None if getattr(self, key) is None else list(getattr(self, key)) for key in _PREPROCESSING},
            "calibration": None if self.calibration_index is None else len(self.calibration_index),
            "evaluation": None if self.evaluation_index is None else len(self.evaluation_index),
        }

    def save(self, target: str | Path | BinaryIO) -> None:
        """Write an .npz that load_dataset reads back, to a path or an open binary file. Same data, same bytes."""
        arrays: dict[str, np.ndarray] = dict(zip(self.input_names, self.inputs, strict=True))
        for key, array in (("y", self.targets), *((key, getattr(self, key)) for key in _RESERVED[:-1])):
            if array is not None:
                arrays[key] = np.array(array)
        if not np.array_equal(self.index, np.arange(len(self))):
            arrays["sample_index"] = self.index
        buffer = io.BytesIO()
        # Not numpy.savez: it takes names as keyword arguments, and an input named "file" is one.
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, array in arrays.items():
                entry = zipfile.ZipInfo(f"{key}.npy")  # dated 1980, so that the bytes depend on the data alone
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        if isinstance(target, str | Path):
            if Path(target).suffix.lower() != ".npz":
                raise BadUpload(f"{target} does not end in .npz, the form data are saved in. Name it so.")
            Path(target).write_bytes(buffer.getvalue())
        else:
            target.write(buffer.getvalue())


# ------------------------------------------------------------------------------------------------------------- loading


def load_dataset(
    source: Any,
    targets: Any = None,
    *,
    scale: Numbers | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    name: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Dataset:
    """Inputs, labels and preprocessing from a file, from arrays, or from a sample model by name.

    source: a path (.npz, .npy, .safetensors, .pt of tensors, .csv, .parquet, .zip of images), the bytes of such a file
        or an open one; an array (numpy, torch), a tuple or dict of them for several inputs; or the name of a sample.
        In a file or dict, y, targets, target, labels or label are the labels; every other array is an input, in order.
    targets: labels as array or path, or the name of an array or column in `source`; wins over the labels found there.
        [N] class numbers, or one-hot [N, C].
    scale: the factor raw values are multiplied with. For data stored as whole numbers a value of 2 or more is taken for
        the full scale instead, which they are divided by: 255 means 1/255.
    mean, std: subtracted and divided by after that; a number, or one for each channel (axis 1).
        What is given here wins over what a file says; a zip of images has scale 1/255 unless told otherwise.
    name: what the data set is called; a file name (with suffix) if `source` is bytes.

    float64 becomes float32; int32 and int64 without preprocessing stay whole numbers (token ids), other integers become
    float32. Nothing is transposed or resized: `check_against` says what does not fit the model.
    Raises BadUpload, UnsafeFile, DataMismatch, NonFinite.
    """
    column = targets if isinstance(targets, str) and not _is_file(targets) else None
    contents, title = _contents(source, name, limits, column)
    found = dict(contents.arrays)
    if targets is None:
        labels = _found_labels(found, title)
    elif column is not None:
        labels = _named_labels(found, "y" if contents.kind in ("csv", "parquet") else column, title)
    else:
        labels, names = _given_labels(targets, limits)
        if names is not None:
            found["class_names"] = names
        elif labels.dtype.kind == "U":  # text brings its names along
            found.pop("class_names", None)
    # Labels of the usual names are not inputs, even where others were asked for.
    found = {key: array for key, array in found.items() if key.lower() not in TARGET_NAMES}
    reserved = {key: found.pop(key) for key in _RESERVED if key in found}
    if not found:
        held = ", ".join([*reserved, *(() if labels is None else ("labels",))]) or "nothing"
        raise DataMismatch(f"{title} holds no inputs, only {held}. Add an array named x.")
    inputs = tuple(_checked_input(key, array) for key, array in found.items())
    _check_inputs(inputs, tuple(found))
    for key, array in zip(found, inputs, strict=True):
        _check_finite(key, array)

    class_names = _class_names(reserved.get("class_names"))
    numbers, own_names = (None, None) if labels is None else _class_numbers(labels)
    calibration, evaluation = _stored_split(reserved, len(inputs[0]))
    stored = {key: reserved.get(key) for key in _PREPROCESSING}
    if scale is None:
        scale = stored["scale"] if stored["scale"] is not None else contents.scale
    mean = stored["mean"] if mean is None else mean
    std = stored["std"] if std is None else std
    return Dataset(
        name=title,
        inputs=inputs,
        input_names=tuple(found),
        targets=numbers,
        scale=_factor(scale, inputs),
        mean=_numbers("mean", mean),
        std=_numbers("std", std),
        calibration_index=calibration,
        evaluation_index=evaluation,
        index=_sample_index(reserved.get("sample_index"), len(inputs[0])),
        class_names=own_names or class_names if numbers is not None else None,
    )


def _contents(source: Any, name: str | None, limits: Limits, labels: str | None) -> tuple[Contents, str]:
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
        arrays = {str(key): _array(value, f"the array {key!r}") for key, value in source.items()}
    elif isinstance(source, list | tuple):
        arrays = {f"x{i}": _array(value, f"input {i}") for i, value in enumerate(source)}
        if len(arrays) == 1:
            arrays = {"x": arrays["x0"]}
    else:
        arrays = {"x": _array(source, "the input")}
    if not arrays:
        raise DataMismatch("No array was given. Give an array with one row for each sample.")
    return Contents("arrays", "arrays", arrays), name or "arrays"


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False


def _array(value: Any, what: str) -> np.ndarray:
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


def _found_labels(found: dict[str, np.ndarray], title: str) -> np.ndarray | None:
    keys = [key for key in found if key.lower() in TARGET_NAMES]
    if len(keys) > 1:
        raise BadUpload(f"{title} holds several arrays of labels: {', '.join(keys)}. Name one in targets.")
    return found[keys[0]] if keys else None


def _named_labels(found: dict[str, np.ndarray], key: str, title: str) -> np.ndarray:
    if key not in found or key in _RESERVED:
        raise BadUpload(f"targets is {key!r}: no file has that name, and no array of {title} ({', '.join(found)}).")
    return found.pop(key)


def _given_labels(targets: Any, limits: Limits) -> tuple[np.ndarray, np.ndarray | None]:
    """The labels of the `targets` argument, and their class names if they come from a file that has some."""
    if not (isinstance(targets, str | Path | bytes) or hasattr(targets, "read")):
        return _array(targets, "targets"), None
    contents = read_data(targets, limits=limits)
    arrays = {key: array for key, array in contents.arrays.items() if key not in _RESERVED}
    keys = [key for key in arrays if key.lower() in TARGET_NAMES] or list(arrays)
    if len(keys) != 1 or contents.kind == "images":
        raise BadUpload(f"{contents.label} holds {', '.join(keys) or 'no array'}: which are the labels? Name one y.")
    return arrays[keys[0]], contents.arrays.get("class_names")


def _checked_input(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        what = {"O": "Python objects", "c": "complex numbers", "U": "text", "S": "text", "V": "a structured type"}
        held = what.get(array.dtype.kind, f"values of type {array.dtype}")
        raise BadUpload(f"The array {name!r} holds {held}. Give whole numbers or floats.")
    if array.dtype.itemsize > 8:
        raise BadUpload(f"The array {name!r} is of {array.dtype}. Give floats of at most 64 bits.")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _check_inputs(inputs: tuple[np.ndarray, ...], names: tuple[str, ...]) -> None:
    if not inputs or len(inputs) != len(names) or len(set(names)) != len(names):
        raise DataMismatch(f"{len(inputs)} inputs are named {', '.join(names) or 'nothing'}. Name each one, once.")
    for name, array in zip(names, inputs, strict=True):
        parts = re.split(r"[/\\]", name)
        if not name or not name.isprintable() or len(name) > 200 or ".." in parts or "" in parts or ":" in name:
            raise DataMismatch(f"{name[:80]!r} cannot be the name of an input. Use letters, digits and dots.")
        if name.lower() in TARGET_NAMES or name in _RESERVED:
            raise DataMismatch(f"An input cannot be named {name!r}: files use that name for something else.")
        if array.ndim == 0:
            raise DataMismatch(f"The input {name!r} is a single number. Its first axis has to count the samples.")
        if array.size == 0:
            raise DataMismatch(f"The input {name!r} is empty: its shape is {_shape(array.shape)}. Give some samples.")
    if len({len(array) for array in inputs}) > 1:
        counts = ", ".join(f"{name} {len(array):,}" for name, array in zip(names, inputs, strict=True))
        raise DataMismatch(
            f"The inputs have different numbers of samples: {counts}. The first axis of each has to count the same "
            "samples; labels belong into an array named y."
        )


def _check_finite(name: str, array: np.ndarray) -> None:
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


def _class_numbers(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as [N] int64, and the names if they were given as text."""
    remedy = "Give class numbers 0 .. C-1 as [N]; without labels agreement with the float model and SQNR still work."
    kind = labels.dtype.kind
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if kind not in "biufU":
        raise DataMismatch(f"The labels are of type {labels.dtype}. {remedy}")
    if labels.ndim not in (1, 2):
        raise DataMismatch(f"The labels have the shape {_shape(labels.shape)}. {remedy}")
    if kind == "U":
        if labels.ndim != 1:
            raise DataMismatch(f"The labels have the shape {_shape(labels.shape)}. {remedy}")
        names, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int64), tuple(str(name) for name in names)
    if kind == "f":
        if not np.isfinite(labels).all():
            row = int((~np.isfinite(labels).reshape(len(labels), -1).all(axis=1)).argmax())
            raise NonFinite(f"The labels hold NaN or Inf at sample {row}. {remedy}")
        if (labels != np.floor(labels)).any():
            row = int((labels != np.floor(labels)).reshape(len(labels), -1).any(axis=1).argmax())
            raise DataMismatch(f"The labels are no whole numbers: {labels[row]} at sample {row}. {remedy}")
    if labels.ndim == 2:
        if labels.size == 0 or not (((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataMismatch(f"The labels have the shape {_shape(labels.shape)} and are not one-hot. {remedy}")
        labels = labels.argmax(axis=1)
    if labels.size and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
        row = int(((labels < 0) | (labels >= MAX_CLASSES)).argmax())
        raise DataMismatch(f"The label at sample {row} is {labels[row]}, which is no class number. {remedy}")
    return labels.astype(np.int64), None


def _check_targets(targets: np.ndarray | None, count: int, class_names: tuple[str, ...] | None) -> None:
    if targets is None:
        return
    if targets.shape != (count,):
        raise DataMismatch(
            f"There are {count:,} samples and labels of the shape {_shape(targets.shape)}. One label a sample is due."
        )
    if targets.min() < 0 or targets.max() >= MAX_CLASSES:
        raise DataMismatch(f"The labels go from {targets.min()} to {targets.max()}. Give class numbers 0 .. C-1.")
    if class_names is not None and int(targets.max()) >= len(class_names):
        raise DataMismatch(
            f"There are {len(class_names)} class names, but a label is {targets.max()}. Name every class."
        )


def _class_names(array: np.ndarray | None) -> tuple[str, ...] | None:
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DataMismatch(f"class_names has the shape {_shape(array.shape)} and type {array.dtype}. Give [C] of text.")
    return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in array.tolist())


def _sample_index(array: np.ndarray | None, count: int) -> np.ndarray:
    if array is None:
        return np.arange(count)
    if (
        array.shape != (count,)
        or array.dtype.kind not in "iu"
        or array.min() < 0
        or array.max() > np.iinfo(np.int64).max
    ):
        raise DataMismatch(f"sample_index is {_shape(array.shape)} of {array.dtype}. Give [{count}] whole numbers.")
    return array


def _stored_split(reserved: dict[str, np.ndarray], count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    found = []
    for key in ("calibration_index", "evaluation_index"):
        array = reserved.get(key)
        if array is not None and (array.ndim != 1 or array.dtype.kind not in "iu" or len(array) == 0):
            raise DataMismatch(f"{key} is {_shape(array.shape)} of {array.dtype}. Give the numbers of samples as [K].")
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


def _check_split(calibration: np.ndarray | None, evaluation: np.ndarray | None, count: int) -> None:
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


# ------------------------------------------------------------------------------------------------------- preprocessing


def _numbers(key: str, value: Any) -> tuple[float, ...] | None:
    """One number or one for each channel, as a tuple; finite, and not 0 where it scales or divides."""
    if value is None:
        return None
    array = _array(value, key)
    if array.dtype.kind not in "iuf" or array.ndim > 1 or array.size == 0:
        raise DataMismatch(
            f"{key} has the shape {_shape(array.shape)} and type {array.dtype}. Give a number or one a channel."
        )
    numbers = tuple(float(v) for v in array.reshape(-1))
    if not all(math.isfinite(v) for v in numbers):
        raise DataMismatch(f"{key} holds {numbers}: not all are numbers. Give what the model was trained with.")
    if (key == "std" and min(numbers) <= 0) or (key == "scale" and 0 in numbers):
        raise DataMismatch(f"{key} holds {numbers}. {'It is divided by and' if key == 'std' else 'It'} cannot be that.")
    return numbers


def _factor(scale: Any, inputs: tuple[np.ndarray, ...]) -> tuple[float, ...] | None:
    """The factor behind `scale`: for whole numbers, 2 and more is a full-scale value to divide by."""
    numbers = _numbers("scale", scale)
    if numbers is None or not any(array.dtype.kind in "iu" for array in inputs):
        return numbers
    return tuple(1 / v if v >= 2 else v for v in numbers)


def _check_preprocessing(data: Dataset) -> None:
    for key in _PREPROCESSING:
        numbers = getattr(data, key)
        if numbers is None or len(numbers) == 1:
            continue
        for i, array in enumerate(data.inputs):
            if not data.is_tokens(i) and (array.ndim < 2 or array.shape[1] != len(numbers)):
                channels = f"{array.shape[1]} channels (axis 1)" if array.ndim > 1 else "no channel axis"
                raise DataMismatch(
                    f"{key} has {len(numbers)} numbers; {data.input_names[i]} {_shape(array.shape)} has {channels}. "
                    "Give one number, or one for each channel; images are stored as [N, C, H, W]."
                )


def _by_channel(numbers: np.ndarray, ndim: int) -> np.ndarray:
    return numbers if len(numbers) == 1 else numbers.reshape(1, -1, *(1,) * (ndim - 2))


def _scaled(raw: np.ndarray, scale: tuple[float, ...] | None) -> np.ndarray:
    """x * scale in float32, rounded once: 200 * (1/255) has to be the float32 next to 200/255. Always a new array."""
    if scale is None:
        return raw.astype(np.float32)
    if raw.dtype == np.uint8 and len(scale) == 1:
        return (np.arange(256) * scale[0]).astype(np.float32)[raw]
    return (raw * _by_channel(np.array(scale, np.float64), raw.ndim)).astype(np.float32)


# -------------------------------------------------------------------------------------------------- fit to the model


@dataclass(frozen=True)
class Finding:
    """One line of the check of data against a model; `remedy` is empty where nothing is to do."""

    severity: Literal["error", "warning", "ok"]
    message: str
    remedy: str = ""


def check_against(
    model_inputs: "tuple[InputSpec, ...]", dataset: Dataset, n_classes: int | None = None
) -> list[Finding]:
    """Whether this data fits a model with these inputs and, if known, so many classes; errors first.

    Nothing is run. Shapes, types, labels and the range in which the values reach the model are looked at.
    """
    findings: list[Finding] = []
    if len(model_inputs) != len(dataset.inputs):
        names = ", ".join(spec.name for spec in model_inputs)
        findings.append(
            Finding(
                "error",
                f"Inputs of the model: {len(model_inputs)} ({names}); of the data: {len(dataset.inputs)} "
                f"({', '.join(dataset.input_names)}).",
                "Give one array for each input, in the model's order; labels belong into an array named y.",
            )
        )
    for i, (spec, _) in enumerate(zip(model_inputs, dataset.inputs, strict=False)):
        problems = [*_check_shape(spec, dataset, i), *_check_dtype(spec, dataset, i)]
        if not problems:
            problems = _check_values(spec, dataset, i)
        findings += problems or [
            Finding(
                "ok",
                f"{dataset.input_names[i]} {_shape(dataset.inputs[i].shape)} fits {spec.name} {_spec_shape(spec)}.",
            )
        ]
    findings += [*_check_labels(dataset, n_classes), *_check_count(dataset)]
    return sorted(findings, key=lambda finding: ("error", "warning", "ok").index(finding.severity))


def _check_shape(spec: "InputSpec", dataset: Dataset, i: int) -> list[Finding]:
    have, want = dataset.inputs[i].shape, spec.shape
    if len(have) != len(want) or not all(_allows(spec, axis, have[axis]) for axis in range(1, len(want))):
        return [
            Finding(
                "error",
                f"The data {dataset.input_names[i]} is {_shape(have)}, the model expects {_spec_shape(spec)} "
                f"for {spec.name}.",
                _shape_remedy(spec, have),
            )
        ]
    if len(want) == 0:
        return []
    count, fixed = have[0], want[0]
    least = fixed if fixed is not None else _bound(spec.minimum, 0, 1)
    if count < least:
        kind = "a fixed batch of" if fixed is not None else "a batch of at least"
        return [
            Finding(
                "error",
                f"The model was exported with {kind} {least}; the data has {count} samples.",
                "Add samples, or export with a free batch: dynamic_shapes=({0: torch.export.Dim('batch', min=1)},).",
            )
        ]
    if fixed is not None and fixed > 1 and count % fixed:
        return [
            Finding(
                "warning",
                f"The model was exported with a fixed batch of {fixed}; the last {count % fixed} of {count} samples do "
                "not fill one.",
                f"Use batches of {fixed} and leave the rest out, or export the model with a free batch.",
            )
        ]
    return []


def _allows(spec: "InputSpec", axis: int, size: int) -> bool:
    fixed = spec.shape[axis]
    if fixed is not None:
        return size == fixed
    most = _bound(spec.maximum, axis, None)
    return size >= _bound(spec.minimum, axis, 1) and (most is None or size <= most)


def _bound(bounds: Any, axis: int, default: Any) -> Any:
    return bounds[axis] if bounds is not None and axis < len(bounds) and bounds[axis] is not None else default


def _shape_remedy(spec: "InputSpec", have: tuple[int, ...]) -> str:
    """How to bring this shape into the model's form, as far as it can be guessed."""
    want = spec.shape

    def fits(shape: Sequence[int]) -> bool:
        return len(shape) == len(want) and all(_allows(spec, axis, shape[axis]) for axis in range(1, len(want)))

    rank = len(have)
    last_first = (0, rank - 1, *range(1, rank - 1))
    if rank == len(want) >= 3:
        if fits([have[axis] for axis in last_first]):
            return f"The last axis looks like the channels; transpose with x.transpose{last_first}."
        for order in itertools.permutations(range(1, rank)) if rank <= 5 else ():
            if fits([have[axis] for axis in (0, *order)]):
                return f"The axes are in another order; transpose with x.transpose{(0, *order)}."
    if rank + 1 == len(want) and fits([have[0], 1, *have[1:]]):
        return "The channel axis is missing; add it with x[:, None]."
    if rank == len(want) + 1 and 1 in have[1:]:
        axis = have.index(1, 1)
        if fits([*have[:axis], *have[axis + 1 :]]):
            return f"The axis {axis} of size 1 is too much; remove it with x.squeeze({axis})."
    if rank == len(want) - 1 and fits([1, *have]):
        return "The batch axis is missing; add it with x[None]."
    inner = want[1:]
    sizes = [size for size in inner if size is not None]
    if len(sizes) == len(inner) and math.prod(have[1:]) == math.prod(sizes) and rank != len(want):
        shape = ", ".join(map(str, (-1, *sizes)))
        return f"A sample has as many values as the model expects; reshape with x.reshape({shape})."
    if rank != len(want):
        return f"The data has {rank} axes, the model {len(want)} (samples first). Save the data in the model's form."
    if rank >= 3 and {have[1], want[1]} == {1, 3} and fits([have[0], 4 - have[1], *have[2:]]):
        if have[1] == 1:
            return (
                "The data is grey and the model expects colour; repeat with x.repeat(3, axis=1), if it was trained so."
            )
        return "The data is in colour and the model expects grey; convert it as in training."
    wrong = [axis for axis in range(1, rank) if not _allows(spec, axis, have[axis])]
    parts = ", ".join(f"axis {axis} has {have[axis]} instead of {_axis(spec, axis)}" for axis in wrong)
    return f"{parts[:1].upper()}{parts[1:]}. Resize, crop or pad the data as in training."


def _check_dtype(spec: "InputSpec", dataset: Dataset, i: int) -> list[Finding]:
    want, have, name = str(spec.dtype).removeprefix("torch."), dataset.inputs[i].dtype, dataset.input_names[i]
    tokens = dataset.is_tokens(i)
    if want in ("int64", "int32", "int16", "int8", "uint8"):
        if tokens:
            return []
        if have in (np.int32, np.int64):
            message = (
                f"The model expects whole numbers ({want}) for {spec.name}; scale, mean and std make floats of {name}."
            )
            return [Finding("error", message, "Leave scale, mean and std empty for token ids.")]
        message = (
            f"The model expects whole numbers ({want}) for {spec.name}; {name} is {have} and reaches it as float32."
        )
        return [Finding("error", message, "Store token ids as int64: x.astype('int64').")]
    if tokens:
        return [
            Finding(
                "error",
                f"The model expects {want} for {spec.name}; {name} is {have} without preprocessing and is taken for "
                "token ids.",
                "Store the values as float32, or, if they are pixels, set scale (255 for 0..255).",
            )
        ]
    if want == "float32":
        return []
    return [
        Finding(
            "warning" if want in ("float64", "float16", "bfloat16") else "error",
            f"The model expects {want} for {spec.name}; the data reaches it as float32.",
            "Export the model in float32: model.float() before torch.export.export.",
        )
    ]


def _check_values(spec: "InputSpec", dataset: Dataset, i: int) -> list[Finding]:
    """The range in which the values reach the model. Called for an input whose shape and type fit."""
    name, raw = dataset.input_names[i], dataset.inputs[i]
    low, high = dataset._ranges[i]
    findings: list[Finding] = []
    if low == high:
        findings.append(Finding("warning", f"Every value of {name} is {low:g}.", "Check how the data was saved."))
    if dataset.is_tokens(i):
        if low < 0:
            message = f"{name} holds the token id {low}; ids start at 0."
            findings.append(Finding("error", message, "Map padding and unknown tokens to ids the model has."))
        return findings
    reach_low, reach_high = _reach(dataset, i)
    normalised = dataset.mean is not None or dataset.std is not None
    full_range = raw.ndim >= 3 and low >= 0 and high <= 255 and high > 30
    unscaled = dataset.scale is None or dataset.scale == (1.0,)
    span = f"from {reach_low:.4g} to {reach_high:.4g}"
    if full_range and unscaled and max(abs(reach_low), abs(reach_high)) > 30:
        as_what = f"{span}, because mean and std are set and scale is not" if normalised else "as 0..255"
        findings.append(
            Finding(
                "warning",
                f"{name} reaches the model {as_what}; most models are trained on small values.",
                "Set scale=1/255." if normalised else "Set scale=1/255, and mean and std as in training.",
            )
        )
    elif max(abs(reach_low), abs(reach_high)) > 30:
        findings.append(
            Finding(
                "warning",
                f"{name} reaches the model with values {span}, which is unusually far for a model's input.",
                "Check that scale, mean and std are those of training.",
            )
        )
    elif dataset.scale is not None and raw.dtype.kind == "f" and max(dataset.scale) < 1 / 60 and high - low <= 2.01:
        findings.append(
            Finding(
                "warning",
                f"{name} is stored from {low:.4g} to {high:.4g} and scaled by {max(dataset.scale):.4g} once more.",
                "Leave scale empty: the data looks scaled already.",
            )
        )
    return findings


def _reach(dataset: Dataset, i: int) -> tuple[float, float]:
    """Smallest and largest value of an input after preprocessing. Preprocessing is monotone in each channel."""
    raw = dataset.inputs[i]
    axes = tuple(axis for axis in range(raw.ndim) if axis != 1)
    ends = np.stack([raw.min(axis=axes), raw.max(axis=axes)]).astype(np.float64)  # [2, C], or [2] for one axis
    for numbers, apply in _steps(dataset):
        ends = apply(ends, np.array(numbers))
    return float(ends.min()), float(ends.max())


def _steps(dataset: Dataset) -> list[tuple[tuple[float, ...], Callable[[np.ndarray, np.ndarray], np.ndarray]]]:
    steps = ((dataset.scale, np.multiply), (dataset.mean, np.subtract), (dataset.std, np.divide))
    return [(numbers, apply) for numbers, apply in steps if numbers is not None]


def _check_labels(dataset: Dataset, n_classes: int | None) -> list[Finding]:
    if dataset.targets is None:
        return [Finding("ok", "No labels: agreement with the float model and SQNR are measured, accuracy is not.")]
    low, high = int(dataset.targets.min()), int(dataset.targets.max())
    if n_classes is None:
        return [Finding("ok", f"Labels from {low} to {high}.")]
    if high >= n_classes:
        remedy = (
            "The labels start at 1; subtract 1."
            if low >= 1 and high == n_classes
            else "Check that labels and model belong together."
        )
        return [
            Finding("error", f"A label is {high}, but the model has {n_classes} classes, 0..{n_classes - 1}.", remedy)
        ]
    if dataset.class_names is not None and len(dataset.class_names) != n_classes:
        message = f"The data names {len(dataset.class_names)} classes, the model has {n_classes}."
        return [Finding("warning", message, "Check that the order of the classes is that of training.")]
    if low == high and len(dataset) > 1:
        return [
            Finding("warning", f"Every label is {low}.", "Accuracy on one class says little; add samples of others.")
        ]
    return [Finding("ok", f"Labels from {low} to {high} fit {n_classes} classes.")]


def _check_count(dataset: Dataset) -> list[Finding]:
    if len(dataset) > 1:
        return []
    remedy = "Add samples: a hundred or more to calibrate, and others to evaluate."
    return [Finding("warning", "There is a single sample; ranges and accuracy from it mean little.", remedy)]


def _axis(spec: "InputSpec", axis: int) -> str:
    fixed = spec.shape[axis]
    if fixed is not None:
        return str(fixed)
    least, most = _bound(spec.minimum, axis, 1), _bound(spec.maximum, axis, None)
    if most is not None and most < 2**31:
        return f"{least}..{most}"
    return f"at least {least}" if least > 2 else "any"


def _spec_shape(spec: "InputSpec") -> str:
    return (
        "["
        + ", ".join("any" if axis == 0 and size is None else _axis(spec, axis) for axis, size in enumerate(spec.shape))
        + "]"
    )


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def _locked(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.setflags(write=False)
    return view


def _number(value: Any) -> float:
    number = value.item()
    return int(number) if isinstance(number, bool) else number
