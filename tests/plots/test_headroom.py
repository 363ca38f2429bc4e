"""Bars of the room in accumulators: what is drawn where, what past the limit looks like, what has no bar."""

import pytest

from qlab.plots.headroom import POSSIBLE, SEEN, headroom_bars
from qlab.plots.theme import palette
from qlab.runtime.headroom import Headroom, Pairs

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


def row(layer, seen=2**16, possible=2**20, pairs=None, why="a depthwise kernel adds each product in 32 bits"):
    return Headroom(layer, "conv2d", 144, seen, possible, pairs, "" if pairs else why, 64, 64, 8)


FINE = Pairs((-16_384, 16_000), (-30_000, 32_000), 0.0, 0.0, 0.0)
BAD = Pairs((-65_536, 100), (-65_536, 65_534), 0.035, 0.3, 48.0)


def bars(made, name, axis):
    return next(t for t in made.data if t.name == name and (t.xaxis or "x") == axis)


@both_themes
def test_sums_and_pairs_stand_beside_each_other(dark):
    made = headroom_bars([row("conv1", pairs=BAD), row("conv2", pairs=FINE)], dark)
    assert list(bars(made, SEEN, "x").x) == [pytest.approx(100 * 2**16 / 2**31)] * 2
    assert list(bars(made, POSSIBLE, "x").x) == [pytest.approx(100 * 2**20 / 2**31)] * 2
    seen = bars(made, SEEN, "x2")
    assert list(seen.x) == [200.0, 50.0]
    colours = palette(dark)
    assert list(seen.marker.color) == [colours.error, colours.quantized]
    assert bars(made, POSSIBLE, "x2").x[0] == pytest.approx(100 * 65_536 / 32_768)
    assert list(made.layout.yaxis.ticktext) == ["conv1", "conv2"]
    assert made.layout.xaxis.type == "log"
    assert "%" in made.layout.xaxis.title.text
    assert "%" in made.layout.xaxis2.title.text
    assert "yes: 3.5 % of pairs saturate" in seen.hovertext[0]
    assert "2³¹" in bars(made, SEEN, "x").hovertext[0]


def test_both_limits_are_marked():
    made = headroom_bars([row("conv1", pairs=FINE)], False)
    assert {(s.xref, s.x0, s.x1) for s in made.layout.shapes} == {("x", 100, 100), ("x2", 100, 100)}
    low, high = made.layout.xaxis.range
    assert 10**low <= 100 * 2**16 / 2**31
    assert high > 2
    assert made.layout.xaxis2.range[1] > 100
    words = {a.text: a.x for a in made.layout.annotations}
    assert words == {"overflows": 2, "saturates": 100}


def test_an_accumulator_that_can_overflow_stays_in_view():
    made = headroom_bars([row("fc", seen=2**30, possible=2**36, pairs=FINE)], False)
    assert 10 ** made.layout.xaxis.range[1] > bars(made, POSSIBLE, "x").x[0] > 100


def test_saturation_is_in_the_legend_only_where_it_happens():
    assert "seen to saturate" in [t.name for t in headroom_bars([row("a", pairs=BAD)], False).data]
    assert "seen to saturate" not in [t.name for t in headroom_bars([row("a", pairs=FINE)], False).data]


def test_layers_without_pairs_say_so_and_keep_their_place():
    made = headroom_bars([row("depthwise"), row("pointwise", pairs=FINE)], False)
    assert list(bars(made, SEEN, "x2").y) == [1]
    note = next(a for a in made.layout.annotations if a.text == "no pairs")
    assert note.y == 0
    assert "not applicable" in note.hovertext
    assert list(bars(made, SEEN, "x").y) == [0, 1]


def test_a_sum_that_stays_zero_has_no_bar_on_a_log_axis():
    made = headroom_bars([row("dead", seen=0, possible=0, pairs=FINE), row("conv", pairs=FINE)], False)
    assert bars(made, SEEN, "x").x[0] is None
    assert "0 %" in bars(made, SEEN, "x").hovertext[0]
    assert headroom_bars([row("dead", seen=0, possible=0)], False).layout.xaxis.range[1] > 2


def test_of_many_layers_the_fullest_are_shown_in_order_and_the_rest_counted():
    rows = [row(f"conv{i}", pairs=BAD if i in (3, 7) else FINE) for i in range(10)]
    made = headroom_bars(rows, False, most=2)
    assert list(made.layout.yaxis.ticktext) == ["conv3", "conv7"]
    assert "8 layers" in made.layout.yaxis.title.text


def test_no_rows_says_why():
    assert "No layer" in headroom_bars([], True).layout.annotations[0].text
