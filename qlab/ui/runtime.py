"""What ran on integers: which calls are measured, the report about them, and its figures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from qlab.metrics import MINUS, duration_range, metric, percent, three_digits, write
from qlab.ui import cache, choose, derived, errors, jobs, say, state, widgets

if TYPE_CHECKING:
    from qlab.graph.capture import Model
    from qlab.runtime.executed import Executed
    from qlab.runtime.parity import Parity
    from qlab.runtime.report import RuntimeReport
    from qlab.runtime.why import Speed

KIND = "runtime"
WORDS = derived.Words(
    stopped="The measurement was stopped, so nothing is known about this config yet.",
    no_result="The measurement ended without a result.",
    again="Measure",
    help="Runs the network under the current config in ONNX Runtime and times it.",
)
BATCHES = (1, 8, 32, 128)
AS_SIMULATED, DEFAULTS = "as simulated", "runtime defaults"


# --- which calls ------------------------------------------------------------------------------------------------------


def begin() -> None:
    """Takes batch, threads and the way to open the session from the link on the first visit."""
    if "runtime.batch" in st.session_state:
        return
    asked = {name: st.query_params.get(name, "") for name in ("batch", "threads", "opened")}
    batch, count = (int(asked[name]) if asked[name].isdecimal() else 0 for name in ("batch", "threads"))
    st.session_state["runtime.batch"] = batch if batch in BATCHES else 32
    st.session_state["runtime.threads"] = count if count in threads() else threads()[-1]
    st.session_state["runtime.opened"] = DEFAULTS if asked["opened"] == "defaults" else AS_SIMULATED


def threads() -> list[int]:
    """What can be chosen: 1, 2, 4, … up to the cores, four at most."""
    cores = os.cpu_count() or 1
    return [n for n in (1, 2, 4) if n <= cores]


def share_params() -> dict[str, str | None]:
    """What a link needs to show the same."""
    opened = st.session_state.get("runtime.opened")
    return {
        "batch": str(st.session_state["runtime.batch"]) if "runtime.batch" in st.session_state else None,
        "threads": str(st.session_state["runtime.threads"]) if "runtime.threads" in st.session_state else None,
        "opened": "defaults" if opened == DEFAULTS else None,
    }


def as_simulated() -> bool:
    """Whether the session is opened so that results stay those of the simulation."""
    return st.session_state["runtime.opened"] == AS_SIMULATED


def _set(name: str, value: object) -> None:
    if value is not None:  # a segmented control gives None when its choice is pressed again
        st.session_state[f"runtime.{name}"] = value


def controls(model: Model, report: RuntimeReport | None) -> None:
    """One row: batch, threads, how the session is opened where that matters, and a button to measure anew."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="runtime_controls"):
        widgets.kept(
            st.segmented_control, "Batch", BATCHES, value=st.session_state["runtime.batch"],
            store=lambda n: _set("batch", n), key="runtime_batch", disabled=model.fixed_batch is not None,
            help="Measures calls with so many samples each. More of them use the kernels better."
            + (f" This network insists on {model.fixed_batch}." if model.fixed_batch else ""), width="content",
        )  # fmt: skip
        widgets.kept(
            st.segmented_control, "Threads", threads(), value=st.session_state["runtime.threads"],
            store=lambda n: _set("threads", n), key="runtime_threads", width="content",
            help="Measures with so many threads of ONNX Runtime and of torch.",
        )  # fmt: skip
        if report is not None and report.times is not None and report.times.defaults is not None:
            widgets.kept(
                st.segmented_control, "Session opened", (AS_SIMULATED, DEFAULTS),
                value=st.session_state["runtime.opened"], store=lambda how: _set("opened", how), key="runtime_opened",
                width="content",
                help="Shows what runs when the session keeps the results of the simulation, or when the file is opened "
                "as anyone would.",
            )  # fmt: skip
        if report is not None:
            st.button(
                "Measure again", key="runtime_again", on_click=_measure_again,
                help="Takes the times anew, for when something else kept the machine busy.",
            )  # fmt: skip


