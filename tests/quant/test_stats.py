"""Statistics: exact ranges, a histogram that merges exactly, memory and errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import DataMismatch, InvalidConfig, NonFinite, NotObserved
from qlab.quant.stats import SIDE, Histogram, StatsCollector, TensorStats, stats_of

GENERATOR = torch.Generator().manual_seed(0)


def collect(batches: dict[int, torch.Tensor], **options: object) -> TensorStats:
    collector = StatsCollector("x", **options)  # type: ignore[arg-type]
    for index, batch in batches.items():
        collector.update(batch, index)
    return collector.finish()


def same(a: TensorStats, b: TensorStats) -> bool:
    left, right = a.to_arrays(), b.to_arrays()
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


# --- histogram --------------------------------------------------------------------------------------------------


def test_buckets_by_hand() -> None:
    # 1.0 opens the octave [1, 2): its bucket is 1 .. 1 + 1/1024, and 1.5 lies 512 buckets further
    h = stats_of(torch.tensor([1.0, 1.5, -1.0, 0.0])).histogram
    assert h.top_exponent == 127
    top = 31 * 1024
    assert {int(i) for i in np.flatnonzero(h.counts)} == {0, top, top + 512, SIDE + top}
    values, counts = h.nonzero()
    assert values.tolist() == [-1 - 2**-11, 0.0, 1 + 2**-11, 1.5 + 2**-11]
    assert counts.tolist() == [1, 1, 1, 1]
    assert values.dtype == np.float32


def test_tiny_values_join_the_bucket_of_zero() -> None:
    h = stats_of(torch.tensor([1.0, 2.0**-40, -(2.0**-40), 0.0])).histogram
    values, counts = h.nonzero()
    assert values.tolist() == [0.0, 1 + 2**-11]
    assert counts.tolist() == [3, 1]


def test_denormals_and_the_largest_float() -> None:
    largest = float(np.finfo(np.float32).max)
    for x in (torch.tensor([1e-42, -1e-41]), torch.tensor([largest, -largest])):
        values, counts = stats_of(x).histogram.nonzero()
        assert np.all(np.isfinite(values))
        assert counts.sum() == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=50))
def test_a_bucket_holds_its_values(values: list[float]) -> None:
    x = torch.tensor(values)
    lower, upper, counts = stats_of(x).histogram.buckets()
    assert counts.sum() == len(values)
    assert np.all(np.diff(lower) > 0)
    for v in x.tolist():
        inside = (lower <= v) & (v <= upper)
        zero = max(np.abs(values).max() * 2.0**-30, 2.0**-136)  # the bucket of zero, of the smallest denormals too
        assert inside.any() or abs(v) <= zero


floats = st.floats(-(2.0**66), 2.0**66, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(floats, min_size=1, max_size=20), min_size=3, max_size=5), st.randoms())
def test_merge_is_exact_associative_and_free_of_order(batches: list[list[float]], random: object) -> None:
    tensors = {i: torch.tensor(b) for i, b in enumerate(batches)}
    whole = collect(tensors)
    parts = [collect({i: t}) for i, t in tensors.items()]
    for order in itertools.islice(itertools.permutations(parts), 6):
        merged = order[0]
        for part in order[1:]:
            merged = merged.merge(part)
        assert same(merged, whole)
    a, b, *rest = parts
    assert same(a.merge(b).merge(rest[0]), a.merge(b.merge(rest[0])))


@pytest.mark.parametrize("octaves", [0, 1, 31, 32, 100])
def test_rebasing_is_what_counting_at_that_top_gives(octaves: int) -> None:
    x = torch.randn(5000, generator=GENERATOR)
    h = stats_of(x).histogram
    big = torch.tensor([2.0 ** (h.top_exponent - 127 + octaves)])
    direct = stats_of(torch.cat([x, big])).histogram
    assert h.merge(stats_of(big).histogram) == direct
    assert h.rebased(h.top_exponent + octaves).counts.sum() == 5000


def test_batches_in_any_order_and_in_two_halves() -> None:
    batches = {64 * i: torch.randn(64, 8, 5, 5, generator=GENERATOR) * (i + 1) for i in range(6)}
    options = {"channel_axis": 1, "samples_per_batch": 1000}
    whole = collect(batches, **options)
    back = collect(dict(reversed(batches.items())), **options)
    halves = [collect({k: v for k, v in batches.items() if (k // 64) % 2 == r}, **options) for r in (0, 1)]
    assert same(whole, back)
    assert same(whole, halves[1].merge(halves[0]))
    assert whole.batches == 6
    assert whole.batch_index.tolist() == [0, 64, 128, 192, 256, 320]


# --- ranges, moments, sampling ----------------------------------------------------------------------------------


def test_numbers_by_hand() -> None:
    s = collect({0: torch.tensor([1.0, 2.0]), 2: torch.tensor([0.0, -3.0])})
    assert (s.count, s.sampled, s.zeros, s.infinite, s.batches) == (4, 4, 1, 0, 2)
    assert (s.minimum, s.maximum, s.mean) == (-3.0, 2.0, 0.0)
    assert s.std == pytest.approx(np.sqrt(14 / 4))
    assert s.batch_minimum.tolist() == [1.0, -3.0]
    assert s.batch_maximum.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5, 6), 1), ((4, 7, 3), -1), ((6, 3), 1), ((3,), 0), ((1, 1), 1)])
def test_channel_ranges(shape: tuple[int, ...], axis: int) -> None:
    x = torch.randn(shape, generator=GENERATOR)
    s = stats_of(x, channel_axis=axis)
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    assert s.channel_minimum is not None
    assert s.channel_maximum is not None
    assert s.channel_minimum.tolist() == rows.amin(1).tolist()
    assert s.channel_maximum.tolist() == rows.amax(1).tolist()
    assert (s.minimum, s.maximum) == (x.min(), x.max())


def test_layout_does_not_matter() -> None:
    x = torch.randn(8, 16, 9, 9, generator=GENERATOR)
    options = {"channel_axis": 1, "samples_per_batch": 500}
    assert same(collect({0: x}, **options), collect({0: x.contiguous(memory_format=torch.channels_last)}, **options))


def test_the_sample_visits_every_channel_and_pixel() -> None:
    channel = torch.arange(16.0).reshape(1, 16, 1, 1).expand(64, 16, 32, 32) + 1
    pixel = torch.arange(1024.0).reshape(1, 1, 32, 32).expand(64, 16, 32, 32) + 1
    for x, distinct in ((channel, 16), (pixel, 1024)):
        s = collect({64: x})
        assert s.sampled <= 65_536
        assert len(s.histogram.nonzero()[0]) == distinct


def test_a_lone_outlier_outside_the_sample_is_never_lost() -> None:
    x = torch.randn(300_000, generator=GENERATOR)
    x[1] = 500.0
    s = collect({0: x})
    d = s.distribution()
    assert d.values is not None
    assert d.counts is not None
    assert d.values.max() == 500.0
    assert d.maximum[0] == 500.0
    assert d.counts.sum() == pytest.approx(300_000 + 2)


def test_memory_is_flat_in_the_number_of_batches() -> None:
    x = torch.randn(100)
    few, many = (collect(dict.fromkeys(range(n), x)).to_arrays() for n in (2, 202))
    assert sum(a.nbytes for a in many.values()) - sum(a.nbytes for a in few.values()) == 200 * 32


def test_distribution_is_cut_to_the_exact_range() -> None:
    d = stats_of(torch.full((7,), 5.0)).distribution()
    assert d.values is not None
    assert d.widths is not None
    assert d.values.tolist() == [[5.0]]
    assert d.widths.tolist() == [[0.0]]
    d = stats_of(torch.tensor([1.0001, 1.0002, 3.0])).distribution()
    assert d.values is not None
    assert d.counts is not None
    assert (d.values.min(), d.values.max()) == (np.float32(1.0001), 3.0)
    assert d.counts.sum() == 3


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 1])
def test_arrays_round_trip(axis: int | None) -> None:
    s = collect({0: torch.randn(5, 4, 3, generator=GENERATOR), 9: torch.randn(5, 4, 3)}, channel_axis=axis)
    arrays = s.to_arrays()
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in arrays.values())
    assert same(TensorStats.from_arrays(arrays), s)
    assert TensorStats.from_arrays(arrays).name == "x"


@pytest.mark.parametrize(
    "change",
    [
        {"scalars": np.array([1, 2, 3], np.int64)},
        {"bucket_index": np.array([99999], np.int32)},
        {"batch_minimum": np.zeros(7, np.float32)},
    ],
    ids=["scalars", "bucket", "batches"],
)
def test_broken_arrays_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataMismatch):
        TensorStats.from_arrays(stats_of(torch.randn(9)).to_arrays() | change)


def test_incomplete_arrays_are_refused() -> None:
    with pytest.raises(DataMismatch, match="incomplete"):
        TensorStats.from_arrays({})


# --- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0])
def test_nan_names_tensor_and_batch(axis: int | None) -> None:
    with pytest.raises(NonFinite, match="x: NaN in the batch that begins with sample 128"):
        collect({128: torch.tensor([1.0, float("nan"), float("inf")])}, channel_axis=axis)


def test_infinity_is_refused_or_left_out() -> None:
    x = torch.tensor([[1.0, float("inf")], [-float("inf"), 3.0], [2.0, -4.0]])
    with pytest.raises(NonFinite, match="x: 2 infinite values in the batch that begins with sample 5"):
        collect({5: x})
    s = collect({5: x}, allow_infinite=True, channel_axis=1)
    assert (s.count, s.infinite, s.minimum, s.maximum) == (4, 2, -4.0, 3.0)
    assert s.channel_minimum is not None
    assert s.channel_maximum is not None
    assert s.channel_minimum.tolist() == [1.0, -4.0]
    assert s.channel_maximum.tolist() == [2.0, 3.0]


def test_only_infinities_is_not_observed() -> None:
    s = collect({0: torch.full((3,), -float("inf"))}, allow_infinite=True)
    assert s.infinite == 3
    for use in (lambda: s.minimum, lambda: s.mean, lambda: s.std, s.distribution):
        with pytest.raises(NotObserved, match="x: no finite value"):
            use()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_integers_have_no_statistics(dtype: torch.dtype) -> None:
    with pytest.raises(DataMismatch, match="only floating-point"):
        stats_of(torch.ones(3, dtype=dtype))


def test_empty_tensor_is_refused() -> None:
    with pytest.raises(DataMismatch, match="is empty"):
        stats_of(torch.empty(0, 3))


def test_one_element_and_half_precision() -> None:
    assert stats_of(torch.tensor(2.5)).maximum == 2.5
    assert stats_of(torch.tensor([2.5], dtype=torch.bfloat16)).mean == 2.5


def test_what_does_not_belong_together_does_not_merge() -> None:
    with pytest.raises(DataMismatch, match="not the same tensor"):
        stats_of(torch.ones(2), "a").merge(stats_of(torch.ones(2), "b"))
    with pytest.raises(DataMismatch, match="do not fit together"):
        stats_of(torch.ones(2, 3), channel_axis=1).merge(stats_of(torch.ones(2, 4), channel_axis=1))
    with pytest.raises(DataMismatch, match="has none"):
        stats_of(torch.ones(2, 3), channel_axis=1).merge(stats_of(torch.ones(2, 3)))
    with pytest.raises(DataMismatch, match="4 channels, before it 3"):
        collect({0: torch.ones(2, 3), 1: torch.ones(2, 4)}, channel_axis=1)


def test_merge_with_nothing_seen_changes_nothing() -> None:
    s = stats_of(torch.ones(2, 3), "x", channel_axis=1)
    empty = StatsCollector("x", 1).finish()
    assert same(s.merge(empty), s)
    assert same(empty.merge(s), s)


def test_unknown_granularities() -> None:
    s = stats_of(torch.ones(2, 3))
    with pytest.raises(InvalidConfig, match="no channel axis"):
        s.distribution("channel")
    with pytest.raises(InvalidConfig, match="per tensor or per channel"):
        s.distribution("group")  # type: ignore[arg-type]


def test_histogram_equality() -> None:
    assert Histogram.empty() == Histogram.empty()
    assert Histogram.empty() != stats_of(torch.ones(1)).histogram
    assert Histogram.empty() != 3


def test_what_follows_for_a_relu_is_what_the_relu_itself_gives():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 70, 70)
    direct, derived = StatsCollector("r", 1), StatsCollector("r", 1)
    source = StatsCollector("x", 1)
    for i in range(3):
        batch = x * (i + 1)
        direct.update(torch.relu(batch), i)
        derived.add(source.look(batch, i).rectified())
    a, b = direct.finish().to_arrays(), derived.finish().to_arrays()
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
