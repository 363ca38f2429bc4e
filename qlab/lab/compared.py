"""Runs side by side: what a table shows of each, and how two of them differ on the same samples."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from qlab.config import QConfigMapping
from qlab.difference import DEFAULT, Difference, FieldDifference, config_difference, observer_words
from qlab.errors import DataMismatch, RunFailed
from qlab.metrics import MISSING, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qlab.data import Dataset
    from qlab.evaluation import Comparison, Evaluation
    from qlab.lab.run import Result
    from qlab.lab.store import Run, Store

QUANTIZED_EVALUATION = "quantized evaluation"  # as the results of runs name it
FLOAT = "the float network"  # what a run is held against where no other run is
TIMINGS = 20  # jobs looked through for the one that timed a run


@dataclass(frozen=True)
class Line:
    """One run as a table shows it, from its row alone. Shares 0..1, sizes bytes, latency seconds of one call.

    weight_bits, activation_bits: None is float. rules: how many layers or types have one of their own. low, high: 95 %
    interval of the accuracy. backend: what accuracy and agreement were computed with. dropped: why not all samples were
    evaluated.
    """

    id: str
    name: str
    model: str
    data: str
    config: str
    mode: str
    weight_bits: int | None
    activation_bits: int | None
    weight_scheme: str
    activation_scheme: str
    weight_observer: str
    activation_observer: str
    rules: int
    backend: str | None
    accuracy: float | None
    low: float | None
    high: float | None
    float_accuracy: float | None
    delta_float: float | None
    agreement: float | None
    size: int | None
    float_size: int | None
    latency: float | None
    latency_batch: int | None
    samples: int | None
    dropped: str | None
    status: str
    created: float
    tags: tuple[str, ...]
    notes: str
    parent: str | None

    @property
    def title(self) -> str:
        """Its name, or its config and number where it has none."""
        return self.name or f"{self.config} · {self.id[:4]}"

    @property
    def worth(self) -> tuple[bool, bool, float, float]:
        """Higher is better: has a result, evaluated in full, accurate (or agreeing, without labels), small."""
        right = self.accuracy if self.accuracy is not None else self.agreement
        return right is not None, self.dropped is None, right or 0.0, -float(self.size or 0)


def line_of(run: Run) -> Line:
    """What a table shows of a run of kind "experiment"."""
    head = run.headline
    same = head.accuracy is not None and head.float_accuracy is not None and head.dropped is None
    return Line(
        id=run.id, name=run.name, model=run.model, data=run.data, config=run.config,
        **_about(_mapping_text(run.spec_json)),
        backend=head.computed if head.backend or head.samples else None,
        accuracy=head.accuracy, low=head.accuracy_low, high=head.accuracy_high, float_accuracy=head.float_accuracy,
        # Of a run that was stopped early the float figure is of other samples.
        delta_float=head.accuracy - head.float_accuracy if same else None,  # type: ignore[operator]
        agreement=head.agreement, size=head.size, float_size=head.float_size, latency=head.latency,
        latency_batch=head.latency_batch, samples=head.samples, dropped=head.dropped, status=run.status,
        created=run.created, tags=run.tags, notes=run.notes, parent=run.parent,
    )  # fmt: skip


def mapping_of(run: Run) -> QConfigMapping:
    """The config of a run, a preset looked up."""
    return _mapping(_mapping_text(run.spec_json))


def difference_of(a: Run | None, b: Run) -> Difference:
    """What two runs differ in: configs, training, numbers edited by hand. a: None for the float network."""
    found = config_difference(QConfigMapping() if a is None else mapping_of(a), mapping_of(b))
    before, after = {} if a is None else json.loads(a.spec_json), json.loads(b.spec_json)
    rows = [*found.rows]
    x, y = before.get("training"), after.get("training")
    if (x is None) != (y is None):
        rows.append(FieldDifference(DEFAULT, "training", _trained(x), _trained(y)))
    elif x is not None and y is not None:
        fields = dict.fromkeys([*x, *y])
        rows += [
            FieldDifference("training", key.replace("_", " "), str(x.get(key, MISSING)), str(y.get(key, MISSING)))
            for key in fields if x.get(key, MISSING) != y.get(key, MISSING)
        ]  # fmt: skip
    x, y = before.get("edits", []), after.get("edits", [])
    if x != y:
        rows.append(FieldDifference(DEFAULT, "numbers edited by hand", str(len(x)), str(len(y))))
    return Difference(tuple(rows))


def changes_of(run: Run) -> str:
    """What was done to the network of an experiment beside its config, as its label ends: "trained 5 epochs"; "" where
    nothing was."""
    spec = json.loads(run.spec_json) if run.kind == "experiment" else {}
    training, edits = spec.get("training"), len(spec.get("edits", []))
    done = [f"trained {_trained(training)}"] if training else []
    return " · ".join(done + ([f"{counted(edits, 'number')} edited"] if edits else []))


def _trained(training: Mapping[str, Any] | None) -> str:
    return "none" if training is None else counted(training["epochs"], "epoch")


def _mapping_text(spec: str) -> str:
    return json.dumps(json.loads(spec)["mapping"], sort_keys=True)


@lru_cache(maxsize=4096)
def _mapping(text: str) -> QConfigMapping:
    from qlab.preset import presets

    given = json.loads(text)
    return presets[given] if isinstance(given, str) else QConfigMapping.from_dict(given)


@lru_cache(maxsize=4096)
def _about(text: str) -> dict[str, Any]:
    mapping = _mapping(text)
    default, rules = mapping.default, mapping.rule_count
    weight = default.weight if default else None
    activation = default.activation if default else None

    def scheme(spec: Any) -> str:
        return spec.qscheme.replace("_", " ") if spec else ""

    return {
        "mode": default.mode.replace("_", "-") if default else "float",
        "weight_bits": weight.bits if weight else None, "activation_bits": activation.bits if activation else None,
        "weight_scheme": scheme(weight), "activation_scheme": scheme(activation),
        "weight_observer": observer_words(weight) if weight else "",
        "activation_observer": observer_words(activation) if activation else "", "rules": rules,
    }  # fmt: skip


# ---- two runs on the same samples ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two evaluations cut to the samples both have seen, and how they differ there. before: of the baseline."""

    before: Evaluation
    after: Evaluation
    comparison: Comparison

    def verdict(self, than: str) -> str:
        """The paired comparison in words, with a name for the baseline."""
        return verdict(self.comparison, than)


