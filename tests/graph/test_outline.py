"""The network as boxes and lines: every op once, lines that run forward, and what each line carries."""

import pytest
import torch
from torch import nn

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.listing import TITLES, as_text, listing
from qlab.graph.outline import first_opened, folded, outline_of, path_to
from qlab.preset import presets

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
STATIC = QConfig(weight=W8, activation=QuantSpec())


@pytest.fixture(scope="module")
def quantized():
    """name, mapping -> the sample quantized; calibrated once for each name."""
    known = {}

    def under(name, mapping=presets["x86"]):
        if name not in known:
            model = qlab.load_model(name)
            known[name] = model, qlab.calibrate(model, qlab.load_dataset(name))
        return qlab.convert(known[name][0], mapping, known[name][1])

    return under


def links(outline):
    return {(link.source, link.target): link for link in outline.links}


SAMPLES = ["residual_digits", "depthwise_digits", "transformer_text", "lstm_text"]


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("preset", ["x86", "dynamic", "int8_weight_only", "float"])
def test_every_op_is_a_box_with_the_state_of_its_line_in_the_ledger(quantized, name, preset) -> None:
    qmodel = quantized(name, presets[preset])
    outline = outline_of(qmodel)
    ops = [v for v in outline.vertices if v.kind == "op"]
    assert [v.key for v in ops] == [layer.name for layer in qmodel.model.layers]
    state = {row.layer: row for row in qmodel.ledger}
    for vertex in ops:
        if vertex.state is not None:
            assert (vertex.state != "float") == state[vertex.key].quantized
    assert [v.key for v in outline.vertices if v.kind == "input"] == [spec.name for spec in qmodel.inputs]


def test_a_line_for_every_tensor_an_op_reads(quantized) -> None:
    qmodel = quantized("residual_digits")
    found = set(links(outline_of(qmodel)))
    names = qmodel.model.names
    assert found == {
        (names[source], names[node]) for node in qmodel.model.ops for source in node.all_input_nodes if source in names
    } | {("fc", "output")}
    assert ("relu", "layer1.0.add") in found  # the skip connection


def test_what_lines_carry_under_a_static_config(quantized) -> None:
    mapping = QConfigMapping(default=STATIC, by_name={"layer1.0.conv2": None})
    of = links(outline_of(quantized("residual_digits", mapping)))
    said = {ends: (link.carries, link.arrives, link.conversion) for ends, link in of.items()}
    assert said["x", "conv1"] == ("float", "grid", "quantize")
    assert said["conv1", "relu"] == ("unit", "unit", "")
    assert said["relu", "layer1.0.conv1"] == ("grid", "grid", "")
    assert said["layer1.0.relu", "layer1.0.conv2"] == ("grid", "float", "dequantize")
    assert said["layer1.0.conv2", "layer1.0.add"] == ("float", "grid", "quantize")
    assert said["relu", "layer1.0.add"] == ("grid", "grid", "")
    assert said["fc", "output"] == ("grid", "float", "dequantize")


def test_what_lines_carry_without_static_ranges(quantized) -> None:
    dynamic = outline_of(quantized("residual_digits", presets["dynamic"])).links
    assert [link.target for link in dynamic if link.conversion] == ["fc"]
    assert next(link for link in dynamic if link.target == "fc").conversion == "ranged"
    alone = outline_of(quantized("residual_digits", presets["int8_weight_only"])).links
    assert {(link.carries, link.conversion) for link in alone} == {("float", "")}


def test_tokens_are_whole_numbers_and_a_recurrent_layer_ranges_at_every_step(quantized) -> None:
    of = links(outline_of(quantized("lstm_text")))
    assert of["tokens", "embedding"].carries == "whole"
    assert (of["embedding", "lstm"].carries, of["embedding", "lstm"].conversion) == ("float", "ranged")
    assert of["select", "classifier"].conversion == "quantize"


# --- folding ----------------------------------------------------------------------------------------------------------


def forward(outline) -> bool:
    place = {v.key: i for i, v in enumerate(outline.vertices)}
    return all(place[link.source] < place[link.target] for link in outline.links)


@pytest.mark.parametrize("name", SAMPLES)
def test_folding_keeps_every_op_and_runs_forward(quantized, name) -> None:
    whole = outline_of(quantized(name))
    layers = sorted(layer for v in whole.vertices for layer in v.layers)
    for opened in (frozenset(), *({path} for path in whole.blocks), frozenset(whole.blocks)):
        shown = folded(whole, opened)
        assert sorted(layer for v in shown.vertices for layer in v.layers) == layers
        assert len({v.key for v in shown.vertices}) == len(shown.vertices)
        assert forward(shown)
        for vertex in shown.vertices:
            if vertex.counts is not None:
                assert sum(vertex.counts.values()) <= len(vertex.layers)
    assert folded(whole, frozenset(whole.blocks)).vertices == whole.vertices


def test_an_open_module_shows_its_parts(quantized) -> None:
    whole = outline_of(quantized("transformer_text"))
    closed = folded(whole, ())
    assert [v.key for v in closed.vertices] == [
        "tokens", "embedding", "add", "blocks.*", "select", "norm", "classifier", "output",
    ]  # fmt: skip
    block = closed.vertex("blocks.*")
    assert (block.kind, block.path, block.state) == ("block", "blocks", None)
    assert block.counts["float"] == 6  # two layer norms in each of three blocks
    opened = folded(whole, {"blocks"})
    assert [v.key for v in opened.vertices if v.kind == "block"] == ["blocks.0.*", "blocks.1.*", "blocks.2.*"]
    assert opened.holding("blocks.1.attention.key").key == "blocks.1.*"


