"""Calibrations drawn again: exact merges, honest spread, a warning where the result hangs on the sample."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.analysis.stability import Draw, Spread, Stability, stability
from qlab.errors import Cancelled, DataMismatch, InvalidConfig

STEADY = qlab.QConfigMapping(qlab.QConfig(qlab.QuantSpec(8, "per_channel_symmetric"), qlab.QuantSpec(8)))


@pytest.fixture(scope="module")
def small():
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    return model, data.split(128, 0)


def test_the_whole_is_the_calibration_of_all_its_samples(small):
    model, data = small
    found = stability(model, data, STEADY, resamples=2, evaluated=200)
    direct = qlab.convert(model, STEADY, qlab.calibrate(model, data))
    for spread in found.spreads:
        assert spread.whole == float(direct.activations[spread.tensor].scale)  # min_max does not ask for the order
    assert found.sizes == [8, 32, 128]
    assert found.evaluated == 200
    assert all(len(found.at(n)) == 2 for n in found.sizes)
    assert {s.tensor for s in found.spreads} == {k for k, p in direct.points.items() if p.kind == "observed"}


def test_a_draw_is_the_calibration_of_its_samples(small):
    """The first draw, done again with a forward pass of its own."""
    model, data = small
    found = stability(model, data, STEADY, sizes=[32], resamples=1, evaluated=64, seed=5)
    rng = np.random.default_rng(5)
    order = rng.permutation(128)
    chosen = rng.integers(0, 16, 4)
    rows = np.concatenate([np.sort(order[i * 8 : (i + 1) * 8]) for i in chosen])
    calib = qlab.calibrate(model, data.calibration.subset(rows), 8)
    direct = qlab.convert(model, STEADY, calib)
    for spread in found.spreads:
        assert spread.scales[32][0] == pytest.approx(float(direct.activations[spread.tensor].scale), rel=1e-6)


def test_the_same_seed_gives_the_same(small):
    model, data = small
    one, two = (stability(model, data, STEADY, resamples=2, evaluated=64, seed=3) for _ in range(2))
    assert one.draws == two.draws
    other = stability(model, data, STEADY, resamples=2, evaluated=64, seed=4)
    scales, others = ({s.tensor: s.scales[8] for s in found.spreads} for found in (one, other))
    assert any((scales[tensor] != others[tensor]).any() for tensor in scales)


def test_eight_bits_are_steady_and_what_hangs_on_the_sample_is_told(small):
    model, data = small
    assert stability(model, data, STEADY, evaluated=256).enough is not None
    # Nearly black samples but one: what is drawn decides.
    images = data.inputs[0].copy()
    dark = data.calibration_index[:-1]
    images[dark] = images[dark] // 60  # a single sample shows the range there is
    odd = replace(data, inputs=(images,))
    found = stability(model, odd, STEADY, sizes=[8, 16], evaluated=512)
    assert not found.steady(8)
    assert found.enough is None
    assert found.warning is not None
    assert "hangs on the sample" in found.warning


def test_without_labels_agreement_decides(small):
    model, data = small
    found = stability(model, replace(data, targets=None), STEADY, resamples=2, evaluated=128)
    assert not found.labelled
    assert all(draw.accuracy is None and draw.p is None for draw in found.draws)
    assert found.steady(128)


def test_enough_is_the_smallest_size_from_which_on_all_are_steady():
    def made(worst):
        draws = [Draw(n, a, 1.0, p) for n, (a, p) in worst.items()]
        return Stability(tuple(draws), (), 0.9, 8, 100, True)

    assert made({8: (0.5, 1e-4), 16: (0.9, 1.0), 32: (0.9, 1.0)}).enough == 16
    assert made({8: (0.9, 1.0), 16: (0.5, 1e-4), 32: (0.9, 1.0)}).enough == 32
    assert made({8: (0.9, 1.0), 16: (0.5, 1e-4)}).enough is None
    assert made({8: (0.95, 1e-4)}).enough == 8  # better than the whole is no reason to warn


def test_spread_is_relative():
    assert Spread("t", 1.0, {8: np.array([1.0, 3.0])}).relative(8) == pytest.approx(np.sqrt(2) / 2)


def test_what_cannot_be_drawn(small):
    model, data = small
    with pytest.raises(InvalidConfig, match="no range of this config"):
        stability(model, data, qlab.presets["dynamic"])
    with pytest.raises(DataMismatch, match="too few"):
        stability(model, data.split(1, 0), STEADY)

    def stop(stage, _done, _total):
        if stage == "draw calibrations":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        stability(model, data, STEADY, progress=stop)


def test_corrected_biases_and_moving_averages_are_drawn_too(small):
    model, data = small
    moving = STEADY.replace(
        default=STEADY.default.replace(activation=qlab.QuantSpec(8, observer="moving_average")), correct_bias=True
    )
    found = stability(model, data, moving, resamples=2, evaluated=64)
    assert found.whole > 0.5


class Masked(nn.Module):
    """Attention that leaves padding out."""

    def __init__(self):
        super().__init__()
        self.table, self.query, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.table(tokens)
        scores = self.query(x) @ x.transpose(-1, -2)
        scores = scores.masked_fill((tokens == 0)[:, None, :], float("-inf"))
        return self.head((torch.softmax(scores, -1) @ x).mean(1))


def test_padding_in_a_few_samples_is_no_range_in_any_draw():
    torch.manual_seed(0)
    tokens = torch.randint(1, 20, (200, 6))
    tokens[::40, 3:] = 0
    model, data = qlab.load_model(Masked().eval(), (tokens[:4],)), qlab.load_dataset(tokens.numpy())
    calib = qlab.calibrate(model, data)
    assert "masked_fill" in calib.infinite
    found = stability(model, data, STEADY, resamples=4)
    direct = qlab.convert(model, STEADY, calib)
    assert {s.tensor for s in found.spreads} == {k for k, p in direct.points.items() if p.kind == "observed"}
    assert all(len(values) == 4 for spread in found.spreads for values in spread.scales.values())


@pytest.mark.parametrize(("n", "sizes"), [(100, [6, 24, 94, 100]), (129, [8, 30, 121, 129]), (5, [1, 4, 5])])
def test_a_size_counts_the_samples_that_are_drawn(n, sizes):
    torch.manual_seed(0)
    model = qlab.load_model(nn.Linear(8, 3).eval(), torch.randn(4, 8))
    found = stability(model, qlab.load_dataset(torch.randn(n, 8).numpy()), STEADY, resamples=1)
    assert found.sizes == sizes
    assert all(set(spread.scales) == set(sizes) for spread in found.spreads)


def test_without_labels_nothing_is_said_of_chance():
    draws = (Draw(8, None, 0.8, None), Draw(8, None, 1.0, None))
    found = Stability(draws, (), 1.0, 8, 200, labelled=False)
    assert not found.steady(8)
    assert "name the same class as the whole calibration for 80.0 to 100.0 % of the samples" in found.warning
    assert "chance" not in found.warning
