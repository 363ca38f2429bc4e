"""Many parts merged in one go are what they are merged one by one."""

from functools import reduce

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.quant.packed import merge_packed
from qlab.quant.stats import StatsCollector


def part(seed, first, magnitude, channels):
    generator = torch.Generator().manual_seed(seed)
    collector = StatsCollector("t", 1 if channels else None, samples_per_batch=50)
    for i in range(1 + seed % 3):
        collector.update(torch.randn(4, 5, 6, generator=generator) * magnitude, first + i)
    return collector.finish()


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 6), st.sampled_from([1e-30, 1e-3, 1.0, 7.0, 1e12])),
        min_size=1,
        max_size=6,
    ),
    channels=st.booleans(),
)
def test_all_at_once_is_one_after_the_other(parts, channels):
    stats = [part(seed, first, magnitude, channels) for seed, first, magnitude in parts]
    expected = reduce(lambda a, b: a.merge(b), stats)
    found = merge_packed([s.to_arrays() for s in stats])
    assert found.histogram == expected.histogram
    assert (found.count, found.sampled, found.zeros, found.infinite) == (
        expected.count, expected.sampled, expected.zeros, expected.infinite,
    )  # fmt: skip
    for key in ("batch_index", "batch_minimum", "batch_maximum", "batch_total", "batch_total_square"):
        assert np.array_equal(getattr(found, key), getattr(expected, key))
    if channels:
        assert np.array_equal(found.channel_minimum, expected.channel_minimum)
        assert np.array_equal(found.channel_maximum, expected.channel_maximum)
