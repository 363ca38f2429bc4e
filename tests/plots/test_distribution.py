"""The distribution picture and the numbers behind it, against the engine and by hand."""

import json

import numpy as np
import pytest
import torch

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig
from qlab.plots.bins import Bins, Window
from qlab.plots.distribution import (
    Bracket,
    Clipped,
    ErrorByValue,
    Grid,
    ceiling,
    distribution_figure,
)
from qlab.plots.study import channels_of, dequantized_bins, error_in, study, values_of
from qlab.plots.theme import palette
from qlab.quant.error import quantization_error
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import choose_qparams, observer_ranges
from qlab.quant.stats import stats_of

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
kinds = pytest.mark.parametrize("kind", ["weight", "statistics"])


def values(seed=0, count=6000):
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.3
    x[::50] = 0.0
    x[7] = 2.5
    return x


def tensor_of(kind):
    return values() if kind == "weight" else stats_of(values(), "relu")


def picture(tensor, spec, dark=False, channel=None, axis=0, zoom="auto", **options):
    found, shown = study(tensor, spec, axis, channel), values_of(tensor, axis, channel)
    seen = shown.window(found.ranges, zoom)
    made = distribution_figure(
        shown.bins(seen),
        seen,
        found.brackets,
        found.clipped,
        error_in(tensor, found, seen, axis, channel),
        found.grid,
        dark=dark,
        zeros=shown.zeros,
        values=shown.count,
        **options,
    )
    return made, found


def brackets_of(made):
    return {trace.name: trace for trace in made.data if trace.meta}


@both_themes
@kinds
def test_brackets_stand_where_the_engine_puts_the_ranges(kind, dark):
    tensor = tensor_of(kind)
    spec = QuantSpec(4, "per_tensor_affine", "mse")
    made, _ = picture(tensor, spec, dark, zoom="all")
    drawn = brackets_of(made)
    for name, qp in observer_ranges(tensor, spec).items():
        ends = [float(qp.low), float(qp.high)]
        assert [drawn[name].meta["low"], drawn[name].meta["high"]] == ends
        np.testing.assert_allclose(drawn[name].x, ends)
    assert [name for name, trace in drawn.items() if trace.meta["chosen"]] == ["mse"]
    assert drawn["mse"].line.color == palette(dark).range
    # A row each: labels cannot overlap.
    assert len({trace.y[0] for trace in drawn.values()}) == len(drawn)
    json.loads(made.to_json())


@kinds
def test_the_shaded_share_is_the_engines(kind):
    tensor = tensor_of(kind)
    spec = QuantSpec(4, "per_tensor_affine", "percentile", {"percentile": 99.0})
    made, found = picture(tensor, spec)
    error = quantization_error(tensor, choose_qparams(tensor, spec))
    assert error.clipped_share > 0
    assert found.clipped.share == pytest.approx(error.clipped_share)
    shaded = {shape.name for shape in made.layout.shapes}
    assert shaded == {"clipped below", "clipped above"}
    texts = " ".join(a.text for a in made.layout.annotations)
    assert texts.count("clipped") == 2


def test_nothing_is_shaded_where_nothing_is_clipped():
    made, _ = picture(values(), QuantSpec(8, "per_tensor_affine", "min_max"))
    assert not made.layout.shapes


@kinds
@pytest.mark.parametrize("zoom", ["auto", "bulk", "all"])
def test_error_in_and_outside_the_picture_is_all_the_error(kind, zoom):
    tensor, spec = tensor_of(kind), QuantSpec(4, "per_tensor_symmetric", "mse")
    found, shown = study(tensor, spec), values_of(tensor)
    error = error_in(tensor, found, shown.window(found.ranges, zoom))
    total = error.round_off.sum() + error.clip.sum() + error.below + error.above
    assert total == pytest.approx(found.chosen.error.noise, rel=1e-6)


def test_an_outlier_that_is_not_in_the_picture_is_told():
    x = values()
    x[0] = 500.0
    made, _ = picture(x, QuantSpec(8, "per_tensor_affine", "percentile", {"percentile": 99.0}))
    texts = [a.text for a in made.layout.annotations]
    assert any("of the error lies right of the picture" in text for text in texts)
    assert brackets_of(made)["min_max"].marker.symbol[1] == "triangle-right"
    assert "500" in texts


