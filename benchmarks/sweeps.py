"""A sweep over 24 configs beside the loop one writes with torch.ao: prepare, calibrate, convert or fake-quantize,
evaluate.

The peer calibrates for every config, because its observers are modules of the model. W8 A8 is converted to torch's int8
module; fewer bits have no kernel there and are evaluated with its fake-quantize modules. torch.ao has no percentile,
mse or entropy observer: its HistogramObserver stands for the four configs of these.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import qlab
from benchmarks.case import Case, Row, load_sample
from benchmarks.peers import as_modules
from qlab.data import Dataset
from qlab.evaluation import mcnemar
from qlab.lab.compared import evaluation_of
from qlab.lab.store import Run, Store

OBSERVERS = (
    "min_max", "moving_average", ("percentile", {"percentile": 99.9}), ("percentile", {"percentile": 99.99}), "mse",
    "entropy",
)  # fmt: skip
GRID = qlab.Grid(weight_bits=(8, 4), activation_bits=(8, 6), activation_observers=OBSERVERS)
MORE = qlab.Grid(weight_bits=(5,), activation_bits=(7,), activation_observers=OBSERVERS)


@dataclass(frozen=True)
class Peer:
    """seconds: of prepare, calibrate, convert and evaluate together."""

    seconds: float
    predictions: np.ndarray


def with_torch_ao(case: Case, weight_bits: int, activation_bits: int, observer: str) -> Peer:
    """One config, the way torch.ao's documentation does it, on FX graphs."""
    import torch.ao.quantization as tq
    from torch.ao.quantization.fake_quantize import FakeQuantize
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

    kinds: Mapping[str, Any] = {"min_max": tq.MinMaxObserver, "moving_average": tq.MovingAverageMinMaxObserver}
    of_activation = kinds.get(observer, tq.HistogramObserver)
    module, calibration, evaluation = as_modules(case), case.batches(case.calibration), case.batches(case.evaluation)
    start = time.perf_counter()
    activation = {"quant_min": 0, "quant_max": 2**activation_bits - 1, "dtype": torch.quint8}
    half = 2 ** (weight_bits - 1)
    weight = {
        "quant_min": -half, "quant_max": half - 1, "dtype": torch.qint8, "qscheme": torch.per_channel_symmetric,
        "ch_axis": 0,
    }  # fmt: skip
    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if (weight_bits, activation_bits) == (8, 8):
            config = tq.QConfig(of_activation.with_args(**activation), tq.PerChannelMinMaxObserver.with_args(**weight))
            mapping = tq.QConfigMapping().set_global(config)
            network = prepare_fx(module, mapping, calibration[0])
            for x in calibration:
                network(*x)
            network = convert_fx(network)
        else:
            config = tq.QConfig(
                FakeQuantize.with_args(observer=of_activation, reduce_range=False, **activation),
                FakeQuantize.with_args(observer=tq.PerChannelMinMaxObserver, reduce_range=False, **weight),
            )
            mapping = tq.QConfigMapping().set_global(config)
            network = prepare_qat_fx(module.train(), mapping, calibration[0]).eval()
            network.apply(tq.disable_fake_quant)
            for x in calibration:
                network(*x)
            network.apply(tq.enable_fake_quant)
            network.apply(tq.disable_observer)
        predictions = torch.cat([network(*x).argmax(1) for x in evaluation]).numpy()
    return Peer(time.perf_counter() - start, predictions)


def _key(run: Run) -> tuple[int, int, str]:
    default = qlab.QConfigMapping.from_dict(run.spec["mapping"]).default
    assert default is not None
    assert default.weight is not None
    assert default.activation is not None
    return default.weight.bits, default.activation.bits, default.activation.observer


