"""The staircase of fake quantization with its two slopes, and a training that goes on epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.lessons.samples import sample
from qlab.quant.fake_quant import fake_quantize
from qlab.quant.qparams import QParams, choose_qparams
from qlab.training.history import History
from qlab.training.settings import Training
from qlab.training.trainer import TRAIN, Trainer

REACH = 1.0  # the staircase covers the values from -REACH to REACH
BEYOND = 1.7  # the farthest value that is looked at
POINTS = 1_361
NEAR = 1e-4  # half the distance over which the true slope is measured

SAMPLES = ("conv_digits", "outlier_mlp")
EPOCHS = 20  # the learning rate falls to zero over these
SETTINGS = Training(epochs=EPOCHS)


# --- one weight -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Staircase:
    """Fake quantization as a function of one value.

    x, y [n]: values and what becomes of them. true [n]: (y(x + h) - y(x - h)) / 2h for a small h. through [n]: the
    gradient that the engine passes back. qparams: its grid.
    """

    qparams: QParams
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    true: NDArray[np.float32]
    through: NDArray[np.float32]

    @property
    def flat(self) -> float:
        """Share of the values at which the true slope is exactly 0."""
        return float((self.true == 0).mean())

    @property
    def kept(self) -> tuple[float, float]:
        """The lowest and the highest value that the gradient passes through."""
        passed = self.x[self.through != 0]
        return float(passed.min()), float(passed.max())


@dataclass(frozen=True)
class Step:
    """One weight on the staircase. back: its value after the grid. true, through: the two slopes there."""

    value: float
    back: float
    true: float
    through: float


@lru_cache(maxsize=8)
def staircase(bits: int) -> Staircase:
    """The symmetric grid of this many bits over -1..1, from well below to well above it."""
    qparams = choose_qparams(torch.tensor([-REACH, REACH]), QuantSpec(bits, "per_tensor_symmetric"))
    x = torch.linspace(-BEYOND, BEYOND, POINTS)
    y, true, through = _slopes(x, qparams)
    return Staircase(qparams, x.numpy(), y.numpy(), true.numpy(), through.numpy())


def at(value: float, bits: int) -> Step:
    """What becomes of this value, and both slopes there."""
    y, true, through = _slopes(torch.tensor([value]), staircase(bits).qparams)
    return Step(value, float(y), float(true), float(through))


def _slopes(x: torch.Tensor, qparams: QParams) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The engine's fake quantization of x [n], its difference quotient, and the gradient autograd gets from it."""
    given = x.clone().requires_grad_()
    with torch.enable_grad():
        y = fake_quantize(given, qparams)
        y.sum().backward()
    assert given.grad is not None
    true = (fake_quantize(x + NEAR, qparams) - fake_quantize(x - NEAR, qparams)) / (2 * NEAR)
    return y.detach(), true, given.grad


# --- a network --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trained:
    """A training as it stands at the end of an epoch. checkpoint: a file to go on from; history: what happened."""

    checkpoint: bytes
    history: History

    @property
    def epoch(self) -> int:
        return self.history.epochs[-1].epoch


@dataclass(frozen=True, eq=False)
class Verdict:
    """The network as it stands on the evaluation samples, simulated: held against PTQ and against float."""

    evaluation: Evaluation
    against_ptq: Comparison
    against_float: Comparison


class _EnoughError(Exception):
    """Ends a training at the end of an epoch; the checkpoint has been written by then."""


def mapping(weight_bits: int, activation_bits: int) -> QConfigMapping:
    """Weights per channel, activations per tensor, both ranged by least squared error."""
    return QConfigMapping(
        default=QConfig(
            weight=QuantSpec(weight_bits, "per_channel_symmetric", "mse"),
            activation=QuantSpec(activation_bits, observer="mse"),
        )
    )


@lru_cache(maxsize=12)
def start(name: str, weight_bits: int, activation_bits: int) -> Trained:
    """The network before the first step, which is PTQ; half a second."""
    return go_on(name, weight_bits, activation_bits, None, 0)


def go_on(
    name: str, weight_bits: int, activation_bits: int, before: Trained | None, epochs: int,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:  # fmt: skip
    """The training this many epochs further, up to `EPOCHS` in all; None begins it. before is not changed.

    progress: called with the steps that are done and those there will be, before each; what it raises ends the call.
    """
    wanted = min((before.epoch if before else 0) + epochs, EPOCHS)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        if before is not None:
            path.write_bytes(before.checkpoint)
        trainer = _trainer(name, weight_bits, activation_bits, path)
        first = trainer.epoch * trainer.steps_per_epoch

        def follow(stage: str, done: int, total: int) -> None:
            if stage != TRAIN:
                return
            if done >= wanted * trainer.steps_per_epoch:
                raise _EnoughError
            if progress is not None:
                progress(done - first, wanted * trainer.steps_per_epoch - first)

        try:
            trainer.run(follow)
        except _EnoughError:
            return Trained(path.read_bytes(), trainer.history)
    raise AssertionError("the last step is always told")


def verdict(name: str, weight_bits: int, activation_bits: int, trained: Trained) -> Verdict:
    """The accuracy of a training as it stands, and whether it differs beyond chance; a third of a second."""
    shown = sample(name)
    targets = shown.data.evaluation.targets
    found = _evaluated(name, weight_bits, activation_bits, trained)
    before = _before(name, weight_bits, activation_bits)
    return Verdict(found, compare(before, found, targets), compare(shown.float_evaluation, found, targets))


@lru_cache(maxsize=12)
def _before(name: str, weight_bits: int, activation_bits: int) -> Evaluation:
    return _evaluated(name, weight_bits, activation_bits, start(name, weight_bits, activation_bits))


def _evaluated(name: str, weight_bits: int, activation_bits: int, trained: Trained) -> Evaluation:
    shown = sample(name)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        path.write_bytes(trained.checkpoint)
        network = _trainer(name, weight_bits, activation_bits, path).network
    return evaluate(network.quantized(), shown.data, shown.float_evaluation, sqnr_samples=0)


def _trainer(name: str, weight_bits: int, activation_bits: int, path: Path) -> Trainer:
    shown = sample(name)
    return Trainer(
        shown.model, shown.data, mapping(weight_bits, activation_bits), shown.calibration, SETTINGS,
        checkpoint=path, reference=shown.float_evaluation,
    )  # fmt: skip
