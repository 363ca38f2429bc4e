"""The check of data against a model: what is found, and that the remedy named is right."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qlab.data import Dataset, Finding, check_against, load_dataset, sample_names
from tests.data_examples import CIFAR, IMAGES, LABELS, MEAN, RNG, STD, Spec, dataset, together

IMAGE = Spec("image", torch.float32, (None, 3, 4, 4))
TOKENS = Spec("ids", torch.int64, (None, None), (1, 2), (4096, 16))
TAGS = np.arange(40).reshape(10, 4) % 7
SCALED = {"scale": 255, "mean": MEAN, "std": STD}


def floats(*shape):
    return RNG.random(shape).astype(np.float32)


# name: inputs of the model, data, number of classes, then severity and words of the one finding, and of its remedy
FINDINGS = {
    "fits": ((IMAGE,), dataset(**SCALED), 3, "ok", "x [10, 3, 4, 4] fits image [any, 3, 4, 4]", ""),
    "labels_fit": ((IMAGE,), dataset(**SCALED), 3, "ok", "Labels from 0 to 2 fit 3 classes", ""),
    "classes_unknown": ((IMAGE,), dataset(**SCALED), None, "ok", "Labels from 0 to 2", ""),
    "no_labels": ((IMAGE,), load_dataset(IMAGES, **SCALED), 3, "ok", "agreement with the float model", ""),
    "input_missing": ((IMAGE, IMAGE), dataset(**SCALED), 3, "error", "2 (image, image); of the data: 1 (x)", "y"),
    "input_too_many": (
        (IMAGE,), load_dataset((IMAGES, IMAGES), **SCALED), 3, "error",
        "1 (image); of the data: 2 (x0, x1)", "labels",
    ),
    "hwc": (
        (IMAGE,), dataset(IMAGES.transpose(0, 2, 3, 1)), 3, "error",
        "x is [10, 4, 4, 3], the model expects [any, 3, 4, 4]",
        "last axis looks like the channels; transpose with x.transpose(0, 3, 1, 2)",
    ),
    "sequence_last": (
        (Spec("s", torch.float32, (None, 5, 7)),), load_dataset(floats(2, 7, 5)), None, "error",
        "[2, 7, 5]", "transpose with x.transpose(0, 2, 1)",
    ),
    "swapped": (
        (Spec("s", torch.float32, (None, 3, 5, 7)),), load_dataset(floats(2, 3, 7, 5)), None, "error",
        "[2, 3, 7, 5]", "x.transpose(0, 1, 3, 2)",
    ),
    "no_channel_axis": (
        (Spec("g", torch.float32, (None, 1, 4, 4)),), load_dataset(IMAGES[:, 0]), None, "error",
        "[10, 4, 4]", "channel axis is missing; add it with x[:, None]",
    ),
    "extra_axis": (
        (Spec("g", torch.float32, (None, 4, 4)),), load_dataset(IMAGES[:, :1]), None, "error",
        "[10, 1, 4, 4]", "x.squeeze(1)",
    ),
    "no_batch_axis": (
        (IMAGE,), load_dataset(IMAGES[0]), None, "error",
        "[3, 4, 4]", "batch axis is missing; add it with x[None]",
    ),
    "flat_data": ((IMAGE,), load_dataset(IMAGES.reshape(10, 48)), None, "error", "[10, 48]", "x.reshape(-1, 3, 4, 4)"),
    "flat_model": ((Spec("f", torch.float32, (None, 48)),), dataset(), None, "error", "[any, 48]", "x.reshape(-1, 48)"),
    "rank": ((Spec("f", torch.float32, (None, 5)),), dataset(), None, "error", "[any, 5]", "has 4 axes, the model 2"),
    "grey_to_colour": ((IMAGE,), load_dataset(IMAGES[:, :1]), None, "error", "[10, 1, 4, 4]", "x.repeat(3, axis=1)"),
    "colour_to_grey": (
        (Spec("g", torch.float32, (None, 1, 4, 4)),), dataset(), None, "error",
        "[10, 3, 4, 4]", "expects grey",
    ),
    "size": (
        (Spec("b", torch.float32, (None, 3, 8, 8)),), dataset(), None, "error",
        "[any, 3, 8, 8]", "Axis 2 has 4 instead of 8, axis 3 has 4 instead of 8",
    ),
    "too_long": (
        (TOKENS,), load_dataset(np.ones((4, 20), np.int64)), None, "error",
        "[any, 2..16]", "20 instead of 2..16",
    ),
    "tokens": ((TOKENS,), load_dataset(np.arange(8).reshape(4, 2)), None, "ok", "fits ids", ""),
    "tokens_int32": ((TOKENS,), load_dataset(np.arange(8, dtype=np.int32).reshape(4, 2)), None, "ok", "fits ids", ""),
    "floats_as_tokens": (
        (TOKENS,), load_dataset(floats(4, 2)), None, "error",
        "expects whole numbers (int64)", "astype('int64')",
    ),
    "uint8_as_tokens": (
        (TOKENS,), load_dataset(np.ones((4, 2), np.uint8)), None, "error",
        "uint8 and reaches it as float32", "int64",
    ),
    "scaled_tokens": (
        (TOKENS,), load_dataset(np.arange(8).reshape(4, 2), scale=1), None, "error",
        "make floats", "empty",
    ),
    "negative_token": (
        (TOKENS,), load_dataset(np.arange(8).reshape(4, 2) - 1), None, "error",
        "token id -1", "padding",
    ),
    "pixels_as_int64": (
        (IMAGE,), load_dataset(IMAGES.astype(np.int64)), None, "error",
        "taken for token ids", "set scale",
    ),
    "float64_model": (
        (replace(IMAGE, dtype=torch.float64),), dataset(**SCALED), 3, "warning",
        "expects float64", "float32",
    ),
    "bool_model": ((replace(IMAGE, dtype=torch.bool),), dataset(**SCALED), 3, "error", "expects bool", "float32"),
    "label_range": (
        (IMAGE,), dataset(**SCALED), 2, "error",
        "label is 2, but the model has 2 classes, 0..1", "Check that labels",
    ),
    "labels_from_one": ((IMAGE,), dataset(y=LABELS + 1, **SCALED), 3, "error", "label is 3", "start at 1; subtract 1"),
    "label_range_per_position": (
        (IMAGE,), dataset(y=TAGS, **SCALED), 6, "error",
        "label is 6, but the model has 6 classes, 0..5", "Check that labels",
    ),
    "tags_from_one": ((IMAGE,), dataset(y=TAGS + 1, **SCALED), 7, "error", "label is 7", "start at 1; subtract 1"),
    "tags_fit": ((IMAGE,), dataset(y=TAGS, **SCALED), 7, "ok", "Labels per position [4] from 0 to 6 fit 7 classes", ""),
    "tags_of_one_class": ((IMAGE,), dataset(y=TAGS * 0, **SCALED), 7, "warning", "Every label is 0", "others"),
    "one_label": ((IMAGE,), dataset(y=LABELS * 0, **SCALED), 3, "warning", "Every label is 0", "others"),
    "names_and_classes": (
        (IMAGE,), load_dataset({"x": IMAGES, "y": LABELS, "class_names": list("abcd")}, **SCALED), 5, "warning",
        "names 4 classes, the model has 5", "order",
    ),
    "single": ((IMAGE,), dataset(IMAGES[:1], LABELS[:1], **SCALED), 3, "warning", "single sample", "Add samples"),
    "fixed_batch": (
        (replace(IMAGE, shape=(16, 3, 4, 4)),), dataset(**SCALED), 3, "error",
        "a fixed batch of 16; the data has 10", "free batch",
    ),
    "batch_remainder": (
        (replace(IMAGE, shape=(4, 3, 4, 4)),), dataset(**SCALED), 3, "warning",
        "the last 2 of 10", "batches of 4",
    ),
    "least_batch": (
        (replace(IMAGE, minimum=(16, 3, 4, 4)),), dataset(**SCALED), 3, "error",
        "at least 16; the data has 10", "batch",
    ),
    "raw_uint8": (
        (IMAGE,), dataset(), 3, "warning",
        "reaches the model as 0..255", "scale=1/255, and mean and std as in training",
    ),
    "raw_float": ((IMAGE,), dataset(IMAGES.astype(np.float32)), 3, "warning", "as 0..255", "scale=1/255"),
    "unscaled_but_normalised": (
        (IMAGE,), dataset(mean=MEAN, std=STD), 3, "warning",
        "because mean and std are set and scale is not", "1/255",
    ),
    "far": (
        (Spec("f", torch.float32, (None, 3)),), load_dataset(1000 * floats(4, 3)), None, "warning",
        "unusually far", "those of training",
    ),
    "scaled_twice": (
        (Spec("i", torch.float32, (None, 3, 4)),), load_dataset(floats(4, 3, 4), scale=1 / 255), None, "warning",
        "scaled by 0.003922 once more", "Leave scale empty",
    ),
    "constant": ((IMAGE,), dataset(np.full_like(IMAGES, 7), **SCALED), 3, "warning", "Every value of x is 7", "saved"),
}  # fmt: skip


@pytest.mark.parametrize("case", FINDINGS)
def test_findings(case):
    specs, data, n_classes, severity, words, remedy = FINDINGS[case]
    findings = check_against(specs, data, n_classes)
    match = [finding for finding in findings if words in finding.message]
    assert [finding.severity for finding in match] == [severity], findings
    assert remedy in match[0].remedy
    assert [f.severity for f in findings] == sorted(
        (f.severity for f in findings), key=["error", "warning", "ok"].index
    )
    assert sum(finding.severity != "ok" for finding in findings) <= 1, findings


@pytest.mark.parametrize("shape", [(10, 3), (10, 3, 4, 4), (10, 4, 4, 3), (10,), (2, 3, 4, 5, 6)], ids=str)
@pytest.mark.parametrize("want", [(None, 3), (None, 3, None, None), (), (None,), (4, 5), (None, 3, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_no_combination_of_shapes_breaks_the_check(shape, want, dtype):
    for x in (np.ones(shape, np.float32), np.ones(shape, np.int64)):
        findings = check_against((Spec("a", dtype, want),), load_dataset(x))
        assert findings
        assert all(isinstance(finding, Finding) for finding in findings)


def test_the_suggested_transposition_fits():
    for order in ((0, 3, 1, 2), (0, 2, 3, 1), (0, 1, 3, 2), (0, 2, 1, 3)):
        x = floats(2, 5, 6, 7)
        spec = Spec("a", torch.float32, (None, *(x.shape[axis] for axis in order[1:])))
        finding = check_against((spec,), load_dataset(x))[0]
        assert f"x.transpose{order}" in finding.remedy
        assert check_against((spec,), load_dataset(x.transpose(order)))[0].severity == "ok"


# --------------------------------------------------------------------------------------------------------- real files


@pytest.mark.parametrize("name", sample_names())
def test_sample_data(name):
    data = load_dataset(name)
    assert data.name == name
    assert data.has_split
    assert data.targets is not None
    assert len(data.calibration) + len(data.evaluation) == len(data)
    assert all(finding.severity == "ok" for finding in check_against(specs_like(data), data, data.n_classes))


def specs_like(data: Dataset) -> "tuple[Spec, ...]":
    return tuple(
        Spec(name, torch.from_numpy(x).dtype, (None, *x.shape[1:]))
        for name, x in zip(data.input_names, data.example(0), strict=True)
    )


@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 files lie outside the repository")
def test_cifar10():
    data = load_dataset(CIFAR / "test1000.npz", scale=255, mean=MEAN, std=STD)
    assert data.describe()["inputs"][0] | {"minimum": 0, "maximum": 255} == data.describe()["inputs"][0]
    assert (len(data), data.n_classes, data.label_kind) == (1000, 10, "classes")
    spec = (Spec("x", torch.float32, (None, 3, 32, 32), maximum=(4096, 3, 32, 32)),)
    assert {finding.severity for finding in check_against(spec, data, 10)} == {"ok"}
    raw = check_against(spec, data.with_preprocessing(), 10)
    assert [finding.severity for finding in raw].count("warning") == 1
    want = (torch.from_numpy(np.array(data.inputs[0])).float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    assert torch.equal(together(data, 64)[0], want)