def paired(store: Store, run: Run, baseline: Run | None) -> Pair:
    """A run held against a baseline, sample by sample; None is the float network the run came from.

    Where one was stopped early, on the samples both have seen. Raises DataMismatch when the two were evaluated on
    different data, RunFailed when one has no result.
    """
    from qlab.evaluation import compare

    after = evaluation_of(store, run)
    if baseline is None:
        before = _evaluation(store, run, "float evaluation")
    else:
        if run.data_hash != baseline.data_hash:
            raise DataMismatch(
                f"{run.name or run.id} was evaluated on {run.data}, {baseline.name or baseline.id} on {baseline.data}, "
                "or on another split of it: only runs on the same samples can be held against each other."
            )
        before = evaluation_of(store, baseline)
    targets = labels_of(store, run)
    n = min(after.n, before.n)
    right = None if targets is None else targets[:n]
    before, after = (e if e.n == n else e.first(n, right) for e in (before, after))
    return Pair(before, after, compare(before, after, right))


def evaluation_of(store: Store, run: Run) -> Evaluation:
    """What the quantized network of a run predicted. Raises RunFailed when the run has no result."""
    return _evaluation(store, run, QUANTIZED_EVALUATION)


def _evaluation(store: Store, run: Run, which: str) -> Evaluation:
    return _read_evaluation(str(store.artifact(_result(store, run)["artifacts"][which]).path))


@lru_cache(maxsize=256)
def _read_evaluation(path: str) -> Evaluation:
    """Files are named by their content, so a path says what is in it."""
    from pathlib import Path

    from qlab.evaluation import Evaluation

    return Evaluation.from_dict(json.loads(Path(path).read_bytes()))


def _result(store: Store, run: Run) -> dict[str, Any]:
    if run.kind != "experiment":
        raise RunFailed(f"Run {run.id} is a job of kind {run.kind}, not an experiment.")
    return (run if run.result_json is not None else store.get_run(run.id)).require_result()


def labels_of(store: Store, run: Run) -> NDArray[np.int64] | None:
    """The right answers of the evaluation samples; None without labels. Reads the data of the run's spec."""
    return evaluation_data(store, run).targets


def evaluation_data(store: Store, run: Run) -> Dataset:
    """The samples a run was evaluated on. Raises what reading the data raises, and DataMismatch when the
    file is no longer what the run saw."""
    from qlab.lab.sources import open_data

    spec = run.spec
    data = open_data(spec["data"], store, spec["calibration_samples"], spec["seed"])
    # A path outlives its content: labels of another file would give a verdict that looks as good as any.
    if data.content_hash != run.data_hash:
        raise DataMismatch(
            f"{run.data} has changed since {run.name or run.id} was evaluated on it: put the old file back, or run it "
            "again on the new one."
        )
    return data.evaluation


