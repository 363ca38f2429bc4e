"""The pictures of a file beside ours."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qlab.opened.file import checked
from qlab.opened.match import ActivationRow, WeightRow
from qlab.plots.opened import FILE, OURS, range_bars, shown_rows, sqnr_dots
from qlab.plots.theme import palette
from qlab.quant.tensor import QuantizedTensor


def row(name, file, ours, how="name"):
    tensor = checked(
        name, "weight", bits=8, signed=True, scale=np.float32(0.5), zero_point=None, codes=np.ones((2, 2), np.int8)
    )
    held = QuantizedTensor(torch.ones(2, 2, dtype=torch.int8), torch.tensor(0.5), torch.tensor(0), -128, 127)
    return WeightRow(
        name, name, np.ones((2, 2), np.float32), None if ours is None else held, None if file is None else tensor, how,
        0.999, None, file, ours,
    )  # fmt: skip


ROWS = [row("a", 40.0, 40.2), row("b", 20.0, 40.0), row("c<i>", 45.0, None), row("d", None, 30.0)]


def trace(figure, name):
    (found,) = [t for t in figure.data if t.name == name]
    return found


@pytest.mark.parametrize("dark", [False, True])
def test_a_mark_for_each_weight_of_the_file_and_of_ours(dark):
    made = sqnr_dots(ROWS, dark, chosen="b")
    assert list(trace(made, FILE).x) == [40.0, 20.0, 45.0]
    assert list(trace(made, FILE).customdata) == ["a", "b", "c<i>"]
    assert list(trace(made, OURS).x) == [40.2, 40.0]
    assert trace(made, OURS).marker.color == palette(dark).quantized
    assert list(made.layout.yaxis.ticktext) == ["a", "<b>b</b>", "c&lt;i&gt;"]
    assert "SQNR (dB)" in made.layout.xaxis.title.text


def test_a_loss_of_a_decibel_has_its_colour():
    lines = [t for t in sqnr_dots(ROWS, False).data if t.mode == "lines"]
    assert [line.line.color for line in lines] == [palette(False).rule, palette(False).error]


def test_what_is_exact_stands_at_the_right_end():
    made = sqnr_dots([row("a", float("inf"), 40.0), row("b", 41.0, 40.0)], False)
    exact, other = trace(made, FILE).x
    assert exact > other
    assert exact < made.layout.xaxis.range[1]
    assert "∞ dB" in trace(made, FILE).text[0]


def test_of_many_layers_those_that_differ_most_are_shown_in_the_order_of_the_network():
    rows = [row(f"l{i}", 40.0 - i, 40.0) for i in range(6)]
    assert [r.tensor for r in shown_rows(rows, 3)] == ["l3", "l4", "l5"]
    assert "3 more differ less" in sqnr_dots(rows, False, most=3).layout.xaxis.title.text


def test_nothing_found_is_said():
    assert "No weight of this file" in sqnr_dots([ROWS[3]], False).layout.annotations[0].text
    assert "No activation" in range_bars([], False).layout.annotations[0].text


def test_ranges_are_those_of_the_grids():
    act = checked("x", "activation", bits=8, signed=False, scale=np.float32(0.5), zero_point=np.array(10))
    first = ActivationRow("x", act, "name", (0.25, 0, 0.0, 63.75), 2.0)
    made = range_bars([first, replace(first, tensor="y", ours=None)], False)
    file, ours = trace(made, FILE), trace(made, OURS)
    assert (list(file.base), list(file.x)) == ([-5.0], [127.5])
    assert (list(ours.base), list(ours.x)) == ([0.0], [63.75])
