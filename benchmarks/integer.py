"""What runs on integers: kernels, steps between simulation and runtime, latency, size, save and load."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import qlab
from benchmarks import peers
from benchmarks.case import Case, Row, seconds
from qlab.export.onnx_file import quantized_onnx
from qlab.export.size import file_size
from qlab.export.template import export_template, keep_template
from qlab.runtime.executed import executed
from qlab.runtime.latency import time_calls
from qlab.runtime.parity import parity
from qlab.runtime.session import RuntimeOptions, float_session, integer_session, open_session

DEFAULTS = RuntimeOptions(2, as_simulated=False)
PRODUCTS = re.compile(r"conv\dd|linear")


def kernels(case: Case) -> Iterator[Row]:
    qmodel = qlab.convert(case.model, qlab.presets["x86"], qlab.calibrate(case.model, case.calibration))
    wanted = {row.layer for row in qmodel.ledger if PRODUCTS.fullmatch(row.op)}
    inputs = case.batches(case.evaluation)[0]
    ran = executed(quantized_onnx(qmodel).proto, integer_session(qmodel).feed(inputs), RuntimeOptions(2))
    integer = {op.layer for op in ran.ops if op.kind == "integer"} & wanted
    yield Row(
        "convolutions and linears that ONNX Runtime runs as integer kernels, x86", f"{len(integer)} of {len(wanted)}",
        "all", integer == wanted,
        f"{ran.share('integer'):.0%} of the time on integers, {len(ran.boundaries)} conversions to or from float",
    )  # fmt: skip


def _steps(count: float) -> str:
    return f"{count:.0f} step" + ("" if round(count) == 1 else "s")


def steps(case: Case) -> Iterator[Row]:
    """On every evaluation sample: an output within one step, and the same class."""
    calib = qlab.calibrate(case.model, case.calibration)
    inputs = tuple(torch.cat(parts) for parts in zip(*case.batches(case.evaluation), strict=True))
    for preset in ("x86", "arm", "tflite", "onnxruntime", "tensorrt", "x86_avx2"):
        qmodel = qlab.convert(case.model, qlab.presets[preset], calib)
        found = parity(qmodel, inputs)
        own = max(t.own_largest for t in found.tensors)
        differing = f"{found.tensors[-1].differing:,} of {found.tensors[-1].count:,} outputs differ"
        yield Row(
            f"simulated and integer, largest difference of an output, {preset}",
            _steps(found.output_largest), "≤ 1", found.output_largest <= 1.001,
            f"{differing}; one op by itself: {_steps(own)}",
        )  # fmt: skip
        yield Row(
            f"simulated and integer, same class, {preset}", f"{found.agreement:.2%}", "≥ 99.5 %",
            found.agreement >= 0.995, f"{found.samples:,} samples",
        )  # fmt: skip
    qmodel = qlab.convert(case.model, qlab.presets["x86"], calib)
    loose = parity(qmodel, inputs, DEFAULTS)
    yield Row(
        "the same for x86 with the defaults of ONNX Runtime", _steps(loose.output_largest), "", None,
        f"{loose.agreement:.1%} the same class" + saturating(),
    )  # fmt: skip


def saturating() -> str:
    from qlab.runtime.cpu import cpu_features

    return "; this CPU adds pairs of products in 16 bits" if cpu_features().saturates_pairs else ""


def latency(case: Case) -> Iterator[Row]:
    calib = qlab.calibrate(case.model, case.calibration)
    with tempfile.TemporaryDirectory() as folder:
        source, target = peers.onnx_model(case, Path(folder)), Path(folder) / "static.onnx"
        peers.quantize_onnx(source, target, case.batches(case.calibration), "MinMax")
        theirs = target.read_bytes()
    torch_int8 = peers.torch_int8(case)
    x86, avx2 = (qlab.convert(case.model, qlab.presets[p], calib) for p in ("x86", "x86_avx2"))
    exact = RuntimeOptions(2)
    for batch in (1, 16, 64):
        x = case.batches(case.evaluation)[0][0][:batch].contiguous()
        ours = {
            "x86, defaults": integer_session(x86, DEFAULTS),
            "x86, as simulated": integer_session(x86, exact),
            "x86_avx2": integer_session(avx2, exact),
            "float": float_session(case.model, exact),
        }
        calls: dict[str, Callable[[], Any]] = {name: (lambda s=s, x=x: s(x)) for name, s in ours.items()}
        for name, options in (("theirs, defaults", DEFAULTS), ("theirs, as simulated", exact)):
            calls[name] = peers.onnx_call(open_session(theirs, options), x)
        calls["torch"] = lambda x=x: torch_int8(x)  # type: ignore[misc]
        with torch.no_grad():
            timing = time_calls(calls, batch, 2, budget=20, most=200)
        for a, b, what, bar in (
            ("x86, defaults", "theirs, defaults", "x86 / quantize_static, both with the runtime's defaults", 1.02),
            ("x86, as simulated", "theirs, as simulated", "x86 / quantize_static, both exact", 1.02),
            ("x86_avx2", "theirs, defaults", "x86_avx2 (exact) / quantize_static with the runtime's defaults", 1.02),
            ("x86, defaults", "torch", "x86, runtime's defaults / torch.ao's x86 int8 module", 1.0),
            ("x86_avx2", "torch", "x86_avx2 (exact) / torch.ao's x86 int8 module", 1.0),
            ("x86, as simulated", "torch", "x86, exact / torch.ao's x86 int8 module", None),
            ("x86, as simulated", "float", "x86, exact / float in ONNX Runtime", None),
            ("x86_avx2", "float", "x86_avx2 (exact) / float in ONNX Runtime", None),
        ):
            low, median, high = timing.ratio(a, b)
            yield Row(
                f"latency, batch {batch}: {what}", f"{median:.2f}", "" if bar is None else f"≤ {bar}",
                None if bar is None else median <= bar,
                f"quartiles {low:.2f} and {high:.2f}; {timing.latency(a).median * 1e3:.2f} ms "
                f"and {timing.latency(b).median * 1e3:.2f} ms",
            )  # fmt: skip


def second_config(case: Case) -> Iterator[Row]:
    calib = qlab.calibrate(case.model, case.calibration)
    configs = [qlab.convert(case.model, qlab.presets[p], calib) for p in ("x86", "arm", "w4a8", "dynamic", "tflite")]
    first = seconds(lambda: (keep_template(case.model, export_template(case.model)), integer_session(configs[0])))
    rest = [seconds(lambda q=q: integer_session(q)) for q in configs[1:] * 3]  # type: ignore[misc]
    worst = max(rest)
    yield Row(
        "another config of the same model to a ready integer session", f"{statistics.median(rest) * 1e3:.0f} ms",
        "≤ 150 ms", worst <= 0.150,
        f"slowest of {len(rest)}: {worst * 1e3:.0f} ms; the first, with the export of the graph, {first:.1f} s",
    )  # fmt: skip


def size(case: Case) -> Iterator[Row]:
    calib = qlab.calibrate(case.model, case.calibration)
    for what, preset, bar in (("W8", "x86", 0.29), ("W4", "w4a8", 0.17)):
        found = file_size(qlab.convert(case.model, qlab.presets[preset], calib))
        share = found.total / found.float_file
        yield Row(
            f"size of the ONNX file, {what} per channel ({preset}) / float ONNX", f"{share:.3f}", f"≤ {bar}",
            share <= bar, f"{found.total:,} and {found.float_file:,} bytes",
        )  # fmt: skip


def saved(case: Case) -> Iterator[Row]:
    """Save, load, run: the outputs of the simulation and of the integer session, bit for bit, for every preset."""
    calib = qlab.calibrate(case.model, case.calibration)
    inputs = case.batches(case.evaluation)[0]
    equal = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in qlab.presets:
            qmodel = qlab.convert(case.model, qlab.presets[preset], calib)
            path = Path(folder) / f"{preset}.safetensors"
            qmodel.save(path)
            loaded = qlab.load_quantized(path)
            same = torch.equal(qmodel(*inputs), loaded(*inputs))
            sessions = integer_session(qmodel), integer_session(loaded)
            a, b = (s(*inputs).numpy() for s in sessions)
            equal.append(same and np.array_equal(a, b))
    yield Row(
        "save, load, run: equal bit for bit, simulated and integer", f"{sum(equal)} of {len(equal)} presets", "all",
        all(equal), f"{len(inputs[0])} samples; ONNX Runtime {onnxruntime.__version__}",
    )  # fmt: skip


MEASURES: dict[str, Callable[[Case], Iterator[Row]]] = {
    "kernels": kernels,
    "steps": steps,
    "latency": latency,
    "second_config": second_config,
    "size": size,
    "saved": saved,
}
