"""Numbers say what a node computes; a plan runs only what is not known, and leaves alone what it was given."""

import pytest
import torch
from torch import nn

import qlab
from qlab.analysis.quick import Split
from qlab.analysis.reuse import Numbering, Plan, lasting
from qlab.graph.integer_sums import ProductScale
from tests.networks import Twice

pytestmark = pytest.mark.usefixtures("one_thread")


def captured(module, *shape):
    torch.manual_seed(0)
    return qlab.load_model(module.eval(), torch.randn(4, *shape))


@pytest.fixture(scope="module")
def quantized(residual):
    model, data, calib = residual
    return model, data.evaluation.batch(0, 16)[1], qlab.convert(model, qlab.presets["x86"], calib)


def test_two_modules_of_equal_content_are_one_number(residual) -> None:
    model, _, calib = residual
    numbering = Numbering()
    first, second = (qlab.convert(model, qlab.presets["x86"], calib).graph_module for _ in range(2))
    assert list(numbering.of(first).values()) == list(numbering.of(second).values())


@pytest.mark.parametrize("buffer", ["scale", "zero_point"])
def test_a_changed_grid_is_another_number_for_it_and_for_all_behind_it(residual, buffer) -> None:
    model, _, calib = residual
    one, other = (qlab.convert(model, qlab.presets["x86"], calib) for _ in range(2))
    grid = list(other.activations.values())[3]
    getattr(grid, buffer).add_(1)
    numbering = Numbering()
    a, b = numbering.of(one.graph_module), numbering.of(other.graph_module)
    behind = set()
    for node in other.graph_module.graph.nodes:
        module = other.graph_module.get_submodule(node.target) if node.op == "call_module" else None
        uses = [module, *(part for held in vars(module).values() if isinstance(held, tuple) for part in held)] \
            if module else []  # fmt: skip
        if any(used is grid for used in uses) or any(n in behind for n in node.all_input_nodes):
            behind.add(node)
    assert 5 < len(behind) < len(b) - 5
    for x, y in zip(one.graph_module.graph.nodes, other.graph_module.graph.nodes, strict=True):
        assert (a[x] != b[y]) == (y in behind), y


def test_codes_that_were_written_to_are_another_number(residual) -> None:
    model, _, calib = residual
    one, other = (qlab.convert(model, qlab.presets["x86"], calib) for _ in range(2))
    list(other.weights.values())[-1].codes[0] += 1
    numbering = Numbering()
    a, b = numbering.of(one.graph_module), numbering.of(other.graph_module)
    assert list(a.values())[-1] != list(b.values())[-1]
    assert list(a.values())[:10] == list(b.values())[:10]


class Numbers(nn.Module):
    """The same op with other numbers as arguments, where one of them looks like the number of a node."""

    def forward(self, x):
        return (x + 1) * (x + 1) - (x + 0) + (x * 0.5)


def test_arguments_tell_ops_apart_and_equal_ops_are_one() -> None:
    model = captured(Numbers(), 3)
    numbers = Numbering().of(model.graph_module)
    adds = [n for n in numbers if "add" in n.name and len(n.all_input_nodes) == 1]
    by_argument = {}
    for node in adds:
        by_argument.setdefault(node.args[1], set()).add(numbers[node])
    assert {len(found) for found in by_argument.values()} == {1}
    assert len(set.union(*by_argument.values())) == len(by_argument) == 2


class Swapped(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x, y):
        return x - y if self.first else y - x


def test_the_order_of_inputs_counts() -> None:
    examples = torch.randn(4, 3), torch.randn(4, 3)
    numbering = Numbering()
    a, b = (numbering.of(qlab.load_model(Swapped(first).eval(), examples).graph_module) for first in (True, False))
    assert list(a.values())[:2] == list(b.values())[:2]
    assert list(a.values())[2] != list(b.values())[2]


