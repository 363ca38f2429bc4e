"""`load_quantized`: the file that `quantized_file` writes becomes a quantized model again.

No byte of it is trusted: operators come from a list, sizes have limits, every field has a type, nothing is evaluated;
and the codes and grids have to be those that the mapping in the file asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qlab.config import QConfigMapping, QuantSpec
from qlab.conversion import QuantizedModel, convert_from
from qlab.errors import BadUpload, DataMismatch, InvalidConfig
from qlab.export.fields import ADVICE, at, damaged, optional_int, parse, printable, sizes_at, text_at, typed
from qlab.export.graph_from_json import read_graph
from qlab.export.quantized_file import FORMAT, INTEGERS, VERSION, check_lookups, is_scale, scale_shape
from qlab.export.tensor_file import MAX_FILE, unpack_file
from qlab.graph.archive_schema import shown
from qlab.graph.capture import Model, propagate_shapes
from qlab.graph.equalize import network_of
from qlab.graph.placement import ActivationPoint, WeightPoint
from qlab.quant.fake_quant import container
from qlab.quant.packing import unpack
from qlab.quant.qparams import QParams
from qlab.quant.tensor import QuantizedTensor
from qlab.readers.common import DEFAULT_LIMITS, checked_bytes

_FLOATS = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


def load_quantized(source: str | Path | bytes, model: Model | None = None) -> QuantizedModel:
    """The quantized model of a file, from its path or its bytes; its forward gives what the saved one's gave.

    The file does not hold the float weights: `has_float_original` is False, unless `model`, the float model it was made
    from, is given and becomes the reference again.
    Raises BadUpload, UnsafeFile (a call that is not on the list), DataMismatch (`model` is another one).
    """
    texts, tensors = unpack_file(_read(source))
    _check_format(texts)
    about = parse(_text(texts, "model"), "model")
    content_hash = text_at(about, "content_hash", "model")
    if model is not None and model.content_hash != content_hash:
        raise DataMismatch(
            f"the file was made from another float model than {model.name!r}: it names "
            f"{text_at(about, 'name', 'model')!r}, content {content_hash[:12]}; this one is {model.content_hash[:12]}."
        )
    graph = parse(_text(texts, "graph"), "graph")
    at(graph, "nodes", list, "graph")
    mapping = _read_mapping(parse(_text(texts, "mapping"), "mapping"))
    check_lookups(mapping, graph, BadUpload)
    grids = _FromFile(texts, tensors)
    infinite = {k: typed(n, int, f"infinite.{shown(k)}") for k, n in grids.infinite.items()}
    folded = [printable(line, "model.folded") for line in at(about, "folded", list, "model")]
    trained = typed(about.get("trained", False), bool, "model.trained")
    constants, network = grids.constants(), None
    if model is not None:
        network = network_of(model, mapping)
        if not trained:  # what is not in it, such as a corrected bias, is in the file
            constants |= network.graph_module.state_dict()
    with _building():
        gm, inputs = read_graph(graph, constants)
        propagate_shapes(gm, inputs)
        rebuilt = Model(gm, inputs, text_at(about, "name", "model"), folded)
        changed = mapping.equalize or mapping.correct_bias or trained
        qmodel = convert_from(
            grids, rebuilt, mapping, infinite, content_hash, network if changed else None, trained=trained
        )
    expected = network if mapping.equalize and not mapping.correct_bias else model
    differs = mapping.correct_bias or trained
    if expected is not None and not differs and rebuilt.content_hash != expected.content_hash:
        damaged("graph", "is not the graph of the model whose content hash the file names")
    grids.finish(qmodel)
    return qmodel


def _read(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if not path.is_file():
        raise BadUpload(f"There is no file {path.name!r}. Give the path of a file that QuantizedModel.save wrote.")
    if path.stat().st_size > MAX_FILE:
        raise BadUpload(
            f"The file has {path.stat().st_size / 2**30:.1f} GB; the lab reads up to {MAX_FILE / 2**30:.0f} GB."
        )
    return path.read_bytes()


def _check_format(texts: dict[str, str]) -> None:
    if texts.get("format") != FORMAT:
        raise BadUpload(
            "This safetensors file is no quantized model: its metadata lack the format "
            f"{FORMAT!r}. It may hold weights alone; give a file that QuantizedModel.save wrote."
        )
    if texts.get("version") != VERSION:
        raise BadUpload(
            f"The quantized model file is of version {shown(texts.get('version', ''))}, written by qlab "
            f"{shown(texts.get('qlab', ''))}; this lab reads version {VERSION}. Open it with that qlab."
        )


def _text(texts: dict[str, str], key: str) -> str:
    return at(texts, key, str, "__metadata__")


@contextmanager
def _building() -> Iterator[None]:
    """Around what works on a graph from a file: torch and the placement raise what they like on one without sense, and
    all of it means one thing to the user."""
    try:
        yield
    except BadUpload:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BadUpload(
            f"The quantized model file is damaged: its graph does not run ({lines[0][:200]}). {ADVICE}",
            detail=f"{type(error).__name__}: {error}"[:2_000],
        ) from error


_SPEC_FIELDS = {
    "bits": int, "qscheme": str, "observer": str, "observer_args": dict, "group_size": int, "signed": bool,
    "narrow_range": bool,
}  # fmt: skip


def _read_mapping(document: dict[str, Any]) -> QConfigMapping:
    """The mapping, with the type of each field checked: QuantSpec takes its truth values as they come."""
    rules = [document.get("default")]
    for key in ("by_type", "by_name"):
        rules += at(document, key, dict, "mapping").values()
    for rule in rules:
        for part in ("weight", "activation"):
            spec = None if rule is None else typed(rule, dict, "a rule of the mapping").get(part)
            if spec is not None:
                for name, value in typed(spec, dict, f"mapping.{part}").items():
                    typed(value, _SPEC_FIELDS.get(name, type(value)), f"mapping.{part}.{shown(name)}")
    try:
        return QConfigMapping.from_dict(document)
    except InvalidConfig as error:
        raise BadUpload(
            f"The quantized model file is damaged: its mapping is none. {ADVICE}", detail=str(error)
        ) from error


class _FromFile:
    """Codes and grids by the name of their module; what is asked for is compared with what the file holds."""

    def __init__(self, texts: dict[str, str], tensors: dict[str, Tensor]):
        self.tensors = dict(tensors)
        calibration = parse(_text(texts, "calibration"), "calibration")
        self.infinite = at(calibration, "infinite", dict, "calibration")
        self.notes = {
            layer: [printable(line, "a note") for line in typed(lines, list, f"notes.{shown(layer)}")]
            for layer, lines in at(calibration, "notes", dict, "calibration").items()
        }
        self.weight_records = _records(texts, "weights")
        self.activation_records = _records(texts, "activations")
        self.weights = {target: self._weight(target, record) for target, record in self.weight_records.items()}
        self.grids = {target: self._grid(target) for target in self.activation_records}
        self.asked: set[str] = set()

    def _weight(self, target: str, record: dict[str, Any]) -> QuantizedTensor:
        where = f"weight {shown(target)}"
        shape, bits = tuple(sizes_at(record, "shape", where)), at(record, "bits", int, where)
        checked_bytes(shape, 4, where, DEFAULT_LIMITS)  # as the floats they stand for
        quant_min, quant_max = at(record, "quant_min", int, where), at(record, "quant_max", int, where)
        axis, group_size = optional_int(record, "axis", where), optional_int(record, "group_size", where)
        if axis is not None and not 0 <= axis < len(shape):
            damaged(where, f"has the axis {axis} in {len(shape)} dimensions")
        if group_size is not None and (axis is None or group_size < 1):
            damaged(where, f"has groups of {group_size}")
        scale, zero_point = self._grid(target)
        try:
            codes = unpack(self._take(f"{target}.codes"), bits, quant_min < 0, shape).to(
                container(quant_min, quant_max)
            )
            tensor = QuantizedTensor(codes, scale, zero_point, quant_min, quant_max, axis, group_size)
        except (DataMismatch, InvalidConfig) as error:
            raise BadUpload(
                f"The quantized model file is damaged: {where} does not hold together. {ADVICE}", detail=str(error)
            ) from error
        if tensor.bits != bits or tuple(scale.shape) != scale_shape(shape, axis, group_size):
            damaged(where, f"has {list(scale.shape)} scales and {bits} bits, which is not what its other fields say")
        return tensor

    def _grid(self, target: str) -> tuple[Tensor, Tensor]:
        where = f"tensor {shown(f'{target}.scale')}"
        scale = self._take(f"{target}.scale")
        if scale.dtype != torch.float32 or not is_scale(scale):
            damaged(where, "is not float32 above 0")
        key = f"{target}.zero_point"
        if key not in self.tensors:
            return scale, torch.zeros(scale.shape, dtype=torch.int32)
        zero_point = self._take(key)
        if zero_point.dtype not in INTEGERS or zero_point.shape != scale.shape:
            damaged(f"tensor {shown(key)}", "is not one whole number for each scale")
        return scale, zero_point.to(torch.int32)

    def _take(self, name: str) -> Tensor:
        if name not in self.tensors:
            damaged("the file", f"has no tensor {shown(name)}")
        return self.tensors.pop(name)

    def constants(self) -> dict[str, Tensor]:
        """What stays float, and the values that the codes of the others stand for."""
        out = dict(self.tensors)
        for target, record in self.weight_records.items():
            where = f"weight {shown(target)}"
            dtype = at(record, "dtype", str, where)
            if dtype not in _FLOATS:
                damaged(where, f"was of type {shown(dtype)}, which is no float")
            out.setdefault(text_at(record, "constant", where), self.weights[target].dequantize().to(_FLOATS[dtype]))
        return out

    def weight(self, target: str, point: WeightPoint) -> QuantizedTensor:
        spec = point.spec
        axis = None if spec.granularity == "tensor" else point.axis
        self._agree(target, self.weight_records, spec, axis, point.tensor)
        record, tensor = self.weight_records[target], self.weights[target]
        if record.get("constant") != point.constant.target or tensor.group_size != spec.group_size:
            damaged(f"weight {shown(target)}", f"is not that of {point.tensor!r}, where the mapping places it")
        return tensor

    def activation(self, target: str, point: ActivationPoint) -> QParams:
        axis = None if point.spec.granularity == "tensor" else point.axis or 0
        self._agree(target, self.activation_records, point.spec, axis, point.tensor)
        scale, zero_point = self.grids[target]
        if tuple(scale.shape) != (() if axis is None else (point.node.meta["shape"][axis],)):
            damaged(f"activation {shown(target)}", f"has {list(scale.shape)} scales, which do not fit {point.tensor!r}")
        return QParams(scale, zero_point, point.spec.quant_min, point.spec.quant_max, axis)

    def _agree(
        self, target: str, records: dict[str, dict[str, Any]], spec: QuantSpec, axis: int | None, tensor: str
    ) -> None:
        record = records.get(target)
        if record is None:
            damaged("the file", f"has no codes or grid for {tensor!r} ({shown(target)}), which its mapping quantizes")
        expected = {"tensor": tensor, "quant_min": spec.quant_min, "quant_max": spec.quant_max, "axis": axis}
        for key, value in expected.items():
            if record.get(key) != value:
                damaged(
                    f"{shown(target)}.{key}", f"is {shown(str(record.get(key)))}, and the mapping asks for {value!r}"
                )
        self.asked.add(target)

    def finish(self, qmodel: QuantizedModel) -> None:
        """All of the file is used, and what stays float is the file's. Raises BadUpload."""
        unread = (self.weight_records.keys() | self.activation_records.keys()) - self.asked
        stores: tuple[dict[str, Any], ...] = (qmodel.graph_module._parameters, qmodel.graph_module._buffers)
        unread |= self.tensors.keys() ^ {name for store in stores for name in store}
        if unread:
            damaged("the file", f"holds or lacks {shown(min(unread))}, which does not fit its graph and mapping")
        for store in stores:
            for name, own in store.items():
                value = self.tensors[name]
                if own is None or own.shape != value.shape or own.dtype != value.dtype:
                    damaged(f"tensor {shown(name)}", f"is {value.dtype} {list(value.shape)}, unlike the model's")
                if not torch.equal(own, value):  # written to after the conversion
                    store[name] = nn.Parameter(value, requires_grad=False) if isinstance(own, nn.Parameter) else value


def _records(texts: dict[str, str], key: str) -> dict[str, dict[str, Any]]:
    document = parse(_text(texts, key), key)
    return {
        printable(target, key): typed(record, dict, f"{key}.{shown(target)}") for target, record in document.items()
    }
