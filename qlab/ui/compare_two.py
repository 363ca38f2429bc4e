"""Two runs of a comparison: how their settings differ, where their predictions do, and a tensor under both."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from qlab.errors import DataMismatch
from qlab.lab.compared import against
from qlab.metrics import COMPUTED
from qlab.ui import cache, compare, compare_tensor, errors, flips, results, run_list, say, widgets
from qlab.ui.compare import Compared

if TYPE_CHECKING:
    from qlab.lab.compared import Pair
    from qlab.lab.store import Run

SHORT = 44  # a name of so many characters can stand in a sentence
# Beside the config, what decides the figures of a run.
SETTINGS = {
    "model": "network", "data": "data", "calibration_samples": "calibration samples", "seed": "seed",
    "batch_size": "batch size",
}  # fmt: skip


@st.fragment
def draw(shown: Compared) -> None:
    """Everything of the tab; a change of its controls draws this alone."""
    a, b = _choices(shown)
    if b is None:
        say.info("Choose a second run above to hold the two against each other.")
        return
    with errors.box():
        _difference(shown, a, b)
    with errors.box():
        _flips(shown, a, b)
    with errors.box():
        compare_tensor.draw(shown, a, b)


def _choices(shown: Compared) -> tuple[Run | None, Run | None]:
    """The two that were chosen here; at first the baseline and the run that is picked."""
    first, second = seeds(shown)

    def title(run_id: str | None) -> str:
        return shown.title(shown.find(run_id))

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        a = _box(
            "First",
            [compare.FLOAT_ID, *shown.ids],
            first,
            "compare_a",
            title,
            "The run, or float, that is compared from.",
        )
        options = [run_id for run_id in shown.ids if run_id != a]
        b = _box(
            "Second", options, second if second in options else next(iter(options), None), "compare_b", title,
            "The run that is compared to it.",
        )  # fmt: skip
    return shown.find(a), shown.find(b)


def _box(label: str, options: list[Any], value: str | None, key: str, title: Any, text: str) -> str | None:
    if not options:
        return None
    return widgets.kept(
        st.selectbox, label, options, value=value, store=lambda new: st.session_state.__setitem__(f"{key}.chosen", new),
        key=key, format_func=title, width=330, help=text,
    )  # fmt: skip


def seeds(shown: Compared) -> tuple[str, str | None]:
    """What the boxes show: their own choice until another baseline or run is picked."""
    view = st.session_state
    start = (compare.FLOAT_ID if shown.baseline is None else shown.baseline.id, shown.picked.id)
    if view.get("compare.seeds") != start:
        view["compare.seeds"] = start
        view["compare_a.chosen"], view["compare_b.chosen"] = start
    a, b = view["compare_a.chosen"], view["compare_b.chosen"]
    return a if a in shown.ids else compare.FLOAT_ID, b if b in shown.ids else None


# --- settings ---------------------------------------------------------------------------------------------------------


def _difference(shown: Compared, a: Run | None, b: Run) -> None:
    from qlab.lab.compared import difference_of

    found = difference_of(a, b)
    others = [] if a is None else other_settings(a, b)
    words = found.words if found.rows or not others else "the config is the same"
    more = "; ".join(f"{name} {x} → {y}" for name, x, y in others)
    say.markdown(f"**Differs in:** {errors.escape('; '.join(part for part in (words, more) if part))}.")
    names = _headings(shown, a, b)
    rows = [(row.where, row.field or "all", row.a, row.b) for row in found.rows]
    rows += [("run", *other) for other in others]
    if rows:
        st.dataframe(
            pd.DataFrame(rows, columns=["Where", "Field", *names]),
            key="compare_fields",
            hide_index=True,
            width="stretch",
            height=run_list.height(len(rows)),
            column_config={
                "Where": st.column_config.TextColumn(
                    width=130, help="The default of the config, the rule of a type or of a layer, or the run itself."
                ),
                "Field": st.column_config.TextColumn(width=170, help="What is set there."),
            },
        )


def _headings(shown: Compared, a: Run | None, b: Run) -> tuple[str, str]:
    return "float" if a is None else shown.title(a), shown.title(b)


def other_settings(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """What else differs between two runs than their configs: (name, in a, in b)."""
    found = []
    for key, name in SETTINGS.items():
        x, y = a.spec.get(key), b.spec.get(key)
        if key == "seed" and a.spec.get("calibration_samples") is None and b.spec.get("calibration_samples") is None:
            continue  # the split comes with the data
        if x == y:
            continue
        known = {"model": (a.model, b.model), "data": (a.data, b.data)}.get(key, (_written(x), _written(y)))
        if known[0] == known[1]:
            known = (f"{known[0]}, {_written(x)[:40]}", f"{known[1]}, {_written(y)[:40]}")
        found.append((name, *known))
    x, y = (COMPUTED[run.headline.computed] for run in (a, b))
    if x != y:
        found.append(("evaluated", x, y))
    return found


def _written(value: Any) -> str:
    return "as the data says" if value is None else value if isinstance(value, str) else json.dumps(value)


# --- predictions ------------------------------------------------------------------------------------------------------


@st.cache_resource(max_entries=16, show_spinner="Comparing prediction by prediction")
def _pair(a_id: str, b_id: str, _home: str, _a: Run | None, _b: Run) -> Pair:
    from qlab.lab.compared import paired

    return paired(cache.store(), _b, _a)


def _flips(shown: Compared, a: Run | None, b: Run) -> None:
    st.subheader("Where do they say different things?", anchor=False)
    try:
        pair = _pair("" if a is None else a.id, b.id, str(cache.store().home), a, b)
    except DataMismatch as error:
        say.info(errors.escape(str(error)))
        return
    found = against(pair.comparison, shown.title(a))
    compare.tell(found)
    x, y = (COMPUTED[e.backend] for e in (pair.before, pair.after))
    if a is not None and x != y:
        say.caption(f"The first was evaluated {x}, the second {y}: a part of the difference may come from that.")
    names = _headings(shown, a, b) if all(len(n) <= SHORT for n in _headings(shown, a, b)) else ("first", "second")
    flips.draw(results.evaluation_data(b), pair.before, pair.after, pair.comparison, names=names, key="compare_flips")
