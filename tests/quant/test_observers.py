"""The rules against torch.ao, against brute force and against values worked out by hand."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.config import QuantSpec
from qlab.errors import InvalidConfig
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.observers import OBSERVERS, Distribution, Grid, check_observer_args
from qlab.quant.observers.entropy import SMOOTHING, _best_cut
from qlab.quant.observers.noise import Sample
from qlab.quant.qparams import EXACT_VALUES, QParams, choose_qparams, range_to_qparams
from qlab.quant.stats import StatsCollector, stats_of

ao = pytest.importorskip("torch.ao.quantization")


def row(*values: float) -> Distribution:
    x = np.array([values], np.float32)
    return Distribution(x.min(axis=1), x.max(axis=1), x)


def squared_error(x: torch.Tensor, qp: QParams) -> float:
    return float((x.double() - fake_quantize(x, qp).double()).square().sum())


def test_registry_order_and_import_without_torch() -> None:
    assert list(OBSERVERS) == ["min_max", "moving_average", "percentile", "mse", "entropy"]
    code = "import sys, qlab.quant.observers, qlab.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_param_has_help_and_a_default_within_bounds() -> None:
    for observer in OBSERVERS.values():
        assert observer.summary.endswith(".")
        for p in observer.params:
            assert p.help.endswith(".")
            assert p.minimum <= p.default <= p.maximum


@pytest.mark.parametrize(
    ("observer", "args", "message"),
    [
        ("nonsense", {}, "use one of min_max"),
        ("min_max", {"percentile": 99}, "it has no settings"),
        ("percentile", {"percent": 99}, "it has percentile"),
        ("percentile", {"percentile": 101}, "from 50.0 to 100.0"),
        ("percentile", {"percentile": float("nan")}, "use a number"),
        ("percentile", {"percentile": True}, "use a number"),
        ("percentile", {"percentile": "99"}, "use a number"),
        ("mse", {"candidates": 40.5}, "whole number"),
    ],
)
def test_bad_settings_are_refused(observer: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        check_observer_args(observer, args)


def test_settings_are_checked_and_not_filled_in() -> None:
    assert check_observer_args("percentile", {}) == {}
    assert check_observer_args("percentile", {"percentile": 99}) == {"percentile": 99.0}
    assert check_observer_args("mse", {"candidates": np.int64(40)}) == {"candidates": 40}


# --- percentile -------------------------------------------------------------------------------------------------


def test_percentile_by_hand() -> None:
    d = row(*range(1, 101))
    rule = OBSERVERS["percentile"].rule
    low, high = rule(d, Grid(0, 255, False), percentile=90.0)
    # 5 % on either side: 95 of 100 values are at most 95, 95 of 100 are at least 6
    assert (low[0], high[0]) == (6.0, 95.0)
    low, high = rule(d, Grid(-128, 127, True), percentile=90.0)
    assert (low[0], high[0]) == (-90.0, 90.0)
    low, high = rule(d, Grid(0, 255, False), percentile=100.0)
    assert (low[0], high[0]) == (1.0, 100.0)


def test_percentile_of_a_histogram_agrees_with_the_values() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    qp = choose_qparams(x, QuantSpec(observer="percentile", observer_args={"percentile": 99.0}))
    low, high = np.quantile(x.numpy(), [0.005, 0.995])
    assert float(qp.low) == pytest.approx(low, abs=0.03)
    assert float(qp.high) == pytest.approx(high, abs=0.03)


# --- mse --------------------------------------------------------------------------------------------------------


def distributions() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    n = 20_000

    def normal(count: int = n) -> torch.Tensor:
        return torch.randn(count, generator=g)

    uniform = torch.rand(n, generator=g)
    return {
        "normal": normal(),
        "relu": normal().relu(),
        "laplace": normal().sign() * -torch.log(uniform + 1e-9),
        "student_t2": normal() / ((normal() ** 2 + normal() ** 2) / 2).sqrt(),
        "lognormal": (1.5 * normal()).exp(),
        "uniform": uniform * 2 - 1,
        "bimodal": torch.cat([normal(n // 2) * 0.1 - 1, normal(n // 2) * 0.3 + 4]),
        "outlier_1000": torch.cat([normal(100_000), torch.tensor([1000.0])]),
        "gelu": torch.nn.functional.gelu(2 * normal()),
        "pixels": torch.randint(0, 256, (n,), generator=g) / 255 * 4.4 - 2,
        "sparse": normal() * (uniform > 0.99),
        "one": torch.tensor([0.7]),
        "two": normal(2),
        "nine": normal(9),
        "hundred": normal(100),
        "constant": torch.full((50,), 3.3),
        "negative_constant": torch.full((50,), -3.3),
        "zero": torch.zeros(50),
    }


DISTRIBUTIONS = distributions()


@functools.cache
def torch_range(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of torch's HistogramObserver; its search knows neither the scheme nor the number of bits."""
    oracle = ao.HistogramObserver()
    oracle(DISTRIBUTIONS[name])
    low, high = oracle._non_linear_param_search()
    return low, high


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["affine", "symmetric"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_never_worse_than_the_histogram_observer(name: str, kind: str) -> None:
    x = DISTRIBUTIONS[name]
    stats = stats_of(x)
    for bits in (2, 3, 4, 6, 8, 16):
        spec = QuantSpec(bits, f"per_tensor_{kind}", "mse")
        scale, zero_point = range_to_qparams(
            *torch_range(name), spec.quant_min, spec.quant_max, spec.symmetric, bool(spec.signed)
        )
        theirs = squared_error(x, QParams(scale, zero_point, spec.quant_min, spec.quant_max))
        # float32 cannot tell errors below this apart
        floor = 1e-13 * float(x.double().square().sum())
        for source in (x, stats):
            from_histogram = source is stats or x.numel() > EXACT_VALUES
            # A 16-bit step is far finer than a bucket: where in its step a value falls is chance, for either observer.
            chance = 3 / float((x != 0).sum().clamp(min=1)) ** 0.5 if bits == 16 and from_histogram else 0.0
            ours = squared_error(x, choose_qparams(source, spec))
            assert ours <= (1.01 + chance) * theirs + floor, (bits, type(source).__name__)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
    st.integers(2, 8),
    st.sampled_from(["affine", "symmetric"]),
)
def test_mse_never_exceeds_min_max_on_known_values(values: list[float], bits: int, kind: str) -> None:
    x = torch.tensor(values)
    spec = QuantSpec(bits, f"per_tensor_{kind}", "mse")
    least, whole = (squared_error(x, choose_qparams(x, spec.replace(observer=o))) for o in ("mse", "min_max"))
    assert least <= whole * (1 + 1e-4) + 1e-12 * float(x.double().square().sum())


