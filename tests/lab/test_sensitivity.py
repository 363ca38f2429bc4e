"""The job behind "which layer is guilty": what it stores, what it takes from the store, how it ends."""

import time

import pytest

import qlab
from qlab.analysis.keep import counts_up_to, keep_curve
from qlab.analysis.sensitivity import sensitivity
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.errors import InvalidConfig
from qlab.lab import sensitivity as job
from qlab.lab import stages
from qlab.lab.experiment import Experiment
from qlab.lab.jobs import JobRunner, Staff
from qlab.lab.sensitivity import Question, at_8_bits, find_curve, find_sensitivity, instead_of, order_of
from qlab.lab.store import CANCELLED, DONE, Store
from qlab.lab.tasks import describe_sensitivity
from qlab.preset import presets
from tests.jobs_here import carry

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = "conv_digits"
LOW = QConfigMapping(QConfig(QuantSpec(4, "per_tensor_symmetric"), QuantSpec(5)))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("lab") / "home")


@pytest.fixture(scope="module")
def network():
    return qlab.load_model(MODEL)


def asked(few_digits, mapping=LOW, **question):
    return {"experiment": Experiment(MODEL, str(few_digits), mapping, name="a name"), **question}


def refuse(*_args, **_kwargs):
    raise AssertionError("it was computed again")


def test_what_is_stored_is_what_the_engine_measures(store, few_digits, network) -> None:
    data, question = qlab.load_dataset(few_digits), Question("only", ("weight", "both"), None)
    assert find_sensitivity(store, network, data, LOW, question) is None
    run = carry(store, "sensitivity", **asked(few_digits, parts=("weight", "both"), confirm=None))
    assert (run.status, run.name) == (DONE, "")
    found = find_sensitivity(store, network, data, LOW, question)
    calib = qlab.calibrate(network, data)
    assert found == sensitivity(network, data, LOW, calib, parts=("both", "weight"))
    assert set(run.require_result()["artifacts"]) == {"sensitivity"}
    # nothing is shown for another question, config or split
    for other in (Question("all_but", question.parts, None), Question(confirm=None), Question("only", question.parts)):
        assert find_sensitivity(store, network, data, LOW, other) is None
    assert find_sensitivity(store, network, data, presets["x86"], question) is None
    assert find_sensitivity(store, network, data.split(16, seed=1), LOW, question) is None


def test_the_order_of_parts_is_no_other_question() -> None:
    assert Question(parts=("activation", "both")) == Question(parts=("both", "activation"))


def test_the_curve_follows_the_ranking_and_takes_it_from_the_store(store, few_digits, network, monkeypatch) -> None:
    data = qlab.load_dataset(few_digits)
    carry(store, "sensitivity", **asked(few_digits, mode="all_but"))
    monkeypatch.setattr(job, "sensitivity", refuse)
    calib = qlab.calibrate(network, data)
    ranking = find_sensitivity(store, network, data, LOW, Question("all_but"))
    assert order_of(ranking) == [row.layer for row in ranking.ranked()]
    for curve, config in (("float", None), ("8 bits", at_8_bits(LOW.default))):
        question = Question("all_but", curve=curve)
        assert find_curve(store, network, data, LOW, question) is None
        run = carry(store, "sensitivity", **asked(few_digits, mode="all_but", curve=curve))
        assert set(run.require_result()["artifacts"]) == {"sensitivity", "keep curve"}
        points = find_curve(store, network, data, LOW, question)
        assert points == keep_curve(network, data, LOW, calib, order_of(ranking), instead=config)
        assert [p.count for p in points] == counts_up_to(len(ranking))
    assert find_curve(store, network, data, LOW, Question("all_but")) is None
    monkeypatch.setattr(job, "keep_curve", refuse)
    monkeypatch.setattr(stages, "calibrate", refuse)
    carry(store, "sensitivity", **asked(few_digits, mode="all_but", curve="float"))


def test_parts_alone_rank_a_layer_by_its_worst(store, few_digits, network) -> None:
    carry(store, "sensitivity", **asked(few_digits, parts=("weight", "activation"), confirm=None))
    question = Question("only", ("weight", "activation"), None)
    found = find_sensitivity(store, network, qlab.load_dataset(few_digits), LOW, question)
    lowest = {}
    for row in found:
        lowest[row.layer] = min(row.sqnr, lowest.get(row.layer, row.sqnr))
    assert order_of(found) == sorted(lowest, key=lowest.__getitem__)


def test_a_dynamic_config_is_not_calibrated(store, few_digits, network, monkeypatch) -> None:
    monkeypatch.setattr(stages, "calibrate", refuse)
    carry(store, "sensitivity", **asked(few_digits, presets["dynamic"], curve="float"))
    points = find_curve(store, network, qlab.load_dataset(few_digits), presets["dynamic"], Question(curve="float"))
    assert points[-1].measured.agreement == 1


def test_8_bits_are_at_least_8() -> None:
    config = QConfig(QuantSpec(4, "per_channel_symmetric"), QuantSpec(16, observer="mse"))
    raised = at_8_bits(config)
    assert (raised.weight.bits, raised.activation.bits, raised.activation.observer) == (8, 16, "mse")
    assert raised.weight.qscheme == "per_channel_symmetric"
    assert at_8_bits(presets["int4_weight_only"].default).activation is None
    assert instead_of(LOW, "8 bits") == at_8_bits(LOW.default)
    one_layer = presets["x86"].replace(by_name={"fc": LOW.default})
    assert instead_of(one_layer, "8 bits") == at_8_bits(LOW.default)
    assert instead_of(presets["x86"], "float") is None
    with pytest.raises(InvalidConfig, match="has 8 bits already"):
        instead_of(presets["x86"], "8 bits")


@pytest.mark.parametrize(
    "question",
    [{"mode": "one"}, {"parts": ()}, {"parts": ("bias",)}, {"confirm": -1}, {"confirm": True}, {"curve": "4 bits"}],
    ids=str,
)
def test_a_question_that_makes_no_sense_is_refused(store, few_digits, question) -> None:
    with pytest.raises(InvalidConfig):
        describe_sensitivity(store, asked(few_digits, **question))


def test_a_worker_reports_its_stages_and_stops_when_told(tmp_path, few_digits) -> None:
    store = Store(tmp_path / "home")
    with JobRunner(store, staff=Staff(1, 1, 2 << 30)) as runner:
        run_id = runner.submit("sensitivity", **asked(few_digits, curve="float"))
        done = runner.wait(run_id, 120)
        assert done.status == DONE, done.error
        timings = done.require_result()["timings"]
        assert set(timings) == {"load", "check", "calibrate", "sensitivity", "keep the worst"}
        run_id = runner.submit(
            "sensitivity", experiment=Experiment("transformer_text", "transformer_text", LOW), confirm=None
        )
        deadline = time.monotonic() + 60
        while store.get_run(run_id).stage != "sensitivity":
            assert time.monotonic() < deadline, store.get_run(run_id)
            time.sleep(0.02)
        runner.cancel(run_id)
        assert runner.wait(run_id, 30).status == CANCELLED
    text = qlab.load_dataset("transformer_text")
    assert find_sensitivity(store, qlab.load_model("transformer_text"), text, LOW, Question(confirm=None)) is None