def test_a_layer_called_twice_has_one_weight_and_two_outputs() -> None:
    model = captured(Twice(), 8)
    numbers = Numbering().of(model.graph_module)
    calls = [n for n in model.ops if "linear" in str(n.target)]
    assert len({numbers[n.args[1]] for n in calls}) == 1
    assert len({numbers[n] for n in calls}) == 2


def test_a_plan_gives_what_the_network_gives(quantized) -> None:
    _, inputs, qmodel = quantized
    numbering = Numbering()
    numbers = numbering.of(qmodel.graph_module)
    for plan in (Plan(qmodel.graph_module, numbers), Plan(qmodel.graph_module, numbers, numbering=numbering)):
        for _ in range(2):  # the second time constants are at hand
            plan.run(inputs, {})
            assert torch.equal(plan.result(), qmodel(*inputs))
    assert numbering.held


def test_from_any_value_on_the_rest_is_the_same_and_the_value_stays(quantized) -> None:
    _, inputs, qmodel = quantized
    gm = qmodel.graph_module
    numbering = Numbering()
    numbers = numbering.of(gm)
    safe = lasting(gm, numbers)
    everything = Plan(gm, numbers).run(inputs, {}, safe)
    copies = {number: value.clone() for number, value in everything.items() if isinstance(value, torch.Tensor)}
    expected = qmodel(*inputs)
    runs = set()
    for number in sorted(copies):
        plan = Plan(gm, numbers, {number}, numbering=numbering)
        plan.run(inputs, everything)
        assert torch.equal(plan.result(), expected)
        runs.add(len(plan.steps))
    assert len(runs) > 5  # later values leave less to run
    assert all(torch.equal(everything[number], value) for number, value in copies.items())


def test_what_is_overwritten_is_not_lasting(quantized) -> None:
    _, inputs, qmodel = quantized
    gm = qmodel.graph_module
    numbers = Numbering().of(gm)
    products = [
        n for n in gm.graph.nodes if n.op == "call_module" and isinstance(gm.get_submodule(n.target), ProductScale)
    ]
    assert len(products) > 5
    gone = set(numbers.values()) - lasting(gm, numbers)
    assert gone == {numbers[n.args[0]] for n in products}
    # it does change: what is seen when it is made is not what stands there in the end
    node = products[0].args[0]
    seen = {}
    plan = Plan(gm, numbers)
    plan._run(inputs, {}, lambda step, v: seen.update({step.number: (v, v.clone())}) if step.node is node else None)
    now, then = seen[numbers[node]]
    assert not torch.equal(now, then)


def test_wanted_nodes_are_given_and_nothing_else_runs(quantized) -> None:
    _, inputs, qmodel = quantized
    gm = qmodel.graph_module
    numbers = Numbering().of(gm)
    wanted = sorted(qmodel.output_nodes.values(), key=list(gm.graph.nodes).index)[:2]
    plan = Plan(gm, numbers, wanted=wanted)
    plan.run(inputs, {})
    whole = Plan(gm, numbers)
    expected = whole.run(inputs, {}, {numbers[n] for n in wanted})
    assert all(torch.equal(plan.value(n), expected[numbers[n]]) for n in wanted)
    assert len(plan.steps) < len(whole.steps) / 2


def test_plans_with_equal_outputs_say_so(residual) -> None:
    model, _, calib = residual
    numbering = Numbering()

    def plan(mapping):
        gm = qlab.convert(model, mapping, calib).graph_module
        return Plan(gm, numbering.of(gm), numbering=numbering)

    x86 = qlab.presets["x86"]
    assert plan(x86).gives == plan(x86.replace(by_type={"conv2d": x86.default})).gives
    assert plan(x86).gives != plan(x86.replace(by_type={"conv2d": None})).gives


def test_sizes_are_bytes_of_what_each_step_gives(quantized) -> None:
    model, inputs, _ = quantized
    numbers = Numbering().of(model.graph_module)
    plan = Plan(model.graph_module, numbers)
    values = plan.run(inputs, {}, set(numbers.values()))
    sizes = plan.sizes(inputs)
    assert sizes.keys() == values.keys()
    assert all(sizes[n] == v.numel() * v.element_size() for n, v in values.items() if isinstance(v, torch.Tensor))


