"""The Compare page: which runs it takes, what it says of them is what the engine says, and choices last."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

import qlab
from qlab.config import QConfig, QConfigMapping, QuantSpec
from qlab.difference import config_difference
from qlab.edits import Edit
from qlab.lab.compared import paired, verdict
from qlab.lab.store import Store
from qlab.metrics import metric, write
from qlab.preset import presets
from qlab.training.settings import Training
from qlab.ui import cache, compare, compare_columns, compare_layers, compare_pick, compare_table, compare_two, errors
from tests.many_runs import one_run
from tests.pages.elements import charts, said

MODEL = "outlier_mlp"
COARSE = QConfigMapping(
    QConfig(weight=QuantSpec(bits=2, qscheme="per_tensor_symmetric"), activation=QuantSpec(bits=3)),
    by_name={"fc1": None},
)
RUNS = {
    "simulated": (MODEL, "x86", {}),
    "kernels": (MODEL, "x86", {"backend": "integer"}),
    "coarse": (MODEL, COARSE, {}),
    "split": (MODEL, "x86", {"calibration_samples": 100, "seed": 3}),
    "other": ("lstm_text", "dynamic", {}),
}
CHANGED = {"training": Training(epochs=1), "edits": (Edit("fc1", "code", (0, 0), 1),)}


@pytest.fixture(scope="module")
def tried(prepared_home, tmp_path_factory):
    """A home in which these runs are finished, and their ids by name."""
    home = tmp_path_factory.mktemp("compared") / "home"
    shutil.copytree(prepared_home, home)
    ids = {name: one_run(home, model, mapping, name=name, **more).id for name, (model, mapping, more) in RUNS.items()}
    return home, ids


@pytest.fixture
def ids(home, tried):
    shutil.copytree(tried[0], home, dirs_exist_ok=True)
    return tried[1]


@pytest.fixture
def store(home, ids):
    opened = Store(home)
    yield opened
    opened.close()


@pytest.fixture
def compared(open_page, ids):
    """Opens the page with these runs: `compared("simulated", "coarse", baseline="simulated", tab="Layers")`."""

    def go(*names: str, baseline: str | None = None, tab: str | None = None, **state):
        query = {"model": MODEL, "runs": ",".join(ids[name] for name in names)}
        if baseline is not None:
            query["baseline"] = ids[baseline]
        if tab is not None:
            state["compare_tabs"] = tab
        return open_page("compare", query=query, state=state)

    return go


def table(at):
    frame = at.dataframe[-1].value if "Verdict" in at.dataframe[-1].value else at.dataframe[0].value
    return frame.set_index("Run")


def metrics(at) -> dict[str, str]:
    return {m.label: m.value for m in at.main.metric}


def clean(at) -> bool:
    return not at.exception and not at.error


# --- which runs -------------------------------------------------------------------------------------------------------


def test_without_a_choice_the_newest_of_what_is_open_are_compared(open_page, ids) -> None:
    at = open_page("compare", query={"model": MODEL})
    assert list(table(at).index) == ["coarse", "kernels", "simulated"]  # not of another network, not of another split
    assert clean(at)
    at.sidebar.selectbox(key="frame_model").select("lstm_text").run()
    assert list(table(at).index) == ["other"]


def test_a_link_opens_the_same_comparison(compared, ids, read) -> None:
    at = compared("simulated", "coarse", baseline="simulated")
    assert list(table(at).index) == ["simulated", "coarse"]
    assert at.selectbox(key="compare_baseline").value == ids["simulated"]
    wanted = f"runs={ids['simulated']}%2C{ids['coarse']}&baseline={ids['simulated']}"
    assert any(wanted in code.value for code in at.code)
    assert clean(at)


def test_runs_of_a_link_that_are_not_here_are_counted(open_page, ids, store, read) -> None:
    store.delete_runs([ids["coarse"]])
    at = open_page("compare", query={"runs": f"{ids['simulated']},{ids['coarse']},nothere", "baseline": "nothere"})
    assert list(table(at).index) == ["simulated"]
    assert "2 more that were chosen are not here" in read(at, "caption")
    assert at.selectbox(key="compare_baseline").value == compare.FLOAT_ID
    at = open_page("compare", query={"runs": "nothere"})
    assert "None of the runs that were asked for is here" in said(at.info[0])


def test_nothing_run_yet_offers_three_presets_and_shows_them_when_they_are_done(open_page, home) -> None:
    at = open_page("compare", query={"model": MODEL})
    assert "no finished experiment" in said(at.info[0])
    at.button(key="compare_first").click().run()
    sweep = at.session_state["compare.sweep"]
    ended = cache.runner().wait(sweep, 200)
    assert ended.status == "done", ended.error
    at.run()
    assert set(table(at).index) == {"x86", "arm", "w4a8"}
    assert clean(at)


def test_what_is_ticked_is_compared_also_where_a_filter_hides_it(compared, ids) -> None:
    at = compared("simulated", compare_pick=True)
    at.text_input(key="compare_pick_words").set_value("coarse").run()
    picker = at.dataframe[0].value
    assert list(picker["Run"]) == ["coarse"]
    assert list(table(at).index) == ["simulated"]
    assert clean(at)


def test_a_click_in_the_picker_keeps_the_order_and_what_the_table_does_not_show() -> None:
    before, visible = ["hidden", "b", "a"], ["a", "b", "c"]
    assert compare_pick.compared_with(["a", "b", "c"], visible, before) == ["hidden", "b", "a", "c"]
    assert compare_pick.compared_with(["a"], visible, before) == ["hidden", "a"]
    assert compare_pick.compared_with([], visible, before) == ["hidden"]


def test_a_whole_sweep_is_added(compared, ids, store) -> None:
    found = qlab.sweep(MODEL, MODEL, ["arm", "w4a8"], store=store, name="two presets")
    at = compared("simulated", compare_pick=True)
    assert not [b for b in at.button if b.key == "compare_add_sweep"]
    at.selectbox(key="compare_pick_sweep").select(found.id).run()
    at.button(key="compare_add_sweep").click().run()
    assert list(at.session_state["lab.compared"]) == [ids["simulated"], *(run.id for run in found)]
    assert at.button(key="compare_add_sweep").disabled
    at.button(key="compare_none").click().run()
    assert "No run is compared" in said(at.info[0])
    at.button(key="compare_newest").click().run()
    assert set(table(at).index) == {"simulated", "kernels", "coarse", "arm", "w4a8"}
    assert clean(at)


# --- what is said of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [None, "simulated"], ids=["float", "a run"])
def test_rows_say_what_the_paired_comparison_says(compared, ids, store, baseline) -> None:
    at = compared("simulated", "coarse", "kernels", baseline=baseline)
    rows = table(at)
    other = None if baseline is None else store.get_run(ids[baseline])
    for name in ("coarse", "kernels"):
        found = paired(store, store.get_run(ids[name]), other).comparison
        row = rows.loc[name]
        assert row["Against"] == pytest.approx(100 * (found.gained - found.lost) / found.n)
        assert row["p"] == pytest.approx(found.p)
        word = "the same" if not found.changed else "noise" if not found.significant else "worse"
        assert row["Verdict"] == word
    assert rows.loc["coarse", "Verdict"] == "worse"
    assert (rows.loc["simulated", "Verdict"] == "baseline") == (baseline is not None)
    assert clean(at)


def test_runs_on_other_samples_are_not_paired_and_the_row_says_so(compared) -> None:
    at = compared("simulated", "split", baseline="simulated")
    row = table(at).loc["split"]
    assert row["Verdict"] == "not paired"
    assert row.isna()["Against"]
    assert row.isna()["p"]
    assert clean(at)


def test_figures_carry_the_name_of_what_computed_them(compared, ids, store) -> None:
    at = compared("simulated", "kernels", **{"lab.picked": ids["kernels"]})
    assert list(table(at)["Computed"]) == ["simulated", "integer"]
    measured = store.get_run(ids["kernels"]).headline
    assert metrics(at)["Accuracy, on integer kernels"] == write("accuracy", measured.accuracy)
    assert "Accuracy, simulated" not in metrics(at)
    at = compared("simulated", "kernels", **{"lab.picked": ids["simulated"]})
    assert metrics(at)["Accuracy, simulated"] == write("accuracy", store.get_run(ids["simulated"]).headline.accuracy)
    chart = charts(at)[0]
    assert symbols(chart) == {
        ids["simulated"]: legend(chart)["simulated"],
        ids["kernels"]: legend(chart)["integer kernels"],
    }
    assert legend(chart)["simulated"] != legend(chart)["integer kernels"]


def marks(trace) -> set[str]:
    """The symbols of a trace."""
    found = trace.get("marker", {}).get("symbol", ())
    return {found} if isinstance(found, str) else set(found)


def legend(chart) -> dict[str, str]:
    """Name of a trace -> its symbol."""
    return {trace["name"]: min(marks(trace)) for trace in chart["data"] if len(marks(trace)) == 1}


def symbols(chart) -> dict[str, str]:
    """Run -> the symbol it is drawn with."""
    found = {run_id: marks(trace) for trace in chart["data"] for run_id in trace.get("customdata") or ()}
    return {run_id: min(symbol) for run_id, symbol in found.items() if run_id != "float" and len(symbol) == 1}


def test_picked_run_is_told_in_words_and_figures(compared, ids, store, read) -> None:
    at = compared("simulated", "coarse", baseline="simulated", **{"lab.picked": ids["coarse"]})
    found = paired(store, store.get_run(ids["coarse"]), store.get_run(ids["simulated"])).comparison
    delta = metric("accuracy").delta((found.gained - found.lost) / found.n)
    assert metrics(at)["Against simulated"] == delta
    assert errors.escape(verdict(found, "simulated")[1:]) in read(at, "markdown")


def test_without_labels_agreement_takes_the_place_of_accuracy(open_page, home, tmp_path) -> None:
    data = qlab.load_dataset(MODEL).evaluation.subset(slice(0, 120))
    replace(data, targets=None).split(40).save(tmp_path / "unlabelled.npz")
    store = Store(home)
    run = qlab.run(qlab.Experiment(MODEL, str(tmp_path / "unlabelled.npz"), COARSE, name="blind"), store=store)
    store.close()
    at = open_page("compare", query={"runs": run.id})
    assert metrics(at)["Agreement, simulated"] == write("agreement", run.headline.agreement)
    assert table(at).loc["blind", "Verdict"].endswith(("changed", "the same"))
    chart = charts(at)[0]
    assert symbols(chart).keys() == {run.id}
    assert "Agreement" in chart["layout"]["yaxis"]["title"]["text"]
    assert clean(at)


def test_columns_without_content_make_way(compared, ids) -> None:
    from qlab.ui import history

    compared("simulated", "coarse")
    known = history.experiments()
    shown = compare.Compared(known, tuple(known.runs), chosen=True)
    assert compare_table.filled(["Accuracy", "Latency", "Stopped early", "p"], shown) == ["Accuracy", "p"]


def test_before_a_click_the_best_run_is_picked(compared, ids, store) -> None:
    at = compared("coarse", "simulated")
    assert f"**{errors.escape('simulated')}**" in [said(m) for m in at.main.markdown]
    at.button(key="compare_make_baseline").click().run()
    assert at.session_state["lab.baseline"] == ids["simulated"]
    assert table(at).loc["simulated", "Verdict"] == "baseline"
    assert at.button(key="compare_make_baseline").disabled
    assert clean(at)


def test_config_of_the_picked_run_becomes_the_current_one(compared, ids) -> None:
    at = compared("coarse", "simulated", **{"lab.picked": ids["coarse"]})
    at.button(key="compare_use").click().run()
    assert at.session_state["lab.mapping"] == COARSE
    assert at.button(key="compare_use").disabled
    at.button(key="compare_open").click().run()
    assert at.session_state["lab.run"] == ids["coarse"]
    assert at.title[0].value == "What does this configuration cost?"


def test_columns_and_baseline_are_there_after_a_walk(compared, ids) -> None:
    at = compared("simulated", "coarse", baseline="simulated")
    at.multiselect(key="compare_columns").set_value(["Agreement", "Weight scheme"]).run()
    at.switch_page("pages/lab/start.py").run()
    at.switch_page("pages/lab/compare.py").run()
    assert at.multiselect(key="compare_columns").value == ["Agreement", "Weight scheme"]
    assert at.selectbox(key="compare_baseline").value == ids["simulated"]
    assert [name for name in at.dataframe[-1].proto.column_order if name in ("Agreement", "Weight scheme", "p")] == [
        "Agreement", "Weight scheme",
    ]  # fmt: skip
    assert clean(at)


def test_every_column_has_a_help_and_a_width_that_shows_its_heading() -> None:
    for name, column in compare_columns.columns("float", None).items():
        assert column.config["help"], name
        label = column.config["label"] or name
        assert column.config["width"] >= 6.4 * len(label) + 14 or not label, name


# --- two configs ------------------------------------------------------------------------------------------------------


def test_two_runs_are_told_apart_in_words_and_by_field(compared, ids, read) -> None:
    at = compared("simulated", "coarse", baseline="simulated", tab="Two configs", **{"lab.picked": ids["coarse"]})
    assert at.selectbox(key="compare_a").value == ids["simulated"]
    assert at.selectbox(key="compare_b").value == ids["coarse"]
    found = config_difference(presets["x86"], COARSE)
    assert errors.escape(found.words) in read(at, "markdown")
    fields = next(d.value for d in at.dataframe if "Field" in d.value)
    assert len(fields) == len(found.rows)
    assert list(fields["simulated"]) == [row.a for row in found.rows]
    assert clean(at)


def test_settings_beside_the_config_are_told_too(store, ids) -> None:
    a, b = store.get_run(ids["simulated"]), store.get_run(ids["kernels"])
    assert compare_two.other_settings(a, b) == [("evaluated", "simulated", "on integer kernels")]
    split = {name: (x, y) for name, x, y in compare_two.other_settings(a, store.get_run(ids["split"]))}
    assert split["calibration samples"] == ("as the data says", "100")
    assert split["seed"] == ("0", "3")
    assert compare_two.other_settings(a, a) == []


def test_flips_between_two_runs_are_drawn(compared, ids, store, read) -> None:
    at = compared("simulated", "coarse", baseline="simulated", tab="Two configs", **{"lab.picked": ids["coarse"]})
    found = paired(store, store.get_run(ids["coarse"]), store.get_run(ids["simulated"])).comparison
    assert f"**Lost: simulated was right, coarse is wrong** – {found.lost:,}" in read(at, "markdown")


def test_two_runs_that_cannot_be_paired_say_why(compared, ids, read) -> None:
    at = compared("simulated", "other", baseline="simulated", tab="Two configs", **{"lab.picked": ids["other"]})
    assert "only runs on the same samples" in read(at, "info")
    assert "no tensor in common" in read(at, "info")
    assert clean(at)


def test_every_kind_of_tensor_is_drawn_under_both_configs(compared, ids) -> None:
    at = compared("simulated", "coarse", baseline="simulated", tab="Two configs", **{"lab.picked": ids["coarse"]})
    box = at.selectbox(key="compare_tensor")
    assert len(box.options) > 3
    for name in box.options:
        at.selectbox(key="compare_tensor").select(name).run()
        assert clean(at), name
        assert len(at.get("plotly_chart")) == 2, name


@pytest.fixture
def trained(home, ids):
    """The id of a run that was trained and then edited, beside the others."""
    ids["trained"] = one_run(home, MODEL, "x86", **CHANGED).id
    yield ids["trained"]
    del ids["trained"]


def test_a_trained_run_is_told_apart_from_its_untrained_twin(compared, ids, trained, read) -> None:
    at = compared("simulated", "trained", baseline="simulated", **{"lab.picked": trained})
    rows = at.dataframe[-1].value
    assert sorted(rows["Changes"]) == ["", "trained 1 epoch · 1 number edited"]
    assert "Changes" in at.dataframe[-1].proto.column_order
    assert "without what was done after converting (trained 1 epoch" in at.button(key="compare_use").help
    twins = compared("simulated", "trained", baseline="simulated", tab="Two configs", **{"lab.picked": trained})
    assert "training none → 1 epoch; numbers edited by hand 0 → 1" in read(twins, "markdown")
    # What is drawn of a tensor knows nothing of the training, and says so.
    names = {trace.get("name") or "" for trace in charts(twins)[-1]["data"]}
    assert any("config alone" in name for name in names), names
    assert "without what was done after that (trained 1 epoch" in read(twins, "caption")
    assert clean(twins)


def test_the_training_of_a_run_is_opened(compared, ids, trained) -> None:
    at = compared("simulated", "trained", **{"lab.picked": ids["simulated"]})
    assert "compare_training" not in {button.key for button in at.button}
    at = compared("simulated", "trained", **{"lab.picked": trained})
    at.button(key="compare_training").click().run()
    assert at.title[0].value == "What does training with fake quantization win back?"
    assert at.session_state["training.settings"] == Training(epochs=1)
    assert at.session_state["lab.mapping"] == presets["x86"]
    assert clean(at)


# --- layers and share -------------------------------------------------------------------------------------------------


def test_layers_are_a_heatmap_over_the_runs_of_one_network(compared, ids, read) -> None:
    at = compared("simulated", "kernels", "other", tab="Layers", **{"lab.picked": ids["kernels"]})
    chart = charts(at)[1]
    assert chart["data"][0]["type"] == "heatmap"
    text = json.dumps(chart, ensure_ascii=False)
    assert "simulated · outlier_mlp · simulated" in text
    assert "kernels · outlier_mlp · integer" in text
    assert "1 run of other networks is left out" in read(at, "caption")
    assert clean(at)


def test_more_runs_than_fit_leave_the_best_and_the_picked(compared, ids, monkeypatch, read) -> None:
    monkeypatch.setattr(compare_layers, "MOST", 1)
    at = compared("simulated", "kernels", "coarse", tab="Layers", **{"lab.picked": ids["coarse"]})
    columns = charts(at)[1]["layout"]["xaxis"]["ticktext"]
    assert len(columns) == 2
    assert "coarse" in columns[1]
    assert "the best 1 of 3 and the one that is picked are shown" in read(at, "caption")
    assert clean(at)


def test_files_to_take_away_are_offered(compared) -> None:
    at = compared("simulated", "coarse", tab="Share")
    assert len(at.get("download_button")) == 4
    assert clean(at)


# --- latency ----------------------------------------------------------------------------------------------------------


def test_latency_is_shown_where_it_was_measured(compared, ids, store, read) -> None:
    at = compared("simulated", "coarse")
    at.segmented_control(key="compare_cost").set_value("latency").run()
    assert "None of these runs has been timed" in read(at, "info")
    at.button(key="compare_measure").click().run()
    job = at.session_state["compare.latency"]
    ended = cache.runner().wait(job, 200)
    assert ended.status == "done", ended.error
    at.run()
    timed = {name: store.get_run(ids[name]).headline.latency for name in ("simulated", "coarse")}
    assert table(at).loc["coarse", "Latency"] == pytest.approx(1e3 * timed["coarse"])
    assert metrics(at)["Latency"] == write("latency", timed["simulated"])
    chart = charts(at)[0]
    assert "Latency" in chart["layout"]["xaxis"]["title"]["text"]
    assert clean(at)


def test_a_run_that_was_timed_another_day_is_said(compared, ids, store, read) -> None:
    store.note_latency(ids["simulated"], 0.001, 1)
    at = compared("simulated", "coarse", **{"compare.cost": "latency"})
    said = read(at, "caption")
    assert "1 of 2 have not been timed" in said
    assert "not all were timed together" in said
    assert not at.button(key="compare_measure").disabled