@pytest.mark.parametrize("kind", ["affine", "symmetric"])
def test_mse_error_falls_as_bits_rise(kind: str) -> None:
    x = DISTRIBUTIONS["laplace"]
    errors = [squared_error(x, choose_qparams(x, QuantSpec(b, f"per_tensor_{kind}", "mse"))) for b in range(2, 17)]
    assert errors == sorted(errors, reverse=True)


def test_mse_per_channel_is_the_best_of_a_dense_scan() -> None:
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    for bits in (2, 4, 8):
        spec = QuantSpec(bits, "per_channel_symmetric", "mse")
        qp = choose_qparams(w, spec)
        grid = Grid(spec.quant_min, spec.quant_max, True)
        full = w.abs().amax(1).numpy() / (grid.steps / 2)
        scales = np.linspace(0.2, 1.5, 4000)[:, None] * full
        sample = Sample.of(Distribution(w.amin(1).numpy(), w.amax(1).numpy(), w.numpy()))
        best = sample.squared_error(scales, np.zeros_like(scales, np.int32), grid).min(axis=0)
        ours = (w - fake_quantize(w, qp)).double().square().sum(1).numpy()
        # 8 bits on 40 values is a rugged function of the scale: the scan's luckiest of 4,000 is a few percent lower
        assert np.all(ours <= best * {2: 1.01, 4: 1.05, 8: 1.35}[bits])


