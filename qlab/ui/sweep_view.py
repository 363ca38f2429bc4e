"""A sweep as it goes and as it ended: how far each config is, the best so far, what was dropped and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from qlab.errors import QLabError
from qlab.metrics import COMPUTED, MISSING, metric, write
from qlab.ui import cache, errors, jobs, results, say, state, widgets

if TYPE_CHECKING:
    from qlab.lab.store import Run

TABLE_HEIGHT = 470
COMPARED = 12
EARLIER = 30


def shown() -> Run | None:
    """The sweep this page shows: the one that was chosen, else the newest of the current model; None without any."""
    store = cache.store()
    chosen = state.sweep_id()
    if chosen is not None:
        run = store.try_run(chosen)
        if run is not None and run.kind == "sweep":
            st.query_params["sweep"] = run.id
            return run
        state.set_sweep(None)
        st.query_params.pop("sweep", None)
        say.warning(f"There is no sweep {errors.escape(chosen)} in this store; the newest is shown instead.")
    mine = [run for run in store.list_runs(EARLIER, kind="sweep") if run.spec["model"] == state.model_ref().source]
    return store.get_run(mine[0].id) if mine else None


def draw(run: Run) -> None:
    """Progress while it goes on, the result when it has ended."""
    st.subheader(_title(run), anchor=False)
    if run.ended:
        _ended(run)
    else:
        st.fragment(_going, run_every=jobs.EVERY)(run.id)


def _title(run: Run) -> str:
    what = f"{errors.escape(run.name)} · " if run.name else ""
    return f"{what}{errors.escape(run.config)} of {errors.escape(run.model)}"


def parts_of(run: Run) -> list[Run]:
    """The runs of its configs, in their order."""
    found = cache.store().list_runs(limit=None, parent=run.id, kind="experiment")
    return sorted(found, key=lambda part: part.position or 0)


# ---- while it goes on ------------------------------------------------------------------------------------------------


def _going(sweep_id: str) -> None:
    run = cache.store().get_run(sweep_id)
    if run.ended:
        st.rerun()
    jobs.bar(run, key="sweep_progress")
    parts = parts_of(run)
    _best(run, parts, "Best so far")
    _chart(run, parts)
    _table(run, parts)


# ---- when it has ended -----------------------------------------------------------------------------------------------


def _ended(run: Run) -> None:
    parts = parts_of(run)
    missing = [part for part in parts if part.status != "done"]
    if run.status == "failed":
        errors.failure(run.error or "This sweep ended without a result.", run.detail)
    elif run.status == "cancelled":
        say.info(f"This sweep was stopped; {len(parts) - len(missing)} of {len(parts)} configs are done and stay so.")
    with st.container(horizontal=True, vertical_alignment="center"):
        _actions(run, parts, missing)
    _best(run, parts, "Best")
    _chart(run, parts)
    _said(run, parts)
    _table(run, parts)


def _actions(run: Run, parts: Sequence[Run], missing: Sequence[Run]) -> None:
    from qlab.lab.compared import line_of

    best = next((part for part in parts if part.id == run.best), None)
    st.button(
        "Use the best config", key="sweep_use", disabled=best is None, on_click=_use, args=(best,),
        help="Makes the best config the current one, on every page.",
    )  # fmt: skip
    done = [part for part in parts if part.status == "done"]
    if st.button(
        "Compare the configs", key="sweep_compare", disabled=not done,
        help=f"Opens the comparison with these runs; of more than {COMPARED} with the best.",
    ):  # fmt: skip
        ranked = sorted(done, key=lambda part: line_of(part).worth, reverse=True)
        state.set_compared([part.id for part in ranked[:COMPARED]])
        st.switch_page("pages/lab/compare.py")
    if missing:
        st.button(
            f"Take up the {len(missing)} missing", key="sweep_resume", on_click=_resume, args=(run.id,),
            help="Goes on with the configs that have no result; what is done is not done again.",
        )  # fmt: skip


def _use(best: Run) -> None:
    from qlab.lab.experiment import Experiment

    state.set_mapping(Experiment.from_dict(best.spec).resolved_mapping)


def _resume(sweep_id: str) -> None:
    from qlab.lab.drive import resume
    from qlab.lab.sweep import Sweep

    run = cache.store().get_run(sweep_id)
    try:
        if run.status == "done":
            # Ended by its budget, or with configs that failed: the same without a budget finds the others in the store.
            again = Sweep.from_dict(run.spec).replace(most=None, seconds=None)
            state.set_sweep(jobs.submit("sweep", sweep=again))
        else:
            resume(cache.runner(), sweep_id)
            state.set_sweep(sweep_id)
    except QLabError as error:
        st.session_state["sweep_problem"] = error


def _said(run: Run, parts: Sequence[Run]) -> None:
    """What was saved, dropped, taken from earlier runs, failed or left out, each by name."""
    result: Mapping[str, Any] | None = run.result
    if result is None:
        return
    names = {part.id: part for part in parts}
    samples = result["samples"]
    if samples["in_full"] > samples["evaluated"]:
        saved = 1 - samples["evaluated"] / samples["in_full"]
        say.markdown(
            f"Dropping what was worse beyond chance saved **{metric('clipped').format(saved)}** of the samples: "
            f"{samples['evaluated']:,} were evaluated instead of {samples['in_full']:,}."
        )
    for key, title, why in (
        ("dropped", "dropped", lambda part: part.headline.dropped),
        ("failed", "failed", lambda part: part.error),
        ("not_run", "not run", lambda part: part.error),
    ):
        if not result[key]:
            continue
        with st.expander(f"{len(result[key])} {title}"):
            lines = [f"- **{errors.escape(names[i].name)}**: {errors.escape(why(names[i]) or '')}" for i in result[key]]
            say.markdown("\n".join(lines))
    if result["reused"]:
        say.caption(f"{len(result['reused'])} of the results were known from earlier runs and not computed again.")


def _best(run: Run, parts: Sequence[Run], label: str) -> None:
    best = next((part for part in parts if part.id == run.best), None)
    if best is None:
        return
    head = best.headline
    value = write("accuracy", head.accuracy) if head.accuracy is not None else write("agreement", head.agreement)
    how = COMPUTED[head.computed]
    interval = ""
    if head.accuracy_low is not None and head.accuracy_high is not None:
        interval = f"{metric('accuracy').interval(head.accuracy_low, head.accuracy_high)} %, "
    done = sum(part.ended for part in parts)
    widgets.figures(
        [
            (
                label, best.name or best.config, f"{done} of {len(parts)} configs done",
                "The config with the highest accuracy, of equals the smallest. Others may be no worse than it beyond "
                "chance: Compare tells.",
            ),
            (
                "Its accuracy" if head.accuracy is not None else "Its agreement", value, f"{interval}{how}",
                "On the evaluation data, with its 95 % interval.",
            ),
            ("In float", write("accuracy", head.float_accuracy), None, "The float network on the same samples."),
            (
                "Its size", write("size", head.size), f"of {write('size', head.float_size)} in float",
                "Packed codes, scales, zero points, and what stays float.",
            ),
        ]
    )  # fmt: skip


def _chart(run: Run, parts: Sequence[Run]) -> None:
    """Accuracy over size of what is done; a click opens the run."""
    from qlab.lab.compared import line_of
    from qlab.plots.pareto import pareto
    from qlab.plots.run_points import float_point_of, measure_of, points_of

    done = [part for part in parts if part.status == "done"]
    if not done:
        return
    lines = [line_of(part) for part in done]
    made = pareto(
        points_of(lines, "size"), "size", widgets.dark(),
        float_point=float_point_of(lines, lines[0].float_size, results.float_interval(done[0])),
        selected=[run.best] if run.best else [], key=measure_of(lines),
    )  # fmt: skip
    key = f"sweep_pareto_{run.id}"
    if not run.ended:
        widgets.chart(made, key=f"{key}_going")
        return
    widgets.chart(made, key=key, on_select=lambda: _clicked(key, parts), selection_mode="points")
    say.caption("Click a point to open that run on the Experiment page.")
    if st.session_state.pop("sweep_opened", False):
        st.switch_page("pages/lab/experiment.py")


def _clicked(key: str, parts: Sequence[Run]) -> None:
    for run_id in widgets.clicked(key):
        if run_id in {part.id for part in parts}:
            state.set_run(run_id)
            st.session_state["sweep_opened"] = True


def _table(run: Run, parts: Sequence[Run]) -> None:
    rows = pd.DataFrame([_row(part, part.id == run.best) for part in parts])
    if run.ended:
        rows = rows.drop(columns="Progress")
    st.dataframe(
        rows,
        key=f"sweep_table_{run.id}",
        width="stretch",
        height=min(TABLE_HEIGHT, 36 * (len(parts) + 1) + 2),
        hide_index=True,
        column_config=_columns(),
    )


def _row(part: Run, best: bool) -> dict[str, Any]:
    head = part.headline
    status = "stopped early" if head.dropped else part.status
    low, high = head.accuracy_low, head.accuracy_high
    return {
        "Best": "●" if best else "",
        "Config": part.name or part.config,
        "Status": status,
        "Progress": 1.0 if part.ended else part.share,
        "Accuracy": None if head.accuracy is None else 100 * head.accuracy,
        "Interval": MISSING if low is None or high is None else metric("accuracy").interval(low, high),
        "Agreement": None if head.agreement is None else 100 * head.agreement,
        "Size": None if head.size is None else head.size / 1000,
        "Samples": head.samples,
        "Computed": {"integer": "on integers", "simulated": "simulated"}.get(head.backend or "", MISSING),
        "Time": None if part.status != "done" else part.seconds,
        "Note": head.dropped or part.error or "",
    }


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "Best": column.TextColumn("", width=30, help="The best config so far."),
        "Config": column.TextColumn(width=220, help="Bits of weights and activations, and what else differs."),
        "Status": column.TextColumn(width=90, help="done, running, queued, failed, cancelled, or stopped early."),
        "Progress": column.ProgressColumn(width=90, min_value=0.0, max_value=1.0, format="percent",
                                          help="How far the evaluation of this config is."),
        "Accuracy": column.NumberColumn("Accuracy (%)", format="%.1f", width=95, help="On the samples seen."),
        "Interval": column.TextColumn("95 % interval", width=105, help="Where the true accuracy lies, by Wilson."),
        "Agreement": column.NumberColumn("Agreement (%)", format="%.1f", width=105,
                                         help="Share of samples on which it says what the float network says."),
        "Size": column.NumberColumn("Size (kB)", format="%.1f", width=85, help="Bytes of all weights as stored."),
        "Samples": column.NumberColumn(width=80, help="Evaluated; fewer where it was stopped early."),
        "Computed": column.TextColumn(width=95, help="On integer kernels, or simulated with fake quantization."),
        "Time": column.NumberColumn("Time (s)", format="%.2f", width=80,
                                    help="Seconds of this config alone; empty where it was known before."),
        "Note": column.TextColumn(width=320, help="Why it was stopped early, failed or was not run."),
    }  # fmt: skip


# ---- earlier ones ----------------------------------------------------------------------------------------------------


def earlier(current: Run | None) -> None:
    """The sweeps of this store, to open one again."""
    found = cache.store().list_runs(EARLIER, kind="sweep")
    others = [run for run in found if current is None or run.id != current.id]
    if not others:
        return
    titles = {run.id: f"{run.name or run.config} · {run.model} · {run.status}" for run in others}
    chosen = st.selectbox(
        "Earlier sweeps", list(titles), index=None, format_func=titles.__getitem__, key="sweep_earlier",
        placeholder="Choose one to open", help="Shows that sweep here, finished or not.",
    )  # fmt: skip
    if chosen is not None:
        state.set_sweep(chosen)
        del st.session_state["sweep_earlier"]
        st.rerun()
