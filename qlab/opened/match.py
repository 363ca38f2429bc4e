"""`match`: which tensor of a file belongs to which layer of a network, how that was told, and how the two compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.lower import attribute
from qlab.graph.ops import op_type
from qlab.graph.placement import place
from qlab.opened.file import FileTensor, QuantizedFile
from qlab.opened.layouts import Layout, cosine, layouts
from qlab.opened.names import Names
from qlab.opened.onnx_graph import RELU_LIKE
from qlab.quant.error import sqnr

if TYPE_CHECKING:
    from qlab.conversion import QuantizedModel
    from qlab.graph.capture import Model
    from qlab.graph.placement import WeightPoint
    from qlab.quant.tensor import QuantizedTensor

SURE = 0.8  # cosine from which values alone tell a weight: a quantization that keeps less has lost the layer
SAME_GRID = 0.25  # codes are compared where the scales differ by no more than this share
How = Literal["name", "values", "layer"]
_ALL_WEIGHTS = QConfigMapping(default=QConfig(QuantSpec(8, "per_tensor_symmetric"), mode="weight_only"))


@dataclass(frozen=True, eq=False)
class WeightRow:
    """One weight of ours beside that of the file.

    file: None where the file has nothing that could be told to be it. how: by its name, or by its values. cosine: with
    the float weight; None where nothing is compared. layout: what brings the file's into our order.
    sqnr_file, sqnr_ours: in dB against the float weight, inf where exact. scale_ratio: median of the file's scale over
    ours. same_codes: share of equal codes, counted from the zero point; None where the grids are too far apart.
    """

    layer: str
    tensor: str
    float_weight: NDArray[np.float32]
    ours: QuantizedTensor | None
    file: FileTensor | None = None
    how: How | None = None
    cosine: float | None = None
    layout: Layout | None = None
    sqnr_file: float | None = None
    sqnr_ours: float | None = None
    scale_ratio: float | None = None
    same_codes: float | None = None

    @property
    def doubtful(self) -> bool:
        """The name fits and the values do not: another training of the network, or another layer of that name."""
        return self.cosine is not None and self.cosine < SURE


@dataclass(frozen=True, eq=False)
class ActivationRow:
    """One activation of the file and the tensor of ours that it is. how: by its name, or by the layer that gives it.

    ours: (scale, zero point, low, high) of our grid; None where we have none there. scale_ratio: the file's over ours.
    """

    tensor: str
    file: FileTensor
    how: How
    ours: tuple[float, int, float, float] | None = None
    scale_ratio: float | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """weights: one row for each weight of ours, in the order of the network. activations: those that could be told.

    biases: tensor of the file -> the layer whose weight the same op reads. unmatched: weights and activations of the
    file that belong to nothing of ours as far as can be told.
    """

    weights: tuple[WeightRow, ...]
    activations: tuple[ActivationRow, ...]
    biases: tuple[tuple[FileTensor, str], ...]
    unmatched: tuple[FileTensor, ...]

    @property
    def found(self) -> tuple[WeightRow, ...]:
        return tuple(row for row in self.weights if row.file is not None)


def match(file: QuantizedFile, model: Model, qmodel: QuantizedModel | None = None) -> Match:
    """Which tensor of the file is which of the network, one to one, and how they compare.

    model: the float network. qmodel: ours, quantized from it; where it was equalised, the weights of the file are held
    against both networks, and the nearer counts. A weight is told by its name, or by its values where their cosine with
    the float weight is at least SURE; what is not told is listed as unmatched.
    """
    wanted = _wanted(model, qmodel)
    rows = _by_name(file, wanted)
    rows |= _by_values(file, [w for w in wanted if w.tensor not in rows], {id(hit.file) for hit in rows.values()})
    weights = tuple(_weight_row(w, rows.get(w.tensor)) for w in wanted)
    layer_of = {row.file.reader: row.layer for row in weights if row.file is not None and row.file.reader}
    told = any(row.file is not None and not row.doubtful for row in weights)
    # names alone, such as x or fc, say nothing where not one weight is that of this network
    activations = _activations(file, model, qmodel, layer_of, weights) if told or not file.of("weight") else ()
    biases = tuple((t, layer_of[t.reader]) for t in file.of("bias") if t.reader in layer_of)
    taken = {id(row.file) for row in weights} | {id(row.file) for row in activations}
    unmatched = tuple(t for t in file.tensors if t.role != "bias" and id(t) not in taken)
    return Match(weights, activations, biases, unmatched)


# ---- weights ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Wanted:
    """A weight of ours. floats: what it may have been made from, the network's own first."""

    tensor: str
    layer: str
    op: str
    names: tuple[str, ...]
    floats: tuple[NDArray[np.float32], ...]
    ours: QuantizedTensor | None
    reference: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Hit:
    file: FileTensor
    how: How
    cosine: float
    layout: Layout
    float_weight: NDArray[np.float32]