# --- the report -------------------------------------------------------------------------------------------------------


def known(model: Model) -> RuntimeReport | None:
    """The report on the current model, data, config and calls if it is in the store; measures nothing."""
    from qlab.lab.inspect import find_runtime_report, newest_report
    from qlab.lab.sources import portable

    data, chosen = cache.dataset(state.data_ref()), state.options()
    calls = {name: st.session_state[f"runtime.{name}"] for name in ("batch", "threads")}
    store = cache.store()
    found = find_runtime_report(store, model, data, state.mapping(), **calls, batch_size=chosen.batch_size)
    if found is None and cache.runner().address:
        # Measured by a worker of a cluster, whose CPU is not this one's.
        found = newest_report(store, portable(_arguments()["experiment"], store), **calls)
    return found


def measured(model: Model) -> RuntimeReport | None:
    """The report; starts the job that makes it where there is none, and shows how far it is."""
    if not choose.data_fits(model):
        return None
    if not _anew_is_over():
        return None
    arguments = _arguments()
    mine = json.dumps(arguments["experiment"].to_dict(), sort_keys=True), *_calls()
    if (report := known(model)) is not None:
        return report
    say.caption(
        f"The config **{errors.escape(state.config_label())}** has not run on this machine with these calls yet. "
        "It runs now; what is found is kept."
    )
    return derived.require(KIND, arguments, lambda: known(model), WORDS, mine=mine, key="runtime")


def _calls() -> tuple[int, int]:
    return st.session_state["runtime.batch"], st.session_state["runtime.threads"]


def _arguments() -> dict[str, Any]:
    batch, count = _calls()
    return {"experiment": state.experiment().replace(name=""), "batch": batch, "threads": count}


def _measure_again() -> None:
    st.session_state["runtime.anew"] = jobs.submit(KIND, **_arguments(), again=True)


def _anew_is_over() -> bool:
    """Whether no measurement that was asked for again is going on; shows it if there is one."""
    run_id = st.session_state.get("runtime.anew")
    if run_id is None:
        return True
    run = jobs.watch(run_id, key="runtime_anew")
    if run is None:
        return False
    del st.session_state["runtime.anew"]
    if run.status == "failed":
        errors.failure(run.error or WORDS.no_result, run.detail)
    return True


# --- figures ----------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """What ran in the way to open the session that was chosen. name: of its times, INTEGER or DEFAULTS."""

    ran: Executed
    parity: Parity
    name: str


def shown(report: RuntimeReport) -> Shown:
    """The executed graph and the comparison of the way that was chosen; as simulated where both are the same."""
    from qlab.runtime.report import DEFAULTS as PLAIN
    from qlab.runtime.report import INTEGER

    assert report.times is not None
    assert report.numbers is not None
    if as_simulated() or report.times.defaults is None or report.numbers.defaults is None:
        return Shown(report.times.executed, report.numbers.parity, INTEGER)
    return Shown(report.times.defaults, report.numbers.defaults, PLAIN)


def kind_of(ran: Executed) -> str:
    """What to call the network that ran: integer where an integer kernel computed something of it, else quantized."""
    return "integer" if any(o.kind == "integer" for o in ran.ops) else "quantized"


