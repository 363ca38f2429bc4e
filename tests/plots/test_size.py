"""The bar of a file's parts: what is drawn adds up to the file, and what has no bytes is not drawn."""

import pytest

from qlab.export.size import PARTS, FileSize
from qlab.plots.size import _LOOK, size_bars
from qlab.plots.theme import palette

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
SIZE = FileSize(
    codes=23_916, waste=4_000, scales=1_048, zero_points=136, biases=504, stays_float=0, graph=6_608,
    float_file=98_416, layers={},
)  # fmt: skip


def bars(made, row):
    return {bar.name: bar.x[0] for bar in made.data if bar.y[0] == row}


@both_themes
def test_parts_add_up_to_the_file(dark):
    made = size_bars(SIZE, dark)
    assert made.layout.barmode == "stack"
    assert sum(bars(made, "quantized").values()) == pytest.approx(SIZE.total / 1000)
    assert list(bars(made, "float").values()) == [pytest.approx(98.416)]
    assert made.layout.xaxis.title.text == "Size of the file (kB)"


def test_a_part_without_bytes_is_left_out():
    names = " ".join(bars(size_bars(SIZE, False), "quantized"))
    assert "stays float" not in names
    assert "unused bits, 4.00 kB" in names


def test_colours_have_their_meaning():
    made = size_bars(SIZE, False)
    colour = {bar.name.partition(",")[0]: bar.marker.color for bar in made.data}
    assert colour["weights as integers"] == palette(False).quantized
    assert colour["unused bits"] == palette(False).error
    assert len(set(colour.values())) == len(colour)


def test_every_part_of_a_file_has_its_look():
    assert set(_LOOK) == set(PARTS)


@pytest.mark.parametrize(
    ("factor", "unit"), [(0, "B"), (1, "kB"), (1000, "MB"), (1000**2, "GB")], ids=["bytes", "kB", "MB", "GB"]
)
def test_the_unit_suits_the_larger_bar(factor, unit):
    whole = {part: getattr(SIZE, part) * factor for part in PARTS}
    made = size_bars(FileSize(**whole, float_file=SIZE.float_file * factor or 900, layers={}), False)
    assert made.layout.xaxis.title.text == f"Size of the file ({unit})"
    assert 1 <= max(bar.x[0] for bar in made.data) < 1000
