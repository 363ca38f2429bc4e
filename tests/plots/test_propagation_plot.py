"""The error over the depth of the network, and one tensor in float and quantized: what is drawn stands for the rows."""

import math

import numpy as np
import pytest

from qlab.analysis.propagation import Errors, Overlay, Propagation, TensorError
from qlab.metrics import write
from qlab.plots.error_measure import MEASURES, names_of
from qlab.plots.propagation import MOST_NAMES, channel_shift_figure, overlay_figure, propagation_figure
from qlab.plots.theme import palette

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
EVEN = Overlay(np.linspace(0, 4, 5), np.array([4, 3, 2, 1]), np.array([3, 4, 2, 1]))


def errors(sqnr, cosine=0.99, largest=1.0, shift=0.01, channels=(0.02, -0.03)):
    return Errors(sqnr, cosine, largest, shift, None if channels is None else np.array(channels))


def row(layer, own, arrived, tensor=None, overlay=EVEN, **more):
    return TensorError(
        tensor or layer, layer, "conv2d", errors(own, **more), errors(arrived, **more), clipped=0.1, overlay=overlay
    )


def network(*rows):
    return Propagation(rows, samples=64)


SMALL = network(
    row("conv1", 40.0, 40.0), row("layer1.0.conv1", 12.0, 11.0, tensor="layer1.0.relu"),
    row("layer1.0.conv2", 38.0, 8.0), row("layer1.0.add", 44.0, 9.0), row("fc", 39.0, 10.0),
)  # fmt: skip


def lines(made):
    own, arrived = [t for t in made.data if t.text is not None]
    return own, arrived


def texts(made):
    return [a.text for a in made.layout.annotations]


@both_themes
def test_two_lines_in_the_order_of_the_network(dark):
    own, arrived = lines(propagation_figure(SMALL, dark))
    assert list(own.y) == [40.0, 12.0, 38.0, 44.0, 39.0]
    assert list(arrived.y) == [40.0, 11.0, 8.0, 9.0, 10.0]
    assert list(arrived.customdata) == [r.tensor for r in SMALL.rows]
    assert own.line.dash == "dash"
    assert arrived.line.dash == "solid"
    assert set(own.marker.symbol) == {"circle-open"}
    assert arrived.marker.color == palette(dark).quantized
    assert "made here 12.0 dB" in own.text[1]
    assert "tensor layer1.0.relu" in own.text[1]


def test_where_it_is_made_and_where_it_shows_are_ringed_and_named():
    made = propagation_figure(SMALL, False)
    rings = {tuple(t.x): tuple(t.y) for t in made.data if t.name == "mark"}
    assert rings == {(1,): (12.0,), (2,): (8.0,)}
    assert "made most: layer1.0.conv1, 12.0 dB" in texts(made)
    assert "shows most: layer1.0.conv2, 8.0 dB" in texts(made)


def test_one_place_is_named_once_with_both_figures():
    made = propagation_figure(network(row("a", 40.0, 40.0), row("b", 10.0, 9.0)), False)
    assert texts(made) == ["made and shows most: b, 10.0 dB → 9.0 dB"]


def test_an_exact_tensor_stands_at_the_end_of_the_axis():
    made = propagation_figure(
        network(row("x", math.inf, math.inf), row("a", 5.0, 4.0), row("b", 30.0, -math.inf)), False
    )
    own, arrived = lines(made)
    assert (own.y[0], own.marker.symbol[0]) == (30.0, "triangle-up-open")
    assert (arrived.y[2], arrived.marker.symbol[2]) == (4.0, "triangle-down")
    assert "made here ∞ dB" in own.text[0]
    # a level far above all others does not flatten them
    far = lines(propagation_figure(network(row("x", 94.0, 94.0), row("a", 32.0, 31.0), row("b", 40.0, 33.0)), False))
    assert far[1].y[0] == 40.0


def test_where_nothing_is_lost_it_says_so():
    made = propagation_figure(network(row("x", math.inf, math.inf, largest=0.0)), False)
    assert "exact" in texts(made)[0]
    assert "exact" in texts(propagation_figure(network(row("x", 90.0, 90.0, largest=0.0)), False, "largest"))[0]


