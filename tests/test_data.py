"""Dataset and load_dataset: inputs and labels, preprocessing, split, round trip; the check against a model."""

import hashlib
import io
import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from qlab.data import Dataset, Finding, check_against, load_dataset, sample_names
from qlab.errors import BadUpload, DataMismatch, NonFinite

ROOT = Path(__file__).resolve().parent.parent
CIFAR = ROOT.parent / "shared" / "data" / "cifar10"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(10) % 3


def dataset(x=IMAGES, y=LABELS, **options) -> Dataset:
    return load_dataset(x, y, **options)


def together(data: Dataset, batch_size: int = 3) -> list[torch.Tensor]:
    """All inputs, put together from batches."""
    return [torch.cat(parts) for parts in zip(*(inputs for _, inputs, _ in data.batches(batch_size)), strict=True)]


# --------------------------------------------------------------------------------------------- what a source gives


@pytest.mark.parametrize("key", ["y", "Y", "targets", "target", "labels", "Label"])
def test_labels_are_found_by_name(key, tmp_path):
    np.savez(tmp_path / "a.npz", **{key: LABELS, "image": IMAGES})
    data = load_dataset(tmp_path / "a.npz")
    assert data.name == "a"
    assert data.input_names == ("image",)
    np.testing.assert_array_equal(data.targets, LABELS)
    assert data.targets.dtype == np.int64
    assert data.label_kind == "classes"


def test_every_format_gives_the_same_data(tmp_path):
    x = RNG.random((6, 4)).astype(np.float32)
    y = np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "a.safetensors")
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "a.pt")
    table = np.column_stack([x.astype(np.float64), y])
    np.savetxt(tmp_path / "a.csv", table, delimiter=",", header="a,b,c,d,y", comments="", fmt="%.17g")
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "labels.npy", y)
    want = load_dataset({"x": x, "y": y}).content_hash
    for name in ("a.npz", "a.safetensors", "a.pt", "a.csv"):
        assert load_dataset(tmp_path / name).content_hash == want, name
    assert load_dataset(tmp_path / "a.npy", tmp_path / "labels.npy").content_hash == want
    assert load_dataset((tmp_path / "a.npz").read_bytes()).content_hash == want
    with (tmp_path / "a.npz").open("rb") as file:
        assert load_dataset(file).content_hash == want
    assert load_dataset(torch.from_numpy(x), torch.from_numpy(y)).content_hash == want
    assert load_dataset(str(tmp_path / "a.npy"), y.tolist()).content_hash == want


def test_several_inputs_keep_their_order():
    ids = np.arange(20).reshape(10, 2)
    for source in ({"b": IMAGES, "ids": ids, "y": LABELS}, {"b": IMAGES, "y": LABELS, "ids": ids}):
        data = load_dataset(source)
        assert data.input_names == ("b", "ids")
    assert load_dataset((IMAGES, ids)).input_names == ("x0", "x1")
    assert load_dataset([IMAGES]).input_names == ("x",)


@pytest.mark.parametrize("form", ["array", "path", "name", "text"])
def test_explicit_targets_win(form, tmp_path):
    other = np.array([5] * 10)
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS, other=other)
    np.save(tmp_path / "other.npy", other)
    targets = {"array": other, "path": str(tmp_path / "other.npy"), "name": "other", "text": ["cat"] * 10}[form]
    data = load_dataset(tmp_path / "a.npz", targets)
    assert set(data.targets) == ({0} if form == "text" else {5})
    assert data.class_names == (("cat",) if form == "text" else None)
    assert data.input_names == (("x",) if form == "name" else ("x", "other"))


def test_a_label_file_with_text_names_the_classes(tmp_path):
    (tmp_path / "labels.csv").write_text("label\n" + "dog\ncat\n" * 5)
    data = load_dataset(IMAGES, tmp_path / "labels.csv")
    assert data.class_names == ("cat", "dog")
    assert data.targets.tolist() == [1, 0] * 5


