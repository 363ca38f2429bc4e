"""Which runs Compare shows: a table of all that have a result, filtered by words, network, tag and sweep."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from qlab.ui import compare, history, run_list, say
from qlab.ui.compare import Compared
from qlab.ui.history import ANY, Filter

TABLE = "compare_pick_table"
HEIGHT = 330
COLUMNS = ("Run", "Network", "Config", "Accuracy", "Computed", "Size", "Tags", "Sweep", "Time", "Notes")
FIELDS = ("model", "tag", "sweep")


def draw(shown: Compared) -> None:
    """What is compared, in a line, and the table to choose from, which is worked out when it is open."""
    total = len(shown.history.runs)
    say.caption(_words(shown, total))
    picker = st.expander("Choose runs", key="compare_pick", on_change="rerun")
    if picker.open:
        with picker:
            _choose(shown)


def _words(shown: Compared, total: int) -> str:
    count = len(shown.runs)
    what = f"**{count:,}** of {total:,} finished experiment{'s' if total != 1 else ''}"
    parts = [what if shown.chosen else f"{what}: the newest of the network and data that are open"]
    if shown.missing:
        parts.append(
            f"{shown.missing:,} more that {'was' if shown.missing == 1 else 'were'} chosen "
            f"{'is' if shown.missing == 1 else 'are'} not here: deleted, without a result, or on another machine"
        )
    if shown.cut:
        parts.append(f"{shown.cut:,} more are left out, because {compare.MOST} can be compared at once")
    return "; ".join(parts) + "."


def _choose(shown: Compared) -> None:
    current: Filter = st.session_state.get("compare.filter", Filter())
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        history.filters(shown.history, current, _set_filter, key="compare_pick", fields=FIELDS)
        _buttons(shown, current)
    found = current.keep(shown.history)
    if not found:
        say.info("No finished experiment has all of these words and properties: take one of the filters away.")
        return
    ids = [run.id for run in found]
    run_list.pick(
        shown.history, ids, shown.ids, lambda ticked: compare.choose(compared_with(ticked, ids, shown.ids)),
        key=TABLE, order=COLUMNS, most=HEIGHT, alt="Runs that can be compared",
    )  # fmt: skip
    say.caption(f"{len(ids):,} shown. What is ticked is compared, also where a filter hides it.")


def _set_filter(new: Filter) -> None:
    st.session_state["compare.filter"] = new


def compared_with(ticked: Sequence[str], ids: Sequence[str], before: Sequence[str]) -> list[str]:
    """Those that were compared before and still are, in their order, then the new ones.

    ticked: of the runs that the table shows, ids; what it does not show stays as it was.
    """
    kept = [i for i in before if i in ticked or i not in ids]
    return [*kept, *(i for i in ids if i in ticked and i not in before)]


def _buttons(shown: Compared, current: Filter) -> None:
    if current.sweep != ANY:
        parts = shown.history.parts(current.sweep)
        st.button(
            f"Add the whole sweep ({len(parts)})", key="compare_add_sweep", on_click=compare.choose,
            args=([*shown.ids, *parts],), disabled=set(parts) <= set(shown.ids),
            help="Compares every finished run of this sweep, beside those that are compared already.",
        )  # fmt: skip
    st.button(
        "Compare none", key="compare_none", on_click=compare.choose, args=([],), disabled=not shown.runs,
        help="Takes all runs out of the comparison, to begin anew.",
    )  # fmt: skip
    if shown.chosen:
        st.button(
            "The newest", key="compare_newest", on_click=_newest,
            help=f"Compares the newest {compare.USUAL} of the network and data that are open, as at the beginning.",
        )  # fmt: skip


def _newest() -> None:
    from qlab.ui import state

    state.set_compared(None)
    compare.refresh()
