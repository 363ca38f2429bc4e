"""A range by hand on Distributions: the engine's figures, a run that measures it, the way into the config and out."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qlab
from qlab.config import QConfigMapping, QuantSpec
from qlab.graph.capture import load_model
from qlab.lab.experiment import Experiment
from qlab.lab.run import run
from qlab.lab.store import Store
from qlab.metrics import COMPUTED, write
from qlab.preset import presets
from qlab.quant.error import quantization_error
from qlab.quant.qparams import choose_qparams, with_range
from qlab.ui import by_hand, cache, hand_controls
from qlab.ui.library import DataRef
from qlab.ui.tensors import tensors_of
from tests.jobs_here import carry
from tests.pages.elements import charts, deltas, figures, said

MODEL = "residual_digits"
WEIGHT, ACTIVATION = "layer1.0.conv1.weight", "layer1.0.relu@1"
X86 = presets["x86"]
AFFINE, SYMMETRIC = QuantSpec(), QuantSpec(qscheme="per_tensor_symmetric")
# Weights of one scale, so that a range is the range of the grid.
PLAIN = X86.replace(default=X86.default.replace(weight=AFFINE))


@pytest.fixture(scope="module")
def known():
    return tensors_of(load_model(MODEL))


def held(ends, tensor=WEIGHT):
    return {by_hand.HELD: {(MODEL, tensor): ends}}


@pytest.fixture
def page(open_page):
    def opened(mapping=PLAIN, tensor=WEIGHT, ends=None):
        state = {"lab.mapping": mapping, "lab.tensor": tensor} | (held(ends, tensor) if ends else {})
        at = open_page("distributions", state=state)
        assert not at.exception
        assert not at.error
        return at

    return opened


def spec_of(at):
    return charts(at)[0]


def chosen(at):
    """The chosen bracket: who gives it, and its ends."""
    (found,) = [t for t in spec_of(at)["data"] if t.get("meta") and t["meta"]["chosen"]]
    return found["name"], found["meta"]["low"], found["meta"]["high"]


def tab(at, name):
    at.session_state["dist_tabs"] = name
    return at.run()


def here(at, tensor=WEIGHT):
    return at.session_state[by_hand.HELD].get((MODEL, tensor))


# --- what an end becomes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "spec", "expected"),
    [
        ((-0.2, 0.3), AFFINE, (-0.2, 0.3)),
        ((0.1, 0.3), AFFINE, (0.0, 0.3)),
        ((-0.3, -0.1), AFFINE, (-0.3, 0.0)),
        ((0.0, 0.0), AFFINE, None),
        ((-0.2, 1.0), SYMMETRIC, (-0.2, 0.2)),
        ((-1.0, 0.4), SYMMETRIC, (-0.4, 0.4)),
        ((-0.3, 0.2), SYMMETRIC, (-0.3, 0.3)),
        ((0.5, 1.0), SYMMETRIC, None),
    ],
    ids=["as asked", "above zero", "below zero", "no length", "low moved", "high moved", "both moved", "low at zero"],
)
def test_a_range_holds_zero_and_a_symmetric_one_is_as_long_on_both_sides(asked, spec, expected) -> None:
    assert by_hand.fitted(asked, (-1.0, 1.0), spec) == expected
    if expected is not None:
        QConfigMapping(ranges={"fc.weight": expected})


@pytest.mark.parametrize(("low", "high"), [(-0.451, 0.273), (0.0, 6.13), (-3e-5, 2e-5), (-1200.0, 4000.0)])
def test_the_slider_has_at_least_500_steps_on_round_numbers(low, high) -> None:
    run = hand_controls.track(low, high)
    assert 500 <= (high - low) / run.step <= 1300
    assert run.low <= low
    assert high <= run.high
    assert run.high - high < run.step * 1.001
    assert run.snapped(high + 5) == run.high
    assert run.snapped(run.low + 7.4 * run.step) == pytest.approx(run.low + 7 * run.step)
    assert f"{run.step:.0e}"[0] in "125"


# --- the picture and its figures --------------------------------------------------------------------------------------


def test_without_one_the_observers_range_is_chosen_and_the_handles_stand_at_its_ends(page, known) -> None:
    at = page()
    qp = choose_qparams(known.weights[WEIGHT], AFFINE)
    assert chosen(at)[0] == "min_max"
    slider = at.slider(key="dist_hand_slider")
    assert slider.value == pytest.approx((float(qp.low), float(qp.high)), abs=slider.step)
    assert slider.min <= float(known.weights[WEIGHT].min())
    assert slider.max >= float(known.weights[WEIGHT].max())
    assert not [b for b in at.button if str(b.key).startswith("dist_hand")]


def test_moving_a_handle_gives_the_figures_of_the_engine_beside_the_observers(page, known) -> None:
    at = page()
    slider = at.slider(key="dist_hand_slider")
    slider.set_value((-0.2, slider.value[1])).run()
    assert not at.error
    weight = known.weights[WEIGHT]
    observed = choose_qparams(weight, AFFINE)
    ends = here(at)
    # The end that was not moved is exactly where it was.
    assert ends == (pytest.approx(-0.2), float(observed.high))
    qp = with_range(observed, AFFINE, *ends)
    error, before = quantization_error(weight, qp), quantization_error(weight, observed)
    assert chosen(at) == ("by hand", pytest.approx(float(qp.low)), pytest.approx(float(qp.high)))
    shown = figures(at)
    assert shown["SQNR"] == write("sqnr", error.sqnr)
    assert deltas(at)["SQNR"] == f"{write('sqnr', before.sqnr - error.sqnr)} below min_max"
    assert shown["Clipped"] == write("clipped", error.clipped_share)
    assert deltas(at)["Clipped"] == f"observer {write('clipped', before.clipped_share)}"
    assert shown["Scale"] == write("scale", float(qp.scale))
    assert shown["Round-off"] == write("roundoff_error", error.roundoff / error.noise)
    assert shown["Levels used"] == write("levels", error.levels_used)
    assert {shape["name"] for shape in spec_of(at)["layout"]["shapes"]} == {"clipped below"}
    drawn = {t["name"]: t for t in spec_of(at)["data"]}
    assert "clip" in drawn
    table = at.dataframe[0].value.set_index("Observer")
    assert table.loc["by hand", "SQNR"] == write("sqnr", error.sqnr)
    assert at.session_state["dist_table_hand"]["selection"]["rows"] == [len(table) - 1]


def test_a_range_better_than_the_observers_says_by_how_much(page, known) -> None:
    spec = AFFINE.replace(bits=4)
    mapping = PLAIN.replace(default=PLAIN.default.replace(weight=spec))
    at = page(mapping, ends=(-0.3, 0.27))
    weight = known.weights[WEIGHT]
    observed = choose_qparams(weight, spec)
    gained = quantization_error(weight, with_range(observed, spec, -0.3, 0.27)).sqnr
    gained -= quantization_error(weight, observed).sqnr
    assert gained > 1
    assert deltas(at)["SQNR"] == f"{write('sqnr', gained)} above min_max"


def test_an_end_beyond_zero_stops_there_and_says_so(page, read) -> None:
    at = page()
    slider = at.slider(key="dist_hand_slider")
    slider.set_value((0.1, 0.2)).run()
    assert here(at) == (0.0, 0.2)
    assert "has to hold zero" in read(at, "caption")
    at.slider(key="dist_hand_slider").set_value((0.0, 0.1)).run()
    assert "has to hold zero" not in read(at, "caption")


def test_on_a_symmetric_grid_both_ends_move(page) -> None:
    at = page(X86)
    slider = at.slider(key="dist_hand_slider")
    slider.set_value((slider.value[0], 0.15)).run()
    assert here(at) == (-0.15, 0.15)
    assert at.slider(key="dist_hand_slider").value == (-0.15, 0.15)


def test_exact_ends_can_be_typed_beyond_what_is_drawn(page) -> None:
    at = page(ends=(-0.2, 0.2))
    at.session_state["dist_exact"] = True
    at.run()
    at.number_input(key="dist_hand_low").set_value(-12.5).run()
    assert here(at) == (-12.5, 0.2)
    at.number_input(key="dist_hand_high").set_value(0.123456).run()
    assert here(at) == (-12.5, 0.123456)
    # The picture stays where the values are: the bracket ends in an arrow.
    assert spec_of(at)["layout"]["xaxis"]["range"][0] > -1


def test_another_setting_keeps_the_range_and_another_tensor_has_none(page) -> None:
    at = page(ends=(-0.2, 0.2))
    at.slider(key="dist_bits_weight").set_value(4).run()
    at.selectbox(key="dist_observer").set_value("mse").run()
    assert chosen(at)[0] == "by hand"
    assert "mse" in deltas(at)["SQNR"]
    at.selectbox(key="dist_layer").set_value("fc").run()
    assert chosen(at)[0] == "mse"
    at.selectbox(key="dist_layer").set_value("layer1.0.conv1").run()
    assert here(at) == (-0.2, 0.2)
    assert chosen(at)[0] == "by hand"


def test_an_activation_is_ranged_by_hand_too(page) -> None:
    at = page(tensor=ACTIVATION)
    slider = at.slider(key="dist_hand_slider")
    slider.set_value((0.0, slider.max / 2)).run()
    name, low, high = chosen(at)
    assert (name, low) == ("by hand", 0)
    assert high == pytest.approx(slider.max / 2, rel=1e-3)
    assert any("clipped" in shape["name"] for shape in spec_of(at)["layout"]["shapes"])


@pytest.mark.parametrize(
    ("mapping", "tensor", "model", "words"),
    [
        (presets["dynamic"], ACTIVATION, MODEL, "taken anew at every call"),
        (
            X86.replace(default=X86.default.replace(activation=QuantSpec(qscheme="per_channel_affine"))),
            ACTIVATION, MODEL, "only the range of each channel",
        ),
        (X86, None, "transformer_text", "known without data"),
    ],
    ids=["dynamic", "per channel", "fixed"],
)  # fmt: skip
def test_where_there_is_no_range_to_set_the_page_says_why(open_page, read, mapping, tensor, model, words) -> None:
    if tensor is None:
        tensor = next(e.tensor for e in tensors_of(load_model(model)).entries.values() if e.fixed)
    state = {"lab.mapping": mapping, "lab.tensor": tensor, by_hand.HELD: {(model, tensor): (-0.2, 0.2)}}
    at = open_page("distributions", query={"model": model}, state=state)
    assert not at.error
    assert words in read(at, "caption")
    assert not at.get("slider") or "dist_hand_slider" not in [s.key for s in at.slider]
    assert chosen(at)[0] != "by hand"
    assert not at.get("plotly_chart")[0].proto.selection_mode


def test_a_channel_and_the_ribbon_show_how_each_is_cut(page, read, known) -> None:
    at = tab(page(X86, ends=(-0.2, 0.2)), "Channels")
    weight = known.weights[WEIGHT]
    cut = int((weight.abs().amax((1, 2, 3)) > 0.2).sum())
    assert 0 < cut < len(weight)
    assert f"cuts **{cut} of {len(weight)}** channels" in read(at, "caption")
    ribbon = charts(at)[1]
    assert [t["name"] for t in ribbon["data"] if t["name"].startswith("each is cut to")]
    widest = int(weight.abs().amax((1, 2, 3)).argmax())
    at.selectbox(key="dist_channel").set_value(widest).run()
    spec = X86.default.weight
    qp = with_range(choose_qparams(weight, spec), spec, -0.2, 0.2)
    assert figures(at)["Scale"] == write("scale", float(qp.scale[widest]))


def test_how_it_is_computed_names_the_hand(page, read) -> None:
    at = tab(page(ends=(-0.2, 0.2)), "How it is computed")
    assert "**by hand** picks the range" in read(at, "markdown")
    at = tab(page(X86, ends=(-0.2, 0.2)), "How it is computed")
    assert "Each range is then cut to" in read(at, "markdown")


# --- into the config and out ------------------------------------------------------------------------------------------


def test_keeping_it_puts_it_into_the_config_and_leaves_what_is_tried(page) -> None:
    at = page(ends=(-0.2, 0.25))
    at.slider(key="dist_bits_weight").set_value(6).run()
    at.button(key="dist_hand_keep").click().run()
    assert at.session_state["lab.mapping"] == PLAIN.replace(ranges={WEIGHT: (-0.2, 0.25)})
    assert at.slider(key="dist_bits_weight").value == 6
    assert chosen(at)[0] == "by hand"
    assert at.button(key="dist_hand_keep").disabled
    at.button(key="dist_hand_remove").click().run()
    assert at.session_state["lab.mapping"] == PLAIN
    assert chosen(at)[0] == "min_max"


def test_what_the_config_has_is_what_the_page_starts_with(page, read) -> None:
    at = page(PLAIN.replace(ranges={WEIGHT: (-0.25, 0.25)}))
    assert chosen(at) == ("by hand", pytest.approx(-0.25, abs=0.002), pytest.approx(0.25, abs=0.002))
    assert "in the config" in read(at, "markdown")
    slider = at.slider(key="dist_hand_slider")
    slider.set_value((-0.1, slider.value[1])).run()
    assert here(at) == (pytest.approx(-0.1), 0.25)
    assert at.session_state["lab.mapping"].ranges[WEIGHT] == (-0.25, 0.25)
    assert "config −0.250 … 0.250" in read(at, "markdown")


def test_removing_what_was_only_tried_leaves_the_config(page) -> None:
    mapping = PLAIN.replace(ranges={"fc.weight": (-1.0, 1.0)})
    at = page(mapping, ends=(-0.2, 0.2))
    at.button(key="dist_hand_remove").click().run()
    assert chosen(at)[0] == "min_max"
    assert at.session_state["lab.mapping"] == mapping


def test_a_tensor_that_the_config_leaves_float_can_be_tried_and_not_kept(page) -> None:
    at = page(presets["int8_weight_only"], ACTIVATION, (0.0, 1.0))
    assert chosen(at)[0] == "by hand"
    assert at.button(key="dist_hand_keep").disabled
    assert at.button(key="dist_hand_measure").disabled
    assert "float" in at.button(key="dist_hand_keep").help


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_link_opens_a_tensor_with_its_range(open_page) -> None:
    at = open_page(
        "distributions", query={"tensor": WEIGHT, "low": "-0.2", "high": "0.125"}, state={"lab.mapping": PLAIN}
    )
    assert chosen(at)[0] == "by hand"
    assert here(at) == (-0.2, 0.125)
    (link,) = [code.value for code in at.code if "low=" in code.value]
    assert f"tensor={WEIGHT}" in link
    assert "low=-0.2&high=0.125" in link


@pytest.mark.parametrize("query", [{"low": "x", "high": "1"}, {"low": "0", "high": "0"}, {"high": "nan", "low": "-1"}])
def test_a_link_without_a_range_says_so(open_page, read, query) -> None:
    at = open_page("distributions", query={"tensor": WEIGHT, **query})
    assert "names no range" in read(at, "info")
    assert chosen(at)[0] != "by hand"


# --- measuring --------------------------------------------------------------------------------------------------------


def small(home, name, mapping, **more):
    """A finished run of the config, as Experiment or a sweep leave it."""
    store = Store(home)
    try:
        return run(Experiment(MODEL, MODEL, mapping, name=name, **more), store=store)
    finally:
        store.close()


def test_measuring_runs_the_config_with_this_range_in_a_worker(page, home) -> None:
    at = page(X86, ends=(-0.2, 0.2))
    assert "By hand, simulated" not in figures(at)
    at.button(key="dist_hand_measure").click().run()
    assert at.button(key="dist_hand_measure").disabled
    (job,) = cache.store().list_runs(kind="experiment")
    ended = cache.runner().wait(job.id, 200)
    assert ended.status == "done", ended.error
    assert QConfigMapping.from_dict(ended.spec["mapping"]) == X86.replace(ranges={WEIGHT: (-0.2, 0.2)})
    assert at.session_state["lab.mapping"] == X86
    at.run()
    shown = figures(at)
    assert shown["Float"] == write("accuracy", ended.headline.float_accuracy)
    assert shown["By hand, simulated"] == write("accuracy", ended.headline.accuracy)
    assert any("from float on" in said(text) or "than float" in said(text) for text in at.markdown)


@pytest.mark.parametrize("backend", ["simulated", "integer"])
def test_what_is_in_the_store_stands_beside_it_under_its_own_name(page, home, read, backend) -> None:
    ranged = X86.replace(ranges={WEIGHT: (-0.1, 0.1)})
    with_it, without = small(home, "with", ranged), small(home, "without", "x86", backend=backend)
    at = page(ranged)
    shown = figures(at)
    assert at.button(key="dist_hand_measure").disabled
    assert shown["By hand, simulated"] == write("accuracy", with_it.headline.accuracy)
    assert shown[f"By min_max, {COMPUTED[backend]}"] == write("accuracy", without.headline.accuracy)
    pair = qlab.lab.compared.paired(cache.store(), with_it, without)
    assert qlab.lab.compared.against(pair.comparison, "the range of min_max").words[1:20] in read(at, "markdown")
    assert ("a part of the difference" in read(at, "caption")) == (backend == "integer")


def test_without_a_figure_of_the_observer_one_can_be_had(page, home) -> None:
    ranged = X86.replace(ranges={WEIGHT: (-0.1, 0.1)})
    small(home, "with", ranged)
    at = page(ranged)
    assert [label for label in figures(at) if label.startswith("By ")] == ["By hand, simulated"]
    at.button(key="dist_hand_without").click().run()
    (job,) = [r for r in cache.store().list_runs(kind="experiment") if r.name != "with"]
    assert cache.runner().wait(job.id, 200).status == "done"
    at.run()
    assert "By min_max, simulated" in figures(at)


def test_a_run_that_failed_says_why_and_can_be_tried_again(page, monkeypatch) -> None:
    at = page(X86, ends=(-0.2, 0.2))
    store = cache.store()
    row = {"spec": {}, "spec_hash": "x"}
    (run_id,) = store.create_runs([row], kind="experiment")
    store.start(run_id)
    store.finish(run_id, "failed", error="The data has gone.")
    monkeypatch.setattr("qlab.ui.hand_run.jobs.submit", lambda *_, **__: run_id)
    at.button(key="dist_hand_measure").click().run()
    assert any("The data has gone" in error.value for error in at.error)
    assert not at.button(key="dist_hand_measure").disabled


def test_without_labels_agreement_takes_the_place_of_accuracy(open_page, home, tmp_path) -> None:
    data = qlab.load_dataset(MODEL)
    part = replace(data.evaluation.subset(slice(0, 120)), targets=None).split(40)
    part.save(tmp_path / "plain.npz")
    ranged = X86.replace(ranges={WEIGHT: (-0.1, 0.1)})
    store = Store(home)
    digest = store.add_upload(tmp_path / "plain.npz", kind="data").hash
    carried = carry(store, "experiment", experiment=Experiment(MODEL, f"sha256:{digest}", ranged))
    store.close()
    ref = DataRef(f"sha256:{digest}", "plain.npz", "upload")
    at = open_page("distributions", state={"lab.mapping": ranged, "lab.tensor": WEIGHT})
    at.session_state["lab.data"] = ref
    at.run()
    assert not at.exception
    shown = figures(at)
    assert shown["By hand, agreement"] == write("agreement", carried.headline.agreement)
    assert "Float" not in shown
