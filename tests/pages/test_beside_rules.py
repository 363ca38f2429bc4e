"""What a config does beside its rules: the editor on Experiment, and the pages that look behind the network."""

from __future__ import annotations

import pytest
import torch
from streamlit.testing.v1 import AppTest

import qlab
from qlab.config import QConfigMapping
from qlab.conversion import convert
from qlab.graph.equalize import equalizable, equalized
from qlab.lab.experiment import Experiment
from qlab.lab.export import find_exports
from qlab.lab.inspect import find_runtime_report
from qlab.lab.run import find_prepared, prepare, run
from qlab.lab.store import Store
from qlab.lab.templates import has_template
from qlab.metrics import MINUS, write
from qlab.preset import presets
from qlab.quant.error import quantization_error
from qlab.quant.qparams import choose_qparams, with_range
from qlab.runtime import measure
from qlab.runtime.kernel_codes import kernel_trace, open_codes
from qlab.runtime.steps import explain_element
from qlab.ui import config_extras
from qlab.ui.trial import tensors
from tests.jobs_here import carry
from tests.pages.elements import charts, figures, said

MODEL = "conv_digits"
X86 = presets["x86"]
PER_TENSOR = X86.replace(default=X86.default.replace(weight=qlab.QuantSpec(qscheme="per_tensor_symmetric")))
RANGES = {"block2.conv.weight": (-0.2, 0.2), "block3.conv.weight": (-0.3, 0.3)}
CHANGED = PER_TENSOR.replace(equalize=True, correct_bias=True, ranges={"block2.conv.weight": (-0.25, 0.25)})


# --- the editor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(config_extras.HELP))
def test_a_switch_changes_the_config_and_says_its_effect(open_page, name) -> None:
    at = open_page("experiment", state={"lab.mapping": PER_TENSOR.replace(ranges=RANGES)})
    toggle = at.toggle(key=f"exp_{name}")
    assert toggle.help == config_extras.HELP[name]
    toggle.set_value(True).run()
    assert at.session_state["lab.mapping"] == PER_TENSOR.replace(ranges=RANGES, **{name: True})
    # What else is changed in the editor leaves it on.
    at.slider(key="exp_w_bits").set_value(5).run()
    assert getattr(at.session_state["lab.mapping"], name)
    assert at.session_state["lab.mapping"].ranges == RANGES
    at.toggle(key=f"exp_{name}").set_value(False).run()
    assert not getattr(at.session_state["lab.mapping"], name)
    at.pills(key="exp_preset").set_value("x86").run()
    assert at.session_state["lab.mapping"] == X86


def test_what_equalising_can_do_is_said(open_page, read) -> None:
    state = {"lab.mapping": PER_TENSOR.replace(equalize=True)}
    pairs = len(list(equalizable(qlab.load_model(MODEL))))
    assert f"{pairs} pairs of layers" in read(open_page("experiment", query={"model": MODEL}, state=state), "caption")
    at = open_page("experiment", query={"model": "transformer_text"}, state=state)
    assert config_extras.NO_PAIR in read(at, "caption")
    assert config_extras.PER_CHANNEL not in read(at, "caption")


@pytest.mark.parametrize(
    ("mapping", "pairs", "said"),
    [
        (X86.replace(equalize=True), 0, [config_extras.NO_PAIR]),
        (X86.replace(equalize=True), 1, [f"1 pair of layers can be equalised. {config_extras.PER_CHANNEL}"]),
        (PER_TENSOR.replace(equalize=True), 2, ["2 pairs of layers can be equalised."]),
        (X86.replace(equalize=True), None, []),
        (X86, 0, []),
        (X86.replace(correct_bias=True), 0, []),
        (QConfigMapping(correct_bias=True), 3, [config_extras.NO_WEIGHTS]),
    ],
    ids=["no pair", "per channel", "per tensor", "no network", "off", "biases", "float"],
)
def test_remarks(mapping, pairs, said) -> None:
    assert config_extras.remarks(mapping, pairs) == said


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ({"deleted_rows": [0]}, {"block3.conv.weight": (-0.3, 0.3)}),
        ({"edited_rows": {1: {"low": -1.0}}}, RANGES | {"block3.conv.weight": (-1.0, 0.3)}),
        ({"edited_rows": {"0": {"high": 2.5, "low": None}}}, RANGES | {"block2.conv.weight": (-0.2, 2.5)}),
        ({"edited_rows": {0: {"low": -9.0}}, "deleted_rows": [0, 1]}, {}),
        ({}, RANGES),
    ],
    ids=["deleted", "low", "high", "all", "nothing"],
)
def test_edits_of_the_table_of_ranges(edits, expected) -> None:
    assert config_extras.edited(RANGES, edits) == expected


