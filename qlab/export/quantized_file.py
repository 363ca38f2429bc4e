"""A quantized model as one .safetensors file, without the float weights; `quantized_load` reads it.

Tensors: `<weight>.codes` packed at their bits, `<weight or activation>.scale` (float32) and `.zero_point` (the smallest
type, left out where all are 0), and what stays float as it is. Everything else is JSON in the metadata, as
ARCHITECTURE.md describes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qlab
from qlab.config import QConfigMapping
from qlab.conversion import FakeQuantize, QuantizedModel
from qlab.errors import DataMismatch, InvalidConfig, NonFinite, QLabError
from qlab.export.graph_json import write_graph
from qlab.export.tensor_file import pack_file, write_whole
from qlab.graph.capture import Model
from qlab.graph.lower import attribute
from qlab.graph.placement import WeightPoint
from qlab.quant.tensor import QuantizedTensor

FORMAT, VERSION = "qlab-quantized", "1"
SUFFIX = ".safetensors"
MAX_LOOKUPS = 5_000_000  # names in the mapping times nodes of the graph: each is tried on each
INTEGERS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32)  # of zero points, smallest first


def save_quantized(qmodel: QuantizedModel, path: str | Path) -> Path:
    """Write the file, whole or not at all; an older one of that name is replaced. Raises as QuantizedModel.save."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InvalidConfig(f"{path.name!r} does not end in {SUFFIX}: give the file a name that does.")
    if not path.parent.is_dir():
        raise InvalidConfig(f"there is no folder {str(path.parent)!r} to save {path.name!r} in: make it first.")
    data = quantized_bytes(qmodel)
    write_whole(path, data)
    return path


def quantized_bytes(qmodel: QuantizedModel) -> bytes:
    """The bytes of the file, the same for the same model. Raises as QuantizedModel.save."""
    gm = qmodel.graph_module
    graph = write_graph(qmodel.model)
    check_lookups(qmodel.mapping, graph, InvalidConfig)
    tensors = {n: t for store in (gm._parameters, gm._buffers) for n, t in store.items() if t is not None}
    targets = {id(module): name for name, module in gm.named_children()}
    weights: dict[str, Any] = {}
    for point in qmodel.placement.weights:
        tensor = qmodel.weights[point.layer]
        target = _target(targets, tensor, f"weights[{point.layer!r}]")
        if target not in weights:
            weights[target] = _weight_record(qmodel.model, point, tensor)
            tensors |= _weight_tensors(target, point, tensor, tuple(weights[target]["shape"]))
    activations: dict[str, Any] = {}
    for key, module in qmodel.activations.items():
        target, observed = _target(targets, module, f"activations[{key!r}]"), qmodel.points[key]
        activations[target] = {"tensor": observed.tensor} | _grid_record(module)
        shape = () if module.axis is None else (observed.node.meta["shape"][module.axis],)
        tensors |= _grid_tensors(target, module, shape, f"activation {key!r}")
    texts = {
        "format": FORMAT,
        "version": VERSION,
        "qlab": qlab.__version__,
        "torch": str(torch.__version__),
        "model": _json(_about(qmodel)),
        "mapping": _json(qmodel.mapping.to_dict()),
        "weights": _json(weights),
        "activations": _json(activations),
        "calibration": _json({"infinite": qmodel.infinite, "notes": _notes(qmodel)}),
        "graph": _json(graph),
    }
    return pack_file(texts, tensors)


def _about(qmodel: QuantizedModel) -> dict[str, Any]:
    about = {"name": qmodel.name, "content_hash": qmodel.float_hash, "folded": list(qmodel.model.folded)}
    return about | {"trained": True} if qmodel.trained else about


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def check_lookups(mapping: QConfigMapping, graph: dict[str, Any], error: type[QLabError]) -> None:
    """Raises this error when resolving the mapping on this graph would take long."""
    patterns, nodes = len(mapping.by_name), len(graph["nodes"])
    if patterns * nodes > MAX_LOOKUPS:
        raise error(
            f"the mapping has {patterns:,} names for a graph of {nodes:,} nodes, more than a saved model may have: "
            "use patterns (layer4.*) or types."
        )