@pytest.mark.parametrize(("measure", "value"), [("cosine", 0.5), ("largest", 7.0), ("shift", 0.4)])
def test_other_measures_are_drawn_and_the_worst_by_them_is_marked(measure, value):
    worse = {"cosine": {"cosine": 0.5}, "largest": {"largest": 7.0}, "shift": {"channels": (0.1, -0.4)}}[measure]
    made = propagation_figure(network(row("a", 1.0, 1.0), row("b", 50.0, 50.0, **worse)), False, measure)
    assert lines(made)[1].y[1] == pytest.approx(value)
    assert texts(made)[0].startswith("made and shows most: b")
    assert MEASURES[measure].figure.label in made.layout.yaxis.title.text


def test_names_of_a_block_stand_once_and_of_many_tensors_only_some():
    made = propagation_figure(SMALL, False)
    assert list(made.layout.xaxis.ticktext) == ["conv1", "conv1", "conv2", "add", "fc"]
    assert "layer1.0" in texts(made)
    many = network(*(row(f"some.long.block{i}.name", 30.0 + i % 7, 20.0) for i in range(130)))
    shown = propagation_figure(many, False).layout.xaxis
    assert len(shown.ticktext) <= MOST_NAMES
    assert max(map(len, shown.ticktext)) <= 24
    assert len(lines(propagation_figure(many, False))[0].x) == 130


def test_the_chosen_tensor_is_shaded():
    def shaded(chosen):
        return [(s.x0, s.x1) for s in propagation_figure(SMALL, False, chosen=chosen).layout.shapes if s.y1 == 1
                and s.fillcolor == palette(False).wash("range", 0.35)]  # fmt: skip

    assert shaded("layer1.0.relu") == [(0.5, 1.5)]
    assert shaded("no such tensor") == []


def test_a_layer_with_two_tensors_is_called_by_these():
    found = network(
        row("lstm", 1.0, 1.0, tensor="lstm.output"), row("lstm", 1.0, 1.0, tensor="lstm.state"), SMALL.rows[1]
    )
    assert list(names_of(found).values()) == ["lstm.output", "lstm.state", "layer1.0.conv1"]


@both_themes
def test_float_and_quantized_values_lie_over_each_other(dark):
    made = overlay_figure(SMALL.rows[0], dark)
    float_line, quantized = made.data
    assert list(float_line.y) == [4, 3, 2, 1, 1]
    assert list(quantized.y) == [3, 4, 2, 1, 1]
    assert (float_line.line.color, quantized.line.color) == (palette(dark).float, palette(dark).quantized)
    assert "simulated" in quantized.name
    assert not made.layout.annotations


def test_bins_far_above_the_rest_are_cut_off_and_told():
    spikes = Overlay(np.linspace(0, 4, 5), np.array([900, 10, 8, 7]), np.array([880, 12, 700, 0]))
    made = overlay_figure(row("a", 1.0, 1.0, overlay=spikes), False)
    assert made.layout.yaxis.range[1] == pytest.approx(1.3 * 12)
    assert [t for t in texts(made) if "float 900, quantized 880" in t]
    assert [t for t in texts(made) if "float 8, quantized 700" in t]


def test_the_shift_of_each_channel_and_none_without_channels():
    bars, own = channel_shift_figure(SMALL.rows[0], False).data
    assert list(bars.y) == list(own.y) == [0.02, -0.03]
    assert "has no channels" in texts(channel_shift_figure(row("a", 1.0, 1.0, channels=None), False))[0]
    wide = channel_shift_figure(row("a", 1.0, 1.0, channels=np.arange(1000.0)), False).data[0]
    assert (wide.type, len(wide.y)) == ("scatter", 1000)


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (0.5, "0.500"), (0.99996, "0.999960"), (-0.2, "−0.200"), (1 - 1e-9, "1")]
)
def test_a_cosine_is_told_from_one(value, text):
    assert write("cosine", value) == text
