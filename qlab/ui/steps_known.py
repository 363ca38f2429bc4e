"""What is known of one output number: by hand, from the integer kernel, simulated and in float. Computed once, kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from qlab.errors import InvalidConfig, UnsupportedModel
from qlab.ui import cache, choose, converted, prepared, state
from qlab.ui.converted import Key

if TYPE_CHECKING:
    from torch import Tensor

    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model
    from qlab.runtime.kernel_codes import CodeSession, KernelTrace
    from qlab.runtime.steps import Steps, Trace

SEARCHED = 128  # samples looked through for an element on which integer kernel and simulation disagree
TRIED = 100  # numbers on an end of the grid of which the one that was cut off most is shown


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of one output number. kernel: None while it is prepared, or where the network cannot be run on
    integers; why then says the reason.

    from_kernel: the hand computation from the input integers the kernel itself had. runtime: its version; entries: what
    its session was opened with, and why. network: hash of the float network whose graph the kernel needs.
    """

    by_hand: Steps
    kernel: KernelTrace | None
    from_kernel: Steps | None
    why: str = ""
    runtime: str = ""
    entries: Mapping[str, str] = field(default_factory=dict)
    network: str = ""

    @property
    def kernel_code(self) -> int | None:
        return None if self.kernel is None else int(self.kernel.codes[self.by_hand.index])


def quantized(model: Model) -> tuple[QuantizedModel, Key] | None:
    """The model under the current config, and its key; None while the calibration is being made, or where the data
    does not fit, which is told."""
    if not choose.data_fits(model):
        return None
    found = prepared.require(key="steps")
    if found is None:
        return None
    return converted.under(model, state.mapping(), cache.store().artifact(found.calibration_artifact))


def layers(key: Key, qmodel: QuantizedModel) -> list[str]:
    """The layers whose numbers can be taken apart."""
    return _layers(key, qmodel)


@st.cache_resource(max_entries=8, show_spinner=False)
def _layers(key: Key, _qmodel: QuantizedModel) -> list[str]:
    from qlab.runtime.steps import explainable_layers

    return explainable_layers(_qmodel)


def make_here(network: str) -> None:
    """Has the graph of this network exported by the page itself, where the job's one is of no use: another machine may
    round a corrected bias to another last bit, and the store may have lost it."""
    st.session_state.setdefault("steps.ready", set()).add(network)


def trace(key: Key, layer: str, sample: int, qmodel: QuantizedModel) -> Trace:
    """What the layer sees of this evaluation sample, and gives."""
    return _trace(key, _data_hash(), layer, sample, qmodel)


@st.cache_resource(max_entries=64, show_spinner=False)
def _trace(key: Key, data_hash: str, layer: str, sample: int, _qmodel: QuantizedModel) -> Trace:
    from qlab.runtime.steps import trace_layer

    return trace_layer(_qmodel, layer, inputs_of(_qmodel, sample))


def kernel_ready(model: Model) -> bool:
    """Whether the exported graph is in the store, without which there is no integer run; exporting takes seconds.

    model: the float network behind the config (`QuantizedModel.model`), which equalisation and corrected biases make
    another one than the model that is open.
    """
    from qlab.lab.templates import has_template

    ready = st.session_state.setdefault("steps.ready", set())
    if model.content_hash not in ready and has_template(cache.store(), model):
        ready.add(model.content_hash)
    return model.content_hash in ready


@st.cache_resource(max_entries=4, show_spinner="Opening the network on integers")
def _session(key: Key, _qmodel: QuantizedModel) -> CodeSession:
    from qlab.lab.templates import ensure_template
    from qlab.runtime.kernel_codes import open_codes

    ensure_template(cache.store(), _qmodel.model)
    return open_codes(_qmodel)


@st.cache_resource(max_entries=64, show_spinner=False)
def _kernel(
    key: Key, data_hash: str, layer: str, sample: int, _session: CodeSession, _simulated: Trace
) -> KernelTrace:  # fmt: skip
    from qlab.runtime.kernel_codes import kernel_trace

    x = inputs_of(_session.qmodel, sample)
    return kernel_trace(_session.qmodel, layer, x, _session(*x), _simulated)


