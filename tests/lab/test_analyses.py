"""The jobs that look into a config: found again in the store, and equal to what the engine gives."""

import numpy as np
import pytest

import qlab
from qlab.analysis.stored import from_json, to_json
from qlab.lab import analyses, sources
from qlab.lab.experiment import Experiment
from qlab.lab.store import DONE, Store
from qlab.lab.tasks import KINDS, describe_analysis
from qlab.lab.work import Work, carry_out

CONFIG = qlab.QConfigMapping(
    default=qlab.QConfig(qlab.QuantSpec(4, "per_tensor_symmetric"), qlab.QuantSpec(8)), by_name={"layr*": None}
)


def carried_out(store, kind, experiment):
    row = describe_analysis(store, {"experiment": experiment})
    run_id = store.create_run(kind=kind, **row.columns)
    store.start(run_id)
    seen = []
    work = Work(store, run_id, lambda stage, done, total: seen.append(stage))
    carry_out(getattr(analyses, f"{kind}_task"), work, dict(row.spec))
    assert store.get_run(run_id).status == DONE
    return seen


def test_a_diagnosis_and_what_helps_are_kept():
    store = Store()
    experiment = Experiment("conv_digits", "conv_digits", CONFIG)
    model, data = sources.open_model("conv_digits", store), sources.open_data("conv_digits", store)
    assert analyses.DIAGNOSIS.find(store, model, data, CONFIG) is None
    seen = carried_out(store, "diagnose", experiment)
    assert {"calibrate", "follow the error", "look at weights and ranges"} <= set(seen)
    found = analyses.DIAGNOSIS.find(store, model, data, CONFIG)
    expected = qlab.diagnose(model, data, CONFIG)
    assert found.faults == expected.faults
    assert found.first.kind == "unmatched_rule"
    assert [r.tensor for r in found.propagation] == [r.tensor for r in expected.propagation]
    again = carried_out(store, "diagnose", experiment)
    assert "follow the error" not in again  # taken from the store

    carried_out(store, "advice", experiment)
    attempts = analyses.ADVICE.find(store, model, data, CONFIG)
    remedies = analyses.distinct([r for f in found.faults for r in f.remedies])
    assert len(attempts.tried) == len(remedies) > 3
    best = attempts.tried[0]
    direct = qlab.evaluate(
        qlab.convert(model, best.remedy.mapping, qlab.calibrate(model, data, mapping=best.remedy.mapping)), data
    )
    assert best.evaluation.accuracy == direct.accuracy
    assert [t.gain for t in attempts.tried] == sorted((t.gain for t in attempts.tried), reverse=True)
    store.close()


def test_stability_is_kept():
    store = Store()
    experiment = Experiment("conv_digits", "conv_digits", qlab.presets["x86"], calibration_samples=128)
    carried_out(store, "stability", experiment)
    model, data = sources.open_model("conv_digits", store), sources.open_data("conv_digits", store, 128)
    found = analyses.STABILITY.find(store, model, data, qlab.presets["x86"])
    expected = qlab.stability(model, data, qlab.presets["x86"])
    assert found.draws == expected.draws
    assert [s.tensor for s in found.spreads] == [s.tensor for s in expected.spreads]
    assert found.enough is not None
    assert analyses.STABILITY.find(store, model, data, qlab.presets["x86"], seed=1) is None  # other draws
    store.close()


def test_data_that_cannot_be_calibrated_on_is_diagnosed(tmp_path):
    store = Store()
    data = qlab.load_dataset("residual_digits")
    x = data.inputs[0].astype(np.float32)
    x[data.calibration_index[70]] = 3e38  # overflows in the first sum
    np.savez(
        tmp_path / "broken.npz", x=x, y=data.targets, calibration_index=data.calibration_index,
        evaluation_index=data.evaluation_index,
    )  # fmt: skip
    how = {"path": str(tmp_path / "broken.npz"), "scale": 1 / 255, "mean": 0.2, "std": 0.02}
    experiment = Experiment("residual_digits", how, qlab.presets["x86"], calibration_samples=512)
    carried_out(store, "diagnose", experiment)
    loaded = sources.open_data(experiment.data, store, 512)
    model = sources.open_model("residual_digits", store)
    first = analyses.DIAGNOSIS.find(store, model, loaded, qlab.presets["x86"]).first
    assert first.kind == "non_finite"
    store.close()


def test_infinities_and_arrays_survive_json():
    model, data = qlab.load_model("residual_digits"), qlab.load_dataset("residual_digits")
    calib = qlab.calibrate(model, data)
    found = qlab.propagate(qlab.convert(model, qlab.presets["x86"], calib), data, samples=64)
    again = from_json(qlab.Propagation, to_json(found))
    assert all(np.array_equal(a.overlay.edges, b.overlay.edges) for a, b in zip(found, again, strict=True))
    assert again.rows[3].own.sqnr == found.rows[3].own.sqnr
    fault = qlab.Fault("saturated", "warning", "t", "t", float("inf"), "s.")
    assert from_json(qlab.Fault, to_json(fault)) == fault
    assert to_json(fault)["value"] == "inf"


@pytest.mark.parametrize("kind", ["diagnose", "advice", "stability"])
def test_they_are_jobs(kind):
    assert KINDS[kind].target == f"qlab.lab.analyses:{kind}_task"
