"""A real weight in four bits and fewer: codes, bytes, groups, and the way back to float."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.conversion import convert
from qlab.evaluation import Evaluation, evaluate
from qlab.graph.capture import Model
from qlab.graph.lower import copy_graph
from qlab.graph.placement import place
from qlab.lessons.samples import Sample, sample
from qlab.quant.cells import Cells, by_channel, cells
from qlab.quant.error import sqnr
from qlab.quant.packing import BitMap, bits_in_bytes, unpack
from qlab.quant.qparams import choose_qparams
from qlab.quant.tensor import QuantizedTensor

# Sample and layer. Their rows divide by 32, so that every size below but the largest can be had.
WEIGHTS = {
    "conv_digits/block4.conv": ("conv_digits", "block4.conv"),
    "outlier_mlp/fc1": ("outlier_mlp", "fc1"),
    "outlier_mlp/fc2": ("outlier_mlp", "fc2"),
    "transformer_text/blocks.0.fc2": ("transformer_text", "blocks.0.fc2"),
}
BITS = (2, 3, 4)
SIZES = (64, 32, 16, 8)
TENSOR, CHANNEL = "tensor", "channel"
SHOWN = 6  # bytes
SAMPLES = 500  # of the evaluation part, on which both readings are tried
CORNER = (6, 24)  # channels and positions of which the codes are drawn


@dataclass(frozen=True, eq=False)
class Held:
    """A weight as the engine holds it. tensor: shared, change nothing of it. original: the float weight. packed: uint8.
    cells: code, scale and zero point of every number, [C, K]; part: of those in one corner, to be drawn."""

    name: str
    tensor: QuantizedTensor
    original: torch.Tensor
    packed: torch.Tensor
    cells: Cells
    part: Cells

    @property
    def count(self) -> int:
        return self.tensor.codes.numel()

    @property
    def right(self) -> NDArray[np.float32]:
        """(code - zero point) x scale, [C, K]."""
        return (self.cells.code - self.cells.zero_point).astype(np.float32) * self.cells.scale

    @property
    def wrong(self) -> NDArray[np.float32]:
        """code x scale + zero point, which is often written, [C, K]."""
        return self.cells.code.astype(np.float32) * self.cells.scale + self.cells.zero_point.astype(np.float32)

    @property
    def with_offset(self) -> NDArray[np.float32]:
        """code x scale + offset, where the offset is the value of code 0: -zero point x scale, [C, K]."""
        offset = -self.cells.zero_point.astype(np.float32) * self.cells.scale
        return self.cells.code.astype(np.float32) * self.cells.scale + offset

    @property
    def floats(self) -> NDArray[np.float32]:
        """The float weight, [C, K]."""
        return np.asarray(by_channel(self.original, 0).numpy())

    @property
    def same_codes(self) -> int:
        """How many codes are the same once they have been packed and unpacked."""
        back = unpack(self.packed, self.tensor.bits, self.tensor.signed, self.tensor.codes.shape)
        return int((back == self.tensor.codes).sum())

    @property
    def same_values(self) -> int:
        """How many of `right` are to the last bit what the engine computes with."""
        return int((by_channel(self.tensor.dequantize(), 0).numpy() == self.right).sum())

    def sqnr(self, values: NDArray[np.float32]) -> float:
        """In dB, of values [C, K] against the float weight."""
        return sqnr(by_channel(self.original, 0), torch.from_numpy(values))

    def bit_map(self, count: int = SHOWN) -> BitMap:
        """Whose bits lie in the first bytes."""
        return bits_in_bytes(self.count, self.tensor.bits, 0, count)


@dataclass(frozen=True)
class Reading:
    """One number read from its bytes. places: (byte, bit of the byte) of its bits, lowest first; raw: what they make
    as a plain binary number; code: with its sign. value: (code - zero point) x scale; engine: what
    the engine has there."""

    places: tuple[tuple[int, int], ...]
    raw: int
    code: int
    zero_point: int
    scale: float
    value: float
    engine: float
    original: float


def sizes(weight: str) -> tuple[str, ...]:
    """For what this weight can have a scale each: the tensor, a channel, so many weights of a channel."""
    name, layer = WEIGHTS[weight]
    row = sample(name).weights[f"{layer}.weight"][0].numel()
    return TENSOR, CHANNEL, *(str(size) for size in SIZES if row % size == 0)


def spec(bits: int, affine: bool, each: str) -> QuantSpec:
    """each: an entry of `sizes`."""
    kind = "affine" if affine else "symmetric"
    if each in (TENSOR, CHANNEL):
        return QuantSpec(bits, f"per_{each}_{kind}")
    return QuantSpec(bits, f"per_group_{kind}", group_size=int(each))


def mapping(weight: str, bits: int, affine: bool, each: str) -> QConfigMapping:
    """This layer's weight on its grid, everything else float."""
    _, layer = WEIGHTS[weight]
    return QConfigMapping(by_name={layer: QConfig(weight=spec(bits, affine, each), mode="weight_only")})


