import pytest

import qlab
from qlab.errors import InvalidConfig
from qlab.lab.store import FAILED, Store
from tests.jobs_here import carry

GRID = qlab.Grid(weight_bits=(8, 4))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def swept(store: Store):
    return qlab.sweep(
        "conv_digits", qlab.load_dataset("conv_digits").subset(range(200)).split(100), GRID, store=store, sqnr_samples=0
    )


def test_runs_are_timed_side_by_side_and_remember_it(store: Store, swept) -> None:
    run = carry(store, "latency", runs=[r.id for r in swept], batch=4)
    result = run.require_result()
    assert set(result["latency"]) == {"float", *(r.id for r in swept)}
    assert (result["batch"], result["threads"], result["left_out"]) == (4, 2, {})
    for r in swept:
        head = store.get_run(r.id).headline
        assert head.latency == result["latency"][r.id]["median"] > 0
        assert head.latency_batch == 4
        low, middle, high = result["over_float"][r.id]
        assert low <= middle <= high


def test_a_config_without_integer_form_is_left_out_with_the_reason(store: Store, swept) -> None:
    spec = qlab.QuantSpec(8, "per_channel_symmetric")
    mapping = qlab.QConfigMapping(qlab.QConfig(spec, qlab.QuantSpec(8, "per_channel_affine")))
    data = qlab.load_dataset("residual_digits")
    per_channel, usual = qlab.sweep("residual_digits", data, [mapping, "x86"], store=store, sqnr_samples=0)
    result = carry(store, "latency", runs=[per_channel.id, usual.id]).require_result()
    assert list(result["left_out"]) == [per_channel.id]
    assert usual.id in result["latency"]
    assert store.get_run(per_channel.id).headline.latency is None


def test_what_cannot_be_compared_is_refused(store: Store, swept) -> None:
    with pytest.raises(InvalidConfig, match="not finished experiments"):
        carry(store, "latency", runs=["nowhere"])
    with pytest.raises(InvalidConfig, match=r"runs=\[ids\]"):
        carry(store, "latency", runs=[])
    with pytest.raises(InvalidConfig, match="batch is 0"):
        carry(store, "latency", runs=[swept[0].id], batch=0)
    (other,) = qlab.sweep("depthwise_digits", "depthwise_digits", ["x86"], store=store, sqnr_samples=0)
    with pytest.raises(InvalidConfig, match="different networks"):
        carry(store, "latency", runs=[swept[0].id, other.id])
    (run,) = [r for r in store.list_runs(kind="latency") if r.status == FAILED]
    assert "different networks" in run.error