def test_preprocessing_comes_from_the_file_unless_given(tmp_path):
    arrays = {"x": IMAGES, "scale": 1 / 255, "mean": np.array(MEAN), "std": np.array(STD)}
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_dataset(tmp_path / "a.npz")
    assert (data.scale, data.mean, data.std) == ((1 / 255,), MEAN, STD)
    data = load_dataset(tmp_path / "a.npz", scale=1, mean=0.5)
    assert (data.scale, data.mean, data.std) == ((1.0,), (0.5,), STD)


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        (LABELS.astype(np.uint8), LABELS),
        (LABELS.astype(np.float32), LABELS),
        (LABELS[:, None], LABELS),
        (np.eye(3)[LABELS], LABELS),
        (np.eye(3, dtype=bool)[LABELS], LABELS),
        (LABELS > 0, (LABELS > 0).astype(int)),
        (np.array(["a", "b", "c"])[LABELS], LABELS),
    ],
    ids=["uint8", "whole_floats", "column", "one_hot", "one_hot_bool", "bool", "text"],
)
def test_label_forms(labels, want):
    data = dataset(y=labels)
    np.testing.assert_array_equal(data.targets, want)
    assert data.targets.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (LABELS + 0.5, DataMismatch, "no whole numbers: 0.5 at sample 0"),
        (np.where(LABELS == 2, np.nan, 0.0), NonFinite, "sample 2"),
        (LABELS - 1, DataMismatch, "label at sample 0 is -1"),
        (np.array([10**12] * 10), DataMismatch, "no class number"),
        (LABELS[:9], DataMismatch, "10 samples and labels of the shape [9]"),
        (np.ones((10, 3)), DataMismatch, "not one-hot"),
        (np.ones((10, 3, 2)), DataMismatch, "shape [10, 3, 2]"),
        (np.array(3), DataMismatch, "shape []"),
        (np.ones(10, complex), DataMismatch, "complex"),
        (np.array([{}] * 10), DataMismatch, "object"),
    ],
    ids=[
        "fractions",
        "nan",
        "negative",
        "huge",
        "too_few",
        "not_one_hot",
        "three_axes",
        "scalar",
        "complex",
        "objects",
    ],
)
def test_bad_labels(labels, error, words):
    with pytest.raises(error) as caught:
        dataset(y=labels)
    assert words in str(caught.value)