def sweep_over_peers(case: Case) -> Iterator[Row]:
    data = _together(case)
    targets = case.evaluation.targets
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as folder:
        _warm_up(case, folder + "/first")
        # Opened anew: what other measures worked out about this network, its exported graph above all, stays with it.
        case = replace(case, model=qlab.load_model(case.archive))
        store = Store(folder)
        start = time.perf_counter()
        found = qlab.sweep(case.model, data, GRID, store=store, sqnr_samples=0)
        ours = time.perf_counter() - start
        theirs = [with_torch_ao(case, *_key(run)) for run in found]
        total = sum(peer.seconds for peer in theirs)
        yield Row(
            "24 configs: loop of torch.ao / sweep, calibration, export and float evaluation included",
            f"{total / ours:.1f} times", "≥ 8", total / ours >= 8, f"{total:.0f} s and {ours:.1f} s, one run",
        )  # fmt: skip
        worse, better, gaps = 0, 0, []
        for run, peer in zip(found, theirs, strict=True):
            predictions = evaluation_of(store, run).predictions
            assert predictions is not None
            assert targets is not None
            right, peers_right = predictions == targets, peer.predictions == targets
            lost, gained = int((peers_right & ~right).sum()), int((right & ~peers_right).sum())
            beyond_chance = mcnemar(lost, gained) < 0.05 / len(found)
            worse += beyond_chance and lost > gained
            better += beyond_chance and gained > lost
            gaps.append(float(right.mean() - peers_right.mean()))
        yield Row(
            "24 configs: worse than torch.ao beyond chance (paired, 5 % over all)", f"{worse} of 24", "0", worse == 0,
            f"better beyond chance: {better}; ours minus torch.ao's from {min(gaps):+.1%} to {max(gaps):+.1%}, "
            f"median {statistics.median(gaps):+.1%}",
        )  # fmt: skip
        each = statistics.mean(peer.seconds for peer in theirs)
        yield from _one_more(case, data, store, each)
        start = time.perf_counter()
        full = qlab.sweep(case.model, data, GRID, store=Store(folder + "/full"), sqnr_samples=64)
        with_layers = time.perf_counter() - start
        yield Row(
            "24 configs with SQNR of every layer on 64 samples: loop of torch.ao / sweep",
            f"{total / with_layers:.1f} times", "", None, f"{with_layers:.1f} s; torch.ao's loop tells accuracy alone",
        )  # fmt: skip
        start = time.perf_counter()
        raced = qlab.sweep(case.model, data, GRID, store=Store(folder + "/raced"), sqnr_samples=0, eliminate=True)
        seconds = time.perf_counter() - start
        samples = raced.summary["samples"]
        assert raced.best is not None
        assert full.best is not None
        yield Row(
            "24 configs, dropping what is worse beyond chance: samples evaluated",
            f"{samples['evaluated'] / samples['in_full']:.0%}", "", None,
            f"{seconds:.1f} s; {len(raced.summary['dropped'])} dropped; best {raced.best.name} "
            f"({raced.best.headline.accuracy:.1%}), of all {full.best.name} ({full.best.headline.accuracy:.1%})",
        )  # fmt: skip


def _one_more(case: Case, data: Dataset, store: Store, each: float) -> Iterator[Row]:
    """A 25th config, for each observer: bits that no earlier one had, so that nothing of it is known."""
    for name, mapping in MORE.configs().items():
        start = time.perf_counter()
        (run,) = qlab.sweep(case.model, data, {name: mapping}, store=store, sqnr_samples=0)
        ours = time.perf_counter() - start
        peer = with_torch_ao(case, *_key(run))
        observer = run.name.split(" · ")[-1] if "·" in run.name else name
        took = store.get_run(run.id).require_result()["timings"]
        grids, graph, kernels = (1000 * took[s] for s in ("convert", "export graph", "evaluate quantized"))
        yield Row(
            f"a 25th config, {observer}: ours / torch.ao's for the same", f"1/{peer.seconds / ours:.0f}", "≤ 1/20",
            ours <= peer.seconds / 20,
            f"{ours * 1000:.0f} ms (grids and network {grids:.0f}, ONNX graph and session {graph:.0f}, evaluation "
            f"{kernels:.0f}) and {peer.seconds:.1f} s; 1/{each / ours:.0f} of the mean of the 24, {each:.1f} s",
        )  # fmt: skip


def _warm_up(case: Case, home: str) -> None:
    """One config on each side, ours of another network: what is imported at the first use is on nobody's clock."""
    sample = load_sample()
    qlab.sweep(sample.model, _together(sample), {"first": qlab.presets["x86"]}, store=Store(home))
    with_torch_ao(case, 8, 8, "min_max")


def _together(case: Case) -> Dataset:
    """Calibration and evaluation samples as one data set with that split."""
    a, b = case.calibration, case.evaluation
    count = len(a)
    assert a.targets is not None
    assert b.targets is not None
    return replace(
        a,
        inputs=tuple(np.concatenate(pair) for pair in zip(a.inputs, b.inputs, strict=True)),
        targets=np.concatenate([a.targets, b.targets]),
        calibration_index=np.arange(count),
        evaluation_index=np.arange(count, count + len(b)),
        index=np.arange(count + len(b)),
    )


MEASURES = {"sweep": sweep_over_peers}
