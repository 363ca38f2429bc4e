"""A range set by hand: what it does to a tensor is what the engine does with it, and the picture shows it."""

import numpy as np
import pytest
import torch

from qlab.config import QuantSpec
from qlab.plots.channels import channel_figure
from qlab.plots.drag import draggable
from qlab.plots.study import BY_HAND, by_hand, channels_of, dequantized_bins, error_in, study, values_of
from qlab.quant.error import quantization_error
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import choose_qparams, with_range
from qlab.quant.stats import stats_of
from tests.plots.test_distribution import kinds, tensor_of, weight
from tests.plots.test_distribution import picture as plain_picture

ENDS = (-0.4, 0.6)


@kinds
def test_figures_are_those_of_the_engines_grid_over_the_range(kind):
    tensor, spec = tensor_of(kind), QuantSpec(4, "per_tensor_affine", "mse")
    before = study(tensor, spec)
    found = by_hand(before, tensor, ENDS)
    qp = with_range(choose_qparams(tensor, spec), spec, *ENDS)
    error = quantization_error(tensor, qp)
    assert found.chosen.observer == BY_HAND
    assert found.observed is before.chosen
    assert (found.chosen.sqnr, found.clipped.share) == (error.sqnr, pytest.approx(error.clipped_share))
    assert found.grid.levels[[0, -1]] == pytest.approx([float(qp.low), float(qp.high)])
    assert [b.observer for b in found.brackets if b.chosen] == [BY_HAND]
    assert list(found.lines) == [*before.lines, BY_HAND]


@kinds
def test_where_the_error_lies_is_that_of_the_range(kind):
    tensor, spec = tensor_of(kind), QuantSpec(4, "per_tensor_symmetric", "min_max")
    found, shown = by_hand(study(tensor, spec), tensor, (-0.5, 0.5)), values_of(tensor)
    error = error_in(tensor, found, shown.window(found.ranges, "all"))
    total = error.round_off.sum() + error.clip.sum() + error.below + error.above
    assert total == pytest.approx(found.chosen.error.noise, rel=1e-6)
    assert error.clip.sum() + error.above == pytest.approx(found.chosen.error.clip, rel=1e-6)


def test_the_picture_does_not_move_under_the_hand():
    tensor, spec = tensor_of("weight"), QuantSpec()
    before = study(tensor, spec)
    windows = {values_of(tensor).window(by_hand(before, tensor, ends).ranges) for ends in ((-9.0, 9.0), (-0.1, 0.1))}
    assert windows == {values_of(tensor).window(before.ranges)}


@pytest.mark.parametrize("scheme", ["per_channel_affine", "per_channel_symmetric", "per_group_symmetric"])
def test_every_range_of_its_own_is_cut(scheme):
    spec = QuantSpec(4, scheme, "min_max", group_size=6 if "group" in scheme else None)
    before = study(weight(), spec)
    found = by_hand(before, weight(), (-0.5, 0.5))
    assert found.grid is None
    assert found.chosen.high.max() < 0.7 < before.chosen.high.max()
    narrow = np.abs(weight().numpy().reshape(len(before.chosen.scale), -1)).max(axis=1) < 0.45
    assert narrow.any()
    np.testing.assert_array_equal(found.chosen.scale[narrow], before.chosen.scale[narrow])
    after = fake_quantize(weight(), with_range(choose_qparams(weight(), spec), spec, -0.5, 0.5))
    noise = (weight() - after).double().square().sum().item()
    assert found.chosen.error.noise == pytest.approx(noise, rel=1e-5)
    row = by_hand(study(weight(), spec, channel=3), weight(), (-0.5, 0.5), channel=3)
    assert row.chosen.error.noise == pytest.approx((weight() - after)[3].double().square().sum().item(), rel=1e-5)
    seen = values_of(weight()).window(found.ranges, "all")
    counts, _ = np.histogram(after.numpy().ravel(), seen.edges)
    np.testing.assert_array_equal(dequantized_bins(weight(), found, seen).counts, counts)


def test_of_channels_the_range_is_drawn_across_all_and_told():
    spec = QuantSpec(8, "per_channel_symmetric")
    found = channels_of(weight(), spec, 0, (-0.5, 0.5))
    plain = channels_of(weight(), spec)
    cut = np.abs(weight().numpy()).max(axis=(1, 2)) > 0.5
    assert (found.sqnr[cut] < plain.sqnr[cut] - 3).all()
    np.testing.assert_array_equal(found.sqnr[~cut], plain.sqnr[~cut])
    made = channel_figure(found, dark=False, shared=(-0.5, 0.5), shared_name="each is cut to")
    (line,) = [trace for trace in made.data if trace.name.startswith("each is cut to")]
    assert set(line.y) == {-0.5, 0.5, None}


def test_of_statistics_with_a_scale_each_nothing_but_the_ranges_is_known():
    stats = stats_of(weight(), "conv", channel_axis=0)
    found = by_hand(study(stats, QuantSpec(8, "per_channel_affine", "min_max")), stats, (-0.5, 0.5))
    assert found.chosen.error is None
    assert found.chosen.low.min() == pytest.approx(-0.5, abs=0.01)


def test_dragging_marks_a_span_and_fades_nothing():
    made, _ = plain_picture(torch.tensor([-1.0, 0.0, 0.1, 2.0]), QuantSpec(2))
    assert made.layout.dragmode is None
    drawn = draggable(made, dark=False, turn=3)
    assert (drawn.layout.dragmode, drawn.layout.selectdirection) == ("select", "h")
    marked = [trace for trace in drawn.data if "markers" in (trace.mode or "")]
    assert marked
    assert all(trace.unselected.marker.opacity == 1 for trace in marked)
    # Another turn is another chart to the browser, which then forgets the span.
    assert (
        draggable(plain_picture(torch.tensor([1.0, 2.0]), QuantSpec(2))[0], False, 4).layout.meta != drawn.layout.meta
    )
