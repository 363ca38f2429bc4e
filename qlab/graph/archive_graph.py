"""The graph of a `.pt2`: from JSON to a torch.fx.GraphModule, calling only what `archive_ops` lists."""

from __future__ import annotations

import builtins
import operator as operators
import re
from collections.abc import Callable

import torch
from torch import fx, nn

from qlab.errors import UnsafeFile, UnsupportedModel
from qlab.graph.archive_checks import check_training, check_values, refuse_target, refuse_training
from qlab.graph.archive_names import identifier, module_meta
from qlab.graph.archive_ops import DROPPED, HIDDEN_ALIASES, SCALAR_OPERATORS, aten_operator
from qlab.graph.archive_schema import (
    EXPORT_LINES,
    as_bool,
    as_float,
    as_int,
    as_list,
    as_record,
    as_text,
    damaged,
    dtype_of,
    field,
    layout_of,
    list_at,
    memory_format_of,
    record_at,
    shown,
    text_at,
    union,
)
from qlab.graph.archive_sizes import InputSpec, Sizes, hint

MAX_NODES = 50_000
MAX_BITS = 1_024  # of a size: Python's integers have no end, and squaring one forty times is enough to fill the memory

# tensor(kind, name): the weight of that name; kind is "parameter", "buffer" or "constant"
TensorOf = Callable[[str, str], torch.Tensor]


# What an argument of a type may be written as. A tensor may be a number: torch wraps it.
_NUMBERS = frozenset({"as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float"})
_ACCEPTED: dict[str, frozenset[str]] = {
    "Tensor": frozenset({"as_tensor"}) | _NUMBERS,
    "List[Tensor]": frozenset({"as_tensors"}),
    "List[Optional[Tensor]]": frozenset({"as_tensors", "as_optional_tensors"}),
    "int": frozenset({"as_int", "as_sym_int"}),
    "float": frozenset({"as_int", "as_float", "as_sym_int", "as_sym_float"}),
    "number": _NUMBERS,
    "bool": frozenset({"as_bool", "as_sym_bool"}),
    "str": frozenset({"as_string"}),
    "List[int]": frozenset({"as_ints", "as_sym_ints", "as_int", "as_sym_int"}),
    "List[float]": frozenset({"as_ints", "as_floats", "as_sym_floats", "as_float"}),
    "List[bool]": frozenset({"as_bools"}),
    "ScalarType": frozenset({"as_scalar_type"}),
    "Layout": frozenset({"as_layout"}),
    "MemoryFormat": frozenset({"as_memory_format"}),
    "Device": frozenset({"as_device"}),
    "Generator": frozenset(),
}
_SCALARS = frozenset({"as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool"})


def build_graph(program: dict[str, object], tensor_of: TensorOf) -> tuple[fx.GraphModule, tuple[InputSpec, ...]]:
    """The GraphModule and input specs of a checked document (`check_strings` has run on it).

    Raises UnsupportedModel, BadUpload, UnsafeFile.
    """
    builder = _Builder(program, tensor_of)
    builder.read_inputs()
    for index, node in enumerate(as_list(field(builder.graph_json, "nodes", "graph"), "graph.nodes", MAX_NODES)):
        builder.read_node(as_record(node, f"node {index}"), f"node {index}")
    builder.read_outputs()
    return builder.finish(), tuple(builder.inputs)


