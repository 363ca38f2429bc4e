"""Faults that were planted are named first, on the right tensor, and what is advised repairs them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import qlab
from benchmarks.planted import CASES, PER_CHANNEL, PER_TENSOR, Planted, fresh
from qlab.analysis.advice import try_remedies
from qlab.analysis.diagnose import diagnose
from qlab.analysis.fault import KINDS, Fault, ordered
from qlab.analysis.remedy import Remedy, combined
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import Cancelled


@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_found_first_and_repaired(name: str) -> None:
    case: Planted = CASES[name]()
    found = diagnose(case.model, case.data, case.mapping, case.calib)
    first = found.first
    assert first is not None
    assert (first.kind, first.tensor) == (case.kind, first.tensor)
    assert first.tensor in case.where
    assert first.sentence.endswith(".")
    if not case.repairable:
        assert not first.remedies
        assert first.advice
        return
    reference = qlab.evaluate(case.model, case.data)
    tried = try_remedies(case.model, case.data, case.mapping, first.remedies, case.calib, reference=reference)
    best = tried[0]
    assert best.recovered is not None  # what was lost was beyond chance
    assert best.recovered >= 0.8
    if best.against is not None:
        assert best.beyond_chance
    assert best.evaluation.accuracy == max(t.evaluation.accuracy for t in tried)


@pytest.mark.parametrize("name", ["residual_digits", "conv_digits", "transformer_text", "lstm_text"])
def test_nothing_is_wrong_with_a_healthy_network(name: str) -> None:
    model, data = fresh(name)
    assert diagnose(model, data, qlab.presets["x86"]).faults == ()


def test_what_measures_stands_beside_what_was_found() -> None:
    model, data = fresh("outlier_mlp")
    found = diagnose(model, data, qlab.presets["tflite"])
    assert found.propagation is not None
    assert found.costs is not None
    outliers = [f for f in found.faults if f.kind == "outlier_weight"]
    assert {f.tensor for f in outliers} == {"fc1.weight", "fc2.weight"}  # as the card of the sample says
    assert all(f.severity == "note" for f in outliers)  # at 8 bits they cost nothing
    assert any(f.kind == "dead_channel" and f.layer == "fc1" for f in found.faults)


def test_a_range_of_no_tensor_is_told() -> None:
    model, data = fresh("residual_digits")
    mapping = PER_CHANNEL.replace(ranges={"layer9": (0.0, 1.0)})
    first = diagnose(model, data, mapping).first
    assert first is not None
    assert first.kind == "unmatched_rule"
    assert first.remedies[0].mapping == PER_CHANNEL


def test_a_config_that_quantizes_nothing() -> None:
    model, data = fresh("residual_digits")
    found = diagnose(model, data, QConfigMapping())
    assert found.faults == ()
    assert found.propagation is None


def test_cancelling_stops_it() -> None:
    model, data = fresh("residual_digits")

    def stop(stage: str, _done: int, _total: int) -> None:
        if stage == "follow the error":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        diagnose(model, data, PER_CHANNEL, progress=stop)


def test_errors_come_before_what_costs_and_that_before_notes() -> None:
    def fault(kind: str, severity: str, cost: float = 0.0) -> Fault:
        return Fault(kind, severity, "t", "t", 1.0, "s.", cost=cost)  # type: ignore[arg-type]

    note, small, large = (
        fault("dead_channel", "note"),
        fault("saturated", "warning", 0.1),
        fault("coarse_grid", "warning", 0.2),
    )
    rule, nan = fault("unmatched_rule", "error"), fault("non_finite", "error")
    assert ordered([note, small, rule, large, nan]) == [nan, rule, large, small, note]
    assert set(KINDS) >= {"outlier_weight", "bias_shift"}


def test_remedies_that_were_chosen_make_one_config() -> None:
    base = PER_CHANNEL.replace(by_name={"a": None}, ranges={"x": (0.0, 1.0)})
    per_layer = Remedy("", "", base.replace(by_name={"a": None, "b": None}))
    equal = Remedy("", "", base.replace(equalize=True))
    no_range = Remedy("", "", base.replace(ranges={}))
    assert base.default is not None
    wider = base.default.replace(mode="weight_only", activation=None)
    other_default = Remedy("", "", base.replace(default=wider))
    made = combined(base, [per_layer, equal, no_range, other_default])
    assert made == QConfigMapping(default=wider, by_name={"a": None, "b": None}, equalize=True)
    assert combined(base, []) == base


def test_without_labels_the_gain_is_that_of_agreement() -> None:
    case = CASES["a saturated activation"]()
    data = replace(case.data, targets=None)
    first = diagnose(case.model, data, case.mapping, case.calib).first
    assert first is not None
    best = try_remedies(case.model, data, case.mapping, first.remedies, case.calib)[0]
    assert best.beyond_chance is None
    assert best.evaluation.accuracy is None
    assert best.recovered is not None
    assert best.recovered > 0.9


def test_mean_and_std_swapped_on_a_trained_resnet(cifar) -> None:
    model, data, _ = cifar
    data = data.subset(range(256))
    right = diagnose(model, data, qlab.presets["x86"])
    assert all(fault.severity == "note" for fault in right.faults)
    wrong = diagnose(model, replace(data, mean=data.std, std=data.mean), qlab.presets["x86"]).first
    assert wrong is not None
    assert (wrong.kind, wrong.tensor) == ("unlike_training", model.inputs[0].name)


# --- weights of which few are not zero --------------------------------------------------------------------------------


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mlp(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def identity() -> nn.Module:
    network = mlp()
    network[0].weight.data = torch.eye(16)
    return network


def depthwise(rest: float) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4))
    network[0].weight.data.mul_(rest)
    network[0].weight.data[:, 0, 1, 1] = 1
    return network.eval()


def pruned() -> nn.Module:
    """Three weights left in each channel of 512, of which one is large."""
    network = mlp(512)
    weight = torch.zeros(16, 512)
    weight[:, 5], weight[:, 70], weight[:, 300] = 0.01, -0.02, torch.linspace(0.5, 1.0, 16)
    network[0].weight.data = weight
    return network


SPARSE = {
    "identity": (identity, (16,)), "delta": (lambda: depthwise(0.0), (3, 8, 8)),
    "nearly delta": (lambda: depthwise(0.05), (3, 8, 8)), "pruned": (pruned, (512,)),
}  # fmt: skip


@pytest.mark.parametrize("mapping", [PER_CHANNEL, PER_TENSOR, qlab.presets["x86"]], ids=["channel", "tensor", "x86"])
@pytest.mark.parametrize("name", SPARSE)
def test_few_weights_that_are_not_zero_are_no_outliers(name: str, mapping: QConfigMapping) -> None:
    make, shape = SPARSE[name]
    x = values(128, *shape)
    found = diagnose(qlab.load_model(make(), x[:4]), qlab.load_dataset(x.numpy()), mapping)
    assert found.costs is not None
    assert not [f.sentence for f in found.faults if f.kind == "outlier_weight"]


@pytest.mark.parametrize("zeros", [0, 300], ids=["dense", "pruned"])
@pytest.mark.parametrize("mapping", [PER_CHANNEL, PER_TENSOR], ids=["channel", "tensor"])
def test_an_outlier_among_enough_weights_is_one(mapping: QConfigMapping, zeros: int) -> None:
    network = mlp(512)
    network[0].weight.data[:, :zeros] = 0
    network[0].weight.data[3, 400] = 50.0
    x = values(128, 512)
    found = diagnose(qlab.load_model(network, x[:4]), qlab.load_dataset(x.numpy()), mapping)
    outlier = next(f for f in found.faults if f.kind == "outlier_weight")
    assert (outlier.tensor, outlier.channels) == ("0.weight", (3,))
    usual = float(network[0].weight.detach().abs().flatten().topk(2).values[1])
    clip = next(r for r in outlier.remedies if r.title.startswith("Clip"))
    assert clip.mapping.ranges["0.weight"] == pytest.approx((-usual, usual))


# --- channels and tensors of nothing but zeros ------------------------------------------------------------------------


def test_a_dead_channel_has_no_absurd_scale() -> None:
    network = mlp()
    network[0].weight.data[3] = 0
    network[0].bias.data[3] = 0
    x = values(128, 16)
    case = qlab.load_model(network, x[:4]), qlab.load_dataset(x.numpy())
    mapping = QConfigMapping(QConfig(QuantSpec(8, "per_channel_symmetric"), QuantSpec(8, "per_channel_affine")))
    faults = diagnose(*case, mapping).faults
    assert {(f.kind, f.channels) for f in faults if f.tensor == "1"} == {("dead_channel", (3,))}
    network[0].weight.data[3] = 1e-8
    faults = diagnose(qlab.load_model(network, x[:4]), case[1], mapping).faults
    absurd = next(f for f in faults if f.kind == "absurd_scale")
    assert absurd.channels == (3,)
    assert "channel 3 of 1" in absurd.sentence


def test_nothing_but_zeros_is_told_as_such() -> None:
    network = mlp()
    network[0].bias.data.fill_(-100.0)
    x = values(128, 16)
    found = diagnose(qlab.load_model(network, x[:4]), qlab.load_dataset(x.numpy()), qlab.presets["x86"])
    assert [(f.kind, f.severity) for f in found.faults if f.tensor == "1"] == [("all_zero", "note")]
    zero = next(f for f in found.faults if f.kind == "all_zero")
    assert zero.sentence == "All 2,048 values of 1 in the calibration are zero."
    assert [r.title for r in zero.remedies] == ["Keep 1 float"]


def test_levels_that_nearly_all_values_share_are_counted() -> None:
    network = mlp()
    x = values(2048, 16)
    x[0] *= 400
    model, data = qlab.load_model(network, x[:4]), qlab.load_dataset(x.numpy())
    qmodel = qlab.convert(model, PER_CHANNEL, qlab.calibrate(model, data))
    found = {f.tensor: f for f in diagnose(model, data, PER_CHANNEL).faults if f.kind == "wasted_range"}
    assert {"input", "1"} <= found.keys()
    for tensor, given in {"input": x, "1": network[:2](x).detach()}.items():
        grid = qmodel.activations[tensor].qparams
        inner = given[given.abs() <= torch.quantile(given.abs().flatten(), 0.999)]
        codes = torch.round(inner / grid.scale) + grid.zero_point
        said = int(found[tensor].sentence.split()[-3])
        assert said == int(codes.max() - codes.min()) + 1


# --- NaN and infinity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", [PER_CHANNEL, qlab.presets["x86"].replace(equalize=True), QConfigMapping()])
@pytest.mark.parametrize(("part", "value"), [("weight", float("nan")), ("bias", float("inf"))])
def test_broken_weights_are_not_blamed_on_the_data(mapping: QConfigMapping, part: str, value: float) -> None:
    network = mlp()
    getattr(network[2], part).data[1] = value
    x = values(64, 16)
    (first,) = diagnose(qlab.load_model(network, x[:4]), qlab.load_dataset(x.numpy()), mapping).faults
    assert (first.kind, first.tensor, first.layer) == ("non_finite", f"2.{part}", "2")
    count = 16 if part == "weight" else 1
    assert first.sentence.startswith(f"{count} of the {64 if part == 'weight' else 4} values of 2.{part}")
    assert "export the network again" in first.advice


class Divided(nn.Module):
    """Divides by a sigmoid, which is small and never zero, and on a grid of eight bits zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 1), nn.Linear(8, 3), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.c(x) / torch.sigmoid(self.a(x) * 20))


