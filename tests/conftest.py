"""What all tests share: the real case to measure on when it is there, and a home folder of their own."""

from pathlib import Path

import pytest
import torch

import qlab

ROOT = Path(__file__).resolve().parent.parent
CIFAR = ROOT.parent / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """No test writes into the store of the person who runs it."""
    monkeypatch.setenv("QLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QLAB_DB", raising=False)
    monkeypatch.delenv("QLAB_DASK", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def one_thread(_two_threads):
    """For modules of small tensors: a second thread waits more than it computes, and much longer on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_threads(_two_threads):
    """Pages take one thread for themselves; the next test gets its own back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cifar():
    """(model, calibration data, test data) of a ResNet-20; skips when the files are not beside the project."""
    if not CIFAR.exists():
        pytest.skip("the CIFAR-10 case is not beside the project")
    how = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return (
        qlab.load_model(CIFAR / "resnet20.pt2"),
        qlab.load_dataset(CIFAR / "train1024.npz", **how),
        qlab.load_dataset(CIFAR / "test1000.npz", **how),
    )


@pytest.fixture(scope="session")
def residual():
    """(model, data, calibration) of the residual sample."""
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    return model, data, qlab.calibrate(model, data)