class _Builder:
    def __init__(self, program: dict[str, object], tensor_of: TensorOf) -> None:
        module = record_at(program, "graph_module", "program")
        self.graph_json = record_at(module, "graph", "graph_module")
        self.signature = record_at(module, "signature", "graph_module")
        self.sizes = Sizes(program, self.graph_json)
        self.tensor_of = tensor_of
        self.graph = fx.Graph()
        self.inputs: list[InputSpec] = []
        self.names: dict[str, fx.Node] = {}
        self.scalars: set[str] = set()  # the names that are sizes and other numbers, not tensors
        self.weights: dict[str, tuple[str, str]] = {}  # name in the graph -> kind, name of the parameter; not yet used
        self.attributes: dict[str, torch.Tensor] = {}
        self.base: dict[fx.Node, fx.Node] = {}  # view -> the node whose memory it shows
        self.written_inputs: list[fx.Node] = []
        self.bits: dict[fx.Node, int] = {}  # how long a size may get
        self.readers: dict[str, Callable[[object, str], object]] = {
            "as_tensor": self._tensor,
            "as_tensors": lambda v, w: [self._tensor(t, w) for t in as_list(v, w)],
            "as_optional_tensors": lambda v, w: [self._optional_tensor(t, w) for t in as_list(v, w)],
            "as_int": as_int,
            "as_ints": lambda v, w: [as_int(x, w) for x in as_list(v, w)],
            "as_float": as_float,
            "as_floats": lambda v, w: [as_float(x, w) for x in as_list(v, w)],
            "as_bool": as_bool,
            "as_bools": lambda v, w: [as_bool(x, w) for x in as_list(v, w)],
            "as_string": as_text,
            "as_sym_int": lambda v, w: self._symbol(v, w, "as_int", as_int),
            "as_sym_ints": lambda v, w: [self._symbol(x, w, "as_int", as_int) for x in as_list(v, w)],
            "as_sym_float": lambda v, w: self._symbol(v, w, "as_float", as_float),
            "as_sym_floats": lambda v, w: [self._symbol(x, w, "as_float", as_float) for x in as_list(v, w)],
            "as_sym_bool": lambda v, w: self._symbol(v, w, "as_bool", as_bool),
            "as_scalar_type": dtype_of,
            "as_layout": layout_of,
            "as_memory_format": memory_format_of,
            # Whatever the model was exported on, here it runs on the CPU.
            "as_device": lambda v, w: torch.device("cpu"),
        }

    # --- inputs -------------------------------------------------------------------------------------------------------

    def read_inputs(self) -> None:
        for index, item in enumerate(list_at(self.signature, "input_specs", "signature")):
            where = f"input {index}"
            case, content = union(item, where)
            spec = as_record(content, where)
            if case == "user_input":
                self._user_input(spec, where)
            elif case in ("parameter", "buffer", "tensor_constant"):
                kind = case.removeprefix("tensor_")
                name = text_at(record_at(spec, "arg", where), "name", where)
                self._declare(name, where)
                self.weights[name] = (kind, text_at(spec, f"{case}_name", where))
            elif case == "constant_input":
                pass  # its value is written where it is used
            elif case == "custom_obj":
                raise UnsafeFile(
                    "The model file holds an object of a custom class, which is stored as a pickle that can run code. "
                    "Export a model made of tensors and torch.nn modules alone."
                )
            else:
                raise UnsupportedModel(
                    f"The model takes an input of kind {shown(case)}, which is for operators with side effects. "
                    "Export a model whose forward takes and returns tensors."
                )
        if not self.inputs:
            raise UnsupportedModel(
                "The model takes no tensor as input, so there is nothing to calibrate it with. "
                "Give forward the tensor it works on."
            )

    def _declare(self, name: str, where: str) -> None:
        if name in self.names or name in self.weights:
            damaged(where, f"defines the name {shown(name)} a second time")

    def _user_input(self, spec: dict[str, object], where: str) -> None:
        case, content = union(field(spec, "arg", where), where)
        if case in ("as_none", "as_int", "as_float", "as_bool", "as_string"):
            return  # a constant; its value is written where it is used
        if case == "as_custom_obj":
            raise UnsafeFile("The model takes an object of a custom class as input. Give forward tensors alone.")
        if case != "as_tensor":
            raise UnsupportedModel(
                f"{where} of the model is a number that may vary ({shown(case)}), not a tensor. "
                "Export with that number fixed: leave it out of dynamic_shapes."
            )
        name = text_at(as_record(content, where), "name", where)
        self._declare(name, where)
        target = identifier(name, f"input{len(self.inputs)}")
        if hasattr(builtins, re.sub(r"_\d+$", "", target)) and not hasattr(builtins, target):
            target = f"{target}_"  # in a copy of the graph, torch.fx renames an input called "input" to input_1
        if any(spec.name == target for spec in self.inputs):
            damaged(where, f"has the name {shown(target)}, as another input has")
        node = self.graph.placeholder(target)
        node.name = target  # torch.fx avoids names of builtins, but "input" is what torch.nn calls its argument
        meta = self.sizes.of(name, where)
        if meta is None:
            damaged(where, "has no entry in graph.tensor_values")
        dtype, sizes = meta
        dimensions = [self.sizes.dimension(size, f"{where}, dimension {i}") for i, size in enumerate(sizes)]
        example = tuple(d[1] for d in dimensions)
        self.inputs.append(
            InputSpec(
                target,
                dtype,
                tuple(d[0] for d in dimensions),
                example,
                tuple(d[2] for d in dimensions),
                tuple(d[3] for d in dimensions),
            )
        )
        node.meta = {"shape": example, "dtype": dtype, "module_path": "", "module_type": ""}
        self.names[name] = node

    # --- references ---------------------------------------------------------------------------------------------------

    def _tensor(self, value: object, where: str) -> fx.Node:
        name = text_at(as_record(value, where), "name", where)
        if name in self.weights:
            self._fetch_weight(name, where)
        if name not in self.names or name in self.scalars:
            damaged(where, f"uses {shown(name)}, which is not a tensor defined before it")
        return self.names[name]

    def _optional_tensor(self, value: object, where: str) -> fx.Node | None:
        case, content = union(value, where)
        if case == "as_none":
            return None
        if case != "as_tensor":
            damaged(where, f"should hold tensors and holds {shown(case)}")
        return self._tensor(content, where)

    def _symbol(
        self, value: object, where: str, constant: str, read: Callable[[object, str], int | float | bool]
    ) -> fx.Node | int | float | bool:
        case, content = union(value, where)
        if case == constant:
            return read(content, where)
        if case != "as_name":
            damaged(where, f"should be a number or a name and is {shown(case)}")
        name = as_text(content, where)
        if name not in self.names or name not in self.scalars:
            damaged(where, f"uses {shown(name)}, which is not a size defined before it")
        return self.names[name]

    def _fetch_weight(self, name: str, where: str) -> None:
        """Only weights that the graph uses become attributes; num_batches_tracked, for one, is not."""
        kind, parameter = self.weights.pop(name)
        tensor = self.tensor_of(kind, parameter)
        stem = f"{kind[0]}_" + re.sub(r"[^A-Za-z0-9_]", "_", parameter)[:120]
        attribute = stem if stem not in self.attributes else f"{stem}_{len(self.attributes)}"
        self.attributes[attribute] = tensor
        node = self.graph.create_node("get_attr", attribute, name=identifier(name, attribute))
        module_path = parameter.rpartition(".")[0]
        node.meta = {
            "parameter_name": parameter,
            "module_path": module_path,
            "module_type": "",
            "shape": tuple(tensor.shape),
            "dtype": tensor.dtype,
        }
        self.names[name] = node

    # --- nodes --------------------------------------------------------------------------------------------------------

    def read_node(self, record: dict[str, object], where: str) -> None:
        target = text_at(record, "target", where)
        meta = module_meta(record_at(record, "metadata", where), where)
        layer = meta["module_path"] or "the top of the model"
        where = f"{where} ({shown(target)} in {layer})"
        if target in DROPPED:
            return
        outputs = list_at(record, "outputs", where)
        if target in SCALAR_OPERATORS:
            self._scalar_call(target, record, outputs, meta, where)
            return
        operator = aten_operator(target)
        if operator is None:
            refuse_target(target, str(layer))
        args, kwargs, given = self._arguments(operator, list_at(record, "inputs", where), where)
        check_training(operator, given, str(layer))
        check_values(operator, given, self._weight_of, where)
        name = record.get("name")
        label = identifier(name, "op") if isinstance(name, str) else operator._opname
        node = self.graph.create_node("call_function", operator, args, kwargs, name=label)  # type: ignore[arg-type]
        node.meta = dict(meta)
        self._track_memory(operator, node, given, str(layer))
        self._define_outputs(operator, node, outputs, where)

    def _scalar_call(
        self, target: str, record: dict[str, object], outputs: list[object], meta: dict[str, object], where: str
    ) -> None:
        function, arity = SCALAR_OPERATORS[target]
        inputs = list_at(record, "inputs", where)
        if len(inputs) != arity:
            damaged(where, f"has {len(inputs)} arguments instead of {arity}")
        args = []
        for item in inputs:
            case, content = union(field(as_record(item, where), "arg", where), where)
            if case not in _SCALARS:
                raise UnsupportedModel(
                    f"{where} computes with {shown(case)}; the lab follows arithmetic on sizes only."
                )
            args.append(self.readers[case](content, where))
        node = self.graph.create_node("call_function", function, tuple(args))  # type: ignore[arg-type]
        node.meta = dict(meta)
        lengths = [self.bits.get(a, 64) if isinstance(a, fx.Node) else 64 for a in args]
        self.bits[node] = sum(lengths) if function is operators.mul else max(lengths) + 1
        if self.bits[node] > MAX_BITS:
            raise UnsupportedModel(f"{where} multiplies sizes to a number of more than {MAX_BITS} bits.")
        if len(outputs) != 1:
            damaged(where, f"has {len(outputs)} results instead of one")
        self._define_scalar(outputs[0], node, where)

    def _arguments(
        self, operator: torch._ops.OpOverload, inputs: list[object], where: str
    ) -> tuple[tuple[object, ...], dict[str, object], dict[str, object]]:
        """Positional and keyword arguments, placed by the operator's schema, and all by name."""
        parameters = {argument.name: argument for argument in operator._schema.arguments}
        given: dict[str, object] = {}
        for item in inputs:
            record = as_record(item, where)
            name = text_at(record, "name", where)
            if name not in parameters:
                damaged(where, f"has an argument {shown(name)} that the operator does not take")
            if name in given:
                damaged(where, f"gives the argument {shown(name)} twice")
            given[name] = self._argument(
                field(record, "arg", where), str(parameters[name].real_type), f"{where}.{name}"
            )
        if given.get("pin_memory"):
            given["pin_memory"] = False  # means something for a GPU only
        args: list[object] = []
        kwargs: dict[str, object] = {}
        positional = True
        for name, parameter in parameters.items():
            if name not in given:
                if not parameter.has_default_value():
                    damaged(where, f"lacks the argument {name!r}")
                positional = False
            elif positional and not parameter.kwarg_only:
                args.append(given[name])
            else:
                kwargs[name] = given[name]
        return tuple(args), kwargs, given

    def _argument(self, value: object, type_name: str, where: str) -> object:
        case, content = union(value, where)
        optional = type_name.startswith("Optional[")
        inner = type_name[len("Optional[") : -1] if optional else type_name
        if case == "as_none":
            if not optional:
                damaged(where, "is none, but the operator needs a value")
            return None
        if case in ("as_custom_obj", "as_operator"):
            raise UnsafeFile(f"{where} is an object that only running code of the file could make ({shown(case)}).")
        if case not in self.readers:
            raise UnsupportedModel(
                f"{where} is of a kind the lab does not read ({shown(case)}). Export the model with PyTorch 2.13, "
                "without complex numbers, nested lists and control flow."
            )
        if case not in _ACCEPTED.get(inner, frozenset()):
            damaged(where, f"should be {inner} and is {shown(case)}")
        return self.readers[case](content, where)

    def _weight_of(self, value: object) -> torch.Tensor | None:
        return self.attributes.get(str(value.target)) if isinstance(value, fx.Node) else None

    def _track_memory(
        self, operator: torch._ops.OpOverload, node: fx.Node, given: dict[str, object], layer: str
    ) -> None:
        """Refuses writes to weights, notes writes to inputs, and follows views so that neither hides behind one."""
        shared: fx.Node | None = None
        for argument in operator._schema.arguments:
            value = given.get(argument.name)
            tensors = [t for t in (value if isinstance(value, list) else [value]) if isinstance(t, fx.Node)]
            if argument.alias_info is not None and tensors:
                shared = shared or tensors[0]
                if argument.alias_info.is_write:
                    self._note_write(tensors, layer)
            elif operator._schema.name in HIDDEN_ALIASES and tensors:
                shared = shared or tensors[0]
        aliased = any(r.alias_info is not None for r in operator._schema.returns)
        if shared is not None and (aliased or operator._schema.name in HIDDEN_ALIASES):
            self.base[node] = self.base.get(shared, shared)

    def _note_write(self, tensors: list[fx.Node], layer: str) -> None:
        for tensor in tensors:
            base = self.base.get(tensor, tensor)
            if base.op == "get_attr":
                parameter = str(base.meta["parameter_name"])
                if parameter.endswith("num_batches_tracked"):
                    refuse_training(layer, "BatchNorm counts its batches")
                raise UnsupportedModel(
                    f"The model writes to its own {shown(parameter)} while it runs (in {layer}), so its result depends "
                    "on what ran before. Give that state in and out of forward as tensors. If it was exported in "
                    f"training mode, it is enough to call model.eval() first:\n\n{EXPORT_LINES}"
                )
            if base.op == "placeholder" and base not in self.written_inputs:
                self.written_inputs.append(base)

    def _define_outputs(
        self, operator: torch._ops.OpOverload, node: fx.Node, outputs: list[object], where: str
    ) -> None:
        returns = [str(r.real_type) for r in operator._schema.returns]
        if returns == ["Tensor"]:
            if len(outputs) != 1:
                damaged(where, f"has {len(outputs)} results instead of one")
            self._define_tensor(outputs[0], node, where)
        elif returns == ["List[Tensor]"]:
            if len(outputs) != 1:
                damaged(where, f"has {len(outputs)} results instead of one list")
            case, content = union(outputs[0], where)
            if case != "as_tensors":
                damaged(where, f"should return a list of tensors and returns {shown(case)}")
            for index, item in enumerate(as_list(content, where, MAX_NODES)):
                self._define_item({"as_tensor": item}, node, index, where)
        elif len(returns) > 1:
            if len(outputs) != len(returns):
                damaged(where, f"has {len(outputs)} results instead of {len(returns)}")
            for index, item in enumerate(outputs):
                if union(item, where)[0] != "as_none":
                    self._define_item(item, node, index, where)
        else:  # a size
            if len(outputs) != 1:
                damaged(where, f"has {len(outputs)} results instead of one")
            self._define_scalar(outputs[0], node, where)

    def _define_item(self, output: object, node: fx.Node, index: int, where: str) -> None:
        item = self.graph.call_function(operators.getitem, (node, index))
        item.meta = dict(node.meta)
        if node in self.base:
            self.base[item] = self.base[node]
        self._define_tensor(output, item, where)

    def _define_tensor(self, output: object, node: fx.Node, where: str) -> None:
        case, content = union(output, where)
        if case != "as_tensor":
            damaged(where, f"should return a tensor and returns {shown(case)}")
        name = text_at(as_record(content, where), "name", where)
        self._declare(name, where)
        self.names[name] = node
        meta = self.sizes.of(name, where)
        if meta is not None:
            dtype, sizes = meta
            hints = [hint(*union(size, where), where) for size in sizes]
            node.meta["dtype"] = dtype
            if None not in hints:
                node.meta["shape"] = tuple(hints)

    def _define_scalar(self, output: object, node: fx.Node, where: str) -> None:
        case, content = union(output, where)
        if case not in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            damaged(where, f"should return a number and returns {shown(case)}")
        kind, name_value = union(content, where)
        if kind != "as_name":
            damaged(where, "returns a number without a name")
        name = as_text(name_value, where)
        self._declare(name, where)
        self.names[name] = node
        self.scalars.add(name)

    # --- outputs ------------------------------------------------------------------------------------------------------

    def read_outputs(self) -> None:
        """Tensors only: a None or a number that forward returns as well says nothing about quantization."""
        results: list[fx.Node] = []
        for index, item in enumerate(list_at(self.signature, "output_specs", "signature")):
            where = f"output {index}"
            case, content = union(item, where)
            if case in ("buffer_mutation", "parameter_mutation"):
                refuse_training("the top of the model", "its outputs include new values of its own buffers")
            if case == "user_input_mutation":
                continue
            if case != "user_output":
                raise UnsupportedModel(
                    f"{where} of the model is of kind {shown(case)}: the file holds a training step. "
                    f"Export the network for inference:\n\n{EXPORT_LINES}"
                )
            kind, value = union(field(as_record(content, where), "arg", where), where)
            if kind == "as_tensor":
                results.append(self._tensor(value, where))
            elif kind not in ("as_none", "as_int", "as_float", "as_bool", "as_string", *_SCALARS):
                raise UnsupportedModel(
                    f"{where} of the model is {shown(kind)}, not a tensor. Return tensors from forward."
                )
        if not results:
            raise UnsupportedModel("The model returns no tensor. Return from forward what is to be compared.")
        self.graph.output(results[0] if len(results) == 1 else tuple(results))

    def finish(self) -> fx.GraphModule:
        for node in self.written_inputs:
            # relu_ on an input would change the caller's data, and with it the next run
            last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
            with self.graph.inserting_after(last):
                copy = self.graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta = dict(node.meta)
            node.replace_all_uses_with(copy)
            copy.args = (node,)
        sizes = frozenset(function for function, _ in SCALAR_OPERATORS.values()) | {operators.getitem}
        for node in reversed(list(self.graph.nodes)):
            # what only the dropped assertions used
            unused = node.op == "get_attr" or node.target in sizes or str(node.target).startswith("aten.sym_")
            if node.op != "placeholder" and unused and not node.users:
                self.graph.erase_node(node)
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        root = nn.Module()
        for name in used:
            tensor = self.attributes[name]
            if isinstance(tensor, nn.Parameter):
                root.register_parameter(name, tensor)
            else:
                root.register_buffer(name, tensor)
        self.graph.lint()
        module = fx.GraphModule(root, self.graph)
        module.eval()
        return module
