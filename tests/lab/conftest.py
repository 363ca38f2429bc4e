"""Data small enough that a run takes a second: the first samples of a sample model's data."""

from pathlib import Path

import pytest

MODEL = "residual_digits"


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 96 digits: 32 calibrate, 64 evaluate."""
    from qlab.data import load_dataset

    path = tmp_path_factory.mktemp("data") / "few_digits.npz"
    load_dataset(MODEL).evaluation.subset(slice(0, 96)).split(32, seed=0).save(path)
    return path
