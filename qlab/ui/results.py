"""A stored run as a person reads it: verdict first, then what changed, layer by layer, and the spec to repeat it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from qlab.metrics import COMPUTED, MISSING, metric, write
from qlab.plots.accuracy import Dot, accuracy_dots
from qlab.plots.layers import sqnr_bars
from qlab.ui import cache, errors, flips, library, overrides, say, state, widgets

if TYPE_CHECKING:
    from qlab.data import Dataset
    from qlab.lab.experiment import Experiment
    from qlab.lab.run import Prepared, Result
    from qlab.lab.store import Run

LEDGER_HEIGHT = 460
SPEC_LINES, SPEC_HEIGHT = 20, 460
ACCURACY_HELP = "Accuracy on the evaluation data, in brackets its 95 % interval. "
SIMULATED_HELP = (
    f"{ACCURACY_HELP}Quantized figures are simulated with fake quantization in torch, not measured on integer kernels."
)
INTEGER_HELP = f"{ACCURACY_HELP}Measured on the integer kernels of ONNX Runtime, not simulated."
QUANTIZED = {backend: f"Quantized, {words}" for backend, words in COMPUTED.items()}
HELP = {"simulated": SIMULATED_HELP, "integer": INTEGER_HELP}
UNLABELLED = "The data has no labels, so there is no accuracy: agreement and SQNR are what can be said."


def result_of(run: Run) -> Result:
    """What a finished run found. Raises RunFailed with its reason. Shared by all sessions: do not change it."""
    return _result(run.id, str(cache.store().home))


@st.cache_resource(max_entries=32, show_spinner="Reading the result")
def _result(run_id: str, _home: str) -> Result:
    from qlab.lab.run import read_result

    return read_result(cache.store(), cache.store().get_run(run_id))


def float_interval(run: Run) -> tuple[float, float] | None:
    """Ends of the 95 % interval of the float network's accuracy; None without labels."""
    return result_of(run).reference.accuracy_interval


@st.cache_resource(max_entries=4, show_spinner="Reading the data of this run")
def _evaluation_data(run_id: str, _home: str, _run: Run) -> Dataset:
    from qlab.lab import compared

    return compared.evaluation_data(cache.store(), _run)


def evaluation_data(run: Run) -> Dataset:
    """The samples this run was measured on, which need not be the data that is open. Raises DataMismatch when the file
    is no longer what the run saw."""
    return _evaluation_data(run.id, str(cache.store().home), run)


# --- above the editor -------------------------------------------------------------------------------------------------


def before(found: Prepared | None) -> None:
    """The float figure that a run will be held against, in the place where its result will stand."""
    reference = found.float_evaluation if found else None
    if reference is not None and reference.accuracy is None:
        _figure("Agreement with float", MISSING, "not run yet", metric("agreement").help)
        with st.container():
            say.markdown(UNLABELLED)
        return
    interval = reference.accuracy_interval if reference else None
    value = write("accuracy", reference.accuracy if reference else None)
    _figure("Float", value, _interval(interval) if interval else "being measured", SIMULATED_HELP)
    _figure(QUANTIZED["simulated"], MISSING, "not run yet", SIMULATED_HELP)
    with st.container():
        say.markdown("Run quantizes the network with the settings below and holds it against float, sample by sample.")


def headline(run: Run, result: Result) -> None:
    """Float against quantized as two large figures, and whether the difference is more than chance."""
    comparison, backend = result.comparison, result.quantized.backend
    if result.quantized.accuracy is None:
        agreement = write("agreement", result.quantized.agreement)
        _figure("Agreement with float", agreement, COMPUTED[backend], metric("agreement").help)
        changed = "Predictions that are not the same, out of all."
        _figure("Predictions changed", f"{comparison.changed:,}", f"of {comparison.n:,}", changed)
    else:
        for label, found in (("Float", result.reference), (QUANTIZED[backend], result.quantized)):
            assert found.accuracy_interval is not None
            _figure(label, write("accuracy", found.accuracy), _interval(found.accuracy_interval), HELP[backend])
    with st.container():
        if result.quantized.accuracy is None:
            say.markdown(UNLABELLED)
        else:
            verdict(result)
        if run.headline.dropped:
            say.caption(errors.escape(f"This run was {run.headline.dropped}."))
        if other := _of_other_settings(run):
            say.caption(other)


def _figure(label: str, value: str, note: str, text: str) -> None:
    """A large figure as wide as its words, so that a row of them wraps on a narrow screen and nothing is cut."""
    st.metric(label, value, note, delta_color="off", delta_arrow="off", width="content", help=text)


def subject(run: Run) -> str:
    """The network, and the data where that is not its own."""
    return run.model if run.data in (run.model, "") else f"{run.model} on {run.data}"


