"""What quantization does to a tensor: by hand, measured on tensors, and estimated from histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qlab.config import QuantSpec
from qlab.errors import DataMismatch, InvalidConfig, NonFinite
from qlab.quant.error import error_by_value, quantization_error, sqnr
from qlab.quant.fake_quant import fake_quantize, quantize
from qlab.quant.qparams import QParams, choose_qparams
from qlab.quant.stats import stats_of


def qparams(scale: float, zero_point: int, low: int, high: int) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), low, high)


def test_by_hand() -> None:
    # codes -2..1 at scale 1: 0.25 -> 0, 1 -> 1, 3 -> 1 (clipped), -4 -> -2 (clipped)
    e = quantization_error(torch.tensor([0.25, 1.0, 3.0, -4.0]), qparams(1.0, 0, -2, 1))
    assert e.signal == 0.0625 + 1 + 9 + 16
    assert e.roundoff == 0.0625
    assert e.clip == 4 + 4
    assert e.noise == 8.0625
    assert e.sqnr == pytest.approx(10 * math.log10(26.0625 / 8.0625))
    assert (e.clipped_share, e.clipped_energy_share) == (0.5, 25 / 26.0625)
    assert (e.levels_used, e.levels) == (3, 4)


def test_exact_is_infinite_and_zero_signal_is_not() -> None:
    e = quantization_error(torch.tensor([1.0, -2.0, 0.0]), qparams(1.0, 0, -2, 1))
    assert e.sqnr == math.inf
    zero = quantization_error(torch.zeros(3), qparams(1.0, 0, -2, 1))
    assert (zero.sqnr, zero.clipped_energy_share) == (math.inf, 0.0)
    assert sqnr(torch.zeros(2), torch.ones(2)) == -math.inf
    assert sqnr(torch.ones(2), torch.ones(2)) == math.inf
    assert sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(10 * math.log10(25))


@pytest.mark.parametrize(
    "spec",
    [QuantSpec(3, "per_channel_symmetric"), QuantSpec(4, "per_group_affine", group_size=8), QuantSpec(8), QuantSpec(2)],
    ids=str,
)
def test_a_tensor_is_measured(spec: QuantSpec) -> None:
    w = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    qp = choose_qparams(w, spec)
    e = quantization_error(w, qp)
    assert e.sqnr == pytest.approx(sqnr(w, fake_quantize(w, qp)))
    assert e.levels_used == len(quantize(w, qp).unique())


@pytest.mark.parametrize("bits", [2, 4, 8, 10])
@pytest.mark.parametrize("observer", ["min_max", "mse", "percentile"])
@pytest.mark.parametrize("kind", ["normal", "relu", "heavy"])
def test_the_histogram_tells_what_the_tensor_shows(kind: str, observer: str, bits: int) -> None:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(100_000, generator=g)
    x = {"normal": x, "relu": x.relu(), "heavy": x**3}[kind]
    stats = stats_of(x)
    qp = choose_qparams(stats, QuantSpec(bits, observer=observer))
    measured, estimated = quantization_error(x, qp), quantization_error(stats, qp)
    assert estimated.sqnr == pytest.approx(measured.sqnr, abs=0.1)
    assert estimated.signal == pytest.approx(measured.signal, rel=1e-4)
    assert estimated.roundoff == pytest.approx(measured.roundoff, rel=0.03)
    assert estimated.clip == pytest.approx(measured.clip, rel=0.1, abs=0.02 * measured.noise)
    assert estimated.clipped_share == pytest.approx(measured.clipped_share, abs=2e-3)
    assert estimated.clipped_energy_share == pytest.approx(measured.clipped_energy_share, abs=5e-3)
    assert estimated.levels_used == pytest.approx(measured.levels_used, rel=0.1)


def test_more_bits_less_error() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    for source in (x, stats_of(x)):
        noise = [quantization_error(source, choose_qparams(source, QuantSpec(b))).noise for b in range(2, 17)]
        assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize("from_stats", [True, False], ids=["stats", "tensor"])
def test_error_by_value_adds_up(from_stats: bool) -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(2))
    source = stats_of(x) if from_stats else x
    qp = choose_qparams(x, QuantSpec(4, observer="mse"))
    total, bins = quantization_error(source, qp), error_by_value(source, qp, 50)
    assert (bins.edges.shape, bins.count.shape) == ((51,), (50,))
    assert bins.roundoff.sum() == pytest.approx(total.roundoff)
    assert bins.clip.sum() == pytest.approx(total.clip)
    assert bins.count.sum() == pytest.approx(50_000)
    assert (bins.edges[0], bins.edges[-1]) == (pytest.approx(float(x.min())), pytest.approx(float(x.max())))
    inside = (bins.edges[:-1] > float(qp.low)) & (bins.edges[1:] < float(qp.high))
    assert np.all(bins.clip[inside] == pytest.approx(0.0, abs=1e-9))


def test_error_by_value_of_a_constant() -> None:
    bins = error_by_value(torch.full((4,), 2.0), qparams(1.5, 0, -8, 7), 3)
    assert bins.roundoff.tolist() == [0.0, 1.0, 0.0]


def test_what_cannot_be_measured() -> None:
    with pytest.raises(InvalidConfig, match="act: statistics do not know"):
        quantization_error(stats_of(torch.ones(2, 3), "act"), QParams(torch.ones(3), torch.zeros(3), 0, 3, 1))
    with pytest.raises(DataMismatch, match="empty"):
        quantization_error(torch.empty(0), qparams(1.0, 0, 0, 3))
    with pytest.raises(NonFinite):
        quantization_error(torch.tensor([float("nan")]), qparams(1.0, 0, 0, 3))
    with pytest.raises(NonFinite):
        sqnr(torch.tensor([float("nan")]), torch.ones(1))
    with pytest.raises(DataMismatch, match="shapes"):
        sqnr(torch.ones(2), torch.ones(3))
