"""The store: several processes, owners that died, files by their hash."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlab.errors import BadUpload, InvalidConfig, RunFailed
from qlab.lab.progress import Progress
from qlab.lab.store import APP_STOPPED, CANCELLED, DONE, FAILED, QUEUED, RUNNING, Headline, Store, open_store

RUNS_EACH = 40


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def new(store: Store, **values: object) -> str:
    return store.create_run(**({"kind": "experiment", "spec": {"a": 1}} | values))  # type: ignore[arg-type]


def finished(store: Store, **values: object) -> str:
    run_id = new(store, **values)
    store.start(run_id)
    store.finish(run_id, DONE, result={"x": 1}, headline=Headline(accuracy=0.5, size=10))
    return run_id


# ---- a run's life ----------------------------------------------------------------------------------------------------


def test_a_run_from_queue_to_result(store: Store) -> None:
    run_id = new(store, name="first", model="m", data="d", config="x86", parent="sweep")
    run = store.get_run(run_id)
    assert (run.status, run.name, run.spec, run.started, run.parent) == (QUEUED, "first", {"a": 1}, None, "sweep")
    assert store.start(run_id)
    assert not store.start(run_id)  # only once
    assert store.report(run_id, Progress("calibrate", 3, 8, 0.25, 4.5))
    run = store.get_run(run_id)
    assert (run.status, run.stage, run.done, run.total, run.share, run.seconds_left) == (
        RUNNING, "calibrate", 3, 8, 0.25, 4.5,
    )  # fmt: skip
    assert run.worker_pid == os.getpid()
    assert store.finish(run_id, DONE, result={"x": [1, 2]}, headline=Headline(accuracy=0.9, samples=100))
    assert not store.finish(run_id, FAILED, error="too late")
    run = store.get_run(run_id)
    assert (run.status, run.result, run.headline.accuracy, run.share, run.error) == (
        DONE,
        {"x": [1, 2]},
        0.9,
        1.0,
        None,
    )
    assert run.require_result() == {"x": [1, 2]}


def test_a_failed_run_has_a_reason_and_no_result(store: Store) -> None:
    run_id = new(store)
    store.finish(run_id, FAILED, error="the data has no labels", detail="Traceback …")
    run = store.get_run(run_id)
    assert (run.status, run.error, run.detail, run.result) == (FAILED, "the data has no labels", "Traceback …", None)
    with pytest.raises(RunFailed, match="the data has no labels"):
        run.require_result()
    with pytest.raises(TypeError):
        store.finish(new(store), DONE)  # done exactly if there is a result


def test_cancel(store: Store) -> None:
    waiting, running, done = new(store), new(store), finished(store)
    store.start(running)
    assert store.request_cancel(waiting) == CANCELLED
    assert not store.start(waiting)
    assert store.request_cancel(running) == RUNNING
    assert not store.report(running, Progress("a", 1, 2, 0.5, None))
    assert store.cancel_requests([waiting, running, done]) == [running]
    assert store.request_cancel(done) == DONE
    with pytest.raises(InvalidConfig, match="no run 0000"):
        store.request_cancel("0000")


def test_a_run_that_was_ended_from_outside_is_told_to_stop(store: Store) -> None:
    run_id = new(store)
    store.start(run_id)
    store.finish(run_id, FAILED, error="gone")
    assert not store.report(run_id, Progress("a", 1, 2, 0.5, None))
    assert store.get_run(run_id).stage == ""


def test_spec_has_to_be_json(store: Store) -> None:
    with pytest.raises(InvalidConfig, match="JSON"):
        new(store, spec={"a": object()})
    with pytest.raises(InvalidConfig, match="JSON"):
        new(store, spec={"a": float("nan")})


# ---- lists -----------------------------------------------------------------------------------------------------------


def test_lists_are_newest_first_and_filtered(store: Store) -> None:
    ids = [finished(store, name=f"run {'abcde'[i]}.", model="net_50%" if i == 2 else "net") for i in range(5)]
    other = new(store, kind="prepare")
    assert [r.id for r in store.list_runs()] == [other, *reversed(ids)]
    assert [r.id for r in store.list_runs(2, 1)] == [ids[4], ids[3]]
    assert [r.id for r in store.list_runs(kind="prepare")] == [other]
    assert [r.id for r in store.list_runs(status=QUEUED)] == [other]
    assert [r.id for r in store.list_runs(ids=[ids[0], ids[3]])] == [ids[3], ids[0]]
    assert [r.id for r in store.list_runs(search="RUN d.")] == [ids[3]]
    assert [r.id for r in store.list_runs(search="_50%")] == [ids[2]]  # no wildcards
    assert store.count_runs() == 6
    assert store.count_runs(kind="experiment", status=DONE) == 5
    listed = store.list_runs(1, kind="experiment")[0]
    assert listed.result is None  # read with the run alone
    assert listed.headline == Headline(accuracy=0.5, size=10)
    assert store.find_run(ids[0][:8]).id == ids[0]
    with pytest.raises(InvalidConfig, match="No run begins"):
        store.find_run("zz")
    with pytest.raises(InvalidConfig, match="More than one"):
        store.find_run("")


def test_a_thousand_runs_list_fast(store: Store) -> None:
    result = {"ledger": ["x" * 100] * 1000}
    from qlab.lab.tables import DOCUMENTS, RUNS

    owner = store._own()
    with store._write() as connection:
        row = {"status": DONE, "kind": "experiment", "spec": "{}", "spec_hash": "", "owner": owner, "created": 1.0}
        connection.execute(RUNS.insert(), [row | {"id": f"{i:010x}"} for i in range(1000)])
        text = json.dumps(result)
        connection.execute(DOCUMENTS.insert(), [{"run": f"{i:010x}", "result": text} for i in range(1000)])
    store.list_runs(None)
    begun = time.process_time()
    assert len(store.list_runs(None)) == 1000
    assert time.process_time() - begun < 0.3


def test_tags_notes_delete_and_undo(store: Store) -> None:
    run_id, other = finished(store), new(store)
    store.annotate(run_id, name=" best ", tags=["fast", " fast", "ä"], notes="keep")
    run = store.get_run(run_id)
    assert (run.name, run.tags, run.notes) == ("best", ("fast", "ä"), "keep")
    assert [r.id for r in store.list_runs(tag="ä")] == [run_id]
    assert store.list_runs(tag="fas") == []
    assert store.delete_runs([run_id, other]) == [run_id]  # one that has not ended stays
    assert [r.id for r in store.list_runs()] == [other]
    assert [r.id for r in store.list_runs(deleted=True)] == [run_id]
    store.restore_runs([run_id])
    assert store.count_runs() == 2
    with pytest.raises(InvalidConfig, match="no run"):
        store.annotate("nothere", notes="x")


# ---- several processes -----------------------------------------------------------------------------------------------


def _write_runs(home: str, worker: int) -> None:
    store = Store(home)
    for i in range(RUNS_EACH):
        run_id = store.create_run(kind="experiment", spec={"worker": worker, "i": i})
        store.start(run_id)
        for step in range(3):
            store.report(run_id, Progress("a", step, 3, step / 3, None))
        store.add_bytes(f"{i % 10}".encode(), kind="test")  # the others write the same
        store.finish(run_id, DONE, result={"worker": worker, "i": i})


def test_the_stamp_changes_with_what_a_list_shows_and_not_with_progress(store: Store) -> None:
    seen = [store.stamp()]

    def changed() -> bool:
        seen.append(store.stamp())
        return seen[-1] not in seen[:-1]

    run_id = store.create_run(kind="experiment", spec={})
    assert changed()
    store.start(run_id)
    assert changed()
    store.report(run_id, Progress("work", 1, 2, 0.5, 3.0))
    assert not changed()
    store.annotate(run_id, name="first")
    assert changed()
    store.annotate(run_id, tags=["a"], notes="b")
    assert changed()
    store.finish(run_id, DONE, result={})
    assert changed()
    store.delete_runs([run_id])
    assert changed()


def test_four_processes_write_at_once(tmp_path: Path) -> None:
    home = str(tmp_path / "home")  # which none of them finds there
    processes = [
        multiprocessing.get_context("spawn").Process(target=_write_runs, args=(home, worker)) for worker in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [p.exitcode for p in processes] == [0] * 4
    store = Store(home)
    assert store.count_runs(status=DONE) == 4 * RUNS_EACH
    results = [store.get_run(r.id).result for r in store.list_runs(None)]
    assert {(r["worker"], r["i"]) for r in results if r} == {(w, i) for w in range(4) for i in range(RUNS_EACH)}
    assert len(store.list_artifacts("test")) == 10


OWNER = """
import sys, time
from qlab.lab.store import Store
store = Store(sys.argv[1])
for status in ("queued", "running", "stopping", "done"):
    run = store.create_run(kind="experiment", spec={}, name=status)
    if status != "queued":
        store.start(run)
    if status == "stopping":
        store.request_cancel(run)
    if status == "done":
        store.finish(run, "done", result={})
