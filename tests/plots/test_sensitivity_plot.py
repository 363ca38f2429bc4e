"""Bars of the layers: order, where they start and end, what is grey, light or hatched; and the curve of kept ones."""

import math
from dataclasses import replace

import pytest

from qlab.analysis.keep import Kept
from qlab.analysis.measured import Measured, Paired
from qlab.analysis.sensitivity import Sensitivity, SensitivityRow
from qlab.config import QConfigMapping
from qlab.metrics import write
from qlab.plots.keep import keep_points
from qlab.plots.sensitivity import metric_of, sensitivity_bars, signed, value_of, worst_first
from qlab.plots.theme import palette

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
FLOAT = Measured(1000, 1000, 0.9, (0.88, 0.917), 1.0, 0.3, math.inf)
QUANTIZED = Measured(1000, 1000, 0.85, (0.826, 0.871), 0.9, 0.4, 12.0)


def row(layer, lost, gained, loss, sqnr, *, n=1000, part="both", error=0.001, base=FLOAT):
    paired = Paired(n, lost, gained, loss, error)
    measured = Measured(n, n, base.accuracy + paired.accuracy, None, 0.9, base.loss + loss, sqnr)
    return SensitivityRow(layer, "conv2d", part, 100, measured, paired)


ROWS = (
    row("a", 1, 0, 0.0005, 30.0),
    row("b", 40, 2, 0.2, 10.0),
    row("c", 0, 12, 0.05, 20.0),
    row("d", 30, 0, 0.3, 9.0, n=128),
)
FOUND = Sensitivity("only", ROWS, FLOAT, FLOAT)
SPARED = Sensitivity(
    "all_but",
    (
        row("a", 0, 30, -0.06, 15.0, base=QUANTIZED),
        row("b", 9, 8, 0.0001, 12.1, base=QUANTIZED),
        row("c", 40, 2, 0.1, 11.0, base=QUANTIZED),
    ),
    QUANTIZED,
    FLOAT,
)


def bars(made, name="whole layer"):
    return next(t for t in made.data if t.name == name and t.customdata is not None)


def test_worst_first_by_each_measure_and_what_is_confirmed_before_what_is_not():
    assert worst_first(FOUND, "accuracy") == ["b", "a", "c", "d"]
    assert worst_first(FOUND, "loss") == ["b", "c", "a", "d"]
    assert worst_first(FOUND, "sqnr") == ["b", "c", "a", "d"]
    assert worst_first(SPARED, "accuracy") == ["a", "b", "c"]
    assert worst_first(SPARED, "loss") == ["a", "b", "c"]
    assert worst_first(SPARED, "sqnr") == ["a", "b", "c"]


def test_ties_go_by_the_sqnr():
    tied = (row("x", 0, 0, 0.0, 30.0), row("y", 0, 0, 0.0, 20.0))
    assert worst_first(Sensitivity("only", tied, FLOAT, FLOAT), "accuracy") == ["y", "x"]


@both_themes
def test_bars_go_from_the_base_to_the_figure(dark):
    made = sensitivity_bars(FOUND, "accuracy", dark)
    drawn, colours = bars(made), palette(dark)
    assert list(made.layout.yaxis.ticktext) == ["b", "a", "c", "d"]
    assert drawn.base == pytest.approx(90.0)
    assert list(drawn.x) == pytest.approx([-3.8, -0.1, 1.2, 100 * -30 / 128])
    assert list(drawn.text) == ["−3.8 pt", "−0.1 pt", "+1.2 pt", "≈ −23.4 pt"]
    assert list(drawn.marker.line.color) == [colours.error, colours.neutral, colours.gained, colours.error]
    # confirmed bars are full, the estimate is light
    assert list(drawn.marker.color[:3]) == list(drawn.marker.line.color[:3])
    assert drawn.marker.color[3] == colours.wash("error", 0.22)
    assert list(drawn.customdata) == ["b", "a", "c", "d"]
    assert "within the noise" in drawn.hovertext[1]
    assert "estimated" in drawn.hovertext[3]
    assert "estimated" not in drawn.hovertext[0]
    names = [t.name for t in made.data if t.name]
    assert "float 90.0 %" in names
    assert "estimated from 128 samples" in names
    assert not any("all quantized" in name for name in names)
    band = made.layout.shapes[0]
    assert (band.x0, band.x1) == (pytest.approx(88.0), pytest.approx(91.7))
    assert "Accuracy (%)" in made.layout.xaxis.title.text
    assert made.layout.xaxis.range[0] < 90 - 23.5


@both_themes
def test_sparing_starts_from_all_quantized(dark):
    made = sensitivity_bars(SPARED, "accuracy", dark)
    assert bars(made).base == pytest.approx(85.0)
    assert list(bars(made).x) == pytest.approx([3.0, -0.1, -3.8])
    lines = {t.name: t for t in made.data if t.type == "scatter"}
    assert list(lines["float 90.0 %"].x) == pytest.approx([90, 90])
    assert list(lines["all quantized 85.0 %"].x) == pytest.approx([85, 85])
    made = sensitivity_bars(SPARED, "sqnr", dark)
    assert list(bars(made).text) == ["+3.0 dB", "+0.1 dB", f"{chr(8722)}1.0 dB"]
    colours = palette(dark)
    assert list(bars(made).marker.color) == [colours.gained, colours.gained, colours.error]


