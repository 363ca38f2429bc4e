"""What a training may be asked for."""

import pytest

from qlab.errors import InvalidConfig
from qlab.training.settings import Training


def test_what_is_written_comes_back():
    training = Training(epochs=3, lr=0.01, ranges="lsq", patience=2, seed=5)
    assert Training.from_dict(training.to_dict()) == training


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": 1.5}, {"epochs": True}, {"lr": 0}, {"lr": float("nan")}, {"lr": "fast"},
        {"optimizer": "lion"}, {"schedule": "step"}, {"ranges": "percentile"}, {"freeze_after": 1.2},
        {"validation": 0.9}, {"distillation": -0.1}, {"patience": 0}, {"seed": -1}, {"batch_size": 0},
        {"averaging_constant": 2},
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(wrong):
    with pytest.raises(InvalidConfig, match=next(iter(wrong))):
        Training(**wrong)


def test_a_field_that_is_not_known_is_named():
    with pytest.raises(InvalidConfig, match="warmup"):
        Training.from_dict({"warmup": 3})