def broken(dtype, value):
    x = np.zeros((5, 2, 2), dtype)
    x[3, 1, 0] = value
    return x


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (broken(np.float32, np.nan), NonFinite, "'x' holds NaN in sample 3"),
        (broken(np.float16, np.inf), NonFinite, "'x' holds Inf in sample 3"),
        (broken(np.float64, 1e300), NonFinite, "too large for float32, in sample 3"),
        ({"a": IMAGES, "b": broken(np.float32, -np.inf)[[0] * 5 + [3] * 5]}, NonFinite, "'b' holds Inf in sample 5"),
        (np.zeros((0, 3)), DataMismatch, "empty: its shape is [0, 3]"),
        (np.zeros((3, 0)), DataMismatch, "empty"),
        (np.array(1.0), DataMismatch, "single number"),
        ({"a": IMAGES, "b": IMAGES[:4]}, DataMismatch, "a 10, b 4"),
        ({}, DataMismatch, "No array"),
        ((), DataMismatch, "No array"),
        ({"y": LABELS}, DataMismatch, "no inputs"),
        ({"x": IMAGES, "y": LABELS, "label": LABELS}, BadUpload, "several arrays of labels: y, label"),
        ({"x": IMAGES, "../up": IMAGES}, DataMismatch, "cannot be the name"),
        ({"x": IMAGES, "": IMAGES}, DataMismatch, "cannot be the name"),
        (np.ones(3, complex), BadUpload, "complex"),
        (np.array(["a"]), BadUpload, "text"),
        (np.array([None, 1]), BadUpload, "Python objects"),
        (np.ones(3, np.longdouble), BadUpload, "64 bits"),
        (np.array(["2020-01-01"], "M8[D]"), BadUpload, "datetime64"),
        (torch.ones(3, dtype=torch.complex64), BadUpload, "complex"),
        (torch.ones(3).to_sparse(), BadUpload, "sparse"),
        (3 + 4j, BadUpload, "complex"),
        (object(), BadUpload, "of type object"),
        ([[1.0, 2.0], [[1.0], [2.0, 3.0]]], BadUpload, "padding"),
        ("no_such_sample", BadUpload, "residual_digits"),
        ("no/such/file.npz", BadUpload, "no file"),
        ({"x": IMAGES, "scale": np.ones((3, 1, 1))}, DataMismatch, "scale has the shape [3, 1, 1]"),
        ({"x": IMAGES, "class_names": np.arange(3)}, DataMismatch, "class_names"),
        ({"x": IMAGES, "y": LABELS, "class_names": np.array(["a"])}, DataMismatch, "Name every class"),
        ({"x": IMAGES, "calibration_index": np.array([0, 10])}, DataMismatch, "names the sample 10"),
        ({"x": IMAGES, "calibration_index": np.array([0, -1])}, DataMismatch, "names the sample -1"),
        ({"x": IMAGES, "calibration_index": np.array([0, 0])}, DataMismatch, "twice"),
        ({"x": IMAGES, "calibration_index": np.arange(10)}, DataMismatch, "evaluation part of the split is empty"),
        ({"x": IMAGES, "calibration_index": np.arange(6), "evaluation_index": np.arange(9)}, DataMismatch, "both"),
        ({"x": IMAGES, "evaluation_index": np.ones(3)}, DataMismatch, "evaluation_index is [3] of float64"),
        ({"x": IMAGES, "evaluation_index": np.array([2**64 - 1], np.uint64)}, DataMismatch, "names the sample"),
        ({"x": IMAGES, "sample_index": np.arange(3)}, DataMismatch, "sample_index"),
    ],
    ids=["nan", "inf", "too_large", "second_input", "no_samples", "no_values", "scalar", "lengths", "empty_dict",
         "empty_tuple", "labels_only", "two_labels", "bad_name", "no_name", "complex", "text", "objects", "longdouble",
         "dates", "complex_tensor", "sparse", "a_number", "an_object", "ragged", "no_sample", "no_file", "scale_shape",
         "class_names_type", "class_names_few", "split_outside", "split_negative", "split_twice", "split_all",
         "split_overlap", "split_floats", "split_uint64", "index_shape"],
)  # fmt: skip
def test_bad_sources(source, error, words):
    with pytest.raises(error) as caught:
        load_dataset(source)
    assert words in str(caught.value)


def test_bad_target_arguments(tmp_path):
    np.savez(tmp_path / "two.npz", a=LABELS, b=LABELS)
    with pytest.raises(BadUpload, match="which are the labels"):
        dataset(y=tmp_path / "two.npz")
    with pytest.raises(BadUpload, match="no file has that name"):
        load_dataset({"x": IMAGES}, "missing")
    with pytest.raises(BadUpload, match="no column 'kind'"):
        load_dataset(b"a,b\n1,2\n", "kind")