@dataclass(frozen=True)
class Against:
    """A run held against a baseline on the samples that both have seen.

    short: the verdict in a word or two; words: in a sentence without its full stop. delta: difference of the shares of
    right answers; None without labels, or where the two cannot be paired. real: beyond chance; None where nothing can
    be said.
    """

    short: str
    words: str
    delta: float | None = None
    p: float | None = None
    real: bool | None = None

    @property
    def tone(self) -> Literal["better", "worse", "noise", ""]:
        """What colour it is told in."""
        if self.real is None:
            return ""
        return "noise" if not self.real else "better" if self.short == "better" else "worse"


IS_BASELINE = Against("baseline", "this is the baseline")


def against(comparison: Comparison, than: str) -> Against:
    """What a paired comparison came to. than: what the baseline is called."""
    words = verdict(comparison, than)
    if comparison.p is None:
        return Against(f"{comparison.changed:,} changed" if comparison.changed else "the same", words)
    delta = (comparison.gained - comparison.lost) / comparison.n
    if not comparison.significant:
        return Against("noise" if comparison.changed else "the same", words, delta, comparison.p, False)
    return Against("worse" if comparison.lost > comparison.gained else "better", words, delta, comparison.p, True)


def verdict(comparison: Comparison, than: str) -> str:
    """A paired comparison in words: than float, than the baseline of this name."""
    if comparison.p is None:
        return f"{comparison.changed} of {comparison.n:,} predictions differ from {than}"
    if comparison.changed == 0:
        return f"every prediction is that of {than} on {comparison.n:,} samples"
    p = "p < 0.0001" if comparison.p < 1e-4 else f"p = {comparison.p:.2g}"
    if not comparison.significant:
        return f"not distinguishable from {than} on {comparison.n:,} samples ({p})"
    direction = "worse" if comparison.lost > comparison.gained else "better"
    return f"{direction} than {than}, beyond chance on {comparison.n:,} samples ({p})"


# ---- several runs ----------------------------------------------------------------------------------------------------


def titles(runs: Sequence[Run]) -> dict[str, str]:
    """Run -> name or config, unlike that of any other of these runs.

    With the network where there are several, and with the beginning of its number where two are called the same.
    """
    # Two networks may have one name; of a run without a result the name is all that is known.
    several = len({run.model for run in runs}) > 1 or len({run.model_hash for run in runs if run.model_hash}) > 1
    first = {run.id: (run.name or run.config or run.id) + (f" · {run.model}" if several else "") for run in runs}
    count = Counter(first.values())
    ids = {run.id for run in runs}
    length = next(n for n in range(4, max(map(len, ids), default=0) + 5) if len({i[:n] for i in ids}) == len(ids))
    return {i: name if count[name] == 1 else f"{name} ({i[:length]})" for i, name in first.items()}


def newest_timing(store: Store, ids: Collection[str]) -> Run | None:
    """The newest job that timed one of these runs, with its result; None where there is none."""
    for job in store.list_runs(TIMINGS, kind="latency", status="done"):
        if not set(ids).isdisjoint(job.spec["experiments"]):
            return store.get_run(job.id)
    return None


def float_latency(store: Store, ids: Collection[str]) -> float | None:
    """Median seconds of a call of the float network, as it was timed beside one of these runs."""
    job = newest_timing(store, ids)
    return None if job is None else job.require_result()["latency"]["float"]["median"]


def layers_by_run(results: Sequence[Result]) -> tuple[list[str], NDArray[np.float64]]:
    """Layers in the order of the network, and their SQNR in dB: [layers, runs], NaN where a run has none."""
    import numpy as np

    layers: list[str] = []
    for result in results:
        # The ledger names every op, quantized or not: where runs quantize different layers, only it knows the order.
        order = list(dict.fromkeys(row["layer"] for row in result.ledger))
        for i, layer in enumerate(order):
            if layer not in layers:
                layers.insert(layers.index(order[i - 1]) + 1 if i else 0, layer)
    measured = {layer for result in results for layer in result.quantized.sqnr}
    layers = [layer for layer in layers if layer in measured]
    matrix = np.full((len(layers), len(results)), math.nan)
    for j, result in enumerate(results):
        for i, layer in enumerate(layers):
            matrix[i, j] = result.quantized.sqnr.get(layer, math.nan)
    return layers, matrix
