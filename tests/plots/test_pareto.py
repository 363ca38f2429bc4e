"""Accuracy over cost: who is in the front, what each mark is, and what is told of those that are not drawn."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.errors import InvalidConfig
from qlab.plots.pareto import FEW, LOG_FROM, Point, pareto, pareto_front
from qlab.plots.theme import palette

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
FLOAT = Point("float", "the network", 400_000, 0.978, 0.968, 0.985)


def point(name, cost=100_000, accuracy=0.95, **more):
    return Point(name, f"run {name}", cost, accuracy, accuracy - 0.02, accuracy + 0.01, **more)


def trace(made, name):
    return next(t for t in made.data if t.name == name)


def ids(made):
    return [i for t in made.data if t.mode == "markers" for i in (t.customdata if t.customdata is not None else ())]


# --- the front --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "front"),
    [
        pytest.param([], [], id="none"),
        pytest.param([(1, 0.5)], [0], id="one"),
        pytest.param([(3, 0.9), (1, 0.5), (2, 0.7)], [1, 2, 0], id="ascending by cost"),
        pytest.param([(1, 0.5), (2, 0.4), (3, 0.9)], [0, 2], id="dearer and worse"),
        pytest.param([(1, 0.5), (1, 0.6)], [1], id="same cost, the better"),
        pytest.param([(2, 0.5), (1, 0.5)], [1], id="same accuracy, the cheaper"),
        pytest.param([(1, 0.5), (1, 0.5), (2, 0.5)], [0], id="equal, the first"),
        pytest.param([(math.nan, 0.9), (1, math.nan), (2, 0.5)], [2], id="nan"),
    ],
)
def test_front_by_hand(points, front):
    assert pareto_front(points) == front


def beats(one, other):
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6).map(lambda n: n / 6)), max_size=30))
def test_front_is_every_point_that_no_other_beats_once(points):
    front = pareto_front(points)
    undominated = {p for p in points if not any(beats(q, p) for q in points)}
    assert {points[i] for i in front} == undominated
    assert len(front) == len(undominated)
    assert all(i == points.index(points[i]) for i in front)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


# --- marks ------------------------------------------------------------------------------------------------------------


@both_themes
def test_simulated_and_integer_have_their_own_mark_and_entry(dark):
    made = pareto([point("a"), point("b", 90_000, backend="integer")], "size", dark)
    simulated, integer = trace(made, "simulated"), trace(made, "integer kernels")
    assert set(simulated.marker.symbol) == {"diamond"}
    assert set(integer.marker.symbol) == {"circle"}
    assert set(simulated.marker.color) == {palette(dark).quantized}
    assert set(integer.marker.color) == {palette(dark).gained}
    assert list(simulated.customdata) == ["a"]
    assert list(integer.customdata) == ["b"]
    assert "simulated: 95.0 % [93.0, 96.0]" in simulated.text[0]
    assert "integer kernels: 95.0 %" in integer.text[0]
    json.loads(made.to_json())


def test_only_what_is_there_has_an_entry():
    assert [t.name for t in pareto([point("a")], "size", False).data] == ["Pareto front", "simulated"]


def test_an_unknown_backend_is_refused_rather_than_left_out():
    with pytest.raises(InvalidConfig, match=r"run a: backend 'gpu'.*simulated, integer"):
        point("a", backend="gpu")


def test_places_intervals_and_units():
    made = pareto([point("a", 1_500_000, 0.9), point("b", 1_000_000, 0.8)], "size", False)
    marks = trace(made, "simulated")
    assert list(marks.x) == pytest.approx([1.5, 1.0])
    assert list(marks.y) == pytest.approx([90, 80])
    assert list(marks.error_y.array) == pytest.approx([1, 1])
    assert list(marks.error_y.arrayminus) == pytest.approx([2, 2])
    assert made.layout.xaxis.title.text == "Size (MB)"
    assert made.layout.yaxis.title.text.startswith("Accuracy (%)")
    low, high = made.layout.yaxis.range
    assert low < 78
    assert high > 91


@pytest.mark.parametrize(
    ("seconds", "unit", "x"), [(2.5, "s", 2.5), (2.5e-3, "ms", 2.5), (2.5e-5, "µs", 25)], ids=["s", "ms", "us"]
)
def test_latency_is_in_the_unit_that_suits_it(seconds, unit, x):
    made = pareto([point("a", seconds)], "latency", False)
    assert f"({unit})" in made.layout.xaxis.title.text
    assert trace(made, "simulated").x[0] == pytest.approx(x)


def test_agreement_can_take_the_place_of_accuracy():
    made = pareto([point("a")], "size", False, key="agreement")
    assert made.layout.yaxis.title.text.startswith("Agreement with float (%)")
    assert "Agreement with float, simulated: 95.0 %" in trace(made, "simulated").text[0]


def test_without_an_interval_none_is_drawn_or_told():
    made = pareto([Point("a", "a", 1000, 0.9, math.nan, math.nan)], "size", False)
    marks = trace(made, "simulated")
    assert list(marks.error_y.array) == [0]
    assert "[" not in marks.text[0]
    assert all(math.isfinite(end) for end in made.layout.yaxis.range)


# --- front and dropped ------------------------------------------------------------------------------------------------


def test_the_front_is_a_step_line_to_the_end_of_the_chart():
    made = pareto([point("a", 1000, 0.8), point("b", 2000, 0.9), point("c", 3000, 0.85)], "size", False)
    line = trace(made, "Pareto front")
    assert line.line.shape == "hv"
    assert list(line.x) == pytest.approx([1, 2, made.layout.xaxis.range[1]])
    assert list(line.y) == pytest.approx([80, 90, 90])
    told = dict(zip(ids(made), trace(made, "simulated").text, strict=True))
    assert {i for i, text in told.items() if "Pareto front" in text} == {"a", "b"}


def test_dropped_runs_are_grey_and_not_in_the_front():
    made = pareto([point("a", 2000, 0.8), point("b", 1000, 0.9, dropped=True)], "size", False)
    grey = trace(made, "simulated, stopped early")
    assert set(grey.marker.color) == {palette(False).wash("neutral", 0.5)}
    assert "stopped early" in grey.text[0]
    assert list(trace(made, "Pareto front").y) == pytest.approx([80, 80])


def test_dropped_runs_alone_have_no_front():
    names = [t.name for t in pareto([point("a", dropped=True)], "size", False).data]
    assert names == ["simulated, stopped early"]


# --- float ------------------------------------------------------------------------------------------------------------


@both_themes
def test_float_is_a_dashed_line_and_a_blue_mark(dark):
    made = pareto([point("a", 100_000), point("b", 300_000)], "size", dark, float_point=FLOAT)
    line, mark = (t for t in made.data if t.name == "float")
    assert line.line.dash == "dash"
    assert list(line.y) == pytest.approx([97.8, 97.8])
    assert list(line.x) == pytest.approx(made.layout.xaxis.range)
    assert mark.marker.color == line.line.color == palette(dark).float
    assert mark.marker.symbol not in ("diamond", "circle")
    assert (mark.x[0], mark.customdata[0]) == (pytest.approx(400), "float")


def test_a_float_file_far_off_leaves_the_runs_their_room():
    made = pareto([point("a", 100_000), point("b", 110_000)], "size", False, float_point=FLOAT)
    low, high = made.layout.xaxis.range
    assert (low, high) == (pytest.approx(99.4), pytest.approx(110.6))
    mark = trace(made, "float, 400 kB")
    assert (mark.marker.symbol, mark.x[0]) == ("triangle-right", pytest.approx(high))
    assert "Size: 400 kB" in mark.text[0]


def test_float_without_a_known_cost_is_the_line_alone():
    unknown = Point("float", "float", math.nan, 0.978, 0.968, 0.985)
    made = pareto([point("a", 2e-3)], "latency", False, float_point=unknown)
    assert [(t.name, t.showlegend) for t in made.data if t.name.startswith("float")] == [("float", True)]


# --- selected ---------------------------------------------------------------------------------------------------------


def test_the_selected_lie_on_top_with_a_rim_and_their_name_and_once():
    made = pareto(
        [point("a"), point("b", 90_000), point("c", 80_000, backend="integer")], "size", False, selected=["c"]
    )
    assert sorted(ids(made)) == ["a", "b", "c"]
    chosen = made.data[-1]
    assert list(chosen.customdata) == ["c"]
    assert chosen.marker.line.color == palette(False).text
    assert [a.text for a in made.layout.annotations] == ["<b>run c</b>"]
    # its only run is drawn elsewhere, its look is still explained
    assert trace(made, "integer kernels").marker.symbol == "circle"
    assert list(trace(made, "integer kernels").x) == [None]


def test_a_click_fades_nothing():
    for t in pareto([point("a"), point("b")], "size", False, selected=["b"]).data:
        if t.mode == "markers":
            assert t.unselected.marker.opacity == t.marker.opacity


def test_zoom_outlives_a_click_but_not_another_axis():
    runs = [point("a", 1000), point("b", 2000)]
    one, clicked = pareto(runs, "size", False), pareto(runs, "size", False, selected=["a"])
    other = pareto([point("a", 1e-3), point("b", 2e-3)], "latency", False)
    assert one.layout.uirevision == clicked.layout.uirevision == other.layout.uirevision
    assert one.layout.xaxis.uirevision == clicked.layout.xaxis.uirevision != other.layout.xaxis.uirevision


def test_names_are_text_and_not_markup():
    name = '<a href="https://example.org">x</a>'
    made = pareto([Point("a", name, 1000, 0.9, 0.8, 0.95, detail="<i>w4</i>")], "size", False, selected=["a"])
    assert "<a " not in made.data[-1].text[0]
    assert "<i>" not in made.data[-1].text[0]
    assert "&lt;a href" in made.data[-1].text[0]
    assert "<a" not in made.layout.annotations[0].text


# --- many, few, none --------------------------------------------------------------------------------------------------


def test_of_many_the_front_and_the_selected_alone_show_their_interval():
    runs = [point(f"r{i}", 1000 + i, 0.5 + i / 1000) for i in range(FEW)]
    runs += [point("worse", 5000, 0.5), point("mine", 6000, 0.5)]
    made = pareto(runs, "size", False, selected=["mine"])
    wide = {
        i for t in made.data if t.mode == "markers" for i, up in zip(t.customdata, t.error_y.array, strict=True) if up
    }
    assert wide == {run.id for run in runs} - {"worse"}
    assert sorted(ids(made)) == sorted(run.id for run in runs)


def test_costs_of_all_magnitudes_get_equal_ratios():
    apart = pareto([point("a", 10_000), point("b", 10_000 * LOG_FROM)], "size", False, selected=["a"])
    assert apart.layout.xaxis.type == "log"
    low, high = apart.layout.xaxis.range
    assert low < math.log10(10) < math.log10(10 * LOG_FROM) < high
    assert apart.layout.annotations[0].x == pytest.approx(1)
    assert pareto([point("a", 10_000), point("b", 20_000)], "size", False).layout.xaxis.type == "linear"


def test_what_cannot_be_placed_is_counted():
    made = pareto([point("a", 1e-3), point("b", math.nan), point("c", 1e-3, math.nan)], "latency", False)
    assert ids(made) == ["a"]
    assert "2 without accuracy or latency left out" in made.layout.xaxis.title.text


@pytest.mark.parametrize("points", [[], [point("a", math.nan)]], ids=["none", "without cost"])
def test_nothing_to_draw_says_why(points):
    made = pareto(points, "latency", False)
    assert made.layout.annotations[0].text == "None of these runs has both accuracy and latency yet."