def test_ranges_are_listed_and_one_that_is_of_no_tensor_is_told(open_page, read) -> None:
    at = open_page("experiment", query={"model": MODEL}, state={"lab.mapping": X86.replace(ranges=RANGES)})
    shown = at.data_editor[-1].value
    assert [tuple(row) for row in shown.itertuples(index=False)] == [(n, *ends) for n, ends in RANGES.items()]
    assert not at.warning
    at.session_state["lab.mapping"] = X86.replace(ranges={**RANGES, "no.such": (0.0, 1.0)})
    at.run()
    assert "no tensor no.such" in said(at.warning[0])
    at.session_state["lab.mapping"] = X86
    at.run()
    assert "Ranges set by hand" not in read(at, "markdown")
    assert not at.error


def test_an_edit_reaches_the_config_and_one_that_cannot_be_says_why() -> None:
    def script():
        import streamlit as st

        from qlab.ui import config_extras

        if st.session_state.get("edits"):
            config_extras._edit("edits")
        config_extras.ranges(None)

    at = AppTest.from_function(script, default_timeout=60)
    at.session_state["lab.mapping"] = X86.replace(ranges=RANGES)
    at.session_state["edits"] = {"edited_rows": {0: {"low": -0.5}}, "deleted_rows": [1]}
    at.run()
    assert at.session_state["lab.mapping"].ranges == {"block2.conv.weight": (-0.5, 0.2)}
    at.session_state["edits"] = {"edited_rows": {0: {"low": 0.1}}}
    at.run()
    assert "zero lies on every grid" in at.error[0].value
    assert at.session_state["lab.mapping"].ranges == {"block2.conv.weight": (-0.5, 0.2)}


# --- the pages behind the network -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def known(prepared_home):
    """Under the changed config: a calibration, files, a runtime report and two runs. Gives what convert makes of it."""
    store, patch = Store(prepared_home), pytest.MonkeyPatch()
    patch.setitem(measure.runtime_report.__kwdefaults__, "budget", 0.05)
    asked = Experiment(MODEL, MODEL, CHANGED, name="changed")
    try:
        prepare(MODEL, MODEL, mapping=CHANGED, store=store)
        carry(store, "export", experiment=asked)
        carry(store, "runtime", experiment=asked, batch=8, threads=1)
        runs = [run(e, store=store).id for e in (Experiment(MODEL, MODEL, PER_TENSOR, name="plain"), asked)]
        model, data = qlab.load_model(MODEL), qlab.load_dataset(MODEL)
        found = find_prepared(store, model, data, mapping=CHANGED)
        qmodel = convert(model, CHANGED, found.calibration)
        assert has_template(store, qmodel.model)
        yield {
            "qmodel": qmodel,
            "runs": runs,
            "report": find_runtime_report(store, model, data, CHANGED, batch=8, threads=1),
            "files": find_exports(store, model, data, CHANGED),
        }
    finally:
        patch.undo()
        store.close()


@pytest.fixture
def page(open_under):
    def opened(name, **query):
        at = open_under(name, CHANGED, MODEL, **query)
        assert not at.error
        return at

    return opened


def sample(i):
    return tuple(torch.from_numpy(x) for x in qlab.load_dataset(MODEL).evaluation.example(i))


