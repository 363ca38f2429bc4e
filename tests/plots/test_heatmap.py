"""Layers by runs: each figure in its cell, what is exact, what is missing, and whether it can be read."""

import json
import math

import numpy as np
import pytest
from plotly.colors import sample_colorscale

from qlab.errors import InvalidConfig
from qlab.plots.heatmap import BRIGHT, EXACT, MANY, MOST_WRITTEN, sqnr_heatmap
from qlab.plots.theme import palette

both_themes = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
LAYERS, RUNS = ["conv1", "conv2", "fc"], ["w8", "w4"]
MATRIX = np.array([[40.0, 20.5], [math.inf, -2.25], [30.0, math.nan]])


def written(made):
    (figures,) = (t for t in made.data if t.type == "scatter")
    return {(y, x): text for y, x, text in zip(figures.y, figures.x, figures.text, strict=True)}


@both_themes
def test_every_figure_stands_in_its_cell(dark):
    made = sqnr_heatmap(LAYERS, RUNS, MATRIX, dark)
    assert written(made) == {(0, 0): "40.0", (0, 1): "20.5", (1, 0): EXACT, (1, 1): "−2.2", (2, 0): "30.0"}
    np.testing.assert_array_equal(made.data[0].z, np.where(np.isinf(MATRIX), np.nan, MATRIX))
    json.loads(made.to_json())


def test_layers_keep_their_order_from_the_top_and_runs_stand_above():
    layout = sqnr_heatmap(LAYERS, RUNS, MATRIX, False).layout
    assert list(layout.yaxis.ticktext) == LAYERS
    assert list(layout.yaxis.range) == [2.5, -0.5]
    assert list(layout.xaxis.ticktext) == RUNS
    assert layout.xaxis.side == "top"


def test_the_scale_is_viridis_over_the_finite_in_db():
    base = sqnr_heatmap(LAYERS, RUNS, MATRIX, False).data[0]
    assert (base.zmin, base.zmax) == (-2.25, 40.0)
    assert base.colorscale[0][1] == "#440154"
    assert base.colorbar.ticksuffix == " dB"


@both_themes
def test_exact_is_grey_and_has_no_place_on_the_scale(dark):
    made = sqnr_heatmap(LAYERS, RUNS, MATRIX, dark)
    grey = next(t for t in made.data if t.name == EXACT)
    assert {colour for _, colour in grey.colorscale} == {palette(dark).wash("neutral", 0.35)}
    assert np.argwhere(np.isfinite(np.asarray(grey.z, dtype=float))).tolist() == [[1, 0]]
    assert not grey.showscale


def test_hover_tells_the_layer_the_run_and_the_figure():
    told = sqnr_heatmap(LAYERS, RUNS, MATRIX, False).data[0].hovertext
    assert told[0][1] == "<b>conv1</b><br>w4<br>SQNR 20.5 dB"
    assert told[1][0] == "<b>conv2</b><br>w8<br>exact: nothing was lost"
    assert told[2][1] == "<b>fc</b><br>w4<br>not quantized in this run, or without signal"


def test_blank_cells_are_explained_only_where_there_are_some():
    assert "blank" in sqnr_heatmap(LAYERS, RUNS, MATRIX, False).layout.annotations[0].text
    assert "blank" not in sqnr_heatmap(LAYERS, RUNS, np.ones((3, 2)), False).layout.annotations[0].text


def luminance(colour):
    channels = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_figures_can_be_read_on_every_colour():
    values = np.linspace(0.0, 50.0, 101)
    made = sqnr_heatmap([f"l{i}" for i in range(101)], ["run"], values[:, None], False)
    colours = made.data[-1].textfont.color
    grounds = sample_colorscale("Viridis", list(values / 50))
    for ink, ground in zip(colours, grounds, strict=True):
        light = luminance(ground)
        contrast = (light + 0.05) / 0.05 if ink == "#000000" else 1.05 / (light + 0.05)
        assert contrast > 4.4
    assert [ink == "#000000" for ink in colours] == [v >= 50 * BRIGHT for v in values]


def test_nearly_equal_figures_do_not_take_all_colours():
    base = sqnr_heatmap(["a"], ["r1", "r2"], np.array([[31.40, 31.41]]), False).data[0]
    assert base.zmax - base.zmin == pytest.approx(1)
    assert base.zmin < 31.40 < 31.41 < base.zmax


def test_sixty_layers_and_twelve_runs_keep_rows_a_figure_fits_into():
    made = sqnr_heatmap([f"l{i}" for i in range(60)], [f"r{i}" for i in range(12)], np.ones((60, 12)), False)
    few = sqnr_heatmap([f"l{i}" for i in range(MANY)], ["r"], np.ones((MANY, 1)), False)
    assert made.layout.height > 60 * 16
    assert made.data[-1].textfont.size <= 12
    assert len(written(made)) == 720
    assert few.layout.height > MANY * 22


def test_where_figures_do_not_fit_grey_is_explained():
    wide = np.full((2, MOST_WRITTEN + 1), math.inf)
    made = sqnr_heatmap(["a", "b"], [f"r{i}" for i in range(MOST_WRITTEN + 1)], wide, False)
    assert {t.type for t in made.data} == {"heatmap"}
    assert "grey: exact" in made.layout.annotations[0].text
    assert not made.data[0].showscale


def test_names_are_text_and_not_markup():
    made = sqnr_heatmap(["<b>l</b>"], ["<i>r</i>"], np.ones((1, 1)), False)
    assert made.layout.xaxis.ticktext[0] == "&lt;i&gt;r&lt;/i&gt;"
    assert made.layout.yaxis.ticktext[0] == "&lt;b&gt;l&lt;/b&gt;"
    assert "<i>" not in made.data[0].hovertext[0][0]


@pytest.mark.parametrize(
    ("layers", "runs", "matrix"),
    [([], ["r"], np.empty((0, 1))), (["a"], [], np.empty((1, 0))), (["a"], ["r"], np.full((1, 1), math.nan))],
    ids=["no layers", "no runs", "all missing"],
)
def test_nothing_to_draw_says_why(layers, runs, matrix):
    assert "No layer was quantized" in sqnr_heatmap(layers, runs, matrix, False).layout.annotations[0].text


def test_a_matrix_of_another_shape_is_refused():
    with pytest.raises(InvalidConfig, match=r"3 layers in 2 runs.*\[2, 3\]"):
        sqnr_heatmap(LAYERS, RUNS, MATRIX.T, False)