# --- the quick way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["x86", "w4a8", "tensorrt", "dynamic", "onnxruntime"])
@pytest.mark.parametrize("name", ["residual_digits", "depthwise_digits", "transformer_text", "outlier_mlp"])
def test_the_quick_way_gives_the_same_bits(name, preset) -> None:
    model, data = qlab.load_model(name), qlab.load_dataset(name)
    qmodel = qlab.convert(model, qlab.presets[preset], qlab.calibrate(model, data.subset(slice(0, 64))))
    inputs = data.evaluation.batch(0, 33)[1]
    numbering = Numbering()
    numbers = numbering.of(qmodel.graph_module)
    plan = Plan(qmodel.graph_module, numbers, numbering=numbering, quick=True)
    for _ in range(2):
        plan.run(inputs, {})
        assert torch.equal(plan.result(), qmodel(*inputs))
        assert plan.result().is_contiguous() == qmodel(*inputs).is_contiguous()


def test_the_quick_way_leaves_codes_as_codes_and_moves_channels(quantized) -> None:
    _, inputs, qmodel = quantized
    gm = qmodel.graph_module
    numbers = Numbering().of(gm)
    plan = Plan(gm, numbers, quick=True)
    seen = {}
    plan._run(inputs, {}, lambda step, value: seen.update({step.node: value}))
    convolutions = [n for n in gm.graph.nodes if "conv2d" in str(n.target)]
    assert len(convolutions) > 5
    moved = [seen[n].is_contiguous(memory_format=torch.channels_last) for n in convolutions]
    assert all(moved[1:])  # with one channel, as the first one reads, there is no order to change
    splits = [value for value in seen.values() if isinstance(value, Split)]
    assert {value.values is None for value in splits} == {True, False}  # read as codes alone, and by an add as well
    values = Plan(gm, numbers).run(inputs, {}, set(numbers.values()))
    for node, value in seen.items():
        if isinstance(value, Split):
            assert value.values is None or torch.equal(value.values, values[numbers[node]])
            assert torch.equal(value.codes, values[numbers[next(u for u in node.users if "xc" in u.name)]])


def test_from_values_of_the_base_the_quick_way_is_the_same(quantized) -> None:
    _, inputs, qmodel = quantized
    gm = qmodel.graph_module
    numbering = Numbering()
    numbers = numbering.of(gm)
    everything = Plan(gm, numbers).run(inputs, {}, lasting(gm, numbers))
    copies = {n: v.clone() for n, v in everything.items() if isinstance(v, torch.Tensor)}
    expected = qmodel(*inputs)
    for number in sorted(copies):
        plan = Plan(gm, numbers, {number}, numbering=numbering, quick=True)
        plan.run(inputs, everything)
        assert torch.equal(plan.result(), expected)
    assert all(torch.equal(everything[n], v) for n, v in copies.items())


class Wide(nn.Module):
    """Sums of products that may leave what float32 holds exactly."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(("channels", "moved"), [(4, True), (160, False)])
def test_sums_that_could_be_rounded_stay_in_their_order(channels, moved) -> None:
    torch.manual_seed(0)
    module = Wide(channels).eval()
    with torch.no_grad():
        module.conv.weight.fill_(0.01)  # every code is 127: 160 * 9 * 127 * 128 > 2**24
    x = torch.randn(8, channels, 6, 6)
    model = qlab.load_model(module, x)
    calib = qlab.calibrate(model, qlab.load_dataset(x.numpy()))
    gm = qlab.convert(model, qlab.presets["arm"], calib).graph_module
    plan = Plan(gm, Numbering().of(gm), quick=True)
    seen = {}
    plan._run((x,), {}, lambda step, value: seen.update({step.node.name: value}))
    (conv,) = [value for name, value in seen.items() if "conv2d" in name]
    assert conv.is_contiguous(memory_format=torch.channels_last) == moved
    assert torch.equal(plan.result(), gm(x))
