"""The Runs page: everything that was run is found, named, compared, deleted and brought back."""

from __future__ import annotations

import shutil

import pytest

from qlab.lab.experiment import Experiment
from qlab.lab.store import Store
from qlab.ui import history, run_list
from qlab.ui.history import ANY, Filter
from tests.many_runs import fill, one_run
from tests.pages.elements import said


@pytest.fixture
def store(home, request):
    if "three" in request.fixturenames:
        request.getfixturevalue("three")  # before the database is opened
    opened = Store(home)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def tried(prepared_home, tmp_path_factory):
    """A home with two runs of one network and one of another, with names, tags and notes; their ids, newest first."""
    home = tmp_path_factory.mktemp("tried") / "home"
    shutil.copytree(prepared_home, home)
    ids = [
        one_run(home, *what).id for what in (("outlier_mlp", "x86"), ("outlier_mlp", "w4a8"), ("lstm_text", "float"))
    ]
    store = Store(home)
    store.annotate(ids[0], name="first", tags=["good", "kept"])
    store.annotate(ids[1], name="four bits", notes="too coarse for the Head")
    store.annotate(ids[2], name="text", tags=["good"])
    store.close()
    return home, ids[::-1]


@pytest.fixture
def three(home, tried):
    """The ids of these runs, which are in the store of the page."""
    shutil.copytree(tried[0], home, dirs_exist_ok=True)
    return tried[1]


def select(at, rows: list[int]):
    """Chooses rows of the table, as a click does."""
    ids = list(at.dataframe[0].value.index)
    at.session_state["runs.chosen"] = tuple(ids[row] for row in rows)
    return at.run()


def shown(at) -> list[str]:
    return list(at.dataframe[0].value["Run"])


def button(at, key: str):
    return at.button(key=key)


# --- the filter -------------------------------------------------------------------------------------------------------

SEARCHES = {
    "word of a name": "four", "two words": "text good", "tag": "kept", "notes, another case": "HEAD",
    "config": "w4a8", "network": "outlier", "nothing": "nowhere", "percent sign": "%", "blank": "   ",
}  # fmt: skip


@pytest.mark.parametrize("words", SEARCHES.values(), ids=list(SEARCHES))
def test_search_finds_what_the_store_finds(open_page, store, three, words) -> None:
    open_page("runs")
    known = history.everything()
    found = [run.id for run in Filter(words=words).keep(known)]
    assert found == [run.id for run in store.list_runs(None, search=words)]


def test_search_by_the_beginning_of_an_id(open_page, store, three) -> None:
    open_page("runs")
    assert [run.id for run in Filter(words=three[1][:6]).keep(history.everything())] == [three[1]]


def test_filters_leave_what_fits_all_of_them(open_page, three) -> None:
    at = open_page("runs")
    assert shown(at)[:3] == ["text", "four bits", "first"]
    at.text_input(key="runs_words").set_value("good").run()
    assert shown(at) == ["text", "first"]
    at.selectbox(key="runs_model").select("outlier_mlp").run()
    assert shown(at) == ["first"]
    at.selectbox(key="runs_tag").select("good").run()
    at.text_input(key="runs_words").set_value("").run()
    at.selectbox(key="runs_model").select(ANY).run()
    assert shown(at) == ["text", "first"]
    assert not at.exception
    assert not at.error


def test_filter_that_leaves_nothing_says_so_and_can_be_taken_away(open_page, three) -> None:
    at = open_page("runs")
    at.text_input(key="runs_words").set_value("nowhere").run()
    assert "No run has all of these" in said(at.info[0])
    button(at, "runs_all").click().run()
    assert shown(at)[:3] == ["text", "four bits", "first"]


def test_kinds_and_ends_can_be_told_apart(open_page, store, three) -> None:
    failed = store.create_run(kind="experiment", spec=Experiment("outlier_mlp", "outlier_mlp", "x86").to_dict())
    store.start(failed)
    store.finish(failed, "failed", error="it broke here")
    at = open_page("runs")
    at.selectbox(key="runs_status").select("failed").run()
    assert shown(at) == [failed]
    at.selectbox(key="runs_status").select(ANY).run()
    at.selectbox(key="runs_kind").select("prepare").run()
    assert set(at.dataframe[0].value["Kind"]) == {"calibration"}


def test_table_says_what_the_figures_were_computed_with(open_page, home) -> None:
    one_run(home, name="by torch")
    one_run(home, backend="integer", name="by kernels")
    at = open_page("runs")
    table = at.dataframe[0].value.set_index("Run")
    assert table.loc["by torch", "Computed"] == "simulated"
    assert table.loc["by kernels", "Computed"] == "integer"


# --- what is done with runs -------------------------------------------------------------------------------------------


def test_no_run_at_all_says_what_to_do(open_page, fresh_home) -> None:
    at = open_page("runs")
    # The start page, which every visit begins with, may have started the calibration of the first sample.
    if at.dataframe:
        assert set(at.dataframe[0].value["Kind"]) == {"calibration"}
    else:
        assert "Nothing was run yet" in said(at.info[0])
    assert not at.exception


