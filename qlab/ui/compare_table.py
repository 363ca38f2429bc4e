"""The runs of a comparison as rows: accuracy as a dot on a common axis, the paired verdict, cost, and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.lab.compared import changes_of
from qlab.plots.theme import palette
from qlab.ui import compare, run_list, say, widgets
from qlab.ui.compare import Against, Compared
from qlab.ui.compare_columns import columns

if TYPE_CHECKING:
    import pandas as pd


TABLE = "compare_table"
HEIGHT = 520
ALWAYS = ("", "Run", "Computed")
USUAL = (
    "Changes", "Interval", "Accuracy", "Stopped early", "Against", "Verdict", "p", "Size", "Latency", "Bits",
    "Observer",
)  # fmt: skip


def draw(shown: Compared) -> None:
    """Baseline, columns, and the table."""
    baseline = shown.baseline
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        widgets.kept(
            st.selectbox,
            "Baseline",
            [compare.FLOAT_ID, *shown.ids],
            value=compare.FLOAT_ID if baseline is None else baseline.id,
            store=compare.hold_against,
            key="compare_baseline",
            format_func=lambda run_id: shown.title(shown.find(run_id)),
            width=330,
            help="Every run is held against this one, sample by sample, to tell a difference from noise.",
        )
        with st.popover("Columns", help="Chooses what the table shows of each run."):
            widgets.kept(
                st.multiselect,
                "Columns of the table",
                [name for name in columns("", None) if name not in ALWAYS],
                value=chosen_columns(),
                store=_set_columns,
                key="compare_columns",
                format_func=_label,
                help="These stand in the table beside the name of the run and what its figures were computed with.",
            )
    _table(shown)


def chosen_columns() -> list[str]:
    return list(st.session_state.get("compare.columns", USUAL))


def _set_columns(names: list[str]) -> None:
    st.session_state["compare.columns"] = tuple(names)


def _label(name: str) -> str:
    return {"Against": "Difference to the baseline", "Interval": "Accuracy as a dot", "95 %": "95 % interval"}.get(
        name, name
    )


def _table(shown: Compared) -> None:
    baseline = shown.baseline
    title = shown.title(baseline)
    held = {run.id: compare.against(run, baseline, title) for run in shown.runs}
    picked = shown.picked.id
    frame = rows(shown, held)
    names = filled(chosen_columns(), shown)
    run_list.choose(TABLE, [shown.ids.index(picked)])
    st.dataframe(
        _grey(frame, held),
        key=TABLE,
        hide_index=True,
        width="stretch",
        height=run_list.height(len(shown.runs), HEIGHT),
        column_order=[*ALWAYS, *names],
        column_config={name: column.config for name, column in columns(title, shown).items()},
        placeholder="–",
        on_select=lambda: _selected(shown.ids),
        selection_mode="single-row",
        alt="The runs that are compared",
    )
    say.caption(
        "A click on a heading sorts, one on the left edge picks a run. What lies inside the noise is grey: chance "
        "alone would flip that unevenly in more than 5 of 100 cases (McNemar's test on the same samples)."
    )


def filled(names: list[str], shown: Compared) -> list[str]:
    """These columns without those in which nothing stands here, which would only take the place of others.

    Without labels agreement with float takes the place of accuracy.
    """

    def nowhere(field: str) -> bool:
        return all(getattr(line, field) is None for line in shown.lines.values())

    idle = {name for name, field in (("Latency", "latency"), ("Stopped early", "dropped")) if nowhere(field)}
    if not any(changes_of(run) for run in shown.runs):
        idle.add("Changes")
    if nowhere("accuracy"):
        idle |= {"Interval", "Accuracy", "95 %", "Against", "p", "Δ float"}
        names = names if "Agreement" in names else ["Agreement", *names]
    return [name for name in names if name not in idle]


def _selected(ids: list[str]) -> None:
    found = run_list.chosen(TABLE, ids)
    if found:
        compare.pick(found[0])


def rows(shown: Compared, held: Mapping[str, Against]) -> pd.DataFrame:
    """One row for each run, every column."""
    import pandas as pd

    every = columns("", shown)
    return pd.DataFrame(
        [{name: column.value(line, held[i]) for name, column in every.items()} for i, line in shown.lines.items()]
    )


def _grey(frame: pd.DataFrame, held: Mapping[str, Against]) -> Any:
    """The table with what is noise in grey, what is worse in orange and what is better in green."""
    import pandas as pd

    colours = palette(widgets.dark())

    def colour(one: Against) -> str:
        if not one.real:
            return colours.muted
        return colours.gained if one.short == "better" else colours.error

    painted = pd.DataFrame("", index=frame.index, columns=frame.columns)
    said = [f"color: {colour(one)}" for one in held.values()]
    for name in ("Against", "Verdict", "p"):
        painted[name] = said
    return frame.style.apply(lambda _: painted, axis=None)
