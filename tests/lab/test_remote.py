"""Jobs on a Dask cluster whose workers share nothing with the app but the connection to the scheduler."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Worker

from qlab.lab import courier
from qlab.lab.crew import KILLED
from qlab.lab.experiment import Experiment
from qlab.lab.grid import Grid
from qlab.lab.jobs import JobRunner
from qlab.lab.remote import CONNECTION_LOST, OVER_MEMORY, RemoteCluster
from qlab.lab.run import run as run_here
from qlab.lab.store import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Run, Store
from qlab.lab.sweep import Sweep, sweep
from qlab.lab.tasks import KINDS
from qlab.lab.work import LAB_ERROR
from qlab.samples import SAMPLES
from tests.lab.conftest import MODEL
from tests.lab.job_tasks import KINDS as TEST_KINDS
from tests.lab.machines import LONG, ROOT, CountingStore, Machines, machines, until

SMALL = "outlier_mlp"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machines, str]]:
    with machines(tmp_path_factory) as made:
        address = made.scheduler()
        for name in ("one", "two"):
            made.worker(name, address)
        yield made, address


@pytest.fixture(scope="module")
def runner(cluster: tuple[Machines, str]) -> Iterator[JobRunner]:
    store = CountingStore(cluster[0].app / "home")
    with JobRunner(store, kinds={**KINDS, **TEST_KINDS}, address=cluster[1]) as runner:
        until(lambda: runner.places == 2)
        yield runner
    store.close()


def running(runner: JobRunner, kind: str, **arguments: object) -> Run:
    run_id = runner.submit(kind, **arguments)
    until(lambda: runner.store.get_run(run_id).status != QUEUED)
    return runner.store.get_run(run_id)


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_changes_nothing(
    cluster: tuple[Machines, str],
    runner: JobRunner,
    caplog: pytest.LogCaptureFixture,
    one_thread: None,
) -> None:
    store, app = runner.store, cluster[0].app
    assert isinstance(store, CountingStore)
    model = shutil.copy(SAMPLES / SMALL / "model.pt2", app / "mine.pt2")
    data = shutil.copy(SAMPLES / SMALL / "data.npz", app / "mine.npz")
    uploaded = store.add_upload(data, kind="upload")
    caplog.set_level(logging.DEBUG, "qlab.lab")

    prepared = runner.wait(runner.submit("prepare", model=model, data=uploaded.reference, backend="auto"), LONG)
    assert prepared.status == DONE, (prepared.error, prepared.detail)
    experiments = [
        Experiment(model, uploaded.reference, "x86"),
        Experiment(model, uploaded.reference, "arm", backend="integer"),
        Experiment(model, {"path": data, "scale": 0.5}, "x86"),
        Experiment(model, uploaded.reference, "int4_weight_only"),
    ]
    rows = [KINDS["experiment"].describe(store, {"experiment": e}).columns for e in experiments]
    ids = store.create_runs(rows, kind="experiment")
    needs = list(prepared.require_result()["artifacts"].values())
    for run_id in ids:
        runner.hand_in(run_id, needs=needs)
    stages: dict[str, set[str]] = {run_id: set() for run_id in ids}
    killed = None
    while any(store.is_open(run_id) for run_id in ids):
        for run in store.list_runs(ids=ids, status=RUNNING):
            stages[run.id].add(run.stage)
            if killed is None and run.stage:
                killed = run
                assert run.worker_pid is not None
                os.kill(run.worker_pid, signal.SIGKILL)
        time.sleep(0.005)
    assert killed is not None

    runs = [store.get_run(run_id) for run_id in ids]
    assert [(r.status, r.error) for r in runs] == [(DONE, None)] * len(runs)
    assert {r.id: r.attempts for r in runs if r.attempts != 1} == {killed.id: 2}
    assert store.ends == Counter({prepared.id: 1} | dict.fromkeys(ids, 1))
    assert len({r.worker_pid for r in (*runs, prepared)} | {killed.worker_pid}) >= 2
    assert all(stages.values()), stages

    # Only the run on other data had to calibrate; the exported graph was made once, by `prepare`.
    calibrated = ["calibrate" in r.require_result()["timings"] for r in runs]
    assert calibrated == [False, False, True, False]
    assert all("export graph" not in r.require_result()["timings"] or i == 1 for i, r in enumerate(runs))
    travelled = Counter(r.args[:2] for r in caplog.records if r.msg.startswith("sending"))  # type: ignore[index]
    assert set(travelled.values()) == {1}
    assert {uploaded.hash, *needs} <= {digest for digest, _ in travelled}

    here = Store(app / "other")
    here.add_upload(data, kind="upload")
    for experiment, run in zip(experiments, runs, strict=True):
        alone = run_here(experiment, store=here)
        assert compared(run) == compared(alone)
        assert (run.headline, run.model_hash, run.data_hash, run.content_key) == (
            alone.headline, alone.model_hash, alone.data_hash, alone.content_key,
        )  # fmt: skip
        for digest in run.require_result()["artifacts"].values():
            assert store.artifact(digest).path.exists()
    assert not list(cluster[0].folder.glob("*/lab")), "a worker used a home of its own"


def test_a_sweep_that_loses_a_worker_gets_every_result_once(
    cluster: tuple[Machines, str], runner: JobRunner, tmp_path: Path, one_thread: None
) -> None:
    store, app = runner.store, cluster[0].app
    assert isinstance(store, CountingStore)
    until(lambda: runner.places == 2)
    model = shutil.copy(SAMPLES / SMALL / "model.pt2", app / "swept.pt2")
    data = shutil.copy(SAMPLES / SMALL / "data.npz", app / "swept.npz")
    grid = Grid(weight_bits=(8, 6, 4, 3), activation_bits=(8, 5))
    sweep_id = runner.submit("sweep", sweep=Sweep.of(model, data, grid))

    def parts(**which: Any) -> list[Run]:
        return store.list_runs(limit=None, parent=sweep_id, kind="experiment", **which)

    killed = None
    while store.is_open(sweep_id):
        going = [run for run in parts(status=RUNNING) if run.stage]
        if killed is None and going and parts(status=DONE):
            killed = going[0]
            assert killed.worker_pid is not None
            os.kill(killed.worker_pid, signal.SIGKILL)
        time.sleep(0.005)
    ended = store.get_run(sweep_id)
    assert ended.status == DONE, (ended.error, ended.detail)
    assert killed is not None
    runs = {run.name: run for run in parts()}
    assert list(runs) == list(grid.configs())
    assert {run.status for run in runs.values()} == {DONE}
    assert {store.ends[run.id] for run in runs.values()} == {1}
    # Its run may have ended in the moment before; what came after was another process's.
    assert len({run.worker_pid for run in runs.values()} | {killed.worker_pid}) >= 2
    summary = ended.require_result()
    assert (summary["failed"], summary["not_run"], summary["reused"]) == ([], [], {})

    alone = sweep(model, data, grid, store=Store(tmp_path / "alone"))
    assert [runs[run.name].headline for run in alone] == [run.headline for run in alone]
    assert alone.best is not None
    assert runs[alone.best.name].id == ended.best


def compared(run: Run) -> dict[str, Any]:
    """What a run found, without how long it took."""
    return {k: v for k, v in run.require_result().items() if k != "timings"}


def test_what_is_shipped_stays_out_of_the_row(runner: JobRunner, cluster: tuple[Machines, str]) -> None:
    run = next(r for r in runner.store.list_runs(kind="experiment") if "scale" in r.spec_json)
    assert run.spec["model"] == str(cluster[0].app / "mine.pt2")
    assert run.spec["data"]["path"].endswith("mine.npz")


def test_errors_are_told_apart(runner: JobRunner) -> None:
    ours, bug = runner.wait(runner.submit("mismatch"), LONG), runner.wait(runner.submit("broken"), LONG)
    assert (ours.status, ours.error, ours.detail) == (
        FAILED, "The data has 3 channels, the model takes 1.", "shape [8, 3, 16, 16]",
    )  # fmt: skip
    assert (bug.status, bug.error) == (FAILED, LAB_ERROR)
    assert "KeyError: 'missing'" in (bug.detail or "")


def test_a_file_that_is_nowhere(runner: JobRunner) -> None:
    row = {"spec": Experiment("sha256:" + "0" * 64, MODEL, "x86").to_dict()}
    (run_id,) = runner.store.create_runs([row], kind="experiment")
    runner.hand_in(run_id)
    run = runner.wait(run_id, LONG)
    assert run.status == FAILED
    assert f"is not in this store ({runner.store.home})" in (run.error or "")


# ---- progress and cancel ---------------------------------------------------------------------------------------------


def test_progress_arrives(runner: JobRunner) -> None:
    run_id = runner.submit("count", name="counting", steps=120)
    seen = []
    while runner.store.is_open(run_id):
        seen.append(runner.store.get_run(run_id))
        time.sleep(0.05)
    run = runner.wait(run_id, LONG)
    assert (run.status, run.name, run.share) == (DONE, "counting", 1.0)
    shares = [r.share for r in seen if r.stage == "count"]
    assert len(set(shares)) > 2
    assert shares == sorted(shares)
    assert any(r.seconds_left for r in seen)


@pytest.mark.parametrize("kind", ["count", "stubborn"], ids=["cooperative", "stubborn"])
def test_cancel_takes_less_than_a_second(runner: JobRunner, kind: str) -> None:
    run = running(runner, kind, steps=100_000)
    time.sleep(0.3)
    begun = time.monotonic()
    assert runner.cancel(run.id).status == CANCELLED
    assert time.monotonic() - begun < 1.0
    if kind == "stubborn":
        until(lambda: not os.path.exists(f"/proc/{run.worker_pid}"), 20)
    else:
        assert runner.wait(runner.submit("count", steps=1), LONG).status == DONE
        assert os.path.exists(f"/proc/{run.worker_pid}")


def test_a_worker_that_dies(runner: JobRunner) -> None:
    once, again = runner.submit("die"), runner.submit("die_once", max_attempts=2)
    run = runner.wait(once, LONG)
    assert (run.status, run.error, run.attempts) == (FAILED, KILLED, 1)
    assert runner.wait(again, LONG).result == {"attempts": 2}


# ---- other people's tasks --------------------------------------------------------------------------------------------


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)


@contextmanager
def occupied(address: str, file: Path) -> Iterator[list[str]]:
    """Somebody else has every worker do something."""
    with Client(address, set_as_default=False) as client:
        workers = list(client.nthreads())
        others = [client.submit(wait_for, file, workers=[w], pure=False) for w in workers]
        until(lambda: sum(map(len, client.processing().values())) == len(workers))
        yield workers
        file.touch()
        client.gather(others)


def test_tasks_of_others_are_waited_for(runner: JobRunner, cluster: tuple[Machines, str], tmp_path: Path) -> None:
    until(lambda: runner.places == 2)
    with occupied(cluster[1], tmp_path / "go"):
        run_id = runner.submit("count", steps=1)
        time.sleep(1.0)
        assert runner.ahead(run_id) == 0  # it waits here, where it can still go to any worker
    assert runner.wait(run_id, LONG).status == DONE


def test_a_run_that_was_given_out_and_is_not_begun_is_cancelled(
    runner: JobRunner, cluster: tuple[Machines, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: runner.places == 2)
    crew = runner._crew
    assert isinstance(crew, RemoteCluster)
    with occupied(cluster[1], tmp_path / "go"):
        # As if the others had come between the look and the giving.
        ask = crew._ask
        monkeypatch.setattr(crew, "_ask", lambda what, **more: {} if what == "processing" else ask(what, **more))
        run_id = runner.submit("count", steps=1)
        until(lambda: run_id in runner._active)
        time.sleep(0.5)
        assert runner.cancel(run_id).status == CANCELLED
        until(lambda: run_id not in runner._active, 5)
        monkeypatch.undo()
    assert runner.store.get_run(run_id).attempts == 0
    assert runner.wait(runner.submit("count", steps=1), LONG).status == DONE


def test_a_worker_that_pauses_is_given_nothing(runner: JobRunner, cluster: tuple[Machines, str]) -> None:
    def short_from(share: float, dask_worker: Worker) -> None:
        dask_worker.memory_manager.memory_pause_fraction = share  # type: ignore[union-attr]

    until(lambda: runner.places == 2)
    with Client(cluster[1], set_as_default=False) as client:
        client.run(short_from, 0.0001)
        until(lambda: not client.sync(client.scheduler.ncores_running))
        run_id = runner.submit("count", steps=1)
        time.sleep(0.7)
        assert runner.ahead(run_id) == 0
        client.run(short_from, 0.8)
    assert runner.wait(run_id, LONG).status == DONE


# ---- large files -----------------------------------------------------------------------------------------------------


def test_a_large_file_holds_up_no_other_run(runner: JobRunner) -> None:
    until(lambda: runner.places == 2)
    large = runner.store.add_bytes(os.urandom(64 << 20), kind="upload")
    run_id = runner.store.create_run(kind="count", spec={"steps": 1})
    begun = time.monotonic()
    runner.hand_in(run_id, needs=[large.hash])
    others, seen, longest = 0, set(), 0.0
    while runner.store.is_open(run_id):
        mark = time.monotonic()
        assert runner.wait(runner.submit("count", steps=1, pause=0), LONG).status == DONE
        longest = max(longest, time.monotonic() - mark)
        others += 1
        now = runner.store.get_run(run_id)
        seen |= {now.done} if now.stage == courier.SENDING else set()
    took = time.monotonic() - begun
    print(f"64 MB took {took:.2f} s; {others} other runs meanwhile, {longest:.2f} s the longest")
    assert runner.store.get_run(run_id).status == DONE
    assert len(seen) > 1
    assert others > 1
    assert longest < 5.0


def test_a_cancel_while_a_file_is_on_its_way(runner: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "CHUNK", 1 << 16)  # a slow line
    large = runner.store.add_bytes(os.urandom(40 << 20), kind="upload")
    run_id = runner.store.create_run(kind="count", spec={"steps": 1})
    runner.hand_in(run_id, needs=[large.hash])
    until(lambda: runner.store.get_run(run_id).done > 0)
    begun = time.monotonic()
    assert runner.cancel(run_id).status == CANCELLED
    assert time.monotonic() - begun < 1.0
    assert runner.wait(runner.submit("count", steps=1), LONG).status == DONE


def test_a_file_that_was_changed_is_refused(runner: JobRunner) -> None:
    artifact = runner.store.add_bytes(os.urandom(1000), kind="upload")
    artifact.path.write_bytes(os.urandom(1000))
    run_id = runner.store.create_run(kind="count", spec={"steps": 1})
    runner.hand_in(run_id, needs=[artifact.hash])
    run = runner.wait(run_id, LONG)
    assert (run.status, run.error) == (FAILED, run.error)
    assert "arrived at the worker as other bytes" in (run.error or "")


# ---- the app goes, the cluster goes ----------------------------------------------------------------------------------

APP = """
import sys, time
from qlab.lab.jobs import JobRunner
from qlab.lab.store import Store
from tests.lab.job_tasks import KINDS

