"""python -m benchmarks [--write] [NAME ...]: run the measures and print the table; --write puts it into the README.

Every figure is a ratio of two things measured turn by turn in one process, or a median; absolute times on a shared
machine say little.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import qlab
from benchmarks import diagnosis, integer, layers, lessons, peers, sweeps, training
from benchmarks.case import Case, Row, load_case, ratio, seconds
from qlab.config import QuantSpec

README = Path(__file__).parent / "README.md"
W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")


def calibration_over_forward(case: Case) -> Iterator[Row]:
    def plain() -> None:
        for inputs in case.batches(case.calibration):
            case.model(*inputs)

    r, a, b = ratio(lambda: qlab.calibrate(case.model, case.calibration), plain)
    yield Row(
        "calibration collecting everything / plain forward of the captured graph", f"{r:.2f}", "≤ 1.5", r <= 1.5,
        f"{len(case.calibration)} samples, medians {a:.2f} s and {b:.2f} s",
    )  # fmt: skip


def calibration_over_peers(case: Case) -> Iterator[Row]:
    batches = case.batches(case.calibration)
    for histogram in (True, False):
        # torch's histogram observer gets slower with what it has seen, so each turn starts with fresh observers
        fresh = iter([peers.prepared_pt2e(case, histogram) for _ in range(4)])

        def torch_observers(fresh: Iterator[object] = fresh) -> None:
            prepared = next(fresh)
            with torch.no_grad():
                for inputs in batches:
                    prepared(*inputs)  # type: ignore[operator]

        r, a, b = ratio(lambda: qlab.calibrate(case.model, case.calibration), torch_observers, repeats=3)
        kind = "histogram" if histogram else "min-max"
        yield Row(
            f"calibration / torch's {kind}-observer calibration (PT2E)", f"{r:.2f}", "≤ 0.33" if histogram else "",
            r <= 1 / 3 if histogram else None, f"medians {a:.2f} s and {b:.2f} s",
        )  # fmt: skip


def calibration_over_onnxruntime(case: Case) -> Iterator[Row]:
    with peers.temporary_folder() as folder:
        source = peers.onnx_model(case, Path(folder))
        for method in ("MinMax", "Entropy"):
            ours = seconds(
                lambda: qlab.convert(
                    case.model, qlab.presets["onnxruntime"], qlab.calibrate(case.model, case.calibration)
                )
            )
            theirs = seconds(
                lambda method=method: peers.quantize_onnx(  # type: ignore[misc]
                    source, Path(folder) / f"{method}.onnx", case.batches(case.calibration), method
                )
            )
            yield Row(
                f"calibrate and convert / ONNX Runtime quantize_static, {method}", f"{ours / theirs:.2f}", "", None,
                f"{ours:.2f} s and {theirs:.2f} s, one run",
            )  # fmt: skip


def memory(case: Case) -> Iterator[Row]:
    """Peak resident memory of calibrating with 8 and with 80 batches, each in a process of its own."""

    def peak(batches: int) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--peak-memory", str(batches)],
            check=True,
            capture_output=True,
            text=True,
        )
        return int(done.stdout.split()[-1])

    few, many = (statistics.median(peak(n) for _ in range(3)) for n in (8, 80))
    growth = many / few - 1
    yield Row(
        "peak memory of calibration with 10 times the batches", f"{growth:+.1%}", "≤ +5 %", growth <= 0.05,
        f"{few / 1024:.0f} MB and {many / 1024:.0f} MB for the whole process",
    )  # fmt: skip


def peak_memory(batches: int) -> None:
    case = load_case()
    size = max(1, len(case.calibration) // 80)
    qlab.calibrate(case.model, case.calibration.subset(range(size * batches)), batch_size=size)
    # not ru_maxrss: Linux hands that of the parent down to a new process
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def qparams(case: Case) -> Iterator[Row]:
    calib = qlab.calibrate(case.model, case.calibration)
    names = [r.layer for r in qlab.convert(case.model, qlab.presets["int8_weight_only"]).ledger if r.weight]
    gm = case.model.graph_module
    weights = [gm.get_parameter(str(case.model.node(n).args[1].target)).detach() for n in names]  # type: ignore[union-attr]
    for observer, bar in (
        ("min_max", 0.05),
        ("moving_average", 0.05),
        ("percentile", 0.5),
        ("mse", 0.5),
        ("entropy", 0.5),
    ):
        weight = W8 if observer == "moving_average" else W8.replace(observer=observer)
        activation = QuantSpec(observer=observer)

        def all_of_them(weight: QuantSpec = weight, activation: QuantSpec = activation) -> None:
            for name in calib:
                if name not in calib.aliases:
                    qlab.choose_qparams(calib[name], activation)
            for tensor in weights:
                qlab.choose_qparams(tensor, weight)

        all_of_them()
        time = statistics.median(seconds(all_of_them) for _ in range(7))
        yield Row(
            f"qparams of all tensors for a new config, {observer}", f"{time * 1000:.0f} ms", f"≤ {bar * 1000:.0f} ms",
            time <= bar, f"{len(calib) - len(calib.aliases)} activations, {len(weights)} weights per channel",
        )  # fmt: skip
    r = statistics.median(seconds(lambda: qlab.convert(case.model, qlab.presets["x86"], calib)) for _ in range(5))
    yield Row(
        "convert again with a calibration at hand, x86 preset",
        f"{r * 1000:.0f} ms",
        "",
        None,
        "graph and codes; grids are known from the first time",
    )


def simulated_over_float(case: Case) -> Iterator[Row]:
    calib = qlab.calibrate(case.model, case.calibration)
    batches = case.batches(case.evaluation)
    for preset in ("x86", "dynamic", "int4_weight_only"):
        qmodel = qlab.convert(case.model, qlab.presets[preset], calib)
        r, a, b = ratio(lambda q=qmodel: [q(*x) for x in batches], lambda: [case.model(*x) for x in batches])  # type: ignore[misc]
        bar = preset == "x86"
        yield Row(
            f"simulated forward / float forward, {preset}", f"{r:.2f}", "≤ 1.5" if bar else "",
            r <= 1.5 if bar else None, f"medians {a:.2f} s and {b:.2f} s on {len(case.evaluation)} samples",
        )  # fmt: skip


def evaluation_over_peers(case: Case) -> Iterator[Row]:
    calib = qlab.calibrate(case.model, case.calibration)
    qmodel = qlab.convert(case.model, qlab.presets["x86"], calib)
    prepared = peers.prepared_pt2e(case, histogram=False)
    batches = case.batches(case.evaluation)
    with torch.no_grad():
        for inputs in case.batches(case.calibration)[:2]:
            prepared(*inputs)
    reference = peers.converted_pt2e(prepared)

    def theirs() -> None:
        with torch.no_grad():
            for x in batches:
                reference(*x)

    r, a, b = ratio(lambda: [qmodel(*x) for x in batches], theirs, repeats=3)
    yield Row(
        "simulated forward / PT2E reference model (quantize, dequantize)", f"{r:.2f}", "", None,
        f"medians {a:.2f} s and {b:.2f} s",
    )  # fmt: skip


def accuracy(case: Case) -> Iterator[Row]:
    calib = qlab.calibrate(case.model, case.calibration)
    reference = qlab.evaluate(case.model, case.evaluation)
    assert reference.accuracy is not None
    yield Row("accuracy, float", f"{reference.accuracy:.1%}", "", None, case.name)
    for preset in qlab.presets:
        if preset == "float":
            continue
        result = qlab.evaluate(qlab.convert(case.model, qlab.presets[preset], calib), case.evaluation, reference)
        verdict = qlab.compare(reference, result, case.evaluation.targets).verdict
        assert result.accuracy is not None
        bar = preset == "x86" and "CIFAR" in case.name
        yield Row(
            f"accuracy, {preset}, simulated", f"{result.accuracy:.1%}", "≥ 90.9 %" if bar else "",
            result.accuracy >= 0.909 if bar else None, verdict,
        )  # fmt: skip


def mse_over_histogram_observer(case: Case) -> Iterator[Row]:
    """Squared error of our mse ranges over that of torch's HistogramObserver, on every activation of one batch."""
    from torch.ao.quantization import HistogramObserver

    values: dict[str, torch.Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            out = super().run_node(n)
            if n in case.model.names and isinstance(out, torch.Tensor) and out.is_floating_point():
                values[case.model.names[n]] = out
            return out

    with torch.no_grad():
        Keep(case.model.graph_module).run(*case.batches(case.calibration)[0])
    for bits, tested in ((8, values), (4, dict(list(values.items())[::4]))):
        spec = QuantSpec(bits=bits, observer="mse")
        worst, at = 0.0, ""
        for name, x in tested.items():
            observer = HistogramObserver(dtype=torch.quint8, quant_min=0, quant_max=2**bits - 1)
            observer(x)
            scale, zero_point = observer.calculate_qparams()
            theirs = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), 0, 2**bits - 1)
            ours = qlab.fake_quantize(x, qlab.choose_qparams(x, spec))
            error = float((x - ours).double().square().sum()) / float((x - theirs).double().square().sum())
            if error > worst:
                worst, at = error, name
        yield Row(
            f"squared error of mse / torch's HistogramObserver, {bits} bits, worst tensor", f"{worst:.3f}", "≤ 1.01",
            worst <= 1.01, f"{len(tested)} tensors of one batch; worst at {at}",
        )  # fmt: skip