@lru_cache(maxsize=32)
def held(weight: str, bits: int, affine: bool, each: str) -> Held:
    """The weight as `convert` holds it."""
    name, layer = WEIGHTS[weight]
    shown = sample(name)
    tensor = convert(shown.model, mapping(weight, bits, affine, each)).weights[layer]
    original = shown.weights[f"{layer}.weight"]
    rows = by_channel(tensor.codes, 0)
    channel, position = np.arange(rows.shape[0])[:, None], np.arange(rows.shape[1])[None, :]
    every = cells(tensor, 0, channel, position, original)
    part = cells(tensor, 0, channel[: CORNER[0]], position[:, : CORNER[1]], original)
    return Held(f"{layer}.weight", tensor, original, tensor.packed(), every, part)


def read(found: Held, index: int) -> Reading:
    """The number of this index, bit by bit from the packed bytes."""
    bits = found.tensor.bits
    first = index * bits // 8
    where = bits_in_bytes(found.count, bits, first, 2)
    row, column = np.nonzero(where.code == index)
    order = np.argsort(where.bit[row, column])
    places = tuple((int(where.byte[row[i]]), int(column[i])) for i in order)
    raw = sum(((int(found.packed[byte]) >> bit) & 1) << k for k, (byte, bit) in enumerate(places))
    code = raw - 2**bits if found.tensor.signed and raw >= 2 ** (bits - 1) else raw
    flat = {name: getattr(found.cells, name).reshape(-1)[index] for name in ("scale", "zero_point")}
    value = np.float32(code - int(flat["zero_point"])) * np.float32(flat["scale"])
    engine = float(found.tensor.dequantize().reshape(-1)[index])
    return Reading(
        places, raw, code, int(flat["zero_point"]), float(flat["scale"]), float(value), engine,
        float(found.floats.reshape(-1)[index]),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Formulas:
    """The sample network with this one weight read back. right, wrong: by the two formulas; engine: as converted."""

    right: Evaluation
    wrong: Evaluation
    engine: Evaluation

    @property
    def differing(self) -> int:
        """Predictions that differ between the right formula and the engine."""
        assert self.right.predictions is not None
        assert self.engine.predictions is not None
        return int((self.right.predictions != self.engine.predictions).sum())


@lru_cache(maxsize=32)
def formulas(weight: str, bits: int, affine: bool, each: str) -> Formulas:
    """The accuracies of both readings on the first `SAMPLES` evaluation samples."""
    name, layer = WEIGHTS[weight]
    shown, found = sample(name), held(weight, bits, affine, each)
    data = shown.data.evaluation.subset(slice(SAMPLES))
    right, wrong = (
        evaluate(_with_weight(shown, f"{layer}.weight", values), data, sqnr_samples=0)
        for values in (found.right, found.wrong)
    )
    qmodel = convert(shown.model, mapping(weight, bits, affine, each))
    return Formulas(right, wrong, evaluate(qmodel, data, right, sqnr_samples=0))


def _with_weight(shown: Sample, tensor: str, values: NDArray[np.float32]) -> Model:
    """The float network with other numbers in one weight; values [C, K]."""
    everything = QConfigMapping(default=QConfig(weight=QuantSpec(), activation=QuantSpec()))
    point = next(p for p in place(shown.model, everything).weights if p.tensor == tensor)
    graph, _ = copy_graph(shown.model.graph_module)
    shaped = torch.from_numpy(values).reshape(shown.weights[tensor].shape)
    graph._parameters[str(point.constant.target)] = nn.Parameter(shaped, requires_grad=False)
    return Model(graph, shown.model.inputs, shown.model.name, shown.model.folded)


@dataclass(frozen=True)
class Cost:
    """One way to hold the weight. each: for what there is a scale. codes, scales, zero_points: bytes as stored;
    per_weight: all of them, in bits for each weight. sqnr: in dB."""

    bits: int
    each: str
    codes: int
    scales: int
    zero_points: int
    per_weight: float
    sqnr: float

    @property
    def extra(self) -> float:
        """Bits that scales and zero points add to each weight."""
        return self.per_weight - self.bits


@lru_cache(maxsize=16)
def costs(weight: str, affine: bool) -> tuple[Cost, ...]:
    """Every number of bits with every size of a group, by min_max."""
    name, layer = WEIGHTS[weight]
    original = sample(name).weights[f"{layer}.weight"]
    out = []
    for bits in BITS:
        for each in sizes(weight):
            tensor = QuantizedTensor.from_float(original, choose_qparams(original, spec(bits, affine, each)))
            size = tensor.size_breakdown()
            out.append(
                Cost(bits, each, size.codes, size.scales, size.zero_points, 8 * size.total / original.numel(),
                     sqnr(original, tensor.dequantize()))
            )  # fmt: skip
    return tuple(out)
