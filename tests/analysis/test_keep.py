"""The curve of the worst layers kept out of a config: each point is what its own config gives."""

import json
import math

import pytest

import qlab
from qlab.analysis.keep import Kept, counts_up_to, keep_curve
from qlab.analysis.sensitivity import sensitivity
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import Cancelled, InvalidConfig
from tests.analysis.test_sensitivity import LOW, few

pytestmark = pytest.mark.usefixtures("one_thread")
EIGHT = QConfig(QuantSpec(8, "per_channel_symmetric"), QuantSpec(8))


@pytest.fixture(scope="module")
def ranked(residual):
    model, data, calib = residual
    return [row.layer for row in sensitivity(model, few(data), LOW, calib).ranked()]


@pytest.mark.parametrize(
    ("layers", "counts"), [(1, [0, 1]), (2, [0, 1, 2]), (8, [0, 1, 2, 3, 5, 8]), (10, [0, 1, 2, 3, 5, 8, 10]), (0, [0])]
)
def test_the_counts_grow_by_what_they_are(layers, counts) -> None:
    assert counts_up_to(layers) == counts


@pytest.mark.parametrize("instead", [None, EIGHT], ids=["float", "8 bits"])
def test_each_point_is_what_its_config_gives(residual, ranked, instead) -> None:
    model, data, calib = residual
    data = few(data)
    curve = keep_curve(model, data, LOW, calib, ranked, instead=instead)
    assert [point.count for point in curve] == counts_up_to(len(ranked))
    base = qlab.evaluate(qlab.convert(model, LOW, calib), data, sqnr_samples=0)
    for point in curve:
        assert point.layers == tuple(ranked[: point.count])
        assert dict(point.mapping.by_name) == dict.fromkeys(point.layers, instead)
        qmodel = qlab.convert(model, point.mapping, calib)
        found = qlab.evaluate(qmodel, data, sqnr_samples=0)
        expected = qlab.compare(base, found, data.evaluation.targets)
        assert point.size == qmodel.size.quantized_bytes
        assert (point.measured.accuracy, point.measured.agreement) == (found.accuracy, found.agreement)
        assert (point.against_base.lost, point.against_base.gained) == (expected.lost, expected.gained)
    sqnr = [point.measured.sqnr for point in curve]
    assert sqnr[-1] > sqnr[0] + 10
    assert (sqnr[-1] == math.inf) == (instead is None)  # all layers float is the float network
    sizes = [point.size for point in curve]
    # without any grid left, the scales of the activations go too
    assert sizes[:-1] == sorted(sizes[:-1])
    assert sizes[-1] > 1.2 * sizes[0]


def test_rules_for_other_layers_stay(residual, ranked) -> None:
    model, data, calib = residual
    mapping = LOW.replace(by_name={ranked[-1]: EIGHT, "layer*": LOW.default})
    (point,) = keep_curve(model, few(data, 64), mapping, calib, ranked, counts=[2])
    assert dict(point.mapping.by_name) == {**mapping.by_name, ranked[0]: None, ranked[1]: None}


@pytest.mark.parametrize(
    ("order", "counts", "words"),
    [
        (["conv1", "nowhere"], None, "names nowhere, which the network has not"),
        (["conv1", "conv1"], None, "names a layer twice"),
        (["conv1"], [2], "numbers of layers from 0 to 1"),
    ],
)
def test_what_cannot_be_kept_is_refused(residual, order, counts, words) -> None:
    model, data, calib = residual
    with pytest.raises(InvalidConfig, match=words):
        keep_curve(model, data, LOW, calib, order, counts=counts)


def test_a_callback_that_raises_stops_it(residual, ranked) -> None:
    model, data, calib = residual
    seen = []

    def stop(stage, done, total):
        seen.append((done, total))
        if done == 3:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        keep_curve(model, few(data), LOW, calib, ranked, counts=[0, 1, 4], progress=stop)
    assert seen == [(done, 9) for done in range(4)]


def test_as_json_and_back(residual, ranked) -> None:
    model, data, calib = residual
    curve = keep_curve(model, few(data, 64), LOW, calib, ranked, counts=[0, len(ranked)])
    text = json.dumps([point.to_dict() for point in curve], allow_nan=False)
    assert [Kept.from_dict(d) for d in json.loads(text)] == curve


def test_a_float_config_has_nothing_to_keep(residual) -> None:
    model, data, calib = residual
    (point,) = keep_curve(model, few(data, 64), QConfigMapping(), calib, [])
    assert point.measured.sqnr == math.inf
