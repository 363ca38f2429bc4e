"""ATen target to op type, and which arguments of an op are activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from qlab.graph.optypes import OP_TYPES

_CONV = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")

# ATen packet name -> op type. What is not here is "other" and stays float.
_TYPE_OF: dict[str, str] = {
    **{name: name for name in _CONV},
    **dict.fromkeys(("matmul", "bmm", "mm"), "matmul"),
    **dict.fromkeys(("linear",), "linear"),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), "avg_pool"),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), "avg_pool"),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), "max_pool"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "cat"),
    **dict.fromkeys(("relu6", "hardtanh"), "relu6"),
    **dict.fromkeys(("softmax", "_softmax"), "softmax"),
    **dict.fromkeys(("clamp", "clamp_min", "clip"), "clamp"),
    **{
        name: name
        for name in (
            "add", "mul", "relu", "gelu", "silu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "mish", "softplus",
            "sigmoid", "tanh", "lstm", "gru", "embedding", "layer_norm", "batch_norm", "group_norm", "instance_norm",
            "rms_norm", "sub", "div",
        )
    },
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm"), "reduce"),
    **dict.fromkeys(("masked_fill", "where"), "mask"),
    **dict.fromkeys(
        (
            "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "slice",
            "select", "expand", "expand_as", "contiguous", "clone", "chunk", "split", "split_with_sizes", "unbind",
            "narrow", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "flip", "roll", "movedim",
            "swapaxes", "view_as", "reshape_as", "numpy_T", "tile", "repeat_interleave", "unfold",
            "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
        ),
        "reshape",
    ),
}  # fmt: skip

# These return the same values in the same number: their statistics are those of their input.
SAME_VALUES = frozenset(
    "view reshape flatten unflatten permute transpose t squeeze unsqueeze contiguous clone movedim swapaxes view_as "
    "reshape_as numpy_T pixel_shuffle pixel_unshuffle channel_shuffle flip roll".split()
)

# Where the activations stand among the arguments; elsewhere it is the first argument.
_ACTIVATION_ARGUMENTS: dict[str, tuple[int, ...]] = {"matmul": (0, 1), "add": (0, 1), "mul": (0, 1)}


def packet_name(node: fx.Node) -> str:
    """Short name of the op a call_function node calls, e.g. "conv2d"; "getitem" for tuple access."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(target, "__name__", str(target))


def op_type(node: fx.Node) -> str:
    """Op type of a call_function node, a key of OP_TYPES; "other" for any other node."""
    if node.op != "call_function":
        return "other"
    name = packet_name(node)
    if name == "getitem":
        return "reshape"
    if name in ("pad", "constant_pad_nd"):
        return "reshape" if _pads_with_zero(node) else "other"
    if name == "mean" and _is_spatial_mean(node):
        return "avg_pool"
    found = _TYPE_OF.get(name, "other")
    assert found in OP_TYPES, found
    return found


def activation_inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes whose float tensors this op takes as activations, in order."""
    kind = op_type(node)
    if kind == "cat":
        candidates: list[Any] = list(node.args[0])  # type: ignore[arg-type]
    else:
        candidates = [node.args[i] for i in _ACTIVATION_ARGUMENTS.get(kind, (0,)) if i < len(node.args)]
    return [a for a in candidates if isinstance(a, fx.Node) and is_float(a)]


def is_float(node: fx.Node) -> bool:
    """Whether the node gives one float tensor."""
    dtype = node.meta.get("dtype")
    return dtype is not None and dtype.is_floating_point


def channel_axis(node: fx.Node) -> int | None:
    """The axis of the node's output that holds its channels, or None for fewer than two axes.

    Convolutions and what follows them keep channels on axis 1, linears and sequence ops on the last.
    """
    shape = node.meta.get("shape")
    if shape is None or len(shape) < 2:
        return None
    if len(shape) == 3:
        seen = node
        while seen.op == "call_function":
            kind = op_type(seen)
            if kind in _CONV or kind in ("max_pool", "batch_norm"):
                return 1
            before = [a for a in seen.all_input_nodes if is_float(a) and a.op != "get_attr"]
            same = [a for a in before if len(a.meta.get("shape") or ()) == 3]
            if kind in ("linear", "layer_norm", "embedding", "lstm", "gru", "matmul") or not same:
                break
            seen = same[0]
        return 2
    return 1


@dataclass(frozen=True)
class WeightArgument:
    """A constant operand that is quantized as a weight: where it stands and which axis holds its output channels."""

    position: int
    axis: int


def weight_argument(node: fx.Node) -> WeightArgument | None:
    """The weight of a convolution, linear or embedding."""
    kind = op_type(node)
    if kind == "embedding":
        return WeightArgument(0, 0)
    if kind.startswith("conv_transpose"):
        return WeightArgument(1, 1)
    if kind in _CONV or kind == "linear":
        return WeightArgument(1, 0)
    return None


def _pads_with_zero(node: fx.Node) -> bool:
    if packet_name(node) == "constant_pad_nd":
        value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
        return bool(value == 0)
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return mode != "constant" or value in (None, 0)


def _is_spatial_mean(node: fx.Node) -> bool:
    source = node.args[0]
    shape = source.meta.get("shape") if isinstance(source, fx.Node) else None
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if shape is None or len(shape) < 4 or not isinstance(dims, (list, tuple)):
        return False
    return sorted(int(d) % len(shape) for d in dims) == list(range(2, len(shape)))