print("ready", flush=True)
time.sleep(60)
"""


def test_recover_ends_what_a_killed_app_left(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(store.home)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        mine = new(store)
        assert store.recover() == []  # its owner lives
        owner.send_signal(signal.SIGKILL)
        time.sleep(0.2)  # dead, and not yet waited for: a zombie still has its process id
        again = open_store(store.home)
    found = {r.name: r for r in again.list_runs() if r.id != mine}
    assert {name: r.status for name, r in found.items()} == {
        "queued": FAILED, "running": FAILED, "stopping": CANCELLED, "done": DONE,
    }  # fmt: skip
    assert found["running"].error == APP_STOPPED
    assert found["running"].finished is not None
    assert store.get_run(mine).status == QUEUED


def test_an_owner_on_another_host_is_gone_when_it_is_silent(store: Store) -> None:
    elsewhere = Store(store.home)
    run_id = new(elsewhere)
    from qlab.lab.tables import OWNERS

    with store._write() as connection:
        connection.execute(OWNERS.update().values(host="another-container", pid=1))
    assert store.recover() == []
    with store._write() as connection:
        connection.execute(OWNERS.update().values(seen=time.time() - 1000))
    assert store.recover() == [run_id]


def test_a_process_id_that_was_given_again(store: Store) -> None:
    elsewhere = Store(store.home)
    run_id = new(elsewhere)
    from qlab.lab.tables import OWNERS

    with store._write() as connection:
        connection.execute(OWNERS.update().values(started="0"))  # this pid, but a process before this one
    assert store.recover() == [run_id]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_upload_lies_under_its_hash(store: Store, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    artifact = store.add_upload(io.BytesIO(content), "../../evil.npz")
    digest = hashlib.sha256(content).hexdigest()
    assert (artifact.hash, artifact.bytes, artifact.original_name) == (digest, len(content), "../../evil.npz")
    assert artifact.path == store.home / "artifacts" / digest
    assert artifact.path.read_bytes() == content
    path = tmp_path / "again.npz"
    path.write_bytes(content)
    again = store.add_upload(path)
    assert (again.path, again.original_name) == (artifact.path, "again.npz")
    assert [a.hash for a in store.list_artifacts("upload")] == [digest]
    assert store.artifact(artifact.reference).hash == digest
    assert list((store.home / "incoming").iterdir()) == []


class Endless(io.RawIOBase):
    """A stream that never ends, and says how much was taken from it."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        assert 0 < size <= 1 << 20
        self.taken += size
        return bytes(size)


