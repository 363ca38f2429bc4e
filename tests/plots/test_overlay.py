"""One tensor in float and under several configs, against the engine's own quantization."""

import json

import numpy as np
import pytest
import torch

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig
from qlab.plots.bins import Window
from qlab.plots.overlay import LOOKS, Side, overlay, side, window_of
from qlab.plots.study import values_of
from qlab.plots.theme import palette
from qlab.quant.error import quantization_error
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import choose_qparams
from qlab.quant.stats import stats_of

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
kinds = pytest.mark.parametrize("kind", ["weight", "statistics"])
EIGHT, FOUR = QuantSpec(8, "per_tensor_symmetric", "min_max"), QuantSpec(4, "per_tensor_affine", "mse")
CHANNELS = QuantSpec(4, "per_channel_symmetric", "min_max")


def weight():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 50, generator=generator) * torch.linspace(0.05, 1.0, 16)[:, None]


def tensor_of(kind):
    return weight() if kind == "weight" else stats_of(weight(), "conv", channel_axis=0)


def picture(tensor, specs, dark=False, **options):
    """specs: label -> spec."""
    seen = window_of(tensor, list(specs.values()), zoom="all")
    sides = [side(label, tensor, spec, seen) for label, spec in specs.items()]
    return overlay(seen, values_of(tensor).bins(seen), sides, dark, **options), sides, seen


def bracket(made, label):
    return next(t for t in made.data if t.meta and t.name == label)


def line(made, label):
    return next(t for t in made.data if t.legendgroup == label)


@both_themes
@kinds
def test_brackets_and_figures_are_those_of_the_engine(kind, dark):
    tensor = tensor_of(kind)
    made, _, _ = picture(tensor, {"A": EIGHT, "B": FOUR}, dark)
    worth = next(t for t in made.data if t.name == "SQNR").text
    for row, (label, spec) in enumerate({"A": EIGHT, "B": FOUR}.items()):
        qp = choose_qparams(tensor, spec)
        drawn = bracket(made, label)
        assert list(drawn.x) == pytest.approx([float(qp.low), float(qp.high)])
        assert set(drawn.y) == {row}
        assert f"{quantization_error(tensor, qp).sqnr:.1f} dB" in worth[row]
    json.loads(made.to_json())


@both_themes
def test_each_side_has_one_look_in_line_and_bracket(dark):
    made, _, _ = picture(weight(), {"A": EIGHT, "B": FOUR}, dark)
    colours = palette(dark)
    for label, colour, dash in (("A", colours.quantized, "solid"), ("B", colours.range, "dash")):
        assert line(made, label).line.color == bracket(made, label).line.color == colour
        assert line(made, label).line.dash == bracket(made, label).line.dash == dash
    assert made.data[0].name == "float"
    assert made.data[0].line.color == colours.float


@kinds
def test_quantized_values_are_as_many_as_float_ones(kind):
    made, _, _ = picture(tensor_of(kind), {"A": EIGHT, "B": FOUR})
    total = weight().numel()
    assert np.sum(made.data[0].y[:-1]) == pytest.approx(total)
    # the outermost level reaches half a step beyond the range, out of the picture
    for label in ("A", "B"):
        assert np.sum(line(made, label).y[:-1]) == pytest.approx(total, rel=0.03)


def test_with_a_grid_for_each_channel_the_line_counts_dequantized_values():
    made, _, seen = picture(weight(), {"A": EIGHT, "channels": CHANNELS})
    values = fake_quantize(weight(), choose_qparams(weight(), CHANNELS))
    expected = np.histogram(values.numpy().ravel(), seen.edges)[0]
    np.testing.assert_array_equal(line(made, "channels").y[:-1], expected)
    assert "a grid for each channel" in line(made, "channels").name


def test_of_statistics_per_channel_only_the_range_is_drawn_and_the_legend_says_so():
    tensor = tensor_of("statistics")
    made, (one,), _ = picture(tensor, {"channels": QuantSpec(8, "per_channel_affine", "min_max")})
    assert one.bins is None
    assert list(line(made, "channels").y) == [None]
    assert "not values" in line(made, "channels").name
    assert "–" in next(t for t in made.data if t.name == "SQNR").text[0]
    assert "clipped" in bracket(picture(tensor, {"A": FOUR})[0], "A").text[0]
    assert "clipped" not in bracket(made, "channels").text[0]


def test_levels_stand_on_the_bracket_where_they_can_be_told_apart():
    made, _, _ = picture(weight(), {"A": EIGHT, "B": FOUR})
    (levels,) = (t for t in made.data if t.name == "levels")
    qp = choose_qparams(weight(), FOUR)
    inside = (np.arange(qp.quant_min, qp.quant_max + 1) - int(qp.zero_point)) * float(qp.scale)
    np.testing.assert_allclose(levels.x, inside[1:-1], rtol=1e-6)
    assert set(levels.y) == {1}


def test_a_range_beyond_the_picture_ends_in_an_arrow_at_its_edge():
    seen = Window(-0.5, 0.5, 40)
    one = side("A", weight(), EIGHT, seen)
    made = overlay(seen, values_of(weight()).bins(seen), [one], False)
    assert list(bracket(made, "A").x) == [-0.5, 0.5]
    assert list(bracket(made, "A").marker.symbol) == ["triangle-left", "triangle-right"]
    assert bracket(made, "A").meta["high"] == pytest.approx(float(choose_qparams(weight(), EIGHT).high))
    assert not made.layout.shapes


def test_a_spike_of_zeros_is_cut_off_and_counted():
    x = torch.relu(weight())
    zeros = int((x == 0).sum())
    made, (one, _), _ = picture(x, {"A": EIGHT, "B": FOUR}, unit="output of relu")
    counts = made.data[0].y
    assert made.layout.yaxis.range[1] < 0.5 * max(counts)
    text = made.layout.annotations[0].text
    assert f"float: {int(max(counts))} in the bin at 0" in text
    assert max(counts) >= zeros
    assert f"A: {int(one.study.level_counts.max())} on the level 0" in text
    assert made.layout.xaxis.title.text == "Output of relu"


def test_nothing_is_cut_off_where_nothing_stands_out():
    made, _, _ = picture(torch.linspace(-1, 1, 2001), {"A": QuantSpec(8, "per_tensor_affine", "min_max")})
    assert not made.layout.annotations
    assert made.layout.yaxis.range[1] >= max(made.data[0].y)


def test_the_window_holds_the_ranges_of_all_specs():
    clipping = QuantSpec(8, "per_tensor_symmetric", "mse")
    seen = window_of(weight(), [clipping, EIGHT], zoom="all")
    qp = choose_qparams(weight(), EIGHT)
    assert seen.low <= float(qp.low) < float(qp.high) <= seen.high


def test_labels_are_text_and_not_markup():
    made, _, _ = picture(weight(), {"<b>run</b>": EIGHT})
    assert made.layout.yaxis2.ticktext[0] == "&lt;b&gt;run&lt;/b&gt;"
    assert line(made, "<b>run</b>").name.startswith("&lt;b&gt;run")
    assert "<b>run" not in bracket(made, "<b>run</b>").text[0]


@pytest.mark.parametrize("count", [0, len(LOOKS) + 1])
def test_more_sides_than_looks_are_refused(count):
    seen = window_of(weight(), [EIGHT])
    one = side("A", weight(), EIGHT, seen)
    sides = [Side(str(i), one.study, one.bins) for i in range(count)]
    with pytest.raises(InvalidConfig, match=f"{count} configs"):
        overlay(seen, values_of(weight()).bins(seen), sides, False)
