"""Charts of the Runtime page: what is drawn for made-up measurements."""

import pytest

from qlab.plots.runtime import TALL, WORDS, differing_codes, latencies, op_times
from qlab.plots.theme import palette
from qlab.runtime.executed import Executed, ExecutedOp
from qlab.runtime.latency import Timing
from qlab.runtime.parity import Parity, TensorParity
from qlab.runtime.report import DEFAULTS, FLOAT, INTEGER, TORCH

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


def op(layer, kind, microseconds, name="Conv"):
    return ExecutedOp(
        f"{layer}/{name}",
        name,
        layer,
        kind,
        microseconds * 1e-6,
        ("uint8", "float"),
        ("uint8",),
        (1, 8),
        ("a",),
        ("b",),
    )


RAN = Executed(
    (op("x", "convert", 10, "QuantizeLinear"), op("conv1", "integer", 60, "QLinearConv"),
     op("conv1", "move", 5, "Reshape"), op("norm", "float", 25, "LayerNormalization")),
    20,
)  # fmt: skip


def lengths(made, kind):
    return next(list(t.x) for t in made.data if t.name.startswith(WORDS[kind]))


@both_themes
def test_an_op_is_a_bar_in_the_colour_of_what_it_computes_on(dark):
    made = op_times(RAN, dark, by_layer=False)
    assert lengths(made, "integer") == pytest.approx([0, 60, 0, 0])
    assert lengths(made, "convert") == pytest.approx([10, 0, 0, 0])
    colours = palette(dark)
    by_name = {t.name.split(",")[0]: t.marker.color for t in made.data}
    assert by_name[WORDS["integer"]] == colours.gained
    assert by_name[WORDS["float"]] == colours.neutral
    assert by_name[WORDS["convert"]] == colours.error
    assert list(made.layout.yaxis.ticktext)[1] == "conv1 · QLinearConv"
    assert "µs" in made.layout.xaxis.title.text
    assert "60.0 % of the time" in next(t.name for t in made.data if t.name.startswith("integer"))


def test_ops_of_a_layer_share_its_row():
    made = op_times(RAN, False, by_layer=True)
    assert list(made.layout.yaxis.ticktext) == ["x", "conv1", "norm"]
    assert lengths(made, "integer") == pytest.approx([0, 60, 0])
    assert lengths(made, "move") == pytest.approx([0, 5, 0])
    assert "Reshape: 5.00 µs" in made.data[0].hovertext[1]


@pytest.mark.parametrize(("count", "side"), [(TALL, "bottom"), (130, "top")])
def test_the_axis_of_a_chart_that_is_scrolled_stands_where_it_is_seen_first(count, side):
    made = op_times(Executed(tuple(op(f"l{i}", "integer", 5) for i in range(count)), 1), False, by_layer=False)
    assert made.layout.xaxis.side == side
    assert len(made.layout.yaxis.ticktext) == count
    assert made.layout.height > 15 * count


def test_a_long_call_is_in_milliseconds_and_none_is_told():
    assert "(ms)" in op_times(Executed((op("a", "float", 5000),), 1), False, by_layer=False).layout.xaxis.title.text
    assert "no op" in op_times(Executed((), 1), False, by_layer=False).layout.annotations[0].text


def test_codes_that_arrive_and_those_made_stand_apart():
    rows = (TensorParity("conv1", 1_000_000, 1, 1, 1, 1), TensorParity("conv2", 500_000, 50, 2, 3, 1))
    made = differing_codes(Parity(rows, 1.0, True, 1.0, 1.0, 64), False)
    arrived, own = made.data
    assert list(arrived.y) == [1.0, 100.0]
    assert list(own.y) == [1.0, 6.0]
    assert "by 2 steps at most" in arrived.hovertext[1]
    assert "million" in made.layout.yaxis.title.text
    none = differing_codes(Parity((), 0.1, False, None, 1.0, 64), False)
    assert "no codes to compare" in none.layout.annotations[0].text


@pytest.mark.parametrize(("torch_seconds", "drawn"), [(0.003, True), (0.3, False)])
def test_each_network_is_a_box_and_one_far_off_is_left_to_the_table(torch_seconds, drawn):
    seconds = {
        FLOAT: (0.001,) * 5, INTEGER: (0.002, 0.0021, 0.0019, 0.002, 0.002), DEFAULTS: (0.001,) * 5,
    }  # fmt: skip
    torch = {FLOAT: (0.001,) * 6, TORCH: (torch_seconds,) * 6}
    made = latencies([Timing(n, 2, seconds) for n in (1, 32)], [Timing(n, 2, torch) for n in (1, 32)], False)
    names = [t.name for t in made.data]
    assert (TORCH in names) == drawn
    assert names.count(INTEGER) == 2
    assert [a.text for a in made.layout.annotations] == ["batch of 1", "batch of 32"]
    (integer, _) = (t for t in made.data if t.name == INTEGER)
    assert list(integer.x) == pytest.approx([2.0, 2.1, 1.9, 2.0, 2.0])
    assert integer.marker.color == palette(False).gained