runner = JobRunner(Store(sys.argv[1]), kinds=KINDS, address=sys.argv[2])
runs = [runner.submit("count", steps=100_000) for _ in range(2)]
while any(runner.store.get_run(run).worker_pid is None for run in runs):
    time.sleep(0.05)
print("running", flush=True)
time.sleep(60)
"""


def test_workers_of_an_app_that_was_killed_are_free_again(
    cluster: tuple[Machines, str], runner: JobRunner, tmp_path: Path
) -> None:
    until(lambda: runner.places == 2)
    script = tmp_path / "app.py"
    script.write_text(APP)
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "home"), cluster[1]],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "running\n"
        waiting = runner.submit("count", steps=1)
        time.sleep(0.5)
        assert runner.store.get_run(waiting).status == QUEUED  # the others have both workers
        app.kill()
    assert runner.wait(waiting, 20).status == DONE


def test_a_cluster_that_goes(tmp_path_factory: pytest.TempPathFactory) -> None:
    with machines(tmp_path_factory) as made:
        address = made.scheduler()
        unfit = made.worker("unfit", address, "--no-nanny", PYTHONPATH="")
        with JobRunner(Store(made.app / "home"), kinds=TEST_KINDS, address=address) as runner:
            run = runner.wait(runner.submit("count", steps=1), LONG)
            assert run.status == FAILED
            assert "cannot import qlab" in (run.error or "")
            unfit.kill()
            made.worker("fit", address, "--nthreads", "2", "--memory-limit", "900MiB")
            until(lambda: runner.wait(runner.submit("count", steps=1), LONG).status == DONE)
            assert runner.places == 1  # a job has the threads of its worker to itself
            assert runner.wait(runner.submit("settings"), LONG).require_result()["threads"] == 2
            gorged = runner.wait(runner.submit("gorge"), LONG)
            assert (gorged.status, gorged.error) == (FAILED, OVER_MEMORY)
            run = running(runner, "count", steps=100_000)
            made.processes[0].kill()
            run = runner.wait(run.id, LONG)
            assert (run.status, run.error) == (FAILED, CONNECTION_LOST)


def test_no_scheduler_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.lab.remote.CONNECT_WITHIN", "1s")
    monkeypatch.setenv("QLAB_DASK", "tcp://127.0.0.1:9")
    with JobRunner(Store(tmp_path), kinds=TEST_KINDS) as runner:
        for _ in range(2):  # and again, should it have come up meanwhile
            run = runner.wait(runner.submit("count", steps=1), LONG)
            assert run.status == FAILED
            assert "No Dask scheduler answers at tcp://127.0.0.1:9" in (run.error or "")
        assert runner.places == 1