def _of_other_settings(run: Run) -> str:
    """What these figures are of, where that is not what the editor below shows."""
    experiment = _experiment_of(run)
    here = state.model_ref().source, state.data_ref().source
    if (experiment.model, _source(experiment)) != here:
        return errors.escape(f"This is of {subject(run)}, not of the network that is open.")
    if experiment.changes:
        done = [
            *(["was trained"] if experiment.training else []),
            *(["has numbers edited by hand"] if experiment.edits else []),
        ]
        return f"The network of these figures {' and '.join(done)}; Run below converts the config alone."
    if experiment.resolved_mapping != state.mapping():
        return f"This is of the run {errors.escape(run.name or run.id)}; the settings below are others by now."
    return ""


def _experiment_of(run: Run) -> Experiment:
    from qlab.lab.experiment import Experiment

    return Experiment.from_dict(run.spec)


def _source(experiment: Experiment) -> str | None:
    data = experiment.data
    return data if isinstance(data, str) else data.get("path") if isinstance(data, Mapping) else None


def _interval(interval: tuple[float, float]) -> str:
    return f"{metric('accuracy').interval(*interval)} %"


def verdict(result: Result) -> None:
    """The paired comparison in words; a difference inside the noise is grey and says so."""
    comparison = result.comparison
    assert result.quantized.accuracy is not None
    assert result.reference.accuracy is not None
    change = metric("accuracy").delta(result.quantized.accuracy - result.reference.accuracy)
    worse = comparison.lost > comparison.gained
    colour = ("orange" if worse else "green") if comparison.significant else "gray"
    words = comparison.verdict
    say.markdown(f":{colour}-badge[{change}] {errors.escape(words[:1].upper() + words[1:])}.")


# --- below the editor -------------------------------------------------------------------------------------------------


def draw(run: Run, result: Result | None) -> None:
    """What this run found; of one that gave no result, what it was."""
    if not run.ended:
        return
    heading(run, _experiment_of(run))
    if result is not None:
        details(run, result)
    else:
        with st.expander("Repeat it"):
            repeat(run)


def heading(run: Run, experiment: Experiment) -> None:
    """What this run was, and the buttons that make its settings the current ones."""
    words, actions = st.columns([0.6, 0.4], vertical_alignment="bottom")
    words.subheader(f"What did {errors.escape(run.name) or 'this run'} find?", anchor=False)
    when = datetime.datetime.fromtimestamp(run.created).strftime("%Y-%m-%d %H:%M")
    words.caption(
        errors.escape(f"Run {run.id} · {subject(run)} · {run.config} · {when}")
        + (f" · {write('duration', run.seconds)}" if run.seconds is not None else "")
    )
    with actions, st.container(horizontal=True, horizontal_alignment="right"):
        others = _other_refs(experiment)
        if others:
            st.button(
                "Open its network and data",
                key="exp_open_refs",
                on_click=_open_refs,
                args=others,
                help="Shows the network and the data of this run on every page; the ones open now stay in the lists.",
            )
        same = experiment.resolved_mapping == state.mapping()
        st.button(
            "This is the config above" if same else "Use this config",
            key="exp_use_config",
            disabled=same,
            on_click=state.set_mapping,
            args=(experiment.resolved_mapping,),
            help="Puts the settings of this run into the editor; Distributions and Run then use them.",
        )


def _other_refs(experiment: Experiment) -> tuple[library.ModelRef, library.DataRef] | None:
    """Network and data of the run, if they are not the ones that are open and can be."""
    source = _source(experiment)
    models = {ref.source: ref for ref in library.models()}
    data_sets = {ref.source: ref for ref in library.data_sets()}
    if experiment.model not in models or source not in data_sets:  # it came from a path, by the command line
        return None
    found = models[experiment.model], data_sets[source]
    here = state.model_ref().source, state.data_ref().source
    return None if here == (found[0].source, found[1].source) else found


def _open_refs(model: library.ModelRef, data: library.DataRef) -> None:
    run = state.run_id()
    state.set_model(model)
    state.set_data(data)
    state.set_run(run)  # switching the model closes its run; this one belongs to the new model


def details(run: Run, result: Result) -> None:
    for text in warnings(result):
        say.warning(errors.escape(text))
    _figures(result)
    dots = [
        Dot(label, found.accuracy, *found.accuracy_interval, kind=kind)  # type: ignore[arg-type]
        for label, found, kind in (("float", result.reference, "float"), ("quantized", result.quantized, "quantized"))
        if found.accuracy is not None and found.accuracy_interval is not None
    ]
    if dots:
        widgets.chart(accuracy_dots(dots, widgets.dark()), key="exp_dots")
    changed, layers, ledger, time, spec = st.tabs(
        ["Flipped examples", "SQNR per layer", "Ledger", "Time", "Repeat it"], key="exp_tabs"
    )
    with changed, errors.box():
        flips.draw(evaluation_data(run), result.reference, result.quantized, result.comparison)
    with layers:
        say.caption(
            "Measured on evaluation samples, with the errors of earlier layers: where the bars drop, the damage begins."
        )
        widgets.chart(sqnr_bars(result.quantized.sqnr, widgets.dark()), key="exp_sqnr")
    with ledger:
        _ledger(result.ledger)
    with time:
        _timings(run, result)
    with spec:
        repeat(run)


