"""The Runtime page: it shows what the job measured, says what differs by default, and never another config's report."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qlab
from qlab.lab.experiment import Experiment
from qlab.lab.inspect import find_runtime_report
from qlab.lab.store import Store
from qlab.metrics import percent, write
from qlab.preset import presets
from qlab.runtime import measure
from qlab.runtime import report as reports
from qlab.runtime.why import why_not_faster
from qlab.ui import errors, runtime
from tests.jobs_here import carry
from tests.pages.elements import deltas, figures, said

MODEL = "conv_digits"
BATCH = 8
THREADS = 1  # torch with more would stall where the machine is busy


def measured(store: Store, preset: str):
    """What the job stores, carried out here."""
    carry(store, "runtime", experiment=Experiment(MODEL, MODEL, preset), batch=BATCH, threads=THREADS)
    model, data = qlab.load_model(MODEL), qlab.load_dataset(MODEL)
    return find_runtime_report(store, model, data, presets[preset], batch=BATCH, threads=THREADS)


@pytest.fixture(scope="module", autouse=True)
def known(prepared_home):
    """A report on x86 and one on dynamic stand in the store from here on."""
    store = Store(prepared_home)
    patch = pytest.MonkeyPatch()
    patch.setitem(measure.runtime_report.__kwdefaults__, "budget", 0.05)
    try:
        yield {name: measured(store, name) for name in ("x86", "dynamic")}
    finally:
        patch.undo()
        store.close()


@pytest.fixture
def page(open_under):
    def opened(preset="x86", **query):
        return open_under("runtime", presets[preset], MODEL, batch=str(BATCH), threads=str(THREADS), **query)

    return opened


def tab(at, name):
    at.session_state["runtime_tabs"] = name
    return at.run()


def test_the_figures_are_those_of_the_report(page, known) -> None:
    at, report = page(), known["x86"]
    assert not at.error
    shown, ran = figures(at), report.times.executed
    kinds = [kind for _, kind in report.kernels(ran)]
    assert shown["Layers on integers"] == f"{kinds.count('integer')} of {len(kinds)}" == "5 of 5"
    assert deltas(at)["Layers on integers"] == f"{percent(ran.share('integer'))} of the time"
    assert shown["Conversions"] == str(len(ran.boundaries))
    latency = report.times.timing.latency(reports.INTEGER)
    assert shown["Integer latency"] == write("latency", latency.median)
    assert shown["Against float"] == f"{report.times.timing.ratio(reports.FLOAT, reports.INTEGER)[1]:.2f} ×"
    assert shown["Off the simulation"] == write("steps", report.numbers.parity.output_largest)
    assert shown["Integer accuracy"] == write("accuracy", report.numbers.accuracies.integer.accuracy)


def test_another_config_shows_its_own_report(page, known) -> None:
    at, report = page("dynamic"), known["dynamic"]
    shown = figures(at)
    assert shown["Layers on integers"] == "1 of 5"
    assert shown["Integer latency"] == write("latency", report.times.timing.latency(reports.INTEGER).median)
    assert "steps" not in shown["Off the simulation"]


def test_what_the_defaults_do_is_told_and_can_be_looked_at(page, known) -> None:
    report = known["x86"]
    if report.numbers.defaults is None:
        pytest.skip("on this CPU the runtime's defaults compute what is simulated")
    at = page()
    text = "\n".join([*(said(w) for w in at.warning), *(said(c) for c in at.caption)])
    assert f"off by up to {write('steps', report.numbers.defaults.output_largest)}" in text
    at = page(opened="defaults")
    shown = figures(at)
    assert shown["Off the simulation"] == write("steps", report.numbers.defaults.output_largest)
    assert shown["Integer latency"] == write("latency", report.times.timing.latency(reports.DEFAULTS).median)
    # accuracy was measured as simulated, so it does not stand under the other name
    assert "Integer accuracy" not in shown


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Op by op", None),
        ("Boundaries", "Conversions: "),
        ("Simulated against integer", "Integer and simulated name another class for"),
        ("Accumulator headroom", "as a share of 16 bits"),
        ("Latency", "in ONNX Runtime."),
        ("Size", "The ONNX file takes"),
        ("This machine", "logical cores"),
    ],
)
@pytest.mark.parametrize("preset", ["x86", "dynamic"])
def test_each_tab_is_drawn_when_it_is_opened(page, known, name, words, preset) -> None:
    at = tab(page(preset), name)
    assert not at.exception
    assert not at.error
    text = "\n".join([*(said(m) for m in at.markdown), *(said(i) for i in at.info)])
    if preset == "dynamic" and name == "Accumulator headroom":
        words = "no accumulator to fill"
    if preset == "dynamic" and name == "Boundaries":
        words = "1 integer op takes float and gives float: DynamicQuantizeMatMul"
    assert words is None or words in text
    if name == "Op by op":
        frame = at.dataframe[0].value
        assert list(frame["Op"]) == [o.op for o in known[preset].times.executed.ops]
    if name == "Boundaries" and preset == "x86":
        assert len(at.dataframe[0].value) == len(known[preset].times.executed.boundaries)
    if name == "This machine":
        assert all(entry in text for entry in known[preset].entries)


def test_the_float_graph_stands_beside_it(page, known) -> None:
    at = page()
    before = at.get("plotly_chart")[0].proto.spec
    at.segmented_control(key="runtime_graph").set_value("float").run()
    assert at.get("plotly_chart")[0].proto.spec != before
    assert any(f"{len(known['x86'].times.reference.ops)} ops in order" in said(c) for c in at.caption)


def test_a_first_visit_starts_the_job_and_shows_nothing_of_another_config(page, asked) -> None:
    at = page("int8_weight_only")
    ((kind, arguments),) = asked
    assert kind == "runtime"
    assert arguments["experiment"].resolved_mapping == presets["int8_weight_only"]
    assert (arguments["batch"], arguments["threads"]) == (BATCH, THREADS)
    assert not at.metric
    assert any("has not run on this machine" in said(c) for c in at.caption)
    at.run()
    assert len(asked) == 1


def test_another_batch_is_measured_at_once(page, asked) -> None:
    at = page()
    assert not asked
    at.segmented_control(key="runtime_batch").set_value(1).run()
    assert [a["batch"] for _, a in asked] == [1]
    assert not at.metric
    at.segmented_control(key="runtime_batch").set_value(BATCH).run()
    assert figures(at)
    at.button(key="runtime_again").click().run()
    assert asked[-1][1]["again"] is True
    assert not at.metric


def test_a_network_that_cannot_run_says_which_op_stops_it(page, known, monkeypatch) -> None:
    blocked = replace(
        known["x86"], numbers=None, times=None, blocked="layer gru is a dynamic GRU: ONNX has no form.", detail="why"
    )
    monkeypatch.setattr(runtime, "known", lambda _model: blocked)
    at = page()
    assert "dynamic GRU" in at.error[0].value
    assert not at.metric


def test_a_busy_machine_is_told(page, known, monkeypatch) -> None:
    busy = replace(known["x86"], times=replace(known["x86"].times, busy=0.9))
    monkeypatch.setattr(runtime, "known", lambda _model: busy)
    assert any("90.0 % of this machine" in w.value for w in page().warning)
    quiet = replace(known["x86"], times=replace(known["x86"].times, busy=0.01))
    monkeypatch.setattr(runtime, "known", lambda _model: quiet)
    assert not any("of this machine when" in w.value for w in page().warning)


@pytest.mark.parametrize(("factor", "told"), [(2.0, True), (0.5, False)], ids=["slower", "faster"])
@pytest.mark.parametrize("preset", ["x86", "dynamic"])
def test_why_integer_is_slower_stands_above_the_tabs(page, known, monkeypatch, preset, factor, told) -> None:
    """The times of a machine on which integer takes twice the time of float, or half of it."""
    times = known[preset].times
    float_took = {t.batch: t.seconds[reports.FLOAT] for t in times.timings}
    timings = tuple(
        replace(t, seconds={**t.seconds, reports.INTEGER: tuple(factor * s for s in float_took[t.batch])})
        for t in times.timings
    )
    report = replace(known[preset], times=replace(times, timings=timings))
    monkeypatch.setattr(runtime, "measured", lambda model: report)
    at = page(preset)
    assert not at.exception
    lines = [said(m) for m in at.markdown if said(m).startswith(("**Why slower.**", "**Slower**"))]
    assert len(lines) == told
    reasons = why_not_faster(report)
    if reasons:
        assert lines[0].startswith(f"**Why slower.** {errors.escape(reasons[0])}")
        assert lines[0].endswith(f"More under Latency ({len(reasons) - 1}).") == (len(reasons) > 1)
