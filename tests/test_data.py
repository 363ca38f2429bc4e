"""Dataset: preprocessing, batches and parts, split, hash and round trip."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.data import Dataset, load_dataset
from qlab.errors import BadUpload, DataMismatch
from tests.data_examples import IMAGES, LABELS, MEAN, RNG, STD, dataset, together

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


def test_one_batch_is_that_of_all_batches():
    data = load_dataset(IMAGES, np.arange(len(IMAGES)) % 3, scale=255)
    for i, (first, inputs, targets) in enumerate(data.batches(4)):
        at, (x,), y = data.batch(4 * i, 4)
        assert (at, x.tolist(), y.tolist()) == (first, inputs[0].tolist(), targets.tolist())


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


@pytest.mark.parametrize("shape", [(10, 4), (10, 2, 3), (10, 1)], ids=str)
def test_labels_per_position_follow_their_samples(shape):
    labels = np.arange(np.prod(shape)).reshape(shape)
    data = replace(dataset(), targets=labels).split(3)
    np.testing.assert_array_equal(data.calibration.targets, labels[data.calibration_index])
    np.testing.assert_array_equal(data.evaluation.targets, labels[data.evaluation_index])
    np.testing.assert_array_equal(data.subset([7, 2]).targets, labels[[7, 2]])
    batches = [targets for _, _, targets in data.batches(4)]
    assert [tuple(targets.shape) for targets in batches] == [(n, *shape[1:]) for n in (4, 4, 2)]
    assert torch.equal(torch.cat(batches), torch.from_numpy(labels))


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
        "tags": replace(base, targets=np.arange(40).reshape(10, 4) % 7),
        "pixels": replace(base, targets=np.arange(40).reshape(10, 2, 2) % 7),
        "one_hot_tags": replace(base, targets=np.eye(3, dtype=np.int64)[LABELS]),
        "one_position": replace(base, targets=LABELS[:, None]),
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
    tags = load_dataset(np.ones((2, 2)), np.array([[0, 3, 3], [3, 0, 1]])).describe()
    assert (tags["label_kind"], tags["classes"], tags["class_counts"]) == (
        "classes per position",
        4,
        {0: 2, 1: 1, 3: 3},
    )
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
     {"targets": np.full(10, -1)}, {"targets": LABELS[:3]}, {"targets": np.zeros((9, 2), int)},
     {"targets": np.zeros((10, 0), int)}, {"targets": np.full((10, 2), -1)}, {"targets": np.array(1)},
     {"index": np.arange(3)}, {"class_names": ("a",)},
     {"calibration_index": np.array([1])}, {"std": (0.0,)}, {"mean": (1.0, 2.0)}],
    ids=lambda change: "_".join(change),
)  # fmt: skip
def test_an_invalid_dataset_cannot_be_made(change):
    with pytest.raises(DataMismatch):
        replace(dataset(), **change)
