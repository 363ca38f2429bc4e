"""Pictures of a weight: the cells, points and bits are those of the tensor, and what is unused or far off is marked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qlab.config import QuantSpec
from qlab.plots.theme import palette
from qlab.plots.weights import (
    against_float,
    codes_heatmap,
    error_by_code,
    far,
    group_chart,
    levels_chart,
    scale_chart,
    used_by_channel,
)
from qlab.plots.weights_bytes import bytes_picture
from qlab.quant.cells import cells
from qlab.quant.levels import levels_used
from qlab.quant.packing import bits_in_bytes, pack
from qlab.quant.qparams import choose_qparams
from qlab.quant.tensor import QuantizedTensor

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


def window(spec, shape=(6, 10), seed=0):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    tensor = QuantizedTensor.from_float(w, choose_qparams(w, spec))
    return tensor, cells(tensor, 0, np.arange(shape[0])[:, None], np.arange(shape[1]), w)


def flat(spec, shape=(6, 10)):
    tensor, _ = window(spec, shape)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    at = np.arange(tensor.codes.numel())
    return tensor, cells(tensor, 0, at // shape[1], at % shape[1], w)


def shade(made, value):
    """The colour a heatmap gives this value, of a scale of steps."""
    trace = made.data[0]
    at = (value - trace.zmin) / (trace.zmax - trace.zmin)
    return next(c for (edge, c), (end, _) in zip(trace.colorscale[::2], trace.colorscale[1::2], strict=True)
                if edge <= at < end)  # fmt: skip


@both_themes
def test_the_cells_are_the_codes_and_zero_has_the_colour_of_the_page(dark) -> None:
    tensor, found = window(QuantSpec(4, "per_channel_symmetric"))
    made = codes_heatmap(found, tensor.quant_min, tensor.quant_max, dark)
    heat = made.data[0]
    assert np.array_equal(heat.z, tensor.codes.numpy())
    assert list(heat.colorbar.ticktext) == [str(c).replace("-", "−") for c in range(-8, 8)]
    assert heat.colorbar.title.text == "code"
    page = palette(dark).background
    assert shade(made, 0) == f"rgb({int(page[1:3], 16)},{int(page[3:5], 16)},{int(page[5:], 16)})"
    full = palette(dark).float
    assert shade(made, -8) == f"rgb({int(full[1:3], 16)},{int(full[3:5], 16)},{int(full[5:], 16)})"
    told = heat.customdata[2, 3]
    assert told[:3] == pytest.approx([3, found.code[2, 3], found.dequantized[2, 3]])
    assert told[5] == pytest.approx(found.original[2, 3])
    assert [int(t.replace("−", "-")) for t in made.data[1].text] == tensor.codes.reshape(-1).tolist()
    assert made.layout.yaxis.range == (5.5, -0.5)


def test_channels_with_different_zero_points_are_coloured_by_what_is_left_without_it() -> None:
    tensor, found = window(QuantSpec(3, "per_channel_affine"))
    assert len(tensor.zero_point.unique()) > 1
    made = codes_heatmap(found, tensor.quant_min, tensor.quant_max, False)
    assert np.array_equal(made.data[0].z, found.code - found.zero_point)
    assert made.data[0].colorbar.title.text == "code − zero point"
    assert [int(t) for t in made.data[1].text] == tensor.codes.reshape(-1).tolist()
    tensor, found = window(QuantSpec(8, "per_tensor_affine"))
    made = codes_heatmap(found, 0, 255, False)
    assert np.array_equal(made.data[0].z, found.code)
    ticks = list(made.data[0].colorbar.tickvals)
    assert (ticks[0], ticks[-1]) == (0, 255)
    assert int(tensor.zero_point) in ticks


def test_many_cells_are_not_written_in_and_changed_ones_are_framed() -> None:
    _, found = window(QuantSpec(8, "per_channel_symmetric"), (40, 60))
    changed = np.zeros((40, 60), dtype=bool)
    changed[7, 31] = True
    made = codes_heatmap(
        found, -128, 127, False, names=[f"0, {i}" for i in range(60)], across="kernel", changed=changed
    )
    heat, frame = made.data
    assert heat.text[0][31] == " (0, 31)"
    assert (list(frame.x), list(frame.y), frame.name) == ([31], [7], "written by hand")
    assert made.layout.xaxis.title.text == "kernel"
    _, empty = window(QuantSpec(4, "per_tensor_symmetric"))
    nothing = cells(QuantizedTensor.from_float(torch.ones(2, 2), tensor_grid()), 0, np.zeros((0, 1)), np.zeros((1, 0)))
    assert "holds no numbers" in codes_heatmap(nothing, -8, 7, False).layout.annotations[0].text
    assert empty.code.size


def tensor_grid():
    return choose_qparams(torch.ones(2, 2), QuantSpec(4, "per_tensor_symmetric"))


def test_scales_by_channel_and_by_group() -> None:
    tensor, _ = window(QuantSpec(4, "per_channel_symmetric"))
    made = scale_chart(tensor.scale.numpy(), tensor.zero_point.numpy(), False, first=10)
    assert len(made.data) == 1  # zero points that are all 0 are not drawn
    assert list(made.data[0].x) == list(range(10, 16))
    assert list(made.data[0].y) == tensor.scale.tolist()
    tensor, _ = window(QuantSpec(4, "per_channel_affine"))
    assert list(scale_chart(tensor.scale.numpy(), tensor.zero_point.numpy(), False).data[1].y) == (
        tensor.zero_point.tolist()
    )
    tensor, _ = window(QuantSpec(4, "per_group_symmetric", group_size=5))
    made = group_chart(tensor.scale.numpy(), tensor.zero_point.numpy(), False, first_channel=3, first_group=1)
    assert np.array_equal(made.data[0].z, tensor.scale.numpy())
    assert (list(made.data[0].x), made.data[0].y[0]) == ([1, 2], 3)


def test_the_error_stays_within_half_a_step_unless_a_code_was_moved() -> None:
    tensor, found = flat(QuantSpec(4, "per_channel_symmetric"))
    assert not far(found).any()
    (_, points) = against_float(found, False).data
    assert np.array_equal(points.x, found.original)
    assert np.array_equal(points.y, found.dequantized)
    (points,) = error_by_code(found, -8, 7, False).data
    assert np.abs(points.y).max() <= 0.5001
    tensor.codes[2, 4] += 3 if tensor.codes[2, 4] < 4 else -3
    moved = cells(tensor, 0, found.channel, found.position, torch.from_numpy(found.original.reshape(6, 10)))
    (near, off) = error_by_code(moved, -8, 7, False).data
    assert len(near.x) + len(off.x) == 60
    assert [tuple(told[:2]) for told in off.customdata] == [(2, 4)]
    assert abs(off.y[0]) > 2.4
    assert off.marker.color == palette(False).error
    assert off.name == "further off (1)"


@pytest.mark.parametrize("logarithmic", [False, True])
def test_every_level_is_on_the_axis_and_unused_ones_are_marked(logarithmic) -> None:
    codes = torch.tensor([[-8, -8, 0], [1, 1, 7]], dtype=torch.int8)
    tensor = QuantizedTensor(codes, torch.ones(()), torch.zeros((), dtype=torch.int32), -8, 7)
    found = levels_used(tensor)
    bars, marks = levels_chart(found, False, logarithmic).data
    assert list(bars.x) == list(range(-8, 8))
    assert dict(zip(bars.x, bars.y, strict=True)) == dict.fromkeys(range(-8, 8), 0) | {-8: 2, 0: 1, 1: 2, 7: 1}
    assert list(marks.x) == [c for c in range(-8, 8) if c not in (-8, 0, 1, 7)]
    assert marks.marker.color == palette(False).error
    assert marks.name == "unused (12)"
    made = levels_chart(found, False, logarithmic)
    assert list(made.layout.xaxis.tickvals) == list(range(-8, 8))
    by_channel = used_by_channel(found.used_by_channel, 16, 3, False)
    assert list(by_channel.data[0].y) == [2, 2]
    assert by_channel.layout.shapes[0].y0 == 3  # three weights cannot take more than three levels


@both_themes
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
def test_the_bits_are_those_of_the_bytes_and_share_the_colour_of_their_code(bits, dark) -> None:
    codes = torch.randint(0, 2**bits, (21,), generator=torch.Generator().manual_seed(bits), dtype=torch.int32)
    values = pack(codes, bits, False).numpy()
    found = bits_in_bytes(21, bits)
    made = bytes_picture(values, found, [[(0, "words")]] * len(values), dark, nibbles=bits == 4)
    heat = made.data[0]
    assert [int("".join(row), 2) for row in heat.text] == values.tolist()
    owner = found.code[:, ::-1]
    assert np.array_equal(heat.z[owner >= 0], owner[owner >= 0] % 4)
    assert (heat.z[owner < 0] == 4).all()
    assert made.layout.yaxis.ticktext[0] == f"byte 0  {values[0]:02X}"
    assert made.layout.annotations[0].text.endswith("words")
    assert ("nibble" in made.layout.xaxis.title.text) == (bits == 4)
