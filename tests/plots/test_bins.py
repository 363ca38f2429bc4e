"""Rebinning keeps every value and makes no stripes; the window shows the bulk."""

import math

import numpy as np
import pytest

from qlab.plots.bins import MOST_BINS, Bins, spread, window


def test_spread_shares_a_bucket_out_by_overlap():
    bins = spread([0.0, 1.0], [1.0, 3.0], [10.0, 4.0], np.array([0.0, 0.5, 2.0, 3.0]))
    np.testing.assert_allclose(bins.counts, [5.0, 7.0, 2.0])


def test_spread_leaves_gaps_between_buckets_empty_and_keeps_points_whole():
    bins = spread([0.0, 0.0, 5.0], [0.0, 1.0, 6.0], [7.0, 2.0, 3.0], np.arange(-1.0, 8.0))
    np.testing.assert_allclose(bins.counts, [0, 9, 0, 0, 0, 0, 3, 0])


def test_evenly_filled_buckets_make_no_stripes_on_any_number_of_bins():
    edges = np.linspace(0, 1, 1025)
    for count in (70, 299, 600):
        bins = spread(edges[:-1], edges[1:], np.ones(1024), np.linspace(0, 1, count + 1))
        np.testing.assert_allclose(bins.counts, 1024 / count)


def test_bin_of_the_ends():
    bins = Bins(np.array([0.0, 1.0, 2.0]), np.zeros(2))
    assert [bins.bin_of(v) for v in (-0.1, 0.0, 1.0, 2.0, 2.1)] == [None, 0, 1, 1, None]


def test_window_shows_everything_while_the_bulk_stays_visible():
    ranges = np.array([[-1.2, 1.2], [-0.8, 0.7]])
    seen = window(-1.0, 1.0, (-0.6, 0.6), ranges)
    assert seen.low < -1.2
    assert seen.high > 1.2
    assert seen.bins == MOST_BINS


def test_window_does_not_let_one_outlier_flatten_the_rest():
    ranges = np.array([[-1.0, 1000.0]])
    seen = window(-1.0, 1000.0, (-0.5, 0.5), ranges)
    assert seen.high < 5
    assert window(-1.0, 1000.0, (-0.5, 0.5), ranges, "all").high > 1000
    assert window(-1.0, 1000.0, (-0.5, 0.5), ranges, "bulk").high < 0.6


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_window_of_a_constant_has_a_width(value):
    seen = window(value, value, (value, value), np.array([[min(value, 0), max(value, 0)]]))
    assert math.isfinite(seen.low)
    assert seen.low < value < seen.high


def test_few_values_get_few_bins():
    assert window(0.0, 1.0, (0.0, 1.0), np.empty((0, 2)), values=100).bins == 40
