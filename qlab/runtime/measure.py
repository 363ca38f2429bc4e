"""Measuring a quantized model in ONNX Runtime: everything a RuntimeReport holds, on this machine, now."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import psutil
import torch
from torch import Tensor

import qlab
from qlab.errors import UnsupportedModel
from qlab.evaluation import Comparison, Evaluation, compare, evaluate
from qlab.export.onnx_file import float_onnx, quantized_onnx
from qlab.export.size import file_size
from qlab.graph.optypes import OP_TYPES
from qlab.runtime.cpu import cpu_features
from qlab.runtime.executed import executed
from qlab.runtime.headroom import headroom
from qlab.runtime.latency import Timing, time_calls
from qlab.runtime.parity import parity
from qlab.runtime.report import (
    DEFAULTS,
    FLOAT,
    INTEGER,
    TORCH,
    Accuracies,
    Machine,
    Numbers,
    Planned,
    RuntimeReport,
    Times,
)
from qlab.runtime.session import RuntimeOptions, float_session, integer_session, needed_entries
from qlab.runtime.why import BUSY

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.data import Dataset
    from qlab.graph.capture import Model

SAMPLES = 64  # that codes are compared on
BUDGET = 1.5  # seconds for the timing of one batch size
# The stages.
COMPARE, ROOM, SIMULATE, INTEGERS, PROFILE, TIME = (
    "compare codes", "accumulators", "evaluate simulated", "evaluate integer", "run op by op", "latency",
)  # fmt: skip
Progress = Callable[[str, int, int], None]


def runtime_report(
    qmodel: QuantizedModel, data: Dataset, batch: int = 32, threads: int = 2, progress: Progress | None = None, *,
    reference: Evaluation | None = None, numbers: Numbers | None = None, samples: int = SAMPLES,
    budget: float = BUDGET, batch_size: int = 64,
) -> RuntimeReport:  # fmt: skip
    """Run the model in ONNX Runtime and say what happened.

    batch, threads: of the calls that are timed. reference: evaluation of the float network, if it is known; numbers: of
    an earlier report on the same model, config and data. samples: codes are compared on so many. batch_size: of the
    evaluations. progress(stage, done, total) may raise to stop. What cannot be exported is `blocked`, not raised.
    Raises DataMismatch and NonFinite as `evaluate` does.
    """
    tell = progress or (lambda *_: None)
    report = _begun(qmodel, batch, threads)
    try:
        entries = needed_entries(qmodel)
        if numbers is None:
            numbers = measure_numbers(qmodel, data, reference, samples, batch_size, bool(entries), tell)
        times = measure_times(qmodel, data, report.batch, threads, budget, bool(entries), tell)
    except UnsupportedModel as error:
        return blocked_report(qmodel, batch, threads, error)
    return replace(report, entries=entries, numbers=numbers, times=times)


def blocked_report(qmodel: QuantizedModel, batch: int, threads: int, error: UnsupportedModel) -> RuntimeReport:
    """The report on a model that cannot run in ONNX Runtime: why, and nothing measured."""
    return replace(_begun(qmodel, batch, threads), blocked=str(error), detail=error.detail)


def _begun(qmodel: QuantizedModel, batch: int, threads: int) -> RuntimeReport:
    """What is known before anything ran."""
    plan = [Planned(r.layer, r.op, OP_TYPES[r.op].role, r.quantized, r.mode, r.reason) for r in qmodel.ledger]
    inputs = tuple(s.name for s in qmodel.inputs)
    size = batch_of(qmodel.model, batch)
    return RuntimeReport(qmodel.name, size, threads, machine(), {}, inputs, tuple(plan), None, None)


def machine() -> Machine:
    """This one."""
    versions = {
        "qlab": qlab.__version__, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__,
        "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version(),
    }  # fmt: skip
    return Machine(cpu_features(), os.cpu_count() or 1, versions)


def measure_numbers(
    qmodel: QuantizedModel, data: Dataset, reference: Evaluation | None, samples: int, batch_size: int, differ: bool,
    tell: Progress,
) -> Numbers:  # fmt: skip
    """differ: whether the runtime's defaults are looked at too."""
    tell(COMPARE, 0, 2)
    inputs = take(qmodel.model, data, samples)
    as_simulated = parity(qmodel, inputs)
    tell(COMPARE, 1, 2)
    defaults = parity(qmodel, inputs, RuntimeOptions(as_simulated=False)) if differ else None
    tell(ROOM, 0, 1)
    rows = headroom(qmodel, inputs)
    reference = reference or evaluate(qmodel.reference, data, None, batch_size, sqnr_samples=0)

    def run(backend: str, stage: str) -> Evaluation:
        def forward(_stage: str, done: int, total: int) -> None:
            tell(stage, done, total)

        return evaluate(qmodel, data, reference, batch_size, backend, forward, sqnr_samples=0)

    simulated, integer = run("simulated", SIMULATE), run("integer", INTEGERS)

    def paired(a: Evaluation, b: Evaluation) -> Comparison:
        # without the places, which may be many
        made = compare(a, b, data.evaluation.targets)
        return replace(made, lost_indices=(), gained_indices=(), changed_indices=())

    def figures(e: Evaluation) -> Evaluation:
        return replace(e, predictions=None, sqnr={})

    accuracies = Accuracies(
        figures(reference), figures(simulated), figures(integer),
        paired(reference, simulated), paired(reference, integer), paired(simulated, integer),
    )  # fmt: skip
    return Numbers(as_simulated, defaults, tuple(rows), file_size(qmodel), accuracies)


