"""The graph as a picture: nothing overlaps, no line runs through a box, and colours say what the data says."""

import itertools
import random

import pytest

import qlab
from qlab.graph.outline import folded, outline_of
from qlab.plots.graph import graph_figure
from qlab.plots.layered import HEIGHT, WIDTH, layered
from qlab.plots.theme import DARK, LIGHT
from qlab.preset import presets

SKIP = ["a", "b", "c", "d"], [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]


def grown(seed: int, count: int = 40) -> tuple[list[str], list[tuple[str, str]]]:
    """A graph as networks are: mostly a chain, with branches and skips."""
    random.seed(seed)
    boxes = [f"n{i}" for i in range(count)]
    lines = {(boxes[max(0, i - random.choice([1, 1, 1, 2, 3]))], boxes[i]) for i in range(1, count)}
    lines |= {(boxes[i], boxes[j]) for i, j in (sorted(random.sample(range(count), 2)) for _ in range(count // 3))}
    return boxes, sorted(lines)


def test_depth_is_the_longest_way_from_an_input() -> None:
    place = layered(*SKIP).place
    assert [place[box][1] for box in "abcd"] == [0, 1, 2, 3]
    late = layered(["a", "b", "c", "late", "d"], [("a", "b"), ("b", "c"), ("c", "d"), ("late", "d")]).place
    assert late["late"][1] == 2  # a second input stands above what reads it


@pytest.mark.parametrize("seed", range(8))
def test_boxes_do_not_overlap_and_lines_run_through_none(seed) -> None:
    boxes, lines = grown(seed)
    layout = layered(boxes, lines)
    for one, other in itertools.combinations(layout.place.values(), 2):
        assert one[1] != other[1] or abs(one[0] - other[0]) >= WIDTH
    for (source, target), points in layout.route.items():
        assert points[0][1] == layout.place[source][1] + HEIGHT / 2
        assert points[-1][1] == layout.place[target][1] - HEIGHT / 2
        assert all(before[1] <= after[1] for before, after in itertools.pairwise(points))
        dense = [
            ((1 - t) * x + t * u, (1 - t) * y + t * v)
            for (x, y), (u, v) in itertools.pairwise(points)
            for t in (0, 0.25, 0.5, 0.75)
        ]
        for box, (x, y) in layout.place.items():
            inside = [p for p in dense if abs(p[0] - x) < WIDTH / 2 - 1e-6 and abs(p[1] - y) < HEIGHT / 2 - 1e-6]
            assert not inside, (source, target, box)


def test_a_skip_is_a_straight_line_beside_the_boxes() -> None:
    layout = layered(*SKIP)
    beside = {round(x, 6) for x, y in layout.route["a", "d"] if 0.7 < y < 2.3}
    assert len(beside) == 1
    assert {x for x, _ in layout.place.values()} != beside


def test_lines_of_a_bipartite_layer_do_not_cross() -> None:
    """Two chains that are given crosswise."""
    layout = layered(["a", "b", "c", "d"], [("a", "d"), ("b", "c")])
    assert (layout.place["a"][0] < layout.place["b"][0]) == (layout.place["d"][0] < layout.place["c"][0])


# --- the figure -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outline():
    model = qlab.load_model("transformer_text")
    mapping = presets["x86"]
    return outline_of(qlab.convert(model, mapping, qlab.calibrate(model, qlab.load_dataset("transformer_text"))))


def bars(figure):
    """key -> (fill, edge, edge width, text)"""
    out = {}
    for trace in figure.data:
        for i, data in enumerate(trace.customdata if trace.type == "bar" else ()):
            marker = trace.marker
            about = marker.color[i], marker.line.color[i], marker.line.width[i], trace.text[i]
            out[data[0].removeprefix("box ")] = about
    return out


@pytest.mark.parametrize("dark", [False, True])
def test_colours_say_what_happened(outline, dark) -> None:
    shown = folded(outline, {"blocks", "blocks.0"})
    found, colours = bars(graph_figure(shown, dark)), DARK if dark else LIGHT
    assert set(found) == {v.key for v in shown.vertices}
    assert found["blocks.0.fc1"][0] == colours.wash("quantized", 0.55)
    assert found["blocks.0.norm1"][0] == colours.wash("neutral", 0.25)
    assert found["select"][0] == colours.wash("quantized", 0.2)
    assert "blocks.1" in found["blocks.1.*"][3]
    assert f"{len(shown.vertex('blocks.1.*').layers)} ops" in found["blocks.1.*"][3]


def test_lines_by_what_they_carry(outline) -> None:
    figure = graph_figure(folded(outline, ()), False)
    named = {trace.name: trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"}
    assert named["on a grid"].line.color == LIGHT.quantized
    assert named["float"].line.color == LIGHT.float
    assert named["whole numbers"].line.dash == "dot"
    diamonds = next(trace for trace in figure.data if trace.name == "conversion" and trace.showlegend)
    links = [link for link in folded(outline, ()).links if link.conversion]
    assert [data[0] for data in diamonds.customdata] == [f"line {link.tensors[0]}" for link in links]
    assert diamonds.marker.color == LIGHT.error


def test_every_line_can_be_clicked(outline) -> None:
    shown = folded(outline, ())
    figure = graph_figure(shown, False)
    marks = [
        data[0]
        for trace in figure.data
        if trace.type == "scatter" and trace.mode == "markers"
        for data in trace.customdata or ()
    ]
    assert sorted(marks) == sorted(f"line {link.tensors[0]}" for link in shown.links)


def test_what_is_chosen_is_outlined(outline) -> None:
    found = bars(graph_figure(folded(outline, ()), False, chosen="add"))
    assert [key for key, (_, edge, width, _) in found.items() if edge == LIGHT.text and width == 3] == ["add"]


def test_colours_by_sqnr_are_those_of_the_worst_op_and_name_their_source(outline) -> None:
    sqnr = {"add": 20.0, "blocks.0.fc1": 30.0, "blocks.1.fc1": 10.0, "classifier": 40.0, "norm": 15.0}
    figure = graph_figure(folded(outline, {"blocks"}), False, sqnr=sqnr, said="measured by run 7")
    found = bars(figure)
    low, high = "rgb(68, 1, 84)", "rgb(253, 231, 37)"  # the ends of viridis
    assert found["blocks.1.*"][0] == low
    assert found["classifier"][0] == high
    assert found["select"][0] == LIGHT.wash("neutral", 0.12)  # no figure
    assert found["norm"][0] == LIGHT.wash("neutral", 0.12)  # float: what is put on a grid is read by another op
    scale = next(trace for trace in figure.data if trace.marker.showscale)
    assert scale.marker.colorbar.title.text == "SQNR (dB), measured by run 7"
    assert (scale.marker.cmin, scale.marker.cmax) == (10.0, 40.0)
    assert not figure.layout.showlegend


def test_zoom_lasts_as_long_as_the_revision(outline) -> None:
    assert graph_figure(outline, False, revision="a 1").layout.uirevision == "a 1"


def test_a_large_graph_stays_a_few_thousand_points(outline) -> None:
    figure = graph_figure(outline, False)
    assert sum(len(trace.x) for trace in figure.data) < 3000
    assert figure.layout.height > 2000
