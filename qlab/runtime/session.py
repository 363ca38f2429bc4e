"""ONNX Runtime sessions: integer kernels, called like a model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import Tensor

from qlab.errors import DataMismatch, UnsupportedModel
from qlab.export.graph_writer import UINT8, activation_container
from qlab.export.onnx_file import float_onnx, quantized_onnx
from qlab.graph.ops import op_type
from qlab.graph.optypes import OP_TYPES
from qlab.runtime.cpu import cpu_features

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model
    from qlab.graph.placement import LedgerRow

# Entry of the session options -> what it does, in the words of the Runtime page.
EXACT_PAIRS = "session.x64quantprecision"
FLOAT_BLOCKS = "session.qdq_matmulnbits_accuracy_level"
FLOAT_LAYERS = "optimization.disable_specified_optimizers"
_ABOUT = {
    EXACT_PAIRS: "this CPU adds pairs of 8-bit products in 16 bits, which can saturate; unsigned weights avoid it",
    FLOAT_BLOCKS: "products with blocks of integer weights keep their activations in float, as the config says",
    FLOAT_LAYERS: "weights that the config keeps float stay float; between quantized layers the runtime would put them "
    "on grids by itself",
}
_VALUES = {EXACT_PAIRS: "1", FLOAT_BLOCKS: "1", FLOAT_LAYERS: "WeightBiasQuantization"}


@dataclass(frozen=True)
class RuntimeOptions:
    """How a session is opened. threads: None takes torch's number.

    as_simulated: keep results those of the simulation where the runtime's defaults would trade them for speed; False
    opens the file as anyone would without a thought.
    pairs_fit: no pair of products can leave 16 bits, so that nothing needs to be done about it; see `for_model`.
    """

    threads: int | None = None
    as_simulated: bool = True
    pairs_fit: bool = False

    def for_model(self, qmodel: QuantizedModel) -> RuntimeOptions:
        """These options for this model: exact sums of pairs cost time, so only codes that need them get them."""
        return replace(self, pairs_fit=pairs_fit(qmodel))

    @property
    def entries(self) -> Mapping[str, str]:
        """Entries of the session options, by ONNX Runtime's names."""
        if not self.as_simulated:
            return {}
        exact = cpu_features().saturates_pairs and not self.pairs_fit
        return {name: value for name, value in _VALUES.items() if name != EXACT_PAIRS or exact}

    def explain(self) -> Mapping[str, str]:
        """Each entry, and why it is set."""
        return {name: _ABOUT[name] for name in self.entries}


AS_SIMULATED = RuntimeOptions()


def pairs_fit(qmodel: QuantizedModel) -> bool:
    """Whether no sum of two products of codes leaves 16 bits, whatever the data: the largest stored code of any
    activation times twice the largest of any weight. So it is with weights of seven bits, and with
    unsigned activations of seven."""
    largest = max((int(w.codes.short().abs().max()) for w in qmodel.weights.values() if w.codes.numel()), default=0)
    return largest_stored_code(qmodel) * 2 * largest <= 2**15 - 1


def largest_stored_code(qmodel: QuantizedModel) -> int:
    """Of any activation that 8-bit kernels may read, as it lies in the file: signed grids are moved up by 128. Ranges
    taken at every call use all 255, and so do grids for which 8 bits are not enough, because nothing is known of the
    kernels behind them."""
    if qmodel.placement.dynamic or not qmodel.activations:
        return 255
    found = 0
    for grid in qmodel.activations.values():
        kind, shift = activation_container(grid.quant_min, grid.quant_max)
        # What pads an input has the code of its zero point.
        highest = max(grid.quant_max, int(grid.zero_point.max()) if grid.zero_point.numel() else 0)
        found = max(found, highest + shift if kind == UINT8 else 255)
    return min(found, 255)


def sensitive_entries(qmodel: QuantizedModel) -> tuple[str, ...]:
    """The entries that results of this model depend on, if not on this CPU then on another: for pairs that saturate,
    and for float inputs and float weights that the runtime would quantize as well. Raises UnsupportedModel."""
    modes = {row.mode for row in qmodel.ledger if row.quantized and row.weight is not None}
    found = []
    if {"static", "dynamic"} & modes and not pairs_fit(qmodel):
        found.append(EXACT_PAIRS)
    if "weight_only" in modes and _has_block_products(qmodel):
        found.append(FLOAT_BLOCKS)
    if qmodel.activations and any(_keeps_weight_float(row) for row in qmodel.ledger):
        found.append(FLOAT_LAYERS)
    return tuple(found)


def _keeps_weight_float(row: LedgerRow) -> bool:
    return row.weight is None and OP_TYPES[row.op].role == "weighted"


