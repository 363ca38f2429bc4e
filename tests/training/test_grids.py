"""Fake quantization that trains: forward as convert has it, gradients as published, ranges that follow."""

import pytest
import torch

from qlab.config import QuantSpec
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import choose_qparams
from qlab.training.grids import TrainedGrid, extremes_of

SPECS = {
    "per tensor, affine": QuantSpec(4, "per_tensor_affine"),
    "per tensor, symmetric": QuantSpec(8, "per_tensor_symmetric"),
    "per tensor, 2 bits": QuantSpec(2, "per_tensor_affine"),
    "per channel": QuantSpec(4, "per_channel_symmetric"),
    "per channel, affine": QuantSpec(3, "per_channel_affine"),
    "per group": QuantSpec(2, "per_group_symmetric", group_size=8),
}


def grid_of(x, spec, *, shrink=0.6, ranges="lsq", axis=0, batched=False, constant=0.25):
    """A grid that clips some of x."""
    start = choose_qparams(x * shrink, spec, axis=axis)
    return TrainedGrid(start, spec, extremes_of(x, start), ranges=ranges, averaging_constant=constant, batched=batched)


def values(shape=(6, 4, 4), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.3


def spread(scale, x, group_size, axis):
    """The scale as it multiplies x."""
    if group_size:
        return scale.repeat_interleave(group_size, 1).reshape(x.shape)
    return scale.reshape([-1 if i == axis else 1 for i in range(x.ndim)]) if scale.ndim else scale


def published(x, grid, axis):
    """LSQ written down in float64 with rounding passed straight through: out, and its gradient by autograd."""
    x = x.double().requires_grad_()
    scale = grid.scale.double().clone().requires_grad_()
    zero = spread(grid.zero_point.double(), x, grid.group_size, axis)
    s = spread(scale, x, grid.group_size, axis)
    steps = x / s
    rounded = (steps * 1.0).round().detach()
    inside = (rounded + zero >= grid.quant_min) & (rounded + zero <= grid.quant_max)
    straight = steps + (rounded - steps).detach()
    ends = torch.where(rounded + zero < grid.quant_min, grid.quant_min - zero, grid.quant_max - zero)
    return x, scale, torch.where(inside, straight, ends) * s


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_are_the_published_ones(name, axis):
    spec = SPECS[name]
    if spec.group_size and axis:
        return  # groups lie behind axis 0
    x = values()
    grid = grid_of(x, spec, axis=axis)
    used_axis = grid.axis if grid.scale.ndim else None
    ours = x.clone().requires_grad_()
    upstream = values(seed=1)
    grid.train()
    out = grid(ours)
    out.backward(upstream)
    wanted_x, wanted_scale, wanted = published(x, grid, used_axis)
    wanted.backward(upstream.double())
    assert torch.allclose(out.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.grad.double(), wanted_x.grad)
    assert (ours.grad == 0).any()  # something was clipped
    # The scale is learned as a multiple of the calibrated one, and its gradient made smaller by the published factor.
    expected = wanted_scale.grad * grid.start_scale.double() * grid.strength(x)
    size = float((upstream.abs() * grid.scale.max()).sum() * grid.strength(x))
    assert float((grid.factor.grad.double() - expected).abs().max()) <= 1e-6 * size
    assert float(expected.abs().max()) > 1e-3 * size  # the bar means something


@pytest.mark.parametrize("name", SPECS)
def test_the_scale_gradient_is_the_slope_where_codes_stay(name):
    """Outside the grid the output is an end times the scale, a true slope: by finite differences in float64."""
    x = torch.where(values() > 0, 50.0, -50.0)
    grid = grid_of(values(), SPECS[name])
    grid.train()
    grid(x).sum().backward()
    step = 1e-3
    ends = []
    for factor in (1 + step, 1 - step):
        moved = grid.start_scale.double() * factor
        zero = spread(grid.zero_point.double(), x, grid.group_size, grid.axis)
        codes = torch.where(x > 0, grid.quant_max - zero, grid.quant_min - zero)
        ends.append((codes * spread(moved, x, grid.group_size, grid.axis)).sum())
    slope = (ends[0] - ends[1]) / (2 * step) * grid.strength(x)
    assert float(grid.factor.grad.double().sum()) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("ranges", ["moving_average", "lsq"])
def test_it_starts_on_the_calibrated_grid(name, ranges):
    x = values()
    grid = grid_of(x, SPECS[name], ranges=ranges)
    assert torch.equal(grid.eval()(x), fake_quantize(x, grid.qparams))
    assert torch.equal(grid.qparams.scale, choose_qparams(x * 0.6, SPECS[name]).scale)


@pytest.mark.parametrize("name", SPECS)
def test_ranges_that_see_what_they_were_chosen_on_stay(name):
    x = values()
    grid = grid_of(x, SPECS[name], ranges="moving_average").train()
    before = grid.scale.clone()
    for _ in range(5):
        grid(x)
    assert torch.allclose(grid.scale, before, rtol=1e-5)


def test_ranges_follow_by_the_averaging_constant():
    """Per tensor from 0 to 1 on 0..15; everything doubles, and a quarter of the way is gone with each call."""
    x = torch.linspace(0, 1, 16)
    spec = QuantSpec(4, "per_tensor_affine")
    grid = grid_of(x, spec, shrink=1.0, ranges="moving_average").train()
    tops = []
    for _ in range(3):
        grid(2 * x)
        tops.append(float(grid.high))
    assert tops == pytest.approx([1.25, 1.4375, 1.578125])
    assert float(grid.scale) == pytest.approx(1.578125 / 15)


def test_a_clipped_range_stays_clipped_by_as_much():
    x = values()
    spec = QuantSpec(4, "per_tensor_symmetric")
    grid = grid_of(x, spec, shrink=0.5, ranges="moving_average", constant=1.0).train()
    grid(3 * x)
    assert float(grid.high) == pytest.approx(1.5 * float(x.abs().max()), rel=1e-5)


@pytest.mark.parametrize("ranges", ["moving_average", "lsq"])
def test_a_frozen_grid_stays(ranges):
    x = values()
    grid = grid_of(x, SPECS["per channel"], ranges=ranges).train()
    grid.freeze()
    before = grid.scale.clone()
    grid(5 * x)
    grid.stepped()
    assert torch.equal(grid.scale, before)
    assert not any(p.requires_grad for p in grid.parameters())


def test_a_learned_scale_never_reaches_zero():
    grid = grid_of(values(), SPECS["per tensor, affine"]).train()
    with torch.no_grad():
        grid.factor.fill_(-1.0)
    grid.stepped()
    assert float(grid.scale) > 0
    assert torch.isfinite(grid(values())).all()


def test_positions_are_codes_before_rounding():
    x = values()
    for name, spec in SPECS.items():
        grid = grid_of(x, spec)
        codes = grid.positions(x).round().clamp(grid.quant_min, grid.quant_max)
        zero = spread(grid.zero_point, x, grid.group_size, grid.axis)
        back = (codes - zero) * spread(grid.scale, x, grid.group_size, grid.axis)
        assert torch.allclose(back, fake_quantize(x, grid.qparams), atol=1e-6), name