@kinds
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_picture_has_few_points(kind, bits):
    made, _ = picture(tensor_of(kind), QuantSpec(bits, "per_tensor_affine", "mse") if bits <= 8 else QuantSpec(bits))
    assert all(len(trace.x) <= 600 for trace in made.data)


@kinds
def test_bins_hold_every_value_once(kind):
    tensor = tensor_of(kind)
    found, shown = study(tensor, QuantSpec()), values_of(tensor)
    assert shown.bins(shown.window(found.ranges, "all")).counts.sum() == pytest.approx(6000)
    assert shown.zeros == 120
    assert shown.count == pytest.approx(6000)


def test_ticks_are_the_grid_and_tell_what_is_unused():
    x = torch.tensor([-1.0, 0.0, 0.1, 2.0])
    made, found = picture(x, QuantSpec(2, "per_tensor_affine", "min_max"))
    ticks = {trace.name: list(trace.x) for trace in made.data if trace.name in ("grid", "grid, unused")}
    np.testing.assert_allclose(ticks["grid"], [-1.0, 0.0, 2.0])
    np.testing.assert_allclose(ticks["grid, unused"], [1.0])
    assert found.chosen.error.levels_used == 3


def test_a_grid_too_fine_for_ticks_is_a_band():
    made, found = picture(values(), QuantSpec(8, "per_tensor_affine", "min_max"))
    assert not [trace for trace in made.data if trace.name == "grid"]
    band = next(trace for trace in made.data if trace.name == "grid band")
    assert max(band.x) == pytest.approx(found.brackets[0].high, abs=0.2)


@kinds
def test_levels_used_agree_with_the_engine(kind):
    found = study(tensor_of(kind), QuantSpec(4, "per_tensor_affine", "mse"))
    assert found.grid.used.sum() == found.chosen.error.levels_used


def test_a_spike_of_zeros_does_not_flatten_the_rest():
    x = torch.relu(torch.randn(4000, generator=torch.Generator().manual_seed(1)))
    made, _ = picture(x, QuantSpec(8, "per_tensor_affine", "min_max"))
    shape = next(trace for trace in made.data if trace.name == "float")
    top = made.layout.yaxis.range[1]
    assert max(shape.y) > 3 * top
    assert any("exact zeros" in a.text for a in made.layout.annotations)
    made, _ = picture(x, QuantSpec(8, "per_tensor_affine", "min_max"), logarithmic=True)
    shape = next(trace for trace in made.data if trace.name == "float")
    assert max(shape.y) < made.layout.yaxis.range[1]


def test_the_ceiling_is_the_tallest_bin_where_zero_is_no_spike():
    bins = Bins(np.array([-1.0, 0.0, 1.0]), np.array([10.0, 12.0]))
    assert ceiling(bins, False, 2.0) == (pytest.approx(12.72), None)


def test_dequantized_values_are_all_there_and_lie_on_the_grid():
    x, spec = values(), QuantSpec(3, "per_tensor_affine", "mse")
    found, shown = study(x, spec), values_of(x)
    seen = shown.window(found.ranges, "all")
    after = dequantized_bins(x, found, Window(seen.low - 1, seen.high + 1, 300), 0)
    assert after.counts.sum() == pytest.approx(6000)
    levels, counts = np.unique(fake_quantize(x, choose_qparams(x, spec)).numpy(), return_counts=True)
    np.testing.assert_allclose(found.grid.levels[found.grid.used], levels, atol=1e-6)
    np.testing.assert_array_equal(found.level_counts[found.grid.used], counts)


# --- channels ---------------------------------------------------------------------------------------------------------


def weight():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 4, 3, generator=generator) * torch.tensor([1.0, 0.02, 0.5, 2.0, 0.0, 1.0])[:, None, None]


