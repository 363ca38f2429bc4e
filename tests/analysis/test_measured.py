"""What is added up of one network over the batches, and how it differs from another."""

import math

import numpy as np
import pytest
import torch

from qlab.analysis.measured import Held, Paired, Score, losses_of
from qlab.errors import DataMismatch
from qlab.evaluation import mcnemar, predict


def test_cross_entropy_of_one_logit_and_of_positions() -> None:
    single = torch.tensor([[0.3], [-2.0]])
    expected = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(-2.0))]
    assert losses_of(single, np.array([1, 0])) == pytest.approx(expected)
    maps = torch.randn(2, 3, 5)  # classes on axis 1
    labels = np.random.default_rng(0).integers(0, 3, (2, 5))
    last = losses_of(maps.movedim(1, -1), labels)
    assert losses_of(maps, labels) == pytest.approx(last)
    assert last[0] == pytest.approx(float(-maps[0, :, 0].double().log_softmax(0)[labels[0, 0]]))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class(label) -> None:
    with pytest.raises(DataMismatch, match=f"a label is {label}, but the model tells 3 classes apart"):
        losses_of(torch.randn(1, 3), np.array([label]))


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(DataMismatch, match="one class number for each prediction"):
        Held(torch.randn(2, 3), torch.tensor([[0, 1], [1, 0]]), 2, "batch 0")


def test_a_score_by_hand() -> None:
    held = Held(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 0, 0]), 3, "batch 0")
    base, other = Score(), Score()
    base.add(held.output, held, base=True)
    moved = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0]])
    other.add(moved, held)
    found = other.measured()
    assert (found.n, found.accuracy, found.agreement) == (3, 2 / 3, 1 / 3)
    assert found.sqnr == pytest.approx(10 * math.log10(6 / 4))
    paired = other.paired()
    assert (paired.lost, paired.gained, paired.accuracy, paired.p) == (1, 1, 0.0, mcnemar(1, 1))
    assert paired.loss == pytest.approx(0.0)
    assert paired.loss_error == pytest.approx(np.std([1, -1, 0], ddof=1) / 3**0.5)
    assert predict(moved, None, 3, "").tolist() == [1, 0, 0]


def test_beyond_chance() -> None:
    assert Paired(100, 6, 0, 0.1, 0.04).accuracy_differs
    assert not Paired(100, 5, 0, 0.1, 0.06).accuracy_differs
    assert Paired(100, 5, 0, -0.1, 0.04).loss_differs
    assert not Paired(100, 5, 0, -0.1, 0.06).loss_differs
