"""What a report says of each run: its figures, the run held against the baseline, and what it was measured with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlab.errors import InvalidConfig, QLabError
from qlab.lab.compared import FLOAT, IS_BASELINE, Against, Line, against, difference_of, line_of, paired, titles
from qlab.lab.records import DONE

if TYPE_CHECKING:
    from qlab.lab.run import Result
    from qlab.lab.store import Run, Store

COMPUTED = {"simulated": "simulated", "integer": "integer kernels"}


@dataclass(frozen=True)
class Row:
    """One run of a report. title: unlike that of any other run in it. result: None unless the run is done.

    differs: its config against that of the baseline, in words.
    """

    run: Run
    line: Line
    title: str
    result: Result | None
    held: Against
    differs: str
    spec: Mapping[str, Any]
    is_baseline: bool

    @property
    def computed(self) -> str:
        """What its accuracy was computed with, in words; empty where nothing was."""
        return COMPUTED[self.line.backend] if self.line.backend else ""

    @property
    def network(self) -> tuple[str | None, str | None]:
        """Network and data by their content, known of runs with a result: who shares both shares the float figures."""
        return self.run.model_hash, self.run.data_hash


def rows_of(store: Store, runs: Sequence[Run], baseline: Run | None) -> list[Row]:
    """A row for each run. Raises InvalidConfig when there is none, one stands twice, or one is no experiment."""
    from qlab.export.comparison_table import spec_of

    if not runs:
        raise InvalidConfig("There is no run to report on: choose at least one experiment.")
    several = [run_id for run_id, count in Counter(run.id for run in runs).items() if count > 1]
    if several:
        raise InvalidConfig(f"Run {several[0]} is given more than once: name every run once.")
    specs = [spec_of(run) for run in runs]
    names, lines = titles(with_baseline(runs, baseline)), [line_of(run) for run in runs]
    than = FLOAT if baseline is None else names[baseline.id]
    out = []
    for run, line, spec in zip(runs, lines, specs, strict=True):
        result = _result(store, run)
        same = baseline is not None and run.id == baseline.id
        held = IS_BASELINE if same else _held(store, run, result, baseline, than)
        differs = difference_of(baseline, run).words
        out.append(Row(run, line, names[run.id], result, held, differs, spec, same))
    return out


def with_baseline(runs: Sequence[Run], baseline: Run | None) -> list[Run]:
    """All that are named in a report, each once."""
    return list({run.id: run for run in [*runs, *([baseline] if baseline else [])]}.values())


def _result(store: Store, run: Run) -> Result | None:
    from qlab.lab.run import read_result

    return read_result(store, run) if run.status == DONE else None


def _held(store: Store, run: Run, result: Result | None, baseline: Run | None, than: str) -> Against:
    if result is None:
        return Against("", f"no result: {run.error}" if run.error else f"no result: it is {run.status}")
    if baseline is None:
        return against(result.comparison, than)  # made by the run itself, so its data need not be read
    try:
        return against(paired(store, run, baseline).comparison, than)
    except QLabError as error:  # other data, data that are gone, a baseline without a result: the report says which
        return Against("", f"not held against the baseline: {error}")