def measure_times(
    qmodel: QuantizedModel, data: Dataset, batch: int, threads: int, budget: float, differ: bool, tell: Progress
) -> Times:  # fmt: skip
    """differ: whether the runtime's defaults are looked at too."""
    model = qmodel.model
    options = RuntimeOptions(threads)
    plain = RuntimeOptions(threads, as_simulated=False) if differ else None
    inputs = take(model, data, batch)
    graph, float_graph = quantized_onnx(qmodel).proto, float_onnx(model).proto
    feed = {s.name: x.numpy() for s, x in zip(model.inputs, inputs, strict=True)}
    tell(PROFILE, 0, 3)
    busy = wait_for_quiet()
    integer = executed(graph, feed, options.for_model(qmodel))
    tell(PROFILE, 1, 3)
    reference = executed(float_graph, feed, options)
    tell(PROFILE, 2, 3)
    defaults = None if plain is None else executed(graph, feed, plain)
    sessions: dict[str, Callable[..., Any]] = {
        FLOAT: float_session(model, options), INTEGER: integer_session(qmodel, options)
    }  # fmt: skip
    if plain is not None:
        sessions[DEFAULTS] = integer_session(qmodel, plain)
    sizes = sorted({batch_of(model, 1), batch})

    def timed(networks: dict[str, Callable[..., Any]], share: float, begun: int) -> tuple[Timing, ...]:
        """share: of the budget; begun: batches timed before, for the progress."""
        made = []
        for number, size in enumerate(sizes, begun):
            x = take(model, data, size)
            calls = {name: call_of(network, x) for name, network in networks.items()}

            def turn(done: int, total: int, before: int = number) -> None:
                tell(TIME, round(100 * (before + done / total)), 200 * len(sizes))

            made.append(time_calls(calls, size, threads, budget=budget * share, progress=turn))
        return tuple(made)

    timings = timed(sessions, 0.8, 0)
    with torch_threads(threads):
        in_torch = timed({FLOAT: sessions[FLOAT], TORCH: model}, 0.2, len(sizes))
    return Times(integer, defaults, reference, timings, in_torch, busy)


def wait_for_quiet() -> float:
    """Share of the machine's time that others take, after a wait of two seconds at most for them to stop: threads of
    this process that still spin for the next evaluation batch are among them."""
    for _ in range(8):
        busy = psutil.cpu_percent(interval=0.25) / 100
        if busy <= BUSY:
            break
    return busy


def batch_of(model: Model, wanted: int) -> int:
    """The batch size nearest to this one that the graph takes."""
    if model.fixed_batch:
        return model.fixed_batch
    ends = [(s.minimum[0], s.maximum[0]) for s in model.inputs if s.shape]
    wanted = max([wanted, *(low for low, _ in ends)])
    return min([wanted, *(high for _, high in ends if high is not None)])


def take(model: Model, data: Dataset, count: int) -> tuple[Tensor, ...]:
    """The first samples of the evaluation data, from the start again where there are fewer."""
    part, size = data.evaluation, batch_of(model, count)
    return next(iter(part.subset(np.arange(size) % len(part)).batches(size)))[1]


def call_of(session: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    return lambda: session(*inputs)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch with as many threads as the sessions."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
