"""What lasts while a person walks through the pages: model, data, config, selected layer and run.

Streamlit forgets the value of a widget whose page is not shown, so the canonical values live here, under keys of their
own, and widgets are seeded from them (`widgets.kept`). Everything is read and written through these functions; no page
touches st.session_state for shared values. The config is one object: what Distributions sets is what Experiment runs.

Keys in st.session_state, for tests that start from a state: "lab.model" (ModelRef), "lab.data" (DataRef),
"lab.mapping" (QConfigMapping), "lab.tensor" (str), "lab.run" (str), "lab.sweep" (str), "lab.compared" (tuple of str),
"lab.baseline" (str), "lab.picked" (str).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from qlab.config import QConfig, QConfigMapping
from qlab.difference import extras
from qlab.errors import InvalidConfig
from qlab.ui import library
from qlab.ui.library import DataRef, ModelRef

if TYPE_CHECKING:
    from qlab.lab.experiment import Experiment

DEFAULT_PRESET = "x86"


@dataclass(frozen=True)
class RunOptions:
    """The fields of an experiment beside model, data and mapping. The split of the data belongs to the data."""

    batch_size: int = 64
    seed: int = 0
    name: str = ""

    def replace(self, **changes: Any) -> RunOptions:
        return replace(self, **changes)


def begin() -> None:
    """Fills in the state on the first run of a session: from the link (?model=…&data=…&run=…) or the default.

    The frame calls it before anything else on every run. An unknown name in a link falls back to the default, and
    `take_notice` says so once.
    """
    if "lab.model" in st.session_state:
        return
    models = {ref.source: ref for ref in library.models()}
    data_sets = {ref.source: ref for ref in library.data_sets()}
    if not models:
        raise InvalidConfig("There is no network to show: sample_models/ is empty. Get the whole repository.")
    asked = {what: st.query_params.get(what) for what in ("model", "data")}
    missing = [
        what for what, known in (("model", models), ("data", data_sets)) if asked[what] and asked[what] not in known
    ]
    if missing:
        st.session_state["lab.notice"] = (
            f"The link names a {' and a '.join(missing)} that is not here: it may have been uploaded on another "
            "machine. A sample is open instead."
        )
    model = models.get(asked["model"] or "") or next(iter(models.values()))
    data = data_sets.get(asked["data"] or "") or data_sets.get(model.source) or next(iter(data_sets.values()))
    st.session_state["lab.model"], st.session_state["lab.data"] = model, data
    if run := st.query_params.get("run"):
        st.session_state["lab.run"] = run
    if sweep := st.query_params.get("sweep"):
        set_sweep(sweep)
    if runs := st.query_params.get("runs"):
        set_compared([run for run in runs.split(",") if run])
        set_baseline(st.query_params.get("baseline"))


def take_notice() -> str | None:
    """Something to tell once, such as a link that could not be followed; None when there is nothing."""
    return st.session_state.pop("lab.notice", None)


# --- model and data ---------------------------------------------------------------------------------------------------


def model_ref() -> ModelRef:
    """The model everything is about; `cache.model(state.model_ref())` loads it."""
    return st.session_state["lab.model"]


def set_model(ref: ModelRef) -> None:
    """Switches the model. A sample brings its own data; an uploaded model keeps the data that was chosen."""
    if ref == st.session_state.get("lab.model"):
        return
    st.session_state["lab.model"] = ref
    if ref.kind == "sample":
        set_data(library.sample_data(ref.source))
    for key in ("lab.tensor", "lab.run"):
        st.session_state.pop(key, None)


def data_ref() -> DataRef:
    """The data set that calibrates and evaluates, with its preprocessing."""
    return st.session_state["lab.data"]


def set_data(ref: DataRef) -> None:
    """Switches the data set or its preprocessing."""
    st.session_state["lab.data"] = ref
    library.remember_preprocessing(ref)


# --- config -----------------------------------------------------------------------------------------------------------


def mapping() -> QConfigMapping:
    """The current config; on a first visit the preset x86."""
    if "lab.mapping" not in st.session_state:
        set_preset(DEFAULT_PRESET)
    return st.session_state["lab.mapping"]


def set_mapping(value: QConfigMapping) -> None:
    """Replaces the whole config."""
    st.session_state["lab.mapping"] = value


def set_preset(name: str) -> None:
    """Makes a named preset the current config."""
    from qlab.preset import presets

    set_mapping(presets[name])


def preset_name() -> str | None:
    """The preset the current config is equal to; None once something was changed."""
    from qlab.preset import presets

    current = mapping().to_dict()
    return next((name for name in presets if presets[name].to_dict() == current), None)


def config_label() -> str:
    """The config in a few words for the sidebar: the preset, or bits and observers, and how many overrides."""
    name, current = preset_name(), mapping()
    if name:
        return name
    overrides = current.rule_count
    more = [f"{overrides} override{'s' if overrides != 1 else ''}"] if overrides else []
    return " · ".join([_short(current.default), *more, *extras(current)])


def _short(config: QConfig | None) -> str:
    if config is None:
        return "float"

    def part(letter: str, spec: Any) -> str:
        return f"{letter}{spec.bits} {spec.observer}" if spec else f"{letter} float"

    return f"{part('W', config.weight)} · {part('A', config.activation)} · {config.mode.replace('_', '-')}"


def options() -> RunOptions:
    """Batch size, seed and name of the next experiment."""
    return st.session_state.get("lab.options", RunOptions())


def set_options(value: RunOptions) -> None:
    st.session_state["lab.options"] = value


def data_table(ref: DataRef) -> str | dict[str, Any]:
    """How an experiment names this data: the reference alone, or a table with the preprocessing."""
    how = {"scale": ref.scale, "mean": ref.mean, "std": ref.std}
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in how.items() if v is not None}
    return {"path": ref.source, **given} if given else ref.source


def experiment() -> Experiment:
    """What the Run button runs: the current model, data, config and options. Raises InvalidConfig."""
    from qlab.lab.experiment import Experiment

    data, chosen = data_ref(), options()
    return Experiment(
        model_ref().source,
        data_table(data),
        # The name of a preset where the config is one: it is what a person would write into the spec.
        preset_name() or mapping(),
        batch_size=chosen.batch_size,
        seed=chosen.seed,
        name=chosen.name,
        calibration_samples=data.calibration_samples,
    )


# --- what is looked at ------------------------------------------------------------------------------------------------


def tensor() -> str | None:
    """The tensor that was looked at last ("layer1.0.conv1", "layer1.0.conv1.weight"); None before the first choice.

    It belongs to the current model: switching the model clears it.
    """
    return st.session_state.get("lab.tensor")


def set_tensor(name: str | None) -> None:
    st.session_state["lab.tensor"] = name


def run_id() -> str | None:
    """The run whose result is shown, finished or not."""
    return st.session_state.get("lab.run")


def set_run(run: str | None) -> None:
    st.session_state["lab.run"] = run


def sweep_id() -> str | None:
    """The sweep that is shown, finished or not."""
    return st.session_state.get("lab.sweep")


def set_sweep(sweep: str | None) -> None:
    st.session_state["lab.sweep"] = sweep


# --- what is compared -------------------------------------------------------------------------------------------------


def compared() -> tuple[str, ...] | None:
    """The runs a person or a link chose for Compare; None before that: the page then takes the newest that fit."""
    return st.session_state.get("lab.compared")


def set_compared(runs: Sequence[str] | None) -> None:
    """Chooses the runs of Compare, each once. A baseline that is not among them makes way for the float network."""
    chosen = None if runs is None else tuple(dict.fromkeys(runs))
    st.session_state["lab.compared"] = chosen
    if chosen is not None and baseline() not in chosen:
        set_baseline(None)


def baseline() -> str | None:
    """The run that the others are held against; None: each against the float network it came from."""
    return st.session_state.get("lab.baseline")


def set_baseline(run: str | None) -> None:
    st.session_state["lab.baseline"] = run


def picked() -> str | None:
    """The run of the comparison that was clicked last."""
    return st.session_state.get("lab.picked")


def set_picked(run: str | None) -> None:
    st.session_state["lab.picked"] = run


# --- links ------------------------------------------------------------------------------------------------------------


def link_params(**more: str | None) -> Mapping[str, str]:
    """What a link needs to reopen this view: model, data and whatever the page adds (None is left out)."""
    params = {"model": model_ref().source, "data": data_ref().source} | more
    return {k: v for k, v in params.items() if v is not None}
