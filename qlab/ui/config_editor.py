"""The editor of a configuration: presets, mode, and one renderer that draws any QuantSpec from its own fields.

`spec_controls` knows no observer by name: what one needs and which settings it has stand in the registry, so a new one
appears here by itself. What cannot be combined is not offered; every change goes through the checks of QuantSpec and
QConfig before it becomes the current config.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import streamlit as st

from qlab.config import ACTIVATION_BITS, MODES, QSCHEMES, WEIGHT_BITS, Granularity, QConfig, QuantSpec
from qlab.errors import QLabError
from qlab.metrics import MINUS
from qlab.preset import presets
from qlab.quant.observers import OBSERVERS, Param
from qlab.ui import errors, overrides, say, state

Role = Literal["weight", "activation"]
Change = Callable[[QuantSpec], None]

FLOAT = "float"
GROUP_SIZE = 32
MODE_NAMES = {"static": "static", "dynamic": "dynamic", "weight_only": "weight-only", FLOAT: "float"}
MODE_SUMMARY = {
    "static": "Weights become integers and activations get a fixed range from the calibration.",
    "dynamic": "Weights become integers; linear and recurrent layers range their input anew at every call.",
    "weight_only": "Weights are stored in few bits and activations stay float: smaller, not faster arithmetic.",
    FLOAT: "Nothing is quantized unless a rule in the table below says so.",
}
SCHEME_HELP = {
    "weight": "How many weights share one scale, fewer following them more closely at the cost of bytes; affine "
    "shifts the grid by a zero point, symmetric keeps zero in its middle.",
    "activation": "Affine shifts the grid by a zero point, so that one-sided values such as those behind a ReLU "
    "waste no codes; symmetric keeps zero in its middle.",
}


# --- what may be combined: pure, and tested as such -------------------------------------------------------------------


def observers_for(role: Role, granularity: Granularity) -> list[str]:
    """The observers that can range such a tensor: of a weight there are no batches, of one channel only its range."""
    known = {"range", "values"} if role == "weight" else {"range"}
    if role == "activation" and granularity == "tensor":
        known |= {"values", "batches"}
    return [name for name, observer in OBSERVERS.items() if observer.needs in known]


def granularities_for(role: Role, ranged_per_call: bool = False) -> tuple[Granularity, ...]:
    if ranged_per_call:
        return ("tensor",)
    return ("tensor", "channel", "group") if role == "weight" else ("tensor", "channel")


def with_scheme(spec: QuantSpec, role: Role, qscheme: str) -> QuantSpec:
    """The spec under another scheme, with what that brings: a group size, the usual sign, an observer that fits."""
    _, granularity, layout = qscheme.split("_")
    symmetric, fits = layout == "symmetric", observers_for(role, granularity)  # type: ignore[arg-type]
    return spec.replace(
        qscheme=qscheme,
        group_size=(spec.group_size or GROUP_SIZE) if granularity == "group" else None,
        signed=spec.signed if symmetric == spec.symmetric else None,
        # An affine grid has a zero point, so leaving a code out would make nothing alike.
        narrow_range=spec.narrow_range and symmetric,
        **({} if spec.observer in fits else {"observer": fits[0], "observer_args": {}}),
    )


def with_mode(config: QConfig | None, mode: str, last_activation: QuantSpec | None = None) -> QConfig | None:
    """The config in another mode. last_activation: what the activations were before the mode left them float."""
    if mode == FLOAT:
        return None
    usual = presets[state.DEFAULT_PRESET].default
    assert usual is not None
    config = config or usual
    activation = config.activation or last_activation or usual.activation
    assert activation is not None
    if mode == "weight_only":
        return QConfig(weight=config.weight or usual.weight, mode=mode)
    if mode == "dynamic":
        whole = with_scheme(activation, "activation", f"per_tensor_{activation.qscheme.split('_')[2]}")
        activation = whole.replace(observer="min_max", observer_args={})
        return QConfig(weight=config.weight or usual.weight, activation=activation, mode=mode)
    return QConfig(weight=config.weight, activation=activation, mode=mode)


def step_of(param: Param) -> float | int:
    """A step that crosses the range of a setting in some thousand presses at most, on a round number."""
    if param.kind == "int":
        return 1
    return 10.0 ** (math.floor(math.log10(param.maximum - param.minimum)) - 3)


# --- drawing ----------------------------------------------------------------------------------------------------------

_DEFAULT = {"selectbox": "index", "pills": "default", "segmented_control": "default"}


def kept(
    widget: Callable[..., Any],
    label: str,
    *args: Any,
    value: Any,
    store: Callable[[Any], None],
    key: str,
    **kwargs: Any,
) -> None:
    """As widgets.kept, and robust on a page that runs again while its first drawing is on the way to the browser.

    Streamlit tells a browser a value set by the script once. One that missed it (the connection broke, a job ended)
    would show the least value instead; so the value is given as the widget's default too, from the second run on.
    """
    if st.session_state.get(key, _DEFAULT) != value:
        st.session_state[key] = value
    else:
        name = _DEFAULT.get(widget.__name__, "value")
        kwargs[name] = list(args[0]).index(value) if name == "index" else value
    widget(label, *args, key=key, on_change=lambda: store(st.session_state[key]), **kwargs)


def preset_chips() -> None:
    """The presets as chips, and the sentence that explains the chosen one."""
    name = state.preset_name()
    kept(
        st.pills,
        "Start from a preset",
        list(presets),
        value=name,
        store=_choose_preset,
        key="exp_preset",
        format_func=lambda preset: presets.about(preset).title,
        help="Replaces the whole config, rules for single layers included.",
    )
    if name:
        say.caption(f"**{presets.about(name).title}** – {presets.about(name).summary}")
    else:
        say.caption("**Your own** – no preset has exactly these settings. A chip above replaces them.")


def config_card() -> None:
    """Mode, then weights and activations side by side: the config every layer gets that no rule names."""
    config = state.mapping().default
    if problem := st.session_state.pop("exp_problem", None):
        errors.show(problem)
    mode = config.mode if config else FLOAT
    kept(
        st.segmented_control,
        "Mode",
        [*MODES, FLOAT],
        value=mode,
        store=_set_mode,
        key="exp_mode",
        required=True,
        format_func=MODE_NAMES.__getitem__,
        help="When activations get their range: ahead from the calibration, at every call, or never.",
    )
    say.caption(MODE_SUMMARY[mode])
    if config is None:
        return
    weights, activations = st.columns(2, gap="medium")
    with weights:
        _weights(config)
    with activations:
        _activations(config)


def _weights(config: QConfig) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        say.markdown("**Weights**", width="content")
        kept(
            st.toggle,
            "quantize",
            value=config.weight is not None,
            store=_switch_weights,
            key="exp_weights_on",
            disabled=config.mode != "static",
            help="Off leaves weights float, which shows what the activations alone cost; static mode only.",
        )
    if config.weight is None:
        say.caption("Weights stay float.")
        return
    spec_controls(config.weight, lambda spec: _set(weight=spec), role="weight", key="exp_w")


def _activations(config: QConfig) -> None:
    say.markdown("**Activations**", help="The values that flow between the layers; their range comes from data.")
    if config.activation is None:
        say.caption("Activations stay float in this mode. Choose static or dynamic to quantize them too.")
        return
    spec_controls(
        config.activation,
        lambda spec: _set(activation=spec),
        role="activation",
        key="exp_a",
        ranged_per_call=config.mode == "dynamic",
    )


def spec_controls(spec: QuantSpec, change: Change, *, role: Role, key: str, ranged_per_call: bool = False) -> None:
    """Draws a spec from its fields and hands every change on as a new valid spec, before the page runs again.

    ranged_per_call: dynamic mode, which gives the observer and one scale a tensor; bits, grid and sign are free.
    """
    kind = f"{'int' if spec.signed else 'uint'}{spec.bits}"
    say.caption(f"`{kind}` · codes {spec.quant_min} … {spec.quant_max}".replace("-", MINUS))

    def control(widget: Callable[..., Any], label: str, field: str, *args: Any, value: Any, **kwargs: Any) -> None:
        store = kwargs.pop("store", lambda new: change(spec.replace(**{field: new})))
        kept(widget, label, *args, value=value, store=_checked(store), key=f"{key}_{field}", **kwargs)

    low, high = WEIGHT_BITS if role == "weight" else ACTIVATION_BITS
    control(
        st.slider,
        "Bits",
        "bits",
        low,
        high,
        value=spec.bits,
        help="One bit less halves the number of grid points and costs about 6 dB of SQNR.",
    )
    control(
        st.selectbox,
        "Scheme",
        "qscheme",
        [scheme for scheme in QSCHEMES if scheme.split("_")[1] in granularities_for(role, ranged_per_call)],
        value=spec.qscheme,
        store=lambda new: change(with_scheme(spec, role, new)),
        format_func=lambda scheme: " ".join(scheme.split("_")[:2]) + f" · {scheme.split('_')[2]}",
        help=SCHEME_HELP[role],
    )
    if role == "activation" and spec.granularity == "channel":
        say.caption("No integer kernel runs this: the result is simulated only.")
    if spec.granularity == "group":
        control(
            st.number_input,
            "Weights in a group",
            "group_size",
            2,
            4096,
            value=spec.group_size,
            step=1,
            help="Smaller groups follow the weights more closely; a layer whose rows do not divide by it stays float.",
        )
    if ranged_per_call:
        say.caption("Range: the minimum and maximum of each call.")
    else:
        _observer(spec, change, role, control)
    control(
        st.segmented_control,
        "Codes",
        "signed",
        (True, False),
        value=spec.signed,
        required=True,
        format_func=lambda on: "signed" if on else "unsigned",
        help="Which integers the codes are; hardware often takes signed weights and either kind of activations.",
    )
    if (spec.signed and spec.symmetric) or spec.narrow_range:
        control(
            st.toggle,
            "Narrow range",
            "narrow_range",
            value=spec.narrow_range,
            help="Leaves out the lowest code, so that both sides of zero are alike; some integer kernels need that.",
        )


def _observer(spec: QuantSpec, change: Change, role: Role, control: Callable[..., None]) -> None:
    observers = observers_for(role, spec.granularity)
    if spec.observer not in observers:  # a config from a file or another page may ask for it; the engine decides
        observers = [*observers, spec.observer]
    control(
        st.selectbox,
        "Observer",
        "observer",
        observers,
        value=spec.observer,
        store=lambda new: change(spec.replace(observer=new, observer_args={})),
        help="The rule that picks the range. " + OBSERVERS[spec.observer].summary,
    )
    settings = OBSERVERS[spec.observer].settings(spec.observer_args)
    for param in OBSERVERS[spec.observer].params:
        number: type[int] | type[float] = int if param.kind == "int" else float

        def store(new: float, name: str = param.name) -> None:
            change(spec.replace(observer_args={**spec.observer_args, name: new}))

        control(
            st.number_input,
            param.name.replace("_", " ").capitalize(),
            # Named with its observer: two observers may have a setting of the same name and other bounds.
            f"{spec.observer}_{param.name}",
            number(param.minimum),
            number(param.maximum),
            value=number(settings[param.name]),
            step=step_of(param),
            format="%d" if number is int else "%g",
            store=store,
            help=param.help,
        )


# --- changing the shared config ---------------------------------------------------------------------------------------


def _checked(store: Callable[[Any], None]) -> Callable[[Any], None]:
    """A refused change leaves the config as it was, and the page says why."""

    def guarded(value: Any) -> None:
        if value is None:  # a cleared field: the widget goes back to what holds
            return
        try:
            store(value)
        except QLabError as error:
            st.session_state["exp_problem"] = error

    return guarded


def _choose_preset(name: str | None) -> None:
    if name is not None:  # a second click on the chosen chip takes the choice away; the config stays
        state.set_preset(name)


def _set(**changes: QuantSpec | None) -> None:
    config = state.mapping().default
    assert config is not None
    overrides.set_default(config.replace(**changes))


def _set_mode(mode: str) -> None:
    config = state.mapping().default
    if config is not None and config.activation is not None:
        st.session_state["exp_last_activation"] = config.activation
    overrides.set_default(with_mode(config, mode, st.session_state.get("exp_last_activation")))


def _switch_weights(on: bool) -> None:
    usual = presets[state.DEFAULT_PRESET].default
    assert usual is not None
    if not on:
        config = state.mapping().default
        st.session_state["exp_last_weight"] = config.weight if config else None
    _set(weight=(st.session_state.get("exp_last_weight") or usual.weight) if on else None)