def test_name_tags_and_notes_are_written_and_found_again(open_page, store, three) -> None:
    at = select(open_page("runs"), [1])
    form = {kind: next(e for e in at.get(kind) if e.key.startswith(f"runs_{what}_{three[1]}"))
            for kind, what in (("text_input", "name"), ("text_area", "notes"), ("multiselect", "tags"))}  # fmt: skip
    form["text_input"].set_value("renamed")
    form["text_area"].set_value("see the first layer")
    form["multiselect"].set_value(["good"])
    next(b for b in at.button if b.key.startswith(f"runs_save_{three[1]}")).click().run()
    run = store.get_run(three[1])
    assert (run.name, run.notes, run.tags) == ("renamed", "see the first layer", ("good",))
    assert shown(at)[1] == "renamed"
    assert not at.exception


def test_tags_are_added_to_several_runs_at_once(open_page, store, three) -> None:
    at = select(open_page("runs"), [0, 1, 2])
    at.multiselect[0].set_value(["kept"])
    next(b for b in at.button if b.key.startswith("runs_add_tags_")).click().run()
    assert [store.get_run(i).tags for i in three] == [("good", "kept"), ("kept",), ("good", "kept")]


def test_delete_is_undone_until_something_else_is_done(open_page, store, three) -> None:
    at = select(open_page("runs"), [0, 2])
    button(at, "runs_delete").click().run()
    assert shown(at)[0] == "four bits"
    assert {run.id for run in store.list_runs(None, deleted=True)} == {three[0], three[2]}
    # Looking for something is not doing something.
    at.text_input(key="runs_words").set_value("four").run()
    at.text_input(key="runs_words").set_value("").run()
    button(at, "runs_undo").click().run()
    assert shown(at)[:3] == ["text", "four bits", "first"]
    assert not store.list_runs(None, deleted=True)
    select(at, [0])
    button(at, "runs_delete").click().run()
    select(at, [0])
    next(b for b in at.button if b.key.startswith("runs_save_")).click().run()
    assert not [b for b in at.button if b.key == "runs_undo"]


def test_deleted_runs_are_shown_and_restored(open_page, store, three) -> None:
    store.delete_runs([three[0]])
    at = open_page("runs")
    assert "text" not in shown(at)
    at.toggle(key="runs_deleted").set_value(True).run()
    assert shown(at) == ["text"]
    select(at, [0])
    button(at, "runs_restore").click().run()
    assert "Nothing was deleted" in said(at.info[0])
    at.toggle(key="runs_deleted").set_value(False).run()
    assert "text" in shown(at)


def test_when_all_are_deleted_the_page_says_where_they_are(open_page, store, three) -> None:
    store.delete_runs([run.id for run in store.list_runs(None)])
    at = open_page("runs")
    assert "Every run was deleted" in said(at.info[0])


def test_run_that_goes_on_is_not_deleted_and_said(open_page, store, three, read) -> None:
    going = store.create_run(kind="experiment", spec=Experiment("outlier_mlp", "outlier_mlp", "x86").to_dict())
    at = select(open_page("runs"), [0])
    assert shown(at)[0] == going
    button(at, "runs_delete").click().run()
    assert "still going" in read(at, "markdown")
    assert store.try_run(going).deleted is None


def test_sweep_is_deleted_and_compared_with_its_parts(open_page, home, store) -> None:
    import qlab

    found = qlab.sweep("outlier_mlp", "outlier_mlp", ["x86", "arm"], store=store, name="two presets")
    parts = [run.id for run in found]
    at = open_page("runs")
    row = shown(at).index("two presets")
    select(at, [row])
    button(at, "runs_compare").click().run()
    assert list(at.session_state["lab.compared"]) == parts
    at.switch_page("pages/lab/runs.py").run()
    at.selectbox(key="runs_sweep").select(found.id).run()
    assert set(shown(at)) >= {"two presets", "x86", "arm"}
    select(at, [shown(at).index("two presets")])
    button(at, "runs_delete").click().run()
    gone = {run.id for run in store.list_runs(None, deleted=True)}
    assert gone >= {found.id, *parts}


def test_open_shows_the_run_on_experiment(open_page, three) -> None:
    at = select(open_page("runs"), [1])
    button(at, "runs_open").click().run()
    assert at.session_state["lab.run"] == three[1]
    assert at.title[0].value == "What does this configuration cost?"


def test_only_what_has_a_result_can_be_compared(open_page, store, three) -> None:
    failed = store.create_run(kind="experiment", spec=Experiment("outlier_mlp", "outlier_mlp", "x86").to_dict())
    store.start(failed)
    store.finish(failed, "failed", error="it broke here")
    at = select(open_page("runs"), [0])
    assert button(at, "runs_compare").disabled
    select(at, [0, 1, 2])
    assert not button(at, "runs_compare").disabled
    button(at, "runs_compare").click().run()
    assert list(at.session_state["lab.compared"]) == three[:2]


# --- many -------------------------------------------------------------------------------------------------------------


def test_rows_are_read_again_only_when_one_has_changed(open_page, home, store) -> None:
    ids = fill(home, 30)
    open_page("runs")
    first = history.everything()
    assert len([run for run in first.runs if run.kind == "experiment"]) == 30
    assert history.everything() is first
    assert run_list.table(first) is run_list.table(history.everything())
    store.annotate(ids[3], name="renamed")
    assert history.everything().by_id[ids[3]].name == "renamed"
    store.note_latency(ids[4], 0.25, 1)
    assert history.everything().by_id[ids[4]].headline.latency == 0.25
