"""Whether data fits a model: shapes, types, labels and the range of the values, and what to do where it does not."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qlab.readers.common import shape_text

if TYPE_CHECKING:
    from qlab.data import Dataset
    from qlab.graph.archive import InputSpec


@dataclass(frozen=True)
class Finding:
    """One line of the check of data against a model; `remedy` is empty where nothing is to do."""

    severity: Literal["error", "warning", "ok"]
    message: str
    remedy: str = ""


def check_against(
    model_inputs: "tuple[InputSpec, ...]", dataset: "Dataset", n_classes: int | None = None
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
                f"{dataset.input_names[i]} {shape_text(dataset.inputs[i].shape)} fits {spec.name} {_spec_shape(spec)}.",
            )
        ]
    findings += [*_check_labels(dataset, n_classes), *_check_count(dataset)]
    return sorted(findings, key=lambda finding: ("error", "warning", "ok").index(finding.severity))


def _check_shape(spec: "InputSpec", dataset: "Dataset", i: int) -> list[Finding]:
    have, want = dataset.inputs[i].shape, spec.shape
    if len(have) != len(want) or not all(_allows(spec, axis, have[axis]) for axis in range(1, len(want))):
        return [
            Finding(
                "error",
                f"The data {dataset.input_names[i]} is {shape_text(have)}, the model expects {_spec_shape(spec)} "
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


def _check_dtype(spec: "InputSpec", dataset: "Dataset", i: int) -> list[Finding]:
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


def _check_values(spec: "InputSpec", dataset: "Dataset", i: int) -> list[Finding]:
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


def _reach(dataset: "Dataset", i: int) -> tuple[float, float]:
    """Smallest and largest value of an input after preprocessing. Preprocessing is monotone in each channel."""
    raw = dataset.inputs[i]
    axes = tuple(axis for axis in range(raw.ndim) if axis != 1)
    ends = np.stack([raw.min(axis=axes), raw.max(axis=axes)]).astype(np.float64)  # [2, C], or [2] for one axis
    for numbers, apply in _steps(dataset):
        ends = apply(ends, np.array(numbers))
    return float(ends.min()), float(ends.max())


def _steps(dataset: "Dataset") -> list[tuple[tuple[float, ...], Callable[[np.ndarray, np.ndarray], np.ndarray]]]:
    steps = ((dataset.scale, np.multiply), (dataset.mean, np.subtract), (dataset.std, np.divide))
    return [(numbers, apply) for numbers, apply in steps if numbers is not None]


def _check_labels(dataset: "Dataset", n_classes: int | None) -> list[Finding]:
    if dataset.targets is None:
        return [Finding("ok", "No labels: agreement with the float model and SQNR are measured, accuracy is not.")]
    low, high = int(dataset.targets.min()), int(dataset.targets.max())
    positions = dataset.targets.shape[1:]
    labels = f"Labels per position {shape_text(positions)}" if positions else "Labels"
    if n_classes is None:
        return [Finding("ok", f"{labels} from {low} to {high}.")]
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
    return [Finding("ok", f"{labels} from {low} to {high} fit {n_classes} classes.")]


def _check_count(dataset: "Dataset") -> list[Finding]:
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
