"""Pictures of one output element: the numbers in the cells are those of the element, and the line ends at its sum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig
from qlab.plots.steps import MOST_POINTS, accumulator_line, window_heatmaps
from qlab.plots.theme import palette
from qlab.runtime.steps import explain_element
from tests.networks import Body

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
CONFIG = QConfig(weight=QuantSpec(bits=8, qscheme="per_channel_symmetric"), activation=QuantSpec(bits=8))


def element(layer, shape, index):
    x = torch.from_numpy(np.random.default_rng(0).normal(0.5, 1, size=(4, *shape)).astype(np.float32))
    model = qlab.load_model(Body(layer).eval(), x)
    qmodel = qlab.convert(
        model, QConfigMapping(default=CONFIG), qlab.calibrate(model, qlab.load_dataset(x.numpy()))
    )  # fmt: skip
    return explain_element(qmodel, "body", (x,), index)


def seeded(kind, *args, **kwargs):
    torch.manual_seed(0)
    return kind(*args, **kwargs)


@pytest.fixture(scope="module")
def conv():
    return element(seeded(nn.Conv2d, 3, 2, 3, padding=1), (3, 5, 5), (0, 1, 0, 2))


@pytest.fixture(scope="module")
def linear():
    return element(seeded(nn.Linear, 20, 3), (20,), (1, 2))


def numbers(trace):
    """What is written into the cells, as numbers; padding without its brackets."""
    return [int(t.strip("()").replace("−", "-").replace(",", "")) for t in np.ravel(trace.text) if t]


@both_themes
def test_one_channel_of_a_convolution(conv, dark):
    made = window_heatmaps(conv, dark, channel=2)
    inputs, weights, products = made.data
    assert numbers(inputs) == conv.inputs[2].ravel().tolist()
    assert numbers(weights) == conv.weights[2].ravel().tolist()
    assert numbers(products) == conv.products[2].ravel().tolist()
    assert list(made.layout.yaxis.ticktext) == ["−1", "0", "1"]
    assert list(made.layout.xaxis.ticktext) == ["1", "2", "3"]
    assert made.layout.yaxis.autorange == "reversed"
    titles = [a.text for a in made.layout.annotations]
    assert titles[0] == f"Input, zero point {conv.input_zero_point}"
    assert inputs.colorscale[1] == (0.5, palette(dark).background)
    assert inputs.zmin + inputs.zmax == 2 * conv.input_zero_point
    assert products.zmin == -products.zmax


def test_padding_is_in_brackets(conv):
    inputs, weights, products = window_heatmaps(conv, False, channel=0).data
    assert set(inputs.text[0]) == {f"({conv.input_zero_point})"}
    assert set(products.text[0]) == {"(0)"}
    assert not any("(" in t for t in np.ravel(inputs.text[1:]))
    assert not any("(" in t for t in np.ravel(weights.text))


def test_all_channels_are_the_sum_of_the_products_and_nothing_else(conv):
    (products,) = window_heatmaps(conv, False).data
    assert numbers(products) == conv.products.sum(0).ravel().tolist()
    assert sum(numbers(products)) == conv.accumulator


def test_a_single_channel_needs_no_choice():
    steps = element(seeded(nn.Conv2d, 4, 4, 3, groups=4), (4, 5, 5), (0, 2, 1, 1))
    made = window_heatmaps(steps, False)
    assert len(made.data) == 3
    assert numbers(made.data[2]) == steps.products.ravel().tolist()
    assert len(window_heatmaps(steps, False, channel=2).data) == 3


def test_a_channel_that_is_not_read_is_refused():
    steps = element(seeded(nn.Conv2d, 4, 4, 3, groups=2), (4, 5, 5), (0, 3, 1, 1))
    with pytest.raises(InvalidConfig, match="2 to 3"):
        window_heatmaps(steps, False, channel=1)


def test_the_row_of_a_linear_goes_on_in_the_next_line(linear):
    made = window_heatmaps(linear, False)
    inputs, weights, products = made.data
    assert np.shape(inputs.z) == (2, 16)
    assert numbers(inputs) == linear.inputs.tolist()
    assert numbers(weights) == linear.weights.tolist()
    assert numbers(products) == linear.products.tolist()
    assert list(made.layout.yaxis.ticktext) == ["0", "16"]
    assert inputs.customdata[1][3] == "input 19"
    # wide panels stand below each other
    assert made.layout.yaxis.domain[0] > made.layout.yaxis2.domain[1]


def test_very_long_rows_keep_their_cells_and_lose_their_numbers():
    steps = element(seeded(nn.Linear, 1000, 2), (1000,), (0, 0))
    made = window_heatmaps(steps, False)
    assert made.data[0].texttemplate is None
    assert np.isfinite(np.asarray(made.data[0].z, dtype=float)).sum() == 1000
    assert made.layout.height < 1200


@pytest.mark.parametrize(
    ("layer", "shape", "index", "lines"),
    [
        pytest.param(seeded(nn.Conv1d, 2, 2, 5, padding=2), (2, 8), (0, 1, 0), (1, 5), id="one axis"),
        pytest.param(seeded(nn.Conv3d, 2, 2, 2), (2, 3, 3, 3), (0, 1, 0, 0, 1), (4, 2), id="three axes"),
    ],
)
def test_other_numbers_of_axes(layer, shape, index, lines):
    steps = element(layer, shape, index)
    made = window_heatmaps(steps, False, channel=1)
    assert np.shape(made.data[0].z) == lines
    assert numbers(made.data[2]) == steps.products[1].ravel().tolist()
    assert len(made.layout.yaxis.ticktext) == lines[0]


@both_themes
def test_the_line_adds_up_to_the_accumulator(conv, dark):
    made = accumulator_line(conv, dark)
    line, bias, end = made.data
    assert list(line.y) == [0, *conv.running.tolist()]
    assert list(line.x) == list(range(28))
    assert list(bias.y) == [conv.accumulator, conv.accumulator + conv.bias]
    assert list(end.y) == [conv.accumulator + conv.bias]
    assert end.marker.color == palette(dark).gained
    assert "27" in made.layout.xaxis.title.text
    assert "unit" in made.layout.yaxis.title.text
    low, high = made.layout.yaxis.range
    assert low < min(line.y)
    assert high > max(line.y)


def test_without_a_bias_there_is_no_bias_line():
    steps = element(seeded(nn.Linear, 6, 2, bias=False), (6,), (0, 0))
    assert [t.name for t in accumulator_line(steps, False).data] == ["sum of products", "accumulator"]


def test_the_ends_of_the_output_grid_are_marked_where_they_are_in_view(conv):
    near = replace(conv, multiplier=1.0, low=-abs(conv.accumulator) // 2, high=10**9, output_zero_point=0)
    made = accumulator_line(near, False)
    assert [s.y0 for s in made.layout.shapes] == [near.low]
    assert f"output code {near.low}" in [a.text for a in made.layout.annotations]
    assert made.layout.yaxis.range[0] <= near.low <= made.layout.yaxis.range[1]
    far = replace(conv, multiplier=1e-9)
    assert not accumulator_line(far, False).layout.shapes


def test_an_overflow_is_marked(conv):
    end = accumulator_line(replace(conv, accumulator=2**32), False).data[-1]
    assert end.name == "accumulator, beyond int32"
    assert end.marker.color == palette(False).error


def test_long_sums_are_thinned_and_keep_their_ends():
    steps = element(seeded(nn.Linear, 5000, 2), (5000,), (0, 0))
    line = accumulator_line(steps, False).data[0]
    assert len(line.x) <= MOST_POINTS
    assert (line.x[0], line.x[-1]) == (0, 5000)
    assert line.y[-1] == steps.accumulator