MEASURES: dict[str, Callable[[Case], Iterator[Row]]] = {
    "calibration": calibration_over_forward,
    "calibration_peers": calibration_over_peers,
    "calibration_onnxruntime": calibration_over_onnxruntime,
    "memory": memory,
    "qparams": qparams,
    "simulated": simulated_over_float,
    "evaluation_peers": evaluation_over_peers,
    "mse": mse_over_histogram_observer,
    "accuracy": accuracy,
    **integer.MEASURES,
    **sweeps.MEASURES,
    **layers.MEASURES,
    **diagnosis.MEASURES,
    **training.MEASURES,
    **lessons.MEASURES,
}


def table(rows: list[Row]) -> str:
    lines = ["| what | measured | bar | met | |", "|---|---|---|---|---|"]
    for r in rows:
        met = "" if r.met is None else "yes" if r.met else "**no**"
        lines.append(f"| {r.what} | {r.value} | {r.bar} | {met} | {r.detail} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"measures to run: {', '.join(MEASURES)}; all by default")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    parser.add_argument("--peak-memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(2)
    if arguments.peak_memory:
        peak_memory(arguments.peak_memory)
        return 0
    unknown = set(arguments.names) - set(MEASURES)
    if unknown:
        parser.error(f"no measure {', '.join(unknown)}")
    case = load_case()
    rows: list[Row] = []
    for name in arguments.names or MEASURES:
        for row in MEASURES[name](case):
            print(f"{row.what}: {row.value} {row.bar and '(' + row.bar + ')'} {row.detail}", flush=True)
            rows.append(row)
    if arguments.write:
        start, end = "<!-- table -->\n", "<!-- end -->"
        text = README.read_text(encoding="utf-8")
        head, tail = text.split(start)[0], text.split(end)[1]
        README.write_text(f"{head}{start}{table(rows)}\n{end}{tail}", encoding="utf-8")
    return 0 if all(r.met is not False for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