def _wanted(model: Model, qmodel: QuantizedModel | None) -> list[_Wanted]:
    """Every weight the network has, whatever the config does with it; one that several layers share once."""
    equalised = None if qmodel is None or qmodel.reference is model else qmodel.reference
    other = (
        {} if equalised is None else {p.tensor: _values(equalised, p) for p in place(equalised, _ALL_WEIGHTS).weights}
    )
    codes = {} if qmodel is None else {p.tensor: qmodel.weights[p.layer] for p in qmodel.placement.weights}
    out: list[_Wanted] = []
    seen: set[str] = set()
    for point in place(model, _ALL_WEIGHTS).weights:
        constant = str(point.constant.target)
        if constant in seen:
            continue
        seen.add(constant)
        values = _values(model, point)
        floats = (values, *([other[point.tensor]] if point.tensor in other else []))
        names = (point.tensor, constant, str(point.constant.meta.get("parameter_name", "")))
        layer = model.names[point.node]
        out.append(
            _Wanted(point.tensor, layer, op_type(point.node), names, floats, codes.get(point.tensor), floats[-1])
        )
    return out


def _values(model: Model, point: WeightPoint) -> NDArray[np.float32]:
    weight = attribute(model.graph_module, point.constant)
    assert weight is not None
    return weight.detach().float().numpy()


def _best(file: FileTensor, wanted: _Wanted, how: How) -> _Hit | None:
    """The layout and the float weight with the largest cosine; None where the shapes do not fit."""
    assert file.codes is not None
    fitting = [(layout, w) for w in wanted.floats for layout in layouts(file.codes.shape, w.shape, wanted.op)]
    if not fitting:
        return None
    values = file.dequantize()
    hits = [_Hit(file, how, cosine(layout.apply(values), weight), layout, weight) for layout, weight in fitting]
    return max(hits, key=lambda hit: hit.cosine)


def _by_name(file: QuantizedFile, wanted: Sequence[_Wanted]) -> dict[str, _Hit]:
    by_tensor = {w.tensor: w for w in wanted}
    of_layer: dict[str, list[_Wanted]] = {}
    for w in wanted:
        of_layer.setdefault(w.layer, []).append(w)
    weights = Names((name, w.tensor) for w in wanted for name in w.names if name)
    layers = Names((layer, found[0].tensor) for layer, found in of_layer.items() if len(found) == 1)
    rows: dict[str, _Hit] = {}
    for tensor in file.of("weight"):
        name = weights.find(tensor.aliases) or layers.find([tensor.reader])
        hit = None if name is None else _best(tensor, by_tensor[name], "name")
        if name is not None and hit is not None and (name not in rows or hit.cosine > rows[name].cosine):
            rows[name] = hit
    return rows


def _by_values(file: QuantizedFile, wanted: Sequence[_Wanted], taken: set[int]) -> dict[str, _Hit]:
    """The surest pairs first, each tensor once."""
    hits = [
        (hit, w.tensor)
        for tensor in file.of("weight")
        if id(tensor) not in taken
        for w in wanted
        if (hit := _best(tensor, w, "values")) is not None and hit.cosine >= SURE
    ]
    rows: dict[str, _Hit] = {}
    for hit, name in sorted(hits, key=lambda pair: -pair[0].cosine):
        if name not in rows and id(hit.file) not in taken:
            rows[name] = hit
            taken.add(id(hit.file))
    return rows


