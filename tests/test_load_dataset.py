"""load_dataset: what a source gives, which labels are understood, and what is refused."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qlab.data import load_dataset, sample_names
from qlab.errors import BadUpload, DataMismatch, NonFinite
from qlab.readers import Limits
from tests.data_examples import IMAGES, LABELS, MEAN, RNG, ROOT, STD, dataset

TAGS = np.arange(40).reshape(10, 4) % 7

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
        (np.full((10, 2), 0.5), DataMismatch, "no whole numbers: 0.5 at sample 0, position [0]"),
        (np.where(TAGS[7, 3] == TAGS, np.nan, TAGS), NonFinite, "sample 0, position [3]"),
        (np.where(np.arange(200).reshape(10, 4, 5) == 73, -100, 0), DataMismatch, "sample 3, position [2, 3] is -100"),
        (np.where(TAGS[7, 3] == TAGS, 10**12, TAGS), DataMismatch, "no class number"),
        (np.zeros((9, 4), int), DataMismatch, "10 samples and labels of the shape [9, 4]"),
        (np.zeros((4, 10), int), DataMismatch, "10 samples and labels of the shape [4, 10]"),
        (np.zeros((10, 0), int), DataMismatch, "labels of the shape [10, 0]"),
        (np.full((10, 3), "cat"), DataMismatch, "shape [10, 3]"),
        (np.ones((10, 3), complex), DataMismatch, "complex"),
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
        "soft",
        "nan_at_a_position",
        "negative_at_a_position",
        "huge_at_a_position",
        "too_few_rows",
        "samples_last",
        "no_positions",
        "text_per_position",
        "complex_per_position",
        "scalar",
        "complex",
        "objects",
    ],
)
def test_bad_labels(labels, error, words):
    with pytest.raises(error) as caught:
        dataset(y=labels)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        TAGS,
        TAGS.astype(np.uint8),
        TAGS.astype(np.float32),
        torch.from_numpy(TAGS),
        RNG.integers(0, 5, (10, 4, 6)),
        np.ones((10, 3)),
        np.arange(20).reshape(10, 2) % 2 + 1,
        np.eye(3, dtype=int)[LABELS] + np.eye(3, dtype=int)[(LABELS + 1) % 3],
        RNG.random((10, 4, 4)) > 0.5,
        np.eye(3, dtype=int)[np.stack([LABELS, LABELS])].transpose(1, 0, 2),
    ],
    ids=["tags", "uint8", "whole_floats", "tensor", "pixels", "all_one", "one_and_two", "two_ones_a_row", "mask",
         "one_hot_of_three_axes"],
)  # fmt: skip
def test_labels_per_position(labels):
    data = dataset(y=labels)
    np.testing.assert_array_equal(data.targets, np.asarray(labels))
    assert data.targets.dtype == np.int64
    assert data.label_kind == "classes per position"
    assert data.n_classes == int(np.asarray(labels).max()) + 1


def test_labels_too_large_as_int64_are_refused():
    labels = np.zeros((10, 20), np.uint8)
    with pytest.raises(BadUpload, match="labels as int64 declares"):
        dataset(y=labels, limits=Limits(max_unpacked_bytes=1599))
    assert dataset(y=labels, limits=Limits(max_unpacked_bytes=1600)).targets.nbytes == 1600


def test_one_hot_or_per_position_can_be_said(tmp_path):
    """Zeros with a single 1 in each row are one-hot, and a lone column is a class a sample, unless a file says more."""
    rows = np.eye(3, dtype=np.int64)[LABELS]
    said = {"x": IMAGES, "y": rows, "label_positions": np.array([3])}
    assert dataset(y=rows).label_kind == "classes"
    assert load_dataset(said).targets.tolist() == rows.tolist()
    assert load_dataset({**said, "y": rows[:, :1], "label_positions": np.array([1])}).targets.shape == (10, 1)
    # It is about the labels beside it, not about others.
    assert load_dataset(said, LABELS).targets.tolist() == LABELS.tolist()
    np.savez(tmp_path / "labels.npz", y=rows, label_positions=[3])
    assert load_dataset(IMAGES, tmp_path / "labels.npz").label_kind == "classes per position"
    for wrong in ([2], [], [3, 1], 3.5, ["a"]):
        with pytest.raises(DataMismatch, match=r"label_positions is not \[3\]"):
            load_dataset({**said, "label_positions": np.array(wrong)})


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


def test_a_name_beats_a_path_and_a_suffix_makes_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "residual_digits.npz", x=IMAGES)
    assert len(load_dataset("residual_digits.npz")) == 10
    if "residual_digits" in sample_names():
        assert len(load_dataset("residual_digits")) > 10


def test_data_and_readers_do_not_import_torch():
    code = (
        "import sys, io, numpy as np; from qlab.data import load_dataset, check_against; "
        "b = io.BytesIO(); np.savez(b, x=np.ones((4, 3), np.uint8), y=np.zeros(4)); "
        "d = load_dataset(b.getvalue()).split(2); d.describe(); d.content_hash; d.example(0); "
        "print([m for m in ('torch', 'streamlit', 'pandas', 'PIL', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