def test_the_limit_ends_the_reading(store: Store) -> None:
    stream = Endless()
    with pytest.raises(BadUpload, match=r"big\.npz is larger than the limit of 5 MB"):
        store.add_upload(stream, "big.npz", 5 << 20)  # type: ignore[arg-type]
    assert stream.taken <= 6 << 20
    assert list((store.home / "incoming").iterdir()) == []
    assert list((store.home / "artifacts").iterdir()) == []


def test_files_that_are_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadUpload, match="cannot be read"):
        store.add_upload(tmp_path / "none.npz")
    artifact = store.add_bytes(b"x", kind="upload")
    artifact.path.unlink()
    with pytest.raises(InvalidConfig, match="not in this store"):
        store.artifact(artifact.hash)
    assert store.list_artifacts() == []
    with pytest.raises(InvalidConfig, match="not a content hash"):
        store.artifact("../qlab.db")


def test_derived_results_are_checked_before_use(store: Store) -> None:
    first, second = store.add_bytes(b"first", kind="calibration"), store.add_bytes(b"second", kind="calibration")
    assert store.find_derived("calibration", "k") is None
    store.derive("calibration", "k", first)
    assert store.find_derived("calibration", "k") == first
    assert store.find_derived("other", "k") is None
    store.derive("calibration", "k", second)
    assert store.find_derived("calibration", "k") == second
    second.path.write_bytes(b"damaged")
    assert store.find_derived("calibration", "k") is None
    second.path.unlink()
    assert store.find_derived("calibration", "k") is None


