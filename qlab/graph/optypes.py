"""The op types of the lab's vocabulary, as layer tables, mappings and ledgers name them. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["weighted", "compute", "fixed", "recurrent", "lookup", "passthrough", "float"]


@dataclass(frozen=True)
class OpType:
    """role: how the op is quantized.

    weighted: weight and output. compute: output, from quantized inputs. fixed: output, on a grid known beforehand.
    recurrent: weights, and activations ranged per call. lookup: weight only.
    passthrough: output shares the grid of the input. float: never quantized.
    """

    name: str
    role: Role


_ROLES: dict[Role, tuple[str, ...]] = {
    "weighted": ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"),
    "compute": (
        "matmul", "add", "mul", "cat", "avg_pool",
        "relu6", "clamp", "gelu", "silu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus",
    ),
    "fixed": ("sigmoid", "softmax", "tanh"),
    "recurrent": ("lstm", "gru"),
    "lookup": ("embedding",),
    "passthrough": ("relu", "max_pool", "reshape"),
    "float": (
        "layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "sub", "div", "reduce", "mask", "other",
    ),
}  # fmt: skip

OP_TYPES: dict[str, OpType] = {name: OpType(name, role) for role, names in _ROLES.items() for name in names}