@pytest.mark.parametrize("scheme", ["per_tensor_symmetric", "per_channel_affine", "per_group_symmetric"])
def test_a_channel_is_seen_under_the_scale_the_scheme_gives_it(scheme):
    w = weight()
    spec = QuantSpec(4, scheme, "min_max", group_size=6 if "group" in scheme else None)
    qp = choose_qparams(w, spec)
    row = study(w, spec, channel=3).chosen
    expected = (w[3] - fake_quantize(w, qp)[3]).double().square().sum().item()
    assert row.error.noise == pytest.approx(expected, rel=1e-5)
    scale = qp.scale if qp.scale.ndim == 0 else qp.scale[3]
    np.testing.assert_array_equal(row.scale, np.atleast_1d(scale.numpy()))


def test_one_channel_of_a_per_channel_scheme_has_a_grid_and_all_together_do_not():
    spec = QuantSpec(4, "per_channel_symmetric", "min_max")
    assert study(weight(), spec).grid is None
    grid = study(weight(), spec, channel=0).grid
    assert grid.levels[8] == 0
    assert grid.levels[0] == pytest.approx(float(choose_qparams(weight(), spec).low[0]))


def test_clipped_shares_of_many_scales_add_up_to_the_engines():
    spec = QuantSpec(3, "per_channel_symmetric", "mse")
    found = study(weight(), spec)
    assert found.clipped.share == pytest.approx(found.chosen.error.clipped_share)
    assert found.clipped.share > 0


def test_small_channels_suffer_per_tensor_and_not_per_channel():
    shared = channels_of(weight(), QuantSpec(8, "per_tensor_symmetric"))
    assert list(np.flatnonzero(shared.suffers)) == [1]
    np.testing.assert_allclose(shared.maximum, weight().amax((1, 2)).numpy())
    alone = channels_of(weight(), QuantSpec(8, "per_channel_symmetric"))
    assert not alone.suffers.any()
    assert alone.sqnr[1] == pytest.approx(shared.own[1])


def test_of_statistics_only_the_ranges_of_channels_are_known():
    stats = stats_of(weight(), "conv", channel_axis=0)
    found = channels_of(stats, QuantSpec())
    assert found.sqnr is None
    assert 1 in np.flatnonzero(found.suffers)
    line = study(stats, QuantSpec(8, "per_channel_affine", "min_max"))
    assert line.chosen.error is None
    assert line.brackets[0].sqnr is None
    with pytest.raises(InvalidConfig, match="not its values"):
        values_of(stats, channel=2)


def test_a_tensor_of_one_row_has_no_channels():
    assert channels_of(torch.ones(4), QuantSpec()) is None


def test_where_the_error_is_not_known_the_picture_says_so():
    seen = Window(-1.0, 1.0, 10)
    bins = Bins(seen.edges, np.ones(10))
    made = distribution_figure(
        bins, seen, [Bracket("min_max", -1, 1, None, True)], Clipped(0, 0), None, None, dark=False, no_error="not known"
    )
    assert any(a.text == "not known" for a in made.layout.annotations)


@pytest.mark.parametrize("value", [0.0, 3.0], ids=["zeros", "constant"])
def test_a_constant_tensor_can_be_drawn(value):
    made, found = picture(torch.full((50,), value), QuantSpec(8, "per_tensor_affine", "min_max"))
    assert np.isfinite(made.layout.xaxis.range).all()
    assert len(found.lines) == 4


def test_no_error_at_all_is_said():
    made, _ = picture(torch.tensor([0.0, 1.0]), QuantSpec(8, "per_tensor_affine", "min_max"))
    assert any("every value lies on the grid" in a.text for a in made.layout.annotations)


def test_a_finished_error_panel_has_its_shares():
    seen = Window(0.0, 1.0, 2)
    error = ErrorByValue(seen.edges, np.array([1.0, 0.0]), np.array([0.0, 3.0]))
    made = distribution_figure(
        Bins(seen.edges, np.ones(2)),
        seen,
        [Bracket("min_max", 0.0, 0.5, 20.0, True)],
        Clipped(0.0, 0.5),
        error,
        Grid(np.array([0.0, 0.5])),
        dark=False,
    )
    drawn = {trace.name: list(trace.y) for trace in made.data if trace.name in ("round-off", "clip")}
    assert drawn == {"round-off": [25.0, 0.0, 0.0], "clip": [0.0, 75.0, 75.0]}