def test_the_data_are_a_copy_and_cannot_be_written():
    x, y = IMAGES.copy(), LABELS.copy()
    data = dataset(x, y)
    x[:] = 0
    y[:] = 0
    np.testing.assert_array_equal(data.inputs[0], IMAGES)
    np.testing.assert_array_equal(data.targets, LABELS)
    for array in (*data.inputs, data.targets, data.index, data.split(2).calibration_index, data.subset([1]).inputs[0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(FrozenInstanceError):
        data.name = "other"


# ------------------------------------------------------------------------------------------------------ preprocessing


def test_preprocessing_equals_torchvision_bit_for_bit():
    """ToTensor and Normalize: divide by 255 in float32, then subtract and divide in place."""
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(64, 4, 3).transpose(0, 2, 1)[..., None].copy()
    want = torch.from_numpy(every).to(torch.float32).div(255)
    assert torch.equal(together(load_dataset(every, scale=255))[0], want)
    shape = (1, 3, 1, 1)
    want = want.sub_(torch.tensor(MEAN).view(shape)).div_(torch.tensor(STD).view(shape))
    for scale in (255, 1 / 255, np.float64(1 / 255), [1 / 255], [1 / 255] * 3, torch.tensor(255)):
        assert torch.equal(together(load_dataset(every, scale=scale, mean=MEAN, std=STD))[0], want)


@pytest.mark.parametrize(
    ("dtype", "scale", "factor"),
    [(np.uint8, 255, 1 / 255), (np.int64, 16, 1 / 16), (np.uint16, 65535.0, 1 / 65535), (np.uint8, 1, 1.0),
     (np.uint8, 0.5, 0.5), (np.float32, 255, 255.0), (np.float32, 2, 2.0), (np.uint8, -1, -1.0)],
    ids=["uint8", "int64", "uint16", "one", "half", "float", "float_2", "negative"],
)  # fmt: skip
def test_full_scale_values_are_understood_for_whole_numbers(dtype, scale, factor):
    assert load_dataset(np.ones((2, 3), dtype), scale=scale).scale == (factor,)


@pytest.mark.parametrize(
    ("dtype", "options", "want"),
    [
        (np.uint8, {}, torch.float32), (np.bool_, {}, torch.float32), (np.int16, {}, torch.float32),
        (np.float16, {}, torch.float32), (np.float64, {}, torch.float32), (np.uint32, {}, torch.float32),
        (np.int32, {}, torch.int64), (np.int64, {}, torch.int64),
        (np.int64, {"scale": 1}, torch.float32), (np.int32, {"mean": 0}, torch.float32),
        (np.bool_, {"scale": 0.5, "mean": 1, "std": 2}, torch.float32),
    ],
    ids=["uint8", "bool", "int16", "float16", "float64", "uint32", "int32", "int64", "int64_scale", "int32_mean",
         "bool_all"],
)  # fmt: skip
def test_types_that_reach_the_model(dtype, options, want):
    data = load_dataset(np.ones((4, 2), dtype), **options)
    assert together(data)[0].dtype == want
    assert data.example(1)[0].dtype == str(want).removeprefix("torch.")


def test_token_ids_beside_an_image_stay_token_ids():
    ids = np.arange(20).reshape(10, 2)
    image, tokens = together(load_dataset((IMAGES, ids), scale=255, mean=MEAN, std=STD))
    assert image.dtype == torch.float32
    assert torch.equal(tokens, torch.from_numpy(ids))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 5), (4, 3, 5, 6), (4, 3, 2, 5, 6)], ids=str)
def test_channels_are_axis_one(shape):
    x = RNG.random(shape).astype(np.float32)
    channels = (1,) if len(shape) == 1 else (1, 2, 3)
    got = together(load_dataset(x, mean=channels, std=[c * 2 for c in channels]))[0].numpy()
    broadcast = np.array(channels, np.float32).reshape(-1, *(1,) * max(0, len(shape) - 2))
    np.testing.assert_array_equal(got, (x - broadcast) / (2 * broadcast))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (1, 2)}, "mean has 2 numbers; x [10, 3, 4, 4] has 3 channels (axis 1)"),
        ({"std": (1, 2, 0)}, "std holds"),
        ({"std": -1}, "std holds"),
        ({"scale": 0}, "scale holds"),
        ({"scale": float("nan")}, "scale holds"),
        ({"mean": ()}, "mean has the shape [0]"),
        ({"mean": ((1, 2), (3, 4))}, "mean has the shape [2, 2]"),
        ({"mean": ("a",)}, "mean has the shape [1] and type <U1"),
    ],
    ids=["length", "zero_std", "negative_std", "zero_scale", "nan", "none", "matrix", "text"],
)
def test_bad_preprocessing(options, words):
    with pytest.raises((DataMismatch, BadUpload)) as caught:
        dataset(**options)
    assert words in str(caught.value)


