"""Why is my Linear not quantized: every way it can happen, and that what is offered then quantizes it."""

import pytest
import torch
from torch import nn

import qlab
from qlab.analysis.ledger import NO_REMEDY, groups_with_remedies, input_of, remedies_of, why_none
from qlab.analysis.unmatched import closest, unmatched_remedies
from qlab.analysis.unseen import unseen, unseen_remedy
from qlab.calibration import Calibration
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.graph.causes import CAUSES, ON_INTEGERS
from qlab.graph.placement import place
from qlab.preset import presets
from tests.networks import Twice

W8 = QuantSpec(bits=8, qscheme="per_channel_symmetric")
A8 = QuantSpec(bits=8)
STATIC = QConfig(weight=W8, activation=A8)
DYNAMIC = QConfig(weight=W8, activation=A8, mode="dynamic")
WEIGHT_ONLY = QConfig(weight=W8, mode="weight_only")
GROUPED = QConfig(weight=QuantSpec(bits=4, qscheme="per_group_symmetric", group_size=32), mode="weight_only")


class Mixed(nn.Module):
    """Convolutions, a linear, an LSTM and an embedding; rows of 27, 48 and 10 weights."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 12, 2)
        self.fc1 = nn.Linear(48, 10)
        self.fc2 = nn.Linear(10, 10)
        self.lstm = nn.LSTM(10, 6, batch_first=True)
        self.table = nn.Embedding(9, 24)
        self.hyper = nn.Parameter(torch.randn(5, 6))

    def forward(self, x, token):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        x = self.fc2(torch.relu(self.fc1(x.flatten(1)))) / 2
        x = self.lstm(x.unsqueeze(1))[0].squeeze(1)
        x = nn.functional.linear(x, torch.tanh(self.hyper))
        return x, self.table(token)


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    example = torch.randn(2, 3, 3, 3), torch.zeros(2, 4, dtype=torch.int64)
    return qlab.load_model(Mixed().eval(), example)


@pytest.fixture(scope="module")
def known(mixed):
    torch.manual_seed(1)
    inputs = [torch.randn(32, 3, 3, 3).numpy(), torch.randint(0, 9, (32, 4)).numpy()]
    return qlab.calibrate(mixed, qlab.load_dataset({"x": inputs[0], "token": inputs[1]}))


def row_of(model, mapping, layer, calib):
    return next(row for row in qlab.convert(model, mapping, calib).ledger if row.layer == layer)


EXCLUDED = QConfigMapping(default=STATIC, by_name={"fc1": None})


@pytest.mark.parametrize(
    ("mapping", "layer", "cause", "titles"),
    [
        pytest.param(EXCLUDED, "fc1", "excluded", ["Quantize fc1"], id="excluded-by-name"),
        pytest.param(
            QConfigMapping(default=STATIC, by_name={"fc*": None}), "fc1", "excluded",
            ["Quantize fc1", "Quantize all 2 of fc*"], id="excluded-by-pattern",
        ),
        pytest.param(
            QConfigMapping(default=STATIC, by_type={"linear": None}), "fc2", "excluded",
            ["Quantize fc2", "Quantize all 3 of linear"], id="excluded-by-type",
        ),
        pytest.param(
            QConfigMapping(by_name={"conv1": None}), "conv1", "excluded", ["Quantize conv1"],
            id="excluded-where-the-default-is-float-too",
        ),
        pytest.param(
            QConfigMapping(default=DYNAMIC, by_name={"conv1": None}), "conv1", "excluded", ["Quantize conv1"],
            id="excluded-where-the-mode-does-not-take-it",
        ),
        pytest.param(
            QConfigMapping(by_type={"conv2d": STATIC}), "fc1", "default_float",
            ["Quantize fc1", "Quantize every linear", "Quantize whatever no rule names"], id="wrong-type",
        ),
        pytest.param(
            QConfigMapping(by_name={"fc_1": STATIC}), "fc1", "default_float",
            ["Quantize fc1", "Quantize every linear", "Quantize whatever no rule names"], id="typo-in-the-name",
        ),
        pytest.param(
            QConfigMapping(default=DYNAMIC), "conv1", "dynamic_conv",
            ["Static ranges for conv1", "Static ranges for every conv2d", "Only the weight of conv1",
             "Only the weight of every conv2d"], id="dynamic-conv",
        ),
        pytest.param(
            QConfigMapping(default=WEIGHT_ONLY), "tanh", "no_weight", ["Static ranges for tanh"],
            id="weight-only-without-weight",
        ),
        pytest.param(
            QConfigMapping(default=GROUPED), "conv1", "group_size",
            ["Groups of 9 for conv1", "Per channel for conv1", "Per channel for every conv2d"], id="27-by-32",
        ),
        pytest.param(
            QConfigMapping(default=GROUPED), "fc1", "group_size",
            ["Groups of 24 for fc1", "Per channel for fc1", "Per channel for every linear"], id="48-by-32",
        ),
        pytest.param(
            QConfigMapping(default=GROUPED), "lstm", "group_size", ["Groups of 2 for lstm", "Per channel for lstm"],
            id="10-and-6-by-32",
        ),
        pytest.param(
            QConfigMapping(default=QConfig(activation=A8)), "table", "activations_only",
            ["Quantize the weight of table"], id="lookup-without-weight-spec",
        ),
        pytest.param(
            QConfigMapping(default=QConfig(activation=A8)), "fc1", "quantized",
            ["Quantize the weight of fc1", "Quantize the weight of every linear"], id="linear-without-weight-spec",
        ),
    ],
)  # fmt: skip
def test_what_is_offered_quantizes_the_layer(mixed, known, mapping, layer, cause, titles):
    row = row_of(mixed, mapping, layer, known)
    assert row.cause == cause
    remedies = remedies_of(row, mapping, mixed)
    assert [r.title for r in remedies] == titles
    for remedy in remedies:
        assert remedy.sentence
        assert remedy.mapping != mapping
        after = row_of(mixed, remedy.mapping, layer, known)
        assert after.cause == "quantized", (remedy.title, after.reason)
        assert after.weight is not None or row.op == "tanh"
        assert remedies_of(after, remedy.mapping, mixed) == []
        needed = remedy.mapping.needs_calibration and not mapping.needs_calibration
        assert remedy.sentence.endswith("Needs a calibration.") == needed


def test_a_group_remedy_reaches_the_others(mixed, known):
    mapping = QConfigMapping(default=STATIC, by_type={"linear": None})
    whole = remedies_of(row_of(mixed, mapping, "fc2", known), mapping, mixed)[-1]
    assert all(row_of(mixed, whole.mapping, layer, known).quantized for layer in ("fc1", "fc2"))
    alone = remedies_of(row_of(mixed, mapping, "fc2", known), mapping, mixed)[0]
    assert not row_of(mixed, alone.mapping, "fc1", known).quantized


def test_a_layer_keeps_what_its_own_config_says(mixed, known):
    """The static config of a layer in dynamic mode is that of the mode, with ranges from the calibration."""
    mapping = QConfigMapping(default=DYNAMIC.replace(weight=W8.replace(bits=5)))
    new = remedies_of(row_of(mixed, mapping, "conv1", known), mapping, mixed)[0].mapping
    assert new.by_name["conv1"] == QConfig(weight=W8.replace(bits=5), activation=A8)
    assert new.default == mapping.default


@pytest.mark.parametrize(
    ("mapping", "layer", "cause", "words"),
    [
        (QConfigMapping(default=STATIC), "linear", "weight_computed", "computed anew at every call"),
        (QConfigMapping(default=STATIC), "div", "unsupported", "No integer kernel"),
        (QConfigMapping(default=WEIGHT_ONLY), "flatten", "float_input", "It reads relu@1."),
    ],
    ids=["functional-linear", "unsupported", "follows"],
)
def test_where_nothing_helps_it_says_so(mixed, known, mapping, layer, cause, words):
    row = row_of(mixed, mapping, layer, known)
    assert row.cause == cause
    assert remedies_of(row, mapping, mixed) == []
    assert words in why_none(row, mixed)
    assert why_none(row_of(mixed, mapping, "fc1", known), mixed) == ""


def test_every_cause_has_a_remedy_or_a_sentence():
    with_remedy = {"excluded", "default_float", "dynamic_conv", "no_weight", "activations_only", "group_size"}
    assert with_remedy | set(NO_REMEDY) | ON_INTEGERS == set(CAUSES)


def test_a_weight_that_is_no_float_is_told():
    model = qlab.load_model(Twice(4).eval(), torch.randn(2, 4))
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    setattr(model.graph_module, model.node("fc").args[1].target, weight)
    mapping = QConfigMapping(default=STATIC)
    row = next(row for row in place(model, mapping).ledger if row.layer == "fc")
    assert row.cause == "weight_not_float"
    assert remedies_of(row, mapping, model) == []
    assert "not stored in float" in why_none(row, model)


def test_the_source_of_what_follows(mixed):
    rows = {row.layer: row for row in place(mixed, QConfigMapping(default=WEIGHT_ONLY)).ledger}
    assert input_of(rows["relu"], mixed) == "conv1"
    assert input_of(rows["conv1"], mixed) is None


# --- attention --------------------------------------------------------------------------------------------------------

QUERY = "blocks.0.attention.query"


@pytest.fixture(scope="module")
def transformer():
    return qlab.load_model("transformer_text")


@pytest.fixture(scope="module")
def transformer_known(transformer):
    return qlab.calibrate(transformer, qlab.load_dataset("transformer_text"))


@pytest.mark.parametrize(
    ("mapping", "cause"),
    [
        (QConfigMapping(default=STATIC, by_name={"*.attention.*": None}), "excluded"),
        (QConfigMapping(by_name={"blocks.*.fc?": STATIC}), "default_float"),
    ],
)
def test_a_linear_inside_attention(transformer, transformer_known, mapping, cause):
    row = row_of(transformer, mapping, QUERY, transformer_known)
    assert row.cause == cause
    for remedy in remedies_of(row, mapping, transformer, transformer_known.infinite):
        assert row_of(transformer, remedy.mapping, QUERY, transformer_known).cause == "quantized"
    first = remedies_of(row, mapping, transformer, transformer_known.infinite)[0].mapping
    assert not row_of(transformer, first, "blocks.1.attention.query", transformer_known).quantized


def test_what_infinities_keep_float_is_not_offered(mixed):
    mapping = QConfigMapping(default=STATIC, by_name={"tanh": None})
    row = next(row for row in place(mixed, mapping).ledger if row.layer == "tanh")
    assert remedies_of(row, mapping, mixed)
    relu = QConfigMapping(default=WEIGHT_ONLY)
    scores = next(r for r in place(qlab.load_model("transformer_text"), relu).ledger if r.op == "matmul")
    assert remedies_of(scores, relu, qlab.load_model("transformer_text"), {scores.layer: 3}) == []


# --- rules that match nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "first"),
    [
        ("by_name fc_1", "Write fc1 instead"),
        ("by_name cnv*", "Write conv1* instead"),
        ("by_name fc1.weight", "Write fc1 instead"),
        ("by_name xyzzy", "Drop the rule xyzzy"),
        ("by_type conv1d", "Write conv2d instead"),
        ("by_type gru", "Write lstm instead"),
        ("by_type add", "Drop the rule add"),
    ],
)
def test_a_rule_without_effect_gets_one_or_goes(mixed, rule, first):
    by, _, pattern = rule.partition(" ")
    mapping = QConfigMapping(default=STATIC, **{by: {pattern: WEIGHT_ONLY}})
    assert place(mixed, mapping).unmatched == (rule,)
    remedies = unmatched_remedies(rule, mapping, mixed)
    assert remedies[0].title == first
    assert remedies[-1].title == f"Drop the rule {pattern}"
    assert remedies[-1].mapping == QConfigMapping(default=STATIC)
    for remedy in remedies:
        assert place(mixed, remedy.mapping).unmatched == ()
        assert remedy.mapping.default == STATIC


def test_the_other_rules_and_their_order_stay(mixed):
    mapping = QConfigMapping(default=STATIC, by_name={"conv1": None, "fc_2": WEIGHT_ONLY, "lstm": None})
    new = unmatched_remedies("by_name fc_2", mapping, mixed)[0].mapping
    assert list(new.by_name.items()) == [("conv1", None), ("fc2", WEIGHT_ONLY), ("lstm", None)]


def test_a_name_that_has_a_rule_is_not_proposed(mixed):
    mapping = QConfigMapping(default=STATIC, by_name={"fc1": None, "fc_1": WEIGHT_ONLY})
    titles = [remedy.title for remedy in unmatched_remedies("by_name fc_1", mapping, mixed)]
    assert "Write fc2 instead" in titles
    assert "Write fc1 instead" not in titles


@pytest.mark.parametrize(
    ("pattern", "best"),
    [
        ("blocks.*.attention.querry", "blocks.*.attention.query"),
        ("block.*", "blocks.*"),
        ("blocks.3.*", "blocks.0.*"),
        ("*.attn.query", "*.attention.query"),
        ("Blocks.0.Attention.Query", QUERY),
    ],
)
def test_the_closest_pattern(transformer, pattern, best):
    assert closest(pattern, transformer)[0] == best


# --- many at once, and tensors without a range ------------------------------------------------------------------------


def test_layers_of_one_cause_stand_together(mixed, known):
    mapping = QConfigMapping(default=DYNAMIC)
    found = groups_with_remedies(qlab.convert(mixed, mapping, known).ledger, mapping, mixed)
    assert [([row.layer for row in rows], [r.title for r in remedies]) for rows, remedies in found] == [
        (["conv1", "conv2"], ["Static ranges for every conv2d", "Only the weight of every conv2d"]),
        (["linear"], []),
    ]
    for remedy in found[0][1]:
        assert all(row_of(mixed, remedy.mapping, layer, known).quantized for layer in ("conv1", "conv2"))
    assert groups_with_remedies(place(mixed, presets["x86"]).ledger, presets["x86"], mixed)[0][0][0].layer == "linear"


def test_a_tensor_of_zeros_is_found_and_can_stay_float():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        network[0].bias.fill_(-100)
    model = qlab.load_model(network, torch.randn(2, 4))
    calib = qlab.calibrate(model, qlab.load_dataset(torch.randn(16, 4).numpy()))
    mapping = QConfigMapping(default=STATIC)
    (found,) = unseen(model, place(model, mapping), calib)
    assert (found.tensor, found.layers, found.zeros) == ("1", ("0",), True)
    new = unseen_remedy(found, mapping, model, calib).mapping
    assert new.by_name == {"0": None, "2": None}
    assert unseen(model, place(model, new), calib) == []


def test_a_tensor_that_was_never_observed_is_found_and_can_stay_float(mixed, known):
    stats = {name: known[name] for name in known if name not in known.aliases and name != "fc2"}
    partly = Calibration(stats, known.aliases, known.model_hash, known.samples)
    mapping = QConfigMapping(default=STATIC)
    with pytest.raises(qlab.errors.NotObserved):
        qlab.convert(mixed, mapping, partly)
    (found,) = unseen(mixed, place(mixed, mapping), partly)
    assert (found.tensor, found.layers, found.zeros) == ("fc2", ("fc2",), False)
    remedy = unseen_remedy(found, mapping, mixed, partly)
    assert not row_of(mixed, remedy.mapping, "fc2", partly).quantized
    assert unseen(mixed, place(mixed, mapping), known) == []


def test_a_remedy_for_a_type_leaves_out_whom_it_does_not_help():
    """Three linears that no rule names: the weight of one is computed at every call."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.hyper = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.randn(6, 6))

        def forward(self, x):
            return self.b(nn.functional.linear(self.a(x), torch.tanh(self.hyper)))

    model = qlab.load_model(Three().eval(), torch.randn(2, 6))
    mapping = QConfigMapping()
    groups = groups_with_remedies(place(model, mapping).ledger, mapping, model)
    assert [[row.layer for row in rows] for rows, _ in groups] == [["a", "b"], ["linear"]]
    assert groups[0][1] != []
    assert groups[1][1] == []


def test_a_remedy_for_a_type_counts_whom_it_reaches(mixed):
    mapping = QConfigMapping(default=DYNAMIC, by_name={"conv2": None})
    row = next(r for r in place(mixed, mapping).ledger if r.layer == "conv1")
    assert not any("every conv2d" in remedy.title for remedy in remedies_of(row, mapping, mixed))
    everywhere = remedies_of(row, QConfigMapping(default=DYNAMIC), mixed)
    assert any("For all 2 ops of this type" in remedy.sentence for remedy in everywhere)


def test_what_follows_a_layer_with_float_outputs_stays_float(mixed):
    mapping = QConfigMapping(default=WEIGHT_ONLY)
    rows = {r.layer: r for r in place(mixed, mapping).ledger}
    assert rows["conv1"].quantized
    assert rows["relu"].cause == "float_input"
    told = why_none(rows["relu"], mixed)
    assert "gives floats" in told
    assert told.endswith("It reads conv1.")
