"""Each row equals what converting and evaluating its config by itself gives, whatever was taken over from the base."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qlab
from qlab.analysis import variants
from qlab.analysis.sensitivity import PROXY_SAMPLES, Sensitivity, sensitivity
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import Cancelled, DataMismatch, InvalidConfig
from qlab.forward import Forward

pytestmark = pytest.mark.usefixtures("one_thread")
SAMPLES = 150  # a last batch of 22
LOW = QConfigMapping(QConfig(QuantSpec(4, "per_tensor_symmetric"), QuantSpec(5)))


def few(data, samples=SAMPLES):
    """The same calibration part; of the evaluation the first samples."""
    assert data.evaluation_index is not None
    return replace(data, evaluation_index=data.evaluation_index[:samples])


def only(mapping, layer, op, part="both"):
    config = mapping.resolve(layer, op).qconfig
    if part == "weight":
        config = QConfig(config.weight, mode="weight_only")
    if part == "activation":
        config = QConfig(None, config.activation)
    return mapping.replace(default=None, by_type={}, by_name={layer: config})


def all_but(mapping, layer, op, part="both"):
    config = mapping.resolve(layer, op).qconfig
    rest = None
    if part == "weight" and config.mode == "static":
        rest = QConfig(None, config.activation)
    if part == "activation":
        rest = QConfig(config.weight, mode="weight_only")
    return mapping.replace(by_name={**mapping.by_name, layer: rest})


CONFIG_OF = {"only": only, "all_but": all_but}


def outputs(network, data):
    """All outputs, batch by batch as `evaluate` runs them."""
    forward = Forward(network, data.evaluation, 64, "simulated", 0)
    with forward.run() as batches:
        return torch.cat([batch.output[: batch.count] for batch in batches])


def decibels(output, reference):
    noise = float((output.double() - reference.double()).square().sum())
    return math.inf if noise == 0 else 10 * math.log10(float(reference.double().square().sum()) / noise)


def check(row, model, data, mapping, calib):
    qmodel = qlab.convert(model, mapping, calib)
    reference = qlab.evaluate(qmodel.reference, data)
    found = qlab.evaluate(qmodel, data, reference, sqnr_samples=0)
    expected, floats = outputs(qmodel, data), outputs(qmodel.reference, data)
    assert row.measured.agreement == found.agreement
    assert row.accuracy == found.accuracy
    assert row.measured.accuracy_interval == found.accuracy_interval
    assert row.n == found.n
    assert row.sqnr == pytest.approx(decibels(expected, floats), abs=1e-9)
    labels = data.evaluation.targets if data.evaluation.targets is not None else reference.predictions
    assert row.loss == pytest.approx(float(nn.functional.cross_entropy(expected.double(), torch.tensor(labels).long())))
    return found


MODELS = ["residual_digits", "depthwise_digits", "transformer_text", "lstm_text"]


@pytest.mark.parametrize("mode", ["only", "all_but"])
@pytest.mark.parametrize(
    ("name", "mapping"),
    [
        *((name, LOW) for name in MODELS),
        ("lstm_text", qlab.presets["dynamic"]),
        ("transformer_text", qlab.presets["dynamic"]),
        ("residual_digits", qlab.presets["x86"]),
        ("residual_digits", LOW.replace(equalize=True)),
        ("depthwise_digits", LOW.replace(equalize=True, correct_bias=True)),
        ("residual_digits", LOW.replace(correct_bias=True, by_type={"linear": None})),
    ],
    ids=[*MODELS, "lstm_dynamic", "transformer_dynamic", "x86", "equalize", "equalize_correct", "correct"],
)
def test_rows_are_what_each_config_gives_by_itself(name, mapping, mode) -> None:
    model, data = qlab.load_model(name), few(qlab.load_dataset(name))
    calib = qlab.calibrate(model, data, mapping=mapping)
    found = sensitivity(model, data, mapping, calib, mode)
    quantized = [r.layer for r in qlab.convert(model, mapping, calib).ledger if r.quantized and r.mode]
    assert [row.layer for row in found] == quantized
    assert len(found) >= 3
    rows = list(found) if len(found) < 9 else [*found[:3], *found.ranked()[:3], *found[-2:]]
    for row in rows:
        check(row, model, data, CONFIG_OF[mode](mapping, row.layer, row.op), calib)
    assert len({row.sqnr for row in found}) >= 3
    base = qlab.convert(model, mapping, calib)
    assert found.float.sqnr == math.inf
    assert found.float.accuracy == qlab.evaluate(base.reference, data).accuracy
    if mode == "all_but":
        assert found.base.accuracy == qlab.evaluate(base, data, sqnr_samples=0).accuracy
        assert found.base.sqnr == pytest.approx(decibels(outputs(base, data), outputs(base.reference, data)))
    else:
        assert found.base == found.float


@pytest.mark.parametrize("mode", ["only", "all_but"])
@pytest.mark.parametrize("part", ["weight", "activation"])
def test_parts_are_configs_too(residual, mode, part) -> None:
    model, data, calib = residual
    data = few(data)
    found = sensitivity(model, data, LOW, calib, mode, parts=("both", part))
    rows = [row for row in found if row.part == part]
    ops = {row.layer for row in found if row.weights} if part == "weight" else {row.layer for row in found}
    assert {row.layer for row in rows} == ops
    for row in rows[:2] + rows[-2:]:
        check(row, model, data, CONFIG_OF[mode](LOW, row.layer, row.op, part), calib)
    assert [row for row in found if row.part == "both"] == list(sensitivity(model, data, LOW, calib, mode))


def test_a_dynamic_layer_has_no_activations_by_themselves() -> None:
    model, data = qlab.load_model("lstm_text"), few(qlab.load_dataset("lstm_text"), 64)
    mapping = qlab.presets["dynamic"]
    alone = sensitivity(model, data, mapping, mode="only", parts=("both", "weight", "activation"))
    assert {row.part for row in alone} == {"both", "weight"}
    spared = sensitivity(model, data, mapping, mode="all_but", parts=("both", "weight", "activation"))
    assert {row.part for row in spared if row.layer == "classifier"} == {"both", "activation"}
    row = spared.row("classifier", "activation")
    check(row, model, data, all_but(mapping, "classifier", "linear", "activation"), None)


def test_without_labels_float_is_right(residual) -> None:
    model, data, calib = residual
    bare = replace(few(data), targets=None)
    found = sensitivity(model, bare, LOW, calib, "all_but")
    for row in found[:3]:
        assert row.accuracy is None
        check(row, model, bare, all_but(LOW, row.layer, row.op), calib)
    base = qlab.evaluate(qlab.convert(model, LOW, calib), bare, sqnr_samples=0)
    row = found[0]
    spared = qlab.evaluate(qlab.convert(model, all_but(LOW, row.layer, row.op), calib), bare, sqnr_samples=0)
    right = qlab.evaluate(model, bare).predictions
    assert row.against_base.lost == int(((base.predictions == right) & (spared.predictions != right)).sum())
    assert row.against_base.gained == int(((base.predictions != right) & (spared.predictions == right)).sum())
    assert row.against_base.lost + row.against_base.gained > 0


@pytest.mark.parametrize("mode", ["only", "all_but"])
def test_each_row_is_compared_with_the_base_prediction_by_prediction(residual, mode) -> None:
    model, data, calib = residual
    data = few(data)
    found = sensitivity(model, data, LOW, calib, mode)
    base = model if mode == "only" else qlab.convert(model, LOW, calib)
    reference = qlab.evaluate(base, data)
    labels = torch.tensor(data.evaluation.targets).long()
    before = nn.functional.cross_entropy(outputs(base, data).double(), labels, reduction="none")
    changed = 0
    for row in found:
        qmodel = qlab.convert(model, CONFIG_OF[mode](LOW, row.layer, row.op), calib)
        expected = qlab.compare(reference, qlab.evaluate(qmodel, data, sqnr_samples=0), data.evaluation.targets)
        paired = row.against_base
        assert (paired.lost, paired.gained, paired.p) == (expected.lost, expected.gained, expected.p)
        assert paired.accuracy == pytest.approx(row.accuracy - found.base.accuracy)
        after = nn.functional.cross_entropy(outputs(qmodel, data).double(), labels, reduction="none")
        assert paired.loss == pytest.approx(float((after - before).mean()), abs=1e-12)
        assert paired.loss_error == pytest.approx(float((after - before).std() / len(labels) ** 0.5), abs=1e-9)
        changed += paired.lost + paired.gained
    assert changed > 3


class Fixed(nn.Module):
    """Insists on batches of 32, by a reshape with that size in it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x)))) + 0.1
        return self.c(x.reshape(32, 4, 4).flatten(1))


