"""An experiment as a script for torchao's PT2E flow: a quantizer that annotates each node as the experiment places it.

The nodes of the graph are named in the script. They carry the same names in the file of the model, because the graph
of the lab was read from there; those that lowering made are not in the file and are told as differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import fx

from qlab.export.script_parts import LOAD_DATA, file_stem, named_layers, preamble, told_beside_rules
from qlab.export.torchao_specs import Specs
from qlab.export.translation import Difference, Translation
from qlab.graph.ops import activation_inputs, op_type, packet_name

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.lab.experiment import Experiment

RECURRENT = ("lstm", "gru")


def torchao_script(experiment: Experiment, qmodel: QuantizedModel) -> Translation:
    """The experiment for torchao; differences name what its observers, specs and graph cannot say."""
    plan = _Plan(qmodel)
    plan.read()
    stem = file_stem(experiment)
    what = (
        "Quantizes the network in torchao's PT2E flow: observers in the exported graph, a pass over the calibration "
        "samples, then quantize and dequantize operators that a backend turns into integer kernels."
    )
    install = "torch, torchao, numpy (written for torchao 0.18)."
    begin, differences = preamble(
        experiment, qmodel.model.fixed_batch, what, install, _IMPORTS, plan.differences()
    )  # fmt: skip
    parts = [
        begin,
        f"OUTPUT = {stem + '.torchao.pt2'!r}",
        "",
        plan.text(),
        _QUANTIZER,
        LOAD_DATA,
        _RUN,
    ]
    return Translation("\n".join(parts), f"{stem}_torchao.py", differences)


class _Plan:
    """What stands in the tables of the script, gathered from the placement."""

    def __init__(self, qmodel: QuantizedModel):
        self.qmodel = qmodel
        self.names = qmodel.model.names
        self.specs = Specs()
        self.weights: dict[tuple[str, str], str] = {}
        self.inputs: dict[tuple[str, int], str] = {}
        self.outputs: dict[str, str] = {}
        self.same: dict[str, str] = {}
        self.made: list[str] = []
        self.recurrent: list[str] = []

    def read(self) -> None:
        for weight in self.qmodel.placement.weights:
            if self._is_made(weight.node):
                continue
            parameter = weight.constant.meta.get("parameter_name", str(weight.constant.target))
            self.weights[weight.node.name, parameter] = self.specs.weight(weight.spec, weight.axis, weight.layer)
        for key, point in self.qmodel.points.items():
            if point.kind == "fixed":
                grid = self.qmodel.activations[key].qparams
                spec = self.specs.fixed(float(grid.scale), int(grid.zero_point), grid.quant_min, grid.quant_max)
            else:
                spec = self.specs.activation(point.spec, point.axis, self._layer(point.node))
            if point.consumers is not None:
                for consumer in point.consumers:
                    self._input(consumer, point.node, spec)
            elif not self._is_made(point.node):
                self.outputs[point.node.name] = spec
        for dynamic in self.qmodel.placement.dynamic:
            if op_type(dynamic.node) in RECURRENT:
                self.recurrent.append(dynamic.layer)
            elif not self._is_made(dynamic.node):
                source = dynamic.node.args[0]
                assert isinstance(source, fx.Node)
                self._input(dynamic.node, source, self.specs.dynamic(dynamic.spec, dynamic.layer))
        self._pass_on()

    def _pass_on(self) -> None:
        """Ops that share the grid of their input: their output is held on it again, so that integer kernels chain."""
        ends = {point.node.name: point for point in self.qmodel.points.values() if point.consumers is None}
        owner: dict[str, str] = {name: name for name in ends}
        for node in self.qmodel.model.ops:
            if node.name in owner or op_type(node) not in ("max_pool", "reshape", "relu") or not node.args:
                continue
            source = node.args[0]
            shared = (isinstance(source, fx.Node) and source.name in owner and source.name) or None
            if shared is None or self._inside(node) or ends[owner[shared]].spec.granularity != "tensor":
                continue
            owner[node.name] = owner[shared]
            if (
                packet_name(node) in _INTEGER_MOVES
                and "part" not in node.meta
                and owner[shared] in self.outputs
                and node.name not in self.outputs
            ):
                self.same[node.name] = owner[shared]

    def _inside(self, node: fx.Node) -> bool:
        return any(isinstance(a, fx.Node) and "dtype" not in a.meta for a in node.args)

    def _layer(self, node: fx.Node) -> str:
        return self.names.get(node) or str(node.meta.get("parameter_name", node.name))

    def _is_made(self, node: fx.Node) -> bool:
        """Whether lowering made this node, so that the file of the model does not have it."""
        made = "part" in node.meta or node.name.startswith("linear_default")
        if made:
            self.made.append(self._layer(node))
        return made

    def _input(self, consumer: fx.Node, source: fx.Node, spec: str) -> None:
        if self._is_made(consumer):
            return
        operands: Any = consumer.args[0] if op_type(consumer) == "cat" else consumer.args
        assert source in activation_inputs(consumer)
        for position, operand in enumerate(operands):
            if operand is source:
                self.inputs[consumer.name, position] = spec

    def differences(self) -> list[Difference]:
        out = told_beside_rules(self.qmodel) + self.specs.differences()
        if self.recurrent:
            out.append(
                Difference(
                    "input and state of recurrent layers ranged at every step",
                    "weights alone are quantized there, input and state stay float",
                    "PT2E sees an LSTM or GRU as one operator and cannot reach its steps.",
                    named_layers(self.recurrent),
                )
            )
        attention = [m for m in self.made if not m.split("@")[0].endswith(("matmul", "mm"))]
        if attention:
            out.append(
                Difference(
                    "products and softmax inside attention on grids",
                    "scaled_dot_product_attention stays one float operator",
                    "The file has it as one operator, which PT2E does not take apart.",
                    named_layers(attention),
                )
            )
        products = [m for m in self.made if m not in attention]
        if products:
            out.append(
                Difference(
                    "a product with a constant matrix quantized as a linear layer",
                    "it stays a float matmul",
                    "Only the lab rewrites it to linear.",
                    named_layers(products),
                )
            )
        return out

    def text(self) -> str:
        def table(name: str, about: str, rows: Mapping[Any, str]) -> str:
            if not rows:
                return f"{name} = {{}}"
            lines = [f"{name} = {{  # {about}"]
            return "\n".join([*lines, *(f"    {key!r}: {value}," for key, value in rows.items()), "}"])

        same = {key: repr(value) for key, value in self.same.items()}
        return "\n".join(
            [
                "# ---- how tensors are quantized\n",
                *self.specs.lines(),
                "\n# ---- what is quantized, by the names of the nodes in the exported graph\n",
                table("WEIGHTS", "(node, parameter)", self.weights),
                table("INPUTS", "(node, operand): quantized on the way into this node", self.inputs),
                table("OUTPUTS", "node: the tensor it makes", self.outputs),
                table("SAME_GRID", "node: another whose grid its values lie on already", same),
            ]
        )


# Data movement that integer kernels do on codes.
_INTEGER_MOVES = ("max_pool1d", "max_pool2d", "flatten", "view", "reshape", "transpose", "permute", "relu")

_IMPORTS = """import numpy as np
import torch
from torchao.quantization.pt2e import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)
"""

_QUANTIZER = '''

# ---- the quantizer


class AsPlanned(Quantizer):
    """Annotates the nodes named above; everything else stays float."""

    def annotate(self, graph_module):
        nodes = {node.name: node for node in graph_module.graph.nodes}
        named = {*OUTPUTS, *SAME_GRID, *(n for n, _ in WEIGHTS), *(n for n, _ in INPUTS)}
        if named - set(nodes):
            raise SystemExit(f"{MODEL} is not the network this was written for: no {sorted(named - set(nodes))} in it.")
        made = {}
        for name in (n.name for n in graph_module.graph.nodes if n.name in named):
            made[name] = nodes[name].meta["quantization_annotation"] = QuantizationAnnotation(_annotated=True)
        for (name, parameter), spec in WEIGHTS.items():
            (source,) = (n for n in nodes[name].all_input_nodes if n.op == "get_attr" and n.target == parameter)
            made[name].input_qspec_map[source] = spec
        for (name, operand), spec in INPUTS.items():
            first = nodes[name].args[0]
            operands = first if isinstance(first, (list, tuple)) else nodes[name].args
            made[name].input_qspec_map[operands[operand]] = spec
        for name, spec in OUTPUTS.items():
            made[name].output_qspec = spec
        for name, other in SAME_GRID.items():
            spec = OUTPUTS[other]
            made[name].output_qspec = DerivedQuantizationSpec(
                derived_from=[nodes[other]],
                derive_qparams_fn=lambda observers: observers[0].calculate_qparams(),
                dtype=spec.dtype,
                quant_min=spec.quant_min,
                quant_max=spec.quant_max,
                qscheme=torch.per_tensor_affine,
            )
        return graph_module

    def validate(self, graph_module):
        pass


# ---- the data
'''

_RUN = """

# ---- quantize and measure


def of_torch(module):
    def call(x):
        with torch.no_grad():
            output = module(*map(torch.from_numpy, x))
        return (output if isinstance(output, torch.Tensor) else output[0]).numpy()

    return call


network = torch.export.load(MODEL).module()
reference = predict(of_torch(network))
prepared = prepare_pt2e(network, AsPlanned())
if any(not spec.is_dynamic for spec in (*INPUTS.values(), *OUTPUTS.values())):
    for x, _ in batches(calibration_rows):
        of_torch(prepared)(x)
else:  # nothing is ranged ahead: one batch, for the observers of the weights
    of_torch(prepared)(next(batches(calibration_rows))[0])
quantized = convert_pt2e(prepared)
report("float", reference, reference)
report("torchao", predict(of_torch(quantized)), reference)

example = tuple(map(torch.from_numpy, next(batches(evaluation_rows))[0]))
shapes = None if FIXED_BATCH else tuple({0: torch.export.Dim.AUTO} for _ in example)
torch.export.save(torch.export.export(quantized, example, dynamic_shapes=shapes), OUTPUT)
"""