def _figures(result: Result) -> None:
    size, comparison = result.size, result.comparison
    parts = (
        f"Codes {write('size', size['codes'])}, scales {write('size', size['scales'])}, zero points "
        f"{write('size', size['zero_points'])}, what stays float {write('size', size['float_rest'])}."
    )
    with st.container(horizontal=True, gap="large"):
        _figure("Size", write("size", size["quantized"]), f"of {write('size', size['float'])} in float", parts)
        changed = f"{comparison.changed:,} of {comparison.n:,} changed"
        _figure("Agreement", write("agreement", result.quantized.agreement), changed, metric("agreement").help)
        if comparison.p is not None:
            _figure("Lost", write("lost", comparison.lost), "right before, wrong now", metric("lost").help)
            _figure("Gained", write("gained", comparison.gained), "wrong before, right now", metric("gained").help)


def _ledger(ledger: Sequence[Mapping[str, Any]]) -> None:
    say.caption("One line for each op: what happened to it, which rule decided, and why.")
    rows = pd.DataFrame(
        {
            "Layer": [row["layer"] for row in ledger],
            "Op": [row["op"] for row in ledger],
            "Quantized": [row["quantized"] for row in ledger],
            "Why": [row["reason"] for row in ledger],
            "Weight": [row["weight"] or "" for row in ledger],
            "Activation": [row["activation"] or "" for row in ledger],
            "Rule": [row["rule"] for row in ledger],
            "Notes": ["; ".join(row["notes"]) for row in ledger],
        }
    )
    empty = [name for name, said in (("Notes", {""}), ("Rule", {"default", "-"})) if set(rows[name]) <= said]
    rows = rows.drop(columns=empty)
    st.dataframe(
        rows,
        key="exp_ledger",
        hide_index=True,
        width="stretch",
        height=min(LEDGER_HEIGHT, 36 * (len(rows) + 1) + 2),
        column_config={
            "Op": st.column_config.TextColumn(width="small"),
            "Quantized": st.column_config.CheckboxColumn(width="small"),
            "Why": st.column_config.TextColumn(width=300),
            "Rule": st.column_config.TextColumn(
                help="The rule of the config that decided; default where none named it."
            ),
        },
    )


def _timings(run: Run, result: Result) -> None:
    say.caption("Seconds each stage took, in the worker process.")
    stages = pd.DataFrame(
        {"Stage": list(result.timings), "Time": [write("duration", seconds) for seconds in result.timings.values()]}
    )
    if run.seconds is not None:
        stages.loc[len(stages)] = ["all together", write("duration", run.seconds)]
    st.dataframe(stages, key="exp_timings", hide_index=True, width="content")


def repeat(run: Run) -> None:
    say.caption("This spec repeats the run anywhere qlab is installed; save it as spec.json.")
    st.code("python -m qlab run spec.json", language="bash")
    spec = json.dumps(run.spec, indent=2)
    st.code(spec, language="json", height=SPEC_HEIGHT if spec.count("\n") > SPEC_LINES else "content")


# --- what to know before believing the figures ------------------------------------------------------------------------


def warnings(result: Result) -> list[str]:
    """Rules without effect, layers that stayed float although nobody asked for it, constant tensors."""
    out = []
    for rule in result.unmatched:
        by, _, pattern = rule.partition(" ")
        kind = overrides.BY_TYPE if by == "by_type" else overrides.BY_NAME
        out.append(f"The rule for the {kind} {pattern} matched no layer, so it did nothing.")
    surprising: dict[str, list[str]] = {}
    for row in result.ledger:
        if _may_surprise(row):
            surprising.setdefault(row["reason"], []).append(row["layer"])
    for reason, layers in surprising.items():
        out.append(f"{overrides.some(layers)} stayed float: {reason}.")
    if len(result.ledger) and not any(row["quantized"] for row in result.ledger):
        out.append("No op of this network was quantized, so this is the float network under another name.")
    for row in result.ledger:
        out += [f"{row['layer']}: {note}." for note in row["notes"]]
    return out


def _may_surprise(row: Mapping[str, Any]) -> bool:
    """A layer with a weight that stayed float, and no rule says that it should. Runs from before
    ledgers had causes are not judged."""
    from qlab.graph.optypes import OP_TYPES

    weighted = OP_TYPES[row["op"]].role in ("weighted", "lookup", "recurrent")
    return weighted and not row["quantized"] and row.get("cause") not in ("excluded", "default_float", None)
