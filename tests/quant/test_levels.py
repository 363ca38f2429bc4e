"""Levels used, and single numbers of a weight, held against counting by hand and against the tensor itself."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.config import QuantSpec
from qlab.errors import DataMismatch
from qlab.quant.cells import CSV_COLUMNS, by_channel, cells, packed_index, place_of, to_csv
from qlab.quant.levels import levels_used
from qlab.quant.qparams import choose_qparams
from qlab.quant.tensor import QuantizedTensor

SPECS = [
    QuantSpec(8, "per_tensor_affine"), QuantSpec(4, "per_channel_symmetric"), QuantSpec(3, "per_channel_affine"),
    QuantSpec(2, "per_group_symmetric", group_size=6), QuantSpec(5, "per_tensor_symmetric", narrow_range=True),
]  # fmt: skip


def quantized(spec: QuantSpec, shape=(5, 3, 2, 2), axis=0) -> tuple[torch.Tensor, QuantizedTensor]:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return w, QuantizedTensor.from_float(w, choose_qparams(w, spec, axis=axis))


def on_grid(codes: list[list[int]], low: int, high: int) -> QuantizedTensor:
    return QuantizedTensor(
        torch.tensor(codes, dtype=torch.int8), torch.ones(()), torch.zeros((), dtype=torch.int32), low, high
    )


def test_levels_by_hand() -> None:
    found = levels_used(on_grid([[-2, -2, 1], [0, 1, -2]], -2, 1))
    assert found.codes.tolist() == [-2, -1, 0, 1]
    assert found.count.tolist() == [3, 0, 1, 2]
    assert (found.used, found.unused.tolist()) == (3, [-1])
    assert found.used_by_channel.tolist() == [2, 3]
    assert levels_used(on_grid([[-2, -2, 1], [0, 1, -2]], -2, 1), axis=1).used_by_channel.tolist() == [2, 2, 2]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_levels_are_those_that_numpy_counts(spec: QuantSpec, axis: int) -> None:
    _, tensor = quantized(spec)
    found = levels_used(tensor, axis)
    assert found.codes.tolist() == list(range(tensor.quant_min, tensor.quant_max + 1))
    assert dict(zip(found.codes[found.count > 0].tolist(), found.count[found.count > 0].tolist(), strict=True)) == dict(
        zip(*(a.tolist() for a in np.unique(tensor.codes.numpy(), return_counts=True)), strict=True)
    )
    rows = np.moveaxis(tensor.codes.numpy(), axis, 0)
    assert found.used_by_channel.tolist() == [len(np.unique(row)) for row in rows]


def test_an_empty_tensor_uses_no_level_and_a_code_beyond_the_grid_is_refused() -> None:
    for shape in ((0, 4), (3, 0)):
        tensor = QuantizedTensor(
            torch.zeros(shape, dtype=torch.int8), torch.ones(()), torch.zeros((), dtype=torch.int32), -2, 1
        )
        found = levels_used(tensor)
        assert (found.used, found.count.tolist()) == (0, [0, 0, 0, 0])
        assert found.used_by_channel.tolist() == [0] * shape[0]
    with pytest.raises(DataMismatch, match=r"-2\.\.2 lie beyond the grid -2\.\.1"):
        levels_used(on_grid([[2, -2]], -2, 1))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_number_is_that_of_the_tensor(spec: QuantSpec) -> None:
    w, tensor = quantized(spec)
    found = cells(tensor, 0, np.arange(5)[:, None], np.arange(12), w)
    assert np.array_equal(found.code, tensor.codes.reshape(5, 12).numpy())
    assert np.array_equal(found.dequantized, tensor.dequantize().reshape(5, 12).numpy())
    assert np.array_equal(found.original, w.reshape(5, 12).numpy())
    assert np.array_equal(found.error, (tensor.dequantize() - w).reshape(5, 12).numpy())
    whole = (found.code - found.zero_point).astype(np.float32)
    assert np.array_equal(whole * found.scale, found.dequantized)
    one = cells(tensor, 0, 3, 7)
    assert (one.code.shape, int(one.code)) == ((), int(tensor.codes.reshape(5, 12)[3, 7]))
    assert one.original is None
    assert one.error is None


def test_channels_can_lie_along_another_axis() -> None:
    w, tensor = quantized(QuantSpec(4, "per_channel_symmetric"), axis=1)
    found = cells(tensor, 1, np.arange(3)[:, None], np.arange(20), w)
    assert np.array_equal(found.dequantized, by_channel(tensor.dequantize(), 1).numpy())
    assert found.scale[:, 0].tolist() == tensor.scale.tolist()


def test_what_is_not_there_is_refused() -> None:
    w, tensor = quantized(SPECS[0])
    with pytest.raises(DataMismatch, match=r"positions 12\.\.12 were asked for; this weight has 12"):
        cells(tensor, 0, 0, 12)
    with pytest.raises(DataMismatch, match=r"channels -1\.\.-1"):
        cells(tensor, 0, -1, 0)
    with pytest.raises(DataMismatch, match="give the weight"):
        cells(tensor, 0, 0, 0, w[:2])


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_packed_code_is_found_by_its_place_and_back(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    numbers = torch.arange(int(np.prod(shape))).reshape(shape)  # each code is its own index among the packed ones
    rows = by_channel(numbers, axis).numpy()
    channel, position = np.indices(rows.shape)
    assert np.array_equal(packed_index(shape, axis, channel, position), rows)
    at, behind = place_of(shape, axis, rows)
    assert np.array_equal(at, channel)
    assert np.array_equal(behind, position)


def test_the_csv_holds_every_float_to_the_last_bit() -> None:
    w, tensor = quantized(QuantSpec(3, "per_channel_affine"))
    found = cells(tensor, 0, np.arange(5)[:, None], np.arange(12), w)
    lines = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert len(lines) == 60
    for name, array in (("dequantized", found.dequantized), ("float_original", found.original), ("scale", found.scale)):
        assert np.array_equal(np.array([line[name] for line in lines], dtype=np.float32), array.ravel())
    assert [int(line["code"]) for line in lines] == found.code.ravel().tolist()
    without = list(csv.DictReader(io.StringIO(to_csv(cells(tensor, 0, [0, 1], [2, 3])))))
    assert [(line["channel"], line["position"], line["float_original"], line["error"]) for line in without] == [
        ("0", "2", "", ""), ("1", "3", "", ""),
    ]  # fmt: skip