def needed_entries(qmodel: QuantizedModel) -> dict[str, str]:
    """Those without which this model would compute something else than the simulation here, and why. Raises
    UnsupportedModel."""
    here = AS_SIMULATED.explain()
    return {name: here[name] for name in sensitive_entries(qmodel) if name in here}


def _has_block_products(qmodel: QuantizedModel) -> bool:
    """Whether the runtime makes products with blocks of integer weights of this graph; it does so for other layouts of
    scales as well."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(quantized_onnx(qmodel).proto, AS_SIMULATED.for_model(qmodel), optimized=optimized)
        return any(node.op_type == "MatMulNBits" for node in onnx.load(optimized).graph.node)


def open_session(
    proto: onnx.ModelProto | bytes, options: RuntimeOptions = AS_SIMULATED, *,
    optimized: Path | None = None, profile: Path | None = None,
) -> onnxruntime.InferenceSession:  # fmt: skip
    """A session on the CPU. optimized: where the graph that is really executed is written. profile: prefix of the file
    of timings. Raises UnsupportedModel with the runtime's reason when it does not take the graph."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = options.threads or torch.get_num_threads()
    settings.inter_op_num_threads = 1
    # Threads that wait busily after a call would take the cores from torch and from other sessions of this process.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in options.entries.items():
        settings.add_session_config_entry(name, value)
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    content = proto if isinstance(proto, bytes) else proto.SerializeToString()
    try:
        return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has an exception of its own for each status, with no common base
        raise UnsupportedModel(
            f"ONNX Runtime {onnxruntime.__version__} does not take this graph: {_last_line(error)}", detail=str(error)
        ) from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].split(" : ")[-1]


@dataclass
class Session:
    """A network in ONNX Runtime, called with torch tensors and answering with them, as the model does.

    integer: False for the float network.
    """

    runtime: onnxruntime.InferenceSession
    name: str
    inputs: tuple[str, ...]
    integer: bool
    options: RuntimeOptions
    outputs: tuple[str, ...] = field(default=())

    def __call__(self, *inputs: Tensor) -> Any:
        feed = self.feed(inputs)
        try:
            given = self.runtime.run(list(self.outputs), feed)
        except Fail as error:  # a fused kernel that does not take what it was given, e.g. a scale for each channel
            raise UnsupportedModel(
                f"ONNX Runtime {onnxruntime.__version__} cannot run this graph: {_last_line(error)}", detail=str(error)
            ) from error
        results = [torch.from_numpy(r) for r in given]
        return results[0] if len(results) == 1 else tuple(results)

    def feed(self, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
        """The inputs as the runtime takes them. Raises DataMismatch."""
        if len(inputs) != len(self.inputs):
            raise DataMismatch(f"the model takes {len(self.inputs)} inputs, {len(inputs)} were given.")
        return {name: x.detach().contiguous().numpy() for name, x in zip(self.inputs, inputs, strict=True)}


def at_once(qmodel: QuantizedModel, batches: int) -> tuple[int, RuntimeOptions]:
    """How many of so many batches to compute at a time with torch's number of threads, and a session's options for it.

    Batches side by side do not wait for each other after every op, as threads that share one do. The runtime's dynamic
    LSTM ranges each thread's share of a batch by itself: there the number of threads is part of the result and stays.
    """
    threads = torch.get_num_threads()
    if any(op_type(point.node) == "lstm" for point in qmodel.placement.dynamic):
        return 1, RuntimeOptions(threads)
    parallel = max(min(threads, batches), 1)
    # Each batch has the thread that asks for it; all of them share those that are left.
    return parallel, RuntimeOptions(threads - parallel + 1)


def session_of(proto: onnx.ModelProto, model: Model, integer: bool, options: RuntimeOptions) -> Session:
    """The graph in ONNX Runtime, with all its outputs. Raises UnsupportedModel."""
    names = tuple(v.name for v in proto.graph.output)
    runtime = open_session(proto, options)
    return Session(runtime, model.name, tuple(s.name for s in model.inputs), integer, options, names)


def integer_session(qmodel: QuantizedModel, options: RuntimeOptions = AS_SIMULATED) -> Session:
    """The quantized model in ONNX Runtime, as it stands now. Raises UnsupportedModel."""
    return session_of(quantized_onnx(qmodel).proto, qmodel.model, True, options.for_model(qmodel))


def float_session(model: Model, options: RuntimeOptions = AS_SIMULATED) -> Session:
    """The float network in the same runtime. Raises UnsupportedModel."""
    return session_of(float_onnx(model).proto, model, False, options)
