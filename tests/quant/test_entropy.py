"""Zeros behind a ReLU must not talk the entropy observer into cutting the rest away."""

import numpy as np
import pytest
import torch

import qlab


@pytest.mark.parametrize("zeros", [0, 50_000, 500_000], ids=lambda z: f"{z} zeros")
@pytest.mark.parametrize("qscheme", ["per_tensor_affine", "per_tensor_symmetric"])
def test_the_mass_at_zero_does_not_move_the_cut(zeros, qscheme):
    positive = np.abs(np.random.default_rng(0).normal(size=50_000)).astype(np.float32)
    x = torch.from_numpy(np.concatenate([positive, np.zeros(zeros, np.float32)]))
    spec = qlab.QuantSpec(qscheme=qscheme, observer="entropy")
    qparams = qlab.choose_qparams(x, spec)
    assert qlab.quantization_error(x, qparams).sqnr > 30
    if zeros:
        alone = qlab.choose_qparams(torch.from_numpy(positive), spec)
        assert float(qparams.high) == pytest.approx(float(alone.high), rel=0.1)


def test_nothing_but_zeros_has_a_finite_scale():
    qparams = qlab.choose_qparams(torch.zeros(100), qlab.QuantSpec(observer="entropy"))
    assert torch.isfinite(qparams.scale)
    assert qparams.scale > 0
