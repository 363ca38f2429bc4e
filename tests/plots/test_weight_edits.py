"""The chart of an edit: a bar for each channel, and the step of the grid it has to exceed to be seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qlab.analysis.edited import EditEffect
from qlab.plots.theme import palette
from qlab.plots.weight_edits import MOST_CHANNELS, change_by_channel


def effect(channels, step=0.5):
    channels = np.asarray(channels, dtype=np.float64)
    return EditEffect(
        "relu", 8, 100, int((channels > 0).sum()), math.inf, float(channels.max()), channels, step, 8, 0, 0.0
    )


@pytest.mark.parametrize("dark", [False, True])
def test_a_bar_for_each_channel_and_the_step(dark):
    made = change_by_channel(effect([0, 1.5, 0, 0.25]), dark)
    bars, line = made.data
    assert list(bars.x) == [0, 1, 2, 3]
    assert list(bars.y) == [0, 1.5, 0, 0.25]
    assert list(line.y) == [0.5, 0.5]
    assert bars.marker.color == palette(dark).error
    assert line.line.color == palette(dark).range
    assert made.layout.yaxis.range[1] > 1.5
    assert made.layout.xaxis.title.text == "channel of the output"


def test_without_a_grid_there_is_no_step():
    made = change_by_channel(effect([0, 1.5], step=None), False)
    assert len(made.data) == 1
    assert not made.layout.showlegend


def test_the_step_is_in_view_where_it_is_larger():
    made = change_by_channel(effect([0.001, 0], step=2.0), False)
    assert made.layout.yaxis.range[1] > 2


def test_nothing_changed_says_so():
    made = change_by_channel(effect([0, 0]), False)
    assert not made.data
    assert made.layout.annotations[0].text == "No channel of this output changes on these samples."


def test_of_very_many_channels_the_most_changed_are_shown():
    channels = np.zeros(MOST_CHANNELS + 500)
    channels[[3, MOST_CHANNELS + 499]] = 1.0, 2.0
    made = change_by_channel(effect(channels), False)
    shown = list(made.data[0].x)
    assert len(shown) == MOST_CHANNELS
    assert {3, MOST_CHANNELS + 499} <= set(shown)
    assert shown == sorted(shown)
    assert "the 2,000 that change most of 2,500" in made.layout.xaxis.title.text
