"""Whether the integer graph is faster than the float one, and what stands in its way: rules over a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlab.metrics import percent, three_digits, write
from qlab.runtime.executed import Executed, ExecutedOp
from qlab.runtime.latency import Timing
from qlab.runtime.report import DEFAULTS, FLOAT, INTEGER, RuntimeReport, Times

Outcome = Literal["faster", "slower", "noise"]
WORTH_TELLING = 0.05  # of the time
TELLING_FLOAT = 0.15
BUSY = 0.25  # share of the machine that others take, from which times are not to be trusted
STALLED = 2.0  # times what its ops take
STARTING = 2e-4  # seconds; a call may cost that much beside its ops
_COSTLY_START = 20e-6  # seconds; no op takes longer than that to start
_NEAR_OVERHEAD = 2.0  # times what the cheapest op takes
_WEIGHT_ONLY_KERNELS = frozenset({"MatMulNBits", "GatherBlockQuantized"})


@dataclass(frozen=True)
class Speed:
    """Integer against float, turn by turn. ratio: (lower quartile, median, upper quartile) of float over integer time;
    above 1 integer is faster. noise: 1 lies between the quartiles."""

    ratio: tuple[float, float, float]

    @property
    def outcome(self) -> Outcome:
        low, _, high = self.ratio
        return "faster" if low > 1 else "slower" if high < 1 else "noise"

    @property
    def verdict(self) -> str:
        """1.18 times faster than float; not distinguishable from float."""
        if self.outcome == "noise":
            return "not distinguishable from float"
        factor = self.ratio[1] if self.outcome == "faster" else 1 / self.ratio[1]
        return f"{three_digits(factor)} times {self.outcome} than float"


def speed(timing: Timing, name: str = INTEGER) -> Speed:
    """name: INTEGER or DEFAULTS."""
    return Speed(timing.ratio(FLOAT, name))


def doubt(times: Times) -> str | None:
    """Why the times say little, if they do: others had the machine, or calls took far longer than their ops."""
    if times.busy > BUSY:
        return f"Other programs took {percent(times.busy)} of this machine when the times were taken"
    for name, ran in ((INTEGER, times.executed), (FLOAT, times.reference)):
        took = times.timing.latency(name).median
        if took > STALLED * ran.seconds + STARTING:
            return (
                f"A call of the {name} network took {write('latency', took)}, its ops {write('latency', ran.seconds)} "
                "when they were timed one by one: something else needed the machine"
            )
    return None


def why_not_faster(report: RuntimeReport, name: str = INTEGER) -> tuple[str, ...]:
    """Reasons in the order of what they cost, as sentences; none where integer is faster or nothing ran.

    name: INTEGER or DEFAULTS, the way to open the session.
    """
    times = report.times
    if times is None:
        return ()
    ran = times.defaults if name == DEFAULTS else times.executed
    assert ran is not None
    if speed(times.timing, name).outcome == "faster":
        return ()
    found = [
        _weight_only(report, ran),
        _stays_float(report, ran),
        _conversions(ran),
        _kernels(report, ran, times.reference),
        _too_small(ran),
        _exact_sums(times) if name == INTEGER else None,
    ]
    return tuple(text for text in found if text)


def _weight_only(report: RuntimeReport, ran: Executed) -> str | None:
    layers = [p for p, _ in report.kernels(ran)]
    if not layers or not all(p.mode == "weight_only" or not p.quantized for p in layers):
        return None
    if not any(p.quantized for p in layers):
        return "Nothing is quantized under this config, so both graphs compute the same in float."
    share = _share(ran, [o for o in ran.ops if _opens_weights(o)])
    return (
        "The config is weight-only: every product is computed in float, and codes of weights are turned into float "
        f"again at every call ({percent(share)} of the time is spent in ops that do so). It makes files smaller, not "
        "calls faster, unless reading the weights from memory is what takes the time."
    )


def _opens_weights(op: ExecutedOp) -> bool:
    return op.op in _WEIGHT_ONLY_KERNELS or (op.op == "DequantizeLinear" and op.name.split("/")[0].endswith(".weight"))


def _stays_float(report: RuntimeReport, ran: Executed) -> str | None:
    ops = sorted((o for o in ran.ops if o.kind == "float"), key=lambda o: -o.seconds)
    share = _share(ran, ops)
    if share < TELLING_FLOAT or not any(o.kind == "integer" for o in ran.ops):
        return None
    named = ", ".join(f"{o.layer} ({o.op}, {write('latency', o.seconds)})" for o in ops[:3])
    more = f" and {len(ops) - 3} more" if len(ops) > 3 else ""
    return f"{percent(share)} of the time goes to {_count(ops, 'op')} that stayed float: {named}{more}."


def _conversions(ran: Executed) -> str | None:
    ops = [o for o in ran.boundaries if not _opens_weights(o)]
    share = _share(ran, ops)
    if share < WORTH_TELLING:
        return None
    return (
        f"{percent(share)} of the time goes to {_count(ops, 'conversion')} between integers and float, which the float "
        "graph does not have. The tab Boundaries says which op asks for each."
    )


def _kernels(report: RuntimeReport, ran: Executed, reference: Executed) -> str | None:
    """Layer against layer: what the same products took in both graphs."""
    names = [p.layer for p, kind in report.kernels(ran) if kind == "integer" and reference.of_layer(p.layer)]
    ours = sum(o.seconds for n in names for o in ran.of_layer(n) if o.kind == "integer")
    theirs = sum(o.seconds for n in names for o in reference.of_layer(n) if o.kind == "float")
    if not names or ours - theirs < WORTH_TELLING * ran.seconds:
        return None
    cpu = report.machine.cpu
    lacking = (
        " This CPU has no VNNI, so an integer kernel needs several instructions where others need one."
        if cpu.vnni is False else ""
    )  # fmt: skip
    return (
        f"The integer kernels themselves take longer here: {write('latency', ours)}, against "
        f"{write('latency', theirs)} in float for the same {_count(names, 'layer')}.{lacking}"
    )


def _too_small(ran: Executed) -> str | None:
    least = min((o.seconds for o in ran.ops if o.seconds > 0), default=0.0)
    small = [o for o in ran.ops if o.seconds <= least * _NEAR_OVERHEAD]
    share = len(ran.ops) * least / ran.seconds if ran.seconds else 0.0
    if share < TELLING_FLOAT or least > _COSTLY_START:
        return None
    return (
        f"The ops are small: {len(small)} of {len(ran.ops)} take no more than {write('latency', least * 2)}, which is "
        "about what starting an op and writing down its time costs. A larger batch or network would tell more."
    )


def _exact_sums(times: Times) -> str | None:
    """What the entries that keep results those of the simulation cost, where that is beyond noise."""
    if DEFAULTS not in times.timing.seconds:
        return None
    low, median, _ = times.timing.ratio(INTEGER, DEFAULTS)
    if low <= 1 or median < 1 + WORTH_TELLING:
        return None
    return (
        f"Keeping the results those of the simulation costs time: with the runtime's defaults the same file is "
        f"{three_digits(median)} times faster, but then it computes something else than the simulation."
    )


def _share(ran: Executed, ops: Sequence[ExecutedOp]) -> float:
    return sum(o.seconds for o in ops) / ran.seconds if ran.seconds else 0.0


def _count(things: Sequence[object], word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"