def test_an_sqnr_alone_starts_at_zero_and_exact_is_written():
    exact = Sensitivity("only", (*ROWS[:2], row("e", 0, 0, 0.0, math.inf)), FLOAT, FLOAT)
    made = sensitivity_bars(exact, "sqnr", False)
    assert bars(made).base == 0
    assert list(bars(made).x[:2]) == [10.0, 30.0]
    assert bars(made).x[2] >= 30.0
    assert list(bars(made).text) == ["10.0 dB", "30.0 dB", "exact"]
    assert not [t for t in made.data if t.type == "scatter"]  # float has no finite SQNR


def test_losses_in_nats():
    made = sensitivity_bars(FOUND, "loss", False)
    assert list(bars(made).text) == ["+0.2000", "+0.0500", "+0.0005", "≈ +0.3000"]
    assert bars(made).base == pytest.approx(0.3)
    assert bars(made).marker.line.color[2] == palette(False).neutral
    assert "nats" in made.layout.xaxis.title.text
    assert [signed(v) for v in (0.0, -0.00001, -0.01234, 1)] == ["0", "0", "−0.0123", "+1.0000"]
    assert write("loss", 0.25) == "0.250 nats"


def test_weights_are_solid_and_activations_hatched():
    parts = (*ROWS[:2], row("a", 2, 0, 0.1, 15.0, part="activation"), row("b", 0, 0, 0.0, 25.0, part="activation"))
    parts = tuple(replace(r, part="weight") if r.part == "both" else r for r in parts)
    made = sensitivity_bars(Sensitivity("only", parts, FLOAT, FLOAT), "sqnr", False)
    weights, activations = bars(made, "weights"), bars(made, "activations")
    assert weights.marker.pattern.shape == ""
    assert activations.marker.pattern.shape == "/"
    assert weights.offset + weights.width <= activations.offset + 1e-9
    assert list(weights.y) == list(activations.y) == [0, 1]
    assert list(activations.x) == [25.0, 15.0]


def test_the_chosen_layer_is_marked_and_only_the_worst_are_drawn():
    many = Sensitivity("only", tuple(row(f"l{i}", i, 0, 0.0, 50.0 - i) for i in range(50)), FLOAT, FLOAT)
    made = sensitivity_bars(many, "accuracy", False, selected="l47", most=5)
    assert list(made.layout.yaxis.ticktext) == ["l49", "l48", "l47", "l46", "l45"]
    behind = made.data[0]
    assert [colour.endswith(",0)") for colour in behind.marker.color] == [True, True, False, True, True]
    assert list(behind.customdata) == list(made.layout.yaxis.ticktext)  # a bar of no length can be clicked too
    assert "45 more layers" in made.layout.xaxis.title.text


def test_without_labels_agreement_stands_for_accuracy():
    bare = replace(FLOAT, accuracy=None, accuracy_interval=None)
    rows = tuple(replace(r, measured=replace(r.measured, accuracy=None)) for r in ROWS)
    found = Sensitivity("only", rows, bare, bare)
    assert metric_of(found, "accuracy").label == "Agreement with float"
    assert value_of(found, found.rows[1], "accuracy") == pytest.approx(1 - 0.038)
    made = sensitivity_bars(found, "accuracy", False)
    assert bars(made).base == pytest.approx(100.0)
    assert not made.layout.shapes


def test_nothing_quantized_is_said():
    made = sensitivity_bars(Sensitivity("only", (), FLOAT, FLOAT), "accuracy", False)
    assert "quantizes no layer" in made.layout.annotations[0].text


# --- keeping the worst ------------------------------------------------------------------------------------------------


def point(count, accuracy, size, interval=True):
    ends = (accuracy - 0.02, accuracy + 0.02) if interval else None
    measured = Measured(1000, 1000, accuracy if interval else None, ends, 0.95, 0.4, 10.0 + count)
    layers = tuple(f"layer{i}" for i in range(count))
    return Kept(layers, QConfigMapping(), measured, Paired(1000, 0, count, 0.0, 0.0), size)


@both_themes
def test_the_curve_is_accuracy_over_size(dark):
    made = keep_points([point(0, 0.8, 10_000), point(1, 0.85, 12_000), point(5, 0.89, 40_000)], 0.9, dark, selected=5)
    curve = next(t for t in made.data if t.name == "with the worst kept")
    assert list(curve.x) == [10.0, 12.0, 40.0]
    assert list(curve.y) == pytest.approx([80, 85, 89])
    assert list(curve.customdata) == [0, 1, 5]
    assert list(curve.text) == ["0", "1", "5"]
    assert curve.marker.size[2] > curve.marker.size[0]
    assert "and 1 more" in curve.hovertext[2]
    low, high = made.data[0], made.data[1]
    assert list(low.y) == pytest.approx([78, 83, 87])
    assert list(high.y) == pytest.approx([82, 87, 91])
    assert "(kB)" in made.layout.xaxis.title.text
    assert any(t.name == "float 90.0 %" for t in made.data)


def test_texts_that_would_lie_over_each_other_are_left_out():
    made = keep_points([point(0, 0.8, 10_000), point(1, 0.85, 10_100), point(5, 0.89, 40_000)], 0.9, False)
    curve = next(t for t in made.data if t.name == "with the worst kept")
    assert list(curve.text) == ["0", "", "5"]


def test_a_curve_without_labels_is_of_agreement():
    made = keep_points([point(0, 0.8, 10_000, False), point(1, 0.8, 12_000, False)], None, False)
    assert [t.name for t in made.data] == ["with the worst kept"]
    assert list(made.data[0].y) == pytest.approx([95, 95])
    assert "Agreement" in made.layout.yaxis.title.text


def test_no_points_are_said():
    assert "none to keep" in keep_points([], None, False).layout.annotations[0].text