def test_closed_form_of_a_bucket_is_the_mean_over_it() -> None:
    rng = np.random.default_rng(0)
    middle, width = np.float32([0.3, 1.7, 5.1]), np.float32([0.01, 0.4, 3.0])
    grid, scale, zero_point = Grid(0, 15, False), np.array([[0.25]]), np.array([[3]])
    d = Distribution(middle[:1], middle[2:], middle[None], np.array([[1.0, 2.0, 3.0]]), widths=width[None])
    x = middle[:, None] + width[:, None] * (rng.random((3, 400_000)) - 0.5)
    code = np.clip(np.rint(x / 0.25), -3, 12)
    expected = float((np.square(x - code * 0.25).mean(axis=1) * [1, 2, 3]).sum())
    for dtype in (np.float32, np.float64):
        got = Sample.of(d).squared_error(scale, zero_point, grid, dtype)[0, 0]
        assert got == pytest.approx(expected, rel=3e-3)


# --- entropy ----------------------------------------------------------------------------------------------------


def divergence(counts: np.ndarray, start: int, stop: int, levels: int) -> float:
    """KL as the calibration tools write it, one array at a time."""
    p = counts[start:stop].astype(float).copy()
    q = np.zeros_like(p)
    inside = p.copy()
    edges = (np.arange(levels + 1) * len(p)) // levels
    for a, b in itertools.pairwise(edges):
        filled = inside[a:b] > 0
        q[a:b][filled] = inside[a:b].sum() / max(filled.sum(), 1)
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    q[(p > 0) & (q == 0)] = SMOOTHING
    keep = p > 0
    return float((p[keep] / p.sum() * np.log((p[keep] / p.sum()) / (q[keep] / inside.sum()))).sum())


@pytest.mark.parametrize("folded", [True, False], ids=["one_side", "two_sides"])
@pytest.mark.parametrize("levels", [8, 32])
def test_entropy_cut_is_the_brute_force_minimum(folded: bool, levels: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.laplace(size=20_000)
    x = np.abs(x) if folded else x
    top = np.abs(x).max()
    bins = 256
    counts = np.histogram(x, bins, (0 if folded else -top, top))[0]
    half = bins if folded else bins // 2
    reach = np.unique(np.linspace(levels if folded else (levels + 1) // 2, half, 128).round().astype(int))
    windows = [(0, r) if folded else (half - r, half + r) for r in reach]
    all_kl = [divergence(counts, a, b, levels) for a, b in windows]
    got = _best_cut(counts[None].astype(float), levels, folded)[0]
    assert got == reach[int(np.argmin(all_kl))] / half


def test_entropy_cuts_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    g = torch.Generator().manual_seed(0)
    spec = QuantSpec(observer="entropy")
    heavy = torch.cat([torch.randn(50_000, generator=g), torch.tensor([60.0])])
    assert float(choose_qparams(heavy, spec).high) < 20
    flat = torch.rand(50_000, generator=g)
    assert float(choose_qparams(flat, spec).high) > 0.9


# --- any observer -----------------------------------------------------------------------------------------------

finite = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(finite, min_size=1, max_size=30),
    st.integers(2, 16),
    st.sampled_from(list(OBSERVERS)),
    st.sampled_from(["per_tensor_affine", "per_tensor_symmetric"]),
    st.booleans(),
)
def test_every_observer_gives_a_usable_grid(
    values: list[float], bits: int, observer: str, qscheme: str, narrow: bool
) -> None:
    x = torch.tensor(values)
    spec = QuantSpec(bits, qscheme, observer, narrow_range=narrow)
    collector = StatsCollector("x", samples_per_batch=10)
    collector.update(x, 0)
    collector.update(x / 2, 1)
    for source in (x, collector.finish()):
        qp = choose_qparams(source, spec)
        assert torch.isfinite(qp.scale)
        assert qp.scale > 0
        assert spec.quant_min <= int(qp.zero_point) <= spec.quant_max
        assert float(fake_quantize(torch.zeros(1), qp)) == 0.0  # zero is a code


def test_same_input_same_result() -> None:
    x = DISTRIBUTIONS["student_t2"]
    for name in OBSERVERS:
        a, b = (choose_qparams(stats_of(x), QuantSpec(4, observer=name)) for _ in range(2))
        assert torch.equal(a.scale, b.scale)
        assert torch.equal(a.zero_point, b.zero_point)
