"""The observers: one rule per file and this registry. numpy only; importing it does not import torch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from qlab.errors import InvalidConfig
from qlab.quant.observers import entropy, min_max, moving_average, mse, percentile
from qlab.quant.observers.base import EPS, Distribution, Grid, Needs, Observer, Param, Range

OBSERVERS: dict[str, Observer] = {
    module.OBSERVER.name: module.OBSERVER for module in (min_max, moving_average, percentile, mse, entropy)
}


def check_observer_args(observer: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, checked: known names, right type, within bounds. Fills nothing in. Raises InvalidConfig."""
    if observer not in OBSERVERS:
        raise InvalidConfig(f"observer {observer!r} is not known: use one of {', '.join(OBSERVERS)}.")
    if not isinstance(args, Mapping):
        raise InvalidConfig(f"observer_args is a table of names and values; found {type(args).__name__}.")
    params = {p.name: p for p in OBSERVERS[observer].params}
    return {name: _checked(observer, params, name, value) for name, value in args.items()}


def _checked(observer: str, params: Mapping[str, Param], name: str, value: Any) -> float | int:
    if name not in params:
        known = f"it has {', '.join(params)}" if params else "it has no settings"
        raise InvalidConfig(f"observer {observer} has no setting {name!r}: {known}.")
    param = params[name]
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if param.kind == "int" and not whole:
        raise InvalidConfig(f"{observer}: {name} is {value!r}: use a whole number.")
    number = whole or (isinstance(value, numbers.Real) and not isinstance(value, bool))
    if not number or not math.isfinite(value) or not param.minimum <= value <= param.maximum:
        raise InvalidConfig(f"{observer}: {name} is {value!r}: use a number from {param.minimum} to {param.maximum}.")
    return int(value) if param.kind == "int" else float(value)


__all__ = [
    "EPS",
    "OBSERVERS",
    "Distribution",
    "Grid",
    "Needs",
    "Observer",
    "Param",
    "Range",
    "check_observer_args",
]
