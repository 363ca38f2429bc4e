"""What the integer kernels did with a model, measured on this machine, as one report.

`numbers` holds what does not depend on how calls are made (codes, accuracy, size), `times` what one batch size and one
number of threads gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlab.evaluation import Comparison, Evaluation
from qlab.export.size import FileSize
from qlab.runtime.cpu import CpuFeatures
from qlab.runtime.executed import Executed, Kind
from qlab.runtime.headroom import Headroom, Pairs
from qlab.runtime.latency import Timing
from qlab.runtime.parity import Parity

REPORT_VERSION = 3  # raise it when a report would say something else
# Names of what is timed.
FLOAT, INTEGER, DEFAULTS, TORCH = "float", "integer", "integer, runtime defaults", "float in torch"


@dataclass(frozen=True)
class Machine:
    """What it was measured on. cores: logical ones. versions: by name."""

    cpu: CpuFeatures
    cores: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Planned:
    """What the config said about one op: a row of the ledger, in short. role: see OP_TYPES."""

    layer: str
    op: str
    role: str
    quantized: bool
    mode: str | None
    reason: str


@dataclass(frozen=True)
class Accuracies:
    """On the evaluation data, without predictions. *_to_float: paired with the float network; integer_to_simulated:
    the two quantized ones with each other, `lost` where the simulated one alone is right."""

    reference: Evaluation
    simulated: Evaluation
    integer: Evaluation
    simulated_to_float: Comparison
    integer_to_float: Comparison
    integer_to_simulated: Comparison


@dataclass(frozen=True)
class Numbers:
    """parity: with the options as simulated; defaults: with the runtime's own, None where they are the same."""

    parity: Parity
    defaults: Parity | None
    headroom: tuple[Headroom, ...]
    size: FileSize
    accuracies: Accuracies


@dataclass(frozen=True)
class Times:
    """executed: the integer graph with the options as simulated; defaults: with the runtime's own; reference: the float
    graph. timings: at batch 1 and at the chosen batch, one where these are the same; torch: float in ONNX Runtime and
    in torch at the same batches, apart, because threads of torch disturb what runs beside them. busy: share of the
    machine's time that other programs took just before."""

    executed: Executed
    defaults: Executed | None
    reference: Executed
    timings: tuple[Timing, ...]
    torch: tuple[Timing, ...]
    busy: float

    @property
    def timing(self) -> Timing:
        """At the chosen batch."""
        return self.timings[-1]


@dataclass(frozen=True)
class RuntimeReport:
    """entries: of the session that results depend on, and why. inputs: names of the graph's. blocked: why the model
    cannot run in ONNX Runtime; numbers and times are None then."""

    model: str
    batch: int
    threads: int
    machine: Machine
    entries: Mapping[str, str]
    inputs: tuple[str, ...]
    plan: tuple[Planned, ...]
    numbers: Numbers | None
    times: Times | None
    blocked: str | None = None
    detail: str | None = None

    def kernels(self, ran: Executed) -> tuple[tuple[Planned, Kind | None], ...]:
        """Each layer with products (convolution, linear, recurrent) and what computed it; None where the runtime
        has no op of that name left, as when it was merged into another."""
        return tuple((p, _kernel(ran, p.layer)) for p in self.plan if p.role in ("weighted", "recurrent"))

    def to_dict(self) -> dict[str, Any]:
        """Of what JSON knows."""
        numbers, times = self.numbers, self.times
        return {
            "version": REPORT_VERSION, "model": self.model, "batch": self.batch, "threads": self.threads,
            "machine": asdict(self.machine), "entries": dict(self.entries), "inputs": list(self.inputs),
            "plan": [asdict(p) for p in self.plan], "blocked": self.blocked, "detail": self.detail,
            "numbers": None if numbers is None else numbers_to_dict(numbers),
            "times": None if times is None else times_to_dict(times),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> RuntimeReport:
        machine = d["machine"]
        return cls(
            d["model"], d["batch"], d["threads"],
            Machine(CpuFeatures(**machine["cpu"]), machine["cores"], machine["versions"]),
            d["entries"], tuple(d["inputs"]), tuple(Planned(**p) for p in d["plan"]),
            None if d["numbers"] is None else numbers_from_dict(d["numbers"]),
            None if d["times"] is None else times_from_dict(d["times"]),
            d["blocked"], d["detail"],
        )  # fmt: skip


def _kernel(ran: Executed, layer: str) -> Kind | None:
    kinds = {o.kind for o in ran.of_layer(layer)}
    return "integer" if "integer" in kinds else "float" if "float" in kinds else None


# ---- to JSON and back ------------------------------------------------------------------------------------------------


def numbers_to_dict(n: Numbers) -> dict[str, Any]:
    of = n.accuracies
    return {
        "parity": n.parity.to_dict(),
        "defaults": None if n.defaults is None else n.defaults.to_dict(),
        "headroom": [asdict(h) for h in n.headroom],
        "size": n.size.to_dict(),
        "accuracies": {name: getattr(of, name).to_dict() for name in Accuracies.__dataclass_fields__},
    }


def numbers_from_dict(d: Mapping[str, Any]) -> Numbers:
    of = d["accuracies"]
    return Numbers(
        Parity.from_dict(d["parity"]),
        None if d["defaults"] is None else Parity.from_dict(d["defaults"]),
        tuple(_headroom(h) for h in d["headroom"]),
        FileSize.from_dict(d["size"]),
        Accuracies(
            Evaluation.from_dict(of["reference"]),
            Evaluation.from_dict(of["simulated"]),
            Evaluation.from_dict(of["integer"]),
            Comparison.from_dict(of["simulated_to_float"]),
            Comparison.from_dict(of["integer_to_float"]),
            Comparison.from_dict(of["integer_to_simulated"]),
        ),
    )


def times_to_dict(t: Times) -> dict[str, Any]:
    return {
        "executed": t.executed.to_dict(),
        "defaults": None if t.defaults is None else t.defaults.to_dict(),
        "reference": t.reference.to_dict(),
        "timings": [timing.to_dict() for timing in t.timings],
        "torch": [timing.to_dict() for timing in t.torch],
        "busy": t.busy,
    }


def times_from_dict(d: Mapping[str, Any]) -> Times:
    return Times(
        Executed.from_dict(d["executed"]),
        None if d["defaults"] is None else Executed.from_dict(d["defaults"]),
        Executed.from_dict(d["reference"]),
        tuple(Timing.from_dict(t) for t in d["timings"]),
        tuple(Timing.from_dict(t) for t in d["torch"]),
        d["busy"],
    )


def _headroom(d: Mapping[str, Any]) -> Headroom:
    pairs = d["pairs"]
    if pairs is not None:
        pairs = Pairs(**{**pairs, "seen": tuple(pairs["seen"]), "possible": tuple(pairs["possible"])})
    return Headroom(**{**d, "pairs": pairs})
