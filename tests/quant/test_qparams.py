"""qparams bit for bit against torch.ao and torchao, and what has none."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig, NonFinite, NotObserved
from qlab.quant.qparams import (
    choose_qparams,
    degenerate_rows,
    dynamic_qparams,
    fixed_qparams,
    observer_ranges,
    range_to_qparams,
)
from qlab.quant.stats import StatsCollector, stats_of

RANGES = {8: (-128, 127, 0, 255), 7: (-64, 63, 0, 127), 4: (-8, 7, 0, 15), 2: (-2, 1, 0, 3)}


def oracle_modules() -> list[Any]:
    return [
        pytest.param("torch.ao.quantization.observer", id="torch.ao"),
        pytest.param("torchao.quantization.pt2e.observer", id="torchao"),
    ]


def load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return pytest.skip(f"{name} is not installed")


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.int32), b.reshape(-1).to(torch.float32).view(torch.int32))


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("oracle", oracle_modules())
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("bits", RANGES)
def test_min_max_and_moving_average_bit_for_bit(oracle: str, bits: int, symmetric: bool, signed: bool) -> None:
    module = load(oracle)
    signed_min, signed_max, unsigned_min, unsigned_max = RANGES[bits]
    low, high = (signed_min, signed_max) if signed else (unsigned_min, unsigned_max)
    kind = "symmetric" if symmetric else "affine"
    g = torch.Generator().manual_seed(bits)
    dtype = torch.qint8 if signed else torch.quint8
    # 8 bits in full go without limits, because torch's zero point for unsigned symmetric depends on who set them
    limits = {} if bits == 8 else {"quant_min": low, "quant_max": high}
    for trial in range(12):
        batches = [torch.randn(5, 6, 4, generator=g) * 10 ** (trial - 6) + trial % 3 for _ in range(4)]
        collector = StatsCollector("x", channel_axis=1)
        per_tensor = module.MinMaxObserver(dtype=dtype, qscheme=getattr(torch, f"per_tensor_{kind}"), **limits)
        average = module.MovingAverageMinMaxObserver(
            averaging_constant=0.1, dtype=dtype, qscheme=getattr(torch, f"per_tensor_{kind}"), **limits
        )
        per_channel = module.PerChannelMinMaxObserver(
            ch_axis=1, dtype=dtype, qscheme=getattr(torch, f"per_channel_{kind}"), **limits
        )
        for i, batch in enumerate(batches):
            collector.update(batch, i)
            for observer in (per_tensor, average, per_channel):
                observer(batch)
        stats = collector.finish()
        spec = QuantSpec(bits, f"per_tensor_{kind}", signed=signed)
        channels = spec.replace(qscheme=f"per_channel_{kind}")
        averaged = spec.replace(observer="moving_average", observer_args={"averaging_constant": 0.1})
        whole = torch.cat(batches)
        for qp, observer in (
            (choose_qparams(stats, spec), per_tensor),
            (choose_qparams(whole, spec), per_tensor),
            (choose_qparams(stats, averaged), average),
            (choose_qparams(stats, channels), per_channel),
            (choose_qparams(whole, channels, axis=1), per_channel),
        ):
            scale, zero_point = observer.calculate_qparams()
            assert same_bits(qp.scale, scale)
            assert qp.zero_point.reshape(-1).tolist() == zero_point.reshape(-1).tolist()


@pytest.mark.peers
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8),
    st.integers(-30_000, -1),
    st.integers(0, 30_000),
    st.booleans(),
)
def test_any_limits_affine(values: list[float], quant_min: int, quant_max: int, negate: bool) -> None:
    observer_module = load("torch.ao.quantization.observer")
    observer = observer_module.MinMaxObserver(
        dtype=torch.qint32, quant_min=quant_min, quant_max=quant_max, qscheme=torch.per_tensor_affine
    )
    x = torch.tensor(values) * (-1 if negate else 1)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    ours = range_to_qparams(x.min(), x.max(), quant_min, quant_max, symmetric=False, signed=True)
    assert same_bits(ours[0], scale)
    assert int(ours[1]) == int(zero_point)


def test_by_hand() -> None:
    scale, zero_point = range_to_qparams(
        torch.tensor([-1.0, 0.5, -3.0]), torch.tensor([2.0, 1.0, -1.0]), 0, 3, False, False
    )
    assert scale.tolist() == [1.0, np.float32(1 / 3), 1.0]  # zero is always inside the range
    assert zero_point.tolist() == [1, 0, 3]
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    scale, zero_point = range_to_qparams(torch.tensor(-1.0), torch.tensor(3.0), -8, 7, True, True)
    assert (float(scale), int(zero_point)) == (np.float32(3 / 7.5), 0)


@pytest.mark.parametrize(
    ("low", "high", "zero_point"), [(0, 255, 128), (0, 65_535, 32_768), (0, 15, 7), (1, 255, 128), (0, 127, 63)]
)
def test_unsigned_symmetric_zero_point(low: int, high: int, zero_point: int) -> None:
    assert int(range_to_qparams(torch.tensor(-1.0), torch.tensor(1.0), low, high, True, False)[1]) == zero_point


# --- shapes -----------------------------------------------------------------------------------------------------


def test_shapes_and_axis() -> None:
    w = torch.randn(6, 4, 3, 2)
    tensor, channel = choose_qparams(w, QuantSpec()), choose_qparams(w, QuantSpec(qscheme="per_channel_symmetric"), -1)
    assert (tensor.scale.shape, tensor.axis) == ((), None)
    assert (channel.scale.shape, channel.axis) == ((2,), 3)
    group = choose_qparams(w, QuantSpec(4, "per_group_symmetric", group_size=8))
    assert (group.scale.shape, group.zero_point.shape, group.axis, group.group_size) == ((6, 3), (6, 3), 0, 8)
    # a group is a run of the flattened values behind its channel
    expected = w.reshape(6, 3, 8).abs().amax(2) / 7.5
    assert torch.equal(group.scale, expected)


@pytest.mark.parametrize("observer", ["min_max", "percentile", "mse"])  # entropy takes fewer bins for many rows
@pytest.mark.parametrize("kind", ["symmetric", "affine"])
def test_rows_are_independent(observer: str, kind: str) -> None:
    w = torch.randn(9, 60, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 10)[:, None]
    spec = QuantSpec(4, f"per_channel_{kind}", observer)
    together = choose_qparams(w, spec)
    alone = [choose_qparams(row[None], spec) for row in w]
    # mse tries more neighbours when there is one row only
    tolerance = {"affine": 0.08, "symmetric": 0.02}[kind] if observer == "mse" else 0.0
    for i, qp in enumerate(alone):
        assert float(together.scale[i]) == pytest.approx(float(qp.scale), rel=tolerance, abs=0)


def test_groups_that_do_not_divide_name_those_that_do() -> None:
    with pytest.raises(InvalidConfig, match=r"27 values, which do not divide into groups of 16.*3, 9, 27"):
        choose_qparams(torch.ones(4, 3, 3, 3), QuantSpec(4, "per_group_symmetric", group_size=16))


def test_no_such_axis() -> None:
    with pytest.raises(InvalidConfig, match="no axis 4"):
        choose_qparams(torch.ones(2, 2), QuantSpec(qscheme="per_channel_symmetric"), 4)


# --- what has no range, or a poor one ---------------------------------------------------------------------------


def test_never_observed_is_an_error_with_the_name() -> None:
    with pytest.raises(NotObserved, match=r"layer1\.conv"):
        choose_qparams(StatsCollector("layer1.conv").finish(), QuantSpec())
    with pytest.raises(NotObserved, match="empty tensor"):
        choose_qparams(torch.empty(0, 3), QuantSpec())
    with pytest.raises(NotObserved, match="empty tensor"):
        dynamic_qparams(torch.empty(0), QuantSpec())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_channel_symmetric"])
def test_nonfinite_weights_are_an_error(bad: float, qscheme: str) -> None:
    with pytest.raises(NonFinite):
        choose_qparams(torch.tensor([[1.0, bad]]), QuantSpec(qscheme=qscheme))
    with pytest.raises(NonFinite):
        dynamic_qparams(torch.tensor([1.0, bad]), QuantSpec())


def test_a_range_beyond_float32_is_an_error() -> None:
    with pytest.raises(NonFinite, match="too wide"):
        choose_qparams(torch.tensor([-3e38, 3e38]), QuantSpec(2))


def test_dead_and_constant_channels_are_finite_and_told_apart() -> None:
    w = torch.stack([torch.zeros(8), torch.full((8,), 2.0), torch.linspace(-1, 1, 8)])
    for observer in ("min_max", "percentile", "mse", "entropy"):
        qp = choose_qparams(w, QuantSpec(qscheme="per_channel_symmetric", observer=observer))
        assert torch.isfinite(qp.scale).all()
        assert qp.at_floor.tolist() == [True, False, False]
    assert degenerate_rows(w.amin(1), w.amax(1)).tolist() == [True, True, False]


@pytest.mark.parametrize("observer", ["moving_average", "percentile", "mse", "entropy"])
def test_per_channel_activations_know_only_their_range(observer: str) -> None:
    stats = stats_of(torch.randn(3, 4), "act", channel_axis=1)
    assert choose_qparams(stats, QuantSpec(qscheme="per_channel_affine")).axis == 1
    with pytest.raises(InvalidConfig, match="act: per-channel activations know only their minimum and maximum"):
        choose_qparams(stats, QuantSpec(qscheme="per_channel_affine", observer=observer))


def test_groups_are_for_weights() -> None:
    with pytest.raises(InvalidConfig, match="groups are for weights"):
        choose_qparams(stats_of(torch.randn(3, 4)), QuantSpec(4, "per_group_symmetric", group_size=2))


# --- the others -------------------------------------------------------------------------------------------------


def test_all_observers_at_once() -> None:
    x = torch.randn(3, 40)
    everything = ["min_max", "moving_average", "percentile", "mse", "entropy"]
    assert list(observer_ranges(stats_of(x, channel_axis=0), QuantSpec())) == everything
    assert list(observer_ranges(x, QuantSpec(qscheme="per_channel_symmetric"))) == [
        o for o in everything if o != "moving_average"
    ]
    assert list(observer_ranges(stats_of(x, channel_axis=0), QuantSpec(qscheme="per_channel_affine"))) == ["min_max"]
    spec = QuantSpec(observer="percentile", observer_args={"percentile": 60.0})
    ranges = observer_ranges(x, spec)
    assert torch.equal(ranges["percentile"].scale, choose_qparams(x, spec).scale)
    assert torch.equal(ranges["mse"].scale, choose_qparams(x, QuantSpec(observer="mse")).scale)


@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_tensor_symmetric"])
def test_dynamic_equals_min_max_of_the_call(qscheme: str) -> None:
    x = torch.randn(50)
    for bits in (4, 8, 16):
        a, b = dynamic_qparams(x, QuantSpec(bits, qscheme)), choose_qparams(x, QuantSpec(bits, qscheme))
        assert torch.equal(a.scale, b.scale)
        assert torch.equal(a.zero_point, b.zero_point)
        assert (a.scale.dtype, a.zero_point.dtype, a.scale.shape) == (torch.float32, torch.int32, ())


def test_fixed_ranges() -> None:
    unsigned, signed = QuantSpec(), QuantSpec(signed=True)
    for op, spec, scale, zero_point in (
        ("sigmoid", unsigned, 1 / 256, 0),
        ("softmax", signed, 1 / 256, -128),
        ("tanh", unsigned, 2 / 256, 128),
        ("tanh", signed, 2 / 256, 0),
        ("sigmoid", QuantSpec(4), 1 / 16, 0),
    ):
        qp = fixed_qparams(op, spec)
        assert (float(qp.scale), int(qp.zero_point)) == (scale, zero_point)
    with pytest.raises(InvalidConfig, match="relu has no fixed range"):
        fixed_qparams("relu", unsigned)
