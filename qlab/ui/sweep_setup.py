"""What a sweep is to vary: choices that make a grid, how far to go, and what that will take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.config import MODES, QSCHEMES
from qlab.difference import extras
from qlab.errors import InvalidConfig, QLabError
from qlab.lab.grid import Grid
from qlab.metrics import about_duration
from qlab.quant.observers import OBSERVERS
from qlab.ui import cache, errors, jobs, prepared, say, state, widgets
from qlab.ui.config_editor import MODE_NAMES, granularities_for

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.lab.sweep import Sweep

BITS = (8, 7, 6, 5, 4, 3, 2)
EXPORT_SECONDS = 4.0
INTEGER_SHARE = 0.8  # of the float network's time, about, for an evaluation on integers; simulated ones take longer
SIMULATED_SHARE = 1.6
BACKENDS = {"auto": "integer kernels", "simulated": "simulation"}

FIRST = Grid(weight_bits=(8, 4), activation_bits=(8, 6), activation_observers=("min_max", "mse", "percentile"))


@dataclass(frozen=True)
class Plan:
    """The choices of the page. rules: whether the layers that the current config treats differently keep that."""

    grid: Grid = FIRST
    rules: bool = False
    backend: str = "auto"
    eliminate: bool = False
    most: int | None = None
    minutes: float | None = None
    name: str = ""

    def sweep(self) -> Sweep:
        """The sweep of these choices on the current model and data. Raises InvalidConfig."""
        from qlab.lab.sweep import Sweep

        grid = self.grid
        if self.rules:
            grid = replace(grid, rules=state.mapping().replace(default=None))
        data, options = state.data_ref(), state.options()
        return Sweep.of(
            state.model_ref().source, state.data_table(data), grid, batch_size=options.batch_size, seed=options.seed,
            calibration_samples=data.calibration_samples, name=self.name, backend=self.backend,
            eliminate=self.eliminate, most=self.most, seconds=None if self.minutes is None else 60 * self.minutes,
        )  # fmt: skip


def plan() -> Plan:
    return st.session_state.get("lab.plan", Plan())


def _set(**changes: Any) -> None:
    st.session_state["lab.plan"] = replace(plan(), **changes)


def _set_grid(**changes: Any) -> None:
    _set(grid=replace(plan().grid, **changes))


def draw(model: Model | None) -> None:
    """The choices, how many configs they make, what that takes, and the button that starts it."""
    chosen = plan()
    with st.container(horizontal=True, gap="medium"):
        _choice("Weight bits", "weight_bits", BITS, str, "Every number of bits here is tried for the weights.")
        _choice("Activation bits", "activation_bits", BITS, str, "Every number of bits here is tried for activations.")
        _choice(
            "Activation observers", "activation_observers", tuple(OBSERVERS), str,
            "Every rule here picks the ranges of the activations once.",
        )  # fmt: skip
    with st.expander("More to vary: schemes, weight observers, modes, rules"):
        _more(chosen)
    with (
        st.expander(f"How far to go: {_how_far(chosen)}"),
        st.container(horizontal=True, gap="medium", vertical_alignment="bottom"),
    ):
        _limits(chosen)
    with errors.box():
        _start(chosen, model)


def _choice(label: str, field: str, options: Sequence[Any], words: Any, text: str) -> None:
    current = getattr(plan().grid, field)

    def store(new: Sequence[Any]) -> None:
        if new:  # an empty choice would make no config: the widget goes back to what holds
            _set_grid(**{field: tuple(option for option in options if option in new)})

    widgets.kept(
        st.pills, label, options, value=[o for o in options if o in current], store=store, key=f"sweep_{field}",
        selection_mode="multi", format_func=words, help=text,
    )  # fmt: skip


def _more(chosen: Plan) -> None:
    def scheme(name: str) -> str:
        return name.replace("_", " ")

    weights = tuple(s for s in QSCHEMES if s.split("_")[1] in granularities_for("weight"))
    activations = tuple(s for s in QSCHEMES if s.split("_")[1] in granularities_for("activation"))
    _choice(
        "Weight schemes", "weight_schemes", weights, scheme, "How many weights share a scale; each scheme is tried."
    )
    _choice(
        "Activation schemes", "activation_schemes", activations, scheme,
        "Where the grid of activations lies; each scheme is tried.",
    )  # fmt: skip
    rules = tuple(name for name, observer in OBSERVERS.items() if observer.needs != "batches")
    _choice("Weight observers", "weight_observers", rules, str, "Every rule here picks the ranges of the weights once.")
    _choice(
        "Modes", "modes", MODES, MODE_NAMES.__getitem__,
        "Static ranges activations ahead, dynamic at every call, weight-only leaves them float.",
    )  # fmt: skip
    current = state.mapping()
    count = current.rule_count + len(extras(current))
    widgets.kept(
        st.toggle, f"Keep the rules of the current config ({count})", value=chosen.rules and count > 0,
        store=lambda on: _set(rules=on), key="sweep_rules", disabled=count == 0,
        help="Layers that the current config leaves float, or treats differently, are treated so in every config.",
    )  # fmt: skip


def _how_far(chosen: Plan) -> str:
    """What stands in the folded part, so that it need not be opened to be known."""
    parts = [f"on {BACKENDS[chosen.backend]}" if chosen.backend == "auto" else "simulated"]
    parts.append("every config" if chosen.most is None else f"at most {chosen.most} configs")
    if chosen.minutes is not None:
        parts.append(f"at most {chosen.minutes:g} minutes")
    parts.append("what is worse beyond chance on fewer samples" if chosen.eliminate else "all samples")
    return ", ".join(parts)


def _limits(chosen: Plan) -> None:
    widgets.kept(
        st.segmented_control, "Evaluate on", tuple(BACKENDS), value=chosen.backend,
        store=lambda new: _set(backend=new or chosen.backend), key="sweep_backend", required=True,
        format_func=BACKENDS.__getitem__,
        help="Integer kernels are faster and are what is deployed; configs that have none are simulated and say so.",
    )  # fmt: skip
    widgets.kept(
        st.toggle, "Drop what is worse beyond chance", value=chosen.eliminate,
        store=lambda on: _set(eliminate=on), key="sweep_eliminate",
        help="Compares each config with the best so far after an eighth, a quarter and half of the samples (sign "
        "test), and spends no more on it when it is clearly worse; it stays in the table with that reason.",
    )  # fmt: skip
    widgets.kept(
        st.number_input, "At most configs", 1, 5000, value=chosen.most, step=1, placeholder="all",
        store=lambda new: _set(most=new), key="sweep_most", width=150,
        help="Runs only so many, in an order in which the first already cover the space; empty runs all.",
    )  # fmt: skip
    widgets.kept(
        st.number_input, "At most minutes", 0.1, 10000.0, value=chosen.minutes, step=1.0, placeholder="no limit",
        store=lambda new: _set(minutes=new), key="sweep_minutes", width=150,
        help="Starts no further config after this time; what is done stays, and the rest can be taken up again.",
    )  # fmt: skip
    widgets.kept(
        st.text_input, "Name", value=chosen.name, store=lambda new: _set(name=new or ""), key="sweep_name", width=180,
        placeholder="none", help="What the list of sweeps calls it.",
    )  # fmt: skip


def _start(chosen: Plan, model: Model | None) -> None:
    if problem := st.session_state.pop("sweep_problem", None):
        errors.show(problem)
    try:
        sweep = chosen.sweep()
    except InvalidConfig as error:
        say.warning(errors.escape(str(error)))
        return
    going = any(run.kind == "sweep" for run in jobs.open_runs())
    with st.container(horizontal=True, gap="medium", vertical_alignment="center"):
        st.button(
            "Run the sweep", key="sweep_run", type="primary", on_click=_submit, args=(sweep,),
            disabled=going or model is None,
            help="Calibrates once, then evaluates every config in a process of its own; each becomes a run.",
        )  # fmt: skip
        say.markdown(_words(chosen, sweep, model) if model is not None else f"**{len(sweep.configs)} configs**")
    left_out = chosen.grid.left_out
    if left_out:
        with st.expander(f"{len(left_out)} combinations are no valid config"):
            say.markdown("\n".join(f"- {errors.escape(name)}: {errors.escape(why)}" for name, why in left_out.items()))


def _submit(sweep: Sweep) -> None:
    try:
        state.set_sweep(jobs.submit("sweep", sweep=sweep))
    except QLabError as error:
        st.session_state["sweep_problem"] = error


def _words(chosen: Plan, sweep: Sweep, model: Model) -> str:
    """How many configs, how many of them known, and about how long the rest takes."""
    total = len(sweep.configs)
    known = _known(sweep, model)
    to_run = min(total - known, chosen.most or math.inf)
    parts = [f"**{total} config{'s' if total != 1 else ''}**"]
    if known:
        parts.append(f"{known} known from earlier runs")
    if to_run < total - known:
        parts.append(f"{to_run} of them within the budget")
    found = estimate(sweep, model, int(to_run))
    if found is not None:
        seconds, by = found
        if chosen.minutes is not None:
            seconds = min(seconds, 60 * chosen.minutes)
        parts.append(about_duration(seconds) + (f", going by {by}" if by else ""))
    else:
        parts.append("how long it takes is known once the network has been calibrated")
    return " · ".join(parts)


def _known(sweep: Sweep, model: Model) -> int:
    """How many of its configs the store has a full result of."""
    from qlab.lab.run import content_key_of

    data = cache.dataset(state.data_ref())
    batch = model.fixed_batch or sweep.batch_size
    keys = [content_key_of(model.content_hash, data.content_hash, batch, e) for e in sweep.experiments]
    return len(cache.store().known(keys))


def estimate(sweep: Sweep, model: Model, configs: int) -> tuple[float, str] | None:
    """Seconds that so many configs will take, and by what that is told; None where nothing has been timed yet.

    By runs of the same network and data where there are some, else by the float network's own evaluation.
    """
    if configs == 0:
        return 0.5, ""
    data_hash = cache.dataset(state.data_ref()).content_hash
    rounds = math.ceil(configs / _places())
    earlier = [
        run.seconds for run in cache.store().list_runs(200, kind="experiment", status="done")
        if run.model_hash == model.content_hash and run.data_hash == data_hash and run.seconds is not None
        and run.headline.dropped is None and (run.headline.backend == "integer") == (sweep.backend == "auto")
    ]  # fmt: skip
    if earlier:
        return rounds * median(earlier[:50]), f"{len(earlier[:50])} earlier run{'s' if len(earlier) > 1 else ''}"
    found = prepared.known(state.model_ref(), state.data_ref())
    seconds = None if found is None else _float_seconds(model.content_hash, data_hash)
    if seconds is None:
        return None
    share = INTEGER_SHARE if sweep.backend == "auto" else SIMULATED_SHARE
    return rounds * (share * seconds + 0.3) + (
        EXPORT_SECONDS if sweep.backend == "auto" else 0.0
    ), "the float network's time"


def _places() -> int:
    """How many configs run at once on this machine; of a cluster that is not known before it is asked."""
    from qlab.lab.jobs import Staff

    return 1 if cache.runner().address else Staff.of_this_machine().workers


def _float_seconds(model_hash: str, data_hash: str) -> float | None:
    """What the float network took to be evaluated, by the job that did it."""
    store = cache.store()
    for run in store.list_runs(200, kind=("prepare", "experiment"), status="done"):
        if run.model_hash == model_hash and run.data_hash == data_hash:
            timings = (store.get_run(run.id).result or {}).get("timings", {})
            if "evaluate float" in timings:
                return float(timings["evaluate float"])
    return None
