"""What is wrong with the network under the current config, with pictures, and what each remedy brings when tried."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from qlab.errors import InvalidConfig
from qlab.metrics import MISSING, metric, percent, three_digits, write
from qlab.ui import cache, change, choose, derived, errors, prepared, run_list, say, state, widgets

if TYPE_CHECKING:
    from qlab.analysis.diagnose import Diagnosis
    from qlab.analysis.fault import Fault
    from qlab.graph.capture import Model
    from qlab.lab.analyses import Attempts

KIND, TRY_KIND = "diagnose", "advice"
WORDS = derived.Words(
    stopped="The search was stopped, so nothing is known about this config yet.",
    no_result="The search ended without a result.",
    again="Look again",
    help="Looks at weights, ranges, data and errors under the current config.",
)
TRY_WORDS = derived.Words(
    stopped="The trials were stopped. What they had measured was not kept.",
    no_result="The trials ended without a result.",
    again="Try again",
    help="Measures every remedy on the evaluation data.",
)
BADGES = {"error": ":red-badge[error]", "warning": ":orange-badge[costs much]", "note": ":gray-badge[costs little]"}
STATES = {"error": "error", "warning": "costs much", "note": "costs little"}
PICKED, TRYING, CHOSEN = "findings.picked", "findings.trying", "findings.chosen"
MOST_HEIGHT, TRIED_HEIGHT = 330, 460
PICTURE, WORDS_BESIDE = 540, 390  # pixels; under each other in a narrow window


def _arguments() -> dict[str, Any]:
    return {"experiment": state.experiment().replace(name="")}


def _mine() -> str:
    return json.dumps(_arguments()["experiment"].to_dict(), sort_keys=True)


def known(model: Model) -> Diagnosis | None:
    """What a job found for the current model, data and config, or None; looks at nothing."""
    from qlab.lab.analyses import DIAGNOSIS

    data, chosen = cache.dataset(state.data_ref()), state.options()
    return DIAGNOSIS.find(cache.store(), model, data, state.mapping(), batch_size=chosen.batch_size)


def diagnosis(model: Model, *, key: str) -> Diagnosis | None:
    """The diagnosis of the current config; starts the job that makes it where there is none, and shows its progress."""
    if not choose.data_fits(model):
        return None
    return derived.require(KIND, _arguments(), lambda: known(model), WORDS, mine=_mine(), key=key)


# --- what was found ---------------------------------------------------------------------------------------------------


def summary(found: Diagnosis) -> None:
    """In a sentence, before anything else."""
    counts = {name: sum(f.severity == name for f in found.faults) for name in STATES}
    if not found.faults:
        say.success(
            "Nothing is wrong that the lab knows of: no outliers, no channel that suffers, no range wasted or cut "
            "off, and data like that of training."
            if found.costs is not None
            else "Nothing is quantized under this config, so nothing is wrong with it."
        )
        say.caption(
            "To see what the lab finds elsewhere, take the sample `outlier_mlp` in the sidebar, or a preset of fewer "
            "bits on Experiment."
        )
        return
    first = found.faults[0]
    place = f" in **{errors.escape(first.tensor)}**" if first.tensor else ""
    if counts["error"] + counts["warning"] == 0:
        say.success(
            f"Nothing costs much here. {_count(counts['note'], 'thing')} worth knowing, such as {_low(first)}{place}."
        )
    else:
        more = counts["error"] + counts["warning"] - 1
        rest = f" {_count(more, 'more thing')} below." if more else ""
        say.warning(f"The first thing to look at: {_low(first)}{place}.{rest}")


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _low(fault: Fault) -> str:
    """Its title within a sentence; abbreviations stay."""
    title = errors.escape(fault.title)
    return title if title[:2].isupper() or title.startswith(("NaN", "BatchNorm")) else title[:1].lower() + title[1:]


def table(found: Diagnosis) -> Fault | None:
    """The faults, worst first; gives the one that is picked, at first the worst."""
    import pandas as pd

    if not found.faults:
        return None
    names = [f"{f.kind} {f.tensor}" for f in found.faults]
    wanted = st.session_state.get(PICKED) or st.query_params.get("finding")
    row = names.index(wanted) if wanted in names else 0
    key = table_key("findings_table", names)
    run_list.choose(key, [row])
    st.dataframe(
        pd.DataFrame(
            {
                "What": [f.title for f in found.faults],
                "Where": [f.tensor for f in found.faults],
                "How bad": [STATES[f.severity] for f in found.faults],
                "Number": [number(f) for f in found.faults],
                "Output": [_output(f) for f in found.faults],
                "Remedies": [len(f.remedies) for f in found.faults],
            }
        ),
        key=key, hide_index=True, width="stretch", height=run_list.height(len(names), MOST_HEIGHT),
        column_config={
            "How bad": st.column_config.TextColumn(help="Whether it stops the config, or what it costs the output."),
            "Number": st.column_config.TextColumn(help="What the finding is about; the details say what it is."),
            "Output": st.column_config.TextColumn(
                help="SQNR of the network's output when this part alone is quantized, on up to 128 samples: what the "
                "finding costs."
            ),
            "Remedies": st.column_config.NumberColumn(help="Changes of the config that may help."),
        },
        on_select=lambda: _pick(key, names), selection_mode="single-row", alt="What was found, worst first",
    )  # fmt: skip
    return found.faults[row]


def table_key(name: str, rows: Sequence[str]) -> str:
    """Of a table with these rows: another one where they are others, because the browser tells rows by number."""
    return f"{name}_{zlib.crc32(chr(10).join(rows).encode()):x}"


def _pick(key: str, names: Sequence[str]) -> None:
    chosen = run_list.chosen(key, names)
    st.session_state[PICKED] = chosen[0] if chosen else None


def _output(fault: Fault) -> str:
    return write("sqnr", -10 * float(np.log10(fault.cost))) if fault.cost > 0 else MISSING


def number(fault: Fault) -> str:
    """The value of a fault as a person reads it."""
    if fault.kind in ("outlier_weight", "wasted_range", "saturated"):
        return percent(fault.value)
    if fault.kind == "coarse_grid":
        return write("sqnr", fault.value)
    if fault.kind in ("weight_spread", "norm_spread", "activation_spread"):
        return f"{three_digits(fault.value)} ×"
    if fault.kind in ("bias_shift", "unlike_training", "unlike_evaluation"):
        return f"{three_digits(fault.value)} σ"
    if fault.kind == "absurd_scale":
        return write("scale", fault.value)
    return f"{fault.value:,.0f}" if fault.kind == "dead_channel" else MISSING


def details(model: Model, found: Diagnosis, fault: Fault) -> None:
    """One fault: its picture, what was seen, what that means, what to do."""
    from qlab.analysis.fault import KINDS

    kind = KINDS[fault.kind]
    with st.container(horizontal=True, gap="medium", vertical_alignment="top", key="findings_details"):
        picture, words = st.container(width=PICTURE), st.container(width=WORDS_BESIDE)
    with words:
        say.markdown(f"{BADGES[fault.severity]} **{errors.escape(fault.title)}**")
        say.markdown(errors.escape(fault.sentence))
        say.caption(errors.escape(kind.meaning))
        if fault.advice:
            say.markdown(f"**What to do.** {errors.escape(fault.advice)}")
        if fault.remedies:
            say.markdown("**What may help**", help="Each changes the config of the whole lab; Undo brings it back.")
            change.buttons(fault.remedies, "findings_do")
        _links(model, fault)
    with picture:
        _picture(model, found, fault)


def _links(model: Model, fault: Fault) -> None:
    from qlab.ui import trial

    with st.container(horizontal=True, gap="medium"):
        there = fault.tensor in trial.tensors(cache.network(state.model_ref())).entries
        if there and st.button(
            "Open in Distributions", key="findings_open", help="Shows all observers' ranges on this tensor."
        ):
            state.set_tensor(fault.tensor)
            st.switch_page("pages/lab/distributions.py")
        if fault.kind.startswith("unlike"):
            st.page_link("pages/lab/start.py", label="Change the preprocessing on Start")


def _picture(model: Model, found: Diagnosis, fault: Fault) -> None:
    from qlab.analysis.fault import KINDS

    shape = KINDS[fault.kind].picture
    drawn = False
    if shape == "channels":
        drawn = _channels(fault)
    elif shape == "distribution":
        drawn = _values(fault)
    elif shape == "overlay":
        drawn = _overlay(found, fault)
    if not drawn:
        say.caption("There is nothing to draw here: this is about the config or the data as a whole.")


def _held(fault: Fault) -> Any:
    """The tensor: a weight, or what the calibration knows of an activation; None where neither is there."""
    from qlab.ui import trial

    tensors = trial.tensors(cache.network(state.model_ref()))
    if fault.tensor in tensors.weights:
        return tensors.weights[fault.tensor]
    ready = prepared.known(state.model_ref(), state.data_ref())
    if ready is not None and fault.tensor in ready.calibration:
        return ready.calibration[fault.tensor]
    return None


def _grid(fault: Fault, held: Any) -> tuple[float, float] | None:
    """Ends of the grid the config lays over the whole tensor."""
    from qlab.quant.qparams import choose_qparams
    from qlab.ui import tensors, trial

    mapping = state.mapping()
    if fault.tensor in mapping.ranges:
        return mapping.ranges[fault.tensor]
    entry = trial.tensors(cache.network(state.model_ref())).entries.get(fault.tensor)
    spec = tensors.configured(mapping, entry) if entry is not None else None
    if spec is None or spec.granularity != "tensor":
        return None
    qparams = choose_qparams(held, spec)
    return float(qparams.low), float(qparams.high)


def _values(fault: Fault) -> bool:
    from qlab.plots.findings import values_figure
    from qlab.plots.study import values_of
    from qlab.quant.stats import TensorStats

    held = _held(fault)
    if held is None:
        return False
    ends = _grid(fault, held)
    shown = values_of(held)
    window = shown.window(np.array([ends]) if ends else np.empty((0, 2)), "all")
    marked = np.empty(0)
    if fault.kind == "outlier_weight" and not isinstance(held, TensorStats):
        flat = held.detach().abs().flatten()
        limit = float(flat.max()) / 4
        marked = held.detach().flatten()[flat >= limit].numpy().astype(np.float64)[:50]
    widgets.chart(
        values_figure(shown.bins(window), ends, marked, widgets.dark(), quantity=f"value of {fault.tensor}"),
        key="findings_values", alt=f"Values of {fault.tensor} and the range of its grid. {fault.sentence}",
    )  # fmt: skip
    return True


def _channels(fault: Fault) -> bool:
    from qlab.plots.channels import Channels, channel_figure
    from qlab.quant.stats import TensorStats
    from qlab.ui import trial

    held = _held(fault)
    if held is None:
        return False
    if isinstance(held, TensorStats):
        if held.channel_minimum is None or held.channel_maximum is None:
            return False
        low, high = held.channel_minimum.astype(float), held.channel_maximum.astype(float)
    else:
        entry = trial.tensors(cache.network(state.model_ref())).entries[fault.tensor]
        rows = held.detach().movedim(entry.axis or 0, 0).flatten(1)
        low, high = rows.amin(1).numpy().astype(float), rows.amax(1).numpy().astype(float)
    made = channel_figure(
        Channels(low, high), dark=widgets.dark(), shared=_grid(fault, held), ranked=True,
        chosen=fault.channels[0] if fault.channels else None, quantity=f"value of {fault.tensor}",
        revision=fault.tensor,
    )  # fmt: skip
    widgets.chart(made, key="findings_channels", alt=f"Range of each channel of {fault.tensor}. {fault.sentence}")
    return True


def _overlay(found: Diagnosis, fault: Fault) -> bool:
    from qlab.plots.propagation import overlay_figure

    row = found.propagation.of(fault.tensor) if found.propagation is not None else None
    if row is None:
        return False
    made = overlay_figure(row, widgets.dark())
    widgets.chart(made, key="findings_overlay", alt=f"{fault.tensor} in float and simulated. {fault.sentence}")
    return True


# --- what helps -------------------------------------------------------------------------------------------------------


def advice(model: Model, found: Diagnosis) -> None:
    """All remedies, tried: what each brings and costs, and a config of those that are chosen."""
    from qlab.lab.analyses import ADVICE, distinct

    remedies = distinct([remedy for fault in found.faults for remedy in fault.remedies])
    if not remedies:
        return
    st.subheader("What helps?", anchor=False)
    data, chosen = cache.dataset(state.data_ref()), state.options()

    def find() -> Attempts | None:
        return ADVICE.find(cache.store(), model, data, state.mapping(), batch_size=chosen.batch_size)

    attempts = find()
    mine = _mine()
    if attempts is None and st.session_state.get(TRYING) != mine:
        say.markdown(
            f"{_count(len(remedies), 'remedy').replace('remedys', 'remedies')} may help. Trying them quantizes the "
            "network with each and measures it on all evaluation data."
        )
        st.button(
            f"Try all {len(remedies)}" if len(remedies) > 1 else "Try it", key="findings_try", type="primary",
            on_click=st.session_state.__setitem__, args=(TRYING, mine),
            help="Measures every remedy as a job; the config stays as it is until you apply one.",
        )  # fmt: skip
        return
    if attempts is None:
        attempts = derived.require(TRY_KIND, _arguments(), find, TRY_WORDS, mine=mine, key="findings")
    if attempts is not None:
        _tried(model, attempts)


def _tried(model: Model, attempts: Attempts) -> None:
    from qlab.plots.findings import Attempt, attempt_bars

    failed = [one for one in attempts.tried if one.problem]
    for one in failed:
        say.warning(f"{errors.escape(one.remedy.title)} could not be tried: {errors.escape(one.problem)}")
    tried: Sequence[Any] = [one for one in attempts.tried if not one.problem]
    if not tried:
        return
    first = tried[0]
    labelled = first.evaluation.accuracy is not None
    key = "accuracy" if labelled else "agreement"
    value = [t.evaluation.accuracy if labelled else t.evaluation.agreement for t in tried]
    ready = prepared.known(state.model_ref(), state.data_ref())
    reference = ready.float_evaluation.accuracy if ready is not None and labelled else None
    before = None if first.against is None else (value[0] or 0.0) - first.gain
    widgets.chart(
        attempt_bars(
            [Attempt(t.remedy.title, v or 0.0, t.beyond_chance) for t, v in zip(tried, value, strict=True)],
            before, reference, widgets.dark(), key,
        ),
        key="findings_attempts", alt=f"{metric(key).label} with each remedy, before, and in float",
    )  # fmt: skip
    say.caption(_verdict(tried, labelled))
    _choose(model, tried, attempts.left_out)


def _verdict(tried: Sequence[Any], labelled: bool) -> str:
    helps = [t for t in tried if t.gain > 0 and t.beyond_chance is not False]
    if not helps:
        return "None of them brings more than chance. Green bars would be gains beyond chance, grey ones are noise."
    best = helps[0]
    share = "" if best.recovered is None else f", {percent(min(best.recovered, 1.0))} of what was lost against float"
    unit = metric("accuracy" if labelled else "agreement").delta(best.gain)
    return (
        f"{errors.escape(best.remedy.title)} brings {unit}{share}. Grey bars are differences within noise "
        f"(McNemar, on {best.evaluation.n:,} samples)."
    )


def _choose(model: Model, tried: Sequence[Any], left_out: int) -> None:
    """The table of what was measured, of which several can be chosen for one config."""
    import pandas as pd

    from qlab.analysis.remedy import combined, conflicts

    key = table_key("findings_tried", [t.remedy.title for t in tried])
    st.dataframe(
        pd.DataFrame(
            {
                "Remedy": [t.remedy.title for t in tried],
                "Accuracy": [write("accuracy", t.evaluation.accuracy) for t in tried],
                "Agreement": [write("agreement", t.evaluation.agreement) for t in tried],
                "Gain": [metric("accuracy").delta(t.gain) for t in tried],
                "Recovered": [MISSING if t.recovered is None else percent(t.recovered) for t in tried],
                "Beyond chance": [{None: MISSING, True: "yes", False: "no"}[t.beyond_chance] for t in tried],
                "Size": [write("size", t.size) for t in tried],
                "What it does": [t.remedy.sentence for t in tried],
            }
        ),
        key=key, hide_index=True, width="stretch", height=run_list.height(len(tried), TRIED_HEIGHT),
        column_config={
            "Gain": st.column_config.TextColumn(help="Points over the config before, on the same samples."),
            "Recovered": st.column_config.TextColumn(help="Share of what the config before had lost against float."),
            "Beyond chance": st.column_config.TextColumn(help="McNemar's test against the config before, at 5 %."),
        },
        on_select="rerun", selection_mode="multi-row", alt="Remedies as they were measured, best first",
    )  # fmt: skip
    if left_out:
        say.caption(f"{left_out} more were not tried.")
    rows = [row for row in st.session_state[key]["selection"]["rows"] if row < len(tried)]
    chosen = [tried[row].remedy for row in rows]
    title = chosen[0].title if len(chosen) == 1 else f"{len(chosen)} remedies"
    mapping = state.mapping()
    try:
        together, against = combined(mapping, chosen, model), conflicts(mapping, chosen, model)
    except InvalidConfig as error:
        say.warning(f"These cannot be one config: {errors.escape(str(error))}")
        together, against, chosen = mapping, [], []
    for sentence in against:
        say.warning(errors.escape(sentence))
    st.button(
        f"Apply: {title}" if chosen else "Choose rows to apply",
        key="findings_apply", type="primary", disabled=not chosen, on_click=change.to, args=(together, title),
        help="Makes one config of the current one and what is chosen; Undo brings it back.",
    )  # fmt: skip
