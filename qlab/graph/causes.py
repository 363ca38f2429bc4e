"""Why an op is quantized or not, in one word that code may ask for. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Cause = Literal[
    "quantized", "fused", "shared",
    "excluded", "default_float", "dynamic_conv", "no_weight", "activations_only",
    "group_size", "weight_computed", "weight_not_float", "packed",
    "integer_values", "integer_input", "infinite", "float_input", "unsupported",
]  # fmt: skip

CAUSES: Mapping[Cause, str] = {
    # on integers
    "quantized": "its own config put it on integers",
    "fused": "part of the unit of the op before it",
    "shared": "uses the grid of its input",
    # float by the config
    "excluded": "a rule of the config keeps it float",
    "default_float": "no rule names it, and the default is float",
    "dynamic_conv": "dynamic ranges are not for convolutions",
    "no_weight": "the mode quantizes weights, and the op has none",
    "activations_only": "a lookup or a recurrent layer, whose config has no spec for weights",
    # float by its weight
    "group_size": "the groups do not divide the weights of a channel",
    "weight_computed": "its weight is computed at run time",
    "weight_not_float": "its weight is not a float tensor",
    "packed": "a recurrent layer over packed sequences",
    # float by what it reads or gives
    "integer_values": "it gives whole numbers or truth values",
    "integer_input": "it reads whole numbers or truth values",
    "infinite": "it holds infinities, as an attention mask does",
    "float_input": "it would share the grid of its input, which has none",
    "unsupported": "the lab quantizes no op of its kind",
}

ON_INTEGERS: frozenset[Cause] = frozenset({"quantized", "fused", "shared"})

State = Literal["quantized", "shared", "float"]


def state_of(cause: Cause) -> State:
    """What happened to the op, in one of three words: shared with another op, quantized itself, or neither."""
    if cause == "quantized":
        return "quantized"
    return "shared" if cause in ON_INTEGERS else "float"