@pytest.mark.parametrize("mode", ["only", "all_but"])
def test_a_network_that_takes_one_batch_size_gets_whole_batches(mode) -> None:
    torch.manual_seed(0)
    model = qlab.load_model(Fixed().eval(), torch.randn(32, 12))
    assert model.fixed_batch == 32
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((140, 12)).astype(np.float32)
    data = qlab.load_dataset(inputs, rng.integers(0, 4, 140)).split(64)
    calib = qlab.calibrate(model, data)
    found = sensitivity(model, data, LOW, calib, mode)
    assert found[0].n == len(data.evaluation) == 76  # 32 + 32 + 12
    for row in found:
        check(row, model, data, CONFIG_OF[mode](LOW, row.layer, row.op), calib)


@pytest.mark.parametrize("mode", ["only", "all_but"])
def test_too_much_to_hold_at_once_is_run_group_by_group(residual, mode, monkeypatch) -> None:
    model, data, calib = residual
    data = few(data)
    whole = sensitivity(model, data, LOW, calib, mode)
    bases = []
    monkeypatch.setattr(variants, "HELD_BYTES", 1 << 19)
    batch = variants.Bench._groups
    monkeypatch.setattr(variants.Bench, "_groups", lambda *a: bases.append(batch(*a)) or bases[-1])
    assert sensitivity(model, data, LOW, calib, mode) == whole
    assert all(len(groups) > 2 for groups in bases)
    assert max(len(group) for groups in bases for group in groups) > 1


