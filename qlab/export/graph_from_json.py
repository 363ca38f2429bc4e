"""A lowered graph from the JSON that `graph_json` writes, calling only what `archive_ops` lists.

The JSON is turned into the document torch.export writes and left to `build_graph`: what a graph from a file may call,
and with which arguments, is decided in one place.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from qlab.errors import BadUpload, QLabError, UnsafeFile
from qlab.export.fields import ADVICE, at, damaged, printable, sizes_at, text_at, typed
from qlab.export.graph_json import listed_operator
from qlab.graph.archive_graph import MAX_NODES, build_graph
from qlab.graph.archive_ops import SCALAR_OPERATORS
from qlab.graph.archive_schema import DTYPES, MEMORY_FORMATS, STRIDED, check_strings, shown
from qlab.graph.archive_sizes import InputSpec

MAX_ITEMS = 10_000  # of an operator that returns a list

_DTYPE_CODES = {str(dtype).removeprefix("torch."): code for code, dtype in DTYPES.items()}
_FORMAT_CODES = {str(form).removeprefix("torch."): code for code, form in MEMORY_FORMATS.items()}
# Where a text is no name of a node: how such a value is called in the document of torch.export, and its code there.
_NAMED: dict[str, tuple[str, dict[str, int]]] = {
    "ScalarType": ("as_scalar_type", _DTYPE_CODES),
    "MemoryFormat": ("as_memory_format", _FORMAT_CODES),
    "Layout": ("as_layout", {"strided": STRIDED}),
}


def read_graph(
    document: dict[str, Any], constants: Mapping[str, Tensor]
) -> tuple[fx.GraphModule, tuple[InputSpec, ...]]:
    """The graph `write_graph` wrote, node for node, with these values of its constants.

    Raises BadUpload, UnsafeFile (a call that is not on the list).
    """
    translation = _Translation(document)
    missing = translation.constants.keys() - constants.keys()
    if missing:
        damaged("the file", f"has no values for the constant {shown(min(missing))}")
    program = translation.program()
    try:
        check_strings(program)
        gm, inputs = build_graph(program, lambda kind, name: _as(kind, constants[name]))
    except UnsafeFile:
        raise
    except QLabError as error:  # its advice is for a model file
        raise BadUpload(
            f"The quantized model file is damaged: its graph cannot be built. {ADVICE}", detail=str(error)
        ) from error
    translation.finish(gm)
    return gm, inputs


def _as(kind: str, tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor.detach(), requires_grad=False) if kind == "parameter" else tensor.detach()


class _Translation:
    """Into the document of torch.export; `finish` then restores what that cannot say."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.inputs: list[dict[str, Any]] = []
        self.tensor_values: dict[str, Any] = {}
        self.ranges: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []
        self.sizes: dict[str, bool] = {}  # name -> whether it is a number and not a tensor
        self.constants: dict[str, dict[str, Any]] = {}  # attribute -> record
        self.order: list[tuple[str, dict[str, Any]]] = []  # name and record of each node behind the inputs
        for index, spec in enumerate(at(document, "inputs", list, "graph")):
            self._input(typed(spec, dict, f"input {index}"), f"input {index}")
        nodes = at(document, "nodes", list, "graph")
        if len(nodes) > MAX_NODES:
            damaged("graph.nodes", f"has {len(nodes):,} entries, more than {MAX_NODES:,}")
        for index, record in enumerate(nodes):
            where = f"node {index} of the graph"
            self._node(typed(record, dict, where), where)
        self.outputs = [self._reference(v, "outputs") for v in at(document, "outputs", list, "graph")]

    def program(self) -> dict[str, object]:
        outputs = [{"user_output": {"arg": case}} for case in self.outputs]
        return {
            "graph_module": {
                "graph": {"nodes": self.calls, "tensor_values": self.tensor_values},
                "signature": {"input_specs": self.inputs, "output_specs": outputs},
            },
            "range_constraints": self.ranges,
        }

    def _define(self, name: object, is_size: bool, where: str) -> str:
        text = printable(name, f"{where}.name")
        if text in self.sizes:
            damaged(where, f"defines the name {shown(text)} a second time")
        self.sizes[text] = is_size
        return text

    def _input(self, spec: dict[str, Any], where: str) -> None:
        name = self._define(spec.get("name"), False, where)
        self.inputs.append({"user_input": {"arg": {"as_tensor": {"name": name}}}})
        shape, example = at(spec, "shape", list, where), sizes_at(spec, "example", where)
        minimum, maximum = sizes_at(spec, "minimum", where), at(spec, "maximum", list, where)
        if not len(shape) == len(example) == len(minimum) == len(maximum):
            damaged(where, "has shape, example, minimum and maximum of different lengths")
        sizes: list[dict[str, Any]] = []
        for size, at_export, low, high in zip(shape, example, minimum, maximum, strict=True):
            if size is not None:
                sizes.append({"as_int": typed(size, int, f"{where}.shape")})
                continue
            symbol = f"s{len(self.ranges)}"
            high = None if high is None else typed(high, int, f"{where}.maximum")
            self.ranges[symbol] = {"min_val": low, "max_val": high}
            sizes.append({"as_expr": {"expr_str": symbol, "hint": {"as_int": at_export}}})
        code = _code(_DTYPE_CODES, at(spec, "dtype", str, where), f"{where}.dtype")
        self.tensor_values[name] = {"dtype": code, "sizes": sizes}

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _node(self, record: dict[str, Any], where: str) -> None:
        if "constant" in record:
            self._constant(record, where)
            return
        op = text_at(record, "op", where)
        where = f"{where} ({shown(op)})"
        if op in SCALAR_OPERATORS:
            args = at(record, "args", list, where)
            inputs = [{"name": "", "arg": self._number(a, where)} for a in args]
            self._call(op, record, inputs, ["int"], where)
            return
        target = listed_operator(op)
        if target is None:
            raise UnsafeFile(
                f"The graph in the file calls {shown(op)}, which is not on the lab's list of operators. Nothing was "
                "called. QuantizedModel.save writes no such call: distrust the file."
            )
        if target._schema.is_mutable:
            damaged(where, "changes a tensor in place, which a lowered graph does not")
        types = {a.name: str(a.real_type) for a in target._schema.arguments}
        args, given = at(record, "args", list, where), typed(record.get("kwargs", {}), dict, where)
        named = dict(zip(types, args, strict=False))
        if len(args) > len(types) or given.keys() - types.keys() or given.keys() & named.keys():
            damaged(where, "has arguments that the operator does not take")
        given = named | given
        inputs = [{"name": n, "arg": self._argument(v, types[n], f"{where}.{n}")} for n, v in given.items()]
        self._call(f"torch.ops.{op}", record, inputs, [str(r.real_type) for r in target._schema.returns], where)

    def _constant(self, record: dict[str, Any], where: str) -> None:
        attribute = text_at(record, "constant", where)
        if not re.fullmatch(r"[pbc]_\w{1,300}", attribute) or not _is_plain_identifier(attribute):
            damaged(where, f"is a constant with the name {shown(attribute)}, which the lab does not give")
        if attribute in self.constants:
            damaged(where, f"names the constant {shown(attribute)} a second time")
        text_at(record, "parameter", where)
        name = self._define(record.get("name", attribute), False, where)
        kind = "parameter" if attribute.startswith("p") else "buffer"
        self.constants[attribute] = record
        self.order.append((name, record))
        self.inputs.append({kind: {"arg": {"name": name}, f"{kind}_name": attribute}})

    def _call(
        self, target: str, record: dict[str, Any], inputs: list[dict[str, Any]], returns: list[str], where: str
    ) -> None:
        name = printable(record.get("name"), f"{where}.name")
        self.order.append((name, record))
        if returns in (["Tensor"], ["int"]):
            self._define(name, returns == ["int"], where)
            one = {"as_tensor": {"name": name}} if returns == ["Tensor"] else {"as_sym_int": {"as_name": name}}
            outputs = [one]
        else:
            outputs = self._items(name, record, returns, where)
        path, kind = text_at(record, "module", where, ""), text_at(record, "type", where, "")
        call = typed(record.get("call", 0), int, f"{where}.call")
        if not re.fullmatch(r"\w{0,40}", text_at(record, "part", where, "")):
            damaged(f"{where}.part", "is no name the lab gives")
        stack = f"m@{call},{path},{kind}"
        self.calls.append(
            {
                "name": name, "target": target, "inputs": inputs, "outputs": outputs,
                "metadata": {"nn_module_stack": stack},
            }
        )  # fmt: skip

    def _items(self, name: str, record: dict[str, Any], returns: list[str], where: str) -> list[dict[str, Any]]:
        """The results of an operator that gives several: the name of each that is read, else null."""
        items = typed(record.get("items", []), list, where)
        if len(items) > (MAX_ITEMS if returns == ["List[Tensor]"] else len(returns)):
            damaged(where, f"has {len(items):,} results, more than it gives")
        for item in items:
            if item is None:
                continue
            if not re.fullmatch(r"getitem(_\d{1,9})?", self._define(item, False, where)):
                damaged(where, f"names a result {shown(item)}, which the lab does not")
            self.order.append((item, {}))
        if returns == ["List[Tensor]"]:
            # one that nobody reads needs a name too; with a space in it, nothing can refer to it
            names = [f"{name} {i}" if item is None else item for i, item in enumerate(items)]
            return [{"as_tensors": [{"name": n} for n in names]}]
        items = items + [None] * (len(returns) - len(items))
        return [{"as_none": True} if item is None else {"as_tensor": {"name": item}} for item in items]

    # --- arguments ----------------------------------------------------------------------------------------------------

    def _argument(self, value: Any, type_name: str, where: str) -> dict[str, Any]:
        """A value as torch.export writes it. Whether it suits the operator is for `build_graph` to say."""
        kind = type_name.removeprefix("Optional[").removesuffix("]") if type_name.startswith("Optional[") else type_name
        if value is None:
            return {"as_none": True}
        if kind in _NAMED:
            case, codes = _NAMED[kind]
            return {case: _code(codes, value, where)}
        if kind == "Device":
            return {"as_device": {}}
        if kind == "str":
            return {"as_string": typed(value, str, where)}
        if kind.startswith("List[") and isinstance(value, list):
            return self._list(value, kind[len("List[") : -1], where)
        if isinstance(value, str) and not self._is_size(value, where):
            return {"as_tensor": {"name": value}}
        return self._number(value, where, truth=kind == "bool")

    def _list(self, values: list[Any], kind: str, where: str) -> dict[str, Any]:
        if kind == "Optional[Tensor]":
            cases = [{"as_none": True} if v is None else self._reference(v, where) for v in values]
            return {"as_optional_tensors": cases}
        if kind == "Tensor":
            return {"as_tensors": [self._reference(v, where)["as_tensor"] for v in values]}
        cases = [self._number(v, where) for v in values]
        found = {next(iter(case)) for case in cases}
        plain = [next(iter(case.values())) for case in cases]
        if "as_sym_int" in found:
            form, name = ("as_int", "as_sym_ints") if kind == "int" else ("as_float", "as_sym_floats")
            return {name: [v if "as_sym_int" in c else {form: v} for c, v in zip(cases, plain, strict=True)]}
        if kind == "bool" or found == {"as_bool"}:
            return {"as_bools": plain}
        return {"as_floats": plain} if "as_float" in found else {"as_ints": plain}

    def _reference(self, value: Any, where: str) -> dict[str, Any]:
        if self._is_size(typed(value, str, where), where):
            damaged(where, f"uses {shown(value)}, which is a number, as a tensor")
        return {"as_tensor": {"name": value}}

    def _is_size(self, name: str, where: str) -> bool:
        if name not in self.sizes:
            damaged(where, f"uses {shown(name)}, which nothing before it defines")
        return self.sizes[name]

    def _number(self, value: Any, where: str, truth: bool = False) -> dict[str, Any]:
        if isinstance(value, str):
            if not self._is_size(value, where):
                damaged(where, f"uses the tensor {shown(value)} as a number")
            return {"as_sym_bool" if truth else "as_sym_int": {"as_name": value}}
        if isinstance(value, dict):
            return {"as_float": at(value, "float", str, where)}
        if not isinstance(value, bool | int | float):
            damaged(where, "should be a number")
        return {f"as_{type(value).__name__}": value}

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def finish(self, gm: fx.GraphModule) -> None:
        """Names of constants and results, parts of attention, and the place of constants among the nodes."""
        calls = [n for n in gm.graph.nodes if n.op == "call_function"]
        reads = {str(n.meta["parameter_name"]): n for n in gm.graph.nodes if n.op == "get_attr"}
        if len(calls) + len(reads) != len(self.order):
            damaged("graph", "defines values that nothing uses")
        tensors = {name: getattr(gm, str(node.target)) for name, node in reads.items()}
        for node in reads.values():
            delattr(gm, str(node.target))
        following = gm.graph.output_node()
        for name, record in reversed(self.order):
            if "constant" not in record:
                node = calls.pop()
                if not record:
                    node.name = name  # of a result; torch.fx has numbered these anew
                elif record.get("part"):
                    node.meta["part"] = record["part"]
            else:
                attribute = record["constant"]
                node = reads[attribute]
                following.prepend(node)
                node.target = attribute
                node.meta["parameter_name"] = record["parameter"]
                node.meta["module_path"] = record["parameter"].rpartition(".")[0]
            following = node
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                gm.register_parameter(name, tensor)
            else:
                gm.register_buffer(name, tensor)
        gm.graph.lint()
        gm.recompile()


def _code(codes: dict[str, int], value: Any, where: str) -> int:
    name = typed(value, str, where)
    if name not in codes:
        damaged(where, f"is {shown(name)}, which is not one of {', '.join(codes)}")
    return codes[name]


def _is_plain_identifier(name: str) -> bool:
    """Python reads an identifier in its normal form; a name in another form would be looked up under a second name."""
    return name.isidentifier() and unicodedata.normalize("NFKC", name) == name
