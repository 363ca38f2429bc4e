"""`load_model`: a module, a .pt2 or a sample name becomes a `Model`, the lab's view of a network."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qlab.errors import DataMismatch, QLabError, UnsupportedModel
from qlab.graph.archive import InputSpec, read_program
from qlab.graph.lower import attribute, lower
from qlab.graph.ops import op_type, packet_name, weight_argument
from qlab.quant.memo import Memo
from qlab.quant.qparams import QParams
from qlab.samples import sample_folder

KNOWN_BYTES = 32 << 20  # of scales and zero points that a model keeps


@dataclass(frozen=True)
class Layer:
    """One op of the network, as the layer table shows it. Shapes carry the example's batch size; macs per sample."""

    name: str
    op: str
    weight_shape: tuple[int, ...] | None
    parameters: int
    macs: int
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class ConstantGrid:
    """The grid of a constant. empty: how many of its channels are all zero."""

    qparams: QParams
    empty: int


class Model:
    """A float network: an FX graph of ATen ops, lowered, with names for its tensors.

    Calling it runs the float graph. It is shared and cached: copy before changing anything (`convert` does).
    chosen: the grids that `convert` has chosen for its constants, by constant, spec and axis. derived: networks made
    from it that compute the same, such as the equalised one, by what was done.
    """

    def __init__(self, graph_module: fx.GraphModule, inputs: tuple[InputSpec, ...], name: str, folded: list[str]):
        self.graph_module = graph_module
        self.inputs = inputs
        self.name = name
        self.folded = folded
        self.names = _name_nodes(graph_module)
        self.derived: dict[str, Model] = {}
        self.chosen: Memo[ConstantGrid] = Memo(KNOWN_BYTES, lambda grid: grid.qparams.nbytes)
        self._node_of = {name: node for node, name in self.names.items()}

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return self.graph_module(*inputs)

    @property
    def ops(self) -> list[fx.Node]:
        """The call_function nodes that give tensors, in order."""
        return [n for n in self.graph_module.graph.nodes if n in self.names and n.op == "call_function"]

    def node(self, name: str) -> fx.Node:
        """The node whose output carries this tensor name. Raises KeyError."""
        return self._node_of[name]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(self._layer(node) for node in self.ops)

    def _layer(self, node: fx.Node) -> Layer:
        weights = [attribute(self.graph_module, a) for a in node.all_input_nodes]
        constants = [w for w in weights if w is not None and w.is_floating_point()]
        main = weight_argument(node)
        weight = attribute(self.graph_module, node.args[main.position]) if main else None
        if weight is None and op_type(node) in ("lstm", "gru"):
            weight = constants[0] if constants else None
        return Layer(
            name=self.names[node],
            op=op_type(node),
            weight_shape=None if weight is None else tuple(weight.shape),
            parameters=sum(w.numel() for w in constants),
            macs=_macs(node, self.graph_module),
            output_shape=node.meta.get("shape"),
        )

    @cached_property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self._constants().values())

    @cached_property
    def float_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._constants().values())

    def _constants(self) -> dict[str, Tensor]:
        gm = self.graph_module
        return {**gm._parameters, **{k: v for k, v in gm._buffers.items() if v is not None}}  # type: ignore[dict-item]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the lowered graph and its constants: equal for equal networks, however they were stored."""
        digest = hashlib.sha256()
        for node in self.graph_module.graph.nodes:
            digest.update(f"{node.op} {node.target} {node.args} {node.kwargs}\n".encode())
        for spec in self.inputs:
            digest.update(f"{spec.dtype} {spec.shape}\n".encode())
        for name, value in sorted(self._constants().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def n_classes(self) -> int | None:
        """How many classes the first output tells apart, where it is [N, C]; 2 for a single logit; else None."""
        output: Any = self.graph_module.graph.output_node().args[0]
        first = output[0] if isinstance(output, (tuple, list)) else output
        shape: tuple[int, ...] = (first.meta.get("shape") or ()) if isinstance(first, fx.Node) else ()
        if len(shape) == 1:
            return 2
        return max(shape[1], 2) if len(shape) == 2 else None

    @property
    def fixed_batch(self) -> int | None:
        """The batch size the graph insists on, or None when any will do."""
        sizes = {s.shape[0] for s in self.inputs if s.shape}
        fixed = [s for s in sizes if s is not None]
        return fixed[0] if fixed else None

    def check_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Raises DataMismatch when number, dtype or shape of the inputs is not what the network takes."""
        if len(inputs) != len(self.inputs):
            raise DataMismatch(f"the model takes {len(self.inputs)} inputs, the data has {len(inputs)}.")
        for tensor, spec in zip(inputs, self.inputs, strict=True):
            shape = ", ".join("any" if s is None else str(s) for s in spec.shape)
            if tensor.ndim != len(spec.shape) or any(
                want is not None and have != want for have, want in zip(tensor.shape, spec.shape, strict=True)
            ):
                raise DataMismatch(
                    f"input {spec.name!r} is {list(tensor.shape)}, the model expects [{shape}]. "
                    "Reshape the data, or export the model with this size."
                )
            if tensor.dtype.is_floating_point != spec.dtype.is_floating_point:
                raise DataMismatch(
                    f"input {spec.name!r} is {_short(tensor.dtype)}, the model expects {_short(spec.dtype)}. "
                    + ("Give token numbers as int64." if not spec.dtype.is_floating_point else "Give float data.")
                )


def load_model(source: nn.Module | str | Path | bytes, example_inputs: Any = None) -> Model:
    """Read or capture a network.

    source: an nn.Module in eval mode (with `example_inputs`, a tensor or tuple of tensors, batch first), the path or
    the bytes of a .pt2, or the name of a sample model.
    Raises UnsupportedModel, BadUpload, UnsafeFile.
    """
    archive: bytes | Path
    if isinstance(source, nn.Module):
        archive, name = _export(source, example_inputs), type(source).__name__
    elif isinstance(source, bytes):
        archive, name = source, "upload"
    else:
        folder = sample_folder(str(source)) if isinstance(source, str) else None
        path = folder / "model.pt2" if folder else Path(source)
        archive, name = path, str(source) if folder else path.stem
    program = read_program(archive)
    gm = program.graph_module
    folded = lower(gm)
    model_inputs = program.inputs
    propagate_shapes(gm, model_inputs)
    return Model(gm, model_inputs, name, folded)


def _export(module: nn.Module, example_inputs: Any) -> bytes:
    if example_inputs is None:
        raise UnsupportedModel(
            "a module needs example_inputs to be captured: one tensor, or a tuple of tensors, batch first."
        )
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not all(isinstance(x, Tensor) and x.ndim >= 1 for x in inputs):
        raise UnsupportedModel("example_inputs must be tensors with the batch on the first axis.")
    if all(x.shape[0] == 1 for x in inputs):
        # torch.export fixes a dimension whose example size is 1
        inputs = tuple(torch.cat([x, x]) for x in inputs)
    inputs = tuple(x.detach().clone(memory_format=torch.contiguous_format) for x in inputs)  # they go into the archive
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # torch warns of its own recurrent modules ("_flat_weights were assigned during export")
            warnings.simplefilter("ignore")
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
            torch.export.save(program, buffer)
    except QLabError:
        raise
    except Exception as e:  # torch.export raises whatever the module or its tracer raises
        raise UnsupportedModel(
            f"torch.export could not capture {type(module).__name__}: {_first_line(e)} "
            "Control flow that depends on values has to be rewritten; the detail has torch's own words.",
            detail=str(e),
        ) from e
    return buffer.getvalue()


def _first_line(e: Exception) -> str:
    lines = [line for line in str(e).splitlines() if line.strip()]
    return (lines[0] if lines else type(e).__name__).rstrip(".") + "."


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        if op_type(n) == "lstm":
            _check_lstm(*self.fetch_args_kwargs_from_env(n)[0])
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(int(s) for s in result.shape)
            n.meta["dtype"] = result.dtype
        else:
            n.meta.pop("dtype", None)
        return result


def _check_lstm(
    x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], _biases: bool, layers: int, _dropout: float,
    _train: bool, bidirectional: bool, batch_first: bool,
) -> None:  # fmt: skip
    """The kernels of torch 2.13 read past the end of an input or state that is not of the size the weights ask for."""
    cells, batch = layers * (2 if bidirectional else 1), x.shape[0 if batch_first else 1]
    (rows, width), state = params[0].shape, params[1].shape[1]
    found, expected = [tuple(s.shape) for s in states], [(cells, batch, state), (cells, batch, rows // 4)]
    if x.ndim != 3 or x.shape[2] != width or found != expected:
        raise ValueError(f"an LSTM takes {width} values a step and states {expected}, not {tuple(x.shape)} and {found}")


def propagate_shapes(gm: fx.GraphModule, inputs: tuple[InputSpec, ...]) -> None:
    """Shape and dtype of every tensor, from a run on tensors without data: nothing is computed, no memory is taken."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            fakes = [torch.empty(s.example_shape, dtype=s.dtype) for s in inputs]
            _ShapeRecorder(gm).run(*fakes)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as e:
        raise UnsupportedModel(
            f"the graph does not run on inputs of its own example size: {_first_line(e)} Export the model again.",
            detail=str(e),
        ) from e


def _name_nodes(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """A unique name for each node that gives a tensor: layer names people know, as ARCHITECTURE.md describes."""
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()

    def unique(name: str) -> str:
        candidate, i = name, 0
        while candidate in taken:
            i += 1
            candidate = f"{name}@{i}"
        taken.add(candidate)
        return candidate

    for node in gm.graph.nodes:
        if node.op == "placeholder":
            names[node] = unique(node.name)
    for node in gm.graph.nodes:
        if node.op != "call_function" or not _gives_tensor(node):
            continue
        names[node] = unique(_layer_name(gm, node))
    return names


def _gives_tensor(node: fx.Node) -> bool:
    """Whether the node computes a tensor from tensors; constants made on the spot (zeros, arange) have no name."""
    if not any("dtype" in n.meta or op_type(n) in ("lstm", "gru") for n in node.all_input_nodes if n.op != "output"):
        return False
    return "dtype" in node.meta or op_type(node) in ("lstm", "gru")


_SINGLE_OP_MODULES = frozenset(
    "ReLU ReLU6 GELU SiLU Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softmax LeakyReLU ELU Mish Softplus Flatten "
    "Unflatten MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d "
    "AdaptiveAvgPool3d LayerNorm BatchNorm1d BatchNorm2d BatchNorm3d GroupNorm InstanceNorm1d InstanceNorm2d "
    "Embedding LSTM GRU Linear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d".split()
)


def _layer_name(gm: fx.GraphModule, node: fx.Node) -> str:
    path: str = (node.meta.get("module_path") or "").split("@")[0]
    position = weight_argument(node)
    weight = node.args[position.position] if position else None
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        parameter = weight.meta.get("parameter_name", "")
        for ending in (".weight", "_weight"):
            if parameter.endswith(ending):
                return parameter[: -len(ending)]
    part = node.meta.get("part")
    if packet_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
        source, index = node.args[0], node.args[1]
        if op_type(source) in ("lstm", "gru"):
            return f"{_layer_name(gm, source)}.{('output', 'hidden', 'cell')[int(index)]}"  # type: ignore[arg-type]
        return f"{_layer_name(gm, source)}.{index}"
    if part is None and path and node.meta.get("module_type") in _SINGLE_OP_MODULES:
        return path
    local = part or packet_name(node)
    return f"{path}.{local}" if path else local


def _macs(node: fx.Node, gm: fx.GraphModule) -> int:
    """Multiply-accumulates for one sample; 0 for ops without products."""
    shape = node.meta.get("shape")
    kind = op_type(node)
    position = weight_argument(node)
    weight = attribute(gm, node.args[position.position]) if position else None
    if kind in ("lstm", "gru"):
        source = node.args[0]
        steps_axis = 1 if node.args[-1] else 0
        steps = source.meta["shape"][steps_axis] if len(source.meta["shape"]) == 3 else source.meta["shape"][0]  # type: ignore[union-attr]
        params = [attribute(gm, a) for a in node.all_input_nodes if a.op == "get_attr"]
        return int(steps) * sum(p.numel() for p in params if p is not None and p.ndim == 2)
    if shape is None or not shape:
        return 0
    per_sample = math.prod(shape[1:])
    if kind == "matmul":
        left = node.args[0]
        return per_sample * (left.meta["shape"][-1] if isinstance(left, fx.Node) else 0)
    if weight is None or kind == "embedding":
        return 0
    if kind.startswith("conv_transpose"):
        source_shape = node.args[0].meta["shape"]  # type: ignore[union-attr]
        return math.prod(source_shape[1:]) * math.prod(weight.shape[1:])
    return per_sample * math.prod(weight.shape[1:])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