def test_channel_numbers_on_one_axis_are_refused():
    with pytest.raises(DataMismatch, match="no channel axis"):
        load_dataset(np.ones(5), mean=(1, 2))


def test_with_preprocessing():
    data = dataset(scale=255, mean=MEAN, std=STD)
    assert data.with_preprocessing(255).scale == (1 / 255,)
    assert data.with_preprocessing(255).mean is None
    assert torch.equal(together(data.with_preprocessing())[0], torch.from_numpy(IMAGES).float())


# ------------------------------------------------------------------------------------------- batches, parts, examples


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_batches(batch_size):
    data = dataset()
    batches = list(data.batches(batch_size))
    assert [first for first, _, _ in batches] == list(range(0, 10, batch_size))
    assert torch.equal(torch.cat([inputs[0] for _, inputs, _ in batches]), torch.from_numpy(IMAGES).float())
    assert torch.cat([targets for _, _, targets in batches]).tolist() == LABELS.tolist()
    assert all(targets is None for _, _, targets in load_dataset(IMAGES).batches(batch_size))
    with pytest.raises(DataMismatch):
        list(data.batches(0))


def test_batches_of_slices_are_those_of_the_whole():
    """The number of a batch is the sample's number in the file, so statistics of two slices merge to the whole's."""
    data = dataset()
    halves = [data.subset(slice(0, 4)), data.subset(slice(4, None))]
    parts = [batch for half in halves for batch in half.batches(2)]
    for (first, inputs, _), (first_part, inputs_part, _) in zip(data.batches(2), parts, strict=True):
        assert first == first_part
        assert torch.equal(inputs[0], inputs_part[0])
    assert data.subset([7, 5]).subset([1]).index.tolist() == [5]


def test_batches_may_be_written_to():
    data = load_dataset({"x": np.ones((4, 2), np.float32), "ids": np.ones((4, 2), np.int64), "y": np.ones(4, np.int64)})
    before = data.content_hash
    for _, inputs, targets in data.batches(4):
        for tensor in (*inputs, targets):
            tensor.zero_()
    again = replace(data)
    assert again.content_hash == before


def test_examples():
    data = load_dataset((IMAGES, LABELS), scale=255)
    image, label = data.example(7)
    np.testing.assert_array_equal(image, together(data)[0][7:8].numpy())
    assert label.tolist() == [LABELS[7]]
    raw, label = data.raw_example(7)
    np.testing.assert_array_equal(raw, IMAGES[7])
    assert label.shape == ()
    for i in (-1, 10):
        with pytest.raises(DataMismatch, match="There is no sample"):
            data.example(i)


