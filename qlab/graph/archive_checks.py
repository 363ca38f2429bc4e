"""What a call in the graph must satisfy before the lab runs it, and the words of each refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

import torch

from qlab.errors import UnsupportedModel
from qlab.graph.archive_schema import EXPORT_LINES, damaged, shown

# Operators that behave differently in training: argument that says so, argument that must not be positive with it.
_TRAINING_FLAGS: dict[str, tuple[str, str | None]] = {
    "aten::dropout": ("train", "p"),
    "aten::dropout_": ("train", "p"),
    "aten::native_dropout": ("train", "p"),
    "aten::feature_dropout": ("train", "p"),
    "aten::alpha_dropout": ("train", "p"),
    "aten::alpha_dropout_": ("train", "p"),
    "aten::feature_alpha_dropout": ("train", "p"),
    "aten::rrelu": ("training", None),
    "aten::rrelu_": ("training", None),
    "aten::lstm": ("train", "dropout"),
    "aten::gru": ("train", "dropout"),
    "aten::rnn_tanh": ("train", "dropout"),
    "aten::rnn_relu": ("train", "dropout"),
}
# With running statistics they update them; without, the batch's own statistics are the model's definition.
_STATISTICS_FLAGS = {
    "aten::batch_norm": "training",
    "aten::instance_norm": "use_input_stats",
}

# Numbers that aten takes unchecked, up to this one.
_LARGEST_CODE = {"aten::grid_sampler": {"interpolation_mode": 2, "padding_mode": 2}}

_GATES = {"aten::lstm": 4, "aten::gru": 3, "aten::rnn_tanh": 1, "aten::rnn_relu": 1}


def check_training(operator: torch._ops.OpOverload, given: dict[str, object], layer: str) -> None:
    name = operator._schema.name
    if name in _TRAINING_FLAGS:
        flag, amount = _TRAINING_FLAGS[name]
        strength = 1.0 if amount is None else given.get(amount)
        if given.get(flag) not in (False, None) and strength != 0:
            refuse_training(layer, f"{operator._opname} draws random numbers")
    if name in _STATISTICS_FLAGS and given.get(_STATISTICS_FLAGS[name]) and given.get("running_mean") is not None:
        refuse_training(layer, f"{operator._opname} updates its running statistics")
    if given.get("dropout_p", 0) != 0:
        refuse_training(layer, "attention drops weights at random")


def check_values(
    operator: torch._ops.OpOverload,
    given: dict[str, object],
    tensor_of: Callable[[object], torch.Tensor | None],
    where: str,
) -> None:
    """What the kernels of torch 2.13 do not check before they read memory."""
    name = operator._schema.name
    for argument, largest in _LARGEST_CODE.get(name, {}).items():
        code = given.get(argument)
        if not isinstance(code, int) or not 0 <= code <= largest:
            damaged(f"{where}.{argument}", f"is {code}, not 0 to {largest}")
    if name in _GATES:
        params = given["params"]
        weights = [tensor_of(p) for p in params] if isinstance(params, list) else []
        _check_recurrent(name, given, weights, where)


def _check_recurrent(name: str, given: dict[str, object], weights: list[torch.Tensor | None], where: str) -> None:
    """All weights against those of the first cell: the oneDNN kernel reads past the end of one that is too small."""
    layers, biases, both = given["num_layers"], given["has_biases"], given["bidirectional"]
    if not isinstance(layers, int) or not isinstance(biases, bool) or not isinstance(both, bool):
        damaged(where, "does not say plainly how many layers it has")
    cells = layers * (2 if both else 1)
    plain = 4 if biases else 2
    projected = name == "aten::lstm" and len(weights) == cells * (plain + 1)
    if cells < 1 or any(w is None for w in weights) or len(weights) != cells * (plain + projected):
        damaged(where, f"should have its weights as {cells * plain} parameters of the model")
    sizes = [tuple(w.shape) for w in weights if w is not None]
    per_cell = plain + projected
    rows = sizes[1][0] if len(sizes[1]) == 2 else 0
    hidden = rows // _GATES[name]
    state = (*sizes[per_cell - 1], 0)[0] if projected else hidden
    width = sizes[0][1] if len(sizes[0]) == 2 else 0
    for cell in range(cells):
        taken = width if cell < (2 if both else 1) else state * (2 if both else 1)
        expected = [(rows, taken), (rows, state)] + [(rows,)] * (plain - 2) + [(state, hidden)] * projected
        if rows != hidden * _GATES[name] or sizes[cell * per_cell : (cell + 1) * per_cell] != expected:
            damaged(where, f"has weights whose sizes do not fit each other (cell {cell})")


def refuse_training(layer: str, what: str) -> NoReturn:
    raise UnsupportedModel(
        f"The model was exported in training mode: {what} (in {layer}). Call model.eval() before torch.export.export, "
        f"and give functional dropout training=self.training:\n\n{EXPORT_LINES}"
    )


def refuse_target(target: str, layer: str) -> NoReturn:
    if target.startswith("torch.ops.higher_order."):
        name = target.rpartition(".")[2]
        advice = (
            "It comes from torch.no_grad() or torch.set_grad_enabled inside forward. Take that out of the model: "
            "the lab computes no gradients during inference anyway."
            if "grad" in name
            else "It wraps a part of the graph that only runs under a condition or in a special mode. "
            "Rewrite that part of forward as plain tensor operations."
        )
        raise UnsupportedModel(f"The model uses the higher-order operator {shown(name)} in {layer}. {advice}")
    if target.startswith("torch.ops.aten."):
        raise UnsupportedModel(
            f"The model uses the operator {shown(target)} in {layer}, which the lab does not run: it is rare in "
            "inference, random, or has a result whose size depends on values. If the program went through "
            "run_decompositions, save it before; otherwise rewrite that layer with other operators."
        )
    if target.startswith("torch.ops.") and re.fullmatch(r"[\w.]+", target):
        library = target.split(".")[2]
        raise UnsupportedModel(
            f"The model uses {shown(target)} in {layer}, an operator of the library {shown(library)}. The lab runs "
            "PyTorch's own operators (aten) only. Replace the layer by one of torch.nn before exporting."
        )
    raise UnsupportedModel(
        f"The model calls {shown(target)} in {layer}, which is not a PyTorch operator. The lab runs operators on its "
        "list only, nothing was called. torch.export.save writes no such call for ordinary models: distrust the file."
    )