def _weight_row(wanted: _Wanted, hit: _Hit | None) -> WeightRow:
    ours, own = wanted.ours, None
    if ours is not None:
        own = sqnr(torch.from_numpy(wanted.reference), ours.dequantize())
    if hit is None:
        return WeightRow(wanted.layer, wanted.tensor, wanted.reference, ours, sqnr_ours=own)
    values = hit.layout.apply(hit.file.dequantize())
    noise = sqnr(torch.from_numpy(hit.float_weight), torch.from_numpy(np.ascontiguousarray(values)))
    ratio, same = (None, None) if ours is None else _compared(hit, ours)
    return WeightRow(
        wanted.layer, wanted.tensor, hit.float_weight, ours, hit.file, hit.how, hit.cosine, hit.layout, noise, own,
        ratio, same,
    )  # fmt: skip


def _compared(hit: _Hit, ours: QuantizedTensor) -> tuple[float, float | None]:
    """Median ratio of the scales, and the share of equal codes."""
    file = hit.file
    assert file.codes is not None
    scale = hit.layout.apply(file.spread(file.scale))
    centred = hit.layout.apply(file.codes.astype(np.int64) - file.spread(file.zero_point))
    our_scale, our_points = (_spread(t, ours) for t in (ours.scale, ours.zero_point))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(scale.astype(np.float64) / our_scale)
    ratio = float(np.median(ratios)) if ratios.size else 1.0
    if abs(ratio - 1) > SAME_GRID:
        return ratio, None
    return ratio, float(np.mean(centred == ours.codes.numpy().astype(np.int64) - our_points))


def _spread(values: torch.Tensor, ours: QuantizedTensor) -> NDArray[Any]:
    """Our scales or zero points in the shape of the weight."""
    given, shape = values.detach().numpy(), tuple(ours.codes.shape)
    if given.ndim == 2:
        return np.repeat(given, ours.group_size or 1, axis=1).reshape(shape)
    if given.ndim == 1:
        given = given.reshape([-1 if i == (ours.axis or 0) else 1 for i in range(len(shape))])
    return np.broadcast_to(given, shape)


# ---- activations -----------------------------------------------------------------------------------------------------


def _activations(
    file: QuantizedFile, model: Model, qmodel: QuantizedModel | None, layer_of: dict[str, str],
    weights: Sequence[WeightRow],
) -> tuple[ActivationRow, ...]:  # fmt: skip
    """By the layer that gives it where that is known from its weight, else by name; each tensor of ours once.

    A constant that no layer has as its weight (a table of positions, say) lies on the grid of an activation with us.
    """
    grids = {} if qmodel is None else {p.tensor: qmodel.activations[k].qparams for k, p in qmodel.points.items()}
    ends = {} if qmodel is None else qmodel.outputs
    names = Names((name, name) for name in (*model.names.values(), *grids))
    rows: dict[str, ActivationRow] = {}
    taken = {id(row.file) for row in weights}
    constants = [t for t in file.of("weight") if id(t) not in taken and names.find(t.aliases) in grids]
    for tensor in (*file.of("activation"), *constants):
        layer, how = layer_of.get(tensor.maker), "layer"
        if layer is None:
            layer, how = names.find(tensor.aliases), "name"
        if layer is None:
            continue
        # what a ReLU reads is the layer alone, everything else the end of its unit
        name = layer if tensor.reader_op in RELU_LIKE or layer in grids else ends.get(layer, layer)
        if name in rows:
            continue
        ours = ratio = None
        if name in grids and not grids[name].scale.ndim:
            qp = grids[name]
            scale, point = float(qp.scale), int(qp.zero_point)
            ours = scale, point, (qp.quant_min - point) * scale, (qp.quant_max - point) * scale
            ratio = float(tensor.scale) / scale if not tensor.scale.ndim else None
        rows[name] = ActivationRow(name, tensor, "layer" if how == "layer" else "name", ours, ratio)
    return tuple(rows.values())
