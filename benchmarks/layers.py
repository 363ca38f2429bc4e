"""What it takes to find the guilty layer: each layer alone quantized, or alone float, against one evaluation each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import numpy as np

import qlab
from benchmarks.case import Case, Row, seconds
from qlab.analysis.sensitivity import MODES, PROXY_SAMPLES, Mode, Sensitivity, sensitivity

PRESET, CONFIRM, TURNS = "w4a8", 8, 3
WORDS = {"only": "each layer alone quantized", "all_but": "each layer alone float"}


def layers(case: Case) -> Iterator[Row]:
    """Over layers × one evaluation of the whole config quantized, which is taken before and after; medians of turns."""
    mapping, data = qlab.presets[PRESET], case.evaluation
    calib = qlab.calibrate(case.model, case.calibration)
    reference, qmodel = qlab.evaluate(case.model, data), qlab.convert(case.model, mapping, calib)

    def evaluated() -> float:
        return seconds(lambda: qlab.evaluate(qmodel, data, reference, sqnr_samples=0))

    evaluated()

    def measured(mode: Mode, confirm: int | None, into: list[Sensitivity]) -> None:
        into.append(sensitivity(case.model, data, mapping, calib, mode, confirm=confirm))

    for mode in MODES:
        found: list[Sensitivity] = []
        ratios: dict[int | None, list[float]] = {None: [], CONFIRM: [], 0: []}
        took: list[float] = []
        for _ in range(TURNS):
            for confirm, into in ratios.items():
                before = evaluated()
                whole = seconds(partial(measured, mode, confirm, found))
                each = (before + evaluated()) / 2
                into.append(whole / (len(found[-1]) * each))
                took += [whole] if confirm is None else []
        exact, first = found[0], found[2]
        r = statistics.median(ratios[None])
        yield Row(
            f"{WORDS[mode]}, exact / layers × one quantized evaluation", f"{r:.2f}", "≤ 0.5", r <= 0.5,
            f"{len(exact)} layers, {exact.base.n:,} samples, {PRESET}, median {statistics.median(took):.1f} s",
        )  # fmt: skip
        yield Row(
            f"{WORDS[mode]}, the {CONFIRM} worst confirmed / the same", f"{statistics.median(ratios[CONFIRM]):.2f}", "",
            None, f"all on {PROXY_SAMPLES} samples, {CONFIRM} on all; none on all: {statistics.median(ratios[0]):.2f}",
        )  # fmt: skip
        agreement = spearman([row.sqnr for row in first], [row.sqnr for row in exact])
        yield Row(
            f"{WORDS[mode]}, ranking on {PROXY_SAMPLES} samples against all (Spearman)", f"{agreement:.3f}", "≥ 0.95",
            agreement >= 0.95, f"by the output's SQNR, which goes from {_range(exact)}",
        )  # fmt: skip


def spearman(a: list[float], b: list[float]) -> float:
    """Correlation of the ranks."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _range(found: Sensitivity) -> str:
    values = [row.sqnr for row in found]
    return f"{min(values):.1f} to {max(values):.1f} dB"


MEASURES = {"sensitivity": layers}
