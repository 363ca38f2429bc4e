"""What Compare shows: which runs, what each is held against, and which of them was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import streamlit as st

from qlab.config import QConfigMapping
from qlab.errors import DataMismatch, QLabError
from qlab.lab import compared
from qlab.lab.compared import FLOAT, IS_BASELINE, Against, Line, line_of, titles
from qlab.ui import cache, errors, history, say, state
from qlab.ui.history import History

if TYPE_CHECKING:
    from qlab.evaluation import Comparison
    from qlab.lab.store import Run

USUAL = 12  # the newest, where nobody has chosen
MOST = 200  # compared at once
PAGE = "compare"  # key of the fragment that holds the page
# Stands for the float network among the ids in a select box, which would take None for nothing chosen.
FLOAT_ID = "float"


@dataclass(frozen=True)
class Compared:
    """The runs of the comparison in the order they were chosen.

    chosen: by a person or a link. missing: how many of those are not here (deleted, unfinished, of another machine).
    cut: how many are left out because there are more than can be compared at once.
    """

    history: History
    runs: tuple[Run, ...]
    chosen: bool
    missing: int = 0
    cut: int = 0

    @cached_property
    def lines(self) -> dict[str, Line]:
        return {run.id: line_of(run) for run in self.runs}

    @property
    def ids(self) -> list[str]:
        return [run.id for run in self.runs]

    @property
    def baseline(self) -> Run | None:
        """The run the others are held against; None: the float network."""
        return self.find(state.baseline())

    @property
    def picked(self) -> Run:
        """The run that was clicked last; before that the best one."""
        return self.find(state.picked()) or max(self.runs, key=lambda run: self.lines[run.id].worth)

    @property
    def networks(self) -> list[str]:
        """The networks of these runs, by content."""
        return list(dict.fromkeys(run.model_hash or run.model for run in self.runs))

    def of_network(self, run: Run) -> list[Run]:
        return [r for r in self.runs if (r.model_hash or r.model) == (run.model_hash or run.model)]

    def find(self, run_id: str | None) -> Run | None:
        return next((run for run in self.runs if run.id == run_id), None)

    def title(self, run: Run | None) -> str:
        """What tells a run from the others here: its name or config, and its number where two have the same."""
        if run is None:
            return FLOAT
        return self._titles[run.id]

    @cached_property
    def _titles(self) -> dict[str, str]:
        return titles(self.runs)


# --- which runs -------------------------------------------------------------------------------------------------------


def load() -> Compared:
    """The runs that were chosen, or the newest of the network and data that are open."""
    known = history.experiments()
    ids = state.compared()
    if ids is None:
        return Compared(known, tuple(newest(known)), chosen=False)
    there = {run.id: run for run in known.runs}
    found = [there[i] for i in ids if i in there]
    return Compared(
        known, tuple(found[:MOST]), chosen=True, missing=len(ids) - len(found), cut=max(len(found) - MOST, 0)
    )


def newest(known: History, most: int = USUAL) -> list[Run]:
    """The newest finished experiments of the network and data that are open."""
    found: list[Run] = []
    data = state.data_ref()
    wanted = {
        "model": state.model_ref().source,
        "data": state.data_table(data),
        "calibration_samples": data.calibration_samples,
    }
    for run in known.runs:
        if len(found) < most and all(run.spec.get(key) == value for key, value in wanted.items()):
            found.append(run)
    return found


def keep_in_address(shown: Compared) -> None:
    """Chosen runs stand in the address, so that a reload or a bookmark finds them again."""
    wanted = {"runs": ",".join(shown.ids) if shown.chosen else "", "baseline": state.baseline() or ""}
    for name, value in wanted.items():
        if st.query_params.get(name, "") == value:
            continue
        if value:
            st.query_params[name] = value
        else:
            del st.query_params[name]


def choose(ids: Sequence[str]) -> None:
    """Compares these runs from now on."""
    state.set_compared(ids)
    refresh()


def refresh() -> None:
    """Draws the whole page again; for callbacks of controls that stand in a part of it."""
    st.rerun(PAGE)


def hold_against(run_id: str) -> None:
    """Makes a run the baseline, or with FLOAT_ID the float network."""
    state.set_baseline(None if run_id == FLOAT_ID else run_id)
    refresh()


def pick(run_id: str) -> None:
    state.set_picked(run_id)
    refresh()


# --- what each is held against ----------------------------------------------------------------------------------------


def against(run: Run, baseline: Run | None, title: str) -> Against:
    """This run beside the baseline. title: what the baseline is called."""
    if baseline is not None and baseline.id == run.id:
        return IS_BASELINE
    try:
        return compared.against(comparison(run, baseline), title)
    except DataMismatch as error:
        return Against("not paired", str(error).rstrip("."))
    except QLabError as error:
        return Against("no result", str(error).rstrip("."))


def tell(found: Against) -> None:
    """The verdict as a badge and a sentence."""
    colour = {"better": "green", "worse": "orange"}.get(found.tone, "gray")
    words = found.words[:1].upper() + found.words[1:]
    say.markdown(f":{colour}-badge[{errors.escape(found.short)}] {errors.escape(words)}.")


def mapping_of(run: Run | None) -> QConfigMapping:
    """The config of a run; nothing is quantized in the float network."""
    return QConfigMapping() if run is None else compared.mapping_of(run)


def comparison(run: Run, baseline: Run | None) -> Comparison:
    """Paired, prediction by prediction. Raises DataMismatch where the two were measured on different data."""
    return _comparison(run.id, "" if baseline is None else baseline.id, str(cache.store().home), run, baseline)


@st.cache_resource(max_entries=2000, show_spinner="Comparing prediction by prediction")
def _comparison(run_id: str, baseline_id: str, _home: str, _run: Run, _baseline: Run | None) -> Comparison:
    from qlab.evaluation import Comparison

    if _baseline is None:
        # The run made this one itself, so its data need not be read.
        return Comparison.from_dict(cache.store().get_run(run_id).require_result()["comparison"])
    return compared.paired(cache.store(), _run, _baseline).comparison
