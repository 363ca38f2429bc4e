"""Data sets: inputs, labels if there are any, how raw values become what the model was trained on, and a split.

    data = load_dataset("digits.npz", scale=255)          # also arrays, bytes, or the name of a sample model
    data = data.split(calibration=512)
    for first, inputs, targets in data.calibration.batches(64): ...

A Dataset keeps the values as stored (uint8 images stay uint8) and preprocesses batch by batch:
`(x * scale - mean) / std`, along the channels.

`Dataset.save` writes an .npz of plain arrays that `load_dataset` reads back: the inputs by name ("x" if there is one),
y, calibration_index, evaluation_index, scale, mean, std, class_names; sample_index if the samples were chosen from
others; label_positions, the shape of y after its first axis, if there are labels per position. The data of the sample
models are of this form, and any .npz, .safetensors or .pt may use these names.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from qlab.arrays import (
    PREPROCESSING,
    RESERVED,
    Numbers,
    by_channel,
    check_channels,
    check_finite,
    check_inputs,
    check_split,
    checked_input,
    contents_of,
    factor_of,
    is_file,
    locked,
    numbers_of,
    sample_index,
    scaled,
    stored_split,
)
from qlab.checks import Finding, check_against
from qlab.errors import BadUpload, DataMismatch
from qlab.labels import (
    MAX_CLASSES,
    as_class_names,
    check_targets,
    class_numbers,
    found_labels,
    given_labels,
    named_labels,
)
from qlab.readers import DEFAULT_LIMITS, TARGET_NAMES, Limits
from qlab.readers.common import shape_text
from qlab.samples import sample_names

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_CLASSES", "Dataset", "Finding", "Numbers", "check_against", "load_dataset", "sample_names"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with their labels, preprocessing and split. Arrays are read-only.

    | field              | shape, dtype                                                                         |
    |--------------------|--------------------------------------------------------------------------------------|
    | inputs             | each [N, ...], as stored                                                             |
    | targets            | int64, 0 .. C-1, [N] or for each position [N, T], [N, H, W]; None: no labels         |
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
        check_inputs(self.inputs, self.input_names)
        count = len(self.inputs[0])
        given = {key: getattr(self, key) for key in ("targets", "calibration_index", "evaluation_index", "index")}
        if self.index is None:
            given["index"] = np.arange(count)
        for key, array in given.items():
            if array is not None:
                object.__setattr__(self, key, locked(np.asarray(array, dtype=np.int64)))
        object.__setattr__(self, "inputs", tuple(locked(array) for array in self.inputs))
        for key in PREPROCESSING:
            object.__setattr__(self, key, numbers_of(key, getattr(self, key)))
        if self.index.shape != (count,):
            raise DataMismatch(f"index has the shape {shape_text(self.index.shape)}; {count:,} samples need [{count}].")
        check_targets(self.targets, count, self.class_names)
        check_split(self.calibration_index, self.evaluation_index, count)
        for i, (name, array) in enumerate(zip(self.input_names, self.inputs, strict=True)):
            for key in PREPROCESSING:
                if getattr(self, key) is not None and not self.is_tokens(i):
                    check_channels(key, getattr(self, key), name, array)

    # ------------------------------------------------------------------------------------------------------ parts

    def __len__(self) -> int:
        return len(self.inputs[0])

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{n} {shape_text(x.shape)} {x.dtype}" for n, x in zip(self.input_names, self.inputs, strict=True)
        )
        return f"Dataset({self.name!r}, {shapes}, label_kind={self.label_kind!r}, split={self.has_split})"

    @property
    def label_kind(self) -> Literal["classes", "classes per position", "none"]:
        if self.targets is None:
            return "none"
        return "classes" if self.targets.ndim == 1 else "classes per position"

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
                    raise DataMismatch(f"The mask has the shape {shape_text(chosen.shape)}; it needs [{len(self)}].")
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
        factor = factor_of(scale, self.inputs)
        return replace(self, scale=factor, mean=numbers_of("mean", mean), std=numbers_of("std", std))

    # ------------------------------------------------------------------------------------------------------ values

    def batches(
        self, batch_size: int
    ) -> Iterator[tuple[int, "tuple[torch.Tensor, ...]", "torch.Tensor | None"]]:  # fmt: skip
        """(number of the batch's first sample, preprocessed inputs, targets): float32, or int64 for token ids.

        The number is `index`, not the position, so that statistics of two slices merge to those of the whole.
        """
        if batch_size < 1:
            raise DataMismatch(f"The batch size is {batch_size}. It has to be at least 1.")
        for start in range(0, len(self), batch_size):
            yield self.batch(start, batch_size)

    def batch(
        self, start: int, size: int
    ) -> tuple[int, "tuple[torch.Tensor, ...]", "torch.Tensor | None"]:  # fmt: skip
        """What `batches` gives for the samples at the positions from `start` on, at most `size`; from any thread."""
        import torch

        part = slice(start, start + size)
        inputs = tuple(torch.from_numpy(self._preprocessed(i, part)) for i in range(len(self.inputs)))
        targets = None if self.targets is None else torch.from_numpy(self.targets[part].copy())
        return int(self.index[start]), inputs, targets

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
        x = scaled(raw, self.scale)
        # In float32 and in this order, as torchvision.transforms.Normalize computes it: same bits as in training.
        if self.mean is not None:
            x -= by_channel(np.array(self.mean, np.float32), x.ndim)
        if self.std is not None:
            x /= by_channel(np.array(self.std, np.float32), x.ndim)
        return x

    # ---------------------------------------------------------------------------------------------------- summaries

    @cached_property
    def content_hash(self) -> str:
        """sha256 over inputs (dtype, shape, bytes), targets, preprocessing, split and index, not names."""
        digest = hashlib.sha256()
        arrays: dict[str, np.ndarray | None] = {f"input {i}": array for i, array in enumerate(self.inputs)}
        arrays |= {key: getattr(self, key) for key in ("targets", "index", "calibration_index", "evaluation_index")}
        arrays |= {key: None if (v := getattr(self, key)) is None else np.array(v) for key in PREPROCESSING}
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
            numbers = np.bincount(self.targets.reshape(-1))
            counts = {int(value): int(numbers[value]) for value in np.flatnonzero(numbers)}
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
            **{key: None if getattr(self, key) is None else list(getattr(self, key)) for key in PREPROCESSING},
            "calibration": None if self.calibration_index is None else len(self.calibration_index),
            "evaluation": None if self.evaluation_index is None else len(self.evaluation_index),
        }

    def save(self, target: str | Path | BinaryIO) -> None:
        """Write an .npz that load_dataset reads back, to a path or an open binary file. Same data, same bytes."""
        arrays: dict[str, np.ndarray] = dict(zip(self.input_names, self.inputs, strict=True))
        stored = (*PREPROCESSING, "class_names", "calibration_index", "evaluation_index")
        for key, array in (("y", self.targets), *((key, getattr(self, key)) for key in stored)):
            if array is not None:
                arrays[key] = np.array(array)
        if self.targets is not None and self.targets.ndim > 1:  # labels of 0 and 1 may look one-hot
            arrays["label_positions"] = np.array(self.targets.shape[1:])
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
        Class numbers [N], or for each position [N, T] or [N, H, W]. An [N, C] of zeros with a single 1 in each row is
        one-hot; if such an array is labels per position, say so with label_positions (see the module's docstring).
    scale: the factor raw values are multiplied with. For data stored as whole numbers a value of 2 or more is taken for
        the full scale instead, which they are divided by: 255 means 1/255.
    mean, std: subtracted and divided by after that; a number, or one for each channel (axis 1).
        What is given here wins over what a file says; a zip of images has scale 1/255 unless told otherwise.
    name: what the data set is called; a file name (with suffix) if `source` is bytes.

    float64 becomes float32; int32 and int64 without preprocessing stay whole numbers (token ids), other integers become
    float32. Nothing is transposed or resized: `check_against` says what does not fit the model.
    Raises BadUpload, UnsafeFile, DataMismatch, NonFinite.
    """
    column = targets if isinstance(targets, str) and not is_file(targets) else None
    contents, title = contents_of(source, name, limits, column)
    found = dict(contents.arrays)
    if targets is not None:  # what is said of the labels found here does not hold for others
        found.pop("label_positions", None)
    if targets is None:
        labels = found_labels(found, title)
    elif column is not None:
        labels = named_labels(found, "y" if contents.kind in ("csv", "parquet") else column, title)
    else:
        labels, about = given_labels(targets, limits)
        if labels.dtype.kind == "U":  # text brings its names along
            found.pop("class_names", None)
        found |= about
    # Labels of the usual names are not inputs, even where others were asked for.
    found = {key: array for key, array in found.items() if key.lower() not in TARGET_NAMES}
    reserved = {key: found.pop(key) for key in RESERVED if key in found}
    if not found:
        held = ", ".join([*reserved, *(() if labels is None else ("labels",))]) or "nothing"
        raise DataMismatch(f"{title} holds no inputs, only {held}. Add an array named x.")
    inputs = tuple(checked_input(key, array) for key, array in found.items())
    check_inputs(inputs, tuple(found))
    for key, array in zip(found, inputs, strict=True):
        check_finite(key, array)

    class_names = as_class_names(reserved.get("class_names"))
    numbers, own_names = None, None
    if labels is not None:
        numbers, own_names = class_numbers(labels, reserved.get("label_positions"), limits)
    calibration, evaluation = stored_split(reserved, len(inputs[0]))
    stored = {key: reserved.get(key) for key in PREPROCESSING}
    if scale is None:
        scale = stored["scale"] if stored["scale"] is not None else contents.scale
    mean = stored["mean"] if mean is None else mean
    std = stored["std"] if std is None else std
    return Dataset(
        name=title,
        inputs=inputs,
        input_names=tuple(found),
        targets=numbers,
        scale=factor_of(scale, inputs),
        mean=numbers_of("mean", mean),
        std=numbers_of("std", std),
        calibration_index=calibration,
        evaluation_index=evaluation,
        index=sample_index(reserved.get("sample_index"), len(inputs[0])),
        class_names=own_names or class_names if numbers is not None else None,
    )


def _number(value: Any) -> float:
    number = value.item()
    return int(number) if isinstance(number, bool) else number
