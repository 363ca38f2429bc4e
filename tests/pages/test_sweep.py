"""The Sweep page: what it says before a sweep, what it shows of one, and how it goes on with one."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qlab
from qlab.lab.grid import Grid
from qlab.lab.store import DONE, FAILED, Store
from qlab.lab.sweep import Sweep
from qlab.ui import cache
from qlab.ui.sweep_setup import FIRST, Plan
from tests.pages.elements import charts, figures

TWO = Grid(weight_bits=(8, 2))


@pytest.fixture
def swept(home):
    """A sweep of two configs in the store of the page."""
    return qlab.sweep("residual_digits", "residual_digits", TWO, store=Store(home))


def button(at, key: str):
    return at.button(key=key)


def test_before_a_sweep_the_page_says_what_it_would_take(open_page, read) -> None:
    at = open_page("sweep")
    assert not at.exception
    assert not at.error
    words = read(at, "markdown")
    assert f"**{len(FIRST.configs())} configs**" in words
    assert "about" in words
    assert "going by the float network's time" in words
    assert not button(at, "sweep_run").disabled


def test_choices_make_the_grid(open_page, read) -> None:
    at = open_page("sweep")
    at.button_group(key="sweep_weight_bits").set_value([8, 4, 2]).run()
    assert at.session_state["lab.plan"].grid.weight_bits == (8, 4, 2)
    assert "**18 configs**" in read(at, "markdown")
    at.button_group(key="sweep_activation_observers").set_value([]).run()  # an empty choice would make no config
    assert at.session_state["lab.plan"].grid.activation_observers == FIRST.activation_observers
    at.number_input(key="sweep_most").set_value(5).run()
    assert "5 of them within the budget" in read(at, "markdown")
    sweep = at.session_state["lab.plan"].sweep
    assert sweep is not None
    at.switch_page("pages/lab/runs.py").run()
    at.switch_page("pages/lab/sweep.py").run()
    assert "**18 configs**" in read(at, "markdown")


def test_combinations_that_are_no_config_are_named(open_page, read) -> None:
    plan = Plan(grid=replace(FIRST, activation_schemes=("per_tensor_affine", "per_channel_affine")))
    at = open_page("sweep", state={"lab.plan": plan})
    assert not at.exception
    assert "configs**" in read(at, "markdown")
    nothing = Plan(grid=replace(FIRST, weight_observers=("moving_average",)))
    at = open_page("sweep", state={"lab.plan": nothing})
    assert "means nothing" in read(at, "warning")


def test_a_finished_sweep_is_shown_with_its_best_and_what_was_known(open_page, read, swept) -> None:
    at = open_page("sweep", state={"lab.plan": Plan(grid=TWO)})
    assert not at.exception
    assert "2 known from earlier runs" in read(at, "markdown")
    labels = figures(at)
    assert labels["Best"] == swept.best.name == "W8 A8"
    table = at.dataframe[0].value
    assert list(table["Config"]) == ["W8 A8", "W2 A8"]
    assert list(table["Computed"]) == ["on integers", "on integers"]
    assert table["Accuracy"][0] == pytest.approx(100 * swept[0].headline.accuracy)
    figure = charts(at)[0]
    assert "Size" in figure["layout"]["xaxis"]["title"]["text"]
    at.button(key="sweep_use").click().run()
    assert at.session_state["lab.mapping"] == TWO.configs()["W8 A8"]


def test_dropped_and_left_out_configs_are_named(open_page, read, home) -> None:
    grid = Grid(weight_bits=(8, 2), activation_bits=(8, 2))
    found = qlab.sweep("residual_digits", "residual_digits", grid, store=Store(home), eliminate=True, most=3)
    at = open_page("sweep", query={"sweep": found.id})
    assert not at.exception
    words = read(at, "markdown")
    assert "saved" in words
    assert "worse than the best so far beyond chance" in words
    assert "the budget of the sweep was used up" in words
    assert {e.label for e in at.expander} >= {f"{len(found.summary['dropped'])} dropped", "1 not run"}
    assert "stopped early" in set(at.dataframe[0].value["Status"])


def test_run_in_workers_from_the_button_to_the_result(open_page, home) -> None:
    at = open_page("sweep", state={"lab.plan": Plan(grid=TWO, name="two")})
    at.button(key="sweep_run").click().run()
    assert not at.exception
    sweep_id = at.session_state["lab.sweep"]
    assert at.button(key="sweep_run").disabled
    assert cache.runner().wait(sweep_id, 200).status == DONE
    at.run()
    assert not at.exception
    assert {metric.label for metric in at.metric} >= {"Best", "Its accuracy", "In float", "Its size"}
    assert "two · 2 configs of residual" in at.subheader[0].value.replace("\\", "")


def test_an_interrupted_sweep_can_be_taken_up(open_page, home) -> None:
    store = Store(home)
    sweep = Sweep.of("residual_digits", "residual_digits", TWO)
    sweep_id = store.create_run(kind="sweep", spec=sweep.to_dict(), model="residual_digits", config="2 configs")
    rows = [{"spec": e.to_dict(), "name": e.name} for e in sweep.experiments]
    for run_id in store.create_runs(rows, kind="experiment", parent=sweep_id):
        store.finish(run_id, FAILED, error="the app was stopped while this run was going")
    store.start(sweep_id)
    store.finish(sweep_id, FAILED, error="the app was stopped while this run was going")
    at = open_page("sweep", query={"sweep": sweep_id})
    assert "the app was stopped" in at.error[0].value
    assert at.button(key="sweep_resume").label == "Take up the 2 missing"
    at.button(key="sweep_resume").click().run()
    assert not at.exception
    assert cache.runner().wait(sweep_id, 200).status == DONE
    runs = store.list_runs(parent=sweep_id, kind="experiment")
    assert [run.status for run in runs] == [DONE, DONE]


def test_a_link_to_a_sweep_that_is_not_here_says_so(open_page, read) -> None:
    at = open_page("sweep", query={"sweep": "nowhere"})
    assert "There is no sweep nowhere" in read(at, "warning")
    assert not at.exception