def test_steps_takes_the_network_behind_apart_on_the_kernel(page, known) -> None:
    at = page("steps", layer="block3.conv", sample="7", at="0.4.2.3")
    qmodel, x, place = known["qmodel"], sample(7), (0, 4, 2, 3)
    assert qmodel.model.content_hash not in {qmodel.reference.content_hash, qlab.load_model(MODEL).content_hash}
    kernel = kernel_trace(qmodel, "block3.conv", x, open_codes(qmodel)(*x))
    shown = figures(at)
    assert int(shown["Integer kernel"].replace(MINUS, "-")) == int(kernel.codes[place])
    steps = explain_element(qmodel, "block3.conv", x, place)
    assert int(shown["By hand, on integers"].replace(MINUS, "-")) == steps.code
    assert float(shown["Float"].replace(MINUS, "-")) == pytest.approx(steps.float_value, rel=1e-4)
    at.button(key="steps_disagree").click().run()
    assert not at.error


def test_steps_exports_by_itself_where_the_graph_of_the_job_is_gone(page, known, home, monkeypatch) -> None:
    monkeypatch.setattr("qlab.lab.templates.has_template", lambda *_: False)
    at = page("steps", layer="block3.conv", sample="7", at="0.4.2.3")
    assert "Integer kernel" in figures(at)
    assert figures(at)["Integer kernel"] != "–"


def test_runtime_shows_the_report_of_the_network_behind(page, known) -> None:
    report = known["report"]
    assert report.times is not None
    at = page("runtime", batch="8", threads="1")
    assert figures(at)["Integer accuracy"] == write("accuracy", report.numbers.accuracies.integer.accuracy)
    assert report.numbers.accuracies.simulated.accuracy == pytest.approx(
        report.numbers.accuracies.integer.accuracy, abs=0.01
    )


def test_export_offers_files_that_compute_the_network_behind(page, known, read) -> None:
    import onnxruntime

    at = page("export")
    files, qmodel = known["files"], known["qmodel"]
    assert figures(at)["ONNX file"] == write("size", files.size.total)
    x = sample(3)
    (from_file,) = onnxruntime.InferenceSession(str(files.onnx.path)).run(None, {qmodel.inputs[0].name: x[0].numpy()})
    plain = convert(
        qlab.load_model(MODEL), PER_TENSOR, qlab.calibrate(qlab.load_model(MODEL), qlab.load_dataset(MODEL))
    )
    ours = qmodel(*x)
    assert (torch.from_numpy(from_file) - ours).abs().max() < 0.5 * (plain(*x) - ours).abs().max()
    for name in ("torchao script", "ONNX Runtime script"):
        at.session_state["export_tabs"] = name
        at.run()
        assert not at.error
        assert "equalised" in str([e.value for kind in ("markdown", "code", "caption") for e in at.get(kind)])


def test_compare_draws_each_runs_own_weights_and_ranges(open_page, known, read) -> None:
    plain, changed = known["runs"]
    query = {"model": MODEL, "runs": f"{plain},{changed}", "baseline": plain}
    at = open_page("compare", query=query, state={"compare_tabs": "Two configs", "lab.picked": changed})
    assert not at.exception
    assert "equalisation of adjacent layers off → on" in read(at, "markdown")
    at.selectbox(key="compare_tensor").select("block2.conv.weight").run()
    assert not at.error
    assert "weights of its own" in read(at, "caption")
    assert "sets its range by hand" in read(at, "caption")
    chart = charts(at)[-1]
    drawn = [(t["meta"]["low"], t["meta"]["high"]) for t in chart["data"] if "low" in (t.get("meta") or {})]
    spec, model = PER_TENSOR.default.weight, qlab.load_model(MODEL)
    before = choose_qparams(tensors(model).weights["block2.conv.weight"], spec)
    after = with_range(choose_qparams(tensors(equalized(model)).weights["block2.conv.weight"], spec), spec, -0.25, 0.25)
    assert drawn == [pytest.approx((float(qp.low), float(qp.high))) for qp in (before, after)]


def test_distributions_shows_the_weights_that_are_put_on_grids(open_page) -> None:
    at = open_page(
        "distributions", query={"model": MODEL}, state={"lab.mapping": CHANGED, "lab.tensor": "block2.conv.weight"}
    )
    assert not at.error
    weight = tensors(equalized(qlab.load_model(MODEL))).weights["block2.conv.weight"]
    spec = PER_TENSOR.default.weight
    qp = with_range(choose_qparams(weight, spec), spec, -0.25, 0.25)
    assert figures(at)["SQNR"] == write("sqnr", quantization_error(weight, qp).sqnr)