def _data_hash() -> str:
    return cache.dataset(state.data_ref()).content_hash


def inputs_of(qmodel: QuantizedModel, sample: int) -> tuple[Tensor, ...]:
    """One evaluation sample as the model takes it; repeated where its batch is fixed."""
    import torch

    example = cache.dataset(state.data_ref()).evaluation.example(sample)
    times = qmodel.model.fixed_batch or 1
    return tuple(torch.from_numpy(np.repeat(x, times, axis=0)) for x in example)


@st.cache_resource(max_entries=16, show_spinner=False)
def _entries(key: Key, _qmodel: QuantizedModel) -> Mapping[str, str]:
    from qlab.runtime.session import needed_entries

    return needed_entries(_qmodel)


def answers(key: Key, layer: str, sample: int, index: tuple[int, ...], qmodel: QuantizedModel) -> Answers:
    """By hand, and from the integer kernel where it can be had."""
    import onnxruntime

    simulated = trace(key, layer, sample, qmodel)
    steps = simulated.explain(index)
    if not kernel_ready(qmodel.model):
        return Answers(steps, None, None, network=qmodel.model.content_hash)
    try:
        session = _session(key, qmodel)
        kernel = _kernel(key, _data_hash(), layer, sample, session, simulated)
    except (UnsupportedModel, InvalidConfig) as error:
        return Answers(steps, None, None, str(error))
    own = kernel.trace.explain(index)
    return Answers(steps, kernel, own, runtime=onnxruntime.__version__, entries=_entries(key, qmodel))


def disagreement(key: Key, layer: str, qmodel: QuantizedModel) -> tuple[int, tuple[int, ...]] | None:
    """(sample, index) of the number of this layer on which kernel and simulation differ most in the first samples."""
    return _disagreement(key, _data_hash(), layer, _session(key, qmodel))


@st.cache_resource(max_entries=32, show_spinner=False)
def _disagreement(
    key: Key, data_hash: str, layer: str, _session: CodeSession
) -> tuple[int, tuple[int, ...]] | None:  # fmt: skip
    from qlab.runtime.kernel_codes import kernel_trace

    qmodel, data = _session.qmodel, cache.dataset(state.data_ref()).evaluation
    size = qmodel.model.fixed_batch or min(SEARCHED, len(data))
    _, inputs, _ = next(iter(data.subset(np.arange(size) % len(data)).batches(size)))
    found = kernel_trace(qmodel, layer, inputs, _session(*inputs))
    if not len(found.differing):
        return None
    first, *rest = (int(i) for i in found.differing[0])
    per_sample = found.codes.shape[0] // size  # rows of a sample where the network merged an axis into the batch
    return first // per_sample % len(data), (first % per_sample, *rest)


def cut_off(key: Key, layer: str, sample: int, qmodel: QuantizedModel) -> tuple[int, ...] | None:
    """The number that the clamp moved farthest, of some that lie on an end of the grid; None where none was moved."""
    from qlab.quant.fake_quant import quantize

    seen = trace(key, layer, sample, qmodel)
    codes = quantize(seen.simulated, seen.layer.target.qparams)
    ends = ((codes == codes.min()) | (codes == codes.max())).nonzero().tolist()
    tried = [tuple(ends[i]) for i in np.unique(np.linspace(0, len(ends) - 1, TRIED).astype(int))]
    moved = {at: abs(s.rounded + s.output_zero_point - s.code) for at in tried for s in [seen.explain(at)]}
    best = max(moved, key=moved.__getitem__)
    return best if moved[best] else None


def reasons(qmodel: QuantizedModel, layers: list[str]) -> list[tuple[str, str]]:
    """(layer, why it has no integers to follow) of the other convolution and linear layers."""
    from qlab.runtime.steps import LAYER_TYPES, integer_layer

    found = []
    for row in qmodel.ledger:
        if row.op in LAYER_TYPES and row.layer not in layers:
            try:
                integer_layer(qmodel, row.layer)
            except InvalidConfig as error:
                found.append((row.layer, str(error).partition(": ")[2]))
    return found
