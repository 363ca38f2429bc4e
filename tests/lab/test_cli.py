"""`python -m qlab` in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlab.lab.store import CANCELLED, DONE, FAILED, Store

ROOT = Path(__file__).resolve().parents[2]
MODEL = "residual_digits"


@pytest.fixture
def spec(tmp_path: Path, few_digits: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(
        json.dumps({"version": 1, "name": "cli", "model": MODEL, "data": str(few_digits), "mapping": "w4a8"})
    )
    return path


def command(*arguments: object, home: Path) -> list[str]:
    return [sys.executable, "-m", "qlab", *map(str, arguments), "--home", str(home)]


def qlab(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, home=home), cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_run_show_and_list(spec: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = qlab("run", spec, home=home)
    assert done.returncode == 0, done.stderr
    run = Store(home).list_runs()[0]
    assert run.status == DONE
    for line in (
        rf"run +{run.id}  cli",
        r"model +residual_digits",
        r"accuracy, float +\d+\.\d %  \[\d+\.\d, \d+\.\d\] on 64",
        r"accuracy, quantized +\d+\.\d %  \[.*\] on 64  simulated",
        r"agreement +\d",
        r"verdict +\w",
        r"size +\d.* kB of \d.* kB in float",
        r"ops quantized +\d+ of \d+",
        r"SQNR, the 5 worst layers",
    ):
        assert re.search(line, done.stdout), line
    assert "%" in done.stderr  # the bar
    assert "%|" not in done.stdout

    shown = qlab("show", run.id[:6], home=home)
    assert shown.returncode == 0
    assert shown.stdout == done.stdout
    as_json = json.loads(qlab("show", run.id, "--json", home=home).stdout)
    assert as_json["result"]["float"]["n"] == 64
    assert as_json["spec"]["mapping"] == "w4a8"

    listed = qlab("runs", home=home)
    assert run.id in listed.stdout
    assert json.loads(qlab("runs", "--json", home=home).stdout)[0]["id"] == run.id


def test_what_goes_wrong_is_said_and_gives_one(spec: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    missing = qlab("run", tmp_path / "none.json", home=home)
    assert missing.returncode == 1
    assert "cannot be read" in missing.stderr
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"model": "nowhere.pt2"}))
    failed = qlab("run", spec, home=home)
    assert failed.returncode == 1
    assert "There is no model" in failed.stderr
    assert "Traceback" not in failed.stderr
    run = Store(home).list_runs()[0]
    assert run.status == FAILED
    shown = qlab("show", run.id, home=home)
    assert shown.returncode == 0
    assert "There is no model" in shown.stdout
    assert qlab("show", "zz", home=home).returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_a_stopped_run_is_cancelled(spec: Path, tmp_path: Path, number: int) -> None:
    home = tmp_path / "home"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"data": MODEL, "batch_size": 1}))
    with subprocess.Popen(
        command("run", spec, home=home), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        store = Store(home)
        end = time.monotonic() + 60
        while not any(r.stage == "calibrate" for r in store.list_runs()) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped." in errors
    assert "Traceback" not in errors
    assert [r.status for r in store.list_runs()] == [CANCELLED]


def test_lists_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from qlab.__main__ import main; "
        "main(['runs', '--home', sys.argv[1]]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "No runs yet" in done.stdout


def test_a_list_of_specs_is_run_one_by_one(spec: Path, tmp_path: Path) -> None:
    one = json.loads(spec.read_text())
    spec.write_text(json.dumps([one, one | {"name": "second", "mapping": "x86"}]))
    done = qlab("run", spec, "--json", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert [(told["name"], told["status"]) for told in json.loads(done.stdout)] == [("cli", DONE), ("second", DONE)]


def test_sweep_prints_a_table_and_goes_on_where_it_was(few_digits: Path, tmp_path: Path) -> None:
    home, path = tmp_path / "home", tmp_path / "sweep.json"
    grid = {"weight_bits": [8, 3]}
    path.write_text(
        json.dumps(
            {"version": 1, "model": MODEL, "data": str(few_digits), "configs": ["int8_weight_only"], "grid": grid}
        )
    )
    done = qlab("sweep", path, home=home)
    assert done.returncode == 0, done.stderr
    for line in (
        r"int8_weight_only +done +\d.* simulated +\d",
        r"W8 A8 +done +\d.*\[.*\] +integer +\d",
        r"W3 A8 +done ",
        r"sweep \w+: 3 configs in .*, 0 known before; 192 of 192 samples evaluated",
    ):
        assert re.search(line, done.stdout), line
    again = qlab("sweep", path, "--json", home=home)
    told = json.loads(again.stdout)
    assert len(told["runs"]) == 3
    assert len(told["result"]["reused"]) == 3
    broken = qlab("sweep", tmp_path / "none.json", home=home)
    assert broken.returncode == 1
    assert "cannot be read" in broken.stderr
