"""All runs of the store as light rows, read again only when one has changed, and the filter over them.

Reading many rows takes far longer than a look whether something changed, and a filter next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.ui import cache, widgets

if TYPE_CHECKING:
    from qlab.lab.store import Run

ANY = "all"
KINDS = {
    "experiment": "experiment",
    "sweep": "sweep",
    "prepare": "calibration",
    "runtime": "runtime report",
    "export": "export",
    "latency": "latency",
    "diagnose": "findings",
    "advice": "remedies tried",
    "sensitivity": "sensitivity",
    "stability": "stability",
}


@dataclass(frozen=True)
class History:
    """Runs, newest first, without their results. Shared by all sessions: do not change it.

    key: changes with what is in it. by_id: these and the sweeps they are parts of.
    """

    key: str
    runs: tuple[Run, ...]
    by_id: dict[str, Run] = field(repr=False)
    haystacks: dict[str, str] = field(repr=False)

    @property
    def models(self) -> list[str]:
        return _known(run.model for run in self.runs)

    @property
    def tags(self) -> list[str]:
        return _known(tag for run in self.runs for tag in run.tags)

    @property
    def kinds(self) -> list[str]:
        found = {run.kind for run in self.runs}
        return [kind for kind in KINDS if kind in found] + sorted(found - set(KINDS))

    @property
    def statuses(self) -> list[str]:
        return _known(run.status for run in self.runs)

    @property
    def sweeps(self) -> list[Run]:
        """The sweeps that have parts here, newest first."""
        parents = {run.parent for run in self.runs if run.parent}
        return [run for run in self.by_id.values() if run.id in parents]

    def parts(self, sweep: str) -> list[str]:
        """The finished experiments of a sweep, in its order."""
        found = [r for r in self.runs if r.parent == sweep and r.kind == "experiment" and r.status == "done"]
        return [run.id for run in sorted(found, key=lambda run: run.position or 0)]


@dataclass(frozen=True)
class Filter:
    """What is shown. words: each is a part of name, model, data, config, tags or notes, or begins an id."""

    words: str = ""
    kind: str = ANY
    status: str = ANY
    model: str = ANY
    tag: str = ANY
    sweep: str = ANY

    def keep(self, history: History) -> list[Run]:
        """The runs that pass, newest first; as Store.list_runs finds them."""
        words = self.words.casefold().split()
        return [
            run
            for run in history.runs
            if self.kind in (ANY, run.kind)
            and self.status in (ANY, run.status)
            and self.model in (ANY, run.model)
            and (self.tag == ANY or self.tag in run.tags)
            and self.sweep in (ANY, run.parent, run.id)
            and all(word in history.haystacks[run.id] or run.id.startswith(word) for word in words)
        ]


def everything(*, deleted: bool = False) -> History:
    """All runs that are there, or all that were deleted."""
    return _everything(cache.store().stamp(), deleted, str(cache.store().home))


def experiments() -> History:
    """The experiments that have a result."""
    return _experiments(cache.store().stamp(), str(cache.store().home))


@st.cache_resource(max_entries=4, show_spinner="Reading the runs")
def _everything(stamp: str, deleted: bool, home: str) -> History:
    return _history(f"{home}/{stamp}/{deleted}", cache.store().list_runs(None, deleted=deleted))


@st.cache_resource(max_entries=2, show_spinner=False)
def _experiments(stamp: str, home: str) -> History:
    every = _everything(stamp, False, home)
    found = [run for run in every.runs if run.kind == "experiment" and run.status == "done"]
    return _history(f"{every.key}/experiments", found, every.sweeps)


def _history(key: str, runs: Sequence[Run], sweeps: Sequence[Run] = ()) -> History:
    """sweeps: what the runs may be parts of, where that is not among them."""
    return History(
        key,
        tuple(runs),
        {run.id: run for run in (*sweeps, *runs)},
        {
            run.id: "\n".join((run.name, run.model, run.data, run.config, *run.tags, run.notes)).casefold()
            for run in runs
        },
    )


def _known(words: Any) -> list[str]:
    return sorted({word for word in words if word}, key=str.casefold)


# --- controls ---------------------------------------------------------------------------------------------------------


def filters(
    history: History, current: Filter, store: Callable[[Filter], None], *, key: str, fields: Sequence[str]
) -> None:
    """Controls, one for the words and one for each of these fields that has something to choose from."""
    widgets.kept(
        st.text_input,
        "Search",
        value=current.words,
        store=lambda words: store(replace(current, words=words or "")),
        key=f"{key}_words",
        type="search",
        placeholder="words of name, config, tags, notes",
        live="50ms",
        width=260,
        help="Keeps the runs that have every one of these words in their name, network, config, tags or notes.",
    )
    for name, (label, text, width) in FIELDS.items():
        options, title = _choices(history, name)
        chosen = getattr(current, name)
        # Two networks, kinds or ends tell runs apart; one tag or sweep does already.
        fewest = 1 if name in ("tag", "sweep") else 2
        if name not in fields or (len(options) < fewest and chosen == ANY):
            continue
        widgets.kept(
            st.selectbox,
            label,
            [ANY, *options, *({chosen} - {ANY, *options})],
            value=chosen,
            store=partial(_set_field, store, current, name),
            key=f"{key}_{name}",
            format_func=title,
            width=width,
            help=text,
        )


def _set_field(store: Callable[[Filter], None], current: Filter, name: str, value: str) -> None:
    changes: dict[str, Any] = {name: value}
    store(replace(current, **changes))


FIELDS = {
    "kind": ("Kind", "Keeps the runs of one kind of job.", 150),
    "status": ("Status", "Keeps the runs that ended in this way, or are still going.", 130),
    "model": ("Network", "Keeps the runs of one network.", 190),
    "tag": ("Tag", "Keeps the runs that carry this tag.", 140),
    "sweep": ("Sweep", "Keeps the runs that belong to one sweep.", 230),
}


def _choices(history: History, name: str) -> tuple[list[str], Callable[[str], str]]:
    if name == "kind":
        return history.kinds, lambda kind: KINDS.get(kind, kind)
    if name == "sweep":
        titles = {run.id: sweep_title(run) for run in history.sweeps}
        return list(titles), lambda run_id: titles.get(run_id, run_id)
    found = {"status": history.statuses, "model": history.models, "tag": history.tags}[name]
    return found, str


def sweep_title(run: Run) -> str:
    """A sweep as a person tells it from others."""
    return f"{run.name or run.id} · {run.config} of {run.model}"