def headline(report: RuntimeReport) -> None:
    """How much ran on integers, how fast, and whether it is what was simulated."""
    from qlab.runtime.report import FLOAT, INTEGER
    from qlab.runtime.why import speed

    assert report.times is not None
    assert report.numbers is not None
    ran, compared, name = shown(report)
    kernels = [kind for _, kind in report.kernels(ran)]
    word = kind_of(ran).capitalize()
    timing = report.times.timing
    latency, float_latency = timing.latency(name), timing.latency(FLOAT)
    of = report.numbers.accuracies
    values: list[tuple[str, str, str | None, str]] = [
        (
            "Layers on integers", f"{kernels.count('integer')} of {len(kernels)}",
            f"{percent(ran.share('integer'))} of the time",
            "Convolution, linear and recurrent layers whose products an integer kernel computed, and the share of one "
            "call that all integer kernels took.",
        ),
        (
            "Conversions", str(len(ran.boundaries)), f"{percent(ran.share('convert'))} of the time",
            "Ops that turn float into integers or back, those at input and output among them.",
        ),
        (
            f"{word} latency", write("latency", latency.median),
            f"{duration_range(latency.low, latency.high)} · float {write('latency', float_latency.median)}",
            f"Median of {latency.runs} turns with its quartiles, for one call with {timing.batch} "
            f"sample{'s' if timing.batch > 1 else ''} on {report.threads} thread{'s' if report.threads > 1 else ''}; "
            "the float network runs in ONNX Runtime too.",
        ),
        (
            "Against float", *_speed(speed(timing, name)),
            "Time of the float network over that of the integer one, turn by turn: the median, and the quartiles of "
            "all turns. Where 1 lies between these, the difference is noise.",
        ),
        (
            "Off the simulation", difference(compared), _agreement(compared),
            f"Largest difference of an output between integer kernels and simulation on {compared.samples} samples, "
            + ("in steps of its scale." if compared.output_in_steps else "in its own unit: it lies on no grid."),
        ),
    ]  # fmt: skip
    if of.integer.accuracy is not None and of.integer.accuracy_interval is not None and name == INTEGER:
        values.append(
            (
                f"{word} accuracy", write("accuracy", of.integer.accuracy),
                metric("accuracy").interval(*of.integer.accuracy_interval),
                f"On all {of.integer.n:,} evaluation samples, predicted by ONNX Runtime opened as simulated; the "
                f"simulation has {write('accuracy', of.simulated.accuracy)}.",
            )
        )  # fmt: skip
    widgets.figures(values)


def _speed(found: Speed) -> tuple[str, str]:
    low, median, high = found.ratio
    return f"{median:.2f} ×", f"[{low:.2f}, {high:.2f}] · {found.outcome}"


def difference(compared: Parity) -> str:
    """The largest of an output: in steps where the outputs lie on a grid, else in their own unit."""
    if compared.output_in_steps:
        return write("steps", compared.output_largest)
    return three_digits(compared.output_largest).replace("-", MINUS)


def _agreement(compared: Parity) -> str | None:
    return None if compared.agreement is None else f"{percent(compared.agreement)} same class"


def findings(report: RuntimeReport) -> None:
    """What a person must not overlook: why integer is slower, results that are others by default, a busy machine."""
    from qlab.runtime.why import doubt, speed, why_not_faster

    assert report.times is not None
    assert report.numbers is not None
    defaults = report.numbers.defaults
    if defaults is not None:
        same = report.numbers.parity
        text = (
            f"**Opened with the runtime's defaults, this file computes something else on this machine.** Its outputs "
            f"are off by up to {difference(defaults)}, against {difference(same)} when opened as simulated"
        )
        if defaults.output_within_step is not None:
            text += f"; {percent(1 - defaults.output_within_step)} of them by more than one step"
        if defaults.agreement == 1:
            text += f"; on {defaults.samples} samples they still name the same classes"
        elif defaults.agreement is not None:
            text += f"; for {percent(1 - defaults.agreement)} of the predictions they name another class"
        text += ". Why, and the entry that prevents it, stands under This machine."
        worse = _worse(defaults, same)
        (st.warning if worse else st.caption)(text if worse else text.replace("**", ""))
    name = shown(report).name
    if speed(report.times.timing, name).outcome == "slower":
        why = why_not_faster(report, name)
        text = f"**Why slower.** {errors.escape(why[0])}" if why else "**Slower**, for no reason that shows here."
        say.markdown(text + (f" More under Latency ({len(why) - 1})." if len(why) > 1 else ""))
    if (reason := doubt(report.times)) is not None:
        say.warning(f"{reason}, so the times say little. Measure again when it is quiet.")


def _worse(defaults: Parity, same: Parity) -> bool:
    return defaults.output_largest > 1.5 * same.output_largest or (defaults.agreement or 1) < (same.agreement or 1)