def test_what_only_the_quantized_network_makes_infinite_is_found() -> None:
    torch.manual_seed(1)
    x = values(200, 8)
    model, data = qlab.load_model(Divided().eval(), x[:4]), qlab.load_dataset(x.numpy())
    first = diagnose(model, data, qlab.presets["x86"]).first
    assert first is not None
    assert (first.kind, first.tensor) == ("non_finite", "div")
    assert "float" in first.advice


# --- ranges that do nothing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["0.weight", "0"])
def test_a_range_of_a_tensor_that_is_on_no_grid_is_a_note(tensor: str) -> None:
    x = values(64, 16)
    plain = PER_CHANNEL.replace(by_name={"0": None} if tensor == "0.weight" else {})
    mapping = plain.replace(ranges={tensor: (-0.1, 0.1)})
    faults = diagnose(qlab.load_model(mlp(), x[:4]), qlab.load_dataset(x.numpy()), mapping).faults
    fault = next(f for f in faults if f.kind == "unused_range")
    assert (fault.tensor, fault.severity) == (tensor, "note")
    assert fault.sentence.startswith(f"{tensor} is on no grid under this config")
    (remedy,) = fault.remedies
    assert remedy.mapping == plain
    assert "No tensor" not in remedy.sentence
    assert not [f for f in faults if f.kind == "unmatched_rule"]