@pytest.mark.parametrize("mode", ["only", "all_but"])
def test_the_worst_of_a_first_look_are_confirmed_on_all(residual, mode) -> None:
    model, data, calib = residual
    data, mapping = few(data, 300), qlab.presets["w4a8"]
    whole = sensitivity(model, data, mapping, calib, mode)
    found = sensitivity(model, data, mapping, calib, mode, confirm=3)
    looked = min(row.n for row in found)
    assert PROXY_SAMPLES <= looked < 300
    first = sensitivity(model, few(data, looked), mapping, calib, mode)
    assert (found.base, found.float) == (whole.base, whole.float)
    worst = [row.layer for row in first.ranked()[:3]]
    assert {row.layer for row in found if found.confirmed(row)} == set(worst)
    assert [row.layer for row in found.ranked()][:3] == [r.layer for r in whole.ranked() if r.layer in worst]
    for row in found:
        # going on from the first look gives what a look at all gives
        assert row == (whole if row.layer in worst else first).row(row.layer)


def test_confirming_counts_layers_and_none_is_a_first_look_alone(residual) -> None:
    model, data, calib = residual
    data = few(data, 300)
    found = sensitivity(model, data, LOW, calib, parts=("both", "weight", "activation"), confirm=2)
    assert len({row.layer for row in found if found.confirmed(row)}) == 2
    assert {row.part for row in found if found.confirmed(row)} >= {"both", "activation"}
    look = sensitivity(model, data, LOW, calib, confirm=0)
    assert {row.n for row in look} == {look.base.n} == {PROXY_SAMPLES}


def test_equal_configs_are_run_once(residual) -> None:
    """Weights alone are quantized: a layer and its weight are the same thing."""
    model, data, _ = residual
    steps = []
    mapping = qlab.presets["int8_weight_only"]
    found = sensitivity(
        model,
        few(data),
        mapping,
        parts=("both", "weight"),
        progress=lambda _s, done, total: steps.append((done, total)),
    )
    layers = {row.layer for row in found}
    assert steps[-1][1] == 3 * len(layers)
    assert [d for d, _ in steps] == list(range(3 * len(layers) + 1))
    for layer in layers:
        assert found.row(layer).measured == found.row(layer, "weight").measured