def _target(targets: Mapping[int, str], module: nn.Module, where: str) -> str:
    if id(module) not in targets:
        raise InvalidConfig(
            f"{where} is not the object the forward reads: write to the buffers of the one convert made, "
            "do not put another in its place."
        )
    return targets[id(module)]


def _notes(qmodel: QuantizedModel) -> dict[str, list[str]]:
    """What calibration added to the rows the placement gives."""
    pairs = zip(qmodel.ledger, qmodel.placement.ledger, strict=True)
    return {row.layer: list(row.notes[len(bare.notes) :]) for row, bare in pairs if len(row.notes) > len(bare.notes)}


def _grid_record(grid: QuantizedTensor | FakeQuantize) -> dict[str, Any]:
    record = {"quant_min": grid.quant_min, "quant_max": grid.quant_max}
    return record if grid.axis is None else record | {"axis": grid.axis}


def _weight_record(model: Model, point: WeightPoint, tensor: QuantizedTensor) -> dict[str, Any]:
    weight = attribute(model.graph_module, point.constant)
    assert weight is not None
    record = {
        "tensor": point.tensor, "constant": str(point.constant.target), "dtype": str(weight.dtype)[len("torch.") :],
        "shape": list(weight.shape), "bits": tensor.bits,
    } | _grid_record(tensor)  # fmt: skip
    return record if tensor.group_size is None else record | {"group_size": tensor.group_size}


def _weight_tensors(
    target: str, point: WeightPoint, tensor: QuantizedTensor, shape: tuple[int, ...]
) -> dict[str, Tensor]:
    where = f"weight {point.tensor!r}"
    if tuple(tensor.codes.shape) != shape or tensor.codes.dtype.is_floating_point:
        raise InvalidConfig(
            f"{where} has codes of {tensor.codes.dtype}, shape {list(tensor.codes.shape)}: give whole numbers of "
            f"shape {list(shape)}."
        )
    try:
        codes = tensor.packed()
    except DataMismatch as error:
        raise DataMismatch(f"{where}: {error} Write codes that do, or convert with more bits.") from error
    scales = scale_shape(shape, tensor.axis, tensor.group_size)
    return {f"{target}.codes": codes} | _grid_tensors(target, tensor, scales, where)


def scale_shape(shape: tuple[int, ...], axis: int | None, group_size: int | None) -> tuple[int, ...]:
    """[] per tensor, [C] per channel, [C, K // group_size] per group."""
    if axis is None:
        return ()
    if group_size is None:
        return (shape[axis],)
    return shape[axis], math.prod(s for i, s in enumerate(shape) if i != axis) // group_size


def _grid_tensors(
    target: str, grid: QuantizedTensor | FakeQuantize, shape: tuple[int, ...], where: str
) -> dict[str, Tensor]:
    scale, zero_point = grid.scale.detach(), grid.zero_point.detach()
    if scale.dtype != torch.float32 or tuple(scale.shape) != shape or zero_point.shape != scale.shape:
        raise InvalidConfig(
            f"{where} has scales {scale.dtype} {list(scale.shape)} and zero points {list(zero_point.shape)}: "
            f"both are {list(shape)}, the scales float32."
        )
    if not is_scale(scale):
        raise NonFinite(f"{where} has a scale that is not a number above 0: correct it before saving.")
    low, high = (int(f(zero_point)) if zero_point.numel() else 0 for f in (torch.min, torch.max))
    fitting = [d for d in INTEGERS if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max]
    if zero_point.dtype.is_floating_point or not fitting:
        raise InvalidConfig(f"{where} has zero points {low}..{high} of {zero_point.dtype}: give whole numbers, int32.")
    return {f"{target}.scale": scale} | ({f"{target}.zero_point": zero_point.to(fitting[0])} if low or high else {})


def is_scale(scale: Tensor) -> bool:
    return bool((torch.isfinite(scale) & (scale > 0)).all())
