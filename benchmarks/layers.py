"""What it takes to find the guilty layer: each layer alone quantized, or alone float, against one evaluation each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import numpy as np

import qlab
from benchmarks.case import Case, Row, seconds
from qlab.analysis.sensitivity import MODES, PROXY_SAMPLES, Mode, Sensitivity, sensitivity

PRESET, CLOSE, CONFIRM, TURNS = "w4a8", "x86", 8, 5  # CLOSE: one whose layers lie close together
WORDS = {"only": "each layer alone quantized", "all_but": "each layer alone float"}


def layers(case: Case) -> Iterator[Row]:
    """Over layers × one evaluation of the whole config quantized, which is taken before and after; medians of turns."""
    mapping, data = qlab.presets[PRESET], case.evaluation
    calib = qlab.calibrate(case.model, case.calibration)
    reference, qmodel = qlab.evaluate(case.model, data), qlab.convert(case.model, mapping, calib)

    def evaluated() -> float:
        return seconds(lambda: qlab.evaluate(qmodel, data, reference, sqnr_samples=0))

    def ranked(preset: str, mode: Mode, confirm: int | None) -> Sensitivity:
        return sensitivity(case.model, data, qlab.presets[preset], calib, mode, confirm=confirm)

    evaluated()
    for mode in MODES:
        exact, first = ranked(PRESET, mode, None), ranked(PRESET, mode, 0)
        ratios: dict[int | None, list[float]] = {None: [], CONFIRM: [], 0: []}
        took: list[float] = []
        floats: list[float] = []
        for _ in range(TURNS):
            floats.append(seconds(lambda: qlab.evaluate(case.model, data)))
            for confirm, into in ratios.items():
                before = evaluated()
                whole = seconds(partial(ranked, PRESET, mode, confirm))
                into.append(whole / len(exact) / ((before + evaluated()) / 2))
                took += [whole] if confirm is None else []
        r, of_all = statistics.median(ratios[None]), ratios[None]
        over_float = statistics.median(took) / len(exact) / statistics.median(floats)
        yield Row(
            f"{WORDS[mode]}, exact / layers × one quantized evaluation", f"{r:.2f}", "≤ 0.5", r <= 0.5,
            f"{len(exact)} layers, {exact.base.n:,} samples, {PRESET}, median {statistics.median(took):.1f} s; "
            f"{TURNS} turns: {min(of_all):.2f} to {max(of_all):.2f}; over float evaluations {over_float:.2f}",
        )  # fmt: skip
        yield Row(
            f"{WORDS[mode]}, the {CONFIRM} worst confirmed / the same", f"{statistics.median(ratios[CONFIRM]):.2f}", "",
            None, f"all on {first[0].n} samples, {CONFIRM} on all; none on all: {statistics.median(ratios[0]):.2f}",
        )  # fmt: skip
        for preset in (PRESET, CLOSE):
            if preset == CLOSE:
                exact, first = ranked(CLOSE, mode, None), ranked(CLOSE, mode, 0)
            agreement = spearman([row.sqnr for row in first], [row.sqnr for row in exact])
            yield Row(
                f"{WORDS[mode]}, {preset}: ranking before any is confirmed against all samples (Spearman)",
                f"{agreement:.3f}", "≥ 0.95", agreement >= 0.95,
                f"needed {first[0].n:,} samples, at least {PROXY_SAMPLES}; by the output's SQNR, which goes from "
                f"{_range(exact)}",
            )  # fmt: skip


def spearman(a: list[float], b: list[float]) -> float:
    """Correlation of the ranks."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _range(found: Sensitivity) -> str:
    values = [row.sqnr for row in found]
    return f"{min(values):.1f} to {max(values):.1f} dB"


MEASURES = {"sensitivity": layers}