# ---- what can be wrong with the place --------------------------------------------------------------------------------


def test_places_that_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match="cannot keep its files"):
        Store(tmp_path / "file")
    with pytest.raises(InvalidConfig, match="cannot be opened"):
        Store(tmp_path / "a", "no url")
    with pytest.raises(InvalidConfig, match=r"nobody:\*\*\*@") as caught:
        Store(tmp_path / "a", "postgresql://nobody:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "qlab.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(InvalidConfig, match="cannot be opened"):
        Store(tmp_path / "b")


def test_an_older_database_gets_the_new_columns(store: Store) -> None:
    run_id = finished(store)
    later = (
        "backend",
        "accuracy_low",
        "accuracy_high",
        "dropped",
        "latency",
        "latency_batch",
        "rival",
        "best",
        "position",
    )
    with sqlite3.connect(store.home / "qlab.db") as connection:
        for column in later:
            connection.execute(f"alter table runs drop column {column}")
        connection.execute("update schema_version set version = 1")
    with Store(store.home)._read() as connection:
        assert connection.exec_driver_sql("select version from schema_version").scalar_one() == 2
    again = Store(store.home)
    assert again.get_run(run_id).headline == Headline(accuracy=0.5, size=10)
    other = finished(again)
    again.note_latency(other, 0.25, 16)
    assert (again.get_run(other).headline.latency, again.get_run(other).headline.latency_batch) == (0.25, 16)


def test_rows_of_a_sweep_are_written_at_once_and_keep_their_order(store: Store) -> None:
    sweep = new(store, kind="sweep")
    ids = store.create_runs([{"spec": {"i": i}, "name": f"c{i}"} for i in range(50)], kind="experiment", parent=sweep)
    found = store.list_runs(limit=None, parent=sweep)
    assert [run.id for run in found] == ids
    assert [run.position for run in found] == list(range(50))
    assert store.create_runs([], kind="experiment", parent=sweep) == []
    with pytest.raises(InvalidConfig, match="JSON"):
        store.create_runs([{"spec": {}}, {"spec": {"x": float("nan")}}], kind="experiment")
    assert store.count_runs(parent=sweep) == 50


def test_reopening_what_did_not_come_to_an_end(store: Store) -> None:
    done, failed, cancelled, going = finished(store), new(store), new(store), new(store)
    store.start(failed)
    store.finish(failed, FAILED, error="no", detail="long")
    store.request_cancel(cancelled)
    store.start(going)
    assert sorted(store.reopen([done, failed, cancelled, going])) == sorted([failed, cancelled])
    for run in map(store.get_run, (failed, cancelled)):
        assert (run.status, run.error, run.detail, run.started, run.cancel_requested) == (
            QUEUED,
            None,
            None,
            None,
            False,
        )
    assert store.get_run(done).status == DONE
    assert store.start(failed)
    assert store.finish(failed, DONE, result={"x": 2})


def test_a_database_of_another_version(store: Store) -> None:
    with sqlite3.connect(store.home / "qlab.db") as connection:
        connection.execute("update schema_version set version = 99")
    connection.close()
    with pytest.raises(InvalidConfig, match="version 99"):
        Store(store.home)


def test_environment_decides_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLAB_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("QLAB_DB", f"sqlite:///{tmp_path / 'there.db'}")
    store = Store()
    assert store.home == tmp_path / "here"
    new(store)
    assert (tmp_path / "there.db").exists()
    assert not (tmp_path / "here" / "qlab.db").exists()