@pytest.mark.parametrize("mode", ["only", "all_but"])
def test_the_guiltiest_comes_first(residual, mode) -> None:
    model, data, calib = residual
    found = sensitivity(model, few(data), LOW, calib, mode)
    ranked = [row.sqnr for row in found.ranked()]
    # alone it ruins the output most; spared it mends it most
    assert ranked == sorted(ranked, reverse=mode == "all_but")
    assert ranked[0] != ranked[-1]


def test_what_is_measured_later_leaves_the_base_as_it_is(residual) -> None:
    model, data, calib = residual
    bench = variants.Bench(model, few(data), LOW, calib, "quantized", 64)
    one, other = (bench.variant(all_but(LOW, layer, "conv2d")) for layer in ("conv1", "layer1.0.conv1"))
    bench.measure([one], SAMPLES)
    base, first = bench.of_base.measured(), bench.of_float.measured()
    bench.measure([other], SAMPLES)
    assert (bench.of_base.measured(), bench.of_float.measured()) == (base, first)
    assert base.n == SAMPLES
    for variant, layer in ((one, "conv1"), (other, "layer1.0.conv1")):
        expected = sensitivity(model, few(data), LOW, calib, "all_but").row(layer)
        assert (variant.measured, variant.paired) == (expected.measured, expected.against_base)


def spearman(a, b):
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


# Where sparing any layer brings about the same, the order of all_but is decided by fewer dB than a look at 128 samples
# can tell, and the look goes on.
@pytest.mark.parametrize(
    ("mode", "mapping", "goes_on"),
    [
        ("only", LOW, False),
        ("only", qlab.presets["x86"], False),
        ("all_but", qlab.presets["w4a8"], False),
        ("all_but", qlab.presets["x86"], True),
    ],
    ids=["only", "only_x86", "all_but", "all_but_x86"],
)
def test_the_ranking_of_a_first_look_is_that_of_all_samples(residual, mode, mapping, goes_on) -> None:
    model, data, calib = residual
    exact = sensitivity(model, data, mapping, calib, mode)
    look = sensitivity(model, data, mapping, calib, mode, confirm=0)
    floats = outputs(model, data)
    brute = [
        decibels(outputs(qlab.convert(model, CONFIG_OF[mode](mapping, r.layer, r.op), calib), data), floats)
        for r in exact
    ]
    assert spearman([row.sqnr for row in exact], brute) == 1
    assert spearman([row.sqnr for row in look], brute) >= 0.95
    assert (look[0].n > PROXY_SAMPLES) == goes_on


def test_the_ranking_of_a_first_look_at_a_resnet(cifar) -> None:
    model, train, test = cifar
    calib = qlab.calibrate(model, train.subset(slice(0, 256)))
    test = test.subset(slice(0, 512))
    exact = sensitivity(model, test, LOW, calib)
    look = sensitivity(model, test, LOW, calib, confirm=0)
    assert look[0].n == PROXY_SAMPLES
    assert spearman([row.sqnr for row in look], [row.sqnr for row in exact]) >= 0.95
    floats = outputs(model, test)
    for row in exact.ranked()[:2]:
        qmodel = qlab.convert(model, only(LOW, row.layer, row.op), calib)
        assert row.sqnr == pytest.approx(decibels(outputs(qmodel, test), floats), abs=1e-9)
        assert row.accuracy == qlab.evaluate(qmodel, test, sqnr_samples=0).accuracy


def test_a_callback_that_raises_stops_it(residual) -> None:
    model, data, calib = residual
    seen = []

    def stop(stage, done, total):
        seen.append((stage, done, total))
        if done == 5:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        sensitivity(model, few(data), LOW, calib, progress=stop)
    assert [done for _, done, _ in seen] == list(range(6))
    assert {stage for stage, _, _ in seen} == {"sensitivity"}