@given(count=st.integers(2, 60), calibration=st.integers(1, 100), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_split_is_a_partition_and_repeatable(count, calibration, seed):
    data = load_dataset(np.arange(count, dtype=np.float32), np.zeros(count, np.int64)).split(calibration, seed)
    assert len(data.calibration) == min(calibration, count // 2)
    assert sorted([*data.calibration_index, *data.evaluation_index]) == list(range(count))
    assert data.calibration.index.tolist() == data.calibration_index.tolist()
    assert data.evaluation.inputs[0].tolist() == data.evaluation_index.tolist()
    assert data.calibration.calibration is data.calibration
    again = load_dataset(np.arange(count, dtype=np.float32), np.zeros(count, np.int64)).split(calibration, seed)
    assert again.content_hash == data.content_hash


def test_split_depends_on_the_seed_and_mixes_sorted_classes():
    data = load_dataset(np.arange(1000, dtype=np.float32), np.arange(1000) // 500)
    assert data.split(seed=0).content_hash != data.split(seed=1).content_hash
    assert 30 < data.split(100).calibration.targets.sum() < 70


def test_without_a_split_both_parts_are_everything():
    data = dataset()
    assert data.calibration is data
    assert data.evaluation is data


@pytest.mark.parametrize("data", [load_dataset(np.ones((1, 2))).split, lambda: dataset().split(0)], ids=["one", "none"])
def test_splits_that_cannot_be(data):
    with pytest.raises(DataMismatch):
        data()


def test_half_a_split_means_the_rest():
    data = load_dataset({"x": IMAGES, "calibration_index": np.array([3, 1])})
    assert data.evaluation_index.tolist() == [0, 2, 4, 5, 6, 7, 8, 9]
    data = load_dataset({"x": IMAGES, "evaluation_index": np.array([3, 1])})
    assert data.calibration_index.tolist() == [0, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    "indices",
    [[4, 2], np.array([4, 2], np.uint8), (np.arange(10) == 4) | (np.arange(10) == 2), slice(2, 5, 2)],
    ids=["list", "uint8", "mask", "slice"],
)
def test_subset(indices):
    part = dataset(scale=255).split(3).subset(indices)
    assert sorted(part.index.tolist()) == [2, 4]
    np.testing.assert_array_equal(part.inputs[0], IMAGES[part.index])
    np.testing.assert_array_equal(part.targets, LABELS[part.index])
    assert part.scale == (1 / 255,)
    assert not part.has_split


@pytest.mark.parametrize("indices", [[10], [-1], [], [0.5], [[0]], [True, False]], ids=str)
def test_bad_subsets(indices):
    with pytest.raises(DataMismatch):
        dataset().subset(indices)


# -------------------------------------------------------------------------------------------------- hash and saving


def changed_copies() -> dict[str, Dataset]:
    base = dataset(scale=255, mean=MEAN, std=STD).split(3)
    other = IMAGES.copy()
    other[9, 2, 3, 3] ^= 1
    return {
        "base": base,
        "one_bit": replace(base, inputs=(other,)),
        "dtype": replace(base, inputs=(IMAGES.view(np.int8),)),
        "shape": replace(base, inputs=(IMAGES.reshape(10, 3, 2, 8),)),
        "label": replace(base, targets=(LABELS + 1) % 3),
        "no_labels": replace(base, targets=None),
        "scale": replace(base, scale=(1 / 256,)),
        "no_scale": replace(base, scale=None),
        "mean": replace(base, mean=(0.5,) * 3),
        "std": replace(base, std=None),
        "mean_as_std": replace(base, mean=STD, std=MEAN),
        "split": base.split(3, seed=1),
        "no_split": replace(base, calibration_index=None, evaluation_index=None),
        "origin": replace(base, index=np.arange(10) + 1),
        "inputs": replace(base, inputs=(IMAGES, IMAGES), input_names=("x", "z")),
    }


def test_content_hash_tells_everything_apart_that_matters():
    hashes = {name: data.content_hash for name, data in changed_copies().items()}
    assert len(set(hashes.values())) == len(hashes)
    assert changed_copies()["base"].content_hash == hashes["base"]
    assert replace(changed_copies()["base"], name="other", class_names=("a", "b", "c")).content_hash == hashes["base"]


def test_content_hash_does_not_depend_on_memory_layout():
    fortran = np.asfortranarray(IMAGES)
    assert load_dataset(fortran).content_hash == load_dataset(IMAGES).content_hash
    swapped = LABELS.astype(">i8")
    assert load_dataset(swapped).content_hash == load_dataset(LABELS.astype("<i8")).content_hash


@pytest.mark.parametrize("name", changed_copies())
def test_saved_data_are_read_back(name, tmp_path):
    data = changed_copies()[name]
    data.save(tmp_path / "a.npz")
    again = load_dataset(tmp_path / "a.npz")
    assert again.content_hash == data.content_hash
    assert again.input_names == data.input_names
    assert again.describe() == {**data.describe(), "name": "a"}
    buffer = io.BytesIO()
    again.save(buffer)
    assert hashlib.sha256(buffer.getvalue()).digest() == hashlib.sha256((tmp_path / "a.npz").read_bytes()).digest()


def test_saved_data_keep_odd_input_names_and_class_names(tmp_path):
    data = load_dataset({"file": IMAGES, "enc.ids": LABELS, "y": LABELS, "class_names": np.array(["a", "ü\n", "c"])})
    data.subset([5, 3]).save(tmp_path / "a.npz")
    again = load_dataset(tmp_path / "a.npz")
    assert again.input_names == ("file", "enc.ids")
    assert again.class_names == ("a", "ü\n", "c")
    assert again.index.tolist() == [5, 3]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as plain:
        np.testing.assert_array_equal(plain["file"], IMAGES[[5, 3]])
    with pytest.raises(BadUpload, match="npz"):
        data.save(tmp_path / "a.txt")


def test_describe():
    data = load_dataset({"x": IMAGES, "y": LABELS, "class_names": np.array(["a", "b", "c"])}, scale=255).split(4)
    assert data.describe() == {
        "name": "arrays",
        "count": 10,
        "inputs": [
            {"name": "x", "shape": [10, 3, 4, 4], "dtype": "uint8", "minimum": IMAGES.min(), "maximum": IMAGES.max()}
        ],
        "label_kind": "classes",
        "classes": 3,
        "class_names": ["a", "b", "c"],
        "class_counts": {0: 4, 1: 3, 2: 3},
        "scale": [1 / 255],
        "mean": None,
        "std": None,
        "calibration": 4,
        "evaluation": 6,
    }
    bare = load_dataset(np.ones((2, 2), bool)).describe()
    assert (bare["label_kind"], bare["classes"], bare["class_counts"], bare["calibration"]) == (
        "none",
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    "change",
    [{"inputs": ()}, {"input_names": ("y",)}, {"input_names": ("scale",)}, {"input_names": ("a", "a")},
     {"targets": np.full(10, -1)}, {"targets": LABELS[:3]}, {"index": np.arange(3)}, {"class_names": ("a",)},
     {"calibration_index": np.array([1])}, {"std": (0.0,)}, {"mean": (1.0, 2.0)}],
    ids=lambda change: "_".join(change),
)  # fmt: skip
def test_an_invalid_dataset_cannot_be_made(change):
    with pytest.raises(DataMismatch):
        replace(dataset(), **change)


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


def test_a_name_beats_a_path_and_a_suffix_makes_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "residual_digits.npz", x=IMAGES)
    assert len(load_dataset("residual_digits.npz")) == 10
    if "residual_digits" in sample_names():
        assert len(load_dataset("residual_digits")) > 10


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


def test_data_and_readers_do_not_import_torch():
    code = (
        "import sys, io, numpy as np; from qlab.data import load_dataset, check_against; "
        "b = io.BytesIO(); np.savez(b, x=np.ones((4, 3), np.uint8), y=np.zeros(4)); "
        "d = load_dataset(b.getvalue()).split(2); d.describe(); d.content_hash; d.example(0); "
        "print([m for m in ('torch', 'streamlit', 'pandas', 'PIL', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------- check against model


@dataclass(frozen=True)
class Spec:
    """What check_against reads of an InputSpec."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    minimum: tuple[int, ...] | None = None
    maximum: tuple[int | None, ...] | None = None


IMAGE = Spec("image", torch.float32, (None, 3, 4, 4))
TOKENS = Spec("ids", torch.int64, (None, None), (1, 2), (4096, 16))
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
