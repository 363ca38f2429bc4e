"""The lab without a browser: `python -m qlab run spec.json` does what the Run button does.

    python -m qlab run spec.json [--home DIR] [--json]
    python -m qlab sweep sweep.json [--home DIR] [--workers N] [--json]
    python -m qlab runs [--home DIR] [--limit N] [--json]
    python -m qlab show RUN [--home DIR] [--json]

Exit code: 0 done, 1 it could not be done (the reason is on stderr), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qlab.errors import Cancelled, QLabError
from qlab.lab.progress import Progress
from qlab.lab.store import DONE, Run, open_store
from qlab.metrics import metric, write

WORST_LAYERS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qlab", description="A laboratory for neural-network quantization.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", help="folder of runs and files; default QLAB_HOME, or .qlab here")
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command = commands.add_parser("run", parents=[common], help="carry out an experiment")
    command.add_argument(
        "spec", help="JSON file, as the Experiment page shows it, or a list of them, as Compare writes it"
    )
    command = commands.add_parser("sweep", parents=[common], help="carry out many experiments from one calibration")
    command.add_argument(
        "spec", help="JSON file: model, data, and configs or a grid; what is known already is not redone"
    )
    command.add_argument("--workers", type=int, help="so many worker processes; default: in this process")
    command = commands.add_parser("runs", parents=[common], help="list the stored runs, newest first")
    command.add_argument("--limit", type=int, default=20)
    command = commands.add_parser("show", parents=[common], help="print a stored run")
    command.add_argument("run", help="its id, or the beginning of it")
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except (Cancelled, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return 130
    except QLabError as error:
        print(f"Error: {error}", file=sys.stderr)
        if error.detail:
            print(textwrap.indent(error.detail, "  "), file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from qlab.lab.experiment import Experiment, read_spec

    given = read_spec(options.spec)
    experiments = [Experiment.from_dict(d) for d in (given if isinstance(given, list) else [given])]
    store = open_store(options.home)
    # A terminated run is a stopped one: its row must not wait for the next start to say so.
    signal.signal(signal.SIGTERM, _interrupt)
    from qlab.lab.run import run  # torch: after the spec has been found good

    done = []
    for experiment in experiments:
        with _Bar() as bar:
            done.append(run(experiment, store=store, watch=bar.show))
        if not options.json:
            print("\n" * (len(done) > 1) + "\n".join(_table(done[-1])))
    if options.json:
        told = [_as_dict(found) for found in done]
        print(json.dumps(told if isinstance(given, list) else told[0], indent=2))
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from qlab.lab.sweep import Sweep, sweep

    wanted = Sweep.load(options.spec)
    store = open_store(options.home)
    signal.signal(signal.SIGTERM, _interrupt)
    settings = {k: getattr(wanted, k) for k in wanted.__dataclass_fields__ if k not in ("model", "data", "configs")}
    with _Bar() as bar:
        runs = sweep(
            wanted.model, wanted.data, dict(wanted.configs), store=store, workers=options.workers, progress=bar.count,
            **settings,
        )  # fmt: skip
    if options.json:
        print(json.dumps({**_as_dict(runs.run), "runs": [_as_dict(run) for run in runs]}, indent=2))
        return 0
    rows = [("config", "status", "accuracy", "computed", "size", "run", "")]
    for run in sorted(runs, key=lambda run: -(run.headline.accuracy or run.headline.agreement or 0)):
        head = run.headline
        accuracy = write("accuracy", head.accuracy) if head.accuracy is not None else write("agreement", head.agreement)
        if head.accuracy_low is not None and head.accuracy_high is not None:
            accuracy += f"  {metric('accuracy').interval(head.accuracy_low, head.accuracy_high)}"
        note = run.error or head.dropped or ("best" if runs.best is not None and run.id == runs.best.id else "")
        rows.append((run.name, run.status, accuracy, head.backend or "", write("size", head.size), run.id, note))
    print("\n".join(_aligned(rows)))
    samples = runs.summary["samples"]
    print(
        f"\nsweep {runs.id}: {len(runs)} configs in {write('duration', runs.summary['seconds'])}, "
        f"{len(runs.summary['reused'])} known before; "
        f"{samples['evaluated']:,} of {samples['in_full']:,} samples evaluated."
    )
    return 0


def _runs(options: argparse.Namespace) -> int:
    runs = open_store(options.home).list_runs(options.limit)
    if options.json:
        print(json.dumps([_as_dict(run) for run in runs], indent=2))
        return 0
    rows = [("run", "started", "status", "kind", "model", "data", "config", "float", "quantized", "size", "name")]
    for run in runs:
        head = run.headline
        rows.append(
            (
                run.id,
                _when(run.created),
                run.status,
                run.kind,
                run.model,
                run.data,
                run.config[:40],
                write("accuracy", head.float_accuracy),
                write("accuracy", head.accuracy),
                write("size", head.size),
                run.name,
            )
        )
    print("\n".join(_aligned(rows)) if runs else "No runs yet. `python -m qlab run spec.json` makes one.")
    return 0


def _show(options: argparse.Namespace) -> int:
    _print(open_store(options.home).find_run(options.run), options.json)
    return 0


COMMANDS = {"run": _run, "sweep": _sweep, "runs": _runs, "show": _show}


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


class _Bar:
    """The share of the whole run on stderr, with the stage and the time left."""

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self._bar = tqdm(
            total=1.0, file=sys.stderr, bar_format="{desc:<20} {percentage:3.0f}% |{bar}|{postfix}", leave=False
        )
        return self

    def show(self, progress: Progress) -> None:
        steps = f" {progress.done}/{progress.total}" if progress.total else ""
        left = "" if progress.seconds_left is None else f", {write('duration', progress.seconds_left)} left"
        self._bar.n = progress.share
        self._bar.set_description_str(progress.stage, refresh=False)
        self._bar.set_postfix_str(steps + left, refresh=False)
        self._bar.update(0)

    def count(self, stage: str, done: int, total: int) -> None:
        self._bar.n = done / total if total else 0.0
        self._bar.set_description_str(stage[:20], refresh=False)
        self._bar.set_postfix_str(f" {done}/{total}", refresh=False)
        self._bar.update(0)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _print(run: Run, as_json: bool) -> None:
    print(json.dumps(_as_dict(run), indent=2) if as_json else "\n".join(_table(run)))


def _as_dict(run: Run) -> dict[str, Any]:
    out = {
        "id": run.id,
        "status": run.status,
        "kind": run.kind,
        "name": run.name,
        "created": run.created,
        "seconds": run.seconds,
        "model": run.model,
        "data": run.data,
        "config": run.config,
        "error": run.error,
        "accuracy": run.headline.accuracy,
        "float_accuracy": run.headline.float_accuracy,
        "agreement": run.headline.agreement,
        "size": run.headline.size,
        "float_size": run.headline.float_size,
        "spec": run.spec,
    }
    return out | ({"result": run.result} if run.result is not None else {})


def _table(run: Run) -> Iterable[str]:
    took = "" if run.seconds is None else f", {write('duration', run.seconds)}"
    rows = [
        ("run", f"{run.id}  {run.name}".rstrip()),
        ("status", f"{run.status}{took}"),
        ("started", _when(run.created)),
        ("model", run.model),
        ("data", run.data),
        ("config", run.config),
    ]
    if run.status != DONE or run.result is None:
        if run.error:
            rows.append(("reason", run.error))
        yield from _aligned(rows)
        return
    result = run.result
    rows.append(("accuracy, float", _accuracy(result["float"])))
    if "quantized" not in result:
        yield from _aligned(rows)
        return
    size, ledger = result["size"], result["ledger"]
    rows += [
        ("accuracy, quantized", f"{_accuracy(result['quantized'])}  simulated"),
        ("agreement", write("agreement", result["quantized"]["agreement"])),
        ("verdict", result["comparison"]["verdict"]),
        ("lost, gained", f"{result['comparison']['lost']}, {result['comparison']['gained']}"),
        ("size", f"{write('size', size['quantized'])} of {write('size', size['float'])} in float"),
        ("ops quantized", f"{sum(row['quantized'] for row in ledger)} of {len(ledger)}"),
    ]
    yield from _aligned(rows)
    # None is no noise at all
    sqnr = sorted((float(v), k) for k, v in result["sqnr"].items())
    if sqnr:
        yield f"\nSQNR, the {min(WORST_LAYERS, len(sqnr))} worst layers"
        yield from _aligned([(f"  {layer}", write("sqnr", value)) for value, layer in sqnr[:WORST_LAYERS]])
    stayed = Counter((row["op"], row["reason"]) for row in ledger if not row["quantized"])
    if stayed:
        yield "\nstayed float"
        yield from _aligned([(f"  {count} x {op}", reason) for (op, reason), count in stayed.most_common()])
    for rule in result["unmatched"]:
        yield f"\nNote: the rule {rule!r} matched no layer, so it did nothing."
    for finding in result["findings"]:
        yield f"\nNote: {finding['message']} {finding['remedy']}".rstrip()


def _accuracy(figures: Mapping[str, Any]) -> str:
    if figures["accuracy"] is None:
        return "no labels"
    interval = metric("accuracy").interval(*figures["accuracy_interval"])
    return f"{write('accuracy', figures['accuracy'])}  {interval} on {figures['predicted']:,}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