def test_nothing_of_the_model_is_changed(residual) -> None:
    model, data, calib = residual
    before = {k: v.clone() for k, v in model.graph_module.state_dict().items()}
    sensitivity(model, few(data), LOW, calib, "all_but", parts=("both", "weight"))
    assert all(torch.equal(before[k], v) for k, v in model.graph_module.state_dict().items())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mode": "one"}, "mode is one of only, all_but"),
        ({"parts": ("bias",)}, "part one of both, weight, activation"),
        ({"mapping": QConfigMapping()}, "quantizes no layer"),
    ],
    ids=["mode", "part", "float"],
)
def test_what_cannot_be_measured_is_refused(residual, given, words) -> None:
    model, data, calib = residual
    given = {"mapping": LOW, **given}
    with pytest.raises(InvalidConfig, match=words):
        sensitivity(model, data, given.pop("mapping"), calib, **given)


def test_labels_that_do_not_fit_are_refused(residual) -> None:
    model, data, calib = residual
    wrong = replace(few(data), targets=data.targets + 90, class_names=None)
    with pytest.raises(DataMismatch, match="but the model tells 10 classes apart"):
        sensitivity(model, wrong, LOW, calib)


def test_as_json_and_back_with_infinities(residual) -> None:
    model, data, calib = residual
    found = sensitivity(model, few(data, 200), LOW, calib, parts=("both", "weight"), confirm=2)
    assert found.float.sqnr == math.inf
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert Sensitivity.from_dict(json.loads(text)) == found


# --- odd networks -----------------------------------------------------------------------------------------------------


class Queries(nn.Module):
    """A parameter that a linear reads, and the network itself."""

    def __init__(self):
        super().__init__()
        self.latent, self.project, self.head = nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head((x * self.project(self.latent) + self.latent).mean(1))


class Squeezed(nn.Module):
    """Runs with more than one sample only."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x)).mean((2, 3), keepdim=True).squeeze()
        return self.head(torch.cat([x, x], 1))


@pytest.mark.parametrize("mode", ["only", "all_but"])
@pytest.mark.parametrize(("network", "shape"), [(Queries, (5, 8)), (Squeezed, (3, 8, 8))])
def test_odd_networks(network, shape, mode) -> None:
    torch.manual_seed(0)
    x = torch.randn(128, *shape)
    model, data = qlab.load_model(network().eval(), x[:4].clone()), qlab.load_dataset(x.numpy())
    mapping = qlab.presets["x86"]
    calib = qlab.calibrate(model, data)
    found = sensitivity(model, data, mapping, calib, mode)
    assert len(found) >= 2
    for row in found:
        check(row, model, data, CONFIG_OF[mode](mapping, row.layer, row.op), calib)


@pytest.mark.parametrize("preset", ["dynamic", "int8_weight_only"])
def test_a_part_that_no_layer_has_is_ranked_too(preset) -> None:
    torch.manual_seed(0)
    model = qlab.load_model(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(4, 8))
    data = qlab.load_dataset(torch.randn(600, 8).numpy())
    assert list(sensitivity(model, data, qlab.presets[preset], parts=("activation",), confirm=0)) == []
    both = sensitivity(model, data, qlab.presets[preset], parts=("both", "activation"), confirm=0)
    assert {row.part for row in both} == {"both"}


def test_weights_of_layers_below_are_not_counted() -> None:
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(8, 8)
            self.down, self.up = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x):
            return super().forward(x) + self.up(self.down(x))

    model = qlab.load_model(nn.Sequential(Adapted(), nn.Linear(8, 3)).eval(), torch.randn(4, 8))
    data = qlab.load_dataset(torch.randn(64, 8).numpy())
    rows = {r.layer: r for r in sensitivity(model, data, qlab.presets["int8_weight_only"])}
    assert {name: row.weights for name, row in rows.items()} == {"0": 64, "0.down": 16, "0.up": 16, "1": 24}
    lstm, tokens = qlab.load_model("lstm_text"), few(qlab.load_dataset("lstm_text"), 32)
    held = qlab.convert(lstm, qlab.presets["dynamic"]).weights
    expected = sum(t.codes.numel() for name, t in held.items() if name.startswith("lstm."))
    assert sensitivity(lstm, tokens, qlab.presets["dynamic"]).row("lstm").weights == expected > 0