def test_a_skip_connection_leaves_a_folded_module(quantized) -> None:
    whole = outline_of(quantized("transformer_text"))
    of = links(folded(whole, {"blocks", "blocks.0"}))
    assert ("add", "blocks.0.add") in of
    assert of["blocks.0.attention.*", "blocks.0.add"].tensors == ("blocks.0.attention.out",)
    assert of["blocks.0.norm1", "blocks.0.attention.*"].conversion == "quantize"


def test_what_alone_fills_a_module_opens_with_it(quantized) -> None:
    whole = outline_of(quantized("residual_digits"))
    assert "layer1.0.conv1" in {v.key for v in folded(whole, {"layer1"}).vertices}


class Shuttle(nn.Module):
    """An op outside of a module reads from it and is read by it: the module as one box would be its own input."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
        self.between = nn.Linear(4, 4)

    def forward(self, x):
        return self.body["second"](self.between(self.body["first"](x)))


def test_a_module_that_would_lie_on_a_circle_has_two_boxes() -> None:
    model = qlab.load_model(Shuttle().eval(), torch.randn(2, 4))
    shown = folded(outline_of(qlab.convert(model, presets["int8_weight_only"])), ())
    assert [v.key for v in shown.vertices] == ["x", "body.*", "between", "body.* (2)", "output"]
    assert forward(shown)


class Named(nn.Module):
    """An op that has the name of a module."""

    def __init__(self):
        super().__init__()
        self.part = nn.Module()
        self.part.fc = nn.Linear(4, 4)
        self.part.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return nn.functional.linear(self.part.fc(x).relu() + self.part.fc(x), self.part.weight)


def test_an_op_with_the_name_of_a_module_is_no_part_of_its_box() -> None:
    model = qlab.load_model(Named().eval(), torch.randn(2, 4))
    shown = folded(outline_of(qlab.convert(model, presets["int8_weight_only"])), ())
    assert shown.vertex("part").kind == "op"
    assert shown.vertex("part.*").layers == ("part.fc", "part.fc@1")


@pytest.mark.parametrize(
    ("name", "most"), [("transformer_text", 40), ("transformer_text", 10), ("residual_digits", 40)]
)
def test_as_many_levels_are_open_at_first_as_can_be_read(quantized, name, most) -> None:
    whole = outline_of(quantized(name))
    opened = first_opened(whole, most)
    assert len(folded(whole, opened).vertices) <= most
    if len(whole.vertices) <= most:
        assert folded(whole, opened).vertices == whole.vertices
    else:
        deeper = {
            path for path in whole.blocks if path.count(".") <= max((p.count(".") for p in opened), default=-1) + 1
        }
        assert len(folded(whole, opened | deeper).vertices) > most


def test_the_way_to_an_op(quantized) -> None:
    whole = outline_of(quantized("transformer_text"))
    path = path_to(whole, "blocks.1.attention.qk")
    assert path == ("blocks", "blocks.1", "blocks.1.attention")
    assert folded(whole, path).vertex("blocks.1.attention.qk") is not None


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_node_with_its_grid(quantized) -> None:
    qmodel = quantized("residual_digits")
    lines = listing(qmodel)
    nodes = list(qmodel.graph_module.graph.nodes)
    printed = [(n.op, n.name, str(n.target), str(n.args), str(n.kwargs)) for n in nodes]  # as print_tabular has them
    assert [(line.opcode, line.name, line.target, line.args, line.kwargs) for line in lines] == printed
    of = {line.name: line for line in lines}
    relu = qmodel.activations["relu"]
    assert (of["aq_relu"].observer, of["aq_relu"].zero_point) == ("mse", str(int(relu.zero_point)))
    assert float(of["aq_relu"].scale) == pytest.approx(float(relu.scale), rel=5e-3)
    scales = qmodel.weights["conv1"].scale
    assert of["wc_conv1"].scale.endswith(f"({scales.numel()})")
    assert float(of["wc_conv1"].scale.split()[0]) == pytest.approx(float(scales.min()), rel=5e-3)
    assert of["conv2d"].observer == of["conv2d"].scale == ""
    assert of["aq_relu"].shape == "4 × 16 × 16 × 16"


def test_a_grid_that_needs_no_observer_says_so(quantized) -> None:
    of = {line.name: line for line in listing(quantized("transformer_text"))}
    assert {line.observer for name, line in of.items() if "softmax" in name and name.startswith("aq")} == {
        "fixed by its function"
    }


def test_the_text_has_columns(quantized) -> None:
    lines = listing(quantized("lstm_text"))
    text = as_text(lines).splitlines()
    assert len(text) == len(lines) + 2
    assert tuple(text[0].split("  ")[0].split()) == TITLES[:1]
    starts = [text[0].index(title) for title in TITLES]
    for line, row in zip(lines, text[2:], strict=True):
        assert row[starts[1] :].startswith(line.name)
        assert row[starts[7] :].strip().startswith(line.zero_point)
    assert set(text[1]) == {"-", " "}
