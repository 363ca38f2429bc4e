"""Accuracy over size or latency, and the run that was clicked in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from qlab.errors import QLabError
from qlab.lab.compared import changes_of, float_latency, newest_timing
from qlab.metrics import COMPUTED, metric, write
from qlab.ui import cache, compare, errors, jobs, results, say, state, training, widgets
from qlab.ui.compare import Compared

if TYPE_CHECKING:
    from qlab.lab.compared import Against, Line
    from qlab.plots.pareto import Cost, Point

CHART = "compare_pareto"
COSTS: dict[Cost, str] = {"size": "Size", "latency": "Latency"}
MOST_TIMED = 40  # every one is a session of its own in the same process


def draw(shown: Compared) -> None:
    cost: Cost = st.session_state.get("compare.cost", "size")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        widgets.kept(
            st.segmented_control,
            "Cost",
            list(COSTS),
            value=cost,
            store=_set_cost,
            required=True,
            key="compare_cost",
            format_func=COSTS.__getitem__,
            help="Puts the bytes of the model, or the time of a call on integer kernels, on the horizontal axis.",
        )
        if cost == "latency":
            _measure_button(shown)
    if cost == "latency":
        _latency_state(shown)
    _chart(shown, cost)


def _set_cost(cost: Cost) -> None:
    st.session_state["compare.cost"] = cost
    compare.refresh()


def _chart(shown: Compared, cost: Cost) -> None:
    from qlab.plots.pareto import pareto
    from qlab.plots.run_points import measure_of, points_of

    lines = list(shown.lines.values())
    key = measure_of(lines)
    made = pareto(
        points_of(lines, cost, {run.id: shown.title(run) for run in shown.runs}),
        cost,
        widgets.dark(),
        float_point=_float_point(shown, cost),
        selected=(shown.picked.id,),
        key=key,
    )
    widgets.chart(
        made,
        key=CHART,
        on_select=lambda: _clicked(shown),
        selection_mode="points",
        alt=f"{metric(key).label} over {COSTS[cost].lower()} of {len(shown.runs)} runs",
    )


def _float_point(shown: Compared, cost: Cost) -> Point | None:
    """The float network that all these runs come from; None where there are several, or nothing is known of it."""
    from qlab.plots.run_points import float_point_of

    if len({(run.model_hash, run.data_hash) for run in shown.runs}) > 1:
        return None
    line = shown.lines[shown.runs[0].id]
    spent = line.float_size if cost == "size" else float_latency(cache.store(), shown.ids)
    return float_point_of(list(shown.lines.values()), spent, results.float_interval(shown.runs[0]))


def _clicked(shown: Compared) -> None:
    for run_id in widgets.clicked(CHART):
        if run_id in shown.ids:
            compare.pick(run_id)


# --- latency ----------------------------------------------------------------------------------------------------------


def _measure_button(shown: Compared) -> None:
    timed = shown.of_network(shown.picked)
    many = len(timed) > MOST_TIMED
    st.button(
        f"Measure latency of {len(timed)} side by side" if len(timed) > 1 else "Measure latency",
        key="compare_measure",
        on_click=_measure,
        args=([run.id for run in timed],),
        disabled=many or _going() is not None,
        help=f"At most {MOST_TIMED} can be timed together: compare fewer runs."
        if many
        else "Opens the file of every run and of float and lets them take turns, so that their times can be compared.",
    )


def _measure(ids: list[str]) -> None:
    try:
        st.session_state["compare.latency"] = jobs.submit("latency", runs=ids)
    except QLabError as error:  # a run was deleted meanwhile
        st.session_state["compare.problem"] = error
    compare.refresh()


def _going() -> str | None:
    """The job that is timing; None when none is."""
    run_id = st.session_state.get("compare.latency")
    return run_id if run_id is not None and cache.store().is_open(run_id) else None


def _latency_state(shown: Compared) -> None:
    if problem := st.session_state.pop("compare.problem", None):
        errors.show(problem)
    run_id = st.session_state.get("compare.latency")
    if run_id is not None:
        run = jobs.watch(run_id, key="compare_latency")
        if run is None:
            return
        if run.status == "failed":
            errors.failure(run.error or "The timing ended without a result.", run.detail)
    lines = shown.lines.values()
    without = [line for line in lines if line.latency is None]
    if len(without) == len(lines):
        say.info("None of these runs has been timed yet: the button above does it, in a process of its own.")
        return
    words = [f"{len(without)} of {len(lines)} have not been timed and are left out"] if without else []
    newest = newest_timing(cache.store(), shown.ids)
    together = set(newest.spec["experiments"]) if newest else set()
    timed = {run_id for run_id, line in shown.lines.items() if line.latency is not None}
    if not timed <= together:
        words.append("not all were timed together, and the machine may have been busier at one time than at another")
    say.caption("Times are those of integer kernels, whatever the accuracy was computed with. " + _sentence(words))


def _sentence(words: list[str]) -> str:
    text = "; ".join(words)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


# --- the run that was clicked -----------------------------------------------------------------------------------------


def picked(shown: Compared) -> None:
    """The clicked run as large figures, and what can be done with it."""
    run = shown.picked
    line, baseline = shown.lines[run.id], shown.baseline
    held = compare.against(run, baseline, shown.title(baseline))
    with st.container(border=True, key="compare_picked"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            say.markdown(f"**{errors.escape(shown.title(run))}**", width="stretch")
            _buttons(shown)
        widgets.figures(_figures(line, run.headline.computed, held, shown.title(baseline)))
        compare.tell(held)
        if line.dropped:
            say.caption(errors.escape(f"This run was {line.dropped}."))


def _figures(line: Line, computed: str, held: Against, title: str) -> list[tuple[str, str, str | None, str]]:
    backend = COMPUTED[computed]
    if line.accuracy is not None:
        ends = (
            None if line.low is None or line.high is None else f"{metric('accuracy').interval(line.low, line.high)} %"
        )
        first = (
            f"Accuracy, {backend}",
            write("accuracy", line.accuracy),
            ends,
            results.HELP[computed],
        )
    else:
        first = (f"Agreement, {backend}", write("agreement", line.agreement), "no labels", metric("agreement").help)
    ratio = None if not line.size or not line.float_size else f"{write('ratio', line.float_size / line.size)} smaller"
    found = [
        first,
        (
            f"Against {errors.escape(title)}",
            metric("accuracy").delta(held.delta),
            None,
            "Difference of the shares of right answers on the samples that both have seen.",
        ),
        ("Size", write("size", line.size), ratio, metric("size").help),
    ]
    if line.latency is not None:
        of = f"integer kernels, {line.latency_batch or 1} sample{'s' if (line.latency_batch or 1) > 1 else ''}"
        found.append(("Latency", write("latency", line.latency), of, metric("latency").help))
    return found


def _buttons(shown: Compared) -> None:
    run = shown.picked
    if st.button("Open", key="compare_open", help="Shows the whole result of this run on Experiment."):
        state.set_run(run.id)
        st.switch_page("pages/lab/experiment.py")
    is_baseline = state.baseline() == run.id
    st.button(
        "This is the baseline" if is_baseline else "Make baseline", key="compare_make_baseline", disabled=is_baseline,
        on_click=compare.hold_against, args=(run.id,), help="Holds all other runs of this comparison against this one.",
    )  # fmt: skip
    mapping = compare.mapping_of(run)
    same, changes = mapping == state.mapping(), errors.escape(changes_of(run))
    st.button(
        "This is the current config" if same else "Use this config", key="compare_use", disabled=same,
        on_click=state.set_mapping, args=(mapping,),
        help="Makes its settings the current ones; Experiment and Distributions then use them"
        + (f", without what was done after converting ({changes})." if changes else "."),
    )  # fmt: skip
    if run.spec.get("training") and st.button(
        "Open its training", key="compare_training",
        help="Makes its network, data, config and training settings the current ones and shows how it went.",
    ):  # fmt: skip
        training.show(run.id)
        st.switch_page("pages/lab/training.py")
