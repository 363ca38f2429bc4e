"""Writing to weights that torch.ao converted: what state_dict() holds before and after; and the same as an Edit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qlab.analysis import torch_converted as tc
from qlab.analysis.edited import EditEffect, edit_effect
from qlab.conversion import QuantizedModel, convert
from qlab.edits import Edit, apply_edits, buffer_of
from qlab.lessons.samples import sample
from qlab.preset import presets

NETWORK = "conv_digits"
LAYERS = {"Linear": "classifier", "Conv2d": "block1.conv"}  # whose float weight PyTorch gets
EDITED, CONFIG = "classifier", "x86"  # what is edited here, under which preset
SAMPLES = 256  # of the evaluation part, on which an edit is looked at
ROWS, COLUMNS = 4, 4  # of the corner of a weight that is shown


@dataclass(frozen=True, eq=False)
class Write:
    """One way of writing to a converted layer, before and after.

    attempt: what it came to. before, after: the integers in state_dict(), asked for anew, [O, K]. written: what the
    tensor holds that was written to, [O, K]; None where the write raised. output_before, output_after: of the layer for
    one input, one number a channel, [O].
    """

    attempt: tc.Attempt
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    written: NDArray[np.float64] | None
    output_before: NDArray[np.float64]
    output_after: NDArray[np.float64]

    @property
    def outcome(self) -> str:
        """What state_dict() then holds: "error" where the write raised, else "new" or "old"."""
        return "error" if self.attempt.error is not None else "new" if self.attempt.stored else "old"


@dataclass(frozen=True)
class Tried:
    """A layer of one kind, all ways tried, in order. facts: what the converted module holds."""

    facts: tc.TorchConverted
    writes: Mapping[str, Write]


@lru_cache(maxsize=2)
def tried(kind: str) -> Tried:
    """Quantize a layer of this kind ("Linear", "Conv2d") with a trained weight in PyTorch and try every way to write
    to it. The first call imports torch.ao, which takes seconds. Raises UnsupportedModel where torch cannot."""
    weight = sample(NETWORK).weights[f"{LAYERS[kind]}.weight"]
    facts = tc.torch_converted(weight)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that torch.ao.quantization goes away one day is told on the page Weights
        bench = tc.Bench(weight)
        return Tried(facts, {one.name: _write(bench, one) for one in facts.attempts})


def _write(bench: tc.Bench, attempt: tc.Attempt) -> Write:
    """The way of this attempt once more on a fresh module, with the numbers themselves."""
    made, written = bench.fresh(), None
    way = bench.way(attempt.name, made.converted)
    before, output = _stored(made.converted), _one_each(made.converted(bench.x))
    if attempt.error is None:
        written = _rows(tc.whole(way(made.net, made.prepared, made.converted)))
    return Write(
        attempt, before, _stored(made.converted), written, output, _one_each(made.converted(bench.x))
    )  # fmt: skip


def _stored(converted: Any) -> NDArray[np.float64]:
    """The integers of the weight as the state dict of the layer gives them now."""
    state = converted.layer.state_dict()
    weight = state["weight"] if "weight" in state else state["_packed_params._packed_params"][0]
    return _rows(weight.int_repr())


def _rows(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().reshape(len(tensor), -1).double().numpy().copy()


def _one_each(output: Tensor) -> NDArray[np.float64]:
    """One number of each channel for the first input: of a convolution the one in the middle."""
    first = output.detach()[0]
    middle = first if first.ndim == 1 else first[:, first.shape[1] // 2, first.shape[2] // 2]
    return middle.double().numpy().copy()


@dataclass(frozen=True)
class Edited:
    """A code written with an Edit in the lab. key: of state_dict(); before, after: what it holds at that place.

    undone: what it holds once the edit was taken back. effect: on the layer and on the network's answers, simulated.
    """

    edit: Edit
    key: str
    before: int
    after: int
    undone: int
    effect: EditEffect


def shape() -> tuple[int, int]:
    """Output channels and inputs of the layer that is edited."""
    outputs, inputs = _quantized().weights[EDITED].shape
    return int(outputs), int(inputs)


@lru_cache(maxsize=128)
def edited(channel: int, position: int, code: int) -> Edited:
    """Writes this code into the weight at [channel, position], in a network of its own."""
    original, changed = _quantized(), _fresh()
    edit = Edit(EDITED, "code", (channel, position), code)
    key = _key(changed)
    before = int(changed.state_dict()[key][edit.index])
    undo = apply_edits(changed, [edit])
    after = int(changed.state_dict()[key][edit.index])
    effect = edit_effect(original, changed, EDITED, [_batch()])
    apply_edits(changed, undo)
    return Edited(edit, key, before, after, int(changed.state_dict()[key][edit.index]), effect)


def _key(qmodel: QuantizedModel) -> str:
    """Under which name state_dict() has the codes of the layer."""
    codes = buffer_of(qmodel, EDITED, "code")
    return next(key for key, tensor in qmodel.state_dict().items() if tensor.data_ptr() == codes.data_ptr())


@lru_cache(maxsize=1)
def _batch() -> tuple[tuple[Tensor, ...], Tensor | None]:
    _, inputs, targets = next(iter(sample(NETWORK).data.evaluation.batches(SAMPLES)))
    return inputs, targets


@lru_cache(maxsize=1)
def _quantized() -> QuantizedModel:
    return _fresh()


def _fresh() -> QuantizedModel:
    of = sample(NETWORK)
    return convert(of.model, presets[CONFIG], of.calibration)
