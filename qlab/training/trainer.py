"""`train_qat`: a network trained with fake quantization in it, from the calibrated config on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlab.calibration import Calibration, Progress
from qlab.config import QConfigMapping
from qlab.conversion import QuantizedModel
from qlab.data import Dataset
from qlab.errors import DataMismatch, InvalidConfig, NonFinite
from qlab.evaluation import Evaluation, evaluate, first_tensor
from qlab.forward import pad
from qlab.graph.capture import Model
from qlab.memory import keep_freed_memory
from qlab.training.checkpoint import Checkpoint
from qlab.training.graph import TrainingNetwork
from qlab.training.hints import Hints
from qlab.training.history import Epoch, History
from qlab.training.loss import Loss
from qlab.training.record import RECORDS_PER_EPOCH, Recorder
from qlab.training.samples import Samples
from qlab.training.settings import Training

TRAIN, TEACHER = "train", "float outputs"
MOMENTUM = 0.9


def train_qat(
    model: Model, data: Dataset, mapping: QConfigMapping, calib: Calibration | None = None, *,
    training: Training | None = None, progress: Progress | None = None, checkpoint: str | Path | None = None,
    reference: Evaluation | None = None, **settings: Any,
) -> QuantizedModel:  # fmt: skip
    """Train the weights with fake quantization, on the calibration samples; a quantized model like any other.

    It starts as `convert(model, mapping, calib)`; `model` itself is not changed. Gradients pass a grid straight
    through, and are zero for what it clips. settings: fields of `Training`, such as epochs and lr, or a `training`.
    The result is the last epoch, or with samples held out the best on those, which may be the start. The same call
    gives the same bits, on the same machine with the same number of threads.
    checkpoint: a file that is written after every epoch; a call that finds it goes on from there, to the same result.
    `History.read` reads from it what happened. reference: evaluation of the float network, if it is known.
    Raises what convert raises; InvalidConfig (settings, nothing to train, a checkpoint of another training),
    DataMismatch, NonFinite when training diverges.
    """
    if training is not None and settings:
        raise InvalidConfig("give either training=Training(…) or its fields, not both.")
    given = training or Training(**settings)
    trainer = Trainer(model, data, mapping, calib, given, checkpoint=checkpoint, reference=reference)
    return trainer.run(progress)


class Trainer:
    """One training. history: what happened so far. epoch: how many are done; best: the one that is the result."""

    def __init__(
        self, model: Model, data: Dataset, mapping: QConfigMapping, calib: Calibration | None, settings: Training, *,
        checkpoint: str | Path | None = None, reference: Evaluation | None = None,
    ):  # fmt: skip
        keep_freed_memory()
        self.data, self.settings = data, settings
        self.network = TrainingNetwork(model, mapping, calib, settings)
        if not self.network.grids:
            raise InvalidConfig("this config quantizes nothing, so there is nothing to train for: choose another.")
        self.train_part, self.held_out = _held_out(data.calibration, settings)
        self.reference = reference or evaluate(model, data)
        self.loss = Loss(self.network.reference, data.targets is not None, settings.distillation)
        hints = Hints(self.network) if settings.hints else None
        self.hints = hints if hints and hints.keys else None  # of weights alone nothing in between lies on a grid
        self.batch = min(model.fixed_batch or settings.batch_size, len(self.train_part))
        if model.fixed_batch and len(self.train_part) < model.fixed_batch:
            raise DataMismatch(
                f"the model takes {model.fixed_batch} samples at once, and {len(self.train_part)} are there to train "
                "on: give more calibration samples, or hold out fewer."
            )
        whole = any(not spec.dtype.is_floating_point for spec in model.inputs)
        self.mixtures = 0 if whole else int(settings.mixing * self.batch)
        self.steps_per_epoch = len(self.train_part) // self.batch
        self.steps = self.steps_per_epoch * settings.epochs
        self.optimizer = self._optimizer()
        self.units = self.network.sizes() if settings.optimizer == "adam" else {}
        self.epoch, self.best, self.best_loss = 0, 0, math.inf
        self.best_state: dict[str, Tensor] = {}
        self.key = self._key(model, data, mapping)
        self.path = None if checkpoint is None else Path(checkpoint)
        held = len(self.held_out) if self.held_out else 0
        self._about = (settings.to_dict(), (len(self.train_part), held), len(data.evaluation), self.reference.accuracy)
        self.teacher: Tensor | None = None
        known = Checkpoint.load(self.path, self.key) if self.path is not None and self.path.exists() else None
        if known is not None:
            self._restore(known)
        self.recorder = Recorder(self.network, *self._about, known=None if known is None else known.history)
        self.finished = known is not None and known.history.finished

    @property
    def history(self) -> History:
        return self.recorder.history(self.finished)

    def run(self, progress: Progress | None = None) -> QuantizedModel:
        """To the end, from wherever it stands. Raises NonFinite, and what progress raises."""
        if not self.finished:
            self.prepare(progress)
            if not self.recorder.epochs:
                self.recorder.record(0, 0.0)
                self._end_epoch(None)
            while self.epoch < self.settings.epochs and not self._waited_long():
                self._train_epoch(progress)
            self.finished = True
            self._save()
        if progress is not None:
            progress(TRAIN, self.steps, self.steps)
        self._put(self.best_state)
        return self.network.quantized()

    # ---- one epoch ---------------------------------------------------------------------------------------------------

    def _train_epoch(self, progress: Progress | None) -> None:
        self.epoch += 1
        first = (self.epoch - 1) * self.steps_per_epoch
        losses = []
        for i, samples in enumerate(self.batches()):
            step = first + i
            if progress is not None:
                progress(TRAIN, step, self.steps)
            losses.append(self.step(step, samples))
            done = i + 1
            if done * RECORDS_PER_EPOCH // self.steps_per_epoch > i * RECORDS_PER_EPOCH // self.steps_per_epoch:
                self.recorder.record(step + 1, self.epoch - 1 + done / self.steps_per_epoch)
        self.recorder.losses += losses
        self._end_epoch(float(np.mean(losses)))

    def step(self, step: int, samples: Samples) -> float:
        """One step of the optimiser; gives the loss before it. step: how many were taken before."""
        if step >= self.settings.freeze_after * self.steps:
            for grid in self.network.grids:
                grid.freeze()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.network.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = samples.loss(self.loss, first_tensor(self.network.module(*samples.inputs)))
            if self.hints is not None:
                loss = loss + self.settings.hints * self.hints.distance(self.hints.wanted(samples.inputs))
            loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFinite(
                f"training diverged: the loss is {value} at step {step + 1}. Lower the learning rate "
                f"(it is {self.settings.lr:g}), or begin with more bits."
            )
        self._move()
        return value

    def _move(self) -> None:
        """A step of the optimiser. Adam moves every number by about its learning rate, whatever its size; here each
        moves by that share of what is usual in its channel, because folded BatchNorm leaves channels of all sizes."""
        parameters = self.network.parameters()
        before = {name: parameters[name].detach().clone() for name in self.units}
        self.optimizer.step()
        with torch.no_grad():
            for name, unit in self.units.items():
                parameters[name].copy_(torch.lerp(before[name], parameters[name], unit))
        for grid in self.network.grids:
            grid.stepped()

    def rate(self, step: int) -> float:
        """The learning rate of this step, counted from 0."""
        if self.settings.schedule == "constant":
            return self.settings.lr
        return self.settings.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def _end_epoch(self, train_loss: float | None) -> None:
        """Measure, note, and keep what there is."""
        step = self.epoch * self.steps_per_epoch
        validation = self._validation_loss()
        measured = evaluate(
            self.network.quantized(), self.data, self.reference, self.network.float_model.fixed_batch or 64,
            sqnr_samples=0,
        )  # fmt: skip
        # Without samples held out the last epoch counts.
        if validation is None or validation < self.best_loss:
            self.best, self.best_loss = self.epoch, math.inf if validation is None else validation
            self.best_state = {name: t.clone() for name, t in self._state().items()}
        low, high = measured.accuracy_interval or (None, None)
        frozen = all(bool(grid.frozen) for grid in self.network.grids)
        row = Epoch(
            self.epoch, step, self.rate(max(0, step - 1)), train_loss, validation, measured.accuracy, low, high,
            measured.agreement, frozen, self.best == self.epoch,
        )  # fmt: skip
        self.recorder.end_epoch(row)
        self._save()

    def _validation_loss(self) -> float | None:
        if self.held_out is None:
            return None
        self.network.module.eval()
        total = 0.0
        size = self.network.float_model.fixed_batch or 64
        with torch.no_grad():
            for start in range(0, len(self.held_out), size):
                _, inputs, targets = self.held_out.batch(start, size)
                count = len(inputs[0])
                if self.network.float_model.fixed_batch:
                    inputs = pad(inputs, size)
                teacher = first_tensor(self.network.reference(*inputs))[:count] if self.loss.share else None
                output = first_tensor(self.network.module(*inputs))[:count]
                total += float(self.loss(output, targets, teacher)) * count
        return total / len(self.held_out)

    def _waited_long(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.epoch - self.best >= patience

    # ---- samples -----------------------------------------------------------------------------------------------------

    def prepare(self, progress: Progress | None = None) -> None:
        """What the float network says to each training sample; asked once."""
        if not self.loss.share:
            return
        size, said = self.network.float_model.fixed_batch or 64, []
        batches = math.ceil(len(self.train_part) / size)
        for i in range(batches):
            if progress is not None:
                progress(TEACHER, i, batches)
            _, inputs, _ = self.train_part.batch(i * size, size)
            count = len(inputs[0])
            if self.network.float_model.fixed_batch:
                inputs = pad(inputs, size)
            said.append(first_tensor(self.network.reference(*inputs))[:count].clone())
        self.teacher = torch.cat(said)

    def batches(self) -> Iterator[Samples]:
        """The training samples in the order of this epoch; those that fill no batch are left out of it."""
        draw = np.random.default_rng((self.settings.seed, self.epoch))
        order = draw.permutation(len(self.train_part))
        shuffled = self.train_part.subset(order)
        for i in range(self.steps_per_epoch):
            _, inputs, targets = shuffled.batch(i * self.batch, self.batch)
            rows = order[i * self.batch : (i + 1) * self.batch]
            teacher = None if self.teacher is None else self.teacher[torch.from_numpy(rows)]
            samples = Samples(inputs, targets, teacher)
            yield samples.mixed(self.mixtures, draw, self.network.reference) if self.mixtures else samples

    # ---- state -------------------------------------------------------------------------------------------------------

    def _optimizer(self) -> torch.optim.Optimizer:
        parameters = [*self.network.parameters().values(), *self.network.factors().values()]
        if not parameters:
            raise InvalidConfig("the network has no float parameters: there is nothing to train.")
        if self.settings.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.settings.lr, momentum=MOMENTUM, fused=True)
        return torch.optim.Adam(parameters, lr=self.settings.lr, fused=True)

    def _state(self) -> dict[str, Tensor]:
        """Weights and grids, by name; the live tensors."""
        return dict(self.network.module.state_dict())

    def _put(self, state: dict[str, Tensor]) -> None:
        self.network.module.load_state_dict(state)

    def _save(self) -> None:
        if self.path is None:
            return
        tensors = {f"now.{name}": t for name, t in self._state().items()}
        tensors |= {f"best.{name}": t for name, t in self.best_state.items()}
        for number, held in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": t for name, t in held.items() if t is not None}
        state = {"best": self.best, "best_loss": None if math.isinf(self.best_loss) else self.best_loss}
        Checkpoint(self.key, self.epoch, state, tensors, self.history).save(self.path)

    def _restore(self, known: Checkpoint) -> None:
        held: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "optimizer": {}}
        for name, tensor in known.tensors.items():
            kind, rest = name.split(".", 1)
            held[kind][rest] = tensor
        self._put(held["now"])
        self.best_state = held["best"]
        self.epoch, self.best = known.epoch, known.state["best"]
        self.best_loss = math.inf if known.state["best_loss"] is None else known.state["best_loss"]
        for grid in self.network.grids:
            if grid.frozen:
                grid.freeze()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in held["optimizer"].items():
            number, slot = name.split(".", 1)
            slots.setdefault(int(number), {})[slot] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})

    def _key(self, model: Model, data: Dataset, mapping: QConfigMapping) -> str:
        digest = hashlib.sha256()
        described = json.dumps([mapping.to_dict(), self.settings.to_dict()], sort_keys=True)
        for text in (torch.__version__, model.content_hash, data.content_hash, described):
            digest.update(text.encode())
        for grid in self.network.grids:  # the calibration, by what it led to
            for held in (grid.scale, grid.zero_point, grid.low_share, grid.high_share):
                digest.update(held.numpy().tobytes())
        return digest.hexdigest()


def _held_out(part: Dataset, settings: Training) -> tuple[Dataset, Dataset | None]:
    """What is trained on, and what chooses the best epoch; None where nothing is held out."""
    held = max(1, int(len(part) * settings.validation)) if settings.validation else 0
    if len(part) - held < 1:
        raise DataMismatch("there are no samples to train on: give more calibration samples.")
    if not held:
        return part, None
    order = np.random.default_rng(settings.seed).permutation(len(part))
    return part.subset(np.sort(order[held:])), part.subset(np.sort(order[:held]))
