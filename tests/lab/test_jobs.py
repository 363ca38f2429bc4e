"""The job runner with real worker processes, which are killed, starved and ignored."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qlab.errors import InvalidConfig
from qlab.lab.cluster import OwnCluster
from qlab.lab.crew import KILLED
from qlab.lab.jobs import JobRunner, Staff
from qlab.lab.store import APP_STOPPED, CANCELLED, DONE, FAILED, QUEUED, RUNNING, Run, Store
from qlab.lab.work import LAB_ERROR
from tests.lab.job_tasks import KINDS

LONG = 60.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRunner]:
    store = Store(tmp_path_factory.mktemp("jobs") / "home")
    with JobRunner(store, kinds=KINDS, staff=Staff(workers=1, threads=1, memory=900 << 20)) as runner:
        assert runner.start(LONG)
        yield runner
    store.close()


def until(condition: Callable[[], object], seconds: float = LONG) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def running(runner: JobRunner, kind: str, **arguments: object) -> Run:
    run_id = runner.submit(kind, **arguments)
    until(lambda: runner.store.get_run(run_id).status != QUEUED)
    return runner.store.get_run(run_id)


def gone(pid: int | None) -> bool:
    try:
        return psutil.Process(pid or 0).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_progress_is_seen_and_the_result_stored(runner: JobRunner) -> None:
    begun = time.monotonic()
    run_id = runner.submit("count", name="counting", steps=150)
    assert time.monotonic() - begun < 0.2
    seen = []
    while runner.store.is_open(run_id):
        seen.append(runner.store.get_run(run_id))
        time.sleep(0.05)
    run = runner.wait(run_id, LONG)
    assert run.status == DONE
    assert run.name == "counting"
    assert run.result is not None
    assert run.result["steps"] == 150
    assert run.result["pid"] != os.getpid()
    assert run.result["nice"] == 10
    shares = [r.share for r in seen if r.stage == "count"]
    assert len(set(shares)) > 2
    assert shares == sorted(shares)
    assert any(r.seconds_left for r in seen)


def test_errors_are_told_apart(runner: JobRunner) -> None:
    ours, bug = runner.wait(runner.submit("mismatch"), LONG), runner.wait(runner.submit("broken"), LONG)
    assert (ours.status, ours.error) == (FAILED, "The data has 3 channels, the model takes 1.")
    assert ours.detail == "shape [8, 3, 16, 16]"
    assert (bug.status, bug.error) == (FAILED, LAB_ERROR)
    assert bug.detail is not None
    assert "KeyError: 'missing'" in bug.detail


def test_a_worker_uses_its_share_of_the_cores(runner: JobRunner) -> None:
    result = runner.wait(runner.submit("settings"), LONG).require_result()
    assert result["threads"] == 1


@pytest.mark.parametrize("kind", ["count", "stubborn"], ids=["cooperative", "stubborn"])
def test_cancel_takes_less_than_a_second(runner: JobRunner, kind: str) -> None:
    run, waiting = running(runner, kind, steps=100_000), runner.submit("count", steps=2)
    assert runner.ahead(waiting) == 1
    time.sleep(0.3)
    begun = time.monotonic()
    ended = runner.cancel(run.id)
    took = time.monotonic() - begun
    assert ended.status == CANCELLED
    assert took < 1.0
    if kind == "stubborn":
        until(lambda: gone(run.worker_pid), 1.0 - took)
    assert runner.wait(waiting, LONG).status == DONE  # with a new worker, if it had to be killed
    print(f"cancel of a {kind} job took {took:.3f} s")


def test_a_job_that_waits_is_cancelled_at_once(runner: JobRunner) -> None:
    run, waiting = running(runner, "count", steps=100_000), runner.submit("count", steps=2)
    begun = time.monotonic()
    assert runner.cancel(waiting).status == CANCELLED
    assert time.monotonic() - begun < 0.2
    assert runner.store.get_run(run.id).status == RUNNING
    runner.cancel(run.id)


def test_cancel_of_an_ended_run_changes_nothing(runner: JobRunner) -> None:
    run_id = runner.submit("count", steps=1)
    assert runner.wait(run_id, LONG).status == DONE
    assert runner.cancel(run_id).status == DONE
    with pytest.raises(InvalidConfig, match="no run"):
        runner.cancel("nothere")


def test_a_cancel_by_another_process_is_seen(runner: JobRunner) -> None:
    run = running(runner, "stubborn")
    Store(runner.store.home).request_cancel(run.id)
    assert runner.wait(run.id, 5).status == CANCELLED


def test_a_killed_worker_ends_its_run_and_no_other(runner: JobRunner) -> None:
    run = running(runner, "stubborn")
    waiting = [runner.submit("count", steps=2) for _ in range(3)]
    assert run.worker_pid is not None
    os.kill(run.worker_pid, signal.SIGKILL)
    ended = runner.wait(run.id, LONG)
    assert (ended.status, ended.error) == (FAILED, KILLED)
    assert [runner.wait(w, LONG).status for w in waiting] == [DONE] * 3


def test_too_much_memory_ends_that_run(runner: JobRunner) -> None:
    run, waiting = runner.submit("gorge"), runner.submit("count", steps=2)
    ended = runner.wait(run, LONG)
    assert ended.status == FAILED
    assert ended.error is not None
    assert "more memory than the 0.9 GB" in ended.error
    assert runner.wait(waiting, LONG).status == DONE


def test_a_job_may_be_begun_again(runner: JobRunner) -> None:
    run = runner.wait(runner.submit("die_once", max_attempts=2), LONG)
    assert run.result == {"attempts": 2}


def test_a_worker_that_does_not_come_back_is_replaced(runner: JobRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.lab.cluster.STAFF_EVERY", 0.5)
    crew = runner._crew
    assert isinstance(crew, OwnCluster)
    cluster = crew._cluster
    cluster.sync(cluster.workers[0].close)  # what a nanny does whose worker is killed while it starts
    assert runner.wait(runner.submit("count", steps=2), LONG).status == DONE


def test_what_cannot_be_submitted(runner: JobRunner) -> None:
    before = runner.store.count_runs()
    with pytest.raises(InvalidConfig, match="no job of kind 'magic'"):
        runner.submit("magic")
    with pytest.raises(InvalidConfig, match="JSON"):
        runner.submit("count", steps=object())
    assert runner.store.count_runs() == before


# ---- rows that are there already, and kinds that are carried out here ------------------------------------------------


def test_a_row_that_is_written_is_handed_in(runner: JobRunner) -> None:
    run_id = runner.store.create_run(kind="die_once", spec={})
    runner.hand_in(run_id)
    assert runner.wait(run_id, LONG).result == {"attempts": 2}
    runner.hand_in(run_id)  # it has ended
    assert runner.submit("count", steps=1)
    cancelled = runner.store.create_run(kind="count", spec={"steps": 1})
    runner.store.request_cancel(cancelled)
    runner.hand_in(cancelled)
    until(lambda: runner.ahead(cancelled) is None)
    run = runner.store.get_run(cancelled)
    assert (run.status, run.attempts) == (CANCELLED, 0)


def test_what_cannot_be_handed_in(runner: JobRunner) -> None:
    with pytest.raises(InvalidConfig, match="no run"):
        runner.hand_in("nothere")
    with pytest.raises(InvalidConfig, match="kind 'magic'"):
        runner.hand_in(runner.store.create_run(kind="magic", spec={}))


def test_places(runner: JobRunner) -> None:
    assert (runner.places, runner.closing) == (1, False)


def test_a_job_of_this_process_leads_others(runner: JobRunner) -> None:
    run = runner.wait(runner.submit("lead", name="leading", parts=3, steps=2), LONG)
    assert (run.name, run.attempts) == ("leading", 1)
    assert run.result == {"statuses": [DONE] * 3, "pid": os.getpid()}
    parts = runner.store.list_runs(parent=run.id)
    assert sorted((p.position, p.attempts) for p in parts) == [(0, 1), (1, 1), (2, 1)]


def test_a_job_of_this_process_is_cancelled(runner: JobRunner) -> None:
    run = running(runner, "lead", parts=1, steps=100_000)
    begun = time.monotonic()
    assert runner.cancel(run.id).status == CANCELLED
    assert time.monotonic() - begun < 0.5
    for part in runner.store.list_runs(parent=run.id):
        runner.cancel(part.id)


def test_what_a_job_of_this_process_raises_ends_its_row(runner: JobRunner) -> None:
    ours, fault = runner.wait(runner.submit("lead_astray"), LONG), runner.wait(runner.submit("lead_nowhere"), LONG)
    assert (ours.status, ours.error) == (FAILED, "Nothing to lead.")
    assert (fault.status, fault.error) == (FAILED, LAB_ERROR)
    assert "left its run open" in (fault.detail or "")


def test_closing_ends_a_job_of_this_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    runner = JobRunner(store, kinds=KINDS, staff=Staff(1, 1, 2 << 30))
    run = running(runner, "lead", parts=2, steps=100_000)
    until(lambda: store.count_runs(parent=run.id) == 2)
    runner.close()
    assert runner.closing
    late = store.create_run(kind="count", spec={"steps": 1}, parent=run.id)
    runner.hand_in(late)  # by who has not heard of it yet
    ended = [store.get_run(run.id), *store.list_runs(parent=run.id)]
    assert [(r.status, r.error) for r in ended] == [(FAILED, APP_STOPPED)] * 4


def test_nothing_listens_beyond_this_machine(runner: JobRunner) -> None:
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        listening = [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert set(listening) <= {"127.0.0.1"}


def test_closing_ends_what_is_open(tmp_path: Path) -> None:
    store = Store(tmp_path)
    runner = JobRunner(store, kinds=KINDS, staff=Staff(1, 1, 2 << 30))
    run, waiting = running(runner, "stubborn"), runner.submit("count", steps=1)
    runner.close()
    assert [(r.status, r.error) for r in map(store.get_run, (run.id, waiting))] == [(FAILED, APP_STOPPED)] * 2
    assert gone(run.worker_pid)


APP = """
import sys, time
from qlab.lab.jobs import JobRunner, Staff
from qlab.lab.store import Store
from tests.lab.job_tasks import KINDS

if __name__ == "__main__":
    runner = JobRunner(Store(sys.argv[1]), kinds=KINDS, staff=Staff(1, 1, 2 << 30))
    run = runner.submit("stubborn")
    while runner.store.get_run(run).worker_pid is None:
        time.sleep(0.05)
    print(runner.store.get_run(run).worker_pid, flush=True)
    time.sleep(60)
"""


def test_a_killed_app_leaves_no_worker_and_no_running_run(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(APP)
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "home")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as app:
        assert app.stdout is not None
        worker = int(app.stdout.readline())
        app.kill()
    until(lambda: gone(worker), 5)
    store = Store(tmp_path / "home")
    JobRunner(store)  # as the next app does
    assert [(r.status, r.error) for r in store.list_runs()] == [(FAILED, APP_STOPPED)]
