"""Whether the lab finds what was planted, and whether what it advises repairs it."""

from __future__ import annotations

from collections.abc import Iterator

import qlab
from benchmarks.case import Case, Row
from benchmarks.planted import CASES, PER_TENSOR


def planted(_case: Case) -> Iterator[Row]:
    named, recovered, misses = 0, {}, []
    for name, make in CASES.items():
        case = make()
        first = qlab.diagnose(case.model, case.data, case.mapping, case.calib).first
        if first is not None and first.kind == case.kind and first.tensor in case.where:
            named += 1
        else:
            misses.append(name)
        if case.repairable and first is not None and first.remedies:
            tried = qlab.try_remedies(case.model, case.data, case.mapping, first.remedies, case.calib)
            recovered[name] = max(t.recovered or 0.0 for t in tried)
    yield Row(
        "planted faults named first, on the right tensor", f"{named} of {len(CASES)}", "all", named == len(CASES),
        f"missed: {', '.join(misses)}" if misses else ", ".join(CASES),
    )  # fmt: skip
    worst = min(recovered, key=recovered.__getitem__)
    repairable = sum(make().repairable for make in CASES.values())
    yield Row(
        "lost accuracy that the best advised remedy recovers, least of all repairable faults",
        f"{100 * recovered[worst]:.0f} %", "≥ 80 %", recovered[worst] >= 0.8 and len(recovered) == repairable,
        "; ".join(f"{name} {100 * share:.0f} %" for name, share in recovered.items()),
    )  # fmt: skip


def equalisation(_case: Case) -> Iterator[Row]:
    model, data = qlab.load_model("depthwise_digits"), qlab.load_dataset("depthwise_digits")
    reference = qlab.evaluate(model, data)
    equal = PER_TENSOR.replace(equalize=True)
    plain, better = (
        qlab.evaluate(qlab.convert(model, m, qlab.calibrate(model, data, mapping=m)), data, reference)
        for m in (PER_TENSOR, equal)
    )
    assert reference.accuracy is not None
    assert plain.accuracy is not None
    assert better.accuracy is not None
    share = (better.accuracy - plain.accuracy) / (reference.accuracy - plain.accuracy)
    yield Row(
        "drop of int8 per tensor on the depthwise sample that equalising adjacent layers recovers",
        f"{100 * share:.1f} %", "≥ 80 %", share >= 0.8,
        f"float {100 * reference.accuracy:.1f} %, per tensor {100 * plain.accuracy:.1f} %, equalised "
        f"{100 * better.accuracy:.1f} %, {data.evaluation.inputs[0].shape[0]:,} samples",
    )  # fmt: skip


MEASURES = {"planted": planted, "equalisation": equalisation}
