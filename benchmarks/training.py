"""What training with fake quantization wins back, and what a step of it costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import qlab
from benchmarks.case import Case, Row, load_sample, ratio
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.data import Dataset
from qlab.evaluation import Evaluation, first_tensor
from qlab.graph.lower import copy_graph
from qlab.training.settings import Training
from qlab.training.trainer import Trainer

SEEDS = (0, 1, 2)
LONG = Training(epochs=40, ranges="lsq", distillation=1.0, mixing=0.5, hints=0.0)


def low_bits(weight: int, activation: int, weight_observer: str = "mse", observer: str = "mse") -> QConfigMapping:
    return QConfigMapping(
        default=QConfig(
            QuantSpec(weight, "per_channel_symmetric", observer=weight_observer),
            QuantSpec(activation, "per_tensor_affine", observer=observer),
        )
    )


def recovered(_case: Case) -> Iterator[Row]:
    """The sample network, three seeds each."""
    case = load_sample()
    data = together(case.calibration, case.evaluation)
    reference = qlab.evaluate(case.model, data)
    for weight, activation in ((4, 4), (2, 4)):
        mapping = low_bits(weight, activation)
        calib = qlab.calibrate(case.model, data)
        ptq = qlab.evaluate(qlab.convert(case.model, mapping, calib), data, reference, sqnr_samples=0).accuracy
        assert ptq is not None
        shares, accuracies = [], []
        for seed in SEEDS:
            qmodel = qlab.train_qat(
                case.model, data, mapping, calib, training=LONG.replace(seed=seed), reference=reference
            )
            accuracy = qlab.evaluate(qmodel, data, reference, sqnr_samples=0).accuracy
            assert accuracy is not None
            assert reference.accuracy is not None
            accuracies.append(accuracy)
            shares.append((accuracy - ptq) / (reference.accuracy - ptq))
        median = statistics.median(shares)
        yield Row(
            f"accuracy that W{weight}A{activation} cost and training won back, sample residual_digits, median of "
            f"{len(SEEDS)} seeds",
            f"{100 * median:.0f} %", "≥ 70 %", median >= 0.7,
            f"float {100 * (reference.accuracy or 0):.1f} %, untrained {100 * ptq:.1f} %, trained "
            f"{', '.join(f'{100 * a:.1f} %' for a in accuracies)}; {LONG.epochs} epochs on {len(data.calibration)} "
            f"samples, {len(data.evaluation):,} evaluated",
        )  # fmt: skip


def fine_tuned(case: Case) -> Iterator[Row]:
    """The real network, on the images it is calibrated on and no others."""
    data = together(case.calibration, case.evaluation)
    reference = qlab.evaluate(case.model, data)
    mapping, ptq = best_untrained(case, data, reference, 4, 4)
    calib = qlab.calibrate(case.model, data, mapping=mapping)
    settings = Training(epochs=20, ranges="lsq", distillation=1.0, mixing=0.5, hints=3.0)
    qmodel = qlab.train_qat(case.model, data, mapping, calib, training=settings, reference=reference)
    result = qlab.evaluate(qmodel, data, reference, sqnr_samples=0)
    assert result.accuracy is not None
    gain = 100 * (result.accuracy - ptq)
    yield Row(
        "accuracy of W4A4 trained, above the best untrained W4A4", f"{gain:+.1f} points", "≥ +5 points", gain >= 5,
        f"{case.name}: float {100 * (reference.accuracy or 0):.1f} %, untrained {100 * ptq:.1f} % "
        f"({mapping.default}{', biases corrected' if mapping.correct_bias else ''}), trained "
        f"{100 * result.accuracy:.1f} %; {settings.epochs} epochs on {len(data.calibration):,} samples, "
        f"{len(data.evaluation):,} evaluated",
    )  # fmt: skip


def step(case: Case) -> Iterator[Row]:
    """The same samples, loss and optimiser over the folded float graph."""
    data = together(case.calibration, case.evaluation)
    calib = qlab.calibrate(case.model, data)
    for ranges, hints in (("moving_average", 0.0), ("lsq", 0.0), ("lsq", 1.0)):
        settings = Training(ranges=ranges, mixing=0.0, hints=hints, freeze_after=1.0)
        trainer = Trainer(
            case.model, data, low_bits(4, 4), calib, settings, reference=Evaluation(None, None, None, {}, 1, 1, None)
        )
        trainer.prepare()
        samples = next(trainer.batches())
        floats, _ = copy_graph(case.model.graph_module)
        for name, parameter in list(floats._parameters.items()):
            assert parameter is not None
            floats._parameters[name] = nn.Parameter(parameter.detach().clone())
        optimizer = torch.optim.Adam(floats.parameters(), lr=settings.lr)

        def float_step(
            floats: nn.Module = floats, optimizer: torch.optim.Optimizer = optimizer, trainer: Trainer = trainer
        ) -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = samples.loss(trainer.loss, first_tensor(floats(*samples.inputs)))  # noqa: B023
                loss.backward()
            float(loss.detach())
            optimizer.step()

        r, a, b = ratio(lambda: trainer.step(0, samples), float_step, repeats=15)  # noqa: B023
        words = "learned step sizes" if ranges == "lsq" else "moving ranges"
        words += ", hints from the float network, which runs beside it" if hints else ""
        bar = "" if hints else "≤ 1.8"
        yield Row(
            f"step of training / of the folded float graph, W4A4, {words}", f"{r:.2f}", bar, r <= 1.8 if bar else None,
            f"{case.name}, {settings.batch_size} samples a step, medians {1000 * a:.0f} ms and {1000 * b:.0f} ms",
        )  # fmt: skip


def best_untrained(
    case: Case, data: Dataset, reference: Evaluation, weight: int, activation: int
) -> tuple[QConfigMapping, float]:  # fmt: skip
    """Of all pairs of observers, with biases corrected and without, the most accurate on the evaluation samples."""
    found = []
    calibrations = {
        fix: qlab.calibrate(case.model, data, mapping=QConfigMapping(correct_bias=fix)) for fix in (False, True)
    }
    for weight_observer in ("min_max", "mse"):
        for observer in ("min_max", "percentile", "mse", "entropy"):
            for fix, calib in calibrations.items():
                mapping = low_bits(weight, activation, weight_observer, observer).replace(correct_bias=fix)
                qmodel = qlab.convert(case.model, mapping, calib)
                accuracy = qlab.evaluate(qmodel, data, reference, sqnr_samples=0).accuracy
                found.append((accuracy or 0.0, mapping))
    accuracy, mapping = max(found, key=lambda pair: pair[0])
    return mapping, accuracy


def together(calibration: Dataset, evaluation: Dataset) -> Dataset:
    """Two data sets as the two parts of one."""
    first, count = len(calibration), len(calibration) + len(evaluation)
    assert calibration.targets is not None
    assert evaluation.targets is not None
    return replace(
        calibration, inputs=(np.concatenate([calibration.inputs[0], evaluation.inputs[0]]),),
        targets=np.concatenate([calibration.targets, evaluation.targets]), index=np.arange(count),
        calibration_index=np.arange(first), evaluation_index=np.arange(first, count),
    )  # fmt: skip


MEASURES = {"qat": recovered, "qat_real": fine_tuned, "qat_step": step}
