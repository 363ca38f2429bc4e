"""How figures are written."""

import math

import pytest

from qlab.metrics import METRICS, about_duration, duration_range, metric, write


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("accuracy", 0.9131, "91.3 %"),
        ("sqnr", 31.42, "31.4 dB"),
        ("sqnr", math.inf, "∞ dB"),
        ("sqnr", -3.0, "−3.0 dB"),
        ("sqnr", math.nan, "not defined"),
        ("accuracy", None, "–"),
        ("clipped", 0.0, "0 %"),
        ("clipped", 0.00003, "< 0.01 %"),
        ("clipped", 0.0021, "0.21 %"),
        ("clipped", 0.9997, "99.97 %"),
        ("clipped", 0.999999, "> 99.99 %"),
        ("clipped", 1.0, "100.0 %"),
        ("scale", 0.0123456, "0.0123"),
        ("scale", 0.0000123456, "1.23e−05"),
        ("zero_point", -128, "−128"),
        ("latency", 0.00124, "1.24 ms"),
        ("latency", 125.0, "2 min 05 s"),
        ("steps", 1.0000006, "1 step"),
        ("steps", 17.0, "17 steps"),
        ("steps", 0.5, "0.500 steps"),
        ("size", 274_123, "274 kB"),
        ("size", 999, "999 B"),
        ("size", 999_999, "1.00 MB"),
        ("parameters", 78_042, "78.0 k"),
    ],
)
def test_figures_are_written_with_their_unit(key, value, text):
    assert write(key, value) == text


def test_shares_differ_in_points_and_zero_has_no_sign():
    assert metric("accuracy").delta(-0.0021) == "−0.2 pt"
    assert metric("accuracy").delta(0.0119) == "+1.2 pt"
    assert metric("accuracy").delta(-0.0001) == "0.0 pt"
    assert metric("sqnr").delta(2.0) == "+2.0 dB"
    assert metric("accuracy").delta(None) == "–"


def test_an_interval_names_its_unit_once():
    assert metric("accuracy").interval(0.894, 0.929) == "[89.4, 92.9]"


def test_an_unknown_key_lists_the_known_ones():
    with pytest.raises(KeyError, match="sqnr"):
        metric("snr")


def test_every_metric_explains_itself():
    for entry in METRICS.values():
        assert entry.help.endswith(".")
        assert entry.better in ("up", "down", "none")
        assert entry.format(0.5)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0017, 0.00175, "1.70 … 1.75 ms"),
        (0.0009, 0.0011, "0.900 … 1.10 ms"),
        (1e-5, 2e-5, "10.0 … 20.0 µs"),
        (30.0, 125.0, "30.0 s … 2 min 05 s"),
    ],
)
def test_a_range_of_times_names_its_unit_once(low, high, text):
    assert duration_range(low, high) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "less than 1 s"), (0.5, "less than 1 s"), (0.901, "about 1 s"), (3.4, "about 3 s"), (59.4, "about 59 s"),
        (59.6, "about 1 min 00 s"), (125.2, "about 2 min 05 s"),
    ],
)  # fmt: skip
def test_an_estimate_is_told_in_whole_seconds(seconds, text):
    assert about_duration(seconds) == text
